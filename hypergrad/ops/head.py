"""The head of a classifier: linear layer and softmax cross-entropy as one op with four kernel rungs.

With z = x w + bias and r = softmax(z) minus one at the label, which the value rung stores, per example:

    y_dot = r . (x_dot w + x w_dot + bias_dot)
    z_bar = y_bar r,  x_bar = z_bar w',  w_bar = x' z_bar,  bias_bar = sum of z_bar

csrc/host/linear_cross_entropy.cpp has the tangent of the second line.
"""

from __future__ import annotations

import math
from typing import Any

from ..backends import Array, Backend, backend_of
from ..errors import ShapeError
from ..rules import Fused
from ..sharing import count_flop
from ..tape import Tensor, to_tensors
from ..together import do_together
from .arrays import reshape
from .layout import optional, rows, tangents, wanted, with_episodes
from .linalg import linear
from .reductions import class_labels, softmax_cross_entropy

__all__ = ["linear_cross_entropy"]

Attrs = dict[str, Any]
Saved = dict[str, Any]
ARGUMENTS = ("x", "w", "bias")


def _reference(x: Tensor, w: Tensor, bias: Tensor, *, labels: Array) -> Tensor:
    """The definition, on (E, N, D), (E, D, K) and (E, K)."""
    return softmax_cross_entropy(linear(x, w, bias), labels)


def _value(b: Backend, values: list[Array], attrs: Attrs) -> tuple[Array, Saved]:
    x, w, bias = rows(b, values)
    saved = b.run("linear_cross_entropy_value", x=x, w=w, bias=bias, label=attrs["labels"])
    return saved.pop("y"), saved


def _jvp(b: Backend, values: list[Array], dots: list[Array | None], attrs: Attrs, saved: Saved) -> Array:
    x, w, _ = rows(b, values)
    out = b.run("linear_cross_entropy_jvp", residual=saved["residual"], x=x, w=w, **tangents(b, ARGUMENTS, dots))
    saved["z_dot"] = out["z_dot"]
    y_dot: Array = out["y_dot"]
    return y_dot


def _vjp(b: Backend, values: list[Array], y_bar: Array, want: list[bool], attrs: Attrs, saved: Saved) -> list[Array | None]:
    x, w, _ = rows(b, values)
    out = b.run("linear_cross_entropy_vjp", y_bar=y_bar, residual=saved["residual"], x=x, w=w, x_bar=want[0], w_bar=want[1])
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
    x, w, _ = rows(b, values)
    given = {"x": x, "w": w, "label": attrs["labels"], "y_bar": y_bar, "y_bar_dot": optional(b, y_bar_dot), **saved}
    out = b.run("linear_cross_entropy_vjp_jvp", **given, **tangents(b, ARGUMENTS[:2], dots), x_bar_dot=want[0], w_bar_dot=want[1])
    return wanted(out, want)


_NAME = "linear_cross_entropy_"
do_together((f"{_NAME}value", f"{_NAME}vjp"), f"{_NAME}value_vjp")
for _names in (("value", "jvp", "vjp_jvp"), ("jvp", "vjp_jvp")):
    do_together(tuple([f"{_NAME}{rung}" for rung in _names]), _NAME + "_".join(_names), lambda shapes: shapes["z_dot"][0] == 1)

count_flop(f"{_NAME}value", lambda shapes: 2 * math.prod(shapes["x"]) * shapes["w"][-1])

_head = Fused("linear_cross_entropy", 3, _reference, value=_value, jvp=_jvp, vjp=_vjp, vjp_jvp=_vjp_jvp)


def linear_cross_entropy(x: Any, w: Any, bias: Any, labels: Any) -> Tensor:
    """Cross-entropy of softmax(x w + bias) against integer labels, one loss per example, in nats.

    Defined by ``softmax_cross_entropy(linear(x, w, bias), labels)`` and equal to it up to rounding; `fusion(False)` runs
    that. One kernel a rung, where the composition takes five or more.

    Args:
        x: features, (N, D) or (E, N, D), float32 or float64.
        w: weights, (D, K), or (E, D, K) for one matrix per episode.
        bias: (K,), or (E, K) for one per episode; -inf masks a class: it has no weight and gets no derivative.
        labels: integer array, (N,) or (E, N) as x, 0 <= label < K.
    Returns: Tensor of the shape of `labels`; +inf where the label's class is masked, by the kernels NaN where all
        are or a logit is +inf.
    Raises: ShapeError if the shapes do not fit; DTypeError for mixed dtypes or labels that are no integers; ArgumentError
        for a label out of range. Labels in a CuPy array are not read by the host: one out of range makes its loss NaN.
    Rules: kernels for value, vjp, jvp and jvp of vjp; the reference for every other nesting.
    Cost: 2*E*N*D*K flop forward, twice that backward; keeps N*K numbers an episode.
    Source: Bishop 2006, Pattern Recognition and Machine Learning, section 4.3.4.
    Example:
        >>> x, labels = np.ones((4, 3)), np.array([0, 1, 0, 1])
        >>> hg.linear_cross_entropy(x, np.zeros((3, 2)), np.zeros(2), labels)
        Tensor(array([0.69314718, 0.69314718, 0.69314718, 0.69314718]))
    """
    x, w, bias = to_tensors("linear_cross_entropy", [x, w, bias])
    features, w, bias, index = head_arguments("linear_cross_entropy", x, w, bias, labels)
    y = _head(features, w, bias, labels=index)
    return reshape(y, x.shape[:-1]) if x.ndim == 2 else y


def head_arguments(op: str, x: Tensor, w: Tensor, bias: Tensor, labels: Any) -> tuple[Tensor, Tensor, Tensor, Array]:
    """A head's arguments with an episode axis: features (E, N, D), weights (E, D, K), bias (E, K) and int64 labels (E, N).

    Raises: ShapeError if the shapes do not fit; errors of labels as `linear_cross_entropy`.
    """
    if x.ndim not in (2, 3) or w.ndim not in (2, 3) or x.shape[-1] != w.shape[-2]:
        raise ShapeError(f"{op}: x has shape {x.shape} and w {w.shape}, expected (N, D) or (E, N, D) and (D, K) or (E, D, K) with equal D")
    episodes, k = (x.shape[0] if x.ndim == 3 else 1), w.shape[-1]
    if w.ndim == 3 and w.shape[0] != episodes:
        raise ShapeError(f"{op}: w has shape {w.shape}, expected {episodes} episodes because x has shape {x.shape}")
    if bias.shape not in ((k,), (episodes, k)):
        raise ShapeError(f"{op}: bias has shape {bias.shape}, expected ({k},) or ({episodes}, {k}) because w has shape {w.shape}")
    index = class_labels(op, labels, x, k, f"x has shape {x.shape}", f"w has shape {w.shape}")
    features = reshape(x, (1, *x.shape)) if x.ndim == 2 else x
    xp = backend_of(x.value).xp
    index = xp.ascontiguousarray(index.astype("int64", copy=False).reshape(features.shape[:-1]))
    return features, with_episodes(w, episodes, 3), with_episodes(bias, episodes, 2), index
