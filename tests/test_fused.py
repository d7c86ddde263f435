"""Every fused op against its composed reference: all rungs, both nestings, odd sizes, mixes of tangents, ties, on every backend of
NumPy arrays. The references' ops are held to NumPy and to differences in test_ops.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from cases.conv import block_margin
from checks import SAME, Array, Case, Weights, assert_same, check_layouts, check_outputs_written, derivatives, essentials, largest
from fused_checks import (
    against_composed,
    check_bits_for_any_threads,
    check_cotangents_of_some,
    check_float32,
    check_tangent_of_the_cotangent,
    check_tangents_of_some,
    setting,
)
from fused_checks import check_float64 as check_kernels_in_float64
from places import counted

import hypergrad as hg
from hypergrad import _host, backends
from hypergrad.errors import ArgumentError, ShapeError
from hypergrad.tape import with_tangents
from hypergrad.transforms import seed, tensor_value_and_grad

Shape = tuple[int, ...]
GENERAL, FIRST = "conv_bn_relu_pool", "conv_bn_relu_pool_first"
RUNGS = {
    "linear_cross_entropy": ("value", "jvp", "vjp", "vjp_jvp"),
    "batch_norm": ("value", "jvp", "vjp", "vjp_jvp"),
    "max_pool": ("value", "jvp", "vjp"),
    GENERAL: ("value", "jvp", "vjp", "vjp_jvp"),
    FIRST: ("value", "jvp", "vjp", "vjp_jvp"),
}
everywhere = pytest.mark.backends("host", "emulated")


def composed_value(f: Callable[..., hg.Tensor]) -> Callable[..., Array]:
    def reference(*args: Array) -> Array:
        with hg.fusion(False):
            return f(*args).value

    return reference


def head(x: Shape, w: Shape, bias: Shape) -> Case:
    labels = np.random.default_rng(8).integers(0, w[-1], x[:-1])
    size = 1 / np.sqrt(max(x[-1], 1))  # logits of order one

    def f(x: Any, w: Any, bias: Any) -> hg.Tensor:
        return hg.linear_cross_entropy(x, w, bias, labels)

    def make(rng: np.random.Generator) -> list[Array]:
        return [rng.uniform(-1.5, 1.5, x), rng.uniform(-3, 3, w) * size, rng.uniform(-1, 1, bias)]

    return Case(f"linear_cross_entropy{x}{w}{bias}", f, composed_value(f), (x, w, bias), make=make)


def norm(x: Shape, k: Shape, mean: float = 0.0, eps: float = 1e-3) -> Case:
    f = partial(hg.batch_norm, eps=eps)

    def make(rng: np.random.Generator) -> list[Array]:
        return [rng.normal(mean, 1, x), rng.uniform(-1.5, 1.5, k), rng.uniform(-1, 1, k)]

    return Case(f"batch_norm{x}{k}, mean {mean}", f, composed_value(f), (x, k, k), make=make)


def pool(x: Shape, size: int) -> Case:
    f = partial(hg.max_pool2d, size=size)
    return Case(f"max_pool{x}, {size}", f, composed_value(f), (x,))


def block(
    detail: str,
    x: tuple[int, ...],
    w: tuple[int, ...],
    k: tuple[int, ...] = (),
    *,
    first: bool = False,
    gamma: str = "mixed",
    mean: float = 0.0,
    eps: float = 1e-3,
    clear: float = 2e-4,
) -> Case:
    """A fused block whose kinks are farther than float32's rounding; `first` binds x as a constant."""
    k = k or w[-1:]

    def make(rng: np.random.Generator) -> list[Array]:
        scale = rng.uniform(0.5, 1.5, k) * {"mixed": rng.choice([-1, 1], k), "negative": -1.0, "positive": 1.0}[gamma]
        return [rng.normal(mean, 1, x), rng.normal(0, 0.5, w), scale, rng.uniform(-0.5, 0.5, k)]

    def f(*a: Any) -> hg.Tensor:
        return hg.conv_bn_relu_pool(*a, eps=eps)

    def margin(*a: Array) -> float:
        return block_margin(*a, eps)

    name = f"{FIRST if first else GENERAL}({detail})"
    general = Case(name, f, lambda *a: np.zeros(block_shape(x, w)), (x, w, k, k), make=make, margin=margin, clear=clear)
    if not first:
        return general
    images = general.arguments(np.float32)[0]
    drawn = general.arguments(np.float64)[1:]
    return Case(name, lambda *a: f(images.astype(a[0].dtype), *a), general.reference, (w, k, k), make=lambda rng: drawn)


