"""The plan's bytes are those of the passes: every pass, over shapes, optimisers and numbers of steps beyond those that the plan runs."""

import sys
import tracemalloc

import numpy as np
import pytest

import hypergrad as hg
from hypergrad.passes import replay

pytestmark = pytest.mark.usefixtures("hasty_plans")


def momentum(h):
    return hg.SGD(lr=h["lr"], momentum=0.9)


def network(n_steps, widths, optimizer=momentum, n_weighted=6, n_rows=40):
    """A classifier whose examples have weights, trained on minibatches."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((300, widths[0])).astype(np.float32), rng.integers(0, widths[-1], 300)
    start = [rng.standard_normal((m, n)).astype(np.float32) / m for m, n in zip(widths, widths[1:], strict=False)]
    rows = np.random.default_rng(1).integers(0, 200, (n_steps, n_rows))
    batches = [(x[r], y[r], r) for r in rows]

    def losses(w, x, y):
        for weights in w[:-1]:
            x = hg.tanh(x @ weights)
        return hg.softmax_cross_entropy(x @ w[-1], y)

    def inner(w, h, batch):
        x, y, rows = batch
        return hg.mean(hg.take(hg.sigmoid(h["weights"]), rows % n_weighted) * losses(w, x, y))

    hparams = {"lr": np.float32(0.1), "weights": np.zeros(n_weighted, np.float32)}
    return hg.Bilevel(inner, lambda w, h: hg.mean(losses(w, x[200:], y[200:])), lambda h: start, optimizer), hparams, batches


def assert_bytes_as_planned(args, least_routes, only="", **more):
    plan, found = hg.plan(*args, **more), {}
    for route in [r for r in plan.routes if only in r.name]:
        tracemalloc.start()
        found[route.name] = plan.run(route).stats.peak_bytes / route.peak_bytes
        tracemalloc.stop()
    assert len(found) >= least_routes and all(0.95 <= ratio <= 1.05 for ratio in found.values()), found


def scheduled(h):
    return hg.SGD(lr=hg.schedule(h["lr"] * np.linspace(1.0, 0.1, 30, dtype=np.float32)), momentum=0.9)


@pytest.mark.parametrize("optimizer,least_routes", [(scheduled, 6), (lambda h: hg.Adam(lr=h["lr"]), 5)])
def test_bytes_of_every_pass(optimizer, least_routes):
    assert_bytes_as_planned(network(30, (60, 8, 5), optimizer), least_routes)


def test_bytes_where_states_are_large():
    """Then it counts which of them are held at the peak: those of the end of the first run, or those that are stored again."""
    assert_bytes_as_planned(network(49, (300, 200, 5), n_rows=10), 7, memory_bytes=10_000_000)


def test_results_that_only_shorter_runs_would_keep(monkeypatch):
    """All steps of a run share the room for results which are kept. The plan's short runs keep no more than their share of the long one."""
    args = network(60, (160, 5, 3), n_rows=200)  # a step would keep 200 x 5 numbers of four bytes
    assert hg.reverse(*args).stats.kept_bytes > 0
    monkeypatch.setattr(replay, "MOST_KEPT_BYTES", 60 * 3900)
    assert hg.reverse(*args).stats.kept_bytes == 0
    monkeypatch.setattr(sys.modules["hypergrad.plan"], "_MORE_STEPS", 1)
    assert_bytes_as_planned(args, 1, "reverse, all")
