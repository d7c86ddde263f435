"""Tapes and transforms: nesting, closures, perturbation confusion, errors that leave no trace, memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from checks import assert_same, differenced

import hypergrad as hg
from hypergrad import state as engine
from hypergrad.errors import ArgumentError, DifferentiationError, DTypeError, ShapeError
from hypergrad.tape import Node, Tape, Tensor


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Every test leaves no tape open and no tangents flowing."""
    yield
    assert engine.current() is engine.IDLE


def cube(x: Any) -> Any:
    return x * x * x


X = np.array([0.5, -1.25, 2.0])
V = np.array([1.0, 0.25, -0.75])

# --- what goes in and out -------------------------------------------------------------------------


def test_results_are_arrays_and_inside_a_transform_tensors() -> None:
    kinds = []

    def outer(x: Tensor) -> Tensor:
        value, gradient = hg.value_and_grad(lambda y: hg.sum(y * y))(x)
        kinds.append((type(value), type(gradient)))
        return hg.sum(gradient)

    assert type(hg.grad(outer)(X)) is np.ndarray
    assert kinds == [(Tensor, Tensor)]
    value, gradient = hg.value_and_grad(lambda x: hg.sum(x * x))(X)
    assert type(value) is np.ndarray and value.shape == () and type(gradient) is np.ndarray


def test_pytrees_in_and_out() -> None:
    params = {"w": [X, (2 * X, None)], "b": np.array(3.0)}

    def loss(p: Any, scale: Any) -> Tensor:
        return hg.sum(p["w"][0] * p["w"][1][0]) * p["b"] * scale

    gradient = hg.grad(loss)(params, 2.0)
    assert gradient["w"][1][1] is None
    assert np.array_equal(gradient["w"][0], 12 * X) and np.array_equal(gradient["w"][1][0], 6 * X)
    assert gradient["b"] == 4 * np.sum(X * X)
    out, pullback = hg.vjp(lambda p: {"twice": p["b"] * 2.0, "x": [p["w"][0]]}, params)
    (back,) = pullback({"twice": np.array(1.0), "x": [X]})
    assert out["twice"] == 6 and back["b"] == 2 and np.array_equal(back["w"][0], X) and np.array_equal(back["w"][1][0], 0 * X)


def test_argnums() -> None:
    f = lambda x, y, z: hg.sum(x * y * y * z)  # noqa: E731
    args = (X, V, 2.0)
    assert np.array_equal(hg.grad(f)(*args), 2 * V * V)
    assert np.array_equal(hg.grad(f, argnums=1)(*args), 4 * X * V)
    both = hg.grad(f, argnums=(2, 0))(*args)
    assert isinstance(both, tuple) and both[0] == np.sum(X * V * V) and np.array_equal(both[1], 2 * V * V)
    assert hg.grad(f, argnums=(1,))(*args)[0].shape == (3,)
    with pytest.raises(ArgumentError, match="argnums has 3, expected 0 to 2"):
        hg.grad(f, argnums=3)(*args)
    assert np.array_equal(hg.grad(f, argnums=np.int64(1))(*args), 4 * X * V)
    for wrong in (None, 1.0, "x", (0, None)):
        with pytest.raises(ArgumentError, match="argnums has .* expected an integer"):
            hg.grad(f, argnums=wrong)
    for wrong in (None, 0, "yes"):
        with pytest.raises(ArgumentError, match="fusion: enabled has"), hg.fusion(wrong):
            pass
    tree = {"a": X, "b": None, "c": [None, V]}
    for dots in (tree, {"a": X, "b": None, "c": [None, None]}, {"a": X, "c": [V]}):
        _, slope = hg.jvp(lambda t: hg.sum(t["a"] * t["a"]) * hg.sum(t["c"][1]), (tree,), (dots,))
        moved = 0 if dots["c"][-1] is None else V.sum() * (X * X).sum()
        assert np.allclose(slope, 2 * (X * X).sum() * V.sum() + moved, rtol=1e-14)
    with pytest.raises(ArgumentError, match="argnums has -1"):
        hg.grad(f, argnums=-1)(*args)


