"""What a run takes and gives beside its weights: running losses, outer minibatches, schedules, callbacks, losses, states, first order."""

from typing import Any

import numpy as np
import optree
import pytest

import hypergrad as hg
from hypergrad.errors import ArgumentError, DTypeError, ShapeError
from hypergrad.testing import check_gradients

pytestmark = pytest.mark.filterwarnings("ignore:.*no influence")  # fixtures with more hyperparameters than a test reads

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((7, 10, 3)), RNG.standard_normal((7, 10))
BATCHES = list(zip(X, Y, strict=True))
XV, YV = RNG.standard_normal((40, 3)), RNG.standard_normal(40)
POLICIES = ["all", "sqrt", 1, 2, 3, "host"]


def inner(w, h, batch):
    x, y = batch
    return hg.mean((hg.tanh(x @ w["w"] + w["b"]) - y) ** 2) + h["decay"] * hg.sum(w["w"] ** 2)


def outer(w, h):
    return hg.mean((hg.tanh(XV @ w["w"] + w["b"]) - YV) ** 2)


def init(h):
    return {"w": h["w"], "b": np.zeros(())}


def hparams(**more):
    return {"decay": np.array(0.1), "lr": np.array(0.2), "mu": np.array(0.6), "w": np.array([0.5, -0.3, 0.2]), **more}


def momentum(h):
    return hg.SGD(lr=h["lr"], momentum=h["mu"])


def problem(optimizer=momentum, outer_loss=outer, **more):
    return hg.Bilevel(inner, outer_loss, init, optimizer, **more)


def close(a, b, rtol=1e-11):
    assert optree.tree_structure(a) == optree.tree_structure(b)
    for x, y in zip(optree.tree_leaves(a), optree.tree_leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-14)


def same_bits(a, b):
    return [x.tobytes() for x in optree.tree_leaves(a)] == [x.tobytes() for x in optree.tree_leaves(b)]


def everywhere(p, h, batches=BATCHES, **more):
    """The hypergradient, the same in every policy (bits), in forward mode and in blocks of directions."""
    r = hg.reverse(p, h, batches, **more)
    for checkpoints in POLICIES:
        again = hg.reverse(p, h, batches, checkpoints=checkpoints, **more)
        assert same_bits((r.value, r.grad, r.params, r.state, r.losses), (again.value, again.grad, again.params, again.state, again.losses))
    for directions in (256, 1, 4):
        f = hg.forward(p, h, batches, directions=directions, **more)
        close((f.value, f.grad, f.params, f.state, f.losses), (r.value, r.grad, r.params, r.state, r.losses))
        assert f.stats.states_held == 1 + min(directions, sum(np.size(x) for x in optree.tree_leaves(h)))
    return r


def loop(h, batches, *, start=None, v=None, first_order=False, lrs=None):
    """The run as a Python loop: the weights before every step and after the last, and the losses."""
    w = init(h) if start is None else start
    v = optree.tree_map(lambda x: 0.0 * x, w) if v is None else v
    ws, losses = [w], []
    for t, batch in enumerate(batches):
        loss, g = hg.value_and_grad(lambda w, b=batch: inner(w, h, b))(w)
        g = hg.stop_gradient(g) if first_order else g
        v = optree.tree_map(lambda v, g: h["mu"] * v + g, v, g)
        w = optree.tree_map(lambda w, v, t=t: w - (h["lr"] if lrs is None else lrs[t]) * v, w, v)
        ws.append(w)
        losses.append(loss)
    return ws, v, losses


# --- running losses ---------------------------------------------------------------------------------------------------


def running(w, h, t):
    return 0.1 * t * hg.sum(w["w"] ** 2) + h["decay"] * w["b"] ** 2


def test_a_running_loss_is_summed_over_the_steps_done():
    def by_loop(h):
        ws, _, _ = loop(h, BATCHES)
        return outer(ws[-1], h) + sum(running(w, h, t) for t, w in enumerate(ws) if t)

    h = hparams()
    r = everywhere(problem(running_loss=running), h)
    value, grad = hg.value_and_grad(by_loop)(h)
    close((r.value, r.grad), (value, grad))
    seen = []
    hg.reverse(problem(running_loss=lambda w, h, t: (seen.append(t), running(w, h, t))[1]), h, BATCHES)
    assert sorted(set(seen)) == list(range(1, 8))


