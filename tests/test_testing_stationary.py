"""The check of a problem at stationary points: no false alarm where terms cancel, and faults beside them are still found."""

from dataclasses import replace

import numpy as np
import pytest

import hypergrad as hg
from hypergrad.testing import check_gradients, check_hypergrad

RNG = np.random.default_rng(0)
X, XV, YV = RNG.standard_normal((12, 3)), RNG.standard_normal((8, 3)), RNG.standard_normal(8)
TRUTH, W0 = RNG.standard_normal(3), RNG.standard_normal(3)
LABELS = np.arange(8) % 3


def regression(y):
    return lambda w, h, b: hg.mean((X @ w - y) ** 2)


def validation(w, h):
    return hg.mean((XV @ w - YV) ** 2)


NOISY = regression(X @ TRUTH + 0.3 * RNG.standard_normal(12))


def at_the_outer_optimum(scale=1.0):
    """The outer objective is as small as it gets: its gradient in w_T is zero."""
    problem = hg.Bilevel(NOISY, lambda w, h: 0.0 * w[0], lambda h: h["w0"], lambda h: hg.SGD(lr=h["lr"], momentum=0.5))
    hparams, batches = {"lr": np.float64(0.1), "w0": W0}, hg.full_batch(None, 4)
    target = hg.reverse(problem, hparams, batches).params
    return replace(problem, outer_loss=lambda w, h: scale * hg.sum((w - target) ** 2)), hparams, batches


def at_the_inner_minimum():
    """The inner loss is zero at w_0, so nothing moves: the step size and the momentum have no effect."""
    problem = hg.Bilevel(regression(X @ TRUTH), validation, lambda h: h["w0"], lambda h: hg.SGD(lr=h["lr"], momentum=h["momentum"]))
    return problem, {"lr": np.float64(0.1), "momentum": np.float64(0.7), "w0": TRUTH}, hg.full_batch(None, 4)


def converged():
    """The run has come to rest: how it got there has no effect any more."""
    problem = hg.Bilevel(NOISY, validation, lambda h: h["w0"], lambda h: hg.SGD(lr=h["lr"], momentum=0.5))
    return problem, {"lr": np.float64(0.3), "w0": W0}, hg.full_batch(None, 150)


def invariant_to_a_shift():
    """A number that is added to all logits changes no probability."""

    def inner(w, h, b):
        return hg.mean(hg.softmax_cross_entropy(XV @ w + h["shift"], LABELS))

    problem = hg.Bilevel(
        inner, lambda w, h: inner(0.5 * w, h, None) + 0.1 * hg.sum(w * w), lambda h: np.zeros((3, 3)), lambda h: hg.SGD(lr=h["lr"])
    )
    return problem, {"shift": np.float64(1.3), "lr": np.float64(0.3)}, hg.full_batch(None, 4)


def invariant_to_a_gain():
    """A factor in front of a normalisation changes nothing."""

    def inner(w, h, b):
        scores = h["gain"] * (X @ w)
        return hg.mean((scores / hg.sqrt(hg.sum(scores * scores)) - 0.1) ** 2)

    return (
        hg.Bilevel(inner, validation, lambda h: W0, lambda h: hg.SGD(lr=h["lr"])),
        {"gain": np.float64(2.0), "lr": np.float64(0.3)},
        hg.full_batch(None, 4),
    )


def with_a_direct_term_that_cancels(off=0.0, cut=lambda x: x):
    """The outer loss holds hyperparameters with just the factor that takes the effect of training back."""
    problem = hg.Bilevel(NOISY, validation, lambda h: h["w0"], lambda h: hg.SGD(lr=h["lr"]))
    hparams, batches = {"lr": np.float64(0.1), "w0": W0}, hg.full_batch(None, 4)
    g = hg.reverse(problem, hparams, batches).grad

    def outer(w, h):
        return validation(w, h) - (g["lr"] + off) * h["lr"] - hg.sum(g["w0"] * h["w0"])

    return replace(problem, outer_loss=outer, optimizer=lambda h: hg.SGD(lr=cut(h["lr"]))), hparams, batches


def with_value_zero():
    """What training gains on a baseline that is the same: the objective itself is zero, its derivative is not."""
    problem = hg.Bilevel(NOISY, validation, lambda h: h["w0"], lambda h: hg.Adam(lr=h["lr"]))
    hparams, batches = {"lr": np.float64(0.1), "w0": W0}, hg.full_batch(None, 4)
    base = float(hg.reverse(problem, hparams, batches).value)
    return replace(problem, outer_loss=lambda w, h: validation(w, h) - base), hparams, batches


