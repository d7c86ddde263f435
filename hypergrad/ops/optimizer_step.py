"""The steps of the optimisers on all leaves of a pytree at once: one op, one kernel call, one launch.

An op's arguments are the leaves of the weights, of the optimiser's state and of the gradient, one list after the other, and
then those hyperparameters ("fields") that are arrays: one without axes for all leaves, or one per leaf. Fields that are
numbers are attributes. The optimisers in optimizers.py call `sgd_step` and its like, which take the kernels where they
serve and the same arithmetic in ops elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..backends import Array, Backend
from ..rules import FusedMany
from ..tape import Tensor, to_tensors
from .elementwise import sqrt

Attrs = dict[str, Any]
Columns = dict[str, list[Any]]  # by name of the state or field, one entry per leaf, None where absent
MOST_AXES = 5  # of a leaf: a kernel's arrays have at most 6, and tangents have one more


class Step:
    """The op of one optimiser.

    Args:
        name: of the op and, with the rung, of its kernels.
        leaf: (**states, **fields, **extra) -> tuple of the states after the step, in ops: the definition, for one leaf.
        moves: the states in order, each with the states and fields that it depends on after the step; the gradient,
            "g", comes after them.
        fields: names of the hyperparameters.
        first: index of the first state that the kernels of derivatives read.
    """

    def __init__(
        self, name: str, leaf: Callable[..., tuple[Any, ...]], moves: dict[str, tuple[str, ...]], fields: tuple[str, ...], first: int
    ) -> None:
        self.name, self.leaf, self.moves, self.fields, self.first = name, leaf, moves, fields, first
        self.states = (*moves, "g")
        self.op = FusedMany(name, None, self.reference, value=self.value, jvp=self.jvp, vjp=self.vjp, vjp_jvp=None)

    def __call__(self, states: dict[str, list[Any] | None], fields: dict[str, Any], **extra: Any) -> list[list[Any] | None]:
        """The states after the step.

        Args:
            states: leaves of each state and of the gradient; None where the optimiser keeps no such state.
            fields: each a number, something without axes for all leaves, or a list of such with one per leaf.
            extra: attributes beside the fields.
        """
        given: dict[str, list[Any]] = {k: x for k, x in states.items() if x is not None}
        leaves = len(given["g"])
        numbers = {k: f for k, f in fields.items() if type(f) in (int, float, bool)}
        arrays = {k: f if isinstance(f, list) else [f] for k, f in fields.items() if k not in numbers}
        if not kernels_serve(list(given.values()), [x for f in arrays.values() for x in f]):
            shared = {k: f if isinstance(f, list) else [f] * leaves for k, f in fields.items()}
            return self._composed({**{k: x or [None] * leaves for k, x in states.items()}, **shared}, leaves, extra)
        like = given["g"][0]
        arrays = {k: [to_tensors(self.name, [like, x])[1] for x in f] for k, f in arrays.items()}
        outs = self.op.outputs(
            *[x for column in (*given.values(), *arrays.values()) for x in column],
            leaves=leaves,
            numbers=numbers,
            arrays={k: len(f) for k, f in arrays.items()},
            absent=tuple([k for k in states if k not in given]),
            extra=extra,
        )
        rows = iter(outs)
        return [[next(rows) for _ in range(leaves)] if k in given else None for k in self.moves]

    def _composed(self, columns: Columns, leaves: int, extra: Attrs) -> list[list[Any] | None]:
        after = [self.leaf(**{k: column[i] for k, column in columns.items()}, **extra) for i in range(leaves)]
        return [[row[j] for row in after] for j in range(len(self.moves))]

    def _columns(self, args: Sequence[Any], attrs: Attrs) -> Columns:
        """Something given for each of the op's arguments (values, tangents, flags), by the argument's name."""
        n, start, columns = attrs["leaves"], 0, {}
        for k in (*self.states, *self.fields):
            count = attrs["arrays"].get(k, 0) if k in self.fields else n * (k not in attrs["absent"])
            own = list(args[start : start + count])
            columns[k] = own if count == n else (own or [None]) * n
            start += count
        return columns

    def _inputs(self, b: Backend, columns: Columns, names: Sequence[str], suffix: str = "") -> Columns:
        """Columns as a kernel takes them."""
        return {f"{k}{suffix}": [x if x is None or x.flags.c_contiguous else b.xp.ascontiguousarray(x) for x in columns[k]] for k in names}

    def _run(self, b: Backend, rung: str, attrs: Attrs, columns: Columns, states: Sequence[str], **arguments: Any) -> dict[str, Any]:
        fields = {k: columns[k] if k in attrs["arrays"] else float(attrs["numbers"][k]) for k in self.fields}
        return b.run(f"{self.name}_{rung}", **self._inputs(b, columns, states), **fields, **arguments, **attrs["extra"])

    def _next(self, attrs: Attrs) -> list[str]:
        """Names of the op's outputs."""
        return [k for k in self.moves if k not in attrs["absent"]]

    # --- the rungs of the op; see rules.FusedMany ---------------------------------------------------------

    def reference(self, *args: Tensor, **attrs: Any) -> list[Tensor]:
        """The definition: every leaf's arithmetic in ops."""
        n = attrs["leaves"]
        columns = {**self._columns(args, attrs), **{k: [x] * n for k, x in attrs["numbers"].items()}}
        after = dict(zip(self.moves, self._composed(columns, n, attrs["extra"]), strict=True))
        return [x for k in self._next(attrs) for x in after[k] or []]

    def value(self, b: Backend, values: list[Array], attrs: Attrs) -> tuple[list[Array], None]:
        """The states after the step."""
        columns = self._columns(values, attrs)
        outs = {f"{k}_next": [x is not None for x in columns[k]] for k in self.moves}
        after = self._run(b, "value", attrs, columns, self.states, **outs)
        return [y for k in self._next(attrs) for y in after[f"{k}_next"]], None

    def jvp(self, b: Backend, values: list[Array], dots: list[Array | None], attrs: Attrs, saved: None) -> list[Array | None]:
        """Their tangents; None for a leaf that nothing moves."""
        columns, columns_dot = self._columns(values, attrs), self._columns(dots, attrs)
        outs = {
            f"{k}_next_dot": [x is not None and any(columns_dot[a][i] is not None for a in sources) for i, x in enumerate(columns[k])]
            for k, sources in self.moves.items()
        }
        given = self._inputs(b, columns_dot, (*self.states, *self.fields), "_dot")
        after = self._run(b, "jvp", attrs, columns, self.states[self.first :], **given, **outs)
        return [y for k in self._next(attrs) for y in after[f"{k}_next_dot"]]

    def vjp(
        self, b: Backend, values: list[Array], bars: list[Array | None], want: list[bool], attrs: Attrs, saved: None
    ) -> list[Array | None]:
        """Cotangents of what is wanted; None for a leaf that no cotangent reaches."""
        columns, wanted, n = self._columns(values, attrs), self._columns(want, attrs), attrs["leaves"]
        rows = iter(bars)
        bar = {k: [next(rows) for _ in range(n)] if k not in attrs["absent"] else [None] * n for k in self.moves}

        def reached(k: str, i: int) -> bool:
            return any(bar[after][i] is not None for after, sources in self.moves.items() if k in sources)

        outs: dict[str, Any] = {f"{k}_bar": [bool(w) and reached(k, i) for i, w in enumerate(wanted[k])] for k in self.states}
        outs |= {f"{k}_bar": any(wanted[k]) for k in self.fields}
        bars_of = self._run(
            b, "vjp", attrs, columns, self.states[self.first :], **self._inputs(b, bar, list(self.moves), "_next_bar"), **outs
        )
        results: list[Array | None] = [y for k in self.states if k not in attrs["absent"] for y in bars_of[f"{k}_bar"]]
        for k, count in attrs["arrays"].items():
            own = bars_of[f"{k}_bar"]
            if own is None:
                results += [None] * count
            elif count == n:
                results += [own[i : i + 1].reshape(()) for i in range(n)]
            else:
                results.append(own.sum(keepdims=True).reshape(()))
        return results


