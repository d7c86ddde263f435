"""The CUDA kernels on emulated threads: the host kernels' own cases, with equal bits in every order of threads and blocks."""

import kernels_reference as ref
import numpy as np
import pytest
import test_kernels as suite
from test_kernels import BLOCKS, CONVOLUTIONS, DTYPES, FIRST, Problem

from hypergrad.backends.cuda import CUDA
from hypergrad.backends.emulated import EMULATED, MISSING
from hypergrad.backends.host import HOST
from hypergrad.errors import ArgumentError, DTypeError, ShapeError

if MISSING is not None:
    pytest.skip(f"build with -DHYPERGRAD_EMULATOR=ON: {MISSING}", allow_module_level=True)

EPS = suite.EPS
ORDERS = ["reverse", "shuffle:1", "shuffle:2"]
# Several tiles down and across, more filters and channels than a tile holds, tiles of several images.
TILED = [(1, 1, 46, 92, 3, 36), (1, 2, 42, 42, 36, 32), (2, 9, 10, 10, 33, 40), (1, 5, 21, 21, 32, 64), (1, 1, 3, 300, 2, 4)]


@pytest.fixture(autouse=True)
def emulator(monkeypatch):
    monkeypatch.setattr(suite, "HOST", EMULATED)
    EMULATED.set_order("forward")
    yield
    EMULATED.set_order("forward")


def everything_agrees(problem):
    first = problem.everything()
    for order in ORDERS:
        EMULATED.set_order(order)
        for a, b in zip(first, problem.everything(), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=order)
    EMULATED.set_order("forward")


def dots_of(p):
    return [None if p.first else p.x_dot, p.w_dot, p.gamma_dot, p.beta_dot]


def test_tables_agree():
    """One table of names, inputs, outputs and attributes for the host, the emulator and CUDA."""
    assert EMULATED.kernels() == HOST.kernels()
    assert CUDA.kernels() in (HOST.kernels(), {})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("sizes", BLOCKS + TILED, ids=str)
def test_rungs(sizes, first, dtype):
    if first and (sizes not in FIRST and sizes[4] > 4):
        sizes = (*sizes[:4], 4, sizes[5])
    p = Problem(sizes, dtype, shared=sizes[1] == 3, directions=2, first=first)
    suite.check_rungs(p, dots_of(p), p.y_bar_dot)
    everything_agrees(p)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [*CONVOLUTIONS, (1, 2, 3, 30, 34, 33, 40, 3, 3, 1, 1, 1)], ids=str)
def test_convolutions(sizes, dtype, monkeypatch):
    runs = []
    original = suite.call

    def keep(*args, **attrs):
        runs.append(original(*args, **attrs))
        return runs[-1]

    monkeypatch.setattr(suite, "call", keep)
    for order in ("forward", *ORDERS):
        EMULATED.set_order(order)
        suite.test_convolutions(sizes, dtype)
    for i, out in enumerate(runs[3:]):
        for key, y in out.items():
            np.testing.assert_array_equal(runs[i % 3][key], y)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("mask", range(16))
def test_absent_tangents(mask, first):
    suite.test_absent_tangents(mask, first)


@pytest.mark.parametrize("first", [False, True])
def test_kinks_and_nan(first):
    suite.test_ties_go_to_the_first_pixel_and_zero_is_inactive(first)
    suite.test_nan_is_not_swallowed(first)


def test_unwanted_x_bar_changes_nothing_else():
    suite.test_unwanted_x_bar_changes_nothing_else()


@pytest.mark.parametrize("axis", range(7))
def test_sizes_of_zero(axis):
    suite.test_sizes_of_zero(axis)
    suite.test_empty_sums_are_zero()


@pytest.mark.parametrize("ratio", [10.0, 100.0, 1000.0])
def test_statistics_survive_a_large_mean(ratio):
    suite.test_statistics_survive_a_large_mean(ratio)


def worst(actual, exact):
    return np.abs(actual.astype(np.float64) - exact).max()


@pytest.mark.parametrize("sizes", [(1, 8, 20, 20, 32, 32), (2, 3, 14, 14, 8, 24)], ids=str)
def test_float32_error_is_at_most_twice_the_composed_one(sizes):
    """Against float64, the value and the gradients are at most twice as far off as the same formulas in NumPy's float32."""
    p = Problem(sizes, np.float32)
    suite.check_value(p)
    outs = [p.y, *p.vjp()]
    code = p.code
    exact = [suite.per_episode(lambda *a: ref.block(*a, EPS), sizes[0], p.x, p.w, p.gamma, p.beta, code), *suite.reference_vjp(p)]
    rows = range(sizes[0])
    single = [np.stack([ref.block(p.x[e], p.w[e], p.gamma[e], p.beta[e], code[e], np.float32(EPS)) for e in rows])]
    vjps = [ref.block_vjp(p.x[e], p.w[e], p.gamma[e], p.y_bar[e], code[e], np.float32(EPS)) for e in rows]
    single += [np.stack(v) for v in zip(*vjps, strict=True)]
    for ours, theirs, true in zip(outs, single, exact, strict=True):
        assert theirs.dtype == np.float32
        floor = np.finfo(np.float32).eps * np.abs(true).max()  # rounding the true result
        assert worst(ours, true) <= 2 * max(worst(theirs, true), floor)


def test_wrong_calls_are_exceptions():
    x, w = np.ones((1, 1, 1, 4, 4, 2)), np.ones((1, 1, 3, 3, 2, 2))
    attrs = {"stride": 1, "pad_h": 1, "pad_w": 1, "precision": 0}
    with pytest.raises(ShapeError, match="conv2d_fprop: .*expected"):
        EMULATED.run("conv2d_fprop", x=x, w=w, y=np.ones((1, 1, 1, 4, 4, 3)), **attrs)
    with pytest.raises(DTypeError, match="float32"):
        EMULATED.run("conv2d_fprop", x=x, w=w.astype("f"), **attrs)
    with pytest.raises(ArgumentError, match="stride"):
        EMULATED.run("conv2d_fprop", x=x, w=w, **{**attrs, "stride": 0})
    with pytest.raises(ArgumentError, match="precision is 3, expected an integer from 0 to 2"):
        EMULATED.run("conv2d_fprop", x=x, w=w, **{**attrs, "precision": 3})
    with pytest.raises(ShapeError, match=r"y has shape .*, expected .*, where P = \(H\+2\*pad_h-R\)/stride\+1"):
        EMULATED.run("conv2d_fprop", x=x, w=w, y=x.copy(), **{**attrs, "pad_h": 2})
    with pytest.raises(ValueError, match="order is 'backwards'"):
        EMULATED.set_order("backwards")
