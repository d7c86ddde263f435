"""jacobian, hessian, checkpoint, and arguments by name, against closed forms, each other and finite differences."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import optree
import pytest
from checks import assert_same, differenced

import hypergrad as hg
from hypergrad import state as engine
from hypergrad.errors import ArgumentError, DifferentiationError
from hypergrad.rules import Op
from hypergrad.tape import Tensor

RNG = np.random.default_rng(0)
X = np.array([0.5, -1.25, 2.0])
V = np.array([1.0, 0.25, -0.75])
A = RNG.normal(size=(4, 3))
TREE = {"w": A, "b": [X]}


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Every test leaves no tape open and no tangents flowing."""
    yield
    assert engine.current() is engine.IDLE


def wide(x: Any) -> Any:
    """Twelve numbers of three."""
    return hg.tanh(A * x) * hg.sum(x * x)


def narrow(x: Any) -> Any:
    """One number of three, not symmetric in them."""
    return hg.sum(hg.tanh(A @ x) * hg.exp(hg.sum(x * V)))


def tree_function(tree: Any, scale: Any = 1.0) -> Any:
    return {"y": hg.tanh(tree["w"] @ tree["b"][0]) * scale, "z": (hg.sum(tree["w"]) * tree["b"][0][:2],)}


SECOND_ORDERS: dict[str, Callable[[Callable[[Any], Any]], Callable[[Any], Any]]] = {
    "forward over reverse": lambda f: lambda x: hg.jvp(hg.grad(f), (x,), (V,))[1],
    "reverse over reverse": lambda f: hg.grad(lambda x: hg.sum(hg.grad(f)(x) * V)),
    "reverse over forward": lambda f: hg.grad(lambda x: hg.jvp(f, (x,), (V,))[1]),
    "hvp": lambda f: lambda x: hg.hvp(f, (x,), (V,))[2][0],
}

# --- arguments by name ------------------------------------------------------------------------------


def test_arguments_by_name() -> None:
    def f(x: Any, y: Any, *, scale: Any = 1.0) -> Any:
        return hg.sum(x * y * y) * scale

    assert np.array_equal(hg.grad(f)(X, V, scale=2.0), 2 * V * V)
    assert np.array_equal(hg.grad(f, argnums=1)(X, V, scale=2.0), 4 * X * V)
    assert np.array_equal(hg.grad(f, argnames="y")(X, V), 2 * X * V)
    assert np.array_equal(hg.grad(f, argnames="y")(y=V, x=X), 2 * X * V)
    value, (d_scale, d_x) = hg.value_and_grad(f, argnames=("scale", "x"))(X, V, scale=3.0)
    assert value == 3 * np.sum(X * V * V) and d_scale == np.sum(X * V * V) and np.array_equal(d_x, 3 * V * V)
    assert hg.grad(f, argnames=("x",))(X, V)[0].shape == (3,)
    assert np.array_equal(hg.vjp(f, X, V, scale=2.0)[1](1.0)[0], 2 * V * V)
    assert hg.jvp(f, (X, V), (V, None), scale=2.0)[1] == 2 * np.sum(V * V * V)
    assert np.array_equal(hg.hvp(f, (X, V), (None, X), scale=2.0)[2][1], 4 * X * X)
    assert hg.jacobian(f, argnames="scale")(X, V, scale=1.0).shape == ()
    assert np.array_equal(hg.hessian(f, argnames="y")(X, V, scale=2.0), 4 * np.diag(X))


