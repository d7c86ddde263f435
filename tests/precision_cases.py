"""Convolutions in tf32 and split tf32 on the backend that stands in test_kernels.HOST: on the emulator and on a GPU."""

import kernels_reference as ref
import numpy as np
import pytest
import test_kernels as suite

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
    return suite.call(f"conv2d_{kind}", **named(kind, arrays, shape), **GEOMETRY, precision=precision).popitem()[1]


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


def random(seed):
    return np.random.default_rng(seed).standard_normal


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_small_integers_are_multiplied_exactly(sizes, kind):
    """Every product meets its own pixel, channel, tap and filter: any other gives another integer."""
    rng = np.random.default_rng(1)
    arrays, shape = factors(sizes, kind, lambda s: rng.integers(-9, 10, s))
    for precision in (TF32, THREE):
        np.testing.assert_array_equal(convolve(kind, arrays, shape, precision), exact(kind, arrays, shape))


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
    outs = [suite.call(f"conv2d_{kind}", **given, precision=p).popitem()[1] for p in (FLOAT32, TF32, THREE)]
    np.testing.assert_array_equal(outs[0], outs[1])
    np.testing.assert_array_equal(outs[0], outs[2])
