"""Inner losses that hold a constant cut out of the weights, and ops whose rules are no derivatives: every pass agrees on what they mean."""

import numpy as np
import optree
import pytest

import hypergrad as hg
from hypergrad.rules import REGISTRY, Op, elementwise, linear
from hypergrad.tape import Tensor

pytestmark = pytest.mark.usefixtures("planted")

A = np.array([0.7, -0.4, 1.3])
B = np.array([[0.5, -1.0, 0.2], [0.3, 0.8, -0.6]])


def value_of(t):
    return Tensor(t.value)


CUTS = {"stop_gradient": hg.stop_gradient, "detach": lambda t: t.detach(), "value": value_of, "value as an array": lambda t: t.value}

LOSSES = {
    "a factor": lambda w, h, cut: hg.sum(w * cut(w) * h["a"]),
    "a target": lambda w, h, cut: hg.sum((w - cut(hg.tanh(w) * 0.5)) ** 2 * h["a"]),
    "a normaliser": lambda w, h, cut: hg.sum(w * w * h["a"]) / cut(hg.sum(w * w) + 1.0),
    "straight through": lambda w, h, cut: hg.sum((w + cut(w * w * w - w)) ** 2 * h["a"]),
    "a weight per example": lambda w, h, cut: hg.sum(hg.softplus(B @ w) * cut(hg.sigmoid(B @ w))) + hg.sum(h["a"] * w * w),
    "both factors": lambda w, h, cut: hg.sum(cut(w) * cut(h["a"]) * w * h["a"]),
    "of a hyperparameter": lambda w, h, cut: hg.sum(w * w * cut(h["a"])) + hg.sum(h["a"] * hg.exp(0.3 * w)),
    "of a product": lambda w, h, cut: hg.sum(cut(w * h["a"]) * hg.exp(0.3 * w)),
    "in a branch of where": lambda w, h, cut: hg.sum(hg.where(A > 0, w * w, cut(w) * w * h["a"])),
    "a step of its own": lambda w, h, cut: hg.sum((w - cut(w - 0.1 * 2.0 * w * h["a"])) ** 2),
    "a gradient inside": lambda w, h, cut: hg.sum(hg.grad(lambda x: hg.sum(x * x * cut(x) * h["a"]))(w) * w),
    "everything": lambda w, h, cut: hg.sum(cut(w) * cut(h["a"])) + 0.5 * hg.sum(w * w) * 0.1,
}


def descend(loss, h, n_steps):
    """The same run as a Python loop, which every tape differentiates as it is."""
    w, v = h["w0"], 0.0 * h["w0"]
    for _ in range(n_steps):
        g = hg.grad(lambda w: loss(w, h))(w)
        v = h["mu"] * v + g
        w = w - h["lr"] * v
    return w


def hparams():
    return {"a": np.array([0.6, 1.1, 0.8]), "lr": np.array(0.1), "mu": np.array(0.4), "w0": A}


def outer(w, h):
    return hg.sum(w * w * np.array([1.0, 2.0, -0.5])) + hg.sum(h["a"])


def assert_equal(got, expected, what):
    for k in expected:
        np.testing.assert_allclose(got[k], expected[k], rtol=1e-12, atol=1e-13, err_msg=f"{what}: {k}")


def check(loss):
    """Reverse under every policy, forward mode, and both nestings of a Python loop."""
    problem = hg.Bilevel(lambda w, h, b: loss(w, h), outer, lambda h: h["w0"], lambda h: hg.SGD(lr=h["lr"], momentum=h["mu"]))
    h, steps = hparams(), hg.full_batch(None, 4)
    expected = hg.grad(lambda h: outer(descend(loss, h, 4), h))(h)
    first = hg.reverse(problem, h, steps)
    assert_equal(first.grad, expected, "reverse")
    for policy in ("sqrt", 1, 2):
        again = hg.reverse(problem, h, steps, checkpoints=policy).grad
        assert all(again[k].tobytes() == first.grad[k].tobytes() for k in h), policy
    assert_equal(hg.forward(problem, h, steps).grad, expected, "forward")
    along = optree.tree_map(lambda x: np.cos(np.arange(x.size)).reshape(x.shape), h)
    _, slope = hg.jvp(lambda h: outer(descend(loss, h, 4), h), (h,), (along,))
    np.testing.assert_allclose(slope, sum(np.sum(expected[k] * along[k]) for k in h), rtol=1e-12)
    return first


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", LOSSES)
def test_a_cut_is_a_constant_to_every_derivative(name, cut):
    check(lambda w, h: LOSSES[name](w, h, CUTS[cut]))


