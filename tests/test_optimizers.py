"""Optimisers against the formulas in plain NumPy, and as differentiable maps."""

import numpy as np
import optree
import pytest

import hypergrad as hg
from hypergrad.errors import ArgumentError, DifferentiationError, DTypeError, ShapeError
from hypergrad.testing import check_gradients

RNG = np.random.default_rng(0)
W = {"a": RNG.standard_normal((3, 2)), "b": [RNG.standard_normal(4), RNG.standard_normal(())]}


def gradient(w, t):
    """Some gradient that depends on w and on the step."""
    return optree.tree_map(lambda x: np.sin(x + t) + 0.5 * x, w)


def run(optimizer, n_steps, w=W):
    state = None
    for t in range(n_steps):
        w, state = optimizer.step(w, state, gradient(w, t), t)
    return w, state


def sgd_by_hand(n_steps, lr, momentum, nesterov, decay):
    out = []
    for w in optree.tree_leaves(W):
        v = np.zeros_like(w)
        for t in range(n_steps):
            g = gradient(w, t) + decay * w
            v = momentum * v + g
            w = w - lr * (g + momentum * v if nesterov else v)
        out.append(w)
    return out


def adam_by_hand(n_steps, lr, beta1, beta2, eps, decay=0.0):
    out = []
    for w in optree.tree_leaves(W):
        m = s = np.zeros_like(w)
        for t in range(n_steps):
            g = gradient(w, t)
            m, s = beta1 * m + (1 - beta1) * g, beta2 * s + (1 - beta2) * g * g
            w = w - lr * ((m / (1 - beta1 ** (t + 1))) / np.sqrt(s / (1 - beta2 ** (t + 1)) + eps) + decay * w)
        out.append(w)
    return out


def rmsprop_by_hand(n_steps, lr, decay, eps, momentum):
    out = []
    for w in optree.tree_leaves(W):
        s = v = np.zeros_like(w)
        for t in range(n_steps):
            g = gradient(w, t)
            s = decay * s + (1 - decay) * g * g
            v = momentum * v + g / np.sqrt(s + eps)
            w = w - lr * v
        out.append(w)
    return out


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize("decay", [0.0, 0.03])
def test_sgd(nesterov, momentum, decay):
    w, state = run(hg.SGD(lr=0.2, momentum=momentum, nesterov=nesterov, weight_decay=decay), 5)
    for got, expected in zip(optree.tree_leaves(w), sgd_by_hand(5, 0.2, momentum, nesterov, decay), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-13)
    assert (state == ()) == (momentum == 0)
    assert optree.tree_structure(w) == optree.tree_structure(W)


