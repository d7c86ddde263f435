"""Every op of the registry: value, vjp, jvp and order 2 in both nestings, both dtypes; see checks.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import CASES
from cases.optimizer_step import STEPS
from checks import Case, Weights, assert_same, check_float32, check_float64, check_layouts, check_outputs_written, check_routes, derivatives
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import hypergrad as hg
import hypergrad.ops
from hypergrad.ops import constants, initialisers
from hypergrad.rules import REGISTRY
from hypergrad.tape import Tape, Tensor

EVERY = pytest.mark.parametrize("case", CASES, ids=str)
FUSED = ("conv2d", "conv_bn", "batch_norm", "max_pool2d", "linear_cross", "linear_head", *STEPS)
KERNELS = [case for case in CASES if case.name.startswith(FUSED) and not case.name.startswith("batch_norm[evaluated")]  # that has none


@EVERY
def test_float64(case: Case) -> None:
    check_float64(case)


@EVERY
def test_float32(case: Case) -> None:
    check_float32(case)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@EVERY
def test_layouts_repeats_and_arguments(case: Case, dtype: type) -> None:
    check_layouts(case, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", KERNELS, ids=str)
def test_kernels_write_all_of_their_outputs_and_nothing_else(case: Case, dtype: type) -> None:
    if 0 not in [n for shape in case.shapes for n in shape]:
        check_outputs_written(case, dtype)


def test_names_of_cases_are_unique() -> None:
    names = [case.name for case in CASES]
    assert sorted(names) == sorted(set(names))


def applied(case: Case) -> set[str]:
    """Names of the ops that the case applies to a Tensor that a tape follows."""
    tape = Tape()
    tape.run(lambda: case.f(*(tape.watch(Tensor(a)) for a in case.arguments(np.float64))))
    return {node.op.name for node in tape.nodes if node.op is not None}


def test_every_registered_op_is_the_subject_of_a_case() -> None:
    reached = set().union(*(applied(case) for case in CASES))
    assert set(REGISTRY) - reached == set()


CONSTANT = [*constants.__all__, *initialisers.__all__]  # no derivative flows through their results: see test_constants.py


def test_every_public_op_has_a_case() -> None:
    subjects = {case.name.partition("[")[0] for case in CASES}
    tried = {id(getattr(hg, name)) for name in subjects if hasattr(hg, name)}  # one of an op's names will do
    assert [name for name in hypergrad.ops.__all__ if name not in CONSTANT and id(getattr(hg, name)) not in tried] == []
    assert all(getattr(hg, name) is getattr(hypergrad.ops, name) for name in hypergrad.ops.__all__)


# --- at the kinks themselves, where cases stay away ---------------------------------------------

TIED = {  # op, arguments, the derivative of its sum by the first argument, as documented
    "relu": (hg.relu, ([-1.0, 0.0, 1.0],), [0.0, 0.0, 1.0]),
    "abs": (hg.abs, ([-2.0, 0.0, 3.0],), [-1.0, 0.0, 1.0]),
    "maximum": (hg.maximum, ([0.0, 1.0, 2.0], [1.0, 1.0, 1.0]), [0.0, 1.0, 1.0]),
    "maximum, second": (lambda y, x: hg.maximum(x, y), ([0.0, 1.0, 2.0], [1.0, 1.0, 1.0]), [0.0, 0.0, 1.0]),
    "minimum": (hg.minimum, ([0.0, 1.0, 2.0], [1.0, 1.0, 1.0]), [1.0, 1.0, 0.0]),
    "minimum, second": (lambda y, x: hg.minimum(x, y), ([0.0, 1.0, 2.0], [1.0, 1.0, 1.0]), [1.0, 0.0, 0.0]),
    "max": (hg.max, ([1.0, 3.0, 3.0, 2.0],), [0.0, 1.0, 0.0, 0.0]),
    "max in C order": (hg.max, ([[1.0, 3.0], [3.0, 3.0]],), [[0.0, 1.0], [0.0, 0.0]]),
    "max of one axis": (lambda x: hg.max(x, axis=0), ([[1.0, 3.0], [1.0, 3.0]],), [[1.0, 1.0], [0.0, 0.0]]),
    "max_pool2d": (hg.max_pool2d, ([[[1.0], [2.0]], [[2.0], [2.0]]],), [[[0.0], [1.0]], [[0.0], [0.0]]]),
    "power": (lambda x: x**2, ([0.0, -1.0],), [0.0, -2.0]),
    "power 0": (lambda x: x**0, ([0.0, -1.0],), [0.0, 0.0]),
    "power 1": (lambda x: x**1, ([0.0, -1.0],), [1.0, 1.0]),
    "power by an array": (lambda x: x ** np.arange(4), ([0.0, 0.0, 0.0, 0.0],), [0.0, 1.0, 0.0, 0.0]),
    "power by a Tensor": (hg.power, ([0.0, 0.0, 0.0, -2.0], [0.0, 1.0, 2.0, 3.0]), [0.0, 1.0, 0.0, 12.0]),
    "power 0 of what has no inverse": (hg.power, ([1e-40, -1e-40], [0.0, 0.0]), [0.0, 0.0]),
    "exponent of 0": (lambda e, x: x**e, ([0.0, 0.5, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0]), [0.0, 0.0, 0.0, 0.0]),
}


@pytest.mark.parametrize("name", TIED)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_derivatives_at_kinks_are_as_documented(name: str, dtype: type) -> None:
    f, arguments, wanted = TIED[name]
    args = [np.array(a, dtype) for a in arguments]
    assert np.array_equal(hg.grad(lambda *a: hg.sum(f(*a)))(*args), wanted)
    columns = np.eye(args[0].size, dtype=dtype).reshape(-1, *args[0].shape)
    _, dots = hg.jvp(lambda x: hg.sum(f(x, *args[1:])), (args[0],), (columns,))
    assert np.array_equal(dots, np.ravel(wanted))


def powers(kind: str, dtype: type) -> tuple[Any, Any]:
    """(x, e) -> x**e with the exponents 0 to 4 given in the way `kind`, and the arguments that it takes."""
    e = np.arange(5)
    if kind == "followed":
        return hg.power, e.astype(dtype)
    given = {"integers": e, "floats": e.astype(dtype), "Tensor": Tensor(e.astype(dtype)), "numbers": None}[kind]
    if given is None:
        return lambda x, _: hg.stack([x[i] ** i for i in range(5)]), e.astype(dtype)
    return lambda x, _: x**given, e.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["numbers", "integers", "floats", "Tensor", "followed"])
@pytest.mark.parametrize("at", [0.0, -0.0, -2.0])
def test_whole_powers_of_zero_and_below_are_exact_to_second_order(kind: str, at: float, dtype: type) -> None:
    f, e = powers(kind, dtype)
    x, n = np.full(5, at, dtype), np.arange(5)
    slope = np.where(n == 0, 0, n * x ** np.maximum(n - 1, 0))
    curvature = np.where(n < 2, 0, n * (n - 1) * x ** np.maximum(n - 2, 0))
    one = np.ones(5, dtype)

    def gradient(x: Any) -> Any:
        return hg.grad(lambda x: hg.sum(f(x, e)))(x)

    y, y_dot = hg.jvp(lambda x: f(x, e), (x,), (one,))
    assert np.array_equal(y, x**n) and np.array_equal(y_dot, slope) and np.array_equal(gradient(x), slope)
    assert np.array_equal(hg.jvp(gradient, (x,), (one,))[1], curvature)
    assert np.array_equal(hg.grad(lambda x: hg.sum(gradient(x)))(x), curvature)
    assert np.array_equal(hg.grad(lambda x: hg.sum(hg.jvp(lambda x: f(x, e), (x,), (one,))[1]))(x), curvature)


def test_exponents_of_zero_have_finite_derivatives_to_second_order() -> None:
    x, e = np.zeros(3), np.array([1.5, 2.0, 3.0])
    loss = lambda x, e: hg.sum(x**e)  # noqa: E731
    _, grads, products = hg.hvp(loss, (x, e), (None, np.ones(3)))
    assert not np.any(grads) and not np.any(products)
    twice = hg.grad(lambda x, e: hg.sum(hg.grad(loss, argnums=1)(x, e)), argnums=(0, 1))(x, e)
    assert not np.any(twice)


def test_no_derivative_in_the_exponent_of_a_negative_number() -> None:
    slope = hg.grad(lambda e: hg.sum(np.array([-2.0, 2.0]) ** e))(np.array([2.0, 1.0]))
    assert np.array_equal(slope, [np.nan, 2 * np.log(2)], equal_nan=True)


@pytest.mark.parametrize(
    ("f", "x", "value", "slope"),
    [
        (hg.sigmoid, [-1000.0, 1000.0], [0.0, 1.0], [0.0, 0.0]),
        (hg.softplus, [-1000.0, 1000.0], [0.0, 1000.0], [0.0, 1.0]),
        (hg.logsumexp, [-1000.0, 1000.0], 1000.0, [0.0, 1.0]),
        (lambda x: hg.softmax(x)[0], [1000.0, -1000.0], 1.0, [0.0, 0.0]),
        (lambda x: hg.softmax_cross_entropy(x, np.array(0)), [-1000.0, 1000.0], 2000.0, [-1.0, 1.0]),
        (hg.tanh, [-1000.0, 1000.0], [-1.0, 1.0], [0.0, 0.0]),
    ],
)
def test_nothing_overflows_far_out(f: Any, x: list[float], value: Any, slope: list[float]) -> None:
    for dtype in (np.float32, np.float64):
        at = np.array(x, dtype)
        assert np.array_equal(f(at).value, np.array(value, dtype))
        _, gradient, product = hg.hvp(lambda x: hg.sum(f(x)), (at,), (np.ones(2, dtype),))
        assert np.array_equal(gradient[0], slope) and np.array_equal(product[0], [0.0, 0.0])


# --- infinite elements ------------------------------------------------------------------------------

INF = float("inf")
ROWS = {  # row, logsumexp, softmax
    "one masked": ([0.0, -INF, 0.0], np.log(2), [0.5, 0.0, 0.5]),
    "all but one masked": ([-INF, 3.0, -INF], 3.0, [0.0, 1.0, 0.0]),
    "all masked": ([-INF, -INF, -INF], -INF, [0.0, 0.0, 0.0]),
    "+inf": ([0.0, INF, -INF], INF, [0.0, 1.0, 0.0]),
    "+inf twice": ([INF, INF, 1e30], INF, [0.5, 0.5, 0.0]),
    "the most negative number beside +inf": ([INF, -3.4e38, 0.0], INF, [1.0, 0.0, 0.0]),
    "the largest number": ([3.4e38, -3.4e38, -INF], 3.4e38, [1.0, 0.0, 0.0]),
    "NaN": ([0.0, np.nan, -INF], np.nan, [np.nan] * 3),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("axis", [-1, 0])
def test_logsumexp_and_softmax_of_infinite_elements(axis: int, dtype: type) -> None:
    rows, totals, weights = (np.array([r[i] for r in ROWS.values()], dtype) for i in range(3))
    if axis == 0:
        rows, weights = rows.T.copy(), weights.T.copy()
    for value, wanted in ((hg.logsumexp(rows, axis=axis).value, totals), (hg.softmax(rows, axis=axis).value, weights)):
        assert np.allclose(value, wanted, 1e-6, 0, equal_nan=True)
    f = lambda x: hg.logsumexp(x, axis=axis)  # noqa: E731
    ones = np.ones(len(ROWS), dtype)
    assert np.allclose(hg.vjp(f, rows)[1](ones)[0], weights, 1e-6, 0, equal_nan=True)
    v = np.random.default_rng(0).normal(size=rows.shape).astype(dtype)
    assert np.allclose(hg.jvp(f, (rows,), (v,))[1], np.sum(weights * v, axis=axis), 1e-5, 1e-7, equal_nan=True)
    curvature = hg.jvp(lambda x: hg.vjp(f, x)[1](ones)[0], (rows,), (v,))[1]
    wanted = weights * (v - np.sum(weights * v, axis=axis, keepdims=True))
    assert np.allclose(curvature, wanted, 1e-5, 1e-6, equal_nan=True) and np.isfinite(curvature).sum() == 3 * (len(ROWS) - 1)


def masked(seed: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Logits some of whose classes are -inf, never the first, and the bools of the others."""
    rng = np.random.default_rng(seed)
    kept = rng.random(shape) < 0.6
    kept[..., 0] = True
    return np.where(kept, rng.normal(size=shape), -INF), kept


