"""What each pass would cost for a problem on this device, and which one to take under a budget of memory.

A few short runs measure the parts of a cost: a step, a transposed step, a step with tangents, an undone step, a state in a file, and the
bytes that each takes. The schedules' own counts of states and of steps run again put the parts together for the whole run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from .backends import is_on_gpu
from .bilevel import Batches, Bilevel, DrawnBatches, HyperGradient, Stats, count_steps
from .errors import ArgumentError
from .meter import Meter
from .optimizers import Optimizer
from .passes import reversible, schedule, store
from .passes.forward import DIRECTIONS, block, forward, units
from .passes.replay import LEAST_STEPS
from .passes.reverse import objective, reverse
from .state import set_aside
from .tape import with_tangents
from .transforms import tree_tensors
from .trees import PyTree, tree_leaves

_SHORT_S = 0.1  # a timed run is about this long, where the problem has enough steps
_LONG_S = 1.0  # no other round of timed runs begins after so long
_MOST_TIMED = 128  # steps of a run that is timed
_TRACED_STEPS = 8  # of a run whose memory is measured, where nothing is recorded
_NOTED_BYTES = 500  # of a step, about: its loss in its Tensor, and its places in lists
_LITTLE = 0.5  # of a state: no more counts for little
_MORE_STEPS = 4  # times as many steps are run to learn it precisely
_LATE = 4  # times as many steps are run to learn the residues of later steps
_BLOCK = 64  # directions of the larger forward run that is measured, at most
_LEAST_BLOCK = 4  # of them, and more only as long as their states are within
_BLOCK_BYTES = 64 * 2**20
_REPEATS = 3


@dataclass(frozen=True)
class Route:
    """One way to the hypergradient, with what it would cost.

    Attributes:
        name: in words, such as "reverse, sqrt".
        call: "reverse" or "forward".
        options: of that function.
        seconds: wall-clock time.
        peak_bytes: the highest number of bytes that the pass allocates, the states included.
        states: states held at once; in forward mode 1 + the directions of a block.
        state_bytes: bytes of these states, and of the residues by which steps are undone.
        steps_rerun: inner steps run again.
    """

    name: str
    call: str
    options: dict[str, Any]
    seconds: float
    peak_bytes: int
    states: int
    state_bytes: int
    steps_rerun: int


@dataclass(frozen=True)
class Plan:
    """What `plan` returns. `print(plan)` shows a table.

    Attributes:
        routes: the ways to the hypergradient, fastest first.
        choice: the fastest one that fits in memory_bytes.
        memory_bytes: the budget, None for none.
        n_steps, n_hparams: T and N.
    Example:
        >>> problem = hg.Bilevel(
        ...     lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum(w**2), lambda h: np.zeros(2), lambda h: hg.SGD(lr=0.25)
        ... )
        >>> p = hg.plan(problem, np.array([1.0, 2.0]), hg.full_batch(None, 20))
        >>> p.run().grad.round(4)
        array([2., 4.])
    """

    routes: tuple[Route, ...]
    choice: Route
    memory_bytes: int | None
    n_steps: int
    n_hparams: int
    _run: Callable[..., HyperGradient] = field(repr=False)

    def run(self, route: Route | None = None) -> HyperGradient:
        """The hypergradient, by the chosen route or another one of `routes`. Cost: the route's."""
        return self._run(self.choice if route is None else route)

    def __str__(self) -> str:
        rows = [("", "pass", "seconds", "peak", "states", "of that", "steps run again")]
        for r in self.routes:
            mark = "->" if r is self.choice else "  " if self.memory_bytes is None or r.peak_bytes <= self.memory_bytes else "x "
            rows.append(
                (mark, r.name, f"{r.seconds:.3g}", in_bytes(r.peak_bytes), str(r.states), in_bytes(r.state_bytes), str(r.steps_rerun))
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(x.ljust(n) if i < 2 else x.rjust(n) for i, (x, n) in enumerate(zip(row, widths, strict=True))) for row in rows]
        budget = "no limit of memory" if self.memory_bytes is None else f"at most {in_bytes(self.memory_bytes)}"
        return "\n".join([f"T = {self.n_steps} steps, N = {self.n_hparams} hyperparameters, {budget}", *lines])