def test_a_keyword_of_an_enclosing_gradient_is_followed() -> None:
    inner = lambda x, *, k: hg.sum(x * x * k)  # noqa: E731
    assert np.array_equal(hg.grad(lambda k: hg.sum(hg.grad(inner)(X, k=k)))(V), 2 * X)
    assert np.array_equal(hg.grad(lambda k: hg.vjp(inner, X, k=k)[0])(V), X * X)
    assert np.array_equal(hg.grad(lambda k: hg.jvp(inner, (X,), (X,), k=k)[1])(V), 2 * X * X)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"argnames": "z"}, "argnames has 'z', expected an argument of the call, which passes \\['x', 'y'\\]"),
        ({"argnames": "scale"}, "argnames has 'scale'.* a default has no gradient"),
        ({"argnames": "x", "argnums": 1}, "expected names alone or numbers alone"),
        ({"argnames": ("x", 1)}, "expected names alone"),
        ({"argnums": 2}, "argnums has 2, expected 0 to 1"),
    ],
)
@pytest.mark.parametrize("transform", [hg.grad, hg.jacobian, hg.hessian])
def test_names_that_no_argument_has(transform: Any, options: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        transform(lambda x, y, scale=1.0: hg.sum(x * y), **options)(X, V)


def test_grad_with_an_auxiliary_result() -> None:
    gradient, aux = hg.grad(lambda x: (hg.sum(x * x), {"doubled": 2.0 * x}), has_aux=True)(X)
    assert np.array_equal(gradient, 2 * X) and np.array_equal(aux["doubled"], 2 * X)


# --- jacobian and hessian ------------------------------------------------------------------------------


@pytest.mark.parametrize("f", [wide, narrow, lambda x: x[:0]], ids=["wide", "narrow", "empty"])
def test_both_modes_give_one_jacobian(f: Any) -> None:
    forward, reverse, chosen = (hg.jacobian(f, mode=mode)(X) for mode in ("forward", "reverse", None))
    wanted = np.stack([differenced(f, [X], [e]) for e in np.eye(3)], axis=-1)
    assert forward.shape == wanted.shape
    for got in (forward, reverse, chosen):
        assert_same(got, wanted, "jacobian", 1e-9)
    assert_same(forward, reverse, "modes", 1e-14)


def test_the_mode_follows_the_sizes() -> None:
    """Reverse mode calls the function once; forward mode, where the sizes are not known before, twice."""
    calls: list[bool] = []

    def counted(f: Any) -> Any:
        def wrapped(x: Tensor) -> Any:
            calls.append(x.dot is not None)
            return f(x)

        return wrapped

    for f, mode, expected in (
        (wide, None, [False, True]),
        (narrow, None, [False]),
        (wide, "reverse", [False]),
        (narrow, "forward", [True]),
    ):
        calls.clear()
        hg.jacobian(counted(f), mode=mode)(X)
        assert calls == expected
    with pytest.raises(ArgumentError, match="mode has 'back'"):
        hg.jacobian(wide, mode="back")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_jacobians_of_trees(mode: Any) -> None:
    got = hg.jacobian(tree_function, mode=mode)(TREE)
    assert got["y"]["w"].shape == (4, 4, 3) and got["y"]["b"][0].shape == (4, 3) and got["z"][0]["w"].shape == (2, 4, 3)
    slope = 1 - np.tanh(A @ X) ** 2
    assert_same(got["y"]["b"][0], slope[:, None] * A, "y in b", 1e-14)
    assert_same(got["y"]["w"], np.eye(4)[:, :, None] * slope[:, None, None] * X, "y in w", 1e-14)
    assert_same(got["z"][0]["w"], np.broadcast_to(X[:2, None, None], (2, 4, 3)), "z in w", 1e-14)
    assert_same(got["z"][0]["b"][0], A.sum() * np.eye(3)[:2], "z in b", 1e-14)
    both = hg.jacobian(tree_function, argnums=(0, 1), mode=mode)(TREE, np.array(2.0))
    assert_same(both["y"][1], np.tanh(A @ X), "y in scale", 1e-14)
    assert_same(both["z"][0][1], np.zeros(2), "z in scale", 0)


def test_hessians() -> None:
    wanted = np.stack([differenced(hg.grad(narrow), [X], [e]) for e in np.eye(3)], axis=-1)
    assert_same(hg.hessian(narrow)(X), wanted, "hessian", 1e-9)

    def f(p: Any, q: Any) -> Any:
        return hg.sum(p["a"] * p["a"] * p["b"]) * q

    got = hg.hessian(f, argnums=(0, 1))({"a": X, "b": np.array(2.0)}, np.array(3.0))
    assert_same(got[0]["a"][0]["a"], 12 * np.eye(3), "aa", 0)
    assert_same(got[0]["a"][0]["b"], 6 * X, "ab", 0)
    assert_same(got[0]["b"][0]["a"], 6 * X, "ba", 0)
    assert_same(got[1][0]["a"], 4 * X, "qa", 0)
    assert got[1][1] == 0 and got[0]["b"][0]["b"] == 0


@pytest.mark.parametrize("order", SECOND_ORDERS)
def test_jacobians_and_hessians_inside_other_transforms(order: str) -> None:
    """Up to the fourth derivative; inside a jvp they take reverse mode."""
    few = lambda x: wide(x)[1, :2]  # noqa: E731
    for inner in (hg.hessian(narrow), hg.jacobian(few), hg.jacobian(few, mode="reverse")):
        f = lambda x, inner=inner: hg.sum(hg.tanh(inner(x)) * A[0, 0])  # noqa: E731
        assert_same(SECOND_ORDERS[order](f)(X), differenced(hg.grad(f), [X], [V]), "second order", 1e-8)
    assert_same(hg.grad(f)(X) @ V, differenced(f, [X], [V]), "first order", 1e-9)


def test_forward_mode_inside_a_jvp_is_refused() -> None:
    with pytest.raises(DifferentiationError, match="called inside another jvp"):
        hg.jvp(hg.jacobian(wide, mode="forward"), (X,), (V,))


@pytest.mark.parametrize(
    "f",
    [
        lambda x: hg.sum(hg.tanh(A @ x) ** 3),
        lambda x: hg.sum(hg.softmax(A @ x, axis=0) ** 2),
        lambda x: hg.sum(hg.linear_cross_entropy(hg.reshape(hg.sigmoid(x), (1, 3)), A.T, np.zeros(4), np.array([2]))),
        lambda x: hg.sum(hg.batch_norm(hg.reshape(x, (3, 1, 1, 1)), x[:1], x[1:2], eps=1.0) ** 3),
        lambda x: hg.sum(hg.sqrt(1.0 + x * x) * hg.softplus(x) / (2.0 + hg.exp(x))),
    ],
    ids=["matmul", "softmax", "head", "batch_norm", "elementwise"],
)
def test_third_and_fourth_order_by_nesting(f: Any) -> None:
    """grad of grad of grad, fused ops among them; tangents may be one of the levels."""
    first = lambda x: hg.sum(hg.grad(f)(x) * V)  # noqa: E731
    second = lambda x: hg.sum(hg.grad(first)(x) * X)  # noqa: E731
    third = hg.grad(second)
    assert_same(third(X), _third(f), "third order", 1e-7)
    assert_same(third(X), hg.grad(lambda x: hg.jvp(first, (x,), (X,))[1])(X), "nestings", 1e-10)
    fourth = hg.grad(lambda x: hg.sum(third(x) * V))
    assert_same(fourth(X), differenced(third, [X], [V]), "fourth order", 1e-7)


def _third(f: Any) -> Any:
    """The derivative of X . H(x) V in x, by finite differences of Hessian products."""
    return np.stack([X @ differenced(lambda x: hg.hvp(f, (x,), (V,))[2][0], [X], [e]) for e in np.eye(3)])


# --- checkpoint ------------------------------------------------------------------------------------------


def block(x: Any, y: Any, *, k: Any = 1.0) -> Any:
    hidden = hg.tanh(A @ x) * k
    return {"out": hg.sum(hidden * hidden), "x": x, "rest": [hg.exp(y) * hg.sum(hidden)]}


def composed(checkpointed: bool) -> Callable[[Any], Any]:
    g = hg.checkpoint(block) if checkpointed else block

    def f(x: Any) -> Any:
        first = g(x, x * V, k=hg.sum(x))
        second = g(first["rest"][0], x)
        return hg.sum(second["rest"][0] * first["x"]) * 0.1 + first["out"] * second["out"]

    return f


def test_a_checkpoint_changes_no_bit_of_any_derivative() -> None:
    with_it, without = composed(True), composed(False)
    assert with_it(Tensor(X)).value == without(Tensor(X)).value
    for transform in (hg.value_and_grad, hg.hessian, hg.jacobian, *SECOND_ORDERS.values()):
        for a, b in zip(*(optree.tree_leaves(transform(f)(X)) for f in (with_it, without)), strict=True):
            assert_same(a, b, "checkpointed", 1e-13)
    assert hg.grad(with_it)(X).tobytes() == hg.grad(without)(X).tobytes()
    assert_same(hg.grad(with_it)(X) @ V, differenced(with_it, [X], [V]), "gradient", 1e-9)
    third = [hg.grad(lambda x, f=f: hg.sum(SECOND_ORDERS["reverse over reverse"](f)(x) * V))(X) for f in (with_it, without)]
    assert_same(*third, "third order", 1e-13)
    (bar,) = hg.vjp(with_it, X)[1](2.0)
    assert_same(bar, 2 * hg.grad(without)(X), "vjp", 1e-14)


def test_checkpoints_nest_and_stand_in_runs() -> None:
    inner = hg.checkpoint(lambda x: hg.tanh(x) * x)
    outer = hg.checkpoint(lambda x: inner(inner(x)) + x)
    plain = lambda x: (lambda y: hg.tanh(y) * y)(hg.tanh(x) * x) + x  # noqa: E731
    for order in SECOND_ORDERS.values():
        assert_same(order(lambda x: hg.sum(outer(x) ** 2))(X), order(lambda x: hg.sum(plain(x) ** 2))(X), "nested", 1e-13)

    def hypergradient(f: Any) -> Any:
        problem = hg.Bilevel(lambda w, h, b: hg.sum(f(w * h)), lambda w, h: hg.sum(w * w), lambda h: X, lambda h: hg.SGD(lr=0.1))
        batches = hg.full_batch(None, 3)
        return [hg.reverse(problem, V, batches).grad, hg.forward(problem, V, batches).grad]

    for a, b in zip(hypergradient(outer), hypergradient(plain), strict=True):
        assert_same(a, b, "hypergradient", 1e-13)


def test_a_checkpoint_keeps_no_intermediate_value() -> None:
    kept: list[Any] = []

    def long(x: Any) -> Any:
        for _ in range(5):
            x = hg.tanh(x)
            kept.append(weakref.ref(x.value))
        return hg.sum(x)

    def alive(g: Any) -> int:
        kept.clear()
        gc.collect()
        found = []

        def f(x: Any) -> Any:
            y = g(x)
            found.append(sum(r() is not None for r in kept))
            return y

        hg.grad(f)(X)
        return int(found[0])

    assert alive(long) == 5 and alive(hg.checkpoint(long)) == 0


def test_a_checkpoint_of_a_followed_closure_is_refused() -> None:
    def f(x: Any) -> Any:
        return hg.sum(hg.checkpoint(lambda y: y * x)(x * 2.0))

    with pytest.raises(DifferentiationError, match="checkpoint: the function uses a Tensor from outside that"):
        hg.grad(f)(X)
    assert hg.jvp(f, (X,), (V,))[1] == 4 * np.sum(X * V)  # no tape records, so f runs as it is
    assert np.array_equal(hg.grad(lambda x: hg.sum(hg.checkpoint(lambda y: y * x)(X)))(X), X)  # no argument is followed: as it is


def test_tangents_of_a_closure_reach_an_enclosing_gradient() -> None:
    """d/dx of the tangent of f(x) = x z along z: the tape that was open before the jvp follows the tangent through the checkpoint."""

    def f(x: Any) -> Any:
        return hg.jvp(lambda z: hg.sum(hg.checkpoint(lambda y: y * y * z)(x)), (X,), (V,))[1]

    assert_same(hg.grad(f)(X), 2 * X * V, "mixed derivative", 1e-15)


def test_a_function_that_gives_something_else_the_second_time_is_noticed() -> None:
    rng, state = np.random.default_rng(0), {"n": 0}

    def moving(x: Any) -> Any:
        state["n"] += 1
        return [x * x] * state["n"]

    with pytest.raises(DifferentiationError, match="gave another result when it was run again"):
        hg.grad(lambda x: hg.sum(hg.checkpoint(lambda x: x * rng.random())(x)))(X)
    with pytest.raises(DifferentiationError, match="gave another result when it was run again"):
        hg.grad(lambda x: hg.sum(hg.checkpoint(moving)(x)[0]))(X)


def test_a_checkpoint_of_an_unproven_op_is_unproven() -> None:
    """The passes must not rely on a symmetric Hessian of a straight-through op inside a checkpoint."""
    through = Op(
        "test_transforms_straight_through", lambda b, x: b.xp.round(x), vjp=(lambda bar, out, x: bar,), jvp=(lambda dot, out, x: dot,)
    )

    def hypergradient(g: Any) -> Any:
        problem = hg.Bilevel(
            lambda w, h, b: hg.sum(g(w * h) * w), lambda w, h: hg.sum(w * V), lambda h: X, lambda h: hg.SGD(lr=0.1, momentum=0.5)
        )
        return hg.reverse(problem, V, hg.full_batch(None, 3)).grad, problem

    (plain, _), (checkpointed, problem) = (hypergradient(g) for g in (through, hg.checkpoint(through)))
    assert_same(checkpointed, plain, "unproven", 1e-14)
    with pytest.raises(DifferentiationError, match="rules are declared outside this package"):
        hg.implicit(problem, V, X, None)
