"""Which states of the inner run are stored, and in which order they are run again.

A schedule is two things: the set of steps whose state the first run stores, and the sequence of actions by which the
backward run visits every state from T-1 down to 0. State t is the one before step t.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from math import isqrt
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
    if checkpoints in ("all", "sqrt"):
        return str(checkpoints) if n_steps > 1 else "all"
    if isinstance(checkpoints, int) and not isinstance(checkpoints, bool) and checkpoints >= 1:
        return "all" if checkpoints >= n_steps else checkpoints
    raise ArgumentError(f"reverse: checkpoints has {checkpoints!r}, expected 'all', 'sqrt' or an integer >= 1 because at least "
                        "the first state is needed to run again; choose one of these")


def first_run(n_steps: int, policy: int | str) -> set[int]:
    """The states that the first run stores."""
    if policy == "all":
        return set(range(n_steps))
    if isinstance(policy, int):
        return set(_descent(0, n_steps, policy))
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
        yield from _binomial(0, n_steps, policy, stored=True)
        return
    stride = 1 if policy == "all" else _stride(n_steps)
    for start in reversed(range(0, n_steps, stride)):
        stop = min(start + stride, n_steps)
        if stop < n_steps:  # the last segment's states are still there from the first run
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


def _descent(start: int, stop: int, c: int) -> Iterator[int]:
    """The states stored on the way down to the end: `start`, then the split of what remains, and so on."""
    while c and start < stop:
        yield start
        c, start = c - 1, start + (_split(stop - start, c) if stop - start > 1 and c > 1 else stop)


def _binomial(start: int, stop: int, c: int, *, stored: bool) -> Iterator[Action]:
    """Visit stop-1 .. start with c states, state `start` being one of them and stored. `stored`: so are its splits."""
    if stop - start > 1 and c > 1:
        middle = start + _split(stop - start, c)
        if not stored:
            yield "load", start
            for t in range(start, middle):
                yield "step", t
            yield "store", middle
        yield from _binomial(middle, stop, c - 1, stored=stored)
        yield from _binomial(start, middle, c, stored=False)
        return
    for target in reversed(range(start, stop)):
        yield "load", start
        for t in range(start, target):
            yield "step", t
        yield "back", target
    yield "free", start


@cache
def reruns(length: int, c: int) -> int:
    """Fewest steps to run before every one of `length` states has been current once in descending order, the first
    being stored and c - 1 more allowed: r*length - binom(c + r, c + 1), r being the smallest with binom(c + r, c) >= length."""
    if length <= 1:
        return 0
    r, reach = 0, 1  # reach = binom(c + r, c)
    while reach < length:
        r += 1
        reach = reach * (c + r) // r
    return r * length - reach * r // (c + 1)


def _split(length: int, c: int) -> int:
    """How far to go before the next state is stored: the first choice with the fewest steps in all."""
    low, high = 1, length - 1
    # reruns is convex in the split, so that a bisection on its slope finds the minimum.

    def cost(m: int) -> int:
        return m + reruns(length - m, c - 1) + reruns(m, c)

    while low < high:
        middle = (low + high) // 2
        if cost(middle) <= cost(middle + 1):
            high = middle
        else:
            low = middle + 1
    return low
