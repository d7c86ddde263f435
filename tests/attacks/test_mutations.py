"""Damaged files of every kind: an error of ours or a whole result, by `bench/attacks.py` in its short form.

HYPERGRAD_MUTATIONS sets the number for each kind; `python bench/attacks.py` is the long form, in processes of their own.
"""

import os
import random

import attacks
import pytest

from hypergrad.errors import DataError, RunError

MUTATIONS = int(os.environ.get("HYPERGRAD_MUTATIONS", "40"))


@pytest.mark.parametrize("name", attacks.KINDS)
@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it can mend; here only errors count
def test_a_damaged_file_is_an_error_of_ours_or_a_whole_result(name):
    counts, faults = attacks.attack(name, MUTATIONS)
    assert not faults, faults
    assert counts.total() == MUTATIONS and set(counts) <= {"clean error", "same result", "other result"}
    assert counts["other result"] == 0 or not attacks.KINDS[name].checked


def test_mutations_are_the_same_each_time_and_change_something():
    content = bytes(range(200))
    once, twice = ([attacks.mutate(content, random.Random(f"{i}")) for i in range(50)] for _ in range(2))
    assert once == twice and sum(found != content for found in once) > 45


@pytest.mark.parametrize(
    ("read", "checked", "expected"),
    [
        (lambda folder: 1, True, "same result"),
        (lambda folder: 2, True, "silently different"),
        (lambda folder: 2, False, "other result"),
        (lambda folder: 1 // 0, True, "crash"),
        (lambda folder: raised(MemoryError()), True, "crash"),
        (lambda folder: raised(BaseException()), True, "crash"),
        (lambda folder: raised(TimeoutError()), True, "hang"),
        (lambda folder: raised(DataError("no")), True, "clean error"),
        (lambda folder: raised(RunError("no")), False, "clean error"),
    ],
)
def test_outcomes_are_told_apart(tmp_path, read, checked, expected):
    assert attacks.outcome(attacks.Kind(lambda folder: folder, read, checked), tmp_path, 1)[0] == expected


def raised(error):
    raise error
