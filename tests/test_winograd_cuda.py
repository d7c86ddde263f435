"""CUDA convolutions by Winograd's algorithm: their rounding errors beside the direct kernels', their bits, and ties."""

import kernels_reference as ref
import numpy as np
import pytest
import test_kernels as suite
import test_winograd as host
from test_kernels import Problem, check_rungs

pytestmark = pytest.mark.backends("emulated", "gpu")

F32 = np.float32
# E, N, H, W, C, K: windows over both edges, tiles of parts of an image and of several, chunks and tiles of filters, single pixels.
BLOCKS = [(2, 2, 21, 21, 32, 32), (1, 3, 10, 10, 32, 64), (1, 7, 5, 6, 64, 32), (1, 1, 3, 90, 32, 32), (3, 9, 1, 2, 32, 32)]
FPROP_ONLY = (1, 2, 9, 14, 24, 32)  # channels are whole chunks, but no whole tile


@pytest.mark.parametrize("sizes", [*BLOCKS, FPROP_ONLY], ids=str)
def test_block_rungs(sizes, backend):
    p = Problem(sizes, F32, shared=sizes[0] == 3)
    check_rungs(p, [p.x_dot, p.w_dot, p.gamma_dot, p.beta_dot], p.y_bar_dot)
    backend.same_bits(p.everything)


@pytest.mark.parametrize("shift", [0.5, 30.0])
@pytest.mark.parametrize("sizes", BLOCKS[:3], ids=str)
def test_errors_of_the_block_beside_the_direct_kernel(sizes, shift):
    p = Problem(sizes, F32, shift=shift)
    p.value()
    reference = host.rungs(host.Directly(p, np.float64), p.code)
    found, direct = host.rungs(p, p.code), host.rungs(host.Directly(p, F32), p.code)
    for rows in (found, direct, reference):
        del rows["y"]  # of the winners that each has found
    host.compare(found, direct, reference, sizes)


@pytest.mark.parametrize("sizes", BLOCKS[:3], ids=str)
def test_errors_of_conv2d_beside_the_direct_kernel(sizes):
    host.compare_conv2d(sizes)


def test_a_number_that_is_not_finite_stays_in_its_windows():
    p = Problem((1, 3, 10, 10, 32, 32), F32)
    p.x[0, 1, 3, 4, 7] = np.nan
    z = suite.HOST.run("conv2d_fprop", x=p.x[None], w=p.w[None], stride=1, pad_h=1, pad_w=1, precision=0)["y"][0, 0]
    wrong = np.isnan(z)
    assert wrong[1, 2:5, 3:6].all()
    wrong[1, 2:6, 2:6] = False  # the windows that read it
    assert not wrong.any()


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("axis", [2, 3], ids=["columns", "rows"])
def test_neighbours_with_equal_patches_have_equal_bits(axis, size):
    """So the first one wins, as where equal patches have equal sums."""
    rng = np.random.default_rng(axis)
    p = Problem((1, 2, 12, 14, 32, 32), F32)
    p.x = (rng.standard_normal(p.x.take([0], axis).shape) * size + np.zeros(p.x.shape)).astype(F32)
    p.x[:, :, 5, 6] = 3 * size  # and one pixel
    p.value()
    _, h, w, _ = p.x[0].shape
    padded = np.pad(p.x[0], ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = np.concatenate([padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], -1)
    patches, z, count = ref.windows(patches), ref.windows(p.z[0]), 0
    for a, b in ((0, 1), (2, 3), (0, 2), (1, 3)):
        equal = (patches[a] == patches[b]).all(-1)
        np.testing.assert_array_equal(z[a][equal], z[b][equal])
        count += equal.sum()
    assert count > 50
