"""The reverse pass: the hypergradient by the transposed run, over a checkpointed trajectory."""

from __future__ import annotations

from typing import Any

from ..bilevel import Batches, Bilevel, HyperGradient, Stats
from ..meter import Meter
from ..tape import Tensor
from ..transforms import tensor_value_and_grad, tree_values
from ..trees import PyTree
from .unroll import unroll


def objective(problem: Bilevel, hparams: PyTree, batches: Batches, checkpoints: Any, stats: Stats) -> tuple[Tensor, PyTree]:
    """E(s_T, hparams) and w_T, as taped code around the unroll op."""
    w = unroll(problem.inner_loss, problem.init(hparams), hparams, batches, optimizer=problem.optimizer(hparams),
               checkpoints=checkpoints, stats=stats)
    return problem.outer_loss(w, hparams), w


def reverse(problem: Bilevel, hparams: PyTree, batches: Batches, *, checkpoints: Any = "all") -> HyperGradient:
    """Hypergradient by reverse mode: memory grows with the states held, time not with the number of hyperparameters.

    Args:
        problem: the bilevel problem.
        hparams: pytree of float32 or float64 arrays.
        batches: indexable and pure; T = len(batches).
        checkpoints: "all", "sqrt" or the number of states to hold, >= 1. The result is the same bit for bit.
    Returns: HyperGradient(value, grad, params, stats).
    Raises: ArgumentError for the checkpoint policy; ShapeError, DTypeError and DifferentiationError from the functions.
    Equation: Franceschi et al. 2017, Algorithm 1 (Reverse-HG).
    Memory: "all" T states, "sqrt" 2 ceil(sqrt(T)), c: c states, beside what one step needs.
    Time: T steps, T transposed steps of about three each, and the steps run again (stats.steps_rerun).
    """
    stats = Stats("reverse")
    with Meter() as meter:
        value, params, grad = tensor_value_and_grad(
            lambda h: objective(problem, h, batches, checkpoints, stats), hparams, where="reverse", has_aux=True)
    stats.measured(meter)
    return HyperGradient(value.value, tree_values(grad), tree_values(params), stats)
