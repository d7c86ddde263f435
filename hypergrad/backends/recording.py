"""What a CUDA graph need not compute: constants, which its warm-up has made, and results of a step that a backward pass asks for again.

A recording runs a function twice, once to warm up and once to record. Both runs happen in `recordable`, and share a Recording. Nothing
here is used outside of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar, copy_context
from typing import Any, TypeVar

import numpy as np

R = TypeVar("R")
Key = tuple[Any, ...]


class Recording:
    """What the warm-up and the recording of one function share.

    Args:
        keep_activations: whether a step keeps its results for its transposition; see `Results`.

    Attributes:
        constants: results that depend on numbers alone, by what made them. The warm-up computes them, so the graph only reads them.
        fixed: keys of their arrays.
    """

    def __init__(self, keep_activations: bool = True) -> None:
        self.keep_activations = keep_activations
        self.constants: dict[Key, Any] = {}
        self.fixed: set[Key] = set()

    def constant(self, key: Key, make: Callable[[], R]) -> R:
        """The constant of that key, made where it is not there yet."""
        if key not in self.constants:
            self.constants[key] = made = make()
            self.fixed |= {key_of(a) for a in _arrays(made)}
        found: R = self.constants[key]
        return found


class Results:
    """The results of all ops in one step of a run, which its transposition, running the step again, takes from here.

    The same op on the same arrays may occur several times in a step, so results of one key stand in order.
    Memory: every array that the step computes, until its transposition.
    """

    def __init__(self) -> None:
        self.kept: dict[Key, list[tuple[Any, Any]]] = {}
        self.read: dict[Key, int] | None = None  # how many results of each key were taken; None while the step runs first

    def rewind(self) -> None:
        """The next time, the step begins anew."""
        self.read = {}

    def take(self, key: Key, compute: Callable[[], R], held: Any) -> R:
        """The result of that key: the next one kept, or computed. `held` are the arrays that the key names, which stay alive."""
        if self.read is None:
            result = compute()
            self.kept.setdefault(key, []).append((result, held))
            return result
        index, queue = self.read.get(key, 0), self.kept.get(key, ())
        if index == len(queue):
            return compute()
        self.read[key] = index + 1
        found: R = queue[index][0]
        return found


recording: ContextVar[Recording | None] = ContextVar("hypergrad_recording", default=None)
_results: ContextVar[Results | None] = ContextVar("hypergrad_results", default=None)


def recordable(f: Callable[..., R], own: Recording, /, *args: Any) -> R:
    """f(*args), run without what a CUDA graph cannot record, in the warm-up and in the recording alike."""
    return _with(recording, own, f, args)


def new_results() -> Results | None:
    """Where a step may keep its results; None outside of recordings, and in those that keep none."""
    own = recording.get()
    return Results() if own is not None and own.keep_activations else None


def keeping(results: Results | None, f: Callable[..., R], /, *args: Any) -> R:
    """f(*args), where ops keep their results, or take them where there are some."""
    return f(*args) if results is None else _with(_results, results, f, args)


def begin_again() -> bool:
    """Whether the results of the step that runs now are kept from its first run; they are then taken from the first one on."""
    results = _results.get()
    if results is None or results.read is None:
        return False
    results.rewind()
    return True


def recalled(name: str, arrays: Sequence[Any], attrs: Any, compute: Callable[[], R]) -> R:
    """compute(), which depends on its name, arrays and attributes alone; in a recording an earlier result where there is one."""
    own = recording.get()
    if own is None:
        return compute()
    try:
        names = tuple([key_of(a) for a in arrays])
        key = (name, names, _frozen(attrs))
        hash(key)
    except (AttributeError, TypeError):  # an attribute that is no array and has no hash
        return compute()
    if names and own.fixed.issuperset(names):
        return own.constant(key, compute)
    results = _results.get()
    return compute() if results is None else results.take(key, compute, (arrays, attrs))


def is_fixed(a: Any) -> bool:
    """Whether the array is a constant of the recording, which nobody may write to."""
    own = recording.get()
    return own is not None and not isinstance(a, np.ndarray) and key_of(a) in own.fixed


def key_of(a: Any) -> Key:
    """Where a CuPy array lies and how it is laid out."""
    told = a.__cuda_array_interface__
    return told["data"][0], told["shape"], told["strides"], told["typestr"]


def _with(variable: ContextVar[Any], value: Any, f: Callable[..., R], args: tuple[Any, ...]) -> R:
    context = copy_context()
    context.run(variable.set, value)
    return context.run(f, *args)


def _frozen(x: Any) -> Any:
    """Attributes as a key: arrays by where they lie, numbers with their type and sign."""
    if isinstance(x, dict):
        return tuple([(k, _frozen(v)) for k, v in x.items()])
    if isinstance(x, (list, tuple)):
        return tuple([_frozen(v) for v in x])
    if x is None or isinstance(x, (bool, int, float, str)):
        return type(x), repr(x)
    return key_of(x)


def _arrays(x: Any) -> list[Any]:
    """All arrays of the device inside."""
    if isinstance(x, (list, tuple)):
        return [a for item in x for a in _arrays(item)]
    if isinstance(x, dict):
        return _arrays(list(x.values()))
    return [x] if hasattr(x, "__cuda_array_interface__") else []
