"""Optimisers whose every field is a hyperparameter that can be differentiated.

An optimiser is a pure map of (weights, state, gradient, step number); it holds no state of its own. A field is a
number, an array, a Tensor, a pytree like the weights (one entry per leaf, for instance a step size per direction), or a
schedule (one value per step).

Where every field is a number or a 0-d array, one kernel call takes a step of all leaves, and each derivative rule of the step
is one more call. With other fields, such as elementwise step sizes, a step is composed of ops.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import numpy as np

from .backends import backend_of, digest
from .errors import ArgumentError, DTypeError, ShapeError
from .ops.arrays import stack
from .ops.optimizer_step import adagrad_step, adam_step, is_zero, rmsprop_step, sgd_step
from .state import set_aside
from .tape import Tensor
from .transforms import arrays_of, owned, tree_tensors, zeros_like
from .trees import PyTree, tree_flatten, tree_leaves, tree_map, tree_named, tree_node, tree_structure, tree_unflatten

_NUMBERS = (bool, int, float)


def per_leaf(spec: Any, leaves: list[Any], name: str, tree: PyTree) -> Any:
    """A field as a list with one entry for each leaf of the weights; a field with one value for all leaves stays as it is.

    Raises: ArgumentError for a structure that is not the weights'; ShapeError for an array that would enlarge a leaf.
    """
    if type(tree) in _NUMBERS or type(tree) is Tensor and not tree.value.ndim:
        return tree
    own, own_spec = tree_flatten(tree)
    one = own_spec.is_leaf()
    if not one and own_spec != spec:
        raise ArgumentError(
            f"optimizer: a field has the structure {own_spec}, expected a number, an array or {spec}; give {name} one value, "
            "or one entry per leaf of the weights"
        )
    for i, w in enumerate(leaves):
        value = own[0 if one else i]
        shape = value.shape if isinstance(value, Tensor) else np.shape(value)
        if shape and (len(shape) > w.ndim or any(n not in (1, m) for n, m in zip(reversed(shape), reversed(w.shape), strict=False))):
            leaf = tree_named(tree_unflatten(spec, leaves), "w")[i][0]
            raise ShapeError(
                f"optimizer: {name} has shape {shape}, expected one that broadcasts to {w.shape} because {leaf} keeps its "
                "shape in a step; give a number, a tree with one entry per leaf, or hg.schedule(...) for one per step"
            )
    return tree if one else own


def _fused(
    optimizer: Optimizer, step: Callable[..., Any], w: PyTree, states: tuple[PyTree | None, ...], g: PyTree, **extra: Any
) -> list[PyTree | None]:
    """The weights and states after one fused step with the optimiser's numeric fields; None for a state that is not kept."""
    leaves, spec = tree_flatten(w)
    columns = [None if x is None else _leaves(spec, x) for x in (*states, g)]
    values = [per_leaf(spec, leaves, k, getattr(optimizer, k)) for k in optimizer.numeric_fields]
    return [None if x is None else tree_unflatten(spec, x) for x in step(leaves, *columns, *values, **extra)]


def _leaves(spec: Any, tree: PyTree) -> list[Any]:
    """The leaves of a gradient or state, one for each leaf of the weights."""
    own, own_spec = tree_flatten(tree)
    if own_spec != spec:
        raise ArgumentError(
            f"optimizer: the gradient or state has the structure {own_spec}, expected {spec}; give one entry per leaf of the weights"
        )
    return own


@tree_node
@dataclass(frozen=True)
class Schedule:
    """A field of an optimiser that has a value for each step; see `schedule`."""

    values: Any

    def at(self, t: int) -> Any:
        """The value in step t, counted from 0."""
        return tree_map(lambda x: x[t, ...], self.values)

    def part(self, steps: range) -> Schedule:
        """The schedule of some steps that follow each other."""
        return Schedule(tree_map(lambda x: x[steps.start : steps.stop], self.values))

    def checked(self, name: str, n_steps: int) -> Schedule:
        """The same schedule. Raises: ShapeError unless it has one value for each of n_steps steps."""
        for x in tree_leaves(self.values):
            if not x.shape or x.shape[0] != n_steps:
                raise ShapeError(
                    f"schedule: {name} has shape {tuple(x.shape)}, expected ({n_steps}, ...); give one value for each of the "
                    f"{n_steps} steps"
                )
        return self


