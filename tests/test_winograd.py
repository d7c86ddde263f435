"""Convolutions by Winograd's algorithm: their rounding errors beside the direct kernels', their bits, and ties.

A channel more, of zeros, makes the number of channels no multiple of eight: the same mathematics is then done directly.
"""

from contextlib import contextmanager

import kernels_reference as ref
import numpy as np
import pytest
import test_kernels as suite
from test_kernels import LEVELS, Problem, call, per_episode

import hypergrad as hg
from hypergrad import _host
from hypergrad.data import Episodes
from hypergrad.fewshot.methods.maml import MAML

F32 = np.float32
# E, N, H, W, C, K with enough pixels an episode: large and small tiles, hanging over both edges, no large ones, one or several tasks.
BLOCKS = [
    (2, 5, 21, 21, 32, 32),
    (1, 12, 10, 10, 32, 64),
    (1, 3, 20, 23, 64, 32),
    (2, 112, 3, 3, 64, 64),
    (1, 40, 7, 5, 16, 48),
    (1, 600, 2, 1, 32, 32),
    (1, 1, 1, 1001, 32, 16),
    (1, 7, 13, 6, 48, 32),
    (2, 5, 10, 10, 32, 32),
    (2, 5, 7, 7, 64, 64),
]
# The block on data, of which AVX-512 does one and three channels by permutations, of any number of filters.
FIRST = [
    (2, 5, 21, 21, 3, 32),
    (1, 2, 42, 30, 3, 64),
    (1, 130, 3, 3, 3, 16),
    (1, 1, 2, 700, 3, 48),
    (2, 6, 28, 28, 1, 64),
    (1, 3, 13, 10, 1, 20),
]
FIRST += [(2, 2, 9, 12, 3, 20), (1, 1, 2, 2, 3, 5), (1, 2, 3, 2, 1, 33)]
MOST_RMS, MOST_ERROR = 2.0, 3.0  # times those of the direct kernel
CONVOLUTIONS = ("conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad")


@contextmanager
def level(name):
    chosen = _host.build_info()["simd"]
    try:
        _host.set_simd(name)
        yield
    finally:
        _host.set_simd(chosen)


def widened(a, axis):
    """With a channel of zeros more."""
    shape = list(a.shape)
    shape[axis] = 1
    return np.concatenate([a, np.zeros(shape, a.dtype)], axis)


class Directly(Problem):
    """The problem whose images and filters have a channel of zeros more."""

    def __init__(self, of, dtype):
        self.__dict__ |= {k: v.astype(dtype) if isinstance(v, np.ndarray) and v.dtype == F32 else v for k, v in of.__dict__.items()}
        self.dtype = dtype
        self.x, self.x_dot = widened(self.x, -1), widened(self.x_dot, -1)
        self.w, self.w_dot = widened(self.w, -2), widened(self.w_dot, -2)


def rungs(p, code=None):
    """The outputs of the four rungs by name, without the channel that was added. `code`: winners to take instead."""
    c = p.sizes[4]
    _, *_ = p.value()
    out = {"y": p.y, "z": p.z, "mean": p.mean, "rstd": p.rstd}
    if code is not None:
        p.saved["code"] = p.code = code
    dots = [p.x_dot, p.w_dot, p.gamma_dot, p.beta_dot]
    x_bar, w_bar, out["gamma_bar"], out["beta_bar"] = p.vjp()
    out["y_dot"] = p.jvp(dots)
    out |= p.dot
    x_bar_dot, w_bar_dot, out["gamma_bar_dot"], out["beta_bar_dot"] = p.vjp_jvp(dots, p.y_bar_dot)
    out |= {"x_bar": x_bar[..., :c], "w_bar": w_bar[..., :c, :], "x_bar_dot": x_bar_dot[..., :c], "w_bar_dot": w_bar_dot[..., :c, :]}
    return out


def compare(found, direct, exact, what):
    """Errors are at most the bounds' multiple of the direct kernel's; one of a few ulps is none."""
    for key, x in exact.items():
        if not x.size:
            continue
        size = np.sqrt(np.mean(x**2)) + 1e-30
        off, by = found[key] - x, direct[key] - x
        small = 1.5e-7 * size  # sums of a few numbers only, where both are right to the last bits
        rms, most = np.sqrt(np.mean(off**2)), np.abs(off).max()
        assert rms <= MOST_RMS * max(np.sqrt(np.mean(by**2)), small), (what, key, rms / size)
        assert most <= MOST_ERROR * max(np.abs(by).max(), 2 * small), (what, key, most / size)


