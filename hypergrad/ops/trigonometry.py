"""Circular and hyperbolic functions, their inverses, and what belongs to right triangles."""

from __future__ import annotations

import math
from typing import Any

from ..backends import Array, Backend
from ..rules import Op, elementwise
from ..tape import Tensor, to_tensors
from .elementwise import divide, document, negative, scale, sqrt, where

__all__ = [
    "arccos",
    "arccosh",
    "arcsin",
    "arcsinh",
    "arctan",
    "arctan2",
    "arctanh",
    "cos",
    "cosh",
    "deg2rad",
    "degrees",
    "hypot",
    "rad2deg",
    "radians",
    "sin",
    "sinc",
    "sinh",
    "tan",
]

sin: Op = elementwise("sin", lambda b, x: b.xp.sin(x), lambda out, x: cos(x))
cos: Op = elementwise("cos", lambda b, x: b.xp.cos(x), lambda out, x: negative(sin(x)))
tan = elementwise("tan", lambda b, x: b.xp.tan(x), lambda out, x: 1.0 + out * out)
arcsin = elementwise("arcsin", lambda b, x: b.xp.arcsin(x), lambda out, x: 1.0 / sqrt((1.0 - x) * (1.0 + x)))
arccos = elementwise("arccos", lambda b, x: b.xp.arccos(x), lambda out, x: -1.0 / sqrt((1.0 - x) * (1.0 + x)))
arctan = elementwise("arctan", lambda b, x: b.xp.arctan(x), lambda out, x: (lambda r: 1.0 / r / r)(hypot(x, 1.0)))
sinh: Op = elementwise("sinh", lambda b, x: b.xp.sinh(x), lambda out, x: cosh(x))
cosh: Op = elementwise("cosh", lambda b, x: b.xp.cosh(x), lambda out, x: sinh(x))
arcsinh = elementwise("arcsinh", lambda b, x: b.xp.arcsinh(x), lambda out, x: 1.0 / hypot(x, 1.0))
arccosh = elementwise("arccosh", lambda b, x: b.xp.arccosh(x), lambda out, x: 1.0 / (sqrt(x - 1.0) * sqrt(x + 1.0)))
arctanh = elementwise("arctanh", lambda b, x: b.xp.arctanh(x), lambda out, x: 1.0 / ((1.0 - x) * (1.0 + x)))


def _share(x: Tensor, out: Tensor) -> Tensor:
    """x / out, and 0 where out is 0, to every order."""
    origin = out.value == 0
    return where(origin, 0.0, divide(x, where(origin, 1.0, out)))


hypot: Op = elementwise("hypot", lambda b, x, y: b.xp.hypot(x, y), lambda out, x, y: _share(x, out), lambda out, x, y: _share(y, out))
arctan2 = elementwise(
    "arctan2",
    lambda b, x, y: b.xp.arctan2(x, y),
    lambda out, x, y: (lambda r: y / r / r)(hypot(x, y)),
    lambda out, x, y: (lambda r: negative(x / r / r))(hypot(x, y)),
)


# --- sinc ------------------------------------------------------------------------------------------------------

TERMS = 28  # of the series, which is used up to |z| = order + 2; 7.0 ** 56 / 56! = 3e-28


def _sinc_value(b: Backend, x: Array, *, order: int) -> Array:
    """The derivative number `order` of s(z) = sin(z) / z at z = x.

    z s = sin(z) gives z s^(n) = sin^(n)(z) - n s^(n-1), which loses digits where |z| is small. There it is the Taylor series.
    """
    xp = b.xp
    z = x.astype("float64")
    near = xp.abs(z) < order + 2.0
    far = xp.where(near, 1.0, z)
    sine, cosine = xp.sin(far), xp.cos(far)
    s = sine / far
    for n in range(1, order + 1):
        s = ((sine, cosine, -sine, -cosine)[n % 4] - n * s) / far
    small = xp.where(near, z, 0.0)
    total = xp.zeros_like(small)
    for k in range(TERMS + order, (order + 1) // 2 - 1, -1):  # Horner's scheme in z^2
        total = total * small * small + (-1.0) ** k * math.perm(2 * k, order) / math.factorial(2 * k + 1)
    return xp.where(near, total * small if order % 2 else total, s).astype(x.dtype)


_sinc: Op = elementwise("sinc", _sinc_value, lambda out, x, order: _sinc(x, order=order + 1))


def sinc(x: Any) -> Tensor:
    """sin(pi x) / (pi x), and 1 at 0, as numpy.sinc.

    Args:
        x: array, Tensor or number, float32 or float64.
    Returns: Tensor like x.
    Rules: any order, also at 0; computed in float64.
    Cost: about 100 flop an element.
    Example:
        >>> hg.sinc(np.array([0.0, 0.5]))
        Tensor(array([1.        , 0.63661977]))
    """
    return _sinc(scale(*to_tensors("sinc", [x]), by=math.pi), order=0)


def deg2rad(x: Any) -> Tensor:
    """Radians of an angle in degrees.

    Args:
        x: array, Tensor or number, float32 or float64.
    Returns: Tensor like x.
    Example:
        >>> hg.deg2rad(180.0)
        Tensor(array(3.14159265))
    """
    return scale(*to_tensors("deg2rad", [x]), by=math.pi / 180)


def rad2deg(x: Any) -> Tensor:
    """Degrees of an angle in radians.

    Args:
        x: array, Tensor or number, float32 or float64.
    Returns: Tensor like x.
    Example:
        >>> hg.rad2deg(np.pi)
        Tensor(array(180.))
    """
    return scale(*to_tensors("rad2deg", [x]), by=180 / math.pi)


radians, degrees = deg2rad, rad2deg

document(
    (sin, "Sine of x, in radians.", "np.pi / 6", "0.5"),
    (cos, "Cosine of x, in radians.", "np.pi / 3", "0.5"),
    (tan, "Tangent of x, in radians.", "np.pi / 4", "1."),
    (arcsin, "Angle in [-pi/2, pi/2] with sine x, |x| <= 1; its derivative is infinite at -1 and 1.", "0.5", "0.52359878"),
    (arccos, "Angle in [0, pi] with cosine x, |x| <= 1; its derivative is infinite at -1 and 1.", "0.5", "1.04719755"),
    (arctan, "Angle in [-pi/2, pi/2] with tangent x.", "1.0", "0.78539816"),
    (sinh, "Hyperbolic sine of x.", "1.0", "1.17520119"),
    (cosh, "Hyperbolic cosine of x.", "1.0", "1.54308063"),
    (arcsinh, "Number with hyperbolic sine x.", "1.0", "0.88137359"),
    (arccosh, "Number >= 0 with hyperbolic cosine x, x >= 1; its derivative is infinite at 1.", "2.0", "1.3169579"),
    (arctanh, "Number with hyperbolic tangent x, |x| < 1.", "0.5", "0.54930614"),
    (hypot, "sqrt(x*x + y*y), safe from overflow; its derivatives at the origin are 0.", "3.0, 4.0", "5."),
    (
        arctan2,
        "Angle in [-pi, pi] of the point that is x above and y to the right of the origin, where no derivative exists.",
        "1.0, -1.0",
        "2.35619449",
    ),
)
