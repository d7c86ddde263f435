"""Sums, means, maxima and the softmax family."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backends import Array, Backend, backend_of, bare, is_on_gpu
from ..errors import ArgumentError, ShapeError
from ..rules import Op, linear
from ..tape import Tensor, to_tensors
from .arguments import array_of, integers, switch
from .arrays import AXIS, broadcast_to, normalise_axis, pick, reshape, transpose
from .elementwise import exp, scale, subtract, where

__all__ = ["amax", "amin", "log_softmax", "logsumexp", "max", "mean", "min", "softmax", "softmax_cross_entropy", "sum"]

Axis = int | Sequence[int] | None


def reduced_axes(name: str, axis: Axis, ndim: int) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(ndim))
    axes = tuple([normalise_axis(name, a, ndim) for a in integers(name, "axis", axis, AXIS)])
    if len(set(axes)) < len(axes):
        raise ArgumentError(f"{name}: axis has {axis}, expected each axis once because it can be reduced only once; name it once")
    return tuple(sorted(axes))


def _kept(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple([1 if i in axes else n for i, n in enumerate(shape)])


def _sum_value(b: Backend, x: Array, *, lead: int, axes: tuple[int, ...]) -> Array:
    return b.xp.sum(x, axis=tuple([a + lead for a in axes]))


def _sum_transpose(bar: Tensor, x: Tensor, *, lead: int, axes: tuple[int, ...]) -> Tensor:
    shifted = tuple([a + lead for a in axes])
    return broadcast_to(reshape(bar, _kept(x.shape, shifted)), x.shape)


def _mean_value(b: Backend, x: Array, *, lead: int, axes: tuple[int, ...]) -> Array:
    return b.xp.mean(x, axis=tuple([a + lead for a in axes]))


def _mean_transpose(bar: Tensor, x: Tensor, *, lead: int, axes: tuple[int, ...]) -> Tensor:
    return _sum_transpose(scale(bar, by=1.0 / math.prod(x.shape[a + lead] for a in axes)), x, lead=lead, axes=axes)


_sum = linear("sum", _sum_value, _sum_transpose)
_mean = linear("mean", _mean_value, _mean_transpose)


def sum(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Sum over axes.

    Args:
        x: array or Tensor.
        axis: an axis, several, or None for all.
        keepdims: keep the summed axes with length 1.
    Returns: Tensor.
    Raises: ArgumentError for an axis that does not exist or is named twice.
    Example:
        >>> hg.sum(np.array([[1.0, 2.0], [3.0, 4.0]]), axis=1)
        Tensor(array([3., 7.]))
    """
    (x,) = to_tensors("sum", [x])
    axes, keepdims = reduced_axes("sum", axis, x.ndim), switch("sum", "keepdims", keepdims)
    out = _sum(x, axes=axes) if axes else x
    return reshape(out, _kept(x.shape, axes)) if keepdims else out


def mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Arithmetic mean over axes; arguments, result and errors as `sum`.

    Raises: ShapeError over no elements.
    Example:
        >>> hg.mean(np.array([[1.0, 2.0], [3.0, 4.0]]), axis=0)
        Tensor(array([2., 3.]))
    """
    (x,) = to_tensors("mean", [x])
    axes, keepdims = reduced_axes("mean", axis, x.ndim), switch("mean", "keepdims", keepdims)
    if not math.prod(x.shape[a] for a in axes):
        raise ShapeError(f"mean: x has shape {x.shape}, expected at least one element along axis {axis} because 0/0 has no value")
    out = _mean(x, axes=axes) if axes else x
    return reshape(out, _kept(x.shape, axes)) if keepdims else out


def rows_along(name: str, x: Any, axis: Axis, keepdims: bool) -> tuple[Tensor, tuple[int, ...]]:
    """x with the elements to reduce as its last axis, in C order, and the shape of the reduced result.

    Raises: ArgumentError that names the op `name`, as `sum`.
    """
    (x,) = to_tensors(name, [x])
    axes, keepdims = reduced_axes(name, axis, x.ndim), switch(name, "keepdims", keepdims)
    rest = tuple([i for i in range(x.ndim) if i not in axes])
    shape = tuple([x.shape[i] for i in rest])
    flat = reshape(transpose(x, rest + axes), (*shape, math.prod(x.shape[a] for a in axes)))
    return flat, _kept(x.shape, axes) if keepdims else shape


def _extreme(name: str, x: Any, axis: Axis, keepdims: bool) -> Tensor:
    """The largest ("max") or smallest ("min") element over axes."""
    flat, shape = rows_along(name, x, axis, keepdims)
    if not flat.shape[-1]:
        raise ShapeError(f"{name}: x has shape {np.shape(x)}, expected at least one element along axis {axis}")
    out = pick(flat, index=flat.value.argmax(axis=-1) if name == "max" else flat.value.argmin(axis=-1))
    return out if out.shape == shape else reshape(out, shape)


def max(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Maximum over axes; among equal elements the first in C order gets the derivative.

    Args, Returns: as `sum`.
    Raises: ShapeError over no elements.
    Example:
        >>> hg.amax(np.array([[1.0, 2.0], [3.0, 4.0]]), axis=0)
        Tensor(array([3., 4.]))
    """
    return _extreme("max", x, axis, keepdims)


