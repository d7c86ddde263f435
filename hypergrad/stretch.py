"""Instructions that need no Python: kernels, NumPy's elementwise functions and reductions, conversions to floating-point numbers, guards.

A program makes one call of those that follow one another; csrc/stretch.h does them in order. What they read and write is given by
addresses: what lies in the arena never moves, all else lies in the array of a register, which each run fills anew. A view takes no call.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate
from operator import getitem, mul
from typing import Any, NamedTuple

import numpy as np

from .arena import ALIGNMENT
from .backends.host import HOST, MISSING
from .backends.tracing import Instruction, Like, Slot, replace, run_kernel
from .errors import ArgumentError
from .profiling import Label

if MISSING is None:
    from . import _host

# NumPy's functions that round once or not at all: the bits of an element depend on its operands alone.
_ROUND_ONCE = {
    *(np.add, np.subtract, np.multiply, np.divide, np.negative, np.absolute, np.sqrt, np.square, np.less, np.less_equal, np.greater),
    *(np.greater_equal, np.equal, np.not_equal, np.logical_and, np.logical_or, np.logical_not),
}
# The same but for the sign of a zero, which may depend on the elements beside it; so threads do not share them.
_EXACT = {*_ROUND_ONCE, np.maximum, np.minimum, np.sign, np.reciprocal, np.positive, np.floor, np.ceil, np.isfinite, np.isnan, np.remainder}
_REDUCING = (np.add, np.multiply, np.maximum, np.minimum, np.logical_and, np.logical_or)
MOST_REDUCED = 2**18  # elements: of more, NumPy's own call takes no time beside the work
_NUMBERS = "?bBhHiIlLqQfd"  # characters of dtypes


class Loop(NamedTuple):
    """An inner loop of an elementwise function.

    Attributes:
        call: the function; `numpy.copyto` for a conversion.
        loop: the number of its loop; 0 for a conversion.
        types: characters of the operands' dtypes, the result last.
    """

    call: Callable[..., Any]
    loop: int
    types: str


class Reduction(NamedTuple):
    """A reduction by an inner loop of a function of two arguments.

    Attributes:
        call: the function.
        loop: the number of its loop.
        dtype, shape, strides: of the array.
        axes: that are reduced.
    """

    call: Any
    loop: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def start(self) -> Any:
        """What the elements are combined with; None where that is the first of them."""
        return None if self.call.identity is None else np.asarray(self.call.identity, self.dtype)

    def spread(self, strides: Sequence[int]) -> tuple[int, ...]:
        """Strides of the result with 0 for reduced axes. Args: strides: with such axes or without them."""
        kept = iter(strides if len(strides) < len(self.shape) else [s for i, s in enumerate(strides) if i not in self.axes])
        return tuple([0 if i in self.axes else next(kept) for i in range(len(self.shape))])


class RowLoop(NamedTuple):
    """An element of each row by its number: slots of the elements, of the numbers and of the rows.

    Attributes:
        places: whether the elements go to rows of zeros, instead of coming from them.
    """

    places: bool
    elements: int
    numbers: int
    rows: int


PLACING: list[Callable[..., Any]] = []  # values of ops f(backend, x, *, index, size, lead) that place x[...] in a row of zeros
KERNEL, VIEW = "kernel", "view"
Way = Loop | Reduction | RowLoop | str | None

# Functions whose result is a view that the shapes alone decide, or a copy; which of the two, the strides decide.
_VIEWS = [
    *(np.ndarray.reshape, np.ndarray.transpose, np.ndarray.ravel, np.ndarray.squeeze, np.ndarray.swapaxes, np.ndarray.diagonal),
    *(np.reshape, np.transpose, np.ravel, np.squeeze, np.swapaxes, np.moveaxis, np.rollaxis, np.expand_dims, np.broadcast_to, np.flip),
    *(np.atleast_1d, np.atleast_2d, np.atleast_3d, np.diagonal, np.flipud, np.fliplr, np.rot90, getitem),
]


class Slots:
    """What a program knows of its slots.

    Args:
        likes, owners, offsets: as a recording has them.
        code: the program's instructions.

    Attributes:
        registers: the array of each slot, None where a run brings or makes it.
        fixed: slots whose registers never change.
        bases: of each slot, the slot in whose array it lies at a place that does not depend on numbers.
    """

    def __init__(self, likes: list[Any], owners: Sequence[int], offsets: Sequence[int], code: Sequence[Instruction]) -> None:
        self.likes, self.owners = likes, owners
        self.registers: list[Any] = [None] * len(likes)
        self.fixed: set[int] = set()
        self.bases, self._offsets = [*range(len(likes))], [0] * len(likes)
        for one in code:
            for n in one.writes if is_view(one, owners) else ():
                (read,) = one.reads
                self.bases[n], self._offsets[n] = self.bases[read], self._offsets[read] + offsets[n] - offsets[read]

    def can_ask(self, number: int) -> bool:
        """Whether a stretch can read the truth value."""
        return MISSING is None and self.likes[number].dtype.char == "?"

    def can_make(self, numbers: Sequence[int]) -> bool:
        """Whether a stretch can make these arrays: each in the arena, or with its elements side by side."""
        return all(n in self.fixed or _is_contiguous(self.likes[n]) for n in numbers)

    def address(self, number: int) -> tuple[int, int]:
        """(-1, address) of what stays, else the register it lies in, and how far from the start of that array."""
        if number in self.fixed:
            return -1, self.registers[number].ctypes.data
        base, offset = self.bases[number], self._offsets[number]
        return (-1, self.registers[base].ctypes.data + offset) if base in self.fixed else (base, offset)


def describe(leaves: list[Any], tensor: type, arguments: list[Any], other: Callable[[Any, list[Any]], Any]) -> tuple[bytes, list[Any]]:
    """Element types, shapes and strides of the leaves that are arrays or plain Tensors, as bytes, and `other(leaf, arguments)` of every
    other leaf. The arrays are appended to `arguments`."""
    return _host.describe(leaves, tensor, arguments, other) if MISSING is None else (b"", [other(x, arguments) for x in leaves])


def copy_arguments(targets: list[Any], arguments: Sequence[Any], places: Sequence[int]) -> None:
    """Copies the arguments at these places, each as many elements that lie side by side as its target."""
    if MISSING is None:
        _host.copy_arguments(targets, arguments, places)
        return
    for target, i in zip(targets, places, strict=True):
        np.copyto(target, arguments[i])


def is_view(one: Instruction, owners: Sequence[int]) -> bool:
    """Whether all that the instruction makes are views, of places that do not depend on numbers."""
    in_places = len(one.reads) == 1 and any(one.call is f for f in _VIEWS) and not (one.call is getitem and slots_in(one.args[1:]))
    return in_places and all(owners[n] != n for n in one.writes)


def way_of(one: Instruction, slots: Slots) -> Way:
    """How an instruction is done without Python: as a KERNEL or VIEW, or by a loop; None where it needs Python."""
    likes = slots.likes
    if MISSING is not None or one.errors is not None or not all(_is_plain(likes[n]) for n in (*one.reads, *one.writes)):
        return None
    if not all(slots.registers[n].flags.aligned for n in one.reads if n in slots.fixed):
        return None  # of the user's own arrays
    if not is_view(one, slots.owners) and not slots.can_make(one.writes):
        return None
    if one.call is run_kernel:
        numbers = {n for n in one.reads if likes[n] is None}
        direct = {x.number for x in one.kwargs.values() if type(x) is Slot}
        return KERNEL if numbers <= direct else None
    if is_view(one, slots.owners):
        return VIEW
    if len(one.writes) != 1 or type(one.layout) is not Slot or any(likes[n] is None for n in one.reads):
        return None
    if slots.owners[one.writes[0]] != one.writes[0]:
        return None
    if one.call == HOST.matmul_into:
        return KERNEL if _is_product(one, likes) else None
    return _row_loop_of(one, likes) or _reduction_of(one, likes) or _loop_of(one, likes)


def _row_loop_of(one: Instruction, likes: Sequence[Any]) -> RowLoop | None:
    written = one.writes[0]
    if one.call is np.take_along_axis and len(one.args) == 2 and len(one.reads) == 2 and one.kwargs == {"axis": -1}:
        rows, numbers = (x.number for x in one.args)
        found = RowLoop(False, written, numbers, rows)
        fits = likes[numbers].shape[-1:] == (1,) and likes[rows].shape[:-1] == likes[numbers].shape[:-1]
    elif any(one.call is f for f in PLACING) and len(one.reads) == 2 and type(one.kwargs.get("index")) is Slot:
        found = RowLoop(True, one.args[1].number, one.kwargs["index"].number, written)
        fits = _is_contiguous(likes[written])
    else:
        return None
    kinds = likes[found.rows].dtype.char, likes[found.numbers].dtype.char
    return found if fits and kinds[0] in "fd" and kinds[1] == "l" and likes[found.rows].shape[-1] else None


def slots_in(x: Any) -> list[int]:
    """Numbers of the slots inside x."""
    found: list[int] = []
    replace(x, Slot, lambda s: found.append(s.number))
    return found


def _is_contiguous(like: Like) -> bool:
    steps = [*accumulate(like.shape[:0:-1], mul, initial=like.dtype.itemsize)][::-1]
    return all(size == 1 or stride == step for size, stride, step in zip(like.shape, like.strides, steps, strict=False))


def _is_plain(like: Like | None) -> bool:
    """Whether the array's elements are numbers of this machine at their proper places, or it is the number of a step."""
    return like is None or like.dtype.char in _NUMBERS and like.dtype.isnative and all(s % like.dtype.itemsize == 0 for s in like.strides)


