"""`scan`: any differentiable step as one op, against Python loops, `unroll`, finite differences, and itself under every policy."""

import numpy as np
import optree
import pytest

import hypergrad as hg
from hypergrad.errors import ArgumentError, DifferentiationError, DTypeError, ShapeError
from hypergrad.meter import Meter
from hypergrad.testing import check_gradients

RNG = np.random.default_rng(0)
POLICIES = ["all", "sqrt", 1, 2, 5, "host"]


def same_bits(a, b):
    return [x.tobytes() for x in optree.tree_leaves(a)] == [x.tobytes() for x in optree.tree_leaves(b)]


def close(a, b, rtol=1e-11):
    for x, y in zip(optree.tree_leaves(a), optree.tree_leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-14)


def loop(step, state, h, batches):
    """The same as a Python loop on the open tapes."""
    outputs = []
    for t in range(len(batches)):
        state, out = step(state, h, batches[t])
        outputs.append(out)
    return state, outputs


# --- a recurrent network ---------------------------------------------------------------------------------------------

N = 1000
INPUTS, TARGETS = RNG.standard_normal((N, 2)), np.sin(np.arange(N) / 7.0)


def cell(state, h, batch):
    x, y = batch
    state = hg.tanh(h["w"] @ state + h["u"] @ x + h["b"])
    return state, {"error": (hg.sum(h["v"] * state) - y) ** 2, "state": state[:2]}


def network(n=5):
    rng = np.random.default_rng(1)
    return {
        "w": 0.4 * rng.standard_normal((n, n)),
        "u": rng.standard_normal((n, 2)),
        "b": 0.1 * rng.standard_normal(n),
        "v": rng.standard_normal(n),
        "s0": 0.1 * rng.standard_normal(n),
    }


def rnn_loss(h, n_steps=N, **more):
    batches = list(zip(INPUTS[:n_steps], TARGETS[:n_steps], strict=True))
    state, outputs = hg.scan(cell, h["s0"], h, batches, **more)
    return hg.mean(outputs["error"]) + 0.1 * hg.sum(outputs["state"][::3] ** 2) + hg.sum(state * state)


def rnn_loop(h, n_steps):
    state, outputs = loop(cell, h["s0"], h, list(zip(INPUTS[:n_steps], TARGETS[:n_steps], strict=True)))
    return (
        hg.mean(hg.stack([o["error"] for o in outputs]))
        + 0.1 * hg.sum(hg.stack([o["state"] for o in outputs])[::3] ** 2)
        + hg.sum(state * state)
    )


def test_a_recurrent_network_over_a_thousand_steps():
    h = network()
    value, grad = hg.value_and_grad(rnn_loss)(h)
    expected = hg.value_and_grad(lambda h: rnn_loop(h, N))(h)
    np.testing.assert_allclose(value, expected[0], rtol=1e-12)
    close(grad, expected[1])
    for checkpoints in ("sqrt", 7, 40):
        stats = hg.Stats("scan")
        again = hg.grad(lambda h, c=checkpoints, s=stats: rnn_loss(h, checkpoints=c, stats=s))(h)
        assert same_bits(grad, again), checkpoints
        assert stats.states_held <= (64 if checkpoints == "sqrt" else checkpoints)


def test_its_memory_is_flat_but_for_the_states():
    def peak(n_steps, checkpoints):
        def states_only(h):  # no outputs: they grow with T, as they must
            batches = list(zip(INPUTS[:n_steps], TARGETS[:n_steps], strict=True))
            return hg.sum(hg.scan(lambda s, h, b: (cell(s, h, b)[0], None), h["s0"], h, batches, checkpoints=checkpoints)[0])

        h = network(300)
        hg.grad(states_only)(h)
        with Meter(memory=True) as meter:
            hg.grad(states_only)(h)
        return meter.peak_bytes

    assert peak(200, 3) < 1.2 * peak(20, 3)


@pytest.mark.parametrize("checkpoints", POLICIES)
def test_forward_mode_and_differences(checkpoints):
    report = check_gradients(lambda h: rnn_loss(h, 9, checkpoints=checkpoints), network(3), order=1)
    assert report.first_order < 1e-6


def test_directions_in_forward_mode():
    h = network(3)
    dots = optree.tree_map(lambda x: RNG.standard_normal((4, *x.shape)), h)
    out, out_dot = hg.jvp(lambda h: rnn_loss(h, 20), (h,), (dots,))
    expected = hg.jvp(lambda h: rnn_loop(h, 20), (h,), (dots,))
    close((out, out_dot), expected)


