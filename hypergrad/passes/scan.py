"""Any differentiable step, run T times, as one op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..bilevel import Batches, Stats, count_steps
from ..errors import ArgumentError
from ..transforms import tree_tensors
from ..trees import PyTree
from . import schedule, store
from .dynamics import Stepping
from .run import Run


def scan(
    step: Callable[[PyTree, PyTree, Any], tuple[PyTree, PyTree]],
    state: PyTree,
    hparams: PyTree,
    batches: Batches,
    *,
    checkpoints: Any = "all",
    memory_bytes: int | None = None,
    last: int | None = None,
    stats: Stats | None = None,
) -> tuple[PyTree, PyTree]:
    """The state after T = len(batches) steps, and the steps' outputs stacked, as one differentiable op.

    Both may be differentiated in `state` and `hparams`: by reverse mode inside `grad`, by forward mode inside `jvp`. The step is
    anything that is written in ops: a cell of a recurrent network, a learned optimiser, a solver. Where it descends a loss with an
    optimiser, `unroll` is faster. The step may itself take gradients.

    Args:
        step: (state, hparams, batch) -> (state, output). The state keeps its structure, shapes and dtypes; the output is a pytree
            of Tensors, the same in every step, or None. It must be pure, and use no Tensor from outside that a gradient follows.
        state: the state before the first step, a pytree of float32 or float64 arrays or Tensors.
        hparams: pytree of arrays or Tensors; () if there is none.
        batches: indexable and pure; batches[t] is the batch of step t.
        checkpoints: "all", "sqrt" or the number of states to hold, >= 1; "host" keeps all states outside of the device's memory, in
            pinned memory for a GPU, in a file for the host, of which a pathlib.Path is the directory. Used by
            reverse mode alone.
        memory_bytes, last: as in `unroll`.
        stats: a Stats to count into.
    Returns: (state, outputs): the last state, and the outputs with a leading axis T; None where there are none or T is 0.
    Raises: ArgumentError for the checkpoint policy, for batches that cannot be read again, and for a step that returns something else;
        ShapeError and DTypeError that name the leaf of a state that changes; DifferentiationError for a closure over a followed Tensor,
        where the gradient of a scan is differentiated again, and where a step that is run again leads to another state.
    Equation: s_t = Phi(s_{t-1}, lambda, batch_t), t = 1..T (Franceschi et al. 2017, eq. 3).
    Memory: "all" T states, "sqrt" 2 ceil(sqrt(T)), c: c states, beside one step; forward mode 1 + P states for P directions.
    Time: T steps, plus those run again; a step backward costs about three. A digest of each state serves to compare re-run steps.
    Example:
        >>> step = lambda s, h, b: (s * h + b, s)
        >>> state, outputs = hg.scan(step, np.array(0.0), np.array(0.5), [1.0, 2.0, 3.0])
        >>> state, outputs
        (Tensor(array(4.25)), Tensor(array([0. , 1. , 2.5])))
    """
    n_steps = count_steps("scan", batches)
    start, args = tree_tensors(state, "scan", "state"), tree_tensors(hparams, "scan", "hparams")
    if isinstance(checkpoints, str) and checkpoints == "reversible":
        raise ArgumentError(
            "scan: checkpoints is 'reversible', expected another policy because only steps of hg.SGD can be undone; choose 'sqrt', "
            "or use hg.unroll"
        )
    plan = schedule.parse(checkpoints, n_steps, last=last, memory_bytes=memory_bytes, state_bytes=store.n_bytes(start))
    return Run(Stepping(step, batches), start, args, n_steps, plan, stats or Stats("scan"), make_store=store.parse(checkpoints, start))()
