"""Constraints: maps onto the set with right derivatives and inverses, projections against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hypergrad as hg
from hypergrad.constraints import Box, Budget, Positive, Simplex, by_name
from hypergrad.errors import ArgumentError
from hypergrad.testing import check_gradients

RNG = np.random.default_rng(0)
SETS = {
    "positive": (Positive(), lambda y: (y > 0).all()),
    "box": (Box(-1.0, 3.0), lambda y: ((y >= -1) & (y <= 3)).all()),
    "simplex": (Simplex(2.0), lambda y: (y >= 0).all() and np.allclose(y.sum(-1), 2.0)),
    "budget": (Budget(1.5), lambda y: ((y >= 0) & (y <= 1)).all() and y.sum() <= 1.5 * (1 + 1e-6)),
    "loose budget": (Budget(50.0), lambda y: ((y >= 0) & (y <= 1)).all()),
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_maps_lie_in_the_set_and_have_an_inverse(name, dtype):
    constraint, holds = SETS[name]
    x = RNG.standard_normal((3, 4)).astype(dtype)
    y = constraint(x).value
    assert y.dtype == dtype and y.shape == x.shape and holds(y)
    again = constraint(constraint.inverse(y)).value
    if name != "budget":  # it scales down: the inverse finds another x of the same y only inside of the budget
        np.testing.assert_allclose(again, y, rtol=1e-5 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("name", SETS)
def test_derivatives_of_the_maps(name):
    weights = RNG.standard_normal((3, 4))
    check_gradients(lambda x: hg.sum(SETS[name][0](x) * weights), RNG.standard_normal((3, 4)))


points = st.lists(st.floats(-3, 3), min_size=1, max_size=6)


@pytest.mark.parametrize("name", SETS)
@settings(max_examples=60, deadline=None)
@given(points, st.integers(0, 2**32 - 1))
def test_a_projection_is_the_nearest_point(name, x, seed):
    constraint, holds = SETS[name]
    x = np.array(x)
    y = constraint.project(x)
    assert y.shape == x.shape and holds(y + (1e-300 if name == "positive" else 0))
    np.testing.assert_allclose(constraint.project(y), y, atol=1e-12)  # a point of the set stays
    others = np.random.default_rng(seed).standard_normal((200, len(x))) * 2
    for z in others:
        z = constraint(z).value  # any point of the set is no nearer: (x - y) . (z - y) <= 0
        assert (x - y) @ (z - y) <= 1e-9


def test_projections_keep_dtype_and_input():
    for constraint, _ in SETS.values():
        x = RNG.standard_normal((2, 5)).astype(np.float32)
        before = x.copy()
        y = constraint.project(x)
        assert y.dtype == np.float32 and np.array_equal(x, before) and not np.shares_memory(x, y)


def test_by_name():
    project = by_name(lr=Positive(0.1), weight=Budget(1.0))
    found = project({"lr": np.array(-1.0), "weight": np.ones(4), "free": np.array([-5.0])})
    assert found["lr"] == 0.1 and found["weight"].sum() == pytest.approx(1.0) and found["free"] == [-5.0]
    with pytest.raises(ArgumentError, match="by_name: hparams have free, expected lr, weight among them"):
        project({"free": np.ones(1)})


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Box(1.0, 1.0), "Box: low is 1.0 and high is 1.0"),
        (lambda: Budget(0.0), "Budget: total is 0.0"),
        (lambda: Positive().inverse(np.array([0.0, 1.0])), "Positive: y has elements outside of the set, expected numbers > 0"),
        (lambda: Box().inverse(np.array([1.5])), "Box: y has elements outside"),
        (lambda: Simplex().inverse(np.array([0.5, 0.6])), "Simplex: y has elements outside"),
        (lambda: Budget(1.0).inverse(np.array([0.7, 0.7])), "Budget: y has elements outside"),
    ],
)
def test_refusals(make, text):
    with pytest.raises(ArgumentError, match=text):
        make()
