"""The optimisers' fused steps against their composed arithmetic: every rung and nesting, missing tangents and cotangents,
when the kernels run, and that the passes profit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import optree
import pytest
import test_fused as suite
from cases.optimizer_step import EACH, MIXED, SHARED, STEPS, step_case
from checks import Case, assert_same, check_layouts, check_outputs_written, derivatives
from fused_checks import against_composed, check_bits_for_any_threads, counted, setting

import hypergrad as hg
from hypergrad import _host
from hypergrad.backends.host import HOST, HostBackend
from hypergrad.errors import DTypeError
from hypergrad.ops.optimizer_step import sgd_step
from hypergrad.tape import Tensor

CASES = [
    step_case("sgd_step", MIXED, SHARED, "shared", nesterov=False),
    step_case("sgd_step", MIXED, EACH, "each, Nesterov", nesterov=True),
    step_case("sgd_step", ((1025,), (7,)), {"lr": "shared"}, "no velocity", plain=True, nesterov=False),
    step_case("adam_step", MIXED, SHARED, "shared", t=1),
    step_case("adam_step", ((1025,), (), (7,)), EACH, "each", t=2),
    step_case("adamw_step", MIXED, SHARED, "shared", t=1),
    step_case("adamw_step", ((1025,), (), (7,)), EACH, "each", t=2),
    step_case("rmsprop_step", MIXED, SHARED, "shared"),
    step_case("rmsprop_step", ((1025,), (), (7,)), EACH, "each"),
    step_case("rmsprop_step", ((1025,), (7,)), {"decay": "shared"}, "no velocity", plain=True),
    step_case("adagrad_step", MIXED, SHARED, "shared"),
    step_case("adagrad_step", ((1025,), (), (7,)), EACH, "each"),
]
EXTRA: dict[str, dict[str, Any]] = {"sgd_step": {"nesterov": True}, "adam_step": {"t": 1}, "adamw_step": {"t": 1}}
SMALL = [step_case(kind, ((3,), ()), SHARED, "small", **EXTRA.get(kind, {})) for kind in STEPS]
EVERY = pytest.mark.parametrize("case", CASES, ids=str)
EACH_SMALL = pytest.mark.parametrize("case", SMALL, ids=str)
OUTPUTS = [(kernel, k) for kernel, (_, outputs, _) in HOST.kernels().items() if "_step_" in kernel for k in outputs]


def kernels_of(case: Case) -> set[str]:
    return {f"{case.name.partition('[')[0]}_{rung}" for rung in ("value", "jvp", "vjp")}


def check(case: Case) -> None:
    """In float64: the kernels and nothing else run, and agree with the composed arithmetic by every route."""
    args, w = setting(case)
    got = derivatives(case.f, args, w)
    with hg.fusion(False):
        want = derivatives(case.f, args, w)
    for key in want:
        for i, (a, b) in enumerate(zip(got[key], want[key], strict=True)):
            assert_same(a, b, f"{key}, argument {i}", 1e-11)


@EVERY
def test_all_rungs_and_nestings_in_float64(case: Case) -> None:
    suite.check_float64(case, kernels_of(case))


@EVERY
def test_all_rungs_and_nestings_in_float32(case: Case) -> None:
    suite.test_all_rungs_and_nestings_in_float32(case)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@EVERY
def test_outputs_are_written_in_full_and_layouts_do_not_matter(case: Case, dtype: type) -> None:
    check_outputs_written(case, dtype)
    check_layouts(case, dtype)


@EACH_SMALL
@pytest.mark.parametrize("curved", [False, True], ids=["constant y_bar", "y_bar with a tangent"])
def test_tangents_on_some_inputs_only(case: Case, curved: bool) -> None:
    suite.test_tangents_on_some_inputs_only(case, curved)


@EACH_SMALL
def test_cotangents_of_some_inputs_only(case: Case) -> None:
    suite.test_cotangents_of_some_inputs_only(case)


@EACH_SMALL
def test_higher_nestings(case: Case) -> None:
    suite.test_higher_nestings_use_the_reference(case)


@EACH_SMALL
def test_tangent_of_the_cotangent_only(case: Case) -> None:
    """The kernel is linear in the cotangents; where an input has a tangent the reference runs."""
    args, w = setting(case)
    s_dot, numbers = np.random.default_rng(5).normal(size=(3, *w.c.shape)), tuple(range(1, len(args) + 1))

    def run() -> Any:
        return hg.jvp(lambda s: hg.grad(lambda s, *a: hg.sum(s * case.f(*a)), argnums=numbers)(s, *args), (w.c,), (s_dot,))[1]

    with counted() as runs:
        run()
    assert runs[f"{case.name.partition('[')[0]}_vjp"] == 4
    against_composed(run, "jvp of grad")


@pytest.mark.parametrize(("kernel", "output"), OUTPUTS)
def test_a_fault_in_any_output_is_seen(kernel: str, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest element of one leaf off by a part in a million."""
    case = next(c for c in SMALL if kernel.startswith(c.name.partition("[")[0]))
    original = HostBackend.run

    def run(self: HostBackend, name: str, **arguments: Any) -> dict[str, Any]:
        outputs = original(self, name, **arguments)
        out = outputs.get(output) if name == kernel else None
        out = out[0] if isinstance(out, list) else out
        if out is not None:
            out.reshape(-1)[np.abs(out.reshape(-1)).argmax()] *= 1 + 1e-6
        return outputs

    monkeypatch.setattr(HostBackend, "run", run)
    with pytest.raises(AssertionError, match="largest element error"):
        suite.check_float64(case, kernels_of(case))


