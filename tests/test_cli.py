"""The command line: the whole job on a small folder of images, its files, its errors, its exit codes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from kills import outcome
from PIL import Image
from typer.testing import CliRunner

from hypergrad.backends.cuda import CUDA
from hypergrad.cli import app
from hypergrad.runs import events
from hypergrad.runs.directory import RunDirectory
from hypergrad.runs.machine import without_paths

README = Path(__file__).parents[1] / "hypergrad/fewshot/README.md"
FILES = ["config.json", "metrics.jsonl", "model.safetensors", "state.safetensors", "result.json"]
FIGURES = ["curve.png", "pairs.png", "steps.png"]
SMALL = "--n-way 3 --n-query 3 --filters 4 --n-steps 2 --meta-batch 2 --eval-episodes 4 --test-episodes 6".split()


def without_steps(args):
    """For a method without inner steps."""
    at = args.index("--n-steps")
    return [*args[:at], *args[at + 2 :]]


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


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_control_c_saves_and_says_how_to_go_on_to_the_same_files(train_args, tmp_path, twice):
    path, whole = tmp_path / "struck" / "run", tmp_path / "whole" / "run"
    args = [str(arg) for arg in train_args] + ["--iterations", "300"]
    path.parent.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "hypergrad.cli", *args, "--run-dir", str(path)],
        cwd=path.parent,  # not the checkout, whose folder would stand in for the installed package
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell ignores it in its background jobs
    )
    metrics = path / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") > 9) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    if twice:
        process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 130, errors
    assert f"hypergrad train --resume {path}" in output and "Traceback" not in errors
    assert (path / "state.safetensors").exists() and not (path / "result.json").exists()
    for more in (["train", "--resume", path], [*args, "--run-dir", whole]):
        result = invoke(*more)
        assert result.exit_code == 0, result.output
    assert outcome(path) == outcome(whole)


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
    result = invoke("train", "--resume", trained[0], "--n-way", 4, "--quick")
    assert (
        result.exit_code == 1 and "--resume came with n_way, --quick, expected none but --root, --iterations, --patience" in result.output
    )


def test_a_finished_run_is_extended(trained, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(trained[0], path)
    result = invoke("train", "--resume", path, "--iterations", 8)
    assert result.exit_code == 0, result.output
    assert json.loads((path / "config.json").read_text())["training"]["iterations"] == 8
    assert json.loads((path / "result.json").read_text())["iterations"] == 8
    fewer = invoke("train", "--resume", path, "--iterations", 5)
    assert fewer.exit_code == 1 and "iterations is 5, expected at least 8" in fewer.output


def test_a_run_of_format_2_still_evaluates(trained, tmp_path):
    """The files as the last version with one method wrote them: options side by side, other names in the metadata."""
    path = tmp_path / "run"
    shutil.copytree(trained[0], path)
    record = json.loads((path / "config.json").read_text())
    flat = {key: value for key, value in record.items() if not isinstance(value, dict)}
    flat |= {key: value for section in record.values() if isinstance(section, dict) for key, value in section.items() if key != "name"}
    del flat["outer_optimizer"]
    (path / "config.json").write_text(json.dumps({**flat, "image_size": 16, "format": 2}))  # without it, images were read at 84x84
    with RunDirectory(path) as run:
        tensors, metadata = run.read_tensors("model.safetensors")
        run.write_tensors("model.safetensors", tensors, {"iteration": metadata["iteration"], "validation_accuracy": 0.5})
    result = invoke("evaluate", path, "--episodes", 6)
    assert result.exit_code == 0, result.output
    first, again = json.loads((trained[0] / "result.json").read_text()), json.loads((path / "evaluation.json").read_text())
    assert {name: first[name] for name in again if name != "iteration"} == {name: again[name] for name in again if name != "iteration"}


def test_a_method_is_one_file(train_args, tmp_path):
    """One's own method (fewshot/README.md) in a folder of HYPERGRAD_METHODS is trained, resumed and evaluated; its option is one, too."""
    code = next(block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "class PixelWeights" in block)
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "pixel_weights.py").write_text(code)
    helper = "from hypergrad.fewshot.methods.maml import MAML\n"
    (tmp_path / "methods" / "helper.py").write_text(helper)  # defines no method: what it imports is none of its own
    environment = {**os.environ, "HYPERGRAD_METHODS": str(tmp_path / "methods")}

    def hypergrad(*args):
        command = [sys.executable, "-m", "hypergrad.cli", *map(str, args)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    listed = hypergrad("methods")
    assert "pixel-weights" in listed and "helper" not in listed
    assert "Initial weight of every pixel." in hypergrad("train", "--help")
    output = hypergrad(*without_steps(train_args), "--method", "pixel-weights", "--start", 2, "--run-dir", "run")
    assert re.search(r"weighted pixels +\d+\.\d+ ± \d+\.\d+ %\n +pixel nearest neighbour", output)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["method"] == {"name": "pixel-weights", "start": 2.0}
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert len({line["loss"] for line in lines if "loss" in line}) == 6
    assert "weighted pixels" in hypergrad("evaluate", "run", "--episodes", 4)
    hypergrad("train", "--resume", "run", "--iterations", 8)
    unknown = invoke("evaluate", tmp_path / "run")
    assert unknown.exit_code == 1 and "method is 'pixel-weights', expected one of " in unknown.output


@pytest.mark.parametrize("method", ["maml", "protonet"])
def test_other_methods_are_trained_by_the_command(train_args, tmp_path, method):
    result = invoke(*(train_args if method == "maml" else without_steps(train_args)), "--method", method, "--run-dir", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "steps.png").exists() == (method == "maml")
    assert invoke("evaluate", tmp_path / "run", "--episodes", 4).exit_code == 0


def test_an_option_of_another_method_is_refused(train_args, tmp_path):
    result = invoke(*train_args, "--method", "protonet", "--run-dir", tmp_path / "run")
    assert result.exit_code == 1 and "unknown options n_steps, expected some of" in result.output


def test_methods_and_version():
    result = invoke("methods")
    assert result.exit_code == 0 and all(word in result.output for word in ("hyper-representation", "maml", "protonet", "paper", "arXiv"))
    help_text = " ".join(re.sub("[│\n]", " ", invoke("train", "--help").output).split())
    assert re.search(r"Which method: hyper-representation, [a-z, -]*\. \[default: hyper-representation\]", help_text)
    assert re.fullmatch(r"hypergrad \d+\.\d+\.\d+\n", invoke("--version").output)


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


def test_a_bug_report_has_the_machine_and_no_path(monkeypatch):
    monkeypatch.setenv("HYPERGRAD_CACHE", "/home/person/cache")
    monkeypatch.setenv("HYPERGRAD_NUM_THREADS", "2")
    monkeypatch.setenv("SECRET_TOKEN", "secret")
    result = invoke("info", "--bug-report")
    assert result.exit_code == 0 and result.output.startswith("```text\n") and result.output.endswith("```\n")
    lines = dict(re.split(r"\s+", line, maxsplit=1) for line in result.output.splitlines()[1:-1])
    assert {"hypergrad", "python", "SIMD", "threads", "GPU", "processor", "memory", "nvcc", "numpy"} <= set(lines)
    assert lines["HYPERGRAD_CACHE"] == "<path>" and lines["HYPERGRAD_NUM_THREADS"] == "2"
    assert "person" not in result.output and "secret" not in result.output and str(Path.home()) not in result.output


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no file /home/person/x.so: missing", "no file <path>: missing"),
        ("~/data and C:\\Users\\person\\x", "<path> and <path>"),
        ("1/2 of 3.5 GiB, x86_64", "1/2 of 3.5 GiB, x86_64"),
    ],
)
def test_paths_are_hidden(text, shown):
    assert without_paths(text) == shown
