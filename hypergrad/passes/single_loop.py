"""SOBA and SABA: weights, linear system and hyperparameters move together, on one minibatch of each loss a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..backends import Array, backend_of, is_on_gpu
from ..bilevel import Batches, Bilevel, Stats, count_steps
from ..errors import ArgumentError, DTypeError
from ..meter import Meter
from ..ops.arguments import number
from ..state import set_aside
from ..tape import Tensor
from ..transforms import owned, tree_tensors
from ..trees import PyTree, tree_leaves, tree_map
from .outer_loop import Callback, Project, check_finite, count, projected, see
from .point import Flat, Losses
from .reverse import vector_of

Rate = float | Callable[[int], float]


class Table(NamedTuple):
    """The last direction on each minibatch of a loss, and their mean.

    Attributes:
        rows: (m, k) for m minibatches.
        mean: (k,).
    """

    rows: Array
    mean: Array


class LoopState(NamedTuple):
    """Where a run of `soba` or `saba` goes on, beside its hyperparameters.

    Attributes:
        step: the number of steps done.
        params: the weights w.
        solution: v, which follows -H_ww^-1 dE/dw, a pytree like params.
        tables: of `saba`, those of the inner and of the outer loss; None otherwise.
    """

    step: int
    params: PyTree
    solution: PyTree
    tables: tuple[Table, Table] | None


class SingleLoop(NamedTuple):
    """What `soba` and `saba` return. The arrays belong to the caller.

    Attributes:
        hparams: the hyperparameters after the last step.
        params: the weights after it.
        values: the outer loss of each step's minibatch, before the step, shape (n_steps,).
        state: what `state=` takes to go on.
        stats: what the loop did; state_bytes are those of w, v, hparams and the tables.
    Example:
        >>> problem = hg.Bilevel(
        ...     lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum((w - 1.0) ** 2), lambda h: np.zeros(2), lambda h: hg.SGD(lr=0.25)
        ... )
        >>> one = hg.full_batch(None, 1)
        >>> r = hg.soba(problem, np.array([1.0, 2.0]), one, one, outer_lr=0.1, inner_lr=0.4, n_steps=60)
        >>> r.hparams.round(1)
        array([1., 1.])
    """

    hparams: PyTree
    params: PyTree
    values: Any
    state: LoopState
    stats: Stats


def soba(
    problem: Bilevel,
    hparams: PyTree,
    batches: Batches,
    outer_batches: Batches,
    outer_lr: Rate,
    inner_lr: Rate,
    n_steps: int,
    *,
    seed: int = 0,
    project: Project | None = None,
    callback: Callback | None = None,
    state: LoopState | None = None,
) -> SingleLoop:
    """Minimise E(w*(lambda), lambda) in a single loop: SGD on w, on the linear system and on lambda at once.

    Both losses are means over minibatches. Step t draws one of each, i and j, uniformly and as a function of (seed, t) alone, and then

        w <- w - rho dG_i/dw,    v <- v - rho (H_ww v + dE_j/dw),    lambda <- lambda - gamma (H_lambda,w v + dE_j/dlambda)

    with the second derivatives of G_i, all at the same point. With constant step sizes the iterates stay at a distance from the solution
    that grows with the step sizes and the noise; for convergence they fall as (t + 1)^(-1/2), say.

    Args:
        problem: the bilevel problem, without a running loss. Its init gives the first w; its optimizer is not called. Its losses must not
            change during the call: they are recorded and replayed, and looked at again in the last step only.
        hparams: where to start, a pytree of arrays of the weights' dtype.
        batches: indexable and pure: batches[i] is minibatch i of inner_loss, i < len(batches). One batch with all data is no noise.
        outer_batches: the same of outer_loss; an entry None stands for no third argument.
        outer_lr, inner_lr: the step sizes gamma and rho, numbers >= 0 or functions of t.
        n_steps: steps to do, >= 0.
        seed: of the draws.
        project: maps the hyperparameters (pytree of arrays) after each step to allowed ones; None for none.
        callback: called as callback(t, hparams, w, value) before each update; value is the outer loss of the minibatch. The arrays must
            not be written to.
        state: the state of the call before, to go on from its hparams: n steps twice are 2n steps, bit for bit.
    Returns: SingleLoop(hparams, params, values, state, stats).
    Raises: ArgumentError for arguments out of range; DTypeError for leaves of different dtypes; DifferentiationError for a hyperparameter
        that neither loss reads, where a number is not finite (it names the step and the leaf; on a GPU after the last step), and for a
        loss that has changed.
    Equation: the directions D_z, D_v and D_x of Dagreou et al. 2022, section 2.
    Memory: w, v, lambda and their directions.
    Time: per step, one second-order pass on a minibatch of the inner loss and one gradient of one of the outer loss.
    Source: Dagreou et al. 2022, A framework for bilevel optimization that enables stochastic and global variance reduction
        algorithms, arXiv:2201.13409. Constant step sizes of order n_steps^(-1/2), or falling ones.
    Example:
        >>> problem = hg.Bilevel(
        ...     lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum((w - 1.0) ** 2), lambda h: np.zeros(2), lambda h: hg.SGD(lr=0.25)
        ... )
        >>> one = hg.full_batch(None, 1)
        >>> hg.soba(problem, np.array([1.0, 2.0]), one, one, outer_lr=0.1, inner_lr=0.4, n_steps=60).hparams.round(1)
        array([1., 1.])
    """
    loop = _Loop("soba", False, problem, batches, outer_batches, outer_lr, inner_lr, seed, project, callback)
    return loop.run(hparams, n_steps, state)


def saba(
    problem: Bilevel,
    hparams: PyTree,
    batches: Batches,
    outer_batches: Batches,
    outer_lr: Rate,
    inner_lr: Rate,
    n_steps: int,
    *,
    seed: int = 0,
    project: Project | None = None,
    callback: Callback | None = None,
    state: LoopState | None = None,
) -> SingleLoop:
    """`soba` with the variance reduction of SAGA on all five directions: it converges with constant step sizes.

    A table holds the directions last seen on each minibatch. A direction d on minibatch i is replaced by d - table[i] + mean(table), which
    has the mean of all minibatches and a variance that vanishes at the solution. The tables are filled at the start.

    Args:
        problem, hparams, batches, outer_batches, outer_lr, inner_lr, n_steps, seed, project, callback, state: as in `soba`; batches are a
            finite set that is seen often.
    Returns: SingleLoop(hparams, params, values, state, stats).
    Raises: as `soba`; ArgumentError for a state of `soba`, which has no tables, or of other batches.
    Equation: Dagreou et al. 2022, section 3 (SABA).
    Memory: as `soba`, and 2n + N numbers for each inner and n + N for each outer minibatch, for n weights and N hyperparameters.
    Time: as `soba`; at the start one pass over all minibatches.
    Source: Dagreou et al. 2022, arXiv:2201.13409 (constant step sizes); Defazio et al. 2014, arXiv:1407.0202 (SAGA).
    Example:
        >>> problem = hg.Bilevel(
        ...     lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum((w - 1.0) ** 2), lambda h: np.zeros(2), lambda h: hg.SGD(lr=0.25)
        ... )
        >>> one = hg.full_batch(None, 1)
        >>> hg.saba(problem, np.array([1.0, 2.0]), one, one, outer_lr=0.1, inner_lr=0.4, n_steps=60).hparams.round(1)
        array([1., 1.])
    """
    loop = _Loop("saba", True, problem, batches, outer_batches, outer_lr, inner_lr, seed, project, callback)
    return loop.run(hparams, n_steps, state)


@dataclass
class _Loop:
    """One run. Its point z = (w, v, lambda) is one flat array."""

    where: str
    reduce_variance: bool
    problem: Bilevel
    batches: Batches
    outer_batches: Batches
    outer_lr: Rate
    inner_lr: Rate
    seed: int
    project: Project | None
    callback: Callback | None

    def __post_init__(self) -> None:
        self.losses = Losses(self.where, self.problem)
        self.sizes = [count_steps(self.where, b) for b in (self.batches, self.outer_batches)]
        if 0 in self.sizes:
            raise ArgumentError(
                f"{self.where}: batches and outer_batches have the lengths {self.sizes}, expected at least 1 because a step draws one of "
                "each; pass hg.full_batch(None, 1) for a loss without data"
            )

    def _rate(self, name: str, rate: Rate) -> Callable[[int], float]:
        if callable(rate):
            return rate
        found = number(self.where, name, rate, "a number >= 0 or a function of the step number", "it is a step size", 0)
        return lambda t: found

    def run(self, hparams: PyTree, n_steps: int, state: LoopState | None) -> SingleLoop:
        """See `soba`."""
        n_steps, stats = count(self.where, "n_steps", n_steps), Stats(self.where, steps_run=int(n_steps))
        with Meter() as meter:
            r = set_aside(self._run, hparams, n_steps, state, stats)
        stats.measured(meter)
        stats.program = self.losses.program
        return r

    def _run(self, hparams: PyTree, n_steps: int, state: LoopState | None, stats: Stats) -> SingleLoop:
        h = tree_tensors(hparams, self.where, "hparams")
        w = tree_tensors(self.problem.init(h) if state is None else state.params, self.where, "w")
        v = tree_map(lambda x: Tensor(0 * x.value), w) if state is None else tree_tensors(state.solution, self.where, "v")
        self.all, self.both, self.hparams = Flat((w, v, h)), Flat((w, h)), Flat(h)
        self._one_dtype()
        self.losses.check(w, h, self.batches[0], self.outer_batches[0])
        z = self.all.join(self.all.leaves)[0]
        n = (z.size - sum(x.size for x in self.hparams.leaves)) // 2
        tables = None
        if self.reduce_variance:
            tables = self._filled(w, v, h) if state is None else self._copied(state, z.size, z.size - n)
        stats.hold(0, z.nbytes + sum(x.nbytes for table in tables or () for x in table))
        values: list[Tensor] = []
        first = 0 if state is None else state.step
        inner_lr, outer_lr = self._rate("inner_lr", self.inner_lr), self._rate("outer_lr", self.outer_lr)
        for t in range(first, first + n_steps):
            i, j = np.random.default_rng((self.seed, t)).integers(self.sizes)
            w, v, h = self.all.tree(z)
            if t == first + n_steps - 1:
                self.losses.begin_last_step()
            d = self._inner(w, v, h, i)
            value, outer = self._outer(w, h, j)
            if self.callback is not None:
                see(self.callback, t, h, w, value)
            if tables is not None:
                d, outer = _reduced(tables[0], i, d), _reduced(tables[1], j, outer)
            d[n:] += outer
            d[: 2 * n] *= float(inner_lr(t))
            d[2 * n :] *= float(outer_lr(t))
            z = z - d  # a new array: views of the old one may have been handed out
            if self.project is not None:
                z[2 * n :] = self.hparams.join(tree_leaves(projected(self.where, self.project, self.all.tree(z)[2])))[0]
            values.append(value)
            if not is_on_gpu(z):
                self._check(t, z)
        if n_steps and is_on_gpu(z):  # once, as the host waits for it
            self._check(first + n_steps - 1, z)
        w, v, h = self.all.tree(z)
        r = owned((h, w, LoopState(first + n_steps, w, v, None)), copy=True)
        return SingleLoop(r[0], r[1], vector_of(values, self.all.leaves[0]), r[2]._replace(tables=tables), stats)

    def _inner(self, w: PyTree, v: PyTree, h: PyTree, i: int) -> Array:
        """(dG/dw, H_ww v, H_lambda,w v) on inner minibatch i, from one second-order pass."""
        rows = [Tensor(x.value[None]) for x in tree_leaves(v)]
        _, g, hessian, mixed = self.losses.inner_along(w, h, self.batches[i], [*rows])
        return self.all.join([*g, *hessian, *mixed])[0]

    def _outer(self, w: PyTree, h: PyTree, j: int) -> tuple[Tensor, Array]:
        """The outer loss on minibatch j, and its gradient in (w, lambda)."""
        value, w_bar, h_bar = self.losses.outer(w, h, self.outer_batches[j])
        return value, self.both.join([*w_bar, *h_bar])[0]

    def _filled(self, w: PyTree, v: PyTree, h: PyTree) -> tuple[Table, Table]:
        """The tables of the directions at the start."""
        inner, outer = [self._inner(w, v, h, i) for i in range(self.sizes[0])], [self._outer(w, h, j)[1] for j in range(self.sizes[1])]
        rows = [backend_of(*x).xp.stack(x) for x in (inner, outer)]
        return Table(rows[0], rows[0].mean(0)), Table(rows[1], rows[1].mean(0))

    def _copied(self, state: LoopState, *widths: int) -> tuple[Table, Table]:
        """A copy of the state's tables, which the steps write to."""
        shapes, wanted = [tuple(table.rows.shape) for table in state.tables or ()], list(zip(self.sizes, widths, strict=True))
        if state.tables is None or shapes != wanted:
            raise ArgumentError(
                f"{self.where}: state has tables of the shapes {shapes}, expected {wanted}, a row for each minibatch; pass the state of a "
                "call of saba with the same batches"
            )
        inner, outer = (Table(table.rows.copy(), table.mean.copy()) for table in state.tables)
        return inner, outer

    def _one_dtype(self) -> None:
        kinds = {str(x.dtype) for x in self.both.leaves}
        if len(kinds) > 1:
            raise DTypeError(
                f"{self.where}: the weights and hparams have the dtypes {sorted(kinds)}, expected one because all of them move as one "
                "array; convert them with astype"
            )

    def _check(self, t: int, z: Array) -> None:
        """Raises: DifferentiationError if a number is not finite."""
        if not math.isfinite(float(z.sum())):  # cheap; whatever is not finite makes the sum so
            w, v, h = self.all.tree(z)
            check_finite(self.where, t, {"w": w, "v": v, "hparams": h})


def _reduced(table: Table, i: int, d: Array) -> Array:
    """d - table[i] + mean, a new array. The table then holds d."""
    change = d - table.rows[i]
    table.rows[i] = d
    reduced: Array = table.mean + change
    change /= len(table.rows)
    table.mean[...] += change
    return reduced