@pytest.mark.parametrize("level", _host.build_info()["simd_supported"])
@pytest.mark.parametrize("kind", STEPS)
def test_bits_do_not_depend_on_threads(kind: str, level: str) -> None:
    case = step_case(kind, ((70001,), (), (9000,)), SHARED, "large", **EXTRA.get(kind, {}))
    check_bits_for_any_threads(case, level)


# --- when the kernels run -------------------------------------------------------------------------

W = {"a": np.full((3, 2), 0.5), "b": [np.full(4, -0.25), np.full((), 2.0)]}
G = optree.tree_map(lambda x: 0.1 * x + 1, W)
SINGLE = optree.tree_map(lambda x: np.asarray(x, np.float32), W)


def kernels_of_a_step(optimizer: Any, w: Any = W, g: Any = G) -> dict[str, int]:
    with counted() as runs:
        optimizer.step(w, None, g, 0)
    return dict(runs)


@pytest.mark.parametrize(
    "optimizer",
    [
        hg.SGD(lr=0.1),
        hg.SGD(lr=np.asarray(0.1), momentum=0.9),
        hg.SGD(lr=np.float64(0.1)),
        hg.SGD(lr=0.1, weight_decay=1, nesterov=True),
        hg.SGD(lr={"a": np.asarray(0.1), "b": [np.asarray(0.2), np.asarray(0.3)]}, momentum=np.asarray(0.0)),
    ],
    ids=str,
)
def test_one_kernel_call_serves_all_leaves(optimizer: Any) -> None:
    assert kernels_of_a_step(optimizer) == {"sgd_step_value": 1}
    got = optimizer.step(W, None, G, 0)
    with hg.fusion(False), counted() as runs:
        want = optimizer.step(W, None, G, 0)
    assert not runs
    for a, b in zip(optree.tree_leaves(got), optree.tree_leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-15)


@pytest.mark.parametrize("kind", [hg.Adam, hg.AdamW, hg.RMSprop, hg.Adagrad])
def test_an_optimizer_that_scales_gradients_is_one_kernel_call(kind: Any) -> None:
    once = {f"{kind.__name__.lower()}_step_value": 1}
    assert kernels_of_a_step(kind(lr=0.1, eps=np.asarray(0.01))) == once
    assert kernels_of_a_step(kind(lr=0.1), SINGLE, SINGLE) == once
    assert kernels_of_a_step(kind(lr=0.1), np.ones(3), np.ones(3)) == once  # a tree of one leaf


def test_adamw_without_decay_is_adam_bit_for_bit() -> None:
    assert kernels_of_a_step(hg.AdamW(lr=0.1, weight_decay=0)) == {"adam_step_value": 1}
    for fused in (True, False):
        with hg.fusion(fused):
            got, want = hg.AdamW(lr=0.1, weight_decay=0.0).step(W, None, G, 0), hg.Adam(lr=0.1).step(W, None, G, 0)
        for a, b in zip(optree.tree_leaves(got), optree.tree_leaves(want), strict=True):
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize(
    "optimizer",
    [
        hg.SGD(lr={"a": np.full((3, 2), 0.1), "b": [np.full(4, 0.1), np.asarray(0.1)]}),
        hg.SGD(lr={"a": 0.1, "b": [0.2, 0.3]}),
        hg.Adam(lr=0.1, eps={"a": np.full((3, 2), 0.1), "b": [np.full(4, 0.1), np.asarray(0.1)]}),
        hg.SGD(lr={"a": np.full(1, 0.1), "b": [np.full(1, 0.1), 0.1]}),
    ],
    ids=["elementwise", "a number per leaf", "Adam, elementwise", "one axis"],
)
def test_other_fields_are_composed(optimizer: Any) -> None:
    assert kernels_of_a_step(optimizer) == {}


