"""Programs: a recorded function as a short list of NumPy and kernel calls on arrays that are laid out beforehand.

    recording  ->  live instructions  ->  arena  ->  calls

* An instruction is dropped where no output and no guard depends on it, and where an earlier one computes the same.
* A view of an array of the arena is made once. So are constants. One kernel does the work of several where together.py has one.
* Arrays that do not leave the program lie in the arena, one block of memory; arrays that are not needed at the same time share its bytes.
  What leaves it is allocated in each run. See arena.py.
* A call is a function with its arguments bound. It does what the recorded one did, bit for bit.

Beside its arithmetic a call costs one call of a function of Python or C, where the engine takes some ten for an op with its derivative.
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
from .profiling import Label, current_profile
from .together import with_kernels_together

SMALL = 4096  # bytes: smaller arguments and results are copied, so that what reads or writes them can be bound once
_BOOKKEEPING: Label = ("guards and arrays let go", "", 0, 0)


class Diverged(Exception):
    """A guard has another answer than in the recording, so the recorded instructions are not those of this call."""


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
        self._registers: list[Any] = [recording.constants.get(n) for n in range(len(self._likes))]
        self._copied = [(i, n) for i, n in enumerate(self._inputs) if _is_small(self._likes[n])]
        for _, number in self._copied:
            self._registers[number] = self._array(number)
        self._fixed = {*recording.constants, *[n for _, n in self._copied]}  # slots whose registers never change
        self._known = {
            n for n, x in recording.constants.items() if not x.ndim
        } - recording.closed_over  # of these, what no one can write to
        self.arena_bytes = self._lay_out(code)
        self._calls: list[tuple[Callable[[], Any], Label]] = []
        self._ask(self._inputs)
        last = {n: at for at, one in enumerate(code) for n in (*one.reads, *one.writes)}
        for at, one in enumerate(code):
            self._add(one)
            self._ask(one.writes)
            dead = [n for n in {*one.reads, *one.writes} if last[n] == at and n not in self._fixed and n not in self._outputs]
            if dead:
                self._calls.append((partial(_clear, self._registers, dead), _BOOKKEEPING))
        self.n_calls = len(self._calls)
        self._held = [(i, n) for i, n in enumerate(self._inputs) if n not in self._fixed]
        self._given_away = [(n, n in self._fixed and (n not in recording.constants or n in self._known)) for n in self._outputs]
        self._let_go = [n for n in {*self._inputs, *self._outputs} if n not in self._fixed]

    def __call__(self, arguments: Sequence[Any]) -> list[Any]:
        """The outputs for these arguments.

        Raises: Diverged where a guard answers otherwise.
        """
        registers = self._registers
        for i, n in self._copied:
            np.copyto(registers[n], arguments[i])
        for i, n in self._held:
            registers[n] = arguments[i]
        profile = current_profile()
        try:
            for call, label in self._calls:
                call() if profile is None else profile.run(label, call)
            return [registers[n].copy(order="K") if own else registers[n] for n, own in self._given_away]
        finally:
            _clear(registers, self._let_go)

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
            for number in (one.writes if _into(one) is not None or one.call is run_kernel else ())
            if self._owners[number] == number and number not in leaving
        }
        n_bytes, offsets = places([*lives.values()])
        arena = HOST.empty((n_bytes + ALIGNMENT,), np.uint8)
        for number, offset in zip(lives, offsets, strict=True):
            self._registers[number] = self._array(number, arena.data, -arena.ctypes.data % ALIGNMENT + offset)
        self._fixed.update(lives)
        return n_bytes

    # --- calls ---

    def _ask(self, numbers: Sequence[int]) -> None:
        """Compares the truth values among these slots that the recording asked for."""
        asked = dict(self._guards)
        for number in asked.keys() & {*numbers}:
            self._calls.append((partial(_compare, self._registers, number, asked[number]), _BOOKKEEPING))

    def _add(self, one: Instruction) -> None:
        """Adds the call of an instruction, or makes the number or the view that it is."""
        call, registers = one.call, self._registers
        kwargs, moving = one.kwargs, list[Any]()
        number = self._known.issuperset(one.reads) and call is not run_kernel
        if number or self._fixed.issuperset(one.reads) and all(self._owners[n] != n for n in one.writes):
            _store(registers, _paths(one.layout), partial(call, *self._filled(one.args), **self._filled(kwargs)))
            self._fixed.update(one.writes)
            self._known.update(one.writes if number else ())
            return
        paths = [(path, n) for path, n in _paths(one.layout) if n not in self._fixed]
        if call is run_kernel:
            kwargs = {**kwargs, **replace(one.layout, Slot, lambda s: s if s.number in self._fixed else True)}  # True for a new array
        elif not paths and (into := _into(one)) is not None:
            call, kwargs = into, {**kwargs, "out": Slot(one.writes[0])}
        if one.errors is not None:
            call = partial(_with_errors, one.errors, call)
        args, kwargs = self._bound(one.args, moving), self._bound(kwargs, moving)
        if call == HOST.matmul_into and not moving and args[0].flags.aligned and args[1].flags.aligned:
            call, args, kwargs = run_kernel, ("matmul",), HOST.product(*args, **kwargs)
        call = partial(call, *args, **kwargs) if not moving else partial(_moved, registers, moving, call, args, kwargs)
        self._calls.append((partial(_store, registers, paths, call) if paths else call, self._label(one)))

    def _filled(self, x: Any) -> Any:
        return replace(x, Slot, lambda s: self._registers[s.number])

    def _bound(self, x: Any, moving: list[tuple[Any, Any, Any]]) -> Any:
        """Arguments with arrays in the slots that never change. `moving` gets the others: list or dictionary, key, what is there."""
        x = x.copy() if type(x) is dict else [*x]
        for key, y in [*(x.items() if type(x) is dict else enumerate(x))]:
            if type(y) is dict or type(y) is list:
                x[key] = self._bound(y, moving)
            elif self._fixed.issuperset(_slots(y)):
                x[key] = self._filled(y)
            else:
                moving.append((x, key, y))
        return x

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


# --- instructions that can be told where to write ---


def _choose_into(condition: Any, x: Any, y: Any, out: Any) -> None:
    np.copyto(out, y)
    np.copyto(out, x, where=condition)


_INTO: dict[Any, Callable[..., Any]] = {
    np.ndarray.astype: lambda x, dtype, out: np.copyto(out, x, casting="unsafe"),
    np.where: _choose_into,
    np.mean: np.mean,
}


def _into(one: Instruction) -> Callable[..., Any] | None:
    """The function that does the same and takes the result's place as `out`; None where there is none."""
    if len(one.writes) != 1 or type(one.layout) is not Slot or one.call is run_kernel:
        return None
    call = one.call
    takes_out = isinstance(call, np.ufunc) or isinstance(getattr(call, "__self__", None), np.ufunc) and call.__name__ == "reduce"
    return call if takes_out or call == HOST.matmul_into else _INTO.get(call)


