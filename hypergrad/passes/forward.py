"""The forward pass: every hyperparameter's tangent is carried along with the inner run."""

from __future__ import annotations

from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np

from ..backends import Array, backend_of
from ..bilevel import Batches, Bilevel, HyperGradient, Stats
from ..errors import ArgumentError
from ..meter import Meter
from ..state import set_aside
from ..tape import Tensor, primal, with_tangents
from ..transforms import arrays_of, dots_of, tree_tensors
from ..transforms import seed as tangents_of
from ..trees import PyTree, tree_flatten, tree_leaves, tree_map, tree_unflatten
from .reverse import collect, diagnose, objective
from .schedule import is_count
from .store import n_bytes
from .unroll import Callback, Unrolled

DIRECTIONS = 256  # in a block by default: enough to fill a machine, while the seeds stay small


def forward(
    problem: Bilevel,
    hparams: PyTree,
    batches: Batches,
    *,
    directions: int = DIRECTIONS,
    memory_bytes: int | None = None,
    along: PyTree = None,
    samples: int | None = None,
    seed: int = 0,
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
        memory_bytes: room for the state and its tangents: at most so many directions are in a block that they fit in; None for any.
        along: a pytree like hparams (None for a zero leaf), or all with a leading axis P. Only the derivatives along these directions
            are computed, one run for a single one; `grad` is a 0-d array, or (P,).
        samples: K >= 1 random directions v_k with independent standard normal elements, instead of the N unit directions. `grad` is
            the mean of (grad . v_k) v_k, the forward gradient: unbiased, with a variance that grows with N / K.
        seed: of the random directions; give another one at every outer step.
        outer_batch: what outer_loss takes as its third argument, such as a validation minibatch; None for none.
        state, first_order, callback: as in `unroll`.
    Returns: HyperGradient(value, grad, params, state, losses, stats), grad like hparams, or the derivatives with `along`.
    Raises: as `reverse`; ArgumentError for a memory_bytes that one direction does not fit in (it names the smallest), or for both
        `along` and `samples`; ShapeError for an `along` unlike hparams; DifferentiationError inside another jvp.
    Equation: Franceschi et al. 2017, Algorithm 2 (Forward-HG): Z_t = A_t Z_{t-1} + B_t; Baydin et al. 2022, eq. 4 (forward gradient).
    Memory: 1 + P states, whatever T, for blocks of P directions, beside what one step with P tangents needs.
    Time: T steps for each block, with N (or K, or 1) Hessian products a step in all.
    Example:
        >>> problem = hg.Bilevel(
        ...     lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum(w**2), lambda h: np.zeros(2), lambda h: hg.SGD(lr=0.25)
        ... )
        >>> hg.forward(problem, np.array([1.0, 2.0]), hg.full_batch(None, 3)).grad
        array([1.53125, 3.0625 ])
    """
    for name, count in (("directions", directions), ("samples", samples), ("memory_bytes", memory_bytes)):
        if is_count(count) or (count is None and name != "directions"):
            continue
        raise ArgumentError(f"forward: {name} has {count!r}, expected an integer >= 1; pass for instance {DIRECTIONS}")
    if along is not None and samples is not None:
        raise ArgumentError("forward: along and samples are both given, expected one of the two; leave one out")
    stats = Stats("forward")
    more: dict[str, Any] = {"outer_batch": outer_batch, "state": state, "first_order": first_order}
    with Meter() as meter:
        h = tree_tensors(hparams, "forward", "hparams")
        leaves, spec = tree_flatten(h)
        count, batched = sum(x.size for x in leaves), True
        if along is not None:
            chosen, count, batched = with_tangents(_chosen, h, along)
        elif samples is not None:
            count = int(samples)
        if memory_bytes is not None:
            directions = min(directions, _most_directions(problem, h, memory_bytes))
        first: tuple[Tensor, Unrolled] | None = None
        parts: list[Array] = []
        sums: list[Array] = []
        for start in range(0, max(count, 1), directions):
            stop = min(start + directions, count)
            if along is not None:
                seeds = [None if v is None else Tensor(v[start:stop]) for v in chosen]
            elif samples is not None:
                seeds = _normal(leaves, seed, start, stop)
            else:
                seeds = units(leaves, start, stop)
            first_callback = callback if start == 0 else None
            one = partial(block, problem, h, seeds, stop - start, batches, stats, callback=first_callback, **more)
            value, run, dots = set_aside(with_tangents, one)
            first = first or (value, run)
            parts.append(dots)
            if samples is not None:
                terms = [backend_of(dots).xp.tensordot(dots, v.value, 1) / count for v in seeds if v is not None]
                sums = [a + b for a, b in zip(sums, terms, strict=True)] if sums else terms
        flat = backend_of(*parts).concatenate(parts, 0)
        if along is not None:
            grad: PyTree = Tensor(flat if batched else flat.reshape(()))
        elif samples is not None:
            grad = tree_unflatten(spec, list(map(Tensor, sums)))
        else:
            grad = tree_unflatten(spec, split(leaves, flat))
        assert first is not None

        def value_of(h: PyTree, stats: Stats = stats, **other: Any) -> tuple[Tensor, Unrolled]:
            return objective(problem, h, batches, stats, **more, **other)

        every = along is None and samples is None
        diagnose("forward", h, value_of, batches, first[1], grad if every else (), first_order=first_order)
        r = collect(first[0], grad, first[1], stats, arrays_of(hparams, state, along))
    stats.measured(meter)
    return r


def block(
    problem: Bilevel, hparams: PyTree, seeds: list[Tensor | None], count: int, batches: Batches, stats: Stats, **more: Any
) -> tuple[Tensor, Unrolled, Array]:
    """The objective, its run and its derivatives along `count` tangents of the hyperparameters' leaves."""
    leaves, spec = tree_flatten(hparams)
    seeded = tree_unflatten(spec, [Tensor(x.value, v) for x, v in zip(leaves, seeds, strict=True)])
    out, run = objective(problem, seeded, batches, stats, **more)
    return primal(out), Unrolled(tree_map(primal, run.w), tree_map(primal, run.state), None, run.losses), dots_of(out, count).value


def _chosen(hparams: PyTree, along: PyTree) -> tuple[list[Array | None], int, bool]:
    """The tangents that the caller chose, one array a leaf; how many directions; and whether they came with an axis for them."""
    moving, count, batched = tangents_of((hparams,), (along,), "forward")
    return [None if x.dot is None else x.dot.value for x in tree_leaves(moving)], count, batched


def split(leaves: list[Tensor], flat: Array) -> list[Tensor]:
    """One array for all leaves' elements, as one array for each leaf."""
    starts = [0, *accumulate(x.size for x in leaves)][:-1]
    return [Tensor(flat[i : i + x.size].reshape(x.shape).copy()) for i, x in zip(starts, leaves, strict=True)]


def units(leaves: list[Tensor], start: int, stop: int) -> list[Tensor | None]:
    """Unit tangents of the elements `start` to `stop`, numbered across all leaves; None for a leaf where all of them are zero."""
    seeds: list[Tensor | None] = []
    offset = 0
    for x in leaves:
        first, last = start - offset, stop - offset
        offset += x.size
        if last <= 0 or first >= x.size or last == first:
            seeds.append(None)
            continue
        rows = backend_of(x.value).xp.eye(last - first, x.size, first, x.dtype)
        seeds.append(Tensor(rows.reshape(last - first, *x.shape)))
    return seeds


def _normal(leaves: list[Tensor], seed: int, start: int, stop: int) -> list[Tensor | None]:
    """Random tangents `start` to `stop`, the same for any division into blocks."""
    seeds: list[Tensor | None] = []
    for i, x in enumerate(leaves):
        rows = [np.random.default_rng([seed, i, k]).standard_normal(x.shape) for k in range(start, stop)]
        seeds.append(Tensor(backend_of(x.value).xp.asarray(np.array(rows, x.dtype).reshape(-1, *x.shape))))
    return seeds


def _most_directions(problem: Bilevel, hparams: PyTree, memory_bytes: int) -> int:
    """How many tangents of a state fit beside it.

    Raises: ArgumentError if not even one does.
    """
    w = tree_tensors(problem.init(hparams), "forward", "w")
    state_bytes = n_bytes((w, problem.optimizer(hparams).begin(w)))
    if memory_bytes < 2 * state_bytes:
        raise ArgumentError(
            f"forward: memory_bytes is {memory_bytes}, expected at least {2 * state_bytes}, the bytes of a state and one tangent of it, "
            "because forward mode carries both; raise it"
        )
    return memory_bytes // state_bytes - 1 if state_bytes else DIRECTIONS
