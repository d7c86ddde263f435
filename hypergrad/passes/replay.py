"""The steps of a run by programs: see hypergrad/replay.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..backends import TRACING, backend_of, digest
from ..backends.host import HOST
from ..backends.tracing import Trace
from ..bilevel import Stats
from ..errors import DifferentiationError
from ..replay import Changed, Replays, shared_by
from ..rules import settings
from ..sharing import Kept
from ..tape import Tensor, primal
from ..trees import PyTree, tree_leaves, tree_map
from .dynamics import Bars, Dynamics, Pulled, Step

LEAST_STEPS = 12  # of a run that is replayed: in a shorter one recording costs more than it saves
MOST_KEPT_BYTES = 2**26  # of results that all steps of a run keep for their transposition; or an eighth of its states


class Replayed:
    """Some dynamics whose steps are replayed where they can be, with the same bits. `stats.program` says what is replayed, or why
    nothing is. Steps of the same kind have the same cotangents missing.

    Args:
        kept_among: the steps that share the room for what is kept; None where each has no more than an eighth of a state.
        state_bytes: of one state.

    Attributes:
        keeps: whether steps may keep results for their transposition.
    """

    def __init__(
        self, dynamics: Dynamics, n_steps: int, stats: Stats, inputs: Sequence[Tensor], kept_among: int | None, state_bytes: int
    ) -> None:
        self.dynamics, self.stats, self._n_steps = dynamics, stats, n_steps
        self.keeps = False
        self._kept: dict[int, tuple[Kept, list[Any]]] = {}  # with the fingerprints of what the step read
        self._unchanged: dict[Trace, bool] = {}  # whether the constants of the recordings that kept it are
        self._kept_bytes = 0
        self._most_kept = max(0 if kept_among is None else MOST_KEPT_BYTES // max(kept_among, 1), state_bytes // 8)
        why = dynamics.unrecordable()
        if n_steps < LEAST_STEPS:
            why = f"the run has {n_steps} steps, and recording pays from {LEAST_STEPS}"
        if not settings()[0]:
            why = "fusion is switched off"
        backend = backend_of(*[x.value for x in inputs])
        if backend is not HOST:
            why = "the function around the run is recorded" if backend is TRACING else "the arrays are not the host's"
        self._replays = Replays(why, shared=shared_by(dynamics.function))
        stats.program = self._replays.program

    def step(self, state: PyTree, args: PyTree, t: int, keep: bool = False, alone: bool = False) -> Step:
        """As `Dynamics.step`.

        Args:
            keep: whether the step is not run again before its transposition, so that results may be kept for that, where any are.
            alone: whether no backward pass follows, which would show that steps have become others on the way. The last one is then
                compared with the first.
        Raises: DifferentiationError where it does not do the same.
        """
        if not self._replays.able:
            return self.dynamics.step(state, args, t)

        def step_of(dynamics: Dynamics, t: int, state: PyTree, args: PyTree) -> Step:
            return dynamics.step(state, args, t)

        def value_of(dynamics: Dynamics, t: int, state: PyTree, args: PyTree) -> PyTree:
            state, args = tree_map(primal, (state, args))
            return dynamics.value(state, args, t)

        keep_for, batch = Kept(self._most_kept, _loss) if self.keeps else None, self.dynamics.batch(t)
        try:
            check = self._with_batch(value_of) if alone else None
            last = t == self._n_steps - 1
            step: Step = self._run("step", batch, (state, args), (), step_of, keep_for=keep_for, check=check, last=last)
        except Changed:
            raise DifferentiationError(
                f"{self.dynamics.name}: step {t} does not do what the first ones have done, expected the same because they were recorded "
                "and replayed; pass what changes in batches or as a hyperparameter, or switch that off: hg.fusion(False)"
            ) from None
        if keep and keep_for is not None and keep_for.arrays:
            self._drop(t)
            self._kept[t] = keep_for, _fingerprints((args, batch))
            self._kept_bytes += keep_for.nbytes
            self.stats.kept_bytes = max(self.stats.kept_bytes, self._kept_bytes)
        return step

    def step_transposed(
        self, state: PyTree, args: PyTree, t: int, after: PyTree, state_bar: Bars, output_bar: Bars, proven: bool
    ) -> Pulled:
        """As `Dynamics.step_transposed`."""
        alone = t == self._n_steps - 1 and any(x is None for x in state_bar)  # of its kind: later steps get a cotangent of every leaf
        if alone or not self._replays.able:
            self._drop(t)
            return self.dynamics.step_transposed(state, args, t, after, state_bar, output_bar, proven)

        def pull(dynamics: Dynamics, t: int, state: PyTree, args: PyTree, after: PyTree, state_bar: Bars, output_bar: Bars) -> Pulled:
            return dynamics.step_transposed(state, args, t, after, state_bar, output_bar, proven)

        if self.stats.kept_bytes and t not in self._kept:  # one of the first steps, which were recorded
            self.step(state, args, t, keep=True)
        batch, rest = self.dynamics.batch(t), (after, state_bar, output_bar)
        kept = self._take(t, (args, batch))
        pulled: Pulled = self._run(f"transposed step, proven {proven}", batch, (state, args), rest, pull, kept=kept)
        return pulled

    def _take(self, t: int, read: PyTree) -> Kept | None:
        """What step t has kept; None where it would read other numbers now. Then its loss is another one, too, and the run says so."""
        kept, fingerprints = self._drop(t)
        if kept is None:
            return None
        if kept.recording not in self._unchanged:
            self._unchanged[kept.recording] = kept.recording.is_unchanged()
        return kept if self._unchanged[kept.recording] and fingerprints == _fingerprints(read) else None

    def _drop(self, t: int) -> tuple[Kept | None, list[Any]]:
        kept, fingerprints = self._kept.pop(t, (None, []))
        self._kept_bytes -= 0 if kept is None else kept.nbytes
        return kept, fingerprints

    def forget(self) -> None:
        """Lets go what steps have kept."""
        self._kept.clear()
        self._unchanged.clear()
        self._kept_bytes = 0

    def _run(
        self, kind: str, batch: tuple[Any, int], front: tuple[Any, ...], rest: tuple[Any, ...], f: Callable[..., Any], **more: Any
    ) -> Any:
        result = self._replays.call(kind, self._with_batch(f), batch[1], (front, batch[0], rest), **more)
        self.stats.program = self._replays.program
        return result

    def _with_batch(self, f: Callable[..., Any]) -> Callable[[int, PyTree], Any]:
        def with_batch(t: int, tree: PyTree) -> Any:
            front, batch, rest = tree
            return f(self.dynamics.with_batch(batch), t, *front, *rest)

        return with_batch


def _fingerprints(tree: PyTree) -> list[Any]:
    """What shows whether two trees have the same numbers."""
    leaves = [x.value if isinstance(x, Tensor) else x for x in tree_leaves(tree)]
    return [repr(x) if not isinstance(x, np.ndarray) else x.tobytes() if x.size == 1 else digest(x) for x in leaves]


def _loss(step: Step) -> list[Tensor]:
    return [] if step.loss is None else [step.loss]