def schedule(values: PyTree) -> Schedule:
    """Marks an array as one value per step, so that a field of an optimiser follows a schedule.

    Args:
        values: array or Tensor of shape (T,) for one value per step, or (T, ...) for one array per step; or a tree of these, like the
            weights.
    Returns: what `SGD(lr=...)` and every other numeric field takes; every value is a hyperparameter of its own.
    Raises: ShapeError where it is used, if its length is not the number of steps.
    Cost: memory of the values, whatever the number of steps.
    Example:
        >>> sgd = hg.SGD(lr=hg.schedule(np.array([0.25, 0.125, 0.0625])))
        >>> hg.unroll(lambda w, h, b: w**2, np.array(1.0), None, hg.full_batch(None, 3), optimizer=sgd)
        Tensor(array(0.328125))
    """
    return Schedule(tree_map(lambda x: x if isinstance(x, Tensor) else np.asarray(x) if isinstance(x, (list, tuple)) else x, values))


@dataclass(frozen=True)
class Optimizer:
    """An optimiser: a pure map of (weights, state, gradient, step number), whose fields are its hyperparameters.

    A subclass is a frozen dataclass that defines `update` and, where it keeps a state, `init`. Both are written in ops, so that the
    passes can differentiate them.

    Args:
        clip: a transform of the gradient before the update, such as `clip_by_norm(1.0)`; None for none.
    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Signed(hg.Optimizer):
        ...     lr: float = 0.1
        ...     def update(self, w, state, g, t):
        ...         return w - self.lr * hg.sign(g), state
        >>> Signed().step(np.ones(2), None, np.array([3.0, -4.0]), 0)[0]
        array([0.9, 1.1])
    """

    clip: Any = field(default=None, kw_only=True)
    linear_in_gradient: ClassVar[bool] = False
    """Whether `update` is linear in the gradient, with a slope that depends on the fields alone. The declaration holds for the `update`
    of the same class only: a class that overrides `update` must declare it again."""
    numeric_fields: ClassVar[tuple[str, ...]] = ()
    """Fields that may be a function of the step number or a `schedule`."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "__init__" in cls.__dict__ and "__dataclass_fields__" not in cls.__dict__:
            raise ArgumentError(
                f"optimizer: {cls.__name__} defines __init__, expected fields because its hyperparameters would be lost; "
                "write @dataclass(frozen=True) above the class and declare them as lr: Any = 0.1"
            )
        for name in (k for k, x in cls.__dict__.items() if inspect.isfunction(x) and not k.startswith("_") and k not in _PUBLIC):
            for meant in difflib.get_close_matches(name, ("init", "update"), n=1, cutoff=0.8):
                raise ArgumentError(f"optimizer: {cls.__name__} defines {name}, expected {meant} because nothing calls {name}; rename it")

    def __new__(cls, *_: Any, **__: Any) -> Optimizer:
        if cls not in _checked:
            _check_class(cls)
            _checked.add(cls)
        return super().__new__(cls)

    def init(self, w: PyTree) -> PyTree:
        """The state before the first step: a pytree of Tensors or arrays, () for none."""
        return ()

    def update(self, w: PyTree, state: PyTree, g: PyTree, t: int) -> tuple[PyTree, PyTree]:
        """One step, in ops.

        Args:
            w: weights, a pytree of Tensors.
            state: what `init` or the previous `update` returned.
            g: gradient, like w.
            t: number of steps done so far, 0 at the first.
        Returns: (w, state) after the step.
        """
        raise ArgumentError(f"optimizer: {type(self).__name__} has no update, expected one; define update(self, w, state, g, t)")

    def is_linear(self) -> bool:
        """Whether a step is linear in the gradient: the class that defines `update` declares it, and nothing is clipped."""
        return self.clip is None and bool(_definer(type(self)).__dict__.get("linear_in_gradient", False))

    def direction(self, state: PyTree) -> PyTree | None:
        """What lr multiplies in the step after which the state is this one, like the weights; None where it cannot be told.

        Only an optimiser whose other fields and states have cotangents that do not depend on the gradient may tell it.
        """
        return None

    def is_known(self) -> bool:
        """Whether a step is this package's own `update` without clipping, which its tests prove. Other steps are checked as they run."""
        return self.clip is None and _definer(type(self)).__module__.startswith(f"{__package__}.")

    def begin(self, w: PyTree) -> PyTree:
        """The state before the first step, as Tensors."""
        return tree_tensors(self.init(w), "optimizer")

    def advance(self, w: PyTree, state: PyTree, g: PyTree, t: int) -> tuple[PyTree, PyTree]:
        """One step as the passes take it: it clips the gradient, and checks that `update` returns trees like those it got.

        Raises: ArgumentError, ShapeError or DTypeError that names the leaf.
        """
        if self.is_known():
            return self.update(w, state, g, t)
        after = self.update(w, state, g if self.clip is None else self.clip(g), t)
        if not (isinstance(after, tuple) and len(after) == 2):
            raise ArgumentError(
                f"optimizer: {type(self).__name__}.update returned a {type(after).__name__}, expected the pair (w, state); "
                "return w, () where there is no state"
            )
        after = tree_tensors(after, "optimizer")
        same_kind(f"optimizer: {type(self).__name__}.update", (w, state), after, ("w", "state"))
        return after[0], after[1]

    def hyperparameters(self) -> dict[str, Any]:
        """The fields by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def with_hyperparameters(self, values: dict[str, Any]) -> Optimizer:
        """The same optimiser with other values in its fields."""
        return replace(self, **values) if values else self

    def scheduled(self, n_steps: int, steps: range, like: Tensor | None = None) -> Optimizer:
        """The same optimiser for some of n_steps steps: its functions of the step number are evaluated, its schedules checked and cut.

        Functions that return Python numbers become schedules of the dtype of `like`, as Python numbers do.
        """

        def cut(name: str, given: Schedule) -> Schedule:
            whole = Schedule(tree_tensors(given.values, "schedule")).checked(name, n_steps)
            return whole if len(steps) == n_steps else whole.part(steps)

        return self._evaluated(cut, lambda name, f: _tabulated(name, f, steps, like))

    def at(self, t: int) -> Optimizer:
        """The same optimiser with the values that its schedules have in step t."""
        return self._evaluated(lambda _, given: given.at(t), lambda _, f: f(t))

    def _evaluated(self, of_schedule: Callable[[str, Schedule], Any], of_function: Callable[[str, Any], Any]) -> Optimizer:
        """The same optimiser with other values for its schedules and functions, and Python numbers for NumPy's of whatever dtype."""
        found: dict[str, Any] = {}
        for name in self.numeric_fields:
            value = getattr(self, name)
            if isinstance(value, np.generic):
                found[name] = value.item()
            elif isinstance(value, Schedule):
                found[name] = of_schedule(name, value)
            elif callable(value):
                found[name] = of_function(name, value)
        return self.with_hyperparameters(found)

    def step(self, w: PyTree, state: PyTree | None, g: PyTree, t: int) -> tuple[PyTree, PyTree]:
        """One step on arrays, off the tape: what a training loop calls.

        Args:
            w, g: pytrees of arrays.
            state: None at the first step, then what the last call returned.
            t: number of steps done so far.
        Returns: (w, state), pytrees of new arrays.
        """

        def run() -> tuple[PyTree, PyTree]:
            tensors, now = tree_tensors(w, "step"), self.at(t)
            before = self.begin(tensors) if state is None else tree_tensors(state, "step")
            return now.advance(tensors, before, tree_tensors(g, "step"), t)

        after: tuple[PyTree, PyTree] = owned(set_aside(run), arrays_of(w, state, g))
        return after


