"""Functions replayed: a call is recorded twice, the recordings are compared, and from then on calls of that kind are replayed."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from .backends.host import AT_RELEASE
from .backends.tracing import Trace, Traced, Untraceable, recorded_whole
from .calls import Diverged
from .program import Program
from .sharing import Kept, Names, dear_results
from .stretch import describe
from .tape import Tensor
from .trees import PyTree, tree_flatten, tree_unflatten

MOST_PROGRAMS = 8  # of one function: where its calls are of more kinds, those of the later kinds are not replayed
MOST_FAILURES = 3  # of recordings and replays, until no more are tried

MOST_SHARED = 8  # functions whose replays are kept for later runs, the last ones
MOST_SHARED_BYTES = 2**26  # of all arenas that are kept for later runs

_NEVER_TAKEN = 20  # elements of the tuples of which Python 3.11 keeps up to 2,000 free ones, yet takes none of them for a new tuple
_CONSTANTS = (bool, int, float, str, bytes)


class Shared:
    """What runs of one function leave for later runs of it: a replay of each kind of call."""

    def __init__(self) -> None:
        self.known: dict[Any, _Replay] = {}
        self.names = Names()

    def add(self, key: Any, replay: _Replay) -> None:
        """Keeps a replay, where there is room for its arena."""
        with _sharing:
            held = sum(x.program.arena_bytes for shared in [*_shared.values()] for x in shared.known.values())
            if held + replay.program.arena_bytes <= MOST_SHARED_BYTES:
                self.known[key] = replay


_sharing = Lock()  # of what follows, and of every `known`
_shared: WeakKeyDictionary[Any, Shared] = WeakKeyDictionary()
AT_RELEASE.append(_shared.clear)


def shared_by(function: Any) -> Shared | None:
    """What earlier runs of this function have left. None where that cannot be told, and where memory is traced: what is left is memory
    that the trace would not count."""
    if tracemalloc.is_tracing():
        return None
    try:
        with _sharing:
            found = _shared.get(function)
            if found is not None and len(found.known) < 2 * MOST_PROGRAMS:  # of more kinds, later runs begin anew
                return found
            for oldest in [*_shared][: max(len(_shared) - MOST_SHARED + 1, 0)]:
                del _shared[oldest]
            found = _shared[function] = Shared()
            return found
    except TypeError:  # it has no hash, or nothing can tell when it is gone
        return None


class Changed(Exception):
    """A function is another one than when it was recorded."""


class Replays:
    """Calls of a function, replayed where they can be, with the same bits.

    A call is replayed where two earlier ones of its kind gave the same recording: the same trees, shapes, dtypes, strides and
    constants, the same tangents missing. Where a truth value that the recording asked for is another, the function is called.

    Args:
        whole: whether nothing of the function's work outlives a call. Then all of it is recorded: arrays that it closes over are read again
            in every replay, and what it keeps of an array is made anew.
        keep: as `Program` has it.
        why: why nothing is replayed, if that is known.
        shared: what earlier runs have left. A replay of theirs is taken after one recording that agrees with it, instead of two.

    Attributes:
        program: what is replayed, or why nothing is.
    """

    def __init__(self, why: str | None = None, *, whole: bool = False, keep: bool = True, shared: Shared | None = None) -> None:
        self.whole, self.keep, self.able = whole, keep, why is None
        self.program = f"none: {why or 'no call was like two earlier ones'}"
        self._known: dict[Any, _Recorded | _Replay] = {}
        self._own: dict[Any, Trace] = {}  # of each kind, a recording of this run, which knows what the constants were in it
        self._checks: dict[Any, Trace] = {}  # of each kind, what its calls are checked by
        self._shared = shared or Shared()
        self._failures = 0
        self._busy = Lock()  # a program has one arena

    def call(
        self,
        name: str,
        f: Callable[[Any, PyTree], Any],
        number: Any,
        tree: PyTree,
        *kind: Any,
        keep_for: Kept | None = None,
        kept: Kept | None = None,
        check: Callable[[Any, PyTree], Any] | None = None,
        last: bool = False,
    ) -> Any:
        """f(number, tree), where `number` may differ from call to call but must not be computed with. Calls with another name or other
        things in `kind` are of another kind.

        Args:
            keep_for: where a replay puts what the roots of its result are made of, if that is worth it; see sharing.py.
            kept: what a replay need not compute. It comes from a call whose arguments were the first ones of this call.
            check: a part of the function, recorded at the first call of each kind, and again in the last call.
            last: whether this is the last call.
        Raises: Changed where the part does not do the same in the last call. A last call of a kind that was not replayed tells nothing.
        """
        if not self.able or not self._busy.acquire(blocking=False):
            return f(number, tree)
        try:
            return self._call(name, f, number, tree, kind, keep_for, kept, check, last)
        finally:
            self._busy.release()

    def _call(
        self,
        name: str,
        f: Callable[[Any, PyTree], Any],
        number: Any,
        tree: PyTree,
        kind: tuple[Any, ...],
        keep_for: Kept | None,
        kept: Kept | None,
        check: Callable[[Any, PyTree], Any] | None,
        last: bool,
    ) -> Any:
        leaves, spec = tree_flatten(tree)
        arguments = [number]
        kinds, others = describe(leaves, Tensor, arguments, _kind_of)
        if None in others:
            x = next(x for x in leaves if _kind_of(x, []) is None)
            of = f"of the {name} an argument is a {type(x).__name__}, neither array nor number"
            self._failed(f"{of}: it could change unseen; make it a pytree")
            return f(number, tree)
        asked = [name, *kind, None if keep_for is None else keep_for.most_bytes, () if kept is None else kept.names, spec, kinds, *others]
        key = tuple(asked if len(asked) != _NEVER_TAKEN else [*asked, None])
        known = self._known.get(key)
        if type(known) is _Replay and last and check is not None and key in self._checks:
            again = self._record(check, leaves, spec, arguments, None)
            if again is None:
                return f(number, tree)
            if not again.recording.does_as(self._checks[key]):
                raise Changed
        if type(known) is _Replay and known.busy.acquire(blocking=False):
            try:
                return known(arguments, keep_for, kept, self._own[key])
            except Diverged:
                self._failed(f"of the {name} a truth value depends on the numbers")
            except Exception as error:  # the function raises it again, in its own words
                self._failed(f"{type(error).__name__}: {error}")
            finally:
                known.busy.release()
        elif type(known) is not _Replay and (known is not None or len(self._known) < MOST_PROGRAMS):
            recorded = self._record(f, leaves, spec, arguments, keep_for)
            if recorded is not None:
                checked = self._record(check, leaves, spec, arguments, None) if check is not None and known is None else None
                if checked is not None:
                    self._checks[key] = checked.recording
                result, recorded.result = recorded.result, None
                earlier = self._shared.known.get(key)
                self._own[key] = recorded.recording
                if known is None:
                    replay = earlier if earlier is not None and recorded.stands_for(earlier.recorded) else None
                    self._known[key] = replay or recorded
                    if replay is not None:
                        self._say(name, replay)
                elif type(known) is _Recorded and recorded.agrees(known):
                    replay = self._known[key] = _Replay(recorded, self.keep, self._shared.names, len(arguments), keep_for, kept)
                    self._shared.add(key, replay)
                    self._say(name, replay)
                else:
                    self._failed(f"two recordings of the {name} differ, as those of a function that is not pure")
                return result
        return f(number, tree)

    def _say(self, name: str, replay: _Replay) -> None:
        self.program = f"{name}: {replay.program.n_calls} calls, {replay.program.arena_bytes} bytes"

    def _record(
        self, f: Callable[[Any, PyTree], Any], leaves: list[Any], spec: Any, arguments: list[Any], keep_for: Kept | None
    ) -> _Recorded | None:
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
                roots = () if keep_for is None else keep_for.roots(result)
                return _Recorded(recording, result, [recording.slot(x.value).number for x in roots])
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
        roots: slots of those whose making may be kept.
        result: the result with arrays in the place of Traced ones.
    """

    def __init__(self, recording: Trace, result: Any, roots: Sequence[int]) -> None:
        leaves, self.spec = tree_flatten(result)
        self.recording, self.roots = recording, roots
        self.slots: list[int] = []
        self.places = [self._place(x) for x in leaves]
        self.result = self.filled([x.value if type(x) is Traced else x for x in _arrays_of(leaves)])

    def _place(self, x: Any) -> tuple[str, Any, int | None]:
        """("array", index, None), ("Tensor", index, index or None), or ("constant", leaf, None); an index counts the slots."""
        if isinstance(x, Tensor):
            return "Tensor", self._index(x.value), None if x.dot is None else self._index(x.dot.value)
        return ("array", self._index(x), None) if isinstance(x, np.ndarray) else ("constant", x, None)

    def _index(self, x: Any) -> int:
        self.slots.append(self.recording.slot(x).number)
        return len(self.slots) - 1

    def agrees(self, other: _Recorded) -> bool:
        """Whether both recorded the same."""
        same = self.spec == other.spec and self.slots == other.slots and repr(self.places) == repr(other.places)
        return same and self.recording.agrees(other.recording)

    def stands_for(self, other: _Recorded) -> bool:
        """Whether both recorded the same, and of the same arrays: one of an earlier run may be written to when this run's is not."""
        return self.agrees(other) and self.recording.addresses() == other.recording.addresses()

    def filled(self, arrays: Sequence[Any]) -> Any:
        """The result with these arrays, one for each slot."""
        leaves = []
        for kind, of, dot in self.places:
            x = of if kind == "constant" else np.asarray(arrays[of])
            leaves.append(x if kind != "Tensor" else Tensor(x, None if dot is None else Tensor(np.asarray(arrays[dot]))))
        return tree_unflatten(self.spec, leaves)


