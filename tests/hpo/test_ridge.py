"""Ridge regression: the closed form against finite differences, and the T-step problem that approaches it at the rate of the theory."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from hypergrad.cli import app
from hypergrad.hpo.problems.ridge import Ridge, measured_rate


@pytest.fixture(scope="module")
def task():
    return Ridge(features=6, n_train=20, n_validation=30).open(0)


def test_the_closed_form_is_a_solution_and_its_slope_is_the_derivative(task):
    problem, at, eps = task.problem(), -1.3, 1e-5
    exact = task.exact(at)
    hparams = {"log_strength": np.asarray(at)}
    loss = problem.inner_loss(exact.w, hparams, task.train)
    for direction in np.eye(6):
        for sign in (-1, 1):
            assert problem.inner_loss(exact.w + 1e-3 * sign * direction, hparams, task.train).item() > loss.item()
    assert exact.loss == pytest.approx(problem.outer_loss(exact.w, hparams).item(), rel=1e-12)
    difference = (task.exact(at + eps).loss - task.exact(at - eps).loss) / (2 * eps)
    assert exact.slope == pytest.approx(difference, rel=1e-7)


def test_the_minimisers_are_where_the_derivative_vanishes(task):
    best = task.minimiser(0.0)
    assert abs(task.exact(best).slope) < 1e-12
    few, many = (task.minimiser(best, n_steps) for n_steps in (50, 400))
    assert few is None or abs(many - best) < 0.01 * abs(few - best)
    assert abs(task.at(many, 400)[0]) < 1e-9


def test_errors_fall_at_the_rate_of_the_theory(tmp_path):
    result = CliRunner().invoke(app, ["tune", "ridge", "--quick", "--sweep", "40,60,80,100", "--run-dir", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    assert 0 < found["rate"] < 1
    for name in ("w_rate", "hypergradient_rate"):
        assert np.log(found[name]) == pytest.approx(np.log(found["rate"]), rel=0.05)
    errors = [row["hypergradient_error"] for row in found["sweep"]]
    assert errors == sorted(errors, reverse=True) and found["implicit_error"] < 1e-10
    assert f"falls by {found['rate']:.5f} a step" in result.output


def test_a_rate_needs_two_errors_above_rounding():
    rows = [{"n_steps": t, "e": 3.0 * 0.5**t} for t in (4, 8, 16, 32)]
    assert measured_rate(rows, "e") == pytest.approx(0.5)
    assert measured_rate([{"n_steps": t, "e": t * 0.5**t} for t in (4, 8, 16)], "e", over_steps=True) == pytest.approx(0.5)
    assert measured_rate([{"n_steps": 4, "e": 1e-3}, {"n_steps": 8, "e": 1e-14}], "e") is None
