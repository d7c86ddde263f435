"""The implicit pass: closed forms, every solver, its report, and what it refuses."""

import numpy as np
import optree
import pytest

import hypergrad as hg
from hypergrad.errors import ArgumentError, DifferentiationError, ShapeError
from hypergrad.passes.solvers import conjugate
from hypergrad.rules import elementwise

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((30, 6)), RNG.standard_normal(30)
XV, YV = RNG.standard_normal((20, 6)), RNG.standard_normal(20)
LAM = {"log_rho": RNG.uniform(-1, 0, 6), "offset": np.array(0.3)}


def inner(w, h, batch):
    x, y = batch
    return 0.5 * hg.mean((x @ w["w"] - y - h["offset"]) ** 2) + 0.5 * hg.sum(hg.exp(h["log_rho"]) * w["w"] ** 2)


def outer(w, h):
    return 0.5 * hg.mean((XV @ w["w"] - YV) ** 2) + 0.01 * hg.sum(h["log_rho"] ** 2)


RIDGE = hg.Bilevel(inner, outer, lambda h: {"w": np.zeros(6)}, lambda h: hg.SGD(lr=0.3))
BATCH = (X, Y)
SOLVERS = [hg.CG(1e-13), hg.NormalCG(1e-12), hg.FixedPoint(0.4, 1e-13), hg.Neumann(0.4, 200, 1e-11), hg.Nystrom(6, 1e-9, tolerance=1e-5)]
names = lambda s: type(s).__name__  # noqa: E731


def ridge(h):
    """The solution and the hypergradient, by linear algebra."""
    a = X.T @ X / len(X) + np.diag(np.exp(h["log_rho"]))
    w = np.linalg.solve(a, X.T @ (Y + h["offset"]) / len(X))
    q = np.linalg.solve(a, XV.T @ (XV @ w - YV) / len(XV))
    return w, {"log_rho": 0.02 * h["log_rho"] - np.exp(h["log_rho"]) * w * q, "offset": X.sum(0) / len(X) @ q}


