"""Views and joints of arrays under NumPy's names: axes added, moved and removed, pieces. All linear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ArgumentError, ShapeError
from ..tape import Tensor, to_tensors
from .arguments import integer, integers, shown
from .arrays import AXIS, concatenate, getitem, normalise_axis, reshape, to_join, transpose

__all__ = [
    "append",
    "array_split",
    "atleast_1d",
    "atleast_2d",
    "atleast_3d",
    "column_stack",
    "dsplit",
    "dstack",
    "expand_dims",
    "hsplit",
    "hstack",
    "moveaxis",
    "ravel",
    "rollaxis",
    "split",
    "squeeze",
    "swapaxes",
    "vsplit",
    "vstack",
]

COUNT = "it counts elements"


def distinct_axes(name: str, argument: str, axes: Any, ndim: int) -> list[int]:
    """Distinct axes given as one or several."""
    found = []
    for axis in integers(name, argument, axes, AXIS):
        if not -ndim <= axis < ndim:
            raise ArgumentError(f"{name}: {argument} has {axis}, expected {-ndim} to {ndim - 1} because there are {ndim} axes")
        found.append(axis % ndim)
    if len(set(found)) < len(found):
        raise ArgumentError(f"{name}: {argument} has {shown(axes)}, expected each axis once; name it once")
    return found


# --- axes ------------------------------------------------------------------------------------------------------


def squeeze(x: Any, axis: int | Sequence[int] | None = None) -> Tensor:
    """x without axes of length 1.

    Args:
        x: array or Tensor.
        axis: which, or None for all of them.
    Returns: Tensor.
    Raises: ArgumentError for an axis that does not exist; ShapeError for one that is longer.
    Example:
        >>> hg.squeeze(np.ones((1, 3, 1))).shape
        (3,)
    """
    (x,) = to_tensors("squeeze", [x])
    axes = [i for i, n in enumerate(x.shape) if n == 1] if axis is None else distinct_axes("squeeze", "axis", axis, x.ndim)
    if any(x.shape[a] != 1 for a in axes):
        raise ShapeError(f"squeeze: x has shape {x.shape}, expected length 1 along axis {axis} because elements would be lost; index it")
    return reshape(x, [n for i, n in enumerate(x.shape) if i not in axes])


def expand_dims(x: Any, axis: int | Sequence[int]) -> Tensor:
    """x with new axes of length 1.

    Args:
        x: array or Tensor.
        axis: their places in the result.
    Returns: Tensor.
    Raises: ArgumentError for a place that does not exist or is named twice.
    Example:
        >>> hg.expand_dims(np.array([3.0, 1.0, 2.0]), 0)
        Tensor(array([[3., 1., 2.]]))
    """
    (x,) = to_tensors("expand_dims", [x])
    axes = distinct_axes("expand_dims", "axis", axis, x.ndim + len(integers("expand_dims", "axis", axis, AXIS)))
    rest = iter(x.shape)
    return reshape(x, [1 if i in axes else next(rest) for i in range(x.ndim + len(axes))])


def moveaxis(x: Any, source: int | Sequence[int], destination: int | Sequence[int]) -> Tensor:
    """x with axes at other places; the others keep their order.

    Args:
        x: array or Tensor.
        source, destination: the axes, and their places in the result, as many.
    Returns: Tensor; a view.
    Raises: ArgumentError for an axis that does not exist or is named twice, or different numbers of them.
    Example:
        >>> hg.moveaxis(np.ones((2, 3, 4)), 0, -1).shape
        (3, 4, 2)
    """
    (x,) = to_tensors("moveaxis", [x])
    there = distinct_axes("moveaxis", "destination", destination, x.ndim)
    here = distinct_axes("moveaxis", "source", source, x.ndim)
    if len(here) != len(there):
        raise ArgumentError(f"moveaxis: source has {len(here)} axes, expected {len(there)} because destination names as many places")
    order = [i for i in range(x.ndim) if i not in here]
    for place, axis in sorted(zip(there, here, strict=True)):
        order.insert(place, axis)
    return transpose(x, order)


def swapaxes(x: Any, axis1: int, axis2: int) -> Tensor:
    """x with two axes exchanged.

    Args:
        x: array or Tensor.
        axis1, axis2: the axes.
    Returns: Tensor; a view.
    Raises: ArgumentError for an axis that does not exist.
    Example:
        >>> hg.swapaxes(np.ones((2, 3, 4)), 0, 2).shape
        (4, 3, 2)
    """
    (x,) = to_tensors("swapaxes", [x])
    (one,), (other,) = distinct_axes("swapaxes", "axis1", [axis1], x.ndim), distinct_axes("swapaxes", "axis2", [axis2], x.ndim)
    order = list(range(x.ndim))
    order[one], order[other] = other, one
    return transpose(x, order)


def rollaxis(x: Any, axis: int, start: int = 0) -> Tensor:
    """x with an axis moved in front of the axis `start`, as numpy.rollaxis; `moveaxis` is clearer.

    Args:
        x: array or Tensor.
        axis: the axis.
        start: from 0 to the number of axes, which is the end; negative from the end.
    Returns: Tensor; a view.
    Raises: ArgumentError for an axis or a start that does not exist.
    Example:
        >>> hg.rollaxis(np.ones((2, 3, 4)), 2).shape
        (4, 2, 3)
    """
    (x,) = to_tensors("rollaxis", [x])
    (axis,) = distinct_axes("rollaxis", "axis", [axis], x.ndim)
    place = integer("rollaxis", "start", start, AXIS)
    if not -x.ndim <= place <= x.ndim:
        raise ArgumentError(f"rollaxis: start has {place}, expected {-x.ndim} to {x.ndim} because x has {x.ndim} axes; pass such a number")
    place += x.ndim if place < 0 else 0
    return moveaxis(x, axis, place - 1 if axis < place else place)


def ravel(x: Any) -> Tensor:
    """All elements of x in C order.

    Args:
        x: array or Tensor.
    Returns: Tensor, (size of x,).
    Example:
        >>> hg.ravel(np.array([[1.0, 2.0], [3.0, 4.0]]))
        Tensor(array([1., 2., 3., 4.]))
    """
    return reshape(x, -1)


def _atleast(name: str, x: Any, least: int) -> Tensor:
    (t,) = to_tensors(name, [x])
    missing = max(least - t.ndim, 0)
    if not missing:
        return t
    front = 1 if least == 3 and missing >= 2 else missing if least < 3 else 0  # NumPy: (N,) becomes (1, N, 1), (M, N) becomes (M, N, 1)
    return reshape(t, (1,) * front + t.shape + (1,) * (missing - front))


def atleast_1d(x: Any) -> Tensor:
    """x with at least one axis.

    Args:
        x: array, Tensor or number.
    Returns: Tensor.
    Example:
        >>> hg.atleast_1d(2.0)
        Tensor(array([2.]))
    """
    return _atleast("atleast_1d", x, 1)


def atleast_2d(x: Any) -> Tensor:
    """x with at least two axes; missing ones stand in front.

    Args:
        x: array, Tensor or number.
    Returns: Tensor.
    Example:
        >>> hg.atleast_2d(np.array([3.0, 1.0, 2.0]))
        Tensor(array([[3., 1., 2.]]))
    """
    return _atleast("atleast_2d", x, 2)


def atleast_3d(x: Any) -> Tensor:
    """x with at least three axes: (N,) becomes (1, N, 1) and (M, N) becomes (M, N, 1).

    Args:
        x: array, Tensor or number.
    Returns: Tensor.
    Example:
        >>> hg.atleast_3d(np.array([3.0, 1.0, 2.0])).shape
        (1, 3, 1)
    """
    return _atleast("atleast_3d", x, 3)


# --- pieces --------------------------------------------------------------------------------------------------------


def _pieces(name: str, x: Any, cuts: Any, axis: int, even: bool) -> list[Tensor]:
    """Slices of x along an axis, between indices or in a number of sections."""
    n = x.shape[axis]
    if isinstance(cuts, (list, tuple)) or hasattr(cuts, "ndim") and cuts.ndim and not isinstance(cuts, Tensor):
        bounds = [0, *integers(name, "sections", cuts, "it counts sections or holds the indices of cuts"), n]
    else:
        count = integer(name, "sections", cuts, "it counts sections or holds the indices of cuts")
        if count < 1 or even and n % count:
            wanted = "a divisor of it" if even else ">= 1"
            raise ArgumentError(f"{name}: sections has {count}, expected {wanted} because axis {axis} has {n} elements; use array_split")
        bounds = [i * (n // count) + min(i, n % count) for i in range(count + 1)]
    at = (slice(None),) * axis
    return [getitem(x, (*at, slice(a, b))) for a, b in zip(bounds, bounds[1:], strict=False)]


def split(x: Any, sections: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """x in pieces along an axis.

    Args:
        x: array or Tensor.
        sections: a number of equal pieces, or the indices at which to cut.
        axis: the axis.
    Returns: list of Tensors; views.
    Raises: ArgumentError for an axis that does not exist, or a number that does not divide its length.
    Example:
        >>> hg.split(np.array([3.0, 1.0, 2.0]), 3)[0]
        Tensor(array([3.]))
    """
    (x,) = to_tensors("split", [x])
    return _pieces("split", x, sections, normalise_axis("split", axis, x.ndim), True)


def array_split(x: Any, sections: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """x in pieces along an axis, of which the first ones may be longer by one.

    Args:
        x: array or Tensor.
        sections: the number of pieces, or the indices at which to cut.
        axis: the axis.
    Returns: list of Tensors; views.
    Raises: ArgumentError for an axis that does not exist, or a number below 1.
    Example:
        >>> hg.array_split(np.array([3.0, 1.0, 2.0]), 2)
        [Tensor(array([3., 1.])), Tensor(array([2.]))]
    """
    (x,) = to_tensors("array_split", [x])
    return _pieces("array_split", x, sections, normalise_axis("array_split", axis, x.ndim), False)


def _split_axis(name: str, x: Any, sections: Any, axis: int) -> list[Tensor]:
    (x,) = to_tensors(name, [x])
    if x.ndim <= axis:
        raise ShapeError(f"{name}: x has shape {x.shape}, expected at least {axis + 1} axes because axis {axis} is cut; reshape it")
    return _pieces(name, x, sections, axis, True)


def vsplit(x: Any, sections: int | Sequence[int]) -> list[Tensor]:
    """x in pieces along the first of at least two axes, as `split`.

    Args:
        x: array or Tensor.
        sections: a number of equal pieces, or the indices at which to cut.
    Returns: list of Tensors; views.
    Example:
        >>> hg.vsplit(np.array([[1.0, 2.0], [3.0, 4.0]]), 2)[1]
        Tensor(array([[3., 4.]]))
    """
    (x,) = to_tensors("vsplit", [x])
    if x.ndim < 2:
        raise ShapeError(f"vsplit: x has shape {x.shape}, expected at least 2 axes because its rows are cut; reshape it")
    return _split_axis("vsplit", x, sections, 0)


def hsplit(x: Any, sections: int | Sequence[int]) -> list[Tensor]:
    """x in pieces along the second axis, or the only one, as `split`.

    Args:
        x: array or Tensor.
        sections: a number of equal pieces, or the indices at which to cut.
    Returns: list of Tensors; views.
    Example:
        >>> hg.hsplit(np.array([[1.0, 2.0], [3.0, 4.0]]), 2)[0]
        Tensor(array([[1.],
               [3.]]))
    """
    (x,) = to_tensors("hsplit", [x])
    return _split_axis("hsplit", x, sections, min(x.ndim - 1, 1) if x.ndim else 0)


def dsplit(x: Any, sections: int | Sequence[int]) -> list[Tensor]:
    """x in pieces along the third axis, as `split`.

    Args:
        x: array or Tensor.
        sections: a number of equal pieces, or the indices at which to cut.
    Returns: list of Tensors; views.
    Example:
        >>> [y.shape for y in hg.dsplit(np.ones((2, 2, 4)), 2)]
        [(2, 2, 2), (2, 2, 2)]
    """
    return _split_axis("dsplit", x, sections, 2)


# --- joints --------------------------------------------------------------------------------------------------------


def vstack(tensors: Sequence[Any]) -> Tensor:
    """Arrays joined along their first axis; vectors are rows.

    Args:
        tensors: arrays or Tensors, equal in shape but for the first axis; at least one.
    Returns: Tensor.
    Raises: ShapeError if the shapes do not fit; ArgumentError for an empty list.
    Example:
        >>> hg.vstack([np.zeros(2), np.ones(2)])
        Tensor(array([[0., 0.],
               [1., 1.]]))
    """
    return concatenate([_atleast("vstack", x, 2) for x in to_join("vstack", tensors)], 0)


def hstack(tensors: Sequence[Any]) -> Tensor:
    """Arrays joined along their second axis, vectors along their only one.

    Args:
        tensors: arrays or Tensors, equal in shape but for that axis; at least one.
    Returns: Tensor.
    Raises: ShapeError if the shapes do not fit; ArgumentError for an empty list.
    Example:
        >>> hg.hstack([np.zeros(2), np.ones(1)])
        Tensor(array([0., 0., 1.]))
    """
    whole = [_atleast("hstack", x, 1) for x in to_join("hstack", tensors)]
    return concatenate(whole, 0 if all(x.ndim == 1 for x in whole) else 1)


def dstack(tensors: Sequence[Any]) -> Tensor:
    """Arrays joined along their third axis, which vectors and matrices get.

    Args:
        tensors: arrays or Tensors, equal in shape but for that axis; at least one.
    Returns: Tensor.
    Raises: ShapeError if the shapes do not fit; ArgumentError for an empty list.
    Example:
        >>> hg.dstack([np.ones(3), np.ones(3)]).shape
        (1, 3, 2)
    """
    return concatenate([_atleast("dstack", x, 3) for x in to_join("dstack", tensors)], 2)


def column_stack(tensors: Sequence[Any]) -> Tensor:
    """Matrices joined along their second axis; vectors are columns.

    Args:
        tensors: vectors or matrices with as many rows; at least one.
    Returns: Tensor.
    Raises: ShapeError if the shapes do not fit; ArgumentError for an empty list.
    Example:
        >>> hg.column_stack([np.zeros(2), np.ones(2)])
        Tensor(array([[0., 1.],
               [0., 1.]]))
    """
    return concatenate([reshape(x, (-1, 1)) if x.ndim < 2 else x for x in to_join("column_stack", tensors)], 1)


def append(x: Any, y: Any, axis: int | None = None) -> Tensor:
    """x followed by y.

    Args:
        x, y: arrays, Tensors or numbers, equal in shape but for the axis.
        axis: the axis; None for all elements of both in C order.
    Returns: Tensor.
    Raises: ShapeError if the shapes do not fit; ArgumentError for an axis that does not exist.
    Example:
        >>> hg.append(np.array([3.0, 1.0, 2.0]), 5.0)
        Tensor(array([3., 1., 2., 5.]))
    """
    x, y = to_tensors("append", [x, y])
    if axis is None:
        return concatenate([reshape(x, -1), reshape(y, -1)], 0)
    return concatenate([x, y], normalise_axis("append", axis, x.ndim))