def in_bytes(n: float) -> str:
    """A number of bytes with a unit: "12.3 MB". Cost: O(1)."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000 or unit == "GB":
            return f"{n:.3g} {unit}" if unit != "B" else f"{int(n)} B"
        n /= 1000
    raise AssertionError


def plan(
    problem: Bilevel, hparams: PyTree, batches: Batches, *, memory_bytes: int | None = None, outer_batch: Any = None, state: PyTree = None
) -> Plan:
    """Seconds and bytes of every pass for a problem on this device, and the choice under a budget.

    Args:
        problem, hparams, batches, outer_batch, state: as in `reverse`.
        memory_bytes: the most bytes that a pass may allocate at once; None for any number.
    Returns: Plan(routes, choice, ...); plan.run() runs the choice. All routes give the same hypergradient.
    Raises: ArgumentError if no pass fits in memory_bytes (it names the smallest), and what `reverse` and `forward` raise.
    Memory: that of a pass over a few steps.
    Time: up to 24 runs that are timed, of 0.1 s or of 12 steps, whichever takes longer; half as many where a round of them takes a
        second. Seven whose memory is traced, which slows them, of 24 steps, or of 96 where states are small; one of four times as many
        where steps can be undone.
    Example:
        >>> problem = hg.Bilevel(
        ...     lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum(w**2), lambda h: np.zeros(2), lambda h: hg.SGD(lr=0.25)
        ... )
        >>> hg.plan(problem, np.array([1.0, 2.0]), hg.full_batch(None, 20)).run().grad.round(4)
        array([2., 4.])
    """
    n_steps = count_steps("plan", batches)
    if not n_steps:
        raise ArgumentError(
            "plan: batches is empty, expected at least one step because the plan measures some; pass the batches of the run"
        )
    if memory_bytes is not None and not schedule.is_count(memory_bytes):
        raise ArgumentError(f"plan: memory_bytes has {memory_bytes!r}, expected an integer >= 1; pass bytes, or None for any")
    more = {"outer_batch": outer_batch, "state": state}
    parts = _Parts(problem, hparams, batches, n_steps, more)
    routes = [*map(parts.reverse, parts.policies(memory_bytes)), *map(parts.forward, parts.blocks(memory_bytes))]
    fitting = [r for r in routes if memory_bytes is None or r.peak_bytes <= memory_bytes]
    if not fitting:
        least = min(routes, key=lambda r: r.peak_bytes)
        raise ArgumentError(
            f"plan: memory_bytes is {memory_bytes}, expected at least {least.peak_bytes}, what '{least.name}' needs as the smallest of "
            f"{len(routes)} passes; raise it, make the batches smaller, or truncate the gradient with hg.reverse(last=...)"
        )

    def run(route: Route) -> HyperGradient:
        return (reverse if route.call == "reverse" else forward)(problem, hparams, batches, **route.options, **more)

    routes.sort(key=lambda r: (r.seconds, r.peak_bytes))
    choice = min(fitting, key=lambda r: (r.seconds, r.peak_bytes))
    return Plan(tuple(routes), choice, memory_bytes, n_steps, parts.n_hparams, run)


class _Line(NamedTuple):
    """A straight line."""

    start: float
    slope: float

    def at(self, x: float) -> float:
        """Its height there, at least 0."""
        return max(self.start + self.slope * x, 0.0)


def _line(a: tuple[int, float], b: tuple[int, float], slope: float = 0.0) -> _Line:
    """Through two points; through one of them where they have the same place, with the slope that is given."""
    slope = (b[1] - a[1]) / (b[0] - a[0]) if b[0] > a[0] else slope
    return _Line(b[1] - slope * b[0], slope)


class _Bytes(NamedTuple):
    """Bytes of a run: the peak of its first steps, which are recorded, that of what follows, and what each step leaves behind."""

    first: int
    later: int
    note: float


class _Parts:
    """The measured parts of the costs of a problem, and the routes that they make up."""

    def __init__(self, problem: Bilevel, hparams: PyTree, batches: Batches, n_steps: int, more: dict[str, Any]) -> None:
        self.problem, self.hparams, self.batches, self.n_steps, self.more = problem, hparams, batches, n_steps, more
        self.leaves = tree_leaves(tree_tensors(hparams, "plan", "hparams"))
        self.n_hparams = sum(x.size for x in self.leaves)
        w = tree_tensors(problem.init(hparams), "plan", "w")
        optimizer = problem.optimizer(hparams)
        self.state_bytes = store.n_bytes((w, optimizer.begin(w)))
        self.on_gpu = any(is_on_gpu(x.value) for x in tree_leaves(w))
        self.block = max(1, min(self.n_hparams, DIRECTIONS))  # directions of a block without a budget
        self.high = min(self.block, _BLOCK, max(_LEAST_BLOCK, _BLOCK_BYTES // max(self.state_bytes, 1)))
        self.low = max(1, self.high // 4)
        self.undoes = n_steps > 1 and _undoes(optimizer.scheduled(n_steps, range(n_steps)))
        self.draw: Callable[[int], Any] = batches.__getitem__
        self._time()
        self._trace()

    # --- short runs, and what they say --------------------------------------------------------------------

    def _reverse(self, n: int, checkpoints: Any, **more: Any) -> HyperGradient:
        return reverse(self.problem, self.hparams, DrawnBatches(n, self.draw), checkpoints=checkpoints, **self.more, **more)

    def _forward(self, n: int, directions: int) -> Any:
        h, first = tree_tensors(self.hparams, "plan", "hparams"), DrawnBatches(n, self.draw)
        seeds = units(self.leaves, 0, directions)
        return set_aside(lambda: with_tangents(block, self.problem, h, seeds, directions, first, Stats("plan"), **self.more))

    def _plain(self, n: int) -> Any:
        h = tree_tensors(self.hparams, "plan", "hparams")
        return set_aside(objective, self.problem, h, DrawnBatches(n, self.draw), Stats("plan"), **self.more)

    def _time(self) -> None:
        """Seconds over the steps, for each kind of run. They take turns, so that what slows the machine for a while slows all of them."""
        runs: dict[str, Callable[[int], Any]] = {
            "plain": lambda n: self._plain(n)[0].value,
            "low": lambda n: self._forward(n, self.low)[0].value,
            "high": lambda n: self._forward(n, self.high)[0].value,
        }
        for kind in ("all", "host", *["reversible"] * self.undoes):
            runs[kind] = lambda n, kind=kind: self._reverse(n, kind).value  # type: ignore[misc]
        few, most = min(self.n_steps, LEAST_STEPS), min(self.n_steps, _MOST_TIMED)
        first = {k: self._seconds_of(run, few) for k, run in runs.items()}  # which warms up
        steps = {k: max(few, min(most, int(_SHORT_S / max(x.slope, 1e-6)))) for k, x in first.items()}
        found: dict[str, list[_Line]] = {k: [] for k in runs}
        spent = 0.0
        while spent < _LONG_S and len(found["all"]) < _REPEATS:
            with Meter() as meter:
                for k, run in runs.items():
                    found[k].append(self._seconds_of(run, steps[k]))
            spent += meter.seconds
        took = {k: _Line(*(statistics.median(column) for column in zip(*lines, strict=True))) for k, lines in found.items()}
        self.seconds, low, high = took, took["low"], took["high"]
        self.tangents_start_s = _line((self.low, low.start), (self.high, high.start))
        self.tangents_step_s = _line((self.low, low.slope), (self.high, high.slope))

    def _seconds_of(self, run: Callable[[int], Any], n: int) -> _Line:
        """Seconds over the number of steps, by a run of n steps.

        A step begins when its batch is read, in every pass. The first steps are recorded and the later ones replayed, which is cheaper.
        The steps in the middle of the run are neither the first ones of the run nor of its way back, so that their mean is that of the
        steps that would follow. Work on a GPU goes on beside the host's, so there a run without steps tells what is not the steps'.
        """
        begun: list[tuple[int, float]] = []

        def draw(t: int) -> Any:
            begun.append((t, time.perf_counter()))
            return self.batches[t]

        with Meter() as nothing:
            if self.on_gpu:
                _wait(run(0))
        self.draw = draw
        with Meter() as meter:
            _wait(run(n))
        self.draw = self.batches.__getitem__
        if self.on_gpu:
            return _line((0, nothing.seconds), (n, meter.seconds))
        middle = range(n // 4, n - n // 4)
        slope = sum([after - at for (t, at), (_, after) in pairwise(begun) if t in middle]) / len(middle)
        return _Line(meter.seconds - slope * n, slope)

    def _trace(self) -> None:
        """Bytes of the parts: what a run allocates beside the states that it counts, and what it notes of each step."""
        notes = self.n_steps * _NOTED_BYTES > _LITTLE * self.state_bytes  # whether what is noted of the steps counts
        n = min(self.n_steps, (_MORE_STEPS if notes else 1) * (_TRACED_STEPS if self.on_gpu else 2 * LEAST_STEPS))
        low, high = (self._bytes_of(self._forward, n, p) for p in (self.low, self.high))  # forward mode stores no states
        note = low.note  # of each step, whatever is stored: its loss
        self.tangents_first_bytes = _line((self.low, low.first), (self.high, high.first), self.state_bytes)
        self.tangents_bytes = _line((self.low, low.later), (self.high, high.later), self.state_bytes)
        self.later_notes = note * (self.n_steps - n)
        stored = self._bytes_of(self._reverse, n, "all")
        self.unit_bytes = max(stored.note - note, float(self.state_bytes))  # of a stored state, with the objects around its arrays
        self.first_bytes = {"all": stored.first}
        self.besides = {"all": _Line(stored.later - n * (self.unit_bytes + note), note)}
        few = max(1, min(n // 2, self.n_steps.bit_length() + 1))
        for kind, checkpoints in (("sqrt", "sqrt"), ("count", few), ("host", "host"), *[("reversible", "reversible")] * self.undoes):
            found = self._bytes_of(self._reverse, n, checkpoints)
            states = self.stats.states_held * (self.unit_bytes if kind in ("sqrt", "count") else self.state_bytes)
            around = found.note - self.stats.residue_bytes / n  # with a residue's objects, or the place of a state in the file
            noted = max(note, around) if kind in ("host", "reversible") else note
            self.first_bytes[kind] = found.first
            self.besides[kind] = _Line(found.later - states - self.stats.residue_bytes - n * noted, noted)
        self.residues = self._late_residues(n, self.stats.residue_bytes) if self.undoes else _Line(0.0, 0.0)

    def _bytes_of(self, run: Callable[..., Any], n: int, *args: Any) -> _Bytes:
        """Bytes of a run of n steps. As in `_seconds_of`, a step begins when its batch is read."""
        laps = np.zeros((8 * n + 8, 2), np.int64)  # made beforehand, so that nothing of it counts as held by the run
        at = [-1] * n  # of each step, the number of its first lap
        number = 0

        def draw(t: int) -> Any:
            nonlocal number
            laps[number % len(laps)] = meter.lap()
            at[t] = number if at[t] < 0 else at[t]
            number += 1
            return self.batches[t]

        self.draw = draw
        with Meter(memory=True) as meter:
            kept = run(n, *args)  # its results count
            laps[number] = meter.lap()
        self.draw = self.batches.__getitem__
        if isinstance(kept, HyperGradient):
            self.stats = kept.stats
        middle, last = at[n // 2], at[n - 1]
        note = (laps[last, 0] - laps[at[n // 4], 0]) / max(n - 1 - n // 4, 1)
        return _Bytes(int(laps[: middle + 1, 1].max()), int(laps[middle + 1 : number + 1, 1].max()), max(float(note), 0.0))

    def _late_residues(self, n: int, first: int) -> _Line:
        """Bytes of the residues over the number of steps, where the first n steps have `first` bytes.

        The first steps have large residues, as the velocity grows from zero and is small beside the gradient. So the residues of later
        steps are taken from the last steps of a run that is _LATE times as long.
        """
        late = min(self.n_steps, _LATE * n)
        last = late - n + 1 if late < 2 * n else n  # the residue of the first of these steps is not kept
        slope = first / max(n - 1, 1)
        if last > 1:
            slope = self._reverse(late, "reversible", last=last).stats.residue_bytes / (last - 1)
        return _Line(first - slope * n, slope)

    # --- routes --------------------------------------------------------------------------------------------

    def policies(self, memory_bytes: int | None) -> list[Any]:
        """Checkpoint policies to compare: a few, and the number of states that a budget has room for."""
        found: list[Any] = ["all", "sqrt", self.n_steps.bit_length() + 1]
        if memory_bytes is not None:
            room = memory_bytes - self.besides["count"].at(self.n_steps)
            found.append(int(room // self.unit_bytes) if self.unit_bytes else "all")
        found = [c for c in dict.fromkeys(found) if isinstance(c, str) or 1 <= c < self.n_steps]
        return [*found, *["reversible"] * self.undoes, "host"]

    def reverse(self, checkpoints: Any) -> Route:
        """The route of reverse mode with this policy."""
        counts = schedule.parse(checkpoints, self.n_steps)
        kind = "count" if isinstance(checkpoints, int) else checkpoints
        states, held = counts.states, float(counts.states * self.state_bytes)
        if kind in self.seconds:
            seconds = self.seconds[kind].at(self.n_steps)
        else:
            seconds = self.seconds["all"].at(self.n_steps) + counts.reruns * self.seconds["plain"].slope
        if checkpoints == "host":
            states, held = 1, float(self.state_bytes)
        if checkpoints == "reversible":
            held += self.residues.at(self.n_steps)
        objects = states * (self.unit_bytes - self.state_bytes) if kind in ("all", "sqrt", "count") else 0.0
        peak = max(self.first_bytes[kind], self.besides[kind].at(self.n_steps) + held + objects)
        name = f"reverse, {checkpoints} states" if isinstance(checkpoints, int) else f"reverse, {checkpoints}"
        return Route(name, "reverse", {"checkpoints": checkpoints}, seconds, int(peak), states, int(held), counts.reruns)

    def blocks(self, memory_bytes: int | None) -> list[int]:
        """Directions of a block to compare: as many as forward mode takes by itself, and as many as a budget has room for."""
        found = [self.block]
        if memory_bytes is not None:
            line = self.tangents_bytes
            found.append(int((memory_bytes - line.start - self.later_notes) / line.slope) if line.slope > 0 else self.block)
        return [p for p in dict.fromkeys(found) if 1 <= p <= self.block]

    def forward(self, directions: int) -> Route:
        """The route of forward mode with blocks of so many directions."""
        whole, rest = divmod(self.n_hparams, directions)
        sizes = [directions] * whole + [rest] * (rest > 0)
        seconds = sum(self.tangents_start_s.at(p) + self.n_steps * self.tangents_step_s.at(p) for p in sizes)
        peak = max(self.tangents_first_bytes.at(directions), self.tangents_bytes.at(directions) + self.later_notes)
        states = 1 + directions
        name = f"forward, {'all directions' if directions == self.n_hparams else f'blocks of {directions}'}"
        return Route(name, "forward", {"directions": directions}, seconds, int(peak), states, states * self.state_bytes, 0)


def _undoes(optimizer: Optimizer) -> bool:
    try:
        reversible.check(optimizer)
    except ArgumentError:
        return False
    return True


def _wait(value: Any) -> None:
    """Until the device has computed it."""
    float(value)
