"""What README.md and hypergrad/passes/README.md say, run; the other rooms' are run where those rooms are tested."""

import re
from pathlib import Path

import numpy as np
import pytest

import hypergrad as hg
from hypergrad.testing import check_gradients, check_hypergrad

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


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


def test_the_own_optimisers_and_the_scan_are_right():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "hypergrad/passes/README.md").read_text(), re.DOTALL)
    rng = np.random.default_rng(0)
    names: dict = {"np": np, "hg": hg}
    exec(compile(next(b for b in blocks if "class Learned" in b), "README.md", "exec"), names)
    lam = {
        "net": {"m": 0.3 * rng.standard_normal((4, 4)), "g": rng.standard_normal(4), "out": 0.1 * rng.standard_normal(4)},
        "lr": np.array(0.3),
        "limit": np.array(0.4),
    }
    for optimizer in (names["learned"], names["clipped"]):
        problem = hg.Bilevel(
            lambda w, h, b: hg.sum((hg.tanh(w["x"]) - 0.5) ** 2) + w["y"] ** 2,
            lambda w, h: hg.sum(w["x"] ** 2) + w["y"],
            lambda h: {"x": np.linspace(-1.0, 1.0, 5), "y": np.array(1.0)},
            optimizer,
        )
        check_hypergrad(problem, lam, hg.full_batch(None, 4), rtol=1e-8)
    exec(compile(next(b for b in blocks if "def cell" in b), "README.md", "exec"), names)
    lam = {"w": 0.5 * rng.standard_normal((3, 3)), "u": rng.standard_normal((3, 2))}
    check_gradients(lambda lam: names["loss"](lam, np.arange(12.0).reshape(6, 2) / 9), lam, order=1)


def test_it_is_short_and_what_it_links_to_is_there():
    assert len(README.splitlines()) < 220
    pages = [ROOT / "README.md", *(ROOT / "hypergrad").rglob("README.md"), ROOT / "csrc/README.md", ROOT / "bench/README.md"]
    for page in pages:
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#:]+)\)", prose):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