# --- the special case of unroll ----------------------------------------------------------------------------------------

X, Y = RNG.standard_normal((6, 10, 3)), RNG.standard_normal((6, 10))


def inner(w, h, batch):
    x, y = batch
    return hg.mean((hg.tanh(x @ w["w"] + w["b"]) - y) ** 2) + h["decay"] * hg.sum(w["w"] ** 2)


BATCHES = list(zip(X, Y, strict=True))
H = {"decay": np.array(0.1), "lr": np.array(0.2), "mu": np.array(0.7), "w": 0.5 * RNG.standard_normal(3)}


def momentum_step(state, h, batch):
    w, v = state
    loss, g = hg.value_and_grad(lambda w: inner(w, h, batch))(w)
    v = optree.tree_map(lambda v, g: h["mu"] * v + g, v, g)
    return (optree.tree_map(lambda w, v: w - h["lr"] * v, w, v), v), loss


def by_scan(h, **more):
    start = {"w": h["w"], "b": np.zeros(())}
    (w, _), losses = hg.scan(momentum_step, (start, optree.tree_map(lambda x: 0.0 * x, start)), h, BATCHES, **more)
    return hg.sum(w["w"] ** 2) + w["b"] + 0.1 * hg.sum(losses)


def by_unroll(h, **more):
    start = {"w": h["w"], "b": np.zeros(())}
    w = hg.unroll(inner, start, {"decay": h["decay"]}, BATCHES, optimizer=hg.SGD(lr=h["lr"], momentum=h["mu"]), **more)
    return hg.sum(w["w"] ** 2) + w["b"]


@pytest.mark.parametrize("checkpoints", POLICIES)
def test_it_equals_unroll_where_both_serve(checkpoints):
    def without_losses(h):
        start = {"w": h["w"], "b": np.zeros(())}
        (w, _), _ = hg.scan(momentum_step, (start, optree.tree_map(lambda x: 0.0 * x, start)), h, BATCHES, checkpoints=checkpoints)
        return hg.sum(w["w"] ** 2) + w["b"]

    a, b = hg.value_and_grad(without_losses)(H), hg.value_and_grad(lambda h: by_unroll(h, checkpoints=checkpoints))(H)
    close(a, b)
    assert same_bits(a, hg.value_and_grad(lambda h: without_losses(h))(H))


def test_losses_along_the_way_count():
    expected = hg.grad(lambda h: by_scan(h))(H)
    check_gradients(by_scan, H, order=1)
    for checkpoints in POLICIES:
        assert same_bits(expected, hg.grad(lambda h, c=checkpoints: by_scan(h, checkpoints=c))(H))


# --- a learned optimiser, coordinate by coordinate -----------------------------------------------------------------------


def learned_step(state, h, batch):
    """A small network with a memory turns each coordinate's gradient into its step."""
    w, memory = state
    loss, g = hg.value_and_grad(lambda w: inner(w, {"decay": 0.01}, batch))(w)
    flat = hg.concatenate([hg.reshape(g["b"], 1), g["w"]])
    memory = hg.tanh(hg.stack([flat, memory[:, 0], memory[:, 1]], axis=1) @ h["hidden"] + h["bias"])
    move = memory @ h["out"]
    return ({"w": w["w"] - move[1:], "b": w["b"] - hg.reshape(move[:1], ())}, memory), loss


def learned(h, run, **more):
    start = {"w": np.array([0.5, -0.2, 0.1]), "b": np.zeros(())}
    _, losses = run(learned_step, (start, np.zeros((4, 2))), h, BATCHES, **more)
    return hg.sum(losses if run is hg.scan else hg.stack(losses))


def test_a_learned_optimiser_with_losses_along_the_way():
    rng = np.random.default_rng(3)
    h = {"hidden": 0.5 * rng.standard_normal((3, 2)), "bias": 0.1 * rng.standard_normal(2), "out": rng.standard_normal(2)}
    value, grad = hg.value_and_grad(lambda h: learned(h, hg.scan))(h)
    close((value, grad), hg.value_and_grad(lambda h: learned(h, loop))(h))
    check_gradients(lambda h: learned(h, hg.scan), h, order=1)
    for checkpoints in POLICIES:
        assert same_bits(grad, hg.grad(lambda h, c=checkpoints: learned(h, hg.scan, checkpoints=c))(h))


