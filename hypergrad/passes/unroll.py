"""T steps of an optimiser on an inner loss as one op: the special case of a run whose transposed step is one second-order pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..backends import is_on_gpu
from ..bilevel import Batches, Stats, count_steps
from ..errors import ArgumentError, DTypeError
from ..optimizers import Optimizer, Schedule, same_kind
from ..tape import Tensor
from ..transforms import tree_tensors
from ..trees import PyTree, leaves_below, tree_leaves, tree_map, tree_named
from . import reversible, schedule, store
from .descent import Descent
from .run import Run

Callback = Callable[[int, PyTree, Any], None]


class Unrolled(NamedTuple):
    """The result of a run.

    Attributes:
        w: the weights after the last step, a pytree of Tensors.
        state: the optimiser's state after it.
        running: the sum of the running losses of the weights after 1 .. T-1 steps; None without one.
        losses: the inner losses, one per step, off the tape.
    """

    w: PyTree
    state: PyTree
    running: Tensor | None
    losses: list[Tensor]


def unrolled(
    inner_loss: Callable[[PyTree, PyTree, Any], Tensor],
    w_0: PyTree,
    hparams: PyTree,
    batches: Batches,
    optimizer: Optimizer,
    stats: Stats,
    *,
    checkpoints: Any = "all",
    memory_bytes: int | None = None,
    last: int | None = None,
    state: PyTree = None,
    first_order: bool = False,
    callback: Callback | None = None,
    running_loss: Callable[[PyTree, PyTree, int], Tensor] | None = None,
    steps: range | None = None,
    kept_among: int | None = None,
) -> Unrolled:
    """See `unroll`.

    Args:
        steps: those to take of all batches, where `state` is that before the first of them; None for all.
        kept_among: how many steps share the room for results that they keep; None for those of this run.
    """
    n_total = count_steps("unroll", batches)
    steps = range(n_total) if steps is None else steps
    n_steps = len(steps)
    if not isinstance(optimizer, Optimizer):
        raise ArgumentError(
            f"unroll: optimizer is a {type(optimizer).__name__}, expected an Optimizer such as hg.SGD(lr=0.1); subclass "
            "hg.Optimizer for your own"
        )
    w_0 = tree_tensors(w_0, "unroll", "w")
    like = next(iter(tree_leaves(w_0)), None)  # numbers follow the weights' dtype
    optimizer = optimizer.scheduled(n_total, steps, like)
    fields = {k: tree_tensors(f, "unroll", k, like) for k, f in optimizer.hyperparameters().items() if _holds_arrays(f)}
    args = {"hparams": tree_tensors(hparams, "unroll", "hparams", like), "fields": fields}
    _one_dtype(w_0, args)
    _no_mistaken_schedule(args["fields"], w_0, n_steps)
    dynamics = Descent(inner_loss, batches, optimizer, running_loss, first_order, steps.start)
    start = dynamics.init(w_0, args)
    if state is not None:
        given = tree_tensors(state, "unroll", "state")
        same_kind("unroll", start[1:], (given,), ("state",))
        start = w_0, given
    if isinstance(checkpoints, str) and checkpoints == "reversible":
        reversible.check(optimizer)
    plan = schedule.parse(checkpoints, n_steps, last=last, memory_bytes=memory_bytes, state_bytes=store.n_bytes(start))
    per_step = [*leaves_below(args["fields"], Schedule), *(False for _ in tree_leaves(args["hparams"]))]
    on_arrays = callback and _on_arrays(callback)
    run = Run(
        dynamics,
        start,
        args,
        n_steps,
        plan,
        stats,
        make_store=store.parse(checkpoints, start),
        per_step=per_step,
        callback=on_arrays,
        kept_among=0 if memory_bytes is not None else n_steps if kept_among is None else kept_among,
    )
    (w, state), outputs = run()
    if n_weights := sum(x.size for x in tree_leaves(w_0)) * len(plan.undone):
        stats.residue_bits = 8 * stats.residue_bytes / n_weights
    return Unrolled(w, state, None if outputs is None else outputs.sum(), run.losses)


def unroll(
    inner_loss: Callable[[PyTree, PyTree, Any], Tensor],
    w_0: PyTree,
    hparams: PyTree,
    batches: Batches,
    *,
    optimizer: Optimizer,
    checkpoints: Any = "all",
    memory_bytes: int | None = None,
    last: int | None = None,
    state: PyTree = None,
    return_state: bool = False,
    first_order: bool = False,
    callback: Callback | None = None,
    stats: Stats | None = None,
) -> PyTree:
    """The weights after T = len(batches) steps of `optimizer` on `inner_loss`, as one differentiable op.

    w_T may be differentiated in w_0, in hparams, in the optimiser's state and in every field of the optimiser that is an array or
    Tensor: by reverse mode inside `grad`, by forward mode inside `jvp`. Code before and after it is ordinary taped code.

    Args:
        inner_loss: (w, hparams, batch) -> scalar Tensor. It must be pure, and use no Tensor from outside that a gradient follows.
        w_0: start, a pytree of arrays or Tensors, float32 or float64.
        hparams: pytree of arrays or Tensors; () if there is none.
        batches: indexable and pure; batches[t] is the batch of step t.
        optimizer: an Optimizer, such as SGD(lr=..., momentum=...).
        checkpoints: "all", "sqrt" or the number of states to hold, >= 1; "host" keeps all states outside of the device's memory, in
            pinned memory for a GPU, in a file for the host, of which a pathlib.Path is the directory; "reversible" keeps the first and
            the last state and stats.residue_bits bits for each weight and step, by which it undoes the steps of SGD with momentum.
            Used by reverse mode alone.
        memory_bytes: room for the stored states, instead of `checkpoints`: the policy with the fewest steps run again that fits is taken.
        last: the number K of steps that reverse mode goes back. The state before them counts as a constant: the gradient is truncated.
        state: the optimiser's state to start from; None for that of `optimizer.init`. The step number starts from 0 again.
        return_state: whether the optimiser's last state is returned, too.
        first_order: whether every derivative takes the gradient of the inner loss for a constant, as in first-order MAML.
        callback: called as callback(t, w, loss) once for each step, in order. w are the weights before step t, in arrays that must not
            be written to. loss is their inner loss, a 0-d array.
        stats: a Stats to count into.
    Returns: w_T, a pytree of Tensors like w_0; (w_T, state_T) with `return_state`.
    Raises: ArgumentError for the checkpoint policy, for a memory_bytes that no policy fits in (it names the smallest), and for batches
        that cannot be read again; DTypeError for hyperparameters of another dtype than the weights; DifferentiationError for a closure
        over a followed Tensor, where the gradient of an unroll is differentiated again, and where a step that is run again (without a
        backward pass the last one) is not the same; that is not checked on a GPU.
    Rules: one second-order pass transposes a step. It relies on the symmetry of the inner loss's Hessian. So where an op of the loss
        was declared outside this package, a tape that records the step takes its place.
    Equation: s_t = Phi_t(s_{t-1}, lambda), t = 1..T (Franceschi et al. 2017, eq. 3).
    Memory: "all" T states, "sqrt" 2 ceil(sqrt(T)), c: c states; forward mode 1 + P states for P directions. Without
        memory_bytes, "all" and "sqrt" keep results of large products, too: stats.kept_bytes, at most an eighth of the states, or 64 MiB if
        that is more and "all".
    Time: T steps, plus those run again or undone ("sqrt" fewer than T; c as `schedule.Binomial.reruns`); a step backward costs about three.
    Example:
        >>> run = lambda h: hg.unroll(lambda w, h, b: (w - h) ** 2, np.array(0.0), h, range(3), optimizer=hg.SGD(lr=0.25))
        >>> hg.grad(run)(np.array(1.0))
        array(0.875)
    """
    result = unrolled(
        inner_loss,
        w_0,
        hparams,
        batches,
        optimizer,
        Stats("unroll") if stats is None else stats,
        checkpoints=checkpoints,
        memory_bytes=memory_bytes,
        last=last,
        state=state,
        first_order=first_order,
        callback=callback,
    )
    return (result.w, result.state) if return_state else result.w


def _holds_arrays(field: Any) -> bool:
    """Whether a field may be differentiated. A plain number, a function or a string is a constant."""
    return not isinstance(field, (bool, int, float)) and any(
        isinstance(x, Tensor) or hasattr(x, "dtype") or type(x) in (int, float, bool) for x in tree_leaves(field)
    )


def _one_dtype(w_0: PyTree, args: PyTree) -> None:
    """Raises: DTypeError that names the leaf of a hyperparameter whose dtype is not the weights'."""
    kinds = {x.dtype for x in tree_leaves(w_0)}
    if len(kinds) != 1:
        return
    (dtype,) = kinds
    for root, tree in (("hparams", args["hparams"]), ("optimizer", args["fields"])):
        if any(x.dtype != dtype for x in tree_leaves(tree)):
            name, x = next((name, x) for name, x in tree_named(tree, root) if x.dtype != dtype)
            raise DTypeError(
                f"unroll: {name} has dtype {x.dtype}, expected {dtype} because the weights have it and mixing would change "
                "the precision silently; convert one with astype"
            )


