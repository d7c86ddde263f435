"""Schedules: pinned sequences, the promised number of states, and the fewest re-runs that any schedule allows."""

from functools import cache

import numpy as np
import pytest

from hypergrad.errors import ArgumentError
from hypergrad.passes import schedule

POLICIES = ["all", "sqrt", "reversible", 1, 2, 3, 4, 7, 30]


def play(n_steps, checkpoints, last=None):
    """Follow a schedule by its own rules; (most states held, steps run again)."""
    plan = schedule.parse(checkpoints, n_steps, last=last)
    stored, residues = set(plan.first_run()), set(plan.undone)
    held, again, current, left = len(stored), 0, None, n_steps
    for action, t in plan.backward():
        if action == "load":
            assert t in stored
            current = t
        elif action == "step":
            assert current == t
            current, again = t + 1, again + 1
        elif action == "undo":
            residues.remove(t)
            assert current == t + 1
            current, again = t, again + 1
        elif action == "store":
            assert current == t and t not in stored
            stored.add(t)
            held = max(held, len(stored))
        elif action == "back":
            left -= 1
            assert current == t == left  # each state once, in descending order
        else:
            assert action == "free"
            stored.remove(t)
    assert left == max(0, n_steps - (n_steps if last is None else last)) and not stored and not residues
    return held, again


@cache
def fewest_visits(n, c):
    """Fewest steps to make each of n states current in descending order; the first is stored, c - 1 more may be."""
    if n <= 1:
        return 0
    if c == 1:
        return n * (n - 1) // 2
    return min(m + fewest_visits(n - m, c - 1) + fewest_visits(m, c) for m in range(1, n))


@cache
def fewest_reruns(n, c):
    """The same where the first run comes past every state anyway and stores c of them for nothing."""
    if n <= 1:
        return 0
    if c == 1:
        return n * (n - 1) // 2
    return min(fewest_visits(m, c) + fewest_reruns(n - m, c - 1) for m in range(1, n))


def written(n_steps, checkpoints):
    """A schedule as text: the states stored in the first run, then l(oad) s(tep) S(tore) b(ack) f(ree)."""
    plan = schedule.parse(checkpoints, n_steps)
    letters = {"load": "l", "step": "s", "store": "S", "back": "b", "free": "f"}
    first = ",".join(str(t) for t in sorted(plan.first_run()))
    return first + ": " + " ".join(f"{letters[a]}{t}" for a, t in plan.backward())


@pytest.mark.parametrize(
    ("n_steps", "checkpoints", "expected"),
    [
        (0, "all", ": "),
        (0, 3, ": "),
        (1, "sqrt", "0: l0 b0 f0"),
        (1, 1, "0: l0 b0 f0"),
        (3, "all", "0,1,2: l2 b2 f2 l1 b1 f1 l0 b0 f0"),
        (5, "sqrt", "0,3,4: l4 b4 f4 l3 b3 f3 l0 s0 S1 s1 S2 l2 b2 f2 l1 b1 f1 l0 b0 f0"),
        (3, 1, "0: l0 s0 s1 b2 l0 s0 b1 l0 b0 f0"),
        (4, 2, "0,2: l2 s2 b3 l2 b2 f2 l0 s0 S1 l1 b1 f1 l0 b0 f0"),
        (5, 2, "0,3: l3 s3 b4 l3 b3 f3 l0 s0 S1 l1 s1 b2 l1 b1 f1 l0 b0 f0"),
        (5, 3, "0,1,3: l3 s3 b4 l3 b3 f3 l1 s1 S2 l2 b2 f2 l1 b1 f1 l0 b0 f0"),
        (2, 3, "0,1: l1 b1 f1 l0 b0 f0"),
    ],
)
def test_exact_sequence(n_steps, checkpoints, expected):
    assert written(n_steps, checkpoints) == expected


def test_every_schedule_visits_each_state_once_and_holds_what_it_promises():
    for n_steps in [*range(70), 100, 333]:
        root = schedule.isqrt(max(n_steps - 1, 0)) + 1  # ceil(sqrt(n_steps))
        limit = {"all": n_steps, "reversible": 2, "sqrt": 2 * root}
        for checkpoints in POLICIES:
            held, again = play(n_steps, checkpoints)
            plan = schedule.parse(checkpoints, n_steps)
            assert (plan.states, plan.reruns, plan.n_steps) == (held, again, n_steps), (n_steps, checkpoints)
            assert held <= limit.get(checkpoints, checkpoints), (n_steps, checkpoints)
            if checkpoints == "all":
                assert again == 0
            if checkpoints == "sqrt":
                assert again < max(n_steps, 1)


def test_integer_policy_runs_the_fewest_steps_again():
    for n_steps in range(1, 90):
        for c in range(1, min(n_steps, 13)):
            held, again = play(n_steps, c)
            assert again == schedule.Binomial(n_steps, c).reruns == fewest_reruns(n_steps, c), (n_steps, c)
            assert held == c


def test_more_states_never_run_more_steps():
    counts = [schedule.Binomial(500, c).reruns for c in range(1, 500)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 500 * 499 // 2 and counts[-1] == 1


@pytest.mark.parametrize(("n_steps", "c"), [(5000, 1500), (20_000, 2)])
def test_deep_schedules_do_not_recurse(n_steps, c):
    held, again = play(n_steps, c)
    assert held == c and again == schedule.Binomial(n_steps, c).reruns


def test_sqrt_of_100000_steps_holds_at_most_700():
    held, again = play(100_000, "sqrt")
    assert held == 631 and again == 99_540


@pytest.mark.parametrize("checkpoints", [0, -1, True, 2.0, "root", None, (1,)])
def test_unknown_policies_are_refused(checkpoints):
    with pytest.raises(ArgumentError, match="expected 'all', 'sqrt', 'reversible', 'host', a pathlib.Path or an integer >= 1"):
        schedule.parse(checkpoints, 10)


def test_numpy_integers_are_integers():
    assert schedule.parse(np.int64(3), 10) == schedule.Binomial(10, 3)
    assert schedule.parse(np.int32(30), 10) == schedule.All(10)


@pytest.mark.parametrize("checkpoints", POLICIES)
def test_the_last_steps_alone(checkpoints):
    """A truncated schedule costs what the whole one costs for as many steps."""
    for last in (1, 2, 9, 30, 31):
        plan = schedule.parse(checkpoints, 30, last=last)
        assert play(30, checkpoints, last) == play(min(last, 30), checkpoints) == (plan.states, plan.reruns)
