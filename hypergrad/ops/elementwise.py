"""Elementwise ops, with NumPy's names and broadcasting."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..backends import Array, Backend, Batched, backend_of, bare, is_batched, is_on_gpu, levels
from ..errors import ArgumentError
from ..rules import Op, align, bilinear, elementwise, linear, sum_to
from ..tape import Tensor, to_tensors
from .arguments import array_of, number

__all__ = [
    "abs",
    "add",
    "divide",
    "dropout",
    "exp",
    "log",
    "log1p",
    "maximum",
    "minimum",
    "multiply",
    "negative",
    "power",
    "relu",
    "sigmoid",
    "softplus",
    "sqrt",
    "subtract",
    "tanh",
    "where",
]


def _mask(like: Tensor, condition: Any) -> Tensor:
    """A bool array as a constant of like's dtype."""
    return Tensor(condition.astype(like.dtype))


add = Op(
    "add",
    lambda b, x, y: x + y,
    vjp=(lambda bar, out, x, y: sum_to(bar, shape=x.shape), lambda bar, out, x, y: sum_to(bar, shape=y.shape)),
    jvp=(lambda dot, out, x, y: align(dot, out.ndim, x.ndim), lambda dot, out, x, y: align(dot, out.ndim, y.ndim)),
    batching="broadcast",
)
subtract = Op(
    "subtract",
    lambda b, x, y: x - y,
    vjp=(lambda bar, out, x, y: sum_to(bar, shape=x.shape), lambda bar, out, x, y: sum_to(negative(bar), shape=y.shape)),
    jvp=(lambda dot, out, x, y: align(dot, out.ndim, x.ndim), lambda dot, out, x, y: align(negative(dot), out.ndim, y.ndim)),
    batching="broadcast",
)
multiply: Op = bilinear(
    "multiply", lambda b, x, y: x * y, (lambda bar, x, y: multiply(bar, y), lambda bar, x, y: multiply(bar, x)), core=(0, 0, 0)
)
negative: Op = linear("negative", lambda b, x, lead: -x, lambda bar, x, lead: negative(bar, lead=lead))
# x times a number that is no Tensor: its own op, since a number as an array costs a kernel of its own on a GPU.
scale: Op = linear("scale", lambda b, x, lead, by: x * x.dtype.type(by), lambda bar, x, lead, by: scale(bar, by=by, lead=lead))
divide = elementwise("divide", lambda b, x, y: x / y, lambda out, x, y: 1.0 / y, lambda out, x, y: -out / y)


def _power_partial(out: Tensor, x: Tensor, exponent: float) -> Any:
    if exponent in (0, 1):
        return exponent
    return 2.0 * x if exponent == 2 else exponent * _power(x, exponent=exponent - 1)


_power: Op = elementwise("power_number", lambda b, x, exponent: x * x if exponent == 2 else x**exponent, _power_partial)

exp = elementwise("exp", lambda b, x: b.xp.exp(x), lambda out, x: out)
log = elementwise("log", lambda b, x: b.xp.log(x), lambda out, x: 1.0 / x)
log1p = elementwise("log1p", lambda b, x: b.xp.log1p(x), lambda out, x: 1.0 / (1.0 + x))
sqrt = elementwise("sqrt", lambda b, x: b.xp.sqrt(x), lambda out, x: 0.5 / out)
abs = elementwise("abs", lambda b, x: b.xp.abs(x), lambda out, x: Tensor(_sign(x.value)))
tanh = elementwise("tanh", lambda b, x: b.xp.tanh(x), lambda out, x: 1.0 - out * out)


def _sign(value: Array) -> Array:
    return (value > 0).astype(value.dtype) - (value < 0).astype(value.dtype)


def _stable_sigmoid(b: Backend, x: Array) -> Array:
    return b.xp.exp(b.xp.minimum(x, 0)) / (1 + b.xp.exp(-b.xp.abs(x)))  # of numbers that are not positive: it never overflows


