"""Which states of the inner run are stored, and in which order they are run again.

A schedule says which states the first run stores, and by which actions the backward run visits every state from T-1 down to 0,
or down to T-K where the gradient is truncated.
State t is the one before step t. The costs of a schedule are known before anything runs.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import comb, isqrt
from numbers import Integral
from typing import Any

from ..errors import ArgumentError

Action = tuple[str, int]
"""("load", t): continue from stored state t. ("step", t): run step t. ("undo", t): go from state t + 1 to state t by the residue of step t.
("store", t): store the state before step t, which is the current one. ("back", t): pull the cotangent through step t, the current
state being t. ("free", t): drop stored state t."""


@dataclass(frozen=True)
class Schedule(ABC):
    """What the passes, and code that chooses among them, need of a schedule for n_steps = T steps.

    No more states are held than those of the first run, and no step is run again, where a schedule says nothing else.
    """

    n_steps: int

    @property
    def states(self) -> int:
        """The highest number of states held at once."""
        return len(self.first_run())

    @property
    def reruns(self) -> int:
        """The number of steps that the backward run runs again."""
        return 0

    @property
    def stores_reruns(self) -> bool:
        """Whether the backward run runs no step twice, and stores the state after each step that it runs."""
        return not self.reruns

    @property
    def undone(self) -> range:
        """The steps that the backward run undoes. The first run keeps their residues."""
        return range(0)

    @abstractmethod
    def first_run(self) -> Collection[int]:
        """The states that the first run stores."""

    @abstractmethod
    def backward(self) -> Iterator[Action]:
        """The actions of the backward run, which starts with the states of `first_run` stored."""


def parse(checkpoints: Any, n_steps: int, *, last: int | None = None, memory_bytes: int | None = None, state_bytes: int = 0) -> Schedule:
    """The schedule that a checkpoint policy means for n_steps steps.

    Args:
        checkpoints: "all", "sqrt", "reversible" or the number of states to hold, >= 1; "host" or a directory, which store.parse reads,
            is as "all"; the class Line for the states of a line, as store.parse.
        last: the number of steps at the end that the backward run visits, >= 1; None for all steps.
        memory_bytes: room for the stored states. The policy with the fewest steps run again is taken; `checkpoints` stays "all".
        state_bytes: bytes of one state.
    Raises: ArgumentError for any other value, and for a room that not even one state fits in.
    """
    if last is not None and not is_count(last):
        raise ArgumentError(f"reverse: last has {last!r}, expected an integer >= 1; pass the number of steps to go back, or None for all")
    back = n_steps if last is None else min(int(last), n_steps)
    if memory_bytes is not None:
        if checkpoints != "all":
            raise ArgumentError(f"reverse: checkpoints has {checkpoints!r} beside memory_bytes, expected one of the two; leave one out")
        if not is_count(memory_bytes):
            raise ArgumentError(f"reverse: memory_bytes has {memory_bytes!r}, expected an integer >= 1; pass bytes, or None for any")
        checkpoints = int(memory_bytes) // state_bytes if state_bytes else "all"
        if checkpoints == 0 and back:
            raise ArgumentError(
                f"reverse: memory_bytes is {memory_bytes}, expected at least {state_bytes}, the bytes of one state, because the first "
                "state is needed to run again; raise it, or use hg.forward for few hyperparameters"
            )
        checkpoints = checkpoints or 1
    if is_count(checkpoints) and int(checkpoints) < back:
        plan: Schedule = Binomial(back, int(checkpoints))
    elif is_count(checkpoints) or isinstance(checkpoints, os.PathLike):
        plan = All(back)
    elif isinstance(checkpoints, (str, type)) and checkpoints in _NAMED:
        plan = _NAMED[checkpoints](back) if back > 1 else All(back)
    else:
        raise ArgumentError(
            f"reverse: checkpoints has {checkpoints!r}, expected 'all', 'sqrt', 'reversible', 'host', a pathlib.Path or an integer >= 1 "
            "because at least the first state is needed to run again; choose one of these"
        )
    return plan if back == n_steps else Last(n_steps, plan)


def is_count(x: Any) -> bool:
    """Whether x is a whole number >= 1."""
    return isinstance(x, Integral) and not isinstance(x, bool) and int(x) >= 1


class All(Schedule):
    """Every state is stored: T states, and no step is run again."""

    def first_run(self) -> Collection[int]:
        return range(self.n_steps)

    def backward(self) -> Iterator[Action]:
        for t in reversed(range(self.n_steps)):
            yield "load", t
            yield "back", t
            yield "free", t


class Sqrt(Schedule):
    """A state every ceil(sqrt(T)) steps, and those of the segment being visited: at most 2 ceil(sqrt(T)) states, fewer than T re-runs."""

    @property
    def stride(self) -> int:
        """The length of a segment."""
        return max(1, isqrt(max(self.n_steps - 1, 0)) + 1)

    @property
    def last(self) -> int:
        """The start of the last segment, all of whose states the first run stores."""
        return (self.n_steps - 1) // self.stride * self.stride if self.n_steps else 0

    @property
    def states(self) -> int:
        """The starts of the segments before the last, and all states of the last segment, or the other states of a full one if more."""
        before = self.last // self.stride
        return before + max(self.n_steps - self.last, self.stride - 1 if before else 0)

    @property
    def reruns(self) -> int:
        """All but one step of each segment before the last."""
        return self.last // self.stride * (self.stride - 1)

    @property
    def stores_reruns(self) -> bool:
        return True

    def first_run(self) -> Collection[int]:
        return set(range(0, self.last, self.stride)) | set(range(self.last, self.n_steps))

    def backward(self) -> Iterator[Action]:
        for start in reversed(range(0, self.n_steps, self.stride)):
            stop = min(start + self.stride, self.n_steps)
            if stop < self.n_steps and stop - start > 1:  # the last segment's states are still there from the first run
                yield "load", start
                for t in range(start, stop - 1):
                    yield "step", t
                    yield "store", t + 1
            for t in reversed(range(start, stop)):
                yield "load", t
                yield "back", t
                yield "free", t


@dataclass(frozen=True)
class Binomial(Schedule):
    """c states, with the fewest steps run again that c states allow.

    Source: Griewank & Walther 2000, ACM TOMS 26(1), Algorithm 799 (revolve).
    """

    c: int

    @property
    def states(self) -> int:
        """c, or T where that is less."""
        return min(self.c, self.n_steps)

    @property
    def reruns(self) -> int:
        """The steps run in all, less the T of the first run. Griewank & Walther count r*l - binom(c + r, c + 1) in all for l = T + 1 steps
        (the outer objective is the last one), where r is the smallest number with binom(c + r, c) >= l."""
        r, reach = _repeats(self.n_steps + 1, self.c)
        return r * (self.n_steps + 1) - reach * r // (self.c + 1) - self.n_steps

    def first_run(self) -> list[int]:
        starts, t, c = [], 0, self.c
        while c and t < self.n_steps:
            starts.append(t)
            # The outer objective counts as one more step, T. Its state needs no store: it is the current one when the first run ends.
            t = t + _split(self.n_steps + 1 - t, c) if c > 1 else self.n_steps
            c -= 1
        return starts

    def backward(self) -> Iterator[Action]:
        starts = self.first_run()
        # Segments still to visit, the next one at the end: (start, stop, states it may use). The state at each start is stored.
        # A stack instead of recursion, which could nest as deep as c, or as the square root of 2T.
        pending = [(t, stop, self.c - i) for i, (t, stop) in enumerate(zip(starts, [*starts[1:], self.n_steps], strict=True))]
        while pending:
            start, stop, c = pending.pop()
            while stop - start > 1 and c > 1:
                middle = start + _split(stop - start, c)
                yield "load", start
                for t in range(start, middle):
                    yield "step", t
                yield "store", middle
                pending.append((start, middle, c))
                start, c = middle, c - 1
            for target in reversed(range(start, stop)):
                yield "load", start
                for t in range(start, target):
                    yield "step", t
                yield "back", target
            yield "free", start


class _Ends(Schedule):
    """The first and the last state are stored."""

    def first_run(self) -> Collection[int]:
        return {0, self.n_steps}


class Reversible(_Ends):
    """The first and the last state are stored, and the residue of every step but the first. The backward run undoes the steps.

    Source: Maclaurin, Duvenaud & Adams 2015, arXiv:1502.03492.
    """

    @property
    def reruns(self) -> int:
        """The steps undone: each takes the gradient of the inner loss again."""
        return self.n_steps - 1

    @property
    def undone(self) -> range:
        return range(1, self.n_steps)

    def backward(self) -> Iterator[Action]:
        yield "load", self.n_steps
        yield "free", self.n_steps
        for t in reversed(range(1, self.n_steps)):
            yield "undo", t
            yield "back", t
        yield "load", 0
        yield "back", 0
        yield "free", 0


class Line(_Ends):
    """The first and the last state are stored. The store gives points of the line between them for the others; see store.Line.

    Source: Fu et al. 2016, arXiv:1601.00917 (DrMAD).
    """

    def backward(self) -> Iterator[Action]:
        for t in reversed(range(self.n_steps)):
            yield "load", t
            yield "back", t
        yield "free", self.n_steps
        yield "free", 0


_NAMED: dict[Any, type[Schedule]] = {"all": All, "host": All, "sqrt": Sqrt, "reversible": Reversible, Line: Line}


@dataclass(frozen=True)
class Last(Schedule):
    """The backward run stops early: `plan` for the steps at the end, whose states alone are stored. The gradient is truncated.

    Source: Shaban et al. 2019, Truncated back-propagation for bilevel optimization, AISTATS (K-RMD).
    """

    plan: Schedule

    @property
    def skipped(self) -> int:
        """T - K, the number of the first step that the backward run visits."""
        return self.n_steps - self.plan.n_steps

    @property
    def states(self) -> int:
        return self.plan.states

    @property
    def reruns(self) -> int:
        return self.plan.reruns

    @property
    def stores_reruns(self) -> bool:
        return self.plan.stores_reruns

    @property
    def undone(self) -> range:
        return range(self.skipped + self.plan.undone.start, self.skipped + self.plan.undone.stop)

    def first_run(self) -> Collection[int]:
        return {t + self.skipped for t in self.plan.first_run()}

    def backward(self) -> Iterator[Action]:
        for action, t in self.plan.backward():
            yield action, t + self.skipped


def _repeats(length: int, c: int) -> tuple[int, int]:
    """The smallest r with binom(c + r, c) >= length, and that binomial. No step is run more than r times."""
    r, reach = 0, 1
    while reach < length:
        r += 1
        reach = reach * (c + r) // r
    return r, reach


def _split(length: int, c: int) -> int:
    """The number of steps to the next stored state: the smallest of those with the fewest steps run in all.

    Let r be as in `Binomial.reruns`. A step after the split may be run r times. A step before it may be run r - 1 times more, as
    going to the split has run it once. So the fewest steps need a split of at least binom(c + r - 2, c) that leaves at most
    binom(c + r - 1, c - 1) steps after it.
    """
    r, _ = _repeats(length, c)
    return max(1, comb(c + r - 2, c), length - comb(c + r - 1, c - 1))
