"""The host's matrix product: its values, and bits that depend on the numbers alone, not on threads, layouts, neighbours or the batch."""

import itertools

import numpy as np
import pytest
from test_kernels import LEVELS, call
from test_winograd import level

import hypergrad as hg
from hypergrad import _host
from hypergrad.backends.host import HOST

DTYPES = [np.float32, np.float64]
MOST_RMS = 2.0  # times the error of np.matmul
# M, K, N: one run of the sum and several, panels of one vector and of two, few rows or columns, tasks by rows and by columns.
SIZES = [
    (1, 1, 1),
    (2, 3, 4),
    (13, 257, 17),
    (64, 64, 64),
    (100, 784, 10),
    (10, 784, 100),
    (5, 1000, 300),
    (300, 1000, 5),
    (33, 8, 700),
    (600, 30, 700),
    (150, 520, 290),
    (1100, 70, 40),
    (1, 700, 30),
    (1, 5000, 3),
    (700, 2500, 1),
    (1, 3000, 1),
]


def draw(*shape, dtype, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def product(x, y):
    """By the kernel, whose output is guarded."""
    x, y = (a[(None,) * (4 - a.ndim)] for a in (x, y))
    return call("matmul", x=x, y=y)["out"]


def layouts(a):
    """The same numbers, lying differently in memory."""
    yield a
    yield a.swapaxes(-1, -2).copy().swapaxes(-1, -2)
    apart = np.full((*a.shape[:-2], 2 * a.shape[-2], 3 * a.shape[-1]), np.nan, a.dtype)
    apart[..., ::2, ::3] = a
    yield apart[..., ::2, ::3]
    yield a[..., ::-1, ::-1].copy()[..., ::-1, ::-1]


def exact(x, y):
    return np.matmul(x.astype(np.longdouble), y.astype(np.longdouble))


def rms(a):
    return float(np.sqrt(np.mean(np.square(a.astype(np.longdouble))))) if a.size else 0.0


def check(got, x, y):
    """An element is off by less than the roundings of its longest chain of sums may bring about."""
    size = np.matmul(np.abs(x).astype(np.float64), np.abs(y).astype(np.float64))
    bound = np.finfo(x.dtype).eps * 300 * size
    assert got.dtype == x.dtype and (np.abs(got - exact(x, y)) <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("simd", LEVELS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values_and_bits(sizes, simd, dtype):
    m, k, n = sizes
    x, y = draw(m, k, dtype=dtype), draw(k, n, dtype=dtype, seed=1)
    threads = _host.threads()
    with level(simd):
        first = product(x, y)[0, 0]
        check(first, x, y)
        try:
            for count, (a, b) in zip(itertools.cycle((1, 2, 3)), itertools.product(layouts(x), layouts(y))):
                _host.set_threads(count)
                np.testing.assert_array_equal(product(a, b)[0, 0], first)
        finally:
            _host.set_threads(threads)


@pytest.mark.parametrize("simd", LEVELS)
def test_every_remainder_of_a_tile(simd):
    with level(simd):
        for dtype in DTYPES:
            x, y = draw(27, 9, dtype=dtype), draw(9, 67, dtype=dtype, seed=1)
            whole = product(x, y)[0, 0]
            check(whole, x, y)
            for m, n in [(m, 67) for m in range(2, 28)] + [(27, n) for n in range(2, 68)]:
                for a, b in ((x, y), (np.asfortranarray(x), np.asfortranarray(y))):
                    np.testing.assert_array_equal(product(a[:m], b[:, :n])[0, 0], whole[:m, :n])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("simd", LEVELS)
@pytest.mark.parametrize("inner", [(7, 40, 9), (1, 40, 9), (7, 40, 1)], ids=str)
def test_an_entry_of_a_batch_is_a_product_of_its_own(inner, simd, dtype):
    m, k, n = inner
    x, y = draw(2, 3, m, k, dtype=dtype), draw(2, 3, k, n, dtype=dtype, seed=1)
    shared = [np.broadcast_to(x[:1], x.shape), np.broadcast_to(x[:, :1], x.shape), np.broadcast_to(x[:1, :1], x.shape), x[::-1, ::-1]]
    others = [np.broadcast_to(y[:1], y.shape), np.broadcast_to(y[:, :1], y.shape), np.broadcast_to(y[:1, :1], y.shape), y[::-1, ::-1]]
    with level(simd):
        for a, b in [*itertools.product([x, *shared], [y, *others])]:
            out = product(a, b)
            for i, j in np.ndindex(2, 3):
                np.testing.assert_array_equal(out[i, j], product(a[i, j], b[i, j])[0, 0])
        check(product(x, y), x, y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("simd", LEVELS)
def test_the_error_beside_that_of_numpy(simd, dtype):
    with level(simd):
        for m, k, n in ((64, 64, 64), (30, 784, 10), (40, 2000, 40), (784, 30, 20), (60, 784, 1), (1, 3000, 60)):
            x, y = draw(m, k, dtype=dtype), draw(k, n, dtype=dtype, seed=1)
            want = exact(x, y)
            assert rms(product(x, y)[0, 0] - want) <= MOST_RMS * rms(np.matmul(x, y) - want), (m, k, n)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("simd", LEVELS)
@pytest.mark.parametrize("sizes", [(20, 40, 20), (20, 40, 1), (1, 40, 20), (3, 5, 300)], ids=str)
def test_numbers_that_are_not_finite(sizes, simd, dtype):
    m, k, n = sizes
    x, y = draw(m, k, dtype=dtype), draw(k, n, dtype=dtype, seed=1)
    x[m // 2, k // 2], x[0, k - 1], y[k - 1, n - 1], y[0, 0] = np.inf, np.nan, 0, -np.inf
    x[m - 1, 0] = 0  # 0 * inf is NaN
    with np.errstate(invalid="ignore"), level(simd):
        want = np.matmul(x.astype(np.float64), y.astype(np.float64))
        assert np.isnan(want).any()
        for a, b in itertools.product(layouts(x), layouts(y)):
            got = HOST.matmul(a, b)
            np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
            np.testing.assert_array_equal(got[np.isinf(want)], want[np.isinf(want)])


@pytest.mark.parametrize(
    "shapes",
    [
        ((3, 4), (4, 5)),
        ((2, 3, 4), (4, 5)),
        ((3, 4), (2, 4, 5)),
        ((6, 2, 3, 4), (2, 4, 5)),
        ((6, 1, 3, 4), (1, 2, 4, 5)),
        ((2, 3, 1, 3, 4), (1, 3, 5, 4, 5)),
        ((3, 2, 2, 3, 4), (4, 5)),
        ((0, 4), (4, 5)),
        ((3, 0), (0, 5)),
        ((2, 0, 3, 4), (4, 5)),
        ((2, 0, 2, 3, 4), (4, 5)),
        ((0, 0), (0, 0)),
        ((1, 0), (0, 1)),
        ((4,), (4, 5)),
        ((3, 4), (4,)),
        ((4,), (4,)),
        ((2, 3, 4), (4,)),
        ((4,), (2, 4, 5)),
    ],
    ids=str,
)
def test_shapes_are_those_of_numpy(shapes):
    for dtype in DTYPES:
        x, y = (draw(*s, dtype=dtype, seed=i) for i, s in enumerate(shapes))
        got, want = HOST.matmul(x, y), np.matmul(x, y)
        assert got.shape == want.shape and got.dtype == want.dtype
        np.testing.assert_allclose(got, want, 1e-5, 1e-5)


def test_element_types():
    x = draw(3, 4, dtype=np.float64)
    assert HOST.matmul(x.astype(np.float32), x.T).dtype == np.float64
    np.testing.assert_array_equal(HOST.matmul(x.astype(">f8"), x.T), HOST.matmul(x, x.T))
    for dtype in (np.int64, np.int8, bool, object, np.complex64, np.float16):
        a = np.arange(12).reshape(3, 4).astype(dtype)
        want = np.matmul(a, a.T)
        assert HOST.matmul(a, a.T).dtype == want.dtype
        np.testing.assert_array_equal(HOST.matmul(a, a.T), want)


def test_elements_that_are_not_aligned():
    bytes_of = np.zeros(8 * 12 + 1, np.uint8)
    a = bytes_of[1:].view(np.float64).reshape(3, 4)
    a[:] = draw(3, 4, dtype=np.float64)
    assert not a.flags.aligned
    np.testing.assert_array_equal(HOST.matmul(a, a.T), HOST.matmul(a.copy(), a.T.copy()))


def test_derivatives_keep_their_bits():
    """The products of an op and of its derivatives are the same for any number of threads."""
    x, w = draw(5, 300, 784, dtype=np.float32), draw(784, 10, dtype=np.float32, seed=1)
    gradient = hg.value_and_grad(lambda v: hg.sum(hg.tanh(hg.linear(x, v)) ** 2))
    threads = _host.threads()
    try:
        results = []
        for count in (1, 2, 3):
            _host.set_threads(count)
            results.append(gradient(w))
    finally:
        _host.set_threads(threads)
    for value, grad in results[1:]:
        assert value == results[0][0]
        np.testing.assert_array_equal(grad, results[0][1])
