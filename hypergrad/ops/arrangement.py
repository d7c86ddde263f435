"""Elements in another order, repeated, or with a border. All linear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backends import backend_of
from ..errors import ArgumentError
from ..tape import Tensor, to_tensors
from .arguments import integer, integers, number, shown
from .arrays import AXIS, broadcast_to, concatenate, getitem, normalise_axis, put, reshape, take
from .elementwise import add
from .shapes import COUNT, distinct_axes, expand_dims, swapaxes

__all__ = ["flip", "fliplr", "flipud", "pad", "repeat", "roll", "rot90", "tile"]


def flip(x: Any, axis: int | Sequence[int] | None = None) -> Tensor:
    """x with the elements along axes in reverse order.

    Args:
        x: array or Tensor.
        axis: one, several, or None for all.
    Returns: Tensor; a view.
    Raises: ArgumentError for an axis that does not exist or is named twice.
    Example:
        >>> hg.flip(np.array([3.0, 1.0, 2.0]))
        Tensor(array([2., 1., 3.]))
    """
    (x,) = to_tensors("flip", [x])
    axes = range(x.ndim) if axis is None else distinct_axes("flip", "axis", axis, x.ndim)
    return getitem(x, tuple(slice(None, None, -1 if i in axes else 1) for i in range(x.ndim)))


def flipud(x: Any) -> Tensor:
    """x with its first axis in reverse order, as `flip`.

    Args:
        x: array or Tensor with at least one axis.
    Returns: Tensor; a view.
    Example:
        >>> hg.flipud(np.array([[1.0, 2.0], [3.0, 4.0]]))
        Tensor(array([[3., 4.],
               [1., 2.]]))
    """
    return flip(x, 0)


def fliplr(x: Any) -> Tensor:
    """x with its second axis in reverse order, as `flip`.

    Args:
        x: array or Tensor with at least two axes.
    Returns: Tensor; a view.
    Example:
        >>> hg.fliplr(np.array([[1.0, 2.0], [3.0, 4.0]]))
        Tensor(array([[2., 1.],
               [4., 3.]]))
    """
    return flip(x, 1)


def rot90(x: Any, k: int = 1, axes: Sequence[int] = (0, 1)) -> Tensor:
    """x turned by k quarters in the plane of two axes, from the first to the second.

    Args:
        x: array or Tensor with at least two axes.
        k: how often, of any sign.
        axes: the two axes.
    Returns: Tensor; a view.
    Raises: ArgumentError for axes that are not two different ones.
    Example:
        >>> hg.rot90(np.array([[1.0, 2.0], [3.0, 4.0]]))
        Tensor(array([[2., 4.],
               [1., 3.]]))
    """
    (x,) = to_tensors("rot90", [x])
    pair, turns = distinct_axes("rot90", "axes", axes, x.ndim), integer("rot90", "k", k, "it counts quarters") % 4
    if len(pair) != 2:
        raise ArgumentError(f"rot90: axes has {shown(axes)}, expected two axes because they span the plane; name two")
    if turns == 2:
        return flip(x, pair)
    turned = flip(x, pair[1]) if turns == 1 else x
    turned = swapaxes(turned, *pair) if turns else turned
    return flip(turned, pair[1]) if turns == 3 else turned


def roll(x: Any, shift: int | Sequence[int], axis: int | Sequence[int] | None = None) -> Tensor:
    """x with elements moved along axes; those that leave at one end enter at the other.

    Args:
        x: array or Tensor.
        shift: by how many places, one number for each axis or one for all.
        axis: one or several, or None for all elements in C order.
    Returns: Tensor like x.
    Raises: ArgumentError for an axis that does not exist, or another number of shifts than of axes.
    Example:
        >>> hg.roll(np.array([3.0, 1.0, 2.0]), 1)
        Tensor(array([2., 3., 1.]))
    """
    (t,) = to_tensors("roll", [x])
    if axis is None:
        return reshape(roll(reshape(t, -1), shift, 0), t.shape)
    shifts = integers("roll", "shift", shift, COUNT)
    axes = [normalise_axis("roll", a, t.ndim) for a in integers("roll", "axis", axis, AXIS)]
    if len(shifts) != len(axes) and 1 not in (len(shifts), len(axes)):
        raise ArgumentError(f"roll: shift has {len(shifts)} numbers, expected 1 or {len(axes)} because axis names {len(axes)} axes")
    width = max(len(shifts), len(axes))
    for by, along in zip(shifts * (width // len(shifts)), axes * (width // len(axes)), strict=True):
        n = t.shape[along]
        cut = -by % n if n else 0
        if cut:
            at = (slice(None),) * along
            t = concatenate([getitem(t, (*at, slice(cut, None))), getitem(t, (*at, slice(cut)))], along)
    return t


def tile(x: Any, reps: int | Sequence[int]) -> Tensor:
    """x set side by side, as numpy.tile.

    Args:
        x: array or Tensor.
        reps: how often along each axis, >= 0; the last number belongs to the last axis.
    Returns: Tensor.
    Raises: ArgumentError for a number that is none.
    Example:
        >>> hg.tile(np.array([1.0, 2.0]), 2)
        Tensor(array([1., 2., 1., 2.]))
    """
    (x,) = to_tensors("tile", [x])
    counts = integers("tile", "reps", reps, COUNT)
    if any(n < 0 for n in counts):
        raise ArgumentError(f"tile: reps has {shown(reps)}, expected numbers >= 0 because they count copies; pass such numbers")
    counts = (1,) * (x.ndim - len(counts)) + counts
    shape = (1,) * (len(counts) - x.ndim) + x.shape
    wide = broadcast_to(reshape(x, [n for size in shape for n in (1, size)]), [n for pair in zip(counts, shape, strict=True) for n in pair])
    return reshape(wide, [c * n for c, n in zip(counts, shape, strict=True)])


def repeat(x: Any, repeats: int | Sequence[int], axis: int | None = None) -> Tensor:
    """x with each element several times in a row.

    Args:
        x: array or Tensor.
        repeats: how often, >= 0: one number, or one for each element along the axis.
        axis: the axis; None for all elements in C order.
    Returns: Tensor.
    Raises: ArgumentError for an axis that does not exist, or another number of repeats than of elements.
    Example:
        >>> hg.repeat(np.array([1.0, 2.0]), 2)
        Tensor(array([1., 1., 2., 2.]))
    """
    (x,) = to_tensors("repeat", [x])
    if axis is None:
        return repeat(reshape(x, -1), repeats, 0)
    axis, counts = normalise_axis("repeat", axis, x.ndim), integers("repeat", "repeats", repeats, COUNT)
    n = x.shape[axis]
    if any(c < 0 for c in counts) or len(counts) not in (1, n):
        raise ArgumentError(f"repeat: repeats has {shown(repeats)}, expected 1 or {n} numbers >= 0 because axis {axis} has {n} elements")
    if len(counts) == 1:
        wide = broadcast_to(expand_dims(x, axis + 1), (*x.shape[: axis + 1], counts[0], *x.shape[axis + 1 :]))
        return reshape(wide, (*x.shape[:axis], n * counts[0], *x.shape[axis + 1 :]))
    return take(x, np.repeat(np.arange(n), counts), axis)


MODES = ("constant", "edge", "reflect", "symmetric", "wrap")


def pad(x: Any, pad_width: Any, mode: str = "constant", constant_values: float = 0.0) -> Tensor:
    """x with a border.

    Args:
        x: array or Tensor.
        pad_width: elements in front and behind, >= 0: one number, a pair for all axes, or a pair for each axis.
        mode: "constant", or "edge", "reflect", "symmetric" or "wrap", as numpy.pad.
        constant_values: the number of the border in the mode "constant".
    Returns: Tensor.
    Raises: ArgumentError for a width that is none, an unknown mode, or an axis without elements that a mode would repeat.
    Example:
        >>> hg.pad(np.array([3.0, 1.0, 2.0]), (1, 2))
        Tensor(array([0., 3., 1., 2., 0., 0.]))
    """
    (t,) = to_tensors("pad", [x])
    if not isinstance(mode, str) or mode not in MODES:
        raise ArgumentError(f"pad: mode has {shown(mode)}, expected one of {', '.join(MODES)} for the border; pass one")
    widths = _widths(pad_width, t.ndim)
    if mode != "constant":
        for axis, width in enumerate(widths):
            if any(width) and not t.shape[axis]:
                raise ArgumentError(f"pad: mode has {mode!r}, expected 'constant' because axis {axis} of x has no elements; pass it")
            if any(width):
                t = take(t, np.pad(np.arange(t.shape[axis]), width, mode=mode), axis)  # type: ignore[call-overload]
        return t
    value = number("pad", "constant_values", constant_values, "a number", "it fills the border", -math.inf, infinite=True)
    shape = tuple([before + n + behind for n, (before, behind) in zip(t.shape, widths, strict=True)])
    inside = tuple([slice(before, before + n) for n, (before, _) in zip(t.shape, widths, strict=True)])
    out = put(t, index=inside, shape=shape)
    if not value:
        return out
    border = backend_of(t.value).xp.full(shape, value, t.dtype)
    border[inside] = 0
    return add(out, border)


def _widths(pad_width: Any, ndim: int) -> list[tuple[int, int]]:
    """Elements in front of and behind each axis."""
    wanted = "a number, a pair, or a pair for each axis, >= 0"
    listed = isinstance(pad_width, (list, tuple)) or hasattr(pad_width, "ndim") and pad_width.ndim > 0
    nested = listed and any(np.ndim(row) for row in pad_width if not isinstance(row, (Tensor, str)))
    rows = [integers("pad", "pad_width", row, "it counts elements of the border") for row in (pad_width if nested else [pad_width])]
    rows = [row * 2 if len(row) == 1 else row for row in rows]
    if any(len(row) != 2 or min(row) < 0 for row in rows) or len(rows) not in (1, ndim):
        raise ArgumentError(f"pad: pad_width has {shown(pad_width)}, expected {wanted} because x has {ndim} axes; pass such numbers")
    return [(row[0], row[1]) for row in (rows * ndim if len(rows) == 1 else rows)]