# --- what calls are made of ---


def _slots(x: Any) -> list[int]:
    found: list[int] = []
    replace(x, Slot, lambda s: found.append(s.number))
    return found


def _moved(registers: list[Any], moving: list[Any], call: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
    """The call's result with the arrays of this run in its arguments, where they stay no longer than that."""
    for x, key, y in moving:
        x[key] = registers[y.number] if type(y) is Slot else replace(y, Slot, lambda s: registers[s.number])
    try:
        return call(*args, **kwargs)
    finally:
        for x, key, _ in moving:
            x[key] = None


def _paths(layout: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], int]]:
    """The slots in a result, each with the keys that lead to its array."""
    if type(layout) is Slot:
        return [(path, layout.number)]
    rows = layout.items() if isinstance(layout, dict) else enumerate(layout) if isinstance(layout, (tuple, list)) else ()
    return [found for key, x in rows for found in _paths(x, (*path, key))]


def _store(registers: list[Any], paths: list[tuple[tuple[Any, ...], int]], call: Callable[[], Any]) -> None:
    result = call()
    for path, number in paths:
        x = result
        for key in path:
            x = x[key]
        registers[number] = x


def _clear(registers: list[Any], numbers: list[int]) -> None:
    for n in numbers:
        registers[n] = None


def _compare(registers: list[Any], number: int, answer: bool) -> None:
    if bool(registers[number]) is not answer:
        raise Diverged


def _with_errors(errors: dict[str, Any], call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with np.errstate(**errors):
        return call(*args, **kwargs)
