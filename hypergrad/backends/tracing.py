"""Arrays that write down what is done with them, so that it can be done again on other numbers without the engine.

A `Traced` stands for a NumPy array while a function is recorded. It has the array's shape, dtype and strides, and the numbers of this
one run. Every NumPy function, operator, method and kernel that takes a Traced becomes an `Instruction`, and its results are Traced, too.
So rules, tapes and tangents run as always, and what is left of them is a list of instructions; program.py replays it.

What a recording cannot follow raises `Untraceable`: a number taken out of an array (`float`, `int`, `item`, `__array__`), and writing
into an array. A truth value may be asked for: it becomes a guard, which a replay asks again, because another answer could have led
elsewhere.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from operator import attrgetter, getitem
from typing import Any, NamedTuple

import numpy as np

from .host import HOST, HostBackend


class Untraceable(Exception):
    """The function cannot be recorded. Its text says why."""


class Slot(NamedTuple):
    """The place of a value in a recording: where an instruction reads it."""

    number: int


class Instruction(NamedTuple):
    """One call of a function.

    Attributes:
        call: the function.
        args, kwargs: what it takes, with a Slot in the place of each array.
        reads: numbers of those slots, in order.
        writes: slots of the arrays among its results.
        layout: its result, with a Slot in the place of each array.
        errors: how NumPy is told to treat floating-point errors meanwhile; None as in the rest of the recording.
    """

    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    layout: Any
    errors: dict[str, Any] | None


def replace(x: Any, kind: type | tuple[type, ...], by: Callable[[Any], Any]) -> Any:
    """x with `by` of everything in it that is of that kind, inside tuples, lists, dictionaries and slices."""
    if isinstance(x, kind):
        return by(x)
    if type(x) is tuple or type(x) is list:
        return type(x)([replace(y, kind, by) for y in x])
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*[replace(y, kind, by) for y in x])
    if type(x) is dict:
        return {k: replace(y, kind, by) for k, y in x.items()}
    if type(x) is slice:
        return slice(replace(x.start, kind, by), replace(x.stop, kind, by), replace(x.step, kind, by))
    return x


MOST_INSTRUCTIONS = 20_000  # of a recording
_STATIC = (np.shape, np.ndim, np.size, np.result_type, np.can_cast, np.broadcast_shapes, np.iscomplexobj, np.isrealobj)
_WRITING = (np.copyto, np.put, np.place, np.putmask, np.put_along_axis, np.fill_diagonal)
_ARRAYS = (np.ndarray, np.generic)


class Like(NamedTuple):
    """What an array is but for its numbers."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize


