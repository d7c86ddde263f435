"""Functions replayed: a call is recorded twice, the recordings are compared, and from then on calls of that kind are replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import numpy as np

from .backends.tracing import Trace, Traced, Untraceable, recorded_whole
from .program import Diverged, Program
from .tape import Tensor
from .trees import PyTree, tree_flatten, tree_unflatten

MOST_PROGRAMS = 8  # of one function: where its calls are of more kinds, those of the later kinds are not replayed
MOST_FAILURES = 3  # of recordings and replays, until no more are tried

_CONSTANTS = (bool, int, float, str, bytes)


class Replays:
    """Calls of a function, replayed where they can be, with the same bits.

    A call is replayed where two earlier ones of its kind gave the same recording: the same trees, shapes, dtypes, strides and
    constants, the same tangents missing. Where a truth value that the recording asked for is another, the function is called.

    Args:
        whole: whether nothing of the function's work outlives a call. Then all of it is recorded: arrays that it closes over are read again
            in every replay, and what it keeps of an array is made anew.
        keep: as `Program` has it.
        why: why nothing is replayed, if that is known.

    Attributes:
        program: what is replayed, or why nothing is.
    """

    def __init__(self, why: str | None = None, *, whole: bool = False, keep: bool = True) -> None:
        self.whole, self.keep, self.able = whole, keep, why is None
        self.program = f"none: {why or 'no call was like two earlier ones'}"
        self._known: dict[Any, _Recorded | _Replay] = {}
        self._failures = 0
        self._busy = Lock()  # a program has one arena

    def call(self, name: str, f: Callable[[Any, PyTree], Any], number: Any, tree: PyTree, *kind: Any) -> Any:
        """f(number, tree), where `number` may differ from call to call but must not be computed with. Calls with another name or other
        things in `kind` are of another kind."""
        if not self.able or not self._busy.acquire(blocking=False):
            return f(number, tree)
        try:
            return self._call(name, f, number, tree, kind)
        finally:
            self._busy.release()

    def _call(self, name: str, f: Callable[[Any, PyTree], Any], number: Any, tree: PyTree, kind: tuple[Any, ...]) -> Any:
        leaves, spec = tree_flatten(tree)
        arguments = [number]
        kinds = [_kind_of(x, arguments) for x in leaves]
        if None in kinds:
            x = leaves[kinds.index(None)]
            self._failed(f"of the {name} an argument is a {type(x).__name__}, neither array nor number: it could change unseen")
            return f(number, tree)
        key = (name, *kind, spec, *kinds)
        known = self._known.get(key)
        if type(known) is _Replay:
            try:
                return known(arguments)
            except Diverged:
                self._failed(f"of the {name} a truth value depends on the numbers")
            except Exception as error:  # the function raises it again, in its own words
                self._failed(f"{type(error).__name__}: {error}")
        elif known is not None or len(self._known) < MOST_PROGRAMS:
            recorded = self._record(f, leaves, spec, arguments)
            if recorded is not None:
                result, recorded.result = recorded.result, None
                if known is None:
                    self._known[key] = recorded
                elif type(known) is _Recorded and recorded.agrees(known):
                    replay = self._known[key] = _Replay(recorded, self.keep)
                    self.program = f"{name}: {replay.program.n_calls} calls, {replay.program.arena_bytes} bytes"
                else:
                    self._failed(f"two recordings of the {name} differ, as those of a function that is not pure")
                return result
        return f(number, tree)

    def _record(self, f: Callable[[Any, PyTree], Any], leaves: list[Any], spec: Any, arguments: list[Any]) -> _Recorded | None:
        """One call with everything it does recorded; None where that fails, and then the function itself may say what is wrong."""
        recording = Trace(whole=self.whole)
        number, *inputs = [recording.input(x) for x in arguments]
        rest = iter(inputs)
        tree = tree_unflatten(spec, [_with(x, rest) for x in leaves])
        try:
            result = recorded_whole(recording, f, number, tree) if self.whole else f(number, tree)
        except Untraceable:
            self._failed(recording.reason or "")
        except Exception as error:  # what a Traced array does not do as an array would; or the function's own error, which comes again
            self._failed(f"{type(error).__name__}: {error}")
        else:
            if recording.reason is None and recording.is_unchanged():
                return _Recorded(recording, result)
            self._failed(recording.reason or "the function writes to an array that it reads")
        return None

    def _failed(self, why: str) -> None:
        self._failures += 1
        if self.program.startswith("none"):
            self.program = f"none: {why}"
        if self._failures == MOST_FAILURES:
            self.able = False


class _Recorded:
    """A recorded call.

    Attributes:
        recording: its instructions.
        spec: structure of its result.
        places: of each leaf of the result a function of the found arrays, the leaf itself where it is neither array nor Tensor.
        slots: of the result's arrays, in order.
        result: the result with arrays in the place of Traced ones.
    """

    def __init__(self, recording: Trace, result: Any) -> None:
        leaves, self.spec = tree_flatten(result)
        self.recording = recording
        self.slots: list[int] = []
        self.places = [self._place(x) for x in leaves]
        self.result = self.filled([x.value if type(x) is Traced else x for x in _arrays_of(leaves)])

    def _place(self, x: Any) -> Any:
        """("array", index), ("Tensor", index, index or None), or ("constant", leaf); an index counts the slots."""
        if isinstance(x, Tensor):
            return "Tensor", self._index(x.value), None if x.dot is None else self._index(x.dot.value)
        return ("array", self._index(x)) if isinstance(x, np.ndarray) else ("constant", x)

    def _index(self, x: Any) -> int:
        self.slots.append(self.recording.slot(x))
        return len(self.slots) - 1

    def agrees(self, other: _Recorded) -> bool:
        """Whether both recorded the same."""
        same = self.spec == other.spec and self.slots == other.slots and repr(self.places) == repr(other.places)
        return same and self.recording.agrees(other.recording)

    def filled(self, arrays: Sequence[Any]) -> Any:
        """The result with these arrays, one for each slot."""

        def leaf(kind: str, *of: Any) -> Any:
            if kind == "constant":
                return of[0]
            found = [None if i is None else np.asarray(arrays[i]) for i in of]
            return found[0] if kind == "array" else Tensor(found[0], None if found[1] is None else Tensor(found[1]))

        return tree_unflatten(self.spec, [leaf(*place) for place in self.places])


class _Replay:
    """A function by its program."""

    def __init__(self, recorded: _Recorded, keep: bool) -> None:
        self.recorded = recorded
        self.program = Program(recorded.recording, recorded.slots, keep=keep)

    def __call__(self, arguments: Sequence[Any]) -> Any:
        return self.recorded.filled(self.program(arguments))


def _arrays_of(leaves: Sequence[Any]) -> list[Any]:
    """The arrays in the leaves, Tensors' values and tangents among them, in order."""
    tensors = [[x.value, *([] if x.dot is None else [x.dot.value])] if isinstance(x, Tensor) else [x] for x in leaves]
    return [y for some in tensors for y in some if isinstance(y, np.ndarray)]