def test_leaves_that_no_kernel_takes_are_composed() -> None:
    deep = {"x": np.ones((1,) * 6)}
    assert kernels_of_a_step(hg.SGD(lr=0.1), deep, deep) == {}
    assert kernels_of_a_step(hg.SGD(lr=0.1), {}, {}) == {}
    with pytest.raises(DTypeError):
        hg.SGD(lr=0.1).step(W, None, SINGLE, 0)
    with pytest.raises(DTypeError):
        hg.Adam(lr=np.asarray(0.1)).step(SINGLE, None, SINGLE, 0)


def test_what_nothing_moves_has_no_tangent_and_what_nothing_reaches_no_cotangent() -> None:
    def step(w: list[Any], v: list[Any], g: list[Any]) -> list[Any]:
        w, after = sgd_step(w, v, g, 0.1, 0.9, 0.0, nesterov=False)
        return [*w, *(after or [])]

    ones = [np.ones(2), np.ones(3)]
    with counted() as runs:
        _, dots = hg.jvp(step, (ones, ones, ones), ([None, None], [None, np.ones(3)], [None, None]))
        bars = hg.vjp(lambda v: step([Tensor(x) for x in ones], v, [Tensor(x) for x in ones])[0], ones)[1](np.ones(2))
    assert runs == {"sgd_step_value": 2, "sgd_step_jvp": 1, "sgd_step_vjp": 1}
    assert [float(np.max(np.abs(d))) for d in dots] == pytest.approx([0.0, 0.09, 0.0, 0.9])
    assert [float(np.max(np.abs(b))) for b in bars[0]] == pytest.approx([0.09, 0.0])


def quadratic(optimizer: Callable[[Any], Any]) -> hg.Bilevel:
    def inner(w: Any, hparams: Any, batch: Any) -> hg.Tensor:
        return hg.sum((w["a"] - batch) ** 2) * 0.5 + hg.sum(w["b"] * w["b"] * w["b"]) * hparams["c"]

    return hg.Bilevel(
        inner_loss=inner,
        outer_loss=lambda w, h: hg.sum(w["a"] * w["a"]) + hg.sum(w["b"]),
        init=lambda h: {"a": h["start"], "b": np.full(3, 0.5)},
        optimizer=optimizer,
    )


@pytest.mark.parametrize(
    ("optimizer", "name"),
    [
        (lambda h: hg.SGD(lr=h["lr"], momentum=h["beta"], weight_decay=0.01), "sgd"),
        (lambda h: hg.Adam(lr=h["lr"], beta1=h["beta"], eps=1e-3), "adam"),
        (lambda h: hg.AdamW(lr=h["lr"], beta1=h["beta"], eps=1e-3, weight_decay=h["c"]), "adamw"),
        (lambda h: hg.RMSprop(lr=h["lr"], decay=h["beta"], eps=1e-3), "rmsprop"),
        (lambda h: hg.RMSprop(lr=h["lr"], momentum=h["beta"], eps=1e-3), "rmsprop"),
        (lambda h: hg.Adagrad(lr=h["lr"], eps=1e-3 * h["beta"]), "adagrad"),
    ],
    ids=["sgd", "adam", "adamw", "rmsprop", "rmsprop with momentum", "adagrad"],
)
def test_the_passes_run_the_kernels_and_agree(optimizer: Any, name: str) -> None:
    hparams = {"lr": np.asarray(0.1), "beta": np.asarray(0.6), "c": np.asarray(0.3), "start": np.array([1.0, -2.0])}
    problem, batches = quadratic(optimizer), hg.full_batch(np.array([0.5, 0.25]), 4)
    with counted() as runs:
        reverse = hg.reverse(problem, hparams, batches)
        assert runs[f"{name}_step_value"] and runs[f"{name}_step_vjp"] and not runs[f"{name}_step_jvp"]
        forward = hg.forward(problem, hparams, batches)
        assert runs[f"{name}_step_jvp"] == 4
    with hg.fusion(False):
        composed = hg.reverse(problem, hparams, batches)
    again = hg.reverse(problem, hparams, batches, checkpoints=2)
    for k, expected in composed.grad.items():
        np.testing.assert_allclose(reverse.grad[k], expected, rtol=1e-12)
        np.testing.assert_allclose(forward.grad[k], expected, rtol=1e-12)
        assert again.grad[k].tobytes() == reverse.grad[k].tobytes()
