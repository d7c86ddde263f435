"""T1-T2: the hypergradient one step back, at any weights."""

from __future__ import annotations

from typing import Any

from ..bilevel import Bilevel, HyperGradient
from ..ops.arguments import number
from ..trees import PyTree
from .implicit import at_point
from .point import Losses
from .solvers import Neumann


def t1t2(problem: Bilevel, hparams: PyTree, w: PyTree, batch: Any, *, lr: float, outer_batch: Any = None) -> HyperGradient:
    """The hypergradient through one step of gradient descent that stays at w, whatever the distance of w from a solution.

    It is `implicit` with the identity, times `lr`, for the inverse of H_ww. It costs no solve, and is biased: only the last step counts.

    Args:
        problem: the bilevel problem; its init and its optimizer are not called.
        hparams: pytree of float32 or float64 arrays.
        w: the current weights, a pytree of arrays.
        batch: the inner minibatch.
        lr: the step size of the inner descent, > 0.
        outer_batch: what outer_loss takes as its third argument; None for none.
    Returns: HyperGradient(value, grad, params, state, losses, stats, report): params are w, state is None, losses (1,). The report says
        how far lr dE/dw is from a solution of the linear system.
    Raises: ArgumentError for an lr that is not above 0; otherwise as `implicit`, without its warning.
    Equation: dE/dlambda - lr H_lambda,w dE/dw.
    Memory: a few vectors like w, beside one second-order pass.
    Time: one gradient of E and one second-order pass; one more gradient of each loss finds hyperparameters that none reads.
    Source: Luketina et al. 2016, Scalable gradient-based tuning of continuous regularization hyperparameters, arXiv:1511.06727.
    Example:
        >>> problem = hg.Bilevel(
        ...     lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum(w**2), lambda h: np.zeros(2), lambda h: hg.SGD(lr=0.25)
        ... )
        >>> hg.t1t2(problem, np.array([1.0, 2.0]), np.array([0.5, 1.5]), None, lr=0.25).grad
        array([0.5, 1.5])
    """
    solver = Neumann(number("t1t2", "lr", lr, "a number > 0", "it is a step size", 0, excluded=True), terms=0)
    return at_point(Losses("t1t2", problem), hparams, w, batch, lambda _: solver, outer_batch=outer_batch)