@pytest.mark.parametrize("simd", LEVELS)
@pytest.mark.parametrize("shift", [0.5, 30.0])
@pytest.mark.parametrize("sizes", BLOCKS)
def test_errors_of_the_block_beside_the_direct_kernel(sizes, shift, simd):
    with level(simd):
        p = Problem(sizes, F32, shift=shift)
        p.value()
        exact = Directly(p, np.float64)
        reference = rungs(exact, p.code)
        found, direct = rungs(p, p.code), rungs(Directly(p, F32), p.code)
    exact_y = np.where(exact.code > 3, reference["y"], 0)  # winners agree up to rounding, so y does
    np.testing.assert_allclose(found["y"], exact_y, atol=3e-5 * max(1, shift))
    for rows in (found, direct, reference):
        del rows["y"]
    compare(found, direct, reference, sizes)


def compare_conv2d(sizes):
    """The errors of the three convolutions beside the direct kernels'."""
    e, n, h, w, c, k = sizes
    rng = np.random.default_rng(sizes)
    x, f, y_bar = (rng.standard_normal(s).astype(F32) for s in ((1, e, n, h, w, c), (1, e, 3, 3, c, k), (1, e, n, h, w, k)))
    attributes = {"stride": 1, "pad_h": 1, "pad_w": 1, "precision": 0}

    def all_three(x, f, y_bar):
        return {
            "y": call("conv2d_fprop", x=x, w=f, **attributes)["y"],
            "x_bar": call("conv2d_dgrad", y_bar=y_bar, w=f, H=h, W=w, **attributes)["x_bar"][..., :c],
            "w_bar": call("conv2d_wgrad", x=x, y_bar=y_bar, R=3, S=3, **attributes)["w_bar"][..., :c, :],
        }

    found = all_three(x, f, y_bar)
    direct = all_three(widened(x, -1), widened(f, -2), y_bar)
    exact = all_three(*(a.astype(np.float64) for a in (widened(x, -1), widened(f, -2), y_bar)))
    compare(found, direct, exact, sizes)
    assert not any(np.array_equal(found[key], direct[key]) for key in exact)  # two algorithms


@pytest.mark.parametrize("simd", LEVELS)
@pytest.mark.parametrize("sizes", BLOCKS)
def test_errors_of_conv2d_beside_the_direct_kernel(sizes, simd):
    with level(simd):
        compare_conv2d(sizes)


@pytest.mark.parametrize("simd", LEVELS)
@pytest.mark.parametrize("shift", [0.5, 30.0])
@pytest.mark.parametrize("sizes", FIRST)
def test_errors_of_the_block_on_data_beside_the_direct_kernel(sizes, shift, simd):
    with level(simd):
        p = Problem(sizes, F32, first=True, shift=shift)
        p.value()
        found, direct, exact = (first_gradients(q, p.code) for q in (p, Directly(p, F32), Directly(p, np.float64)))
    compare(found, direct, exact, sizes)


def first_gradients(p, code):
    """Both gradients of the block on data by name, without the channel that was added."""
    c = p.sizes[4]
    p.value()
    p.saved["code"] = p.code = code
    _, w_bar, gamma_bar, beta_bar = p.vjp()
    dots = [None, p.w_dot, p.gamma_dot, p.beta_dot]
    _, w_bar_dot, gamma_bar_dot, beta_bar_dot = p.vjp_jvp(dots, p.y_bar_dot)
    out = {"w_bar": w_bar[..., :c, :], "gamma_bar": gamma_bar, "beta_bar": beta_bar}
    return out | {"w_bar_dot": w_bar_dot[..., :c, :], "gamma_bar_dot": gamma_bar_dot, "beta_bar_dot": beta_bar_dot}


@pytest.mark.parametrize("simd", LEVELS)
@pytest.mark.parametrize("sizes", BLOCKS + FIRST)
def test_bits_for_any_number_of_threads(sizes, simd):
    threads = _host.threads()
    with level(simd):
        try:
            runs = []
            for n in (1, 2, 3):
                _host.set_threads(n)
                runs.append([a.tobytes() for a in Problem(sizes, F32, first=sizes in FIRST).everything()])
        finally:
            _host.set_threads(threads)
    assert runs[0] == runs[1] == runs[2]


def test_an_image_depends_on_no_other():
    p = Problem((1, 12, 21, 21, 32, 32), F32)
    given = {"w": p.w, "gamma": p.gamma, "beta": p.beta, "eps": suite.EPS, "precision": 0}
    z = call("conv_bn_relu_pool_value", x=p.x, **given)["z"]
    for first in (1, 4, 9):  # enough pixels, and other images of a task
        part = call("conv_bn_relu_pool_value", x=np.ascontiguousarray(p.x[:, first : first + 3]), **given)["z"]
        assert part.tobytes() == z[:, first : first + 3].tobytes()


