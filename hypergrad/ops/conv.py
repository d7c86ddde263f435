"""Convolution, channels last. The three convolution kernels are closed under differentiation."""

from __future__ import annotations

import math
from typing import Any

from ..backends import Array, Backend
from ..errors import ArgumentError, ShapeError
from ..rules import Op, bilinear, precision_now
from ..tape import Tensor, to_tensors
from .arguments import integer
from .arrays import reshape

__all__ = ["conv2d"]

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


def conv2d(x: Any, w: Any, *, stride: int = 1, padding: str | int = "same") -> Tensor:
    """Cross-correlation of images with filters (no bias, no flip).

    y[n,p,q,k] = sum_{r,s,c} x[n, p*stride+r-pad, q*stride+s-pad, c] * w[r,s,c,k]

    Args:
        x: images, (..., N, H, W, C), float32 or float64.
        w: filters, (R, S, C, K), or (E, R, S, C, K) for one set per episode, x then being (..., E, N, H, W, C).
        stride: pixels between windows, >= 1.
        padding: "same" (odd R and S only: (R-1)/2 zeros), "valid" or zero pixels per side, >= 0.
    Returns: y, (..., N, P, Q, K), P = (H + 2*pad - R)//stride + 1.
    Raises: ShapeError if channels or episodes differ or P < 1; DTypeError if mixed; ArgumentError for stride or padding.
    Rules: bilinear, transposes conv2d_dgrad and conv2d_wgrad; any order.
    Cost: 2*N*P*Q*K*R*S*C flop; scratch one padded image per thread. On a GPU see `precision`.
    Source: Dumoulin & Visin 2016, arXiv:1603.07285.
    """
    x, w = to_tensors("conv2d", [x, w])
    if x.ndim < 4 or w.ndim not in (4, 5):
        raise ShapeError(f"conv2d: x has shape {x.shape} and w {w.shape}, expected (..., N, H, W, C) and (R, S, C, K) or (E, R, S, C, K)")
    if x.shape[-1] != w.shape[-2]:
        raise ShapeError(f"conv2d: x has {x.shape[-1]} channels, expected {w.shape[-2]} because w has shape {w.shape}; channels come last")
    if w.ndim == 5 and (x.ndim < 5 or x.shape[-5] != w.shape[0]):
        raise ShapeError(f"conv2d: x has shape {x.shape}, expected {w.shape[0]} episodes on axis -5 because w has shape {w.shape}")
    rs, hw = w.shape[-4:-2], x.shape[-3:-1]
    stride = integer("conv2d", "stride", stride, "windows start at whole pixels")
    if stride < 1:
        raise ArgumentError(f"conv2d: stride has {stride}, expected >= 1 because windows must move; pass 1 or more")
    words = isinstance(padding, str)
    pixels = -1 if words else integer("conv2d", "padding", padding, "it is 'same', 'valid' or whole pixels")
    if words and padding == "same":
        if rs[0] % 2 == 0 or rs[1] % 2 == 0:
            raise ArgumentError(
                f"conv2d: w has filters of {rs}, expected odd sizes because padding 'same' is symmetric; pass pixels or 'valid'"
            )
        pad = ((rs[0] - 1) // 2, (rs[1] - 1) // 2)
    elif words and padding == "valid":
        pad = (0, 0)
    elif pixels >= 0:
        pad = (pixels, pixels)
    else:
        raise ArgumentError(f"conv2d: padding has {padding!r}, expected 'same', 'valid' or pixels >= 0 because zeros are added; pass one")
    if min(hw[0] + 2 * pad[0] - rs[0], hw[1] + 2 * pad[1] - rs[1]) < 0:
        raise ShapeError(f"conv2d: x has {hw} pixels, expected at least {rs} with padding {pad} because the filter must fit once")
    attrs: dict[str, Any] = {"stride": int(stride), "pad": pad, "hw": hw, "rs": rs, "precision": precision_now()}
    if w.ndim == 5 or x.ndim == 4:
        return conv2d_fprop(x, w, **attrs)
    flat = conv2d_fprop(reshape(x, (-1, *x.shape[-3:])), w, **attrs)  # shared filters: every image is one batch
    return reshape(flat, (*x.shape[:-3], *flat.shape[-3:]))
