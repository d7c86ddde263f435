"""Convolution, channels last. The three convolution kernels are closed under differentiation."""

from __future__ import annotations

import math
from typing import Any

from ..backends import Array, Backend
from ..errors import ArgumentError, ShapeError
from ..rules import Op, bilinear, precision_now
from ..tape import Tensor, to_tensors
from .arguments import integer
from .arrangement import pad as padded
from .arrays import concatenate, getitem, put, reshape

__all__ = ["conv1d", "conv2d", "conv_transpose2d"]

Pair = tuple[int, int]


def _grouped(b: Backend, x: Array, y: Array) -> tuple[Array, Array, tuple[int, ...]]:
    """Both arrays with exactly two batch axes, broadcast by strides, as the kernels take them; and the batch shape."""
    batch = tuple(b.xp.broadcast_shapes(x.shape[:-4], y.shape[:-4]))
    two = (1,) * (2 - len(batch)) + batch
    if len(two) > 2:
        two = (math.prod(batch[:-1]), batch[-1])

    def group(a: Array) -> Array:
        core = a.shape[-4:]
        a = b.xp.ascontiguousarray(a) if a.size and not a[(0,) * (a.ndim - 4)].flags.c_contiguous else a
        wide = b.xp.broadcast_to(a.reshape((1,) * (len(batch) - a.ndim + 4) + a.shape), batch + core)
        return wide.reshape(*two, *core)

    return group(x), group(y), batch


def _run(b: Backend, kernel: str, stride: int, pad: Pair, precision: int, axes: dict[str, int], **factors: Array) -> Array:
    """The one output of a kernel on two arrays; `axes` are those that neither has."""
    names = list(factors)
    x, y, batch = _grouped(b, *factors.values())
    given = {names[0]: x, names[1]: y}
    (out,) = b.run(kernel, **given, **axes, stride=stride, pad_h=pad[0], pad_w=pad[1], precision=precision).values()
    return out.reshape(batch + out.shape[2:])


def _fprop_value(b: Backend, x: Array, w: Array, *, stride: int, pad: Pair, hw: Pair, rs: Pair, precision: int = 0) -> Array:
    return _run(b, "conv2d_fprop", stride, pad, precision, {}, x=x, w=w)


def _dgrad_value(b: Backend, y: Array, w: Array, *, stride: int, pad: Pair, hw: Pair, rs: Pair, precision: int = 0) -> Array:
    return _run(b, "conv2d_dgrad", stride, pad, precision, {"H": hw[0], "W": hw[1]}, y_bar=y, w=w)


def _wgrad_value(b: Backend, x: Array, y: Array, *, stride: int, pad: Pair, hw: Pair, rs: Pair, precision: int = 0) -> Array:
    return _run(b, "conv2d_wgrad", stride, pad, precision, {"R": rs[0], "S": rs[1]}, x=x, y_bar=y)


conv2d_fprop: Op = bilinear(
    "conv2d_fprop",
    _fprop_value,
    (lambda bar, x, w, **a: conv2d_dgrad(bar, w, **a), lambda bar, x, w, **a: conv2d_wgrad(x, bar, **a)),
    core=(4, 4, 4),
)
conv2d_dgrad: Op = bilinear(
    "conv2d_dgrad",
    _dgrad_value,
    (lambda bar, y, w, **a: conv2d_fprop(bar, w, **a), lambda bar, y, w, **a: conv2d_wgrad(bar, y, **a)),
    core=(4, 4, 4),
)
conv2d_wgrad: Op = bilinear(
    "conv2d_wgrad",
    _wgrad_value,
    (lambda bar, x, y, **a: conv2d_dgrad(y, bar, **a), lambda bar, x, y, **a: conv2d_fprop(x, bar, **a)),
    core=(4, 4, 4),
)


def _whole(op: str, argument: str, value: Any, reason: str) -> int:
    """A whole number of at least 1."""
    found = integer(op, argument, value, reason)
    if found < 1:
        raise ArgumentError(f"{op}: {argument} has {found}, expected >= 1 because {reason}; pass 1 or more")
    return found


