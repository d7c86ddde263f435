"""Sets that hyperparameters must lie in: as a map from all numbers onto the set, and as the projection onto its nearest point.

A map (`constraint(x)`) is differentiated with the rest, so that the hyperparameters x are free: `lr = Positive()(hparams["raw"])`.
A projection (`constraint.project(x)`) is applied after an outer step: `online(..., project=by_name(lr=Positive()))`.

Example:
    >>> hg.constraints.Box(0.0, 10.0)(np.array([-100.0, 0.0, 100.0]))
    Tensor(array([3.72007598e-43, 5.00000000e+00, 1.00000000e+01]))
    >>> hg.constraints.Simplex().project(np.array([2.0, 1.5, 0.0]))
    array([0.75, 0.25, 0.  ])
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .backends import Array, backend_of
from .errors import ArgumentError
from .ops import add, divide, exp, minimum, multiply, sigmoid, softmax, sum
from .tape import Tensor

_HALVINGS = 64  # more change no bit of a float64 between 0 and the largest element


class Constraint(Protocol):
    """What every set gives."""

    def __call__(self, x: Any) -> Tensor:
        """A point of the set, smooth in x. Args: x: any numbers, an array or Tensor. Returns: a Tensor like x."""

    def inverse(self, y: Array) -> Array:
        """An x that the map sends to y. Args: y: inside of the set. Raises: ArgumentError outside of it. Returns: an array like y."""

    def project(self, x: Array) -> Array:
        """The nearest point of the set. Args: x: any finite numbers. Returns: a new array like x."""


def _inside(constraint: Constraint, y: Array, holds: Any, expected: str) -> None:
    if not bool(holds):
        raise ArgumentError(
            f"{type(constraint).__name__}: y has elements outside of the set, expected {expected}, as the map reaches nothing else; "
            "project it, and keep away from the boundary"
        )


@dataclass(frozen=True)
class Positive:
    """Numbers > 0: exp(x). The projection is onto numbers >= least.

    Args:
        least: of the projection, >= 0.
    """

    least: float = 0.0

    def __call__(self, x: Any) -> Tensor:
        """See `Constraint`."""
        return exp(x)

    def inverse(self, y: Array) -> Array:
        """See `Constraint`."""
        _inside(self, y, (y > 0).all(), "numbers > 0")
        return backend_of(y).xp.log(y)

    def project(self, x: Array) -> Array:
        """See `Constraint`."""
        return backend_of(x).xp.maximum(x, x.dtype.type(self.least))


@dataclass(frozen=True)
class Box:
    """Numbers between two bounds: low + (high - low) * sigmoid(x).

    Args:
        low, high: the bounds, low < high.
    Raises: ArgumentError unless low < high.
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ArgumentError(f"Box: low is {self.low} and high is {self.high}, expected low < high; swap or widen them")

    def __call__(self, x: Any) -> Tensor:
        """See `Constraint`."""
        return add(self.low, multiply(self.high - self.low, sigmoid(x)))

    def inverse(self, y: Array) -> Array:
        """See `Constraint`."""
        _inside(self, y, ((y > self.low) & (y < self.high)).all(), f"numbers between {self.low} and {self.high}")
        return backend_of(y).xp.log((y - self.low) / (self.high - y))

    def project(self, x: Array) -> Array:
        """See `Constraint`."""
        return backend_of(x).xp.clip(x, x.dtype.type(self.low), x.dtype.type(self.high))


@dataclass(frozen=True)
class Simplex:
    """Numbers >= 0 along the last axis that sum to `total`: total * softmax(x).

    Args:
        total: of each row, > 0.
    Source: Duchi et al. 2008, ICML, Figure 1 (the projection).
    """

    total: float = 1.0

    def __call__(self, x: Any) -> Tensor:
        """See `Constraint`."""
        return multiply(self.total, softmax(x))

    def inverse(self, y: Array) -> Array:
        """See `Constraint`."""
        sums_up = (abs(y.sum(-1) - self.total) <= 1e-5 * self.total).all()
        _inside(self, y, (y > 0).all() and sums_up, f"rows of numbers > 0 that sum to {self.total}")
        return backend_of(y).xp.log(y)

    def project(self, x: Array) -> Array:
        """See `Constraint`. Cost: a sort of each row."""
        xp = backend_of(x).xp
        wide = x.astype(np.float64)
        falling = xp.sort(wide, axis=-1)[..., ::-1]
        excess = xp.cumsum(falling, axis=-1) - self.total
        count = xp.arange(1, x.shape[-1] + 1)
        kept = (falling * count > excess).sum(-1, keepdims=True)  # elements that stay above 0
        shift = xp.take_along_axis(excess, kept - 1, axis=-1) / kept
        return xp.maximum(wide - shift, 0.0).astype(x.dtype)


@dataclass(frozen=True)
class Budget:
    """Numbers between 0 and 1 that sum to at most `total`, over all axes: sigmoid(x), scaled down where its sum is more.

    Args:
        total: the largest sum, > 0.
    Source: Franceschi et al. 2017, section 5.1 (the weights of examples in data hyper-cleaning).
    """

    total: float

    def __post_init__(self) -> None:
        if not self.total > 0:
            raise ArgumentError(f"Budget: total is {self.total}, expected a number above 0; pass the largest sum")

    def __call__(self, x: Any) -> Tensor:
        """See `Constraint`."""
        y = sigmoid(x)
        return multiply(y, minimum(1.0, divide(self.total, sum(y))))

    def inverse(self, y: Array) -> Array:
        """See `Constraint`."""
        _inside(self, y, ((y > 0) & (y < 1)).all() and y.sum() <= self.total, f"numbers between 0 and 1 with a sum of at most {self.total}")
        return backend_of(y).xp.log(y / (1 - y))

    def project(self, x: Array) -> Array:
        """See `Constraint`.

        It is clip(x - mu, 0, 1) with the smallest mu >= 0 that keeps the sum. Bisection on mu finds the elements that lie inside of the
        box; there the sum is linear in mu, so that mu is then known exactly. Cost: 64 passes over x.
        """
        xp = backend_of(x).xp
        wide = x.astype(np.float64)
        inside = xp.clip(wide, 0.0, 1.0)
        if inside.sum() <= self.total:
            return inside.astype(x.dtype)
        low, high = 0.0, float(wide.max())
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            if xp.clip(wide - middle, 0.0, 1.0).sum() > self.total:
                low = middle
            else:
                high = middle
        moved = wide - high
        free = (moved > 0.0) & (moved < 1.0)
        if free.any():
            high = (wide[free].sum() + (moved >= 1.0).sum() - self.total) / free.sum()
        return xp.clip(wide - high, 0.0, 1.0).astype(x.dtype)


def by_name(**constraints: Constraint) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A projection of a dictionary of hyperparameters, for `project=` of `online` and its like.

    For instance by_name(lr=Positive(), example=Budget(1000)).

    Args:
        constraints: by the names of hyperparameters; the others stay as they are.
    Returns: dictionary of arrays -> a new one.
    Raises: ArgumentError when it is called with a dictionary that lacks one of the names.
    """

    def project(hparams: dict[str, Any]) -> dict[str, Any]:
        if missing := sorted(set(constraints) - set(hparams)):
            raise ArgumentError(
                f"by_name: hparams have {', '.join(sorted(hparams))}, expected {', '.join(missing)} among them; correct the name"
            )
        return {k: constraints[k].project(x) if k in constraints else x for k, x in hparams.items()}

    return project
