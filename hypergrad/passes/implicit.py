"""The implicit pass: the hypergradient at a solution of the inner problem, without the run that led there.

    grad L(w*, lambda) = 0    =>    f'(lambda) = dE/dlambda - H_lambda,w q,    H_ww q = dE/dw

Products with H_ww and H_lambda,w come from one second-order pass; see `descent.second_order`. A vector is one flat array here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from ..backends import Array
from ..bilevel import Bilevel, HyperGradient, Stats
from ..errors import ShapeError
from ..meter import Meter
from ..state import set_aside
from ..tape import Tensor
from ..transforms import arrays_of, owned, tree_tensors
from ..trees import PyTree, tree_flatten, tree_leaves, tree_unflatten
from .point import Flat, Losses, norm
from .solvers import CG, Solver


class Report(NamedTuple):
    """How well the linear system H q = dE/dw was solved, and the inner problem.

    Attributes:
        solver: the name of its class.
        products: Hessian products in all.
        residual: norm of (H + damping) q - b over the norm of b.
        converged: whether the residual is within the solver's tolerance.
        gradient_norm: norm of the inner loss's gradient at w_star, 0 at an exact solution.
        solution: q, a pytree like w_star: a warm start for the next call.
    """

    solver: str
    products: int
    residual: float
    converged: bool
    gradient_norm: float
    solution: PyTree


def implicit(
    problem: Bilevel,
    hparams: PyTree,
    w_star: PyTree,
    batch: Any,
    *,
    solver: Solver | None = None,
    start: PyTree = None,
    outer_batch: Any = None,
    gradient_tolerance: float = 1e-3,
) -> HyperGradient:
    """Hypergradient of E(w*(lambda), lambda) by the implicit function theorem: no state but w*, whatever it took to get there.

    Args:
        problem: the bilevel problem. Its init and its optimizer have no influence on w* and are not called.
        hparams: pytree of float32 or float64 arrays.
        w_star: where the gradient of inner_loss(w, hparams, batch) in w vanishes, a pytree of arrays.
        batch: the data of the inner problem.
        solver: of the system H q = dE/dw: CG, NormalCG, Neumann, FixedPoint or Nystrom; CG() by default.
        start: a first guess of q, a pytree like w_star, such as the `report.solution` of the call before; None for zero.
        outer_batch: what outer_loss takes as its third argument; None for none.
        gradient_tolerance: the norm of the inner gradient, relative to 1 or to the norm of w_star if larger, above which a warning says
            that w_star is no solution.
    Returns: HyperGradient(value, grad, params, state, losses, stats, report): params are w_star, state is None, losses (1,).
    Raises: ArgumentError for a problem with a running loss; ShapeError for a start unlike w_star; DifferentiationError for a
        hyperparameter that neither loss reads, such as a step size, and for an inner loss with an op whose rules are not this package's.
    Warns: UserWarning, once, if the system or the inner problem is not solved within the tolerances.
    Equation: Pedregosa 2016, eq. 2; Lorraine et al. 2020, Theorem 1. The error is of the order of gradient_norm and residual.
    Memory: a few vectors like w_star, beside one second-order pass (Nystrom: `rank` of them).
    Time: one gradient of E and one second-order pass for each product.
    Example:
        >>> problem = hg.Bilevel(
        ...     lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum(w**2), lambda h: np.zeros(2), lambda h: hg.SGD(lr=0.25)
        ... )
        >>> hg.implicit(problem, np.array([1.0, 2.0]), w_star=np.array([1.0, 2.0]), batch=None).grad.round(6)
        array([2., 4.])
    """
    chosen = CG() if solver is None else solver
    r = at_point(Losses("implicit", problem), hparams, w_star, batch, lambda _: chosen, start=start, outer_batch=outer_batch)
    report, most = r.report, gradient_tolerance * max(1.0, norm(tree_leaves(r.params)))
    faults = []
    if not report.converged:
        faults.append(f"{report.solver} stopped at a residual of {report.residual:.2g} after {report.products} Hessian products")
    if not report.gradient_norm <= most:
        faults.append(f"the inner gradient at w_star has the norm {report.gradient_norm:.2g}, expected at most {most:.2g}")
    if faults:
        warnings.warn(
            f"implicit: {'; '.join(faults)}: the hypergradient is inexact; solve the inner problem further, raise max_iterations or "
            "damping, or use hg.reverse",
            stacklevel=2,
        )
    return r


def at_point(
    losses: Losses,
    hparams: PyTree,
    w: PyTree,
    batch: Any,
    choose: Callable[[float], Solver],
    *,
    start: PyTree = None,
    outer_batch: Any = None,
    check: bool = True,
) -> HyperGradient:
    """dE/dlambda - H_lambda,w q at any w, q being what the solver gives for H_ww q = dE/dw. It does not warn.

    Args:
        choose: takes the norm of dE/dw, returns the solver.
        check: whether `losses.check` is called.
    """
    stats = Stats(losses.where)
    with Meter() as meter:
        tree, report = set_aside(_at_point, losses, hparams, w, batch, choose, start, outer_batch, check)
        value, grad, params, loss, solution = owned((*tree, report.solution), arrays_of(hparams, w))
    stats.measured(meter)
    stats.program = losses.program
    return HyperGradient(value, grad, params, None, loss.reshape(1), stats, report._replace(solution=solution))


def _at_point(
    losses: Losses,
    hparams: PyTree,
    given: PyTree,
    batch: Any,
    choose: Callable[[float], Solver],
    start: PyTree,
    outer_batch: Any,
    check: bool,
) -> tuple[tuple[Tensor, PyTree, PyTree, Tensor], Report]:
    where = losses.where
    w, h = tree_tensors(given, where, "w"), tree_tensors(hparams, where, "hparams")
    if check:
        losses.check(w, h, batch, outer_batch)
    value, w_bar, h_bar = losses.outer(w, h, outer_batch)
    flat, products = Flat(w), 0

    def along(rows: Array) -> tuple[Tensor, list[Tensor], Array, list[Tensor | None]]:
        nonlocal products
        products += len(rows)
        loss, g, hessian, mixed = losses.inner_along(w, h, batch, flat.split(rows))
        return loss, g, flat.join(hessian, len(rows)), mixed

    b = flat.join([*w_bar])[0]
    q_0 = None
    if start is not None:
        first = tree_leaves(tree_tensors(start, where, "start"))
        if [x.shape for x in first] != [x.shape for x in flat.leaves]:
            raise ShapeError(
                f"{where}: start has shapes {[x.shape for x in first]}, expected {[x.shape for x in flat.leaves]}, those of w_star; "
                "pass report.solution of a call with the same weights"
            )
        q_0 = flat.join(first)[0]
    size = norm([b])
    solver = choose(size)
    q = solver.solve(lambda rows: along(rows)[2], b, q_0)
    loss, g, hq, mixed = along(q[None])
    residual = norm([hq[0] + solver.damping * q - b]) / (size or 1.0)
    grad = [x if m is None else Tensor(x.value - m.value[0]) for x, m in zip(h_bar, mixed, strict=True)]
    report = Report(type(solver).__name__, products, residual, residual <= solver.tolerance, norm(x.value for x in g), flat.tree(q))
    return (value, tree_unflatten(tree_flatten(h)[1], grad), w, loss), report