def _pixels(op: str, padding: Any, spans: tuple[int, ...]) -> tuple[int, ...]:
    """Zeros in front of and behind each axis, of filters that span so many pixels."""
    if isinstance(padding, str) and padding == "same":
        if any(n % 2 == 0 for n in spans):
            raise ArgumentError(
                f"{op}: w has filters of {spans}, expected odd sizes because padding 'same' is symmetric; pass pixels or 'valid'"
            )
        return tuple([(n - 1) // 2 for n in spans])
    if isinstance(padding, str) and padding == "valid":
        return (0,) * len(spans)
    pixels = -1 if isinstance(padding, str) else integer(op, "padding", padding, "it is 'same', 'valid' or whole pixels")
    if pixels < 0:
        raise ArgumentError(f"{op}: padding has {padding!r}, expected 'same', 'valid' or pixels >= 0 because zeros are added; pass one")
    return (pixels,) * len(spans)


def _dilated(w: Tensor, dilation: int) -> Tensor:
    """Filters with dilation - 1 zeros between neighbouring taps."""
    if dilation == 1:
        return w
    sizes = tuple([(n - 1) * dilation + 1 if n else 0 for n in w.shape[-4:-2]])
    steps = (slice(None, None, dilation),) * 2
    return put(w, index=(*(slice(None),) * (w.ndim - 4), *steps), shape=(*w.shape[:-4], *sizes, *w.shape[-2:]))


def conv2d(x: Any, w: Any, *, stride: int = 1, padding: str | int = "same", dilation: int = 1, groups: int = 1) -> Tensor:
    """Cross-correlation of images with filters (no bias, no flip).

    y[n,p,q,k] = sum_{r,s,c} x[n, p*stride+r*dilation-pad, q*stride+s*dilation-pad, c] * w[r,s,c,k]

    Args:
        x: images, (..., N, H, W, C), float32 or float64.
        w: filters, (R, S, C // groups, K), or (E, R, S, C // groups, K) for one set per episode, x then being (..., E, N, H, W, C).
        stride: pixels between windows, >= 1.
        padding: "same" (filters that span an odd number of pixels only: half of them in zeros), "valid" or zero pixels per side, >= 0.
        dilation: pixels between neighbouring taps of a filter, >= 1. A filter spans (R - 1)*dilation + 1 pixels.
        groups: a divisor of C and K: each group of channels has its own K // groups filters.
    Returns: y, (..., N, P, Q, K), P = (H + 2*pad - (R - 1)*dilation - 1)//stride + 1.
    Raises: ShapeError if channels or episodes differ or P < 1; DTypeError if mixed; ArgumentError for the other arguments.
    Rules: bilinear, transposes conv2d_dgrad and conv2d_wgrad; any order.
    Cost: 2*N*P*Q*K*R*S*C//groups flop; scratch one padded image per thread. A dilated filter is multiplied with its zeros, and groups run
        one after the other. On a GPU see `precision`.
    Source: Dumoulin & Visin 2016, arXiv:1603.07285.
    Example:
        >>> hg.conv2d(np.ones((1, 3, 3, 1)), np.ones((3, 3, 1, 1))).value.reshape(3, 3)
        array([[4., 6., 4.],
               [6., 9., 6.],
               [4., 6., 4.]])
    """
    x, w = to_tensors("conv2d", [x, w])
    if x.ndim < 4 or w.ndim not in (4, 5):
        raise ShapeError(f"conv2d: x has shape {x.shape} and w {w.shape}, expected (..., N, H, W, C) and (R, S, C, K) or (E, R, S, C, K)")
    count = _whole("conv2d", "groups", groups, "they divide the channels")
    w = _dilated(w, _whole("conv2d", "dilation", dilation, "taps stand at whole pixels"))
    if x.shape[-1] != w.shape[-2] * count:
        raise ShapeError(
            f"conv2d: x has {x.shape[-1]} channels, expected {w.shape[-2] * count} because w has shape {w.shape}; channels come last"
        )
    if count > 1 and w.shape[-1] % count:
        raise ArgumentError(f"conv2d: groups has {count}, expected a divisor of {w.shape[-1]} because w has so many filters; pass one")
    if w.ndim == 5 and (x.ndim < 5 or x.shape[-5] != w.shape[0]):
        raise ShapeError(f"conv2d: x has shape {x.shape}, expected {w.shape[0]} episodes on axis -5 because w has shape {w.shape}")
    rs, hw = w.shape[-4:-2], x.shape[-3:-1]
    stride = _whole("conv2d", "stride", stride, "windows must move by whole pixels")
    pad = _pixels("conv2d", padding, rs)
    if min(hw[0] + 2 * pad[0] - rs[0], hw[1] + 2 * pad[1] - rs[1]) < 0:
        raise ShapeError(f"conv2d: x has {hw} pixels, expected at least {rs} with padding {pad} because the filter must fit once")
    attrs: dict[str, Any] = {"stride": stride, "pad": pad, "hw": hw, "rs": rs, "precision": precision_now()}
    if count > 1:
        c, k = w.shape[-2], w.shape[-1] // count
        channels = [(getitem(x, (..., slice(i * c, (i + 1) * c))), getitem(w, (..., slice(i * k, (i + 1) * k)))) for i in range(count)]
        return concatenate([_correlated(one, filters, attrs) for one, filters in channels], -1)
    return _correlated(x, w, attrs)


def _correlated(x: Tensor, w: Tensor, attrs: dict[str, Any]) -> Tensor:
    if w.ndim == 5 or x.ndim == 4:
        return conv2d_fprop(x, w, **attrs)
    flat = conv2d_fprop(reshape(x, (-1, *x.shape[-3:])), w, **attrs)  # shared filters: every image is one batch
    return reshape(flat, (*x.shape[:-3], *flat.shape[-3:]))


def conv1d(x: Any, w: Any, *, stride: int = 1, padding: str | int = "same", dilation: int = 1, groups: int = 1) -> Tensor:
    """Cross-correlation of sequences with filters (no bias, no flip): `conv2d` of images with one row.

    Args:
        x: sequences, (..., N, L, C), float32 or float64.
        w: filters, (S, C // groups, K), or (E, S, C // groups, K) for one set per episode.
        stride, dilation, groups: as `conv2d`.
        padding: "same" (filters that span an odd number of elements only), "valid" or zeros per side, >= 0.
    Returns: y, (..., N, Q, K), Q = (L + 2*pad - (S - 1)*dilation - 1)//stride + 1.
    Raises: ShapeError, DTypeError, ArgumentError as `conv2d`.
    Example:
        >>> hg.conv1d(np.array([3.0, 1.0, 2.0]).reshape(1, 3, 1), np.ones((3, 1, 1))).value.ravel()
        array([4., 6., 3.])
    """
    x, w = to_tensors("conv1d", [x, w])
    if x.ndim < 3 or w.ndim not in (3, 4):
        raise ShapeError(f"conv1d: x has shape {x.shape} and w {w.shape}, expected (..., N, L, C) and (S, C, K) or (E, S, C, K)")
    step = _whole("conv1d", "dilation", dilation, "taps stand at whole elements")
    _whole("conv1d", "stride", stride, "windows must move by whole elements")
    _whole("conv1d", "groups", groups, "they divide the channels")
    (zeros,) = _pixels("conv1d", padding, ((w.shape[-3] - 1) * step + 1,))
    x = padded(x, [(0, 0)] * (x.ndim - 2) + [(zeros, zeros), (0, 0)]) if zeros else x
    image, filters = reshape(x, (*x.shape[:-2], 1, *x.shape[-2:])), reshape(w, (*w.shape[:-3], 1, *w.shape[-3:]))
    y = conv2d(image, filters, stride=stride, padding="valid", dilation=step, groups=groups)
    return reshape(y, (*y.shape[:-3], *y.shape[-2:]))


def conv_transpose2d(x: Any, w: Any, *, stride: int = 1, padding: str | int = "same") -> Tensor:
    """The transpose of `conv2d` in its images: every pixel of x adds its filters to the pixels under its window.

    Args:
        x: images, (..., N, P, Q, K), float32 or float64: what that convolution gives.
        w: its filters, (R, S, C, K), or (E, R, S, C, K) for one set per episode, x then being (..., E, N, P, Q, K).
        stride, padding: of that convolution.
    Returns: y, (..., N, H, W, C), H = (P - 1)*stride + R - 2*pad, the smallest image whose convolution has P rows.
    Raises: ShapeError if channels or episodes differ or H < 1; DTypeError if mixed; ArgumentError for stride or padding.
    Rules: bilinear, by the kernels of `conv2d`; any order.
    Cost: that of `conv2d` with y and x exchanged.
    Source: Dumoulin & Visin 2016, arXiv:1603.07285, section 4.
    Example:
        >>> hg.conv_transpose2d(np.ones((1, 2, 2, 1)), np.ones((2, 2, 1, 1)), stride=2, padding=0).value.reshape(4, 4)
        array([[1., 1., 1., 1.],
               [1., 1., 1., 1.],
               [1., 1., 1., 1.],
               [1., 1., 1., 1.]])
    """
    x, w = to_tensors("conv_transpose2d", [x, w])
    if x.ndim < 4 or w.ndim not in (4, 5) or x.shape[-1] != w.shape[-1]:
        raise ShapeError(
            f"conv_transpose2d: x has shape {x.shape} and w {w.shape}, expected (..., N, P, Q, K) and (R, S, C, K) or (E, R, S, C, K)"
        )
    if w.ndim == 5 and (x.ndim < 5 or x.shape[-5] != w.shape[0]):
        raise ShapeError(
            f"conv_transpose2d: x has shape {x.shape}, expected {w.shape[0]} episodes on axis -5 because w has shape {w.shape}"
        )
    rs = w.shape[-4:-2]
    by = _whole("conv_transpose2d", "stride", stride, "windows must move by whole pixels")
    pad = _pixels("conv_transpose2d", padding, rs)
    hw = tuple([(n - 1) * by + r - 2 * p for n, r, p in zip(x.shape[-3:-1], rs, pad, strict=True)])
    if min(hw) < 1:
        raise ShapeError(f"conv_transpose2d: x has {x.shape[-3:-1]} pixels, expected more because the result has {hw}; pad less")
    attrs: dict[str, Any] = {"stride": by, "pad": pad, "hw": hw, "rs": rs, "precision": precision_now()}
    if w.ndim == 5 or x.ndim == 4:
        return conv2d_dgrad(x, w, **attrs)
    flat = conv2d_dgrad(reshape(x, (-1, *x.shape[-3:])), w, **attrs)
    return reshape(flat, (*x.shape[:-3], *flat.shape[-3:]))