_PUBLIC = frozenset(name for name in vars(Optimizer) if not name.startswith("_"))
_checked: set[type] = set()


def _definer(cls: type) -> type:
    """The class whose `update` an optimiser of class `cls` runs."""
    return next(c for c in cls.__mro__ if "update" in c.__dict__)


def _check_class(cls: type) -> None:
    """Raises: ArgumentError for a class that would lose a hyperparameter or has no update."""
    for c in cls.__mro__[:-1]:
        if "__dataclass_fields__" not in c.__dict__:
            own = [k for k, kind in inspect.get_annotations(c).items() if "ClassVar" not in str(kind)]
            if own:
                raise ArgumentError(
                    f"optimizer: {c.__name__} declares {', '.join(own)} but is no dataclass, expected one because its "
                    "fields are its hyperparameters; write @dataclass(frozen=True) above the class"
                )
    if _definer(cls) is Optimizer and cls is not Optimizer:
        raise ArgumentError(f"optimizer: {cls.__name__} has no update, expected one; define update(self, w, state, g, t)")


def _tabulated(name: str, f: Callable[[int], Any], steps: range, like: Tensor | None) -> Any:
    """The values of a function of the step number as a schedule."""
    values = [f(t) for t in steps]
    if like is not None and values and all(type(x) in _NUMBERS for x in values):
        return Schedule(Tensor(backend_of(like.value).xp.asarray(values, like.dtype)))
    if all(type(x) in _NUMBERS or isinstance(x, (np.generic, np.ndarray)) for x in values):
        return Schedule(Tensor(np.asarray(values, np.result_type(*values)))) if values else 0.0
    return Schedule(stack(values)).checked(name, len(steps))


