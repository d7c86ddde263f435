"""The error function and the logarithm of the gamma function with all its derivatives. Computed in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..backends import Array, Backend
from ..rules import Op, elementwise
from .elementwise import document, exp, multiply, scale

__all__ = ["digamma", "erf", "erfc", "gammaln"]

# --- the error function: rational minimax approximations by Cody 1969, Math. Comp. 23, to about 1e-16 of the result -----------------

# Numerators and denominators, highest power first: of erf(x) / x in x^2 up to 0.46875, of erfc(x) exp(x^2) in x up to 4, and of its
# remainder in 1 / x^2 beyond.
SMALL = (
    (1.85777706184603153e-1, 3.16112374387056560e0, 1.13864154151050156e2, 3.77485237685302021e2, 3.20937758913846947e3),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3),
)
MIDDLE = (
    (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e0, 6.61191906371416295e1, 2.98635138197400131e2,
     8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3, 1.23033935479799725e3),
    (1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
     3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3),
)  # fmt: skip
LARGE = (
    (1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1, 1.60837851487422766e-2,
     6.58749161529837803e-4),
    (1.0, 2.56852019228982242e0, 1.87295284992346047e0, 5.27905102951428412e-1, 6.05183413124413191e-2, 2.33520497626869185e-3),
)  # fmt: skip
BOUNDS = (0.46875, 4.0, 27.3)  # beyond the last, erfc is below the smallest number


def _polynomial(coefficients: Sequence[float], x: Array) -> Array:
    """Horner's scheme, the highest power first."""
    total = coefficients[0] + 0.0 * x
    for c in coefficients[1:]:
        total = total * x + c
    return total


def _ratio(table: tuple[Sequence[float], Sequence[float]], x: Array) -> Array:
    return _polynomial(table[0], x) / _polynomial(table[1], x)


def _erf_value(b: Backend, x: Array, *, complement: bool) -> Array:
    """erf(x) or, `complement`, 1 - erf(x)."""
    xp = b.xp
    z = x.astype("float64")
    size = xp.abs(z)
    small = xp.where(size <= BOUNDS[0], z, 0.0)
    near = small * _ratio(SMALL, small * small)  # erf
    middle = xp.clip(size, BOUNDS[0], BOUNDS[1])
    large = xp.clip(size, BOUNDS[1], BOUNDS[2])
    inverse = 1.0 / (large * large)
    tail = (1.0 / math.sqrt(math.pi) - inverse * _ratio(LARGE, inverse)) / large
    y = xp.minimum(size, BOUNDS[2])
    whole = xp.trunc(y * 16.0) / 16.0  # its square is exact, so that exp(-y^2) is
    decay = xp.exp(-whole * whole) * xp.exp(-(y - whole) * (y + whole))
    far = decay * xp.where(size <= BOUNDS[1], _ratio(MIDDLE, middle), tail)  # erfc(|x|)
    if complement:
        out = xp.where(size <= BOUNDS[0], 1.0 - near, xp.where(z < 0, 2.0 - far, far))
    else:
        out = xp.where(size <= BOUNDS[0], near, xp.where(z < 0, far - 1.0, 1.0 - far))
    return xp.where(xp.isnan(z), z, out).astype(x.dtype)


def _bell(x: Any) -> Any:
    """2 / sqrt(pi) * exp(-x^2)."""
    return scale(exp(-multiply(x, x)), by=2 / math.sqrt(math.pi))


erf = elementwise("erf", lambda b, x: _erf_value(b, x, complement=False), lambda out, x: _bell(x))
erfc = elementwise("erfc", lambda b, x: _erf_value(b, x, complement=True), lambda out, x: -_bell(x))

# --- the gamma function: Stirling's series from SHIFT on, the recurrence below, the reflection of negative numbers ----------------------

SHIFT = 8  # the first term left out is below 1e-16 of the result


BERNOULLI = tuple(  # B_2, B_4, ... (Abramowitz & Stegun, table 23.2)
    a / b for a, b in ((1, 6), (-1, 30), (1, 42), (-1, 30), (5, 66), (-691, 2730), (7, 6), (-3617, 510), (43867, 798), (-174611, 330),
                       (854513, 138), (-236364091, 2730))
)  # fmt: skip
TERMS = range(len(BERNOULLI), 0, -1)  # of the series, the smallest first


def _shifted(xp: Any, z: Array) -> tuple[Array, Array, Array]:
    """Of positive numbers: whether they are below SHIFT, those (1 elsewhere), and all of them with SHIFT added where they are."""
    below = z < SHIFT
    return below, xp.where(below, z, 1.0), xp.where(below, z + SHIFT, z)


