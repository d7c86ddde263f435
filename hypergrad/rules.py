"""Ways to declare an op. One declaration holds its value, its vjp and its jvp.

A rule is written in ops, never in arrays or kernels, so that it can itself be differentiated and can carry
tangents. Notation, as everywhere: ``x_dot`` is a tangent (leading axis P of directions), ``x_bar`` a cotangent.

=============  ===================================================  ====================================
declaration    what it states                                       what follows from it
=============  ===================================================  ====================================
elementwise    the value and one partial derivative per argument    vjp, jvp, broadcasting
linear         the value and the transpose                          vjp = transpose, jvp = the op itself
bilinear       the value and one transpose per argument             vjp, jvp by the product rule
Op             the value, one vjp and one jvp rule per argument     -
Fused          a composed reference and four kernel rungs           everything else from the reference
FusedMany      the same for any number of outputs and arguments     -
=============  ===================================================  ====================================

Each op also states how it takes one more axis in front of its arguments, that of the examples of `vmap` (`Registered.batching`). The first
three declarations state it themselves.

Every op is entered in `REGISTRY` under its name. The tests go through all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any, TypeVar

from .backends import CUDA, TRACING, Array, Backend, backend_of, is_batched
from .backends.recording import recalled
from .errors import ArgumentError
from .tape import Node, Tape, Tensor, apply, levels_of

RuleFn = Callable[..., Tensor]
R = TypeVar("R")
REGISTRY: dict[str, Registered] = {}


class Registered:
    """An op known by name. Subclasses add forward, push and pull (see tape.Rule).

    Attributes:
        proven: whether this package's tests prove that the rules are the derivatives of the value. True for the package's own ops.
            The rules of an op declared elsewhere may be others on purpose, as those of a straight-through rounding. The passes rely
            on the symmetry of a Hessian only where all its ops are proven.
        batching: how the op takes an axis of examples in front. "broadcast": leading axes of its arguments broadcast against each other;
            "lead", "axis": by its attribute of that name; "reference": a fused op, whose reference is computed. None: `vmap` refuses it.
    """

    proven = False
    batching: str | None = None
    forward: Any
    push: Any
    pull: Any

    def __init__(self, name: str, arity: int | None) -> None:
        if name in REGISTRY:
            raise ArgumentError(f"{name}: declared twice, expected unique names; rename one")
        self.name, self.arity = name, arity
        REGISTRY[name] = self

    def outputs(self, *args: Any, **attrs: Any) -> list[Tensor]:
        """Apply the op to Tensors, arrays or scalars."""
        if self.arity is not None and len(args) != self.arity:
            raise ArgumentError(f"{self.name}: got {len(args)} arguments, expected {self.arity}; pass attributes by keyword")
        return apply(self, args, attrs)

    def __call__(self, *args: Any, **attrs: Any) -> Tensor:
        """The first output of the op on Tensors, arrays or scalars."""
        return self.outputs(*args, **attrs)[0]


class Op(Registered):
    """An op with one output, declared by one vjp and one jvp rule per argument.

    Args:
        name: its name in messages and in `REGISTRY`.
        value: (backend, *arrays, **attrs) -> array; backend.xp is NumPy or CuPy.
        vjp: per argument (out_bar, out, *inputs, **attrs) -> cotangent of that argument; None for one without a derivative.
        jvp: per argument (x_dot, out, *inputs, **attrs) -> its share of out_dot; None for one without a derivative.
        batching: see `Registered`.
    Raises: ArgumentError if the two tables differ in length or in which entries are None, or the name is taken.
    """

    def __init__(
        self,
        name: str,
        value: Callable[..., Array],
        *,
        vjp: Sequence[RuleFn | None],
        jvp: Sequence[RuleFn | None],
        batching: str | None = None,
    ) -> None:
        if len(vjp) != len(jvp) or [f is None for f in vjp] != [f is None for f in jvp]:
            raise ArgumentError(
                f"{name}: declared with {len(vjp)} vjp and {len(jvp)} jvp rules, expected one of each for every "
                "argument because a missing one is a silent zero; state both or None in both"
            )
        super().__init__(name, len(vjp))
        self.value, self.vjp, self.jvp = value, tuple(vjp), tuple(jvp)
        self.batching = batching

    def __call__(self, *args: Any, **attrs: Any) -> Tensor:
        """The op on Tensors, arrays or scalars."""
        return apply(self, args, attrs)[0] if len(args) == self.arity else self.outputs(*args, **attrs)[0]  # which says what is wrong

    def forward(self, backend: Backend, values: list[Array], attrs: dict[str, Any]) -> tuple[tuple[Array, ...], Any]:
        """The value; nothing is saved."""
        if backend is TRACING:
            return (TRACING.value(self.value, values, attrs),), None
        return (self.value(backend, *values, **attrs),), None

    def push(self, node: Node, inputs: list[Tensor], dots: list[Tensor | None]) -> Sequence[Tensor | None]:
        """The sum of the arguments' shares, broadcast to the output."""
        total: Tensor | None = None
        out = node.output()
        for rule, dot in zip(self.jvp, dots, strict=True):
            if rule is not None and dot is not None:
                share = rule(dot, out, *inputs, **node.attrs)
                total = share if total is None else total + share
        if total is not None and total.shape[1:] != out.shape:
            total = broadcast_to(total, shape=out.shape, lead=1)
        return (total,)

    def pull(self, node: Node, bars: list[Tensor | None], want: Sequence[int]) -> Sequence[Tensor | None]:
        """Each wanted argument's cotangent by its own rule."""
        out = node.output()
        return [
            rule(bars[0], out, *node.inputs, **node.attrs) if wanted and rule is not None else None
            for rule, wanted in zip(self.vjp, want, strict=True)
        ]


