"""The tape: Tensors, recording and the reverse sweep. The transforms built on it are in transforms.py.

A Tensor is a value. It may carry tangents (along a leading axis P of directions), and it may be recorded on tapes. A tape lives for one
gradient. Every derivative rule is itself written in ops. So tapes nest (a gradient of a gradient), and a gradient can run on Tensors that
carry tangents (forward over reverse: a Hessian product in one pass):

* ``apply`` computes an op's value, pushes tangents through it if an input has one, and records a Node on every open tape that an input
  depends on.
* ``Tape.gradients`` walks the nodes backwards and pulls cotangents through each op's vjp rule. The rule's own ops are recorded by the
  tapes that are still open, and they carry the tangents of their inputs.
* A tangent is recorded only by tapes that were already open when it was seeded. So grad(jvp(f)) works, and jvp(grad(f)) does not pay
  for it. A tangent exists only inside the jvp that seeded it.

Source: the structure follows HIPS/autograd (nodes and tracers) and jax's autodidax (vocabulary).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar

import numpy as np

from .backends import HOST, Array, Batched, as_array, backend_of, is_on_gpu
from .errors import DifferentiationError, DTypeError, HypergradError, ShapeError
from .launches import Late, linear_in
from .methods import ArrayMethods
from .state import Jvp, State, current, own_thread, within

P = ParamSpec("P")
R = TypeVar("R")
TANGENTS = 2  # in `want` of a pull: only the tangents of this cotangent are read, and a rule need not compute its values


class Tensor(ArrayMethods):
    """An array that a derivative may flow through.

    Attributes:
        value: the array (NumPy, or CuPy on a GPU), float32 or float64.
        dot: its tangents, a Tensor of shape (P, *shape), or None where they are zero.
        node: the Node that computed it, or None if no open tape depends on it.
        index: which of the node's outputs it is.
    Example:
        >>> t = hg.exp(np.zeros(3))
        >>> t.shape, t.value, np.sum(t).item()
        ((3,), array([1., 1., 1.]), 3.0)
    """

    __slots__ = ("value", "node", "index", "_dot", "_jvp")

    def __init__(self, value: Array, dot: Tensor | None = None, node: Node | None = None, index: int = 0) -> None:
        self.value, self.node, self.index, self._dot = value, node, index, dot
        if dot is not None:
            self._jvp = current().jvp

    @property
    def dot(self) -> Tensor | None:
        """The tangents, inside the jvp that seeded them. A Tensor that outlives its jvp loses its tangents."""
        return self._dot if self._dot is not None and self._jvp is current().jvp else None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the value."""
        return tuple(self.value.shape)

    @property
    def dtype(self) -> Any:
        """NumPy dtype of the value."""
        return self.value.dtype

    @property
    def ndim(self) -> int:
        """Number of axes of the value."""
        return int(self.value.ndim)

    @property
    def size(self) -> int:
        """Number of elements of the value."""
        return int(self.value.size)

    def detach(self) -> Tensor:
        """The same value as a constant to every derivative, in both modes, as `hypergrad.stop_gradient`."""
        return Tensor(self.value)

    def __array__(self, *_: Any, **__: Any) -> Any:
        remedy = "the derivative would be lost silently; use hg.<op>, or .value to leave the tape on purpose"
        raise DTypeError(f"Tensor: NumPy asked for its array, expected an op of hypergrad because {remedy}")

    def __len__(self) -> int:
        return len(self.value)

    def __repr__(self) -> str:
        directions = "" if self.dot is None else f", {self.dot.shape[0]} tangents"
        return f"Tensor({self.value!r}{directions}{', taped' if self.node is not None else ''})"


def refuse_if_followed(t: Tensor, how: str) -> None:
    """Raises DTypeError where `how` would take the number out of a Tensor that a derivative follows.

    Inside a run under a gradient no tape records a Tensor, yet the run's op differentiates its steps. So every Tensor is refused there.
    """
    if t.node is not None and t.node.levels or t._dot is not None and t._jvp is not None and t._jvp.open or current().paused:
        remedy = "the derivative would be lost; use hg.<op>, or .item() to leave the tape on purpose"
        raise DTypeError(f"Tensor: {how} asked for its number, expected an op of hypergrad because {remedy}")


