"""Products, running sums and products, differences, variances and norms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..backends import Array, Backend, backend_of
from ..errors import ArgumentError, ShapeError
from ..rules import Op, linear
from ..tape import Tensor, to_tensors
from .arguments import integer, integers, number, shown
from .arrays import AXIS, concatenate, getitem, line, normalise_axis, reshape, transpose
from .decompositions import svdvals
from .elementwise import abs, add, divide, multiply, power, scale, subtract, where
from .reductions import Axis, max, mean, min, rows_along, sum

__all__ = ["cumprod", "cumsum", "diff", "linspace", "norm", "prod", "std", "var"]


def _cumsum_value(b: Backend, x: Array, *, lead: int, axis: int, backward: bool) -> Array:
    along = (slice(None),) * (axis + lead) + (slice(None, None, -1 if backward else 1),)
    return b.xp.cumsum(x[along], axis=axis + lead)[along]


_cumsum: Op = linear(
    "cumsum", _cumsum_value, lambda bar, x, *, lead, axis, backward: _cumsum(bar, axis=axis, backward=not backward, lead=lead)
)


def _between(x: Tensor, axis: int, *cut: int | None) -> Tensor:
    """x with a slice of its axis."""
    return getitem(x, (slice(None),) * axis + (slice(*cut),))


def cumsum(x: Any, axis: int | None = None) -> Tensor:
    """Sums of the elements so far along an axis.

    Args:
        x: array or Tensor.
        axis: the axis; None for all elements in C order.
    Returns: Tensor like x, or (size of x,).
    Raises: ArgumentError for an axis that does not exist.
    Rules: linear; any order.
    Example:
        >>> hg.cumsum(np.array([3.0, 1.0, 2.0]))
        Tensor(array([3., 4., 6.]))
    """
    x, axis = line("cumsum", x, axis)
    return _cumsum(x, axis=axis, backward=False)


def cumprod(x: Any, axis: int | None = None) -> Tensor:
    """Products of the elements so far along an axis. Derivatives are right where elements are 0, too.

    Args:
        x: array or Tensor.
        axis: the axis; None for all elements in C order.
    Returns: Tensor like x, or (size of x,).
    Raises: ArgumentError for an axis that does not exist.
    Cost: log2(n) products of n elements, n being the length of the axis.
    Source: the parallel prefix sum of Hillis & Steele 1986, Communications of the ACM 29.
    Example:
        >>> hg.cumprod(np.array([3.0, 1.0, 2.0]))
        Tensor(array([3., 3., 6.]))
    """
    t, along = line("cumprod", x, axis)
    step = 1
    while step < t.shape[along]:
        t = concatenate([_between(t, along, step), multiply(_between(t, along, step, None), _between(t, along, -step))], along)
        step *= 2
    return t


def prod(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Product over axes, by pairs. Derivatives are right where elements are 0, too. The product of nothing is 1.

    Args:
        x: array or Tensor.
        axis: an axis, several, or None for all.
        keepdims: keep the reduced axes with length 1.
    Returns: Tensor.
    Raises: ArgumentError for an axis that does not exist or is named twice.
    Example:
        >>> hg.prod(np.array([[1.0, 2.0], [3.0, 4.0]]), axis=1)
        Tensor(array([ 2., 12.]))
    """
    flat, shape = rows_along("prod", x, axis, keepdims)
    if not flat.shape[-1]:
        return Tensor(backend_of(flat.value).xp.ones(shape, flat.dtype))
    last = flat.ndim - 1
    while (n := flat.shape[-1]) > 1:
        pairs = multiply(_between(flat, last, 0, n - 1, 2), _between(flat, last, 1, n, 2))
        flat = concatenate([pairs, _between(flat, last, n - 1, n)], last) if n % 2 else pairs
    return reshape(flat, shape)


def diff(x: Any, n: int = 1, axis: int = -1) -> Tensor:
    """Differences of neighbours along an axis, taken n times.

    Args:
        x: array or Tensor with at least one axis.
        n: how often, >= 0.
        axis: the axis.
    Returns: Tensor; the axis is shorter by n, and empty where it was not longer.
    Raises: ArgumentError for an axis that does not exist or a negative n.
    Example:
        >>> hg.diff(np.array([3.0, 1.0, 2.0]))
        Tensor(array([-2.,  1.]))
    """
    (t,) = to_tensors("diff", [x])
    axis, count = normalise_axis("diff", axis, t.ndim), integer("diff", "n", n, "it counts differences")
    if count < 0:
        raise ArgumentError(f"diff: n has {count}, expected >= 0 because it counts differences; pass such a number")
    for _ in range(count):
        t = subtract(_between(t, axis, 1, None), _between(t, axis, -1))
    return t