def kernels_serve(columns: list[list[Any]], fields: list[Any]) -> bool:
    """Whether the kernels take these leaves (a list for each state) and arrays of fields."""
    first = columns[0][0] if columns[0] else None
    if type(first) is not Tensor or first.value.dtype.char not in "fd" or not first.value.dtype.isnative:
        return False
    dtype, kind = first.value.dtype, first.value.__class__  # of a recorded array that of the array
    shapes = [x.value.shape if type(x) is Tensor else None for x in columns[0]]
    for column in columns:
        for x, shape in zip(column, shapes, strict=True):
            if type(x) is not Tensor or x.value.dtype != dtype or x.value.__class__ is not kind or x.value.shape != shape:
                return False
    if any(shape is not None and len(shape) > MOST_AXES for shape in shapes):
        return False

    def serves(x: Any) -> bool:
        at_hand = x.value.__class__ is kind if type(x) is Tensor else x.__class__ is kind or isinstance(x, (np.ndarray, np.generic))
        return at_hand and x.ndim == 0 and x.dtype == dtype

    return all(serves(x) for x in fields)


def served_fields(columns: list[list[Any]], fields: dict[str, Any]) -> dict[str, Any] | None:
    """Fields as the kernels take them for these leaves: a number, or a list with an array for each leaf. None where they do not serve.

    Args:
        columns: leaves, a list for each state.
        fields: each a number, something without axes for all leaves, or a list of such with one per leaf.
    """
    fields = {k: 0.0 if is_zero(f) else f for k, f in fields.items()}
    arrays = {k: f if isinstance(f, list) else [f] for k, f in fields.items() if type(f) not in (int, float, bool)}
    if not kernels_serve(columns, [x for f in arrays.values() for x in f]):
        return None
    like, n = columns[0][0], len(columns[0])
    rows = {k: [to_tensors("sgd_step", [like, x])[1].value for x in f] for k, f in arrays.items()}
    return {k: float(f) if k not in rows else rows[k] * n if len(rows[k]) == 1 else rows[k] for k, f in fields.items()}


