"""Checks of the functions of a bilevel problem one by one, to name the one that makes a hypergradient wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..bilevel import Batches, Bilevel, Stats
from ..errors import ArgumentError, DTypeError, HypergradError, ShapeError
from ..optimizers import Optimizer, same_kind
from ..passes.descent import Descent
from ..passes.dynamics import Bars, transposed_by_tape
from ..passes.reverse import objective
from ..tape import Tape, Tensor
from ..transforms import grad, tree_tensors, tree_values, vjp
from ..trees import PyTree, tree_leaves, tree_map, tree_named
from .differences import cotangent, difference, direction, fail, float64, largest, names, only, rounding_of, slopes, vector

_WHERE = "check_hypergrad"
_PURE = (
    "draw what is random in batches, as a function of t alone, keep no counter, and write to no array that a function or the "
    "caller has returned"
)
_UNKNOWN = (
    "every function alone has the derivative of its value; look for a value that leaves one function and enters another, such as "
    "through a closure, or for randomness or state"
)


@dataclass(frozen=True)
class Subject:
    """The problem under test and what it is run with."""

    problem: Bilevel
    batches: Batches
    outer_batch: Any = None

    def value(self, hparams: PyTree, state: PyTree) -> Tensor:
        """The outer objective of one run."""
        return objective(self.problem, hparams, self.batches, Stats("check"), outer_batch=self.outer_batch, state=state)[0]

    def optimizer(self, hparams: PyTree, t: int) -> Optimizer:
        """The optimiser of step t."""
        return self.problem.optimizer(hparams).scheduled(len(self.batches), range(len(self.batches))).at(t)

    def inner(self, t: int) -> Callable[[PyTree, PyTree], Tensor]:
        """The inner loss of step t."""
        batch = self.batches[t]
        return lambda w, h: self.problem.inner_loss(w, h, batch)


@dataclass(frozen=True)
class Point:
    """A run just before step t: weights, the optimiser's state and the gradient, pytrees of arrays."""

    t: int
    w: PyTree
    state: PyTree
    g: PyTree


def walk(subject: Subject, hparams: PyTree, state: PyTree) -> tuple[list[Point], PyTree]:
    """The points before the first and the last step, and w_T, from a plain loop over the steps.

    Raises: AssertionError that names the leaf, for an update that does not keep its structure, shapes and dtypes.
    """
    h = tree_tensors(hparams, _WHERE)
    w: PyTree = tree_tensors(subject.problem.init(h), _WHERE, "w")
    float64(w, _WHERE, "w")
    points, n_steps = [], len(subject.batches)
    for t in range(n_steps):
        optimizer = subject.optimizer(h, t)
        if t == 0:
            state = optimizer.begin(w) if state is None else tree_tensors(state, _WHERE, "state")
        g = tree_tensors(grad(subject.inner(t))(w, h), _WHERE)
        if t in (0, n_steps - 1):
            points.append(Point(t, *tree_values((w, state, g))))
        try:
            after = tree_tensors(optimizer.advance(w, state, g, t), _WHERE)
            same_kind(f"optimizer: {type(optimizer).__name__}.update", (w, state), after, ("w", "state"))
        except (ArgumentError, DTypeError, ShapeError) as error:
            fail(f"{_WHERE}: step {t}: {error}; it looks like an update that does not keep its leaves")
        w, state = after
    return points, tree_values(w)


# --- the parts ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One function of the problem at one point: f(*args). `roots` are the names of the arguments."""

    name: str
    f: Callable[..., PyTree]
    args: tuple[PyTree, ...]
    roots: tuple[str, ...]

    def values(self, args: PyTree) -> PyTree:
        """The result of f, as arrays."""
        return tree_values(tree_tensors(self.f(*tree_tensors(args, _WHERE)), _WHERE))

    def custom_ops(self) -> list[str]:
        """The ops on its tape that were declared outside this package."""
        tape = Tape()
        tape.run(lambda: self.f(*tree_map(tape.watch, tree_tensors(self.args, _WHERE))))
        return sorted({op.name for op in (node.op for node in tape.nodes) if op is not None and not op.proven})


def loss_part(subject: Subject, hparams: PyTree, point: Point) -> Part:
    """The inner loss of a step."""
    return Part(f"inner_loss at step {point.t}", subject.inner(point.t), (point.w, hparams), ("w", "hparams"))


def update_part(subject: Subject, hparams: PyTree, point: Point) -> Part:
    """The optimiser's step, as a function of w, the state, the gradient and the hyperparameters."""
    return Part(
        f"optimizer at step {point.t}",
        lambda w, v, g, h: subject.optimizer(h, point.t).advance(w, v, g, point.t),
        (point.w, point.state, point.g, hparams),
        ("w", "state", "gradient", "hparams"),
    )


