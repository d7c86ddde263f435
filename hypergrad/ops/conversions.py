"""Python's protocols on Tensor: conversions to numbers, copies, text and assignment.

A conversion takes the number out of a Tensor. Where a derivative follows the Tensor, it would be lost, so the conversion
raises. Elsewhere it gives what NumPy gives for the value. `item`, ``repr`` and format strings leave the tape on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from ..errors import DTypeError
from ..tape import Tensor, refuse_if_followed
from . import elementwise

WITHOUT_OP = {  # NumPy's function: the stem of Python's method, its symbol, what to write instead
    "floor_divide": ("floordiv", "//", "hg.floor(x / y), a constant, for its derivative is zero"),
    "divmod": ("divmod", "divmod()", "hg.floor(x / y), a constant, and x % y"),
}


def _number(how: str, convert: Callable[..., Any]) -> Callable[..., Any]:
    """The method that converts the value, and refuses where a derivative would be lost."""

    def method(self: Tensor, *args: Any) -> Any:
        refuse_if_followed(self, how)
        return convert(self.value, *args)

    return method


def _without_op(symbol: str, instead: str) -> Callable[[Tensor, Any], NoReturn]:
    """The method of an operator that no op stands for."""

    def method(self: Tensor, other: Any) -> NoReturn:
        raise DTypeError(
            f"Tensor: {symbol} got a Tensor, expected one of + - * / % ** @ because there is no op for {symbol}; use {instead}"
        )

    return method


def _item(self: Tensor) -> Any:
    """The number of a Tensor with one element, off the tape: no derivative follows it."""
    return self.value.item()


def _iter(self: Tensor) -> Iterator[Tensor]:
    """The Tensors along the first axis."""
    if not self.ndim:
        raise TypeError("iteration over a 0-d Tensor")
    return (self[i] for i in range(len(self)))


def _contains(self: Tensor, item: Any) -> bool:
    """Whether any element equals `item`."""
    return bool((self == item).any())


def _setitem(self: Tensor, index: Any, value: Any) -> NoReturn:
    """Refuses: a Tensor is never written."""
    raise DTypeError(
        "Tensor: t[...] = x writes into a Tensor, expected a new one because the derivatives of what was computed from it "
        "need its values; use hg.where(mask, x, t), or hg.concatenate of the parts"
    )


def _format(self: Tensor, spec: str) -> str:
    """The number as text, as NumPy formats it; ``repr`` without a specification."""
    return format(self.value if self.ndim else self.value.item(), spec) if spec else repr(self)


def _itself(self: Tensor, *_: Any) -> Tensor:
    """The Tensor itself: it is never written, and a copy would be off the tape."""
    return self


def _reduce(self: Tensor) -> tuple[type[Tensor], tuple[Any]]:
    """What pickle stores: the value."""
    refuse_if_followed(self, "pickle")
    return Tensor, (self.value,)


for _name, _how, _convert in (
    ("__float__", "float()", float),
    ("__int__", "int()", int),
    ("__complex__", "complex()", complex),
    ("__bool__", "bool()", bool),
    ("__round__", "round()", round),
    ("__floor__", "math.floor()", math.floor),
    ("__ceil__", "math.ceil()", math.ceil),
    ("__trunc__", "math.trunc()", math.trunc),
):
    setattr(Tensor, _name, _number(_how, _convert))
for _stem, _symbol, _instead in WITHOUT_OP.values():
    setattr(Tensor, f"__{_stem}__", _without_op(_symbol, _instead))
    setattr(Tensor, f"__r{_stem}__", _without_op(_symbol, _instead))
for _name, _method in (
    ("item", _item),
    ("__iter__", _iter),
    ("__contains__", _contains),
    ("__setitem__", _setitem),
    ("__format__", _format),
    ("__pos__", _itself),
    ("__copy__", _itself),
    ("__deepcopy__", _itself),
    ("__reduce__", _reduce),
    ("__abs__", lambda self: elementwise.abs(self)),
):
    setattr(Tensor, _name, _method)
