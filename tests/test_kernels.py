"""The kernels of every backend against a float64 reference, and what they promise.

Every element is written and none beyond; the bits are the same for any number of threads; all instruction
sets agree closely; every wrong call is an exception.
"""

from copy import copy

import kernels_reference as ref
import numpy as np
import pytest
from checks import Guarded

from hypergrad import _host
from hypergrad.backends.host import HOST
from hypergrad.errors import ShapeError

pytestmark = pytest.mark.backends("host", "emulated", "gpu")

EPS = 1e-5
DTYPES = [np.float32, np.float64]
LEVELS = _host.build_info()["simd_supported"]
# E, N, H, W, C, K: every remainder of a vector, a register tile and a pooling window, and single pixels.
BLOCKS = [
    (1, 1, 1, 1, 1, 1),
    (2, 3, 2, 3, 3, 5),
    (1, 2, 5, 7, 2, 16),
    (3, 2, 7, 7, 5, 33),
    (1, 1, 10, 14, 32, 32),
    (2, 3, 3, 3, 17, 64),
    (1, 1, 21, 1, 3, 8),
    (1, 2, 28, 28, 1, 32),
    (1, 40, 6, 5, 4, 20),
]
FIRST = [b for b in BLOCKS if b[4] <= 5]
# Several tiles down and across, more filters and channels than a tile holds, tiles of several images.
TILED = [(1, 1, 46, 92, 3, 36), (1, 2, 42, 42, 36, 32), (2, 9, 10, 10, 33, 40), (1, 5, 21, 21, 32, 64), (1, 1, 3, 300, 2, 4)]


def call(name, **arguments):
    """The outputs that a kernel makes, by name; each element is written, and nothing around them."""
    guarded = Guarded()
    kernels = copy(HOST)
    object.__setattr__(kernels, "empty", guarded.empty)
    outputs = kernels.run(name, **arguments)
    guarded.check()
    return outputs


def close(actual, expected, dtype, factor=1.0):
    """Largest element error against the largest expected element."""
    expected = np.asarray(expected)
    assert actual.shape == expected.shape
    if expected.size:
        error = np.abs(actual - expected).max()
        bound = factor * (3e-6 if dtype == np.float32 else 2e-14) * max(np.abs(expected).max(), 1e-3)
        assert error <= bound, f"error {error:.3g} above {bound:.3g}"


def per_episode(f, episodes, *arrays):
    """f on every episode's float64 arrays, the results stacked."""
    arrays = [None if a is None else a if a.dtype == np.uint8 else a.astype(np.float64) for a in arrays]
    results = [f(*(None if a is None else a[e] for a in arrays)) for e in range(episodes)]
    return [np.stack(r) for r in zip(*results, strict=True)] if isinstance(results[0], tuple) else np.stack(results)