def test_adam():
    w, state = run(hg.Adam(lr=0.1, beta1=0.8, beta2=0.95, eps=1e-4), 5)
    for got, expected in zip(optree.tree_leaves(w), adam_by_hand(5, 0.1, 0.8, 0.95, 1e-4), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert set(state) == {"m", "s"}


def test_adamw():
    w, state = run(hg.AdamW(lr=0.1, beta1=0.8, beta2=0.95, eps=1e-4, weight_decay=0.2), 5)
    for got, expected in zip(optree.tree_leaves(w), adam_by_hand(5, 0.1, 0.8, 0.95, 1e-4, 0.2), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert set(state) == {"m", "s"}


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_rmsprop(momentum):
    w, state = run(hg.RMSprop(lr=0.1, decay=0.8, eps=1e-4, momentum=momentum), 5)
    for got, expected in zip(optree.tree_leaves(w), rmsprop_by_hand(5, 0.1, 0.8, 1e-4, momentum), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert set(state) == ({"s", "v"} if momentum else {"s"})


def test_adagrad():
    w, state = run(hg.Adagrad(lr=0.1, eps=1e-4), 5)
    for i, x in enumerate(optree.tree_leaves(W)):
        s = np.zeros_like(x)
        for t in range(5):
            g = gradient(x, t)
            s = s + g * g
            x = x - 0.1 * g / np.sqrt(s + 1e-4)
        np.testing.assert_allclose(optree.tree_leaves(w)[i], x, rtol=1e-12)
        np.testing.assert_allclose(optree.tree_leaves(state["s"])[i], s, rtol=1e-12)
    assert set(state) == {"s"}


@pytest.mark.parametrize("kind", [hg.SGD, hg.RMSprop])
def test_a_momentum_that_is_an_array_keeps_a_velocity_even_at_zero(kind):
    plain, state = run(kind(lr=0.2), 3)
    kept, more = run(kind(lr=0.2, momentum=np.zeros(())), 3)
    velocity = more if kind is hg.SGD else more["v"]
    assert (state == () if kind is hg.SGD else set(state) == {"s"}) and optree.tree_structure(velocity) == optree.tree_structure(W)
    for a, b in zip(optree.tree_leaves(plain), optree.tree_leaves(kept), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "field",
    [
        0.1,
        np.float64(0.1),
        np.full((), 0.1),
        {"a": 0.1, "b": [np.full(4, 0.1), 0.1]},
        {"a": np.full((3, 2), 0.1), "b": [0.1, np.array(0.1)]},
    ],
)
def test_a_field_is_a_number_an_array_or_a_tree(field):
    expected = optree.tree_leaves(run(hg.SGD(lr=0.1, momentum=0.5), 3)[0])
    got = optree.tree_leaves(run(hg.SGD(lr=field, momentum=0.5), 3)[0])
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-15)


def test_different_fields_for_different_leaves():
    w, _ = run(hg.SGD(lr={"a": 0.0, "b": [0.3, 0.1]}), 1)
    np.testing.assert_array_equal(w["a"], W["a"])
    np.testing.assert_allclose(w["b"][0], W["b"][0] - 0.3 * gradient(W["b"][0], 0), rtol=1e-15)
    np.testing.assert_allclose(w["b"][1], W["b"][1] - 0.1 * gradient(W["b"][1], 0), rtol=1e-15)


OPTIMIZERS = {
    "sgd": (hg.SGD, {"lr": 0.2}),
    "momentum": (hg.SGD, {"lr": 0.2, "momentum": 0.7, "weight_decay": 0.03}),
    "nesterov": (hg.SGD, {"lr": 0.2, "momentum": 0.7, "nesterov": True, "weight_decay": 0.03}),
    "adam": (hg.Adam, {"lr": 0.1, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3}),
    "adamw": (hg.AdamW, {"lr": 0.1, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.2}),
    "rmsprop": (hg.RMSprop, {"lr": 0.1, "decay": 0.8, "eps": 1e-3}),
    "rmsprop with momentum": (hg.RMSprop, {"lr": 0.1, "decay": 0.8, "eps": 1e-3, "momentum": 0.7}),
    "adagrad": (hg.Adagrad, {"lr": 0.1, "eps": 1e-3}),
}
optimizers = pytest.mark.parametrize("name", OPTIMIZERS)


def arguments(name):
    kind, fields = OPTIMIZERS[name]
    numbers = {k: np.float64(v) for k, v in fields.items() if not isinstance(v, bool)}
    flags = {k: v for k, v in fields.items() if isinstance(v, bool)}
    made = kind(**{k: np.asarray(v) for k, v in numbers.items()}, **flags)
    state = optree.tree_map(lambda x: np.asarray(np.abs(RNG.standard_normal(x.shape)) + 0.1), made.init(optree.tree_map(hg.Tensor, W)))
    return kind, numbers, flags, state


@optimizers
@pytest.mark.parametrize("t", [0, 3])
def test_the_update_is_differentiable_in_everything_to_second_order(name, t):
    kind, numbers, flags, state = arguments(name)
    check_gradients(lambda w, v, g, fields: kind(**fields, **flags).update(w, v, g, t), W, state, gradient(W, t), numbers)


@optimizers
def test_linear_in_gradient_means_what_it_says(name):
    """The passes rely on it: the update's derivative in g depends on the fields alone."""
    kind, numbers, flags, state = arguments(name)
    optimizer = kind(**numbers, **flags)

    def change(w, g):
        """What the update makes of g, beyond what it makes of none."""
        zero = optree.tree_map(np.zeros_like, g)
        after, base = optimizer.step(w, state, g, 2), optimizer.step(w, state, zero, 2)
        return np.concatenate([np.ravel(a - b) for a, b in zip(optree.tree_leaves(after), optree.tree_leaves(base), strict=True)])

    g1, g2 = gradient(W, 0), gradient(W, 1)
    both = optree.tree_map(lambda a, b: a + 2 * b, g1, g2)
    elsewhere = optree.tree_map(lambda x: x + 1, W)
    linear = np.allclose(change(W, both), change(W, g1) + 2 * change(W, g2), rtol=1e-10, atol=1e-12) and np.allclose(
        change(W, g1), change(elsewhere, g1), rtol=1e-10, atol=1e-12
    )
    assert linear == kind.linear_in_gradient


@pytest.mark.parametrize("kind", [hg.Adam, hg.AdamW, hg.RMSprop, hg.Adagrad])
@pytest.mark.parametrize("fused", [True, False])
def test_the_derivative_where_the_gradient_is_zero(kind, fused):
    zero = np.zeros(3)
    optimizer = kind(lr=0.1)
    with hg.fusion(fused):
        state = optree.tree_map(lambda x: x.value, optimizer.begin(hg.Tensor(zero)))
        value, bars = hg.vjp(lambda g: optimizer.update(zero, state, g, 0)[0] + 0.0 * g, zero)
        np.testing.assert_array_equal(value, zero)
        np.testing.assert_allclose(bars(np.ones(3))[0], -0.1 / np.sqrt(1e-8), rtol=1e-12)


def test_float32_stays_float32():
    single = optree.tree_map(lambda x: np.asarray(x, np.float32), W)
    scaling = [kind(lr=0.1) for kind in (hg.Adam, hg.AdamW, hg.RMSprop, hg.Adagrad)]
    for optimizer in (hg.SGD(lr=0.1, momentum=0.9, weight_decay=1e-3), hg.SGD(lr=np.float32(0.1)), *scaling):
        w, state = run(optimizer, 2, single)
        assert {x.dtype for x in optree.tree_leaves((w, state))} == {np.dtype(np.float32)}
    with pytest.raises(DTypeError):
        run(hg.SGD(lr=np.asarray(0.1)), 1, single)


def test_step_writes_into_nothing_and_repeats_bit_for_bit():
    before = optree.tree_map(np.copy, W)
    optimizer = hg.Adam(lr=0.1)
    a, b = run(optimizer, 3), run(optimizer, 3)
    for x, y in zip(optree.tree_leaves(before), optree.tree_leaves(W), strict=True):
        np.testing.assert_array_equal(x, y)
    for x, y in zip(optree.tree_leaves(a), optree.tree_leaves(b), strict=True):
        assert x.tobytes() == y.tobytes()


def test_fields_by_name():
    optimizer = hg.SGD(lr=0.1, momentum=0.9)
    assert optimizer.hyperparameters() == {"lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0, "clip": None}
    assert optimizer.with_hyperparameters({"lr": 0.3}) == hg.SGD(lr=0.3, momentum=0.9)


def test_errors():
    with pytest.raises(ArgumentError, match="optimizer: a field has the structure"):
        run(hg.SGD(lr={"a": 0.1}), 1)
    with pytest.raises(ShapeError):
        run(hg.SGD(lr=np.full(7, 0.1)), 1)
    with pytest.raises(DifferentiationError):
        hg.grad(lambda x: hg.sum(hg.SGD(lr=0.1).step({"a": x}, None, {"a": np.ones(2)}, 0)[0]["a"]))(np.ones(2))


@pytest.mark.parametrize("kind", [hg.SGD, hg.RMSprop])
@pytest.mark.parametrize("momentum", [lambda t: 0.9 * (t > 0), lambda t: 0.9 * (t % 2 == 0), lambda t: 0])
@pytest.mark.filterwarnings("ignore:.*no influence")
def test_numbers_of_a_function_follow_the_weights_and_a_momentum_of_0_keeps_the_velocity(kind, momentum):
    optimizer, w, state = kind(lr=lambda t: 0.1 / (1 + t), momentum=momentum), np.linspace(1, 2, 3, dtype=np.float32), None
    p = hg.Bilevel(
        lambda w, h, b: hg.sum(w * w), lambda w, h: hg.sum(w), lambda h: np.linspace(1, 2, 3, dtype=np.float32), lambda h: optimizer
    )
    for t in range(4):
        w, state = optimizer.step(w, state, 2 * w, t)
    r = hg.reverse(p, np.float32(0), hg.full_batch(None, 4))
    assert w.dtype == r.params.dtype == np.float32
    np.testing.assert_allclose(w, r.params, rtol=1e-6)
