"""The command `hypergrad profile`: it runs a script with its own arguments and shows what its replayed steps did."""

from typer.testing import CliRunner

from hypergrad.cli import app

SCRIPT = """
import sys
import numpy as np
import hypergrad as hg

problem = hg.Bilevel(lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum(w), lambda h: np.zeros(3), lambda h: hg.SGD(lr=0.1))
print(sys.argv[1:], hg.reverse(problem, np.ones(3), hg.full_batch(None, int(sys.argv[1]))).value)
"""


def test_a_table_and_a_figure(tmp_path):
    script, figure = tmp_path / "script.py", tmp_path / "profile.png"
    script.write_text(SCRIPT)
    found = CliRunner().invoke(app, ["profile", "--plot", str(figure), str(script), "20", "--own"])
    assert found.exit_code == 0, found.output
    assert "['20', '--own'] 2.9" in found.output and "sgd_step_value" in found.output and f"written: {figure}" in found.output
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_a_script_without_replays(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    found = CliRunner().invoke(app, ["profile", str(script), "3"])
    assert found.exit_code == 0 and "no step was replayed" in found.output