class Problem:
    """A block's inputs, directions, and the rungs that run on them."""

    def __init__(self, sizes, dtype, shared=False, directions=2, first=False, seed=0, shift=0.5):
        rng = np.random.default_rng([seed, *sizes])
        e, n, h, w, c, k = self.sizes = sizes
        self.dtype, self.first, self.p, self.precision = dtype, first, directions, 0
        draw = lambda *shape: rng.standard_normal(shape).astype(dtype)  # noqa: E731
        self.x = draw(e, n, h, w, c) + dtype(shift)
        lead = 1 if shared else e
        self.w, self.gamma, self.beta = draw(lead, 3, 3, c, k), draw(lead, k), draw(lead, k)
        self.gamma[:, 0] = 0 if k > 1 else 1  # a channel that BN switches off; others are of both signs
        if shared:
            self.w, self.gamma, self.beta = (np.broadcast_to(a, (e, *a.shape[1:])) for a in (self.w, self.gamma, self.beta))
        self.pooled = (e, n, h // 2, w // 2, k)
        self.y_bar, self.y_bar_dot = draw(*self.pooled), draw(directions, *self.pooled)
        self.x_dot, self.w_dot = draw(directions, *self.x.shape), draw(directions, *self.w.shape)
        self.gamma_dot, self.beta_dot = draw(directions, e, k), draw(directions, e, k)

    def value(self):
        first = "first_" if self.first else ""
        given = {"x": self.x, "w": self.w, "gamma": self.gamma, "beta": self.beta, "eps": EPS}
        patches = call("patch_cov", x=self.x) if self.first else {}
        self.saved = call(f"conv_bn_relu_pool_{first}value", **given, **patches, **self.attributes) | patches
        self.__dict__ |= self.saved
        self.y = self.saved.pop("y")
        return [self.y, *self.saved.values()]

    @property
    def attributes(self):
        return {} if self.first else {"precision": self.precision}

    def rung(self, name, **arguments):
        """The outputs of a derivative; the plain block's kernel has an output for x, too."""
        first = "first_" if self.first else ""
        given = {"x": self.x, "w": self.w, "gamma": self.gamma, **self.saved, **self.attributes}
        return call(f"conv_bn_relu_pool_{first}{name}", **given, **arguments)

    def tangents(self, dots, count):
        names = ("x_dot", "w_dot", "gamma_dot", "beta_dot")[:count]
        return {k: d for k, d in zip(names, dots, strict=False) if k != "x_dot" or not self.first}

    def vjp(self, want_x=True):
        out = self.rung("vjp", y_bar=self.y_bar, **({} if self.first else {"x_bar": want_x}))
        return [*([None] if self.first else []), *out.values()]

    def jvp(self, dots):
        self.dot = self.rung("jvp", **self.tangents(dots, 4), P=self.p)
        return self.dot.pop("y_dot")

    def vjp_jvp(self, dots, y_bar_dot, want_x=True):
        """After jvp(dots)."""
        given = {"y_bar": self.y_bar, "y_bar_dot": y_bar_dot, **self.tangents(dots, 3)}
        out = self.rung("vjp_jvp", **given, **({"P": self.p} if self.first else {"x_bar_dot": want_x, **self.dot}))
        return [*([None] if self.first else []), *out.values()]

    def everything(self):
        """All outputs of the four rungs."""
        dots = [None if self.first else self.x_dot, self.w_dot, self.gamma_dot, self.beta_dot]
        outs = [*self.value(), *self.vjp(), self.jvp(dots), *self.vjp_jvp(dots, self.y_bar_dot)]
        return [o for o in outs if o is not None]


def check_value(p):
    """y, the statistics, and a code that names a maximum up to rounding (exactly, in float64)."""
    p.value()
    e = p.sizes[0]
    u = per_episode(lambda *a: ref.pre_pool(*a, EPS), e, p.x, p.w, p.gamma, p.beta)
    z = per_episode(ref.conv2d, e, p.x, p.w)
    mean, rstd = per_episode(lambda a: ref.normalize(a, EPS)[:2], e, z)
    code = per_episode(ref.decide, e, u)
    best = per_episode(lambda a: ref.windows(a).max(0), e, u)
    if not p.first:
        close(p.z, z, p.dtype)
    close(p.mean, mean, p.dtype)
    close(p.rstd, rstd, p.dtype, 3)
    close(p.y, np.maximum(best, 0), p.dtype, 3)
    if p.dtype == np.float64:
        np.testing.assert_array_equal(p.code[..., 1:], code[..., 1:])  # channel 0 is constant up to rounding
    assert ((p.code > 3) == (p.y > 0)).all() and (p.code < 8).all()
    chosen = per_episode(lambda a, c: np.take_along_axis(ref.windows(a), (c & 3)[None].astype(int), 0)[0], e, u, p.code)
    close(np.maximum(chosen, 0), np.maximum(best, 0), p.dtype, 6)


def reference_vjp(p):
    return per_episode(lambda x, w, g, b, c: ref.block_vjp(x, w, g, b, c, EPS), p.sizes[0], p.x, p.w, p.gamma, p.y_bar, p.code)


def reference_jvp(p, dots, direction):
    dots = [None if d is None else d[direction] for d in dots]
    return per_episode(
        lambda x, w, g, b, c, *d: ref.tangent(lambda *a: ref.block(*a, c, EPS), (x, w, g, b), d),
        p.sizes[0],
        p.x,
        p.w,
        p.gamma,
        p.beta,
        p.code,
        *dots,
    )


def reference_vjp_jvp(p, dots, y_bar_dot, direction):
    dots = [None if d is None else d[direction] for d in (*dots[:3], y_bar_dot)]
    return per_episode(
        lambda x, w, g, b, c, *d: ref.tangent(lambda *a: ref.block_vjp(*a, c, EPS), (x, w, g, b), d),
        p.sizes[0],
        p.x,
        p.w,
        p.gamma,
        p.y_bar,
        p.code,
        *dots,
    )


def check_rungs(p, dots, y_bar_dot):
    check_value(p)
    factor = 20  # sums over all pixels and differences of such sums
    for actual, expected in zip(p.vjp(), reference_vjp(p), strict=True):
        if actual is not None:
            close(actual, expected, p.dtype, factor)
    if any(d is not None for d in dots):
        y_dot = p.jvp(dots)
        for i in range(p.p):
            close(y_dot[i], reference_jvp(p, dots, i), p.dtype, factor)
    outs = p.vjp_jvp(dots, y_bar_dot)
    for i in range(p.p):
        for actual, expected in zip(outs, reference_vjp_jvp(p, dots, y_bar_dot, i), strict=True):
            if actual is not None:
                close(actual[i], expected, p.dtype, 2 * factor)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", BLOCKS, ids=str)
def test_block_rungs(sizes, dtype, backend):
    p = Problem(sizes, dtype, shared=sizes[1] == 3, directions=1 + sizes[0])
    check_rungs(p, [p.x_dot, p.w_dot, p.gamma_dot, p.beta_dot], p.y_bar_dot)
    backend.same_bits(p.everything)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", FIRST, ids=str)
def test_first_block_rungs(sizes, dtype, backend):
    p = Problem(sizes, dtype, shared=sizes[1] == 3, directions=1 + sizes[0], first=True)
    check_rungs(p, [None, p.w_dot, p.gamma_dot, p.beta_dot], p.y_bar_dot)
    backend.same_bits(p.everything)


@pytest.mark.backends("emulated", "gpu")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("sizes", TILED, ids=str)
def test_blocks_of_several_tiles(sizes, first, dtype, backend):
    p = Problem((*sizes[:4], 4, sizes[5]) if first else sizes, dtype, first=first)
    check_rungs(p, [None if first else p.x_dot, p.w_dot, p.gamma_dot, p.beta_dot], p.y_bar_dot)
    backend.same_bits(p.everything)


@pytest.mark.backends("emulated", "gpu")
@pytest.mark.parametrize("sizes", [(266, 1, 3, 2, 5, 4), (66, 1, 12, 26, 6, 33)], ids=str)
def test_large_and_small_tiles_give_the_same_bits(sizes, backend):
    """Many episodes make enough blocks of large tiles, few take small ones; the statistics are sums over tiles, which round otherwise."""
    many = Problem(sizes, np.float32)
    check_rungs(many, [many.x_dot, many.w_dot, many.gamma_dot, many.beta_dot], many.y_bar_dot)
    backend.same_bits(many.everything)
    for name in ("x", "w", "gamma", "beta"):
        setattr(many, name, getattr(many, name)[:2])
    z = many.z[:2]
    many.value()
    assert many.z.tobytes() == z.tobytes()


@pytest.mark.backends("gpu")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(4, 75, 42, 42, 32, 32), (4, 5, 84, 84, 3, 32)], ids=str)
def test_blocks_of_a_few_shot_step_repeat_their_bits(sizes, dtype, backend):
    backend.same_bits(Problem(sizes, dtype, first=sizes[4] <= 4).everything)