MASKED = {
    "logsumexp": lambda x: hg.logsumexp(x),
    "softmax": lambda x: hg.softmax(x),
    "softmax_cross_entropy": lambda x: hg.softmax_cross_entropy(x, np.zeros(5, int)),
    "linear_cross_entropy": lambda x: hg.stack(
        [hg.linear_cross_entropy(np.full((1, 2), 0.5, x.dtype), np.full((2, 7), 0.25, x.dtype), x[i], np.zeros(1, int)) for i in range(5)]
    ),
}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", MASKED)
def test_masked_classes_are_as_if_they_were_not_there(name: str, fused: bool) -> None:
    """Everything up to second order, by every route: as with -1000 for -inf, whose weight is 0 to the last bit."""
    x, kept = masked(1, (5, 7))
    f = MASKED[name]
    far = np.where(kept, x, -1000.0)
    w = Weights.draw([x], f(far).shape, np.float64)
    with hg.fusion(fused):
        got, want = derivatives(f, [x], w), derivatives(f, [far], w)
    check_routes(got, name, 1e-11)
    for key in want:
        for a, b in zip(got[key], want[key], strict=True):
            assert_same(a, b, f"{name}: {key}")


@pytest.mark.parametrize("fused", [True, False])
def test_a_masked_label_is_infinitely_wrong_and_still_has_a_derivative(fused: bool) -> None:
    bias = np.array([0.0, -INF, 0.0])
    x, w = np.ones((1, 2)), np.zeros((2, 3))
    with hg.fusion(fused):
        loss, slope = hg.value_and_grad(lambda b: hg.sum(hg.linear_cross_entropy(x, w, b, np.array([1]))))(bias)
    assert loss == INF and np.array_equal(slope, [0.5, -1.0, 0.5])
    assert np.array_equal(hg.grad(lambda z: hg.softmax_cross_entropy(z, np.array(1)))(bias), [0.5, -1.0, 0.5])


