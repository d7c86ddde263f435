"""The CUDA backend on a machine without a GPU: it imports, says what is missing, and passes arrays on as it should."""

import re
import sys
import types

import numpy as np
import pytest
from test_backend import python

import hypergrad.backends as backends
from hypergrad.backends import as_array, backend_of
from hypergrad.backends.cuda import CUDA, MISSING
from hypergrad.backends.host import HOST
from hypergrad.errors import DeviceError, DTypeError, ExtensionError, ShapeError

built = pytest.mark.skipif(MISSING is not None, reason=f"_cuda is not built: {MISSING}")


class FakeArray:
    """Host memory that says it is a GPU's, as far as a CUDA call without a GPU gets."""

    def __init__(self, a):
        self.a = a

    @property
    def __cuda_array_interface__(self):
        return {**self.a.__array_interface__, "strides": self.a.strides}


@pytest.fixture
def fake_cupy(monkeypatch):
    cuda = types.SimpleNamespace(is_available=lambda: True)
    cupy = types.SimpleNamespace(ndarray=FakeArray, cuda=cuda)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(backends, "NO_CUDA", None)
    return cupy


def test_cupy_arrays_go_to_cuda(fake_cupy):
    a = FakeArray(np.ones(3))
    assert backend_of(a, 1.0, np.float64(2)) is CUDA and as_array(a) is a
    assert backend_of(np.ones(3)) is HOST
    with pytest.raises(DeviceError, match="a NumPy array of shape .3,., expected one side"):
        backend_of(a, np.ones(3))
    with pytest.raises(DeviceError, match="CuPy"):
        backend_of(a, types.SimpleNamespace(__cuda_array_interface__={}))


def test_cupy_is_missing_or_has_no_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # as if it were not installed
    CUDA.__dict__.pop("xp", None)
    with pytest.raises(DeviceError, match="CuPy is missing.*install hypergrad-engine"):
        CUDA.empty((2,), np.float32)
    no_gpu = types.SimpleNamespace(cuda=types.SimpleNamespace(is_available=lambda: False))
    monkeypatch.setitem(sys.modules, "cupy", no_gpu)
    with pytest.raises(DeviceError, match="CuPy finds no usable GPU"):
        CUDA.empty((2,), np.float32)


@pytest.mark.skipif(MISSING is None, reason="_cuda is built")
def test_extension_is_missing():
    assert CUDA.device_count() == 0 and CUDA.kernels() == {} and CUDA.build_info() == {"missing": MISSING}
    with pytest.raises(ExtensionError, match="_cuda is missing.*nvcc"):
        CUDA.run("patch_cov")


@built
def test_no_device_is_said_by_every_call():
    assert re.match(r"CUDA \d+\.\d.* for .*, runtime \d+\.\d+, driver ", CUDA.build_info()["cuda"])
    if CUDA.device_count() > 0:
        pytest.skip("there is a GPU")
    x = FakeArray(np.ones((1, 1, 2, 2, 1)))
    m, cov = FakeArray(np.ones((1, 9))), FakeArray(np.ones((1, 9, 9)))
    with pytest.raises(RuntimeError, match="patch_cov: there is no CUDA device.*nvidia-smi"):
        backends.cuda._cuda.run("patch_cov", {"x": x, "patch_mean": m, "patch_cov": cov}, None, lambda n: None)


@built
def test_scratch_is_said_before_the_call():
    """Arrays are read through __cuda_array_interface__; what scratch a call takes needs no GPU."""
    scratch_bytes = backends.cuda._cuda.scratch_bytes
    x = FakeArray(np.ones((1, 1, 2, 2, 1)))
    m, cov = FakeArray(np.ones((1, 9))), FakeArray(np.ones((1, 9, 9)))
    given = {"x": x, "patch_mean": m, "patch_cov": cov}
    assert scratch_bytes("patch_cov", given) > 0
    with pytest.raises(ShapeError, match="patch_cov: patch_cov has shape .* expected"):
        scratch_bytes("patch_cov", {**given, "patch_cov": m})
    with pytest.raises(DTypeError, match="x is a ndarray, expected a CuPy array"):
        scratch_bytes("patch_cov", {**given, "x": np.ones(3)})


@pytest.mark.parametrize("level", ["baseline", "avx2", "avx512"])
def test_emulated_kernels_have_no_instruction_set_to_choose(level):
    code = """
import numpy as np
from hypergrad.backends.emulated import EMULATED, MISSING
print(MISSING or EMULATED.run("max_pool_value", x=np.ones((1, 2, 2, 1)), size=2)["y"].item())
"""
    result = python(code, HYPERGRAD_SIMD=level)
    assert result.stdout.strip() == "1.0" or "_emulated" in result.stdout, result.stderr
