"""Checks that batches and functions give the same twice, and that no write to an array changes a result unnoticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..bilevel import Batches, HyperGradient
from ..errors import DifferentiationError
from ..tape import Tensor
from ..transforms import constant, vjp
from ..trees import PyTree, tree_leaves, tree_map, tree_named
from .differences import fail, vector
from .parts import Subject

_SAMPLE = 50
_BUFFER = "it looks like one buffer that is handed out again and again: hand out a new array for each step"
_UNSEEN = "it looks like an array that is read again without being looked at; the derivative must be the same or refused"
_RESHUFFLED = (
    "it looks like randomness or state in batches, such as a new shuffle for every epoch: derive the batch from t alone, such "
    "as by default_rng((seed, t))"
)


def check_batches(batches: Batches) -> None:
    """Reads the batches of some steps in order, and then once more from the end.

    Raises: AssertionError that names the step and the leaf.
    """
    steps = sorted({int(t) for t in np.linspace(0, len(batches) - 1, min(len(batches), _SAMPLE))})
    handed, before = {}, {}
    for t in steps:
        handed[t] = tree_leaves(batches[t])
        before[t] = [_frozen(x) for x in handed[t]]
    for t in steps:
        for i, (x, old) in enumerate(zip(handed[t], before[t], strict=True)):
            if _frozen(x) != old:
                again = tree_leaves(batches[t])
                new = len(again) == len(before[t]) and _frozen(again[i]) != old
                fail(
                    f"check_hypergrad: batches[{t}] changed between two readings (leaf {i}): reading later batches wrote to it, expected "
                    f"an array that stays as it is because a step may read it again; {_RESHUFFLED + '; ' if new else ''}{_BUFFER}"
                )
    for t in reversed(steps):
        after = [_frozen(x) for x in tree_leaves(batches[t])]
        if after != before[t]:
            changed = [i for i, (old, now) in enumerate(zip(before[t], after, strict=False)) if old != now]
            what = f"changed between two readings (leaf {changed[0]})" if changed else f"had {len(before[t])} leaves and has {len(after)}"
            fail(
                f"check_hypergrad: batches[{t}] {what}, expected the same because a step that is run again must see its batch again; "
                f"{_RESHUFFLED}"
            )


def _frozen(x: Any) -> Any:
    """A copy of a leaf's dtype, shape and bytes, for a later comparison."""
    value = x.value if isinstance(x, Tensor) else x
    return (str(value.dtype), value.shape, value.tobytes()) if hasattr(value, "tobytes") else value


class Watched:
    """The arrays that `init` returns and the caller's own, with copies that show whether they were written to."""

    def __init__(self, subject: Subject, own: PyTree, root: str) -> None:
        self.arrays = [(name, x, x.copy()) for name, x in tree_named(own, root)]
        self.init = subject.problem.init
        self.subject = replace(subject, problem=replace(subject.problem, init=self._call))
        self.start: list[tuple[str, Any]] = []

    def _call(self, hparams: PyTree) -> PyTree:
        w = self.init(hparams)
        self.start = [
            (f"{name} that init returned", x.value if isinstance(x, Tensor) else x)
            for name, x in tree_named(w, "w")
            if not isinstance(x, Tensor) or constant(x)
        ]
        self.arrays += [(name, x, x.copy()) for name, x in self.start if hasattr(x, "flags")]
        return w

    def check(self) -> None:
        """Raises: AssertionError that names the array if one was written to."""
        for name, x, before in self.arrays:
            if x.tobytes() != before.tobytes():
                fail(
                    f"check_hypergrad: {name} was written to during the run, expected it unchanged because reverse mode reads it again; "
                    "it looks like a shared array that is overwritten: return a copy of it"
                )


def check_same_bits(r: HyperGradient, other: HyperGradient, policy: Any, cause: Callable[[], str]) -> None:
    """Compares value, gradient and weights of two reverse runs bit for bit.

    Raises: AssertionError that names the leaf.
    """
    for root, a, b in (("value", r.value, other.value), ("params", r.params, other.params), ("hparams", r.grad, other.grad)):
        _same(a, b, root, f"reverse with checkpoints={policy!r}", "in the first run with 'all'", cause)


def _same(a: PyTree, b: PyTree, root: str, now: str, then: str, cause: Callable[[], str]) -> None:
    for (name, x), (_, y) in zip(tree_named(a, root), tree_named(b, root), strict=True):
        if x.tobytes() != y.tobytes():
            xs, ys = vector(x), vector(y)
            i = int(np.argmax(xs != ys))
            fail(
                f"check_hypergrad: {now}: {name}, element {i}, is {ys[i]:.17g}, {then} it was {xs[i]:.17g}, expected the same bits "
                f"because steps are pure; {cause()}"
            )


def check_pullback(subject: Subject, hparams: PyTree, state: PyTree, r: HyperGradient, cause: Callable[[], str]) -> PyTree:
    """Calls a pullback of the objective after a write to each array that it reads, and then twice with the old values restored.

    These arrays are the hyperparameters, the state and what `init` returns. Arrays on a GPU are left alone, since the passes do not
    compare them.

    Returns: the gradient in the optimiser's first state, like `state`.
    Raises: AssertionError that names the array written to, where the pullback gives another number than reverse mode.
    """
    own = tree_map(lambda x: x.copy(), (hparams, state))
    watched = Watched(subject, own[0], "hparams")
    out, pullback = vjp(watched.subject.value, *own)
    one = np.ones_like(out) if isinstance(out, np.ndarray) else out * 0 + 1
    targets = [*tree_named(own[0], "hparams"), *tree_named(own[1], "state"), *watched.start]
    for name, x in targets:
        if not isinstance(x, np.ndarray) or not x.flags.writeable or not x.size:
            continue
        before = x.copy()
        try:
            x[...] = x + 0.25 * (1.0 + np.abs(x))
            got = pullback(one)
        except DifferentiationError:
            continue
        finally:
            x[...] = before
        _same(r.grad, got[0], "hparams", f"a pullback after {name} was written to", "in reverse mode", lambda: _UNSEEN)
    first, again = pullback(one), pullback(one)
    _same(r.grad, first[0], "hparams", "a pullback", "in reverse mode", cause)
    _same(first, again, "bars", "a pullback that is called again", "the first time", cause)
    return first[1]
