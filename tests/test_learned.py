"""The LSTM that is an optimiser: against a plain NumPy one, and its hypergradients in both modes."""

import numpy as np
import optree
import pytest

import hypergrad as hg
from hypergrad.errors import ArgumentError, DTypeError, ShapeError
from hypergrad.testing import check_hypergrad

RNG = np.random.default_rng(0)
A, B = RNG.standard_normal((4, 3)), RNG.standard_normal((4, 2))
BATCHES = hg.full_batch((A, B), 4)


def loss(w, lam, batch):
    a, b = batch
    return hg.mean((a @ w["v"] * w["scale"] + w["c"] - b) ** 2)


def problem(optimizer=hg.LSTMOptimizer, **more):
    start = {"v": 0.1 * RNG.standard_normal((3, 2)), "c": np.zeros(2), "scale": np.array(1.0)}
    return hg.Bilevel(loss, lambda w, lam: loss(w, lam, (A[::-1], B)), lambda lam: start, optimizer, **more)


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


class Plain:
    """One coordinate after the other, as the paper writes it."""

    def __init__(self, params, scale, p):
        self.params, self.scale, self.p = params, scale, p
        self.memory = {}

    def step(self, w, g):
        out = np.array(w)
        for i in np.ndindex(w.shape):
            h, c = self.memory.setdefault(i, ([np.zeros(self.params["w_out"].shape[0])] * 2, [np.zeros(self.params["w_out"].shape[0])] * 2))
            small = abs(g[i]) < np.exp(-self.p)
            x = np.array([-1.0, np.exp(self.p) * g[i]] if small else [np.log(abs(g[i])) / self.p, np.sign(g[i])])
            hs, cs = [], []
            for k in range(2):
                z = np.concatenate([x, h[k]]) @ self.params[f"w{k + 1}"] + self.params[f"b{k + 1}"]
                gate_in, gate_forget, candidate, gate_out = np.split(z, 4)
                cs.append(sigmoid(gate_forget) * c[k] + sigmoid(gate_in) * np.tanh(candidate))
                x = sigmoid(gate_out) * np.tanh(cs[-1])
                hs.append(x)
            self.memory[i] = hs, cs
            out[i] += self.scale * (x @ self.params["w_out"] + self.params["b_out"])[0]
        return out


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-6)])
def test_a_step_is_that_of_a_plain_lstm(dtype, tolerance):
    params = hg.lstm_params(3, 5, dtype)
    w = {"a": RNG.standard_normal((3, 2)).astype(dtype), "b": dtype(0.5) * np.ones((), dtype), "c": RNG.standard_normal(4).astype(dtype)}
    optimizer, state = hg.LSTMOptimizer(params, scale=0.3), None
    plain = {name: Plain({k: x.astype(np.float64) for k, x in params.items()}, 0.3, 10.0) for name in w}
    expected = {name: x.astype(np.float64) for name, x in w.items()}
    for t in range(4):
        g = {name: (10.0 ** RNG.uniform(-7, 2, x.shape) * RNG.choice([-1, 1], x.shape)).astype(dtype) for name, x in w.items()}
        g["c"][0] = 0.0
        w, state = optimizer.step(w, state, g, t)
        expected = {name: plain[name].step(x, g[name].astype(np.float64)) for name, x in expected.items()}
        for name, x in w.items():
            assert x.dtype == dtype and np.allclose(x, expected[name], rtol=0, atol=tolerance * 4)
    assert {x.shape for x in optree.tree_leaves(state)} == {(11, 5)}


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-6)])
def test_a_step_by_averages_is_that_of_a_plain_lstm(dtype, tolerance):
    params = hg.lstm_params(3, 5, dtype)
    optimizer, decay = hg.LSTMOptimizer(params, scale=0.3, decay=0.9), 0.9
    full = {k: x.astype(np.float64) for k, x in params.items()}
    w, state = RNG.standard_normal(7).astype(dtype), None
    h, c, m, v = np.zeros((2, 7, 5)), np.zeros((2, 7, 5)), np.zeros(7), np.zeros(7)
    expected = w.astype(np.float64)
    for t in range(4):
        g = (10.0 ** RNG.uniform(-3, 2, 7) * RNG.choice([-1, 1], 7)).astype(dtype)
        m, v = decay * m + (1 - decay) * g, decay * v + (1 - decay) * g.astype(np.float64) ** 2
        x = np.stack([m / (1 - decay ** (t + 1)), g], axis=1) / np.sqrt(v / (1 - decay ** (t + 1)))[:, None]
        for k in range(2):
            z = np.concatenate([x, h[k]], axis=1) @ full[f"w{k + 1}"] + full[f"b{k + 1}"]
            gate_in, gate_forget, candidate, gate_out = np.split(z, 4, axis=1)
            c[k] = sigmoid(gate_forget) * c[k] + sigmoid(gate_in) * np.tanh(candidate)
            x = h[k] = sigmoid(gate_out) * np.tanh(c[k])
        expected = expected + 0.3 * np.tanh(x @ full["w_out"] + full["b_out"])[:, 0]
        w, state = optimizer.step(w, state, g, t)
        assert w.dtype == dtype and np.allclose(w, expected, rtol=0, atol=tolerance * 4)
    assert state["m"].shape == state["v"].shape == (7, 1)


def test_with_averages_the_scale_of_the_loss_does_not_matter():
    optimizer, ends = hg.LSTMOptimizer(hg.lstm_params(0, 4, np.float64), decay=0.95), []
    for scale in (1.0, 1e3):
        w, state = np.ones(3), None
        for t in range(3):
            w, state = optimizer.step(w, state, scale * w * np.array([1.0, -2.0, 3.0]), t)
        ends.append(w)
    assert np.allclose(*ends, rtol=1e-9)


