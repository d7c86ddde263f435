"""Calls of Python that instructions become, with the arrays of the registers in the place of their slots."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from .backends.host import HOST
from .backends.tracing import Instruction, Slot, replace, run_kernel
from .stretch import Slots, slots_in


class Diverged(Exception):
    """A guard has another answer than in the recording, so the recorded instructions are not those of this call."""


def python_call(one: Instruction, slots: Slots) -> Callable[[], Any]:
    """The instruction as a call: it reads registers, and writes what it makes into the arena or to registers."""
    call, registers, fixed = one.call, slots.registers, slots.fixed
    kwargs, moving = one.kwargs, list[Any]()
    paths = [(path, n) for path, n in _paths(one.layout) if n not in fixed]
    if call is run_kernel:
        kwargs = {**kwargs, **replace(one.layout, Slot, lambda s: s if s.number in fixed else True)}  # True for a new array
    elif not paths and (into := into_of(one)) is not None:
        call, kwargs = into, {**kwargs, "out": Slot(one.writes[0])}
    if one.errors is not None:
        call = partial(_with_errors, one.errors, call)
    args, kwargs = _bound(one.args, slots, moving), _bound(kwargs, slots, moving)
    call = partial(call, *args, **kwargs) if not moving else partial(_moved, registers, moving, call, args, kwargs)
    return partial(_store, registers, paths, call) if paths else call


def store(one: Instruction, registers: list[Any]) -> None:
    """Calls the instruction now, and puts what it makes into the registers."""
    args, kwargs = replace((one.args, one.kwargs), Slot, lambda s: registers[s.number])
    _store(registers, _paths(one.layout), partial(one.call, *args, **kwargs))
    for n in one.writes:
        registers[n] = np.asarray(registers[n])


def clear(registers: list[Any], numbers: list[int]) -> None:
    """Lets go of what is in these registers."""
    for n in numbers:
        registers[n] = None


def compare(registers: list[Any], number: int, answer: bool) -> None:
    """Raises: Diverged where a truth value is not the answer."""
    if bool(registers[number]) is not answer:
        raise Diverged


# --- instructions that can be told where to write ---


def _choose_into(condition: Any, x: Any, y: Any, out: Any) -> None:
    np.copyto(out, y)
    np.copyto(out, x, where=condition)


_INTO: dict[Any, Callable[..., Any]] = {
    np.ndarray.astype: lambda x, dtype, out: np.copyto(out, x, casting="unsafe"),
    np.where: _choose_into,
    np.mean: np.mean,
}


def into_of(one: Instruction) -> Callable[..., Any] | None:
    """The function that does the same and takes the result's place as `out`; None where there is none."""
    if len(one.writes) != 1 or type(one.layout) is not Slot or one.call is run_kernel:
        return None
    call = one.call
    takes_out = isinstance(call, np.ufunc) or isinstance(getattr(call, "__self__", None), np.ufunc) and call.__name__ == "reduce"
    return call if takes_out or call == HOST.matmul_into else _INTO.get(call)


# --- what calls are made of ---


def _bound(x: Any, slots: Slots, moving: list[tuple[Any, Any, Any]]) -> Any:
    """Arguments with arrays in the slots that never change. `moving` gets the others: list or dictionary, key, what is there."""
    x = x.copy() if type(x) is dict else [*x]
    for key, y in [*(x.items() if type(x) is dict else enumerate(x))]:
        if type(y) is dict or type(y) is list:
            x[key] = _bound(y, slots, moving)
        elif slots.fixed.issuperset(slots_in(y)):
            x[key] = replace(y, Slot, lambda s: slots.registers[s.number])
        else:
            moving.append((x, key, y))
    return x


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


def _with_errors(errors: dict[str, Any], call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with np.errstate(**errors):
        return call(*args, **kwargs)
