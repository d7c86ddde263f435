"""Triangles and diagonals of matrices. Linear."""

from __future__ import annotations

from typing import Any

from ..backends import backend_of
from ..errors import ArgumentError, ShapeError
from ..tape import Tensor, to_tensors
from .arguments import integer
from .arrays import AXIS, getitem, put
from .elementwise import where
from .reductions import sum
from .shapes import moveaxis

__all__ = ["diag", "diagonal", "trace", "tril", "triu"]

OFFSET = "it numbers diagonals"


def _triangle(name: str, x: Any, k: Any, lower: bool) -> Tensor:
    (x,) = to_tensors(name, [x])
    if x.ndim < 2:
        raise ShapeError(f"{name}: x has shape {x.shape}, expected (..., M, N) because it holds matrices; reshape it")
    offset = integer(name, "k", k, OFFSET)
    ones = backend_of(x.value).xp.tri(x.shape[-2], x.shape[-1], offset if lower else offset - 1, dtype=bool)
    return where(ones if lower else ~ones, x, 0.0)


def tril(x: Any, k: int = 0) -> Tensor:
    """The lower triangle of matrices, and 0 above it.

    Args:
        x: array or Tensor, (..., M, N).
        k: the last diagonal that stays; 0 is the main one, positive ones lie above it.
    Returns: Tensor like x.
    Raises: ShapeError for fewer than two axes.
    Example:
        >>> hg.tril(np.array([[1.0, 2.0], [3.0, 4.0]]))
        Tensor(array([[1., 0.],
               [3., 4.]]))
    """
    return _triangle("tril", x, k, True)


def triu(x: Any, k: int = 0) -> Tensor:
    """The upper triangle of matrices, and 0 below it.

    Args:
        x: array or Tensor, (..., M, N).
        k: the first diagonal that stays; 0 is the main one, positive ones lie above it.
    Returns: Tensor like x.
    Raises: ShapeError for fewer than two axes.
    Example:
        >>> hg.triu(np.array([[1.0, 2.0], [3.0, 4.0]]))
        Tensor(array([[1., 2.],
               [0., 4.]]))
    """
    return _triangle("triu", x, k, False)


def diagonal(x: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Tensor:
    """A diagonal of matrices, as the last axis of the result.

    Args:
        x: array or Tensor with at least two axes.
        offset: which; 0 is the main one, positive ones lie above it.
        axis1, axis2: the axes of rows and columns.
    Returns: Tensor; a copy.
    Raises: ArgumentError for axes that do not exist or are the same.
    Example:
        >>> hg.diagonal(np.array([[1.0, 2.0], [3.0, 4.0]]))
        Tensor(array([1., 4.]))
    """
    (x,) = to_tensors("diagonal", [x])
    if x.ndim < 2:
        raise ShapeError(f"diagonal: x has shape {x.shape}, expected at least two axes because it holds matrices; reshape it")
    return _diagonal("diagonal", x, offset, axis1, axis2)


def _diagonal(name: str, x: Tensor, offset: Any, axis1: Any, axis2: Any) -> Tensor:
    k = integer(name, "offset", offset, OFFSET)
    pair = [_axis(name, "axis1", axis1, x.ndim), _axis(name, "axis2", axis2, x.ndim)]
    if pair[0] == pair[1]:
        raise ArgumentError(f"{name}: axis2 has {axis2}, expected another axis than axis1 because they span matrices; name two")
    matrices = moveaxis(x, pair, [-2, -1])
    rows, columns = matrices.shape[-2:]
    n = max(min(rows + min(k, 0), columns - max(k, 0)), 0)
    i = backend_of(x.value).xp.arange(n)
    return getitem(matrices, (..., i - min(k, 0), i + max(k, 0)))


def _axis(name: str, argument: str, axis: Any, ndim: int) -> int:
    found = integer(name, argument, axis, AXIS)
    if not -ndim <= found < ndim:
        raise ArgumentError(f"{name}: {argument} has {found}, expected {-ndim} to {ndim - 1} because x has {ndim} axes; name one")
    return found % ndim


def trace(x: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Tensor:
    """The sum of a diagonal of matrices; arguments and errors as `diagonal`.

    Args:
        x: array or Tensor with at least two axes.
        offset: which; 0 is the main one, positive ones lie above it.
        axis1, axis2: the axes of rows and columns.
    Returns: Tensor.
    Example:
        >>> hg.trace(np.array([[1.0, 2.0], [3.0, 4.0]]))
        Tensor(array(5.))
    """
    (x,) = to_tensors("trace", [x])
    if x.ndim < 2:
        raise ShapeError(f"trace: x has shape {x.shape}, expected at least two axes because it holds matrices; reshape it")
    return sum(_diagonal("trace", x, offset, axis1, axis2), axis=-1)


def diag(x: Any, k: int = 0) -> Tensor:
    """The matrix with x on a diagonal, or the diagonal of a matrix.

    Args:
        x: array or Tensor, (N,) or (M, N).
        k: which diagonal; 0 is the main one, positive ones lie above it.
    Returns: Tensor, (N + |k|, N + |k|), or of one axis.
    Raises: ShapeError for other numbers of axes.
    Example:
        >>> hg.diag(np.array([1.0, 2.0]))
        Tensor(array([[1., 0.],
               [0., 2.]]))
    """
    (x,) = to_tensors("diag", [x])
    offset = integer("diag", "k", k, OFFSET)
    if x.ndim == 2:
        return _diagonal("diag", x, offset, 0, 1)
    if x.ndim != 1:
        raise ShapeError(f"diag: x has shape {x.shape}, expected (N,) or (M, N) because it is a diagonal or a matrix; use diagonal")
    i = backend_of(x.value).xp.arange(x.shape[0])
    n = x.shape[0] + abs(offset)
    return put(x, index=(i + max(-offset, 0), i + max(offset, 0)), shape=(n, n))
