"""The head, batch normalisation and max-pooling against their composed references: every rung, both nestings, odd sizes,
mixes of tangents. The references' ops are held to NumPy and to differences in test_ops.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from checks import Array, Case, check_layouts, check_outputs_written
from fused_checks import (
    against_composed,
    check_bits_for_any_threads,
    check_cotangents_of_some,
    check_float32,
    check_tangent_of_the_cotangent,
    check_tangents_of_some,
    counted,
    setting,
)
from fused_checks import check_float64 as check_kernels_in_float64

import hypergrad as hg
from hypergrad import _host
from hypergrad.backends.host import HOST, HostBackend
from hypergrad.errors import ArgumentError, ShapeError

Shape = tuple[int, ...]
RUNGS = {
    "linear_cross_entropy": ("value", "jvp", "vjp", "vjp_jvp"),
    "batch_norm": ("value", "jvp", "vjp", "vjp_jvp"),
    "max_pool": ("value", "jvp", "vjp"),
}


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
]
SMALL = [head((2, 3, 5), (2, 5, 4), (2, 4)), norm((2, 2, 3, 3, 3), (2, 3)), pool((2, 5, 4, 3), 2)]
EVERY = pytest.mark.parametrize("case", CASES, ids=str)
EACH = pytest.mark.parametrize("case", SMALL, ids=str)


def op_of(case: Case) -> str:
    return case.name.partition("(")[0]


def check_float64(case: Case, kernels: set[str] | None = None) -> None:
    """Fused equals composed by every route; `kernels` are those that run, where they are not all four rungs' of the case's op."""
    op = op_of(case)
    expected = kernels or {f"{op}_{rung}" for rung in RUNGS[op]}
    assert set(check_kernels_in_float64(case, expected, 1e-9 if "mean 100" in case.name else 1e-11)) == expected


@EVERY
def test_all_rungs_and_nestings_in_float64(case: Case) -> None:
    check_float64(case)


@EVERY
def test_all_rungs_and_nestings_in_float32(case: Case) -> None:
    check_float32(case)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@EVERY
def test_outputs_are_written_in_full_and_layouts_do_not_matter(case: Case, dtype: type) -> None:
    check_outputs_written(case, dtype)
    check_layouts(case, dtype)


@EACH
@pytest.mark.parametrize("curved", [False, True], ids=["constant y_bar", "y_bar with a tangent"])
def test_tangents_on_some_inputs_only(case: Case, curved: bool) -> None:
    check_tangents_of_some(case, curved)


@EACH
def test_cotangents_of_some_inputs_only(case: Case) -> None:
    check_cotangents_of_some(case)


@EACH
def test_tangent_of_the_cotangent_only(case: Case) -> None:
    check_tangent_of_the_cotangent(case, op_of(case))


@EACH
def test_kernels_run_once_for_all_directions(case: Case) -> None:
    args, w = setting(case)
    with counted() as runs:
        hg.hvp(w.loss(case.f), tuple(args), tuple(w.dots))
    op = op_of(case)
    assert runs == {f"{op}_{rung}": 2 if (op, rung) == ("max_pool", "vjp") else 1 for rung in RUNGS[op]}


@EACH
def test_higher_nestings_use_the_reference(case: Case) -> None:
    args, w = setting(case)
    numbers, loss = tuple(range(len(args))), w.loss(case.f)

    def along(f: Callable[..., Any], dots: list[Array]) -> Callable[..., Any]:
        return lambda *a: sum((hg.sum(g * d) for g, d in zip(hg.grad(f, argnums=numbers)(*a), dots, strict=True)), 0.0)

    one, two, three = ([d[i] for d in w.dots] for i in range(3))
    once = along(loss, one)
    against_composed(lambda: hg.grad(once, argnums=numbers)(*args), "grad of grad")
    against_composed(lambda: hg.grad(along(once, two), argnums=numbers)(*args), "grad of grad of grad")
    against_composed(lambda: hg.jvp(hg.grad(once, argnums=numbers), tuple(args), tuple(three))[1], "jvp of grad of grad")


@pytest.mark.parametrize("rung", [f"{op}_{rung}" for op, rungs in RUNGS.items() for rung in rungs])
def test_a_fault_in_any_kernel_is_seen(rung: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest element of one result off by a part in a million."""
    case = next(c for c in SMALL if rung.startswith(op_of(c)))
    original = HostBackend.run

    def run(self: HostBackend, name: str, **arguments: Any) -> dict[str, Any]:
        outputs = original(self, name, **arguments)
        if name == rung:
            out = next(o for o in outputs.values() if o is not None).reshape(-1)
            out[np.abs(out).argmax()] *= 1 + 1e-6
        return outputs

    monkeypatch.setattr(HostBackend, "run", run)
    with pytest.raises(AssertionError, match="largest element error"):
        check_float64(case)


@pytest.mark.parametrize("level", _host.build_info()["simd_supported"])
@pytest.mark.parametrize("case", [CASES[i] for i in (3, 8, 11, 14, 17)], ids=str)
def test_bits_do_not_depend_on_threads(case: Case, level: str) -> None:
    check_bits_for_any_threads(case, level)


def test_head_survives_large_logits() -> None:
    x, w, bias = np.array([[1.0], [-1.0]]), np.array([[800.0, -800.0]]), np.zeros(2)
    loss, (x_bar, _, bias_bar) = hg.value_and_grad(lambda *a: hg.sum(hg.linear_cross_entropy(*a, np.array([0, 0]))), argnums=(0, 1, 2))(
        x, w, bias
    )
    assert loss == 1600.0
    assert np.array_equal(x_bar, [[0.0], [-1600.0]]) and np.array_equal(bias_bar, [-1.0, 1.0])


def test_head_of_a_nan_is_nan() -> None:
    x = np.array([[np.nan, 1.0], [0.0, 1.0]])
    losses = hg.linear_cross_entropy(x, np.ones((2, 3)), np.zeros(3), np.array([0, 1])).value
    assert np.isnan(losses[0]) and np.isclose(losses[1], np.log(3))


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
            HOST.run("linear_cross_entropy_value", x=x, w=w, bias=bias, label=np.array([[0, wrong]]))


def test_pooling_kernel_refuses_other_sizes() -> None:
    x = np.ones((1, 5, 4, 1))
    out = HOST.run("max_pool_value", x=x, size=2)
    wrong = r"y has shape \(1, 2, 2, 1\), expected \(E, Q, R, K\) = \(1, 1, 1, 1\), where Q = H/size and R = W/size"
    with pytest.raises(ShapeError, match=wrong):
        HOST.run("max_pool_value", x=x, **out, size=3)
    with pytest.raises(ArgumentError, match="size is 17"):
        HOST.run("max_pool_value", x=x, size=17)


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


def test_constant_channels_are_shifted_only() -> None:
    x = np.full((2, 3, 3, 2), 7.0)
    assert np.array_equal(hg.batch_norm(x, np.array([2.0, -3.0]), np.array([0.5, -0.25])).value, np.broadcast_to([0.5, -0.25], x.shape))
