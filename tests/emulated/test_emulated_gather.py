"""gather_images on emulated CUDA threads: the host's cases, in every order of threads and blocks."""

import pytest
import test_gather_images as cases
import test_kernels as suite

from hypergrad import backends
from hypergrad.backends.emulated import EMULATED, MISSING
from hypergrad.data import gather, to_float

if MISSING is not None:
    pytest.skip(f"build with -DHYPERGRAD_EMULATOR=ON: {MISSING}", allow_module_level=True)


@pytest.fixture(autouse=True, params=["forward", "reverse", "shuffle:1"])
def emulator(request, monkeypatch):
    monkeypatch.setattr(suite, "HOST", EMULATED)
    EMULATED.set_order(request.param)
    yield
    EMULATED.set_order("forward")


@pytest.mark.parametrize("dtype", suite.DTYPES)
def test_cases(dtype):
    for sizes in cases.SIZES:
        cases.test_values(sizes, dtype)
        if sizes[1] > 1:
            cases.test_a_row_out_of_range_is_nan(sizes, dtype)
    cases.test_every_byte(dtype)
    cases.test_rows_may_lie_anywhere(dtype)


def test_sizes():
    for axis in range(6):
        cases.test_sizes_of_zero(axis)
    cases.test_offsets_take_64_bits()


def test_gather(monkeypatch):
    monkeypatch.setattr(backends, "HOST", EMULATED)
    images, rows = cases.draw((9, 3, 4, 6, 5, 3))
    assert (gather(images, rows) == to_float(images[rows])).all()
