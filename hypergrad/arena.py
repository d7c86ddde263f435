"""Where arrays lie in one block of memory that those share which are not needed at the same time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ALIGNMENT = 64  # bytes, of every array


def places(lives: Sequence[tuple[int, int, int]]) -> tuple[int, list[int]]:
    """Bytes of the block, and the offset of each array in it: the largest first, each at the lowest one that is free all its life.

    Args: lives: of each array its bytes, and the first and the last time that it is needed.
    Source: Pisarchyk & Lee 2020, arXiv:2001.03288, "Greedy by Size for Offset Calculation".
    """
    whole = [(-(-max(size, 1) // ALIGNMENT) * ALIGNMENT, birth, death) for size, birth, death in lives]
    placed, offsets = np.zeros((len(lives), 4), np.int64), [0] * len(lives)  # of each: first byte, end, birth, death
    for i, number in enumerate(sorted(range(len(lives)), key=lambda n: (-whole[n][0], whole[n][1]))):
        size, birth, death = whole[number]
        beside = placed[:i][(placed[:i, 2] <= death) & (placed[:i, 3] >= birth), :2]
        offset = 0
        for first, end in sorted(beside.tolist()):
            if first - offset >= size:
                break
            offset = max(offset, end)
        placed[i], offsets[number] = (offset, offset + size, birth, death), offset
    return int(placed[:, 1].max(initial=0)), offsets
