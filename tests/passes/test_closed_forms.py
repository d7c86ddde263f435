"""Hypergradients against formulas: quadratics, ridge regression, no step, one step and two steps by hand."""

import hyper_problems
import numpy as np
import pytest

import hypergrad as hg

MODES = {
    "all": lambda *a: hg.reverse(*a),
    "sqrt": lambda *a: hg.reverse(*a, checkpoints="sqrt"),
    "two states": lambda *a: hg.reverse(*a, checkpoints=2),
    "forward": lambda *a: hg.forward(*a),
}
modes = pytest.mark.parametrize("mode", MODES)


@modes
@pytest.mark.parametrize("n_steps", [0, 1, 2, 9, 40])
def test_quadratic(mode, n_steps):
    problem, hparams, batches, c = hyper_problems.quadratic(4, n_steps)
    value, exact = hyper_problems.quadratic_exact(hparams, c, n_steps)
    r = MODES[mode](problem, hparams, batches)
    assert r.value == pytest.approx(value, rel=1e-12)
    for name, expected in exact.items():
        np.testing.assert_allclose(r.grad[name], expected, rtol=1e-11, atol=1e-13, err_msg=name)
    assert r.stats.steps_run == n_steps


def ridge(n_steps, rho=0.3):
    """Ridge regression from zero; E is the validation error. Also the exact T-step value and hypergradient in rho."""
    rng = np.random.default_rng(0)
    x, y, xv, yv = rng.standard_normal((12, 5)), rng.standard_normal(12), rng.standard_normal((9, 5)), rng.standard_normal(9)
    lr = 0.9 / (np.linalg.eigvalsh(x.T @ x)[-1] + rho)
    problem = hg.Bilevel(
        lambda w, h, b: 0.5 * hg.sum((x @ w - y) ** 2) + 0.5 * h["rho"] * hg.sum(w * w),
        lambda w, h: 0.5 * hg.sum((xv @ w - yv) ** 2),
        lambda h: np.zeros(5),
        lambda h: hg.SGD(lr=lr),
    )
    s, q = np.linalg.eigh(x.T @ x)
    s = s + rho
    z = q.T @ (x.T @ y)
    left = (1 - lr * s) ** n_steps
    left_slope = -lr * n_steps * (1 - lr * s) ** max(n_steps - 1, 0)

    def outcome(w, w_slope):
        error = xv @ w - yv
        return 0.5 * error @ error, error @ (xv @ w_slope)

    finite = outcome(q @ ((1 - left) / s * z), q @ ((-left_slope * s - (1 - left)) / s**2 * z))
    limit = outcome(q @ (z / s), q @ (-z / s**2))
    return problem, {"rho": np.float64(rho)}, hg.full_batch(None, n_steps), finite, limit


@modes
def test_ridge_after_finitely_many_steps(mode):
    problem, hparams, batches, (value, slope), _ = ridge(30)
    r = MODES[mode](problem, hparams, batches)
    assert r.value == pytest.approx(value, rel=1e-12)
    assert r.grad["rho"] == pytest.approx(slope, rel=1e-11)


def test_ridge_converges_to_the_exact_hypergradient():
    """The T-step hypergradient approaches that of the minimiser, geometrically (Franceschi et al. 2018, ICML)."""
    errors = []
    for n_steps in (50, 100, 200, 400):
        problem, hparams, batches, _, (_, exact) = ridge(n_steps)
        errors.append(abs(hg.reverse(problem, hparams, batches, checkpoints="sqrt").grad["rho"] - exact) / abs(exact))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 * errors[0]


@modes
def test_no_step(mode):
    """T = 0: E(Phi_0(lambda), lambda) alone, with its direct dependence on lambda."""
    problem = hg.Bilevel(lambda w, h, b: hg.sum(w), lambda w, h: hg.sum(w * h["x"]), lambda h: 3.0 * h["x"], lambda h: hg.SGD(lr=h["lr"]))
    x = np.array([1.0, -2.0])
    r = MODES[mode](problem, {"x": x, "lr": np.float64(0.1)}, hg.full_batch(None, 0))
    assert r.value == 15.0
    np.testing.assert_array_equal(r.grad["x"], 6 * x)
    assert r.grad["lr"] == 0
    np.testing.assert_array_equal(r.params, 3 * x)
    assert (r.stats.steps_run, r.stats.steps_rerun) == (0, 0)


