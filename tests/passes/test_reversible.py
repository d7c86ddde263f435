"""Steps that are undone: the same bits as stored states, for any numbers, and few bits for each weight and step."""

import sys

import numpy as np
import optree
import pretended
import pytest
from hyper_problems import mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from places import needs_emulator

import hypergrad as hg
from hypergrad.errors import ArgumentError, DifferentiationError
from hypergrad.passes import reversible
from hypergrad.tape import Tensor
from hypergrad.transforms import tree_tensors

pytestmark = pytest.mark.filterwarnings("ignore:.*no influence")  # fixtures with more hyperparameters than a test reads


def same_bits(a, b):
    return [x.tobytes() for x in optree.tree_leaves(a)] == [x.tobytes() for x in optree.tree_leaves(b)]


def same_run(problem, hparams, batches, **more):
    stored = hg.reverse(problem, hparams, batches, **more)
    undone = hg.reverse(problem, hparams, batches, checkpoints="reversible", **more)
    assert same_bits((stored.value, stored.grad, stored.params, stored.state), (undone.value, undone.grad, undone.params, undone.state))
    return undone.stats


def problem(dtype=np.float64, optimizer=None, n_steps=12, sizes=(7, 3)):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((n_steps, 20, sizes[0])).astype(dtype), rng.standard_normal((n_steps, 20)).astype(dtype)
    start = {"a": rng.standard_normal(sizes).astype(dtype), "b": np.zeros(sizes[1], dtype)}

    def inner(w, h, batch):
        hidden = hg.relu(batch[0] @ w["a"] + w["b"])
        return hg.mean((hg.sum(hidden, axis=-1) - batch[1]) ** 2) + hg.sum(w["a"] ** 2) * h["decay"]

    def of(h):
        return hg.SGD(lr=h["lr"], momentum=h["mu"], weight_decay=h["decay"])

    hparams = {"lr": np.array(0.02, dtype), "mu": np.array(0.9, dtype), "decay": np.array(0.01, dtype)}
    outer = lambda w, h: hg.sum(w["a"] ** 2) + hg.sum(w["b"])  # noqa: E731
    return hg.Bilevel(inner, outer, lambda h: start, optimizer or of), hparams, list(zip(x, y, strict=True))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_steps", [0, 1, 2, 3, 12])
def test_bits_of_the_stored_run(dtype, n_steps):
    stats = same_run(*problem(dtype, n_steps=n_steps))
    assert stats.steps_rerun == max(n_steps - 1, 0) and stats.states_held <= 2


OPTIMIZERS = {
    "numbers": lambda h: hg.SGD(lr=0.02, momentum=0.9),
    "negative step size": lambda h: hg.SGD(lr=-0.001, momentum=0.5),
    "a field per leaf": lambda h: hg.SGD(lr={"a": h["lr"], "b": 0.1 * h["lr"]}, momentum=h["mu"]),
    "a field per element": lambda h: hg.SGD(lr={"a": h["lr"] * np.ones(3), "b": h["lr"]}, momentum=h["mu"] * np.linspace(0.5, 1, 3)),
    "schedules": lambda h: hg.SGD(lr=lambda t: 0.02 / (1 + t), momentum=hg.schedule(hg.stack([h["mu"]] * 12)), weight_decay=0.1),
    "clipped": lambda h: hg.SGD(lr=h["lr"], momentum=h["mu"], clip=hg.clip_by_norm(0.1)),
    "momentum above 1": lambda h: hg.SGD(lr=1e-3, momentum=1.25),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("fused", [True, False])
def test_every_kind_of_field(name, fused):
    with hg.fusion(fused):
        same_run(*problem(optimizer=OPTIMIZERS[name]))
        if name not in ("a field per element", "schedules"):  # they make float64 arrays
            same_run(*problem(np.float32, OPTIMIZERS[name]))


def test_other_problems_and_options():
    same_run(*mlp(), state=None, last=None)
    for last in (1, 2, 5):
        same_run(*problem(), last=last)
    p, h, batches = problem()
    velocity = {"a": -np.zeros((7, 3)), "b": np.array([0.0, -0.0, 1e-320])}
    same_run(p, h, batches, state=velocity)
    running = hg.Bilevel(p.inner_loss, p.outer_loss, p.init, p.optimizer, lambda w, h, t: hg.sum(w["a"]) * h["lr"] / t)
    same_run(running, h, batches)
    same_run(p, h, batches, first_order=True)


def test_a_pullback_may_be_called_again():
    p, h, batches = problem()
    _, pullback = hg.vjp(
        lambda h: hg.unroll(p.inner_loss, p.init(h), h, batches, optimizer=p.optimizer(h), checkpoints="reversible")["a"], h
    )
    bar = np.ones((7, 3))
    assert same_bits(pullback(bar), pullback(bar))


numbers = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=9),
    st.sampled_from([1e-3, 0.5, 0.9, 1.0, 1.5]),
    st.sampled_from([0.0, -0.1, 1.0]),
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_numbers_are_restored(dtype, rows, momentum, lr):
    """Zeros of both signs, denormal numbers, velocities that a large gradient swallows."""
    w, v, g = (tree_tensors([x], "test") for x in np.array(rows, dtype).T.copy())
    optimizer = hg.SGD(lr=lr, momentum=momentum)
    after = optimizer.advance(w, v, g, 0)
    residue = reversible.residue(optimizer, (w, v), after, g, 0)
    again = reversible.undo(optimizer, after, lambda weights: g, residue)
    assert same_bits([x.value for x in (*w, *v)], [x.value for tree in again for x in tree])


