"""Finite differences of a whole run: the baseline that every derivative must beat, and the check of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..backends import Array, backend_of
from ..bilevel import Batches, Bilevel, HyperGradient, Stats
from ..meter import Meter
from ..ops.arguments import number
from ..state import set_aside
from ..tape import Tensor
from ..transforms import arrays_of, tree_tensors
from ..trees import PyTree, tree_flatten, tree_unflatten
from .reverse import collect, objective


def central(f: Callable[[float], Any], h: float) -> tuple[Any, tuple[Any, Any]]:
    """The central difference of f at 0 with step h, and f(h) and f(-h)."""
    ends = f(h), f(-h)
    return (ends[0] - ends[1]) / (2 * h), ends


def size_of(x: Array) -> float:
    """The root mean square of an array's elements, by which its steps are scaled; 1 for zeros."""
    xp = backend_of(x).xp
    return (float(xp.sqrt(xp.mean(x * x))) if x.size else 1.0) or 1.0


def finite_differences(
    problem: Bilevel, hparams: PyTree, batches: Batches, *, step: float | None = None, outer_batch: Any = None, state: PyTree = None
) -> HyperGradient:
    """Hypergradient by central differences of the whole run: no derivative rule is used for the outer problem.

    Args:
        problem, hparams, batches, outer_batch, state: as in `reverse`.
        step: the step h, relative to the root mean square of each leaf of hparams (absolute for a leaf of zeros), > 0; None for the cube
            root of its dtype's precision, 6e-6 in float64 and 5e-3 in float32, at which the two errors balance.
    Returns: HyperGradient(value, grad, params, state, losses, stats). All but grad are those of a run at hparams.
    Raises: ArgumentError for a step that is not above 0; otherwise as the run.
    Equation: (f(lambda + h e_k) - f(lambda - h e_k)) / 2h for k = 1..N. The error is of the order h^2 + precision / h.
    Memory: 1 state.
    Time: 2 N + 1 runs of T steps for N hyperparameters (elements).
    Example:
        >>> problem = hg.Bilevel(
        ...     lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum(w**2), lambda h: np.zeros(2), lambda h: hg.SGD(lr=0.25)
        ... )
        >>> hg.finite_differences(problem, np.array([1.0, 2.0]), hg.full_batch(None, 3)).grad.round(5)
        array([1.53125, 3.0625 ])
    """
    if step is not None:
        step = number("finite_differences", "step", step, "a number > 0", "it is divided by", 0, excluded=True)
    stats = Stats("finite_differences")
    with Meter() as meter:
        h = tree_tensors(hparams, "finite_differences", "hparams")
        leaves, spec = tree_flatten(h)

        def run(h: PyTree) -> Any:
            return set_aside(objective, problem, h, batches, stats, outer_batch=outer_batch, state=state)

        def slope(i: int, k: int) -> Array:
            """The derivative in element k of leaf i."""

            def at(s: float) -> Array:
                moved = leaves[i].value.copy()
                moved.reshape(-1)[k] += s
                return run(tree_unflatten(spec, [Tensor(moved) if j == i else x for j, x in enumerate(leaves)]))[0].value

            relative = float(np.cbrt(np.finfo(leaves[i].dtype).eps)) if step is None else step
            return central(at, relative * size_of(leaves[i].value))[0].reshape(1)

        value, first = run(h)
        grad = []
        for i, x in enumerate(leaves):
            rows = [slope(i, k) for k in range(x.size)]
            grad.append(Tensor(backend_of(*rows).concatenate(rows, 0).reshape(x.shape) if rows else x.value.copy()))
        r = collect(value, tree_unflatten(spec, grad), first, stats, arrays_of(hparams, state))
    stats.measured(meter)
    return r