# --- windows: the state goes in and comes out ----------------------------------------------------------------------------


def windows(h, cuts, join=lambda x: x, **more):
    """The run of BATCHES in windows, the weights and the velocity being handed on."""
    w, v = {"w": h["w"], "b": np.zeros(())}, None
    for start, stop in zip([0, *cuts], [*cuts, 6], strict=True):
        w, v = hg.unroll(
            inner,
            w,
            {"decay": h["decay"]},
            BATCHES[start:stop],
            optimizer=hg.SGD(lr=h["lr"], momentum=h["mu"]),
            state=v,
            return_state=True,
            **more,
        )
        w, v = (join(w), join(v)) if stop < 6 else (w, v)
    return hg.sum(w["w"] ** 2) + w["b"]


def test_momentum_is_carried_across_windows():
    expected = hg.value_and_grad(by_unroll)(H)
    for cuts in ([3], [2, 5], [1, 2, 3, 4, 5]):
        close(hg.value_and_grad(lambda h, c=cuts: windows(h, c))(H), expected)
        first = hg.grad(lambda h, c=cuts: windows(h, c))(H)
        assert same_bits(first, hg.grad(lambda h, c=cuts: windows(h, c, checkpoints=1))(H))
    check_gradients(lambda h: windows(h, [2, 4]), H, order=1)


def test_truncated_windows_add_up():
    """The windows' shares of the hypergradient sum to the whole; with the state cut at the joint it is the last window's share."""
    whole = hg.grad(by_unroll)(H)
    states = [({"w": H["w"], "b": np.zeros(())}, {"w": np.zeros(3), "b": np.zeros(())})]
    for t in range(6):
        w, v = hg.unroll(
            inner,
            states[-1][0],
            {"decay": H["decay"]},
            BATCHES[t : t + 1],
            optimizer=hg.SGD(lr=H["lr"], momentum=H["mu"]),
            state=states[-1][1],
            return_state=True,
        )
        states.append(optree.tree_map(lambda x: x.value, (w, v)))
    fields = {k: H[k] for k in ("decay", "lr", "mu")}
    total = {k: 0.0 for k in fields}
    bar = hg.grad(lambda w: hg.sum(w["w"] ** 2) + w["b"])(states[6][0]), optree.tree_map(np.zeros_like, states[6][1])
    for start in (4, 2, 0):

        def window(w, v, h, start=start):
            return hg.unroll(
                inner,
                w,
                {"decay": h["decay"]},
                BATCHES[start : start + 2],
                optimizer=hg.SGD(lr=h["lr"], momentum=h["mu"]),
                state=v,
                return_state=True,
            )

        _, pullback = hg.vjp(window, *states[start], fields)
        w_bar, v_bar, share = pullback(bar)
        bar = w_bar, v_bar
        total = {k: total[k] + share[k] for k in fields}
        if start == 4:
            close(hg.grad(lambda h: windows({**H, **h}, [4], join=hg.stop_gradient))(fields), share)
    close(total, {k: whole[k] for k in fields})
    close(bar[0]["w"], whole["w"])


def test_maml_with_momentum_carried_across_windows():
    """An outer loss after each window; the inner state goes on from window to window."""

    def meta(start):
        w, v, total = start, None, 0.0
        for k in range(3):
            w, v = hg.unroll(
                inner, w, {"decay": 0.1}, BATCHES[2 * k : 2 * k + 2], optimizer=hg.SGD(lr=0.2, momentum=0.7), state=v, return_state=True
            )
            total = total + inner(w, {"decay": 0.0}, BATCHES[5 - k])
        return total

    def by_loop(start):
        h = {"decay": 0.1, "lr": 0.2, "mu": 0.7}
        state, total = (start, optree.tree_map(lambda x: 0.0 * x, start)), 0.0
        for k in range(3):
            state, _ = loop(momentum_step, state, h, BATCHES[2 * k : 2 * k + 2])
            total = total + inner(state[0], {"decay": 0.0}, BATCHES[5 - k])
        return total

    start = {"w": H["w"], "b": np.array(0.1)}
    close(hg.value_and_grad(meta)(start), hg.value_and_grad(by_loop)(start))
    check_gradients(meta, start, order=1)


# --- edges -----------------------------------------------------------------------------------------------------------------


def test_no_step_returns_the_state_and_no_output():
    state, outputs = hg.scan(cell, np.ones(5), network(), [])
    assert outputs is None and np.array_equal(state.value, np.ones(5))
    assert np.array_equal(hg.grad(lambda s: hg.sum(hg.scan(cell, s, network(), [])[0] * 2.0))(np.ones(5)), 2 * np.ones(5))


