"""Functions element by element beside those of elementwise.py: one plain shape each, and one broadcasting for those of two arguments."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from checks import Array, Case

import hypergrad as hg
from cases.elementwise import apart, from_each_other, from_zero, two_sided
from hypergrad.rules import REGISTRY

CASES: list[Case] = []
PLAIN, PAIR = ((2, 3),), ((2, 1), (3,))


def each(f):
    """A function of numbers as one of arrays, in float64."""
    return lambda x: np.vectorize(f, otypes=[float])(x.astype(np.float64)).astype(x.dtype)


def add(name: str, reference, low: float = -1.5, high: float = 1.5, shapes=PLAIN, **options) -> None:
    CASES.append(Case(f"{name}[{low} to {high}]", getattr(hg, name), reference, shapes, low, high, **options))


for _name, _low, _high in (
    ("sin", -4, 4), ("cos", -4, 4), ("tan", -1.2, 1.2), ("arcsin", -0.8, 0.8), ("arccos", -0.8, 0.8), ("arctan", -3, 3),
    ("sinh", -2, 2), ("cosh", -2, 2), ("arcsinh", -3, 3), ("arccosh", 1.3, 3), ("arctanh", -0.7, 0.7), ("sinc", -2, 2),
    ("expm1", -1.5, 1.5), ("exp2", -1.5, 1.5), ("log2", 0.5, 3), ("log10", 0.5, 3), ("cbrt", 0.5, 3), ("reciprocal", 0.5, 2),
    ("square", -1.5, 1.5),
):  # fmt: skip
    add(_name, getattr(np, _name), _low, _high)
for _name in ("deg2rad", "rad2deg"):
    add(_name, getattr(np, _name), exact=True)
for _name, _low, _high in (("hypot", 0.5, 2), ("arctan2", 0.5, 2), ("logaddexp", -3, 3), ("logaddexp2", -3, 3)):
    add(_name, getattr(np, _name), _low, _high, PAIR)
for _name in ("fmax", "fmin"):
    add(_name, getattr(np, _name), shapes=PAIR, make=lambda rng: apart(PAIR, rng), margin=from_each_other)


def divided(rng: np.random.Generator) -> list[Array]:
    """Numbers and a divisor, whose quotients are at least 0.2 away from whole numbers."""
    return [1.25 * (rng.integers(-3, 4, (2, 3)) + rng.uniform(0.2, 0.8, (2, 3))), np.full(3, 1.25)]


for _name in ("mod", "fmod"):
    add(_name, getattr(np, _name), shapes=((2, 3), (3,)), make=divided)

add("erf", each(math.erf), -3, 3)
add("erfc", each(math.erfc), -3, 3)
add("erfc", each(math.erfc), 4.1, 5)
add("gammaln", each(math.lgamma), 0.3, 4)
add("gammaln", each(math.lgamma), -2.8, -2.2)


def polygamma(order: int):
    """The derivative of log(gamma) by its sum over poles, and the midpoint rule beyond 2000 of them."""

    def reference(x: Array) -> Array:
        z = x.astype(np.float64)[..., None] + np.arange(2000)
        far = z[..., -1] + 0.5
        if order == 1:
            return (np.log(far) + 1 / (24 * far**2) - np.sum(1 / z, -1)).astype(x.dtype)
        return (1 / far - 1 / (12 * far**3) + np.sum(1 / z**2, -1)).astype(x.dtype)

    return reference


add("digamma", polygamma(1), 0.4, 4)
add("digamma", polygamma(1), -2.8, -2.2)
CASES.append(Case("polygamma[order=2]", lambda x: REGISTRY["polygamma"](x, order=2), polygamma(2), PLAIN, 0.4, 4.0))


def between(rng: np.random.Generator) -> list[Array]:
    """Elements at least 0.05 away from the bounds -0.5 and 0.5."""
    return [rng.choice([-1.0, -0.2, 0.3, 0.9], (2, 3)) + rng.uniform(0, 0.15, (2, 3))]


CASES += [
    Case("clip[numbers]", lambda x: hg.clip(x, -0.5, 0.5), lambda x: np.clip(x, -0.5, 0.5), PLAIN, make=between),
    Case(
        "clip[Tensors]",
        lambda x, low, high: hg.clip(x * x, low, high),
        lambda x, low, high: np.clip(x * x, low, high),
        ((2, 3), (3,), ()),
        make=lambda rng: [*between(rng), np.array([0.3, 0.2, 0.3]), np.array(0.7)],
        margin=lambda x, low, high: min(from_zero(x * x - low), from_zero(x * x - high)),
    ),
    Case("nan_to_num", lambda x: hg.nan_to_num(x) * x, lambda x: x * x, PLAIN),
    Case("linspace", lambda x, y: hg.linspace(x, y, 4), lambda x, y: np.linspace(x, y, 4, dtype=x.dtype), PAIR, exact=True),
    Case("operators[%]", lambda x, y: x % y + 2.0 % y, lambda x, y: x % y + 2.0 % y, ((2, 3), (3,)), make=divided),
]

# --- activations -------------------------------------------------------------------------------------------------------


def elu(x: Array, alpha: Array) -> Array:
    return np.where(x > 0, x, alpha * (np.exp(np.minimum(x, 0)) - 1))


def kinked(*shapes: tuple[int, ...]):
    return lambda rng: [*two_sided(shapes[0], rng), *(rng.uniform(0.1, 0.9, s) for s in shapes[1:])]


CASES += [
    Case("leaky_relu[number]", hg.leaky_relu, lambda x: np.where(x > 0, x, x.dtype.type(0.01) * x), PLAIN, make=kinked((2, 3))),
    Case("leaky_relu[Tensor]", hg.leaky_relu, lambda x, a: np.where(x > 0, x, a * x), ((2, 3), (3,)), make=kinked((2, 3), (3,))),
    Case("elu", hg.elu, elu, ((2, 3), ()), make=kinked((2, 3), ())),
    Case("selu", hg.selu, lambda x: 1.0507009873554805 * elu(x, 1.6732632423543772), PLAIN, make=kinked((2, 3))),
    Case("gelu[exact]", hg.gelu, lambda x: x * each(lambda z: 0.5 * (1 + math.erf(z / math.sqrt(2))))(x), PLAIN, -3, 3),
    Case(
        "gelu[tanh]",
        lambda x: hg.gelu(x, approximate=True),
        lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        PLAIN,
        -3,
        3,
    ),
    Case("silu", hg.silu, lambda x: x / (1 + np.exp(-x)), PLAIN, -3, 3),
    Case("softsign", hg.softsign, lambda x: x / (1 + np.abs(x)), PLAIN, make=kinked((2, 3))),
    Case("log_sigmoid", hg.log_sigmoid, lambda x: -np.log(1 + np.exp(-x)), PLAIN, -3, 3),
]

COMPOSED = (
    "clip",
    "nan_to_num",
    "linspace",
    "operators",
    "leaky_relu",
    "elu",
    "selu",
    "gelu",
    "silu",
    "softsign",
    "log_sigmoid",
    "deg2rad",
    "rad2deg",
    "reciprocal",
    "square",
    "logaddexp2",
)
CASES = [replace(case, composed=case.name.startswith(COMPOSED)) for case in CASES]
