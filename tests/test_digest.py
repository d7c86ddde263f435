"""The number by which an array that was written to is told from what it was."""

import os
import subprocess
import sys

import numpy as np
import pytest

import hypergrad as hg
from hypergrad import _host
from hypergrad.backends import HOST, digest
from hypergrad.errors import ArgumentError, DifferentiationError

SIZES = (1, 7, 8, 9, 63, 64, 65, 1023, 1 << 18, (1 << 18) + 1, (1 << 20) + 5)


@pytest.mark.parametrize("n", SIZES)
def test_every_bit_counts(n):
    x = np.random.default_rng(n).integers(0, 256, n, dtype=np.uint8)
    before = digest(x)
    assert digest(x.copy()) == before
    for at in {0, n // 2, n - 1}:
        for bit in (1, 16, 128):
            x[at] ^= bit
            assert digest(x) != before
            x[at] ^= bit
    assert digest(x) == before


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_changes_in_many_places_are_seen(dtype):
    x = np.random.default_rng(0).standard_normal((300, 1024)).astype(dtype)
    others = [-x, x[::-1], x[:, ::-1], np.roll(x, 8, 1), np.roll(x, 64, 0), x.T, x + 1, np.zeros_like(x), x[:-1]]
    others.append(np.append(x, 0 * x[:1], 0))
    pairs = x.copy()
    pairs[0, :2] *= -1  # signs, the highest bits of words
    shifted = x.copy()
    shifted[0] += 1
    shifted[1] -= 1  # sums of rows and columns would not tell
    found = [digest(y) for y in (x, *others, pairs, shifted)]
    assert len({*found}) == len(found)


def test_zeros_of_different_lengths():
    assert len({digest(np.zeros(n, np.uint8)) for n in range(200)}) == 200


def test_it_is_the_same_for_any_number_of_threads_and_layout():
    x = np.random.default_rng(0).standard_normal((600, 700))
    threads, found = _host.threads(), set()
    try:
        for n in (1, 2, 3):
            HOST.set_threads(n)
            found.add(digest(x))
    finally:
        HOST.set_threads(threads)
    assert found == {digest(np.asfortranarray(x)), digest(x[::-1][::-1])}
    assert digest(np.float64(3.0)) == digest(np.array(3.0)) == digest(np.array([3.0]))


def test_gaps_are_refused():
    with pytest.raises(ArgumentError, match="digest: x has gaps"):
        _host.digest(np.zeros((4, 4))[:, ::2])


@pytest.mark.parametrize("late", [1, 6])  # between the two recordings of a step, and after them
def test_an_array_that_changes_during_a_run_is_told(late):
    """A step's constants may be views made anew; two recordings agree where they lie in one place."""
    x = np.random.default_rng(0).standard_normal((50, 40))
    problem = hg.Bilevel(
        lambda w, h, b: h * hg.mean(hg.linear_cross_entropy(x, w, np.zeros(3), np.arange(50) % 3)),
        lambda w, h: hg.sum(w),
        lambda h: np.zeros((40, 3)),
        lambda h: hg.SGD(lr=0.1),
    )

    def double(t, w, loss):
        if t == late:
            x[...] *= 2.0

    args = problem, np.float64(0.5), hg.full_batch(None, 20)
    assert not hg.forward(*args).stats.program.startswith("none")
    with pytest.raises(DifferentiationError, match="step 19 does not do what the first ones have done"):
        hg.forward(*args, callback=double)


def test_where_the_processor_has_no_aes(tmp_path):
    """The tests above, by the instructions that every processor has."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", "not no_aes", __file__]
    environment = {k: x for k, x in os.environ.items() if not k.startswith("PYTEST")} | {"HYPERGRAD_SIMD": "baseline"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
