"""Training of a head by one op: kernels against the steps in ops in all rungs and nestings, and against `unroll` in every pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import test_fused as suite
from cases.head import descent_case
from checks import Case, assert_same, check_layouts, check_outputs_written, essentials
from fused_checks import check_bits_for_any_threads, check_float32, check_tangent_of_the_cotangent, setting
from places import counted

import hypergrad as hg
from hypergrad import _host, backends
from hypergrad.backends.host import HOST
from hypergrad.errors import ArgumentError
from hypergrad.testing import check_gradients

KERNELS = {"linear_head_descent_value", "linear_head_descent_vjp"}
CASES = [
    descent_case("1-shot", (2, 5, 31), (31, 5), (5,), (), 5),
    descent_case("one of each", (1, 1), (1, 1), (1,), (), 1),
    descent_case("no step", (2, 3, 2), (2, 2, 2), (2,), (2,), 0),
    descent_case("33 classes, rows of 2200 features", (3, 2200), (2200, 33), (33,), (), 2),
    descent_case("own weights, biases and steps", (3, 17, 9), (3, 9, 4), (3, 4), (3,), 3),
    descent_case("as many examples as the kernels take", (128, 3), (3, 21), (21,), (), 2),
]
SMALL = descent_case("small", (2, 3, 5), (2, 5, 4), (2, 4), (2,), 3)
EVERY = pytest.mark.parametrize("case", CASES, ids=str)
everywhere = pytest.mark.backends("host", "emulated")
OUTPUTS = [(kernel, name) for kernel in sorted(KERNELS) for name in HOST.kernels()[kernel][1]]


@everywhere
@EVERY
def test_all_rungs_and_nestings_in_float64(case: Case) -> None:
    suite.check_float64(case, KERNELS)


@everywhere
@EVERY
def test_all_rungs_and_nestings_in_float32(case: Case, backend: Any) -> None:
    check_float32(case)
    args, w = setting(case, np.float32)
    backend.same_bits(lambda: [a for arrays in essentials(case.f, args, w).values() for a in arrays])


@everywhere
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@EVERY
def test_outputs_are_written_in_full_and_layouts_do_not_matter(case: Case, dtype: type) -> None:
    check_outputs_written(case, dtype)
    check_layouts(case, dtype)


@everywhere
@pytest.mark.parametrize("curved", [False, True], ids=["constant y_bar", "y_bar with a tangent"])
def test_tangents_on_some_inputs_only(curved: bool) -> None:
    suite.check_tangents_of_some(SMALL, curved)


@everywhere
def test_cotangents_of_some_inputs_only() -> None:
    suite.check_cotangents_of_some(SMALL)


@everywhere
def test_tangent_of_the_cotangent_only() -> None:
    check_tangent_of_the_cotangent(SMALL, "linear_head_descent")


def test_higher_nestings_use_the_steps_in_ops() -> None:
    suite.test_higher_nestings_use_the_reference(SMALL)


@everywhere
@pytest.mark.parametrize("kept", [0, 1], ids=["weights", "bias"])
def test_cotangents_of_one_result_only(kept: int) -> None:
    """The other one's is zero, and no array is made for it."""
    args, _ = setting(SMALL)
    labels = np.array([[0, 1, 3], [2, 2, 0]])

    def gradient() -> Any:
        return hg.grad(lambda *a: hg.sum(hg.linear_head_descent(*a[:3], labels, a[3], 3)[kept] ** 2), argnums=(0, 1, 2, 3))(*args)

    with hg.fusion(False):
        wanted = gradient()
    for i, (a, b) in enumerate(zip(gradient(), wanted, strict=True)):
        assert_same(a, b, f"argument {i}")


