"""The reverse pass: the hypergradient by the transposed run, over a checkpointed trajectory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..backends import Array, backend_of
from ..bilevel import Batches, Bilevel, HyperGradient, Stats
from ..meter import Meter
from ..state import set_aside
from ..tape import Tensor
from ..transforms import arrays_of, owned, scalar, tensor_value_and_grad, tree_tensors
from ..trees import PyTree
from .diagnosis import check_run, warn_without_influence
from .unroll import Callback, Unrolled, unrolled


def objective(
    problem: Bilevel, hparams: PyTree, batches: Batches, stats: Stats, *, outer_batch: Any = None, **more: Any
) -> tuple[Tensor, Unrolled]:
    """The outer objective and its inner run. Open tapes record them, the run as one op. `more` goes to `unrolled`."""
    w_0, optimizer = problem.init(hparams), problem.optimizer(hparams)
    run = unrolled(problem.inner_loss, w_0, hparams, batches, optimizer, stats, running_loss=problem.running_loss, **more)
    value = scalar("outer_loss", problem.outer_loss(run.w, hparams, *(() if outer_batch is None else (outer_batch,))))
    if problem.running_loss is not None and len(batches):
        value = value + scalar("running_loss", problem.running_loss(run.w, hparams, len(batches)))
        value = value if run.running is None else value + run.running
    return value, run


def vector_of(numbers: list[Tensor], like: Tensor) -> Array:
    """Scalars as one vector, of the device and dtype of `like` where there is none."""
    rows = [x.value.reshape(1) for x in numbers]
    return backend_of(*rows).concatenate(rows, 0) if rows else backend_of(like.value).xp.zeros(0, like.dtype)


def collect(value: Tensor, grad: PyTree, run: Unrolled, stats: Stats, given: list[Any]) -> HyperGradient:
    """The result of a pass, in arrays that belong to the caller."""
    losses = vector_of(run.losses, value)
    value, grad, w, state = owned((value, grad, run.w, run.state), given)
    return HyperGradient(value, grad, w, state, losses, stats)


def reverse(
    problem: Bilevel,
    hparams: PyTree,
    batches: Batches,
    *,
    checkpoints: Any = "all",
    memory_bytes: int | None = None,
    last: int | None = None,
    outer_batch: Any = None,
    state: PyTree = None,
    first_order: bool = False,
    callback: Callback | None = None,
) -> HyperGradient:
    """Hypergradient by reverse mode: memory grows with the states held, time does not grow with the number of hyperparameters.

    Args:
        problem: the bilevel problem.
        hparams: pytree of float32 or float64 arrays.
        batches: indexable and pure; T = len(batches).
        checkpoints: "all", "sqrt" or the number of states to hold, >= 1; "host" or a pathlib.Path for states in a file; "reversible" for
            SGD with momentum, whose steps are undone; as in `unroll`. Every policy gives the same bits.
        memory_bytes, last: as in `unroll`. Of a running loss, the terms of the weights before the last K steps add to the value alone.
        outer_batch: what outer_loss takes as its third argument, such as a validation minibatch; None for none.
        state, first_order, callback: as in `unroll`.
    Returns: HyperGradient(value, grad, params, state, losses, stats).
    Raises: ArgumentError for the checkpoint policy; ShapeError, DTypeError and DifferentiationError from the functions, and as `unroll`.
    Equation: Franceschi et al. 2017, Algorithm 1 (Reverse-HG).
    Memory: "all" T states, "sqrt" 2 ceil(sqrt(T)), c: c states, "reversible" 2 and stats.residue_bits for each weight and step,
        beside what one step needs. Without memory_bytes, "all" and "sqrt" keep results of large products, too: stats.kept_bytes, at most
        an eighth of the states, or 64 MiB if that is more and "all".
    Time: T steps, T transposed steps of about three each, and the steps run again (stats.steps_rerun).
    Example:
        >>> problem = hg.Bilevel(
        ...     lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum(w**2), lambda h: np.zeros(2), lambda h: hg.SGD(lr=0.25)
        ... )
        >>> hg.reverse(problem, np.array([1.0, 2.0]), hg.full_batch(None, 3), checkpoints="sqrt").grad
        array([1.53125, 3.0625 ])
    """
    return transposed_run(
        "reverse",
        problem,
        hparams,
        batches,
        checkpoints=checkpoints,
        memory_bytes=memory_bytes,
        last=last,
        outer_batch=outer_batch,
        state=state,
        first_order=first_order,
        callback=callback,
    )


def transposed_run(
    mode: str, problem: Bilevel, hparams: PyTree, batches: Batches, stats: Stats | None = None, **more: Any
) -> HyperGradient:
    """The pass of that name over one run, recorded as one op. `more` goes to `objective`. Args: stats: to count into."""
    stats = Stats(mode) if stats is None else stats

    def value_of(h: PyTree, stats: Stats = stats, **other: Any) -> tuple[Tensor, Unrolled]:
        return objective(problem, h, batches, stats, **{**more, **other})

    with Meter() as meter:
        h = tree_tensors(hparams, mode, "hparams")
        value, run, grad = tensor_value_and_grad(value_of, h, where=mode, has_aux=True)
        diagnose(mode, h, value_of, batches, run, grad, **more)
        r = collect(value, grad, run, stats, arrays_of(hparams, more["state"]))
    stats.measured(meter)
    return r


def diagnose(
    mode: str,
    hparams: PyTree,
    value_of: Callable[..., tuple[Tensor, Unrolled]],
    batches: Batches,
    run: Unrolled,
    grad: PyTree,
    *,
    first_order: bool = False,
    last: int | None = None,
    **_: Any,
) -> None:
    """See `check_run` and `warn_without_influence`. A gradient that leaves something out says nothing of influence."""
    apart = {"stats": Stats(mode), "callback": None}
    check_run(mode, run, lambda look: set_aside(value_of, hparams, **{**apart, "callback": look}))
    if len(batches) and not first_order and last is None:
        two = range(min(2, len(batches)))
        warn_without_influence(mode, hparams, grad, lambda h: value_of(h, steps=two, **apart)[0])
