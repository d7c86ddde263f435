"""HOAG, SOBA and SABA: the exact minimiser of a quadratic bilevel problem, their steps by hand, going on bit for bit, and refusals."""

import sys

import numpy as np
import optree
import pretended
import pytest
from places import needs_emulator

import hypergrad as hg
from hypergrad.errors import ArgumentError, DifferentiationError, DTypeError, ShapeError

RNG = np.random.default_rng(0)
N, M = 5, 3  # weights, hyperparameters


def definite(n):
    a = RNG.standard_normal((n, 2 * n))
    return np.eye(n) + a @ a.T / (2 * n)


BATCHES = [(definite(N), RNG.standard_normal((N, M))) for _ in range(4)]
OUTER = [RNG.standard_normal(N) for _ in range(6)]
FULL = (np.mean([a for a, _ in BATCHES], 0), np.mean([b for _, b in BATCHES], 0))
MU = 0.5
LAM = {"x": np.array([1.0, -1.0]), "y": np.array(0.5)}


def weights(w):
    return hg.concatenate([w["u"], hg.reshape(w["v"], 3)])


def rates(h):
    return hg.concatenate([h["x"], hg.reshape(h["y"], 1)])


def inner(w, h, batch):
    a, b = batch
    w = weights(w)
    return 0.5 * hg.sum(w * (a @ w)) - hg.sum(w * (b @ rates(h)))


def outer(w, h, target):
    return 0.5 * hg.sum((weights(w) - target) ** 2) + 0.5 * MU * hg.sum(rates(h) ** 2)


PROBLEM = hg.Bilevel(inner, outer, lambda h: {"u": np.ones(2), "v": np.ones((1, 3))}, lambda h: hg.SGD(lr=0.4))


def flat(tree):
    return np.concatenate([np.ravel(x) for x in optree.tree_leaves(tree)])


def minimiser(full=FULL, target=None):
    """lambda, w and v = -H^-1 dE/dw at the solution: w = A^-1 B lambda."""
    target = np.mean(OUTER, 0) if target is None else target
    to_w = np.linalg.solve(*full)
    lam = np.linalg.solve(to_w.T @ to_w + MU * np.eye(M), to_w.T @ target)
    return lam, to_w @ lam, -np.linalg.solve(full[0], to_w @ lam - target)


def same(a, b):
    for x, y in zip(optree.tree_leaves(a), optree.tree_leaves(b), strict=True):
        assert np.array_equal(x, y)


# --- SOBA and SABA --------------------------------------------------------------------------------


def test_soba_on_all_data_finds_the_minimiser():
    r = hg.soba(PROBLEM, LAM, [FULL], [np.mean(OUTER, 0)], 0.3, 0.4, 400)
    for found, exact in zip((r.hparams, r.params, r.state.solution), minimiser(), strict=True):
        np.testing.assert_allclose(flat(found), exact, atol=1e-12)
    assert r.values.shape == (400,) and r.values[-1] < r.values[0] and r.params["v"].shape == (1, 3)
    assert (r.stats.mode, r.stats.steps_run, r.stats.state_bytes, r.state.tables) == ("soba", 400, 8 * (2 * N + M), None)


def test_saba_on_minibatches_finds_the_minimiser_and_soba_stays_at_a_noise_floor():
    def distance(outer_lr, inner_lr):
        """Of SOBA's hyperparameters from the minimiser, on average over the last 300 steps."""
        errors = []
        see = lambda t, h, w, value: errors.append(np.linalg.norm(flat(h) - minimiser()[0]))  # noqa: E731
        hg.soba(PROBLEM, LAM, BATCHES, OUTER, outer_lr, inner_lr, 900, callback=see)
        return np.mean(errors[-300:])

    saba = hg.saba(PROBLEM, LAM, BATCHES, OUTER, 0.1, 0.2, 900)
    for found, exact in zip((saba.hparams, saba.params, saba.state.solution), minimiser(), strict=True):
        np.testing.assert_allclose(flat(found), exact, atol=1e-10)
    steady = distance(0.1, 0.2)
    assert steady > 0.1  # at the end of 900 steps, where SABA is at 1e-10
    assert distance(lambda t: 0.2 / (1 + t) ** 0.5, lambda t: 0.5 / (1 + t) ** 0.5) < 0.6 * steady
    assert saba.stats.state_bytes == 8 * ((2 * N + M) * (2 + len(BATCHES)) + (N + M) * (1 + len(OUTER)))


