"""A run of T steps as one op, whatever its dynamics: its jvp is the forward pass, its vjp the reverse pass over checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass
from itertools import zip_longest
from typing import Any, ClassVar, cast

import numpy as np

from ..backends import backend_of, is_batched, is_readable, refused
from ..backends.recording import Results, keeping, new_results
from ..bilevel import Stats
from ..errors import DifferentiationError
from ..launches import added, in_full
from ..ops.arrays import stack
from ..optimizers import digests
from ..rules import Surroundings
from ..state import is_idle, set_aside
from ..tape import Node, Rule, Tensor, levels_of, record, untaped
from ..transforms import owned
from ..trees import PyTree, tree_flatten, tree_leaves, tree_structure, tree_unflatten
from .dynamics import Bars, Dynamics, Residue, Reversible
from .replay import Replayed
from .schedule import Schedule
from .store import Memory, Store, n_bytes

Callback = Callable[[int, PyTree, Tensor | None], None]


@dataclass(eq=False)
class Run:
    """The op of one run. Its inputs are the leaves of the first state and of the arguments.

    Args:
        dynamics: what a step is.
        state, args: the state before the first step and the arguments, pytrees of Tensors.
        n_steps: T.
        schedule: which states reverse mode holds.
        stats: what is counted into.
        make_store: makes the store of the states.
        per_step: for each leaf of `args`, whether it has one row for each step. Step t then gets row t alone.
        callback: called with (t, state, loss) after step t of the first run, where `state` is the state before the step.
        kept_among: the steps that share the room for results which steps keep for their transposition; 0 where they keep none. Where
            the schedule runs steps again, those of a step take at most an eighth of a state.
    """

    dynamics: Dynamics
    state: InitVar[PyTree]
    args: InitVar[PyTree]
    n_steps: int
    schedule: Schedule
    stats: Stats
    make_store: Callable[[Stats], Store]
    per_step: Sequence[bool] = ()
    callback: Callback | None = None
    kept_among: int = 0
    proven: ClassVar[bool] = True

    def __post_init__(self, state: PyTree, args: PyTree) -> None:
        self.name = self.dynamics.name
        self.state_spec, self.args_spec = tree_structure(state), tree_structure(args)
        self.n_state = len(tree_leaves(state))
        self.inputs = [*tree_leaves(state), *tree_leaves(args)]
        self.surroundings = Surroundings()
        among = None if self.schedule.reruns else self.kept_among
        self.steps = Replayed(self.dynamics, self.n_steps, self.stats, self.inputs, among, n_bytes(state))
        self.store: Store | None = None
        self.residues: list[Residue] = []  # of the steps that the backward run undoes, which undoes the last one first
        self.results: dict[int, Results] = {}  # of the steps whose states are in the device's memory
        self.losses: list[Tensor] = []
        self.traces: list[tuple[int | None, ...]] = []
        self.proven_steps = True

    def __call__(self) -> tuple[PyTree, PyTree]:
        """The state after the last step and the stacked outputs (None where a step has none), Tensors on the open tapes."""
        levels = levels_of(self.inputs)
        if levels and any(t.dot is not None for t in self.inputs):
            raise self._error(_FIRST_ORDER)
        outs, spec = tree_flatten(self._first(self.inputs, keep=bool(levels)))
        if is_batched((*self.inputs, *outs)):
            raise refused(self.name)
        self.callback = None  # it is for the first run alone, not for those of a pullback that is called again
        self.stats.steps_run += self.n_steps
        if not levels:
            held = outs[: self.n_state]
            self.stats.hold(self.n_steps, n_bytes(held), 1 + max((len(t.dot) for t in held if t.dot is not None), default=0))
            self.stats.release(self.n_steps)
        if is_idle():
            outs = [Tensor(x) for x in owned(outs, [t.value for t in self.inputs])]
        node = Node(cast(Rule, self), self.inputs, {}, None, levels)  # no forward or push: the first run has done their work
        node.outputs = [(t.value, t.dot) for t in outs]
        record(node)
        state, outputs = tree_unflatten(spec, node.results())
        return state, outputs

    def _args(self, leaves: Sequence[Tensor], t: int) -> PyTree:
        """The arguments as step t sees them."""
        if any(self.per_step):
            leaves = [_row(x, t) if own else x for x, own in zip(leaves, self.per_step, strict=True)]
        return tree_unflatten(self.args_spec, leaves)

    def _first(self, inputs: Sequence[Tensor], *, keep: bool) -> tuple[PyTree, PyTree]:
        """The first run; with `keep`, the states that the schedule wants are stored on the way."""
        self.surroundings.kept.clear()
        state = in_full([untaped(t) for t in inputs[: self.n_state]])
        return set_aside(self.surroundings.run, self._run, [*state, *map(untaped, inputs[self.n_state :])], keep)

    def _run(self, inputs: list[Tensor], keep: bool) -> tuple[PyTree, PyTree]:
        state, args = tree_unflatten(self.state_spec, inputs[: self.n_state]), inputs[self.n_state :]
        wanted, undone = (set(self.schedule.first_run()), self.schedule.undone) if keep else (set(), range(0))
        begin = min(wanted, default=self.n_steps)
        store = self.store = self.make_store(self.stats) if keep else None
        self.residues.clear()
        self.results.clear()
        self.steps.forget()
        self.steps.keeps = self.kept_among > 0 and self.schedule.stores_reruns and isinstance(store, Memory) and store.exact
        self.stats.residue_bytes = self.stats.kept_bytes = 0
        self.losses, self.traces, self.proven_steps, outputs = [], [], True, []
        for t in range(self.n_steps):
            self.stats.began("first", t)
            if store is not None and t in wanted:
                store.put(t, state)
            if t in undone:
                step, residue = cast(Reversible, self.dynamics).step_with_residue(state, self._args(args, t), t)
                self.residues.append(residue)
                self.stats.residue_bytes += residue.nbytes
            else:
                kept = new_results() if isinstance(store, Memory) and t in wanted else None
                if kept is not None:
                    self.results[t] = kept
                once = t >= begin and (t + 1 in wanted or t + 1 == self.n_steps)  # else it is run again to get to the state after it
                step = keeping(kept, self.steps.step, state, self._args(args, t), t, once, not keep)
            if self.callback is not None:
                self.callback(t, state, step.loss)
            state = step.state
            self.proven_steps &= step.proven
            self.traces.append(digests(step.compared))
            if step.loss is not None:
                self.losses.append(step.loss.detach())
            outputs.append(step.output)
        self.stats.began("outer", self.n_steps)
        if store is not None and self.n_steps in wanted:
            store.put(self.n_steps, state)
        if all(x is None for x in outputs):
            return state, None
        rows = [tree_flatten(x) for x in outputs]
        if any(spec != rows[0][1] for _, spec in rows):
            raise self._error(
                f"the outputs of its steps have the structures {sorted({str(spec) for _, spec in rows})}, expected one "
                "because they are stacked; return the same tree in every step"
            )
        stacked = [stack(column) for column in zip(*(row for row, _ in rows), strict=True)]
        return state, tree_unflatten(rows[0][1], stacked)

    def pull(self, node: Node, bars: list[Tensor | None], want: Sequence[int]) -> Sequence[Tensor | None]:
        """The reverse pass: visits the states from T-1 to 0 as the schedule says."""
        if levels_of([*node.inputs, *bars]) or any(t.dot is not None for t in [*node.inputs, *bars] if t is not None):
            raise self._error(_FIRST_ORDER)
        if is_batched(bars):
            raise refused(self.name)
        inputs = [Tensor(t.value) for t in node.inputs]
        losses, traces = self.losses, self.traces
        try:
            if self.store is None:  # the pullback is called again: its first call dropped the states as it used them
                self._first(inputs, keep=True)
                self.stats.steps_rerun += self.n_steps
                again, self.losses, self.traces = list(zip_longest(self.losses, self.traces)), losses, traces
                for t, (loss, trace) in enumerate(again):
                    self._check(t, loss, trace)
            assert self.store is not None
            last = tree_unflatten(self.state_spec, [Tensor(value) for value, _ in node.outputs[: self.n_state]])
            own_bars = [None if b is None else untaped(b) for b in bars]
            got = set_aside(self.surroundings.run, self._pull, self.store, inputs, last, own_bars)
        finally:  # after an error, too: the next pullback runs the steps again and compares them with the first run
            self.losses, self.traces, self.store = losses, traces, None
            self.residues.clear()
            self.results.clear()
            self.steps.forget()
            self.surroundings.kept.clear()
        return [t if wanted else None for t, wanted in zip(got, want, strict=True)]

    def _pull(self, store: Store, inputs: list[Tensor], after: PyTree, bars: Bars) -> Bars:
        args = inputs[self.n_state :]
        bar, stacked = bars[: self.n_state], bars[self.n_state :]
        totals = _Totals(self.per_step or [False] * len(args), self.n_steps)
        state: PyTree = None
        reads_after = self.dynamics.reads_after(self._args(args, 0)) if self.n_steps else False
        t = 0
        for action, t in self.schedule.backward():
            self.stats.began(action, t)
            if action == "load":
                state = store.get(t)
            elif action == "step":
                state = self._step_again(state, self._args(args, t), t)
            elif action == "undo":
                state = cast(Reversible, self.dynamics).undo(state, self._args(args, t), t, self.residues.pop())
                self.stats.steps_rerun += 1
            elif action == "store":
                store.put(t, state)
            elif action == "free":
                store.drop(t)
            else:
                row = [None if b is None else _row(b, t) for b in stacked]
                bar, args_bar = self._back(state, self._args(args, t), t, after if reads_after else None, bar, row, store.exact)
                after = state if reads_after else None
                totals.add(args_bar, t)
                del args_bar, row
        self.stats.began("end", 0)
        if t > 0:  # truncated: what would flow on into the state before step t
            bar = [None] * self.n_state
        return [*bar, *totals.values()]

    def _step_again(self, state: PyTree, args: PyTree, t: int) -> PyTree:
        """The state after step t, which has been run before."""
        step = self.steps.step(state, args, t, keep=True)
        self._check(t, step.loss, digests(step.compared))
        self.stats.steps_rerun += 1
        return step.state

    def _back(self, state: PyTree, args: PyTree, t: int, after: PyTree, bar: Bars, row: Bars, exact: bool) -> tuple[Bars, Bars]:
        """The cotangents of the state before step t and of the arguments. Args: exact: whether the step must be the one that was run."""
        kept = self.results.pop(t, None)
        if kept is not None:
            kept.rewind()
        pulled = keeping(kept, self.steps.step_transposed, state, args, t, after, bar, row, self.proven_steps)
        if exact:
            # A tape that records a gradient takes fused ops' composed references, which round otherwise: ask the step itself.
            rounded = pulled.compared is not None and digests(pulled.compared) != self.traces[t]
            again = self.dynamics.step(state, args, t) if rounded else pulled
            self._check(t, again.loss, digests(again.compared))
        return pulled.state_bar, pulled.args_bar

    def _check(self, t: int, loss: Tensor | None, trace: tuple[int | None, ...]) -> None:
        """Raises: DifferentiationError unless step t, run again, was the same as the first time. Only readable arrays are compared."""
        if loss is not None and is_readable(loss.value) and loss.value.tobytes() != self.losses[t].value.tobytes():
            raise self._error(
                f"the inner loss of step {t} was {self.losses[t].value.item():.17g} and is {loss.value.item():.17g} when the step is "
                f"run again, expected the same bits because reverse mode runs every step again; {_REMEDY}"
            )
        if trace and trace != self.traces[t]:
            raise self._error(
                f"step {t} led to another state when it was run again (digests {self.traces[t]} and {trace}), expected the same "
                f"bits because reverse mode runs every step again; {_REMEDY}"
            )

    def _error(self, text: str) -> DifferentiationError:
        return DifferentiationError(f"{self.name}: {text}")


_FIRST_ORDER = (
    "its derivative is being differentiated again, expected first order because the passes already use the engine's second "
    "order; write the steps as a Python loop inside the function"
)
_REMEDY = (
    "draw what is random in batches, as a function of t alone, keep no counter in the step, and do not write to arrays that it "
    "reads until the gradient is there"
)


def _row(x: Tensor, t: int) -> Tensor:
    """Row t of a Tensor off every tape, with its tangents."""
    return Tensor(x.value[t, ...], None if x.dot is None else Tensor(x.dot.value[:, t]))


class _Totals:
    """The sums of the arguments' cotangents over the steps. For an argument with a row per step: an array of the rows' cotangents."""

    def __init__(self, per_step: Sequence[bool], n_steps: int) -> None:
        self.per_step, self.n_steps = per_step, n_steps
        self.sums: list[Any] = [None] * len(per_step)
        self.own: set[int] = set()  # sums that are added to in place on the host: the first cotangent's array may have another owner

    def add(self, bars: Bars, t: int) -> None:
        """Adds the cotangents from step t; on a GPU in one launch."""
        rest = []
        for i, (bar, per_step) in enumerate(zip(bars, self.per_step, strict=True)):
            if bar is None:
                continue
            if per_step:
                if self.sums[i] is None:
                    self.sums[i] = backend_of(bar.value).xp.zeros((self.n_steps, *bar.shape), bar.dtype)
                self.sums[i][t] = bar.value
            elif self.sums[i] is None:
                self.sums[i] = bar.value
            elif i in self.own and is_readable(bar.value):
                self.sums[i] += bar.value
            else:
                rest.append(i)
        for i, total in zip(rest, added([Tensor(self.sums[i]) for i in rest], [bars[i] for i in rest]), strict=True):
            self.sums[i] = total.value
            self.own.add(i)

    def values(self) -> Bars:
        """The sums; None for zero."""
        return [None if x is None else Tensor(np.asarray(x) if isinstance(x, np.generic) else x) for x in self.sums]