class _Replay:
    """A function by its program, which may keep results for another function, or begin with those that another has kept.

    Attributes:
        busy: held during a call, since the program has one arena and runs share it.
    """

    def __init__(self, recorded: _Recorded, keep: bool, names: Names, n_arguments: int, keep_for: Kept | None, kept: Kept | None) -> None:
        recording = recorded.recording
        self.recorded, self.n_arguments, self.busy = recorded, n_arguments, Lock()
        keeps = [] if keep_for is None else dear_results(recording, recorded.roots, keep_for.most_bytes)
        self.names = tuple([names.of(recording, n_arguments)[n] for n in keeps]) if keeps else ()
        given: dict[int, int] = {}  # of the results that were kept and are computed here: their places among the kept ones, and slots
        if kept is not None:
            numbers = names.of(recording, kept.n_arguments)
            slots = {number: n for n, number in reversed(numbers.items())}
            given = {i: slots[number] for i, number in enumerate(kept.names) if number in slots}
        self.given = [*given]
        self.program = Program(recording, [*recorded.slots, *keeps], keep=keep, given=[*given.values()])

    def __call__(self, arguments: Sequence[Any], keep_for: Kept | None, kept: Kept | None, recording: Trace) -> Any:
        """Args: recording: one of this run that agrees with the recorded one."""
        found = self.program([*arguments, *[kept.arrays[i] for i in self.given]] if kept is not None else arguments)
        if keep_for is not None:
            keep_for.names, keep_for.n_arguments, keep_for.recording = self.names, self.n_arguments, recording
            keep_for.arrays = found[len(self.recorded.slots) :]
        return self.recorded.filled(found)


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
    if type(x) is Tensor:
        value, dot = x.value, x.dot
        if type(value) is not np.ndarray or x.node is not None:
            return None
        arguments.append(value)
        if dot is None:
            return value.shape, value.dtype.str, value.strides
        if _is_tensor(dot):
            arguments.append(dot.value)
            return value.shape, value.dtype.str, value.strides, dot.value.shape, dot.value.strides
    elif _is_array(x):
        arguments.append(x)
        return "array", x.shape, x.dtype.str, x.strides
    elif type(x) in _CONSTANTS or type(x) is slice and all(type(i) in (int, type(None)) for i in (x.start, x.stop, x.step)):
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