def _no_mistaken_schedule(fields: dict[str, PyTree], w_0: PyTree, n_steps: int) -> None:
    """Raises: ArgumentError for an array with one value per step that would be taken for one value per column."""
    shapes = [x.shape for x in tree_leaves(w_0)]
    for name, field in fields.items():
        if isinstance(field, Tensor) and n_steps > 1 and field.shape == (n_steps,) and any(s != (n_steps,) for s in shapes):
            raise ArgumentError(
                f"optimizer: {name} has shape ({n_steps},), one value for each of the {n_steps} steps, expected a number "
                "or one entry per leaf because it could mean the steps or the weights' last axis; write hg.schedule(...) "
                "for the steps, or a tree like the weights"
            )


def _on_arrays(callback: Callback) -> Callable[[int, PyTree, Tensor | None], None]:
    """The callback on arrays, read-only ones where NumPy can enforce it, since the pass may read them again."""

    def call(t: int, state: PyTree, loss: Tensor | None) -> None:
        assert loss is not None
        callback(t, tree_map(view, state[0]), view(loss))

    return call


def view(x: Tensor) -> Any:
    """Its array to look at: read-only where NumPy can enforce it."""
    array = x.value.view()
    if not is_on_gpu(array):
        array.flags.writeable = False
    return array