def _is_product(one: Instruction, likes: Sequence[Any]) -> bool:
    """Whether the kernel reads the factors as they lie, and not copies of them."""
    x, y, out = _samples([likes[s.number] for s in (*one.args, one.layout)])
    return all(np.may_share_memory(a, b) or not a.size for a, b in zip(HOST.product(x, y, out).values(), (x, y, out), strict=True))


def _samples(likes: Sequence[Like]) -> list[Any]:
    """Arrays of these kinds that share no memory. It is only reserved: nobody reads or writes it."""
    spans = [[stride * (size - 1) for stride, size in zip(x.strides, x.shape, strict=True) if size] for x in likes]
    before = [-sum(min(s, 0) for s in span) for span in spans]
    sizes = [-(-(sum(map(abs, span)) + x.dtype.itemsize) // ALIGNMENT) * ALIGNMENT for span, x in zip(spans, likes, strict=True)]
    *starts, total = accumulate(sizes, initial=0)
    memory = mmap.mmap(-1, max(total, 1))
    return [np.ndarray(x.shape, x.dtype, memory, start + b, x.strides) for x, start, b in zip(likes, starts, before, strict=True)]


def _loop_of(one: Instruction, likes: Sequence[Any]) -> Loop | None:
    out = likes[one.writes[0]]
    if one.call is np.ndarray.astype:
        types = likes[one.reads[0]].dtype.char + out.dtype.char
        return Loop(np.copyto, 0, types) if types[0] in "?ilfd" and types[1] in "fd" else None
    if not isinstance(one.call, np.ufunc) or one.kwargs or one.call.nout != 1 or one.call.nin != len(one.args) or one.call.nargs > 4:
        return None
    kinds = [likes[x.number].dtype.char if type(x) is Slot else None for x in one.args]
    if any(kind is None and type(x) not in (bool, int, float) for kind, x in zip(kinds, one.args, strict=True)):
        return None
    for index, types in enumerate(one.call.types):
        takes, gives = types.split("->")
        if gives == out.dtype.char and all(kind in (None, wanted) for kind, wanted in zip(kinds, takes, strict=True)):
            found = Loop(one.call, index, takes + gives)
            shape_and_strides = [likes[n][0::2] for n in (*one.reads, *one.writes)]
            alike = one.call.nin == 1 and shape_and_strides[0] == shape_and_strides[-1]  # then one call of the loop does all elements
            return found if (one.call in _EXACT or alike) and _is_numpys(found) else None
    return None


def _reduction_of(one: Instruction, likes: Sequence[Any]) -> Reduction | None:
    ufunc, out = getattr(one.call, "__self__", None), likes[one.writes[0]]
    if not isinstance(ufunc, np.ufunc) or ufunc not in _REDUCING or one.call.__name__ != "reduce":
        return None
    if len(one.args) != 1 or not one.kwargs.keys() <= {"axis", "keepdims"}:
        return None
    like = likes[one.reads[0]]
    axis = one.kwargs.get("axis", 0)
    axes = range(len(like.shape)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    kind = like.dtype.char
    types = "??->?" if kind == "?" else f"{kind}{kind}->{kind}"
    if like.dtype != out.dtype or types not in ufunc.types or not 0 < like.nbytes <= MOST_REDUCED * like.dtype.itemsize:
        return None
    found = Reduction(ufunc, ufunc.types.index(types), kind, like.shape, like.strides, tuple([i % len(like.shape) for i in axes]))
    return found if like.shape and _reduces_as_numpy(found) else None


@cache
def _reduces_as_numpy(by: Reduction) -> bool:
    """Whether the elements are combined in NumPy's order: whether numbers at random give NumPy's bits, signs of zeros among them."""
    span = sum([abs(stride) * (size - 1) for size, stride in zip(by.shape, by.strides, strict=True)])
    if min(by.strides) < 0 or span >= 2 * MOST_REDUCED * np.dtype(by.dtype).itemsize:
        return False
    rng = np.random.default_rng(0)
    numbers = 3.0 * rng.standard_normal(span // np.dtype(by.dtype).itemsize + 1)
    numbers[rng.random(len(numbers)) < 0.3] = 0.0
    x = np.ndarray(by.shape, by.dtype, np.copysign(numbers, rng.standard_normal(len(numbers))).astype(by.dtype).data, 0, by.strides)
    with np.errstate(all="ignore"):
        expected = np.asarray(by.call.reduce(x, axis=by.axes))
        out = np.empty(expected.shape, expected.dtype)
        stretch = _host.Stretch()
        try:
            stretch.add_reduction(by.call, by.loop, *_ends(by, (-1, x.ctypes.data), (-1, out.ctypes.data), out.strides))
        except ArgumentError:
            return False
        stretch([], HOST.empty)
    return bool(out.tobytes() == expected.tobytes())


def _ends(by: Reduction, source: tuple[int, int], target: tuple[int, int], strides: tuple[int, ...]) -> Any:
    """The other arguments of `add_reduction`, for a result with these strides."""
    dtype = np.dtype(by.dtype)

    def again(x: Any, out: Any) -> None:
        by.call.reduce(x, axis=by.axes, keepdims=True, out=out)

    return (*source, by.strides, dtype), (*target, by.spread(strides), dtype), by.shape, by.start, again


@cache
def _is_numpys(loop: Loop) -> bool:
    """Whether NumPy's table of loops is what csrc/stretch.h takes it for: whether the loop gives the function's bits on some numbers."""
    takes = [np.array([1, 0, 3, 2, 1]).astype(kind) for kind in loop.types[:-1]]
    with np.errstate(all="ignore"):
        expected = loop.call(*takes)
        out = np.zeros_like(expected)
        stretch = _host.Stretch()
        try:
            operands = [(-1, x.ctypes.data, x.strides, x.dtype) for x in (*takes, out)]
            stretch.add_ufunc(loop.call, loop.loop, operands, out.shape, False)
        except ArgumentError:
            return False
        stretch([], HOST.empty)
    return bool(out.tobytes() == expected.tobytes())


def _refuse_number(*_: Any) -> None:
    raise IndexError("a row has no element of that number")


class Stretch:
    """Instructions that follow one another and need no Python, as one call.

    Attributes:
        labels: of the instructions, for a profile.
        dead: registers that nothing reads after the stretch.
    """

    def __init__(self, slots: Slots) -> None:
        self.labels: list[Label] = []
        self.dead: list[int] = []
        self._slots, self._registers = slots, slots.registers
        self._native = _host.Stretch()
        self._known: set[int] = set()
        self._numbers: list[Any] = []  # arrays of Python's numbers, which the loops read

    def __call__(self) -> bool:
        """Runs them; whether all guards had their answers."""
        answered: bool = self._native(self._registers, HOST.empty)
        return answered

    def profiled(self, run: Callable[[Label, Callable[[], Any]], None]) -> bool:
        """Runs them one by one by `run`."""
        answers: list[bool] = []
        self._native.begin(self._registers, HOST.empty)
        for i, label in enumerate(self.labels):
            run(label, lambda i=i: answers.append(self._native.run(i, i + 1)))  # type: ignore[misc]
            if not answers[-1]:
                return False  # what follows may rely on the answer, as a kernel does on labels that are in range
        self._native.end(self._registers)
        return True

    def close(self) -> None:
        """Ends the stretch."""
        self._native.let_go(self.dead)

    def add(self, one: Instruction, way: Any, label: Label) -> None:
        """Adds an instruction, whose way is neither None nor a VIEW. What it makes outside of the arena is allocated by each run."""
        for n in one.writes:
            if n not in self._slots.fixed:
                self._expect(n, make=True)
        self.labels.append(label)
        if way is KERNEL:
            self._add_kernel(one)
            return
        shape, strides = self._slots.likes[one.writes[0]][0::2]
        if type(way) is RowLoop:
            self._add_row_loop(way)
            return
        if type(way) is Reduction:
            ends = _ends(way, self._address(one.reads[0]), self._address(one.writes[0]), strides)
            self._native.add_reduction(way.call, way.loop, *ends)
            return
        operands = [self._operand(x, kind, shape) for x, kind in zip((*one.args[: len(way.types) - 1], one.layout), way.types, strict=True)]
        if way.call is np.copyto:
            self._native.add_conversion(way.types, operands, shape, lambda x, out: np.copyto(out, x, casting="unsafe"))
        else:
            self._native.add_ufunc(way.call, way.loop, operands, shape, way.call in _ROUND_ONCE)

    def ask(self, number: int, answer: bool) -> None:
        """Adds a guard: the truth value in that slot must be the answer."""
        self._native.add_guard(*self._address(number), answer)
        self.labels.append(("guard", "", 0, 0))

    def _expect(self, number: int, make: bool = False) -> None:
        if number not in self._known:
            self._known.add(number)
            like = self._slots.likes[number]
            self._native.expect(number, like.shape, like.strides, like.dtype, make)

    def _address(self, number: int) -> tuple[int, int]:
        found = self._slots.address(number)
        if found[0] >= 0:
            self._expect(found[0])
        return found

    def _operand(self, x: Any, kind: str, shape: tuple[int, ...]) -> Any:
        """As csrc/stretch.h takes it, spread over the shape."""
        if type(x) is not Slot:
            self._numbers.append(np.asarray(x, kind))
            return -1, self._numbers[-1].ctypes.data, (0,) * len(shape), self._numbers[-1].dtype
        like = self._slots.likes[x.number]
        ahead = len(shape) - len(like.shape)
        strides = [0 if own != size else s for s, own, size in zip(like.strides, like.shape, shape[ahead:], strict=True)]
        return *self._address(x.number), (*(0,) * ahead, *strides), like.dtype

    def _add_row_loop(self, way: RowLoop) -> None:
        row = self._slots.likes[way.rows]
        shape = row.shape[:-1]

        def operand(number: int, axes: int) -> Any:
            """Spread over the shape by its first axes."""
            like = self._slots.likes[number]
            ahead = len(shape) - axes
            strides = [0 if own != size else s for s, own, size in zip(like.strides[:axes], like.shape[:axes], shape[ahead:], strict=True)]
            return *self._address(number), (*(0,) * ahead, *strides), like.dtype

        axes = len(shape)
        rows, elements = operand(way.rows, axes), operand(way.elements, axes)
        numbers = operand(way.numbers, len(self._slots.likes[way.numbers].shape) if way.places else axes)
        operands = [elements, numbers, rows] if way.places else [rows, numbers, elements]
        self._native.add_row_loop(way.places, operands, shape, row.shape[-1], row.strides[-1], _refuse_number)

    def _add_kernel(self, one: Instruction) -> None:
        likes, fixed = self._slots.likes, self._slots.fixed
        moving = [n for n in {*one.reads, *one.writes} if n not in fixed and likes[n] is not None]
        numbers = [(k, x.number) for k, x in one.kwargs.items() if type(x) is Slot and likes[x.number] is None]
        given = dict(zip(moving, _samples([likes[n] for n in moving]), strict=True)) | {number: 1 for _, number in numbers}
        args, kwargs, results = replace(
            (one.args, one.kwargs, one.layout), Slot, lambda s: given[s.number] if s.number in given else self._registers[s.number]
        )
        if one.call is run_kernel:
            name, arguments, places = one.args[0], {**kwargs, **results}, [(given[n], *self._address(n)) for n in moving]
        else:  # a product, whose arguments are other views of the same arrays
            name, arguments = "matmul", HOST.product(args[0], args[1], results)
            slots = dict(zip(("x", "y", "out"), (*one.args, one.layout), strict=True))
            places = [(arguments[k], *self._address(s.number)) for k, s in slots.items() if s.number in given]
        self._native.add_kernel(name, arguments, places, numbers)