def test_auxiliary_results_pass_through() -> None:
    def f(x: Tensor) -> Any:
        return hg.sum(x * x), {"doubled": x * 2.0, "note": "kept"}

    (value, aux), gradient = hg.value_and_grad(f, has_aux=True)(X)
    assert value == np.sum(X * X) and np.array_equal(gradient, 2 * X)
    assert type(aux["doubled"]) is np.ndarray and np.array_equal(aux["doubled"], 2 * X) and aux["note"] == "kept"

    def outer(x: Tensor) -> Tensor:  # inside a transform the auxiliary result stays differentiable
        (_, aux), _ = hg.value_and_grad(f, has_aux=True)(x)
        return hg.sum(aux["doubled"] * x)

    assert np.array_equal(hg.grad(outer)(X), 4 * X)


def test_functions_that_do_not_depend_on_their_argument() -> None:
    x = X.astype(np.float32)
    gradient = hg.grad(lambda x: Tensor(np.float32(1.0) * np.ones((), np.float32)))(x)
    assert gradient.dtype == np.float32 and np.array_equal(gradient, np.zeros(3))
    assert np.array_equal(hg.grad(lambda x: 3.0)(X), np.zeros(3))
    _, pullback = hg.vjp(lambda x: V, X)
    assert np.array_equal(pullback(V)[0], np.zeros(3))


@pytest.mark.parametrize("directions", [1, 3])
def test_constant_results_have_as_many_zero_tangents_as_there_are_directions(directions: int) -> None:
    dots = np.ones((directions, 3))
    assert np.array_equal(hg.jvp(lambda x: V, (X,), (dots,))[1], np.zeros((directions, 3)))
    out, out_dot = hg.jvp(lambda x: {"a": x, "b": V}, (X,), (dots,))
    assert np.array_equal(out_dot["a"], dots) and np.array_equal(out_dot["b"], np.zeros((directions, 3)))
    assert np.array_equal(hg.hvp(lambda x: hg.sum(x), (X,), (dots,))[2][0], np.zeros((directions, 3)))
    assert np.array_equal(hg.hvp(lambda x: hg.sum(x), (X,), (dots[0],))[2][0], np.zeros(3))


def test_pullback_may_be_called_again() -> None:
    out, pullback = hg.vjp(lambda x, y: x * x * y, X, V)
    first, second, third = pullback(np.ones(3)), pullback(2 * np.ones(3)), pullback(np.ones(3))
    assert np.array_equal(out, X * X * V)
    for a, b, c in zip(first, second, third, strict=True):
        assert np.array_equal(2 * a, b) and a.tobytes() == c.tobytes()
    with pytest.raises(ShapeError, match="out_bar has shapes"):
        pullback(np.ones(2))
    with pytest.raises(ShapeError, match="out_bar has structure"):
        pullback([np.ones(3)])
    assert np.array_equal(pullback(np.ones(3))[0], first[0])


def test_cotangents_and_tangents_have_the_dtype_of_what_they_belong_to() -> None:
    x = X.astype(np.float32)
    _, pullback = hg.vjp(hg.sum, x)
    assert pullback(1.0)[0].dtype == np.float32  # a Python number follows
    with pytest.raises(DTypeError, match="^vjp: "):
        pullback(np.array(1.0))
    with pytest.raises(DTypeError, match="^jvp: "):
        hg.jvp(hg.sum, (x,), (V,))
    with pytest.raises(DTypeError, match="^jvp: "):
        hg.grad(lambda v: hg.jvp(hg.sum, (x,), (v,))[1])(V)
    assert hg.jvp(hg.sum, (x,), (V.astype(np.float32),))[1].dtype == np.float32


def test_tangents_of_some_arguments_only() -> None:
    f = lambda x, y: x * y  # noqa: E731
    assert np.array_equal(hg.jvp(f, (X, V), (None, X))[1], X * X)
    assert np.array_equal(hg.jvp(f, (X, V), (V, None))[1], V * V)
    assert np.array_equal(hg.jvp(f, (X, V), (None, None))[1], np.zeros(3))
    many = np.stack([X, V, X + V, X - V])
    assert np.array_equal(hg.jvp(f, (X, V), (many, None))[1], many * V)
    _, _, (xx, yx) = hg.hvp(lambda x, y: hg.sum(x * y), (X, V), (V, None))
    assert np.array_equal(xx, 0 * X) and np.array_equal(yx, V)  # the mixed derivative


@pytest.mark.parametrize(
    ("primals", "dots", "message"),
    [
        ((X,), (V, V), "tangents have 2 leaves, expected 1"),
        ((X, V), (V,), "tangents have 1 leaves, expected 2"),
        ((X,), (V[:2],), "a tangent has shape \\(2,\\)"),
        ((X,), (np.ones((2, 2)),), "a tangent has shape"),
        ((X, V), (V, np.ones((2, 3))), "expected the same number"),
        ((X, V), (np.ones((3, 3)), np.ones((2, 3))), "expected the same number"),
    ],
)
def test_tangents_that_do_not_fit(primals: Any, dots: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=f"^jvp: .*{message}"):
        hg.jvp(lambda *a: a[0], primals, dots)