class Trace:
    """The instructions of one run of a function.

    Args:
        whole: as `Replays` has it.

    Attributes:
        likes: of each slot, what its array is like; None for the number of a step.
        owners: of each slot, the slot whose memory it lies in: its own, or that of the array that it is a view of.
        offsets: of each slot, how many bytes after its owner's first element its own is.
        inputs: slots of the arguments.
        constants: slots of arrays that are no arguments and no results, and so the same in every replay.
        closed_over: slots of those constants whose elements may change between two replays; see `closed_over_array`.
        instructions: in order.
        guards: of each truth value that was asked for, its slot and the answer.
        reason: why the function cannot be replayed; None where it can. It is kept here as well as raised, because the function might
            catch what is raised.
    """

    def __init__(self, whole: bool = False) -> None:
        self.whole = whole
        self.likes: list[Like | None] = []
        self.owners: list[int] = []
        self.offsets: list[int] = []
        self.inputs: list[int] = []
        self.constants: dict[int, Any] = {}
        self.closed_over: set[int] = set()
        self.instructions: list[Instruction] = []
        self.guards: list[tuple[int, bool]] = []
        self.reason: str | None = None
        self._errors = np.geterr()
        self._known: dict[Any, int] = {}
        self._digests: dict[int, int] = {}

    def input(self, x: Any) -> Traced:
        """An argument to record with."""
        self.inputs.append(len(self.likes))
        return Traced(self, self._new(x), x)

    def closed_over_array(self, x: Any) -> Traced:
        """An array that is no argument, to record with: the function closes over it, or NumPy has made it."""
        if id(x) not in self._known:
            self.closed_over.add(self._constant(id(x), x))
        return Traced(self, self._known[id(x)], x)

    def agrees(self, other: Trace) -> bool:
        """Whether both are the same but for the numbers: instructions, guards, and constants with their elements."""
        if len(self.instructions) != len(other.instructions) or self.guards != other.guards:
            return False
        if self.constants.keys() != other.constants.keys():
            return False
        pairs = zip(self.instructions, other.instructions, strict=True)
        if any(identity(a.call) != identity(b.call) or repr(a[1:]) != repr(b[1:]) for a, b in pairs):
            return False
        return all(same_array(x, other.constants[n]) for n, x in self.constants.items())

    def does_as(self, earlier: Trace) -> bool:
        """Whether the earlier recording is still that of the function, which may have taken another branch now."""
        branch, other = ([answer for _, answer in guards] for guards in (self.guards, earlier.guards))
        return branch != other or earlier.is_unchanged(closed_over=False) and self.agrees(earlier)

    def addresses(self) -> dict[int, int]:
        """Of each constant that may be written to between two replays, the address."""
        return {n: self.constants[n].ctypes.data for n in self.closed_over}

    def is_unchanged(self, closed_over: bool = True) -> bool:
        """Whether the constants still have the elements that they had when they were first read. Args: closed_over: of those, too."""
        left_out = frozenset() if closed_over else self.closed_over
        return all(digest == HOST.digest(self.constants[n]) for n, digest in self._digests.items() if n not in left_out)

    def _new(self, x: Any, base: tuple[int, Any] | None = None) -> int:
        """A new slot. Args: base: number and array of the slot that x is a view of, if there is one."""
        number = len(self.likes)
        self.likes.append(None if type(x) is int else Like(x.shape, x.dtype, x.strides))
        self.owners.append(number if base is None else self.owners[base[0]])
        self.offsets.append(0 if base is None else self.offsets[base[0]] + x.ctypes.data - base[1].ctypes.data)
        return number

    def refuse(self, why: str) -> Untraceable:
        """The error to raise."""
        self.reason = self.reason or why
        return Untraceable(why)

    def slot(self, x: Any) -> Slot:
        """The slot of a value: of a Traced its own, of an array that of a constant."""
        if type(x) is Traced:
            if x.recording is not self:
                raise self.refuse("an array of another recording is used")
            return Slot(x.number)
        key = (x.dtype, x.tobytes()) if not x.ndim else id(x)  # numbers are the same where they are equal
        return Slot(self._known[key] if key in self._known else self._constant(key, x))

    def _constant(self, key: Any, x: Any) -> int:
        number = self._known[key] = self._new(x)
        self.constants[number], self._digests[number] = x, HOST.digest(x)
        return number

    def emit(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The function's result, recorded."""
        if len(self.instructions) == MOST_INSTRUCTIONS:
            raise self.refuse(f"it has more than {MOST_INSTRUCTIONS} instructions, whose recording would take long")
        read: dict[int, Any] = {}

        def slot(x: Any) -> Slot:
            found = self.slot(x)
            read[found.number] = x.value if type(x) is Traced else x
            return found

        own_args, own_kwargs = replace((args, kwargs), (Traced, *_ARRAYS), slot)
        if call is not run_kernel and any(type(x) is int for x in read.values()):
            raise self.refuse("the number of the step is computed with")
        args, kwargs = replace((args, kwargs), Traced, lambda x: x.value)
        result = call(*args, **kwargs)
        writes: list[int] = []

        def write(x: Any) -> Traced:
            x = np.asarray(x)  # a number as an array without axes, of which a reshape is a view in every run
            base = next(((n, y) for n, y in read.items() if isinstance(y, np.ndarray) and np.may_share_memory(x, y)), None)
            writes.append(self._new(x, base))
            return Traced(self, writes[-1], x)

        traced = replace(result, _ARRAYS, write)
        if not writes and result is not None:
            raise self.refuse(
                f"{getattr(call, '__name__', 'a function')} gives a {type(result).__name__}, which control flow could depend on"
            )
        layout = replace(traced, Traced, lambda x: Slot(x.number))
        errors = np.geterr()
        self.instructions.append(
            Instruction(call, own_args, own_kwargs, tuple(read), tuple(writes), layout, None if errors == self._errors else {**errors})
        )
        return traced


def identity(call: Callable[..., Any]) -> tuple[Any, ...]:
    """What all objects for one function have in common: a method of an object is made anew whenever it is asked for."""
    owner = getattr(call, "__self__", None)
    return (id(call), "") if owner is None or isinstance(call, functools.partial) else (id(owner), call.__name__)


def same_array(x: Any, y: Any) -> bool:
    """Whether two arrays have the same bits: those of one place without a look."""
    if x.dtype != y.dtype or x.shape != y.shape:
        return False
    return bool(x.ndim and x.strides == y.strides and x.ctypes.data == y.ctypes.data or x.tobytes() == y.tobytes())


class Traced(np.lib.mixins.NDArrayOperatorsMixin):
    """An array of a recording. See the module."""

    __slots__ = ("__weakref__", "recording", "number", "value")
    __hash__ = object.__hash__

    def __init__(self, recording: Trace, number: int, value: Any) -> None:
        self.recording, self.number, self.value = recording, number, value

    __class__ = property(lambda self: type(self.value))  # code that asks goes the way it goes with an array
    T = property(lambda self: self.transpose())

    def __len__(self) -> int:
        return len(self.value)

    def __repr__(self) -> str:
        return f"Traced(shape {self.value.shape}, {self.value.dtype})"

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if any(hasattr(x, "__array_ufunc__") and not isinstance(x, (Traced, *_ARRAYS)) for x in inputs):
            return NotImplemented  # a Tensor, which knows what to do
        if kwargs.get("out") is not None or method == "at":
            raise self.recording.refuse(f"numpy.{ufunc.__name__} writes into an array")
        return self.recording.emit(ufunc if method == "__call__" else getattr(ufunc, method), inputs, kwargs)

    def __array_function__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if any(not issubclass(t, (Traced, *_ARRAYS)) for t in types):
            return NotImplemented
        if func in _STATIC:
            return func(*replace(args, Traced, lambda x: x.value), **kwargs)
        if func in _WRITING or kwargs.get("out") is not None:
            raise self.recording.refuse(f"numpy.{func.__name__} writes into an array")
        make = _FILLED.get(func)
        if make is not None and len(args) == 1 and not kwargs and self.value.flags.c_contiguous:
            return self.recording.emit(make, (self.value.shape, self.value.dtype), {})  # it reads no numbers
        if func is np.mean and args and self.value.dtype.char in "fd" and self.value.size and kwargs.keys() <= {"axis"}:
            total = self.recording.emit(np.add.reduce, args, kwargs)  # as NumPy's mean does, but for its work in Python
            return self.recording.emit(np.true_divide, (total, self.value.size // total.size), {})
        reduce = _REDUCTIONS.get(func.__name__)
        return self.recording.emit(func, args, kwargs) if reduce is None else self._reduced(reduce, func, *args, **kwargs)

    def _reduced(self, reduce: Callable[..., Any], func: Callable[..., Any], x: Any, axis: Any = None, **kwargs: Any) -> Any:
        """The reduction by its ufunc, as NumPy's function of that name does it."""
        if type(x) is Traced and kwargs.keys() <= {"keepdims"}:
            return self.recording.emit(reduce, (x,), {"axis": axis, **kwargs})
        return self.recording.emit(func, (x, axis), kwargs)

    def __getitem__(self, index: Any) -> Any:
        return self.recording.emit(getitem, (self, index), {})

    def __bool__(self) -> bool:
        self.recording.guards.append((self.number, bool(self.value)))  # a replay asks again
        return bool(self.value)

    def astype(self, dtype: Any, **kwargs: Any) -> Any:
        """As numpy.ndarray.astype; of the same dtype without a copy, since nobody writes."""
        return self if np.dtype(dtype) == self.value.dtype else self.recording.emit(np.ndarray.astype, (self, np.dtype(dtype)), {})


for _each in ("shape", "dtype", "ndim", "size", "nbytes", "itemsize", "strides", "flags"):
    setattr(Traced, _each, property(attrgetter(f"value.{_each}")))


_FILLED = {np.zeros_like: np.zeros, np.ones_like: np.ones, np.empty_like: np.zeros}
_UFUNCS = {"sum": np.add, "max": np.maximum, "amax": np.maximum, "min": np.minimum, "amin": np.minimum}
_REDUCTIONS = {name: ufunc.reduce for name, ufunc in {**_UFUNCS, "any": np.logical_or, "all": np.logical_and}.items()}


def _method(name: str) -> Callable[..., Any]:
    call = getattr(np.ndarray, name)

    def method(self: Traced, *args: Any, **kwargs: Any) -> Any:
        if name in _REDUCTIONS:
            return self._reduced(_REDUCTIONS[name], call, self, *args, **kwargs)
        return self.recording.emit(call, (self, *args), kwargs)

    return method


for _each in (
    *("reshape", "transpose", "ravel", "flatten", "squeeze", "swapaxes", "diagonal", "trace", "copy", "repeat", "take", "compress"),
    *("sum", "mean", "prod", "max", "min", "std", "var", "any", "all", "argmax", "argmin", "argsort", "cumsum", "cumprod", "clip", "round"),
    *("dot", "conj", "nonzero", "searchsorted", "view"),
):
    setattr(Traced, _each, _method(_each))


def _refusal(name: str, what: str, remedy: str = "") -> Callable[..., Any]:
    def refused(self: Traced, *_: Any, **__: Any) -> Any:
        raise self.recording.refuse(f"{what} ({name}) while the step is recorded{remedy}")

    return refused


for _each in ("__array__", "__float__", "__int__", "__complex__", "item", "tolist", "tobytes"):
    setattr(Traced, _each, _refusal(_each, "a number is taken out of an array"))
Traced.__index__ = _refusal(  # type: ignore[attr-defined]
    "__index__", "an array is indexed with one that each step has anew", "; draw rows in batches[t], or write hg.take(array, rows)"
)
for _each in ("__setitem__", "fill", "sort", "partition", "put", "resize", "itemset"):
    setattr(Traced, _each, _refusal(_each, "an array is written to"))


class _Namespace:
    """NumPy for Traced arrays: what NumPy does not hand on to them, and all else as it is."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def asarray(self, x: Any, dtype: Any = None) -> Any:
        """As numpy.asarray."""
        if type(x) is not Traced:
            return np.asarray(x, dtype)
        return x if dtype is None else x.astype(dtype)

    def ascontiguousarray(self, x: Any) -> Any:
        """As numpy.ascontiguousarray."""
        if type(x) is not Traced:
            return np.ascontiguousarray(x)
        return x if x.value.flags.c_contiguous and x.value.ndim else x.recording.emit(np.ascontiguousarray, (x,), {})


class TracingBackend(HostBackend):
    """The host's backend for calls with Traced arrays among their arguments."""

    name = "tracing"
    xp: Any = _Namespace()

    def value(self, value: Callable[..., Any], values: list[Any], attrs: dict[str, Any]) -> Any:
        """An op's value(backend, *values, **attrs), recorded by its parts; as one instruction where a part cannot be recorded."""
        recording = recording_of((values, attrs))
        assert recording is not None
        done, asked, reason = len(recording.instructions), len(recording.guards), recording.reason
        try:
            return value(self, *values, **attrs)
        except (Untraceable, TypeError, ValueError):  # of an array in the place of its Traced, or the value's own, which comes again
            del recording.instructions[done:], recording.guards[asked:]
            recording.reason = reason
            return recording.emit(value, (HOST, *values), attrs)

    def run(self, name: str, /, **arguments: Any) -> dict[str, Any]:
        """Runs one kernel, recorded; it makes its outputs itself."""
        recording = recording_of(arguments)
        if recording is None:
            return HOST.run(name, **arguments)
        written: list[Any] = []
        replace([arguments.get(k) for k in HOST.kernels()[name][1]], (Traced, np.ndarray), written.append)
        if written:
            raise recording.refuse(f"the kernel {name} is given an array to write to")
        found: dict[str, Any] = recording.emit(run_kernel, (name,), arguments)
        return found

    def matmul(self, x: Any, y: Any) -> Any:
        """The matrix product, recorded."""
        recording = recording_of((x, y))
        assert recording is not None
        plain = x.ndim > 1 < y.ndim and x.dtype == y.dtype and x.dtype.char in "fd"  # then the product can be told where to write
        return recording.emit(HOST.matmul_into if plain else HOST.matmul, (x, y), {})


def run_kernel(name: str, **arguments: Any) -> dict[str, Any]:
    """The host's `run`, as an instruction calls it."""
    return HOST.run(name, **arguments)


def recording_of(x: Any) -> Trace | None:
    """The recording of the first Traced inside x, if there is one."""
    found: list[Traced] = []
    replace(x, Traced, found.append)
    return found[0].recording if found else None


TRACING = TracingBackend()

_whole: ContextVar[Trace | None] = ContextVar("hypergrad_whole", default=None)


def recorded_whole(recording: Trace, f: Callable[..., Any], *args: Any) -> Any:
    """f(*args), where arrays that the engine meets are recorded, too, if they are no arguments."""
    context = copy_context()
    context.run(_whole.set, recording)
    return context.run(f, *args)


def recorded_if_whole(x: Any) -> Any:
    """An array as the engine works with it: in a recording of a whole function a Traced, else itself."""
    recording = _whole.get()
    return x if recording is None else recording.closed_over_array(x)
