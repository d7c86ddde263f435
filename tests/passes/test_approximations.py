"""The named approximations: T1-T2, DrMAD, finite differences and first order, each against a closed form and against reverse mode."""

import sys
import warnings

import numpy as np
import optree
import pretended
import pytest
from hyper_problems import hyper_cleaning, mlp, quadratic, quadratic_exact
from places import needs_emulator

import hypergrad as hg
from hypergrad.errors import ArgumentError, DifferentiationError

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((30, 6)), RNG.standard_normal(30)
XV, YV = RNG.standard_normal((20, 6)), RNG.standard_normal(20)
LAM = {"log_rho": RNG.uniform(-1, 0, 6), "offset": np.array(0.3)}
W = {"a": RNG.standard_normal((2, 2)), "b": RNG.standard_normal(2)}  # far from any solution


def whole(w):
    return hg.concatenate([hg.reshape(w["a"], 4), w["b"]])


def inner(w, h, batch):
    w = whole(w)
    return 0.5 * hg.mean((X @ w - Y - h["offset"]) ** 2) + 0.5 * hg.sum(hg.exp(h["log_rho"]) * w**2)


def outer(w, h):
    return 0.5 * hg.mean((XV @ whole(w) - YV) ** 2) + 0.01 * hg.sum(h["log_rho"] ** 2)


def ridge(outer=outer, lr=0.3, start=W):
    return hg.Bilevel(inner, outer, lambda h: start, lambda h: hg.SGD(lr=lr))