def align(dot: Tensor, ndim: int, own: int) -> Tensor:
    """Tangents (P, *shape), where `shape` has `own` axes, with ones inserted after P so that they broadcast against `ndim` axes."""
    if own >= ndim:
        return dot
    return reshape(dot, shape=(dot.shape[0], *(1,) * (ndim - own), *dot.shape[1:]))


def elementwise(name: str, value: Callable[..., Array], *partials: Callable[..., Any] | None) -> Op:
    """An op that works element by element, with broadcasting.

    Args:
        value: (backend, *arrays, **attrs) -> array.
        partials: per argument (out, *inputs, **attrs) -> d out / d argument, in ops; None where it is zero.
    """

    def vjp_of(i: int, partial: Callable[..., Any]) -> RuleFn:
        return lambda bar, out, *ins, **attrs: sum_to(bar * partial(out, *ins, **attrs), shape=ins[i].shape)

    def jvp_of(i: int, partial: Callable[..., Any]) -> RuleFn:
        return lambda dot, out, *ins, **attrs: align(dot, out.ndim, ins[i].ndim) * partial(out, *ins, **attrs)

    return Op(
        name,
        value,
        vjp=[p and vjp_of(i, p) for i, p in enumerate(partials)],
        jvp=[p and jvp_of(i, p) for i, p in enumerate(partials)],
        batching="broadcast",
    )


class Linear(Op):
    """An op that is linear in its one argument. It leaves the first `lead` axes alone, so that it applies to tangents as well."""

    linear = True  # its pull reads nothing but the cotangent, and the values of that only for the values of its result

    def __init__(self, name: str, value: Callable[..., Array], transpose: Callable[..., Tensor]) -> None:
        super().__init__(
            name,
            value,
            vjp=(lambda bar, out, x, lead=0, **attrs: transpose(bar, x, lead=lead, **attrs),),
            jvp=(lambda dot, out, x, lead=0, **attrs: self(dot, lead=lead + 1, **attrs),),
            batching="lead",
        )


def linear(name: str, value: Callable[..., Array], transpose: Callable[..., Tensor]) -> Op:
    """A linear op.

    Args:
        value: (backend, x, *, lead, **attrs) -> array; it leaves the first `lead` axes of x alone.
        transpose: (out_bar, x, *, lead, **attrs) -> x_bar, in ops; it may use only the shape and dtype of x.
    """
    return Linear(name, lambda backend, x, lead=0, **attrs: value(backend, x, lead=lead, **attrs), transpose)


def bilinear(name: str, value: Callable[..., Array], transposes: tuple[RuleFn, RuleFn], core: tuple[int, int, int]) -> Op:
    """An op that is linear in each of its two arguments; axes in front of the core axes broadcast.

    Args:
        value: (backend, x, y, **attrs) -> array.
        transposes: (out_bar, x, y, **attrs) -> cotangent of x, of y; `bilinear` sums them to the argument's shape.
        core: number of trailing axes of x, y and the result that the op works on; the others are batch axes.
    """

    def vjp_of(i: int) -> RuleFn:
        return lambda bar, out, x, y, **attrs: sum_to(transposes[i](bar, x, y, **attrs), shape=(x, y)[i].shape)

    def jvp_of(i: int) -> RuleFn:
        def rule(dot: Tensor, out: Tensor, x: Tensor, y: Tensor, **attrs: Any) -> Tensor:
            dot = align(dot, out.ndim - core[2], (x, y)[i].ndim - core[i])
            return op(dot, y, **attrs) if i == 0 else op(x, dot, **attrs)

        return rule

    op = Op(name, value, vjp=(vjp_of(0), vjp_of(1)), jvp=(jvp_of(0), jvp_of(1)), batching="broadcast")
    return op