@pytest.mark.parametrize("name", ["soba", "saba"])
def test_the_steps_by_hand(name):
    n_steps, gamma, rho = 7, lambda t: 0.2 / (1 + t), 0.3
    r = getattr(hg, name)(PROBLEM, LAM, BATCHES, OUTER, gamma, rho, n_steps, seed=5)
    w, v, lam = np.ones(N), np.zeros(N), flat(LAM)

    def directions(w, v, lam):
        rows = [np.concatenate([a @ w - b @ lam, a @ v, -b.T @ v]) for a, b in BATCHES]
        return rows, [np.concatenate([w - target, MU * lam]) for target in OUTER]

    tables = [np.array(rows) for rows in directions(w, v, lam)]
    for t in range(n_steps):
        draws = np.random.default_rng((5, t)).integers([4, 6])
        assert r.values[t] == pytest.approx(0.5 * np.sum((w - OUTER[draws[1]]) ** 2) + 0.5 * MU * lam @ lam, rel=1e-12)
        d = [rows[i] for rows, i in zip(directions(w, v, lam), draws, strict=True)]
        if name == "saba":
            means = [table.mean(0) for table in tables]
            d, new = [x - table[i] + m for x, table, i, m in zip(d, tables, draws, means, strict=True)], d
            for table, i, x in zip(tables, draws, new, strict=True):
                table[i] = x
        w, v, lam = w - rho * d[0][:N], v - rho * (d[0][N : 2 * N] + d[1][:N]), lam - gamma(t) * (d[0][2 * N :] + d[1][N:])
    for found, exact in zip((r.params, r.state.solution, r.hparams), (w, v, lam), strict=True):
        np.testing.assert_allclose(flat(found), exact, rtol=1e-12)


@pytest.mark.parametrize("name", ["soba", "saba"])
def test_going_on_gives_the_same_bits(name):
    def run(hparams, n_steps, state=None):
        box = lambda h: optree.tree_map(lambda x: np.clip(x, -0.45, 0.45), h)  # noqa: E731
        return getattr(hg, name)(PROBLEM, hparams, BATCHES, OUTER, lambda t: 0.1 / (1 + t), 0.1, n_steps, seed=3, project=box, state=state)

    whole, half = run(LAM, 40), run(LAM, 20)
    kept = optree.tree_map(np.copy, half.state)
    rest = run(half.hparams, 20, half.state)
    same(kept, half.state)  # what goes in is not written to
    same(rest[:2] + (rest.state,), whole[:2] + (whole.state,))
    same(np.concatenate([half.values, rest.values]), whole.values)
    assert np.abs(flat(whole.hparams)).max() == 0.45 and rest.state.step == 40
    none = run(half.hparams, 0, half.state)
    same((none.hparams, none.state), (half.hparams, half.state))
    assert none.values.shape == (0,)
    same(run(LAM, 5)[:3], run(LAM, 5)[:3])


def test_a_callback_sees_every_step_and_cannot_write():
    seen = []

    def look(t, h, w, value):
        seen.append((t, flat(h), flat(w), float(value)))
        with pytest.raises(ValueError, match="read-only"):
            h["x"][0] = 1.0

    r = hg.soba(PROBLEM, LAM, BATCHES, OUTER, 0.1, 0.1, 4, callback=look)
    assert [s[0] for s in seen] == [0, 1, 2, 3] and [s[3] for s in seen] == list(r.values)
    assert np.array_equal(seen[0][1], flat(LAM)) and np.array_equal(seen[0][2], np.ones(N))
    assert np.array_equal(seen[3][1], flat(hg.soba(PROBLEM, LAM, BATCHES, OUTER, 0.1, 0.1, 3).hparams))


