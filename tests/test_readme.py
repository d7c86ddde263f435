"""What the README says, run."""

import re
from pathlib import Path

import numpy as np
import pytest

import hypergrad as hg

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_set_up_is_two_commands():
    commands = re.findall(r"```sh\n(pip install.*)\n```", README)
    assert commands == ["pip install . && hypergrad train", "pip install '.[test]' && pytest"]


def test_the_example_finds_the_noisy_labels_and_both_modes_agree(capsys):
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "import hypergrad" in block)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["noisy"] < -0.5 < 0.5 < names["clean"]
    both = names["hg"].reverse(names["problem"], names["lam"] | names["two"], names["steps"])
    assert names["f"].grad["lr"] == pytest.approx(both.grad["lr"], rel=1e-9)
    assert names["f"].grad["momentum"] == pytest.approx(both.grad["momentum"], rel=1e-9)
    assert "held 3 states" in capsys.readouterr().out


def test_the_numpy_example_gives_the_gradient():
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "def loss" in block)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((50, 20)), rng.integers(0, 2, 50)
    names: dict = {"np": np, "hg": hg, "x": x, "y": y}
    exec(compile(code, "README.md", "exec"), names)
    sign = np.where(y == 0, 1.0, -1.0)
    assert np.allclose(names["gradient"], -(sign[:, None] * x).mean(0) / 2, rtol=1e-12)
