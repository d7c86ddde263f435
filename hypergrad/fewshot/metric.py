"""What the methods share that compare query images with support images."""

from typing import Any

import numpy as np

from ..backends import backend_of
from ..ops import sqrt, where
from ..ops import sum as sum_
from ..tape import Tensor
from .method import Array

SMALLEST_SQUARE = 1e-12  # keeps the derivative of the norm finite where a vector is zero


def unit(x: Any) -> Tensor:
    """Vectors x / sqrt(|x|^2 + 1e-12), of length 1 up to rounding. Args: x: (..., D). Cost: O(size)."""
    scaled: Tensor = x / sqrt(sum_(x * x, axis=-1, keepdims=True) + SMALLEST_SQUARE)
    return scaled


def of_each_class(scores: Any, labels: Array, n_way: int) -> Tensor:
    """Scores sorted by the support images' classes, to be reduced over the last axis.

    Args: scores: of query and support images, (E, Q, S), a Tensor; labels: of the support images, (E, S); n_way: classes.
    Returns: (E, Q, n_way, S), the scores where the support image is of the class, else -inf. Cost: O(E*Q*n_way*S).
    """
    of_class = labels[:, None, None] == backend_of(labels).xp.arange(n_way)[:, None]  # (E, 1, n_way, S)
    return where(of_class, scores[:, :, None], -np.inf)
