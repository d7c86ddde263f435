"""Losses beside `softmax_cross_entropy`. All but `mse_loss` give one loss per element or example: take their mean or sum."""

from __future__ import annotations

import math
from typing import Any

from ..errors import ShapeError
from ..tape import Tensor, to_tensors
from .arguments import array_of, number
from .constants import one_hot
from .elementwise import abs, add, minimum, multiply, negative, relu, scale, softplus, subtract, where
from .reductions import class_labels, log_softmax, mean, softmax, softmax_cross_entropy, sum

__all__ = ["binary_cross_entropy_with_logits", "cross_entropy", "hinge_loss", "huber_loss", "kl_divergence", "mse_loss"]


def _same(name: str, one: str, x: Tensor, other: str, y: Tensor) -> None:
    """Raises where two arguments differ in shape: broadcast ones are a mistake more often than a wish."""
    if x.shape != y.shape:
        raise ShapeError(f"{name}: {other} has shape {y.shape}, expected {x.shape} because {one} has it; reshape or broadcast one")


def mse_loss(x: Any, y: Any) -> Tensor:
    """The mean of (x - y)^2 over all elements.

    Args:
        x, y: arrays or Tensors of one shape and dtype, with at least one element.
    Returns: Tensor without axes.
    Raises: ShapeError if the shapes differ, or of nothing.
    Example:
        >>> hg.mse_loss(np.array([1.0, 2.0]), np.array([1.0, 5.0]))
        Tensor(array(4.5))
    """
    x, y = to_tensors("mse_loss", [x, y])
    _same("mse_loss", "x", x, "y", y)
    d = subtract(x, y)
    return mean(multiply(d, d))


def huber_loss(x: Any, y: Any, delta: Any = 1.0) -> Tensor:
    """d^2 / 2 where |d| <= delta, and delta (|d| - delta / 2) beyond, with d = x - y.

    Args:
        x, y: arrays or Tensors of one shape and dtype.
        delta: > 0; a Tensor of no axes gets a derivative.
    Returns: Tensor like x.
    Raises: ShapeError if the shapes differ; ArgumentError for a delta that is not above 0.
    Source: Huber 1964, Annals of Mathematical Statistics 35.
    Example:
        >>> hg.huber_loss(np.array([0.5, 3.0]), np.zeros(2))
        Tensor(array([0.125, 2.5  ]))
    """
    x, y = to_tensors("huber_loss", [x, y])
    _same("huber_loss", "x", x, "y", y)
    found = number("huber_loss", "delta", delta.value if isinstance(delta, Tensor) else delta, "> 0", "it is a slope", 0, excluded=True)
    size = abs(subtract(x, y))
    inside = minimum(size, delta if isinstance(delta, Tensor) else found)
    return multiply(inside, subtract(size, scale(inside, by=0.5)))


def hinge_loss(x: Any, y: Any) -> Tensor:
    """max(0, 1 - x y), of a support vector machine; its derivative where x y = 1 is 0.

    Args:
        x: scores, array or Tensor.
        y: classes as -1 and 1, of the shape of x.
    Returns: Tensor like x.
    Raises: ShapeError if the shapes differ.
    Example:
        >>> hg.hinge_loss(np.array([2.0, 0.5]), np.array([1.0, -1.0]))
        Tensor(array([0. , 1.5]))
    """
    x, y = to_tensors("hinge_loss", [x, y])
    _same("hinge_loss", "x", x, "y", y)
    return relu(subtract(1.0, multiply(x, y)))


def binary_cross_entropy_with_logits(logits: Any, y: Any) -> Tensor:
    """Cross-entropy of sigmoid(logits) against probabilities, in nats, safe from overflow: softplus(z) - z y.

    Args:
        logits: array or Tensor, of any shape.
        y: probabilities of the class 1, in [0, 1], of the shape of logits; a Tensor gets a derivative.
    Returns: Tensor like logits.
    Raises: ShapeError if the shapes differ.
    Example:
        >>> hg.binary_cross_entropy_with_logits(np.array([2.0, -1.0]), np.array([1.0, 0.0]))
        Tensor(array([0.12692801, 0.31326169]))
    """
    z, y = to_tensors("binary_cross_entropy_with_logits", [logits, y])
    _same("binary_cross_entropy_with_logits", "logits", z, "y", y)
    return subtract(softplus(z), multiply(z, y))


