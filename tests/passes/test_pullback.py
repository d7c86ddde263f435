"""A pullback of a run after arrays were written to: the right number or an error, whatever was called before."""

import numpy as np
import pytest

import hypergrad as hg
from hypergrad.errors import DifferentiationError


@pytest.mark.parametrize(
    "f",
    [
        lambda w: hg.sum(hg.unroll(lambda w, h, b: hg.sum(w * w), w, (), [], optimizer=hg.SGD(lr=0.1)) ** 3),
        lambda w: hg.sum(hg.scan(lambda s, h, b: (s, None), w, (), [])[0] ** 3),
        lambda w: hg.sum(hg.scan(lambda s, h, b: (s, None), w, (), [0])[0] ** 3),
        lambda w: hg.sum(hg.grad(lambda v: hg.sum(v**3))(w)),
        lambda w: hg.sum(w**3),
    ],
    ids=["unroll of no step", "scan of no step", "scan that changes nothing", "gradient inside", "op"],
)
def test_an_array_that_is_handed_on_as_it_is_may_not_be_written_to(f):
    w = np.ones(2)
    _, pullback = hg.vjp(f, w)
    first = pullback(np.ones(()))[0]
    w[...] = 5.0
    with pytest.raises(DifferentiationError, match="written to since"):
        pullback(np.ones(()))
    w[...] = 1.0
    np.testing.assert_array_equal(pullback(np.ones(()))[0], first)


@pytest.mark.parametrize("checkpoints", ["all", "sqrt", 1, "host"])
@pytest.mark.parametrize("called_before", [False, True])
def test_a_refused_pullback_leaves_the_run_as_it_was(called_before, checkpoints):
    """Data that the loss closes over are written to: refused as often as it is asked, and right once they are back."""
    x, one = np.ones((2, 2)), np.ones(())

    def f(w):
        return hg.sum(
            hg.unroll(
                lambda w, h, b: hg.mean((x @ w - 1.0) ** 2),
                w,
                (),
                hg.full_batch(None, 4),
                optimizer=hg.SGD(lr=0.1),
                checkpoints=checkpoints,
            )
        )

    right = hg.grad(f)(np.full(2, 0.3))
    _, pullback = hg.vjp(f, np.full(2, 0.3))
    if called_before:
        np.testing.assert_array_equal(pullback(one)[0], right)
    x[0, 0] = 2.0
    for _ in range(3):
        with pytest.raises(DifferentiationError, match="the inner loss of step"):
            pullback(one)
    x[0, 0] = 1.0
    for _ in range(2):
        np.testing.assert_array_equal(pullback(one)[0], right)