def linspace(start: Any, stop: Any, num: int = 50) -> Tensor:
    """Evenly spaced numbers from start to stop, both included, on a new first axis.

    Args:
        start, stop: numbers, arrays or Tensors of one dtype; they broadcast, and get derivatives.
        num: how many, >= 0; of one the number is start.
    Returns: Tensor, (num, *shape of start and stop).
    Raises: ArgumentError for a num that is none.
    Example:
        >>> hg.linspace(0.0, 1.0, 5)
        Tensor(array([0.  , 0.25, 0.5 , 0.75, 1.  ]))
    """
    start, stop = to_tensors("linspace", [start, stop])
    count = integer("linspace", "num", num, "it counts numbers")
    if count < 0:
        raise ArgumentError(f"linspace: num has {count}, expected >= 0 because it counts numbers; pass such a number")
    shape = np.broadcast_shapes(start.shape, stop.shape)
    weights = backend_of(start.value).xp.linspace(0.0, 1.0, count).astype(start.dtype).reshape(count, *(1,) * len(shape))
    return add(multiply(1.0 - weights, start), multiply(weights, stop))


def _deviations(name: str, x: Any, axis: Axis, ddof: Any, keepdims: bool) -> tuple[Tensor, tuple[int, ...], float]:
    """Deviations from the mean as rows, the shape of the result, and the number that their squares are divided by."""
    flat, shape = rows_along(name, x, axis, keepdims)
    free = flat.shape[-1] - number(name, "ddof", ddof, "a number >= 0", "it is taken from the number of elements", 0)
    if free <= 0:
        raise ShapeError(
            f"{name}: x has {flat.shape[-1]} elements along axis {axis}, expected more than ddof = {shown(ddof)} because their squared "
            "deviations are divided by the difference; reduce over more elements"
        )
    return subtract(flat, mean(flat, axis=-1, keepdims=True)), shape, free


def var(x: Any, axis: Axis = None, ddof: float = 0, keepdims: bool = False) -> Tensor:
    """Variance over axes: the sum of squared deviations from the mean, over n - ddof. Two passes, so that it is exact for large means.

    Args:
        x: array or Tensor.
        axis: an axis, several, or None for all.
        ddof: taken from the number n of elements, 0 <= ddof < n; 1 gives the unbiased estimate.
        keepdims: keep the reduced axes with length 1.
    Returns: Tensor.
    Raises: ShapeError where n <= ddof; ArgumentError for an axis that does not exist or is named twice, or a ddof that is no number.
    Example:
        >>> hg.var(np.array([[1.0, 2.0], [3.0, 4.0]]), axis=0)
        Tensor(array([1., 1.]))
    """
    d, shape, free = _deviations("var", x, axis, ddof, keepdims)
    return reshape(scale(sum(multiply(d, d), axis=-1), by=1 / free), shape)


def std(x: Any, axis: Axis = None, ddof: float = 0, keepdims: bool = False) -> Tensor:
    """Standard deviation over axes, the root of `var`. Where all elements are equal, its derivative is 0.

    Args, Returns, Raises: as `var`.
    Example:
        >>> hg.std(np.array([[1.0, 2.0], [3.0, 4.0]]), axis=0)
        Tensor(array([1., 1.]))
    """
    d, shape, free = _deviations("std", x, axis, ddof, keepdims)
    return reshape(scale(_norm(d), by=1 / math.sqrt(free)), shape)


# --- norms ---------------------------------------------------------------------------------------------------


def _norm_value(b: Backend, x: Array) -> Array:
    """The Euclidean norm of rows, with the largest element divided out, so that no square overflows."""
    by = _largest(b, x)
    return (by * b.xp.sqrt(b.xp.sum((x / by) ** 2, axis=-1, keepdims=True)))[..., 0]


def _largest(b: Backend, x: Array) -> Array:
    """The largest magnitude of each row, and 1 where that is 0 or no finite number."""
    if not x.shape[-1]:
        return b.xp.ones((*x.shape[:-1], 1), x.dtype)
    largest = b.xp.max(b.xp.abs(x), axis=-1, keepdims=True)
    return b.xp.where((largest > 0) & b.xp.isfinite(largest), largest, x.dtype.type(1))


