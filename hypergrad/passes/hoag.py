"""HOAG: gradient descent on the hyperparameters, whose inner problem and linear system are solved ever more closely."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..bilevel import Bilevel, Stats
from ..errors import ArgumentError
from ..meter import Meter
from ..ops.arguments import number
from ..optimizers import Optimizer
from ..state import set_aside
from ..tape import Tensor
from ..transforms import owned, tree_tensors, tree_values
from ..trees import PyTree, tree_leaves
from .implicit import at_point
from .outer_loop import Callback, Project, check_finite, count, projected, see
from .point import Losses, norm
from .reverse import vector_of
from .solvers import CG, Solver


class HoagState(NamedTuple):
    """Where a run of `hoag` goes on, beside its hyperparameters.

    Attributes:
        update: the number of updates done.
        params: the last inner solution.
        solution: the last solution of the linear system, a pytree like params; None before the first update.
        outer: the outer optimiser's state; None before the first update.
    """

    update: int
    params: PyTree
    solution: PyTree
    outer: PyTree


class Hoag(NamedTuple):
    """What `hoag` returns. The arrays belong to the caller.

    Attributes:
        hparams: the hyperparameters after the last update.
        params: the last inner solution, at the hyperparameters before the last update.
        values: the outer objective of each update, before its step, shape (n_updates,).
        gradient_norms: the norm of the inner gradient at each inner solution.
        residuals: of each linear system, relative to the norm of dE/dw.
        inner_steps: steps of the inner optimiser in each update.
        products: Hessian products in each update.
        state: what `hoag(state=...)` takes to go on.
        stats: what the loop did; steps_run counts inner steps.
    Example:
        >>> problem = hg.Bilevel(
        ...     lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum((w - 1.0) ** 2), lambda h: np.zeros(2), lambda h: hg.SGD(lr=0.25)
        ... )
        >>> hg.hoag(problem, np.array([1.0, 2.0]), None, hg.SGD(lr=0.5), 5).hparams.round(1)
        array([1., 1.])
    """

    hparams: PyTree
    params: PyTree
    values: Any
    gradient_norms: list[float]
    residuals: list[float]
    inner_steps: list[int]
    products: list[int]
    state: HoagState
    stats: Stats


def hoag(
    problem: Bilevel,
    hparams: PyTree,
    batch: Any,
    outer_optimizer: Optimizer,
    n_updates: int,
    *,
    tolerance: float = 0.1,
    decay: float = 0.9,
    least: float | None = None,
    max_steps: int = 1000,
    solver: Callable[[float], Solver] = CG,
    outer_batch: Any = None,
    project: Project | None = None,
    callback: Callback | None = None,
    state: HoagState | None = None,
) -> Hoag:
    """Minimise E(w*(lambda), lambda) by steps along inexact hypergradients, whose errors are summable.

    In update k, problem.optimizer descends the inner loss from the last solution (first from problem.init) until the norm of its gradient
    is at most eps_k = tolerance * decay^k. Its state starts anew. The linear system H q = dE/dw is solved from the last q to a residual
    of norm eps_k. Then outer_optimizer takes a step.

    Args:
        problem: the bilevel problem, without a running loss. Its losses must not change during the call: they are recorded and
            replayed, and looked at again in the last update only.
        hparams: where to start, a pytree of float32 or float64 arrays.
        batch: the data of the inner problem.
        outer_optimizer: an Optimizer for the hyperparameters, such as hg.SGD(lr=0.1).
        n_updates: updates to do, >= 0.
        tolerance, decay: of eps_k, > 0 and in (0, 1).
        least: eps_k does not fall below it; None for the square root of the precision of the weights' dtype (1.5e-8 in float64).
        max_steps: inner steps in an update at most, >= 0.
        solver: takes the residual to reach, relative to the norm of dE/dw, and returns the solver: CG, NormalCG, or for instance
            lambda tolerance: hg.FixedPoint(0.1, tolerance).
        outer_batch: what outer_loss takes as its third argument; None for none.
        project: maps the hyperparameters (pytree of arrays) after each step to allowed ones; None for none.
        callback: called as callback(k, hparams, w, value) in each update before its step, on arrays that must not be written to.
        state: the state of the call before, to go on from its hparams: n updates twice are 2n updates, bit for bit.
    Returns: Hoag(hparams, params, values, gradient_norms, residuals, inner_steps, products, state, stats).
    Raises: ArgumentError for arguments out of range; DifferentiationError where a number is not finite (it names the update and the
        leaf), and for a loss that has changed; otherwise as `implicit`.
    Warns: UserWarning, once, if an inner problem or a linear system was not solved to eps_k.
    Equation: Pedregosa 2016, Algorithm 1 (HOAG).
    Memory: weights, q and the optimisers' states; no state of a run is kept.
    Time: per update, the inner steps, one gradient of E and one second-order pass for each product.
    Source: Pedregosa 2016, Hyperparameter optimization with approximate gradient, arXiv:1602.02355.
    Example:
        >>> problem = hg.Bilevel(
        ...     lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum((w - 1.0) ** 2), lambda h: np.zeros(2), lambda h: hg.SGD(lr=0.25)
        ... )
        >>> hg.hoag(problem, np.array([1.0, 2.0]), None, hg.SGD(lr=0.5), 5).hparams.round(1)
        array([1., 1.])
    """
    if not isinstance(outer_optimizer, Optimizer):
        raise ArgumentError(
            f"hoag: outer_optimizer is a {type(outer_optimizer).__name__}, expected an Optimizer for the hyperparameters; pass for "
            "instance hg.SGD(lr=0.1)"
        )
    n_updates, max_steps = count("hoag", "n_updates", n_updates), count("hoag", "max_steps", max_steps)
    tolerance = number("hoag", "tolerance", tolerance, "a number > 0", "eps_k starts there", 0, excluded=True)
    decay = number("hoag", "decay", decay, "a number in (0, 1)", "eps_k must be summable", 0, excluded=True, below=1)
    losses, stats = Losses("hoag", problem), Stats("hoag")
    values: list[Tensor] = []
    reports, inner_steps = [], []
    late: list[int] = []
    with Meter() as meter:
        h = tree_tensors(hparams, "hoag", "hparams")
        if state is None:
            state = HoagState(0, tree_values(tree_tensors(set_aside(problem.init, h), "hoag", "w")), None, None)
        k, w, q, outer = state
        precision = max((float(np.finfo(x.dtype).eps) for x in tree_leaves(w)), default=0.0)
        least = math.sqrt(precision) if least is None else number("hoag", "least", least, "a number >= 0", "it bounds eps_k", 0)
        for i in range(n_updates):
            goal = max(tolerance * decay**k, least)
            if i == n_updates - 1:
                losses.begin_last_step()
            w, steps = set_aside(_solve, losses, h, w, batch, goal, max_steps, k)

            def choose(size: float, goal: float = goal) -> Solver:
                return solver(goal / size if size else 1.0)

            r = at_point(losses, h, w, batch, choose, start=q, outer_batch=outer_batch, check=i == 0)
            w, q, value = r.params, r.report.solution, Tensor(r.value)
            if callback is not None:
                see(callback, k, h, tree_tensors(w, "hoag"), value)
            after, outer = outer_optimizer.step(tree_values(h), outer, r.grad, k)
            h = tree_tensors(after, "hoag")
            if project is not None:
                h = projected("hoag", project, h)
            check_finite("hoag", k, {"value": value, "hparams": h})
            if not (r.report.gradient_norm <= goal and r.report.converged):
                late.append(k)
            values.append(value)
            reports.append(r.report)
            inner_steps.append(steps)
            k += 1
        like = values[-1] if values else tree_leaves(h)[0]
        hparams, params, *rest = owned(tree_tensors((h, w, w, q, outer), "hoag"), copy=True)
    stats.steps_run, stats.program = sum(inner_steps), losses.program
    stats.measured(meter)
    if late:
        warnings.warn(
            f"hoag: {len(late)} of {n_updates} updates, the first of them {late[0]}, did not solve the inner problem or the linear system "
            "to their tolerance: their hypergradients are inexact; raise max_steps or least, or give problem.optimizer another step size",
            stacklevel=2,
        )
    return Hoag(
        hparams,
        params,
        vector_of(values, like),
        [r.gradient_norm for r in reports],
        [r.residual for r in reports],
        inner_steps,
        [r.products for r in reports],
        HoagState(k, *rest),
        stats,
    )


def _solve(losses: Losses, hparams: PyTree, start: PyTree, batch: Any, goal: float, max_steps: int, k: int) -> tuple[PyTree, int]:
    """The weights, as arrays, at which the norm of the inner gradient is at most `goal`, and the steps to get there."""
    w = tree_tensors(start, "hoag", "w")
    optimizer = losses.problem.optimizer(hparams)
    state = optimizer.begin(w)
    for t in range(max_steps + 1):
        g = losses.inner(w, hparams, batch)
        size = norm(x.value for x in tree_leaves(g))
        if not math.isfinite(size):
            check_finite("hoag", k, {"the inner gradient": g})
        if t == max_steps or size <= goal:
            break
        w, state = optimizer.at(t).advance(w, state, g, t)
    return tree_values(w), t
