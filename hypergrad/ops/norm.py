"""Batch normalisation with its four kernel rungs. With s = (var + eps)^-1/2 and x_hat = s (x - mean), M pixels:

    x_bar = gamma s (y_bar - sum(y_bar)/M - x_hat sum(y_bar x_hat)/M)
    y_dot = gamma_dot x_hat + gamma s (x_dot - mean(x_dot) - x_hat mean(x_hat x_dot)) + beta_dot

per channel and episode; csrc/host/batch_norm.cpp has the tangent of the first line.
"""

from __future__ import annotations

import math
from typing import Any, overload

from ..backends import Array, Backend
from ..errors import ArgumentError, ShapeError
from ..rules import Fused
from ..tape import Tensor, to_tensors
from .arguments import number, shown, switch
from .arrays import broadcast_to, reshape
from .elementwise import add, divide, multiply, sqrt, subtract
from .layout import optional, rows, tangents, wanted
from .reductions import mean
from .statistics import var

__all__ = ["batch_norm"]

Attrs = dict[str, Any]
Saved = dict[str, Any]
ARGUMENTS = ("x", "gamma", "beta")
WHICH = ("mean", "var")  # the running statistics


def _reference(x: Tensor, gamma: Tensor, beta: Tensor, *, eps: float) -> Tensor:
    """The definition, on (E, M, K) and (E, K)."""
    scale, shift = (reshape(p, (p.shape[0], 1, p.shape[1])) for p in (gamma, beta))
    centred = subtract(x, mean(x, axis=1, keepdims=True))
    return _scaled(centred, mean(multiply(centred, centred), axis=1, keepdims=True), scale, shift, eps)