H = np.array([[2.0, 0.5], [0.5, 1.0]])
C = np.array([0.3, -0.7])
W0 = np.array([1.0, 2.0])


def one_problem(optimizer):
    """0.5 w.H w + w.lam against 0.5 |w - C|^2 from w0."""
    return hg.Bilevel(
        lambda w, h, b: 0.5 * hg.sum(w * (H @ w)) + hg.sum(w * h["lam"]),
        lambda w, h: 0.5 * hg.sum((w - C) ** 2),
        lambda h: h["w0"],
        optimizer,
    )


def hyper(**more):
    return {"lam": np.array([0.2, -0.1]), "w0": W0, **{k: np.float64(v) for k, v in more.items()}}


@modes
def test_one_step_by_hand(mode):
    lr, decay = 0.1, 0.05
    h = hyper(lr=lr, decay=decay, mu=0.6)
    problem = one_problem(lambda h: hg.SGD(lr=h["lr"], momentum=h["mu"], weight_decay=h["decay"]))
    r = MODES[mode](problem, h, hg.full_batch(None, 1))
    g = H @ W0 + h["lam"] + decay * W0
    w1 = W0 - lr * g
    e = w1 - C
    expected = {"lam": -lr * e, "w0": e - lr * (H @ e + decay * e), "lr": -e @ g, "decay": -lr * (e @ W0), "mu": 0.0}
    for name, value in expected.items():
        np.testing.assert_allclose(r.grad[name], value, rtol=1e-13, atol=1e-15, err_msg=name)
    np.testing.assert_allclose(r.params, w1, rtol=1e-15)


@modes
@pytest.mark.parametrize("nesterov", [False, True])
def test_two_steps_of_momentum_by_hand(mode, nesterov):
    lr, mu = 0.1, 0.6
    h = hyper(lr=lr, mu=mu)
    problem = one_problem(lambda h: hg.SGD(lr=h["lr"], momentum=h["mu"], nesterov=nesterov))
    r = MODES[mode](problem, h, hg.full_batch(None, 2))
    eye, n = np.eye(2), 1 + mu if nesterov else 1.0
    n_slope = 1.0 if nesterov else 0.0
    g0 = H @ W0 + h["lam"]
    w1 = W0 - lr * n * g0  # v1 = g0
    g1 = H @ w1 + h["lam"]
    v2 = mu * g0 + g1
    d2 = g1 + mu * v2 if nesterov else v2
    e = w1 - lr * d2 - C
    w1_mu = -lr * n_slope * g0
    g1_mu = H @ w1_mu
    v2_mu = g0 + g1_mu
    d2_mu = g1_mu + v2 + mu * v2_mu if nesterov else v2_mu
    w1_lr = -n * g0
    d2_lr = n * (H @ w1_lr)
    w1_lam, g0_lam = -lr * n * eye, eye
    g1_lam = H @ w1_lam + eye
    d2_lam = n * g1_lam + (mu * mu if nesterov else mu) * g0_lam
    expected = {"mu": e @ (w1_mu - lr * d2_mu), "lr": e @ (w1_lr - d2 - lr * d2_lr), "lam": (w1_lam - lr * d2_lam).T @ e}
    for name, value in expected.items():
        np.testing.assert_allclose(r.grad[name], value, rtol=1e-12, atol=1e-14, err_msg=name)


@modes
def test_one_step_of_adam_by_hand(mode):
    lr, eps = 0.1, 0.04
    h = hyper(lr=lr, eps=eps, b1=0.8, b2=0.95)
    problem = one_problem(lambda h: hg.Adam(lr=h["lr"], beta1=h["b1"], beta2=h["b2"], eps=h["eps"]))
    r = MODES[mode](problem, h, hg.full_batch(None, 1))
    g = H @ W0 + h["lam"]
    root = np.sqrt(g * g + eps)
    e = W0 - lr * g / root - C
    expected = {"lr": -e @ (g / root), "eps": 0.5 * lr * (e @ (g / root**3)), "lam": -lr * e * eps / root**3, "b1": 0.0, "b2": 0.0}
    for name, value in expected.items():
        np.testing.assert_allclose(r.grad[name], value, rtol=1e-12, atol=1e-14, err_msg=name)