def _weighted(p: Tensor, logs: Tensor) -> Tensor:
    """The sums of p * logs along the last axis. Where p is 0 and a logarithm is -inf, the product is 0 and has no derivative."""
    masked = (p.value == 0) & (logs.value == -math.inf)
    return sum(multiply(p, where(masked, 0.0, logs)), axis=-1)


def cross_entropy(logits: Any, labels: Any, *, label_smoothing: Any = 0.0) -> Tensor:
    """Cross-entropy of softmax(logits) against integer labels or probabilities, one loss per example, in nats.

    The labels' probabilities p become (1 - s) p + s / K, with s the smoothing and K the number of classes.

    Args:
        logits: array or Tensor, (..., K); -inf masks a class that no label wants.
        labels: integers, (...), 0 <= label < K; or probabilities, (..., K), of the dtype of logits. A Tensor gets a derivative.
        label_smoothing: 0 <= s < 1; a Tensor of no axes gets a derivative.
    Returns: Tensor of shape (...).
    Raises: ShapeError if the shapes do not fit; ArgumentError for a label or a smoothing out of range.
    Source: Szegedy et al. 2016, arXiv:1512.00567, section 7 (label smoothing).
    Example:
        >>> hg.cross_entropy(np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([0, 0]), label_smoothing=0.1)
        Tensor(array([0.22692801, 1.26326169]))
    """
    (z,) = to_tensors("cross_entropy", [logits])
    if not z.ndim:
        raise ShapeError("cross_entropy: logits has shape (), expected (..., K) because the last axis holds the classes")
    given, k = label_smoothing, z.shape[-1]
    found = number(
        "cross_entropy", "label_smoothing", given.value if isinstance(given, Tensor) else given, "0 <= s < 1", "it is a share", 0, below=1
    )
    if not isinstance(labels, Tensor):
        labels = array_of("cross_entropy", "labels", labels, "iuf", "integers or probabilities", "they name classes")
        if labels.dtype.kind not in "f":
            index = class_labels("cross_entropy", labels, z, k, f"logits has shape {z.shape}", f"logits has {k} classes")
            if not found and not isinstance(given, Tensor):
                return softmax_cross_entropy(z, index)
            labels = one_hot(index, k, z.dtype)
    z, p = to_tensors("cross_entropy", [z, labels])
    _same("cross_entropy", "logits", z, "labels", p)
    if found or isinstance(given, Tensor):
        s = given if isinstance(given, Tensor) else found
        p = add(multiply(p, 1.0 - s), s / k)
    return negative(_weighted(p, log_softmax(z)))


def kl_divergence(x: Any, y: Any) -> Tensor:
    """Kullback-Leibler divergence of softmax(y) from softmax(x), in nats: the sum of p (log p - log q) along the last axis.

    Args:
        x: logits of p, array or Tensor, (..., K); -inf masks a class.
        y: logits of q, of the shape of x.
    Returns: Tensor of shape (...).
    Raises: ShapeError if the shapes differ or are ().
    Example:
        >>> hg.kl_divergence(np.array([0.5, 0.5]), np.array([0.25, 0.75]))
        Tensor(array(0.0309298))
    """
    x, y = to_tensors("kl_divergence", [x, y])
    _same("kl_divergence", "x", x, "y", y)
    if not x.ndim:
        raise ShapeError("kl_divergence: x has shape (), expected (..., K) because the last axis holds the classes")
    p = softmax(x)
    return subtract(_weighted(p, log_softmax(x)), _weighted(p, log_softmax(y)))
