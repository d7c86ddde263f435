"""tf32 and split tf32 on a GPU's tensor cores.

They add the products of a step with fewer roundings than the emulator, but may cut off where it rounds: bounds are wider.
"""

import numpy as np
import pytest
import test_kernels as suite
from precision_cases import (  # noqa: F401  tests are collected here, too, and run with the fixture below
    KINDS,
    SIZES,
    TF32,
    THREE,
    convolve,
    exact,
    factors,
    random,
    test_nan_and_infinity_are_not_swallowed,
    test_other_convolutions_stay_as_they_are,
    test_small_integers_are_multiplied_exactly,
    tf32,
)
from test_cuda_kernels import on_gpu

from hypergrad.backends.cuda import CUDA

if CUDA.device_count() == 0:
    pytest.skip("needs a GPU and the extension hypergrad._cuda", allow_module_level=True)
if CUDA.xp.cuda.Device().compute_capability < "80":
    pytest.skip("needs a GPU of compute capability 8.0 or higher", allow_module_level=True)

FACTOR = 4  # of the bounds of float32


@pytest.fixture(autouse=True)
def kernels_of_the_gpu(monkeypatch):
    monkeypatch.setattr(suite, "HOST", on_gpu())


@pytest.mark.parametrize("precision", [TF32, THREE])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [*SIZES, (4, 15, 42, 42, 32, 32)], ids=str)
def test_convolutions(sizes, kind, precision):
    arrays, shape = factors(sizes, kind, random(2))
    out = convolve(kind, arrays, shape, precision)
    rounded = [tf32(np.ascontiguousarray(a)) for a in arrays] if precision == TF32 else arrays
    suite.close(out, exact(kind, rounded, shape), np.float32, FACTOR)
    np.testing.assert_array_equal(out, convolve(kind, arrays, shape, precision))


@pytest.mark.parametrize("precision", [TF32, THREE])
def test_repeated_runs_of_the_block_have_equal_bits(precision):
    p = suite.Problem((4, 75, 42, 42, 32, 32), np.float32)
    p.precision = precision
    expected = p.everything()
    for _ in range(5):
        for a, b in zip(expected, p.everything(), strict=True):
            np.testing.assert_array_equal(a, b)