def parts(subject: Subject, hparams: PyTree, points: list[Point], w_last: PyTree) -> Iterator[Part]:
    """All functions of the problem."""
    problem, more = subject.problem, () if subject.outer_batch is None else (subject.outer_batch,)
    yield Part("init", problem.init, (hparams,), ("hparams",))
    for point in points:
        loss = loss_part(subject, hparams, point)
        yield loss
        yield update_part(subject, hparams, point)
        yield Part(f"the gradient of {loss.name}", grad(loss.f, (0, 1)), loss.args, loss.roots)
    at_end = ((w_last, hparams), ("w", "hparams"))
    running, n_steps = problem.running_loss, len(subject.batches)
    if running is not None and n_steps:
        yield Part("running_loss", lambda w, h: running(w, h, n_steps), *at_end)
    yield Part("outer_loss", lambda w, h: problem.outer_loss(w, h, *more), *at_end)


# --- the checks of one part -------------------------------------------------------------------------------


def check_adjoint(part: Part, rtol: float, rng: np.random.Generator) -> None:
    """Compares the derivatives of a part along random directions of its arguments, by its vjp and by its jvp.

    Raises: AssertionError that names the leaf and the ops.
    """
    bar, v = cotangent(part.values(part.args), rng), direction(part.args, rng)
    for alone in (v, *(only(i, v) for i in range(len(tree_leaves(v))))):
        a, b = _both(part, part.args, bar, alone)
        if not abs(a.sum() - b.sum()) <= rtol * (np.abs(a).sum() + np.abs(b).sum()):
            size = float(np.abs(vector(bar)) @ np.abs(vector(part.values(part.args))))
            if alone is v or abs(a.sum() - b.sum()) <= rounding_of(_sums(part, bar, alone), part.args, rng).largest().allowed(size):
                continue  # it is rounding, or the next turns name the leaf that is wrong
            leaf = next(n for n, x in zip(names(part.roots, part.args), tree_leaves(alone), strict=True) if largest(vector(x)))
            fail(
                f"{_WHERE}: {part.name}: the derivative along a random direction of {leaf} is {a.sum():.12g} by its vjp and "
                f"{b.sum():.12g} by its jvp, expected them equal to {rtol:g}; it looks like {_wrong_rule(part)}"
            )
        elif alone is v:
            return


def _both(part: Part, args: PyTree, bar: PyTree, v: PyTree) -> tuple[Any, Any]:
    """The terms of <bar, f'(args) v> by the vjp and by the jvp."""
    return (vector(vjp(part.f, *args)[1](bar)) * vector(v), slopes(part.f, args, v) * vector(bar))


def _sums(part: Part, bar: PyTree, v: PyTree) -> Callable[[PyTree], Any]:
    """args -> <bar, f'(args) v> by the vjp and by the jvp."""
    return lambda args: np.array([x.sum() for x in _both(part, args, bar, v)])


def _wrong_rule(part: Part) -> str:
    ops = part.custom_ops()
    return f"a wrong rule of {'the custom op ' + ', '.join(ops) if ops else 'an op'} in {part.name}"


def finding(part: Part, rng: np.random.Generator) -> str | None:
    """What is wrong with one part; None for nothing."""
    once, twice = vector(part.values(part.args)), vector(part.values(part.args))
    if once.tobytes() != twice.tobytes():
        i = int(np.argmax(once != twice))
        return f"randomness or state in {part.name}: it gave {once[i]:.17g} and then {twice[i]:.17g} for the same arguments; {_PURE}"
    bar, v = cotangent(part.values(part.args), rng), direction(part.args, rng)
    weights = vector(bar)
    for i, leaf in enumerate(names(part.roots, part.args)):
        alone = only(i, v)
        both = _sums(part, bar, alone)
        backward, forward = both(part.args)
        along = difference(part.values, part.args, alone, None, 1e-6).weighted(weights)
        want = float(along.values[0])
        size = max(abs(want), abs(backward), abs(forward))
        error, slack = max(abs(backward - want), abs(forward - want)), 1e-5 * size + along.rounding
        if error <= slack or error <= slack + rounding_of(both, part.args, rng).largest().allowed(along.size()):
            continue
        if along.kink():
            return f"a kink within the step of {part.name} in {leaf}; move the hyperparameters off it"
        numbers = f"along {leaf} its derivative is {backward:.6g} by vjp, {forward:.6g} by jvp and {want:.6g} by finite differences"
        if backward == forward == 0.0:
            return f"a value detached (stop_gradient, detach() or .value) in {part.name}: {numbers}"
        if abs(backward - forward) > 1e-8 * size or part.custom_ops():
            return f"{_wrong_rule(part)}: {numbers}"
        return f"a value detached (stop_gradient, detach() or .value) somewhere in {part.name}: {numbers}"
    return None


