"""What is kept of a closed jvp is a constant to the next: Tensors, pullbacks, in every nesting and in every thread."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from checks import assert_same

import hypergrad as hg
from hypergrad.errors import DifferentiationError
from hypergrad.tape import Tensor, primal, untaped

X = np.array([0.5, -1.25, 2.0])
V = np.array([1.0, 0.25, -0.75])


def kept_of_a_closed_jvp() -> Tensor:
    """2 x at X, with the tangent 2 v that nobody may see any more."""
    kept: list[Tensor] = []

    def keeps(x: Tensor) -> Tensor:
        kept.append(2.0 * x)
        return x

    hg.jvp(keeps, (X,), (V,))
    return kept[0]


@pytest.mark.parametrize("use", [lambda t: t, untaped, primal, lambda t: t * 1.0, lambda t: hg.reshape(t, (3,))])
def test_a_tensor_kept_from_a_closed_jvp_is_a_constant_to_the_next(use: Any) -> None:
    kept = kept_of_a_closed_jvp()
    assert kept.dot is None and "tangents" not in repr(kept)
    c = 2 * X

    def f(x: Tensor) -> Tensor:
        return hg.sum(x * x * use(kept))

    assert_same(hg.jvp(f, (X,), (V,))[1], np.sum(2 * X * c * V), "jvp")
    assert_same(hg.jvp(f, (X,), (np.stack([V, X, V]),))[1], [np.sum(2 * X * c * d) for d in (V, X, V)], "jvp, other number of directions")
    assert_same(hg.hvp(f, (X,), (V,))[2][0], 2 * c * V, "hvp")
    assert_same(hg.jvp(hg.grad(f), (X,), (V,))[1], 2 * c * V, "grad inside jvp")
    assert_same(hg.grad(lambda x: hg.jvp(f, (x,), (V,))[1])(X), 2 * c * V, "jvp inside grad")
    assert_same(hg.jvp(lambda x: hg.grad(lambda k: hg.sum(x * k * k))(use(kept)), (X,), (V,))[1], 2 * c * V, "grad at it, inside jvp")
    assert_same(hg.jvp(lambda x: use(kept), (X,), (V,))[1], np.zeros(3), "as the result")
    assert_same(hg.jvp(lambda x: x, (use(kept),), (V,))[1], V, "as the primal of the next")


def test_a_pullback_kept_from_a_closed_jvp_is_linear_to_the_next() -> None:
    """The tangents of its inputs and outputs are gone; that of the cotangent is there."""
    kept: list[Any] = []

    def keeps(x: Tensor) -> Tensor:
        kept.append(hg.vjp(lambda y: hg.exp(y) * y, x)[1])
        return x

    hg.jvp(keeps, (X,), (V,))
    bar, bar_dot = hg.jvp(lambda b: kept[0](b)[0], (X,), (V,))
    slope = np.exp(X) * (1 + X)
    assert_same(bar, slope * X, "cotangent")
    assert_same(bar_dot, slope * V, "its tangent")


def test_fused_ops_see_no_tangent_of_a_closed_jvp() -> None:
    kept, labels = kept_of_a_closed_jvp(), np.array([0, 2])
    x = np.stack([X, V])

    def f(w: Tensor, bias: Any) -> Tensor:
        return hg.sum(hg.linear_cross_entropy(x, w, bias, labels))

    w, d = np.outer(X, V), np.outer(V, X)
    for run in (lambda b: hg.jvp(lambda w: f(w, b), (w,), (d,))[1], lambda b: hg.hvp(lambda w: f(w, b), (w,), (d,))[2][0]):
        assert_same(run(kept), run(kept.value), "bias")


def test_unroll_sees_no_tangent_of_a_closed_jvp() -> None:
    """As its start, and through the closure of its inner loss; the tangent of the step size flows."""
    kept = kept_of_a_closed_jvp()

    def run(start: Any, centre: Any, lr: Tensor) -> Any:
        return hg.unroll(lambda w, h, batch: hg.sum((w - 0.5 * centre) ** 2 * w), start, (), [0, 1, 2], optimizer=hg.SGD(lr=lr))

    lr, one = np.array(0.1), np.array(1.0)
    ours = hg.jvp(lambda lr: run(kept, kept, lr), (lr,), (one,))
    theirs = hg.jvp(lambda lr: run(kept.value, kept.value, lr), (lr,), (one,))
    assert np.abs(theirs[1]).max() > 0.1
    for a, b in zip(ours, theirs, strict=True):
        assert_same(a, b, "unroll")


def test_a_tensor_that_a_jvp_follows_is_refused_in_another_thread() -> None:
    got: list[Any] = []

    def attempt(y: Tensor) -> None:
        for run in (lambda: y * 2.0, lambda: hg.jvp(lambda z: z * y, (V,), (X,)), lambda: hg.grad(lambda z: hg.sum(z * y))(V)):
            try:
                got.append(run())
            except DifferentiationError as error:
                got.append(str(error))

    def f(x: Tensor) -> Tensor:
        y = 2.0 * x
        worker = threading.Thread(target=attempt, args=(y,))
        worker.start()
        worker.join()
        return y * x

    assert_same(hg.jvp(f, (X,), (V,))[1], 4 * X * V, "the first thread")
    assert len(got) == 3 and all("another thread" in str(x) for x in got)
