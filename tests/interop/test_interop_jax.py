"""hypergrad inside JAX and JAX inside hypergrad, against pure JAX and pure hypergrad."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from checks import assert_same

import hypergrad as hg
from hypergrad.errors import ArgumentError, DTypeError

jax = pytest.importorskip("jax")
interop = pytest.importorskip("hypergrad.interop.jax")
jnp = jax.numpy

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 3)), RNG.normal(size=12)
X_VAL, Y_VAL = RNG.normal(size=(8, 3)), RNG.normal(size=8)
W_0 = np.zeros(3)
HPARAMS = {"log_l2": np.array([-1.0, 0.5, -0.2]), "log_lr": np.array(-2.0)}
STEPS = 5


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """JAX computes in float64."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def loss_in(np_: Any, x: Any, y: Any) -> Any:
    """The same inner loss for both libraries."""
    return lambda w, h, batch: np_.mean((x @ w - y) ** 2 + np_.log(1.0 + np_.exp(x @ w))) + np_.sum(np_.exp(h["log_l2"]) * w * w)


inner_loss = loss_in(hg, X, Y)
PROBLEM = hg.Bilevel(
    inner_loss, lambda w, h: hg.mean((X_VAL @ w - Y_VAL) ** 2), lambda h: W_0, lambda h: hg.SGD(lr=hg.exp(h["log_lr"]), momentum=0.5)
)
BATCHES = hg.full_batch(None, STEPS)


def solve(h: Any) -> Any:
    return hg.unroll(inner_loss, W_0, h, BATCHES, optimizer=PROBLEM.optimizer(h))


def solve_jax(h: Any) -> Any:
    w, v = jnp.zeros(3), jnp.zeros(3)
    for _ in range(STEPS):
        v = 0.5 * v + jax.grad(loss_in(jnp, X, Y))(w, h, None)
        w = w - jnp.exp(h["log_lr"]) * v
    return w


def outer(w: Any) -> Any:
    return jnp.mean((X_VAL @ w - Y_VAL) ** 2)


def several(np_: Any) -> Any:
    return lambda a, b, n: {"y": np_.tanh(a) @ b, "z": [np_.sum(a * a)], "picked": b[n]}


def test_a_jax_network_learns_through_an_inner_problem() -> None:
    network = RNG.normal(size=(2, 3))

    def loss(run: Any) -> Any:
        return lambda theta, lr, z: outer(run({"log_l2": jnp.tanh(z @ theta), "log_lr": lr}))

    arguments = (network, jnp.array(-2.0), jnp.array([0.3, -0.7]))
    wanted = jax.value_and_grad(loss(solve_jax), argnums=(0, 1, 2))(*arguments)
    got = jax.jit(jax.value_and_grad(loss(interop.to_jax(solve, like=W_0)), argnums=(0, 1, 2)))(*arguments)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert_same(a, b, "through the inner problem", 1e-10)


@pytest.mark.parametrize("run", [hg.reverse, hg.forward], ids=["reverse", "forward"])
def test_the_hypergradient_is_that_of_pure_jax(run: Any) -> None:
    h = {k: jnp.array(v) for k, v in HPARAMS.items()}
    objective = interop.hypergradient(lambda h: run(PROBLEM, h, BATCHES))
    value, wanted = jax.value_and_grad(lambda h: outer(solve_jax(h)))(h)
    for transform in (lambda f: f, jax.jit):
        got_value, got = transform(jax.value_and_grad(lambda h: 3.0 * objective(h)))(h)
        assert_same(got_value, 3 * value, "value", 1e-13)
        for name in HPARAMS:
            assert_same(got[name], 3 * wanted[name], name, 1e-10)
    assert_same(objective(h), value, "value alone", 1e-13)
    with pytest.raises(ValueError, match="callbacks do not support JVP"):
        jax.jacrev(jax.grad(objective))(h)


def test_every_order_and_jit_and_vmap() -> None:
    a, b, n = RNG.normal(size=(4, 3)), RNG.normal(size=3), jnp.array([0, 2, 2])

    def scalar(f: Any) -> Any:
        def of(a: Any, b: Any) -> Any:
            r = f(a, b, n)
            return jnp.sum(r["y"] ** 2) * r["z"][0] + jnp.sum(r["picked"] ** 3)

        return of

    plain = scalar(several(jnp))
    ours = scalar(interop.to_jax(several(hg), like=lambda a, b, n: {"y": a[:, 0], "z": [b[0]], "picked": b[n]}))
    for transform in (
        lambda f: jax.jit(jax.grad(f, argnums=(0, 1))),
        lambda f: jax.grad(lambda a, b: jnp.sum(jax.grad(lambda b: jnp.sum(jax.grad(f, argnums=1)(a, b) * b))(b) * b), argnums=1),
        lambda f: lambda a, b: jax.vmap(jax.grad(f), in_axes=(None, 0))(a, jnp.stack([b, 2 * b])),
    ):
        for got, wanted in zip(jax.tree.leaves(transform(ours)(a, b)), jax.tree.leaves(transform(plain)(a, b)), strict=True):
            assert_same(got, wanted, "derivative", 1e-13)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(ours, (a, b), (a, b))


