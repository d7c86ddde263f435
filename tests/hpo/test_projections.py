"""The projection onto the capped box against a solver that knows nothing of it."""

import numpy as np
import pytest

from hypergrad.hpo.projections import capped_box


def brute_force(x, total):
    """The nearest point by trying every multiplier at which an element meets a bound, and the linear pieces between them."""
    best, least = None, np.inf
    ends = np.unique(np.concatenate([[0.0], x, x - 1.0]))
    ends = ends[ends >= 0.0]
    for low, high in zip(ends, [*ends[1:], ends[-1] + 1.0], strict=True):
        middle = 0.5 * (low + high)
        moved = x - middle
        free = (moved > 0) & (moved < 1)
        candidates = [low, high]
        if free.any():
            candidates.append((x[free].sum() + (moved >= 1).sum() - total) / free.sum())
        for mu in candidates:
            y = np.clip(x - max(mu, 0.0), 0.0, 1.0)
            distance = ((x - y) ** 2).sum()
            if y.sum() <= total + 1e-12 and distance < least:
                best, least = y, distance
    return best


@pytest.mark.parametrize("seed", range(40))
def test_it_is_the_nearest_point(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 9))
    x, total = rng.uniform(-1.0, 2.5, n), float(rng.uniform(0.05, n))
    y = capped_box(x, total)
    assert y.min() >= 0 and y.max() <= 1 and y.sum() <= total * (1 + 1e-12)
    np.testing.assert_allclose(y, brute_force(x, total), atol=1e-12)
    for _ in range(200):  # no point of the set is nearer
        z = rng.uniform(0, 1, n)
        z *= min(1.0, total / z.sum())
        assert ((x - y) ** 2).sum() <= ((x - z) ** 2).sum() + 1e-12
        assert np.dot(x - y, z - y) <= 1e-9  # and the variational inequality holds


def test_a_point_inside_stays_and_a_projection_is_its_own():
    x = np.array([0.1, 0.5, 0.0, 1.0])
    assert np.array_equal(capped_box(x, 2.0), x) and capped_box(x, 2.0) is not x
    y = capped_box(10 * x, 1.5)
    np.testing.assert_allclose(capped_box(y, 1.5), y, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ties_large_sizes_and_dtypes(dtype):
    assert np.array_equal(capped_box(np.full(4, 3.0, dtype), 1.0), np.full(4, 0.25, dtype))
    assert np.array_equal(capped_box(np.array([5.0, 5.0, 0.0], dtype), 2.0), np.array([1.0, 1.0, 0.0], dtype))
    x = np.random.default_rng(0).standard_normal(5000).astype(dtype)
    y = capped_box(x, 500.0)
    assert y.dtype == dtype and abs(float(y.astype(np.float64).sum()) - 500.0) < 1e-3
