"""Which states of the inner run are stored, and in which order they are run again.

A schedule is two things: the set of steps whose state the first run stores, and the sequence of actions by which the
backward run visits every state from T-1 down to 0. State t is the one before step t.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import comb, isqrt
from numbers import Integral
from typing import Any

from ..errors import ArgumentError

Action = tuple[str, int]
"""("load", t): continue from stored state t. ("step", t): run step t. ("store", t): store the state before step t,
which is the current one. ("back", t): pull the cotangent through step t, the current state being t. ("free", t): drop
stored state t."""


def parse(checkpoints: Any, n_steps: int) -> int | str:
    """The checkpoint policy, validated.

    Raises: ArgumentError unless `checkpoints` is "all", "sqrt" or an integer >= 1.
    """
    if isinstance(checkpoints, str) and checkpoints in ("all", "sqrt"):
        return checkpoints if n_steps > 1 else "all"
    if isinstance(checkpoints, Integral) and not isinstance(checkpoints, bool) and int(checkpoints) >= 1:
        return "all" if int(checkpoints) >= n_steps else int(checkpoints)
    raise ArgumentError(f"reverse: checkpoints has {checkpoints!r}, expected 'all', 'sqrt' or an integer >= 1 because at least "
                        "the first state is needed to run again; choose one of these")


def first_run(n_steps: int, policy: int | str) -> set[int]:
    """The states that the first run stores."""
    if policy == "all":
        return set(range(n_steps))
    if isinstance(policy, int):
        return set(_descent(n_steps, policy))
    stride = _stride(n_steps)
    last = (n_steps - 1) // stride * stride
    return set(range(0, last, stride)) | set(range(last, n_steps))


def backward(n_steps: int, policy: int | str) -> Iterator[Action]:
    """The actions of the backward run, the states of `first_run` being stored.

    "all": T states, no step run again.
    "sqrt": a state every ceil(sqrt(T)) steps, and the segment being visited: at most 2 ceil(sqrt(T)) states, fewer than
        T steps run again.
    c: at most c states, with the fewest steps run again that c states allow.
    Source: Griewank & Walther 2000, ACM TOMS 26(1), Algorithm 799 (revolve), for c.
    """
    if isinstance(policy, int):
        yield from _binomial(n_steps, policy)
        return
    stride = 1 if policy == "all" else _stride(n_steps)
    for start in reversed(range(0, n_steps, stride)):
        stop = min(start + stride, n_steps)
        if stop < n_steps and stop - start > 1:  # the last segment's states are still there from the first run
            yield "load", start
            for t in range(start, stop - 1):
                yield "step", t
                yield "store", t + 1
        for t in reversed(range(start, stop)):
            yield "load", t
            yield "back", t
            yield "free", t


def _stride(n_steps: int) -> int:
    return max(1, isqrt(max(n_steps - 1, 0)) + 1)


def _descent(n_steps: int, c: int) -> list[int]:
    """The states that the first run stores under policy c, in ascending order."""
    starts, t = [], 0
    while c and t < n_steps:
        starts.append(t)
        # The outer objective is one more step behind the last: only its state is current when the first run ends.
        t = t + _split(n_steps + 1 - t, c) if c > 1 else n_steps
        c -= 1
    return starts


def _binomial(n_steps: int, c: int) -> Iterator[Action]:
    """Visit n_steps-1 .. 0 with c states, those of `_descent` being stored."""
    starts = _descent(n_steps, c)
    # Segments still to visit, the next one last: (start, stop, number of states for it), its start being stored.
    # A stack and no recursion: the nesting may be as deep as c, or as the square root of 2T.
    pending = [(t, stop, c - i) for i, (t, stop) in enumerate(zip(starts, [*starts[1:], n_steps], strict=True))]
    while pending:
        start, stop, c = pending.pop()
        while stop - start > 1 and c > 1:
            middle = start + _split(stop - start, c)
            yield "load", start
            for t in range(start, middle):
                yield "step", t
            yield "store", middle
            pending.append((start, middle, c))
            start, c = middle, c - 1
        for target in reversed(range(start, stop)):
            yield "load", start
            for t in range(start, target):
                yield "step", t
            yield "back", target
        yield "free", start


def _repeats(length: int, c: int) -> tuple[int, int]:
    """The smallest r with binom(c + r, c) >= length, and that binomial: how often a step is run at most."""
    r, reach = 0, 1
    while reach < length:
        r += 1
        reach = reach * (c + r) // r
    return r, reach


def reruns(n_steps: int, c: int) -> int:
    """The steps that policy c runs again, the fewest that c states allow.

    Griewank & Walther's count r*l - binom(c + r, c + 1), r being the smallest with binom(c + r, c) >= l, is that of every
    step run, for l = n_steps + 1 (the outer objective is the last); the first run makes n_steps of them.
    """
    r, reach = _repeats(n_steps + 1, c)
    return r * (n_steps + 1) - reach * r // (c + 1) - n_steps


def _split(length: int, c: int) -> int:
    """How far to go before the next state is stored: the first choice with the fewest steps in all.

    With r as in `reruns`, each part must stay within the lengths for which r repeats (r - 1 for the part that is visited
    later, which the way there runs once more) are the fewest: at least binom(c + r - 2, c) here, at most
    binom(c + r - 1, c - 1) behind.
    """
    r, _ = _repeats(length, c)
    return max(1, comb(c + r - 2, c), length - comb(c + r - 1, c - 1))
