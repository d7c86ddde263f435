"""The plan: the passes' own counts, predicted bytes that are measured, a choice that fits, and a refusal that says what would."""

import gc
import sys
import tracemalloc

import numpy as np
import optree
import pinned
import pretended
import pytest
from places import needs_emulator

import hypergrad as hg
from hypergrad.errors import ArgumentError

pytestmark = pytest.mark.usefixtures("hasty_plans")


def problem(n_steps=16, size=20_000, optimizer=None, n_hparams=3):
    rng = np.random.default_rng(0)
    start, goal = rng.standard_normal(size), rng.standard_normal(size)

    def inner(w, h, batch):
        return 0.5 * hg.sum((w - goal) ** 2) * hg.exp(h["scale"][0]) + hg.sum(h["scale"] ** 2)

    p = hg.Bilevel(inner, lambda w, h: hg.sum(w**2), lambda h: start, optimizer or (lambda h: hg.SGD(lr=h["lr"], momentum=0.9)))
    return p, {"lr": np.array(0.1), "scale": np.zeros(n_hparams - 1)}, hg.full_batch(None, n_steps)


def measured(plan, route):
    plan.run(route)  # which fills the lists of free objects that Python keeps, as the plan's own runs did
    tracemalloc.start()
    r = plan.run(route)
    tracemalloc.stop()
    return r


@pytest.mark.parametrize("n_hparams", [2, 40])
def test_every_route_gives_what_the_plan_says(n_hparams):
    args = problem(n_hparams=n_hparams)
    exact = hg.reverse(*args)
    plan = hg.plan(*args, memory_bytes=10**9)
    names = {r.name for r in plan.routes}
    assert {"reverse, all", "reverse, sqrt", "reverse, reversible", "reverse, host", "forward, all directions"} <= names
    for route in plan.routes:
        r = measured(plan, route)
        for a, b in zip(optree.tree_leaves(r.grad), optree.tree_leaves(exact.grad), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
        assert r.stats.mode == route.call and r.stats.steps_rerun == route.steps_rerun and r.stats.states_held == route.states, route
        assert r.stats.peak_bytes == pytest.approx(route.peak_bytes, rel=0.05), route
        if route.options != {"checkpoints": "reversible"}:  # how many bits its later steps will need is an estimate
            assert r.stats.state_bytes == route.state_bytes


def noisy(n_steps, size):
    """A goal that moves with the batch, so that gradients stay as large as they are."""
    goals = np.random.default_rng(1).standard_normal((n_steps, size))

    def inner(w, h, batch):
        return 0.5 * hg.sum((w - batch) ** 2)

    p = hg.Bilevel(inner, lambda w, h: hg.sum(w**2), lambda h: np.zeros(size), lambda h: hg.SGD(lr=h["lr"], momentum=h["momentum"]))
    return p, {"lr": np.array(0.05), "momentum": np.array(0.9)}, list(goals)


@pytest.mark.parametrize("n_steps,size", [(25, 20_000), (30, 20_000), (200, 1_000)])
def test_bytes_of_runs_that_are_longer_than_those_the_plan_measures(n_steps, size):
    """A schedule with few segments, and many steps of which much is noted in all: losses, places in a file, residues that grow smaller."""
    args = noisy(n_steps, size)
    plan = hg.plan(*args)
    found = {r.name: measured(plan, r).stats.peak_bytes / r.peak_bytes for r in plan.routes}
    assert len(found) == 6 and all(0.95 <= ratio <= 1.05 for ratio in found.values()), found


def measured_peak(run):
    run()
    gc.collect()  # which empties the lists
    tracemalloc.start()
    peak = run().stats.peak_bytes
    tracemalloc.stop()
    return peak


def test_steps_leave_no_tuples_behind():
    """Python keeps up to 2,000 free tuples of each length. A step gives back as many as it takes, so that no bytes grow until then."""
    args = noisy(300, 10)
    few, many = (measured_peak(lambda n=n: hg.reverse(*args[:2], args[2][:n], checkpoints=20)) for n in (100, 300))
    assert (many - few) / 200 < 600  # bytes of a step: the loss in its Tensor, its place in lists, and what NumPy leaves


def test_the_choice_fits():
    args = problem(n_steps=40, n_hparams=40)
    whole = hg.plan(*args)
    least = min(r.peak_bytes for r in whole.routes)
    most = max(r.peak_bytes for r in whole.routes)
    assert whole.choice is whole.routes[0]
    for budget in (int(1.2 * least), (least + most) // 2, 2 * most):
        plan = hg.plan(*args, memory_bytes=budget)
        assert plan.choice.peak_bytes <= budget
        assert all(r.seconds >= plan.choice.seconds for r in plan.routes if r.peak_bytes <= budget)
        assert measured(plan, None).stats.peak_bytes <= 1.1 * budget
        states = [r for r in plan.routes if r.options.get("checkpoints") not in ("all", "sqrt", "host", "reversible", None)]
        assert states  # also the number of states that the budget has room for


def test_a_budget_that_nothing_fits():
    with pytest.raises(ArgumentError, match=r"plan: memory_bytes is 1000, expected at least \d{6,}, what '(reverse|forward), .*' needs"):
        hg.plan(*problem(), memory_bytes=1000)


def test_what_cannot_be_undone_has_no_such_route():
    for optimizer in (lambda h: hg.Adam(lr=h["lr"]), lambda h: hg.SGD(lr=h["lr"])):
        plan = hg.plan(*problem(5, 10, optimizer))
        assert not any(r.name == "reverse, reversible" for r in plan.routes)


@pytest.mark.parametrize("n_steps", [1, 2, 3])
def test_few_steps(n_steps):
    plan = hg.plan(*problem(n_steps, 50))
    assert plan.n_steps == n_steps and plan.n_hparams == 3
    assert np.isfinite([r.seconds for r in plan.routes]).all()
    assert plan.run().value == hg.reverse(*problem(n_steps, 50)).value


def test_bad_arguments():
    p, h, _ = problem()
    with pytest.raises(ArgumentError, match="plan: batches is empty"):
        hg.plan(p, h, [])
    with pytest.raises(ArgumentError, match="plan: memory_bytes has 0"):
        hg.plan(*problem(), memory_bytes=0)


def test_it_is_printed_as_a_table():
    plan = hg.plan(*problem(9, 50), memory_bytes=10**9)
    lines = str(plan).splitlines()
    assert lines[0] == "T = 9 steps, N = 3 hyperparameters, at most 1 GB"
    assert len(lines) == 2 + len(plan.routes) and len({len(x.rstrip()) for x in lines[1:]}) == 1
    (chosen,) = [x for x in lines if x.startswith("->")]
    assert plan.choice.name in chosen


@needs_emulator
def test_on_a_pretended_gpu(monkeypatch):
    with pretended.gpu(monkeypatch):
        pinned.Copies(monkeypatch)
        start = sys.modules["cupy"].asarray(np.ones(300))
        p = hg.Bilevel(
            lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum(w), lambda h: start, lambda h: hg.SGD(lr=0.1, momentum=0.9)
        )
        plan = hg.plan(p, sys.modules["cupy"].asarray(np.array(0.5)), hg.full_batch(None, 60))
        routes = {r.name: r for r in plan.routes}
        for route in routes.values():
            r = measured(plan, route)
            assert float(r.value) != 0 and r.stats.states_held == route.states
            assert r.stats.peak_device_bytes == pytest.approx(route.peak_bytes, rel=0.05), route
        assert routes["reverse, host"].peak_bytes < routes["reverse, all"].peak_bytes / 2