@needs_emulator
@pytest.mark.parametrize("name", ["soba", "saba"])
def test_single_precision_and_a_pretended_gpu(name, monkeypatch):
    """On a GPU nothing waits but the check at the end."""

    def run(convert, n_steps=6):
        problem = hg.Bilevel(
            lambda w, h, a: 0.5 * a * hg.sum((w - h) ** 2), lambda w, h, c: hg.sum((w - c) ** 2), lambda h: convert(np.ones(3)), None
        )
        batches, targets = [1.0, 2.0], [convert(np.full(3, x)) for x in (0.5, 1.0, 1.5)]
        return getattr(hg, name)(problem, convert(np.zeros(3)), batches, targets, 0.1, 0.2, n_steps)

    host = run(lambda x: x.astype(np.float32))
    assert host.hparams.dtype == host.values.dtype == np.float32
    double = run(lambda x: x)
    np.testing.assert_allclose(host.hparams, double.hparams, rtol=1e-5)
    with pretended.gpu(monkeypatch) as machine:
        waits = []
        for n_steps in (2, 9):
            before = machine.waits
            run(sys.modules["cupy"].asarray, n_steps)
            waits.append(machine.waits - before)
        assert waits[0] == waits[1] <= 2
        device = run(sys.modules["cupy"].asarray)
        assert device.hparams.get() == pytest.approx(double.hparams, rel=1e-12)
        assert device.values.get() == pytest.approx(double.values, rel=1e-12)


def test_what_the_single_loop_refuses():
    def run(problem=PROBLEM, h=LAM, batches=BATCHES, targets=OUTER, rates=(0.1, 0.1), n_steps=3, f=hg.soba, **more):
        return f(problem, h, batches, targets, *rates, n_steps, **more)

    state = run().state
    for call, kind, text in (
        (lambda: run(h={**LAM, "lr": np.array(0.1)}), DifferentiationError, r"soba: hparams\['lr'\] is read by neither"),
        (lambda: run(rates=(-1, 0.1)), ArgumentError, "soba: outer_lr has -1, expected a number >= 0 or a function"),
        (lambda: run(rates=(0.1, None)), ArgumentError, "soba: inner_lr has None"),
        (lambda: run(n_steps=-1), ArgumentError, "soba: n_steps is -1, expected an integer >= 0"),
        (lambda: run(n_steps=1.5), ArgumentError, "soba: n_steps has 1.5, expected an integer"),
        (lambda: run(batches=[]), ArgumentError, r"soba: batches and outer_batches have the lengths \[0, 6\].*hg.full_batch"),
        (lambda: run(targets=iter(OUTER)), ArgumentError, "soba: batches is a list_iterator"),
        (lambda: run(f=hg.saba, state=state), ArgumentError, r"saba: state has tables of the shapes \[\]"),
        (
            lambda: run(f=hg.saba, batches=BATCHES[:2], state=run(f=hg.saba).state),
            ArgumentError,
            r"shapes \[\(4, 13\), \(6, 8\)\], expected \[\(2, 13\), \(6, 8\)\]",
        ),
        (
            lambda: run(h={"x": LAM["x"], "y": np.float32(0.5)}),
            DTypeError,
            r"soba: the weights and hparams have the dtypes \[.float32., .float64.\]",
        ),
        (lambda: run(project=lambda h: {**h, "x": h["x"][:1]}), ShapeError, r"soba: project: hparams\['x'\] has shape \(1,\)"),
        (lambda: run(hg.Bilevel(inner, outer, None, None, lambda w, h, t: 0.0)), ArgumentError, "soba: problem has a running_loss"),
    ):
        with pytest.raises(kind, match=text):
            call()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_number_that_is_not_finite_is_named_with_its_step():
    with pytest.raises(DifferentiationError, match=r"saba: w\['u'\] is no longer finite after step \d+.*step size"):
        hg.saba(PROBLEM, LAM, BATCHES, OUTER, 0.0, 1e9, 100)
    with pytest.raises(DifferentiationError, match=r"soba: hparams\['y'\] is no longer finite after step 2"):
        hg.soba(PROBLEM, LAM, BATCHES, OUTER, 0.1, 0.1, 9, project=Spoil())
    with pytest.raises(DifferentiationError, match=r"hoag: hparams\['x'\]|hoag: value"):
        hg.hoag(PROBLEM, LAM, FULL, hg.SGD(lr=1e300), 5, outer_batch=OUTER[0])
    wild = hg.Bilevel(inner, outer, PROBLEM.init, lambda h: hg.SGD(lr=1e200))
    with pytest.raises(DifferentiationError, match=r"hoag: the inner gradient\['u'\] is no longer finite after step 0"):
        hg.hoag(wild, LAM, FULL, hg.SGD(lr=0.1), 5, outer_batch=OUTER[0])


