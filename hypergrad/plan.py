"""What each pass would cost for a problem on this device, and which one to take under a budget of memory.

A few short runs measure the parts of a cost: a step, a transposed step, a step with tangents, an undone step, a state in a file, and the
bytes that each takes. The schedules' own counts of states and of steps run again put the parts together for the whole run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

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

_SHORT_S = 0.05  # a timed run is at least this long, where the problem has enough steps
_MOST_STEPS = 32  # of a short run
_TRACED_STEPS = 8  # of a run whose memory is measured, where all that is noted of the steps is less than a state
_NOTED_BYTES = 1000  # of a step, at most
_LATE = 4  # times as many steps are run to learn the residues of later steps
_BLOCK = 64  # directions of the larger forward run that is measured
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
    Time: runs of a few steps each, about 40 of them timed, the longest about 0.1 s or a few steps where these take longer. A dozen whose
        memory is traced, which slows them, have up to 32 steps; where steps can be undone, one has four times as many.
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
        self.high = min(self.block, _BLOCK)
        self.low = max(1, self.high // 4)
        self.undoes = n_steps > 1 and _undoes(optimizer.scheduled(n_steps, range(n_steps)))
        # Steps are recorded before they are replayed. So where there are enough, the parts come from the difference of two such runs.
        self.first = LEAST_STEPS if n_steps >= 2 * LEAST_STEPS and not self.on_gpu else 0
        self.n = self._enough_steps()
        self._time()
        self._trace()

    # --- short runs, and what they say --------------------------------------------------------------------

    def _reverse(self, n: int, checkpoints: Any, **more: Any) -> HyperGradient:
        return reverse(self.problem, self.hparams, DrawnBatches(n, self.batches.__getitem__), checkpoints=checkpoints, **self.more, **more)

    def _forward(self, n: int, directions: int) -> Any:
        h, first = tree_tensors(self.hparams, "plan", "hparams"), DrawnBatches(n, self.batches.__getitem__)
        seeds = units(self.leaves, 0, directions)
        return set_aside(lambda: with_tangents(block, self.problem, h, seeds, directions, first, Stats("plan"), **self.more))

    def _plain(self, n: int) -> Any:
        h = tree_tensors(self.hparams, "plan", "hparams")
        return set_aside(objective, self.problem, h, DrawnBatches(n, self.batches.__getitem__), Stats("plan"), **self.more)

    def _enough_steps(self) -> int:
        """Steps of a run that takes long enough to be timed."""
        n = max(1, 2 * self.first)
        while n < min(self.n_steps, _MOST_STEPS):
            n = min(2 * n, self.n_steps, _MOST_STEPS)
            with Meter() as meter:
                _wait(self._reverse(n, "all").value)
            if meter.seconds > _SHORT_S:
                break
        return n

    def _time(self) -> None:
        """Seconds of the parts. The runs take turns, so that what slows the machine for a while slows all of them."""
        n, first, low, high = self.n, self.first, self.low, self.high
        runs: dict[Any, Callable[[], Any]] = {
            "nothing": lambda: self._plain(first)[0].value,
            "plain": lambda: self._plain(n)[0].value,
            "ends": lambda: self._reverse(first, "all").value,
            "all": lambda: self._reverse(n, "all").value,
            "host": lambda: self._reverse(n, "host").value,
            "low": lambda: self._forward(n, low)[0].value,
            "high": lambda: self._forward(n, high)[0].value,
        }
        if first:
            runs |= {"first low": lambda: self._forward(first, low)[0].value, "first high": lambda: self._forward(first, high)[0].value}
        if self.undoes:
            runs["reversible"] = lambda: self._reverse(n, "reversible").value
        seconds: dict[str, list[float]] = {k: [] for k in runs}
        for _ in range(_REPEATS + 1):
            for k, run in runs.items():
                with Meter() as meter:
                    _wait(run())
                seconds[k].append(meter.seconds)
        took = {k: statistics.median(x[1:]) for k, x in seconds.items()}  # the first round warms up

        def step(short: str, long: str) -> float:
            return max(took[long] - took[short], 0.0) / (n - first)

        self.step_s, self.both_s = step("nothing", "plain"), step("ends", "all")  # both: a step and a transposed step
        self.ends_s = max(took["ends"] - first * self.both_s, 0.0)
        self.undo_s = max(took.get("reversible", 0.0) - took["all"], 0.0) / max(n - 1, 1)  # with the residue that the first run takes
        self.host_s = max(took["host"] - took["all"], 0.0) / n
        starts = ("first low", "first high") if first else ("nothing", "nothing")
        ends = [(p, step(start, k)) for p, start, k in zip((low, high), starts, ("low", "high"), strict=True)]
        self.tangents_s = _line(ends[0], ends[1])
        self.nothing_s = max(took[starts[0]] - first * ends[0][1], 0.0)

    def _trace(self) -> None:
        """Bytes of the parts: what a run allocates beside the states that it counts, and what it notes of each step."""
        n = _MOST_STEPS if self.n_steps * _NOTED_BYTES > self.state_bytes else _TRACED_STEPS
        least = LEAST_STEPS if self.n_steps >= LEAST_STEPS and not self.on_gpu else 1  # of runs of this kind
        n = min(self.n_steps, max(n, 3 * least))
        half = max(n // 2, min(n, least))
        long = min(self.n_steps, 4 * n)  # what is noted of the steps shows when it is more than a recording takes
        along = [self._peak(self._forward, k, self.low) for k in (n, long)]  # forward mode stores no states
        note = max(_line((n, along[0]), (long, along[1])).slope, 0.0)  # of each step, whatever is stored: its loss
        stored = self._over_steps("all", half, n)
        self.unit_bytes = self.state_bytes + max(stored.slope - note, 0.0)  # of a stored state, with the objects around its arrays
        self.besides = {"all": _Line(stored.start, note), "host": self._over_steps("host", half, n)}
        few = min(half, self.n_steps.bit_length() + 1)
        for kind, checkpoints in (("sqrt", "sqrt"), ("count", few)):
            besides = self._besides(n, checkpoints) - self.stats.states_held * (self.unit_bytes - self.state_bytes)
            self.besides[kind] = _Line(besides - n * note, note)
        self.residues = _Line(0.0, 0.0)
        if self.undoes:
            self.besides["reversible"] = self._over_steps("reversible", half, n)
            self.residues = self._late_residues(n, self.stats.residue_bytes)
        wide = self._peak(self._forward, n, self.high)
        self.tangents_bytes = _line((self.low, along[0]), (self.high, wide), self.state_bytes)
        self.later_notes = note * (self.n_steps - n)

    def _over_steps(self, checkpoints: Any, half: int, n: int) -> _Line:
        """`_besides` over the number of steps."""
        low, high = (self._besides(k, checkpoints) for k in (half, n))
        slope = max(_line((half, low), (n, high)).slope, 0.0)
        return _Line(high - slope * n, slope)

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

    def _besides(self, n: int, checkpoints: Any) -> float:
        """Bytes at the peak of n steps in reverse, less those of the states and residues that the pass counts."""
        peak = self._peak(self._reverse, n, checkpoints)
        return peak - self.stats.state_bytes - self.stats.residue_bytes

    def _peak(self, run: Callable[..., Any], *args: Any) -> float:
        with Meter(memory=True) as meter:
            kept = run(*args)  # its results count
        if isinstance(kept, HyperGradient):
            self.stats = kept.stats
        return (meter.peak_device_bytes if self.on_gpu else meter.peak_bytes) or 0

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
        seconds = self.ends_s + self.n_steps * self.both_s
        states, held = counts.states, float(counts.states * self.state_bytes)
        kind = "count" if isinstance(checkpoints, int) else checkpoints
        seconds += counts.reruns * (self.undo_s if checkpoints == "reversible" else self.step_s)
        if checkpoints == "host":
            seconds += self.n_steps * self.host_s
            states, held = 1, float(self.state_bytes)
        if checkpoints == "reversible":
            held += self.residues.at(self.n_steps)
        objects = states * (self.unit_bytes - self.state_bytes) if kind in ("all", "sqrt", "count") else 0.0
        peak = self.besides[kind].at(self.n_steps) + held + objects
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
        a_step = whole * self.tangents_s.at(directions) + (self.tangents_s.at(rest) if rest else 0.0)
        seconds = (whole + (rest > 0)) * self.nothing_s + self.n_steps * a_step
        peak = self.tangents_bytes.at(directions) + self.later_notes
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