def close(a, b, tolerance):
    for x, y in zip(optree.tree_leaves(a), optree.tree_leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("solver", SOLVERS, ids=names)
def test_ridge_in_closed_form(solver):
    w, exact = ridge(LAM)
    r = hg.implicit(RIDGE, LAM, {"w": w}, BATCH, solver=solver)
    close(r.grad, exact, 1e-7 if isinstance(solver, hg.Nystrom) else 1e-9)
    assert r.value == pytest.approx(outer({"w": w}, LAM).value, rel=1e-14) and r.losses.shape == (1,) and r.state is None
    assert r.report.solver == names(solver) and r.report.converged and r.report.residual <= solver.tolerance
    assert r.report.gradient_norm < 1e-13 and r.params["w"] is not w and r.stats.mode == "implicit"


def test_systems_in_rows_are_solved_as_by_themselves():
    """One is solved at once, one needs all of its steps, one meets a direction of no positive curvature, one has nothing to solve."""
    matrices = np.stack([np.eye(5), np.diag([1.0, 2.0, 3.0, 4.0, 5.0]), np.diag([1.0, 1.0, -9.0, 1.0, 1.0]), np.eye(5)])
    b = np.concatenate([np.random.default_rng(1).standard_normal((3, 5)), np.zeros((1, 5))])
    calls = []
    together = conjugate(lambda v: (calls.append(0), (matrices @ v[..., None])[..., 0])[1], b, None, 1e-14, 20)
    for a, right, found in zip(matrices, b, together, strict=True):
        np.testing.assert_array_equal(found, conjugate(lambda v, a=a: a @ v, right, None, 1e-14, 20))
    np.testing.assert_allclose(together[:2], np.linalg.solve(matrices[:2], b[:2, :, None])[..., 0], rtol=1e-12)
    assert not together[2:].any() and len(calls) == 5


def test_the_passes_over_a_run_converge_to_it():
    """Reverse and forward mode of T steps approach the implicit gradient as T grows."""
    w, exact = ridge(LAM)
    run = hg.reverse(RIDGE, LAM, hg.full_batch(BATCH, 300))
    close(run.params["w"], w, 1e-12)
    close(run.grad, hg.implicit(RIDGE, LAM, run.params, BATCH, solver=hg.CG(1e-13)).grad, 1e-10)
    close(hg.forward(RIDGE, LAM, hg.full_batch(BATCH, 300)).grad, exact, 1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_nonlinear_inner_problem_and_finite_differences(dtype):
    """Logistic regression with a weight per example and a tree of weights, solved by Newton's steps."""
    labels, features = (X[:, 0] + 0.5 * X[:, 1] > 0).astype(int), X.astype(dtype)

    def loss(w, h, batch):
        losses = hg.softmax_cross_entropy(hg.linear(features, w["w"], w["b"]), labels)
        return hg.mean(hg.sigmoid(h) * losses) + dtype(0.05) * (hg.sum(w["w"] ** 2) + hg.sum(w["b"] ** 2))

    def outer(w, h):
        return hg.mean(hg.softmax_cross_entropy(hg.linear(XV.astype(dtype), w["w"], w["b"]), (XV[:, 0] > 0).astype(int)))

    problem = hg.Bilevel(loss, outer, lambda h: None, lambda h: None)
    h = RNG.standard_normal(30).astype(dtype)

    def solve(h):
        w = {"w": np.zeros((6, 2), dtype), "b": np.zeros(2, dtype)}
        adam, state = hg.SGD(lr=2.0, momentum=0.5), None
        for t in range(400):
            w, state = adam.step(w, state, hg.grad(lambda w: loss(w, h, None))(w), t)
        return w

    r = hg.implicit(problem, h, solve(h), None, solver=hg.CG(1e-12 if dtype == np.float64 else 1e-5))
    assert r.grad.dtype == dtype and r.report.solution["w"].shape == (6, 2)
    if dtype == np.float64:
        for i in (0, 7):
            step = 1e-4 * np.eye(30)[i]
            both = [float(outer(solve(h + s), None).value) for s in (step, -step)]
            assert r.grad[i] == pytest.approx((both[0] - both[1]) / 2e-4, rel=1e-6)


def test_a_warm_start_and_a_preconditioner_save_products():
    w, _ = ridge(LAM)
    cold = hg.implicit(RIDGE, LAM, {"w": w}, BATCH, solver=hg.CG(1e-10))
    warm = hg.implicit(RIDGE, LAM, {"w": w}, BATCH, solver=hg.CG(1e-10), start=cold.report.solution)
    assert warm.report.products <= 2 < cold.report.products
    inverse = np.linalg.inv(X.T @ X / len(X) + np.diag(np.exp(LAM["log_rho"])))
    exact = hg.implicit(RIDGE, LAM, {"w": w}, BATCH, solver=hg.CG(1e-10, preconditioner=lambda r: inverse @ r))
    assert exact.report.products <= 3 and exact.report.converged
    close(exact.grad, cold.grad, 1e-8)
    with pytest.raises(ShapeError, match="implicit: start has shapes"):
        hg.implicit(RIDGE, LAM, {"w": w}, BATCH, start={"w": np.ones(5)})


def test_damping_and_a_low_rank_solve_other_systems():
    w, _ = ridge(LAM)
    a, b = X.T @ X / len(X) + np.diag(np.exp(LAM["log_rho"])), XV.T @ (XV @ w - YV) / len(XV)
    for solver in (hg.CG(1e-12, damping=0.5), hg.NormalCG(1e-12, damping=0.5), hg.FixedPoint(0.3, 1e-12, damping=0.5)):
        q = hg.implicit(RIDGE, LAM, {"w": w}, BATCH, solver=solver).report.solution["w"]
        close(q, np.linalg.solve(a + 0.5 * np.eye(6), b), 1e-10)
    with pytest.warns(UserWarning, match="Nystrom stopped at a residual of"):
        q = hg.implicit(RIDGE, LAM, {"w": w}, BATCH, solver=hg.Nystrom(3, 0.1, seed=1)).report.solution["w"]
    chosen = np.sort(np.random.default_rng(1).permutation(6)[:3])
    low = a[:, chosen] @ np.linalg.solve(a[np.ix_(chosen, chosen)], a[chosen])
    close(q, np.linalg.solve(low + 0.1 * np.eye(6), b), 1e-10)


def test_one_warning_where_either_problem_is_not_solved():
    w, _ = ridge(LAM)
    with pytest.warns(UserWarning, match="CG stopped at a residual of .* after 3 Hessian products") as caught:
        r = hg.implicit(RIDGE, LAM, {"w": w + 1.0}, BATCH, solver=hg.CG(1e-12, max_iterations=2))
    assert len(caught) == 1 and "the inner gradient at w_star has the norm" in str(caught[0].message) and not r.report.converged
    with pytest.warns(UserWarning, match="residual"):  # no positive curvature: not a minimum
        saddle = hg.Bilevel(lambda w, h, b: h * (w[0] ** 2 - w[1] ** 2), lambda w, h: w[0] + 2 * w[1], lambda h: None, lambda h: None)
        hg.implicit(saddle, 0.5, np.zeros(2), None)
    r = hg.implicit(saddle, 0.5, np.zeros(2), None, solver=hg.NormalCG(1e-12))  # which takes an indefinite Hessian
    close(r.report.solution, np.array([1.0, -2.0]), 1e-10)


def test_what_is_refused_with_a_remedy():
    w, _ = ridge(LAM)
    with pytest.raises(DifferentiationError, match=r"hparams\['lr'\] is read by neither .*use hg.reverse or hg.forward"):
        hg.implicit(RIDGE, {**LAM, "lr": np.array(0.1)}, {"w": w}, BATCH)
    own_square = elementwise("own_square", lambda b, x: x * x, lambda out, x: 2.0 * x)
    with pytest.raises(DifferentiationError, match="declared outside this package.*use hg.reverse"):
        own = hg.Bilevel(lambda w, h, b: inner(w, h, b) + hg.sum(own_square(w["w"])), outer, None, None)
        hg.implicit(own, LAM, {"w": w}, BATCH)
    with pytest.raises(ArgumentError, match="running_loss.*use hg.reverse"):
        hg.implicit(hg.Bilevel(inner, outer, None, None, lambda w, h, t: outer(w, h)), LAM, {"w": w}, BATCH)
    for make, text in (
        (lambda: hg.CG(tolerance=-1), "CG: tolerance is -1, expected a number at least 0"),
        (lambda: hg.NormalCG(max_iterations=0), "NormalCG: max_iterations is 0"),
        (lambda: hg.FixedPoint(lr=0.0), "FixedPoint: lr is 0.0, expected a number above 0"),
        (lambda: hg.Neumann(lr=1.0, terms=-1), "Neumann: terms is -1"),
        (lambda: hg.Nystrom(damping=0.0), "Nystrom: damping is 0.0, expected a number above 0"),
    ):
        with pytest.raises(ArgumentError, match=text):
            make()
