"""`hypergrad sweep`: one table of many runs, resumed cell by cell, shared by processes."""

import csv
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from hypergrad.cli import app
from hypergrad.errors import ArgumentError
from hypergrad.runs.directory import RESULT, RunDirectory
from hypergrad.sweep import read_sweep

FILE = """
command = "tune"
seeds = [0, 1]
metrics = ["validation_score", "tuned_test_error"]
[settings]
problem = "ridge"
iterations = 2
eval-every = 1
[grid]
outer_lr = [0.1]
"""


def invoke(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep of two runs."""
    path = tmp_path_factory.mktemp("sweep")
    (path / "lr.toml").write_text(FILE)
    result = invoke("sweep", path / "lr.toml", "--quick", "--out", path / "out")
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture
def again(finished, tmp_path):
    """The arguments that repeat a copy of the sweep."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return ["sweep", tmp_path / "lr.toml", "--quick", "--out", tmp_path / "out"]


def rows(path):
    with open(path / "out" / "table.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_sweep_is_one_table(finished):
    found = rows(finished)
    assert [row["run"] for row in found] == ["outer_lr=0.1,seed=0", "outer_lr=0.1,seed=1"]
    assert [(row["outer_lr"], row["seed"], row["iterations"], row["error"]) for row in found] == [("0.1", s, "2", "") for s in "01"]
    assert len({row["validation_score"] for row in found}) == 2
    table = (finished / "out" / "table.md").read_text().splitlines()
    assert table[2] == "| outer_lr | seeds | validation_score | tuned_test_error |" and len(table) == 5
    mean = sum(float(row["validation_score"]) for row in found) / 2
    assert table[4].startswith(f"| 0.1 | 2 | {mean:.4g} ± ")


def test_the_same_command_runs_what_is_missing(again, tmp_path):
    before = rows(tmp_path)
    shutil.rmtree(tmp_path / "out" / "outer_lr=0.1,seed=1")  # as if it had been stopped before this one
    result = invoke(*again)
    assert result.exit_code == 0 and result.output.count("validation_score") == 1
    timed = {"training_s", "iteration_s", "command_s", "peak_bytes"}
    assert [{k: v for k, v in row.items() if k not in timed} for row in rows(tmp_path)] == [
        {k: v for k, v in row.items() if k not in timed} for row in before
    ]


def test_a_cell_that_another_process_runs_is_left_to_it(again, tmp_path):
    path = tmp_path / "out" / "outer_lr=0.1,seed=1"
    (path / RESULT).unlink()
    with RunDirectory(path):
        code = f"import sys; from hypergrad.cli import app; sys.argv[1:] = {[str(arg) for arg in again]}; app()"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("error: sweep: 1 of 2 runs have no result yet"), done.stderr
    assert [row["validation_score"] == "" for row in rows(tmp_path)] == [False, True]
    assert "| 0.1 | 1 | " in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_grid_grows_and_a_cell_that_fails_stands_in_the_table(again, tmp_path):
    (tmp_path / "lr.toml").write_text(FILE.replace("[0.1]", "[0.1, 1e200]").replace("[0, 1]", "[0]"))
    result = invoke(*again)
    assert result.exit_code == 1 and "2/2  outer_lr=1e+200,seed=0: failed: forward: w is not finite" in result.output, result.output
    assert ["diverged" in row["error"] for row in rows(tmp_path)] == [False, True]


def test_a_cell_of_other_settings_is_refused(again, tmp_path):
    (tmp_path / "lr.toml").write_text(FILE.replace("iterations = 2", "iterations = 3"))
    result = invoke(*again)
    assert result.exit_code == 1 and "was made with other settings, expected those of the file" in result.output


@pytest.mark.parametrize(
    "change, message",
    [
        (('"tune"', '"evaluate"'), "command is 'evaluate', expected one of train, tune"),
        (("seeds = [0, 1]", "seeds = 3"), "seeds is 3, expected a list"),
        (("seeds = [0, 1]", "seeds = [1, 1]"), "seeds is .*, expected a list of different values"),
        (("[0.1]", "[]"), "outer_lr is \\[\\], expected a list"),
        (("[0.1]", "[0.1, -1]"), "outer_lr is -1, expected a finite number > 0"),
        (("outer_lr", "learning_rate"), "unknown options learning_rate"),
        (("eval-every = 1", "outer_lr = 1.0"), "outer_lr is set twice"),
        (("eval-every = 1", "seed = 1"), "seed is set twice, expected once, and seeds as `seeds`"),
        (("[grid]", "[settings.more]"), "unknown options more"),
        (("command", "order"), "has order, expected some of command, seeds"),
        (("[settings]", "settings = 1\n[other]"), "has other"),
        (("iterations = 2", "iterations = "), "cannot be read .*expected a TOML file"),
    ],
)
def test_a_wrong_file_is_told_before_anything_runs(tmp_path, change, message):
    (tmp_path / "lr.toml").write_text(FILE.replace(*change))
    with pytest.raises(ArgumentError, match=message):
        read_sweep(tmp_path / "lr.toml")


def test_options_of_training_runs_and_their_short_form(tmp_path):
    (tmp_path / "a.toml").write_text('[settings]\nsweep = [1, 2]\n[grid]\nmethod = ["maml", "protonet"]\n')
    with pytest.raises(ArgumentError, match="unknown options sweep"):  # protonet has no inner steps
        read_sweep(tmp_path / "a.toml")
    (tmp_path / "a.toml").write_text('[grid]\nmethod = ["maml", "imaml"]\nsweep = [[1, 2], [3]]\n')
    sweep = read_sweep(tmp_path / "a.toml", shorten=True)
    assert [cell.name for cell in sweep.cells] == [f"method={m},sweep={s},seed=0" for m in ("maml", "imaml") for s in ("1+2", "3")]
    assert sweep.cells[0].config.method.sweep == (1, 2) and sweep.cells[0].config.training.iterations == 30
    with pytest.raises(ArgumentError, match="missing.toml cannot be read"):
        read_sweep(tmp_path / "missing.toml")
