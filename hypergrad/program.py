"""Programs: a recorded function as a short list of NumPy and kernel calls on arrays that are laid out beforehand.

    recording  ->  live instructions  ->  arena  ->  calls

* An instruction is dropped where no output and no guard depends on it, and where an earlier one computes the same.
* A view of an array of the arena is made once. So are constants.
* Arrays that do not leave the program lie in the arena, one block of memory; arrays that are not needed at the same time share its bytes.
  What leaves it is allocated in each run.
* A call is a function with its arguments bound. It does what the recorded one did, bit for bit.

Beside its arithmetic a call costs one call of a function of Python or C, where the engine takes some ten for an op with its derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from .backends.host import HOST
from .backends.tracing import Instruction, Like, Slot, Trace, cast, identity, replace, run_kernel
from .profiling import Label, current_profile

ALIGNMENT = 64  # bytes, of every array in the arena
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
        self._likes, self._owners, self._guards = recording.likes, recording.owners, recording.guards
        code = [one for one in self._without_repeats(recording.instructions, keep) if not one.writes or not {*given}.issuperset(one.writes)]
        code = _with_kernels_together(self._live(code), self._like)
        leaving = {self._owners[n] for n in self._outputs if self._like(self._owners[n]).nbytes > SMALL}
        self._last = {self._owners[n]: at for at, one in enumerate(code) for n in (*one.reads, *one.writes)}
        self._last |= {self._owners[n]: len(code) for n in self._outputs}
        self.arena_bytes, places = self._places(code, leaving)
        self._registers: list[Any] = [None] * len(self._likes)
        self._copied = [(i, n) for i, n in enumerate(self._inputs) if _is_small(self._likes[n])]
        self._fixed = {*recording.constants, *places, *[n for _, n in self._copied]}  # slots whose registers never change
        fixed = recording.constants.keys() - recording.closed_over
        self._known = {n for n in fixed if not recording.constants[n].ndim}  # of these, what no one can write to
        for number, x in recording.constants.items():
            self._registers[number] = x
        for _, number in self._copied:
            like = self._like(number)
            self._registers[number] = np.ndarray(like.shape, like.dtype, None, 0, like.strides)
        arena = HOST.empty((self.arena_bytes + ALIGNMENT,), np.uint8)
        first = -arena.ctypes.data % ALIGNMENT
        for number, offset in places.items():
            like = self._like(number)
            self._registers[number] = np.ndarray(like.shape, like.dtype, arena.data, first + offset, like.strides)
        self._calls: list[Callable[[], Any]] = []
        self._labels: list[Label] = []
        asked = dict(self._guards)
        last = {n: at for at, one in enumerate(code) for n in (*one.reads, *one.writes)}
        for number in {*self._inputs} & asked.keys():
            self._calls.append(partial(_compare, self._registers, number, asked[number]))
        self._labels += [_BOOKKEEPING] * len(self._calls)
        for at, one in enumerate(code):
            self._add(one)
            self._labels += [self._label(one)] * (len(self._calls) - len(self._labels))
            for number in asked.keys() & {*one.writes}:
                self._calls.append(partial(_compare, self._registers, number, asked[number]))
            dead = [n for n in {*one.reads, *one.writes} if last[n] == at and n not in self._fixed and n not in self._outputs]
            if dead:
                self._calls.append(partial(_clear, self._registers, dead))
            self._labels += [_BOOKKEEPING] * (len(self._calls) - len(self._labels))
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
        if profile is None:
            for call in self._calls:
                call()
        else:
            for call, label in zip(self._calls, self._labels, strict=True):
                start = perf_counter()
                call()
                profile.add(label, perf_counter() - start)
        found = [registers[n].copy(order="K") if own else registers[n] for n, own in self._given_away]
        for n in self._let_go:
            registers[n] = None
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
            if key in known and (keep or all(self._like(n).nbytes <= SMALL for n in one.writes)):
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

    def _like(self, number: int) -> Like:
        found = self._likes[number]
        assert found is not None
        return found

    def _places(self, code: Sequence[Instruction], leaving: set[int]) -> tuple[int, dict[int, int]]:
        """Bytes of the arena, and the offset of each array in it: the largest first, each at the lowest one that is free all its life.

        Source: Pisarchyk & Lee 2020, arXiv:2001.03288, "Greedy by Size for Offset Calculation".
        """
        lives = [
            (-(-max(self._like(number).nbytes, 1) // ALIGNMENT) * ALIGNMENT, at, self._last[number], number)
            for at, one in enumerate(code)
            for number in (one.writes if _into(one) is not None or one.call is run_kernel else ())
            if self._owners[number] == number and number not in leaving
        ]
        placed, offsets = np.zeros((len(lives), 4), np.int64), dict[int, int]()  # of each: first byte, end, birth, death
        for i, (size, birth, death, number) in enumerate(sorted(lives, key=lambda life: (-life[0], life[1]))):
            beside = placed[:i][(placed[:i, 2] <= death) & (placed[:i, 3] >= birth), :2]
            offset = 0
            for first, end in sorted(beside.tolist()):
                if first - offset >= size:
                    break
                offset = max(offset, end)
            placed[i], offsets[number] = (offset, offset + size, birth, death), offset
        return int(placed[:, 1].max(initial=0)), offsets

    # --- calls ---

    def _add(self, one: Instruction) -> None:
        """Adds the call of an instruction, or makes the view that it is."""
        args, kwargs, call = one.args, one.kwargs, one.call
        if self._known.issuperset(one.reads) and call is not run_kernel:
            _assign(self._registers, one.layout, call(*self._filled(args), **self._filled(kwargs)))
            self._known.update(one.writes)
            self._fixed.update(one.writes)
            return
        into = _into(one)
        stores = not self._fixed.issuperset(one.writes)
        if into is not None and not stores:
            call, kwargs = into, {**kwargs, "out": Slot(one.writes[0])}
        elif call is run_kernel:
            kwargs = {**kwargs, **_outputs_of_kernel(one, self._fixed)}
        elif self._fixed.issuperset(one.reads) and all(self._owners[n] != n for n in one.writes):
            _assign(self._registers, one.layout, call(*self._filled(args), **self._filled(kwargs)))
            self._fixed.update(one.writes)
            return
        if one.errors is not None:
            call = partial(_with_errors, one.errors, call)
        numbers: list[int] = []
        replace((args, kwargs), Slot, lambda s: numbers.append(s.number))
        if self._fixed.issuperset(numbers):
            args, kwargs = self._filled(args), self._filled(kwargs)
            if call == HOST.matmul_into and args[0].flags.aligned and args[1].flags.aligned:
                call, args, kwargs = run_kernel, ("matmul",), HOST.product(*args, **kwargs)
            call = partial(call, *args, **kwargs)
        else:
            call = partial(_apply, call, self._reader(args), self._reader(kwargs))
        if stores:
            call = partial(_store, self._registers, one.layout, call)
        self._calls.append(call)

    def _label(self, one: Instruction) -> Label:
        reads, writes = ([like for n in numbers if (like := self._likes[n]) is not None] for numbers in (one.reads, one.writes))
        name = str(one.args[0] if one.call is run_kernel else getattr(one.call, "__name__", "call"))
        flop = sum(like.nbytes // like.dtype.itemsize for like in writes)
        if one.call == HOST.matmul_into:
            name, flop = "matmul", flop * 2 * reads[0].shape[-1]
        elif isinstance(getattr(one.call, "__self__", None), np.ufunc):
            name = f"{one.call.__self__.__name__}.{name}"  # type: ignore[attr-defined]
        return name, str(writes[0].shape) if writes else "", sum(like.nbytes for like in (*reads, *writes)), flop

    def _filled(self, x: Any) -> Any:
        return replace(x, Slot, lambda s: self._registers[s.number])

    def _reader(self, x: Any) -> Callable[[], Any]:
        """A function that gives x with arrays in its slots. What never changes is looked up once."""
        if not self._changes(x):
            return partial(_same, self._filled(x))
        if type(x) is Slot:
            return partial(self._registers.__getitem__, x.number)
        if type(x) is dict:
            fixed = {k: self._filled(y) for k, y in x.items()}
            return partial(_read_dict, fixed, [(k, self._reader(y)) for k, y in x.items() if self._changes(y)])
        if type(x) in (tuple, list):
            row = [self._filled(y) for y in x]
            return partial(_read_row, type(x), row, [(i, self._reader(y)) for i, y in enumerate(x) if self._changes(y)])
        return partial(replace, x, Slot, lambda s: self._registers[s.number])

    def _changes(self, x: Any) -> bool:
        changing: list[int] = []
        replace(x, Slot, lambda s: changing.append(s.number))
        return not self._fixed.issuperset(changing)


def _is_small(like: Like | None) -> bool:
    """Whether an argument is small and its elements lie side by side, in whatever order of axes."""
    if like is None or like.nbytes > SMALL:
        return False
    expected = like.dtype.itemsize
    for stride, size in sorted((stride, size) for stride, size in zip(like.strides, like.shape, strict=True) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return like.nbytes > 0


# --- kernels that do the work of several ---

_TOGETHER: dict[tuple[str, ...], tuple[str, Callable[[dict[str, Any]], bool]]] = {}


def do_together(names: tuple[str, ...], name: str, serves: Callable[[dict[str, Any]], bool] = lambda shapes: True) -> None:
    """Declares that the kernel `name` does what the kernels `names` do one after the other, with the same bits.

    Their arguments of one name must be the same. What a later one takes from an earlier one has the name of that output.

    Args: serves: whether it takes arguments of these shapes, by name.
    """
    _TOGETHER[names] = name, serves


def _with_kernels_together(code: list[Instruction], like: Callable[[int], Like]) -> list[Instruction]:
    """The code with one kernel in the place of several where there is one; the longest groups first."""
    for names in sorted(_TOGETHER, key=len, reverse=True):
        for one in [x for x in code if x.call is run_kernel and x.args == names[:1]]:
            group = [one]
            for name in names[1:]:
                group += [x for x in code if x.call is run_kernel and x.args == (name,) and _continues(x, group)][:1]
            if len(group) == len(names):
                code = _replaced(code, group, *_TOGETHER[names], like)
    return code


def _continues(one: Instruction, group: list[Instruction]) -> bool:
    """Whether a kernel reads outputs of the group under their names, and otherwise the same arguments as the group."""
    outputs = {k: x for x in group for k, x in x.layout.items()}
    inputs = {k: x for y in group for k, x in y.kwargs.items()}
    shared = [k for k in one.kwargs if k in outputs]
    return bool(shared) and all(one.kwargs[k] == outputs[k] for k in shared) and all(inputs.get(k, x) == x for k, x in one.kwargs.items())


def _replaced(
    code: list[Instruction], group: list[Instruction], name: str, serves: Callable[[dict[str, Any]], bool], like: Callable[[int], Like]
) -> list[Instruction]:
    """The code with one kernel in the place of the group, and what needs its outputs after it; unchanged where that cannot be."""
    outputs = {k: x for one in group for k, x in one.layout.items()}
    kwargs = {k: x for one in group for k, x in one.kwargs.items() if k not in outputs or not isinstance(x, Slot)}
    if not serves({k: like(x.number).shape for k, x in {**kwargs, **outputs}.items() if isinstance(x, Slot)}):
        return code
    first, last = code.index(group[0]), code.index(group[-1])
    made = {n for one in group for n in one.writes}
    given = {x.number for x in kwargs.values() if isinstance(x, Slot)}
    before, after = [], []
    for one in code[first : last + 1]:
        if one in group:
            continue
        if made.intersection(one.reads):
            made.update(one.writes)
            after.append(one)
        else:
            before.append(one)
    if given & made:
        return code
    writes = tuple([n for one in group for n in one.writes])
    together = Instruction(run_kernel, (name,), kwargs, tuple(given), writes, outputs, group[0].errors)
    return [*code[:first], *before, together, *after, *code[last + 1 :]]


# --- instructions that can be told where to write ---


def _cast_into(x: Any, dtype: Any, out: Any) -> None:
    np.copyto(out, x, casting="unsafe")


def _choose_into(condition: Any, x: Any, y: Any, out: Any) -> None:
    np.copyto(out, y)
    np.copyto(out, x, where=condition)


_INTO: dict[Any, Callable[..., Any]] = {cast: _cast_into, np.where: _choose_into, np.mean: np.mean}


def _into(one: Instruction) -> Callable[..., Any] | None:
    """The function that does the same and takes the result's place as `out`; None where there is none."""
    if len(one.writes) != 1 or type(one.layout) is not Slot or one.call is run_kernel:
        return None
    call = one.call
    if isinstance(call, np.ufunc) or isinstance(getattr(call, "__self__", None), np.ufunc) and call.__name__ == "reduce":
        return call
    if call == HOST.matmul_into:
        return call
    return _INTO.get(call)


