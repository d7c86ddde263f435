"""The guides of hypergrad.examples run, and the command lists and runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hypergrad.examples.__main__ import FOLDER, GUIDES, run, title


def test_every_file_is_a_guide() -> None:
    assert sorted(GUIDES) == sorted(p.stem for p in FOLDER.glob("*.py") if not p.stem.startswith("_"))
    assert all(len(title(guide)) > 20 for guide in GUIDES.values())


@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_runs_and_what_it_claims_holds(name: str, capsys: Any) -> None:
    assert run([name]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"== {name}: ") and len(out.splitlines()) > 2


def test_the_list_and_an_unknown_name(capsys: Any) -> None:
    assert run([]) == 0
    out = capsys.readouterr().out
    assert all(name in out and title(guide) in out for name, guide in GUIDES.items())
    assert run(["laws", "nothing"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "there is no guide nothing, expected some of " in captured.err


def test_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hypergrad.examples", "laws"]  # elsewhere: in a checkout it would find the sources
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "steps run again" in done.stdout