class Rule(Protocol):
    """What the tape needs of an op; see rules.py for the ways to declare one."""

    name: str
    proven: bool

    def forward(self, backend: Any, values: list[Array], attrs: dict[str, Any]) -> tuple[tuple[Array, ...], Any]:
        """Values of the outputs, and what the rules need later (`node.saved`)."""

    def push(self, node: Node, inputs: list[Tensor], dots: list[Tensor | None]) -> Sequence[Tensor | None]:
        """Tangents of the outputs from those of the inputs (jvp); `inputs` carry no tangents."""

    def pull(self, node: Node, bars: list[Tensor | None], want: Sequence[int]) -> Sequence[Tensor | None]:
        """Cotangents of the inputs from those of the outputs (vjp). `want` has False, True or TANGENTS for each input."""


class Node:
    """One op applied: its inputs, its outputs' values and tangents, and the open tapes it is on.

    `op` is None for the alias by which a tape watches a Tensor. To every other tape the alias is an identity op.
    """

    __slots__ = ("op", "inputs", "attrs", "outputs", "saved", "levels", "jvp")

    def __init__(self, op: Rule | None, inputs: list[Tensor], attrs: dict[str, Any], saved: Any, levels: int) -> None:
        self.op, self.inputs, self.attrs, self.saved, self.levels = op, inputs, attrs, saved, levels
        self.outputs: list[tuple[Array, Tensor | None]] = []
        self.jvp: Jvp | None = current().jvp  # the one that the tangents belong to

    def results(self) -> list[Tensor]:
        """All outputs as Tensors, without this node where no tape records it."""
        node = self if self.levels else None
        return [Tensor(v, d, node, i) for i, (v, d) in enumerate(self.outputs)]

    def output(self, i: int = 0) -> Tensor:
        """Output `i` as a Tensor. Made anew each time: a stored one would be a reference cycle."""
        value, dot = self.outputs[i]
        return Tensor(value, dot if self.jvp is current().jvp else None, self, i)


def primal(t: Tensor) -> Tensor:
    """The same value and place on the tapes, without tangents."""
    return t if t._dot is None else Tensor(t.value, None, t.node, t.index)


def untaped(t: Tensor) -> Tensor:
    """The same value off every tape, with its tangents."""
    return Tensor(t.value, t.dot)


def levels_of(tensors: Sequence[Tensor | None]) -> int:
    """Bit mask of the recording tapes on which any of the Tensors depends.

    Raises: DifferentiationError if a gradient of another thread follows one of them, or if one entered a run through a closure.
    """
    mask = 0
    for t in tensors:
        if t is not None and t.node is not None:
            mask |= t.node.levels
    return _recorded(current(), mask) if mask else 0


def _recorded(state: State, mask: int) -> int:
    """The tapes in `mask` that record now."""
    if mask & ~state.open or not own_thread(state):
        raise _other_thread("op")
    if mask & state.paused:
        raise DifferentiationError(
            "unroll, scan, accumulate, checkpoint: the function uses a Tensor from outside that a gradient follows, expected arguments "
            "only because the derivative would be lost; pass the Tensor through hparams, through shared (accumulate) or as an argument"
        )
    return mask & state.active


def _other_thread(name: str) -> DifferentiationError:
    why = "one thread because a tape belongs to the thread that opened it; compute in that thread, or pass .value to leave the tape"
    return DifferentiationError(f"{name}: an argument is followed by a gradient or jvp of another thread, expected {why}")