def test_the_weights_that_are_drawn():
    params = hg.lstm_params(0)
    assert sum(x.size for x in params.values()) == 5141 and {x.dtype for x in params.values()} == {np.dtype(np.float32)}
    assert all(np.array_equal(x, hg.lstm_params(0)[name]) for name, x in params.items())
    assert not np.array_equal(params["w1"], hg.lstm_params(1)["w1"])
    assert params["b1"].sum() == 20 and params["b1"][20:40].all()


@pytest.mark.parametrize("running", [None, lambda w, lam, t: 0.3 * loss(w, lam, (A, B))])
@pytest.mark.parametrize("decay", [None, 0.9])
def test_hypergradients_agree_with_finite_differences(running, decay):
    optimizer = lambda lam: hg.LSTMOptimizer(lam, decay=decay)  # noqa: E731
    check_hypergrad(problem(optimizer, running_loss=running), hg.lstm_params(1, 3, np.float64), BATCHES)


def test_scale_is_a_hyperparameter_too():
    optimizer = lambda lam: hg.LSTMOptimizer(lam["net"], scale=lam["scale"])  # noqa: E731
    check_hypergrad(problem(optimizer), {"net": hg.lstm_params(1, 2, np.float64), "scale": np.array(0.2)}, BATCHES)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_every_policy_gives_the_same_bits_and_forward_agrees(dtype, first_order, tmp_path):
    p, params, batches = problem(), hg.lstm_params(1, 3, dtype), hg.full_batch((A.astype(dtype), B.astype(dtype)), 5)
    start = {k: x.astype(dtype) for k, x in p.init(None).items()}
    p = hg.Bilevel(loss, lambda w, lam: loss(w, lam, batches[0]), lambda lam: start, hg.LSTMOptimizer)
    results = [hg.reverse(p, params, batches, checkpoints=c, first_order=first_order).grad for c in ("all", "sqrt", 1, 2, "host", tmp_path)]
    for other in results[1:]:
        assert all(np.array_equal(results[0][k], other[k]) for k in params)
    tangents = hg.forward(p, params, batches, first_order=first_order).grad
    for k in params:
        assert tangents[k].dtype == dtype
        assert np.allclose(
            tangents[k], results[0][k], rtol=1e-10 if dtype == np.float64 else 1e-3, atol=1e-6 if dtype == np.float32 else 1e-14
        )
    with pytest.raises(ArgumentError, match="reversible"):
        hg.reverse(p, params, batches, checkpoints="reversible")


def test_first_order_takes_the_gradients_for_constants():
    p, params = problem(), hg.lstm_params(4, 3, np.float64)
    taken = []

    @hg.grad
    def unrolled(params):
        w, optimizer = p.init(params), hg.LSTMOptimizer(params)
        w = optree.tree_map(hg.Tensor, w)
        state = optimizer.begin(w)
        for t in range(4):
            g = optree.tree_map(hg.stop_gradient, hg.grad(lambda w: loss(w, None, BATCHES[0]))(w))
            taken.append(g)
            w, state = optimizer.update(w, state, g, t)
        return p.outer_loss(w, params)

    expected = unrolled(params)
    found = hg.reverse(p, params, BATCHES, first_order=True).grad
    exact = hg.reverse(p, params, BATCHES).grad
    assert len(taken) == 4
    assert all(np.allclose(found[k], expected[k], rtol=1e-10, atol=1e-14) for k in params)
    assert any(not np.allclose(found[k], exact[k], rtol=1e-3) for k in params)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_derivatives_are_finite_where_the_gradient_is_zero(decay):
    flat = hg.Bilevel(
        lambda w, lam, batch: hg.sum(w**2),
        lambda w, lam: hg.sum((w - 1.0) ** 2),
        lambda lam: np.array([0.0, 1.0, 1e-9]),
        lambda lam: hg.LSTMOptimizer(lam, decay=decay),
    )
    params = hg.lstm_params(0, 2, np.float64)
    for found in (hg.reverse(flat, params, hg.full_batch(None, 2)), hg.forward(flat, params, hg.full_batch(None, 2))):
        assert all(np.isfinite(x).all() for x in found.grad.values())
        assert any(x.any() for x in found.grad.values())


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (hg.lstm_params(0, 3)["w1"], ArgumentError, "params has ndarray, expected .*lstm_params"),
        ({k: x for k, x in hg.lstm_params(0, 3).items() if k != "b1"}, ArgumentError, "params has .*expected .*'b1'"),
        ({**hg.lstm_params(0, 3, np.float64), "b2": np.zeros(3)}, ShapeError, r"params\['b2'\] has shape \(3,\), expected \(12,\)"),
        ({**hg.lstm_params(0, 3, np.float64), "w_out": np.zeros(())}, ShapeError, "w_out"),
        (hg.lstm_params(0, 3), DTypeError, r"params\['w1'\] has dtype float32, expected float64"),
    ],
)
def test_weights_that_do_not_fit_are_named(params, error, message):
    optimizer = hg.LSTMOptimizer(params)
    with pytest.raises(error, match=message):
        optimizer.step({"a": np.zeros(3)}, None, {"a": np.ones(3)}, 0)


def test_other_mistakes_are_named():
    with pytest.raises(ArgumentError, match="hidden has 0, expected an integer >= 1"):
        hg.lstm_params(0, 0)
    for decay in (1.0, -0.1, np.nan):
        with pytest.raises(ArgumentError, match=f"decay has {decay!r}".replace("(", ".").replace(")", ".")):
            hg.LSTMOptimizer(hg.lstm_params(0), decay=decay)
    with pytest.raises(ArgumentError, match="w has no arrays"):
        hg.LSTMOptimizer(hg.lstm_params(0)).step({}, None, {}, 0)
