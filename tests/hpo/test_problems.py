"""Every tuning problem: its short form by the command, its hypergradients, its resumed runs; the same checks for all of them."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from hypergrad.cli import app
from hypergrad.hpo.config import make_config, save_config
from hypergrad.hpo.problems import PROBLEMS
from hypergrad.hpo.tuning import Tuning
from hypergrad.runs.directory import MODEL, STATE, RunDirectory
from hypergrad.runs.loop import train
from hypergrad.testing import check_hypergrad
from hypergrad.trees import tree_leaves

FILES = ["config.json", "metrics.jsonl", "model.safetensors", "state.safetensors", "result.json", "curve.png"]
TINY = {  # options for the checks in float64, beside those of the short form
    "hyper-cleaning": {"n_train": 12, "n_validation": 10, "n_test": 10, "n_steps": 4},
    "regularisers": {"n_train": 10, "n_validation": 10, "n_test": 10, "n_steps": 4, "hidden": 3},
    "learned-loss": {"n_train": 10, "n_validation": 10, "n_test": 10, "n_steps": 4, "hidden": 3, "units": 2},
    "learned-optimiser": {"n_train": 2, "n_validation": 3, "n_test": 3, "features": 2, "n_steps": 4, "window": 4, "hidden": 2},
    "ridge": {"n_steps": 6},
    "task-interaction": {"n_steps": 5},
    "augmentation": {"n_train": 10, "n_validation": 10, "n_test": 10, "n_steps": 3, "batch": 4, "hidden": 3},
    "sine": {"k_shot": 3, "n_query": 3, "hidden": 3, "n_train": 2, "n_validation": 3, "n_test": 3, "pretraining": 5},
    "distillation": {"n_train": 10, "n_validation": 10, "n_test": 10, "n_steps": 3, "hidden": 3},
}
LOOPS = [name for name, kind in PROBLEMS.items() if not kind.single_run]


def invoke(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="module", params=PROBLEMS)
def quick(request, tmp_path_factory):
    """A run of the short form: the problem's name, its directory and what was said."""
    path = tmp_path_factory.mktemp("runs") / "run"
    result = invoke("tune", request.param, "--quick", "--run-dir", path)
    assert result.exit_code == 0, result.output
    return request.param, path, result.output


def test_the_short_form_writes_every_file_and_says_the_result(quick):
    name, path, output = quick
    kind = PROBLEMS[name]
    files = [file for file in FILES if not (kind.single_run and file == STATE)]
    assert all((path / file).stat().st_size > 0 and file in output for file in (*files, *kind.figures))
    result = json.loads((path / "result.json").read_text())
    assert result["problem"] == name and result["iterations"] == make_config(name, shorten=True).training.iterations
    assert result["data"] in output and kind.title in output and "validation loss" in output and "\x1b" not in output
    for figure in ("curve.png", *kind.figures):
        with Image.open(io.BytesIO((path / figure).read_bytes())) as image:
            image.load()
            assert image.size[0] > 300 and len(np.unique(np.asarray(image.convert("L")))) > 20


def test_tuning_lowers_the_outer_loss(quick):
    name, path, _ = quick
    losses = [r["validation_loss"] for r in map(json.loads, (path / "metrics.jsonl").read_text().splitlines()) if "best" in r]
    assert min(losses[1:]) < losses[0]


def test_a_finished_run_goes_on(quick):
    name, path, _ = quick
    if PROBLEMS[name].single_run:
        result = invoke("tune", "--resume", path)
        assert result.exit_code == 1 and f"is a run of {name}, expected one with an outer loop" in result.output.replace("\n", " ")
        return
    iterations = make_config(name, shorten=True).training.iterations + 1
    result = invoke("tune", "--resume", path, "--iterations", iterations)
    assert result.exit_code == 0, result.output
    assert json.loads((path / "result.json").read_text())["iterations"] == iterations


@pytest.mark.parametrize("name", LOOPS)
def test_a_resumed_run_has_the_same_bits(tmp_path, name):
    config = make_config(name, shorten=True, iterations=6, eval_every=2, **TINY.get(name, {}))
    models = []
    for stop in (None, 3):

        def interrupt(record, stop=stop):
            if record["iteration"] == stop:
                raise KeyboardInterrupt

        with RunDirectory.create(tmp_path / f"run{stop}", save_config(config)) as run:
            if stop is not None:
                with pytest.raises(KeyboardInterrupt):
                    train(run, config.training, Tuning(config, config.problem.open(config.seed)), interrupt)
            train(run, config.training, Tuning(config, config.problem.open(config.seed)))
        models.append((run.path / MODEL).read_bytes())
    assert models[0] == models[1]


@pytest.mark.parametrize("name", LOOPS)
def test_hypergradients_agree_with_finite_differences(name):
    task = make_config(name, shorten=True, **TINY.get(name, {})).problem.open(0, np.float64)
    problem, batches = task.inner(1)
    rng = np.random.default_rng(0)
    hparams = {key: value + 0.1 * rng.random(value.shape) for key, value in task.init().items()}
    assert all(x.dtype == np.float64 for x in tree_leaves(hparams))
    check_hypergrad(problem, hparams, batches)


@pytest.mark.parametrize("name", LOOPS)
def test_another_draw_is_a_function_of_its_number(name):
    task = make_config(name, shorten=True, **TINY.get(name, {})).problem.open(0)
    again = make_config(name, shorten=True, **TINY.get(name, {})).problem.open(0)
    losses = []
    for one in (task, again, task):
        problem, batches = one.inner(2)
        hparams = one.init()
        losses.append(float(problem.outer_loss(problem.init(hparams), hparams).value))
        assert len(batches) == len(again.inner(2)[1])
    assert losses[0] == losses[1] == losses[2]
