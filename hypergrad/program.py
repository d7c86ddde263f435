"""Programs: a recorded function as a short list of NumPy and kernel calls on arrays that are laid out beforehand.

    recording  ->  live instructions  ->  arena  ->  calls

* An instruction is dropped where no output and no guard depends on it, and where an earlier one computes the same.
* A view of an array of the arena is made once. So are constants. One kernel does the work of several where together.py has one.
* Arrays that do not leave the program lie in the arena, one block of memory; arrays that are not needed at the same time share its bytes.
  What leaves it is allocated in each run. See arena.py.
* Kernels and elementwise functions that follow one another are one call, without Python in between. See stretch.py.
* All else is a call with its arguments bound. It does what the recorded one did, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from operator import mul
from typing import Any

import numpy as np

from .arena import ALIGNMENT, places
from .backends.host import HOST
from .backends.tracing import Instruction, Like, Slot, Trace, identity, replace, run_kernel
from .calls import Diverged, clear, compare, into_of, python_call, store
from .profiling import Label, current_profile
from .stretch import VIEW, Slots, Stretch, Way, copy_arguments, is_view, way_of
from .together import with_kernels_together

SMALL = 4096  # bytes: smaller arguments and results are copied, so that what reads or writes them can be bound once
_BOOKKEEPING: Label = ("guards and arrays let go", "", 0, 0)


class Program:
    """A recording made ready to be run on other arrays of the same shapes, dtypes and strides.

    Args:
        recording: of a function.
        outputs: slots of its results.
        keep: whether a large result that is computed twice is kept from the first time on instead.
        given: slots of results that are not computed: their arrays follow the arguments.

    Attributes:
        n_calls: calls of a run.
        arena_bytes: bytes of the arena.
    """

    def __init__(self, recording: Trace, outputs: Sequence[int], *, keep: bool = True, given: Sequence[int] = ()) -> None:
        self._inputs, self._outputs = [*recording.inputs, *given], [*outputs]
        self._likes: list[Any] = recording.likes
        self._owners, self._guards = recording.owners, recording.guards
        code = [one for one in self._without_repeats(recording.instructions, keep) if not one.writes or not {*given}.issuperset(one.writes)]
        code = with_kernels_together(self._live(code), self._likes)
        self._slots = Slots(self._likes, self._owners, recording.offsets, code)
        self._registers = self._slots.registers
        for n, x in recording.constants.items():
            self._registers[n] = np.asarray(x)
        self._places = [i for i, n in enumerate(self._inputs) if _is_small(self._likes[n])]  # of arguments that are copied, to `_small`
        copied = [self._inputs[i] for i in self._places]
        for number in copied:
            self._registers[number] = self._array(number)
        self._small = [self._registers[n] for n in copied]
        fixed = self._fixed = self._slots.fixed  # slots whose registers never change
        fixed.update([*recording.constants, *copied])
        numbers = {n for n, x in recording.constants.items() if not x.ndim}
        self._known = numbers - recording.closed_over  # of these, what no one can write to
        self.arena_bytes = self._lay_out(code)
        self._calls: list[tuple[Callable[[], Any], Label]] = []
        self._stretch: Stretch | None = None  # that is added to
        ways = [way_of(one, self._slots) for one in code]
        called = self._read_by_python(code, ways)
        last = {m: at for at, one in enumerate(code) for n in (*one.reads, *one.writes) for m in (n, self._slots.bases[n])}
        self._ask(self._inputs)
        for at, (one, way) in enumerate(zip(code, ways, strict=True)):
            if not self._is_made_now(one) and not (way is VIEW and called.isdisjoint(one.writes)):
                self._add(one, way)
            self._ask(one.writes)
            used = {m for n in (*one.reads, *one.writes) for m in (n, self._slots.bases[n])}
            self._let_go_of([n for n in used if last[n] == at and n not in fixed and n not in self._outputs])
        self._end_stretch()
        self.n_calls = len(self._calls)
        self._held = [(i, n) for i, n in enumerate(self._inputs) if n not in fixed]
        self._given_away = [(n, n in fixed and (n not in recording.constants or n in self._known)) for n in self._outputs]
        self._moving = [n for n in range(len(self._likes)) if n not in fixed]
        self._let_go = [n for n in {*self._inputs, *self._outputs} if n not in fixed]

    def __call__(self, arguments: Sequence[Any]) -> list[Any]:
        """The outputs for these arguments.

        Raises: Diverged where a guard answers otherwise.
        """
        registers = self._registers
        copy_arguments(self._small, arguments, self._places)
        for i, n in self._held:
            registers[n] = arguments[i]
        profile = current_profile()
        try:
            for call, label in self._calls:
                if type(call) is Stretch:
                    if not (call() if profile is None else call.profiled(profile.run)):
                        raise Diverged
                elif profile is None:
                    call()
                else:
                    profile.run(label, call)
            found = [registers[n].copy(order="K") if own else registers[n] for n, own in self._given_away]
        except BaseException:
            clear(registers, self._moving)
            raise
        clear(registers, self._let_go)
        return found

    # --- what need not be computed ---

    def _without_repeats(self, code: Sequence[Instruction], keep: bool) -> list[Instruction]:
        """The code without instructions that an earlier one stands for; without `keep` only where its results are small."""
        same: dict[int, int] = {}
        known: dict[str, Instruction] = {}
        kept = []
        for one in code:
            args, kwargs = replace((one.args, one.kwargs), Slot, lambda s: Slot(same.get(s.number, s.number)))
            one = one._replace(args=args, kwargs=kwargs, reads=tuple([same.get(n, n) for n in one.reads]))
            key = repr((identity(one.call), args, kwargs, one.errors))  # holds slots, numbers and text, but no array
            if key in known and (keep or all(self._likes[n].nbytes <= SMALL for n in one.writes)):
                same.update(zip(one.writes, known[key].writes, strict=True))
            else:
                known[key] = one
                kept.append(one)
        self._owners = [same.get(n, n) for n in self._owners]
        self._outputs = [same.get(n, n) for n in self._outputs]
        self._guards = [(same.get(n, n), answer) for n, answer in self._guards]
        return kept

    def _live(self, code: Sequence[Instruction]) -> list[Instruction]:
        """The code without instructions that nothing depends on."""
        needed = {*self._outputs, *[n for n, _ in self._guards]}
        kept = []
        for one in reversed(code):
            if needed.intersection(one.writes):
                needed.update(one.reads)
                kept.append(one)
        return kept[::-1]

    # --- memory ---

    def _array(self, number: int, buffer: Any = None, offset: int = 0) -> Any:
        like = self._likes[number]
        return np.ndarray(like.shape, like.dtype, buffer, offset, like.strides)

    def _lay_out(self, code: Sequence[Instruction]) -> int:
        """Puts the arrays that stay in the program into the arena; its bytes."""
        leaving = {self._owners[n] for n in self._outputs if self._likes[self._owners[n]].nbytes > SMALL}
        last = {self._owners[n]: at for at, one in enumerate(code) for n in (*one.reads, *one.writes)}
        last |= {self._owners[n]: len(code) for n in self._outputs}
        lives = {
            number: (self._likes[number].nbytes, at, last[number])
            for at, one in enumerate(code)
            for number in (one.writes if into_of(one) is not None or one.call is run_kernel else ())
            if self._owners[number] == number and number not in leaving
        }
        n_bytes, offsets = places([*lives.values()])
        arena = HOST.empty((n_bytes + ALIGNMENT,), np.uint8)
        for number, offset in zip(lives, offsets, strict=True):
            self._registers[number] = self._array(number, arena.data, -arena.ctypes.data % ALIGNMENT + offset)
        self._fixed.update(lives)
        return n_bytes

    # --- calls ---

    def _read_by_python(self, code: Sequence[Instruction], ways: Sequence[Way]) -> set[int]:
        """Slots whose arrays Python reads: a view that is not among them need not be made."""
        found = {*self._outputs, *[n for n, _ in self._guards]}
        for one, way in zip(reversed(code), reversed(ways), strict=True):
            if way is None or way is VIEW and not found.isdisjoint(one.writes):
                found.update(one.reads)
        return found

    def _ask(self, numbers: Sequence[int]) -> None:
        """Compares the truth values among these slots that the recording asked for."""
        asked = dict(self._guards)
        for number in asked.keys() & {*numbers}:
            if self._slots.can_ask(number):
                self._open_stretch().ask(number, asked[number])
            else:
                self._call(partial(compare, self._registers, number, asked[number]), _BOOKKEEPING)

    def _let_go_of(self, numbers: list[int]) -> None:
        """Clears registers that nothing reads from here on."""
        if self._stretch is not None:
            self._stretch.dead += numbers
        elif numbers:
            self._call(partial(clear, self._registers, numbers), _BOOKKEEPING)

    def _open_stretch(self) -> Stretch:
        self._stretch = self._stretch or Stretch(self._slots)
        return self._stretch

    def _end_stretch(self) -> None:
        if self._stretch is not None:
            self._stretch.close()
            self._calls.append((self._stretch, _BOOKKEEPING))
        self._stretch = None

    def _call(self, call: Callable[[], Any], label: Label) -> None:
        self._end_stretch()
        self._calls.append((call, label))

    def _is_made_now(self, one: Instruction) -> bool:
        """Makes the number or the view that an instruction is, if it is one and is the same in every run."""
        number = self._known.issuperset(one.reads) and one.call is not run_kernel
        if not number and not (self._fixed.issuperset(one.reads) and is_view(one, self._owners)):
            return False
        store(one, self._registers)
        self._fixed.update(one.writes)
        self._known.update(one.writes if number else ())
        return True

    def _add(self, one: Instruction, way: Way) -> None:
        """Adds an instruction: to the stretch if it can, else as a call of Python."""
        if way is not None and way is not VIEW:
            return self._open_stretch().add(one, way, self._label(one))
        self._call(python_call(one, self._slots), self._label(one))

    def _label(self, one: Instruction) -> Label:
        reads, writes = ([like for n in numbers if (like := self._likes[n]) is not None] for numbers in (one.reads, one.writes))
        name = str(one.args[0] if one.call is run_kernel else getattr(one.call, "__name__", "call"))
        flop = sum(like.nbytes // like.dtype.itemsize for like in writes)
        if one.call == HOST.matmul_into:
            name, flop = "matmul", flop * 2 * reads[0].shape[-1]
        elif isinstance(getattr(one.call, "__self__", None), np.ufunc):
            name = f"{one.call.__self__.__name__}.{name}"  # type: ignore[attr-defined]
        return name, str(writes[0].shape) if writes else "", sum(like.nbytes for like in (*reads, *writes)), flop


def _is_small(like: Like | None) -> bool:
    """Whether an argument is small and its elements lie side by side, in whatever order of axes."""
    if like is None or not 0 < like.nbytes <= SMALL:
        return False
    axes = sorted((stride, size) for stride, size in zip(like.strides, like.shape, strict=True) if size != 1)
    dense = accumulate([size for _, size in axes], mul, initial=like.dtype.itemsize)
    return all(stride == expected for (stride, _), expected in zip(axes, dense, strict=False))
