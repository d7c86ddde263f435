"""The fused block against its composed reference: four rungs, both nestings, odd sizes, mixes of tangents.

The reference's ops are held to NumPy and to differences in test_ops.py, so agreement with it is enough here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases.conv import block_margin
from checks import SAME, Array, Case, Weights, assert_same, check_layouts, check_outputs_written, derivatives, largest
from fused_checks import (
    RUNGS,
    against_composed,
    check_cotangents_of_some,
    check_float32,
    check_float64,
    check_tangent_of_the_cotangent,
    check_tangents_of_some,
    counted,
    setting,
)

import hypergrad as hg

GENERAL, FIRST = "conv_bn_relu_pool", "conv_bn_relu_pool_first"


def sample(
    name: str,
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
    """A block whose kinks are farther than float32's rounding; `first` binds x as a constant."""
    k = k or w[-1:]

    def make(rng: np.random.Generator) -> list[Array]:
        scale = rng.uniform(0.5, 1.5, k) * {"mixed": rng.choice([-1, 1], k), "negative": -1.0, "positive": 1.0}[gamma]
        return [rng.normal(mean, 1, x), rng.normal(0, 0.5, w), scale, rng.uniform(-0.5, 0.5, k)]

    def block(*a: Any) -> hg.Tensor:
        return hg.conv_bn_relu_pool(*a, eps=eps)

    def margin(*a: Array) -> float:
        return block_margin(*a, eps)

    general = Case(name, block, lambda *a: np.zeros(block_shape(x, w)), (x, w, k, k), make=make, margin=margin, clear=clear)
    if not first:
        return general
    images = general.arguments(np.float32)[0]
    drawn = general.arguments(np.float64)[1:]
    return Case(name, lambda *a: block(images.astype(a[0].dtype), *a), general.reference, (w, k, k), make=lambda rng: drawn)


def block_shape(x: tuple[int, ...], w: tuple[int, ...]) -> tuple[int, ...]:
    return (*x[:-3], x[-3] // 2, x[-2] // 2, w[-1])


GENERAL_CASES = [
    sample("2x2, 1 channel, one image", (1, 2, 2, 1), (3, 3, 1, 4), eps=0.1),
    sample("2x2, 32 channels", (2, 2, 2, 32), (3, 3, 32, 5)),
    sample("3x2, 3 channels", (2, 3, 2, 3), (3, 3, 3, 1), gamma="negative"),
    sample("2x5, 5 channels, 3 episodes", (3, 1, 2, 5, 5), (3, 3, 5, 3), gamma="positive"),
    sample("5x3, per-episode weights", (3, 2, 5, 3, 3), (3, 3, 3, 3, 5), (3, 5)),
    sample("5x3, per-episode weights, shared scale", (2, 2, 5, 3, 5), (2, 3, 3, 5, 3), (3,)),
    sample("7x9, shared weights, scale per episode", (2, 1, 7, 9, 3), (3, 3, 3, 4), (2, 4)),
    sample("9x7, 1 to 33 channels", (1, 9, 7, 1), (3, 3, 1, 33)),
    sample("14x14, 5 to 8 channels", (2, 14, 14, 5), (3, 3, 5, 8)),
    sample("3x9, 32 to 32 channels, 3 episodes", (3, 1, 3, 9, 32), (3, 3, 3, 32, 32), (3, 32)),
    sample("5x14, mean 100 times the deviation", (2, 5, 14, 2), (3, 3, 2, 3), mean=100.0, clear=5e-3),
    sample("one episode axis", (1, 2, 5, 5, 5), (1, 3, 3, 5, 2), (1, 2)),
    sample("4-D images, weights with an episode axis", (2, 5, 5, 5), (1, 3, 3, 5, 2), (1, 2)),
]
FIRST_CASES = [
    sample("2x2, 1 channel, one image", (1, 2, 2, 1), (3, 3, 1, 4), first=True, eps=0.1),
    sample("3x2, 3 channels", (2, 3, 2, 3), (3, 3, 3, 1), first=True, gamma="negative"),
    sample("5x3, per-episode weights", (3, 2, 5, 3, 3), (3, 3, 3, 3, 5), (3, 5), first=True),
    sample("7x9, shared weights, scale per episode", (2, 1, 7, 9, 2), (3, 3, 2, 4), (2, 4), first=True),
    sample("9x2, 1 to 33 channels", (1, 9, 2, 1), (3, 3, 1, 33), first=True, gamma="positive"),
    sample("14x14, 3 to 8 channels, 3 episodes", (3, 1, 14, 14, 3), (3, 3, 3, 8), first=True),
    sample("9x14, 4 channels", (2, 9, 14, 4), (3, 3, 4, 3), first=True),
    sample("5x14, mean 100 times the deviation", (2, 5, 14, 2), (3, 3, 2, 3), mean=100.0, first=True, clear=5e-3),
]
BOTH = [pytest.param(case, GENERAL, id=f"general[{case}]") for case in GENERAL_CASES] + [
    pytest.param(case, FIRST, id=f"first[{case}]") for case in FIRST_CASES
]


@pytest.mark.parametrize(("case", "kernel"), BOTH)
def test_all_rungs_and_nestings_in_float64(case: Case, kernel: str) -> None:
    # With a mean of 100 deviations the rounding of sums over all images is 100 times that of the other cases.
    check_float64(case, {f"{kernel}_{rung}" for rung in RUNGS}, SAME * (100 if "mean 100" in case.name else 1))


@pytest.mark.parametrize(("case", "kernel"), BOTH)
def test_all_rungs_and_nestings_in_float32(case: Case, kernel: str) -> None:
    check_float32(case)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("case", "kernel"), [BOTH[i] for i in (3, 4, 7, 9, 15, 18)])