def test_a_running_loss_alone_and_of_no_step():
    nothing = lambda w, h: hg.sum(w["w"]) * 0.0  # noqa: E731
    h = hparams()
    for n in (0, 1, 2):
        r = everywhere(problem(outer_loss=nothing, running_loss=running), h, BATCHES[:n])
        value, grad = hg.value_and_grad(
            lambda h, n=n: sum((running(w, h, t) for t, w in enumerate(loop(h, BATCHES[:n])[0]) if t), start=0.0 * hg.sum(h["w"]))
        )(h)
        close((r.value, r.grad), (value, grad))


def test_a_running_loss_with_adam_and_with_an_own_op():
    """The other two ways in which a step is transposed."""
    h = hparams()
    for optimizer in (lambda h: hg.Adam(lr=h["lr"], eps=1e-3), lambda h: hg.SGD(lr=h["lr"], clip=hg.clip_by_norm(h["mu"]))):
        p = problem(optimizer, running_loss=running)
        r = everywhere(p, h)
        for name in h:
            e = 1e-6 * np.ones_like(h[name])
            ends = [float(hg.reverse(p, {**h, name: h[name] + s * e}, BATCHES).value) for s in (1, -1)]
            np.testing.assert_allclose(np.sum(r.grad[name]), (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=1e-9)


# --- outer minibatches --------------------------------------------------------------------------------------------------


def test_hyper_cleaning_with_a_validation_minibatch_for_each_outer_step():
    """Noise in half of the labels; each outer step sees another validation minibatch, and the weights of the noisy examples fall."""
    rng = np.random.default_rng(0)
    true = rng.standard_normal((5, 3))
    x, x_val = rng.standard_normal((200, 5)), rng.standard_normal((300, 5))
    y, y_val = (x @ true).argmax(-1), (x_val @ true).argmax(-1)
    y[:100] = (y[:100] + 1 + rng.integers(0, 2, 100)) % 3

    def loss(w, lam, batch):
        return hg.mean(hg.sigmoid(lam) * hg.softmax_cross_entropy(x @ w, y))

    def validation(w, lam, batch):
        xs, ys = batch
        return hg.mean(hg.softmax_cross_entropy(xs @ w, ys))

    p = hg.Bilevel(loss, validation, lambda lam: np.zeros((5, 3)), lambda lam: hg.SGD(lr=1.0, momentum=0.5))
    lam, state, outer_optimizer = np.zeros(200), None, hg.Adam(lr=0.3)
    for t in range(25):
        rows = np.random.default_rng((7, t)).integers(0, 300, 60)
        r = hg.reverse(p, lam, hg.full_batch(None, 15), checkpoints="sqrt", outer_batch=(x_val[rows], y_val[rows]))
        if t == 0:
            f = hg.forward(p, lam, hg.full_batch(None, 15), outer_batch=(x_val[rows], y_val[rows]), directions=64)
            close(f.grad, r.grad, 1e-9)
        lam, state = outer_optimizer.step(lam, state, r.grad, t)
    assert lam[:100].mean() < -0.5 < 0.5 < lam[100:].mean()


def test_another_minibatch_another_hypergradient():
    def on(w, h, batch):
        return hg.mean((XV[batch] @ w["w"] - YV[batch]) ** 2)

    h = hparams()
    a, b = (everywhere(problem(outer_loss=on), h, outer_batch=rows) for rows in (np.arange(5), np.arange(5, 20)))
    assert not np.allclose(a.grad["w"], b.grad["w"])
    with pytest.raises(TypeError):
        hg.reverse(problem(outer_loss=on), h, BATCHES)


# --- what else comes out --------------------------------------------------------------------------------------------------


def test_losses_and_states_come_out_for_nothing():
    h = hparams()
    calls = []

    def counted(w, h, batch):
        calls.append(0)
        return inner(w, h, batch)

    r = hg.reverse(hg.Bilevel(counted, outer, init, momentum), h, BATCHES)
    assert len(calls) == 14  # once forward and once backward for each step: the losses cost nothing
    ws, v, losses = optree.tree_map(lambda t: t.value if isinstance(t, hg.Tensor) else t, loop(optree.tree_map(hg.Tensor, h), BATCHES))
    close(r.losses, np.array(losses))
    close((r.params, r.state), (ws[-1], v))
    assert hg.reverse(problem(), h, []).losses.shape == (0,)


def test_a_callback_is_called_once_for_each_step_in_order():
    h = hparams()
    for run, more in ((hg.reverse, {"checkpoints": 1}), (hg.reverse, {}), (hg.forward, {"directions": 2})):
        seen = []
        r = run(problem(), h, BATCHES, callback=lambda t, w, loss, seen=seen: seen.append((t, w["w"].copy(), float(loss))), **more)
        assert [t for t, _, _ in seen] == list(range(7))
        np.testing.assert_array_equal([loss for _, _, loss in seen], r.losses)
        np.testing.assert_array_equal(seen[0][1], h["w"])
    seen = []
    hg.unroll(inner, init(h), h, BATCHES, optimizer=hg.SGD(lr=0.1), callback=lambda *a: seen.append(a[0]))
    assert seen == list(range(7))
    seen = []
    _, pullback = hg.vjp(
        lambda h: outer(hg.unroll(inner, init(h), h, BATCHES, optimizer=momentum(h), callback=lambda *a: seen.append(a[0])), h), h
    )
    assert same_bits(pullback(np.array(1.0)), pullback(np.array(1.0))) and seen == list(range(7))


def test_the_state_of_the_optimiser_goes_in():
    h, v = hparams(), {"w": np.array([0.1, 0.2, -0.1]), "b": np.array(0.3)}
    r = everywhere(problem(), h, state=v)
    close(r.grad, hg.grad(lambda h: outer(loop(h, BATCHES, v=v)[0][-1], h))(h))
    check_gradients(lambda v: outer(hg.unroll(inner, init(h), h, BATCHES, optimizer=momentum(h), state=v), h), v, order=1)


def test_a_state_of_another_optimiser_is_refused():
    v = {"w": np.zeros(3), "b": np.zeros(())}
    for optimizer, state, message in (
        (lambda h: hg.SGD(lr=0.1), v, "unroll: state has the structure"),
        (momentum, {"m": v, "s": v}, "unroll: state has the structure"),
        (momentum, {**v, "w": np.zeros(2)}, r"unroll: state\['w'\] has shape \(2,\)"),
        (momentum, single(v), r"unroll: state\['b'\] has shape \(\) and dtype float32, expected"),
    ):
        with pytest.raises((ArgumentError, ShapeError, DTypeError), match=message):
            hg.reverse(problem(optimizer), hparams(), BATCHES, state=state)


@pytest.mark.parametrize("number", [np.float32(0.25), np.float64(0.25), np.float16(0.25), 0.25])
def test_numpys_numbers_are_numbers(number):
    a, b = (hg.reverse(problem(lambda h, lr=lr: hg.SGD(lr=lr, momentum=h["mu"])), hparams(), BATCHES) for lr in (number, 0.25))
    assert same_bits((a.value, a.grad), (b.value, b.grad))
    w = {"w": np.ones(3, np.float32), "b": np.ones((), np.float32)}
    assert hg.SGD(lr=number).step(w, None, w, 0)[0]["w"].dtype == np.float32


# --- first order -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer", [momentum, lambda h: hg.SGD(lr=h["lr"]), lambda h: hg.SGD(lr=0.1)], ids=["momentum", "sgd", "no field"]
)
def test_first_order_takes_the_inner_gradients_for_constants(optimizer):
    h = hparams()
    r = everywhere(problem(optimizer), h, first_order=True)
    mu, lr = optimizer(h).momentum, optimizer(h).lr

    def by_loop(h):
        h = {**h, "mu": h["mu"] if isinstance(mu, np.ndarray) else mu, "lr": h["lr"] if isinstance(lr, np.ndarray) else lr}
        return outer(loop(h, BATCHES, first_order=True)[0][-1], h)

    close(r.grad, hg.grad(by_loop)(h))
    assert r.grad["decay"] == 0  # it acts through the inner gradient alone
    assert not np.allclose(r.grad["w"], hg.reverse(problem(optimizer), h, BATCHES).grad["w"])