def apply(op: Rule, args: Sequence[Any], attrs: dict[str, Any]) -> list[Tensor]:
    """Run `op` on Tensors, arrays or Python scalars: value, tangents, and a Node where a tape depends on it.

    Raises: DTypeError for float32 beside float64 or for no floating array at all; ShapeError for shapes
        that the op cannot take; DifferentiationError for a Tensor that is followed in another thread.
    """
    inputs = to_tensors(op.name, args)
    values = [t.value for t in inputs]
    try:
        backend = backend_of(*values)
        outs, saved = op.forward(HOST, values, attrs) if backend is HOST else backend.applied(op, values, attrs)
    except ValueError as error:
        if isinstance(error, HypergradError):
            raise
        shapes = ", ".join(str(v.shape) for v in values)
        given = {k: v for k, v in attrs.items() if not hasattr(v, "shape")}
        raise ShapeError(
            f"{op.name}: arguments have shapes {shapes} and attributes {given}, expected shapes that fit "
            f"because: {error}; reshape or broadcast them first"
        ) from error
    state, levels, moving = current(), 0, False
    for t in inputs:
        if t.node is not None:
            levels |= t.node.levels
        if t._dot is not None:
            if t._jvp is state.jvp:
                moving = True
            elif t._jvp is not None and t._jvp.open:
                raise _other_thread(op.name)
    if moving and not own_thread(state):
        raise _other_thread(op.name)
    if levels:
        levels = _recorded(state, levels)
    results = [np.asarray(v) if isinstance(v, np.generic) else v for v in outs]  # 0-d results stay arrays
    if not levels and not moving:
        return [Tensor(v) for v in results]
    node = Node(op, inputs, attrs, saved, levels)
    node.outputs = [(v, None) for v in results]
    record(node)  # before its tangents are computed: their ops come later on the tape
    if moving:
        jvp = state.jvp
        assert jvp is not None
        arguments = node, [primal(t) for t in inputs], [t.dot for t in inputs]
        mask = state.active & jvp.levels
        dots = op.push(*arguments) if mask == state.active else within(state.recording(mask), op.push, *arguments)
        node.outputs = list(zip(results, dots, strict=True))
        if any([d is not None and d.node is not None for d in dots]):
            jvp.carriers.append(node)
    return node.results()


def record(node: Node) -> None:
    """Put a node on every open tape it depends on."""
    if node.levels:
        for tape in current().tapes:
            if node.levels & tape.bit:
                tape.nodes.append(node)
                if not (node.op is None or node.op.proven):
                    tape.proven = False


def to_tensors(name: str, args: Sequence[Any]) -> list[Tensor]:
    """Arguments of the op `name` as Tensors of one floating dtype, to which scalars, bools and integers are converted."""
    first: Any = None
    for a in args:
        if type(a) is not Tensor:
            break
        kind = a.value.dtype
        if kind is not first:
            if first is not None and kind != first:
                break
            first = kind
    else:
        if first is not None:  # the common case, and the fast one
            return list(args)
    dtype = None
    raw: list[Any] = []
    for a in args:
        if not isinstance(a, Tensor) and type(a) not in (int, float, bool):
            a = as_array(a)
        raw.append(a)
        if isinstance(a, (int, float)) or a.dtype.kind in "biu":
            continue
        if a.dtype.kind != "f" or a.dtype.itemsize not in (4, 8):
            raise DTypeError(f"{name}: argument has dtype {a.dtype}, expected float32 or float64; convert it with astype")
        if dtype is None:
            dtype = a.dtype
        elif a.dtype != dtype:
            raise DTypeError(
                f"{name}: arguments have dtypes {dtype} and {a.dtype}, expected one dtype because mixing "
                "would change the precision silently; convert one with astype"
            )
    if dtype is None:
        if all(isinstance(a, (int, float)) for a in raw):
            return [Tensor(np.asarray(a, np.float64)) for a in raw]
        raise DTypeError(
            f"{name}: arguments have dtypes {[str(getattr(a, 'dtype', type(a).__name__)) for a in raw]}, "
            "expected float32 or float64; convert one with astype"
        )
    backend = backend_of(*[a.value if isinstance(a, Tensor) else a for a in raw])

    def convert(a: Any) -> Tensor:
        if backend.name == "cuda" and isinstance(a, np.ndarray):
            a = a.item()  # 0-d, or backend_of would have refused it
        return Tensor(backend.number(a, dtype) if isinstance(a, (int, float)) else backend.xp.asarray(a, dtype))

    return [a if isinstance(a, Tensor) else convert(a) for a in raw]