def _outputs_of_kernel(one: Instruction, fixed: set[int]) -> dict[str, Any]:
    """A kernel's outputs as it is told of them: the array in the arena, True for a new one, None for none."""

    def told(x: Any) -> Any:
        if isinstance(x, list):
            return [told(y) for y in x]
        return None if x is None else x if x.number in fixed else True

    return {name: told(x) for name, x in one.layout.items()}


# --- what calls are made of ---


def _apply(call: Callable[..., Any], args: Callable[[], Any], kwargs: Callable[[], Any]) -> Any:
    return call(*args(), **kwargs())


def _same(x: Any) -> Any:
    return x


def _read_dict(fixed: dict[str, Any], changing: list[tuple[str, Callable[[], Any]]]) -> dict[str, Any]:
    found = fixed.copy()
    for k, read in changing:
        found[k] = read()
    return found


def _read_row(kind: type, fixed: list[Any], changing: list[tuple[int, Callable[[], Any]]]) -> Any:
    found = fixed.copy()
    for i, read in changing:
        found[i] = read()
    return found if kind is list else tuple(found)


def _store(registers: list[Any], layout: Any, call: Callable[[], Any]) -> None:
    _assign(registers, layout, call())


def _assign(registers: list[Any], layout: Any, result: Any) -> None:
    if type(layout) is Slot:
        registers[layout.number] = result
    elif isinstance(layout, dict):
        for k, x in layout.items():
            _assign(registers, x, result[k])
    elif isinstance(layout, (tuple, list)):
        for x, y in zip(layout, result, strict=True):
            _assign(registers, x, y)


def _clear(registers: list[Any], numbers: list[int]) -> None:
    for n in numbers:
        registers[n] = None


def _compare(registers: list[Any], number: int, answer: bool) -> None:
    if bool(registers[number]) is not answer:
        raise Diverged


def _with_errors(errors: dict[str, Any], call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with np.errstate(**errors):
        return call(*args, **kwargs)