def test_layouts_repeats_arguments_and_unwritten_elements(case: Case, kernel: str, dtype: type) -> None:
    check_outputs_written(case, dtype)
    check_layouts(case, dtype)


SMALL = sample("general", (2, 2, 5, 3, 3), (2, 3, 3, 3, 3), (2, 3))
SMALL_FIRST = sample("first", (2, 2, 5, 3, 3), (2, 3, 3, 3, 3), (2, 3), first=True)


EACH = pytest.mark.parametrize(("case", "kernel"), [(SMALL, GENERAL), (SMALL_FIRST, FIRST)], ids=str)


@EACH
@pytest.mark.parametrize("curved", [False, True], ids=["constant y_bar", "y_bar with a tangent"])
def test_tangents_on_some_inputs_only(case: Case, kernel: str, curved: bool) -> None:
    check_tangents_of_some(case, curved)


@EACH
def test_cotangents_of_some_inputs_only(case: Case, kernel: str) -> None:
    check_cotangents_of_some(case)


@EACH
def test_tangent_of_the_cotangent_only(case: Case, kernel: str) -> None:
    check_tangent_of_the_cotangent(case, kernel)


@EACH
def test_kernels_run_once_for_all_directions(case: Case, kernel: str) -> None:
    args, w = setting(case)
    with counted() as runs:
        hg.hvp(w.loss(case.f), tuple(args), tuple(w.dots))
    assert {name: n for name, n in runs.items() if name.startswith(GENERAL)} == {f"{kernel}_{rung}": 1 for rung in RUNGS}


@EACH
def test_higher_nestings_use_the_reference(case: Case, kernel: str) -> None:
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
            lambda *a: sum(hg.sum(g * d) for g, d in zip(hg.hvp(loss, a, tuple(one))[2], two, strict=True)), argnums=numbers
        )(*args),
        "jvp of grad of grad": lambda: hg.jvp(hg.grad(once, argnums=numbers), args, tuple(two))[1],
    }
    thirds = []
    for name, nesting in nestings.items():
        with counted() as runs:
            found = nesting()
        assert runs["conv2d_fprop"], f"{name} did not run the reference"
        against_composed(nesting, name)
        if name not in ("grad of grad", "grad of jvp", "grad of grad of grad"):
            thirds.append(found)
    for a, b in zip(*thirds, strict=True):
        assert_same(a, b, "third order, two nestings")
    fourth = hg.jvp(hg.grad(twice, argnums=numbers), args, tuple(three))[1]
    with hg.fusion(False):
        wanted = hg.jvp(hg.grad(twice, argnums=numbers), args, tuple(three))[1]
    for a, b in zip(fourth, wanted, strict=True):
        assert_same(a, b, "fourth order")


# --- ties and dead channels -----------------------------------------------------------------------


def tied(name: str, first: bool) -> tuple[Callable[..., hg.Tensor], list[Array]]:
    """Blocks with exact ties in every window, or in many; integers keep the convolution exact."""
    rng = np.random.default_rng(11)
    x = rng.integers(-1, 2, (2, 2, 7, 6, 3)).astype(np.float64)
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
    block = (lambda *a: hg.conv_bn_relu_pool(x.astype(a[0].dtype), *a)) if first else hg.conv_bn_relu_pool
    return block, args


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
    block, args = tied(name, first)
    args = [a.astype(dtype) for a in args]
    w = Weights.draw(args, (2, 2, 3, 3, 4), dtype)
    got = derivatives(block, args, w)
    with hg.fusion(False):
        want = derivatives(block, args, w)
    for key in want:
        for i, (a, b) in enumerate(zip(got[key], want[key], strict=True)):
            # Blank images have rstd = eps^-1/2 = 316, whose powers multiply float32's rounding in order 2.
            assert_same(a, b, f"{key}, argument {i}", 1e-4 if dtype is np.float32 else 1e-10)


def test_eps_and_fusion_do_what_they_say() -> None:
    args = SMALL.arguments(np.float64)
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
    case = sample("choice", (2, 4, 4, channels), (3, 3, channels, 2))
    x, *parameters = case.arguments(np.float64)
    with counted() as runs:
        hg.grad(lambda w: hg.sum(hg.conv_bn_relu_pool(x, w, *parameters[1:])))(parameters[0])
    assert set(runs) - {"patch_cov"} == {f"{kernel}_value", f"{kernel}_vjp"}
    with counted() as runs:
        hg.grad(lambda x: hg.sum(hg.conv_bn_relu_pool(x, *parameters)))(x)
    assert set(runs) == {f"{GENERAL}_value", f"{GENERAL}_vjp"}
