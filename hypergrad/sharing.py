"""Results that two recorded functions have in common: what the first has computed is given to the second.

The transposed step of a run computes the step's loss again, from the same state, arguments and batch. Where the parts of that loss cost
more to compute than to keep, the step keeps them, and the program of the transposed step begins with them. The bits are the same: both are
results of the same calls on the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from .backends.host import HOST
from .backends.tracing import Instruction, Slot, Trace, identity, replace, run_kernel, same_array

LEAST_FLOP = 64  # for each byte of a result that is kept: what takes less is computed again sooner than it is written and read

_FLOP: dict[str, Callable[[dict[str, Any]], int]] = {}


def count_flop(kernel: str, flop: Callable[[dict[str, Any]], int]) -> None:
    """Declares the floating-point operations of a kernel whose results may be kept, as a function of its arguments' shapes, by name."""
    _FLOP[kernel] = flop


@dataclass
class Kept:
    """What one call has kept for another whose first arguments are the same.

    Attributes:
        most_bytes: of the arrays.
        roots: the Tensors in the call's result that are made of what is kept.
        names: of the results, as `Names` has them.
        n_arguments: of the call.
        recording: of the run, of what the call replayed.
        arrays: the results.
    """

    most_bytes: int
    roots: Callable[[Any], Sequence[Any]]
    names: tuple[int, ...] = ()
    n_arguments: int = 0
    recording: Any = None
    arrays: list[Any] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(x.nbytes for x in self.arrays)


def dear_results(recording: Trace, roots: Sequence[int], most_bytes: int) -> list[int]:
    """Slots of the results that the roots are made of and that are worth keeping; none where they are more bytes than `most_bytes`."""
    needed, found = set(roots), list[int]()
    for one in reversed(recording.instructions):
        if not needed.isdisjoint(one.writes):
            needed.update(one.reads)
            if _flop(recording, one) >= LEAST_FLOP * _nbytes(recording, one.writes):
                found = [*one.writes, *found]
    return found if _nbytes(recording, found) <= most_bytes else []


def _flop(recording: Trace, one: Instruction) -> int:
    shapes = {k: like.shape for k, x in one.kwargs.items() if isinstance(x, Slot) and (like := recording.likes[x.number]) is not None}
    if one.call is run_kernel:
        return _FLOP[one.args[0]](shapes) if one.args[0] in _FLOP else 0
    left, out = recording.likes[one.reads[0]] if one.reads else None, recording.likes[one.writes[0]] if one.writes else None
    if one.call != HOST.matmul_into or left is None or out is None:
        return 0
    return 2 * left.shape[-1] * out.nbytes // out.dtype.itemsize


def _nbytes(recording: Trace, slots: Sequence[int]) -> int:
    return sum(like.nbytes for n in slots if (like := recording.likes[n]) is not None)


class Names:
    """Numbers for what is computed in several recordings: the same for the same calls on the same arguments and constants."""

    def __init__(self) -> None:
        self._busy = Lock()  # runs in several threads may share it
        self._numbers: dict[Any, int] = {}
        self._constants: dict[Any, list[Any]] = {}

    def of(self, recording: Trace, n_arguments: int) -> dict[int, int]:
        """The number of each slot. The first `n_arguments` arguments are the same in all recordings."""
        with self._busy:
            return self._of(recording, n_arguments)

    def _of(self, recording: Trace, n_arguments: int) -> dict[int, int]:
        found: dict[int, int] = {}
        for i, n in enumerate(recording.inputs):
            found[n] = self._number(("argument", i) if i < n_arguments else ("own", id(recording), i))
        for n, x in recording.constants.items():
            found[n] = self._constant(x)
        for one in recording.instructions:
            args, kwargs = replace((one.args, one.kwargs), Slot, lambda s: Slot(found[s.number]))
            number = self._number(repr((identity(one.call), args, kwargs, one.errors)))
            found.update({n: self._number((number, i)) for i, n in enumerate(one.writes)})
        return found

    def _number(self, key: Any) -> int:
        return self._numbers.setdefault(key, len(self._numbers))

    def _constant(self, x: Any) -> int:
        """The number of an array that two recordings may have in common, or two equal ones."""
        key = x.shape, x.strides, x.dtype.str
        alike = self._constants.setdefault(key, [])
        for i, y in enumerate(alike):
            if same_array(x, y):
                return self._number((key, i))
        alike.append(x)
        return self._number((key, len(alike) - 1))