@pytest.mark.parametrize(("momentum", "most"), [(0.9, 0.4), (0.98, 0.15), (0.5, 1.6)])
def test_bits_for_each_weight_and_step(momentum, most):
    p, h, batches = problem(np.float32, lambda h: hg.SGD(lr=0.01, momentum=momentum), 300, (50, 20))
    stats = same_run(p, h, batches)
    assert np.log2(1 / momentum) < stats.residue_bits < most
    assert stats.residue_bytes * 8 / (1020 * 299) == pytest.approx(stats.residue_bits)


def test_reversible_memory_is_a_hundredth():
    p, h, batches = problem(np.float32, lambda h: hg.SGD(lr=0.003, momentum=0.9), 1000, (20, 10))
    stored, undone = hg.reverse(p, h, batches).stats, same_run(p, h, batches)
    assert 100 * (undone.state_bytes + undone.residue_bytes) < stored.state_bytes


@pytest.mark.parametrize(
    ("optimizer", "found"),
    [
        (lambda h: hg.Adam(lr=h["lr"]), "Adam"),
        (lambda h: hg.SGD(lr=h["lr"]), "SGD with momentum 0"),
        (lambda h: hg.SGD(lr=0.1, momentum=-0.5), "SGD with momentum -0.5"),
        (lambda h: hg.SGD(lr=0.1, momentum=h["mu"], nesterov=True), "SGD with Nesterov"),
        (lambda h: hg.SGD(lr=0.1, momentum=hg.schedule(np.array([0.9] * 11 + [0.0]))), "SGD with momentum 0"),
    ],
)
def test_what_cannot_be_undone_is_refused(optimizer, found):
    with pytest.raises(ArgumentError, match=f"reverse: checkpoints is 'reversible' and optimizer is {found}.*choose other checkpoints"):
        hg.reverse(*problem(optimizer=optimizer), checkpoints="reversible")


def test_scan_refuses():
    with pytest.raises(ArgumentError, match="scan: checkpoints is 'reversible'"):
        hg.scan(lambda s, h, b: (s, None), np.ones(2), (), [1, 2], checkpoints="reversible")


def test_a_state_that_is_not_finite_is_named():
    p, h, batches = problem(optimizer=lambda h: hg.SGD(lr=1e200, momentum=0.9))
    with np.errstate(all="ignore"), pytest.raises(DifferentiationError, match="after step 1 is not finite"):
        hg.reverse(p, h, batches, checkpoints="reversible")


def test_another_arithmetic_is_noticed(monkeypatch):
    """A step that is not the op's, planted by a multiplication: it must not be undone wrongly."""
    p, h, batches = problem()
    whole = hg.SGD.update

    def other(self, w, state, g, t):
        w, v = whole(self, w, state, g, t)
        return w, optree.tree_map(lambda x: Tensor(x.value * 1.0000001), v)

    monkeypatch.setattr(hg.SGD, "update", other)
    with pytest.raises(DifferentiationError, match="is not the step of hg.SGD to the last bit"):
        hg.reverse(p, h, batches, checkpoints="reversible")


@needs_emulator
def test_on_a_pretended_gpu(monkeypatch):
    with pretended.gpu(monkeypatch):
        xp = sys.modules["cupy"]
        start = xp.asarray(np.linspace(-1, 1, 40))
        p = hg.Bilevel(
            lambda w, h, b: hg.sum((w - h) ** 4), lambda w, h: hg.sum(w), lambda h: start, lambda h: hg.SGD(lr=0.01, momentum=0.9)
        )
        hparams, batches = xp.asarray(np.array(0.5)), hg.full_batch(None, 9)
        stored, undone = hg.reverse(p, hparams, batches), hg.reverse(p, hparams, batches, checkpoints="reversible")
        assert float(stored.grad) == float(undone.grad)
        x, optimizer = tree_tensors([start], "test"), hg.SGD(lr=0.01, momentum=0.9)
        after = optimizer.advance(x, x, x, 0)
        assert isinstance(reversible.step_of(optimizer, after), reversible.ByKernels)
