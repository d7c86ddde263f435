"""The meta-steps in JAX: one function of an episode under vmap and grad, compiled as a whole by jit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from meta_problems import EPS, INNER_STEP, Arrays, Sizes, Step, Variant

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def _pool_reshaped(x: Any) -> Any:
    n, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


def _pool_windows(x: Any) -> Any:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def _network(w: Mapping[str, Any], images: Any, sizes: Sizes, pool: Callable[[Any], Any]) -> Any:
    x = images
    for i in range(sizes.blocks):
        x = lax.conv_general_dilated(x, w[f"w{i}"], (1, 1), "SAME", dimension_numbers=_LAYOUT)
        mean = x.mean(axis=(0, 1, 2))
        var = jnp.square(x - mean).mean(axis=(0, 1, 2))
        x = (x - mean) * lax.rsqrt(var + EPS) * w[f"gamma{i}"] + w[f"beta{i}"]
        x = pool(jax.nn.relu(x))
    return x.reshape(x.shape[0], -1)


def _cross_entropy(logits: Any, labels: Any) -> Any:
    chosen = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return (jax.nn.logsumexp(logits, axis=1) - chosen).mean()


def _meta_loss(problem: str, sizes: Sizes, pool: Callable[[Any], Any]) -> Callable[..., Any]:
    def maml(p: Any, images: Any, y: Any, query: Any, y_query: Any) -> Any:
        def loss(w: Any, x: Any, labels: Any) -> Any:
            return _cross_entropy(_network(w, x, sizes, pool) @ w["head"] + w["bias"], labels)

        w = p
        for _ in range(sizes.steps):
            w = jax.tree.map(lambda v, g: v - INNER_STEP * g, w, jax.grad(loss)(w, images, y))
        return loss(w, query, y_query)

    def representation(p: Any, images: Any, y: Any, query: Any, y_query: Any) -> Any:
        support, of_query = (_network(p, x, sizes, pool) for x in (images, query))

        def loss(w: Any) -> Any:
            return _cross_entropy(support @ w["weight"] + w["bias"], y)

        w = {"weight": jnp.zeros((sizes.features, sizes.ways), support.dtype), "bias": jnp.zeros(sizes.ways, support.dtype)}
        for _ in range(sizes.steps):
            w = jax.tree.map(lambda v, g: v - p["lr"] * g, w, jax.grad(loss)(w))
        return _cross_entropy(of_query @ w["weight"] + w["bias"], y_query)

    one = maml if problem == "maml" else representation
    return lambda p, *arrays: jax.vmap(one, in_axes=(None, 0, 0, 0, 0))(p, *arrays).mean()


class _JaxStep:
    def __init__(
        self, problem: str, sizes: Sizes, dtype: str, data: Arrays, params: Arrays, device: Any, tf32: bool, pool: Callable[[Any], Any]
    ) -> None:
        self.x64 = dtype == "float64"
        self.device = device
        self.precision = "tensorfloat32" if tf32 else "highest"
        self.step = jax.jit(jax.value_and_grad(_meta_loss(problem, sizes, pool)))
        with jax.enable_x64(self.x64):
            labels = {name: a.astype(np.int32) for name, a in data.items() if name.endswith("labels")}
            on = {name: jax.device_put(a, device) for name, a in {**data, **labels}.items()}
            self.arrays = [on[name] for name in ("support", "support_labels", "query", "query_labels")]
            self.params = {name: jax.device_put(a, device) for name, a in params.items()}
        self.out: Any = None

    def run(self) -> Any:
        with jax.enable_x64(self.x64), jax.default_matmul_precision(self.precision):
            self.out = self.step(self.params, *self.arrays)
        return self.out

    def wait(self) -> None:
        jax.block_until_ready(self.out)  # type: ignore[no-untyped-call]  # steps on one device run in the order of their calls

    def result(self, out: Any) -> tuple[float, Arrays]:
        return float(out[0]), {name: np.asarray(g) for name, g in out[1].items()}

    def peak_bytes(self) -> int | None:
        stats = self.device.memory_stats()
        return int(stats["peak_bytes_in_use"]) if stats else None


def _variant(pool: Callable[[Any], Any]) -> Variant:
    def make(problem: str, sizes: Sizes, dtype: str, data: Arrays, params: Arrays, device: str, tf32: bool) -> Step:
        on = jax.devices("gpu" if device == "cuda" else "cpu")[0]
        return _JaxStep(problem, sizes, dtype, data, params, on, tf32, pool)

    return make


VARIANTS: dict[str, Variant] = {"jax jit vmap": _variant(_pool_reshaped), "jax jit vmap reduce_window": _variant(_pool_windows)}