# --- nesting --------------------------------------------------------------------------------------


def test_third_derivative() -> None:
    f = lambda x: hg.sum(hg.exp(x * x))  # noqa: E731
    g = lambda x: hg.sum(hg.grad(f)(x))  # noqa: E731
    h = lambda x: hg.sum(hg.grad(g)(x))  # noqa: E731
    assert_same(hg.grad(h)(X), (8 * X**3 + 12 * X) * np.exp(X * X), "third derivative", 1e-13)
    assert_same(hg.grad(lambda x: hg.sum(hg.grad(h)(x)))(X), (16 * X**4 + 48 * X**2 + 12) * np.exp(X * X), "fourth derivative", 1e-13)


def test_gradient_inside_a_gradient_sees_captured_variables() -> None:
    def f(x: Tensor, y: Tensor) -> Tensor:  # d/dz sum(x z^2 y) at z = y is 2 x y^2
        return hg.sum(hg.grad(lambda z: hg.sum(x * z * z * y))(y))

    gx, gy = hg.grad(f, argnums=(0, 1))(X, V)
    assert_same(gx, 2 * V * V, "x", 1e-15)
    assert_same(gy, 4 * X * V, "y", 1e-15)


def derivative_by_reverse(f: Callable[[Any], Any], x: Any) -> Any:
    return hg.grad(f)(x)


def derivative_by_forward(f: Callable[[Any], Any], x: Any) -> Any:
    return hg.jvp(f, (x,), (np.ones(()),))[1]


WAYS = {"reverse": derivative_by_reverse, "forward": derivative_by_forward}
NESTINGS = [("reverse", "reverse"), ("reverse", "forward"), ("forward", "reverse")]


@pytest.mark.parametrize(("outer", "inner"), NESTINGS)
def test_perturbations_are_not_confused(outer: str, inner: str) -> None:
    d_out, d_in = WAYS[outer], WAYS[inner]
    one = np.array(1.0)
    # Siskind & Pearlmutter 2005: d/dx [x d/dy (x + y)] = 1; a confused engine says 2.
    assert d_out(lambda x: x * d_in(lambda y: x + y, one), one) == 1
    # The inner function ignores its argument.
    assert d_out(lambda x: x * d_in(lambda y: x * x, one), one) == 0
    # The inner variable is the outer one: d/dx [d/dy (x y^2) at y = x] = d/dx 2x^2.
    assert d_out(lambda x: d_in(lambda y: x * y * y, x), np.array(3.0)) == 12
    # The result of an inner derivative is used twice.
    assert d_out(lambda x: cube(d_in(lambda y: y * y * x, x)), np.array(1.0)) == 48


@pytest.mark.parametrize(("outer", "inner"), NESTINGS)
def test_three_levels_of_closures(outer: str, inner: str) -> None:
    d_out, d_in = WAYS[outer], WAYS[inner]

    def f(x: Any) -> Any:  # d/dy [y^2 d/dz (x y z^2)] at z = y: d/dy 2 x y^4 = 8 x y^3; at y = x: 8 x^4
        def g(y: Any) -> Any:
            return y * y * derivative_by_reverse(lambda z: x * y * z * z, y)

        return d_in(g, x)

    assert d_out(f, np.array(2.0)) == 32 * 8


def test_all_nestings_give_one_hessian_product() -> None:
    f = lambda x: hg.sum(hg.exp(x) * hg.sum(x * x))  # noqa: E731
    gradient = hg.grad(f)
    ways = [
        hg.hvp(f, (X,), (V,))[2][0],
        hg.jvp(gradient, (X,), (V,))[1],
        hg.grad(lambda x: hg.sum(gradient(x) * V))(X),
        hg.grad(lambda x: hg.jvp(f, (x,), (V,))[1])(X),
        hg.vjp(gradient, X)[1](V)[0],
        hg.vjp(lambda x: hg.vjp(f, x)[1](1.0)[0], X)[1](V)[0],
    ]
    wanted = differenced(gradient, [X], [V])
    for way in ways:
        assert_same(way, wanted, "Hessian product", 1e-10)
        assert_same(way, ways[0], "Hessian product", 1e-14)


