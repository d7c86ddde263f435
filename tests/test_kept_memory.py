"""Memory that freed arrays leave for later ones: whose arrays, how much is kept, and that contents are their own."""

import os
import subprocess
import sys
import tracemalloc
from contextvars import copy_context

import numpy as np
import pytest

import hypergrad as hg
from hypergrad import _host
from hypergrad.meter import Meter

MB = 1 << 20


@pytest.fixture(autouse=True)
def nothing_kept():
    hg.release_memory()


def inside(f):
    """f() in a context in which arrays keep their memory."""
    context = copy_context()
    context.run(_host.use_memory)
    return context.run(f)


def address(a):
    return a.__array_interface__["data"][0]


def test_the_next_array_of_the_size_gets_the_memory_of_the_last():
    def run():
        a = np.empty(MB, np.float32)
        place = address(a)
        del a
        return place == address(np.empty(MB - 100, np.float32))

    assert inside(run)


def test_it_begins_and_ends_with_a_transform():
    used = []

    def loss(x):
        held = np.ones(MB)
        used.append(_host.memory_use()["used"])
        return hg.sum(x * held[0])

    before = _host.memory_use()["used"]
    hg.grad(loss)(np.ones(3))
    outside = np.ones(MB)
    assert used[0] >= before + 8 * MB and _host.memory_use()["used"] < before + outside.nbytes


def test_where_sizes_grow_no_more_is_kept_than_was_in_use_at_once():
    def run():
        for size in (1, 3, 2, 5, 4, 7, 6):
            np.empty(size * MB, np.uint8)
            use = _host.memory_use()
            assert use["used"] + use["kept"] <= use["most"] <= 7.5 * MB

    inside(run)
    kept = _host.memory_use()["kept"]
    assert kept > 0 and hg.release_memory() == kept and _host.memory_use()["kept"] == 0


def test_no_more_is_kept_and_in_use_than_five_quarters_of_the_most():
    def run():
        for size in (7, 1, 6, 2, 5, 3, 4, 3, 5, 2, 6, 1, 7):
            np.empty(size * MB, np.uint8)
            use = _host.memory_use()
            assert use["used"] + use["kept"] <= 1.25 * use["most"] <= 1.25 * 7.5 * MB

    inside(run)


def test_sizes_that_take_turns_find_their_memory_again():
    def run():
        held, places = np.empty(8 * MB, np.uint8), []
        for size in (2.4, 1.5, 2.4, 1.5):
            a = np.empty(int(size * MB), np.uint8)
            places.append(address(a))
            del a
        return held.nbytes > 0 and places[:2] == places[2:]

    assert inside(run)


def test_memory_is_counted_by_tracemalloc():
    def run():
        with Meter(memory=True) as meter:
            a = np.empty(MB, np.uint8)
            del a
            b = np.empty(MB, np.uint8)
            b[0] = 0
        return meter.peak_bytes

    assert not tracemalloc.is_tracing()
    assert MB <= inside(run) < 1.1 * MB


def test_growing_shrinking_and_zeros():
    def run():
        a = np.empty(2 * MB, np.uint8)
        a[...] = 7
        del a
        assert not np.zeros(2 * MB, np.uint8).any()  # memory that held sevens
        for first, second in ((10, MB), (MB, 10), (MB, 3 * MB), (0, MB), (MB, 0)):
            b = np.arange(first) % 251
            expected = np.resize(b, second) if first else np.zeros(second, b.dtype)
            expected[first:] = 0
            b.resize(second, refcheck=False)
            np.testing.assert_array_equal(b, expected)

    inside(run)


def test_arrays_of_many_sizes_do_not_overlap():
    def run():
        rng = np.random.default_rng(0)
        held = {}
        for i in range(400):
            a = np.empty(int(rng.integers(0, 300_000)), np.uint8)
            a[...] = i % 256
            held[i] = a
            for j in list(held):
                if rng.random() < 0.2:
                    assert (held.pop(j) == j % 256).all()
        assert all((a == i % 256).all() for i, a in held.items())

    inside(run)


def test_a_size_that_no_machine_has_is_refused():
    with pytest.raises(MemoryError):
        inside(lambda: np.empty(1 << 60, np.uint8))


GAPS = """
import contextvars
import numpy as np
import hypergrad as hg
from hypergrad import _host

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def run():
    _host.use_memory()
    before = resident()
    large, between = [], []
    for _ in range(32):
        large.append(np.ones(1 << 17))
        between.append(np.ones(7000))  # keeps the heap from ending before it
    grown = resident() - before
    large.clear()
    hg.release_memory()
    print(grown, resident() - before)

contextvars.copy_context().run(run)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_that_is_released_leaves_no_gaps_in_the_heap(tmp_path):
    from_heap = {"MALLOC_MMAP_THRESHOLD_": str(32 * MB)}  # glibc raises it to this by itself when large arrays are freed
    command = [sys.executable, "-c", GAPS]
    out = subprocess.run(command, env=os.environ | from_heap, cwd=tmp_path, capture_output=True, text=True, check=True)
    grown, left = map(int, out.stdout.split())
    assert grown > 30 * MB and left < 4 * MB
