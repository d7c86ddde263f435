"""The dynamics Phi of a run, s_t = Phi_t(s_{t-1}, lambda): what a step is, and how a cotangent is pulled through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from ..backends import Array
from ..bilevel import batch_of
from ..errors import ArgumentError
from ..optimizers import same_kind
from ..tape import Tape, Tensor, untaped
from ..transforms import tree_tensors
from ..trees import PyTree, tree_flatten, tree_leaves, tree_map, tree_unflatten

Bars = list[Tensor | None]
"""Cotangents of the leaves of a tree, None where they are zero."""


class Step(NamedTuple):
    """What one step gives.

    Attributes:
        state: the state after it, a pytree of Tensors.
        output: what is stacked over all steps, a pytree of Tensors; None for nothing.
        loss: the inner loss, where the step descends one.
        compared: Tensors that, with the loss, show whether the step is the same when it is run again; None for nothing.
        proven: whether the loss was made of proven ops alone, so that its Hessian is symmetric; see rules.Registered.
    """

    state: PyTree
    output: PyTree
    loss: Tensor | None
    compared: PyTree
    proven: bool = True


class Pulled(NamedTuple):
    """Cotangents of a step's state and arguments, and of the step that was run again for them what `Step` says of it."""

    state_bar: Bars
    args_bar: Bars
    loss: Tensor | None
    compared: PyTree


class Dynamics(Protocol):
    """What the passes need of a run, whatever it computes. Every method is a pure function of its arguments."""

    @property
    def name(self) -> str:
        """The op's name in messages."""

    @property
    def function(self) -> Any:
        """What the user has written of it. Runs of the same function may share the programs of their steps."""

    def unrecordable(self) -> str | None:
        """Why no step can be recorded and replayed; None where it can be tried."""

    def batch(self, t: int) -> tuple[Any, int]:
        """What step t reads beside its state and arguments: its batch, and its number in the whole run."""

    def with_batch(self, batch: Any) -> Dynamics:
        """The same dynamics where every step reads this batch, and is given the number that came with it."""

    def reads_after(self, args: PyTree) -> bool:
        """Whether the transposed step reads the state after the step."""

    def init(self, start: PyTree, args: PyTree) -> PyTree:
        """The state before the first step, made from the caller's start. It is ordinary code, which open tapes record."""

    def step(self, state: PyTree, args: PyTree, t: int) -> Step:
        """Step t, written in ops: tangents and tapes of any argument pass through it.

        Args:
            state: pytree of Tensors.
            args: pytree of Tensors, all the hyperparameters.
            t: number of steps done so far.
        """

    def value(self, state: PyTree, args: PyTree, t: int) -> PyTree:
        """What the user's function gives in step t. Its recordings show whether a later step is another function."""

    def step_transposed(
        self, state: PyTree, args: PyTree, t: int, after: PyTree, state_bar: Bars, output_bar: Bars, proven: bool
    ) -> Pulled:
        """Cotangents of a step's state and arguments from those of its results.

        Args:
            state, args, t: as in `step`, without tangents.
            after: the state after the step; None where it is not read.
            state_bar, output_bar: cotangents of the leaves of the state after the step and of its output.
            proven: whether every step of the first run was proven.
        """


@dataclass(frozen=True, slots=True)
class Residue:
    """What a step's inverse needs beside the state after it.

    Attributes:
        bits: packed, uint8.
        signs: of the zeros in the weights and in the velocity, for each leaf, packed; None where no zero is negative.
    """

    bits: Array
    signs: list[list[Array]] | None

    @property
    def nbytes(self) -> int:
        """Bytes of all its arrays."""
        return int(self.bits.nbytes + sum(x.nbytes for xs in self.signs or [] for x in xs))


class Reversible(Dynamics, Protocol):
    """Dynamics whose steps can be undone."""

    def step_with_residue(self, state: PyTree, args: PyTree, t: int) -> tuple[Step, Residue]:
        """Step t, and what `undo` needs beside the state after it."""

    def undo(self, state: PyTree, args: PyTree, t: int, residue: Residue) -> PyTree:
        """The state before step t, from the one after it, bit for bit."""


def transposed_by_tape(dynamics: Dynamics, state: PyTree, args: PyTree, t: int, state_bar: Bars, output_bar: Bars) -> Pulled:
    """The transposed step of any dynamics, by a tape that records the step. It assumes nothing of the step.

    Time: about three steps; more where the step takes a gradient, as the tape then records that gradient.
    """
    leaves, spec = tree_flatten((state, args))
    tape = Tape()

    def taped() -> tuple[list[Tensor], Step]:
        watched = [tape.watch(x) for x in leaves]
        own_state, own_args = tree_unflatten(spec, watched)
        return watched, dynamics.step(own_state, own_args, t)

    watched, after = tape.run(taped)
    n_state = len(state_bar)
    outs = [*tree_leaves(after.state), *tree_leaves(after.output)]
    bars = tape.gradients(outs, [*state_bar, *output_bar], watched)
    return Pulled(bars[:n_state], bars[n_state:], after.loss, tree_map(untaped, after.compared))


class OneBatch(Sequence[Any]):
    """The same batch for a step of any number."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def __getitem__(self, t: Any) -> Any:
        return self.batch


@dataclass(frozen=True)
class Stepping(Dynamics):
    """The dynamics of `scan`: a step that the user writes."""

    f: Callable[[PyTree, PyTree, Any], tuple[PyTree, PyTree]]
    batches: Any
    name: str = "scan"

    @property
    def function(self) -> Any:
        return self.f

    def unrecordable(self) -> str | None:
        return None

    def batch(self, t: int) -> tuple[Any, int]:
        return batch_of(self.name, self.batches, t), t

    def with_batch(self, batch: Any) -> Stepping:
        return replace(self, batches=OneBatch(batch))

    def reads_after(self, args: PyTree) -> bool:
        return False

    def init(self, start: PyTree, args: PyTree) -> PyTree:
        return start

    def value(self, state: PyTree, args: PyTree, t: int) -> PyTree:
        return self.f(state, args, batch_of(self.name, self.batches, t))

    def step(self, state: PyTree, args: PyTree, t: int) -> Step:
        result = self.value(state, args, t)
        if not (isinstance(result, tuple) and len(result) == 2):
            raise ArgumentError(
                f"scan: step returned a {type(result).__name__}, expected the pair (state, output); "
                "return state, None where there is no output"
            )
        after, output = tree_tensors(result, "scan")
        same_kind("scan: step", (state,), (after,), ("state",))
        return Step(after, output, None, (after, output))

    def step_transposed(
        self, state: PyTree, args: PyTree, t: int, after: PyTree, state_bar: Bars, output_bar: Bars, proven: bool
    ) -> Pulled:
        return transposed_by_tape(self, state, args, t, state_bar, output_bar)
