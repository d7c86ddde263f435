"""The fused block conv 3x3 -> batch norm -> ReLU -> max-pool 2x2 with its four kernel rungs.

Formulas of the rungs: with z the convolution, s = (var + eps)^-1/2 and x_hat = s (z - mean) per channel and episode,

    y     = relu(max over the window of gamma x_hat + beta)
    y_dot = the tangent of gamma x_hat + beta at the window's argmax, where y > 0

The argmax and whether it is active are decided once, in the value rung, and stored as a code. See csrc/host for the
vjp and its tangent. Where the images are plain arrays with few channels (a network's first block) the statistics follow
from the mean and covariance of the 3x3 patches, and no full-size array is stored or formed.
"""

from __future__ import annotations

from typing import Any

from ..backends import Array, Backend, backend_of
from ..errors import ShapeError
from ..rules import PRECISIONS, Fused, precision_now
from ..rules import precision as in_precision
from ..tape import Tensor, to_tensors
from .arguments import number
from .arrays import reshape
from .conv import conv2d
from .elementwise import relu
from .layout import optional, rows, tangents, wanted, with_episodes
from .norm import batch_norm
from .patches import patch_statistics
from .pooling import max_pool2d

__all__ = ["conv_bn_relu_pool"]

FIRST_BLOCK_CHANNELS = 4  # up to here a pixel's 9C x 9C covariance costs less than storing and re-reading z
ARGUMENTS = ("x", "w", "gamma", "beta")
Attrs = dict[str, Any]
Saved = dict[str, Any]


def _reference(x: Tensor, w: Tensor, gamma: Tensor, beta: Tensor, *, eps: float, precision: int) -> Tensor:
    """The definition of the fused block; shapes as the kernels take them, all with the episode axis."""
    with in_precision(PRECISIONS[precision]):
        z = conv2d(x, w)
    return max_pool2d(relu(batch_norm(z, gamma, beta, eps=eps)))


def _value(b: Backend, values: list[Array], attrs: Attrs) -> tuple[Array, Saved]:
    x, w, gamma, beta = rows(b, values)
    saved = b.run("conv_bn_relu_pool_value", x=x, w=w, gamma=gamma, beta=beta, **attrs)
    return saved.pop("y"), saved


def _given(b: Backend, values: list[Array], attrs: Attrs, saved: Saved) -> dict[str, Any]:
    """What every derivative rung takes."""
    x, w, gamma, _ = rows(b, values)
    return {"x": x, "w": w, "gamma": gamma, "precision": attrs["precision"], **{k: saved[k] for k in ("code", "mean", "rstd", "z")}}


def _vjp(b: Backend, values: list[Array], y_bar: Array, want: list[bool], attrs: Attrs, saved: Saved) -> list[Array | None]:
    given = _given(b, values, attrs, saved)
    return wanted(b.run("conv_bn_relu_pool_vjp", y_bar=b.xp.ascontiguousarray(y_bar), **given, x_bar=want[0], w_bar=want[1]), want)


def _jvp(b: Backend, values: list[Array], dots: list[Array | None], attrs: Attrs, saved: Saved) -> Array:
    out = b.run("conv_bn_relu_pool_jvp", **_given(b, values, attrs, saved), **tangents(b, ARGUMENTS, dots))
    y_dot = out.pop("y_dot")
    saved |= out
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
    given = {**_given(b, values, attrs, saved), **saved, "y_bar": b.xp.ascontiguousarray(y_bar), "y_bar_dot": optional(b, y_bar_dot)}
    return wanted(b.run("conv_bn_relu_pool_vjp_jvp", **given, **tangents(b, ARGUMENTS[:3], dots), x_bar_dot=want[0]), want)


_block = Fused("conv_bn_relu_pool", 4, _reference, value=_value, jvp=_jvp, vjp=_vjp, vjp_jvp=_vjp_jvp)


# --- the first block: images that are data, neither taped nor with tangents ----------------------------------------


def _first_reference(w: Tensor, gamma: Tensor, beta: Tensor, *, x: Array, given: Any, eps: float) -> Tensor:
    return _reference(Tensor(x), w, gamma, beta, eps=eps, precision=0)


def _first_value(b: Backend, values: list[Array], attrs: Attrs) -> tuple[Array, Saved]:
    (w, gamma, beta), x = rows(b, values), attrs["x"]
    patches = patch_statistics(b, x, attrs["given"])
    saved = b.run("conv_bn_relu_pool_first_value", x=x, w=w, gamma=gamma, beta=beta, **patches, eps=attrs["eps"])
    return saved.pop("y"), {**saved, **patches}


def _first_given(b: Backend, values: list[Array], attrs: Attrs, saved: Saved) -> dict[str, Array]:
    w, gamma, _ = rows(b, values)
    return {"x": attrs["x"], "w": w, "gamma": gamma, **saved}


def _first_vjp(b: Backend, values: list[Array], y_bar: Array, want: list[bool], attrs: Attrs, saved: Saved) -> list[Array | None]:
    given = _first_given(b, values, attrs, saved)
    return wanted(b.run("conv_bn_relu_pool_first_vjp", y_bar=b.xp.ascontiguousarray(y_bar), **given), want)


def _first_jvp(b: Backend, values: list[Array], dots: list[Array | None], attrs: Attrs, saved: Saved) -> Array:
    given = _first_given(b, values, attrs, saved)
    y_dot: Array = b.run("conv_bn_relu_pool_first_jvp", **given, **tangents(b, ARGUMENTS[1:], dots))["y_dot"]
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
    count = next(len(d) for d in [*dots, y_bar_dot] if d is not None)
    given = {**_first_given(b, values, attrs, saved), "y_bar": b.xp.ascontiguousarray(y_bar), "y_bar_dot": optional(b, y_bar_dot)}
    return wanted(b.run("conv_bn_relu_pool_first_vjp_jvp", **given, **tangents(b, ARGUMENTS[1:3], dots), P=count), want)


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
    Example:
        >>> x, w = np.ones((8, 28, 28, 1)), np.ones((3, 3, 1, 16))
        >>> hg.conv_bn_relu_pool(x, w, np.ones(16), np.zeros(16)).shape
        (8, 14, 14, 16)
    """
    # What x is decides, not whether something is recorded: the value has the same bits in every mode of differentiation.
    given, is_data = x, not isinstance(x, Tensor)
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