def _scaled(centred: Tensor, spread: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """gamma * centred / sqrt(spread + eps) + beta."""
    return add(multiply(divide(centred, sqrt(add(spread, eps))), gamma), beta)


def _value(b: Backend, values: list[Array], attrs: Attrs) -> tuple[Array, Saved]:
    x, gamma, beta = rows(b, values)
    saved = b.run("batch_norm_value", x=x, gamma=gamma, beta=beta, **attrs)
    return saved.pop("y"), saved


def _given(b: Backend, values: list[Array], saved: Saved) -> dict[str, Array]:
    x, gamma, _ = rows(b, values)
    return {"x": x, "gamma": gamma, "mean": saved["mean"], "rstd": saved["rstd"]}


def _jvp(b: Backend, values: list[Array], dots: list[Array | None], attrs: Attrs, saved: Saved) -> Array:
    out = b.run("batch_norm_jvp", **_given(b, values, saved), **tangents(b, ARGUMENTS, dots))
    y_dot = out.pop("y_dot")
    saved |= out
    return y_dot


def _vjp(b: Backend, values: list[Array], y_bar: Array, want: list[bool], attrs: Attrs, saved: Saved) -> list[Array | None]:
    out = b.run("batch_norm_vjp", y_bar=b.xp.ascontiguousarray(y_bar), **_given(b, values, saved), x_bar=want[0])
    return wanted(out, want)


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
    x, gamma, _ = rows(b, values)
    bars = {"y_bar": b.xp.ascontiguousarray(y_bar), "y_bar_dot": optional(b, y_bar_dot)}
    out = b.run("batch_norm_vjp_jvp", x=x, gamma=gamma, **bars, **saved, **tangents(b, ARGUMENTS[:2], dots), x_bar_dot=want[0])
    return wanted(out, want)


_batch_norm = Fused("batch_norm", 3, _reference, value=_value, jvp=_jvp, vjp=_vjp, vjp_jvp=_vjp_jvp)


def _leading(x: Tensor) -> tuple[int, ...]:
    """The axes of x in front of those that are normalised over, N or N, H, W."""
    return x.shape[: -2 if x.ndim < 4 else -4]


def _per_episode(argument: str, p: Tensor, x: Tensor) -> Tensor:
    """Numbers of each channel, (C,) or (E, C), as (all leading axes of x in one, C)."""
    lead, channels = _leading(x), x.shape[-1]
    if p.shape != (channels,) and p.shape != (*lead[-1:], channels):
        raise ShapeError(
            f"batch_norm: {argument} has shape {p.shape}, expected ({channels},) or (episodes, {channels}) because x has shape {x.shape}"
        )
    return reshape(broadcast_to(p, (*lead, channels)), (math.prod(lead), channels))


def _moved(before: Tensor, flat: Tensor, which: str, momentum: Any) -> Tensor:
    """A running statistic after one more batch."""
    now = mean(flat, axis=1) if which == "mean" else var(flat, axis=1, ddof=1)
    return add(before, multiply(subtract(now, before), momentum))


Running = tuple[Any, Any]


@overload
def batch_norm(x: Any, gamma: Any, beta: Any, *, eps: float = 1e-5) -> Tensor: ...


@overload
def batch_norm(
    x: Any, gamma: Any, beta: Any, *, running: Running, momentum: Any = 0.1, training: bool = True, eps: float = 1e-5
) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...


def batch_norm(
    x: Any, gamma: Any, beta: Any, *, running: Running | None = None, momentum: Any = 0.1, training: bool = True, eps: float = 1e-5
) -> Any:
    """Normalisation by the statistics of the batch, over (N, H, W) or N, per channel and per episode; or by running statistics.

    y = gamma * (x - mean) / sqrt(var + eps) + beta, var being the mean squared deviation.

    Args:
        x: (..., N, H, W, C), where every leading axis in front of N is an episode of its own; or (N, C), or (E, N, C).
        gamma, beta: (C,), or (E, C) for one set per episode.
        running: (mean, var) of the batches so far, each like gamma; start with zeros and ones. None for none.
        momentum: share of a new batch in them, a number in [0, 1] or a Tensor of no axes, which gets a derivative.
        training: False normalises by `running` in place of the batch, and leaves it as it is.
        eps: added to the variance, > 0.
    Returns: Tensor like x. With `running` (y, (mean, var)): the statistics to go on with, Tensors (C,), or (E, C) where x has episodes.
        The variance among them is the unbiased one, as PyTorch's.
    Raises: ShapeError, DTypeError, ArgumentError for an eps that is no finite number > 0, a momentum out of range, or training=False
        without `running`.
    Rules: kernels for value, vjp, jvp and jvp of vjp; the composed formula for every other nesting and in `fusion(False)`. Derivatives
        flow through running statistics, too; `stop_gradient` makes constants of them.
    Cost: about 8 flop an element forward, 10 backward; keeps two numbers a channel and episode. With `running` 5 flop an element more.
    Source: Ioffe & Szegedy 2015, arXiv:1502.03167.
    Example:
        >>> x = np.arange(8.0).reshape(2, 2, 2, 1)
        >>> hg.batch_norm(x, np.ones(1), np.zeros(1)).value.ravel().round(2)
        array([-1.53, -1.09, -0.65, -0.22,  0.22,  0.65,  1.09,  1.53])
        >>> y, (mean, var) = hg.batch_norm(x, np.ones(1), np.zeros(1), running=(np.zeros(1), np.ones(1)))
        >>> mean, var
        (Tensor(array([0.35])), Tensor(array([1.5])))
        >>> y, _ = hg.batch_norm(x, np.ones(1), np.zeros(1), running=(mean, var), training=False)
    """
    x, gamma, beta = to_tensors("batch_norm", [x, gamma, beta])
    if x.ndim < 2 or not x.size:
        raise ShapeError(f"batch_norm: x has shape {x.shape}, expected (..., N, H, W, C) or (N, C) with at least one element")
    eps = number("batch_norm", "eps", eps, "> 0", "a channel may be constant", 0, excluded=True)
    lead, channels = _leading(x), x.shape[-1]
    flat = reshape(x, (math.prod(lead), -1, channels))
    wide = [_per_episode(name, p, x) for name, p in (("gamma", gamma), ("beta", beta))]
    training = switch("batch_norm", "training", training)
    if running is None:
        if not training:
            raise ArgumentError("batch_norm: training has False, expected running statistics because x is normalised by them; pass running")
        return reshape(_batch_norm(flat, *wide, eps=eps), x.shape)
    if not isinstance(running, (tuple, list)) or len(running) != 2:
        raise ArgumentError(f"batch_norm: running has {shown(running)}, expected (mean, var) because both are kept; pass a pair")
    before = [_per_episode(f"running {name}", to_tensors("batch_norm", [x, p])[1], x) for name, p in zip(WHICH, running, strict=True)]
    if training:
        if flat.shape[1] < 2:
            raise ShapeError(
                f"batch_norm: x has shape {x.shape}, expected at least two elements per channel because the unbiased variance divides by "
                "their number less one; pass more examples, or training=False"
            )
        given = momentum.value if isinstance(momentum, Tensor) else momentum
        found = number("batch_norm", "momentum", given, "0 <= momentum <= 1", "it is a share", 0, below=math.nextafter(1, 2))
        share = momentum if isinstance(momentum, Tensor) else found
        y, after = _batch_norm(flat, *wide, eps=eps), [_moved(p, flat, name, share) for name, p in zip(WHICH, before, strict=True)]
    else:
        after = before
        centre, spread, scale, shift = (reshape(p, (p.shape[0], 1, channels)) for p in (*before, *wide))
        y = _scaled(subtract(flat, centre), spread, scale, shift, eps)
    return reshape(y, x.shape), tuple([reshape(p, (*lead, channels)) for p in after])
