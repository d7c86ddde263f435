"""Kernels that do the work of several: a program calls one where the recorded function called all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .backends.tracing import Instruction, Slot, run_kernel

_TOGETHER: dict[tuple[str, ...], tuple[str, Callable[[dict[str, Any]], bool]]] = {}


def do_together(names: tuple[str, ...], name: str, serves: Callable[[dict[str, Any]], bool] = lambda shapes: True) -> None:
    """Declares that the kernel `name` does what the kernels `names` do one after the other, with the same bits.

    Their arguments of one name must be the same. What a later one takes from an earlier one has the name of that output.

    Args: serves: whether it takes arguments of these shapes, by name.
    """
    _TOGETHER[names] = name, serves


def with_kernels_together(code: list[Instruction], likes: Sequence[Any]) -> list[Instruction]:
    """The code with one kernel in the place of several where there is one; the longest groups first."""
    for names in sorted(_TOGETHER, key=len, reverse=True):
        for one in [x for x in code if x.call is run_kernel and x.args == names[:1]]:
            group = [one]
            for name in names[1:]:
                group += [x for x in code if x.call is run_kernel and x.args == (name,) and _continues(x, group)][:1]
            if len(group) == len(names):
                code = _replaced(code, group, *_TOGETHER[names], likes)
    return code


def _continues(one: Instruction, group: list[Instruction]) -> bool:
    """Whether a kernel reads outputs of the group under their names, and otherwise the same arguments as the group."""
    outputs = {k: x for x in group for k, x in x.layout.items()}
    inputs = {k: x for y in group for k, x in y.kwargs.items()}
    shared = [k for k in one.kwargs if k in outputs]
    return bool(shared) and all(one.kwargs[k] == outputs[k] for k in shared) and all(inputs.get(k, x) == x for k, x in one.kwargs.items())


def _replaced(
    code: list[Instruction], group: list[Instruction], name: str, serves: Callable[[dict[str, Any]], bool], likes: Sequence[Any]
) -> list[Instruction]:
    """The code with one kernel in the place of the group, and what needs its outputs after it; unchanged where that cannot be."""
    outputs = {k: x for one in group for k, x in one.layout.items()}
    kwargs = {k: x for one in group for k, x in one.kwargs.items() if k not in outputs or not isinstance(x, Slot)}
    if not serves({k: likes[x.number].shape for k, x in {**kwargs, **outputs}.items() if isinstance(x, Slot)}):
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
