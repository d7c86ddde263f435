"""The CUDA kernels on a GPU: the host kernels' own cases, by copying arguments there and back."""

import numpy as np
import pytest
import test_kernels as suite
from mirror import Mirror
from test_gather_images import test_a_row_out_of_range_is_nan, test_every_byte, test_rows_may_lie_anywhere, test_values  # noqa: F401  as below
from test_kernels import (  # noqa: F401  collected here, too, and run with the fixture below
    test_absent_tangents,
    test_batch_axes_may_have_any_stride,
    test_block_rungs,
    test_convolutions,
    test_empty_sums_are_zero,
    test_first_block_rungs,
    test_nan_is_not_swallowed,
    test_sizes_of_zero,
    test_statistics_survive_a_large_mean,
    test_ties_go_to_the_first_pixel_and_zero_is_inactive,
    test_unwanted_x_bar_changes_nothing_else,
)

from hypergrad.backends.cuda import CUDA
from hypergrad.backends.host import HOST

if CUDA.device_count() == 0:
    pytest.skip("needs a GPU and the extension hypergrad._cuda", allow_module_level=True)


def on_gpu() -> Mirror:
    """The CUDA backend for NumPy arrays."""
    cupy = CUDA.xp
    return Mirror(
        CUDA.run,
        cupy.asarray,
        cupy.asnumpy,
        lambda memory, offset, a: cupy.ndarray(a.shape, a.dtype, memptr=memory.data + offset, strides=a.strides),
    )


@pytest.fixture(autouse=True)
def kernels_of_the_gpu(monkeypatch):
    monkeypatch.setattr(suite, "HOST", on_gpu())


def test_tables_agree():
    assert CUDA.kernels() == HOST.kernels()


@pytest.mark.parametrize("dtype", suite.DTYPES)
@pytest.mark.parametrize("sizes", [(4, 75, 42, 42, 32, 32), (4, 5, 84, 84, 3, 32), (2, 9, 10, 10, 33, 40)], ids=str)
def test_repeated_runs_have_equal_bits(sizes, dtype):
    p = suite.Problem(sizes, dtype, first=sizes[4] <= 4)
    expected = p.everything()
    for _ in range(5):
        for a, b in zip(expected, p.everything(), strict=True):
            np.testing.assert_array_equal(a, b)