# --- the two linear ops that broadcasting itself needs ---------------------------------------------------


def _sum_to(b: Backend, x: Array, *, lead: int, shape: tuple[int, ...]) -> Array:
    if x.shape[lead:] == tuple(shape):
        return x
    extra = x.ndim - lead - len(shape)
    axes = tuple(
        [*range(lead, lead + extra), *[lead + extra + i for i, n in enumerate(shape) if n == 1 and x.shape[lead + extra + i] != 1]]
    )
    return b.xp.sum(x, axis=axes).reshape(x.shape[:lead] + tuple(shape))


def _broadcast_to(b: Backend, x: Array, *, lead: int, shape: tuple[int, ...]) -> Array:
    ones = (1,) * (len(shape) - (x.ndim - lead))
    return b.xp.broadcast_to(x.reshape(x.shape[:lead] + ones + x.shape[lead:]), x.shape[:lead] + tuple(shape))


_sum_to_op: Op = linear("sum_to", _sum_to, lambda bar, x, *, lead, shape: broadcast_to(bar, shape=x.shape[lead:], lead=lead))
broadcast_to: Op = linear("broadcast_to", _broadcast_to, lambda bar, x, *, lead, shape: _sum_to_op(bar, shape=x.shape[lead:], lead=lead))
reshape: Op = linear(
    "reshape",
    lambda b, x, *, lead, shape: x.reshape(x.shape[:lead] + tuple(shape)),
    lambda bar, x, *, lead, shape: reshape(bar, shape=x.shape[lead:], lead=lead),
)


def sum_to(x: Tensor, *, shape: tuple[int, ...]) -> Tensor:
    """The transpose of broadcasting: sum over the axes that broadcasting to x's shape added or stretched."""
    return x if x.shape == shape else _sum_to_op(x, shape=shape)


# --- fused ops -------------------------------------------------------------------------------------------

_fusion: ContextVar[bool] = ContextVar("fusion", default=True)


@contextmanager
def fusion(enabled: bool) -> Iterator[None]:
    """Context in which fused ops run their kernels (True, the default) or their composed references (False).

    Args:
        enabled: whether kernels of fused ops may run. Ops that are not fused, such as `conv2d`, always run their kernels.
    Example:
        >>> with hg.fusion(False):
        ...     y = hg.batch_norm(np.arange(4.0).reshape(1, 2, 2, 1), np.ones(1), np.zeros(1))
        >>> y.value.ravel().round(2)
        array([-1.34, -0.45,  0.45,  1.34])
    """
    if not isinstance(enabled, bool):
        raise ArgumentError(f"fusion: enabled has {enabled!r}, expected True or False; pass a bool")
    token = _fusion.set(enabled)
    try:
        yield
    finally:
        _fusion.reset(token)


PRECISIONS = ("float32", "tf32", "3xtf32")  # a kernel's attribute `precision` is an index into this tuple
_precision: ContextVar[int] = ContextVar("precision", default=0)


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Context that permits 3x3 convolutions of float32 arrays on a GPU to multiply on tensor cores.

    An op's derivatives use the precision that the op was applied with, wherever they are taken. Host kernels, float64,
    GPUs before compute capability 8.0, images of up to 4 channels and filters of other sizes compute in full precision.

    Args:
        name: "float32" (the default); "tf32": factors are rounded to 11 bits, for a relative error of about 1e-3; "3xtf32":
            three such products of split factors, at most 4 times as far off as float32 (tested on emulated tensor cores).
            Sums are float32 in all of them.
    Raises: ArgumentError for another name.
    Source: Markidis et al. 2018, arXiv:1803.04014 (products of split factors).
    Example:
        >>> with hg.precision("3xtf32"):
        ...     y = hg.conv2d(np.ones((1, 3, 3, 1), np.float32), np.ones((3, 3, 1, 1), np.float32))
        >>> float(y.value[0, 1, 1, 0])
        9.0
    """
    if name not in PRECISIONS:
        raise ArgumentError(f"precision: name has {name!r}, expected one of {', '.join(map(repr, PRECISIONS))}; pass one of them")
    token = _precision.set(PRECISIONS.index(name))
    try:
        yield
    finally:
        _precision.reset(token)


def precision_now() -> int:
    """The attribute `precision` that kernels of an op applied now get."""
    return _precision.get()


def settings() -> tuple[Any, ...]:
    """The settings that, with an op's arguments, decide which kernels it runs."""
    return (_fusion.get(), _precision.get())


