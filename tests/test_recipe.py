"""The recipe of csrc/README.md for an op with kernels: four new files, nothing else, and the op is there, tested, on host and emulator."""

import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPE = (ROOT / "csrc/README.md").read_text().partition("## How to add an op")[2]
SNIPPET = re.compile(r"`((?:hypergrad|csrc|tests)/[\w/]+/\w+\.(?:py|cpp|cu))`(?:(?!```).)*?\n```(?:python|cpp|cuda)\n(.*?)```", re.S)
FILES = {path: text for path, text in SNIPPET.findall(RECIPE) if path != "hypergrad/ops/elementwise.py"}
HOST = ["-DHG_SIMD=baseline", "-DHG_LEVEL=::hg::kBaseline", "-DHG_VECTOR_BYTES=16", "-DHG_TILE=6"]

USE = """
import numpy as np
import hypergrad as hg
from cases.running_sum import CASES
from checks import check_float32, check_float64, check_layouts, check_outputs_written
from hypergrad import backends
from hypergrad.backends.emulated import EMULATED
from hypergrad.backends.host import HOST
from hypergrad.rules import REGISTRY
from hypergrad.testing import check_gradients
from test_ops import test_every_public_op_has_a_case, test_names_of_cases_are_unique

test_every_public_op_has_a_case()
test_names_of_cases_are_unique()
assert "running_sum" in hg.__all__ and REGISTRY["running_sum"].proven
for backend in (HOST, EMULATED):
    backends.HOST = backend
    for case in CASES:
        check_float64(case)
        check_float32(case)
        check_layouts(case, np.float32)
    check_gradients(lambda x: hg.sum(hg.tanh(hg.running_sum(x)) ** 2), np.linspace(-1, 1, 12).reshape(4, 3))
    rows = np.arange(6.0).reshape(3, 2)
    y, grad = hg.value_and_grad(lambda x: hg.sum(hg.running_sum(x) * np.array([[1.0], [10.0], [100.0]])))(rows)
    assert y == 1 * 1 + 10 * 6 + 100 * 15 and (grad == [[111, 111], [110, 110], [100, 100]]).all()
    assert (hg.jvp(hg.running_sum, (rows,), (rows,))[1] == np.cumsum(rows, 0)).all()
backends.HOST = HOST
check_outputs_written(CASES[1], np.float64)
print("the op works")
"""


def test_the_recipe_is_four_files_that_are_not_there():
    assert len(FILES) == 4 and {Path(path).parent.as_posix() for path in FILES} == {
        "hypergrad/ops",
        "csrc/host",
        "csrc/cuda",
        "tests/cases",
    }
    assert not any((ROOT / path).exists() for path in FILES)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ on the PATH")
def test_an_op_is_four_files(tmp_path):
    pybind11 = pytest.importorskip("pybind11")
    for folder in ("hypergrad", "csrc", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for path, text in FILES.items():
        (tmp_path / path).write_text(text)
    common = [f"csrc/{name}.cpp" for name in ("bind", "check", "levels", "table")]
    modules = {
        "_host": ([*common, "csrc/memory.cpp", "csrc/threads.cpp", "csrc/host/running_sum.cpp"], HOST),
        "_emulated": (
            [*common, "csrc/emulator/runtime.cpp", "csrc/emulator/fiber.cpp", "csrc/cuda/running_sum.cu"],
            ["-DHG_EMULATED_MODULE", "-march=native"],
        ),
    }
    flags = ["-std=c++17", "-O0", "-fPIC", "-fvisibility=hidden", "-Wno-psabi", "-pthread", "-I", sysconfig.get_path("include")]
    flags += ['-DHG_VERSION="recipe"', '-DHG_CUDA_STATUS="none"']
    jobs = [(module, source, own) for module, (sources, own) in modules.items() for source in sources]

    def compiled(job):
        module, source, own = job
        target = tmp_path / f"{module}-{Path(source).name}.o"
        command = ["g++", *flags, *own, "-I", pybind11.get_include(), "-x", "c++", "-c", tmp_path / source, "-o", target]
        subprocess.run(command, check=True, timeout=300)
        return module, target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, jobs))
    for module in modules:
        target = tmp_path / "hypergrad" / f"{module}{sysconfig.get_config_var('EXT_SUFFIX')}"
        subprocess.run(["g++", "-shared", "-pthread", *(o for m, o in objects if m == module), "-o", target], check=True, timeout=300)
    result = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=tmp_path / "tests",
        env={"PYTHONPATH": f"{tmp_path}:{tmp_path / 'tests'}", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.stdout.strip() == "the op works", result.stderr[-4000:]