def test_many_directions_at_once_equal_one_at_a_time() -> None:
    f = lambda x: hg.sum(hg.tanh(x) * hg.sum(x))  # noqa: E731
    many = np.random.default_rng(0).normal(size=(5, 3))
    assert_same(hg.hvp(f, (X,), (many,))[2][0], np.stack([hg.hvp(f, (X,), (v,))[2][0] for v in many]), "directions", 1e-14)


def test_hvp_inside_grad() -> None:
    f = lambda x: hg.sum(x * x * x * x)  # noqa: E731
    third = hg.grad(lambda x: hg.sum(hg.hvp(f, (x,), (V,))[2][0] * V))(X)
    assert_same(third, 24 * X * V * V, "third derivative", 1e-14)


@pytest.mark.parametrize(
    "inner",
    [
        lambda x: hg.jvp(cube, (x,), (x,))[1],
        lambda x: hg.hvp(cube, (x,), (x,))[0],
        lambda x: hg.grad(lambda y: hg.jvp(cube, (y,), (y,))[1])(x),
    ],
)
@pytest.mark.parametrize(
    "outer", [lambda f: hg.jvp(f, (np.array(2.0),), (np.array(1.0),)), lambda f: hg.hvp(f, (np.array(2.0),), (np.array(1.0),))]
)
def test_jvp_inside_jvp_is_refused(outer: Any, inner: Any) -> None:
    with pytest.raises(DifferentiationError, match="^jvp: called inside another jvp, expected none because .*; use hg.grad"):
        outer(inner)


def test_tangents_left_over_from_a_jvp_that_failed_or_ended_do_not_flow() -> None:
    kept: list[Tensor] = []

    def keeps(x: Tensor) -> Tensor:
        kept.append(x * 2.0)
        return x

    hg.jvp(keeps, (X,), (V,))
    assert np.array_equal(hg.grad(lambda x: hg.sum(x * kept[0]))(X), 2 * X)
    value, gradient = hg.value_and_grad(lambda x: hg.sum(x * kept[0] * x))(X)
    assert np.array_equal(gradient, 4 * X * X)


def test_tensors_kept_from_a_closed_tape_are_constants_to_the_next() -> None:
    kept: list[Tensor] = []

    def keeps(x: Tensor) -> Tensor:
        kept.append(x * 2.0)
        return hg.sum(x)

    hg.grad(keeps)(X)
    assert np.array_equal(hg.grad(lambda x: hg.sum(x * kept[0]))(V), 2 * X)

    # The same inside an outer tape that does follow what was kept.
    def outer(x: Tensor) -> Tensor:
        kept.clear()
        hg.grad(keeps)(x)
        return hg.sum(hg.grad(lambda y: hg.sum(y * y * kept[0]))(x))

    assert np.array_equal(hg.grad(outer)(X), 8 * X)  # d/dx sum(2 x * 2 x)


def test_detach_stops_derivatives_of_tapes() -> None:
    assert np.array_equal(hg.grad(lambda x: hg.sum(x * x.detach()))(X), X)


# --- errors leave no trace ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: hg.grad(f)(X),
        lambda f: hg.vjp(f, X),
        lambda f: hg.jvp(f, (X,), (V,)),
        lambda f: hg.hvp(f, (X,), (V,)),
        lambda f: hg.grad(lambda x: hg.sum(hg.grad(f)(x)))(X),
        lambda f: hg.grad(lambda x: hg.jvp(f, (x,), (V,))[1])(X),
        lambda f: hg.jvp(hg.grad(f), (X,), (V,)),
    ],
)
def test_exceptions_leave_no_tape_open(transform: Any) -> None:
    def fails(x: Tensor) -> Tensor:
        hg.sum(x * x)
        raise KeyError("the user's")

    with pytest.raises(KeyError, match="the user's"):
        transform(fails)
    with pytest.raises(ShapeError):  # raised by the engine, in an op
        transform(lambda x: hg.sum(x * np.ones(2)))
    assert engine.is_idle()
    assert np.array_equal(hg.grad(lambda x: hg.sum(x * x))(X), 2 * X)
    assert np.array_equal(hg.jvp(lambda x: x * x, (X,), (V,))[1], 2 * X * V)