def block_shape(x: tuple[int, ...], w: tuple[int, ...]) -> tuple[int, ...]:
    return (*x[:-3], x[-3] // 2, x[-2] // 2, w[-1])


CASES = [
    head((1, 1), (1, 1), (1,)),
    head((1, 17), (17, 2), (2,)),
    head((5, 31), (31, 5), (5,)),
    head((70, 1100), (1100, 6), (6,)),
    head((3, 2), (2, 130), (130,)),
    head((1, 4, 33), (33, 3), (1, 3)),
    head((4, 5, 16), (4, 16, 5), (4, 5)),
    head((3, 7, 15), (15, 4), (3, 4)),
    head((2, 3, 300), (2, 300, 9), (9,)),
    norm((1, 1, 2, 1), (1,)),
    norm((3, 5, 7, 17), (17,)),
    norm((2, 9, 13, 10, 3), (2, 3)),
    norm((3, 2, 1, 3, 33), (33,)),
    norm((2, 3, 2, 5, 4, 5), (3, 5)),
    norm((2, 30, 40, 4), (4,), mean=100.0),
    pool((1, 1, 1, 1), 1),
    pool((2, 2, 2, 5), 2),
    pool((3, 1, 5, 7, 33), 2),
    pool((2, 11, 9, 16), 3),
    pool((1, 17, 33, 3), 16),
    block("2x2, 1 channel, one image", (1, 2, 2, 1), (3, 3, 1, 4), eps=0.1),
    block("2x2, 32 channels", (2, 2, 2, 32), (3, 3, 32, 5)),
    block("3x2, 3 channels", (2, 3, 2, 3), (3, 3, 3, 1), gamma="negative"),
    block("2x5, 5 channels, 3 episodes", (3, 1, 2, 5, 5), (3, 3, 5, 3), gamma="positive"),
    block("5x3, per-episode weights", (3, 2, 5, 3, 3), (3, 3, 3, 3, 5), (3, 5)),
    block("5x3, per-episode weights, shared scale", (2, 2, 5, 3, 5), (2, 3, 3, 5, 3), (3,)),
    block("7x9, shared weights, scale per episode", (2, 1, 7, 9, 3), (3, 3, 3, 4), (2, 4)),
    block("9x7, 1 to 33 channels", (1, 9, 7, 1), (3, 3, 1, 33)),
    block("14x14, 5 to 8 channels", (2, 14, 14, 5), (3, 3, 5, 8)),
    block("3x9, 32 to 32 channels, 3 episodes", (3, 1, 3, 9, 32), (3, 3, 3, 32, 32), (3, 32)),
    block("5x14, mean 100 times the deviation", (2, 5, 14, 2), (3, 3, 2, 3), mean=100.0, clear=5e-3),
    block("one episode axis", (1, 2, 5, 5, 5), (1, 3, 3, 5, 2), (1, 2)),
    block("4-D images, weights with an episode axis", (2, 5, 5, 5), (1, 3, 3, 5, 2), (1, 2)),
    block("2x2, 1 channel, one image", (1, 2, 2, 1), (3, 3, 1, 4), first=True, eps=0.1),
    block("3x2, 3 channels", (2, 3, 2, 3), (3, 3, 3, 1), first=True, gamma="negative"),
    block("5x3, per-episode weights", (3, 2, 5, 3, 3), (3, 3, 3, 3, 5), (3, 5), first=True),
    block("7x9, shared weights, scale per episode", (2, 1, 7, 9, 2), (3, 3, 2, 4), (2, 4), first=True),
    block("9x2, 1 to 33 channels", (1, 9, 2, 1), (3, 3, 1, 33), first=True, gamma="positive"),
    block("14x14, 3 to 8 channels, 3 episodes", (3, 1, 14, 14, 3), (3, 3, 3, 8), first=True),
    block("9x14, 4 channels", (2, 9, 14, 4), (3, 3, 4, 3), first=True),
    block("5x14, mean 100 times the deviation", (2, 5, 14, 2), (3, 3, 2, 3), mean=100.0, first=True, clear=5e-3),
]
# Several parts of pixels and of examples, several tiles of channels and of classes.
CASES += [
    head((1, 513, 2), (2, 2), (2,)),
    head((2, 2, 700), (700, 9), (2, 9)),
    norm((2, 2, 25, 43, 5), (2, 5)),
    norm((1, 3, 7, 68), (68,)),
    pool((2, 3, 14, 18, 8), 2),
]
SMALL = [head((2, 3, 5), (2, 5, 4), (2, 4)), norm((2, 2, 3, 3, 3), (2, 3)), pool((2, 5, 4, 3), 2)]
BLOCKS = [block("general", (2, 2, 5, 3, 3), (2, 3, 3, 3, 3), (2, 3)), block("first", (2, 2, 5, 3, 3), (2, 3, 3, 3, 3), (2, 3), first=True)]
EVERY = pytest.mark.parametrize("case", CASES, ids=str)
SOME = pytest.mark.parametrize("case", [c for c in CASES if "conv" not in c.name or "per-episode" in c.name or "33" in c.name], ids=str)
EACH = pytest.mark.parametrize("case", SMALL + BLOCKS, ids=str)


def op_of(case: Case) -> str:
    return case.name.partition("(")[0]


def check_float64(case: Case, kernels: set[str] | None = None) -> None:
    """Fused equals composed by every route; `kernels` are those that run, where they are not all four rungs' of the case's op."""
    op = op_of(case)
    expected = kernels or {f"{op}_{rung}" for rung in RUNGS[op]}
    # With a mean of 100 deviations the rounding of sums over all images is 100 times that of the other cases.
    ran = set(check_kernels_in_float64(case, expected, SAME * (100 if "mean 100" in case.name else 1)))
    ran -= {"matmul"}  # products around a head's kernels: a kernel on the host alone
    assert ran == expected or op in (GENERAL, FIRST)  # a block's routes of higher order run its parts


@everywhere
@EVERY
def test_all_rungs_and_nestings_in_float64(case: Case) -> None:
    check_float64(case)


@EVERY
def test_all_rungs_and_nestings_in_float32(case: Case) -> None:
    check_float32(case)


@pytest.mark.backends("emulated")
@pytest.mark.parametrize("case", [c for c in CASES if not re.search("conv|1100|513", c.name)], ids=str)
def test_float32_in_every_order_of_threads(case: Case, backend: Any) -> None:
    """Of small cases; a block's float32 is held by test_kernels.py."""
    check_float32(case)
    args, w = setting(case, np.float32)
    backend.same_bits(lambda: [a for arrays in essentials(case.f, args, w).values() for a in arrays])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@SOME
def test_outputs_are_written_in_full_and_layouts_do_not_matter(case: Case, dtype: type) -> None:
    check_outputs_written(case, dtype)
    check_layouts(case, dtype)


@everywhere
@EACH
@pytest.mark.parametrize("curved", [False, True], ids=["constant y_bar", "y_bar with a tangent"])
def test_tangents_on_some_inputs_only(case: Case, curved: bool) -> None:
    check_tangents_of_some(case, curved)


@everywhere
@EACH
def test_cotangents_of_some_inputs_only(case: Case) -> None:
    check_cotangents_of_some(case)


@everywhere
@EACH
def test_tangent_of_the_cotangent_only(case: Case) -> None:
    check_tangent_of_the_cotangent(case, op_of(case))


@everywhere
@EACH
def test_where_only_tangents_of_the_gradient_are_read_they_are_the_same_and_its_values_are_not_computed(case: Case) -> None:
    args, w = setting(case)

    def tangents(values: bool) -> list[Array]:
        def run() -> list[Any]:
            seeded, _, _ = seed(tuple(args), tuple(w.dots), "test")
            gradient = tensor_value_and_grad(lambda a: w.loss(case.f)(*a), seeded, values=values)[2]
            return [x.dot.value for x in gradient]

        return with_tangents(run)

    with counted() as all_runs:
        want = tangents(True)
    with counted() as runs:
        got = tangents(False)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)
    vjp = f"{op_of(case)}_vjp"
    assert runs[vjp] < all_runs[vjp] and runs - Counter({vjp: 9}) == all_runs - Counter({vjp: 9})