def _is_array(x: Any) -> bool:
    return type(x) is np.ndarray and x.dtype.kind in "biuf"


def _is_tensor(x: Any) -> bool:
    return type(x) is Tensor and type(x.value) is np.ndarray and x.node is None


def _kind_of(x: Any, arguments: list[Any]) -> Any:
    """What a replay needs of a leaf to be the same; None for a leaf that cannot be replayed. Arrays are added to the arguments."""
    if _is_tensor(x):
        value, dot = x.value, x.dot
        arguments.append(value)
        if dot is None:
            return value.shape, value.dtype.char, value.strides
        if _is_tensor(dot):
            arguments.append(dot.value)
            return value.shape, value.dtype.char, value.strides, dot.value.shape, dot.value.strides
    elif _is_array(x):
        arguments.append(x)
        return "array", x.shape, x.dtype.char, x.strides
    elif type(x) in _CONSTANTS:
        return type(x), repr(x)  # which tells 0.0 from -0.0
    elif isinstance(x, np.generic):
        return type(x), x.tobytes()
    return None


def _with(x: Any, arguments: Any) -> Any:
    """The leaf with recorded arrays in the place of its own."""
    if _is_tensor(x):
        value = next(arguments)
        return Tensor(value, None if x.dot is None else Tensor(next(arguments)))
    return next(arguments) if _is_array(x) else x
