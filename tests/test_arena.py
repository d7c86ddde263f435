"""Arrays that share one block of memory: none lies where another is needed, and the block is no larger than it must be in plain cases."""

import numpy as np
import pytest

from hypergrad.arena import ALIGNMENT, places


def whole(size):
    return -(-max(size, 1) // ALIGNMENT) * ALIGNMENT


@pytest.mark.parametrize("seed", range(20))
def test_arrays_that_are_needed_at_once_lie_apart(seed):
    rng = np.random.default_rng(seed)
    rows = np.column_stack([rng.integers(0, 900, 40), rng.integers(0, 30, 40), rng.integers(0, 9, 40)]).tolist()
    lives = [(size, birth, birth + length) for size, birth, length in rows]
    n_bytes, offsets = places(lives)
    for i, (size, birth, death) in enumerate(lives):
        assert offsets[i] % ALIGNMENT == 0 and offsets[i] + size <= n_bytes
        for j, (other, first, last) in enumerate(lives[:i]):
            apart = offsets[i] + size <= offsets[j] or offsets[j] + other <= offsets[i]
            assert apart or death < first or last < birth
    at_once = max(sum(whole(size) for size, birth, death in lives if birth <= t <= death) for t in range(40))
    assert at_once <= n_bytes <= sum(whole(size) for size, _, _ in lives)


def test_the_block_of_a_chain_holds_two_arrays():
    assert places([(1000, t, t + 1) for t in range(9)])[0] == 2 * whole(1000)
    assert places([(1000, t, t) for t in range(9)])[0] == whole(1000)
    assert places([]) == (0, [])
