"""What the package is built from and what it says about its build."""

import os
import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from hypergrad import _host

ROOT = Path(__file__).parents[1]


def test_build_info_says_what_was_built():
    info = _host.build_info()
    assert re.fullmatch(r"(GCC|Clang) \d+\..*", info["compiler"])
    assert info["simd"] in info["simd_supported"]
    assert set(info["simd_supported"]) <= set(info["simd_compiled"])
    assert "baseline" in info["simd_compiled"]
    assert info["cuda"].startswith(("CPU only: ", "CUDA "))
    assert info["threads"] == _host.threads() >= 1
    assert _host.device_count() == 0


def test_version_is_written_once():
    declared = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert declared and _host.build_info()["version"] == declared[1]


def test_types_are_published():
    assert resources.files("hypergrad").joinpath("py.typed").is_file()


def test_every_host_kernel_is_declared_once():
    """signatures.h declares exactly the kernels that the sources register."""
    declared = re.findall(r"constexpr Signature (\w+)\{", (ROOT / "csrc/signatures.h").read_text())
    registered = [name for p in (ROOT / "csrc/host").glob("*.cpp") for name in re.findall(r"^HG_KERNEL\((\w+),", p.read_text(), re.M)]
    assert sorted(declared) == sorted(registered) == sorted(_host.kernels())


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake on the PATH")
def test_demanding_cuda_fails_with_the_remedy(tmp_path):
    """HYPERGRAD_CUDA=ON must not end in a CPU-only build."""
    pybind11 = pytest.importorskip("pybind11")
    elsewhere = [d for d in os.environ["PATH"].split(os.pathsep) if not (Path(d) / "nvcc").exists()]
    without = {k: v for k, v in os.environ.items() if not k.startswith("CUDA")}
    result = subprocess.run(
        ["cmake", "-S", ROOT, "-B", tmp_path, "-DHYPERGRAD_CUDA=ON", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**without, "PATH": os.pathsep.join(elsewhere)},
    )
    assert result.returncode != 0
    assert "HYPERGRAD_CUDA=ON" in result.stderr and "-DHYPERGRAD_CUDA=OFF" in result.stderr, result.stderr