def min(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Minimum over axes; among equal elements the first in C order gets the derivative.

    Args, Returns: as `sum`.
    Raises: ShapeError over no elements.
    Example:
        >>> hg.amin(np.array([[1.0, 2.0], [3.0, 4.0]]), axis=0)
        Tensor(array([1., 2.]))
    """
    return _extreme("min", x, axis, keepdims)


amax, amin = max, min


def _ordinary(x: Array) -> bool:
    """Whether all elements are known to be finite and small enough for every dtype; arrays on a GPU are not read by the host."""
    x = bare(x)
    return not is_on_gpu(x) and bool((np.abs(x) < 1e4).all())


def _below_top(b: Backend, x: Array) -> tuple[Array, Array]:
    """The largest element of each row, kept finite, and by how much each element is above it: 0 for the largest, whatever it is,
    but for rows of -inf only, where it is -inf."""
    limit = float(np.finfo(x.dtype).max)
    top = b.xp.clip(b.xp.max(x, axis=-1, keepdims=True), -limit, limit)
    return top, x - top


def _logsumexp_value(b: Backend, x: Array) -> Array:
    top = b.xp.max(x, axis=-1, keepdims=True)
    if _ordinary(top):  # the common case, and the fast one
        return top + b.xp.log(b.xp.sum(b.xp.exp(x - top), axis=-1, keepdims=True))
    with np.errstate(divide="ignore", over="ignore"):  # log(0) of a row of -inf only; the most negative number beside +inf
        top, above = _below_top(b, x)
        return top + b.xp.log(b.xp.sum(b.xp.exp(above), axis=-1, keepdims=True))


def _softmax_value(b: Backend, x: Array) -> Array:
    top = b.xp.max(x, axis=-1, keepdims=True)
    if _ordinary(top):
        e = b.xp.exp(x - top)
        return e / b.xp.sum(e, axis=-1, keepdims=True)
    with np.errstate(over="ignore"):
        e = b.xp.exp(b.xp.minimum(_below_top(b, x)[1], 0))  # above 0 are the +inf of a row only
    return e / b.xp.maximum(b.xp.sum(e, axis=-1, keepdims=True), 1)  # below 1 is the sum of a row of -inf only: 0


def _weights(out: Tensor, x: Tensor) -> Tensor:
    """softmax(x), out being logsumexp(x). It is finite where x is not: there exp(x - out) would be inf - inf."""
    return exp(x - out) if _ordinary(out.value) else _softmax(x)


_softmax: Op = Op(
    "softmax",
    _softmax_value,
    vjp=(lambda bar, out, x: out * (bar - sum(bar * out, axis=-1, keepdims=True)),),
    jvp=(lambda dot, out, x: out * (dot - sum(dot * out, axis=-1, keepdims=True)),),
    batching="broadcast",
)
_logsumexp = Op(
    "logsumexp",
    _logsumexp_value,
    vjp=(lambda bar, out, x: bar * _weights(out, x),),
    jvp=(lambda dot, out, x: sum(dot * _weights(out, x), axis=-1, keepdims=True),),
    batching="broadcast",
)


def _last(name: str, x: Any, axis: int) -> tuple[Tensor, tuple[int, ...]]:
    """x with `axis` moved to the end, and the permutation, which also moves it back."""
    (x,) = to_tensors(name, [x])
    axis = normalise_axis(name, axis, x.ndim)
    order = (*(i for i in range(x.ndim) if i != axis), axis)
    return (x if axis == x.ndim - 1 else transpose(x, order)), tuple([int(i) for i in np.argsort(order)])


def logsumexp(x: Any, axis: int = -1, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))) along one axis, safe from overflow.

    Args:
        x: array or Tensor with at least one axis.
        axis: the axis to reduce.
        keepdims: keep it with length 1.
    Returns: Tensor; -inf of -inf only, +inf where an element is.
    Rules: the derivative is `softmax`; any order.
    Example:
        >>> hg.logsumexp(np.array([1000.0, 1000.0]))
        Tensor(array(1000.69314718))
    """
    keepdims = switch("logsumexp", "keepdims", keepdims)
    moved, back = _last("logsumexp", x, axis)
    out = _logsumexp(moved)
    return transpose(out, back) if keepdims else reshape(out, moved.shape[:-1])


def softmax(x: Any, axis: int = -1) -> Tensor:
    """exp(x) / sum(exp(x)) along one axis, safe from overflow.

    Args:
        x: array or Tensor with at least one axis.
        axis: the axis that sums to one.
    Returns: Tensor like x. Elements of -inf get 0, and so do all of them where there are no others; elements of +inf share the
        whole weight equally.
    Rules: softmax(x) * (x_dot - sum(softmax(x) * x_dot)), finite wherever softmax is; any order.
    Example:
        >>> hg.softmax(np.array([0.0, 0.0, 1000.0]))
        Tensor(array([0., 0., 1.]))
    """
    moved, back = _last("softmax", x, axis)
    out = _softmax(moved)
    return out if back[-1] == moved.ndim - 1 else transpose(out, back)


def log_softmax(x: Any, axis: int = -1) -> Tensor:
    """x - logsumexp(x) along one axis, the logarithm of `softmax`, safe from overflow.

    Args:
        x: array or Tensor with at least one axis.
        axis: the axis along which exp(log_softmax(x)) sums to one.
    Returns: Tensor like x. Elements of -inf stay -inf and get no derivative, unless all are.
    Example:
        >>> hg.log_softmax(np.array([1000.0, 1000.0]))
        Tensor(array([-0.69314718, -0.69314718]))
    """
    (x,) = to_tensors("log_softmax", [x])
    moved, back = _last("log_softmax", x, axis)
    return subtract(x, transpose(_logsumexp(moved), back))


def class_labels(name: str, labels: Any, x: Tensor, classes: int, shape_reason: str, range_reason: str) -> Array:
    """Labels as an integer array on x's device, of x's shape without the last axis, each below `classes`.

    Labels that come from a GPU are not read, which would make the host wait for it: one out of range makes its loss NaN.

    Raises: DTypeError for labels that are no integers; ShapeError for another shape; ArgumentError for a label out of range.
    """
    index = array_of(name, "labels", labels, "iu", "integers", "they index classes")
    if index.shape != x.shape[:-1]:
        raise ShapeError(f"{name}: labels has shape {index.shape}, expected {x.shape[:-1]} because {shape_reason}")
    every = bare(index)
    if is_on_gpu(every):
        backend_of(x.value, index)  # raises where x is the host's
        return index
    if every.size and (every.min() < 0 or every.max() >= classes):
        raise ArgumentError(
            f"{name}: labels has values {int(every.min())} to {int(every.max())}, expected 0 to {classes - 1} "
            f"because {range_reason}; renumber the classes"
        )
    return backend_of(x.value).xp.asarray(index) if is_on_gpu(bare(x.value)) else index


def softmax_cross_entropy(logits: Any, labels: Any) -> Tensor:
    """Cross-entropy of softmax(logits) against integer labels, one loss per example, in nats.

    Args:
        logits: array or Tensor, (..., K), float32 or float64; -inf masks a class: it has no weight and gets no derivative.
        labels: integer array of shape (...), 0 <= label < K.
    Returns: Tensor of shape (...); +inf where the label's class is masked, NaN where all are or where the label's logit is +inf.
    Raises: DTypeError for labels that are no integers; ShapeError if the shapes differ; ArgumentError for a label
        out of range. Labels in a CuPy array are not read by the host: one out of range makes its loss NaN.
    Cost: about 10 flop a logit.
    Example:
        >>> hg.softmax_cross_entropy(np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([0, 0]))
        Tensor(array([0.12692801, 1.31326169]))
    """
    (z,) = to_tensors("softmax_cross_entropy", [logits])
    if not z.ndim:
        raise ShapeError("softmax_cross_entropy: logits has shape (), expected (..., K) because the last axis holds the classes")
    index = class_labels(
        "softmax_cross_entropy", labels, z, z.shape[-1], f"logits has shape {z.shape}", f"logits has {z.shape[-1]} classes"
    )
    losses = subtract(logsumexp(z), pick(z, index=index))
    return where((index >= 0) & (index < z.shape[-1]), losses, math.nan) if is_on_gpu(bare(index)) else losses