@pytest.mark.parametrize(("kernel", "output"), OUTPUTS)
def test_a_fault_in_any_output_is_seen(kernel: str, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest element off by a part in a million."""
    kind = type(HOST)
    original = kind.run

    def run(self: Any, name: str, **arguments: Any) -> dict[str, Any]:
        outputs = original(self, name, **arguments)
        if name == kernel and outputs[output] is not None:
            out = outputs[output].reshape(-1)
            out[np.abs(out).argmax()] *= 1 + 1e-6
        return outputs

    monkeypatch.setattr(kind, "run", run)
    with pytest.raises(AssertionError, match="largest element error"):
        suite.check_float64(SMALL, KERNELS)


@pytest.mark.parametrize("level", _host.build_info()["simd_supported"])
def test_bits_do_not_depend_on_threads(level: str) -> None:
    check_bits_for_any_threads(CASES[4], level)


# --- what it stands for -----------------------------------------------------------------------------------


def by_unroll(x: Any, lr: Any, labels: Any, n_steps: int, classes: int = 4) -> tuple[Any, Any]:
    """The same steps by `unroll`, from zero."""
    episodes, _, size = x.shape
    start = np.zeros((episodes, size, classes)), np.zeros((episodes, classes))

    def inner(w: Any, x: Any, labels: Any) -> hg.Tensor:
        return hg.sum(hg.linear_cross_entropy(x, *w, labels)) * (1.0 / labels.shape[-1])

    w: tuple[Any, Any] = hg.unroll(inner, start, x, hg.full_batch(labels, n_steps), optimizer=hg.SGD(lr=lr))
    return w


@everywhere
@pytest.mark.parametrize("n_steps", [0, 1, 7])
def test_it_is_gradient_descent_in_both_modes(n_steps: int) -> None:
    """Value, reverse and forward mode equal those of `unroll`; the two modes equal differences."""
    rng = np.random.default_rng(1)
    x, lr, labels = rng.normal(size=(2, 5, 6)), np.float64(0.4), rng.integers(0, 4, (2, 5))
    weights = rng.normal(size=(2, 6, 4)), rng.normal(size=(2, 4))

    def judged(w: Any) -> hg.Tensor:
        return sum((hg.sum(a * b + a**2) for a, b in zip(w, weights, strict=True)), 0.0)

    def own(x: Any, lr: Any) -> hg.Tensor:
        return judged(hg.linear_head_descent(x, np.zeros((6, 4)), np.zeros(4), labels, lr, n_steps))

    def unrolled(x: Any, lr: Any) -> hg.Tensor:
        return judged(by_unroll(x, lr, labels, n_steps))

    dots = rng.normal(size=(3, *x.shape)), rng.normal(size=3)
    (value, grads), (wanted, slopes) = (hg.value_and_grad(f, argnums=(0, 1))(x, lr) for f in (own, unrolled))
    assert_same(value, wanted, "value")
    for name, a, b in zip(("x_bar", "lr_bar"), grads, slopes, strict=True):
        assert_same(a, b, name)
    assert_same(hg.jvp(own, (x, lr), dots)[1], hg.jvp(unrolled, (x, lr), dots)[1], "tangents")
    check_gradients(own, x, lr, order=2)


def test_no_array_grows_with_the_steps_and_the_features_together() -> None:
    """What is kept for the vjp is the examples' products and each step's residuals."""
    kept = []
    original = HOST.run

    def run(name: str, **arguments: Any) -> Any:
        outputs = original(name, **arguments)
        kept.extend(a.size for k, a in outputs.items() if k not in ("w_next", "bias_next"))
        return outputs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(HOST), "run", lambda self, name, **arguments: run(name, **arguments))
        hg.linear_head_descent(np.ones((3, 5, 100)), np.zeros((100, 2)), np.zeros(2), np.zeros((3, 5), int), 0.1, 50)
    assert sorted(kept) == [3 * 5 * 5, 3 * 50 * 5 * 2]


@everywhere
def test_masked_classes_have_no_weight_and_get_no_derivative() -> None:
    bias = np.array([0.5, -np.inf, 0.25])
    x, labels = np.random.default_rng(2).normal(size=(4, 3)), np.array([0, 2, 2, 0])

    def f(x: Any, bias: Any) -> hg.Tensor:
        w, after = hg.linear_head_descent(x, np.ones((3, 3)), bias, labels, 0.3, 3)
        return hg.sum(w**2) + hg.sum(after[np.array([0, 2])])

    w, after = hg.linear_head_descent(x, np.ones((3, 3)), bias, labels, 0.3, 3)
    assert np.isneginf(after.value[1]) and np.array_equal(w.value[:, 1], np.ones(3))
    (value, grads), (wanted, slopes) = value_and_grads(f, x, bias), composed(lambda: value_and_grads(f, x, bias))
    assert_same(value, wanted, "value")
    for a, b in zip(grads, slopes, strict=True):
        assert_same(a, b, "gradient")
    assert grads[1][1] == 0.0 and np.all(np.isfinite(grads[0]))


def value_and_grads(f: Any, *args: Any) -> Any:
    return hg.value_and_grad(f, argnums=tuple(range(len(args))))(*args)


def composed(f: Any) -> Any:
    with hg.fusion(False):
        return f()


@everywhere
def test_a_nan_stays_in_its_episode() -> None:
    x = np.random.default_rng(3).normal(size=(2, 3, 4))
    x[0, 1, 2] = np.nan
    w, bias = hg.linear_head_descent(x, np.zeros((4, 2)), np.zeros(2), np.zeros((2, 3), int), 0.5, 2)
    assert np.all(np.isnan(w.value[0])) and np.all(np.isnan(bias.value[0])) and np.all(np.isfinite(w.value[1]))


def test_the_kernel_refuses_labels_out_of_range() -> None:
    given = {"x": np.ones((1, 2, 3)), "w": np.ones((1, 3, 4)), "bias": np.ones((1, 4)), "lr": np.ones(1), "T": 1}
    for wrong in (-1, 4):
        with pytest.raises(ArgumentError, match=f"label is {wrong}, expected 0 to 3"):
            backends.HOST.run("linear_head_descent_value", **given, label=np.array([[0, wrong]]))


def test_many_examples_are_composed() -> None:
    x, labels = np.random.default_rng(4).normal(size=(129, 3)), np.arange(129) % 2
    with counted() as runs:
        hg.linear_head_descent(x, np.zeros((3, 2)), np.zeros(2), labels, 0.5, 2)
        assert not KERNELS & set(runs)
        hg.linear_head_descent(x[1:], np.zeros((3, 2)), np.zeros(2), labels[1:], 0.5, 2)
    assert runs["linear_head_descent_value"] == 1