class Spoil:
    """A projection whose third result is no number."""

    calls = 0

    def __call__(self, h):
        self.calls += 1
        return {**h, "y": h["y"] * np.nan} if self.calls == 3 else h


# --- HOAG -----------------------------------------------------------------------------------------


def hoag(hparams=LAM, n_updates=60, optimizer=None, **more):
    return hg.hoag(PROBLEM, hparams, FULL, optimizer or hg.SGD(lr=0.5), n_updates, outer_batch=OUTER[0], **more)


def test_hoag_finds_the_minimiser_with_falling_tolerances():
    r = hoag(least=1e-12, decay=0.6)
    lam, w, v = minimiser(target=OUTER[0])
    np.testing.assert_allclose(flat(r.hparams), lam, atol=1e-10)
    np.testing.assert_allclose(flat(r.params), w, atol=1e-10)
    np.testing.assert_allclose(flat(r.state.solution), -v, atol=1e-10)
    goals = [max(0.1 * 0.6**k, 1e-12) for k in range(60)]
    assert all(g <= goal for g, goal in zip(r.gradient_norms, goals, strict=True)) and max(r.inner_steps) < 60
    assert r.gradient_norms[3] > 1e-4  # no closer than asked for
    assert r.stats.mode == "hoag" and r.stats.steps_run == sum(r.inner_steps) and r.values.shape == (60,)
    cold = hg.hoag(PROBLEM, r.hparams, FULL, hg.SGD(lr=0.5), 1, tolerance=1e-10, outer_batch=OUTER[0])
    warm = hoag(r.hparams, 1, state=r.state, tolerance=1e-10)
    assert warm.products[0] < cold.products[0] and warm.inner_steps[0] < cold.inner_steps[0]


@pytest.mark.parametrize("optimizer", [hg.SGD(lr=0.3, momentum=0.5), hg.Adam(lr=0.05)], ids=["momentum", "adam"])
def test_hoag_goes_on_with_the_same_bits(optimizer):
    seen = []
    box = lambda h: optree.tree_map(lambda x: np.clip(x, -0.8, 0.8), h)  # noqa: E731
    more = {"optimizer": optimizer, "project": box, "solver": lambda tolerance: hg.FixedPoint(0.4, tolerance)}
    whole = hoag(n_updates=12, callback=lambda k, h, w, value: seen.append((k, float(value))), **more)
    half = hoag(n_updates=6, **more)
    rest = hoag(half.hparams, 6, state=half.state, **more)
    same((rest.hparams, rest.params, rest.state), (whole.hparams, whole.params, whole.state))
    assert half.products + rest.products == whole.products and rest.state.update == 12
    assert seen == list(enumerate(whole.values))
    assert np.abs(flat(whole.hparams)).max() <= 0.8
    none = hoag(half.hparams, 0, state=half.state)
    same((none.hparams, none.state), (half.hparams, half.state))


def test_hoag_warns_once_where_it_does_not_reach_a_tolerance():
    with pytest.warns(UserWarning, match="hoag: 4 of 5 updates, the first of them 1, did not solve") as caught:
        hoag(n_updates=5, tolerance=3.0, decay=0.01, max_steps=3)
    assert len(caught) == 1


def test_what_hoag_refuses():
    for call, kind, text in (
        (lambda: hoag({**LAM, "lr": np.array(0.1)}), DifferentiationError, r"hoag: hparams\['lr'\] is read by neither"),
        (lambda: hoag(decay=1.0), ArgumentError, r"hoag: decay has 1.0, expected a number in \(0, 1\)"),
        (lambda: hoag(tolerance=0), ArgumentError, "hoag: tolerance has 0, expected a number > 0"),
        (lambda: hoag(least=-1.0), ArgumentError, "hoag: least has -1.0"),
        (lambda: hoag(max_steps=-1), ArgumentError, "hoag: max_steps is -1"),
        (lambda: hoag(optimizer=0.1), ArgumentError, "hoag: outer_optimizer is a float, expected an Optimizer"),
        (lambda: hoag(project=lambda h: 0.0), ArgumentError, "hoag: project: hparams has the structure"),
    ):
        with pytest.raises(kind, match=text):
            call()