class Surroundings:
    """What all steps of one run share: the settings, and the objects that ops keep until the run ends.

    A step that is run again, or transposed, must give the same bits as the first time. So it runs in the same surroundings.
    """

    def __init__(self) -> None:
        self.settings = settings()
        self.kept: dict[Callable[[], Any], Any] = {}

    def run(self, f: Callable[..., R], *args: Any) -> R:
        """f(*args) in these surroundings."""
        return copy_context().run(self._enter, f, args)

    def _enter(self, f: Callable[..., R], args: tuple[Any, ...]) -> R:
        _fusion.set(self.settings[0])
        _precision.set(self.settings[1])
        _kept.set(self.kept)
        return f(*args)


_kept: ContextVar[dict[Callable[[], Any], Any] | None] = ContextVar("kept", default=None)


def kept_in_run(kind: Callable[[], R]) -> R | None:
    """The current run's one object of class `kind`, made when it is first asked for; None outside a run."""
    kept = _kept.get()
    if kept is None:
        return None
    if kind not in kept:
        kept[kind] = kind()
    found: R = kept[kind]
    return found


def _values(tensors: Sequence[Tensor | None]) -> list[Array | None]:
    return [None if t is None else t.value for t in tensors]


def _cotangent(value: Array | None, dot: Array | None) -> Tensor | None:
    """The cotangent as a Tensor; zeros stand for values that are not read."""
    if value is None:
        if dot is None:
            return None
        backend = backend_of(dot)
        value = backend.xp.broadcast_to(backend.number(0.0, dot.dtype), dot.shape[1:])
    return Tensor(value, None if dot is None else Tensor(dot))


