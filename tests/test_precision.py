"""hg.precision: tf32 and split tf32 multiply in the right precision, and only where asked for.

The emulator multiplies tf32 factors exactly and adds in float32, element by element. Tensor cores add the products of a step
with fewer roundings, but may cut off where the emulator rounds: a GPU's bounds are wider. The host computes in full precision.
"""

import contextlib

import kernels_reference as ref
import numpy as np
import pytest
import test_kernels as suite
from test_kernels import Problem, call, close

import hypergrad as hg
from hypergrad import backends
from hypergrad.backends.cuda import CUDA
from hypergrad.backends.host import HOST
from hypergrad.errors import ArgumentError
from hypergrad.rules import PRECISIONS, precision_now

KERNELS = sorted(name for name, (_, _, attributes) in HOST.kernels().items() if "precision" in attributes)
everywhere = pytest.mark.backends("emulated", "gpu")
emulated = pytest.mark.backends("emulated")
FLOAT32, TF32, THREE = 0, 1, 2
GEOMETRY = {"stride": 1, "pad_h": 1, "pad_w": 1}
# E, N, H, W, C, K: sizes that are not whole windows, products or tiles; tiles of several images, of one, of parts of one.
SIZES = [
    (1, 1, 1, 1, 8, 1),
    (2, 3, 2, 3, 9, 5),
    (1, 2, 5, 7, 5, 33),
    (1, 9, 10, 10, 33, 40),
    (1, 1, 21, 21, 24, 64),
    (1, 1, 42, 6, 36, 32),
    (1, 1, 46, 70, 5, 3),
    (1, 1, 3, 300, 6, 4),
]
KINDS = ["fprop", "dgrad", "wgrad"]
FACTOR = {"emulated": 1, "gpu": 4}  # of the bounds of float32


