"""Products of arrays under NumPy's names: dot, inner, outer, tensordot, vdot, kron, cross. Built on `matmul` and `multiply`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..errors import ArgumentError, ShapeError
from ..tape import Tensor, to_tensors
from .arguments import integer, integers, shown
from .arrays import AXIS, getitem, normalise_axis, reshape, stack, transpose
from .elementwise import multiply, subtract
from .linalg import matmul
from .shapes import moveaxis

__all__ = ["cross", "dot", "inner", "kron", "outer", "tensordot", "vdot"]


def dot(x: Any, y: Any) -> Tensor:
    """The sum of products over the last axis of x and the last but one (or the only one) of y; of a number the product.

    Args:
        x, y: arrays, Tensors or numbers of one dtype.
    Returns: Tensor, of the other axes of x and then those of y.
    Raises: ShapeError if the sizes differ.
    Example:
        >>> hg.dot(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([1.0, 10.0]))
        Tensor(array([21., 43.]))
    """
    x, y = to_tensors("dot", [x, y])
    if not x.ndim or not y.ndim:
        return multiply(x, y)
    if x.shape[-1] != y.shape[-2 if y.ndim > 1 else 0]:
        raise ShapeError(f"dot: arguments have shapes {x.shape} and {y.shape}, expected (..., K) and (..., K, N); transpose one")
    return matmul(x, y) if y.ndim <= 2 else _contracted(x, y, [x.ndim - 1], [y.ndim - 2])


def inner(x: Any, y: Any) -> Tensor:
    """The sum of products over the last axes of x and y; of a number the product.

    Args:
        x, y: arrays, Tensors or numbers of one dtype.
    Returns: Tensor, of the other axes of x and then those of y.
    Raises: ShapeError if the sizes differ.
    Example:
        >>> hg.inner(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([1.0, 10.0]))
        Tensor(array([21., 43.]))
    """
    x, y = to_tensors("inner", [x, y])
    if not x.ndim or not y.ndim:
        return multiply(x, y)
    if x.shape[-1] != y.shape[-1]:
        raise ShapeError(f"inner: arguments have shapes {x.shape} and {y.shape}, expected equal last axes; transpose one")
    return _contracted(x, y, [x.ndim - 1], [y.ndim - 1])


def outer(x: Any, y: Any) -> Tensor:
    """Every element of x times every element of y.

    Args:
        x, y: arrays, Tensors or numbers of one dtype.
    Returns: Tensor, (size of x, size of y).
    Example:
        >>> hg.outer(np.array([1.0, 2.0]), np.array([1.0, 10.0]))
        Tensor(array([[ 1., 10.],
               [ 2., 20.]]))
    """
    x, y = to_tensors("outer", [x, y])
    return multiply(reshape(x, (x.size, 1)), reshape(y, (1, y.size)))


def vdot(x: Any, y: Any) -> Tensor:
    """The sum of the products of all elements.

    Args:
        x, y: arrays or Tensors of one size and dtype.
    Returns: Tensor without axes.
    Raises: ShapeError if the sizes differ.
    Example:
        >>> hg.vdot(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 2.0], [3.0, 4.0]]))
        Tensor(array(30.))
    """
    x, y = to_tensors("vdot", [x, y])
    if x.size != y.size:
        raise ShapeError(f"vdot: arguments have shapes {x.shape} and {y.shape}, expected equal sizes; index the larger one")
    return matmul(reshape(x, -1), reshape(y, -1))


def _contracted(x: Tensor, y: Tensor, left: Sequence[int], right: Sequence[int]) -> Tensor:
    """The sum of products over axes of x and of y, in pairs, as one matrix product."""
    x_rest = [i for i in range(x.ndim) if i not in left]
    y_rest = [i for i in range(y.ndim) if i not in right]
    shape = [x.shape[i] for i in x_rest] + [y.shape[i] for i in y_rest]
    k = math.prod(x.shape[i] for i in left)
    rows = reshape(transpose(x, [*x_rest, *left]), (math.prod(x.shape[i] for i in x_rest), k))
    columns = reshape(transpose(y, [*right, *y_rest]), (k, math.prod(y.shape[i] for i in y_rest)))
    return reshape(matmul(rows, columns), shape)


def tensordot(x: Any, y: Any, axes: int | Sequence[Any] = 2) -> Tensor:
    """The sum of products over axes of x and of y.

    Args:
        x, y: arrays or Tensors of one dtype.
        axes: a number of axes, the last ones of x and the first ones of y; or those of x and those of y, each one or several.
    Returns: Tensor, of the other axes of x and then those of y.
    Raises: ArgumentError for axes that do not exist or do not pair; ShapeError if the sizes of a pair differ.
    Example:
        >>> hg.tensordot(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 2.0], [3.0, 4.0]]), axes=1)
        Tensor(array([[ 7., 10.],
               [15., 22.]]))
    """
    x, y = to_tensors("tensordot", [x, y])
    reason = "they pair axes of x with axes of y"
    if isinstance(axes, (list, tuple)):
        if len(axes) != 2:
            raise ArgumentError(f"tensordot: axes has {shown(axes)}, expected a number or two lists because {reason}; pass such")
        left, right = ([_axis(a, t) for a in integers("tensordot", "axes", one, reason)] for one, t in zip(axes, (x, y), strict=True))
    else:
        count = integer("tensordot", "axes", axes, reason)
        if not 0 <= count <= min(x.ndim, y.ndim):
            raise ArgumentError(f"tensordot: axes has {count}, expected 0 to {min(x.ndim, y.ndim)} because {reason}; pass such a number")
        left, right = list(range(x.ndim - count, x.ndim)), list(range(count))
    if len(left) != len(right) or len(set(left)) < len(left) or len(set(right)) < len(right):
        raise ArgumentError(f"tensordot: axes has {shown(axes)}, expected as many of x as of y, each once, because {reason}; pass such")
    if any(x.shape[i] != y.shape[j] for i, j in zip(left, right, strict=True)):
        raise ShapeError(f"tensordot: arguments have shapes {x.shape} and {y.shape}, expected equal sizes along axes {shown(axes)}")
    return _contracted(x, y, left, right)


def _axis(axis: int, t: Tensor) -> int:
    if not -t.ndim <= axis < t.ndim:
        raise ArgumentError(f"tensordot: axes has {axis}, expected {-t.ndim} to {t.ndim - 1} because the argument has {t.ndim} axes")
    return axis % t.ndim


def kron(x: Any, y: Any) -> Tensor:
    """The Kronecker product: blocks of y, each times an element of x.

    Args:
        x, y: arrays, Tensors or numbers of one dtype.
    Returns: Tensor, the shapes multiplied; the one with fewer axes gets axes of length 1 in front.
    Example:
        >>> hg.kron(np.eye(2), np.array([[1.0, 2.0]]))
        Tensor(array([[1., 2., 0., 0.],
               [0., 0., 1., 2.]]))
    """
    x, y = to_tensors("kron", [x, y])
    n = max(x.ndim, y.ndim)
    a, b = ((1,) * (n - t.ndim) + t.shape for t in (x, y))
    wide = multiply(reshape(x, [m for size in a for m in (size, 1)]), reshape(y, [m for size in b for m in (1, size)]))
    return reshape(wide, [i * j for i, j in zip(a, b, strict=True)])


def cross(x: Any, y: Any, axis: int = -1) -> Tensor:
    """The vector product of vectors with three components.

    Args:
        x, y: arrays or Tensors of one dtype; axes other than `axis` broadcast.
        axis: the axis of the components, in both and in the result.
    Returns: Tensor.
    Raises: ShapeError for another number of components.
    Example:
        >>> hg.cross(np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0]))
        Tensor(array([0., 0., 1.]))
    """
    x, y = to_tensors("cross", [x, y])
    vectors = []
    for t in (x, y):
        place = normalise_axis("cross", axis, t.ndim)
        if t.shape[place] != 3:
            raise ShapeError(f"cross: arguments have shapes {x.shape} and {y.shape}, expected 3 components along axis {axis}")
        moved = moveaxis(t, place, -1)
        vectors.append([getitem(moved, (..., i)) for i in range(3)])
    a, b = vectors
    parts = [subtract(multiply(a[i - 2], b[i - 1]), multiply(a[i - 1], b[i - 2])) for i in range(3)]
    return moveaxis(stack(parts, -1), -1, integer("cross", "axis", axis, AXIS))
