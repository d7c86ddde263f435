"""The steps of a run by programs: see hypergrad/replay.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..backends import TRACING, backend_of
from ..backends.host import HOST
from ..bilevel import Stats
from ..replay import Replays
from ..rules import settings
from ..tape import Tensor
from ..trees import PyTree
from .dynamics import Bars, Dynamics, Pulled, Step

LEAST_STEPS = 12  # of a run that is replayed: in a shorter one recording costs more than it saves


class Replayed:
    """Some dynamics whose steps are replayed where they can be, with the same bits. `stats.program` says what is replayed, or why
    nothing is. Steps of the same kind have the same cotangents missing."""

    def __init__(self, dynamics: Dynamics, n_steps: int, stats: Stats, inputs: Sequence[Tensor]) -> None:
        self.dynamics, self.stats = dynamics, stats
        why = dynamics.unrecordable()
        if n_steps < LEAST_STEPS:
            why = f"the run has {n_steps} steps, and recording pays from {LEAST_STEPS}"
        if not settings()[0]:
            why = "fusion is switched off"
        backend = backend_of(*[x.value for x in inputs])
        if backend is not HOST:
            why = "the function around the run is recorded" if backend is TRACING else "the arrays are not the host's"
        self._replays = Replays(why)
        stats.program = self._replays.program

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
        if not self._replays.able:
            return f(self.dynamics, t, *trees)

        def with_batch(t: int, tree: PyTree) -> Any:
            trees, batch = tree
            return f(self.dynamics.with_batch(batch), t, *trees)

        batch, number = self.dynamics.batch(t)
        result = self._replays.call(kind, with_batch, number, (trees, batch))
        self.stats.program = self._replays.program
        return result