@EACH
def test_kernels_run_once_for_all_directions(case: Case) -> None:
    args, w = setting(case)
    with counted() as runs:
        hg.hvp(w.loss(case.f), tuple(args), tuple(w.dots))
    op = op_of(case)
    del runs["patch_cov"]
    assert runs == {f"{op}_{rung}": 2 if (op, rung) == ("max_pool", "vjp") else 1 for rung in RUNGS[op]}


@EACH
def test_higher_nestings_use_the_reference(case: Case) -> None:
    drawn, w = setting(case)
    args = tuple(drawn)
    numbers, loss = tuple(range(len(args))), w.loss(case.f)

    def along(f: Callable[..., Any], dots: list[Array]) -> Callable[..., Any]:
        return lambda *a: sum((hg.sum(g * d) for g, d in zip(hg.grad(f, argnums=numbers)(*a), dots, strict=True)), 0.0)

    one, two, three = ([d[i] for d in w.dots] for i in range(3))
    once = along(loss, one)
    twice = along(once, two)
    nestings = {
        "grad of grad": lambda: hg.grad(once, argnums=numbers)(*args),
        "grad of jvp": lambda: hg.grad(lambda *a: hg.jvp(loss, a, tuple(one))[1], argnums=numbers)(*args),
        "grad of grad of grad": lambda: hg.grad(twice, argnums=numbers)(*args),
        "grad of hvp": lambda: hg.grad(
            lambda *a: sum((hg.sum(g * d) for g, d in zip(hg.hvp(loss, a, tuple(one))[2], two, strict=True)), 0.0), argnums=numbers
        )(*args),
        "jvp of grad of grad": lambda: hg.jvp(hg.grad(once, argnums=numbers), args, tuple(two))[1],
        "jvp of grad of grad of grad": lambda: hg.jvp(hg.grad(twice, argnums=numbers), args, tuple(three))[1],
    }
    for name, nesting in nestings.items():
        with counted() as runs:
            against_composed(nesting, name)
        assert runs["conv2d_fprop"] or "conv" not in case.name, f"{name} did not run the reference"
    for a, b in zip(nestings["grad of hvp"](), nestings["jvp of grad of grad"](), strict=True):
        assert_same(a, b, "third order, two nestings")


