"""DrMAD: the reverse pass along the straight line between the first and the last state."""

from __future__ import annotations

from typing import Any

from ..bilevel import Batches, Bilevel, HyperGradient
from ..trees import PyTree
from .reverse import transposed_run
from .schedule import Line
from .unroll import Callback


def drmad(
    problem: Bilevel,
    hparams: PyTree,
    batches: Batches,
    *,
    outer_batch: Any = None,
    state: PyTree = None,
    first_order: bool = False,
    callback: Callback | None = None,
) -> HyperGradient:
    """Hypergradient by reverse mode over a straight line instead of the run: two states are held, whatever T.

    The transposed step t is taken at s_0 + t/T (s_T - s_0), weights and optimiser state alike. It is exact for T = 1, and for runs whose
    states are equally spaced on a line. Where a run bends, its error has no bound: compare it with `reverse` on a short run.

    Args:
        problem, hparams, batches, outer_batch, state, first_order, callback: as in `reverse`.
    Returns: HyperGradient(value, grad, params, state, losses, stats). All but grad are those of the run itself.
    Raises: as `reverse`.
    Equation: that of `reverse`, with the states s_0 + t/T (s_T - s_0) for s_t (Fu et al. 2016, section 3).
    Memory: 2 states, beside what one step needs.
    Time: T steps, and T transposed steps of about three each; no step is run again.
    Source: Fu et al. 2016, DrMAD: distilling reverse-mode automatic differentiation, arXiv:1601.00917.
    Example:
        >>> problem = hg.Bilevel(
        ...     lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum(w**2), lambda h: np.zeros(2), lambda h: hg.SGD(lr=0.25)
        ... )
        >>> hg.drmad(problem, np.array([1.0, 2.0]), hg.full_batch(None, 3)).grad
        array([1.53125, 3.0625 ])
    """
    return transposed_run(
        "drmad",
        problem,
        hparams,
        batches,
        checkpoints=Line,
        outer_batch=outer_batch,
        state=state,
        first_order=first_order,
        callback=callback,
    )
