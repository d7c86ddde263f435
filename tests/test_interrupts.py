"""A KeyboardInterrupt at any instruction leaves the engine as it was: the next gradient has the same bits."""

import gc
import os
import signal
import sys
import time

import numpy as np
import optree
import pytest

import hypergrad as hg
from hypergrad import state, tape

TRIALS = int(os.environ.get("HYPERGRAD_INTERRUPTS", "500"))
RNG = np.random.default_rng(0)
X, LABELS = RNG.standard_normal((8, 4)), RNG.integers(0, 3, 8)


def inner(w, h, batch):
    return hg.mean(hg.linear_cross_entropy(hg.tanh(X @ w["a"]), w["b"], w["c"], LABELS)) + h["decay"] * hg.sum(w["a"] ** 2)


PROBLEM = hg.Bilevel(
    inner,
    lambda w, h: hg.sum(hg.tanh(w["a"]) ** 2) + hg.sum(w["b"] ** 2),
    lambda h: {"a": 0.1 * np.ones((4, 5)), "b": np.linspace(-1, 1, 15).reshape(5, 3), "c": np.zeros(3)},
    lambda h: hg.SGD(lr=h["lr"], momentum=0.5),
)
H = {"decay": np.array(0.1), "lr": np.array(0.2)}


def cell(s, h, b):
    s = hg.tanh(s * h)
    return s, hg.sum(s)


WORK = {
    "reverse": lambda: hg.reverse(PROBLEM, H, hg.full_batch(None, 3), checkpoints=1).grad,
    "forward": lambda: hg.forward(PROBLEM, H, hg.full_batch(None, 3)).grad,
    "grad of grad": lambda: hg.grad(lambda x: hg.sum(hg.grad(lambda y: hg.sum(hg.exp(y) * y))(x) ** 2))(X),
    "hvp": lambda: hg.hvp(lambda x: hg.sum(hg.logsumexp(x)), (X,), (X,)),
    "jvp of grad": lambda: hg.jvp(hg.grad(lambda x: hg.sum(hg.exp(x) * x)), (X,), (X,)),
    "vjp": lambda: hg.vjp(lambda x: hg.tanh(x @ X.T), X)[1](np.ones((8, 8))),
    "scan": lambda: hg.grad(lambda h: hg.sum(hg.scan(cell, X, h, range(4))[1]))(np.array(0.5)),
    "composed": lambda: composed(),
}


def composed():
    with hg.fusion(False):
        return hg.grad(lambda x: hg.mean(hg.linear_cross_entropy(x, np.ones((4, 3)), np.zeros(3), LABELS)))(X)


def took(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def bits(tree):
    return [np.asarray(x).tobytes() for x in optree.tree_leaves(tree)]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs an interval timer")
@pytest.mark.parametrize("name", [n for n in WORK if n != "composed"])
def test_random_interrupts(name):
    work, expected = WORK[name], {n: bits(f()) for n, f in WORK.items()}
    seconds, rng, struck, after = min(took(work) for _ in range(3)), np.random.default_rng(0), 0, list(WORK)
    armed = [False]

    def strike(*_):
        if armed[0]:
            armed[0] = False
            raise KeyboardInterrupt

    old, callbacks = signal.signal(signal.SIGALRM, strike), gc.callbacks[:]
    gc.callbacks.clear()  # Hypothesis's, which would swallow an interrupt
    try:
        for i in range(TRIALS // 7 + 1):
            try:
                armed[0] = True
                signal.setitimer(signal.ITIMER_REAL, max(1e-6, float(rng.uniform(0, 1.2 * seconds))))
                work()
                armed[0] = False
            except KeyboardInterrupt:
                struck += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert state.current() is state.IDLE
            other = after[i % len(after)]
            assert bits(WORK[other]()) == expected[other], other
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        gc.callbacks.extend(callbacks)
    assert struck > TRIALS // 7 // 4


def test_an_error_in_every_op_of_a_run_leaves_no_trace(monkeypatch):
    """The same without a timer: an interrupt in the n-th op, for every n."""
    expected, apply, left = bits(WORK["reverse"]()), tape.apply, [0]

    def interrupted(*args):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return apply(*args)

    monkeypatch.setattr("hypergrad.rules.apply", interrupted)
    left[0] = 10**9
    WORK["reverse"]()
    n_ops = 10**9 - left[0]
    assert n_ops > 50
    for n in range(1, n_ops + 1, 3):
        left[0] = n
        with pytest.raises(KeyboardInterrupt):
            WORK["reverse"]()
        left[0] = 10**9
        assert state.current() is state.IDLE and bits(WORK["reverse"]()) == expected


@pytest.mark.parametrize("name", ["grad of grad", "jvp of grad", "reverse"])
def test_an_interrupt_at_any_instruction_of_the_engine_leaves_no_trace(name):
    """Where tapes open and close and the state changes, too. Instructions of Python are counted, so that no moment is left to chance."""
    work, files = WORK[name], {state.__file__, tape.__file__}
    expected, done, at = {n: bits(f()) for n, f in WORK.items()}, [0], [-1]

    def local(frame, event, arg):
        if event == "opcode":
            done[0] += 1
            if done[0] == at[0]:
                raise KeyboardInterrupt
        return local

    def enter(frame, event, arg):
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        return local

    def traced():
        before, done[0] = sys.gettrace(), 0
        sys.settrace(enter)
        try:
            return bits(work())
        finally:
            sys.settrace(before)

    assert traced() == expected[name]
    moments, others = np.unique(np.linspace(1, done[0], 150).astype(int)), list(WORK)
    assert len(moments) > 100
    for i, at[0] in enumerate(moments.tolist()):
        with pytest.raises(KeyboardInterrupt):
            traced()
        assert state.current() is state.IDLE
        other = others[i % len(others)]
        assert bits(WORK[other]()) == expected[other], other
