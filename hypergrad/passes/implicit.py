"""The implicit pass: the hypergradient at a solution of the inner problem, without the run that led there.

    grad L(w*, lambda) = 0    =>    f'(lambda) = dE/dlambda - H_lambda,w q,    H_ww q = dE/dw

Products with H_ww and H_lambda,w come from one second-order pass; see `descent.second_order`. A vector is one flat array here.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from ..backends import Array, backend_of
from ..bilevel import Bilevel, HyperGradient, Stats
from ..errors import ArgumentError, DifferentiationError, ShapeError
from ..meter import Meter
from ..state import set_aside
from ..tape import Tape, Tensor, with_tangents
from ..transforms import arrays_of, owned, scalar, tensor_value_and_grad, tree_tensors
from ..trees import PyTree, tree_flatten, tree_leaves, tree_named, tree_unflatten
from .descent import second_order
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
    """
    if problem.running_loss is not None:
        raise ArgumentError("implicit: problem has a running_loss, expected none because only the solution is there; use hg.reverse")
    solver, stats = CG() if solver is None else solver, Stats("implicit")
    with Meter() as meter:
        result, report = set_aside(_implicit, problem, hparams, w_star, batch, solver, start, outer_batch)
        (value, grad, w, loss), given = result, arrays_of(hparams, w_star)
        value, grad, w, loss, solution = owned((value, grad, w, loss, report.solution), given)
    stats.measured(meter)
    report = report._replace(solution=solution)
    norm = max(1.0, math.hypot(*(_norm(x) for x in tree_leaves(w))))
    faults = []
    if not report.converged:
        faults.append(f"{report.solver} stopped at a residual of {report.residual:.2g} after {report.products} Hessian products")
    if not report.gradient_norm <= gradient_tolerance * norm:
        faults.append(
            f"the inner gradient at w_star has the norm {report.gradient_norm:.2g}, expected at most {gradient_tolerance * norm:.2g}"
        )
    if faults:
        warnings.warn(
            f"implicit: {'; '.join(faults)}: the hypergradient is inexact; solve the inner problem further, raise max_iterations or "
            "damping, or use hg.reverse",
            stacklevel=2,
        )
    return HyperGradient(value, grad, w, None, loss.reshape(1), stats, report)


def _implicit(
    problem: Bilevel, hparams: PyTree, w_star: PyTree, batch: Any, solver: Solver, start: PyTree, outer_batch: Any
) -> tuple[tuple[Tensor, PyTree, PyTree, Tensor], Report]:
    w, h = tree_tensors(w_star, "implicit", "w_star"), tree_tensors(hparams, "implicit", "hparams")
    extra = () if outer_batch is None else (outer_batch,)

    def outer(both: PyTree) -> Tensor:
        return scalar("outer_loss", problem.outer_loss(both[0], both[1], *extra))

    def inner(w: PyTree, h: PyTree) -> Tensor:
        return problem.inner_loss(w, h, batch)

    value, _, (w_bar, h_bar) = tensor_value_and_grad(outer, (w, h), where="outer_loss")
    leaves, spec = tree_flatten(w)
    flat = _Flat(leaves)
    _check_reads(w, h, inner, outer)
    products = 0

    def pass_along(rows: Array) -> tuple[Tensor, Array, Array, list[Tensor | None]]:
        nonlocal products
        products += len(rows)
        loss, g, hessian, mixed = with_tangents(second_order, inner, w, h, flat.split(rows))
        return loss, flat.join(tree_leaves(g))[0], flat.join(hessian, len(rows)), mixed

    def product(rows: Array) -> Array:
        return pass_along(rows)[2]

    b = flat.join(tree_leaves(w_bar))[0]
    q_0 = None
    if start is not None:
        given = tree_leaves(tree_tensors(start, "implicit", "start"))
        if [x.shape for x in given] != [x.shape for x in leaves]:
            raise ShapeError(
                f"implicit: start has shapes {[x.shape for x in given]}, expected {[x.shape for x in leaves]}, those of w_star; "
                "pass report.solution of a call with the same weights"
            )
        q_0 = flat.join(given)[0]
    q = solver.solve(product, b, q_0)
    loss, g, hq, mixed = pass_along(q[None])
    residual = _norm(hq[0] + solver.damping * q - b) / (_norm(b) or 1.0)
    grad = [x if m is None else Tensor(x.value - m.value[0]) for x, m in zip(tree_leaves(h_bar), mixed, strict=True)]
    solution = tree_unflatten(spec, [x if x is None else Tensor(x.value[0]) for x in flat.split(q[None])])
    report = Report(type(solver).__name__, products, residual, residual <= solver.tolerance, _norm(g), solution)
    return (value, tree_unflatten(tree_flatten(h)[1], grad), w, loss), report


class _Flat:
    """Trees of cotangents or tangents as rows of one array, (P, n)."""

    def __init__(self, leaves: list[Tensor]) -> None:
        self.leaves = leaves

    def split(self, rows: Array) -> list[Tensor | None]:
        """Tangents (P, ...) of the leaves."""
        out: list[Tensor | None] = []
        start = 0
        for x in self.leaves:
            out.append(Tensor(rows[:, start : start + x.size].reshape(-1, *x.shape)))
            start += x.size
        return out

    def join(self, tangents: list[Tensor | None], count: int = 1) -> Array:
        """One row for each of `count` directions; None is zero."""
        parts = [
            backend_of(x.value).xp.zeros((count, x.size), x.dtype) if d is None else d.value.reshape(count, x.size)
            for x, d in zip(self.leaves, tangents, strict=True)
        ]
        return backend_of(*parts).concatenate(parts, 1)


def _norm(x: Array) -> float:
    return math.sqrt(float((x * x).sum()))


def _check_reads(w: PyTree, hparams: PyTree, inner: Callable[[PyTree, PyTree], Tensor], outer: Callable[[PyTree], Tensor]) -> None:
    """Raises: DifferentiationError that names a leaf of hparams which no loss reads; and for an inner loss that is not proven."""
    leaves, spec = tree_flatten((w, hparams))
    read = [False] * len(leaves)
    for loss in (lambda both: inner(*both), outer):
        tape = Tape()

        def taped(tape: Tape = tape, loss: Callable[[PyTree], Tensor] = loss) -> tuple[list[Tensor], Tensor]:
            watched = [tape.watch(x) for x in leaves]
            return watched, loss(tree_unflatten(spec, watched))

        watched, out = tape.run(taped)
        if loss is not outer and not tape.proven:
            raise DifferentiationError(
                "implicit: inner_loss has an op whose rules are declared outside this package, expected proven ones because the Hessian "
                "must be symmetric; use hg.reverse"
            )
        bars = tape.gradients([out], [Tensor(backend_of(out.value).xp.ones_like(out.value))], watched)
        read = [known or bar is not None for known, bar in zip(read, bars, strict=True)]
    names = [name for name, _ in tree_named(hparams, "hparams")]
    idle = [name for known, name in zip(read[len(read) - len(names) :], names, strict=True) if not known]
    if idle:
        raise DifferentiationError(
            f"implicit: {', '.join(idle)} is read by neither inner_loss nor outer_loss, expected an influence on the solution; a "
            "hyperparameter of the optimiser or of the start has none there: use hg.reverse or hg.forward, or leave it out"
        )