# --- shapes that nobody wrote down ----------------------------------------------------------------

BINARY = {
    "add": (hg.add, np.add),
    "subtract": (hg.subtract, np.subtract),
    "multiply": (hg.multiply, np.multiply),
    "divide": (hg.divide, np.divide),
    "power": (hg.power, np.power),
}


@given(st.sampled_from(sorted(BINARY)), hnp.mutually_broadcastable_shapes(num_shapes=2, min_side=0, max_side=3, max_dims=4))
def test_any_broadcasting(name: str, shapes: hnp.BroadcastableShapes) -> None:
    f, reference = BINARY[name]
    check_float64(Case(f"{name}{shapes.input_shapes}", f, reference, shapes.input_shapes, 0.5, 2.0))


@given(hnp.mutually_broadcastable_shapes(signature=np.matmul.signature, min_side=0, max_side=3, max_dims=2))
def test_any_matrix_product(shapes: hnp.BroadcastableShapes) -> None:
    check_float64(Case(f"matmul{shapes.input_shapes}", hg.matmul, np.matmul, shapes.input_shapes, exact=True))


@given(st.data(), hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=3), st.booleans())
def test_any_axes_of_a_sum(data: st.DataObject, shape: tuple[int, ...], keepdims: bool) -> None:
    axes = data.draw(hnp.valid_tuple_axes(len(shape)))
    check_float64(
        Case(
            f"sum{shape}{axes}",
            lambda x: hg.sum(x, axes, keepdims),
            lambda x: np.sum(x, axis=axes, keepdims=keepdims),
            (shape,),
            exact=True,
        )
    )


@given(st.data(), hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=3))
def test_any_basic_index(data: st.DataObject, shape: tuple[int, ...]) -> None:
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=True))
    check_float64(Case(f"getitem{shape}{index}", lambda x: x[index], lambda x: np.asarray(x[index]), (shape,), exact=True))


@given(st.data(), hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=3))
def test_any_index_of_arrays_and_slices(data: st.DataObject, shape: tuple[int, ...]) -> None:
    """Arrays mixed with slices and numbers in any order: on it depends where NumPy puts the new axes."""
    size = data.draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3))
    index = tuple(
        data.draw(
            st.one_of(
                st.just(slice(None)), st.slices(n), st.integers(-n, n - 1), hnp.arrays(np.int64, size, elements=st.integers(-n, n - 1))
            )
        )
        for n in shape
    )
    check_float64(Case(f"getitem{shape}{index}", lambda x: x[index], lambda x: np.asarray(x[index]), (shape,), exact=True))
