"""The fused block conv 3x3 -> batch norm -> ReLU -> max-pool 2x2 with its four kernel rungs.

Formulas of the rungs: with z the convolution, s = (var + eps)^-1/2 and x_hat = s (z - mean) per channel and episode,

    y     = relu(max over the window of gamma x_hat + beta)
    y_dot = the tangent of gamma x_hat + beta at the window's argmax, where y > 0

The argmax and whether it is active are decided once, in the value rung, and stored as a code. See csrc/host for the
vjp and its tangent. Where the images are plain arrays with few channels (a network's first block) the statistics follow
from the mean and covariance of the 3x3 patches, and no full-size array is stored or formed.
"""

from __future__ import annotations

import weakref
from typing import Any

from ..backends import Array, Backend, backend_of, digest
from ..errors import ShapeError
from ..rules import PRECISIONS, Fused, kept_in_run, precision_now
from ..rules import precision as in_precision
from ..tape import Tensor, to_tensors
from .arguments import number
from .arrays import reshape
from .conv import conv2d
from .elementwise import relu
from .layout import like, optional, rows, with_episodes
from .norm import batch_norm
from .pooling import max_pool2d

FIRST_BLOCK_CHANNELS = 4  # up to here a pixel's 9C x 9C covariance costs less than storing and re-reading z
Attrs = dict[str, Any]
Saved = dict[str, Any]


def _reference(x: Tensor, w: Tensor, gamma: Tensor, beta: Tensor, *, eps: float, precision: int) -> Tensor:
    """The definition of the fused block; shapes as the kernels take them, all with the episode axis."""
    with in_precision(PRECISIONS[precision]):
        z = conv2d(x, w)
    return max_pool2d(relu(batch_norm(z, gamma, beta, eps=eps)))


def _first_reference(w: Tensor, gamma: Tensor, beta: Tensor, *, x: Array, given: Any, eps: float) -> Tensor:
    return _reference(Tensor(x), w, gamma, beta, eps=eps, precision=0)


