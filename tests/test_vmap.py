"""vmap: all examples at once against a loop, for every op that has a case; nesting, axes, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import optree
import pytest
from cases import CASES
from checks import Case, Weights, assert_same, differenced
from test_devices import OF_THE_HOST
from test_transforms import SECOND_ORDERS

import hypergrad as hg
from hypergrad.errors import ArgumentError, DeviceError, DTypeError, HypergradError, ShapeError
from hypergrad.rules import REGISTRY, Op, elementwise
from hypergrad.tape import to_tensors

RNG = np.random.default_rng(0)
X = np.array([0.5, -1.25, 2.0])
V = np.array([1.0, 0.25, -0.75])
A = RNG.normal(size=(4, 3))
COUNT = 3

# Sums of an example's numbers may be taken in another order among all examples, by NumPy and by LAPACK: a few roundings of 1.1e-16, which
# a derivative amplifies as in checks.py.
ULPS = 1e-14
AMPLIFIED = 1e-12


# --- every op ----------------------------------------------------------------------------------------------


def examples(case: Case) -> list[Any]:
    """Several samples of a case, with a first axis."""
    samples = [replace(case, seed=case.seed + 100 * k).arguments(np.float64) for k in range(COUNT)]
    return [np.stack(column) for column in zip(*samples, strict=True)]


def mapped(case: Case) -> list[tuple[int | None, ...]]:
    """in_axes: all arguments are mapped; each one alone."""
    n = len(case.shapes) or len(case.arguments(np.float64))
    return [(0,) * n, *([tuple(0 if i == j else None for i in range(n)) for j in range(n)] if n > 1 else [])]


def given(args: list[Any], axes: tuple[int | None, ...]) -> list[Any]:
    """The arguments as in_axes wants them: the first example of one that is not mapped."""
    return [a if axis == 0 else a[0] for a, axis in zip(args, axes, strict=True)]


def check_batched(case: Case) -> None:
    """Values, gradients of each example and of all of them, and a Hessian product, against a loop."""
    samples = examples(case)
    numbers = tuple(range(len(samples)))

    def f(*args: Any) -> Any:
        return case.f(*to_tensors("case", args))

    w = Weights.draw([a[0] for a in samples], f(*(a[0] for a in samples)).shape, np.float64)
    loss = w.loss(f)
    for axes in mapped(case):
        args = given(samples, axes)

        def both(f: Callable[..., Any], tolerance: float, what: str, axes: Any = axes, args: Any = args) -> None:
            got, want = (hg.vmap(f, axes, loop=loop)(*args) for loop in (False, True))
            for a, b in zip(*((x if isinstance(x, tuple) else (x,)) for x in (got, want)), strict=True):
                assert_same(a, b, f"{case.name}, {axes}: {what}", tolerance)

        both(f, ULPS, "value")
        both(hg.grad(loss, argnums=numbers), AMPLIFIED, "a gradient per example")

        def total(*a: Any, loop: bool, axes: Any = axes) -> Any:
            return hg.sum(hg.vmap(loss, axes, loop=loop)(*a) * V)

        got, want = (hg.grad(lambda *a, loop=loop: total(*a, loop=loop), argnums=numbers)(*args) for loop in (False, True))
        for a, b in zip(got, want, strict=True):
            assert_same(a, b, f"{case.name}, {axes}: gradient of the sum", AMPLIFIED)
    dots = tuple(np.random.default_rng(1).uniform(-1, 1, (2, *a.shape)) for a in args)
    got, want = (hg.hvp(lambda *a, loop=loop: total(*a, loop=loop), tuple(args), dots)[2] for loop in (False, True))
    for a, b in zip(got, want, strict=True):
        assert_same(a, b, f"{case.name}: Hessian product", AMPLIFIED)


SMALL = 100  # numbers of a sample: a larger one says no more about axes


def subjects() -> list[Case]:
    """Two small cases of each op, the last ones, which have most axes."""
    found: dict[str, list[Case]] = {}
    for case in CASES:
        if sum(a.size for a in case.arguments(np.float64)) <= SMALL:
            found.setdefault(case.name.partition("[")[0], []).append(case)
    return [case for cases in found.values() for case in cases[-2:]]


REFUSED = {"dropout[generator]": "dropout: mask has a generator inside vmap"}


@pytest.mark.parametrize("case", subjects(), ids=str)
def test_all_examples_at_once_are_as_one_after_the_other(case: Case) -> None:
    if case.name not in REFUSED:
        return check_batched(case)
    with pytest.raises(HypergradError, match=REFUSED[case.name]):
        check_batched(case)


def test_every_op_says_how_it_takes_an_axis_of_examples() -> None:
    """Those that do not are named here; a new op that says nothing fails."""
    kinds = {"broadcast", "lead", "axis", "reference"}
    assert [name for name, op in REGISTRY.items() if op.proven and op.batching not in kinds] == []


@pytest.mark.parametrize("case", subjects(), ids=str)
@pytest.mark.backends("pretended", "gpu")
def test_on_a_gpu(case: Case, backend: Any) -> None:
    if case.name in REFUSED or case.name.startswith(OF_THE_HOST):
        pytest.skip("an array of the host is bound in it")
    samples = [backend.xp.asarray(a) for a in examples(case)]
    loss = lambda *a: hg.sum(case.f(*a) ** 2)  # noqa: E731
    for there, here in zip(
        hg.vmap(hg.grad(loss, argnums=tuple(range(len(samples)))))(*samples),
        hg.vmap(hg.grad(loss, argnums=tuple(range(len(samples)))), loop=True)(*samples),
        strict=True,
    ):
        assert_same(there.get(), here.get(), case.name, AMPLIFIED)


# --- derivatives -------------------------------------------------------------------------------------------


def one_loss(w: Any, x: Any, label: Any) -> Any:
    return hg.softmax_cross_entropy(hg.tanh(x) @ w, label) + hg.sum(w * w)


LABELS = np.array([0, 1, 1, 0])
W = RNG.normal(size=(3, 2))


@pytest.mark.parametrize("loop", [False, True])
def test_gradients_per_example(loop: bool) -> None:
    got = hg.vmap(hg.grad(one_loss), in_axes=(None, 0, 0), loop=loop)(W, A, LABELS)
    wanted = np.stack([hg.grad(one_loss)(W, x, label) for x, label in zip(A, LABELS, strict=True)])
    assert_same(got, wanted, "per example", ULPS)
    value, gradient = hg.vmap(hg.value_and_grad(one_loss), (None, 0, 0), loop=loop)(W, A, LABELS)
    assert value.shape == (4,) and gradient.shape == (4, 3, 2)


def calls(f: Callable[..., Any]) -> tuple[Callable[..., Any], list[int]]:
    """f, and a list that grows with each call."""
    found: list[int] = []

    def counted(*args: Any) -> Any:
        found.append(1)
        return f(*args)

    return counted, found


def test_the_function_is_called_once() -> None:
    for loop, wanted in ((False, 1), (True, 4)):
        counted, found = calls(lambda x: hg.sum(x * x))
        hg.vmap(counted, loop=loop)(A)
        assert len(found) == wanted


@pytest.mark.parametrize("order", SECOND_ORDERS)
@pytest.mark.parametrize("closed", [False, True])
def test_a_batch_inside_other_transforms(order: str, closed: bool) -> None:
    """Also where the function uses a followed Tensor that is no argument: its derivative is the sum over the examples."""
    one = lambda a, x: hg.tanh(hg.sum(a * x)) * x  # noqa: E731

    def mapped(x: Any) -> Any:
        each = hg.vmap(lambda a: one(a, x))(A * x) if closed else hg.vmap(one, (0, None))(A * x, x)
        return hg.sum(each**2)

    whole = lambda x: hg.sum((hg.tanh(hg.sum(A * x * x, axis=1))[:, None] * x) ** 2)  # noqa: E731
    assert_same(SECOND_ORDERS[order](mapped)(X), SECOND_ORDERS[order](whole)(X), order, 1e-13)
    assert_same(hg.grad(mapped)(X) @ V, differenced(mapped, [X], [V]), "first order", 1e-9)
    assert_same(hg.jacobian(hg.vmap(hg.sigmoid))(A), hg.jacobian(hg.sigmoid)(A), "jacobian", 1e-15)


def curve(w: Any, x: Any) -> Any:
    return hg.sum(hg.tanh(w * x) * hg.exp(hg.sum(w) * x[0] / 4))


IMAGES = RNG.normal(size=(2, 2, 2, 3))
INSIDE = {
    "value_and_grad": lambda w, x: hg.value_and_grad(curve)(w, x),
    "both arguments": lambda w, x: hg.grad(curve, argnums=(0, 1))(w, x),
    "vjp": lambda w, x: hg.vjp(curve, w, x)[1](np.array(1.5)),
    "jvp": lambda w, x: hg.jvp(curve, (w, x), (x, w)),
    "jvp in two directions": lambda w, x: hg.jvp(curve, (w, x), (np.stack([V, X]), None)),
    "hvp": lambda w, x: hg.hvp(curve, (w, x), (x, None)),
    "jacobian": lambda w, x: hg.jacobian(lambda w: hg.tanh(w * x), mode="reverse")(w),
    "hessian": lambda w, x: hg.hessian(curve)(w, x),
    "third order": lambda w, x: hg.grad(lambda w: hg.sum(hg.grad(lambda w: hg.sum(hg.grad(curve)(w, x) * V))(w) * X))(w),
    "checkpoint": lambda w, x: hg.grad(hg.checkpoint(curve))(w, x),
    "a fused op that all examples share": lambda w, x: hg.grad(lambda w: hg.sum(hg.batch_norm(IMAGES, w, w)[0, 0, 0] * x) ** 2)(w),
    "its Hessian": lambda w, x: hg.hessian(lambda w: hg.sum(hg.batch_norm(IMAGES, w, w)[0, 0, 0] * x) ** 2)(w),
    "its Jacobian": lambda w, x: hg.jacobian(lambda w: hg.batch_norm(IMAGES, w, w)[0, 0, 0] * x, mode="forward")(w),
    "a fused op of each": lambda w, x: hg.grad(lambda w: hg.sum(hg.batch_norm(IMAGES, w * x, x)[0, 0, 0] * X) ** 2)(w),
    "stop_gradient": lambda w, x: hg.grad(lambda w: curve(w, hg.stop_gradient(x * w)))(w),
    "vmap": lambda w, x: hg.vmap(lambda a: curve(a * x, w))(A),
    "gradient of vmap": lambda w, x: hg.grad(lambda w: hg.sum(hg.vmap(lambda a: curve(a * w, x))(A) ** 2))(w),
    "vmap of a gradient": lambda w, x: hg.vmap(hg.grad(curve), (None, 0))(w * x, A),
    "a loop": lambda w, x: hg.vmap(lambda a: curve(a * w, x), loop=True)(A),
}


@pytest.mark.parametrize("axes", [(0, 0), (None, 0), (0, None)])
@pytest.mark.parametrize("name", INSIDE)
def test_other_transforms_inside(name: str, axes: Any) -> None:
    args = [a if axis == 0 else a[0] for a, axis in zip((A, A[::-1] / 2), axes, strict=True)]
    got, want = (optree.tree_leaves(hg.vmap(INSIDE[name], axes, loop=loop)(*args)) for loop in (False, True))
    for a, b in zip(got, want, strict=True):
        assert_same(a, b, name, AMPLIFIED)


def test_a_pullback_may_be_mapped() -> None:
    """Its tape is older than the call of vmap, and each example has its own cotangent all the same."""
    f = lambda x: hg.tanh(A * x) @ x  # noqa: E731
    y, pullback = hg.vjp(f, X)
    assert_same(hg.vmap(lambda bar: pullback(bar)[0])(np.eye(4)), hg.jacobian(f)(X), "jacobian", ULPS)
    twice = lambda x: hg.vmap(lambda bar: hg.vjp(f, x)[1](bar)[0])(np.eye(4))  # noqa: E731
    assert_same(hg.grad(lambda x: hg.sum(twice(x) ** 2))(X), hg.grad(lambda x: hg.sum(hg.jacobian(f)(x) ** 2))(X), "of it", AMPLIFIED)


def test_accumulated_gradients_of_each_example() -> None:
    def total(w: Any, x: Any) -> Any:
        return hg.accumulate(lambda w, part, rows: (hg.sum(hg.tanh(w * part[0]) * x), None), w, (A,), 4, 3)[0]

    for axes in ((None, 0), (0, None)):
        args = [a if axis == 0 else a[0] for a, axis in zip((A, A[::-1]), axes, strict=True)]
        got, want = (hg.vmap(hg.grad(total), axes, loop=loop)(*args) for loop in (False, True))
        assert_same(got, want, "accumulate", AMPLIFIED)


@pytest.mark.parametrize("name", INSIDE)
def test_gradients_through_other_transforms_inside(name: str) -> None:
    def total(w: Any, loop: bool) -> Any:
        leaves = optree.tree_leaves(hg.vmap(lambda x: INSIDE[name](w, x), loop=loop)(A))
        return hg.sum(hg.stack([hg.sum(y * y) for y in leaves]))

    assert_same(hg.grad(total)(X, loop=False), hg.grad(total)(X, loop=True), name, AMPLIFIED)


def test_a_recorded_run_of_steps_may_map() -> None:
    """Steps of a long run are recorded and replayed without the engine."""
    found = []
    for loop in (False, True):
        step = lambda s, h, _, loop=loop: (s - 0.1 * hg.mean(hg.vmap(hg.grad(curve), (None, 0), loop=loop)(s, A * h), axis=0), None)  # noqa: E731
        found.append(hg.grad(lambda h, step=step: hg.sum(hg.scan(step, X, h, hg.full_batch(None, 30))[0] ** 2))(np.array(0.5)))
    assert_same(found[0], found[1], "scan", AMPLIFIED)


# --- arrays through which no derivative flows ------------------------------------------------------------


def chosen(x: Any, i: Any, mask: Any) -> dict[str, Any]:
    """Masks, places and integers of each example."""
    order = hg.argsort(x)
    return {
        "where": hg.where(mask, x, 0.0),
        "compared": hg.where((x > 0) & ~mask | (x.value < -1), x, -x),
        "argmax": np.argmax(x),
        "place": hg.take_along_axis(x, hg.argmax(x, keepdims=True), 0),
        "taken": hg.take(X, i),
        "row": hg.embedding(A, i),
        "column": hg.Tensor(A)[:, i],
        "between": hg.take(np.stack([A, -A]), i, 1)[:, None],
        "by two": hg.Tensor(A)[i % 3, i],
        "one": x[i],
        "sorted": x[order],
        "one_hot": hg.one_hot(i, 3),
        "added": hg.add_at(X, i, x[0]),
        "rounded": hg.round(x, 1) + hg.sign(x) * hg.floor(x),
        "any": hg.any(x > 1) | hg.all(mask),
        "integers": i + 1,
        "labels": hg.cross_entropy(X * 2.0, i, label_smoothing=0.1) + hg.softmax_cross_entropy(x, i),
        "constant": np.arange(2),
        "number": 1.5,
        "none": None,
    }


def test_masks_places_and_integers_of_each_example() -> None:
    args = (A, np.array([0, 2, 1, 2]), A > 0.3)
    got, want = (hg.vmap(chosen, loop=loop)(*args) for loop in (False, True))
    assert got["none"] is None and set(got) == set(want)
    for name in set(got) - {"none"}:
        assert got[name].dtype == want[name].dtype
        assert_same(got[name].astype(float), want[name].astype(float), name, ULPS)
    followed = lambda f: lambda x, i, mask: hg.grad(lambda x: hg.sum(hg.stack([hg.sum(f(x, i, mask)[k] ** 2) for k in FOLLOWED])))(x)  # noqa: E731
    got, want = (hg.vmap(followed(chosen), loop=loop)(*args) for loop in (False, True))
    assert_same(got, want, "gradient", AMPLIFIED)


FOLLOWED = ("where", "compared", "place", "one", "sorted", "added", "labels")


# --- axes ------------------------------------------------------------------------------------------------------


def test_axes_of_arguments_and_results() -> None:
    x = RNG.normal(size=(2, 3, 4))
    for axis in (0, 1, 2, -1, -3):
        assert_same(hg.vmap(lambda x: 2.0 * x, in_axes=axis, out_axes=axis)(x), 2 * x, "axes", 0)
        assert_same(hg.vmap(lambda x: x * x, in_axes=axis)(x), np.moveaxis(x * x, axis, 0), "moved", 0)
        assert_same(hg.vmap(lambda x: A[:2], in_axes=axis, out_axes=-1)(x), np.stack([A[:2]] * x.shape[axis], -1), "constant", 0)
        largest = hg.vmap(lambda x: np.argmax(x), in_axes=axis)(x)
        assert largest.dtype.kind == "i" and np.array_equal(largest, np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1).argmax(1))
    tree = hg.vmap(lambda p, s, *, k: {"y": p["w"] * s * k, "none": None}, in_axes=[0, None])({"w": A, "n": np.arange(4)}, X, k=2.0)
    assert_same(tree["y"], A * X * 2, "trees", 0)
    assert tree["none"] is None
    nested = hg.vmap(hg.vmap(lambda a, b: a * b, (0, None)), (None, 0))(X, V)
    assert_same(nested, X * V[:, None], "nested", 0)


@pytest.mark.parametrize("count", [1, 3])
def test_three_levels(count: int) -> None:
    """Each argument belongs to another level; so do a mask, an index and a followed Tensor."""
    i, x = np.arange(count) % 3, A[:count]

    def one(a: Any, b: Any, k: Any) -> Any:
        return hg.sum(hg.where(a > b, a, b * b)) * hg.tanh(a @ b) + a[k] * hg.max(b)

    def each(f: Callable[..., Any], loop: bool) -> Any:
        inner = hg.vmap(f, (None, None, 0), loop=loop)
        return hg.vmap(hg.vmap(inner, (None, 0, None), out_axes=1, loop=loop), (0, None, None), loop=loop)

    for f in (one, hg.grad(one), hg.grad(one, argnums=1)):
        assert_same(each(f, False)(x, 2 * x, i), each(f, True)(x, 2 * x, i), "three levels", AMPLIFIED)
    total = lambda a, b, loop: hg.sum(each(one, loop)(a, b, i) ** 2)  # noqa: E731
    for n in (0, 1):
        assert_same(hg.grad(total, n)(x, 2 * x, False), hg.grad(total, n)(x, 2 * x, True), "gradient of all", AMPLIFIED)


def test_an_argument_comes_back_as_a_copy() -> None:
    x = A.copy()
    same = hg.vmap(lambda x: x)(x)
    same[0, 0] = 7.0
    assert np.array_equal(x, A) and same.flags.writeable
    assert hg.vmap(lambda x: X)(A).flags.writeable


# --- what is refused ---------------------------------------------------------------------------------------------


def test_a_slice_may_decide_by_its_values_in_a_loop() -> None:
    f = lambda x: x if x.value > 0 else -2.0 * x  # noqa: E731
    assert_same(hg.vmap(f, loop=True)(X), np.where(X > 0, X, -2 * X), "branches", 0)
    with pytest.raises(DTypeError, match=r"vmap: the function takes numbers out .* \(bool\).*pass loop=True to vmap"):
        hg.vmap(f)(X)


def inner(w: Any, h: Any, _: Any) -> Any:
    return hg.sum((w - h) ** 2)


DATA, SGD = hg.full_batch(None, 2), hg.SGD(lr=0.1)


def descent(x: Any) -> Any:
    return hg.unroll(inner, X, x, DATA, optimizer=SGD)


def closed(x: Any) -> Any:
    return hg.unroll(lambda w, h, b: hg.sum((w - x) ** 2), X, X, DATA, optimizer=SGD)


def hypergradient(x: Any) -> Any:
    return hg.reverse(hg.Bilevel(inner, lambda w, h: hg.sum(w * h), lambda h: X, lambda h: SGD), x, DATA).grad


NAMED = {
    "unroll": (descent, "unroll: used inside vmap"),
    "unroll of a constant": (closed, "unroll: used inside vmap"),
    "the gradient of a shared run": (lambda x: hg.grad(lambda h: hg.sum(descent(h) * x))(X), "unroll: used inside vmap"),
    "scan": (lambda x: hg.scan(lambda s, h, b: (s * h, None), X, x, DATA)[0], "scan: used inside vmap"),
    "reverse": (hypergradient, "unroll: used inside vmap"),
    "NumPy's index": (lambda x: A[hg.argmax(x)], "vmap: the function takes numbers out of an array"),
    "a mask as an index": (lambda x: x[x > 0], "x\\[mask\\] with another mask for each example"),
    "dropout": (lambda x: hg.dropout(x, np.random.default_rng(0), rate=0.5), "dropout: mask has a generator inside vmap"),
    "set_at": (lambda x: hg.set_at(X, hg.argmax(x), 1.0), "vmap: the function takes numbers out"),
    "float": (lambda x: float(x[0]) * x, "float"),
    "range": (lambda x: [x] * int(hg.argmax(x)), "int"),
    "iteration": (lambda x: [v for v in x.value], "iter"),
    "numpy": (lambda x: np.histogram(x.value), "numpy.histogram: used inside vmap"),
    "ufunc.reduce": (lambda x: np.add.reduce(x.value), "numpy.add.reduce: used inside vmap"),
    "in a list": (lambda x: np.where(x.value > 0, x.value, [x.value[0], 1.0, 2.0]), "numpy.where: used inside vmap"),
    "by keyword": (lambda x: np.clip(x.value, 0.0, max=x.value[0]), "numpy.clip: used inside vmap"),
    "asarray": (lambda x: np.asarray(x.value), "array"),
    "writing": (lambda x: x.value.__setitem__(0, 1.0), "writes into an array"),
}


@pytest.mark.parametrize("name", NAMED)
def test_what_is_no_matter_of_axes_is_refused_by_name(name: str) -> None:
    f, message = NAMED[name]
    with pytest.raises(HypergradError, match=message):
        hg.vmap(f)(A)


def test_an_op_that_says_nothing_is_refused_by_name(planted: None) -> None:
    silent = Op("silent", lambda b, x: x[::-1], vjp=(lambda bar, out, x: silent(bar),), jvp=(lambda dot, out, x: dot[:, ::-1],))
    with pytest.raises(ArgumentError, match="silent: used inside vmap, expected ops that take an axis of examples"):
        hg.vmap(silent)(A)
    assert_same(hg.vmap(silent, loop=True)(A), A[:, ::-1], "in a loop", 0)
    loud = elementwise("loud", lambda b, x: b.xp.cosh(x), lambda out, x: hg.sinh(x))
    assert_same(hg.vmap(hg.grad(lambda x: hg.sum(loud(x))))(A), np.sinh(A), "declared elementwise", ULPS)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: hg.vmap(hg.exp, in_axes=(0, 0))(X), ArgumentError, "in_axes has 2 entries, expected 1"),
        (lambda: hg.vmap(hg.exp, in_axes=1)(X), ArgumentError, "in_axes has 1 for args\\[0\\] of shape \\(3,\\)"),
        (lambda: hg.vmap(hg.exp, in_axes=0)(np.array(1.0)), ArgumentError, "in_axes has 0 for args\\[0\\] of shape \\(\\)"),
        (lambda: hg.vmap(hg.exp, in_axes="x")(X), ArgumentError, "in_axes has 'x'"),
        (lambda: hg.vmap(hg.exp, out_axes=1)(X), ArgumentError, "out_axes has 1, expected an integer from -1 to 0"),
        (lambda: hg.vmap(hg.exp, out_axes=1, loop=True)(X), ArgumentError, "out_axes has 1, expected an integer from -1 to 0"),
        (lambda: hg.vmap(hg.add)(X, A), ShapeError, "the leaves have \\[3, 4\\] examples"),
        (lambda: hg.vmap(hg.exp)(X[:0]), ArgumentError, "have no example"),
        (lambda: hg.vmap(hg.exp, in_axes=None)(X), ArgumentError, "have no example"),
        (lambda: hg.vmap(lambda x: A[: int(x.value) + 2], loop=True)(X), ShapeError, "0 and 1 have shapes \\(2, 3\\) and \\(1, 3\\)"),
        (lambda: hg.vmap(lambda x: [x] * int(x.value + 2), loop=True)(X), ShapeError, "examples 0 and 1 have structures"),
        (lambda: hg.vmap(lambda x: x.value.astype("fd"[int(x.value > 0)]), loop=True)(X), DTypeError, "results have dtypes"),
        (lambda: hg.vmap(lambda x: "text")(X), (ArgumentError, DeviceError), "as_array"),
        (lambda: hg.vmap(lambda x: x)({"a": "text"}), (ArgumentError, DeviceError), "args\\[0\\]\\['a'\\] has no slices"),
    ],
)
def test_what_vmap_refuses(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