def is_zero(field: Any) -> bool:
    """Whether a field is the number 0, which leaves out what it multiplies."""
    return isinstance(field, (int, float)) and field == 0


def _sgd_leaf(w: Any, v: Any, g: Any, lr: Any, momentum: Any, weight_decay: Any, *, nesterov: bool) -> tuple[Any, Any]:
    if not is_zero(weight_decay):
        g = g + weight_decay * w
    if v is None:
        return w - lr * g, None
    v = momentum * v + g
    return w - lr * (g + momentum * v if nesterov else v), v


def _adam_leaf(w: Any, m: Any, s: Any, g: Any, lr: Any, beta1: Any, beta2: Any, eps: Any, *, t: int) -> tuple[Any, Any, Any]:
    m = beta1 * m + (1.0 - beta1) * g
    s = beta2 * s + (1.0 - beta2) * (g * g)
    return w - lr * (m / (1.0 - beta1 ** (t + 1))) / sqrt(s / (1.0 - beta2 ** (t + 1)) + eps), m, s


def _adamw_leaf(w: Any, m: Any, s: Any, g: Any, lr: Any, weight_decay: Any, **more: Any) -> tuple[Any, Any, Any]:
    after, m, s = _adam_leaf(w, m, s, g, lr, **more)
    return after - lr * (weight_decay * w), m, s


def _rmsprop_leaf(w: Any, s: Any, v: Any, g: Any, lr: Any, decay: Any, eps: Any, momentum: Any) -> tuple[Any, Any, Any]:
    s = decay * s + (1.0 - decay) * (g * g)
    step = g / sqrt(s + eps)
    if v is None:
        return w - lr * step, s, None
    v = momentum * v + step
    return w - lr * v, s, v


def _adagrad_leaf(w: Any, s: Any, g: Any, lr: Any, eps: Any) -> tuple[Any, Any]:
    s = s + g * g
    return w - lr * (g / sqrt(s + eps)), s


_SGD_FIELDS = ("lr", "momentum", "weight_decay")
_SGD = Step(
    "sgd_step", _sgd_leaf, {"w": ("w", "v", "g", *_SGD_FIELDS), "v": ("w", "v", "g", "momentum", "weight_decay")}, _SGD_FIELDS, first=0
)
_ADAM_FIELDS = ("lr", "beta1", "beta2", "eps")
_MOMENTS = {"m": ("m", "g", "beta1"), "s": ("s", "g", "beta2")}
_ADAM = Step("adam_step", _adam_leaf, {"w": ("w", "m", "s", "g", *_ADAM_FIELDS), **_MOMENTS}, _ADAM_FIELDS, first=1)
_ADAMW_FIELDS = (*_ADAM_FIELDS, "weight_decay")
_ADAMW = Step("adamw_step", _adamw_leaf, {"w": ("w", "m", "s", "g", *_ADAMW_FIELDS), **_MOMENTS}, _ADAMW_FIELDS, first=0)
_RMSPROP_FIELDS = ("lr", "decay", "eps", "momentum")
_RMSPROP = Step(
    "rmsprop_step",
    _rmsprop_leaf,
    {"w": ("w", "s", "v", "g", *_RMSPROP_FIELDS), "s": ("s", "g", "decay"), "v": ("s", "v", "g", "decay", "eps", "momentum")},
    _RMSPROP_FIELDS,
    first=1,
)
_ADAGRAD_FIELDS = ("lr", "eps")
_ADAGRAD = Step("adagrad_step", _adagrad_leaf, {"w": ("w", "s", "g", *_ADAGRAD_FIELDS), "s": ("s", "g")}, _ADAGRAD_FIELDS, first=1)