def _gammaln_positive(xp: Any, z: Array) -> Array:
    below, base, y = _shifted(xp, z)
    product = xp.ones_like(base)
    for i in range(SHIFT):
        product = product * (base + i)
    series = sum(BERNOULLI[k - 1] / (2 * k * (2 * k - 1)) * y ** (1.0 - 2 * k) for k in TERMS)
    return (y - 0.5) * (xp.log(y) - 1.0) + (0.5 * math.log(2 * math.pi) - 0.5) + series - xp.where(below, xp.log(product), 0.0)


def _polygamma_positive(xp: Any, z: Array, n: int) -> Array:
    below, base, y = _shifted(xp, z)
    steps = sum((base + i) ** (-1.0 - n) for i in range(SHIFT - 1, -1, -1))
    if n == 0:
        series = xp.log(y) - 0.5 / y - sum(BERNOULLI[k - 1] / (2 * k) * y ** (-2.0 * k) for k in TERMS)
    else:
        rise = [BERNOULLI[k - 1] * math.perm(2 * k + n - 1, n - 1) for k in TERMS]
        series = sum(c * y ** (-2.0 * k - n) for c, k in zip(rise, TERMS, strict=True))
        series = -((-1.0) ** n) * (series + math.factorial(n - 1) * y ** (-1.0 * n) + 0.5 * math.factorial(n) * y ** (-1.0 - n))
    return series - xp.where(below, (-1.0) ** n * math.factorial(n) * steps, 0.0)


def _cotangent(xp: Any, z: Array, n: int) -> Array:
    """The derivative number n of pi cot(pi z): a polynomial in the cotangent, whose own derivative is -pi (1 + cot^2)."""
    coefficients = [0.0, math.pi]  # lowest power first
    for _ in range(n):
        slope = [-math.pi * k * c for k, c in enumerate(coefficients)][1:]
        coefficients = [a + b for a, b in zip([*slope, 0.0, 0.0], [0.0, 0.0, *slope], strict=True)]
    fraction = z - xp.round(z)  # the period is 1
    return _polynomial(coefficients[::-1], xp.cos(math.pi * fraction) / xp.sin(math.pi * fraction))


def _reflected(b: Backend, x: Array, order: int) -> Array:
    """The derivative number `order` of log|gamma(x)|, of which the first is digamma."""
    xp = b.xp
    z = x.astype("float64")
    negative = z < 0.5
    pole = negative & (z == xp.floor(z))
    safe = xp.where(pole | xp.isnan(z), 0.25, z)
    positive = xp.where(negative, 1.0 - safe, safe)
    angle = xp.where(negative, safe, 0.25)
    if order == 0:
        out = _gammaln_positive(xp, positive)
        sine = xp.abs(xp.sin(math.pi * (angle - xp.round(angle))))
        out = xp.where(negative, math.log(math.pi) - xp.log(sine) - out, out)
    else:
        n = order - 1
        out = _polygamma_positive(xp, positive, n)
        out = xp.where(negative, (-1.0) ** n * out - _cotangent(xp, angle, n), out)
    return xp.where(pole, math.inf if order == 0 else math.nan, xp.where(xp.isnan(z), z, out)).astype(x.dtype)


_gamma_derivative: Op = elementwise(
    "polygamma", lambda b, x, order: _reflected(b, x, order), lambda out, x, order: _gamma_derivative(x, order=order + 1)
)
gammaln = elementwise("gammaln", lambda b, x: _reflected(b, x, 0), lambda out, x: digamma(x))
digamma: Op = elementwise("digamma", lambda b, x: _reflected(b, x, 1), lambda out, x: _gamma_derivative(x, order=2))

document(
    (erf, "Error function, 2 / sqrt(pi) times the integral of exp(-t*t) from 0 to x (Cody 1969, Math. Comp. 23).", "0.5", "0.52049988"),
    (erfc, "1 - erf(x), exact for large x (Cody 1969, Math. Comp. 23).", "5.0", "1.53745979e-12"),
    (
        gammaln,
        "log|gamma(x)|, to 1e-14 of the larger of it and 1; infinite at 0, -1, -2, ... (Abramowitz & Stegun, 6.1.17, 6.1.40).",
        "5.0",
        "3.17805383",
    ),
    (
        digamma,
        "The derivative of log|gamma(x)|; NaN at 0, -1, -2, ... (Abramowitz & Stegun, 6.3.5, 6.3.7, 6.3.18, 6.4).",
        "1.0",
        "-0.57721566",
    ),
)
