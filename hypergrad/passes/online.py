"""Online optimisation: the hyperparameters move while a single training run goes on."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

from ..backends import Array, backend_of
from ..bilevel import Batches, Bilevel, Stats, count_steps
from ..errors import ArgumentError
from ..meter import Meter
from ..optimizers import Optimizer
from ..state import set_aside
from ..tape import Tensor, primal, with_tangents
from ..transforms import arrays_of, dots_of, owned, scalar, tensor_value_and_grad, tree_tensors, tree_values
from ..trees import PyTree, tree_flatten, tree_leaves, tree_map, tree_unflatten
from .forward import split, units
from .outer_loop import Callback, Project, check_finite, projected, see
from .reverse import vector_of
from .schedule import is_count
from .unroll import unrolled

Mode = Literal["forward", "reverse"]


class Online(NamedTuple):
    """What `online` returns. K is the number of updates.

    Attributes:
        hparams: the hyperparameters after the last update, a pytree of arrays.
        params: the weights after the last step.
        state: the optimiser's state after it.
        values: the outer objective before each update, shape (K,).
        history: the hyperparameters before each update, a pytree like hparams with a leading axis K.
        losses: the inner loss of each step, shape (T,).
        stats: what was done.
    Example:
        >>> problem = hg.Bilevel(
        ...     lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum(w**2), lambda h: np.zeros(2), lambda h: hg.SGD(lr=0.25)
        ... )
        >>> r = hg.online(problem, np.array([1.0, 2.0]), hg.full_batch(None, 4), hg.SGD(lr=0.1), every=2)
        >>> r.hparams.round(3), r.values.shape
        (array([0.728, 1.455]), (2,))
    """

    hparams: PyTree
    params: PyTree
    state: PyTree
    values: Array
    history: PyTree
    losses: Array
    stats: Stats


class _Window(NamedTuple):
    """Some steps of the run, all in Tensors: the state after them with its tangents, the objective there, its gradient, the losses."""

    state: PyTree
    state_dot: PyTree
    value: Tensor
    grad: PyTree
    losses: list[Tensor]


def online(
    problem: Bilevel,
    hparams: PyTree,
    batches: Batches,
    outer_optimizer: Optimizer,
    every: int = 1,
    *,
    mode: Mode = "forward",
    discount: float = 1.0,
    outer_batches: Any = None,
    project: Project | None = None,
    callback: Callback | None = None,
) -> Online:
    """One training run in which the hyperparameters take a step of `outer_optimizer` after each `every` inner steps.

    The optimiser's state goes on through the updates, and so does its step number.

    Args:
        problem: the bilevel problem, without a running loss. Its init is called once.
        hparams: pytree of float32 or float64 arrays, N elements in all: those of the first window.
        batches: indexable and pure; T = len(batches).
        outer_optimizer: an Optimizer, such as Adam(lr=1e-3).
        every: inner steps between two updates, >= 1. A last window that is shorter ends with an update, too.
        mode: "forward" carries the tangents of the state through the whole run (RTHO), so that an update knows all that the
            hyperparameters have done so far. "reverse" goes back to the last update only; use it for many hyperparameters.
        discount: of mode "forward": the factor in [0, 1] by which an update multiplies the tangents that it hands on. 1 remembers all
            steps alike, as if the hyperparameters had always been what they are (RTHO); 0 only those since the last update, which are
            greedy (as in hypergradient descent, Baydin et al. 2018). Between them an update weighs about 1 / (1 - discount) windows.
        outer_batches: outer_batches[k] is what outer_loss takes as its third argument in update k; None for none.
        project: hparams -> hparams, arrays, after each update, such as a projection onto a box; None for none.
        callback: called as callback(k, hparams, params, value) before update k, with arrays that must not be written to.
    Returns: Online(hparams, params, state, values, history, losses, stats).
    Raises: ArgumentError for a bad argument; DifferentiationError that names a leaf that is no longer finite, with its step.
    Equation: Franceschi et al. 2017, section 3.3 (RTHO): Z_t = A_t Z_{t-1} + B_t, and a step along -(dE/dw Z_t + dE/dlambda); discount:
        Donini et al. 2020, MARTHE, arXiv:1910.08525, whose factor mu acts in each step.
    Memory: forward: 1 + N states, whatever T; reverse: `every` states.
    Time: T steps; forward: N Hessian products in each; reverse: T transposed steps.
    Example:
        >>> problem = hg.Bilevel(
        ...     lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum(w**2), lambda h: np.zeros(2), lambda h: hg.SGD(lr=0.25)
        ... )
        >>> hg.online(problem, np.array([1.0, 2.0]), hg.full_batch(None, 4), hg.SGD(lr=0.1), every=2).hparams.round(3)
        array([0.728, 1.455])
    """
    count_steps("online", batches)
    if problem.running_loss is not None:
        raise ArgumentError(
            "online: problem has a running_loss, expected none because the objective of an update is outer_loss; leave it out"
        )
    if not is_count(every):
        raise ArgumentError(f"online: every has {every!r}, expected an integer >= 1; pass the number of inner steps between two updates")
    if mode not in get_args(Mode):
        raise ArgumentError(f"online: mode has {mode!r}, expected 'forward' or 'reverse'; choose one")
    if not (isinstance(discount, (int, float)) and 0.0 <= discount <= 1.0) or (mode == "reverse" and discount != 1.0):
        raise ArgumentError(
            f"online: discount has {discount!r} in mode {mode!r}, expected a number from 0 to 1, and 1 in mode 'reverse', which hands no "
            "tangents on; pass for instance 0.9 with mode='forward'"
        )
    if not isinstance(outer_optimizer, Optimizer):
        raise ArgumentError(
            f"online: outer_optimizer is a {type(outer_optimizer).__name__}, expected an Optimizer such as hg.Adam(lr=1e-3); pass one"
        )
    stats = Stats("online")
    with Meter() as meter:
        h = tree_tensors(hparams, "online", "hparams")
        window = _forward if mode == "forward" else _reverse
        state: PyTree = None
        state_dot: PyTree = None
        outer_state: PyTree = None
        values, history, losses = [], [], []
        for k, start in enumerate(range(0, len(batches), every)):
            steps = range(start, min(start + every, len(batches)))
            extra = () if outer_batches is None else (outer_batches[k],)
            state, state_dot, value, grad, own_losses = set_aside(window, problem, h, state, state_dot, batches, steps, stats, extra)
            if discount != 1.0:
                state_dot = tree_map(lambda x: Tensor(x.value * x.dtype.type(discount)), state_dot)
            losses += own_losses
            check_finite("online", steps[-1], {"params": state[0], "state": state[1], "the hypergradient": grad})
            values.append(value)
            history.append(h)
            if callback is not None:
                see(callback, k, h, state[0], value)
            arrays, outer_state = outer_optimizer.step(tree_values(h), outer_state, tree_values(grad), k)
            h = tree_tensors(arrays, "online", "hparams")
            if project is not None:
                h = projected("online", project, h)
        if state is None:  # no step at all
            w = tree_tensors(problem.init(h), "online", "w")
            state = w, problem.optimizer(h).begin(w)
        like = next(iter(tree_leaves(state[0])))
        numbers = [vector_of(column, like) for column in (values, losses)]
        rows = [_stacked(column) for column in zip(*(tree_leaves(x) for x in history), strict=True)]
        moved = tree_unflatten(tree_flatten(h)[1], rows) if rows else tree_map(lambda x: x.value[None][:0].copy(), h)
        h, w, v = owned((h, *state), arrays_of(hparams))
        result = Online(h, w, v, numbers[0], moved, numbers[1], stats)
    stats.measured(meter)
    return result


def _forward(
    problem: Bilevel, h: PyTree, state: PyTree, state_dot: PyTree, batches: Batches, steps: range, stats: Stats, extra: tuple[Any, ...]
) -> _Window:
    """The window with the tangents of all N hyperparameters, those of the state before it included."""
    leaves, spec = tree_flatten(h)
    count = sum(x.size for x in leaves)

    def run() -> _Window:
        moving = tree_unflatten(spec, [Tensor(x.value, v) for x, v in zip(leaves, units(leaves, 0, count), strict=True)])
        w, v = (problem.init(moving), None) if state is None else tree_map(lambda x, dot: Tensor(x.value, dot), state, state_dot)
        done = unrolled(problem.inner_loss, w, moving, batches, problem.optimizer(moving), stats, state=v, steps=steps)
        value = scalar("outer_loss", problem.outer_loss(done.w, moving, *extra))
        after = done.w, done.state
        grad = tree_unflatten(spec, split(leaves, dots_of(value, count).value))
        return _Window(tree_map(primal, after), dots_of(after, count), primal(value), grad, done.losses)

    return with_tangents(run)


def _reverse(
    problem: Bilevel, h: PyTree, state: PyTree, state_dot: PyTree, batches: Batches, steps: range, stats: Stats, extra: tuple[Any, ...]
) -> _Window:
    """The window with the state before it as a constant."""

    def objective(h: PyTree) -> tuple[Tensor, Any]:
        w, v = (problem.init(h), None) if state is None else state
        done = unrolled(problem.inner_loss, w, h, batches, problem.optimizer(h), stats, state=v, steps=steps)
        return scalar("outer_loss", problem.outer_loss(done.w, h, *extra)), done

    value, done, grad = tensor_value_and_grad(objective, h, where="online", has_aux=True)
    return _Window(tree_map(Tensor.detach, (done.w, done.state)), None, value.detach(), grad, done.losses)


def _stacked(column: tuple[Tensor, ...]) -> Array:
    rows = [x.value[None] for x in column]
    return backend_of(*rows).concatenate(rows, 0)
