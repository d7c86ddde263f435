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
from .layout import optional, rows, tangents, wanted
from .reductions import mean

__all__ = ["batch_norm"]

Attrs = dict[str, Any]
Saved = dict[str, Any]
ARGUMENTS = ("x", "gamma", "beta")


def _reference(x: Tensor, gamma: Tensor, beta: Tensor, *, eps: float) -> Tensor:
    """The definition, on (E, M, K) and (E, K)."""
    wide = [reshape(p, (p.shape[0], 1, p.shape[1])) for p in (gamma, beta)]
    centred = subtract(x, mean(x, axis=1, keepdims=True))
    var = mean(multiply(centred, centred), axis=1, keepdims=True)
    return add(multiply(divide(centred, sqrt(add(var, eps))), wide[0]), wide[1])


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
    Example:
        >>> x = np.arange(8.0).reshape(2, 2, 2, 1)
        >>> hg.batch_norm(x, np.ones(1), np.zeros(1)).value.ravel().round(2)
        array([-1.53, -1.09, -0.65, -0.22,  0.22,  0.65,  1.09,  1.53])
    """
    x, gamma, beta = to_tensors("batch_norm", [x, gamma, beta])
    if x.ndim < 4 or not x.size:
        raise ShapeError(f"batch_norm: x has shape {x.shape}, expected (..., N, H, W, C) with at least one element")
    eps = number("batch_norm", "eps", eps, "> 0", "a channel may be constant", 0, excluded=True)
    episodes = int(np.prod(x.shape[:-4]))
    flat = reshape(x, (episodes, -1, x.shape[-1]))
    wide = [_per_episode(name, p, x, episodes) for name, p in (("gamma", gamma), ("beta", beta))]
    return reshape(_batch_norm(flat, *wide, eps=eps), x.shape)