def test_first_order_maml_is_the_gradient_at_the_end():
    h = hparams()
    meta = lambda w: outer(hg.unroll(inner, w, {"decay": 0.1}, BATCHES, optimizer=hg.SGD(lr=0.1), first_order=True), h)  # noqa: E731
    end = optree.tree_map(lambda t: t.value, hg.unroll(inner, init(h), {"decay": 0.1}, BATCHES, optimizer=hg.SGD(lr=0.1)))
    close(hg.grad(meta)(init(h)), hg.grad(lambda w: outer(w, h))(end))


# --- one learning rate per step ------------------------------------------------------------------------------------------------


RATES = np.linspace(0.3, 0.05, 7)


def test_a_schedule_is_one_value_per_step_and_each_is_a_hyperparameter():
    h = hparams(lr=RATES)
    r = everywhere(problem(lambda h: hg.SGD(lr=hg.schedule(h["lr"]), momentum=h["mu"])), h)
    close(r.grad, hg.grad(lambda h: outer(loop(h, BATCHES, lrs=h["lr"])[0][-1], h))(h))
    assert r.grad["lr"].shape == (7,) and (r.grad["lr"] != 0).all()


def test_a_function_of_the_step_number():
    def decaying(h):
        return hg.SGD(lr=lambda t: h["lr"] / (1.0 + 0.5 * t), momentum=lambda t: 0.9 - 0.1 * t)

    def as_schedule(h):
        return hg.SGD(lr=hg.schedule(h["lr"] / (1.0 + 0.5 * np.arange(7.0))), momentum=hg.schedule(0.9 - 0.1 * np.arange(7.0)))

    a, b = (everywhere(problem(o), hparams()) for o in (decaying, as_schedule))
    close((a.value, a.grad), (b.value, b.grad))
    constant, number = (hg.reverse(problem(o), hparams(), BATCHES) for o in (lambda h: hg.SGD(lr=lambda t: 0.1), lambda h: hg.SGD(lr=0.1)))
    close((constant.value, constant.grad), (number.value, number.grad))