sigmoid = elementwise("sigmoid", _stable_sigmoid, lambda out, x: out * (1.0 - out))
softplus = elementwise("softplus", lambda b, x: b.xp.maximum(x, 0) + b.xp.log1p(b.xp.exp(-b.xp.abs(x))), lambda out, x: sigmoid(x))
relu = elementwise("relu", lambda b, x: b.xp.maximum(x, 0), lambda out, x: _mask(x, x.value > 0))
maximum = elementwise(
    "maximum",
    lambda b, x, y: b.xp.maximum(x, y),
    lambda out, x, y: _mask(x, x.value >= y.value),
    lambda out, x, y: _mask(x, x.value < y.value),
)
minimum = elementwise(
    "minimum",
    lambda b, x, y: b.xp.minimum(x, y),
    lambda out, x, y: _mask(x, x.value <= y.value),
    lambda out, x, y: _mask(x, x.value > y.value),
)
_where = elementwise(
    "where",
    lambda b, x, y, condition: b.xp.where(condition, x, y),
    lambda out, x, y, condition: _mask(x, condition),
    lambda out, x, y, condition: _mask(y, ~condition),
)


def for_each(x: Tensor, others: Iterable[Any]) -> Tensor:
    """x, repeated for each example of a `vmap` whose examples one of the others has and x has not."""
    for level in {level: None for other in others for level in levels(other)}:
        if level not in levels(x.value):
            x = multiply(x, Batched(level, backend_of(x.value).xp.ones((level.count,) + (1,) * x.ndim, x.dtype)))
    return x


def _power_by_base(out: Tensor, x: Tensor, exponent: Tensor) -> Tensor:
    """exponent * x**(exponent - 1), and 0 where the exponent is 0 and x so small that 1 / x overflows."""
    tiny = (exponent.value == 0) & (backend_of(x.value).xp.abs(x.value) < 1 / float(np.finfo(x.dtype).max))
    return multiply(exponent, _powers(x, where(tiny, 1.0, subtract(exponent, 1.0))))


def _power_by_exponent(out: Tensor, x: Tensor, exponent: Tensor) -> Tensor:
    """x**exponent * log(x); 0 where x is 0 and the exponent is not negative; NaN for other x that have no logarithm."""
    positive = x.value > 0
    constant = Tensor(backend_of(x.value).xp.where((x.value == 0) & (exponent.value >= 0), 0.0, math.nan).astype(x.dtype))
    return multiply(out, where(positive, log(where(positive, x, 1.0)), constant))


_powers: Op = elementwise("power", lambda b, x, exponent: b.xp.power(x, exponent), _power_by_base, _power_by_exponent)

_FORM = """{}

Args:
    {}: arrays, Tensors or numbers of one dtype, float32 or float64; they broadcast.
Returns: Tensor of the broadcast shape.
Raises: ShapeError if the shapes do not broadcast; DTypeError if mixed.
Rules: any order.
Cost: one pass over the elements.
Example:
    >>> hg.{}({})
    Tensor(array({}))"""


def document(*ops: tuple[Op, str, str, str]) -> None:
    """Gives elementwise ops their docstrings, from a sentence, the arguments of an example and its result each."""
    for op, summary, arguments, result in ops:
        op.__doc__ = _FORM.format(summary, "x" if op.arity == 1 else "x, y", op.name, arguments, result)


document(
    (add, "x + y.", "2.0, 3.0", "5."),
    (subtract, "x - y.", "2.0, 3.0", "-1."),
    (multiply, "x * y.", "2.0, 3.0", "6."),
    (negative, "-x.", "2.0", "-2."),
    (divide, "x / y.", "3.0, 2.0", "1.5"),
    (exp, "e to the power x.", "1.0", "2.71828183"),
    (log, "Natural logarithm of x, x > 0.", "2.0", "0.69314718"),
    (log1p, "log(1 + x), exact for small x, x > -1.", "1e-9", "9.99999999e-10"),
    (sqrt, "Square root of x, x >= 0; no derivative exists at 0.", "2.0", "1.41421356"),
    (abs, "Magnitude of x; its derivative at 0 is 0.", "-2.0", "2."),
    (tanh, "Hyperbolic tangent of x.", "1.0", "0.76159416"),
    (sigmoid, "1 / (1 + exp(-x)), safe from overflow.", "1.0", "0.73105858"),
    (softplus, "log(1 + exp(x)), safe from overflow.", "1.0", "1.31326169"),
    (relu, "max(x, 0); its derivative at 0 is 0.", "np.array([-1.0, 2.0])", "[0., 2.]"),
    (maximum, "The larger of x and y; where they are equal, x gets the derivative.", "np.array([1.0, 5.0]), 3.0", "[3., 5.]"),
    (minimum, "The smaller of x and y; where they are equal, x gets the derivative.", "np.array([1.0, 5.0]), 3.0", "[1., 3.]"),
)


