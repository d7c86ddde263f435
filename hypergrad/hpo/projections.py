"""Projections onto the sets that hyperparameters must lie in."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
HALVINGS = 64  # more change no bit of a float64 that lies between 0 and the largest element


def capped_box(x: Array, total: float) -> Array:
    """The nearest point of {0 <= y <= 1, sum(y) <= total}.

    It is clip(x - mu, 0, 1) with the smallest mu >= 0 that keeps the sum. Bisection on mu finds which elements lie inside of the box;
    there the sum is linear in mu, so that mu is then known exactly.

    Args: x: any shape, float32 or float64, finite; total: > 0.
    Returns: a new array like x; its sum exceeds `total` by rounding at most.
    Cost: 64 passes over x in float64.
    Source: the KKT conditions; Held, Wolfe & Crowder 1974 (for the simplex).
    """
    wide = x.astype(np.float64)
    inside = np.clip(wide, 0.0, 1.0)
    if inside.sum() <= total:
        return inside.astype(x.dtype)
    low, high = 0.0, float(wide.max())
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        if np.clip(wide - middle, 0.0, 1.0).sum() > total:
            low = middle
        else:
            high = middle
    moved = wide - high
    free = (moved > 0.0) & (moved < 1.0)
    if free.any():
        high = (wide[free].sum() + np.count_nonzero(moved >= 1.0) - total) / np.count_nonzero(free)
    nearest: Array = np.clip(wide - high, 0.0, 1.0).astype(x.dtype)
    return nearest
