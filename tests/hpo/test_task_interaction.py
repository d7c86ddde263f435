"""Task interaction: related tasks attract each other, the interaction is what the formula says, and classes of images are tasks, too."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from hypergrad.cli import app
from hypergrad.errors import ArgumentError
from hypergrad.hpo.problems.task_interaction import TaskInteraction
from hypergrad.testing import check_hypergrad


@pytest.fixture(scope="module")
def task():
    return TaskInteraction(clusters=2, tasks_each=2, features=3, n_train=4, n_validation=5, n_test=6, n_steps=3).open(0, np.float64)


def test_the_inner_loss_is_the_formula_with_a_symmetric_interaction(task):
    rng = np.random.default_rng(1)
    w = rng.standard_normal((4, 3))
    hparams = {**task.init(), "pairs": rng.random(6), "rho": np.asarray(0.3)}
    a = task.matrix(hparams)
    assert np.array_equal(a, a.T) and (np.diag(a) == 0).all()
    expected = task.tasks.loss(w, "train").item() + 0.3 * (w**2).sum()
    expected += sum(a[j, k] * ((w[j] - w[k]) ** 2).sum() for j in range(4) for k in range(j))
    assert task.inner(0)[0].inner_loss(w, hparams, None).item() == pytest.approx(expected, rel=1e-12)


def test_the_projection_keeps_what_makes_sense(task):
    moved = {name: value - 5.0 for name, value in task.init().items()}
    kept = task.project(moved)
    assert (kept["pairs"] == 0).all() and kept["rho"] == 0 and kept["lr"] == 1e-4 and kept["momentum"] == 0
    assert task.project({name: value + 5.0 for name, value in task.init().items()})["momentum"] == 0.95


def test_related_tasks_attract_each_other(tmp_path):
    args = ["tune", "task-interaction", "--quick", "--iterations", "60", "--eval-every", "20", "--features", "8", "--n-steps", "30"]
    result = CliRunner().invoke(app, [*args, "--run-dir", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    assert found["interaction_within"] > 2 * found["interaction_between"] and found["tuned_error"] < found["single_error"]


def test_classes_of_images_are_tasks():
    task = TaskInteraction(data="glyphs", n_train=20, n_validation=20, n_test=20, n_steps=2).open(0, np.float64)
    problem, batches = task.inner(0)
    hparams = {name: value + 0.05 for name, value in task.init().items()}
    check_hypergrad(problem, hparams, batches)
    assert len(hparams["pairs"]) == 45 and task.tasks.names[0] == "A"


def test_synthetic_tasks_have_no_root():
    with pytest.raises(ArgumentError, match="root is 'x' with synthetic tasks"):
        TaskInteraction(data="synthetic", root="x").open(0)
