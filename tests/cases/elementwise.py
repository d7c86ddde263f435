"""Elementwise ops: sizes around vector widths, no axes, several axes; broadcasting of both arguments."""

from __future__ import annotations

from functools import partial

import numpy as np
from checks import Array, Case

import hypergrad as hg
from hypergrad.backends import backend_of

SHAPES = ((), (0,), (1,), (31,), (33,), (257,), (1025,), (3, 1, 4), (2, 0, 3))
PAIRS = (
    ((2, 3), (2, 3)),
    ((), (3,)),
    ((2, 1), (1, 3)),
    ((3,), (2, 3)),
    ((4, 1, 3), (2, 1)),
    ((0,), (1,)),
    ((3, 0), (3, 1)),
    ((1,), (257,)),
    ((1025,), ()),
    ((1,), (1, 1, 1)),
)


def from_zero(*arrays: Array) -> float:
    """Distance of every element from the kink at 0."""
    return min((float(np.min(np.abs(a))) for a in arrays if a.size), default=np.inf)


def from_each_other(x: Array, y: Array) -> float:
    """Distance from the kink at x = y."""
    return from_zero(np.asarray(x - y))


def two_sided(shape: tuple[int, ...], rng: np.random.Generator) -> list[Array]:
    """Elements between 0.1 and 1.5 in magnitude."""
    return [rng.uniform(0.1, 1.5, shape) * rng.choice([-1.0, 1.0], shape)]


def away_from_zero(shape: tuple[int, ...], rng: np.random.Generator) -> list[Array]:
    """Elements between 0.5 and 1.5 in magnitude."""
    return [rng.uniform(0.5, 1.5, shape) * rng.choice([-1.0, 1.0], shape)]


def apart(shapes: tuple[tuple[int, ...], ...], rng: np.random.Generator) -> list[Array]:
    """Two arrays whose elements are never closer than 0.05: multiples of 0.2 against the same plus 0.1."""
    return [0.2 * rng.integers(-8, 8, s) + offset + rng.uniform(0, 0.05, s) for s, offset in zip(shapes, (0.0, 0.1), strict=True)]


CASES: list[Case] = []


def unary(name: str, f, reference, low: float = -1.5, high: float = 1.5, exact: bool = False, kink: bool = False) -> None:
    for shape in SHAPES:
        CASES.append(
            Case(
                f"{name}{list(shape)}",
                f,
                reference,
                (shape,),
                low,
                high,
                exact,
                from_zero if kink else None,
                make=partial(two_sided, shape) if kink else None,
            )
        )


def binary(name: str, f, reference, low: float = -1.5, high: float = 1.5, exact: bool = False, kink: bool = False) -> None:
    for shapes in PAIRS:
        CASES.append(
            Case(
                f"{name}{list(shapes[0])}{list(shapes[1])}",
                f,
                reference,
                shapes,
                low,
                high,
                exact,
                from_each_other if kink else None,
                make=partial(apart, shapes) if kink else None,
            )
        )


unary("negative", hg.negative, lambda x: -x, exact=True)
unary("exp", hg.exp, np.exp)
unary("log", hg.log, np.log, 0.5, 3.0)
unary("log1p", hg.log1p, np.log1p, -0.5, 2.0)
unary("sqrt", hg.sqrt, np.sqrt, 0.5, 3.0)
unary("abs", hg.abs, lambda x: np.where(x < 0, -x, x), kink=True)
unary("tanh", hg.tanh, np.tanh)
unary("sigmoid", hg.sigmoid, lambda x: 1 / (1 + np.exp(-x)), -4, 4)
unary("softplus", hg.softplus, lambda x: np.logaddexp(x, np.zeros_like(x)), -4, 4)
unary("relu", hg.relu, lambda x: np.where(x > 0, x, np.zeros_like(x)), kink=True)

binary("add", hg.add, lambda x, y: x + y, exact=True)
binary("subtract", hg.subtract, lambda x, y: x - y, exact=True)
binary("multiply", hg.multiply, lambda x, y: x * y, exact=True)
binary("divide", hg.divide, lambda x, y: x / y, 0.5, 2.0)
binary("maximum", hg.maximum, lambda x, y: np.where(x > y, x, y), kink=True)
binary("minimum", hg.minimum, lambda x, y: np.where(x < y, x, y), kink=True)
binary("power", hg.power, lambda x, y: x**y, 0.5, 2.0)

