"""tf32 and split tf32 products of the emulated CUDA kernels: the right products, in the right precision, and only where asked for.

The emulator multiplies tf32 factors exactly and adds in float32, element by element. What tensor cores add up in fewer
roundings is not seen here.
"""

import contextlib
from collections import Counter

import kernels_reference as ref
import numpy as np
import pytest
import test_kernels as suite
from precision_cases import (  # noqa: F401  tests are collected here, too, and run with the fixture below
    FLOAT32,
    KINDS,
    SIZES,
    TF32,
    THREE,
    convolve,
    error,
    exact,
    factors,
    random,
    test_nan_and_infinity_are_not_swallowed,
    test_other_convolutions_stay_as_they_are,
    test_small_integers_are_multiplied_exactly,
    tf32,
)
from test_kernels import Problem, close

import hypergrad as hg
from hypergrad import backends
from hypergrad.backends.emulated import EMULATED, MISSING

if MISSING is not None:
    pytest.skip(f"build with -DHYPERGRAD_EMULATOR=ON: {MISSING}", allow_module_level=True)

ORDERS = ["reverse", "shuffle:1"]


@pytest.fixture(autouse=True)
def emulator(monkeypatch):
    monkeypatch.setattr(suite, "HOST", EMULATED)
    monkeypatch.setattr(backends, "HOST", EMULATED)
    EMULATED.set_order("forward")
    yield
    EMULATED.set_order("forward")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_tf32_rounds_factors_and_nothing_else(sizes, kind):
    arrays, shape = factors(sizes, kind, random(2))
    out = convolve(kind, arrays, shape, TF32)
    close(out, exact(kind, [tf32(np.ascontiguousarray(a)) for a in arrays], shape), np.float32)
    off = error(out, exact(kind, arrays, shape))
    assert 2e-5 < off < 2e-3
    for order in ORDERS:
        EMULATED.set_order(order)
        np.testing.assert_array_equal(out, convolve(kind, arrays, shape, TF32), err_msg=order)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_split_tf32_is_as_good_as_float32(sizes, kind):
    """Within the bound of the float32 kernels, and at most 4 times as far off as they are: a product has lost up to 2 bits."""
    arrays, shape = factors(sizes, kind, random(3))
    expected = exact(kind, arrays, shape)
    out, plain = convolve(kind, arrays, shape, THREE), convolve(kind, arrays, shape, FLOAT32)
    close(out, expected, np.float32)
    assert error(out, expected) <= 4 * max(error(plain, expected), np.finfo(np.float32).eps)
    assert not np.array_equal(out, plain)
    for order in ORDERS:
        EMULATED.set_order(order)
        np.testing.assert_array_equal(out, convolve(kind, arrays, shape, THREE), err_msg=order)


# --- the fused block ---

BLOCKS = [(2, 3, 2, 3, 9, 5), (1, 2, 5, 7, 5, 33), (1, 6, 10, 10, 9, 34), (1, 1, 26, 30, 5, 3)]


@pytest.mark.parametrize("sizes", BLOCKS, ids=str)
def test_block_with_split_tf32_holds_the_bounds_of_float32(sizes):
    """All rungs, two terms and two directions in the tangents' convolutions, shared filters in one case."""
    p = Problem(sizes, np.float32, shared=sizes[1] == 3)
    p.precision = THREE
    dots = [p.x_dot, p.w_dot, p.gamma_dot, p.beta_dot]
    suite.check_rungs(p, dots, p.y_bar_dot)
    everything_agrees(p)
    assert taken(p)


@pytest.mark.parametrize("sizes", BLOCKS, ids=str)
def test_block_with_tf32_is_near_and_the_same_in_every_order(sizes):
    p = Problem(sizes, np.float32, shared=sizes[1] == 3)
    p.precision = TF32
    outs = everything_agrees(p)
    assert taken(p)
    z = suite.per_episode(ref.conv2d, sizes[0], p.x, p.w)
    close(outs[4], suite.per_episode(ref.conv2d, sizes[0], tf32(p.x), tf32(np.ascontiguousarray(p.w))), np.float32)
    assert 2e-5 < error(outs[4], z) < 2e-3


def everything_agrees(p):
    first = p.everything()
    for order in ORDERS:
        EMULATED.set_order(order)
        for a, b in zip(first, p.everything(), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=order)
    EMULATED.set_order("forward")
    return first


