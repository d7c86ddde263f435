"""The command line: the whole job on a small folder of images, its files, its errors, its exit codes."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from hypergrad.backends.cuda import CUDA
from hypergrad.cli import app
from hypergrad.fewshot import events

FILES = ["config.json", "metrics.jsonl", "model.safetensors", "state.safetensors", "result.json"]
FIGURES = ["curve.png", "pairs.png", "steps.png"]
SMALL = "--n-way 3 --n-query 3 --filters 4 --steps 2 --meta-batch 2 --eval-episodes 4 --test-episodes 6".split()


def invoke(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three splits of 4 classes of 6 noisy images, 16 x 16."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for c in range(4):
            directory = root / split / f"class{c}"
            directory.mkdir(parents=True)
            prototype = rng.integers(0, 150, (16, 16))
            for i in range(6):
                pixels = prototype + rng.integers(0, 105, (16, 16))
                Image.fromarray(pixels.astype(np.uint8)).save(directory / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def train_args(folder, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        yield ["train", "--data", "folder", "--root", folder, *SMALL, "--iterations", 6, "--eval-every", 3]


@pytest.fixture(scope="module")
def trained(train_args, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    result = invoke(*train_args, "--run-dir", path, "--tensorboard")
    assert result.exit_code == 0, result.output
    return path, result.output


def test_train_writes_every_file_and_ends_with_result_and_baseline(trained):
    path, output = trained
    assert all((path / name).stat().st_size > 0 for name in FILES + FIGURES)
    result = json.loads((path / "result.json").read_text())
    assert result["iterations"] == 6 and result["episodes"] == 6 and result["peak_bytes"] > 0
    assert all(name in output for name in FILES + FIGURES)
    share = r" +(\d+\.\d+) ± (\d+\.\d+) %"
    found = re.search(f"hyper-representation{share}\n +pixel nearest neighbour{share}", output)
    keys = ("test_accuracy", "test_interval", "baseline_accuracy", "baseline_interval")
    assert found and [float(x) for x in found.groups()] == pytest.approx([100 * result[key] for key in keys], abs=0.01)
    assert "validation loss" in output and "\x1b" not in output  # lines, no control codes, when it is no terminal


def test_figures_are_whole_pictures(trained):
    for name in FIGURES:
        with Image.open(trained[0] / name) as image:
            image.load()
            assert image.size[0] > 500 and len(np.unique(np.asarray(image.convert("L")))) > 20


def test_tensorboard_events_can_be_read_back(trained):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = accumulator.EventAccumulator(str(trained[0] / "tensorboard"))
    reader.Reload()
    records = [json.loads(line) for line in (trained[0] / "metrics.jsonl").read_text().splitlines()]
    losses = {record["iteration"]: record["loss"] for record in records if "loss" in record}
    assert {event.step: event.value for event in reader.Scalars("train/loss")} == pytest.approx(losses)
    assert [event.step for event in reader.Scalars("validation/accuracy")] == [3, 6]


def test_evaluate_gives_the_same_accuracy_again(trained):
    path, _ = trained
    result = invoke("evaluate", path, "--episodes", 6)
    assert result.exit_code == 0, result.output
    again = json.loads((path / "evaluation.json").read_text())
    first = json.loads((path / "result.json").read_text())
    assert {name: again[name] for name in again if name != "iteration"} == {name: first[name] for name in again if name != "iteration"}
    assert "evaluation.json" in result.output


def test_resume_of_a_finished_run_repeats_the_result(trained):
    path, _ = trained
    before = (path / "model.safetensors").read_bytes()
    result = invoke("train", "--resume", path)
    assert result.exit_code == 0, result.output
    assert (path / "model.safetensors").read_bytes() == before


def test_control_c_saves_and_says_how_to_go_on(train_args, tmp_path):
    path = tmp_path / "run"
    args = [str(arg) for arg in train_args] + ["--iterations", "100000", "--patience", "100000", "--run-dir", str(path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "hypergrad.cli", *args],
        cwd=path.parent,  # not the checkout, whose folder would stand in for the installed package
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (path / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 130, errors
    assert f"hypergrad train --resume {path}" in output and "Traceback" not in errors
    assert (path / "state.safetensors").exists()


@pytest.mark.parametrize(
    "args, message",
    [
        (["--n-way", 9], "has 4 classes, expected at least 9 .*lower n_way"),
        (["--n-way", 1], "n_way is 1, expected at least 2"),
        (["--k-shot", 5], "k_shot \\+ n_query"),
        (["--preset", "best"], "preset is 'best'"),
        (["--data", "cifar"], "data is 'cifar'"),
        (["--outer-lr", "nan"], "outer_lr is nan"),
        (["--device", "gpu"], "device is 'gpu', expected one of cpu, cuda"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_run(train_args, tmp_path, args, message):
    result = invoke(*train_args, *args, "--run-dir", tmp_path / "run")
    assert result.exit_code == 1
    assert re.search(f"^error: .*{message}", result.output, re.M), result.output
    assert "Traceback" not in result.output and not (tmp_path / "run").exists()


@pytest.mark.skipif(CUDA.device_count() > 0, reason="there is a GPU")
def test_a_missing_gpu_is_told_before_anything_is_written(train_args, trained, tmp_path):
    for args in ((*train_args, "--device", "cuda", "--run-dir", tmp_path / "run"), ("evaluate", trained[0], "--device", "cuda")):
        result = invoke(*args)
        assert result.exit_code == 1
        assert re.search(r"^error: device: (the compiled extension .*_cuda is missing|there is no CUDA device)", result.output, re.M)
    assert not (tmp_path / "run").exists()


def test_debug_shows_the_traceback(train_args, tmp_path):
    result = invoke(*train_args, "--n-way", 1, "--run-dir", tmp_path / "run", "--debug")
    assert result.exit_code == 1 and type(result.exception).__name__ == "ArgumentError"


def test_settings_cannot_be_changed_on_resume(trained):
    result = invoke("train", "--resume", trained[0], "--n-way", 4)
    assert result.exit_code == 1 and "--resume came with n_way" in result.output


def test_a_taken_run_directory_and_a_missing_run_are_refused(train_args, trained, tmp_path):
    taken = invoke(*train_args, "--run-dir", trained[0])
    assert taken.exit_code == 1 and "exists already" in taken.output
    missing = invoke("evaluate", tmp_path)
    assert missing.exit_code == 1 and "has no config.json" in missing.output


def test_missing_tensorboard_is_told_before_training(train_args, tmp_path, monkeypatch):
    monkeypatch.setattr(events.importlib.util, "find_spec", lambda name: None)
    result = invoke(*train_args, "--tensorboard", "--run-dir", tmp_path / "run")
    assert result.exit_code == 1 and "pip install tensorboard" in result.output
    assert not Path(tmp_path / "run").exists()


def test_info_names_the_extensions():
    result = invoke("info")
    assert result.exit_code == 0
    for word in ("hypergrad", "numpy", "_host", "_cuda", "threads", "SIMD", "GPU"):
        assert word in result.output