for _e in (0, 1, 2, 3, -1, 0.5, -2.5, 4.0):
    CASES.append(Case(f"power[x, {_e}]", lambda x, e=_e: hg.power(x, e), lambda x, e=_e: x ** np.asarray(e, x.dtype), ((7,),), 0.5, 2.0))
for _e in (0, 1, 2, 3):
    CASES.append(
        Case(
            f"power[+-x, {_e}]",
            lambda x, e=_e: x**e,
            lambda x, e=_e: x ** np.asarray(e, x.dtype),
            ((7,),),
            exact=_e <= 1,
            make=partial(two_sided, (7,)),
        )
    )
EXPONENTS = np.array([3.0, 2.0, 1.0, 0.0, -2.0])  # a constant array: x may be negative
for _shape in ((5,), (2, 1), ()):
    CASES.append(
        Case(
            f"power[+-x{list(_shape)}, array]",
            lambda x: hg.power(x, EXPONENTS.astype(x.dtype)),
            lambda x: x ** EXPONENTS.astype(x.dtype),
            (_shape,),
            make=partial(two_sided, _shape),
        )
    )
_WHOLE = np.array([0, 1, 2, 3, -1, -2, 1])
_EXPONENTS = {
    "np.int64": np.int64(3),
    "np.float32": np.float32(3),
    "np.float64": np.float64(-2),
    "0-d integers": np.array(3),
    "integer array": _WHOLE,
    "int8 array": _WHOLE.astype(np.int8),
    "float array": _WHOLE,
    "constant Tensor": _WHOLE,
    "broadcast integers": _WHOLE[:, None],
}
for _name, _e in _EXPONENTS.items():

    def _exponent(x: hg.Tensor, e=_e, name=_name):
        if not np.ndim(e):
            return e
        placed = backend_of(x.value).xp.asarray(e if name.endswith(("integers", "integer array", "int8 array")) else e.astype(x.dtype))
        return hg.Tensor(placed) if name == "constant Tensor" else placed

    CASES.append(
        Case(
            f"power[+-x, {_name}]",
            lambda x, e=_exponent: x ** e(x),
            lambda x, e=_e: x ** np.asarray(e, x.dtype),
            ((7,),),
            make=partial(away_from_zero, (7,)),
        )
    )
CASES.append(Case("power[2, x]", lambda x: 2.0**x, lambda x: np.exp2(x), ((7,),)))

_condition = np.random.default_rng(1).random((2, 3)) < 0.5
for _shapes in (((2, 3), (2, 3)), ((3,), (2, 1)), ((), (1, 3)), ((4, 1, 1), (3,))):
    CASES.append(
        Case(
            f"where{list(_shapes[0])}{list(_shapes[1])}",
            lambda x, y: hg.where(_condition, x, y),
            lambda x, y: np.where(_condition, x, y),
            _shapes,
            exact=True,
        )
    )
CASES.append(
    Case("where[number]", lambda x: hg.where(_condition, x, 2.0), lambda x: np.where(_condition, x, x.dtype.type(2)), ((2, 3),), exact=True)
)
CASES.append(
    Case(
        "where[integer condition]",
        lambda x: hg.where(_condition.astype(int), x, 0),
        lambda x: np.where(_condition, x, 0 * x),
        ((3,),),
        exact=True,
    )
)
CASES.append(
    Case("dropout", lambda x: hg.dropout(x, _condition, rate=0.25), lambda x: x * _condition / x.dtype.type(0.75), ((5, 2, 3),), exact=True)
)

# Python's operators, numbers and constant arrays on either side.
_constant = np.array([0.5, -1.25, 2.0])
CASES += [
    Case("operators[number left]", lambda x: 2 - x + (3 + x) * 0.5 + 2 / x, lambda x: 2 - x + (3 + x) / 2 + 2 / x, ((3,),), 0.5, 2.0),
    Case("operators[number right]", lambda x: (x - 2) * 3 + x / 4 - (-x), lambda x: (x - 2) * 3 + x / 4 + x, ((3,),), exact=True),
    Case(
        "operators[array left]",
        lambda x: _constant.astype(x.dtype) * x + _constant.astype(x.dtype) / x,
        lambda x: _constant.astype(x.dtype) * x + _constant.astype(x.dtype) / x,
        ((2, 3),),
        0.5,
        2.0,
    ),
    Case("operators[reuse]", lambda x, y: x * x + x * y - y, lambda x, y: x * x + x * y - y, ((4,), (4,)), exact=False),
]