def test_a_number_that_is_not_finite_stays_in_its_image():
    p = Problem((1, 12, 10, 10, 32, 32), F32)
    p.x[0, 5, 3, 4, 7] = np.nan
    z = suite.HOST.run("conv2d_fprop", x=p.x[None], w=p.w[None], stride=1, pad_h=1, pad_w=1, precision=0)["y"][0, 0]
    wrong = np.isnan(z)
    assert wrong[5, 2:5, 3:6].all() and not np.delete(wrong, 5, axis=0).any()


@pytest.mark.parametrize("simd", LEVELS)
@pytest.mark.parametrize("noise", [0, 2.0**-22], ids=["equal", "rounded"])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("sizes", [(1, 5, 21, 21, 32, 32), (1, 6, 14, 14, 64, 64), (2, 3, 24, 20, 16, 16)])
def test_the_first_pixel_wins_where_an_image_is_flat(sizes, size, noise, simd):
    """Equal patches have sums that differ by rounding, and that is no difference; nor is rounding of the patches by a block before."""
    e, n, h, w, c, _ = sizes
    p = Problem(sizes, F32)
    rng = np.random.default_rng(sizes)
    p.x = (rng.standard_normal((e, n, 1, 1, c)) * size + np.zeros((e, n, h, w, c))).astype(F32)
    spot = rng.standard_normal((e, n, 3, 3, c)) * size * 10.0 ** rng.integers(-1, 3, (e, n, 1, 1, 1))
    p.x[:, :, h // 2 : h // 2 + 3, w // 2 : w // 2 + 3] += spot.astype(F32)
    flat = per_episode(lambda x: ref.windows(_flat(x)).all(0), e, p.x)[..., 0]
    p.x *= (1 + noise * rng.uniform(-1, 1, p.x.shape)).astype(F32)
    with level(simd):
        p.value()
    assert flat.mean() > 0.3
    assert ((p.code & 3)[flat] == 0).all()


@pytest.mark.parametrize("simd", LEVELS)
@pytest.mark.parametrize("sizes", [(2, 40, 21, 21, 32, 32), (1, 60, 14, 14, 64, 64)])
def test_sums_that_are_only_near_are_no_ties(sizes, simd):
    """Of about 200,000 windows, no more have another winner than in float64 than with the direct kernels, but for a few."""
    with level(simd):
        p = Problem(sizes, F32, shift=30.0)
        problems = p, Directly(p, F32), Directly(p, np.float64)
        for q in problems:
            q.value()
    found, direct, exact = (q.code & 3 for q in problems)
    assert np.count_nonzero(found != exact) <= np.count_nonzero(direct != exact) + 5


def _flat(x):
    """(N, H, W, 1): whether the 3x3 patch around a pixel is of one colour and lies inside the image."""
    inside = np.stack([x[:, 1 + dy : x.shape[1] - 1 + dy, 1 + dx : x.shape[2] - 1 + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
    flat = (inside == inside[4]).all((0, -1))
    return np.pad(flat, ((0, 0), (1, 1), (1, 1)))[..., None]


def test_a_channel_without_scale_has_its_first_pixel_as_winner():
    p = Problem((1, 5, 21, 21, 32, 32), F32)
    p.gamma[:, 3] = 0
    p.value()
    assert ((p.code & 3)[..., 3] == 0).all()
    np.testing.assert_array_equal(p.y[..., 3], np.broadcast_to(np.maximum(p.beta[:, None, None, None, 3], 0), p.y.shape[:-1]))


def test_gradients_of_maml_stay_near_those_in_float64():
    """Rounding flips some winners of the pooling, and steps amplify that. Convolutions of few images that took more of them for ties than
    rounding explains made the median of this error 0.07, with every instruction set; those of many images alone made it 0.001."""
    method, off = MAML(n_way=5), []
    labels = [np.repeat(np.arange(5), count)[None] for count in (1, 15)]
    for seed in range(5):
        rng = np.random.default_rng(seed)
        classes = rng.random((1, 5, 28, 28, 1))
        support, query = (
            (np.repeat(classes, count, axis=1) + 0.3 * rng.standard_normal((1, 5 * count, 28, 28, 1))).astype(np.float32)
            for count in (1, 15)
        )
        hparams, grads = method.init(seed, (28, 28, 1), 64), []
        for dtype in (np.float32, np.float64):
            episodes = Episodes(support.astype(dtype), labels[0], query.astype(dtype), labels[1])
            grads.append(hg.grad(lambda h, e=episodes: method.meta_loss(h, e)[0])({name: x.astype(dtype) for name, x in hparams.items()}))
        found, exact = grads
        size = sum(np.sum(x**2) for x in exact.values())
        off.append(np.sqrt(sum(np.sum((found[name] - x) ** 2) for name, x in exact.items()) / size))
    assert np.median(off) < 1e-4, off