@pytest.mark.parametrize("name", LOSSES)
def test_a_cut_changes_the_hypergradient(name):
    """Or the test above would show nothing."""
    cut, whole = (
        hg.grad(lambda h, c=c: outer(descend(lambda w, h: LOSSES[name](w, h, c), h, 4), h))(hparams())
        for c in (hg.stop_gradient, lambda t: t)
    )
    assert any(not np.allclose(cut[k], whole[k], rtol=1e-3) for k in cut)


def test_by_hand():
    """L = sum(w cut(w) a), one step: w_1 = w - lr w a, in which the second w is a constant."""
    problem = hg.Bilevel(
        lambda w, h, b: hg.sum(w * hg.stop_gradient(w) * h["a"]), lambda w, h: hg.sum(w), lambda h: h["w"], lambda h: hg.SGD(lr=0.5)
    )
    r = hg.reverse(problem, {"a": np.array(0.8), "w": A}, hg.full_batch(None, 1))
    np.testing.assert_allclose(r.grad["a"], -0.5 * A.sum(), rtol=1e-14)
    np.testing.assert_allclose(r.grad["w"], np.ones(3), rtol=1e-14)


def test_stop_gradient_takes_trees_and_arrays_and_is_zero_in_both_modes():
    x = {"a": A, "b": [B]}
    assert all(
        not g.any()
        for g in optree.tree_leaves(hg.grad(lambda x: sum(hg.sum(y * y) for y in optree.tree_leaves(hg.stop_gradient(x))) * 1.0)(x))
    )
    assert hg.jvp(lambda x: hg.sum(hg.stop_gradient(x) * x), (A,), (np.ones(3),))[1] == pytest.approx(A.sum())
    assert not hg.hvp(lambda x: hg.sum(hg.stop_gradient(x) * x), (A,), (np.ones(3),))[2][0].any()
    assert type(hg.stop_gradient(A)) is Tensor


# --- rules that are no derivatives: the Hessian need not be symmetric -------------------------------------------------


def identity(b, x, *rest, **attrs):
    return x


def declared():
    """Losses with ops declared here, by name."""
    rounded = Op("rounded", lambda b, x: np.round(x * 4) / 4, vjp=(lambda bar, out, x: bar,), jvp=(lambda dot, out, x: dot,))
    softened = elementwise("softened", lambda b, x: np.round(x * 4) / 4, lambda out, x: 1.0 - hg.tanh(x) ** 2)
    # Each partial derivative is that of something, and together they are that of nothing: x y against 2 x.
    twisted = elementwise("twisted", lambda b, x, y: x * y, lambda out, x, y: y, lambda out, x, y: 2.0 * x)
    turned = linear("turned", lambda b, x, lead: x, lambda bar, x, lead: turned_back(bar, lead=lead))
    turned_back = linear("turned_back", lambda b, x, lead: x[..., [1, 2, 0]], lambda bar, x, lead: turned(bar, lead=lead))
    return {
        "straight-through rounding": lambda w, h: hg.sum((rounded(w) - h["a"]) ** 2),
        "softened rounding": lambda w, h: hg.sum(softened(w * h["a"]) ** 2),
        "partials of nothing": lambda w, h: hg.sum(twisted(w[[1, 2, 0]], w) * h["a"]) + 0.3 * hg.sum(w * w),
        "partials of nothing, with a hyperparameter": lambda w, h: hg.sum(twisted(w, h["a"]) ** 2),
    }


@pytest.mark.parametrize(
    "name", ["straight-through rounding", "softened rounding", "partials of nothing", "partials of nothing, with a hyperparameter"]
)
def test_rules_that_are_no_derivatives_are_differentiated_as_they_stand(name):
    check(declared()[name])


def test_the_symmetric_pass_would_be_wrong_for_them():
    """Why such losses go through the tape: with the shortcut the numbers differ."""
    loss = declared()["partials of nothing"]
    right = check(loss).grad["w0"]
    REGISTRY["twisted"].proven = True
    problem = hg.Bilevel(lambda w, h, b: loss(w, h), outer, lambda h: h["w0"], lambda h: hg.SGD(lr=h["lr"], momentum=h["mu"]))
    assert not np.allclose(hg.reverse(problem, hparams(), hg.full_batch(None, 4)).grad["w0"], right, rtol=1e-3)


def test_the_packages_own_ops_are_proven_and_others_are_not():
    assert all(op.proven for op in REGISTRY.values())
    assert not Op("mine", identity, vjp=(lambda bar, out, x: bar,), jvp=(lambda dot, out, x: dot,)).proven
