"""Bounds and remainders: clip, the maximum and minimum that skip NaN, remainders of a division, and replaced infinities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..backends import backend_of
from ..errors import ArgumentError
from ..rules import Op, elementwise
from ..tape import Tensor, to_tensors
from .arguments import number
from .elementwise import document, maximum, minimum, negative, where

__all__ = ["clip", "fmax", "fmin", "fmod", "mod", "nan_to_num", "remainder"]


def _quotient(x: Tensor, y: Tensor, rounding: str) -> Tensor:
    """x / y rounded to a whole number, a constant."""
    return Tensor(getattr(backend_of(x.value).xp, rounding)(x.value / y.value))


mod: Op = elementwise("mod", lambda b, x, y: b.xp.mod(x, y), lambda out, x, y: 1.0, lambda out, x, y: negative(_quotient(x, y, "floor")))
fmod: Op = elementwise("fmod", lambda b, x, y: b.xp.fmod(x, y), lambda out, x, y: 1.0, lambda out, x, y: negative(_quotient(x, y, "trunc")))
remainder = mod


def _taken(x: Tensor, out: Tensor, wanted: bool) -> Tensor:
    """1 where the result is x (or, not `wanted`, where it is not), a constant."""
    return Tensor(((x.value == out.value) == wanted).astype(x.dtype))


fmax: Op = elementwise(
    "fmax", lambda b, x, y: b.xp.fmax(x, y), lambda out, x, y: _taken(x, out, True), lambda out, x, y: _taken(x, out, False)
)
fmin: Op = elementwise(
    "fmin", lambda b, x, y: b.xp.fmin(x, y), lambda out, x, y: _taken(x, out, True), lambda out, x, y: _taken(x, out, False)
)

document(
    (mod, "x - y * floor(x / y), with the sign of y. Between its jumps the derivatives are 1 and -floor(x / y).", "-7.0, 3.0", "2."),
    (fmod, "x - y * trunc(x / y), with the sign of x. Between its jumps the derivatives are 1 and -trunc(x / y).", "-7.0, 3.0", "-1."),
    (
        fmax,
        "The larger of x and y, and the other one where one is NaN; where they are equal, x gets the derivative.",
        "np.array([1.0, np.nan]), 0.5",
        "[1. , 0.5]",
    ),
    (
        fmin,
        "The smaller of x and y, and the other one where one is NaN; where they are equal, x gets the derivative.",
        "np.array([1.0, np.nan]), 0.5",
        "[0.5, 0.5]",
    ),
)


def clip(x: Any, min: Any = None, max: Any = None) -> Tensor:
    """minimum(maximum(x, min), max). Where x is at a bound, x gets the derivative; beyond it, the bound gets it.

    Args:
        x: array or Tensor.
        min, max: numbers, arrays or Tensors that broadcast with x, or None for no bound. Where min > max the result is max, as NumPy's.
    Returns: Tensor of the broadcast shape.
    Raises: ArgumentError where both bounds are None; ShapeError if the shapes do not broadcast; DTypeError if mixed.
    Example:
        >>> hg.clip(np.array([3.0, 1.0, 2.0]), 1.5, 2.5)
        Tensor(array([2.5, 1.5, 2. ]))
    """
    if min is None and max is None:
        raise ArgumentError("clip: min and max are None, expected a bound because nothing would be clipped; pass one of them")
    (out,) = to_tensors("clip", [x])
    out = out if min is None else maximum(out, min)
    return out if max is None else minimum(out, max)


def nan_to_num(x: Any, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None) -> Tensor:
    """x with numbers in the place of NaN and infinities. The derivative is 0 where an element is replaced.

    Args:
        x: array or Tensor.
        nan, posinf, neginf: numbers for NaN, infinity and minus infinity; None for the largest and the smallest number of the dtype.
    Returns: Tensor like x.
    Raises: ArgumentError for a number that is none.
    Example:
        >>> hg.nan_to_num(np.array([np.nan, 1.0]), nan=-1.0)
        Tensor(array([-1.,  1.]))
    """
    (out,) = to_tensors("nan_to_num", [x])
    value = out.value
    xp, limit = backend_of(value).xp, float(np.finfo(out.dtype).max)
    replaced = {"nan": nan, "posinf": limit if posinf is None else posinf, "neginf": -limit if neginf is None else neginf}
    for name, mask in zip(replaced, (xp.isnan(value), value == math.inf, value == -math.inf), strict=True):
        found = number("nan_to_num", name, replaced[name], "a number", "it takes the place of an element", -math.inf, infinite=True)
        out = where(mask, found, out)
    return out
