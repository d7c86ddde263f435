"""The problems that learn an optimiser and a loss, and the one whose hyperparameters move online."""

import json

import numpy as np
import optree
import pytest
from typer.testing import CliRunner

import hypergrad as hg
from hypergrad.cli import app
from hypergrad.errors import ArgumentError
from hypergrad.hpo import jobs
from hypergrad.hpo.config import make_config
from hypergrad.hpo.problems import PROBLEMS
from hypergrad.hpo.problems.learned_loss import learned_losses
from hypergrad.hpo.problems.learned_optimiser import FLOOR, GRID, RIVALS, TEST, TRAIN, TUNE, VALIDATION, interval
from hypergrad.hpo.problems.online import GRID as RATES
from hypergrad.hpo.problems.online import named, optimizer_of
from hypergrad.hpo.tuning import Tuning


def tuned(tmp_path, *args):
    result = CliRunner().invoke(app, ["tune", *args, "--run-dir", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    return json.loads((tmp_path / "run" / "result.json").read_text()), records


def test_a_learned_optimiser_is_held_against_the_others(tmp_path):
    result, _ = tuned(tmp_path, "learned-optimiser", "--quick")
    for name in ("learned", *RIVALS):
        curve, half = result[f"{name}_curve"], result[f"{name}_curve_interval"]
        assert len(curve) == len(half) == 21 and curve[-1] == result[f"{name}_loss"] and half[-1] == result[f"{name}_interval"]
        assert 0 < result[f"{name}_loss"] < curve[0] and 0 < result[f"{name}_interval"] < curve[0]
        assert np.isclose(curve[0], result["adam_curve"][0])
        logs = result[f"{name}_log10_curve"]
        assert logs[-1] == result[f"{name}_log10_loss"] and logs[-1] < np.log10(result[f"{name}_loss"] + FLOOR)  # Jensen
    for name in RIVALS:
        assert 0 <= result[f"better_than_{name}"] <= 1 and result[f"{name}_step_size"] in GRID[1:-1]
        assert result[f"{name}_variant"] in RIVALS[name] and result[f"paired_{name}_interval"] > 0
        assert np.isclose(result[f"paired_{name}"], result["learned_log10_loss"] - result[f"{name}_log10_loss"])


def test_a_rival_has_the_best_step_size_of_tasks_of_its_own():
    task = make_config("learned-optimiser", shorten=True, n_validation=5).problem.open(0)
    drawn = task.draw(5, TUNE)
    assert not any(np.array_equal(drawn.tasks.x, task.draw(5, stream).tasks.x) for stream in (VALIDATION, TEST))
    variant, lr = task.tuned("sgd")
    ends = {(name, lr): np.log10(task.losses(kind(lr), drawn)[-1] + FLOOR).mean() for name, kind in RIVALS["sgd"].items() for lr in GRID}
    assert ends[variant, lr] == min(x for x in ends.values() if np.isfinite(x))


@pytest.mark.parametrize("family", ["classifiers", "quadratics"])
def test_an_iteration_goes_back_one_window(family):
    config = make_config("learned-optimiser", shorten=True, n_steps=12, window=4, family=family, inputs="gradient")
    task = config.problem.open(0, np.float64)
    params = task.init()
    value, gradient, _ = Tuning(config, task).gradient(params, 1)  # the second window: steps 4 to 8
    problem, batches = task.inner(2)
    assert len(batches) == 8
    before, after = [batches[t] for t in range(4)], [batches[t] for t in range(4, 8)]
    start, state = hg.unroll(
        problem.inner_loss, problem.init(params), params, before, optimizer=problem.optimizer(params), return_state=True
    )
    start, state = (optree.tree_map(lambda x: x.value, tree) for tree in (start, state))
    window = hg.Bilevel(
        problem.inner_loss,
        problem.outer_loss,
        lambda params: start,
        hg.LSTMOptimizer,
        lambda theta, params, t: problem.outer_loss(theta, params),
    )
    expected = hg.reverse(window, params, after, state=state, first_order=True)
    assert np.isclose(value, expected.value, rtol=1e-12)
    assert all(np.allclose(gradient[name], expected.grad[name], rtol=1e-9, atol=1e-13) for name in params)


def test_windows_of_a_run_have_the_same_tasks_and_other_runs_have_others():
    task = make_config("learned-optimiser", shorten=True, n_steps=12, window=4, family="quadratics").problem.open(0)
    drawn = [task.inner(i)[1] for i in range(8)]
    assert [len(batches) for batches in drawn] == [12, 4, 8, 12, 4, 8, 12, 4]
    assert np.array_equal(drawn[1][0].w, drawn[3][0].w) and not np.array_equal(drawn[3][0].w, drawn[4][0].w)
    assert not np.array_equal(drawn[0][0].w[:8], drawn[1][0].w)


def test_a_classifier_sees_the_same_minibatch_in_a_step_whenever_it_is_asked_for():
    task = make_config("learned-optimiser", shorten=True, n_steps=12, window=4, batch=3).problem.open(0)
    (first, second, other), n = (task.inner(i)[1] for i in (1, 2, 4)), task.options.n_train
    assert first[2].x.shape == (n, 3, 4) and first[2].y.shape == (n, 3)
    assert np.array_equal(first[2].x, second[2].x) and not np.array_equal(first[2].x, first[3].x)
    assert not np.array_equal(first[2].x, other[2].x)
    tasks = task.draw(n, TRAIN, 0).tasks
    for points, labels, x, y in zip(tasks.x, tasks.y, first[2].x, first[2].y, strict=True):
        assert {(*row, label) for row, label in zip(x.tolist(), y, strict=True)} <= {
            (*row, label) for row, label in zip(points.tolist(), labels, strict=True)
        }
    with pytest.raises(IndexError):
        first[4]


def test_losses_of_classifiers_are_those_of_single_networks():
    task = make_config("learned-optimiser", shorten=True).problem.open(1, np.float64)
    tasks = task.draw(3, TEST).tasks
    for i, loss in enumerate(tasks.losses(tasks.start()).value):
        w = {name: value[i] for name, value in tasks.first.items()}
        logits = np.tanh(tasks.x[i] @ w["v"] + w["c"]) @ w["w"] + w["b"]
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        assert np.isclose(loss, -log_p[np.arange(len(log_p)), tasks.y[i]].mean(), rtol=1e-12)


def test_windows_must_make_up_the_run():
    with pytest.raises(ArgumentError, match="window is 30 with 100 steps, expected a divisor"):
        make_config("learned-optimiser", window=30)


def test_intervals_are_those_of_a_mean():
    losses = np.array([[1.0, 3.0], [2.0, 2.0]])
    middle, half = interval(losses)
    assert middle.tolist() == [2.0, 2.0] and np.allclose(half, [1.96, 0.0])


def test_a_learned_loss_begins_as_the_cross_entropy():
    task = make_config("learned-loss", shorten=True).problem.open(0, np.float64)
    problem, batches = task.inner(1)
    w = problem.init(None)
    expected = hg.mean(hg.softmax_cross_entropy(np.tanh(task.train.x @ w["v"] + w["c"]) @ w["w"] + w["b"], task.train.y))
    assert np.isclose(problem.inner_loss(w, task.init(), batches[0]).value, expected.value, rtol=1e-12)
    hparams = {**task.init(), "out": np.full((4, 1), 0.5)}
    log_p, y = np.log(np.full((1, 10), 0.1)), np.eye(10)[[3]]
    plain = sum(0.5 * np.tanh(np.log(0.1) * hparams["in"][0] + y[0, k] * hparams["in"][1] + hparams["bias"]).sum() for k in range(10))
    assert np.isclose(learned_losses(hparams, log_p, y).value[0], plain - np.log(0.1))


def test_a_learned_loss_is_held_against_the_cross_entropy(tmp_path):
    result, records = tuned(tmp_path, "learned-loss", "--quick")
    names = ("tuned", "baseline", "same_step", "fresh_tuned", "fresh_baseline", "oracle")
    assert all(0.1 < result[f"{name}_accuracy"] <= 1 and 0 < result[f"{name}_interval"] < 0.2 for name in names)
    assert result["oracle_accuracy"] > result["baseline_accuracy"] and records[-1]["validation_loss"] < records[0]["loss"]


def test_online_tuning_is_one_run(tmp_path):
    result, records = tuned(tmp_path, "online", "--quick")
    config = make_config("online", shorten=True)
    assert result["inner_steps"] == 30 and result["iterations"] == 10 and len(result["fixed_validation_losses"]) == len(RATES) == 12
    assert result["best_fixed_validation_loss"] == pytest.approx(min(x for x in result["fixed_validation_losses"] if x is not None))
    assert result["online_validation_loss"] == pytest.approx(records[-1]["validation_loss"]) and 0 < result["online_accuracy"] <= 1
    updates = [r for r in records if "best" not in r]
    assert [r["iteration"] for r in updates] == list(range(1, 11)) and updates[0]["loss"] > updates[-1]["loss"]
    assert updates[0]["lr"] == pytest.approx(config.problem.start_lr) and updates[-1]["lr"] > updates[0]["lr"]
    assert result["final_lr"] > 0 and 0 < result["final_momentum"] < 1 and result["final_decay"] > 0


def test_a_fixed_run_is_the_online_run_whose_hyperparameters_stay():
    config = make_config("online", shorten=True, outer_lr=1e-30, start_lr=0.1)
    task = config.problem.open(0, np.float64)
    done, fixed = task.run(config.training, "forward", lambda record: None), task.fixed(0.1, 30)
    assert np.allclose(done.values, fixed.losses["validation"], rtol=1e-9) and np.allclose(done.losses, fixed.losses["training"], rtol=1e-9)
    start = named(task.init())
    assert start["lr"] == pytest.approx(0.1) and start["momentum"] == pytest.approx(0.5)
    assert optimizer_of(task.init()).lr.value == pytest.approx(0.1)


def test_the_runs_of_the_online_problem_see_the_same_minibatches():
    task = make_config("online", shorten=True, batch=7).problem.open(0)
    batches, again = task.batches(5), task.batches(9)
    assert len(batches) == 5 and batches[1].x.shape == (7, task.images.train.x.shape[1])
    assert np.array_equal(batches[1].x, again[1].x) and np.array_equal(batches[1].y, again[1].y)
    assert not np.array_equal(batches[1].x, batches[2].x)
    with pytest.raises(IndexError):
        batches[5]
    whole = make_config("online", shorten=True, batch=1000).problem.open(0).batches(2)
    assert len(whole[0]) == 100


def test_an_interrupted_online_run_says_that_it_cannot_go_on(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "_run_once", interrupted)
    result = CliRunner().invoke(app, ["tune", "online", "--quick", "--run-dir", str(tmp_path / "run")])
    assert result.exit_code == 130 and "online is one training run, which cannot go on" in result.output
    assert PROBLEMS["online"].single_run
