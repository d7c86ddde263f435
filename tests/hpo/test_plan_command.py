"""The command `hypergrad plan`: a table, a choice within the budget, a figure, and a refusal that says what fits."""

import re

import pytest
from typer.testing import CliRunner

from hypergrad.cli import app


def plan(*arguments):
    return CliRunner().invoke(app, ["plan", *arguments])


def test_a_table_and_a_figure(tmp_path):
    found = plan("ridge", "--quick", "--memory", "1000", "--plot", str(tmp_path / "plan.png"))
    assert found.exit_code == 0, found.output
    assert "at most 1 GB" in found.output and re.search(r"^-> +(reverse|forward), ", found.output, re.MULTILINE)
    assert all(f"reverse, {name}" in found.output for name in ("all", "sqrt", "host"))
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_options_of_the_problem_count():
    found = plan("hyper-cleaning", "--quick", "--n-steps", "7")
    assert found.exit_code == 0 and "T = 7 steps, N = 100 hyperparameters, no limit of memory" in found.output, found.output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("ridge", "--quick", "--memory", "0.001"), "plan: memory_bytes is 1000, expected at least"),
        (("rigde",), "problem is 'rigde'"),
        (("online", "--quick"), "online is one training run, expected a problem with an outer loop"),
    ],
)
def test_refusals(arguments, text):
    found = plan(*arguments)
    assert found.exit_code == 1 and text in found.output.replace("\n", " ")