def power(x: Any, exponent: Any) -> Tensor:
    """x to the power `exponent`, elementwise, wherever NumPy defines it: for x < 0 the exponent is a whole number.

    Args:
        x: array, Tensor or number, float32 or float64.
        exponent: number, array or Tensor; integers follow the dtype of x.
    Returns: Tensor of the broadcast shape.
    Raises: ShapeError if the shapes do not broadcast; DTypeError if mixed.
    Rules: exponent * x**(exponent-1), which is 0 for an exponent of 0 at every x; in the exponent x**exponent * log(x), which
        is 0 where x is 0 and the exponent is not negative, and NaN for x < 0. Any order. Where x is 0 the mixed derivative of
        second order exists for exponents above 1 only.
    Cost: one pass over the elements; a number 2 is one product.
    Example:
        >>> hg.power(np.array([2.0, 3.0]), 2)
        Tensor(array([4., 9.]))
    """
    if isinstance(exponent, np.generic) or isinstance(exponent, np.ndarray) and not exponent.ndim and exponent.dtype.kind in "biu":
        exponent = exponent.item()
    if isinstance(exponent, (int, float)):
        return _power(*to_tensors("power", [x]), exponent=float(exponent))
    return _powers(x, exponent)


def where(condition: Any, x: Any, y: Any) -> Tensor:
    """x where `condition` holds, y elsewhere.

    Args:
        condition: array of bools or integers that broadcasts with x and y; no derivative flows through it.
        x, y: arrays, Tensors or numbers of one dtype.
    Returns: Tensor of the broadcast shape of x, y and condition.
    Raises: ShapeError if the shapes do not broadcast; DTypeError if mixed, or for a condition of floats.
    Example:
        >>> x = np.array([-1.0, 2.0])
        >>> hg.where(x > 0, x, 0.0)
        Tensor(array([0., 2.]))
    """
    x, y = to_tensors("where", [x, y])
    condition = array_of("where", "condition", condition, "biu", "bools", "it chooses between x and y")
    condition = condition if condition.dtype == bool else condition.astype(bool)
    if isinstance(condition, np.ndarray) and is_on_gpu(bare(x.value)):
        condition = backend_of(x.value).xp.asarray(condition)
    return _where(for_each(x, [condition]), y, condition=condition)


def dropout(x: Any, mask: Any, *, rate: Any) -> Tensor:
    """Inverted dropout with a given mask, so that the op stays pure: x * mask / (1 - rate).

    Args:
        x: array or Tensor.
        mask: bool or 0/1 array that broadcasts with x; or a numpy.random.Generator that draws one of the shape of x, with zeros of
            probability `rate`. A step of an inner run is run again, so a generator must be new in each step, from a seed of its batch.
        rate: probability of a zero, 0 <= rate < 1; a Tensor of no axes gets a derivative.
    Returns: Tensor like x.
    Raises: ArgumentError for a rate outside [0, 1), and for a generator where `vmap` computes all examples at once.
    Rules: the mask is a constant, drawn or given. So the derivative in the rate is that of the factor 1 / (1 - rate) alone, and not that
        of the expected loss, which also changes with the number of zeros.
    Source: Srivastava et al. 2014, JMLR 15.
    Example:
        >>> mask = np.random.default_rng(0).random(4) < 0.5
        >>> hg.dropout(np.ones(4), mask, rate=0.5)
        Tensor(array([0., 2., 2., 2.]))
    """
    found = number("dropout", "rate", rate.value if isinstance(rate, Tensor) else rate, "0 <= rate < 1", "1 - rate divides", 0, below=1)
    if isinstance(mask, np.random.Generator):
        (x,) = to_tensors("dropout", [x])
        if is_batched([x]):
            raise ArgumentError(
                "dropout: mask has a generator inside vmap, expected bools because one mask would serve all examples; draw the masks "
                "before, and map over them"
            )
        mask = backend_of(x.value).xp.asarray(mask.random(x.shape) >= found)
    return multiply(multiply(x, mask), 1.0 / (1.0 - (rate if isinstance(rate, Tensor) else found)))
