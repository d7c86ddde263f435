"""The problems in JAX, compiled by jit.

An episode of a meta-step is one function. All episodes go through vmap and grad at once ("jit vmap"), the compiled function is called
for each of them ("jit"), or one program maps over the episodes and scans over the inner steps ("scan"). With "remat" every
inner step is made again when its derivative is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from meta_problems import EPS, INNER_STEP, Arrays, Sizes, Step, Variant
from run_problems import RunSizes
from runs_jax import hypergradient

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def _pool_reshaped(x: Any) -> Any:
    """Under vmap and jit its filter gradients are wrong on a CPU (jax 0.10.2, right without jit); the comparison finds it."""
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


def _episode(problem: str, sizes: Sizes, pool: Callable[[Any], Any], scanned: bool, remat: bool) -> Callable[..., Any]:
    """(params, support, labels, query, labels) -> query loss of an episode."""

    def descend(step: Callable[[Any], Any], w: Any) -> Any:
        if scanned:
            step = jax.checkpoint(step) if remat else step
            return lax.scan(lambda w, _: (step(w), None), w, None, length=sizes.steps)[0]
        for _ in range(sizes.steps):
            w = step(w)
        return w

    def maml(p: Any, images: Any, y: Any, query: Any, y_query: Any) -> Any:
        def loss(w: Any, x: Any, labels: Any) -> Any:
            return _cross_entropy(_network(w, x, sizes, pool) @ w["head"] + w["bias"], labels)

        def step(w: Any) -> Any:
            return jax.tree.map(lambda v, g: v - INNER_STEP * g, w, jax.grad(loss)(w, images, y))

        return loss(descend(step, p), query, y_query)

    def representation(p: Any, images: Any, y: Any, query: Any, y_query: Any) -> Any:
        support, of_query = (_network(p, x, sizes, pool) for x in (images, query))

        def loss(w: Any) -> Any:
            return _cross_entropy(support @ w["weight"] + w["bias"], y)

        def step(w: Any) -> Any:
            return jax.tree.map(lambda v, g: v - p["lr"] * g, w, jax.grad(loss)(w))

        zero = {"weight": jnp.zeros((sizes.features, sizes.ways), support.dtype), "bias": jnp.zeros(sizes.ways, support.dtype)}
        w = descend(step, zero)
        return _cross_entropy(of_query @ w["weight"] + w["bias"], y_query)

    return maml if problem == "maml" else representation


def _at_once(one: Callable[..., Any]) -> Callable[..., Any]:
    """(params, arrays of all episodes) -> (loss, gradient) by vmap."""
    return jax.value_and_grad(lambda p, *arrays: jax.vmap(one, in_axes=(None, 0, 0, 0, 0))(p, *arrays).mean())


def _one_by_one(one: Callable[..., Any]) -> Callable[..., Any]:
    """(params, arrays of all episodes) -> (loss, gradient) by a loop within the program."""

    def step(p: Any, *arrays: Any) -> Any:
        return jax.tree.map(lambda a: a.mean(0), lax.map(lambda episode: jax.value_and_grad(one)(p, *episode), arrays))

    return step


class _JaxStep:
    """A compiled function of the parameters and the problem's arrays."""

    def __init__(self, function: Callable[..., Any], dtype: str, arrays: tuple[Any, ...], params: Arrays, device: Any, tf32: bool) -> None:
        self.x64, self.device = dtype == "float64", device
        self.precision = "tensorfloat32" if tf32 else "highest"
        with jax.enable_x64(self.x64), jax.default_matmul_precision(self.precision):
            self.arrays = jax.device_put(arrays, device)
            self.params = jax.device_put(params, device)
            self.step = self._compile(function)
        self.out: Any = None

    def _compile(self, function: Callable[..., Any]) -> Any:
        return jax.jit(function).lower(self.params, *self.arrays).compile()

    def _call(self) -> Any:
        return self.step(self.params, *self.arrays)

    def run(self) -> Any:
        with jax.enable_x64(self.x64), jax.default_matmul_precision(self.precision):
            self.out = self._call()
        return self.out

    def wait(self) -> None:
        jax.block_until_ready(self.out)  # type: ignore[no-untyped-call]  # steps on one device run in the order of their calls

    def result(self, out: Any) -> tuple[float, Arrays]:
        return float(out[0]), {name: np.asarray(g) for name, g in out[1].items()}

    def peak_bytes(self) -> int | None:
        if stats := self.device.memory_stats():
            return int(stats["peak_bytes_in_use"])
        sizes = self.step.memory_analysis()  # on the host: what the compiler says that the program needs beside its arguments
        return int(sizes.temp_size_in_bytes + sizes.output_size_in_bytes)


class _Calls(_JaxStep):
    """One compiled episode, called for each."""

    def _compile(self, function: Callable[..., Any]) -> Any:
        n = len(self.arrays[0])
        self.episodes = [jax.tree.map(lambda a, e=e: a[e], self.arrays) for e in range(n)]
        self.zero = (jnp.zeros((), self.params["w0"].dtype), jax.tree.map(jnp.zeros_like, self.params))

        def add(total: Any, p: Any, *episode: Any) -> Any:
            return jax.tree.map(lambda a, b: a + b / n, total, jax.value_and_grad(function)(p, *episode))

        return jax.jit(add).lower(self.zero, self.params, *self.episodes[0]).compile()

    def _call(self) -> Any:
        total = self.zero
        for episode in self.episodes:
            total = self.step(total, self.params, *episode)
        return total


def _variant(
    pool: Callable[[Any], Any] = _pool_reshaped, *, calls: bool = False, scan: bool = False, remat: bool = False, forward: bool = False
) -> Variant:
    def make(problem: str, sizes: Any, dtype: str, data: Arrays, params: Arrays, device: str, tf32: bool) -> Step:
        on = jax.devices("gpu" if device == "cuda" else "cpu")[0]
        data = {name: a.astype(np.int32) if a.dtype.kind == "i" else a for name, a in data.items()}
        if isinstance(sizes, RunSizes):
            return _JaxStep(hypergradient(problem, sizes, remat, forward), dtype, (data,), params, on, tf32)
        arrays = tuple(data[name] for name in ("support", "support_labels", "query", "query_labels"))
        one = _episode(problem, sizes, pool, scan, remat)
        if calls:
            return _Calls(one, dtype, arrays, params, on, tf32)
        return _JaxStep(_one_by_one(one) if scan else _at_once(one), dtype, arrays, params, on, tf32)

    return make


VARIANTS: dict[str, Variant] = {
    "jax jit vmap": _variant(_pool_reshaped),
    "jax jit vmap reduce_window": _variant(_pool_windows),
    "jax jit": _variant(calls=True),
    "jax scan": _variant(scan=True),
    "jax scan remat": _variant(scan=True, remat=True),
    "jax scan jacfwd": _variant(scan=True, forward=True),
}
