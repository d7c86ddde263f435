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
# Products are CuPy's on a GPU; kernels that do the work of several are called by programs, which are the host's.
HOST_ALONE = {"matmul", "linear_cross_entropy_value_vjp", "linear_cross_entropy_jvp_vjp_jvp", "linear_cross_entropy_value_jvp_vjp_jvp"}


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


def test_every_kernel_has_one_signature():
    """A host source states a signature for each kernel that it registers, and its CUDA twin, if it needs one, registers the same."""

    def names(pattern, folder):
        return sorted(name for p in (ROOT / "csrc" / folder).iterdir() for name in re.findall(pattern, p.read_text(), re.M))

    assert names(r"^HG_SIGNATURE\((\w+),", "host") == names(r"^HG_KERNEL\((\w+),", "host") == sorted(_host.kernels())
    assert names(r"^HG_KERNEL\((\w+),", "cuda") == sorted(set(_host.kernels()) - HOST_ALONE)


UNKNOWN = """
#include "{source}"

namespace hg {{
namespace baseline {{
template <class T, class S>
void kernel(const Call& call) {{
  {statement}
}}
HG_KERNEL(max_pool_value, kernel)
}}
}}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ on the PATH")
@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("HG_ARGS(x, y, code) y.data[0] = x.data[0] + code.data[0] + HG_DIM(Q) + HG_INTEGER(size);", ""),
        ("HG_ARGS(x_bar)", "the kernel's signature has no argument of this name"),
        ("HG_ARGS(x) x.data[0] = 0;", "read-only"),
        ("HG_ATTRIBUTE(eps);", "the kernel's signature has no attribute of this name"),
        ("HG_DIM(P);", "the kernel's signature has no such axis"),
    ],
)
def test_a_kernel_cannot_ask_for_what_its_signature_lacks(statement, error, tmp_path):
    source = tmp_path / "kernel.cpp"
    level = ["-DHG_SIMD=baseline", "-DHG_VECTOR_BYTES=16", "-DHG_TILE=6", "-DHG_LEVEL=::hg::kAvx2"]
    source.write_text(UNKNOWN.format(source=ROOT / "csrc/host/max_pool.cpp", statement=statement))
    result = subprocess.run(["g++", "-std=c++17", "-fsyntax-only", *level, source], capture_output=True, text=True, timeout=300)
    assert (error in result.stderr and result.returncode != 0) if error else result.returncode == 0, result.stderr[-2000:]


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
