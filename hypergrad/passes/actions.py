"""The actions of a run, and what they cost: measured in a short run, put together for a longer one.

A run is a row of actions: the steps of the first run, the outer objective, then what the schedule says of the backward run. The first few
actions of a kind are told apart, since they record programs. The later ones of a kind cost the same, whatever the number of steps. What a
longer run costs follows from how many actions of each class it has, and from the states that it holds at each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np

from ..bilevel import Stats
from .schedule import Schedule

Kind = tuple[str, int]
"""A class of actions: their name, and how many of that name came before them, up to ALIKE."""

ALIKE = 4  # actions of one name that are told apart; those after them are one class


class Action(NamedTuple):
    """An action, and the states that are alive during it beside the first and the last one, which always are.

    Attributes:
        kind: its class.
        t: the number of its step.
        stored: states in the store that the first run put there.
        again: other states: those of steps that were run again, and the current one where it is not stored.
    """

    kind: Kind
    t: int
    stored: int
    again: int


def actions(schedule: Schedule | None, n_steps: int) -> Iterator[Action]:
    """All actions of a run in their order: "start", "first" for each step, "outer", those of the schedule, "end".

    Without a schedule "last" is the last step.

    Args: schedule: None for a run that is not transposed.
    """
    seen: Counter[str] = Counter()

    def action(name: str, t: int, stored: int, again: int) -> Action:
        number = seen[name]
        if number < ALIKE:
            seen[name] = number + 1
        return Action((name, number), t, stored, again)

    yield action("start", 0, 0, 0)
    first = {t: True for t in (() if schedule is None else schedule.first_run()) if 0 < t < n_steps}  # whether the first run put it
    stored, again, alone = 0, 0, 0  # alone: whether the current state is not stored
    for t in range(n_steps):
        stored += t in first
        yield action("last" if schedule is None and t + 1 == n_steps else "first", t, stored, int(t > 0 and t not in first))
    yield action("outer", n_steps, stored, 0)
    for name, t in () if schedule is None else schedule.backward():
        if name == "load":
            alone = 0
        elif name == "store":
            first[t], alone = False, 0
            again += 1
        elif name == "free" and t in first:
            if first.pop(t):
                stored -= 1
            else:
                again -= 1
        yield action(name, t, stored, again + alone)
        if name in ("step", "undo"):
            alone = 1
    yield action("end", 0, stored, again)


@dataclass
class Watched(Stats):
    """Counts as Stats does, and notes a mark as each action begins.

    Attributes:
        mark: what is noted.
        marks: where, one row an action after "start", made beforehand so that they do not count as memory of the run.
        residues: bytes of the residues at each of them.
        n_marks: how many there are.
    """

    mark: Callable[[], Any] = field(kw_only=True)
    marks: Any = field(kw_only=True, repr=False)
    n_marks: int = 0

    def __post_init__(self) -> None:
        self.residues = np.zeros(len(self.marks), np.int64)

    def began(self, action: str, t: int) -> None:
        self.residues[self.n_marks] = self.residue_bytes
        self.marks[self.n_marks] = self.mark()
        self.n_marks += 1


# --- seconds ---


def seconds_by_kind(schedule: Schedule | None, n_steps: int, marks: Any) -> dict[Kind, float]:
    """Seconds of an action of each class, the mean of those that are alike. Args: marks: times at which actions began, and the end."""
    found: dict[Kind, list[float]] = {}
    for action, seconds in zip(actions(schedule, n_steps), np.diff(marks), strict=False):
        found.setdefault(action.kind, []).append(float(seconds))
    return {kind: fmean(column) for kind, column in found.items()}


def seconds_per_step(by_kind: dict[Kind, float]) -> float:
    """About the seconds of one more step."""
    latest = {name: seconds for (name, _), seconds in by_kind.items()}
    return sum(seconds for name, seconds in latest.items() if name not in ("start", "last", "outer", "end"))


def _nearest(by_kind: dict[Kind, float], kind: Kind) -> float:
    """What is known of a class, or else of the last one before it of that name; 0 where nothing is."""
    name, number = kind
    return next((by_kind[name, i] for i in range(number, -1, -1) if (name, i) in by_kind), 0.0)


# --- bytes ---


@dataclass(frozen=True)
class Bytes:
    """Bytes of the parts of a run.

    Attributes:
        note: what a step leaves behind, such as its loss.
        stored: a state that the first run stores, with what is kept beside it.
        again: another state.
        residues: those of the first t steps, at place t.
        of_residue: the objects of a residue, which these bytes include.
        beside: by class of action, the most that is allocated beside all of these.
    """

    note: float
    stored: float
    again: float
    residues: Any
    of_residue: float
    beside: dict[Kind, float]

    def held(self, action: Action, n_steps: int) -> float:
        """What the counts of an action say is held as it begins."""
        name, t = action.kind[0], action.t
        if name in ("start", "end"):
            return self.note * n_steps if name == "end" else 0.0
        # Steps done, and those whose residues are there.
        done, back = (t, t) if name in ("first", "last") else (n_steps, min(t + 1, n_steps))
        residues = float(self.residues[min(back, len(self.residues) - 1)])
        return self.note * done + self.stored * action.stored + self.again * action.again + residues


def bytes_of(schedule: Schedule | None, n_steps: int, run: Watched, *, note: float | None = None, again: float = 0.0) -> Bytes:
    """Bytes of the parts of a run whose marks are those of `Meter.lap`.

    Args:
        note: what each step leaves behind; None to take all that grows in this run for it.
        again: bytes of a state, for a run that stores none again.
    """
    acts, laps = list(actions(schedule, n_steps)), run.marks[: run.n_marks]
    held, residues = laps[:, 0], run.residues[1 : n_steps + 2]
    begin, end = n_steps // 2, n_steps - 1  # the later steps of the first run, of which step t is action t + 1
    put, steps = acts[end].stored - acts[begin].stored, max(end - begin, 1)
    grown = float(held[end + 1] - held[begin + 1] - (residues[end] - residues[begin])) - (note or 0.0) * steps
    of_residue = max(grown / steps, 0.0) if residues[-1] else 0.0
    stores = [i for i, a in enumerate(acts[: len(laps)]) if a.kind[0] == "store"]
    gains = [held[j] - held[i] for i, j in pairwise(stores) if acts[j].t == acts[i].t + 1]
    again = float(median(gains)) if gains else again
    parts = Bytes(
        max(grown / steps, 0.0) if note is None else note,
        max(grown / put, 0.0) if put else again,
        again,
        residues + of_residue * np.arange(n_steps + 1),
        of_residue,
        {},
    )
    for action, (_, peak) in zip(acts, laps[1:], strict=False):
        most = float(peak) - parts.held(action, n_steps)
        parts.beside[action.kind] = max(most, parts.beside.get(action.kind, most))
    return parts


def cost(schedule: Schedule | None, n_steps: int, seconds: dict[Kind, float], parts: Bytes) -> tuple[float, float]:
    """Seconds and peak bytes of a run. Args: seconds: of an action of each class."""
    total, peak = 0.0, 0.0
    of_kind: dict[Kind, tuple[float, float]] = {}
    for action in actions(schedule, n_steps):
        kind = action.kind
        if kind not in of_kind:
            of_kind[kind] = _nearest(seconds, kind), _nearest(parts.beside, kind)
        total += of_kind[kind][0]
        peak = max(peak, parts.held(action, n_steps) + of_kind[kind][1])
    return total, peak
