"""Threads: each has tapes of its own, and what one thread follows another may not compute with."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import numpy as np
import pytest
from checks import assert_same
from test_kernels import Problem

import hypergrad as hg
from hypergrad import state as engine
from hypergrad.errors import DifferentiationError
from hypergrad.tape import Tensor

X = np.array([0.5, -1.25, 2.0])
V = np.array([1.0, 0.25, -0.75])


def test_threads_have_tapes_of_their_own() -> None:
    f = lambda x: hg.sum(hg.grad(lambda y: hg.sum(y * y * y))(x))  # noqa: E731
    wanted = hg.grad(f)(X)
    found: list[Any] = []
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        found.extend(hg.grad(f)(X) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 80 and all(np.array_equal(g, wanted) for g in found)


def in_a_pool(work: Callable[[Callable[[], Any]], Any]) -> Callable[[Any], Any]:
    """A function whose products are computed by a pool of threads, started by `work`."""
    return lambda x: sum(work(lambda i=i: hg.sum(x * float(i))) for i in (1, 2, 3))


def transforms_of(f: Callable[[Any], Any]) -> list[Callable[[], Any]]:
    """Every way to follow the argument of f."""

    def inner(w: Tensor, h: Any, batch: Any) -> Any:
        return f(w) * w[0]

    return [
        lambda: hg.grad(f)(X),
        lambda: hg.value_and_grad(f)(X),
        lambda: hg.vjp(f, X),
        lambda: hg.hvp(f, (X,), (V,)),
        lambda: hg.jvp(f, (X,), (V,)),
        lambda: hg.grad(lambda x: hg.sum(hg.unroll(inner, x, (), [0], optimizer=hg.SGD(lr=0.1))))(X),
    ]


def test_an_op_on_a_followed_tensor_in_another_thread_is_refused() -> None:
    """The gradient would lose its terms: 0 in the place of 6."""
    with ThreadPoolExecutor(2) as pool:
        ways: dict[str, Callable[[Callable[[], Any]], Any]] = {
            "plain": lambda f: pool.submit(f).result(),
            "with the context": lambda f: pool.submit(copy_context().run, f).result(),
            "inside a gradient of its own": lambda f: pool.submit(lambda: hg.grad(lambda z: hg.sum(z) * f())(X)).result(),
            "inside a jvp of its own": lambda f: pool.submit(lambda: hg.jvp(lambda z: hg.sum(z) * f(), (X,), (V,))).result(),
        }
        for name, work in ways.items():
            for run in transforms_of(in_a_pool(work)):
                with pytest.raises(DifferentiationError, match="another thread"):
                    run()
                assert engine.current() is engine.IDLE, name
    assert np.array_equal(hg.grad(in_a_pool(lambda f: f()))(X), [6.0, 6.0, 6.0])


def test_threads_that_follow_nothing_may_compute_inside_a_gradient() -> None:
    with ThreadPoolExecutor(2) as pool:

        def f(x: Tensor) -> Tensor:
            data = pool.submit(lambda: hg.exp(V).value).result()
            slope = pool.submit(lambda: hg.grad(lambda y: hg.sum(y * y * y))(V)).result()
            return hg.sum(x * data * slope)

        assert_same(hg.grad(f)(X), np.exp(V) * 3 * V * V, "gradient")


def test_bits_of_ended_threads_are_used_again() -> None:
    before = set(engine._Share.taken)
    for _ in range(30):
        worker = threading.Thread(target=lambda: hg.grad(lambda x: hg.sum(x * x))(X))
        worker.start()
        worker.join()
    assert len(engine._Share.taken - before) <= 1


def test_more_tapes_than_bits_are_refused() -> None:
    def nested(depth: int, x: Any) -> Any:
        return hg.sum(x) if depth == 0 else hg.sum(hg.grad(lambda y: nested(depth - 1, y) + hg.sum(y * y))(x))

    with pytest.raises(DifferentiationError, match="grad: called inside 64 others"):
        nested(engine.MOST_TAPES + 1, X)
    assert engine.current() is engine.IDLE


def test_threads_may_call_kernels_at_once() -> None:
    expected = Problem((2, 8, 9, 8, 3, 20), np.float32).everything()
    failures: list[str] = []

    def work() -> None:
        for _ in range(5):
            outs = Problem((2, 8, 9, 8, 3, 20), np.float32).everything()
            if not all(np.array_equal(a, b) for a, b in zip(outs, expected, strict=True)):
                failures.append("bits differ")

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