def _pooled(x: Array, k: int) -> tuple[int, ...]:
    e, n, h, w, _ = x.shape
    return (e, n, h // 2, w // 2, k)


def _code(b: Backend, x: Array, k: int) -> dict[str, Array]:
    """Buffers that every value rung fills."""
    e = x.shape[0]
    return {"code": b.empty(_pooled(x, k), "uint8"), "mean": b.empty((e, k), x.dtype), "rstd": b.empty((e, k), x.dtype)}


def _value(b: Backend, values: list[Array], attrs: Attrs) -> tuple[Array, Saved]:
    x, w, gamma, beta = rows(b, values)
    k = w.shape[-1]
    y, saved = b.empty(_pooled(x, k), x.dtype), _code(b, x, k)
    saved["z"] = b.empty((*x.shape[:-1], k), x.dtype)
    b.run("conv_bn_relu_pool_value", [x, w, gamma, beta], [y, *saved.values()], eps=attrs["eps"], precision=attrs["precision"])
    return y, saved


def _vjp(b: Backend, values: list[Array], y_bar: Array, want: list[bool], attrs: Attrs, saved: Saved) -> list[Array | None]:
    x, w, gamma, _ = rows(b, values)
    bars = [b.empty(v.shape, v.dtype) if i or want[0] else None for i, v in enumerate(values)]
    b.run(
        "conv_bn_relu_pool_vjp",
        [b.xp.ascontiguousarray(y_bar), *(saved[n] for n in ("code", "mean", "rstd", "z")), x, w, gamma],
        bars,
        precision=attrs["precision"],
    )
    return [g if wanted else None for g, wanted in zip(bars, want, strict=True)]


def _jvp(b: Backend, values: list[Array], dots: list[Array | None], attrs: Attrs, saved: Saved) -> Array:
    x, w, gamma, _ = rows(b, values)
    count = next(d.shape[0] for d in dots if d is not None)
    y_dot = b.empty((count, *saved["code"].shape), x.dtype)
    z_dot, mean_dot, c = like(b, count, saved["z"], saved["mean"], saved["mean"])
    given = [optional(b, d) for d in dots]
    b.run(
        "conv_bn_relu_pool_jvp",
        [x, w, gamma, *(saved[n] for n in ("code", "mean", "rstd", "z")), *given],
        [y_dot, z_dot, mean_dot, c],
        precision=attrs["precision"],
    )
    saved.update(z_dot=z_dot, z_dot_mean=mean_dot, c=c)
    return y_dot


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
    x, w, gamma, _ = rows(b, values)
    count = saved["c"].shape[0]
    outs = [b.empty((count, *v.shape), v.dtype) if i or want[0] else None for i, v in enumerate(values)]
    given = [optional(b, d) for d in dots[:3]]
    b.run(
        "conv_bn_relu_pool_vjp_jvp",
        [
            b.xp.ascontiguousarray(y_bar),
            optional(b, y_bar_dot),
            *(saved[n] for n in ("code", "mean", "rstd", "z")),
            x,
            w,
            gamma,
            *given,
            *(saved[n] for n in ("z_dot", "z_dot_mean", "c")),
        ],
        outs,
        precision=attrs["precision"],
    )
    return [g if wanted else None for g, wanted in zip(outs, want, strict=True)]


class _PatchStatistics:
    """The mean and covariance of the patches of images met so far, for a run that reads the same images in every step.

    Images are known by the array object that the caller gave and by a digest of their elements: images written to since are
    computed anew. The array is not kept alive, and its statistics go with it.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[int, Any], tuple[weakref.ref[Any], int | None, tuple[Array, Array]]] = {}

    def of(self, b: Backend, x: Array, given: Any) -> tuple[Array, Array]:
        """The statistics of `x`, (E, N, H, W, C), which was made of the array `given`."""
        key, now = (id(given), x.dtype), digest(x)  # the dtype of bytes follows the filters
        held = self._held.get(key)
        if held is not None and held[0]() is given and held[1] == now:
            return held[2]
        statistics = _patch_statistics(b, x)
        store = weakref.ref(self)  # weakly, or the store would be part of a reference cycle

        def forget(_: Any) -> None:
            owner = store()
            if owner is not None:
                owner._held.pop(key, None)

        try:
            self._held[key] = weakref.ref(given, forget), now, statistics
        except TypeError:  # a list of numbers, say
            pass
        return statistics


def _patch_statistics(b: Backend, x: Array) -> tuple[Array, Array]:
    e, size = x.shape[0], 9 * x.shape[-1]
    m, cov = b.empty((e, size), x.dtype), b.empty((e, size, size), x.dtype)
    b.run("patch_cov", [x], [m, cov])
    return m, cov


def _first_value(b: Backend, values: list[Array], attrs: Attrs) -> tuple[Array, Saved]:
    (w, gamma, beta), x = rows(b, values), attrs["x"]
    k = w.shape[-1]
    store = kept_in_run(_PatchStatistics)
    m, cov = _patch_statistics(b, x) if store is None else store.of(b, x, attrs["given"])
    y, saved = b.empty(_pooled(x, k), x.dtype), _code(b, x, k)
    b.run("conv_bn_relu_pool_first_value", [x, w, gamma, beta, m, cov], [y, *saved.values()], eps=attrs["eps"])
    return y, {**saved, "patch_mean": m, "patch_cov": cov}


_FIRST_SAVED = ("code", "mean", "rstd", "patch_mean", "patch_cov")


def _first_vjp(b: Backend, values: list[Array], y_bar: Array, want: list[bool], attrs: Attrs, saved: Saved) -> list[Array | None]:
    w, gamma, _ = rows(b, values)
    bars = [b.empty(v.shape, v.dtype) for v in values]
    b.run("conv_bn_relu_pool_first_vjp", [b.xp.ascontiguousarray(y_bar), *(saved[n] for n in _FIRST_SAVED), attrs["x"], w, gamma], bars)
    return [g if wanted else None for g, wanted in zip(bars, want, strict=True)]


def _first_jvp(b: Backend, values: list[Array], dots: list[Array | None], attrs: Attrs, saved: Saved) -> Array:
    (w, gamma, _), x = rows(b, values), attrs["x"]
    count = next(d.shape[0] for d in dots if d is not None)
    y_dot = b.empty((count, *saved["code"].shape), x.dtype)
    given = [optional(b, d) for d in dots]
    b.run("conv_bn_relu_pool_first_jvp", [x, w, gamma, *(saved[n] for n in _FIRST_SAVED), *given], [y_dot])
    return y_dot


def _first_vjp_jvp(
    b: Backend,
    values: list[Array],
    dots: list[Array | None],
    y_bar: Array,
    y_bar_dot: Array | None,
    want: list[bool],
    attrs: Attrs,
    saved: Saved,
) -> list[Array | None]:
    (w, gamma, _), x = rows(b, values), attrs["x"]
    count = next(d.shape[0] for d in [*dots, y_bar_dot] if d is not None)
    outs = like(b, count, *values)
    given = [optional(b, d) for d in dots[:2]]
    b.run(
        "conv_bn_relu_pool_first_vjp_jvp",
        [b.xp.ascontiguousarray(y_bar), optional(b, y_bar_dot), *(saved[n] for n in _FIRST_SAVED), x, w, gamma, *given],
        outs,
    )
    return [g if wanted else None for g, wanted in zip(outs, want, strict=True)]


_block = Fused("conv_bn_relu_pool", 4, _reference, value=_value, jvp=_jvp, vjp=_vjp, vjp_jvp=_vjp_jvp)
_first_block = Fused(
    "conv_bn_relu_pool_first", 3, _first_reference, value=_first_value, jvp=_first_jvp, vjp=_first_vjp, vjp_jvp=_first_vjp_jvp
)


def conv_bn_relu_pool(x: Any, w: Any, gamma: Any, beta: Any, *, eps: float = 1e-5) -> Tensor:
    """The fused block: conv2d 3x3 "same", batch_norm, relu, max_pool2d 2x2, per episode.

    Defined by ``max_pool2d(relu(batch_norm(conv2d(x, w), gamma, beta)))`` and equal to it up to rounding; `fusion(False)`
    runs that. Images given as an array (so that nothing can follow them) with up to 4 channels take a first block's closed form.

    Args:
        x: images, (N, H, W, C) or (E, N, H, W, C), float32 or float64, H and W >= 2.
        w: filters, (3, 3, C, K) or (E, 3, 3, C, K).
        gamma, beta: scale and shift, (K,) or (E, K).
        eps: added to the variance, > 0.
    Returns: y, (N, H//2, W//2, K) or (E, N, H//2, W//2, K). relu'(0) = 0; among equal pixels the first gets the derivative.
    Raises: ShapeError, DTypeError, ArgumentError.
    Rules: kernels for value, vjp, jvp and jvp of vjp; the reference for every other nesting.
    Cost: 18*E*N*H*W*C*K flop forward, twice that backward; keeps z (E*N*H*W*K elements) but for a first block. On a GPU
        see `precision`.
    Source: Vinyals et al. 2016, arXiv:1606.04080 (the block); formulas derived for this project and checked in float64.
    """
    given, is_data = x, not isinstance(x, Tensor)  # decided by what x is, never by what is being recorded: the same bits in every pass
    x, w, gamma, beta = to_tensors("conv_bn_relu_pool", [x, w, gamma, beta])
    if x.ndim not in (4, 5) or w.ndim not in (4, 5) or w.shape[-4:-2] != (3, 3) or not x.size or min(x.shape[-3:-1]) < 2:
        raise ShapeError(
            f"conv_bn_relu_pool: x has shape {x.shape} and w {w.shape}, expected (E, N, H, W, C) with H and W >= 2 and "
            "(3, 3, C, K) or (E, 3, 3, C, K)"
        )
    eps = number("conv_bn_relu_pool", "eps", eps, "> 0", "a channel may be constant", 0, excluded=True)
    episodes, k = (x.shape[0] if x.ndim == 5 else 1), w.shape[-1]
    if x.shape[-1] != w.shape[-2] or (w.ndim == 5 and w.shape[0] != episodes):
        raise ShapeError(
            f"conv_bn_relu_pool: x has {x.shape[-1]} channels and {episodes} episodes, expected those of w, which has shape {w.shape}"
        )
    for name, p in (("gamma", gamma), ("beta", beta)):
        if p.shape not in ((k,), (episodes, k)):
            raise ShapeError(f"conv_bn_relu_pool: {name} has shape {p.shape}, expected ({k},) or ({episodes}, {k})")
    wide = [with_episodes(p, episodes, ndim) for p, ndim in ((w, 5), (gamma, 2), (beta, 2))]
    images = reshape(x, (1, *x.shape)) if x.ndim == 4 else x
    if is_data and x.shape[-1] <= FIRST_BLOCK_CHANNELS:
        y = _first_block(*wide, x=backend_of(images.value).xp.ascontiguousarray(images.value), given=given, eps=float(eps))
    else:
        y = _block(images, *wide, eps=float(eps), precision=precision_now())
    return reshape(y, y.shape[1:]) if x.ndim == 4 else y
