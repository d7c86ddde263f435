"""The meter: peaks of allocated bytes that are known, and nesting."""

import sys
import threading
import tracemalloc

import numpy as np
import pretended
import pretended_memory
import pytest

from hypergrad.meter import Meter

MB = 1 << 20


def allocate(n_bytes):
    return np.ones(n_bytes, np.uint8)


def near(n_bytes):
    return pytest.approx(n_bytes, abs=20_000)


def test_peak_of_known_arrays():
    with Meter(memory=True) as meter:
        a = allocate(3 * MB)
        del a
        b = allocate(MB)
    assert meter.peak_bytes == near(3 * MB) and b.nbytes == MB
    assert meter.seconds > 0
    assert not tracemalloc.is_tracing()


def test_bytes_held_on_entry_do_not_count():
    with Meter(memory=True):
        kept = allocate(5 * MB)
        with Meter() as inner:
            a = allocate(2 * MB)
            del a
        assert inner.peak_bytes == near(2 * MB)
        with Meter() as nothing:
            pass
        assert nothing.peak_bytes == near(0)
    assert kept.nbytes == 5 * MB


def test_laps():
    """Each has the peak since the last one, also where a meter was opened in between; the whole keeps its own."""
    with Meter(memory=True) as outer:
        a = allocate(6 * MB)
        del a
        b = allocate(2 * MB)
        assert outer.lap() == (near(2 * MB), near(6 * MB))
        with Meter() as inner:
            c = allocate(3 * MB)
            del c
            assert inner.lap() == (near(0), near(3 * MB))
        assert outer.lap() == (near(2 * MB), near(5 * MB))
        assert outer.lap() == (near(2 * MB), near(2 * MB))
    assert (outer.peak_bytes, inner.peak_bytes, b.nbytes) == (near(6 * MB), near(3 * MB), 2 * MB)


def test_an_inner_meter_does_not_hide_the_peak_of_the_outer_one():
    with Meter(memory=True) as outer:
        a = allocate(7 * MB)
        del a
        with Meter() as middle:
            b = allocate(4 * MB)
            del b
            with Meter(memory=True) as inner:
                c = allocate(MB)
                del c
        assert tracemalloc.is_tracing()  # the one that started it stops it
    assert (outer.peak_bytes, middle.peak_bytes, inner.peak_bytes) == (near(7 * MB), near(4 * MB), near(MB))


def test_free_objects_that_python_keeps_do_not_hide_new_ones():
    def tuples():
        with Meter(memory=True) as meter:
            made = [(i, i, i) for i in range(1500)]
        return meter.peak_bytes - sys.getsizeof(made)

    tuples()  # which leaves free ones behind
    assert tuples() > 1500 * sys.getsizeof((1, 2, 3))


def test_without_tracing_there_is_no_peak():
    with Meter() as meter:
        allocate(MB)
    assert meter.peak_bytes is None and meter.seconds > 0


def test_an_error_inside_stops_the_tracing_and_passes_on():
    with pytest.raises(KeyError), Meter(memory=True) as meter:
        raise KeyError("x")
    assert meter.peak_bytes is not None and not tracemalloc.is_tracing()


def test_tracing_switched_on_or_off_inside():
    with Meter() as outside:
        tracemalloc.start()
    tracemalloc.stop()
    assert outside.peak_bytes is None
    tracemalloc.start()
    with Meter() as stopped:
        tracemalloc.stop()
    assert stopped.peak_bytes is None
    with Meter(memory=True) as after:
        allocate(MB)
    assert after.peak_bytes == near(MB)


@pytest.fixture
def pool(monkeypatch):
    """The common pool of a pretended GPU."""
    with pretended.gpu(monkeypatch) as machine:
        yield machine.pool


def test_peak_of_the_pool(pool):
    """Above what was held on entry, rounded as the pool rounds, over what is freed, forgotten and refused."""
    before = pool.malloc(10_240)
    with Meter(memory=True) as meter:
        a = pool.malloc(1000)
        b = pool.malloc(512)
        a.free()
        c = pool.malloc(1)
        with pytest.raises(MemoryError):
            pool.malloc(1 << 40)
        pool.malloc(0)
        before.free()
        del b, c
    assert meter.peak_device_bytes == 1024 + 512 and pool.used == 0
    assert not pretended_memory.hooks.by_name


def test_meters_nest_on_the_device(pool):
    with Meter(memory=True) as outer:
        kept = pool.malloc(2048)
        with Meter() as inner:
            pool.malloc(4096)
        with Meter() as frees:
            kept.free()
        with Meter() as nothing:
            pass
        pool.malloc(512)
    peaks = [m.peak_device_bytes for m in (outer, inner, frees, nothing)]
    assert peaks == [2048 + 4096, 4096, 0, None]


def test_the_device_is_not_measured_without_tracing_or_cupy(pool, monkeypatch):
    with Meter() as untraced:
        pool.malloc(512)
    monkeypatch.setitem(sys.modules, "cupy", None)  # as if it were not installed
    with Meter(memory=True) as without:
        pool.malloc(512)
    assert untraced.peak_device_bytes is None and without.peak_device_bytes is None and without.peak_bytes is not None


def test_an_error_inside_takes_the_hook_away(pool):
    with pytest.raises(KeyError), Meter(memory=True) as meter:
        pool.malloc(512)
        raise KeyError("x")
    assert meter.peak_device_bytes == 512 and not pretended_memory.hooks.by_name


def test_other_threads_have_pools_of_their_own_to_count(pool):
    with Meter(memory=True) as meter:
        kept = pool.malloc(512)
        worker = threading.Thread(target=lambda: pool.malloc(1 << 20))
        worker.start()
        worker.join()
    assert meter.peak_device_bytes == 512 and kept.size == 512