@pytest.mark.parametrize("kind", [hg.Adam, hg.AdamW, hg.RMSprop, hg.Adagrad])
def test_schedules_of_every_field_and_of_leaves(kind):
    def scheduled(h):
        more = {k: hg.schedule(h["rest"] if k != "eps" else 0.01 * h["rest"]) for k in kind.numeric_fields if k not in ("lr", "beta2")}
        return kind(lr=hg.schedule({"w": h["lr"][:, None] * np.ones(3), "b": h["lr"]}), **more)

    h = hparams(lr=0.3 * RATES, rest=np.linspace(0.5, 0.9, 7))
    everywhere(problem(scheduled), h)
    check_gradients(lambda h: outer(hg.unroll(inner, init(h), h, BATCHES, optimizer=scheduled(h)), h), h, order=1)


def test_a_schedule_in_a_training_loop():
    w, state, by_hand = {"w": np.ones(3), "b": np.zeros(())}, None, {"w": np.ones(3), "b": np.zeros(())}
    for t in range(7):
        g = optree.tree_map(np.cos, w)
        w, state = hg.SGD(lr=hg.schedule(RATES) if t % 2 else (lambda t: RATES[t])).step(w, state, g, t)
        by_hand = optree.tree_map(lambda x, t=t: x - RATES[t] * np.cos(x), by_hand)
    close(w, by_hand)


def test_a_schedule_of_another_length_is_refused():
    for n in (3, 8, 0):
        with pytest.raises(ShapeError, match=rf"schedule: lr has shape \({n},\), expected \(7, ...\)"):
            hg.reverse(problem(lambda h, n=n: hg.SGD(lr=hg.schedule(np.ones(n)))), hparams(), BATCHES)
    with pytest.raises(ShapeError, match="schedule: lr has shape"):
        hg.reverse(problem(lambda h: hg.SGD(lr=hg.schedule(h["lr"]))), hparams(), BATCHES)