def _unit(x: Tensor, out: Tensor) -> Tensor:
    """x / norm(x), and 0 where that is 0, to every order."""
    zero = (out.value == 0)[..., None]
    wide = reshape(out, (*out.shape, 1))
    return where(zero, 0.0, divide(x, where(zero, 1.0, wide)))


_norm: Op = Op(
    "norm",
    _norm_value,
    vjp=(lambda bar, out, x: multiply(reshape(bar, (*bar.shape, 1)), _unit(x, out)),),
    jvp=(lambda dot, out, x: sum(multiply(dot, _unit(x, out)), axis=-1),),
    batching="broadcast",
)

ORDERS = "None, 'fro', 'nuc', 1, 2, -1, -2, inf, -inf or, of vectors, a number > 0"


def _order(order: Any) -> Any:
    """None, "fro", "nuc" or a number."""
    if order is None or isinstance(order, str) and order in ("fro", "nuc"):
        return order
    return number("norm", "ord", order, ORDERS, "it names a norm", -math.inf, infinite=True)


def _vector_norm(flat: Tensor, order: float) -> Tensor:
    """The p-norm of rows. The largest element is divided out, and is a constant: the result does not depend on it."""
    if order in (math.inf, -math.inf):
        return (max if order > 0 else min)(abs(flat), axis=-1)
    if order == 1:
        return sum(abs(flat), axis=-1)
    by = Tensor(_largest(backend_of(flat.value), flat.value))
    inside = sum(power(abs(divide(flat, by)), order), axis=-1, keepdims=True)
    empty = inside.value == 0
    root = where(empty, 0.0, power(where(empty, 1.0, inside), 1 / order))
    return reshape(multiply(by, root), flat.shape[:-1])


def _matrix_norm(x: Tensor, order: Any) -> Tensor:
    """The norm of matrices (..., M, N)."""
    if order in (1, math.inf, -1, -math.inf):
        return (max if order > 0 else min)(sum(abs(x), axis=-2 if order in (1, -1) else -1), axis=-1)
    s = svdvals(x)
    return sum(s, axis=-1) if order == "nuc" else (max if order == 2 else min)(s, axis=-1)


def norm(x: Any, ord: Any = None, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Norm of vectors or matrices, as numpy.linalg.norm. The derivative of the Euclidean norm at 0 is 0.

    Args:
        x: array or Tensor.
        ord: of vectors None or 2 for the Euclidean norm, inf or -inf for the largest or smallest magnitude, or p > 0 for
            (sum |x|^p)^(1/p). Of matrices None or "fro" for the root of the sum of squares; "nuc" for the sum, 2 and -2 for the largest
            and smallest of the singular values; 1 and inf (-1 and -inf) for the largest (smallest) sum of magnitudes of a column and row.
        axis: the axis of vectors, the two axes of matrices, or None for all of x: its elements where ord is None, else x is one vector
            or one matrix.
        keepdims: keep the reduced axes with length 1.
    Returns: Tensor.
    Raises: ArgumentError for an ord or axis that is none of these; for a derivative through equal or vanishing singular values.
    Cost: for "nuc", 2 and -2 of matrices that of `svdvals`; else one pass.
    Example:
        >>> hg.norm(np.array([3.0, 4.0]))
        Tensor(array(5.))
    """
    (x,) = to_tensors("norm", [x])
    order = _order(ord)
    flat, shape = rows_along("norm", x, axis, keepdims)
    reduced = x.ndim + 1 - flat.ndim
    if order is None or order == "fro" and reduced == 2 or order == 2 and reduced == 1:
        return reshape(_norm(flat), shape)
    if reduced == 1 and not isinstance(order, str) and (order > 0 or order == -math.inf):
        return reshape(_vector_norm(flat, order), shape)
    if reduced == 2 and order in ("nuc", 1, -1, 2, -2, math.inf, -math.inf):
        pair = [normalise_axis("norm", a, x.ndim) for a in ((0, 1) if axis is None else integers("norm", "axis", axis, AXIS))]
        rest = [i for i in range(x.ndim) if i not in pair]
        return reshape(_matrix_norm(transpose(x, rest + pair), order), shape)
    raise ArgumentError(f"norm: ord has {shown(ord)}, expected {ORDERS} because axis {axis} names {reduced} axes; pass one of them")
