"""Elements in order of size, chosen along an axis, or written at places: sort, topk, median, take_along_axis, add_at, set_at.

The order is a constant: derivatives flow to the elements that were taken.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backends import Array, backend_of
from ..errors import ArgumentError, ShapeError
from ..tape import Tensor, to_tensors
from .arguments import array_of, integer
from .arrays import as_index, beside, broadcast_to, getitem, line, look_up, normalise_axis, pick, put, reshape
from .elementwise import add, scale, where
from .reductions import Axis, rows_along

__all__ = ["add_at", "median", "partition", "set_at", "sort", "take_along_axis", "topk"]


def _along(x: Tensor, index: Array, axis: int) -> tuple[Array, ...]:
    """The index that takes x[..., index, ...] along an axis, and the same place along the others."""
    xp = backend_of(x.value).xp
    return tuple(
        [index if i == axis else xp.arange(n).reshape([-1 if i == j else 1 for j in range(x.ndim)]) for i, n in enumerate(x.shape)]
    )


def take_along_axis(x: Any, indices: Any, axis: int | None = -1) -> Tensor:
    """Elements of x at `indices` along an axis, as numpy.take_along_axis; what argsort and argmax (with its axis kept) choose.

    Args:
        x: array or Tensor.
        indices: integers with as many axes as x; axes other than `axis` broadcast. Repeats are allowed.
        axis: the axis; None for all elements of x in C order, indices being of one axis.
    Returns: Tensor of the shape of indices, broadcast.
    Raises: ArgumentError out of range; DTypeError for indices that are no integers; ShapeError for another number of axes. A CuPy array's
        entries are not read by the host and wrap around.
    Example:
        >>> x = np.array([[1.0, 2.0], [3.0, 4.0]])
        >>> hg.take_along_axis(x, hg.argmax(x, axis=1, keepdims=True), axis=1)
        Tensor(array([[2.],
               [4.]]))
    """
    (x,) = to_tensors("take_along_axis", [x])
    if axis is None:
        x, axis = reshape(x, -1), 0
    axis = normalise_axis("take_along_axis", axis, x.ndim)
    index = array_of("take_along_axis", "indices", indices, "iu", "integers", "they number elements")
    if index.ndim != x.ndim:
        raise ShapeError(f"take_along_axis: indices has shape {index.shape}, expected {x.ndim} axes because x has shape {x.shape}")
    return look_up("take_along_axis", x, _along(x, index, axis))


def sort(x: Any, axis: int | None = -1) -> Tensor:
    """x in ascending order along an axis; NaN comes last. Of equal elements the first gets the derivative of the first place.

    Args:
        x: array or Tensor.
        axis: the axis; None for all elements.
    Returns: Tensor like x, or (size of x,).
    Raises: ArgumentError for an axis that does not exist.
    Example:
        >>> hg.sort(np.array([3.0, 1.0, 2.0]))
        Tensor(array([1., 2., 3.]))
    """
    x, axis = line("sort", x, axis)
    return getitem(x, _along(x, backend_of(x.value).xp.argsort(x.value, axis=axis, kind="stable"), axis))


def partition(x: Any, kth: int, axis: int | None = -1) -> Tensor:
    """x along an axis with the element number kth in its place in ascending order; this is `sort`, which is one of the possible orders.

    Args:
        x: array or Tensor.
        kth: the place, negative from the end.
        axis: the axis; None for all elements.
    Returns: Tensor like x, or (size of x,).
    Raises: ArgumentError for an axis or a place that does not exist.
    Example:
        >>> hg.partition(np.array([3.0, 1.0, 2.0]), 1)
        Tensor(array([1., 2., 3.]))
    """
    x, axis = line("partition", x, axis)
    n, place = x.shape[axis], integer("partition", "kth", kth, "it numbers places")
    if not -n <= place < n:
        raise ArgumentError(
            f"partition: kth has {place}, expected {-n} to {n - 1} because axis {axis} has {n} elements; pass such a number"
        )
    return sort(x, axis)


def topk(x: Any, k: int, axis: int = -1) -> tuple[Tensor, Array]:
    """The k largest elements along an axis, in descending order; NaN comes first. Of equal elements the first is taken first.

    Args:
        x: array or Tensor with at least one axis.
        k: how many, 0 <= k <= length of the axis.
        axis: the axis.
    Returns: (values, indices): a Tensor, and an integer array of their places along the axis.
    Raises: ArgumentError for an axis that does not exist or another k.
    Example:
        >>> hg.topk(np.array([3.0, 1.0, 2.0]), 2)
        (Tensor(array([3., 2.])), array([0, 2]))
    """
    (x,) = to_tensors("topk", [x])
    axis, count = normalise_axis("topk", axis, x.ndim), integer("topk", "k", k, "it counts elements")
    n = x.shape[axis]
    if not 0 <= count <= n:
        raise ArgumentError(f"topk: k has {count}, expected 0 to {n} because axis {axis} has {n} elements; pass such a number")
    at = (slice(None),) * axis
    backwards = (*at, slice(None, None, -1))  # reversed twice, so that of equal elements the first comes first
    order = backend_of(x.value).xp.argsort(x.value[backwards], axis=axis, kind="stable")[backwards]
    first = (*at, slice(count))
    index = (n - 1 - order)[first]
    return getitem(x, _along(x, index, axis)), index


def median(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Median over axes: the middle element, or the mean of the two in the middle, which share the derivative. NaN where an element is.

    Args:
        x: array or Tensor.
        axis: an axis, several, or None for all.
        keepdims: keep the reduced axes with length 1.
    Returns: Tensor.
    Raises: ShapeError over no elements; ArgumentError for an axis that does not exist or is named twice.
    Example:
        >>> hg.median(np.array([3.0, 1.0, 2.0]))
        Tensor(array(2.))
    """
    flat, shape = rows_along("median", x, axis, keepdims)
    n = flat.shape[-1]
    if not n:
        raise ShapeError(f"median: x has shape {np.shape(x)}, expected at least one element along axis {axis}")
    xp = backend_of(flat.value).xp
    order = xp.argsort(flat.value, axis=-1, kind="stable")
    unknown = xp.isnan(flat.value).any(axis=-1)
    last = order[..., -1]  # NaN, where there is one
    lower, upper = (xp.where(unknown, last, order[..., i]) for i in ((n - 1) // 2, n // 2))
    out = pick(flat, index=lower)
    return reshape(out if n % 2 else scale(add(out, pick(flat, index=upper)), by=0.5), shape)


# --- writing -----------------------------------------------------------------------------------------------------------


def _written(name: str, x: Any, index: Any, y: Any) -> tuple[Tensor, tuple[Any, ...], Tensor]:
    """x, the checked index, and y in the shape of x[index]."""
    x, y = to_tensors(name, [x, y])
    index = as_index(name, index)
    part = look_up(name, Tensor(x.value), index).shape
    index = beside(x, index)
    try:
        return x, index, y if y.shape == part else broadcast_to(y, part)
    except ShapeError as error:
        raise ShapeError(f"{name}: y has shape {y.shape}, expected one that broadcasts to {part} because x[index] has it") from error


def add_at(x: Any, index: Any, y: Any) -> Tensor:
    """A copy of x with y added to x[index]; what an index names several times gets each of its numbers.

    Args:
        x: array or Tensor.
        index: as NumPy: numbers, slices, None, Ellipsis, integer arrays, bool masks.
        y: array, Tensor or number that broadcasts to the shape of x[index].
    Returns: Tensor like x.
    Raises: ArgumentError for an index out of range; ShapeError if y does not fit.
    Example:
        >>> hg.add_at(np.zeros(3), [0, 0, 2], np.array([1.0, 2.0, 3.0]))
        Tensor(array([3., 0., 3.]))
    """
    x, index, y = _written("add_at", x, index, y)
    return add(x, put(y, index=index, shape=x.shape))


def set_at(x: Any, index: Any, y: Any) -> Tensor:
    """A copy of x with y in the place of x[index]. Of what an index names several times the last one stays and gets the derivative.

    Args:
        x: array or Tensor.
        index: as NumPy: numbers, slices, None, Ellipsis, integer arrays, bool masks.
        y: array, Tensor or number that broadcasts to the shape of x[index].
    Returns: Tensor like x.
    Raises: ArgumentError for an index out of range; ShapeError if y does not fit. On a GPU it is not said which one of several stays.
    Example:
        >>> hg.set_at(np.zeros(3), 1, 5.0)
        Tensor(array([0., 5., 0.]))
    """
    base, at, part = _written("set_at", x, index, y)
    if not part.size:
        return base
    xp = backend_of(base.value).xp
    source = xp.full(base.shape, -1)  # the place in y that each element comes from
    source[at] = xp.arange(part.size).reshape(part.shape)
    return where(source >= 0, getitem(reshape(part, -1), xp.maximum(source, 0)), base)