# --- shapes and dtypes of fields -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 1), (1, 3), (2,), (3, 1), (7,), (1, 1)])
@pytest.mark.parametrize("kind", [hg.SGD, hg.Adam, hg.AdamW, hg.RMSprop, hg.Adagrad])
def test_a_field_never_enlarges_a_leaf(kind, shape):
    p = problem(lambda h: kind(lr=h["lr"]))
    with pytest.raises((ShapeError, ArgumentError), match=r"optimizer: lr has shape"):
        hg.reverse(p, hparams(lr=np.full(shape, 0.1)), BATCHES)
    with pytest.raises(ShapeError, match=r"optimizer: lr has shape .* w\['b'\] keeps its shape"):
        kind(lr=np.full(shape, 0.1)).step({"w": np.ones((2, 3)), "b": np.ones(())}, None, {"w": np.ones((2, 3)), "b": np.ones(())}, 0)


def test_a_field_with_one_value_per_step_is_not_taken_for_one_per_column():
    w = np.ones((4, 7))
    p = hg.Bilevel(lambda w, h, b: hg.sum(w * w), lambda w, h: hg.sum(w), lambda h: w, lambda h: hg.SGD(lr=h))
    with pytest.raises(ArgumentError, match=r"optimizer: lr has shape \(7,\), one value for each of the 7 steps.*hg.schedule"):
        hg.reverse(p, np.full(7, 0.1), hg.full_batch(None, 7))
    assert hg.reverse(p, np.full(7, 0.1), hg.full_batch(None, 6)).grad.shape == (7,)  # one per column: nothing to mistake
    own_shape = hg.Bilevel(p.inner_loss, p.outer_loss, lambda h: np.ones(7), p.optimizer)
    assert hg.reverse(own_shape, np.full(7, 0.1), hg.full_batch(None, 7)).grad.shape == (7,)  # the leaf's own shape


def single(tree: Any) -> Any:
    return optree.tree_map(lambda x: np.asarray(x, np.float32), tree)


@pytest.mark.parametrize("name", ["decay", "lr", "mu"])
def test_a_hyperparameter_of_another_dtype_is_named_by_its_path(name):
    h = {**single(hparams()), name: np.array(0.1)}
    p = hg.Bilevel(inner, outer, lambda h: single(init(single(hparams()))), momentum)
    root = "hparams" if name == "decay" else "optimizer"
    with pytest.raises(DTypeError, match=rf"unroll: (hparams\['{name}'\]|{root}\['{name}'\]) has dtype float64, expected float32"):
        hg.reverse(p, h, single(BATCHES))


def test_numbers_among_the_hyperparameters_follow_the_weights_dtype():
    w = hg.unroll(inner, single(init(hparams())), {"decay": 0.1}, single(BATCHES), optimizer=hg.SGD(lr={"w": 0.1, "b": 0.2}))
    assert {x.dtype for x in optree.tree_leaves(w)} == {np.dtype(np.float32)}


def test_a_pullback_that_was_broken_off_may_be_called_again():
    calls = []

    def fragile(w, h, batch):
        calls.append(0)
        if len(calls) == 10:  # in the third step of the backward run
            raise KeyboardInterrupt
        return inner(w, h, batch)

    stats = hg.Stats("unroll")
    f = lambda h, loss: outer(hg.unroll(loss, init(h), h, BATCHES, optimizer=momentum(h), stats=stats), h)  # noqa: E731
    _, pullback = hg.vjp(lambda h: f(h, fragile), hparams())
    with pytest.raises(KeyboardInterrupt):
        pullback(np.array(1.0))
    assert same_bits(pullback(np.array(1.0))[0], hg.grad(lambda h: f(h, inner))(hparams()))
    assert stats.states_held == 7


