"""The passes that keep no run replay their losses: the same bits as without, and a loss that changes on the way is told."""

import sys

import numpy as np
import optree
import pytest

import hypergrad as hg
from hypergrad.errors import DifferentiationError

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((40, 6)).astype(np.float32), RNG.integers(0, 3, 40)
PARTS = [slice(i, i + 10) for i in range(0, 40, 10)]
LAM = {"weights": np.zeros(40, np.float32), "decay": np.float32(-1.0)}
VALIDATION = {"x": RNG.standard_normal((20, 6)).astype(np.float32), "y": RNG.integers(0, 3, 20)}


def classifier(extra=lambda: 1.0):
    def inner(w, h, batch):
        x, y, part = batch
        losses = hg.softmax_cross_entropy(x @ w["a"] + w["b"], y)
        return hg.mean(hg.sigmoid(h["weights"][part]) * losses) + extra() * hg.exp(h["decay"]) * hg.sum(w["a"] ** 2)

    def outer(w, h, batch=None):
        return hg.mean(hg.softmax_cross_entropy(VALIDATION["x"] @ w["a"] + w["b"], VALIDATION["y"]))

    start = {"a": np.zeros((6, 3), np.float32), "b": np.zeros(3, np.float32)}
    return hg.Bilevel(inner, outer, lambda h: start, lambda h: hg.SGD(lr=0.3))


BATCHES = [(X[p], Y[p], p) for p in PARTS]
FULL = (X, Y, slice(None))
SOLVED = {"a": 0.1 * RNG.standard_normal((6, 3)).astype(np.float32), "b": np.zeros(3, np.float32)}
ONE = hg.full_batch(None, 1)


def saba(problem, **more):
    return hg.saba(problem, LAM, BATCHES, ONE, 0.5, 0.3, 60, **more)


def hoag(problem, **more):
    return hg.hoag(problem, LAM, FULL, hg.Adam(lr=0.1), 12, max_steps=30, **more)


RUNS = {
    "soba": lambda p: hg.soba(p, LAM, BATCHES, ONE, 0.5, 0.3, 60),
    "saba": saba,
    "hoag": hoag,
    "CG": lambda p: hg.implicit(p, LAM, SOLVED, FULL, solver=hg.CG(tolerance=0.0, max_iterations=30)),
    "NormalCG": lambda p: hg.implicit(p, LAM, SOLVED, FULL, solver=hg.NormalCG(tolerance=0.0, max_iterations=30)),
    "FixedPoint": lambda p: hg.implicit(p, LAM, SOLVED, FULL, solver=hg.FixedPoint(0.1, tolerance=0.0, max_iterations=40)),
}


def same(a, b):
    for x, y in zip(optree.tree_leaves(a), optree.tree_leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def numbers(r):
    return r.hparams if hasattr(r, "hparams") else r.grad, r.params


@pytest.fixture
def without_replays(monkeypatch):
    def run(f, *args, **more):
        with monkeypatch.context() as patch:
            patch.setattr(sys.modules["hypergrad.passes.point"], "LEAST_STEPS", 10**9)
            r = f(*args, **more)
        assert r.stats.program.startswith("none")
        return r

    return run


@pytest.mark.filterwarnings("ignore:(hoag|implicit). ")
@pytest.mark.parametrize("name", RUNS)
def test_the_bits_are_those_of_calls_that_are_not_replayed(name, without_replays):
    problem = classifier()
    for _ in range(2):  # the second run finds the programs of the first
        r = RUNS[name](problem)
        assert not r.stats.program.startswith("none"), r.stats.program
        same(numbers(r), numbers(without_replays(RUNS[name], problem)))


@pytest.mark.filterwarnings("ignore:(hoag|implicit). ")
@pytest.mark.parametrize("name", RUNS)
def test_none_is_replayed_where_fusion_is_switched_off(name):
    with hg.fusion(False):
        assert RUNS[name](classifier()).stats.program.startswith("none")


@pytest.mark.filterwarnings("ignore:hoag. ")
@pytest.mark.parametrize("loop,late", [(saba, 50), (hoag, 9)])
def test_a_number_that_a_callback_changes_is_told(loop, late, without_replays):
    """At the end; unless each minibatch was seen with several numbers, so that recordings differ and nothing is replayed."""

    def run(change):
        strength = [1.0]

        def callback(t, hparams, w, value):
            strength[0] = change(t)

        return loop(classifier(lambda: strength[0]), callback=callback)

    if loop is saba:
        same(numbers(run(lambda t: 0.99**t)), numbers(without_replays(run, lambda t: 0.99**t)))
    without_replays(run, lambda t: 1.0 if t < late else 0.5)
    with pytest.raises(DifferentiationError, match=rf"{loop.__name__}: the .*inner_loss is another function at the last step .* hg.fusion"):
        run(lambda t: 1.0 if t < late else 0.5)


def test_an_array_that_a_callback_overwrites_is_read_again(without_replays):
    """Also where an earlier run of the same loss has read another array with the same elements."""
    problem = classifier()
    saba(problem)

    def run():
        VALIDATION["x"], before = VALIDATION["x"].copy(), VALIDATION["x"]

        def callback(t, hparams, w, value):
            if t > 30:  # until then it has the elements that the earlier run's has
                VALIDATION["x"] *= np.float32(0.9)

        try:
            return saba(problem, callback=callback)
        finally:
            VALIDATION["x"] = before

    r = run()
    assert not r.stats.program.startswith("none")
    same(numbers(r), numbers(without_replays(run)))


@pytest.mark.filterwarnings("ignore:implicit. ")
def test_a_later_run_takes_the_programs_of_an_earlier_one(monkeypatch):
    replay, made = sys.modules["hypergrad.replay"], []
    program = replay.Program
    monkeypatch.setattr(replay, "Program", lambda *args, **more: made.append(1) or program(*args, **more))
    problem = classifier()
    for count in (1, 1):
        RUNS["FixedPoint"](problem)
        assert len(made) == count
