"""`python -m pytest` in a checkout: it tests the package that has kernels, or says in one line what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hypergrad
from hypergrad import _host

PACKAGE, TESTS = Path(hypergrad.__file__).parent, Path(__file__).parent
TEST = """
import os, subprocess, sys
from pathlib import Path
import hypergrad, hypergrad._host

def test_package():
    code = "import hypergrad; print(hypergrad.__file__)"
    child = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    assert child.stdout.strip() == hypergrad.__file__
    Path(os.environ["FOUND"]).write_text(hypergrad.__file__)
"""
HIDES = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == "hypergrad":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The package's Python files, the suite's settings and one test."""
    root = tmp_path / "checkout"
    (root / "tests").mkdir(parents=True)
    shutil.copytree(PACKAGE, root / "hypergrad", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy(TESTS / "conftest.py", root / "tests")
    shutil.copy(TESTS.parent / "pyproject.toml", root)
    (root / "tests/test_package.py").write_text(TEST)
    return root


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder on the path that holds the whole package."""
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed/hypergrad").symlink_to(PACKAGE)
    extension = tmp_path / "installed/hypergrad" / Path(_host.__file__).name
    if not extension.exists():
        pytest.skip("the compiled extension lies apart from the package")
    return tmp_path / "installed"


def run(checkout: Path, *path: Path, options: tuple[str, ...] = ()) -> tuple[subprocess.CompletedProcess[str], str]:
    """`python -m pytest` in the checkout with these folders on the path; and which package the test found."""
    found = checkout / "found"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, path)), "FOUND": str(found)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    result = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=120)
    return result, found.read_text() if found.exists() else ""


@pytest.mark.parametrize("workers", ["0", "1"])
def test_without_kernels_the_installed_package_is_tested(checkout: Path, installed: Path, workers: str) -> None:
    pytest.importorskip("xdist")
    result, found = run(checkout, installed, options=("-n", workers))
    assert result.returncode == 0, result.stdout + result.stderr
    assert Path(found).parent == installed / "hypergrad"


@pytest.mark.parametrize("workers", ["0", "1"])
def test_with_kernels_the_checkout_is_tested(checkout: Path, installed: Path, workers: str) -> None:
    pytest.importorskip("xdist")
    shutil.copy(_host.__file__, checkout / "hypergrad")
    result, found = run(checkout, installed, options=("-n", workers))
    assert result.returncode == 0, result.stdout + result.stderr
    assert Path(found).parent == checkout / "hypergrad"


def test_without_any_kernels_one_line_says_what_to_do(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "hides").mkdir()
    (tmp_path / "hides/sitecustomize.py").write_text(HIDES)
    result, _ = run(checkout, tmp_path / "hides")
    said = (result.stdout + result.stderr).strip()
    assert result.returncode == pytest.ExitCode.USAGE_ERROR and said.count("\n") == 0
    assert said.startswith("ERROR: hypergrad is not installed") and said.endswith("pip install '.[test]'")
