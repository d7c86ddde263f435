"""gather_images: the bits of `to_float(images[rows])` at every size and layout; NaN, and no stray read, for a row that is not there."""

import kernels_reference as ref
import numpy as np
import pytest
import test_kernels as suite
from checks import Guarded
from test_kernels import DTYPES, LEVELS

from hypergrad import _host
from hypergrad.data import EpisodeSampler, ImageClasses, gather, to_float
from hypergrad.errors import ArgumentError, DeviceError, DTypeError, ShapeError

kernels = pytest.mark.backends("host", "emulated", "gpu")

# M, E, N, H, W, C: single bytes, images that fill no vector, quad or block, and some that fill several.
SIZES = [(1, 1, 1, 1, 1, 1), (3, 2, 5, 1, 3, 1), (5, 1, 4, 2, 2, 1), (4, 3, 2, 5, 7, 3), (7, 2, 9, 28, 28, 1), (4, 2, 3, 33, 31, 3)]
NOWHERE = [-1, -(2**63), 2**31, 2**32, 2**63 - 1]


def draw(sizes, seed=0):
    """(M, H, W, C) bytes and (E, N) rows."""
    m, e, n, *image = sizes
    rng = np.random.default_rng([seed, *sizes])
    return rng.integers(0, 256, (m, *image), dtype=np.uint8), rng.integers(0, max(m, 1), (e, n))


def run(images, index, dtype):
    """The kernel's output, from a buffer whose rim must survive."""
    guarded = Guarded(9)
    x = guarded.empty((*index.shape, *images.shape[1:]), dtype)
    suite.HOST.run("gather_images", images=images, index=index, x=x)
    guarded.check(written=False)
    return x


def assert_bits(x, images, index, dtype):
    assert x.tobytes() == ref.gather_images(images, index, dtype).tobytes()


@kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values(sizes, dtype, backend):
    images, index = draw(sizes)
    assert_bits(backend.same_bits(lambda: [run(images, index, dtype)])[0], images, index, dtype)


@kernels
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_byte(dtype):
    """Each byte is the correctly rounded quotient, whole vectors and single elements alike."""
    images = np.arange(256, dtype=np.uint8)
    for shape in ((1, 16, 16, 1), (256, 1, 1, 1)):
        index = np.arange(shape[0])[None]
        assert run(images.reshape(shape), index, dtype).reshape(-1).tolist() == to_float(images, dtype).tolist()


@kernels
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_may_lie_anywhere(dtype):
    """Images at odd addresses, apart, reversed or shared; rows likewise."""
    images, index = draw((8, 4, 6, 5, 4, 2))
    index %= 3  # as few as images[::3] are
    memory = np.zeros(images.size + 3, np.uint8)
    memory[3:] = images.reshape(-1)
    for given in (memory[3:].reshape(images.shape), images[::3], images[::-1], np.broadcast_to(images[2:3], images.shape)):
        for rows in (index, index[::2], index[::-1], np.broadcast_to(index[1:2], (5, 6))):
            assert_bits(run(given, rows, dtype), given, rows, dtype)


@kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(3, 2, 5, 1, 3, 1), (4, 3, 2, 8, 8, 3)], ids=str)
def test_a_row_out_of_range_is_nan(sizes, dtype):
    images, index = draw(sizes)
    for nowhere in (*NOWHERE, sizes[0]):
        index[1, 1] = nowhere
        x = run(images, index, dtype)
        assert np.isnan(x[1, 1]).all() and np.isnan(x).sum() == x[1, 1].size
        np.testing.assert_array_equal(x, ref.gather_images(images, index, dtype))
    assert np.isnan(run(images[:0], index, dtype)).all()


@pytest.mark.backends("host", "emulated")
@pytest.mark.parametrize("axis", range(6))
def test_sizes_of_zero(axis):
    sizes = [2, 3, 4, 4, 2, 5]
    sizes[axis] = 0
    images, index = draw(sizes)
    x = run(images, index, np.float32)
    assert x.shape == (*sizes[1:3], *sizes[3:]) and np.isnan(x).all() == (axis == 0 or x.size == 0)


@pytest.mark.backends("host", "emulated")
def test_offsets_take_64_bits():
    """Images that begin beyond 2**31 bytes; the memory between them is never touched, so it is none."""
    step = 2**30 + 4
    memory = np.zeros(2 * step + 12, np.uint8)
    images = np.lib.stride_tricks.as_strided(memory, (3, 2, 2, 3), (step, 6, 3, 1))
    for i in range(3):
        images[i] = 50 + i
    index = np.array([[2, 0, 1]])
    assert_bits(run(images, index, np.float32), images, index, np.float32)


@pytest.mark.backends("host")
@pytest.mark.parametrize("level", LEVELS)
def test_every_instruction_set(level, backend):
    chosen = _host.build_info()["simd"]
    try:
        _host.set_simd(level)
        for dtype in DTYPES:
            test_every_byte(dtype)
            test_values(SIZES[-1], dtype, backend)
    finally:
        _host.set_simd(chosen)


@pytest.mark.backends("host", "emulated")
@pytest.mark.parametrize("dtype", DTYPES)
def test_gather_reads_memory_maps_and_views(tmp_path, dtype):
    images, rows = draw((9, 3, 4, 6, 5, 3))
    images.tofile(tmp_path / "images")
    mapped = np.memmap(tmp_path / "images", np.uint8, "r", shape=images.shape)
    for given in (images, mapped, np.asfortranarray(images), mapped[:, ::2, 1:], images[::-1]):
        x = gather(given, rows, dtype)
        assert type(x) is np.ndarray and x.dtype == dtype and (x == to_float(np.asarray(given[rows]), dtype)).all()
    assert gather(images, rows[:0]).shape == (0, 4, 6, 5, 3)


def test_episodes_of_a_view_are_those_of_its_copy():
    images, _ = draw((12, 1, 1, 6, 6, 3))
    offsets, names = np.arange(0, 13, 4), ("a", "b", "c")
    view, copy = (ImageClasses("train", x, offsets, names) for x in (images[:, ::2, ::2], images[:, ::2, ::2].copy()))
    ours, theirs = (EpisodeSampler(split, 2, 1, 2, dtype=np.float64).batch(3) for split in (view, copy))
    assert (ours.support == theirs.support).all() and (ours.query == theirs.query).all()


def test_gather_refuses_what_it_cannot_read():
    images, rows = draw((5, 2, 3, 4, 4, 1))
    for wrong in (-1, 5):
        with pytest.raises(ArgumentError, match=r"gather: rows has values .* expected 0 to 4 because there are 5 images"):
            gather(images, np.array([[0, wrong]]))
    with pytest.raises(DTypeError, match="gather: images has dtype float32, expected uint8"):
        gather(images.astype(np.float32), rows)
    with pytest.raises(DTypeError, match="gather: dtype is float16"):
        gather(images, rows, np.float16)
    with pytest.raises(DTypeError, match="index has dtype int32, expected"):
        gather(images, rows.astype(np.int32))
    with pytest.raises(ShapeError, match="index has shape"):
        gather(images, rows[0])
    with pytest.raises(DeviceError, match="argument is a list"):
        gather(images, rows.tolist())
