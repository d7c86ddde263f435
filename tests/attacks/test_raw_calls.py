"""Drawn calls of the compiled host kernels, by `bench/raw_calls.py` in its short form. HYPERGRAD_RAW_CALLS sets their number."""

import os
import random

import numpy as np
import pytest
import raw_calls

CALLS = int(os.environ.get("HYPERGRAD_RAW_CALLS", "1000"))


def test_drawn_calls_end_in_an_error_of_ours_or_a_result():
    found = raw_calls.run(CALLS, 0)
    assert found["faults"] == [] and found["result"] + found["clean error"] + found.get("no memory", 0) == CALLS
    assert min(found["result"], found["clean error"]) > CALLS // 5


@pytest.mark.parametrize("fault", ["below", "above", "input", "other error", "crash"])
def test_a_wrong_kernel_is_noticed(monkeypatch, fault):
    """Each of them is called as the tenth call's kernel, which has an array."""

    def wrong(name, given, empty):
        a = empty((3,), np.float32)
        if fault == "other error":
            raise ZeroDivisionError
        if fault == "crash":
            raise SystemError
        if fault == "input":
            raw_calls._arrays(given)[0].reshape(-1).view(np.uint8)[0] ^= 1
        else:
            a.base.base[a.ctypes.data - a.base.base.ctypes.data + (-1 if fault == "below" else a.nbytes)] = 0

    monkeypatch.setattr(raw_calls._host, "run", wrong)
    counts, faults = raw_calls.fuzz(1, 3)
    assert len(faults) == 1 and counts.total() == 1


def test_calls_are_the_same_each_time():
    once, twice = (raw_calls.Calls(random.Random("0 7")).right("matmul") for _ in range(2))
    assert all(np.array_equal(once[key], twice[key], equal_nan=True) for key in ("x", "y"))
