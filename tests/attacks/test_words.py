"""What the commands print: names of strangers without control codes, closed and full streams, readers that leave, absurd sizes."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from rich.console import Console
from typer.testing import CliRunner

import hypergrad.cli
from hypergrad.data import Reporter
from hypergrad.errors import ArgumentError
from hypergrad.fewshot.config import make_config, save_config
from hypergrad.fewshot.prediction import Predictions
from hypergrad.guards import printable
from hypergrad.runs import curves, terminal
from hypergrad.runs.directory import RunDirectory

CLEAR = "\x1b[2J\x1b]0;owned\x07[bold]x[/] $\\frac$ \u202egnp.exe \udcff"


def program(tail, **options):
    """A command in a shell, which opens and closes its streams. Returns: its status, and standard output and error."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OPENBLAS_NUM_THREADS": "1"}
    command = f"set -o pipefail; {sys.executable} -m hypergrad.cli {tail}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, timeout=120, **options)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("tail", "status", "error"),
    [
        ("info > /dev/full", 1, "error: output: it cannot be written (No space left on device)"),
        ("info > /dev/full 2>&1", 1, ""),
        ("info >&-", 0, ""),
        ("info <&- >&- 2>&-", 0, ""),
        ("info | head -1", None, ""),
        ("evaluate nowhere 2> /dev/full", 1, ""),
    ],
)
def test_streams_that_are_full_closed_or_left(tail, status, error):
    found, out, err = program(tail)
    assert found == status or status is None
    assert err.startswith(error) and err.count("\n") == bool(error)
    assert out.count("\n") == ("head" in tail)


def test_a_closed_stream_gives_its_number_to_no_file_of_a_run(tmp_path):
    """Standard output and error are closed, so the next files opened would get their numbers, and with them what a library prints."""
    code = (
        "import os, sys; from hypergrad.cli import app; from hypergrad.runs.directory import RunDirectory as R\n"
        "try:\n    app(['info'])\nexcept SystemExit:\n    pass\n"
        f"run = R.create({str(tmp_path / 'run')!r}, {{}}); run.append_metrics({{'iteration': 1}}); os.write(1, b'a library'); run.close()"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(["bash", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, code], env=environment, check=True, timeout=120)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == '{"iteration": 1}\n'


# ------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 漢字", "plain é 漢字"),
        ("\x1b[31m", "\\x1b[31m"),
        ("a\rb\tc\nd", "a\\rb\\tc\\nd"),
        ("\u202e\u200b\udcff\x9b", "\\u202e\\u200b\\udcff\\x9b"),
        ("a" * 4001, "a" * 4000 + "…"),
    ],
)
def test_text_of_strangers_is_shown_as_it_is_written(text, shown):
    assert printable(text) == shown
    assert printable("a\nb", lines=True) == "a\nb"


def test_names_of_strangers_reach_no_terminal_as_codes(capsys, tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True)
    Reporter(console).message(CLEAR)
    terminal.echo(CLEAR)
    terminal.echo(CLEAR + "\nerror: another", err=True)
    found = Predictions((CLEAR, "b"), (CLEAR, "[/x]"), np.full((2, 2), 0.5), (), (8, 8, 1))
    hypergrad.cli._show_predictions(found)
    out, err = capsys.readouterr()
    for text in (console.file.getvalue(), out, err):
        assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text and "\\x1b[2J" in text
    assert "[bold]x[/]" in out and "[/x]" in out and err.count("\n") == 1


def test_an_error_about_a_stranger_is_one_line(tmp_path):
    place = tmp_path / "run\x1b[2J\nerror: fake"
    result = CliRunner().invoke(hypergrad.cli.app, ["evaluate", str(place)])
    assert result.exit_code == 1 and "\x1b" not in result.output and result.output.count("\n") == 1


def test_figures_of_strangers_are_drawn(tmp_path):
    records = [{"iteration": 1, "loss": 0.5, "accuracy": 0.5, "seconds": 1.0}]
    for text in (CLEAR, "$x$ and $", "\\", "$\\undefined$"):
        assert curves.curve(records, curves.plain(text)).startswith(b"\x89PNG")
    config = make_config()
    with RunDirectory.create(tmp_path / "$\\run$", save_config(config)) as run:
        title = hypergrad.fewshot.evaluation.title_of(run, config, tiny.tiny_data())
        assert curves.curve(records, title).startswith(b"\x89PNG")


def test_a_message_that_cannot_be_written_is_dropped():
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    Reporter(Console(file=Full())).message("decoding")


# ------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, 10**30) for name in ("n_way", "k_shot", "n_query", "meta_batch", "filters", "blocks", "n_steps", "seed", "iterations")],
        *[(name, 10**30) for name in ("eval_every", "patience", "eval_episodes", "test_episodes", "image_size")],
        ("blocks", 33),
        ("sweep", (1, 10**30)),
        ("outer_lr", float("inf")),
        ("outer_lr", float("nan")),
    ],
)
def test_absurd_values_are_refused(name, value):
    with pytest.raises(ArgumentError, match=f"config: {name} is .*, expected"):
        make_config(**{name: value})


def test_an_exhausted_memory_is_one_line(monkeypatch):
    def exhaust():
        raise MemoryError("Unable to allocate 288 GiB")

    monkeypatch.setattr(hypergrad.cli, "_environment", exhaust)
    result = CliRunner().invoke(hypergrad.cli.app, ["info"])
    assert result.exit_code == 1
    assert result.output == "error: memory: Unable to allocate 288 GiB, expected enough for these sizes; ask for smaller ones\n"
