"""Powers, exponentials and logarithms beside those of elementwise.py."""

from __future__ import annotations

import math
from typing import Any

from ..backends import backend_of
from ..rules import Op, elementwise
from ..tape import Tensor, to_tensors
from .elementwise import divide, document, multiply, power, scale, sigmoid, subtract, where

__all__ = ["cbrt", "exp2", "expm1", "log10", "log2", "logaddexp", "logaddexp2", "reciprocal", "square"]

LN2, LN10 = math.log(2), math.log(10)

expm1 = elementwise("expm1", lambda b, x: b.xp.expm1(x), lambda out, x: out + 1.0)
exp2 = elementwise("exp2", lambda b, x: b.xp.exp2(x), lambda out, x: scale(out, by=LN2))
log2 = elementwise("log2", lambda b, x: b.xp.log2(x), lambda out, x: (1 / LN2) / x)
log10 = elementwise("log10", lambda b, x: b.xp.log10(x), lambda out, x: (1 / LN10) / x)
cbrt = elementwise("cbrt", lambda b, x: b.xp.cbrt(x), lambda out, x: divide(1 / 3, multiply(out, out)))


def _above(x: Tensor, y: Tensor) -> Tensor:
    """x - y, and 0 where both are the same infinity."""
    both = (x.value == y.value) & backend_of(x.value).xp.isinf(x.value)
    return subtract(where(both, 0.0, x), where(both, 0.0, y))


logaddexp: Op = elementwise(
    "logaddexp", lambda b, x, y: b.xp.logaddexp(x, y), lambda out, x, y: sigmoid(_above(x, y)), lambda out, x, y: sigmoid(_above(y, x))
)


def square(x: Any) -> Tensor:
    """x * x.

    Args:
        x: array, Tensor or number, float32 or float64.
    Returns: Tensor like x.
    Example:
        >>> hg.square(3.0)
        Tensor(array(9.))
    """
    return power(x, 2)


def reciprocal(x: Any) -> Tensor:
    """1 / x.

    Args:
        x: array, Tensor or number, float32 or float64.
    Returns: Tensor like x.
    Example:
        >>> hg.reciprocal(4.0)
        Tensor(array(0.25))
    """
    return divide(1.0, x)


def logaddexp2(x: Any, y: Any) -> Tensor:
    """log2(2**x + 2**y), safe from overflow.

    Args:
        x, y: arrays, Tensors or numbers of one dtype, float32 or float64; they broadcast.
    Returns: Tensor of the broadcast shape.
    Raises: ShapeError if the shapes do not broadcast; DTypeError if mixed.
    Example:
        >>> hg.logaddexp2(3.0, 3.0)
        Tensor(array(4.))
    """
    x, y = to_tensors("logaddexp2", [x, y])
    return scale(logaddexp(scale(x, by=LN2), scale(y, by=LN2)), by=1 / LN2)


document(
    (expm1, "exp(x) - 1, exact for small x.", "1e-9", "1.e-09"),
    (exp2, "2 to the power x.", "3.0", "8."),
    (log2, "Logarithm of x to the base 2, x > 0.", "8.0", "3."),
    (log10, "Logarithm of x to the base 10, x > 0.", "1000.0", "3."),
    (cbrt, "Cube root of x, of any sign; its derivative at 0 is infinite.", "-8.0", "-2."),
    (
        logaddexp,
        "log(exp(x) + exp(y)), safe from overflow; where both are the same infinity, each gets half of the derivative.",
        "1000.0, 1000.0",
        "1000.69314718",
    ),
)