def test_what_is_refused_with_a_remedy():
    h = hparams()
    with pytest.raises(ArgumentError, match=r"outer_loss: the function's result is a tuple, expected one scalar Tensor"):
        hg.reverse(problem(outer_loss=lambda w, h: (outer(w, h), {"aux": 1})), h, BATCHES)
    for batches in (iter(BATCHES), (b for b in BATCHES), dict(enumerate(BATCHES)), set(range(3)), None, 5):
        for run in (hg.reverse, hg.forward):
            with pytest.raises(ArgumentError, match=r"unroll: batches is a .*collect it first with list\(batches\)"):
                run(problem(), h, batches)
    with pytest.raises(ArgumentError, match="unroll: optimizer is a float, expected an Optimizer"):
        hg.reverse(problem(lambda h: 0.1), h, BATCHES)
    for n in (-1, 2.0, None, "3", True):
        with pytest.raises(ArgumentError, match="full_batch: n_steps has"):
            hg.full_batch(None, n)
    assert len(hg.full_batch(None, np.int64(3))) == len(hg.full_batch(None, np.array(3))) == 3
    for directions in (0, None, 1.5, True):
        with pytest.raises(ArgumentError, match="forward: directions has"):
            hg.forward(problem(), h, BATCHES, directions=directions)


# --- room for states, truncation, and directions other than the hyperparameters' own ---


def bytes_of_a_state(p, h):
    stats = hg.forward(p, h, BATCHES).stats
    return stats.state_bytes // stats.states_held


@pytest.mark.parametrize("states", [1, 2, 3, 6, 7, 1000])
def test_the_policy_with_the_fewest_reruns_that_fits(states):
    p, h = problem(), hparams()
    r, room = hg.reverse(p, h, BATCHES), states * bytes_of_a_state(p, h) + 7
    fits = hg.reverse(p, h, BATCHES, memory_bytes=room)
    assert same_bits(fits.grad, r.grad) and fits.stats.state_bytes <= room and fits.stats.states_held == min(states, 7)
    assert fits.stats.steps_rerun == hg.reverse(p, h, BATCHES, checkpoints=states).stats.steps_rerun
    step = lambda w, h, batch: (w - h * w * batch, None)  # noqa: E731
    loss = lambda h, **more: hg.sum(hg.scan(step, np.ones(4), h, [0.1, 0.2, 0.3, 0.4, 0.5], **more)[0])  # noqa: E731
    stats = hg.Stats("scan")
    assert hg.grad(lambda h: loss(h, memory_bytes=states * 32, stats=stats))(0.5) == hg.grad(loss)(0.5)
    assert stats.states_held == min(states, 5)


@pytest.mark.parametrize("momentum", [False, True])
def test_the_smallest_room_is_named(momentum):
    p, h = problem(lambda h: hg.SGD(lr=h["lr"], momentum=h["mu"] if momentum else 0.0)), hparams()
    n_bytes = 2 * 32 if momentum else 32  # three weights and an offset, and their velocities
    assert bytes_of_a_state(p, h) == n_bytes
    for run, least in ((hg.reverse, n_bytes), (hg.forward, 2 * n_bytes)):
        run(p, h, BATCHES, memory_bytes=least)
        with pytest.raises(ArgumentError, match=f"{run.__name__}: memory_bytes is {least - 1}, expected at least {least}"):
            run(p, h, BATCHES, memory_bytes=least - 1)
    assert hg.reverse(p, h, [], memory_bytes=1).stats.states_held == 0  # no step, no state
    with pytest.raises(ArgumentError, match="expected one of the two"):
        hg.reverse(p, h, BATCHES, memory_bytes=n_bytes, checkpoints="sqrt")


@pytest.mark.parametrize("last", [1, 2, 5, 7, 9])
@pytest.mark.parametrize("checkpoints", POLICIES)
def test_truncation_takes_the_state_before_the_last_steps_for_a_constant(last, checkpoints):
    p, h = problem(), hparams()
    r = hg.reverse(p, h, BATCHES, last=last, checkpoints=checkpoints)
    whole = hg.reverse(p, h, BATCHES)
    assert same_bits((r.value, r.params, r.state, r.losses), (whole.value, whole.params, whole.state, whole.losses))
    assert r.stats.states_held <= min(last, 7) and r.stats.steps_rerun <= whole.stats.steps_run * 7
    if last >= 7:
        assert same_bits(r.grad, whole.grad)
        return
    before = hg.reverse(p, h, BATCHES[:-last])
    tail = hg.Bilevel(inner, outer, lambda h: before.params, momentum)
    rest = hg.reverse(tail, h, BATCHES[-last:], state=before.state)
    assert same_bits(r.grad, rest.grad) and not r.grad["w"].any()  # the start has no influence


