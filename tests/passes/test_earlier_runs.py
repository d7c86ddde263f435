"""Runs that take the programs of earlier runs of the same inner loss: the same bits, whatever has changed since."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from test_replay import OPTIMIZERS, H, Minibatches, check, eagerly, network, network_loss, no_earlier_runs, same  # noqa: F401

import hypergrad as hg
import hypergrad.replay
from hypergrad.meter import Meter
from hypergrad.replay import Replays


@pytest.fixture
def recordings(monkeypatch):
    """Of each recording that is made, a line."""
    made = []
    record = Replays._record
    monkeypatch.setattr(Replays, "_record", lambda self, *args: made.append("recorded") or record(self, *args))
    return made


def test_later_runs_of_a_function_record_less(recordings, monkeypatch):
    problem, batches = network(OPTIMIZERS["momentum"]), Minibatches()
    check(monkeypatch, lambda: hg.reverse(problem, H, batches))
    first = len(recordings)
    other = {**H, "lr": np.float64(0.05)}
    recordings.clear()
    check(monkeypatch, lambda: hg.reverse(problem, other, batches))
    assert 0 < len(recordings) < first
    hg.release_memory()
    recordings.clear()
    check(monkeypatch, lambda: hg.reverse(problem, other, batches))
    assert len(recordings) == first


def test_programs_of_earlier_runs_have_a_limit(recordings, monkeypatch):
    monkeypatch.setattr(hypergrad.replay, "MOST_SHARED_BYTES", 0)
    problem, batches = network(OPTIMIZERS["momentum"]), Minibatches()
    hg.reverse(problem, H, batches)
    first = len(recordings)
    hg.reverse(problem, H, batches)
    assert len(recordings) == 2 * first


@pytest.mark.parametrize("what", ["a number", "an array's elements", "the array", "the optimiser", "what is computed"])
@pytest.mark.parametrize("run", [hg.reverse, hg.forward])
def test_what_has_changed_since_the_earlier_run_counts(run, what, monkeypatch):
    """Nothing of an earlier run is used that this one does not record in the same way."""
    now = {"number": 1.0, "array": np.linspace(0.5, 1.0, 5), "f": hg.tanh}

    def loss(w, h, batch):
        hidden = now["f"](hg.linear(batch[0], w["a"], w["b"])) * now["array"]
        fit = now["number"] * hg.mean(hg.linear_cross_entropy(hidden, w["c"], w["d"], batch[1]))
        return fit + hg.sum(h["l2"] * hg.sum(w["a"] ** 2, axis=1))

    changes = {
        "a number": lambda: now.update(number=now["number"] + 1.0),
        "an array's elements": lambda: np.multiply(now["array"], 0.5, out=now["array"]),
        "the array": lambda: now.update(array=now["array"] + 1.0),
        "the optimiser": lambda: now.update(optimizer=OPTIMIZERS["nesterov"]),
        "what is computed": lambda: now.update(f=hg.sigmoid),
    }
    for i in range(4):
        if i % 2:
            changes[what]()
        check(monkeypatch, lambda: run(network(now.get("optimizer", OPTIMIZERS["momentum"]), loss), H, Minibatches()))


def test_threads_that_run_one_function_do_not_share_an_arena(monkeypatch):
    problem, batches = network(OPTIMIZERS["adam"]), Minibatches()
    rates = [np.float64(x) for x in (0.1, 0.05, 0.02, 0.01)]
    expected = [eagerly(monkeypatch, lambda x=x: hg.reverse(problem, {**H, "lr": x}, batches)) for x in rates]
    hg.reverse(problem, H, batches)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = pool.map(lambda x: hg.reverse(problem, {**H, "lr": x}, batches), rates)
            assert all(same(a, b) for a, b in zip(found, expected, strict=True))


def test_a_function_is_let_go_with_its_programs():
    def problem():
        return network(OPTIMIZERS["sgd"], lambda *args: network_loss(*args))

    functions = []
    for _ in range(20):
        p = problem()
        hg.reverse(p, H, Minibatches())
        functions.append(weakref.ref(p.inner_loss))
        del p
    gc.collect()
    assert not any(f() is not None for f in functions)


def test_memory_that_is_traced_is_not_that_of_earlier_runs(recordings):
    problem, batches = network(OPTIMIZERS["momentum"]), Minibatches()

    def peak():
        with Meter(memory=True):
            return hg.reverse(problem, H, batches).stats.peak_bytes

    hg.reverse(problem, H, batches)
    first = len(recordings)
    peaks = [peak() for _ in range(3)]
    assert len(recordings) == 4 * first and max(peaks) - min(peaks) < 2**14