def sgd_step(
    w: list[Any], v: list[Any] | None, g: list[Any], lr: Any, momentum: Any, weight_decay: Any, *, nesterov: bool
) -> tuple[list[Any], list[Any] | None]:
    """Weights and velocities after a step of momentum SGD: v <- momentum*v + g', w <- w - lr*v, g' = g + weight_decay*w.

    Args:
        w, v, g: leaves of weights, velocity and gradient; v None keeps no velocity, as if momentum were 0.
        lr, momentum, weight_decay: each a number, an array or Tensor for all leaves, or a list with one per leaf.
        nesterov: step along g' + momentum*v instead of v.
    Rules: kernels for value, vjp and jvp where the leaves are Tensors of one dtype and each field has no axes; else, and for
        every other nesting, the arithmetic in ops.
    """
    fields = {"lr": lr, "momentum": 0.0 if v is None else momentum, "weight_decay": 0.0 if is_zero(weight_decay) else weight_decay}
    w_next, v_next = _SGD({"w": w, "v": v, "g": g}, fields, nesterov=nesterov and v is not None)
    return w_next or [], None if v is None else v_next


def adam_step(
    w: list[Any], m: list[Any], s: list[Any], g: list[Any], lr: Any, beta1: Any, beta2: Any, eps: Any, weight_decay: Any = 0.0, *, t: int
) -> tuple[list[Any], list[Any], list[Any]]:
    """Weights and moments after step t of Adam, with eps inside the square root, or of AdamW where the weights decay.

    Args:
        w, m, s, g: leaves of weights, first and second moment, gradient.
        lr, beta1, beta2, eps, weight_decay: each a number, an array or Tensor for all leaves, or a list with one per leaf.
        t: number of steps done so far.
    Rules: as `sgd_step`.
    """
    fields = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps}
    step, more = (_ADAM, {}) if is_zero(weight_decay) else (_ADAMW, {"weight_decay": weight_decay})
    w_next, m_next, s_next = step({"w": w, "m": m, "s": s, "g": g}, fields | more, t=t)
    return w_next or [], m_next or [], s_next or []


def rmsprop_step(
    w: list[Any], s: list[Any], v: list[Any] | None, g: list[Any], lr: Any, decay: Any, eps: Any, momentum: Any
) -> tuple[list[Any], list[Any], list[Any] | None]:
    """Weights, second moments and velocities after a step of RMSprop, with eps inside the square root.

    Args:
        w, s, v, g: leaves of weights, second moment, velocity and gradient; v None keeps no velocity, as if momentum were 0.
        lr, decay, eps, momentum: each a number, an array or Tensor for all leaves, or a list with one per leaf.
    Rules: as `sgd_step`.
    """
    fields = {"lr": lr, "decay": decay, "eps": eps, "momentum": 0.0 if v is None else momentum}
    w_next, s_next, v_next = _RMSPROP({"w": w, "s": s, "v": v, "g": g}, fields)
    return w_next or [], s_next or [], None if v is None else v_next


def adagrad_step(w: list[Any], s: list[Any], g: list[Any], lr: Any, eps: Any) -> tuple[list[Any], list[Any]]:
    """Weights and sums of squares after a step of Adagrad, with eps inside the square root.

    Args:
        w, s, g: leaves of weights, sum of squared gradients, gradient.
        lr, eps: each a number, an array or Tensor for all leaves, or a list with one per leaf.
    Rules: as `sgd_step`.
    """
    w_next, s_next = _ADAGRAD({"w": w, "s": s, "g": g}, {"lr": lr, "eps": eps})
    return w_next or [], s_next or []
