"""Batch normalisation with its four kernel rungs. With s = (var + eps)^-1/2 and x_hat = s (x - mean), M pixels:

    x_bar = gamma s (y_bar - sum(y_bar)/M - x_hat sum(y_bar x_hat)/M)
    y_dot = gamma_dot x_hat + gamma s (x_dot - mean(x_dot) - x_hat mean(x_hat x_dot)) + beta_dot

per channel and episode; csrc/host/batch_norm.cpp has the tangent of the first line.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backends import Array, Backend
from ..errors import ShapeError
from ..rules import Fused
from ..tape import Tensor, to_tensors
from .arguments import number
from .arrays import broadcast_to, reshape
from .elementwise import add, divide, multiply, sqrt, subtract
from .layout import like, optional, rows
from .reductions import mean

Attrs = dict[str, Any]
Saved = dict[str, Any]


def _reference(x: Tensor, gamma: Tensor, beta: Tensor, *, eps: float) -> Tensor:
    """The definition, on (E, M, K) and (E, K)."""
    wide = [reshape(p, (p.shape[0], 1, p.shape[1])) for p in (gamma, beta)]
    centred = subtract(x, mean(x, axis=1, keepdims=True))
    var = mean(multiply(centred, centred), axis=1, keepdims=True)
    return add(multiply(divide(centred, sqrt(add(var, eps))), wide[0]), wide[1])


def _value(b: Backend, values: list[Array], attrs: Attrs) -> tuple[Array, Saved]:
    x, gamma, beta = rows(b, values)
    y, saved = b.empty(x.shape, x.dtype), {n: b.empty(gamma.shape, x.dtype) for n in ("mean", "rstd")}
    b.run("batch_norm_value", [x, gamma, beta], [y, *saved.values()], eps=attrs["eps"])
    return y, saved


def _jvp(b: Backend, values: list[Array], dots: list[Array | None], attrs: Attrs, saved: Saved) -> Array:
    x, gamma, _ = rows(b, values)
    count = next(d.shape[0] for d in dots if d is not None)
    y_dot, x_dot_mean, c = like(b, count, x, saved["mean"], saved["mean"])
    b.run("batch_norm_jvp", [x, gamma, saved["mean"], saved["rstd"], *(optional(b, d) for d in dots)], [y_dot, x_dot_mean, c])
    saved.update(x_dot_mean=x_dot_mean, c=c)
    return y_dot


def _vjp(b: Backend, values: list[Array], y_bar: Array, want: list[bool], attrs: Attrs, saved: Saved) -> list[Array | None]:
    x, gamma, _ = rows(b, values)
    bars = [b.empty(v.shape, v.dtype) if i or want[0] else None for i, v in enumerate(values)]
    b.run("batch_norm_vjp", [b.xp.ascontiguousarray(y_bar), saved["mean"], saved["rstd"], x, gamma], bars)
    return [g if wanted else None for g, wanted in zip(bars, want, strict=True)]


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
    count = saved["c"].shape[0]
    outs = [b.empty((count, *v.shape), v.dtype) if i or want[0] else None for i, v in enumerate(values)]
    b.run(
        "batch_norm_vjp_jvp",
        [
            b.xp.ascontiguousarray(y_bar),
            optional(b, y_bar_dot),
            saved["mean"],
            saved["rstd"],
            x,
            gamma,
            *(optional(b, d) for d in dots[:2]),
            saved["x_dot_mean"],
            saved["c"],
        ],
        outs,
    )
    return [g if wanted else None for g, wanted in zip(outs, want, strict=True)]


_batch_norm = Fused("batch_norm", 3, _reference, value=_value, jvp=_jvp, vjp=_vjp, vjp_jvp=_vjp_jvp)


def _per_episode(argument: str, p: Tensor, x: Tensor, episodes: int) -> Tensor:
    """gamma or beta, (C,) or (E, C), as (all leading axes of x in one, C)."""
    lead, channels = x.shape[:-4], x.shape[-1]
    if p.shape != (channels,) and (x.ndim < 5 or p.shape != (x.shape[-5], channels)):
        raise ShapeError(
            f"batch_norm: {argument} has shape {p.shape}, expected ({channels},) or (episodes, {channels}) because x has shape {x.shape}"
        )
    return reshape(broadcast_to(p, (*lead, channels)), (episodes, channels))


def batch_norm(x: Any, gamma: Any, beta: Any, *, eps: float = 1e-5) -> Tensor:
    """Normalisation by the statistics of the batch, over (N, H, W), per channel and per episode.

    y = gamma * (x - mean) / sqrt(var + eps) + beta, var being the mean squared deviation.

    Args:
        x: (..., N, H, W, C); every leading axis in front of N is an episode of its own.
        gamma, beta: (C,), or (E, C) for one set per episode.
        eps: added to the variance, > 0.
    Returns: Tensor like x.
    Raises: ShapeError, DTypeError, ArgumentError for an eps that is no finite number > 0.
    Rules: kernels for value, vjp, jvp and jvp of vjp; the composed formula for every other nesting and in `fusion(False)`.
    Cost: about 8 flop an element forward, 10 backward; keeps two numbers a channel and episode.
    Source: Ioffe & Szegedy 2015, arXiv:1502.03167.
    """
    x, gamma, beta = to_tensors("batch_norm", [x, gamma, beta])
    if x.ndim < 4 or not x.size:
        raise ShapeError(f"batch_norm: x has shape {x.shape}, expected (..., N, H, W, C) with at least one element")
    eps = number("batch_norm", "eps", eps, "> 0", "a channel may be constant", 0, excluded=True)
    episodes = int(np.prod(x.shape[:-4]))
    flat = reshape(x, (episodes, -1, x.shape[-1]))
    wide = [_per_episode(name, p, x, episodes) for name, p in (("gamma", gamma), ("beta", beta))]
    return reshape(_batch_norm(flat, *wide, eps=eps), x.shape)
