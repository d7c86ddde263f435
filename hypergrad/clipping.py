"""Gradient transforms of an optimiser: limits of the gradient, each differentiable in its limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .errors import ArgumentError
from .ops.elementwise import maximum, minimum, sqrt, where
from .ops.reductions import sum
from .trees import PyTree, tree_leaves, tree_map, tree_node


def _checked(where: str, limit: Any) -> Any:
    if isinstance(limit, (int, float)) and not limit > 0:
        raise ArgumentError(f"{where}: limit has {limit}, expected > 0; pass a positive limit")
    return limit


@tree_node
@dataclass(frozen=True)
class ClipByValue:
    """Limits every element of the gradient to [-limit, limit]."""

    limit: Any

    def __call__(self, g: PyTree) -> PyTree:
        """The gradient within the limit."""
        return tree_map(lambda x: minimum(maximum(x, -self.limit), self.limit), g)


@tree_node
@dataclass(frozen=True)
class ClipByNorm:
    """Scales the gradient so that its Euclidean norm over all leaves is at most the limit."""

    limit: Any

    def __call__(self, g: PyTree) -> PyTree:
        """The gradient within the limit."""
        square: Any = 0.0
        for x in tree_leaves(g):
            square = sum(x * x) + square
        over = square > self.limit * self.limit
        # No root is taken of a norm within the limit: the root has no derivative at 0.
        factor = where(over, self.limit / sqrt(where(over, square, 1.0)), 1.0)
        return tree_map(lambda x: x * factor, g)


def clip_by_value(limit: Any) -> ClipByValue:
    """A gradient transform: every element of the gradient is limited to [-limit, limit].

    Args:
        limit: a number > 0, or an array or Tensor without axes, which may be a hyperparameter.
    Returns: what an optimiser takes as `clip`.
    Raises: ArgumentError for a number that is not positive.
    Rules: beyond the limit, the derivative in the element is 0, and in the limit the element's sign. At the limit they are 1 and 0.
    Cost: two passes over the gradient.
    Example:
        >>> w, state = hg.SGD(lr=1.0, clip=hg.clip_by_value(1.0)).step(np.zeros(2), None, np.array([3.0, -0.5]), 0)
        >>> w
        array([-1. ,  0.5])
    """
    return ClipByValue(_checked("clip_by_value", limit))


def clip_by_norm(limit: Any) -> ClipByNorm:
    """A gradient transform: the gradient is scaled down to the Euclidean norm `limit`, over all leaves together, if it is longer.

    Args:
        limit: a number > 0, or an array or Tensor without axes, which may be a hyperparameter.
    Returns: what an optimiser takes as `clip`.
    Raises: ArgumentError for a number that is not positive.
    Rules: any order; a gradient of length 0 has a derivative.
    Cost: two passes over the gradient. Source: Pascanu et al. 2013, arXiv:1211.5063.
    Example:
        >>> w, state = hg.SGD(lr=1.0, clip=hg.clip_by_norm(1.0)).step(np.zeros(2), None, np.array([3.0, 4.0]), 0)
        >>> w
        array([-0.6, -0.8])
    """
    return ClipByNorm(_checked("clip_by_norm", limit))