def test_what_to_jax_refuses() -> None:
    with pytest.raises(DTypeError, match="bfloat16, expected float32 or float64"):
        interop.to_jax(lambda x: x, like=W_0)(jnp.ones(3, jnp.bfloat16))
    with pytest.raises(Exception, match="result has shapes \\[\\(3,\\)\\], expected \\[\\(\\)\\]"):
        interop.to_jax(lambda x: x, like=np.zeros(()))(jnp.ones(3))
    with pytest.raises(Exception, match="result has dtypes \\['float64'\\], expected \\['float32'\\]"):
        interop.to_jax(lambda x: x, like=np.zeros(3, np.float32))(jnp.ones(3))
    with pytest.raises(DTypeError, match="hparams have dtypes"):
        interop.hypergradient(lambda h: hg.reverse(PROBLEM, h, BATCHES))({"a": jnp.ones(3), "b": jnp.ones(3, jnp.float32)})
    with pytest.raises(Exception, match="r.grad has structure"):
        interop.hypergradient(lambda h: replace(hg.reverse(PROBLEM, h, BATCHES), grad=list(h.values())))(HPARAMS)
    h = {k: jnp.array(v) for k, v in HPARAMS.items()}
    with pytest.raises(Exception, match="being differentiated again"):
        jax.block_until_ready(jax.jacrev(jax.grad(lambda h: outer(interop.to_jax(solve, like=W_0)(h))))(h))


# --- JAX inside hypergrad --------------------------------------------------------------------------------------


TRANSFORMS = {
    "grad": hg.grad,
    "forward over reverse": hg.hessian,
    "reverse over reverse": lambda f: hg.jacobian(hg.grad(f), mode="reverse"),
    "reverse over forward": lambda f: hg.grad(lambda x: hg.jvp(f, (x,), (x,))[1]),
    "directions": lambda f: lambda x: hg.hvp(f, (x,), (np.stack([x, x * x]),))[2][0],
    "third order": lambda f: hg.grad(lambda x: hg.sum(hg.hessian(f)(x) * x[0, 0])),
}


def pair(np_: Any) -> Any:
    return lambda a, b: {"o": np_.tanh(a) * np_.sum(b), "z": np_.sum(a * a * a)}


@pytest.mark.parametrize(("name", "jit"), [*((name, True) for name in TRANSFORMS), ("forward over reverse", False)])
def test_every_derivative_of_a_jax_function(name: str, jit: bool) -> None:
    def loss(f: Any) -> Any:
        def of(x: Any) -> Any:
            r = f(x, x * 2.0)
            return hg.sum(r["o"] ** 2) * r["z"]

        return of

    x = np.linspace(0.5, 1.5, 6).reshape(2, 3)
    theirs = interop.from_jax(jax.jit(pair(jnp)) if jit else pair(jnp))
    assert_same(TRANSFORMS[name](loss(theirs))(x), TRANSFORMS[name](loss(pair(hg)))(x), name, 1e-14)


@pytest.mark.parametrize("proven", [False, True])
def test_a_jax_inner_loss_in_every_pass(proven: bool) -> None:
    theirs = hg.Bilevel(interop.from_jax(jax.jit(loss_in(jnp, X, Y)), proven=proven), PROBLEM.outer_loss, PROBLEM.init, PROBLEM.optimizer)
    for run in (hg.reverse, hg.forward, lambda *a: hg.reverse(*a, checkpoints="sqrt")):
        ours, got = run(PROBLEM, HPARAMS, BATCHES), run(theirs, HPARAMS, BATCHES)
        for name in HPARAMS:
            assert_same(got.grad[name], ours.grad[name], f"{name}", 1e-12)


def test_what_from_jax_refuses() -> None:
    with pytest.raises(ArgumentError, match="from_jax.*result has a leaf of <class 'float'>"):
        hg.grad(interop.from_jax(lambda x: 1.0))(X)
    with pytest.raises(ArgumentError, match="expected jax arrays of floating numbers"):
        hg.grad(interop.from_jax(jnp.argmax))(X)
    with pytest.raises(ArgumentError, match="no argument is a Tensor"):
        interop.from_jax(jnp.sum)(X)
    jax.config.update("jax_enable_x64", False)
    with pytest.raises(DTypeError, match="JAX makes it float32"):
        hg.grad(interop.from_jax(jnp.sum))(X)
    assert hg.grad(interop.from_jax(jnp.sum))(X.astype(np.float32)).dtype == np.float32
    with pytest.raises(jax.errors.TracerArrayConversionError):
        jax.grad(lambda y: jnp.sum(jnp.asarray(hg.grad(lambda x: interop.from_jax(lambda x: jnp.sum(x) * y)(x))(np.float32([1.0])))))(1.0)


def test_custom_rules_of_jax_are_taken_as_they_are() -> None:
    @jax.custom_vjp
    def through(x: Any) -> Any:
        return jnp.round(x)

    through.defvjp(lambda x: (jnp.round(x), None), lambda _, bar: (bar,))
    assert np.array_equal(hg.grad(lambda x: hg.sum(interop.from_jax(through)(x)))(X), np.ones_like(X))
    with pytest.raises(TypeError, match="forward-mode"):
        hg.jvp(lambda x: interop.from_jax(through)(x), (X,), (X,))