@pytest.mark.parametrize("sizes", [(1, 8, 20, 20, 32, 32), (2, 3, 14, 14, 8, 24)], ids=str)
def test_float32_error_is_at_most_twice_the_composed_one(sizes):
    """Against float64, the value and the gradients are at most twice as far off as the same formulas in NumPy's float32."""
    p = Problem(sizes, np.float32)
    check_value(p)
    exact = [per_episode(lambda *a: ref.block(*a, EPS), sizes[0], p.x, p.w, p.gamma, p.beta, p.code), *reference_vjp(p)]
    rows = range(sizes[0])
    single = [np.stack([ref.block(p.x[e], p.w[e], p.gamma[e], p.beta[e], p.code[e], np.float32(EPS)) for e in rows])]
    vjps = [ref.block_vjp(p.x[e], p.w[e], p.gamma[e], p.y_bar[e], p.code[e], np.float32(EPS)) for e in rows]
    for ours, theirs, true in zip([p.y, *p.vjp()], [*single, *map(np.stack, zip(*vjps, strict=True))], exact, strict=True):
        assert theirs.dtype == np.float32
        floor = np.finfo(np.float32).eps * np.abs(true).max()  # rounding the true result
        assert np.abs(ours - true).max() <= 2 * max(np.abs(theirs - true).max(), floor)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("mask", range(16))
