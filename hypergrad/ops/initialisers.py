"""Random initial weights, as NumPy arrays: Glorot's, He's and orthogonal ones.

The last two axes of a shape are inputs and outputs; axes in front of them are those of a filter, (R, S, C, K). With n_in = R S C and
n_out = R S K, Glorot & Bengio 2010 (AISTATS) have the variance 2 / (n_in + n_out), He et al. 2015 (arXiv:1502.01852) 2 / n_in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backends import Array
from ..errors import ArgumentError
from .arguments import dtype_of, integers, number, shown
from .arrays import SHAPE

__all__ = ["glorot_normal", "glorot_uniform", "he_normal", "he_uniform", "orthogonal"]


def _drawn(name: str, seed: Any, shape: Any, dtype: Any) -> tuple[np.random.Generator, tuple[int, ...], np.dtype[Any]]:
    """The generator, the shape and the dtype. Raises: errors that name the argument."""
    sizes = integers(name, "shape", shape, SHAPE)
    if len(sizes) < 2 or min(sizes) < 1:
        wanted = "(..., inputs, outputs), each >= 1,"
        raise ArgumentError(f"{name}: shape has {shown(shape)}, expected {wanted} because the scale depends on them; pass such a shape")
    kind = dtype_of(name, dtype, "f", "float32 or float64", "weights have derivatives")
    if isinstance(seed, np.random.Generator):
        return seed, sizes, kind
    whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool) and seed >= 0
    if not whole:
        raise ArgumentError(f"{name}: seed has {shown(seed)}, expected an integer >= 0 or a Generator because weights are drawn; pass one")
    return np.random.default_rng(seed), sizes, kind


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
    field = math.prod(shape[:-2])
    return field * shape[-2], field * shape[-1]


def glorot_uniform(seed: Any, shape: Sequence[int], dtype: Any = np.float64) -> Array:
    """Uniform numbers of Glorot's variance, 2 / (n_in + n_out).

    Args:
        seed: integer >= 0, or a numpy.random.Generator, which moves on.
        shape: (..., inputs, outputs).
        dtype: float32 or float64.
    Returns: array.
    Raises: ArgumentError or DTypeError for another shape, seed or dtype.
    Example:
        >>> w = hg.glorot_uniform(0, (3, 3, 16, 32))
        >>> w.shape, bool(abs(w).max() <= np.sqrt(6 / (9 * (16 + 32))))
        ((3, 3, 16, 32), True)
    """
    rng, sizes, kind = _drawn("glorot_uniform", seed, shape, dtype)
    limit = math.sqrt(6 / math.fsum(_fans(sizes)))
    return rng.uniform(-limit, limit, sizes).astype(kind)


def glorot_normal(seed: Any, shape: Sequence[int], dtype: Any = np.float64) -> Array:
    """Normal numbers of Glorot's variance, 2 / (n_in + n_out); arguments and errors as `glorot_uniform`.

    Args, Returns: seed, shape, dtype as there.
    Example:
        >>> float(hg.glorot_normal(0, (784, 10)).std().round(2))
        0.05
    """
    rng, sizes, kind = _drawn("glorot_normal", seed, shape, dtype)
    return (math.sqrt(2 / math.fsum(_fans(sizes))) * rng.standard_normal(sizes)).astype(kind)


def he_uniform(seed: Any, shape: Sequence[int], dtype: Any = np.float64) -> Array:
    """Uniform numbers of He's variance, 2 / n_in, for layers with relu; arguments and errors as `glorot_uniform`.

    Args, Returns: seed, shape, dtype as there.
    Example:
        >>> w = hg.he_uniform(0, (784, 100))
        >>> w.shape, bool(abs(w).max() <= np.sqrt(6 / 784))
        ((784, 100), True)
    """
    rng, sizes, kind = _drawn("he_uniform", seed, shape, dtype)
    limit = math.sqrt(6 / _fans(sizes)[0])
    return rng.uniform(-limit, limit, sizes).astype(kind)


def he_normal(seed: Any, shape: Sequence[int], dtype: Any = np.float64) -> Array:
    """Normal numbers of He's variance, 2 / n_in, for layers with relu; arguments and errors as `glorot_uniform`.

    Args, Returns: seed, shape, dtype as there.
    Example:
        >>> float(hg.he_normal(0, (784, 100)).std().round(2))
        0.05
    """
    rng, sizes, kind = _drawn("he_normal", seed, shape, dtype)
    return (math.sqrt(2 / _fans(sizes)[0]) * rng.standard_normal(sizes)).astype(kind)


def orthogonal(seed: Any, shape: Sequence[int], gain: float = 1.0, dtype: Any = np.float64) -> Array:
    """A random matrix with orthonormal columns (rows, where it has fewer rows), times a gain. Axes before the last count as rows.

    Args:
        seed: integer >= 0, or a numpy.random.Generator, which moves on.
        shape: (..., inputs, outputs).
        gain: factor, a number.
        dtype: float32 or float64.
    Returns: array.
    Raises: ArgumentError or DTypeError for another shape, seed, gain or dtype.
    Source: Saxe et al. 2014, arXiv:1312.6120; uniform over all such matrices by the signs of Mezzadri 2007, arXiv:math-ph/0609050.
    Example:
        >>> w = hg.orthogonal(0, (4, 3))
        >>> bool(np.allclose(w.T @ w, np.eye(3)))
        True
    """
    rng, sizes, kind = _drawn("orthogonal", seed, shape, dtype)
    factor = number("orthogonal", "gain", gain, "a number", "it multiplies the matrix", -math.inf)
    rows, columns = math.prod(sizes[:-1]), sizes[-1]
    q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
    q = q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
    return (factor * (q if rows >= columns else q.T)).reshape(sizes).astype(kind)