@pytest.mark.parametrize("rung", [f"{op}_{rung}" for op, rungs in RUNGS.items() for rung in rungs])
def test_a_fault_in_any_kernel_is_seen(rung: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest element of one result off by a part in a million."""
    case = max((c for c in SMALL + BLOCKS if rung.startswith(op_of(c))), key=lambda c: len(op_of(c)))
    kind = type(backends.HOST)
    original = kind.run

    def run(self: Any, name: str, **arguments: Any) -> dict[str, Any]:
        outputs = original(self, name, **arguments)
        if name == rung:
            out = next(o for o in outputs.values() if o is not None).reshape(-1)
            out[np.abs(out).argmax()] *= 1 + 1e-6
        return outputs

    monkeypatch.setattr(kind, "run", run)
    with pytest.raises(AssertionError, match="largest element error"):
        check_float64(case)


@pytest.mark.parametrize("level", _host.build_info()["simd_supported"])
@pytest.mark.parametrize("case", [CASES[i] for i in (3, 8, 11, 14, 17)], ids=str)
def test_bits_do_not_depend_on_threads(case: Case, level: str) -> None:
    check_bits_for_any_threads(case, level)


@everywhere
def test_head_survives_large_logits() -> None:
    x, w, bias = np.array([[1.0], [-1.0]]), np.array([[800.0, -800.0]]), np.zeros(2)
    loss, (x_bar, _, bias_bar) = hg.value_and_grad(lambda *a: hg.sum(hg.linear_cross_entropy(*a, np.array([0, 0]))), argnums=(0, 1, 2))(
        x, w, bias
    )
    assert loss == 1600.0
    assert np.array_equal(x_bar, [[0.0], [-1600.0]]) and np.array_equal(bias_bar, [-1.0, 1.0])


@everywhere
def test_head_of_a_nan_is_nan() -> None:
    x = np.array([[np.nan, 1.0], [0.0, 1.0]])
    losses = hg.linear_cross_entropy(x, np.ones((2, 3)), np.zeros(3), np.array([0, 1])).value
    assert np.isnan(losses[0]) and np.isclose(losses[1], np.log(3))


@everywhere
def test_head_masks_the_classes_whose_bias_is_minus_infinity() -> None:
    """Kernels equal the composed ops, and a masked class's bias gets no derivative of any order."""
    rng = np.random.default_rng(9)
    bias = np.array([[0.5, -np.inf, 0.25, -np.inf, 0.0], [0.0, 1.0, -np.inf, 2.0, 3.0]])
    args = (rng.normal(size=(2, 3, 4)), rng.normal(size=(4, 5)), bias)
    dots = tuple(rng.normal(size=(2, *a.shape)) for a in args)

    def loss(*a: Any) -> hg.Tensor:
        return hg.sum(hg.linear_cross_entropy(*a, np.array([[0, 2, 4], [0, 1, 3]])) ** 2)

    against_composed(lambda: [g for part in hg.hvp(loss, args, dots)[1:] for g in part], "masked classes")
    _, grads, products = hg.hvp(loss, args, dots)
    none = np.isneginf(bias)
    assert all(np.all(np.isfinite(g)) for g in (*grads, *products))
    assert not np.any(grads[2][none]) and not np.any(products[2][:, none])


def test_head_kernel_refuses_labels_out_of_range() -> None:
    x, w, bias = np.ones((1, 2, 3)), np.ones((1, 3, 4)), np.ones((1, 4))
    for wrong in (-1, 4):
        with pytest.raises(ArgumentError, match=f"label is {wrong}, expected 0 to 3"):
            backends.HOST.run("linear_cross_entropy_value", x=x, w=w, bias=bias, label=np.array([[0, wrong]]))


def test_pooling_kernel_refuses_other_sizes() -> None:
    x = np.ones((1, 5, 4, 1))
    out = backends.HOST.run("max_pool_value", x=x, size=2)
    wrong = r"y has shape \(1, 2, 2, 1\), expected \(E, Q, R, K\) = \(1, 1, 1, 1\), where Q = H/size and R = W/size"
    with pytest.raises(ShapeError, match=wrong):
        backends.HOST.run("max_pool_value", x=x, **out, size=3)
    with pytest.raises(ArgumentError, match="size is 17"):
        backends.HOST.run("max_pool_value", x=x, size=17)


@everywhere
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [2, 3])
def test_pooling_breaks_ties_and_passes_nan_as_its_reference(size: int, dtype: type) -> None:
    rng = np.random.default_rng(6)
    x = rng.integers(0, 2, (3, 7, 9, 21)).astype(dtype)
    x[rng.random(x.shape) < 0.05] = np.nan
    x[rng.random(x.shape) < 0.05] = -np.inf
    y_bar = rng.normal(size=(3, 7 // size, 9 // size, 21)).astype(dtype)
    y, pullback = hg.vjp(partial(hg.max_pool2d, size=size), x)
    with hg.fusion(False):
        wanted, composed = hg.vjp(partial(hg.max_pool2d, size=size), x)
        x_bar = composed(y_bar)[0]
    assert np.array_equal(y, wanted, equal_nan=True) and np.array_equal(pullback(y_bar)[0], x_bar)


def test_large_windows_are_composed() -> None:
    x = np.random.default_rng(7).normal(size=(2, 35, 18, 2))
    with counted() as runs:
        y = hg.max_pool2d(x, size=17).value
    assert not runs and np.array_equal(y[:, 1, 0], x[:, 17:34, :17].max(axis=(1, 2)))


@everywhere
def test_constant_channels_are_shifted_only() -> None:
    x = np.full((2, 3, 3, 2), 7.0)
    assert np.array_equal(hg.batch_norm(x, np.array([2.0, -3.0]), np.array([0.5, -0.25])).value, np.broadcast_to([0.5, -0.25], x.shape))


# --- ties and dead channels -----------------------------------------------------------------------


def tied(name: str, first: bool) -> tuple[Callable[..., hg.Tensor], list[Array]]:
    """Blocks with exact ties in every window, or in many; integers of mean zero keep the convolution exact, also of shifted images."""
    rng = np.random.default_rng(11)
    x = rng.integers(-1, 2, (2, 2, 7, 6, 3)).astype(np.float64)
    x[:, 1] = -x[:, 0]
    w = rng.integers(-2, 3, (3, 3, 3, 4)).astype(np.float64)
    gamma, beta = np.array([0.5, -1.0, 2.0, -0.25]), np.array([0.3, -0.2, 0.1, 0.7])
    if name == "gamma = 0":
        gamma = np.zeros(4)
    elif name == "gamma = 0 and beta = 0":
        gamma, beta = np.zeros(4), np.zeros(4)
    elif name == "one gamma = 0":
        gamma[2] = 0.0
    elif name == "blank images":
        x[:] = 0.0
    elif name == "half blank images":
        x[:, :, 2:] = 0.0
    elif name == "constant channel":
        w[..., 1] = 0.0
    elif name == "all channels dead":
        beta = np.full(4, -50.0)
    args = [w, gamma, beta] if first else [x, w, gamma, beta]
    return (lambda *a: hg.conv_bn_relu_pool(x.astype(a[0].dtype), *a)) if first else hg.conv_bn_relu_pool, args


@everywhere
@pytest.mark.parametrize("first", [False, True], ids=["general", "first"])
@pytest.mark.parametrize(
    "name",
    [
        "gamma = 0",
        "gamma = 0 and beta = 0",
        "one gamma = 0",
        "blank images",
        "half blank images",
        "constant channel",
        "all channels dead",
        "many ties",
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ties_are_broken_as_in_the_reference(name: str, first: bool, dtype: type) -> None:
    """A tie broken the other way moves whole cotangents: the tolerance need not be tight to see it."""
    f, args = tied(name, first)
    args = [a.astype(dtype) for a in args]
    w = Weights.draw(args, (2, 2, 3, 3, 4), dtype)
    got = derivatives(f, args, w)
    with hg.fusion(False):
        want = derivatives(f, args, w)
    for key in want:
        for i, (a, b) in enumerate(zip(got[key], want[key], strict=True)):
            # Blank images have rstd = eps^-1/2 = 316, whose powers multiply float32's rounding in order 2.
            assert_same(a, b, f"{key}, argument {i}", 1e-4 if dtype is np.float32 else 1e-10)


def test_eps_and_fusion_do_what_they_say() -> None:
    args = BLOCKS[0].arguments(np.float64)
    near, far = (hg.conv_bn_relu_pool(*args, eps=e).value for e in (1e-3, 10.0))
    assert largest(near - far) > 0.1
    with counted() as runs:
        with hg.fusion(False):
            with hg.fusion(True):
                hg.conv_bn_relu_pool(*args)
            assert runs.pop("conv_bn_relu_pool_first_value") == 1
            runs.clear()
            hg.conv_bn_relu_pool(*args)
        assert set(runs) == {"conv2d_fprop"}
        hg.conv_bn_relu_pool(*args)
    assert runs["conv_bn_relu_pool_first_value"] == 1


@pytest.mark.parametrize(("channels", "kernel"), [(4, FIRST), (5, GENERAL)])
def test_closed_form_is_taken_for_constant_images_with_few_channels(channels: int, kernel: str) -> None:
    case = block("choice", (2, 4, 4, channels), (3, 3, channels, 2))
    x, *parameters = case.arguments(np.float64)
    with counted() as runs:
        hg.grad(lambda w: hg.sum(hg.conv_bn_relu_pool(x, w, *parameters[1:])))(parameters[0])
    assert set(runs) - {"patch_cov"} == {f"{kernel}_value", f"{kernel}_vjp"}
    with counted() as runs:
        hg.grad(lambda x: hg.sum(hg.conv_bn_relu_pool(x, *parameters)))(x)
    assert set(runs) == {f"{GENERAL}_value", f"{GENERAL}_vjp"}