def test_absent_tangents(mask, first):
    """Every subset of tangents, y_bar's included; beta's tangent alone moves no gradient."""
    p = Problem((2, 2, 5, 4, 3, 5), np.float64, first=first)
    dots = [d if mask >> i & 1 else None for i, d in enumerate([p.x_dot, p.w_dot, p.gamma_dot])]
    if first:
        dots[0] = None
    p.value()
    y_dot = p.jvp([*dots, None])
    y_bar_dot = p.y_bar_dot if mask & 8 else None
    outs = p.vjp_jvp([*dots, None], y_bar_dot)
    for i in range(p.p):
        close(y_dot[i], reference_jvp(p, [*dots, None], i) if any(d is not None for d in dots) else 0 * p.y, p.dtype, 20)
        if any(d is not None for d in (*dots, y_bar_dot)):
            expected = reference_vjp_jvp(p, dots, y_bar_dot, i)
        else:
            expected = [np.zeros_like(a) for a in (p.x, p.w, p.gamma, p.beta)]
        for actual, wanted in zip(outs, expected, strict=True):
            if actual is not None:
                close(actual[i], wanted, p.dtype, 40)


def test_unwanted_x_bar_changes_nothing_else():
    p = Problem((2, 3, 6, 6, 4, 7), np.float32)
    dots = [p.x_dot, p.w_dot, p.gamma_dot, p.beta_dot]
    p.value()
    for a, b in zip(p.vjp()[1:], p.vjp(want_x=False)[1:], strict=True):
        np.testing.assert_array_equal(a, b)
    p.jvp(dots)
    for a, b in zip(p.vjp_jvp(dots, None)[1:], p.vjp_jvp(dots, None, want_x=False)[1:], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("first", [False, True])
def test_ties_go_to_the_first_pixel_and_zero_is_inactive(first):
    p = Problem((1, 2, 4, 4, 1, 3), np.float32, first=first)
    p.w[...] = 0  # every pixel of a window is equal to beta
    p.beta[0] = [1, 0, -1]
    p.value()
    np.testing.assert_array_equal(p.code, np.broadcast_to(np.array([4, 0, 0], np.uint8), p.code.shape))
    np.testing.assert_array_equal(p.y, np.broadcast_to(np.array([1, 0, 0], np.float32), p.y.shape))


@pytest.mark.parametrize("first", [False, True])
def test_nan_is_not_swallowed(first):
    p = Problem((2, 2, 4, 4, 1, 5), np.float32)
    p.x[1, 0, 1, 1] = np.nan
    given = {"x": p.x, "w": p.w, "gamma": p.gamma, "beta": p.beta, "eps": EPS}
    if first:
        y = HOST.run("conv_bn_relu_pool_first_value", **given, **HOST.run("patch_cov", x=p.x))["y"]
    else:
        y = HOST.run("conv_bn_relu_pool_value", **given, precision=0)["y"]
    assert np.isnan(y[1]).all() and not np.isnan(y[0]).any()


@pytest.mark.parametrize("ratio", [10.0, 100.0, 1000.0])
def test_statistics_survive_a_large_mean(ratio):
    """Filters that sum to nothing on images of mean/std `ratio`, and filters that do not."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((1, 4, 12, 12, 2)) + ratio).astype(np.float32)
    p = Problem((1, 4, 12, 12, 2, 8), np.float32)
    p.x = x
    p.value()
    z = p.z[0].astype(np.float64)
    mean, rstd, _ = ref.normalize(z, EPS)
    close(p.mean[0], mean, np.float32, 0.1)
    close(p.rstd[0], rstd, np.float32, 0.5)
    m, cov = call("patch_cov", x=x).values()
    expected_m, expected_cov = ref.patch_statistics(x[0].astype(np.float64))
    close(m[0], expected_m, np.float32, 0.1)
    close(cov[0], expected_cov, np.float32, 0.5)


# Images of one pixel; several chunks of channels; rows of pixels over several parts, and columns over more than a part adds up.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "sizes", [(1, 1, 1, 1, 1), (2, 3, 2, 3, 6), (1, 2, 5, 7, 4), (2, 50, 7, 5, 3), (1, 1, 3, 2100, 3), (2, 0, 4, 4, 3)], ids=str
)
def test_patch_statistics(sizes, dtype, backend):
    x = np.random.default_rng(sizes).standard_normal(sizes).astype(dtype) + dtype(0.5)
    m, cov = backend.same_bits(lambda: list(call("patch_cov", x=x).values()))
    if x.size == 0:
        assert (m == 0).all() and (cov == 0).all()
        return
    expected_m, expected_cov = per_episode(ref.patch_statistics, len(x), x)
    close(m, expected_m, dtype)
    close(cov, expected_cov, dtype)
    np.testing.assert_array_equal(cov, cov.swapaxes(1, 2))


# A, B, N, H, W, C, K, R, S, stride, pad_h, pad_w
CONVOLUTIONS = [
    (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0),
    (2, 3, 2, 5, 7, 3, 5, 3, 3, 1, 1, 1),
    (1, 2, 3, 28, 28, 1, 32, 3, 3, 2, 1, 1),
    (1, 1, 2, 9, 8, 16, 33, 3, 3, 2, 0, 0),
    (1, 1, 2, 11, 10, 4, 6, 5, 2, 3, 2, 0),
    (2, 1, 1, 3, 3, 8, 16, 1, 1, 4, 0, 0),
    (1, 1, 1, 2, 2, 3, 4, 5, 5, 1, 2, 2),
    (1, 1, 3, 7, 6, 2, 9, 2, 3, 5, 0, 3),
    (1, 1, 1, 14, 13, 32, 64, 3, 3, 1, 0, 2),
    (1, 1, 30, 10, 10, 3, 7, 4, 4, 2, 1, 1),
    (1, 2, 3, 30, 34, 33, 40, 3, 3, 1, 1, 1),
    (2, 1, 3, 9, 7, 32, 64, 3, 3, 1, 1, 1),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", CONVOLUTIONS, ids=str)
def test_convolutions(sizes, dtype, backend):
    a, b, n, h, w, c, k, r, s, stride, pad_h, pad_w = sizes
    rng = np.random.default_rng(list(sizes))
    p, q = (h + 2 * pad_h - r) // stride + 1, (w + 2 * pad_w - s) // stride + 1
    x = rng.standard_normal((b, n, h, w, c)).astype(dtype)
    x = np.broadcast_to(x, (a, *x.shape))  # shared along the first axis
    f = rng.standard_normal((a, r, s, c, k)).astype(dtype)
    f = np.broadcast_to(f[:, None], (a, b, *f.shape[1:]))  # shared along the second
    y_bar = rng.standard_normal((b, a, n, p, q, k)).astype(dtype).swapaxes(0, 1)
    attrs = {"stride": stride, "pad_h": pad_h, "pad_w": pad_w}

    def run():
        y = call("conv2d_fprop", x=x, w=f, **attrs, precision=0)["y"]
        x_bar = call("conv2d_dgrad", y_bar=y_bar, w=f, H=h, W=w, **attrs, precision=0)["x_bar"]
        return y, x_bar, call("conv2d_wgrad", x=x, y_bar=y_bar, R=r, S=s, **attrs, precision=0)["w_bar"]

    y, x_bar, w_bar = backend.same_bits(run)
    for i in range(a):
        for j in range(b):
            x_, f_, g_ = (v[i, j].astype(np.float64) for v in (x, f, y_bar))
            close(y[i, j], ref.conv2d(x_, f_, **attrs), dtype)
            close(x_bar[i, j], ref.conv2d_dgrad(g_, f_, x_.shape, **attrs), dtype)
            close(w_bar[i, j], ref.conv2d_wgrad(x_, g_, r, s, **attrs), dtype)


@pytest.mark.backends("host")
def test_reference_vjp_is_the_transpose_of_its_jvp():
    """The reference itself: <y_bar, J v> = <J' y_bar, v>."""
    p = Problem((1, 2, 5, 6, 3, 4), np.float64)
    p.value()
    dots = [p.x_dot, p.w_dot, p.gamma_dot, p.beta_dot]
    left = (reference_jvp(p, dots, 0) * p.y_bar).sum()
    right = sum((g * d[0]).sum() for g, d in zip(reference_vjp(p), dots, strict=True))
    assert abs(left - right) < 1e-11 * abs(left)


@pytest.mark.backends("host")
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("level", LEVELS)
def test_bits_do_not_depend_on_threads_or_repetition(level, first):
    chosen, threads = _host.build_info()["simd"], _host.threads()
    try:
        _host.set_simd(level)
        runs = []
        for n in (1, 2, 3, 2, 1):
            _host.set_threads(n)
            runs.append(Problem((2, 30, 9, 8, 3, 20), np.float32, first=first).everything())
    finally:
        _host.set_simd(chosen)
        _host.set_threads(threads)
    for run in runs[1:]:
        for a, b in zip(runs[0], run, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.backends("host")
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("level", LEVELS)
def test_every_instruction_set_passes(level, first, backend):
    chosen = _host.build_info()["simd"]
    try:
        _host.set_simd(level)
        for sizes in ((2, 3, 7, 5, 3, 21), (1, 2, 13, 15, 4, 4)):
            for dtype in DTYPES:
                p = Problem(sizes, dtype, first=first)
                check_rungs(p, [None if first else p.x_dot, p.w_dot, p.gamma_dot, p.beta_dot], p.y_bar_dot)
        for dtype in DTYPES:
            test_convolutions(CONVOLUTIONS[1], dtype, backend)
            test_convolutions(CONVOLUTIONS[7], dtype, backend)
    finally:
        _host.set_simd(chosen)


@pytest.mark.parametrize("axis", range(7))
def test_sizes_of_zero(axis):
    sizes = [2, 3, 4, 4, 2, 5, 2]
    sizes[axis] = 0
    *sizes, directions = sizes
    for first in (False, True):
        p = Problem.__new__(Problem)
        e, n, h, w, c, k = p.sizes = tuple(sizes)
        p.dtype, p.first, p.p, p.precision = np.float32, first, directions, 0
        p.x, p.w, p.gamma = np.ones((e, n, h, w, c), "f"), np.ones((e, 3, 3, c, k), "f"), np.ones((e, k), "f")
        p.beta, p.pooled = np.ones((e, k), "f"), (e, n, h // 2, w // 2, k)
        p.y_bar, p.y_bar_dot = np.ones(p.pooled, "f"), np.ones((directions, *p.pooled), "f")
        p.x_dot, p.w_dot = np.ones((directions, *p.x.shape), "f"), np.ones((directions, *p.w.shape), "f")
        p.gamma_dot = p.beta_dot = np.ones((directions, e, k), "f")
        p.everything()
    x, f, y = (np.ones((1, e, n, h, w, c), "f"), np.ones((1, e, 3, 3, c, k), "f"), np.ones((1, e, n, h, w, k), "f"))
    attrs = {"stride": 1, "pad_h": 1, "pad_w": 1, "precision": 0}
    if h and w:
        assert c or (call("conv2d_fprop", x=x, w=f, **attrs)["y"] == 0).all()
        assert k or (call("conv2d_dgrad", y_bar=y, w=f, H=h, W=w, **attrs)["x_bar"] == 0).all()
        assert n or (call("conv2d_wgrad", x=x, y_bar=y, R=3, S=3, **attrs)["w_bar"] == 0).all()
    else:
        with pytest.raises(ShapeError, match="filter is 3 x 3"):
            HOST.run("conv2d_fprop", x=x, w=f, **attrs)


def test_empty_sums_are_zero():
    given = {"x": np.ones((1, 1, 0, 5, 5, 2)), "y_bar": np.ones((1, 1, 0, 5, 5, 4)), "R": 3, "S": 3}
    assert (HOST.run("conv2d_wgrad", **given, stride=1, pad_h=1, pad_w=1, precision=0)["w_bar"] == 0).all()


def test_batch_axes_may_have_any_stride():
    """Reversed, stepped and broadcast batch axes give what contiguous copies give."""
    p = Problem((4, 2, 5, 5, 3, 6), np.float32)
    for a in ("x", "w", "gamma", "beta"):
        setattr(p, a, np.repeat(getattr(p, a), 2, 0)[::-2])
    p.w = np.broadcast_to(p.w[:1], p.w.shape)
    p.w_dot = np.broadcast_to(p.w_dot[:, :1], p.w_dot.shape)
    p.x_dot = p.x_dot[::-1, ::-1]
    strided = p.everything()
    for a in ("x", "w", "gamma", "beta", "w_dot", "x_dot"):
        setattr(p, a, np.ascontiguousarray(getattr(p, a)))
    for a, b in zip(strided, p.everything(), strict=True):
        np.testing.assert_array_equal(a, b)