def close(a, b, tolerance):
    for x, y in zip(optree.tree_leaves(a), optree.tree_leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


# --- T1-T2 ----------------------------------------------------------------------------------------


def test_t1t2_is_one_step_back_at_any_weights():
    """dE/dlambda - lr H_lambda,w dE/dw, without a warning where w is no solution."""
    w = np.concatenate([W["a"].ravel(), W["b"]])
    bar = XV.T @ (XV @ w - YV) / len(XV)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        r = hg.t1t2(ridge(), LAM, W, None, lr=0.2)
    close(r.grad["log_rho"], 0.02 * LAM["log_rho"] - 0.2 * np.exp(LAM["log_rho"]) * w * bar, 1e-13)
    close(r.grad["offset"], 0.2 * X.mean(0) @ bar, 1e-13)
    close((r.value, r.params), (outer(W, LAM).value, W), 1e-14)
    assert r.stats.mode == "t1t2" and r.report.products == 1 and r.state is None and r.losses.shape == (1,)


def test_t1t2_equals_reverse_through_the_last_step():
    """At any weights where dE/dw is the same after the step; and with any E where the step does not move them."""
    linear = ridge(lambda w, h: hg.sum(w["a"]) - 2.0 * w["b"][1] + 0.1 * hg.sum(h["log_rho"] ** 2), lr=0.2)
    last = hg.reverse(linear, LAM, hg.full_batch(None, 7), last=1)
    before = hg.reverse(linear, LAM, hg.full_batch(None, 6)).params
    close(hg.t1t2(linear, LAM, before, None, lr=0.2).grad, last.grad, 1e-13)
    solved = hg.reverse(ridge(), LAM, hg.full_batch(None, 400)).params
    last = hg.reverse(ridge(start=solved), LAM, hg.full_batch(None, 1), last=1)
    close(hg.t1t2(ridge(), LAM, solved, None, lr=0.3).grad, last.grad, 1e-12)


def test_t1t2_on_an_outer_minibatch_and_on_a_gpu(monkeypatch):
    problem = hg.Bilevel(inner, lambda w, h, scale: scale * outer(w, h), None, None)
    host = hg.t1t2(problem, LAM, W, None, lr=0.2, outer_batch=3.0)
    close(host.value, 3 * hg.t1t2(ridge(), LAM, W, None, lr=0.2).value, 1e-14)
    square = hg.Bilevel(lambda w, h, b: h * hg.sum(w**4), lambda w, h: hg.sum(w), None, None)
    with pretended.gpu(monkeypatch):
        asarray = sys.modules["cupy"].asarray
        r = hg.t1t2(square, asarray(np.array(0.5)), asarray(np.ones(3)), None, lr=0.1)
        assert isinstance(r.grad, type(asarray(np.ones(3)))) and r.grad.get() == pytest.approx(-0.1 * 12)


def test_what_t1t2_refuses():
    with pytest.raises(ArgumentError, match="t1t2: lr has 0.0, expected a number > 0"):
        hg.t1t2(ridge(), LAM, W, None, lr=0.0)
    with pytest.raises(DifferentiationError, match=r"t1t2: hparams\['lr'\] is read by neither"):
        hg.t1t2(ridge(), {**LAM, "lr": np.array(0.1)}, W, None, lr=0.1)
    with pytest.raises(ArgumentError, match="t1t2: problem has a running_loss"):
        hg.t1t2(hg.Bilevel(inner, outer, None, None, lambda w, h, t: outer(w, h)), LAM, W, None, lr=0.1)


# --- DrMAD ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [mlp, hyper_cleaning])
@pytest.mark.parametrize("n_steps", [0, 1])
def test_drmad_of_one_step_is_reverse_mode_bit_for_bit(make, n_steps):
    problem, hparams, batches = make(n_steps)
    r, exact = hg.drmad(problem, hparams, batches), hg.reverse(problem, hparams, batches)
    for a, b in zip(
        optree.tree_leaves((r.value, r.grad, r.params)), optree.tree_leaves((exact.value, exact.grad, exact.params)), strict=True
    ):
        assert np.array_equal(a, b)


def test_drmad_is_exact_on_a_straight_run():
    """Clipped steps of one length towards the centre: the states are equally spaced on a line, and no derivative is zero."""
    problem = hg.Bilevel(
        lambda w, h, b: hg.sum(w * w * h["a"]),
        lambda w, h: hg.sum(hg.tanh(0.3 * w)),
        lambda h: h["start"] * np.array([3.0, 2.0, -3.0]),
        lambda h: hg.SGD(lr=h["lr"], clip=hg.clip_by_norm(h["limit"])),
    )
    hparams = {"a": np.full(3, 0.7), "start": np.array(1.2), "lr": np.array(0.1), "limit": np.array(0.5)}
    exact, r = (f(problem, hparams, hg.full_batch(None, 12)) for f in (hg.reverse, hg.drmad))
    close(r.grad, exact.grad, 1e-12)
    assert all(np.abs(x).min() > 1e-4 for x in optree.tree_leaves(exact.grad))


def test_drmad_takes_the_states_of_the_line():
    """w <- w - lr lam w^3, by hand: the transposed steps at w_0 + t/T (w_T - w_0)."""
    n_steps, lr, lam = 9, 0.1, 0.6
    problem = hg.Bilevel(lambda w, h, b: 0.25 * h * hg.sum(w**4), lambda w, h: 0.5 * hg.sum(w**2), lambda h: np.array([1.5, -0.4]), None)
    problem = hg.Bilevel(problem.inner_loss, problem.outer_loss, problem.init, lambda h: hg.SGD(lr=lr))
    seen = []
    r = hg.drmad(problem, np.array(lam), hg.full_batch(None, n_steps), callback=lambda t, w, loss: seen.append(t))
    first = last = np.array([1.5, -0.4])
    for _ in range(n_steps):
        last = last - lr * lam * last**3
    bar, grad = last, 0.0
    for t in reversed(range(n_steps)):
        w = first + t / n_steps * (last - first)
        grad -= lr * bar @ w**3
        bar = bar * (1 - 3 * lr * lam * w**2)
    exact = hg.reverse(problem, np.array(lam), hg.full_batch(None, n_steps))
    assert r.grad == pytest.approx(grad, rel=1e-12) and abs(r.grad / exact.grad - 1) > 1e-3
    assert seen == list(range(n_steps)) and np.array_equal(r.params, exact.params) and np.array_equal(r.losses, exact.losses)


@pytest.mark.parametrize("n_steps", [2, 40])
def test_drmad_holds_two_states(n_steps):
    problem, hparams, batches = mlp(n_steps)
    s = hg.drmad(problem, hparams, batches).stats
    n_weights = 5 * 6 + 6 + 6 * 3 + 3
    assert (s.mode, s.states_held, s.state_bytes, s.steps_run, s.steps_rerun) == ("drmad", 2, 2 * 2 * 8 * n_weights, n_steps, 0)


def test_drmad_with_a_running_loss_a_state_and_first_order():
    problem, hparams, batches = mlp(5)
    running = hg.Bilevel(
        *[getattr(problem, k) for k in ("inner_loss", "outer_loss", "init", "optimizer")], lambda w, h, t: 0.1 * problem.outer_loss(w, h)
    )
    state = hg.reverse(problem, hparams, batches).state
    for more in ({"state": state}, {"first_order": True}):
        r, exact = hg.drmad(running, hparams, batches, **more), hg.reverse(running, hparams, batches, **more)
        assert r.value == exact.value
        both = [np.concatenate([np.ravel(x) for x in optree.tree_leaves(g)]) for g in (r.grad, exact.grad)]
        assert both[0] @ both[1] > 0.9 * np.linalg.norm(both[0]) * np.linalg.norm(both[1])  # five steps bend little


@needs_emulator
def test_drmad_on_a_pretended_gpu(monkeypatch):
    problem = hg.Bilevel(lambda w, h, b: 0.25 * h * hg.sum(w**4), lambda w, h: hg.sum(w**2), lambda h: START, lambda h: hg.SGD(lr=0.1))
    START = np.array([1.5, -0.4])
    host = hg.drmad(problem, np.array(0.6), hg.full_batch(None, 6)).grad
    with pretended.gpu(monkeypatch):
        START = sys.modules["cupy"].asarray(START)
        r = hg.drmad(problem, sys.modules["cupy"].asarray(np.array(0.6)), hg.full_batch(None, 6))
        assert r.grad.get() == pytest.approx(host, rel=1e-12)


# --- finite differences ---------------------------------------------------------------------------


@pytest.mark.parametrize("make", [mlp, hyper_cleaning])
def test_finite_differences_of_a_run(make):
    problem, hparams, batches = make(4)
    hparams = optree.tree_map(lambda x: np.asarray(x), hparams)
    r, exact = hg.finite_differences(problem, hparams, batches), hg.reverse(problem, hparams, batches)
    for a, b in zip(optree.tree_leaves(r.grad), optree.tree_leaves(exact.grad), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)
    n = sum(x.size for x in optree.tree_leaves(hparams))
    assert (r.stats.mode, r.stats.steps_run, r.stats.states_held) == ("finite_differences", 4 * (2 * n + 1), 1)
    assert r.value == exact.value and np.array_equal(r.losses, exact.losses)
    close((r.params, r.state), (exact.params, exact.state), 0)


def test_finite_differences_have_an_error_of_second_order():
    problem, hparams, batches, c = quadratic(3, 5)
    exact = quadratic_exact(hparams, c, 5)[1]["lr"]
    errors = [abs(hg.finite_differences(problem, hparams, batches, step=h).grad["lr"] - exact) for h in (0.2, 0.1)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_finite_differences_in_float32_at_zero_and_of_nothing():
    problem = hg.Bilevel(
        lambda w, h, b: 0.5 * hg.sum((w - h["c"]) ** 2),
        lambda w, h: hg.sum(w**2),
        lambda h: np.ones(2, np.float32),
        lambda h: hg.SGD(lr=0.5),
    )
    h = {"c": np.zeros(2, np.float32), "none": np.zeros((0, 3), np.float32)}
    r, exact = (f(problem, h, hg.full_batch(None, 3)) for f in (hg.finite_differences, hg.reverse))
    assert r.grad["c"].dtype == np.float32 and r.grad["none"].shape == (0, 3) and not h["c"].any()
    close(r.grad["c"], exact.grad["c"], 1e-3)
    with pytest.raises(ArgumentError, match="finite_differences: step has -1, expected a number > 0"):
        hg.finite_differences(problem, h, hg.full_batch(None, 3), step=-1)


# --- first order ----------------------------------------------------------------------------------


def test_first_order_drops_every_second_derivative():
    """Of w_T = w_0 - lr sum of g_t with constant g_t: dE/dw reaches w_0 unchanged, lr by the sum of g_t, and the inner loss not at all."""
    problem, hparams, batches, c = quadratic(3, 6)
    a, b, w, lr = (hparams[k] for k in ("a", "b", "w0", "lr"))
    total = 0.0
    for _ in range(6):
        total, w = total + a * (w - b), w - lr * a * (w - b)
    r = hg.reverse(problem, hparams, batches, first_order=True)
    close(r.grad, {"a": 0.0, "b": np.zeros(3), "w0": w - c, "lr": -total @ (w - c)}, 1e-13)
    close(hg.forward(problem, hparams, batches, first_order=True).grad, r.grad, 1e-13)


def test_truncation_of_three_modes():
    """A quadratic with curvatures of 1 : 1.4 : 16, of which the slowest contracts by 1 - 0.05 a step, loses what the figures say.

    The errors for `last` = 1, 5, 10, 20, 50, 100 are those of a published toy run with the same contraction. Its other numbers are not
    given: these curvatures and this outer gradient were fitted to the six errors. The formula itself is exact.
    """
    rate, curvature, slope, n_steps = 0.05, np.array([1.0, 1.4, 16.0]), np.array([4.0, 1.0, 2.0]), 100
    p = hg.Bilevel(
        lambda w, h, b: 0.5 * hg.sum(curvature * (w - h) ** 2),
        lambda w, h: hg.sum(slope * w),
        lambda h: np.zeros(3),
        lambda h: hg.SGD(lr=rate),
    )
    whole = hg.reverse(p, np.ones(3), hg.full_batch(None, n_steps)).grad
    kept = 1 - rate * curvature
    for last, published in ((1, 0.857), (5, 0.691), (10, 0.530), (20, 0.314), (50, 0.063), (100, 0.0)):
        lost = whole - hg.reverse(p, np.ones(3), hg.full_batch(None, n_steps), last=last).grad
        np.testing.assert_allclose(lost, slope * (kept**last - kept**n_steps), rtol=1e-12, atol=1e-15)
        assert np.linalg.norm(lost) / np.linalg.norm(whole) == pytest.approx(published, abs=0.001)
