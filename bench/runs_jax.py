"""The hypergradients through a long run in JAX: lax.scan over the steps, in reverse, with every step made again, or forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from run_problems import CLEANING_STEP, RunSizes

NAMES = ("weight0", "bias0", "weight1", "bias1")


def cross_entropies(logits: Any, labels: Any) -> Any:
    """Of each example, (N,)."""
    return jax.nn.logsumexp(logits, axis=1) - jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]


def objective(problem: str, sizes: RunSizes, remat: bool) -> Callable[[Any, Any], Any]:
    """(params, data) -> validation loss; with `remat` reverse mode keeps the state before each step and nothing within it."""
    wrap: Callable[..., Any] = jax.checkpoint if remat else lambda step: step

    def cleaning(p: Any, data: Any) -> Any:
        def inner_loss(w: Any, p: Any) -> Any:
            return (jax.nn.sigmoid(p["weights"]) * cross_entropies(data["x"] @ w, data["y"])).mean()

        @wrap
        def step(w: Any, _: Any) -> tuple[Any, None]:
            return w - CLEANING_STEP * jax.grad(inner_loss)(w, p), None

        w, _ = lax.scan(step, jnp.zeros((sizes.features, sizes.classes), data["x"].dtype), None, length=sizes.steps)
        return cross_entropies(data["x_val"] @ w, data["y_val"]).mean()

    def scalars(p: Any, data: Any) -> Any:
        def loss(w: Any, x: Any, y: Any) -> Any:
            return cross_entropies(jax.nn.relu(x @ w["weight0"] + w["bias0"]) @ w["weight1"] + w["bias1"], y).mean()

        @wrap
        def step(state: Any, rows: Any) -> tuple[Any, None]:
            w, v = state
            g = jax.grad(loss)(w, data["x"][rows], data["y"][rows])
            v = jax.tree.map(lambda a, b, d: p["momentum"] * b + (d + p["decay"] * a), w, v, g)
            return (jax.tree.map(lambda a, b: a - p["lr"] * b, w, v), v), None

        start = {name: data[name] for name in NAMES}
        (w, _), _ = lax.scan(step, (start, jax.tree.map(jnp.zeros_like, start)), data["rows"])
        return loss(w, data["x_val"], data["y_val"])

    return cleaning if problem == "hyper-cleaning" else scalars


def hypergradient(problem: str, sizes: RunSizes, remat: bool, forward: bool) -> Callable[[Any, Any], Any]:
    """(params, data) -> (loss, gradient)."""
    loss = objective(problem, sizes, remat)
    if not forward:
        return jax.value_and_grad(loss)

    def by_tangents(p: Any, data: Any) -> tuple[Any, Any]:
        def twice(p: Any) -> tuple[Any, Any]:
            value = loss(p, data)
            return value, value

        slopes, value = jax.jacfwd(twice, has_aux=True)(p)
        return value, slopes

    return by_tangents