class FusedMany(Registered):
    """An op with any number of outputs, defined by a composed reference. Its rungs are kernels: value, vjp, jvp, jvp of vjp.

    A derivative kernel runs only where no tape records its result. Where one does (reverse over reverse, reverse over
    forward), the reference runs instead, which can be differentiated to any order.

    Args:
        arity: number of arguments; None for any.
        reference: (*tensors, **attrs) -> list of Tensors, in ops. It is the definition.
        value: (backend, values, attrs) -> (list of ys, saved), `saved` a dict that the other rungs get.
        jvp: (backend, values, dots, attrs, saved) -> list of y_dots, None for zero; may leave in `saved` what `vjp_jvp` needs.
        vjp: (backend, values, y_bars, want, attrs, saved) -> cotangents, None where not wanted; y_bars are None for zero.
        vjp_jvp: (backend, values, dots, y_bars, y_bar_dots, want, attrs, saved) -> tangents of those cotangents;
            called only where an input carries a tangent, and so always after `jvp`.
            Where this rung or `jvp` is None, the reference computes the tangents.
    """

    batching = "reference"

    def __init__(
        self,
        name: str,
        arity: int | None,
        reference: Callable[..., list[Tensor]],
        *,
        value: Callable[..., tuple[list[Array], Any]],
        jvp: Callable[..., list[Array | None]] | None,
        vjp: Callable[..., list[Array | None]],
        vjp_jvp: Callable[..., list[Array | None]] | None,
    ) -> None:
        super().__init__(name, arity)
        self.reference, self.value, self.jvp, self.vjp, self.vjp_jvp = reference, value, jvp, vjp, vjp_jvp

    def outputs(self, *args: Any, **attrs: Any) -> list[Tensor]:
        """The kernels' values; those of the reference inside ``fusion(False)``, and for arrays of `vmap`."""
        composed = not _fusion.get() or is_batched((*args, *attrs.values()))
        return self.reference(*args, **attrs) if composed else super().outputs(*args, **attrs)

    def forward(self, backend: Backend, values: list[Array], attrs: dict[str, Any]) -> tuple[tuple[Array, ...], Any]:
        """The value rung."""
        ys, saved = self.value(backend, values, attrs)
        return tuple(ys), saved

    def push(self, node: Node, inputs: list[Tensor], dots: list[Tensor | None]) -> Sequence[Tensor | None]:
        """The jvp rung, or the reference's tangents where a tape records them or there is no such rung."""
        if self.jvp is None or levels_of([*inputs, *dots]) or is_batched(dots):
            carrying = [Tensor(x.value, d, x.node, x.index) for x, d in zip(inputs, dots, strict=True)]
            return [y.dot for y in self.reference(*carrying, **node.attrs)]
        values = [x.value for x in inputs]
        y_dots = self.jvp(backend_of(*values), values, _values(dots), node.attrs, node.saved)
        return [None if d is None else Tensor(d) for d in y_dots]

    def pull(self, node: Node, bars: list[Tensor | None], want: Sequence[int]) -> Sequence[Tensor | None]:
        """The vjp rung and, under tangents, the jvp-of-vjp rung; the reference where a tape records the result."""
        dots = [t.dot for t in node.inputs]
        bar_dots = [None if b is None else b.dot for b in bars]
        curved = any(d is not None for d in dots)
        beyond = levels_of([*node.inputs, *bars, *dots, *bar_dots]) or is_batched([*bars, *dots, *bar_dots])
        if beyond or curved and self.vjp_jvp is None:
            tape = Tape()

            def taped() -> tuple[list[Tensor], list[Tensor]]:
                watched = [tape.watch(t) for t in node.inputs]
                return watched, list(self.reference(*watched, **node.attrs))

            watched, outs = tape.run(taped)
            return tape.gradients(outs, bars, watched)
        values, raw, raw_dots = [t.value for t in node.inputs], _values(bars), _values(bar_dots)
        backend = backend_of(*values)
        read, want = [w is True for w in want], [bool(w) for w in want]
        first: list[Array | None] = [None] * len(read)
        if any(read):
            first = self._recalled_vjp(backend, values, raw, read, node)
        if curved:
            assert self.vjp_jvp is not None
            second = self.vjp_jvp(backend, values, _values(dots), raw, raw_dots, want, node.attrs, node.saved)
        elif count := next((len(d) for d in raw_dots if d is not None), 0):
            # the vjp is linear in the cotangents, so the same rung maps their tangents, one direction at a time
            each = [
                self.vjp(backend, values, [None if d is None else d[k, ...] for d in raw_dots], want, node.attrs, node.saved)
                for k in range(count)
            ]
            second = [None if row[0] is None else backend.concatenate([y[None] for y in row], 0) for row in zip(*each, strict=True)]
        else:
            second = [None] * len(first)
        return [_cotangent(g, d) for g, d in zip(first, second, strict=True)]

    def _recalled_vjp(self, b: Backend, values: list[Array], bars: list[Array | None], read: list[bool], node: Node) -> list[Array | None]:
        """The vjp rung; in a recording the one of the step's first run, where that has all that is wanted."""

        def compute() -> list[Array | None]:
            return self.vjp(b, values, bars, read, node.attrs, node.saved)

        if b is not CUDA:
            return compute()
        given = [a for a in bars if a is not None]
        name = f"{self.name}, vjp of {[a is not None for a in bars]}"
        known = recalled(name, [*values, *given], node.attrs, compute)
        if any(w and g is None for w, g in zip(read, known, strict=True)):
            return compute()
        return [g if w else None for w, g in zip(read, known, strict=True)]


class Fused(FusedMany):
    """An op with one output, defined by a composed reference, with kernels for four rungs; see `FusedMany`.

    Args:
        reference: (*tensors, **attrs) -> Tensor, in ops. It is the definition.
        value: (backend, values, attrs) -> (y, saved), `saved` a dict that the other rungs get.
        jvp: (backend, values, dots, attrs, saved) -> y_dot; may leave in `saved` what `vjp_jvp` needs.
        vjp: (backend, values, y_bar, want, attrs, saved) -> cotangents, None where not wanted.
        vjp_jvp: (backend, values, dots, y_bar, y_bar_dot, want, attrs, saved) -> tangents of those cotangents;
            called only where an input carries a tangent, and so always after `jvp`.
    """

    def __init__(
        self,
        name: str,
        arity: int,
        reference: Callable[..., Tensor],
        *,
        value: Callable[..., Any],
        jvp: Callable[..., Array],
        vjp: Callable[..., list[Array | None]],
        vjp_jvp: Callable[..., list[Array | None]],
    ) -> None:

        def one(result: tuple[Array, Any]) -> tuple[list[Array], Any]:
            return [result[0]], result[1]

        super().__init__(
            name,
            arity,
            lambda *args, **attrs: [reference(*args, **attrs)],
            value=lambda *a: one(value(*a)),
            jvp=lambda *a: [jvp(*a)],
            vjp=lambda b, values, bars, *rest: vjp(b, values, bars[0], *rest),
            vjp_jvp=lambda b, values, dots, bars, bar_dots, *rest: vjp_jvp(b, values, dots, bars[0], bar_dots[0], *rest),
        )