def at_the_origin():
    """Inner and outer objective are even in w, and w_0 is zero: nothing has an effect."""

    def inner(w, h, b):
        return 0.1 * hg.mean(hg.exp(X @ w) + hg.exp(-(X @ w))) + h["decay"] * hg.sum(w * w)

    return (
        hg.Bilevel(
            inner,
            lambda w, h: hg.sum(hg.exp(w * w)) + hg.mean((hg.exp(XV @ w) - hg.exp(-(XV @ w))) ** 2),
            lambda h: h["w0"],
            lambda h: hg.SGD(lr=h["lr"]),
        ),
        {"decay": np.float64(0.1), "lr": np.float64(0.1), "w0": np.zeros(3)},
        hg.full_batch(None, 4),
    )


STATIONARY = {
    f.__name__: f
    for f in (
        at_the_outer_optimum,
        at_the_inner_minimum,
        converged,
        invariant_to_a_shift,
        invariant_to_a_gain,
        with_a_direct_term_that_cancels,
        with_value_zero,
        at_the_origin,
    )
}
STATIONARY["at the outer optimum, small"] = lambda: at_the_outer_optimum(1e-12)
STATIONARY["at the outer optimum, large"] = lambda: at_the_outer_optimum(1e12)


@pytest.mark.parametrize("name", STATIONARY)
def test_a_stationary_point_is_no_false_alarm(name):
    for seed in range(1 if name == "converged" else 3):
        check_hypergrad(*STATIONARY[name](), seed=seed, checkpoints=["all"], directions=1)


def test_they_are_stationary():
    """The derivatives that are compared are what is left of terms that are larger by many orders of magnitude."""
    for name in set(STATIONARY) - {"with_value_zero"}:
        problem, hparams, batches = STATIONARY[name]()
        r = hg.reverse(problem, hparams, batches)
        smallest = min(np.abs(g).max() for g in r.grad.values())
        assert smallest <= 1e-14 * (1e12 if "large" in name else 1.0), name
    assert abs(hg.reverse(*with_value_zero()).value) <= 1e-15


@pytest.mark.parametrize(
    "f",
    [
        lambda x: hg.mean(hg.softmax_cross_entropy(XV @ np.eye(3) + x["a"], LABELS)),
        lambda x: hg.sum((x["a"] - 1.3) ** 2),
        lambda x: hg.sum((X * x["a"]) / hg.sqrt(hg.sum((X * x["a"]) ** 2))),
        lambda x: hg.exp(x["a"]) - float(np.exp(1.3)) * x["a"],
    ],
)
def test_a_function_at_a_stationary_point_is_no_false_alarm(f):
    check_gradients(f, {"a": np.float64(1.3)})


# --- faults beside stationary points ----------------------------------------------------------------------


@pytest.mark.parametrize("off", [0.0, 1e-3, 1e-5])
def test_a_cut_that_a_direct_term_would_hide(off):
    problem = with_a_direct_term_that_cancels(off, lambda x: hg.stop_gradient(x))
    with pytest.raises(AssertionError, match=r"hparams\['lr'\].*a value detached .* in optimizer at step 0"):
        check_hypergrad(*problem)


@pytest.mark.parametrize("off", [1e-2, 1e-4, 1e-6])
def test_a_fault_as_small_as_the_distance_from_the_optimum(off):
    """The whole derivative is as small as the distance, and it is cut."""
    problem, hparams, batches = at_the_outer_optimum()
    cut = replace(problem, optimizer=lambda h: hg.SGD(lr=hg.stop_gradient(h["lr"]), momentum=0.5))
    moved = {**hparams, "lr": hparams["lr"] * (1 + off)}
    check_hypergrad(problem, moved, batches, directions=1)
    with pytest.raises(AssertionError, match=r"hparams\['lr'\].*a value detached .* in optimizer at step 0"):
        check_hypergrad(cut, moved, batches)


@pytest.mark.parametrize("off", [1e-2, 1e-4, 1e-6])
def test_a_cut_weight_beside_the_minimum_of_the_inner_loss(off):
    problem, hparams, batches = at_the_inner_minimum()

    def cut(w, h, b):
        return hg.mean((X @ w - X @ TRUTH) * (X @ hg.stop_gradient(w) - X @ TRUTH))

    moved = {**hparams, "w0": TRUTH * (1 + off)}
    check_hypergrad(problem, moved, batches, directions=1)
    with pytest.raises(AssertionError, match="gradient along a random direction of w.*a value detached .* in inner_loss at step 0"):
        check_hypergrad(replace(problem, inner_loss=cut), moved, batches)


@pytest.mark.parametrize("name", ["shift", "gain"])
def test_a_hyperparameter_that_is_cut_in_one_of_the_places_that_cancel(name):
    problem, hparams, batches = {"shift": invariant_to_a_shift, "gain": invariant_to_a_gain}[name]()
    inner = problem.inner_loss

    def cut(w, h, b):
        return inner(w, h, b) + 1e-7 * (h[name] - hg.stop_gradient(h[name])) * hg.sum(w * w) + 1e-4 * hg.sum(w * hg.stop_gradient(h[name]))

    with pytest.raises(AssertionError, match=rf"hparams\['{name}'\].*a value detached .* inner_loss at step 0"):
        check_hypergrad(replace(problem, inner_loss=cut), hparams, batches)