def with_tangents(f: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """f(*args, **kwargs) where Tensors may carry tangents; one level only."""
    state = current().with_tangents()
    jvp = state.jvp
    assert jvp is not None
    try:
        return within(state, f, *args, **kwargs)
    finally:
        jvp.open = False
        for node in jvp.carriers:  # a rule may compute a tangent from the output, which makes a reference cycle
            node.outputs = [(value, None) for value, _ in node.outputs]
        jvp.carriers.clear()


class Tape:
    """The record of one gradient: `run` a function that watches its variables, then ask for `gradients`.

    Attributes:
        nodes: what was recorded, in order.
        proven: whether the derivative rules of every op on the tape are proven to be right; see rules.Registered.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.leaves: list[Node] = []
        self.bit, self.proven = 0, True

    def run(self, f: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """f(*args, **kwargs) with this tape open."""
        try:
            return within(current().with_tape(self), f, *args, **kwargs)
        finally:
            # The next tape may reuse the bit, so these nodes give it up.
            for node in self.nodes + self.leaves:
                node.levels &= ~self.bit

    def watch(self, x: Tensor) -> Tensor:
        """An alias of `x` whose cotangent this tape can give. Enclosing tapes see an identity op."""
        node = Node(None, [x], {}, None, levels_of([x]))
        node.outputs = [(x.value, x.dot)]
        record(node)
        node.levels |= self.bit
        self.leaves.append(node)
        return node.output()

    def gradients(
        self, outputs: list[Tensor], out_bars: Sequence[Tensor | None], leaves: Sequence[Tensor], *, keep: bool = False, values: bool = True
    ) -> list[Tensor | None]:
        """Cotangents of the watched `leaves`, from those of `outputs`; None where there is no dependence.

        Args:
            outputs: Tensors computed while the tape was open.
            out_bars: their cotangents, or None.
            leaves: what `watch` returned.
            keep: False frees each node as soon as it is used, so that memory falls during the sweep. This empties
                `outputs`, and the caller must keep no other reference to them.
            values: False where only the tangents of the cotangents are read. Their values then mean nothing.
        """
        mine = {id(t.node) for t in leaves}
        on_tape = mine | {id(n) for n in self.nodes}
        unread = set() if values else linear_in(mine, self.nodes)  # nodes the values of whose cotangents nothing reads
        late = Late(mine, self.nodes) if outputs and is_on_gpu(outputs[0].value) else None
        pending: dict[int, list[Tensor | None]] = {}

        def add(t: Tensor, bar: Tensor | None) -> None:
            if bar is None or t.node is None or id(t.node) not in on_tape:
                return
            if type(bar.value) is Batched:
                bar = bar.value.level.settled(bar, t.value)
            if late is not None and late.takes(t.node, bar):
                return
            slots = pending.setdefault(id(t.node), [None] * len(t.node.outputs))
            old = slots[t.index]
            slots[t.index] = bar if old is None else old + bar

        for i, bar in enumerate(out_bars):
            add(outputs[i], bar)
        if not keep:
            outputs.clear()

        def sweep(nodes: list[Node]) -> None:
            while nodes:
                node = nodes.pop()
                if late is not None and late.puts_off(node) or (slots := pending.pop(id(node), None)) is None:
                    continue
                want = [t.node is not None and id(t.node) in on_tape and (id(t.node) not in unread or TANGENTS) for t in node.inputs]
                bars = slots if node.op is None else node.op.pull(node, slots, want)
                for t, bar in zip(node.inputs, bars, strict=True):
                    add(t, bar)

        sweep(list(self.nodes) if keep else self.nodes)
        if late is None:
            return [(pending[id(t.node)][0] if id(t.node) in pending else None) for t in leaves]
        sweep(late.rest(pending, add))
        return late.totals([t.node for t in leaves])
