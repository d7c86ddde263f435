"""The actions of a run are those that it takes, and what they hold is let go when it is no longer read."""

import tracemalloc
import weakref

import numpy as np
import pytest

import hypergrad as hg
from hypergrad.bilevel import Stats
from hypergrad.passes import schedule
from hypergrad.passes.actions import ALIKE, actions
from hypergrad.passes.reverse import transposed_run
from hypergrad.replay import Replays
from hypergrad.tape import Tensor

POLICIES = ["all", "sqrt", "host", "reversible", 1, 3, 7]


class Told(Stats):
    """Notes what it is told."""

    def __init__(self):
        super().__init__("told")
        self.actions = [("start", 0)]

    def began(self, action, t):
        self.actions.append((action, t))


def problem(size):
    return hg.Bilevel(
        lambda w, h, b: 0.5 * hg.sum((w - b) ** 2),
        lambda w, h: hg.sum(w**2),
        lambda h: np.zeros(size),
        lambda h: hg.SGD(lr=h, momentum=0.9),
    )


@pytest.mark.parametrize("n_steps", [1, 2, 5, 17])
@pytest.mark.parametrize("checkpoints", POLICIES)
def test_a_run_tells_its_actions_in_their_order(n_steps, checkpoints):
    told, batches = Told(), np.random.default_rng(0).standard_normal((n_steps, 3))
    transposed_run("reverse", problem(3), np.array(0.1), batches, told, checkpoints=checkpoints, state=None)
    assert told.actions == [(a.kind[0], a.t) for a in actions(schedule.parse(checkpoints, n_steps), n_steps)]


@pytest.mark.parametrize("n_steps", [1, 2, 5, 17, 100])
@pytest.mark.parametrize("checkpoints", POLICIES)
def test_states_of_actions(n_steps, checkpoints):
    """As many as the schedule says, of which the first and the last are not counted."""
    plan = schedule.parse(checkpoints, n_steps)
    found = list(actions(plan, n_steps))
    held = [a.stored + a.again for a in found if a.kind[0] in ("first", "store", "load", "back")]
    assert max(held) in (plan.states - 1, plan.states) if checkpoints != "reversible" else max(held) <= 1
    assert min(a.stored for a in found) == min(a.again for a in found) == 0 and found[-1][2:] == (0, 0)
    for name in {a.kind[0] for a in found}:
        numbers = [a.kind[1] for a in found if a.kind[0] == name]
        assert numbers == [min(i, ALIKE) for i in range(len(numbers))]


@pytest.mark.parametrize("checkpoints", [1, "reversible"])
def test_a_step_back_leaves_no_weights_behind(checkpoints):
    """While a step is run, undone or transposed there are the weights of its two ends, and the first or the last ones."""
    seen, most = {}, 0

    def inner(w, h, b):
        nonlocal most
        seen[id(w.value)] = weakref.ref(w.value)
        most = max(most, sum(r() is not None for r in seen.values()))
        return 0.5 * hg.sum((w - b) ** 2)

    batches = np.random.default_rng(0).standard_normal((9, 3))
    p = problem(3)
    hg.reverse(hg.Bilevel(inner, p.outer_loss, p.init, p.optimizer), np.array(0.1), batches, checkpoints=checkpoints)
    assert most == 3


@pytest.mark.parametrize("n_leaves", [15, 16, 17])
def test_replays_leave_no_tuples_behind(n_leaves):
    """Python 3.11 keeps freed tuples of 20 elements, but makes new ones all the same."""
    replays, tree = Replays(), [Tensor(np.full(2, float(i))) for i in range(n_leaves)]

    def call():
        return replays.call("sum", lambda number, tree: sum(tree[1:], tree[0]), 0, tree)

    for _ in range(10):
        call()
    assert "calls" in replays.program
    tracemalloc.start()
    call()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(100):
        call()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert after - before < 5000
