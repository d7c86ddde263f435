"""Pooling over windows that do not overlap. The maximum has kernels; where its winners are known it is linear."""

from __future__ import annotations

from typing import Any

from ..backends import Array, Backend
from ..errors import ShapeError
from ..rules import Fused
from ..tape import Tensor, to_tensors
from .arguments import integer
from .arrays import getitem, pick, reshape, transpose
from .layout import optional, rows
from .reductions import mean

__all__ = ["avg_pool2d", "max_pool2d"]

Attrs = dict[str, Any]
Saved = dict[str, Any]
LARGEST_CODED = 16  # a winner's place in a window of 16 x 16 fits in one byte


def _checked(name: str, x: Any, size: Any) -> tuple[Tensor, int]:
    (t,), size = to_tensors(name, [x]), integer(name, "size", size, "a window is whole pixels wide")
    if t.ndim < 3 or size < 1 or min(t.shape[-3:-1]) < size:
        raise ShapeError(
            f"{name}: x has shape {t.shape}, expected (..., H, W, C) with H and W at least size={size} because a window must fit"
        )
    return t, size


def _windows(x: Tensor, size: int) -> Tensor:
    """The pooling windows on a new last axis, (..., P, Q, C, size*size); rows and columns that do not fill one are dropped."""
    p, q, n = x.shape[-3] // size, x.shape[-2] // size, x.ndim - 3
    x = getitem(x, (..., slice(p * size), slice(q * size), slice(None)))
    x = reshape(x, (*x.shape[:-3], p, size, q, size, x.shape[-1]))
    x = transpose(x, (*range(n), n, n + 2, n + 4, n + 1, n + 3))
    return reshape(x, (*x.shape[:-2], size * size))


def _reference(x: Tensor, *, size: int) -> Tensor:
    windows = _windows(x, size)
    return pick(windows, index=windows.value.argmax(axis=-1))


def _value(b: Backend, values: list[Array], attrs: Attrs) -> tuple[Array, Saved]:
    (x,) = rows(b, values)
    saved = b.run("max_pool_value", x=x, **attrs)
    return saved.pop("y"), saved


def _jvp(b: Backend, values: list[Array], dots: list[Array | None], attrs: Attrs, saved: Saved) -> Array:
    y_dot: Array = b.run("max_pool_jvp", x_dot=optional(b, dots[0]), **saved, **attrs)["y_dot"]
    return y_dot


def _scatter(b: Backend, x: Array, bars: Array, attrs: Attrs, saved: Saved) -> Array:
    """Cotangents of x from several of y."""
    _, h, w, _ = x.shape
    return b.run("max_pool_vjp", y_bar=b.xp.ascontiguousarray(bars), H=h, W=w, **saved, **attrs)["x_bar"]


def _vjp(b: Backend, values: list[Array], y_bar: Array, want: list[bool], attrs: Attrs, saved: Saved) -> list[Array | None]:
    return [_scatter(b, values[0], y_bar[None], attrs, saved)[0]]


def _vjp_jvp(
    b: Backend,
    values: list[Array],
    dots: list[Array | None],
    y_bar: Array,
    y_bar_dot: Array | None,
    want: list[bool],
    attrs: Attrs,
    saved: Saved,
) -> list[Array | None]:
    return [None if y_bar_dot is None else _scatter(b, values[0], y_bar_dot, attrs, saved)]


_max_pool = Fused("max_pool2d", 1, _reference, value=_value, jvp=_jvp, vjp=_vjp, vjp_jvp=_vjp_jvp)


def max_pool2d(x: Any, *, size: int = 2) -> Tensor:
    """Maximum over size x size windows that do not overlap.

    Args:
        x: (..., H, W, C).
        size: window and stride in pixels, >= 1; rows and columns that do not fill a window are dropped.
    Returns: Tensor, (..., H//size, W//size, C). Among equal pixels the first (row by row) gets the derivative.
    Raises: ShapeError if no window fits; ArgumentError for a size that is no integer.
    Rules: kernels for value, vjp and jvp, which is linear at the stored winners, for windows up to 16 x 16; the composed
        gather for larger ones, for every other nesting and in `fusion(False)`.
    Cost: one comparison an element; keeps one byte a window and channel.
    Example:
        >>> hg.max_pool2d(np.arange(16.0).reshape(1, 4, 4, 1)).value.ravel()
        array([ 5.,  7., 13., 15.])
    """
    x, size = _checked("max_pool2d", x, size)
    if size > LARGEST_CODED:
        return _reference(x, size=size)
    y = _max_pool(reshape(x, (-1, *x.shape[-3:])), size=size)
    return reshape(y, (*x.shape[:-3], *y.shape[1:]))


def avg_pool2d(x: Any, *, size: int = 2) -> Tensor:
    """Mean over size x size windows that do not overlap; arguments, result and errors as `max_pool2d`.

    Example:
        >>> hg.avg_pool2d(np.arange(16.0).reshape(1, 4, 4, 1)).value.ravel()
        array([ 2.5,  4.5, 10.5, 12.5])
    """
    return mean(_windows(*_checked("avg_pool2d", x, size)), axis=-1)
