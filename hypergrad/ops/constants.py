"""Functions that give plain arrays: no derivative flows through their results.

What a Tensor's elements are like (any, argmax, sign, floor, ...) changes in jumps, so that its derivative is zero wherever it exists.
New arrays (zeros, eye, one_hot, ...) depend on nothing. Only `full` of a Tensor is a Tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backends import DEVICES, Array, as_array, backend_of, backend_on, bare
from ..errors import ArgumentError, ShapeError
from ..rules import broadcast_to
from ..tape import Tensor
from .arguments import array_of, dtype_of, integer, integers, number, shown, switch
from .arrays import SHAPE, normalise_axis
from .reductions import Axis, reduced_axes

__all__ = [
    "all",
    "any",
    "arange",
    "argmax",
    "argmin",
    "argsort",
    "ceil",
    "count_nonzero",
    "eye",
    "floor",
    "full",
    "full_like",
    "one_hot",
    "ones",
    "ones_like",
    "round",
    "sign",
    "trunc",
    "zeros",
    "zeros_like",
]


# --- what the elements are like ------------------------------------------------------------------------------------------


def _value(x: Any) -> Array:
    return x.value if isinstance(x, Tensor) else as_array(x)


def _array(out: Any) -> Array:
    return np.asarray(out) if isinstance(out, np.generic) else out


def _reduced(name: str, x: Any, axis: Axis, keepdims: Any, op: str) -> Array:
    a = _value(x)
    axes = reduced_axes(name, axis, a.ndim)
    return _array(getattr(backend_of(a).xp, op)(a, axis=axes, keepdims=switch(name, "keepdims", keepdims)))


def all(x: Any, axis: Axis = None, keepdims: bool = False) -> Array:
    """Whether no element is 0, over axes.

    Args:
        x: array or Tensor.
        axis: an axis, several, or None for all.
        keepdims: keep the reduced axes with length 1.
    Returns: bool array, a constant.
    Raises: ArgumentError for an axis that does not exist or is named twice.
    Example:
        >>> hg.all(np.array([[1.0, 2.0], [3.0, 4.0]]) > 1, axis=1)
        array([False,  True])
    """
    return _reduced("all", x, axis, keepdims, "all")


def any(x: Any, axis: Axis = None, keepdims: bool = False) -> Array:
    """Whether an element is not 0, over axes; arguments, result and errors as `all`.

    Args, Returns: x, axis, keepdims as there.
    Example:
        >>> hg.any(np.array([[1.0, 2.0], [3.0, 4.0]]) > 3, axis=1)
        array([False,  True])
    """
    return _reduced("any", x, axis, keepdims, "any")


def count_nonzero(x: Any, axis: Axis = None, keepdims: bool = False) -> Array:
    """How many elements are not 0, over axes; arguments and errors as `all`.

    Args, Returns: x, axis, keepdims as there; an integer array, a constant.
    Example:
        >>> hg.count_nonzero(np.array([[0.0, 2.0], [3.0, 4.0]]), axis=1)
        array([1, 2])
    """
    a = _value(x) != 0
    return _reduced("count_nonzero", a, axis, keepdims, "sum")


def _place(name: str, x: Any, axis: Any, keepdims: Any) -> Array:
    a = _value(x)
    keep = switch(name, "keepdims", keepdims)
    chosen = None if axis is None else normalise_axis(name, axis, a.ndim)
    if not (a.size if chosen is None else a.shape[chosen]):
        raise ArgumentError(f"{name}: x has shape {a.shape}, expected at least one element along axis {axis} because one is chosen")
    out = _array(getattr(backend_of(a).xp, name)(a, axis=chosen))
    return out.reshape([1 if chosen in (None, i) else n for i, n in enumerate(a.shape)]) if keep else out


def argmax(x: Any, axis: int | None = None, keepdims: bool = False) -> Array:
    """Place of the largest element along an axis, the first one of equal ones; `take_along_axis` takes it with its derivative.

    Args:
        x: array or Tensor.
        axis: the axis; None for all elements in C order.
        keepdims: keep the axis (of None all of them) with length 1.
    Returns: integer array, a constant.
    Raises: ArgumentError for an axis that does not exist, or without elements.
    Example:
        >>> hg.argmax(np.array([[1.0, 2.0], [3.0, 4.0]]), axis=1)
        array([1, 1])
    """
    return _place("argmax", x, axis, keepdims)


def argmin(x: Any, axis: int | None = None, keepdims: bool = False) -> Array:
    """Place of the smallest element along an axis; arguments, result and errors as `argmax`.

    Args, Returns: x, axis, keepdims as there.
    Example:
        >>> hg.argmin(np.array([[1.0, 2.0], [3.0, 4.0]]), axis=1)
        array([0, 0])
    """
    return _place("argmin", x, axis, keepdims)


def argsort(x: Any, axis: int | None = -1) -> Array:
    """The places of the elements in ascending order along an axis, in the order of `sort`.

    Args:
        x: array or Tensor.
        axis: the axis; None for all elements in C order.
    Returns: integer array, a constant.
    Raises: ArgumentError for an axis that does not exist.
    Example:
        >>> hg.argsort(np.array([3.0, 1.0, 2.0]))
        array([1, 2, 0])
    """
    a = _value(x)
    a, chosen = (a.reshape(-1), 0) if axis is None else (a, normalise_axis("argsort", axis, a.ndim))
    return backend_of(a).xp.argsort(a, axis=chosen, kind="stable")


def _step(name: str, x: Any) -> Array:
    a = array_of(name, "x", x, "iuf", "numbers", "they are compared")
    return _array(getattr(backend_of(a).xp, name)(a))


def sign(x: Any) -> Array:
    """-1, 0 or 1, by the sign of each element.

    Args:
        x: array or Tensor.
    Returns: array like x, a constant.
    Example:
        >>> hg.sign(np.array([-2.0, 0.0, 3.0]))
        array([-1.,  0.,  1.])
    """
    return _step("sign", x)


def floor(x: Any) -> Array:
    """The largest whole number that is not above each element.

    Args:
        x: array or Tensor.
    Returns: array like x, a constant.
    Example:
        >>> hg.floor(np.array([-1.5, 0.2]))
        array([-2.,  0.])
    """
    return _step("floor", x)


def ceil(x: Any) -> Array:
    """The smallest whole number that is not below each element.

    Args:
        x: array or Tensor.
    Returns: array like x, a constant.
    Example:
        >>> hg.ceil(np.array([-1.5, 0.2]))
        array([-1.,  1.])
    """
    return _step("ceil", x)


def trunc(x: Any) -> Array:
    """Each element without what follows the decimal point.

    Args:
        x: array or Tensor.
    Returns: array like x, a constant.
    Example:
        >>> hg.trunc(np.array([-1.5, 2.7]))
        array([-1.,  2.])
    """
    return _step("trunc", x)


def round(x: Any, decimals: int = 0) -> Array:
    """Each element rounded, and halves to the even number.

    Args:
        x: array or Tensor.
        decimals: places after the decimal point; negative ones stand before it.
    Returns: array like x, a constant.
    Raises: ArgumentError for decimals that are no integer.
    Example:
        >>> hg.round(np.array([1.234, -0.5]), 1)
        array([ 1.2, -0.5])
    """
    a = array_of("round", "x", x, "iuf", "numbers", "they are rounded")
    return _array(backend_of(a).xp.round(a, integer("round", "decimals", decimals, "it counts places")))


# --- new arrays ------------------------------------------------------------------------------------------------------------


def _dtype(name: str, dtype: Any) -> np.dtype[Any]:
    return dtype_of(name, dtype, "biuf", "a dtype of numbers", "arrays hold numbers")


def _xp(name: str, device: Any) -> Any:
    """The array module of a device."""
    if not isinstance(device, str) or device not in DEVICES:
        raise ArgumentError(f"{name}: device has {shown(device)}, expected one of {', '.join(DEVICES)}; pass one of these")
    return backend_on(device).xp


def _shape(name: str, shape: Any) -> tuple[int, ...]:
    found = integers(name, "shape", shape, SHAPE)
    if min(found, default=0) < 0:
        raise ArgumentError(f"{name}: shape has {shown(shape)}, expected numbers >= 0 because they count elements; pass such numbers")
    return found


def zeros(shape: int | Sequence[int], dtype: Any = np.float64, device: str = "cpu") -> Array:
    """An array of zeros.

    Args:
        shape: of the array.
        dtype: of the array.
        device: "cpu", or "cuda" for an array on the GPU.
    Returns: array, NumPy's or CuPy's.
    Raises: ArgumentError for a shape or device that is none; DTypeError for a dtype that is none of numbers.
    Example:
        >>> hg.zeros((2, 2))
        array([[0., 0.],
               [0., 0.]])
    """
    return _xp("zeros", device).zeros(_shape("zeros", shape), _dtype("zeros", dtype))


def ones(shape: int | Sequence[int], dtype: Any = np.float64, device: str = "cpu") -> Array:
    """An array of ones; arguments and errors as `zeros`.

    Args, Returns: shape, dtype, device as there.
    Example:
        >>> hg.ones((2, 2), np.float32)
        array([[1., 1.],
               [1., 1.]], dtype=float32)
    """
    return _xp("ones", device).ones(_shape("ones", shape), _dtype("ones", dtype))


def eye(n: int, m: int | None = None, k: int = 0, dtype: Any = np.float64, device: str = "cpu") -> Array:
    """A matrix with ones on a diagonal, and zeros elsewhere.

    Args:
        n, m: numbers of rows and columns, >= 0; m None for as many as rows.
        k: the diagonal; 0 is the main one, positive ones lie above it.
        dtype: of the matrix.
        device: "cpu", or "cuda" for an array on the GPU.
    Returns: array, (n, m).
    Raises: as `zeros`; ArgumentError for an n, m or k that is no integer.
    Example:
        >>> hg.eye(2)
        array([[1., 0.],
               [0., 1.]])
    """
    rows = _count("eye", "n", n)
    columns = rows if m is None else _count("eye", "m", m)
    return _xp("eye", device).eye(rows, columns, integer("eye", "k", k, "it numbers diagonals"), dtype=_dtype("eye", dtype))


def _count(name: str, argument: str, value: Any) -> int:
    found = integer(name, argument, value, SHAPE)
    if found < 0:
        raise ArgumentError(f"{name}: {argument} has {found}, expected >= 0 because it counts elements; pass such a number")
    return found


def arange(start: float, stop: float | None = None, step: float = 1, dtype: Any = None, device: str = "cpu") -> Array:
    """Numbers from start up to stop, which is left out, at distances of step; with one number, from 0 up to it.

    Args:
        start, stop, step: numbers; a step that is not 0.
        dtype: of the array; None for integers of integers, else float64.
        device: "cpu", or "cuda" for an array on the GPU.
    Returns: array of one axis.
    Raises: as `zeros`; ArgumentError for what is no number.
    Example:
        >>> hg.arange(1, 7, 2)
        array([1, 3, 5])
    """
    given = {"start": start, "stop": start if stop is None else stop, "step": step}
    found = {key: _number("arange", key, value) for key, value in given.items()}
    if not found["step"]:
        raise ArgumentError("arange: step has 0, expected another number because the numbers would not end; pass such a number")
    first = 0 if stop is None else found["start"]
    kind = _dtype("arange", np.result_type(*map(type, found.values())) if dtype is None else dtype)
    return _xp("arange", device).arange(first, found["stop"], found["step"], dtype=kind)


def _number(name: str, argument: str, value: Any) -> float:
    found = number(name, argument, value, "a number", "it is an element of the result", -math.inf)
    return int(found) if isinstance(value, (int, np.integer)) else found


def full(shape: int | Sequence[int], fill_value: Any, dtype: Any = None, device: str = "cpu") -> Any:
    """An array of one number, or of an array or Tensor that broadcasts.

    Args:
        shape: of the array.
        fill_value: number, array or Tensor; a Tensor gets a derivative.
        dtype: of the array; None for that of the value, float64 for numbers. It must be None for a Tensor.
        device: "cpu", or "cuda" for an array on the GPU; an array or Tensor decides for itself.
    Returns: array; a Tensor (a read-only view) where the value is one.
    Raises: as `zeros`; ShapeError for a value that does not broadcast; ArgumentError for a dtype beside a Tensor.
    Example:
        >>> hg.full(3, 2.5)
        array([2.5, 2.5, 2.5])
    """
    return _filled("full", _shape("full", shape), fill_value, dtype, device)


def _filled(name: str, shape: tuple[int, ...], value: Any, dtype: Any, device: str) -> Any:
    if isinstance(value, Tensor):
        if dtype is not None and _dtype(name, dtype) != value.dtype:
            raise ArgumentError(f"{name}: dtype has {shown(dtype)}, expected None because the Tensor has {value.dtype}; use astype")
        return broadcast_to(value, shape=shape)
    a = array_of(name, "fill_value", float(value) if type(value) is int else value, "biuf", "a number or an array", "it fills the result")
    kind = _dtype(name, a.dtype if dtype is None else dtype)
    if not a.ndim:
        return _xp(name, device).full(shape, a.item(), kind)
    out = backend_of(a).xp.empty(shape, kind)
    try:
        out[...] = a
    except ValueError as error:
        raise ShapeError(f"{name}: fill_value has shape {a.shape}, expected one that broadcasts to {shape}; reshape it") from error
    return out


def zeros_like(x: Any) -> Array:
    """Zeros of the shape, dtype and device of x.

    Args:
        x: array or Tensor.
    Returns: array, a constant.
    Example:
        >>> hg.zeros_like(np.array([3.0, 1.0, 2.0]))
        array([0., 0., 0.])
    """
    a = _value(x)
    return backend_of(a).xp.zeros(a.shape, a.dtype)


def ones_like(x: Any) -> Array:
    """Ones of the shape, dtype and device of x.

    Args:
        x: array or Tensor.
    Returns: array, a constant.
    Example:
        >>> hg.ones_like(np.array([3.0, 1.0, 2.0]))
        array([1., 1., 1.])
    """
    a = _value(x)
    return backend_of(a).xp.ones(a.shape, a.dtype)


def full_like(x: Any, fill_value: Any) -> Any:
    """`full` with the shape, dtype and device of x.

    Args:
        x: array or Tensor.
        fill_value: number, array or Tensor that broadcasts; a Tensor gets a derivative.
    Returns: array; a Tensor where fill_value is one.
    Raises: ShapeError for a value that does not broadcast; ArgumentError for a Tensor of another dtype.
    Example:
        >>> hg.full_like(np.array([[1.0, 2.0], [3.0, 4.0]]), 7.0)
        array([[7., 7.],
               [7., 7.]])
    """
    a = _value(x)
    return _filled("full_like", a.shape, fill_value, a.dtype, "cpu" if isinstance(bare(a), np.ndarray) else "cuda")


def one_hot(labels: Any, classes: int, dtype: Any = np.float64) -> Array:
    """A one at the place of each label, and zeros elsewhere.

    Args:
        labels: integers, (...), 0 <= label < classes.
        classes: their number.
        dtype: of the result.
    Returns: array, (..., classes), where the labels are. Labels in a CuPy array are not read by the host: one out of range gets zeros.
    Raises: ArgumentError for a label out of range; DTypeError for labels that are no integers.
    Example:
        >>> hg.one_hot(np.array([2, 0]), 3)
        array([[0., 0., 1.],
               [1., 0., 0.]])
    """
    count, kind = _count("one_hot", "classes", classes), _dtype("one_hot", dtype)
    index = array_of("one_hot", "labels", labels, "iu", "integers", "they number classes")
    every = bare(index)
    if isinstance(every, np.ndarray) and every.size and (every.min() < 0 or every.max() >= count):
        raise ArgumentError(
            f"one_hot: labels has values {every.min()} to {every.max()}, expected 0 to {count - 1} because there are {count} classes"
        )
    return (index[..., None] == backend_of(index).xp.arange(count)).astype(kind)
