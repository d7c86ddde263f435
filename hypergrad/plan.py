"""What each pass would cost for a problem on this device, and which one to take under a budget of memory.

A few short runs measure the parts of a cost: a step, a transposed step, a step with tangents, an undone step, a state in a file, and the
bytes that each takes. The schedules' own counts of states and of steps run again put the parts together for the whole run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from .backends import is_on_gpu
from .bilevel import Batches, Bilevel, HyperGradient, Stats, count_steps
from .errors import ArgumentError
from .meter import Meter
from .optimizers import Optimizer
from .passes import actions, reversible, schedule, store
from .passes.actions import Bytes, Kind, Watched
from .passes.forward import DIRECTIONS, block, forward, units
from .passes.replay import LEAST_STEPS
from .passes.reverse import reverse, transposed_run
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
_MORE_NOTES = 3  # times as many again of the runs that tell what is noted
_LATE = 4  # times as many steps are run to learn the residues of later steps
_BLOCK = 64  # directions of the larger forward run that is measured, at most
_LEAST_BLOCK = 4  # of them, and more only as long as their states are within
_BLOCK_BYTES = 64 * 2**20
_REPEATS = 3
_COUNT = "a number of states"
_STEP: Kind = ("first", 0)


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
        second. Seven whose memory is traced, which slows them, of 24 steps, or of 96 and two of them of 288 where states are small;
        one of four times as many where steps can be undone.
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


class _Parts:
    """The measured parts of the costs of a problem, and the routes that they make up.

    A way is a checkpoint policy of reverse mode, _COUNT for a number of states, or a number of directions of forward mode.
    """

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
        self.seconds = self._time()
        self.bytes = self._trace()

    # --- short runs, and what they say --------------------------------------------------------------------

    def _schedule(self, way: Any, n: int) -> schedule.Schedule | None:
        """Of a short run of n steps; None for forward mode."""
        return None if isinstance(way, int) else schedule.parse(self._checkpoints(way, n), n)

    def _checkpoints(self, way: str, n: int) -> Any:
        return max(1, min(n // 2, self._few())) if way == _COUNT else way

    def _few(self) -> int:
        """A number of states with which few steps are run again."""
        return self.n_steps.bit_length() + 1

    def _run(self, way: Any, n: int, stats: Stats, **more: Any) -> Any:
        """The first n steps, as a run of all steps would take them."""
        more = {**self.more, "steps": range(n), "kept_among": self.n_steps, **more}
        if not isinstance(way, int):
            more["checkpoints"] = self._checkpoints(way, n)
            return transposed_run("reverse", self.problem, self.hparams, self.batches, stats, **more)
        h, seeds = tree_tensors(self.hparams, "plan", "hparams"), units(self.leaves, 0, way)
        return set_aside(lambda: with_tangents(block, self.problem, h, seeds, way, self.batches, stats, **more))

    def _watched(self, way: Any, n: int, mark: Callable[[], Any], shape: tuple[int, ...], dtype: Any) -> Watched:
        """What notes marks of that shape in a short run."""
        n_marks = 1 + sum(1 for _ in actions.actions(self._schedule(way, n), n))
        return Watched("plan", mark=mark, marks=np.zeros((n_marks, *shape), dtype))

    def _time(self) -> dict[Any, dict[Kind, float]]:
        """Seconds of the actions of each way. They take turns, so that what slows the machine for a while slows all of them."""
        ways = dict.fromkeys([self.low, self.high, "all", "sqrt", "host", *["reversible"] * self.undoes])
        few, most = min(self.n_steps, LEAST_STEPS), min(self.n_steps, _MOST_TIMED)
        first = {way: actions.seconds_per_step(self._seconds_of(way, few)) for way in ways}  # which warms up
        steps = {way: max(few, min(most, int(_SHORT_S / max(x, 1e-6)))) for way, x in first.items()}
        found: dict[Any, list[dict[Kind, float]]] = {way: [] for way in ways}
        spent = 0.0
        while spent < _LONG_S and len(found["all"]) < _REPEATS:
            with Meter() as meter:
                for way in ways:
                    found[way].append(self._seconds_of(way, steps[way]))
            spent += meter.seconds
        took = {way: {kind: statistics.median([x[kind] for x in rounds]) for kind in rounds[0]} for way, rounds in found.items()}
        if self.on_gpu:
            n, every, sqrt = steps["sqrt"], took["all"], took["sqrt"]
            reruns = schedule.parse("sqrt", n).reruns
            took["sqrt"] = {**every, ("step", 0): max(sqrt[_STEP] - every[_STEP], 0.0) * n / max(reruns, 1)}
        return took

    def _seconds_of(self, way: Any, n: int) -> dict[Kind, float]:
        """Seconds of the actions of a run of n steps.

        Work on a GPU goes on beside the host's, so there a run without steps tells what is not the steps', and the first action of a step
        stands for all of it.
        """
        if self.on_gpu:
            with Meter() as nothing:
                _wait(self._run(way, 0, Stats("plan")))
            with Meter() as meter:
                _wait(self._run(way, n, Stats("plan")))
            return {("start", 0): nothing.seconds, _STEP: max(meter.seconds - nothing.seconds, 0.0) / n}
        run = self._watched(way, n, time.perf_counter, (), float)
        run.began("start", 0)
        _wait(self._run(way, n, run))
        run.began("nothing", 0)
        return actions.seconds_by_kind(self._schedule(way, n), n, run.marks[: run.n_marks])

    def _trace(self) -> dict[Any, Bytes]:
        """Bytes of the parts of each way."""
        notes = self.n_steps * _NOTED_BYTES > _LITTLE * self.state_bytes  # whether what is noted of the steps counts
        n = min(self.n_steps, (_MORE_STEPS if notes else 1) * (_TRACED_STEPS if self.on_gpu else 2 * LEAST_STEPS))
        steps: dict[Any, int] = dict.fromkeys([self.low, self.high, "sqrt", "all", _COUNT, "host", *["reversible"] * self.undoes], n)
        if notes:  # more steps yet where nothing else grows
            steps[self.low] = steps["host"] = min(self.n_steps, _MORE_NOTES * n)
        found: dict[Any, Bytes] = {}
        note, again = None, float(self.state_bytes)
        for way, n_traced in steps.items():
            run = self._watched(way, n_traced, lambda: meter.lap(), (2,), np.int64)
            with Meter(memory=True) as meter:
                run.began("start", 0)
                kept = self._run(way, n_traced, run)  # its results count
                run.began("nothing", 0)
            del kept
            found[way] = actions.bytes_of(self._schedule(way, n_traced), n_traced, run, note=note, again=again)
            note, again = found[self.low].note, found["sqrt"].again if "sqrt" in found else again
        if self.undoes:
            found["reversible"] = self._with_late_residues(n, found["reversible"])
        return found

    def _with_late_residues(self, n: int, parts: Bytes) -> Bytes:
        """With the residues of all steps, where those of the first n steps are known.

        The first steps have large residues, as the velocity grows from zero and is small beside the gradient. So the residues of later
        steps are taken from the last steps of a run that is _LATE times as long.
        """
        late = min(self.n_steps, _LATE * n)
        last = late - n + 1 if late < 2 * n else n  # the residue of the first of these steps is not kept
        slope = parts.residues[-1] / max(n - 1, 1)
        if last > 1:
            stats = Stats("plan")
            self._run("reversible", late, stats, last=last)
            slope = stats.residue_bytes / (last - 1) + parts.of_residue
        rest = parts.residues[-1] + slope * np.arange(1, self.n_steps - n + 1)
        return replace(parts, residues=np.concatenate([parts.residues, rest]))

    # --- routes --------------------------------------------------------------------------------------------

    def policies(self, memory_bytes: int | None) -> list[Any]:
        """Checkpoint policies to compare: a few, and the number of states that a budget has room for."""
        found: list[Any] = ["all", "sqrt", self._few()]
        if memory_bytes is not None:
            found.append(self._most_states(memory_bytes))
        found = [c for c in dict.fromkeys(found) if isinstance(c, str) or 1 <= c < self.n_steps]
        return [*found, *["reversible"] * self.undoes, "host"]

    def _most_states(self, memory_bytes: int) -> int:
        """About the most states that a budget has room for; 0 where there is no room for one."""
        states, unit = self._few(), max(self.bytes[_COUNT].again, 1.0)
        for _ in range(4):  # peaks are nearly on a line over the states
            room = memory_bytes - self.reverse(max(states, 1)).peak_bytes
            found = min(max(states + int(room // unit), 0), self.n_steps)
            if found == states:
                break
            states = found
        return states

    def reverse(self, checkpoints: Any) -> Route:
        """The route of reverse mode with this policy."""
        counts = schedule.parse(checkpoints, self.n_steps)
        way = _COUNT if isinstance(checkpoints, int) else checkpoints
        seconds, peak = actions.cost(counts, self.n_steps, self.seconds["sqrt" if way == _COUNT else way], self.bytes[way])
        states, held = counts.states, float(counts.states * self.state_bytes)
        if checkpoints == "host":
            states, held = 1, float(self.state_bytes)
        if checkpoints == "reversible":
            held += float(self.bytes[way].residues[-1])
        name = f"reverse, {checkpoints} states" if isinstance(checkpoints, int) else f"reverse, {checkpoints}"
        return Route(name, "reverse", {"checkpoints": checkpoints}, seconds, int(peak), states, int(held), counts.reruns)

    def blocks(self, memory_bytes: int | None) -> list[int]:
        """Directions of a block to compare: as many as forward mode takes by itself, and as many as a budget has room for."""
        found = [self.block]
        if memory_bytes is not None:
            _, line = self._tangents()
            found.append(int((memory_bytes - line.start) / line.slope) if line.slope > 0 else self.block)
        return [p for p in dict.fromkeys(found) if 1 <= p <= self.block]

    def _tangents(self) -> tuple[_Line, _Line]:
        """Seconds and peak bytes of a run over the number of directions."""
        low, high = (actions.cost(None, self.n_steps, self.seconds[way], self.bytes[way]) for way in (self.low, self.high))
        return _line((self.low, low[0]), (self.high, high[0])), _line((self.low, low[1]), (self.high, high[1]), self.state_bytes)

    def forward(self, directions: int) -> Route:
        """The route of forward mode with blocks of so many directions."""
        whole, rest = divmod(self.n_hparams, directions)
        sizes = [directions] * whole + [rest] * (rest > 0)
        of_seconds, of_bytes = self._tangents()
        seconds = sum(of_seconds.at(p) for p in sizes)
        states = 1 + directions
        name = f"forward, {'all directions' if directions == self.n_hparams else f'blocks of {directions}'}"
        peak = int(of_bytes.at(directions))
        return Route(name, "forward", {"directions": directions}, seconds, peak, states, states * self.state_bytes, 0)


def _undoes(optimizer: Optimizer) -> bool:
    try:
        reversible.check(optimizer)
    except ArgumentError:
        return False
    return True


def _wait(result: Any) -> None:
    """Until the device has computed the value of a pass."""
    value = result.value if isinstance(result, HyperGradient) else result[0].value
    float(value)