def test_an_exception_in_a_rule_leaves_no_tape_open() -> None:
    def f(x: Tensor) -> Tensor:
        try:
            hg.grad(lambda y: hg.sum(y) * np.ones((2, 2)))(x)  # not a scalar
        except ShapeError:
            pass
        else:
            raise AssertionError("a gradient of a matrix was taken")
        return hg.sum(x * x)

    assert np.array_equal(hg.grad(f)(X), 2 * X)


@pytest.mark.parametrize("transform", [hg.grad, hg.value_and_grad])
def test_gradient_of_something_that_is_no_scalar(transform: Any) -> None:
    for f, shape in ((lambda x: x, "\\(3,\\)"), (lambda x: hg.reshape(hg.sum(x), (1,)), "\\(1,\\)")):
        with pytest.raises(ShapeError, match=f"^value_and_grad: the function's result has shape {shape}, expected \\(\\)"):
            transform(f)(X)


def test_integers_have_no_gradient() -> None:
    for bad in (np.arange(3), np.array([True]), np.ones(2, np.float16), np.ones(2, complex)):
        with pytest.raises(DTypeError):
            hg.grad(lambda x: hg.sum(x * 1.0))(bad)


# --- memory ---------------------------------------------------------------------------------------


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def graph_objects() -> int:
    """How many Nodes, Tapes and Tensors exist."""
    return sum(isinstance(o, (Node, Tape, Tensor)) for o in gc.get_objects())


RUNS = {
    "grad": lambda f: hg.grad(f)(X),
    "grad of grad": lambda f: hg.grad(lambda x: hg.sum(hg.grad(f)(x) * V))(X),
    "jvp": lambda f: hg.jvp(f, (X,), (V,)),
    "hvp": lambda f: hg.hvp(f, (X,), (V,)),
    "grad of jvp": lambda f: hg.grad(lambda x: hg.jvp(f, (x,), (V,))[1])(X),
    "vjp": lambda f: hg.vjp(f, X)[1](1.0),
    "jvp of vjp": lambda f: hg.jvp(lambda x: hg.vjp(f, x)[1](1.0)[0], (X,), (V,)),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.usefixtures("no_collector")
def test_no_reference_cycles(name: str) -> None:
    """Every intermediate value is freed when the transform returns, without the garbage collector."""
    alive: list[weakref.ref[Any]] = []

    def f(x: Tensor) -> Tensor:
        y = hg.exp(x) * x
        z = hg.concatenate([y, hg.softmax(y)])[1:] @ np.ones((5, 2))
        alive.extend(weakref.ref(t.value) for t in (y, z))
        return hg.sum(hg.max(hg.tanh(z), axis=0) + hg.logsumexp(y))

    before = graph_objects()
    kept = RUNS[name](f)
    assert alive and all(r() is None for r in alive)
    assert graph_objects() == before
    del kept


@pytest.mark.usefixtures("no_collector")
def test_the_fused_block_makes_no_cycles() -> None:
    rng = np.random.default_rng(0)
    args = (rng.normal(size=(1, 4, 4, 5)), rng.normal(size=(3, 3, 5, 2)), np.ones(2), np.zeros(2))
    alive: list[weakref.ref[Any]] = []

    def f(*a: Tensor) -> Tensor:
        y = hg.conv_bn_relu_pool(*a)
        alive.append(weakref.ref(y.value))
        return hg.sum(y * y)

    before = graph_objects()
    hg.hvp(f, args, args)
    hg.grad(lambda *a: hg.sum(hg.grad(f)(*a)))(*args)
    assert len(alive) == 2 and all(r() is None for r in alive)
    assert graph_objects() == before


@pytest.mark.usefixtures("no_collector")
def test_memory_falls_during_the_reverse_sweep() -> None:
    """When the cotangent of an early value is formed, the later values are gone."""
    alive: list[weakref.ref[Any]] = []
    counts: list[int] = []
    probe = Node.output

    def chain(x: Tensor) -> Tensor:
        for _ in range(10):
            x = hg.exp(x * 0.1)
            alive.append(weakref.ref(x.value))
        return hg.sum(x)

    def counting(self: Any, i: int = 0) -> Tensor:
        if self.op is hg.exp:
            counts.append(sum(r() is not None for r in alive))
        return probe(self, i)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Node, "output", counting)
        hg.grad(chain)(X)
    assert len(counts) == 10 and counts == sorted(counts, reverse=True) and counts[-1] <= 2


def test_a_tape_without_dependence_stays_empty() -> None:
    tape = Tape()
    tape.run(lambda: (tape.watch(Tensor(X)), hg.sum(hg.exp(V) * 2.0)))
    assert tape.nodes == []