def same_kind(where: str, before: PyTree, after: PyTree, roots: tuple[str, ...]) -> None:
    """Raises an error that names the leaf unless two tuples of trees agree in structure, shapes and dtypes."""
    for old, new, root in zip(before, after, roots, strict=True):
        olds, news = tree_leaves(old), tree_leaves(new)
        if tree_structure(old) != tree_structure(new):
            raise ArgumentError(
                f"{where}: {root} has the structure {tree_structure(new)}, expected {tree_structure(old)} because "
                "every step starts from what the last one returned; give the same tree"
            )
        for i, (a, b) in enumerate(zip(olds, news, strict=True)):
            if a.value.shape != b.value.shape or a.value.dtype != b.value.dtype:
                leaf = tree_named(old, root)[i][0]
                error: type[Exception] = ShapeError if a.shape != b.shape else DTypeError
                raise error(
                    f"{where}: {leaf} has shape {b.shape} and dtype {b.dtype}, expected {a.shape} and {a.dtype}; sum, reshape or convert it"
                )


def digests(tree: PyTree) -> tuple[int | None, ...]:
    """A digest of every leaf, to compare a step that is run again with its first run; None for arrays on a GPU."""
    return tuple([digest(x.value) for x in tree_leaves(tree)])


@dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent with momentum: v <- momentum*v + g, w <- w - lr*v.

    Args:
        lr: step size. This and every other numeric field is a number, an array or Tensor without axes, a tree with one entry per leaf
            of the weights, each broadcasting to its leaf, a function of the step number, or a `schedule`.
        momentum: mu; with the number 0 no velocity is kept.
        nesterov: step along g + mu*v instead of v.
        weight_decay: adds weight_decay * w to g.
        clip: see `Optimizer`.
    Memory: w, and as much again with momentum.
    Source: Sutskever et al. 2013, ICML (momentum and Nesterov's form).
    Example:
        >>> w, state = hg.SGD(lr=0.1, momentum=0.9).step(np.ones(2), None, np.array([1.0, -2.0]), 0)
        >>> w
        array([0.9, 1.2])
    """

    lr: Any
    momentum: Any = 0.0
    nesterov: bool = False
    weight_decay: Any = 0.0
    linear_in_gradient: ClassVar[bool] = True
    numeric_fields: ClassVar[tuple[str, ...]] = ("lr", "momentum", "weight_decay")

    def init(self, w: PyTree) -> PyTree:
        """Zero velocity, or nothing without momentum."""
        return () if is_zero(self.momentum) else tree_map(zeros_like, w)

    def direction(self, state: PyTree) -> PyTree | None:
        """The velocity; nothing without one, and with Nesterov's momentum, whose step adds the gradient to it."""
        return None if self.nesterov or isinstance(state, tuple) and not state else state

    def update(self, w: PyTree, state: PyTree, g: PyTree, t: int) -> tuple[PyTree, PyTree]:
        velocity = None if isinstance(state, tuple) and not state else state  # a momentum that falls to 0 keeps it
        w, v = _fused(self, sgd_step, w, (velocity,), g, nesterov=self.nesterov)
        return w, () if v is None else v


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam: m <- b1*m + (1-b1)*g, s <- b2*s + (1-b2)*g^2, w <- w - lr * m_hat / sqrt(s_hat + eps).

    eps stands inside the square root, so that the derivative exists where g = 0.

    Args:
        lr: step size; numeric fields are as in `SGD`.
        beta1, beta2: decay of the two moments, in [0, 1).
        eps: added to the second moment, > 0.
        clip: see `Optimizer`.
    Memory: three times w.
    Source: Kingma & Ba 2015, arXiv:1412.6980.
    Example:
        >>> w, state = hg.Adam(lr=0.1).step(np.ones(2), None, np.array([1.0, -2.0]), 0)
        >>> w.round(6)
        array([0.9, 1.1])
    """

    lr: Any
    beta1: Any = 0.9
    beta2: Any = 0.999
    eps: Any = 1e-8
    numeric_fields: ClassVar[tuple[str, ...]] = ("lr", "beta1", "beta2", "eps")

    def init(self, w: PyTree) -> PyTree:
        """Zero moments."""
        return {"m": tree_map(zeros_like, w), "s": tree_map(zeros_like, w)}

    def update(self, w: PyTree, state: PyTree, g: PyTree, t: int) -> tuple[PyTree, PyTree]:
        w, m, s = _fused(self, adam_step, w, (state["m"], state["s"]), g, t=t)
        return w, {"m": m, "s": s}


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay: m and s as in `Adam`, w <- w - lr * (m_hat / sqrt(s_hat + eps) + weight_decay*w).

    Args:
        lr, beta1, beta2, eps: as in `Adam`.
        weight_decay: share of the weights that lr takes off in a step; with the number 0 a step is Adam's, bit for bit.
        clip: see `Optimizer`.
    Memory: three times w.
    Source: Loshchilov & Hutter 2019, arXiv:1711.05101.
    Example:
        >>> w, state = hg.AdamW(lr=0.1, weight_decay=0.5).step(np.ones(2), None, np.array([1.0, -2.0]), 0)
        >>> w.round(6)
        array([0.85, 1.05])
    """

    weight_decay: Any = 1e-2
    numeric_fields: ClassVar[tuple[str, ...]] = (*Adam.numeric_fields, "weight_decay")


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """RMSprop: s <- decay*s + (1-decay)*g^2, v <- momentum*v + g / sqrt(s + eps), w <- w - lr*v.

    eps stands inside the square root, so that the derivative exists where g = 0.

    Args:
        lr: step size; numeric fields are as in `SGD`.
        decay: of the second moment, in [0, 1).
        eps: added to the second moment, > 0.
        momentum: mu; with the number 0 no velocity is kept.
        clip: see `Optimizer`.
    Memory: twice w, and as much as w again with momentum.
    Source: Tieleman & Hinton 2012, Coursera, Neural networks for machine learning, lecture 6.5.
    Example:
        >>> w, state = hg.RMSprop(lr=0.1, decay=0.75).step(np.ones(2), None, np.array([1.0, -2.0]), 0)
        >>> w.round(6)
        array([0.8, 1.2])
    """

    lr: Any
    decay: Any = 0.9
    eps: Any = 1e-8
    momentum: Any = 0.0
    numeric_fields: ClassVar[tuple[str, ...]] = ("lr", "decay", "eps", "momentum")

    def init(self, w: PyTree) -> PyTree:
        """Zero second moment, and zero velocity where there is momentum."""
        return {k: tree_map(zeros_like, w) for k in (("s",) if is_zero(self.momentum) else ("s", "v"))}

    def update(self, w: PyTree, state: PyTree, g: PyTree, t: int) -> tuple[PyTree, PyTree]:
        w, s, v = _fused(self, rmsprop_step, w, (state["s"], state.get("v")), g)
        return w, {"s": s} if v is None else {"s": s, "v": v}


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """Adagrad: s <- s + g^2, w <- w - lr * g / sqrt(s + eps).

    eps stands inside the square root, so that the derivative exists where g = 0.

    Args:
        lr: step size; numeric fields are as in `SGD`.
        eps: added to the sum of squares, > 0.
        clip: see `Optimizer`.
    Memory: twice w.
    Source: Duchi et al. 2011, JMLR 12.
    Example:
        >>> w, state = hg.Adagrad(lr=0.1).step(np.ones(2), None, np.array([1.0, -2.0]), 0)
        >>> w.round(6)
        array([0.9, 1.1])
    """

    lr: Any
    eps: Any = 1e-8
    numeric_fields: ClassVar[tuple[str, ...]] = ("lr", "eps")

    def init(self, w: PyTree) -> PyTree:
        """Zero sums."""
        return {"s": tree_map(zeros_like, w)}

    def update(self, w: PyTree, state: PyTree, g: PyTree, t: int) -> tuple[PyTree, PyTree]:
        w, s = _fused(self, adagrad_step, w, (state["s"],), g)
        return w, {"s": s}
