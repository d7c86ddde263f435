"""The command `hypergrad tune`: its options, its errors, runs of other commands, problems in a folder of one's own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hypergrad.cli import app
from hypergrad.errors import ArgumentError
from hypergrad.hpo.config import make_config, save_config
from hypergrad.hpo.hypergradient import Hypergradient
from hypergrad.hpo.problems import PROBLEMS
from hypergrad.hpo.tuning import Tuning
from hypergrad.runs.directory import RunDirectory
from hypergrad.runs.loop import train

README = Path(__file__).parents[2] / "hypergrad/hpo/README.md"
SMALL = ["hyper-cleaning", "--quick", "--n-train", 20, "--n-validation", 20, "--n-test", 20, "--iterations", 2, "--eval-every", 1]


def invoke(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_a_problem_is_one_file_in_a_folder(tmp_path):
    """A problem of one's own (hpo/README.md) in a folder of HYPERGRAD_PROBLEMS is listed, tuned and resumed; its option is one, too."""
    (tmp_path / "problems").mkdir()
    code = next(block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "class StepSize" in block)
    (tmp_path / "problems" / "step_size.py").write_text(code)
    (tmp_path / "problems" / "helper.py").write_text("from hypergrad.hpo.problem import Problem\n")  # defines no problem
    environment = {**os.environ, "HYPERGRAD_PROBLEMS": str(tmp_path / "problems")}

    def hypergrad(*args):
        command = [sys.executable, "-m", "hypergrad.cli", *map(str, args)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    listed = hypergrad("problems")
    assert "step-size" in listed and "helper" not in listed
    assert "Second derivative of the parabola." in hypergrad("tune", "--help")
    output = hypergrad("tune", "step-size", "--curvature", 1, "--run-dir", "run")
    assert "step-size on a parabola" in output
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert 0.5 < result["lr"] < 1.5  # one step with 1 / curvature ends at the minimum
    hypergrad("tune", "--resume", "run", "--iterations", 32)
    unknown = invoke("tune", "--resume", tmp_path / "run")
    assert unknown.exit_code == 1 and "problem is 'step-size', expected one of" in unknown.output


def test_the_table_names_every_problem():
    output = invoke("problems").output
    assert all(name in output and kind.title in output for name, kind in PROBLEMS.items())
    assert all(name in invoke("info").output for name in PROBLEMS)


def test_options_are_kept_and_a_resumed_run_may_change_few(tmp_path):
    path = tmp_path / "run"
    first = invoke("tune", *SMALL, "--noise", 0.25, "--checkpoints", "sqrt", "--run-dir", path)
    assert first.exit_code == 0, first.output
    record = json.loads((path / "config.json").read_text())
    assert record["problem"]["name"] == "hyper-cleaning" and record["problem"]["noise"] == 0.25
    assert record["hypergradient"]["checkpoints"] == "sqrt" and record["training"]["iterations"] == 2
    assert "5 wrong labels" in first.output
    refused = invoke("tune", "hyper-cleaning", "--resume", path, "--noise", 0.1, "--quick")
    assert refused.exit_code == 1
    assert "tune: --resume came with noise, PROBLEM, --quick, expected none but --root, --iterations, --patience" in refused.output
    assert invoke("tune", "--resume", path, "--iterations", 3).exit_code == 0
    fewer = invoke("tune", "--resume", path, "--iterations", 1)
    assert fewer.exit_code == 1 and "iterations is 1, expected at least 3" in fewer.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["tune"], "PROBLEM is missing, expected one of .*hyper-cleaning"),
        (["tune", "cleaning"], "problem is 'cleaning', expected one of .*hyper-cleaning"),
        (["tune", *SMALL, "--data", "cifar"], "data is 'cifar', expected one of glyphs, digits, mnist"),
        (["tune", *SMALL, "--root", "nowhere"], "root .*nowhere is no folder, expected one .* with its files .*put MNIST's four files"),
        (["tune", *SMALL, "--data", "glyphs", "--root", "nowhere"], "expected none because they need no file"),
        (["tune", *SMALL, "--mode", "backward"], "mode is 'backward', expected one of reverse, forward, implicit"),
        (["tune", *SMALL, "--checkpoints", "0"], "checkpoints is '0', expected all, sqrt, host, reversible or a number"),
        (["tune", *SMALL, "--noise", "1.5"], "noise is 1.5, expected at most 1"),
        (["tune", *SMALL, "--n-steps", "0"], "n_steps is 0, expected at least 1"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_run(tmp_path, args, message):
    result = invoke(*args, "--run-dir", tmp_path / "run")
    assert result.exit_code == 1 and re.search(f"^error: .*{message}", result.output, re.M), result.output
    assert "Traceback" not in result.output and not (tmp_path / "run").exists()


def test_runs_of_other_commands_are_told_apart(tmp_path):
    path = tmp_path / "few-shot"
    RunDirectory.create(path, {"format": 3}).close()
    result = invoke("tune", "--resume", path)
    assert result.exit_code == 1 and 'has format 3, expected "tune-1"; it is a run of `hypergrad train`' in result.output
    RunDirectory.create(tmp_path / "tuned", save_config(make_config())).close()
    result = invoke("train", "--resume", tmp_path / "tuned")
    assert result.exit_code == 1 and 'has format "tune-1"' in result.output


@pytest.mark.parametrize("changes", [{"mode": "forward"}, {"checkpoints": "2"}, {"checkpoints": "host"}])
def test_every_pass_tunes_alike(tmp_path, changes):
    sizes = {"n_train": 10, "n_validation": 10, "n_test": 10, "iterations": 3, "eval_every": 3}
    ends = []
    for i, own in enumerate(({}, changes)):
        config = make_config("hyper-cleaning", shorten=True, **sizes, **own)
        with RunDirectory.create(tmp_path / str(i), save_config(config)) as run:
            state = train(run, config.training, Tuning(config, config.problem.open(0)))
        ends.append(state.hparams["weights"])
    assert abs(ends[0] - ends[1]).max() < 1e-4


@pytest.mark.parametrize("name", [name for name, kind in PROBLEMS.items() if "implicit" in kind.modes])
@pytest.mark.filterwarnings("ignore:implicit")  # of a short run, the end is no solution
def test_the_implicit_pass_tunes_what_has_a_solution(tmp_path, name):
    config = make_config(name, shorten=True, mode="implicit", iterations=4, eval_every=2, damping=0.01)
    with RunDirectory.create(tmp_path / "run", save_config(config)) as run:
        state = train(run, config.training, Tuning(config, config.problem.open(0)))
        losses = [record["loss"] for record in run.read_metrics() if "loss" in record]
    assert state.iteration == 4 and losses[-1] < losses[0]


def test_a_policy_that_is_none_is_refused():
    with pytest.raises(ArgumentError, match="checkpoints is 'some'"):
        Hypergradient(checkpoints="some")