def test_a_state_of_several_leaves_of_which_one_stands_still():
    def step(state, h, batch):
        a, b = state
        return (a * b * h, b), None

    f = lambda h, b: hg.sum(hg.scan(step, (np.ones(2), b), h, range(3))[0][0])  # noqa: E731
    g = hg.grad(f, argnums=(0, 1))(np.array(0.5), np.array([2.0, 3.0]))
    np.testing.assert_allclose(g[0], 3 * 0.25 * (8 + 27), rtol=1e-14)
    np.testing.assert_allclose(g[1], 3 * 0.125 * np.array([4.0, 9.0]), rtol=1e-14)


def test_what_is_refused():
    def run(step, state=None, batches=range(3)):
        return hg.scan(step, np.ones(2) if state is None else state, np.array(0.5), batches)

    with pytest.raises(ArgumentError, match="scan: step returned a Tensor, expected the pair"):
        run(lambda s, h, b: s * h)
    with pytest.raises(ShapeError, match=r"scan: step: state\['a'\] has shape \(2, 2\).*expected \(2,\)"):
        run(lambda s, h, b: ({"a": s["a"] * np.ones((2, 2))}, None), {"a": np.ones(2)})
    with pytest.raises(ArgumentError, match="scan: step: state has the structure"):
        run(lambda s, h, b: ((s, s), None))
    with pytest.raises(DTypeError, match=r"scan: state\['n'\] cannot be followed.*int"):
        run(lambda s, h, b: (s, None), {"n": np.arange(2)})
    with pytest.raises(DifferentiationError, match="scan: the outputs of its steps have the structures"):
        run(lambda s, h, b: (s, s if b else (s, s)))
    with pytest.raises(DifferentiationError, match="pass the Tensor through hparams"):
        hg.grad(lambda x: hg.sum(hg.scan(lambda s, h, b: (s * x, None), np.ones(2), (), range(2))[0]))(np.array(0.5))
    for second in (lambda f, x: hg.grad(lambda x: hg.grad(f)(x))(x), lambda f, x: hg.hvp(f, (x,), (x,))):
        with pytest.raises(DifferentiationError, match="scan.*first order"):
            second(lambda h: hg.sum(hg.scan(lambda s, h, b: (s * h, None), np.ones(2), h, range(2))[0]), np.array(0.5))
    for batches in (iter(range(3)), (x for x in range(3)), {0: 1, 1: 2}, {1, 2}, "ab", 3, None):
        with pytest.raises(ArgumentError, match=r"scan: batches is a .*expected something with len\(batches\) and batches\[t\]"):
            run(lambda s, h, b: (s * h, None), batches=batches)


@pytest.mark.parametrize("checkpoints", ["all", 1])
def test_a_step_that_takes_a_gradient_of_fused_ops_is_differentiated_as_unroll_does(checkpoints):
    """On the tape such a gradient is that of the composed references, which differs in the last bits: no sign of an impure step."""
    x, labels = np.random.default_rng(1).standard_normal((6, 8, 8, 8)), np.arange(6) % 2

    def inner_loss(w, h, batch):
        features = hg.reshape(hg.conv_bn_relu_pool(x, w["filters"], h["gamma"], np.zeros(8)), (6, -1))
        return hg.mean(hg.linear_cross_entropy(features, w["head"], np.zeros(2), labels))

    def step(w, h, batch):
        g = hg.grad(inner_loss)(w, h, batch)
        return {name: w[name] - 0.1 * g[name] for name in w}, ()

    rng = np.random.default_rng(2)
    w_0 = {"filters": 0.3 * rng.standard_normal((3, 3, 8, 8)), "head": 0.1 * rng.standard_normal((128, 2))}
    h, steps = {"gamma": np.linspace(0.5, 1.5, 8)}, hg.full_batch(None, 3)

    def by_scan(w, h):
        return hg.sum(hg.scan(step, w, h, steps, checkpoints=checkpoints)[0]["head"] ** 2)

    def by_unroll(w, h):
        return hg.sum(hg.unroll(inner_loss, w, h, steps, optimizer=hg.SGD(lr=0.1))["head"] ** 2)

    close(*(hg.grad(f, (0, 1))(w_0, h) for f in (by_scan, by_unroll)), rtol=1e-9)