def tf32(a):
    """Rounded to 11 bits, ties away from zero."""
    return ((a.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def factors(sizes, kind, draw):
    """What one convolution multiplies, and the shape of its result; filters are shared by the first axis, images by no axis."""
    e, n, h, w, c, k = sizes
    lead = 2 if n * h * w < 300 else 1
    shapes = {"x": (lead, e, n, h, w, c), "w": (1, e, 3, 3, c, k), "y": (lead, e, n, h, w, k)}
    a, b, out = {"fprop": "xwy", "dgrad": "ywx", "wgrad": "xyw"}[kind]
    arrays = [np.broadcast_to(draw(shapes[key]).astype(np.float32), (lead, *shapes[key][1:])) for key in (a, b)]
    return arrays, (lead, *shapes[out][1:])


def convolve(kind, arrays, shape, precision):
    return call(f"conv2d_{kind}", **named(kind, arrays, shape), **GEOMETRY, precision=precision).popitem()[1]


def directly(kind, arrays, shape):
    """In float32 and not by Winograd's algorithm: with a channel of zeros more, the result of which is left out."""
    axes = {"fprop": (-1, -2), "dgrad": (-1, -1), "wgrad": (-1, None)}[kind]
    wide = [
        a if axis is None else np.concatenate([a, np.zeros_like(a.take([0], axis))], axis) for a, axis in zip(arrays, axes, strict=True)
    ]
    out = convolve(kind, wide, shape, FLOAT32)
    return out[..., :-1, :] if kind == "wgrad" else out


def named(kind, arrays, shape):
    """The factors by their names, and the axes that they do not have."""
    names, axes = {"fprop": (("x", "w"), ""), "dgrad": (("y_bar", "w"), "HW"), "wgrad": (("x", "y_bar"), "RS")}[kind]
    at = 2 if kind == "wgrad" else 3
    return dict(zip(names, arrays, strict=True)) | {axis: shape[at + i] for i, axis in enumerate(axes)}


def exact(kind, arrays, shape):
    """In float64."""
    one = {"fprop": ref.conv2d, "dgrad": lambda y, w: ref.conv2d_dgrad(y, w, shape[2:]), "wgrad": ref.conv2d_wgrad}[kind]
    a, b = (v.astype(np.float64) for v in arrays)
    return np.stack([[one(a[i, j], b[i, j]) for j in range(shape[1])] for i in range(shape[0])])


def error(actual, expected):
    return np.abs(actual - expected).max() / np.abs(expected).max()


@pytest.fixture(autouse=True)
def tensor_cores(backend):
    """Skips on a GPU that has none for tf32."""
    if backend is not None and backend.name == "gpu" and CUDA.xp.cuda.Device().compute_capability < "80":
        pytest.skip("needs a GPU of compute capability 8.0 or higher")


def random(seed):
    return np.random.default_rng(seed).standard_normal


@everywhere
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_small_integers_are_multiplied_exactly(sizes, kind):
    """Every product meets its own pixel, channel, tap and filter: any other gives another integer."""
    rng = np.random.default_rng(1)
    arrays, shape = factors(sizes, kind, lambda s: rng.integers(-9, 10, s))
    for precision in (TF32, THREE):
        np.testing.assert_array_equal(convolve(kind, arrays, shape, precision), exact(kind, arrays, shape))


@everywhere
@pytest.mark.parametrize("precision", [TF32, THREE])
@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinity_are_not_swallowed(kind, precision):
    for value in (np.nan, np.inf, np.uint32(0x7FFFFFFF).view(np.float32)):
        for which in (0, 1):
            arrays, shape = factors((1, 2, 5, 5, 9, 9), kind, random(4))
            arrays[which] = arrays[which].copy()
            arrays[which][(0, 0, *(1,) * (arrays[which].ndim - 2))] = value
            (out,) = suite.HOST.run(f"conv2d_{kind}", **named(kind, arrays, shape), **GEOMETRY, precision=precision).values()
            with np.errstate(invalid="ignore"):
                hit = ~np.isfinite(exact(kind, arrays, shape))
            assert hit.any() and not np.isfinite(out[hit]).any()


@everywhere
@pytest.mark.parametrize("kind", KINDS)
def test_other_convolutions_stay_as_they_are(kind):
    """float64, few channels, and filters that are not 3x3."""
    for sizes, dtype in (((1, 2, 6, 5, 9, 7), np.float64), ((1, 2, 6, 5, 4, 7), np.float32)):
        arrays, shape = factors(sizes, kind, random(5))
        arrays = [np.ascontiguousarray(a, dtype) for a in arrays]
        for precision in (TF32, THREE):
            np.testing.assert_array_equal(convolve(kind, arrays, shape, precision), convolve(kind, arrays, shape, FLOAT32))
    draw = random(6)
    x, w, y = (draw(s).astype(np.float32) for s in ((1, 1, 2, 6, 5, 9), (1, 1, 2, 2, 9, 7), (1, 1, 2, 5, 4, 7)))
    arrays, shape = {"fprop": ([x, w], y.shape), "dgrad": ([y, w], x.shape), "wgrad": ([x, y], w.shape)}[kind]
    given = {**named(kind, arrays, shape), "stride": 1, "pad_h": 0, "pad_w": 0}
    outs = [call(f"conv2d_{kind}", **given, precision=p).popitem()[1] for p in (FLOAT32, TF32, THREE)]
    np.testing.assert_array_equal(outs[0], outs[1])
    np.testing.assert_array_equal(outs[0], outs[2])


@everywhere
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_tf32_rounds_factors_and_nothing_else(sizes, kind, backend):
    arrays, shape = factors(sizes, kind, random(2))
    (out,) = backend.same_bits(lambda: [convolve(kind, arrays, shape, TF32)])
    close(out, exact(kind, [tf32(np.ascontiguousarray(a)) for a in arrays], shape), np.float32, FACTOR[backend.name])
    assert 2e-5 < error(out, exact(kind, arrays, shape)) < 2e-3


@everywhere
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_split_tf32_is_as_good_as_float32(sizes, kind, backend):
    """Within the bound of the float32 kernels; emulated, at most 4 times as far off as they are: a product has lost up to 2 bits."""
    arrays, shape = factors(sizes, kind, random(3))
    expected = exact(kind, arrays, shape)
    (out,) = backend.same_bits(lambda: [convolve(kind, arrays, shape, THREE)])
    plain = directly(kind, arrays, shape)
    close(out, expected, np.float32, FACTOR[backend.name])
    assert backend.name == "gpu" or error(out, expected) <= 4 * max(error(plain, expected), np.finfo(np.float32).eps)
    assert not np.array_equal(out, plain)


# --- the fused block ---

BLOCKS = [(2, 3, 2, 3, 9, 5), (1, 2, 5, 7, 5, 33), (1, 6, 10, 10, 9, 34), (1, 1, 26, 30, 5, 3)]


@emulated
@pytest.mark.parametrize("sizes", BLOCKS, ids=str)
def test_block_with_split_tf32_holds_the_bounds_of_float32(sizes, backend):
    """All rungs, two terms and two directions in the tangents' convolutions, shared filters in one case."""
    p = Problem(sizes, np.float32, shared=sizes[1] == 3)
    p.precision = THREE
    suite.check_rungs(p, [p.x_dot, p.w_dot, p.gamma_dot, p.beta_dot], p.y_bar_dot)
    backend.same_bits(p.everything)
    assert taken(p)


@emulated
@pytest.mark.parametrize("sizes", BLOCKS, ids=str)
def test_block_with_tf32_is_near_and_the_same_in_every_order(sizes, backend):
    p = Problem(sizes, np.float32, shared=sizes[1] == 3)
    p.precision = TF32
    backend.same_bits(p.everything)
    assert taken(p)
    z = suite.per_episode(ref.conv2d, sizes[0], p.x, p.w)
    close(p.z, suite.per_episode(ref.conv2d, sizes[0], tf32(p.x), tf32(np.ascontiguousarray(p.w))), np.float32)
    assert 2e-5 < error(p.z, z) < 2e-3


@pytest.mark.backends("gpu")
@pytest.mark.parametrize("precision", [TF32, THREE])
def test_blocks_of_a_few_shot_step_repeat_their_bits(precision, backend):
    p = Problem((4, 75, 42, 42, 32, 32), np.float32)
    p.precision = precision
    backend.same_bits(p.everything)


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


@emulated
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


@emulated
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


@emulated
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


@emulated
def test_higher_nestings_use_the_reference_in_the_same_precision(monkeypatch):
    f, args = block_problem()
    asked, kind = set(), type(backends.HOST)
    original = kind.run

    def run(self, name, *arrays, **attrs):
        asked.add((name, attrs.get("precision")))
        return original(self, name, *arrays, **attrs)

    monkeypatch.setattr(kind, "run", run)
    with hg.precision("tf32"):
        y, pullback = hg.vjp(hg.grad(lambda *a: hg.sum(f(*a) * f(*a)), argnums=1), *args)
    pullback(np.ones_like(y))
    convolutions = {pair for pair in asked if pair[0].startswith("conv")}
    assert {name for name, _ in convolutions} >= {"conv_bn_relu_pool_value", "conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad"}
    assert {precision for _, precision in convolutions} == {TF32}


@emulated
@pytest.mark.parametrize("problem", [conv_problem, block_problem])
def test_float64_is_left_alone(problem):
    f, args = problem(np.float64)
    for a, b in zip(results(f, args, "tf32"), results(f, args, "float32"), strict=True):
        np.testing.assert_array_equal(a, b)


@emulated
def test_first_block_is_left_alone():
    draw = random(9)
    x, args = draw((3, 6, 8, 3)).astype(np.float32), [draw(s).astype(np.float32) for s in ((3, 3, 3, 7), (7,), (7,))]
    for fused in (True, False):
        with hg.fusion(fused):
            ours, plain = (results(lambda *a: hg.conv_bn_relu_pool(x, *a), args, name) for name in ("tf32", "float32"))
        for a, b in zip(ours, plain, strict=True):
            np.testing.assert_array_equal(a, b)


@emulated
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


# --- which kernels ---


def test_names():
    for i, name in enumerate(PRECISIONS):
        with hg.precision(name):
            assert precision_now() == i
        assert precision_now() == 0
    for wrong in ("fp16", "TF32", ""):
        with pytest.raises(ArgumentError, match=f"precision: name has '{wrong}', expected one of 'float32', 'tf32', '3xtf32'; pass"):
            with hg.precision(wrong):
                pass


def test_host_kernels_compute_in_full_precision():
    draw = np.random.default_rng(0).standard_normal
    x, w, gamma, beta = (draw(s).astype(np.float32) for s in ((2, 6, 6, 8), (3, 3, 8, 5), (5,), (5,)))
    found = []
    for name in PRECISIONS:
        with hg.precision(name):
            y, pullback = hg.vjp(hg.conv_bn_relu_pool, x, w, gamma, beta)
            found.append([hg.conv2d(x, w).value, y, *pullback(np.ones_like(y))])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a.tobytes() == b.tobytes()


def test_kernels_that_have_a_precision():
    """All that convolve but those of a first block, whose images have up to 4 channels."""
    rungs = ("jvp", "value", "vjp", "vjp_jvp")
    assert KERNELS == sorted(["conv2d_dgrad", "conv2d_fprop", "conv2d_wgrad", *(f"conv_bn_relu_pool_{rung}" for rung in rungs)])


@pytest.mark.parametrize("precision", [-1, 3])
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_refuse_others(kernel, precision):
    inputs, outputs, attributes = HOST.kernels()[kernel]
    given = {"eps": 1e-5, "stride": 1, "pad_h": 1, "pad_w": 1}
    arrays = {name: np.ones(shape_of(kernel, name), np.uint8 if name == "code" else np.float32) for name in (*inputs, *outputs)}
    with pytest.raises(ArgumentError, match=f"{kernel}: attribute precision is {precision}, expected an integer from 0 to 2"):
        HOST.run(kernel, **arrays, **{name: given.get(name, precision) for name in attributes})


def shape_of(kernel, name):
    """One episode, direction, channel and filter, and images of 2 x 2 pixels."""
    image, pooled, filters, channel = (1, 2, 2, 1), (1, 1, 1, 1), (3, 3, 1, 1), (1,)
    if kernel.startswith("conv2d"):
        return (1, 1, *(filters if name.startswith("w") else image))
    of = {"x": image, "z": image, "y": pooled, "code": pooled, "w": filters}
    root = name.split("_")[0]
    core = channel if name == "z_dot_mean" else of.get(root, channel)
    directions = name.endswith("_dot") or name in ("z_dot_mean", "c")
    return (1, 1, *core) if directions else (1, *core)
