"""Few-shot episodes, seeded by counter: episode i is the same on every machine and after a resume."""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..backends import Array, backend_of
from ..errors import ArgumentError, DataError
from .images import ImageClasses, gather


class Episodes(NamedTuple):
    """E episodes, each a small classification problem of its own; the episode axis comes first.

    Images and labels lie class by class: labels are 0, 0, …, 1, 1, … up to n_way - 1. Both are on the device of the split's
    images.

    Args:
        support: training images, (E, n_way * k_shot, H, W, C), float32, float64 or uint8.
        support_labels: (E, n_way * k_shot), int64.
        query: images to be judged on, (E, n_way * n_query, H, W, C).
        query_labels: (E, n_way * n_query), int64.
    """

    support: NDArray[Any]
    support_labels: NDArray[np.int64]
    query: NDArray[Any]
    query_labels: NDArray[np.int64]


class EpisodeSampler:
    """Draws n-way k-shot episodes from a split.

    Episode i is a function of (seed, the split's name, i) and of the sizes of the classes alone. The bits
    come from Philox 4x64-10 with key (seed, CRC-32 of the name) and counter (0, 0, 0, i), and are turned into
    choices here with integer arithmetic, so neither NumPy's version nor the machine plays a part.

    Args:
        split: the classes to draw from.
        n_way: classes an episode, >= 2.
        k_shot: support images a class, >= 1.
        n_query: query images a class, >= 1; never one of the support images.
        seed: 0 to 2**64 - 1.
        meta_batch: episodes in one `batch`, >= 1.
        dtype: of the images handed out: float32 or float64 (values in [0, 1]) or uint8 (bytes).
    Raises: ArgumentError if a number is out of its range; DataError if the split has fewer than n_way classes
        or a class has fewer than k_shot + n_query images.
    Cost: an Omniglot batch of 4 episodes of 80 images takes well under a millisecond.
    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox); Vinyals et al. 2016,
        arXiv:1606.04080 (episodes).
    """

    def __init__(
        self,
        split: ImageClasses,
        n_way: int,
        k_shot: int,
        n_query: int = 15,
        seed: int = 0,
        meta_batch: int = 4,
        dtype: DTypeLike = np.float32,
    ) -> None:
        for argument, value, least in (("n_way", n_way, 2), ("k_shot", k_shot, 1), ("n_query", n_query, 1), ("meta_batch", meta_batch, 1)):
            if value < least:
                raise ArgumentError(
                    f"EpisodeSampler: {argument} is {value}, expected at least {least} because an episode compares "
                    "classes by examples; raise it"
                )
        if not 0 <= seed < 2**64:
            raise ArgumentError(
                f"EpisodeSampler: seed is {seed}, expected 0 to 2**64 - 1 because it is one 64-bit word of the "
                "generator's key; choose another"
            )
        if np.dtype(dtype) not in (np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.uint8)):
            raise ArgumentError(
                f"EpisodeSampler: dtype is {np.dtype(dtype)}, expected float32, float64 or uint8 because the engine "
                "computes in floats and images are bytes; choose one of them"
            )
        if n_way > split.n_classes:
            raise DataError(
                f"EpisodeSampler: n_way is {n_way}, expected at most {split.n_classes} because split '{split.name}' "
                f"has {split.n_classes} classes; lower n_way or use a split with more"
            )
        sizes = split.sizes
        smallest = int(np.argmin(sizes))
        if k_shot + n_query > sizes[smallest]:
            raise DataError(
                f"EpisodeSampler: k_shot + n_query is {k_shot} + {n_query} = {k_shot + n_query}, expected at most "
                f"{sizes[smallest]} because class '{split.class_names[smallest]}' of split '{split.name}' has "
                f"{sizes[smallest]} images; lower k_shot or n_query, or add images"
            )
        self.split = split
        self.n_way, self.k_shot, self.n_query = n_way, k_shot, n_query
        self.seed, self.meta_batch, self.dtype = seed, meta_batch, np.dtype(dtype)
        self._key = np.array([seed, zlib.crc32(split.name.encode())], dtype=np.uint64)

    def indices(self, i: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Which classes and images make episode i, without reading any image.

        Args:
            i: number of the episode, 0 to 2**64 - 1.
        Returns: classes (n_way,), support rows (n_way, k_shot), query rows (n_way, n_query); int64.
        Raises: ArgumentError if i is out of its range.
        Cost: O(n_way * (k_shot + n_query)) draws.
        """
        if not 0 <= i < 2**64:
            raise ArgumentError(
                f"EpisodeSampler: episode number is {i}, expected 0 to 2**64 - 1 because it is the generator's counter; choose another"
            )
        per_class = self.k_shot + self.n_query
        counter = np.array([0, 0, 0, i], dtype=np.uint64)
        bits = np.random.Philox(key=self._key, counter=counter)
        words = iter(bits.random_raw(self.n_way * (1 + per_class)).tolist())
        classes = _draw(words, self.split.n_classes, self.n_way)
        rows = np.empty((self.n_way, per_class), np.int64)
        for label, c in enumerate(classes):
            start, stop = int(self.split.offsets[c]), int(self.split.offsets[c + 1])
            rows[label] = _draw(words, stop - start, per_class)
            rows[label] += start
        return np.array(classes, np.int64), rows[:, : self.k_shot], rows[:, self.k_shot :]

    def episodes(self, start: int, stop: int) -> Episodes:
        """Episodes start, …, stop - 1.

        Args:
            start: number of the first episode, >= 0.
            stop: one past the last, > start.
        Returns: Episodes with E = stop - start.
        Raises: ArgumentError if the range is empty or negative.
        Cost: reads (and converts) E * n_way * (k_shot + n_query) images.
        """
        if stop <= start:
            raise ArgumentError(
                f"EpisodeSampler: the range of episodes is {start} to {stop}, expected at least one because a batch "
                "cannot be empty; raise stop"
            )
        drawn = [self.indices(i) for i in range(start, stop)]
        count = stop - start
        support = np.stack([s for _, s, _ in drawn]).reshape(count, -1)
        query = np.stack([q for _, _, q in drawn]).reshape(count, -1)
        ways = np.arange(self.n_way, dtype=np.int64)
        return Episodes(
            support=self._images(support),
            support_labels=self._there(np.tile(np.repeat(ways, self.k_shot), (count, 1))),
            query=self._images(query),
            query_labels=self._there(np.tile(np.repeat(ways, self.n_query), (count, 1))),
        )

    def episode(self, i: int) -> Episodes:
        """Episode i alone (E = 1). Raises: ArgumentError if i is out of its range."""
        return self.episodes(i, i + 1)

    def batch(self, i: int) -> Episodes:
        """Meta-batch i: episodes i * meta_batch to (i + 1) * meta_batch - 1. Raises: as `episodes`."""
        return self.episodes(i * self.meta_batch, (i + 1) * self.meta_batch)

    def _images(self, rows: NDArray[np.int64]) -> Array:
        there, images = self._there(rows), self.split.images
        return self._there(images[there]) if self.dtype == np.uint8 else gather(images, there, self.dtype)

    def _there(self, a: Array) -> Array:
        """An array on the device of the split's images."""
        return backend_of(self.split.images).xp.asarray(a)


def _draw(words: Any, n: int, k: int) -> list[int]:
    """k different numbers below n: the first k steps of a Fisher-Yates shuffle, kept sparse.

    A 64-bit word modulo m is uneven by at most m / 2**64, which no experiment can see.
    """
    moved: dict[int, int] = {}
    chosen = []
    for j in range(k):
        r = j + next(words) % (n - j)
        chosen.append(moved.get(r, r))
        moved[r] = moved.get(j, j)
    return chosen
