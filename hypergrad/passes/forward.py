"""The forward pass: every hyperparameter's tangent is carried along with the inner run."""

from __future__ import annotations

from typing import Any

from ..backends import Array, backend_of
from ..bilevel import Batches, Bilevel, HyperGradient, Stats
from ..errors import ArgumentError
from ..meter import Meter
from ..state import set_aside
from ..tape import Tensor, primal, with_tangents
from ..transforms import arrays_of, dots_of, tree_tensors
from ..trees import PyTree, tree_flatten, tree_map, tree_unflatten
from .reverse import collect, objective
from .unroll import Callback, Unrolled

DIRECTIONS = 256  # in a block by default: enough to fill a machine, while the seeds stay small


def forward(
    problem: Bilevel,
    hparams: PyTree,
    batches: Batches,
    *,
    directions: int = DIRECTIONS,
    outer_batch: Any = None,
    state: PyTree = None,
    first_order: bool = False,
    callback: Callback | None = None,
) -> HyperGradient:
    """Hypergradient by forward mode: memory does not grow with T, time grows with the number N of hyperparameters.

    The N directions are taken in blocks. Each block takes one run, with its directions on a leading axis.

    Args:
        problem: the bilevel problem.
        hparams: pytree of float32 or float64 arrays, N elements in all.
        batches: indexable and pure; T = len(batches).
        directions: the most directions in a block, >= 1.
        outer_batch: what outer_loss takes as its third argument, such as a validation minibatch; None for none.
        state, first_order, callback: as in `unroll`.
    Returns: HyperGradient(value, grad, params, state, losses, stats), grad like hparams.
    Raises: as `reverse`; DifferentiationError inside another jvp.
    Equation: Franceschi et al. 2017, Algorithm 2 (Forward-HG): Z_t = A_t Z_{t-1} + B_t.
    Memory: 1 + P states, whatever T, for blocks of P directions, beside what one step with P tangents needs.
    Time: T steps for each block, with N Hessian products a step in all.
    """
    if isinstance(directions, bool) or not isinstance(directions, int) or directions < 1:
        raise ArgumentError(f"forward: directions has {directions!r}, expected an integer >= 1; pass for instance {DIRECTIONS}")
    stats = Stats("forward")
    with Meter() as meter:
        leaves, spec = tree_flatten(tree_tensors(hparams, "forward", "hparams"))
        total = sum(x.size for x in leaves)
        parts, first = [], None
        for start in range(0, max(total, 1), directions):
            stop = min(start + directions, total)
            value, run, dots = set_aside(
                with_tangents,
                _block,
                problem,
                leaves,
                spec,
                start,
                stop,
                batches,
                stats,
                outer_batch=outer_batch,
                state=state,
                first_order=first_order,
                callback=callback if start == 0 else None,
            )
            first = first or (value, run)
            parts.append(dots)
        flat = backend_of(*parts).concatenate(parts, 0)
        grads, start = [], 0
        for x in leaves:
            grads.append(Tensor(flat[start : start + x.size].reshape(x.shape).copy()))
            start += x.size
        assert first is not None
        r = collect(first[0], tree_unflatten(spec, grads), first[1], stats, arrays_of(hparams, state))
    stats.measured(meter)
    return r


def _block(
    problem: Bilevel, leaves: list[Tensor], spec: Any, start: int, stop: int, batches: Batches, stats: Stats, **more: Any
) -> tuple[Tensor, Unrolled, Array]:
    """The objective, its run and its derivatives in the hyperparameters `start` to `stop`, numbered across all leaves."""
    seeded, offset = [], 0
    for x in leaves:
        seeded.append(Tensor(x.value, _seeds(x, start - offset, stop - offset)))
        offset += x.size
    out, run = objective(problem, tree_unflatten(spec, seeded), batches, stats, **more)
    return primal(out), Unrolled(tree_map(primal, run.w), tree_map(primal, run.state), None, run.losses), dots_of(out, stop - start).value


def _seeds(x: Tensor, start: int, stop: int) -> Tensor | None:
    """Unit tangents of the elements `start` to `stop` of x, zero for indices outside x; None where all of them are zero."""
    if stop <= 0 or start >= x.size or stop == start:
        return None
    rows = backend_of(x.value).xp.eye(stop - start, x.size, start, x.dtype)
    return Tensor(rows.reshape(stop - start, *x.shape))