def likely_cause(
    subject: Subject, hparams: PyTree, points: list[Point], w_last: PyTree, seed: int, *, whole: Callable[[], str | None] = lambda: None
) -> str:
    """The likely cause of a wrong hypergradient: the first finding in the functions one by one, or else that of `whole`."""
    rng = np.random.default_rng(seed)
    for part in parts(subject, hparams, points, w_last):
        try:
            found = finding(part, rng)
        except HypergradError as error:
            found = f"something wrong in {part.name}, which raises: {error}"
        if found is not None:
            return f"it looks like {found}"
    found = whole()
    return _UNKNOWN if found is None else f"it looks like {found}"


# --- what the optimiser promises ---------------------------------------------------------------------------


def check_transposed(subject: Subject, hparams: PyTree, point: Point, rng: np.random.Generator, cause: Callable[[], str]) -> None:
    """Compares the transposed step of the passes with that of a tape, which assumes nothing of the step.

    Raises: AssertionError that names the leaf, and the declaration of the optimiser that is wrong.
    """
    h, t = tree_tensors(hparams, _WHERE), point.t
    optimizer = subject.optimizer(h, t)
    _check_linear(optimizer, point, rng)
    fields = {
        k: tree_tensors(f, _WHERE) for k, f in optimizer.hyperparameters().items() if any(isinstance(x, Tensor) for x in tree_leaves(f))
    }
    dynamics = Descent(subject.problem.inner_loss, subject.batches, optimizer, subject.problem.running_loss)
    state, args = tree_tensors((point.w, point.state), _WHERE), {"fields": fields, "hparams": h}
    step = dynamics.step(state, args, t)
    bars: Bars = [Tensor(cotangent(x.value, rng)) for x in tree_leaves((step.state, step.output))]
    n_state = len(tree_leaves(step.state))
    after = step.state if dynamics.reads_after(args) else None
    taken = dynamics.step_transposed(state, args, t, after, bars[:n_state], bars[n_state:], step.proven)
    taped = transposed_by_tape(dynamics, state, args, t, bars[:n_state], bars[n_state:])
    labels = names(("w", "state", "optimizer", "hparams"), (point.w, point.state, fields, hparams))
    found, wanted = ([np.zeros(1) if b is None else vector(b) for b in (*p.state_bar, *p.args_bar)] for p in (taken, taped))
    scale = max(map(largest, wanted), default=0.0)
    for name, a, b in zip(labels, found, wanted, strict=True):
        error = largest(a - b)
        if not error <= 1e-8 * scale:
            fail(
                f"{_WHERE}: step {t}: the cotangent of {name} is off by {error:.3g} from that of the step on a tape, expected 1e-8 of "
                f"{scale:.3g} at most; {cause()}"
            )


def _check_linear(optimizer: Optimizer, point: Point, rng: np.random.Generator) -> None:
    """Raises: AssertionError for an update that is declared to be linear in the gradient and has another slope at another gradient."""
    if not optimizer.is_linear():
        return
    w, v = tree_tensors((point.w, point.state), _WHERE)
    out, _ = vjp(lambda g: optimizer.advance(w, v, g, point.t), point.g)
    bar = cotangent(out, rng)
    slopes = []
    for g in (point.g, tree_map(lambda x: 0.0 * x, point.g), point.w, direction(point.g, rng)):
        (slope,) = vjp(lambda g: optimizer.advance(w, v, g, point.t), g)[1](bar)
        slopes.append(slope)
    for other in slopes[1:]:
        for (name, a), (_, b) in zip(tree_named(slopes[0], "gradient"), tree_named(other, "gradient"), strict=True):
            x, y = vector(a), vector(b)
            if largest(x - y) > 1e-9 * max(largest(x), largest(y)):
                i = int(np.argmax(np.abs(x - y)))
                fail(
                    f"{_WHERE}: optimizer at step {point.t}: the slope of {type(optimizer).__name__}.update in {name}, element {i}, is "
                    f"{x[i]:.12g} at one gradient and {y[i]:.12g} at another, expected the same because it declares linear_in_gradient = "
                    "True; it looks like a declaration that is wrong: write linear_in_gradient = False"
                )
