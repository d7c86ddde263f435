"""The steps of a run by programs: a step is recorded twice, the recordings are compared, and from then on it is replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..backends import backend_of
from ..backends.host import HOST
from ..backends.tracing import Trace, Traced, Untraceable
from ..bilevel import Stats
from ..program import Diverged, Program
from ..rules import settings
from ..tape import Tensor
from ..trees import PyTree, tree_flatten, tree_unflatten
from .dynamics import Bars, Dynamics, Pulled, Step

LEAST_STEPS = 12  # of a run that is replayed: in a shorter one recording costs more than it saves
MOST_PROGRAMS = 8  # of a run: where its steps are of more kinds, the engine computes those of the later kinds
MOST_FAILURES = 3  # of recordings and replays, until no more are tried

_CONSTANTS = (bool, int, float, str, bytes)


class Replayed:
    """Some dynamics whose steps are replayed where they can be, with the same bits.

    A step is replayed where two earlier ones of its kind gave the same recording: the same trees, shapes, dtypes, strides and
    constants, the same tangents and cotangents missing. Where a truth value that the recording asked for is another, the engine computes
    the step. `stats.program` says what is replayed, or why nothing is.
    """

    def __init__(self, dynamics: Dynamics, n_steps: int, stats: Stats, inputs: Sequence[Tensor]) -> None:
        self.dynamics, self.stats = dynamics, stats
        self._known: dict[Any, _Recorded | _Replay] = {}
        self._failures = 0
        why = dynamics.unrecordable()
        if n_steps < LEAST_STEPS:
            why = f"the run has {n_steps} steps, and recording pays from {LEAST_STEPS}"
        if not settings()[0]:
            why = "fusion is switched off"
        if backend_of(*[x.value for x in inputs]) is not HOST:
            why = "the arrays are not the host's"
        self._able = why is None
        stats.program = f"none: {why or 'no step was like two earlier ones'}"

    def step(self, state: PyTree, args: PyTree, t: int) -> Step:
        """As `Dynamics.step`."""
        step: Step = self._run("step", t, (state, args), lambda dynamics, t, state, args: dynamics.step(state, args, t))
        return step

    def step_transposed(
        self, state: PyTree, args: PyTree, t: int, after: PyTree, state_bar: Bars, output_bar: Bars, proven: bool
    ) -> Pulled:
        """As `Dynamics.step_transposed`."""

        def pull(dynamics: Dynamics, t: int, state: PyTree, args: PyTree, after: PyTree, state_bar: Bars, output_bar: Bars) -> Pulled:
            return dynamics.step_transposed(state, args, t, after, state_bar, output_bar, proven)

        pulled: Pulled = self._run(f"transposed step, proven {proven}", t, (state, args, after, state_bar, output_bar), pull)
        return pulled

    def _run(self, kind: str, t: int, trees: tuple[Any, ...], f: Callable[..., Any]) -> Any:
        if not self._able:
            return f(self.dynamics, t, *trees)
        batch, number = self.dynamics.batch(t)
        leaves, spec = tree_flatten((trees, batch))
        arguments = [number]
        kinds = [_kind_of(x, arguments) for x in leaves]
        if None in kinds:
            x = leaves[kinds.index(None)]
            self._failed(f"a {type(x).__name__} in the batch is neither array nor number, so what it holds could change unseen")
            return f(self.dynamics.with_batch(batch), number, *trees)
        key = (kind, spec, *kinds)
        known = self._known.get(key)
        if type(known) is _Replay:
            try:
                return known(arguments)
            except Diverged:
                self._failed(f"of the {kind} a truth value depends on the numbers")
            except Exception as error:  # the engine's step raises it again, in its own words
                self._failed(f"{type(error).__name__}: {error}")
        elif known is not None or len(self._known) < MOST_PROGRAMS:
            recorded = self._record(f, leaves, spec, arguments)
            if recorded is not None:
                result, recorded.result = recorded.result, None
                if known is None:
                    self._known[key] = recorded
                elif type(known) is _Recorded and recorded.agrees(known):
                    replay = self._known[key] = _Replay(recorded)
                    self.stats.program = f"{kind}: {replay.program.n_calls} calls, {replay.program.arena_bytes} bytes"
                else:
                    self._failed(f"two recordings of the {kind} differ, as those of a step that is not pure")
                return result
        return f(self.dynamics.with_batch(batch), number, *trees)

    def _record(self, f: Callable[..., Any], leaves: list[Any], spec: Any, arguments: list[Any]) -> _Recorded | None:
        """One step with everything it does recorded; None where that fails, and then the engine may say what is wrong."""
        recording = Trace()
        number, *inputs = [recording.input(x) for x in arguments]
        rest = iter(inputs)
        trees, batch = tree_unflatten(spec, [_with(x, rest) for x in leaves])
        try:
            result = f(self.dynamics.with_batch(batch), number, *trees)
        except Untraceable:
            self._failed(recording.reason or "")
        except Exception as error:  # what a Traced array does not do as an array would; or the step's own error, which comes again
            self._failed(f"{type(error).__name__}: {error}")
        else:
            if recording.reason is None and recording.is_unchanged():
                return _Recorded(recording, result)
            self._failed(recording.reason or "the step writes to an array that it reads")
        return None

    def _failed(self, why: str) -> None:
        self._failures += 1
        if self.stats.program.startswith("none"):
            self.stats.program = f"none: {why}"
        if self._failures == MOST_FAILURES:
            self._able = False


class _Recorded:
    """A recorded step.

    Attributes:
        recording: its instructions.
        spec: structure of its result.
        places: of each leaf of the result, the slots of its value and of its tangents (None for none), or the leaf itself.
        result: the result with arrays in the place of Traced ones.
    """

    def __init__(self, recording: Trace, result: Any) -> None:
        leaves, self.spec = tree_flatten(result)
        self.recording = recording
        self.places: list[Any] = [
            (recording.slot(x.value), None if x.dot is None else recording.slot(x.dot.value)) if isinstance(x, Tensor) else x
            for x in leaves
        ]
        arrays = [y for x in leaves if isinstance(x, Tensor) for y in (x.value, None if x.dot is None else x.dot.value) if y is not None]
        found = dict(zip(self.slots(), [x.value if type(x) is Traced else x for x in arrays], strict=True))
        self.result = self.filled(found.__getitem__)

    def agrees(self, other: _Recorded) -> bool:
        """Whether both recorded the same."""
        same = self.spec == other.spec and repr(self.places) == repr(other.places)
        return same and self.recording.agrees(other.recording)

    def slots(self) -> list[int]:
        """Slots of the result's arrays, in order."""
        return [n for place in self.places if isinstance(place, tuple) for n in place if n is not None]

    def filled(self, array: Callable[[int], Any]) -> Any:
        """The result, with these arrays in its slots."""

        def tensor(value: int, dot: int | None) -> Tensor:
            return Tensor(np.asarray(array(value)), None if dot is None else Tensor(np.asarray(array(dot))))

        return tree_unflatten(self.spec, [tensor(*place) if isinstance(place, tuple) else place for place in self.places])


class _Replay:
    """A step by its program."""

    def __init__(self, recorded: _Recorded) -> None:
        self.recorded, self.slots = recorded, recorded.slots()
        self.program = Program(recorded.recording, self.slots)

    def __call__(self, arguments: Sequence[Any]) -> Any:
        found = dict(zip(self.slots, self.program(arguments), strict=True))
        return self.recorded.filled(found.__getitem__)


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