def test_the_error_of_truncation_falls_as_the_contraction_says():
    """w <- w - g*(w - lam) contracts by q = 1 - g: what is lost is q**K - q**T of 1 - q**T."""
    g, n_steps = 0.05, 100
    p = hg.Bilevel(lambda w, h, b: 0.5 * (w - h) ** 2, lambda w, h: w, lambda h: np.float64(0.0), lambda h: hg.SGD(lr=g))
    whole = hg.reverse(p, 1.0, hg.full_batch(None, n_steps)).grad
    assert whole == pytest.approx(1 - (1 - g) ** n_steps, rel=1e-12)
    for last in (1, 5, 10, 20, 50, 100):
        lost = whole - hg.reverse(p, 1.0, hg.full_batch(None, n_steps), last=last).grad
        assert lost == pytest.approx((1 - g) ** last - (1 - g) ** n_steps, abs=1e-14)


def dot(a, b):
    return sum(np.sum(x * y) for x, y in zip(optree.tree_leaves(a), optree.tree_leaves(b), strict=True))


def test_derivatives_along_chosen_directions():
    p, h, rng = problem(), hparams(), np.random.default_rng(1)
    r = hg.reverse(p, h, BATCHES)
    along = optree.tree_map(lambda x: rng.standard_normal((3, *x.shape)), h)
    one = optree.tree_map(lambda x: x[1], along)
    f = hg.forward(p, h, BATCHES, along=one)
    assert f.grad.shape == () and f.stats.states_held == 2 and f.stats.steps_run == len(BATCHES)
    assert f.grad == pytest.approx(dot(one, r.grad), rel=1e-11)
    three = hg.forward(p, h, BATCHES, along=along, directions=2)
    assert three.grad.shape == (3,) and three.grad[1] == pytest.approx(f.grad, rel=1e-12) and three.stats.steps_run == 2 * len(BATCHES)
    lr_alone = hg.forward(p, h, BATCHES, along={"decay": None, "lr": np.array(2.0), "mu": None, "w": None})
    assert lr_alone.grad == pytest.approx(2.0 * r.grad["lr"], rel=1e-11)
    with pytest.raises(ShapeError, match="forward: a tangent has shape"):
        hg.forward(p, h, BATCHES, along={**one, "w": np.ones(2)})
    with pytest.raises(ArgumentError, match="along and samples are both given"):
        hg.forward(p, h, BATCHES, along=one, samples=1)


def test_random_directions_estimate_the_gradient():
    """Unbiased; each element's error has the variance (|grad|^2 + grad_i^2) / K. The same for any division into blocks."""
    p, h, samples = problem(), hparams(), 20_000
    r, f = hg.reverse(p, h, BATCHES), hg.forward(p, h, BATCHES, samples=samples, seed=3)
    for estimate, exact in zip(optree.tree_leaves(f.grad), optree.tree_leaves(r.grad), strict=True):
        assert (abs(estimate - exact) <= 4.5 * np.sqrt((dot(r.grad, r.grad) + exact**2) / samples)).all()
    close(hg.forward(p, h, BATCHES, samples=5, seed=3, directions=2).grad, hg.forward(p, h, BATCHES, samples=5, seed=3).grad)
    assert not same_bits(hg.forward(p, h, BATCHES, samples=5, seed=4).grad, hg.forward(p, h, BATCHES, samples=5, seed=3).grad)
    with pytest.raises(ArgumentError, match="forward: samples has 0, expected an integer >= 1"):
        hg.forward(p, h, BATCHES, samples=0)


@pytest.mark.parametrize("last", [0, -1, 1.5, True])
def test_a_wrong_number_of_last_steps(last):
    with pytest.raises(ArgumentError, match="reverse: last has .*, expected an integer >= 1"):
        hg.reverse(problem(), hparams(), BATCHES, last=last)