def taken(p):
    """Whether convolutions of every rung differ from those of float32: z, x_bar and w_bar, z_dot, x_bar_dot and w_bar_dot."""
    dots = [p.x_dot, p.w_dot, p.gamma_dot, p.beta_dot]
    p.value()
    saved = dict(p.saved)

    def run(precision):
        p.precision, p.saved = precision, saved  # of the same z
        y_dot = p.jvp(dots)
        return [p.vjp()[:2], [y_dot, p.dot["z_dot"]], p.vjp_jvp(dots, p.y_bar_dot)[:2]]

    precision = p.precision
    pairs = zip(run(precision), run(FLOAT32), strict=True)
    p.precision = precision
    return all(not np.array_equal(a, b) for ours, plain in pairs for a, b in zip(ours, plain, strict=True))


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blocks_that_stay_as_they_are(first, dtype):
    """Up to four channels, in a first block (which has no such attribute) and in another; float64."""
    channels = 4 if first or dtype == np.float32 else 8
    outs = []
    for precision in (FLOAT32, TF32, THREE):
        p = Problem((1, 2, 6, 7, channels, 5), dtype, first=first)
        p.precision = precision
        outs.append(p.everything())
    for other in outs[1:]:
        for a, b in zip(outs[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


# --- hg.precision ---


def conv_problem(dtype=np.float32):
    draw = random(7)
    return hg.conv2d, [draw(s).astype(dtype) for s in ((2, 6, 5, 9), (3, 3, 9, 7))]


def block_problem(dtype=np.float32):
    draw = random(8)
    return hg.conv_bn_relu_pool, [draw(s).astype(dtype) for s in ((3, 6, 8, 9), (3, 3, 9, 7), (7,), (7,))]


def results(f, args, inside, outside=None):
    """Value, gradients, tangent, and Hessian product of a loss; derivatives taken in the context `outside`."""
    with hg.precision(inside):
        y, pullback = hg.vjp(f, *args)
    with hg.precision(outside or inside):
        bars = pullback(np.cos(np.arange(y.size, dtype=y.dtype)).reshape(y.shape))
    dots = tuple(np.sin(np.arange(a.size, dtype=a.dtype)).reshape(a.shape) for a in args)
    with hg.precision(inside):
        return [y, *bars, hg.jvp(f, tuple(args), dots)[1], *second(f, args, dots)]


def second(f, args, dots):
    curved = lambda *a: hg.sum(f(*a) * f(*a))  # noqa: E731
    numbers = tuple(range(len(args)))
    return hg.jvp(lambda *a: hg.grad(curved, argnums=numbers)(*a), tuple(args), dots)[1]


@pytest.mark.parametrize("problem", [conv_problem, block_problem])
@pytest.mark.parametrize("name", ["tf32", "3xtf32"])
def test_derivatives_keep_the_precision_of_the_op(problem, name):
    f, args = problem()
    ours, late, plain = results(f, args, name), results(f, args, name, outside="float32"), results(f, args, "float32")
    early = results(f, args, "float32", outside=name)
    for a, b, c, d in zip(ours, late, plain, early, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(c, d)
    different = [not np.array_equal(a, c) for a, c in zip(ours, plain, strict=True)]
    assert all(different[i] for i in (0, 1, 2)) and any(different[len(args) + 2 :])


@pytest.mark.parametrize("name", ["tf32", "3xtf32"])
def test_fused_block_is_its_reference_in_the_same_precision(name):
    """z has the same factors in both. Cotangents do so up to rounding, which tf32 may turn into a step of 2**-11 of a factor."""
    f, args = block_problem()
    with hg.fusion(False):
        composed, other = results(f, args, name), results(f, args, "float32")
    fused = results(f, args, name)
    for i, (a, b, c) in enumerate(zip(fused, composed, other, strict=True)):
        assert error(a, b) < (1e-4 if name == "tf32" else 2e-5), i
        # What is compared is tf32; beta's gradient and its tangent hardly depend on it.
        assert name == "3xtf32" or i in (4, 9) or error(c, b) > 1e-4, i


def test_higher_nestings_use_the_reference_in_the_same_precision(monkeypatch):
    f, args = block_problem()
    asked = Counter()

    def run(name, **arguments):
        asked[name, arguments.get("precision")] += 1
        return type(EMULATED).run(EMULATED, name, **arguments)

    monkeypatch.setattr(EMULATED, "run", run, raising=False)
    with hg.precision("tf32"):
        y, pullback = hg.vjp(hg.grad(lambda *a: hg.sum(f(*a) * f(*a)), argnums=1), *args)
    pullback(np.ones_like(y))
    convolutions = {key: n for key, n in asked.items() if key[0].startswith("conv")}
    assert {name for name, _ in convolutions} >= {"conv_bn_relu_pool_value", "conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad"}
    assert {precision for _, precision in convolutions} == {TF32}


@pytest.mark.parametrize("problem", [conv_problem, block_problem])
def test_float64_is_left_alone(problem):
    f, args = problem(np.float64)
    for a, b in zip(results(f, args, "tf32"), results(f, args, "float32"), strict=True):
        np.testing.assert_array_equal(a, b)


def test_first_block_is_left_alone():
    draw = random(9)
    x, args = draw((3, 6, 8, 3)).astype(np.float32), [draw(s).astype(np.float32) for s in ((3, 3, 3, 7), (7,), (7,))]
    for fused in (True, False):
        with hg.fusion(fused):
            ours, plain = (results(lambda *a: hg.conv_bn_relu_pool(x, *a), args, name) for name in ("tf32", "float32"))
        for a, b in zip(ours, plain, strict=True):
            np.testing.assert_array_equal(a, b)


def test_contexts_nest_and_end_with_an_exception():
    f, args = conv_problem()
    value = lambda: f(*args).value  # noqa: E731
    plain = value()
    with contextlib.suppress(KeyError), hg.precision("tf32"):
        rounded = value()
        with hg.precision("float32"):
            np.testing.assert_array_equal(value(), plain)
        np.testing.assert_array_equal(value(), rounded)
        raise KeyError
    np.testing.assert_array_equal(value(), plain)
    assert not np.array_equal(plain, rounded)
