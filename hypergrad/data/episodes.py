"""Few-shot episodes, seeded by counter: episode i is the same on every machine and after a resume. And what raw pixels achieve on them."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..backends import Array, backend_of
from ..errors import ArgumentError, DataError
from .images import ImageClasses, check_choice, check_classes, check_number, gather
from .report import Tick


class Episodes(NamedTuple):
    """E episodes, each a small classification problem of its own; a pytree of arrays whose first axis is the episode.

    Images and labels lie class by class: labels are 0, 0, …, 1, 1, … up to n_way - 1.

    Args:
        support: training images, (E, n_way * k_shot, H, W, C), float32, float64 or uint8.
        support_labels: (E, n_way * k_shot), int64.
        query: images to be judged on, (E, n_way * n_query, H, W, C).
        query_labels: (E, n_way * n_query), int64.
    """

    support: Any
    support_labels: Any
    query: Any
    query_labels: Any


@dataclass(eq=False)
class EpisodeSampler:
    """Draws n-way k-shot episodes from a split.

    Episode i is a function of (seed, the split's name, i) and of the sizes of the classes alone. The bits come from Philox 4x64-10 with
    key (seed, CRC-32 of the name) and counter (0, 0, 0, i), and are turned into choices here with integer arithmetic, so neither NumPy's
    version nor the machine plays a part.

    Args:
        split: the classes to draw from.
        n_way: classes an episode, >= 2.
        k_shot: support images a class, >= 1.
        n_query: query images a class, >= 1; never one of the support images.
        seed: 0 to 2**64 - 1.
        meta_batch: episodes in one `batch`, >= 1.
        dtype: of the images handed out: float32 or float64 (values in [0, 1]) or uint8 (bytes).
    Raises: ArgumentError if a number is out of its range; DataError if the split has fewer than n_way classes or a class has fewer than
        k_shot + n_query images.
    Cost: an Omniglot batch of 4 episodes of 80 images takes well under a millisecond.
    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox); Vinyals et al. 2016, arXiv:1606.04080 (episodes).
    """

    split: ImageClasses
    n_way: int
    k_shot: int
    n_query: int = 15
    seed: int = 0
    meta_batch: int = 4
    dtype: DTypeLike = np.float32

    def __post_init__(self) -> None:
        split, n_way, k_shot, n_query = self.split, self.n_way, self.k_shot, self.n_query
        for argument, least in (("n_way", 2), ("k_shot", 1), ("n_query", 1), ("meta_batch", 1)):
            check_number(f"EpisodeSampler: {argument}", getattr(self, argument), least)
        check_number("EpisodeSampler: seed", self.seed, 0, 2**64 - 1)
        self.dtype = np.dtype(self.dtype)
        check_choice("EpisodeSampler: dtype", self.dtype.name, ("float32", "float64", "uint8"))
        check_classes(split.name, split.class_names, split.sizes, n_way)
        smallest = int(np.argmin(split.sizes))
        if k_shot + n_query > split.sizes[smallest]:
            raise DataError(
                f"EpisodeSampler: k_shot + n_query is {k_shot} + {n_query} = {k_shot + n_query}, expected at most {split.sizes[smallest]} "
                f"because class '{split.class_names[smallest]}' of split '{split.name}' has {split.sizes[smallest]} images; lower k_shot "
                "or n_query, or add images"
            )

    def indices(self, i: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Which classes and images make episode i, without reading any image.

        Args: i: number of the episode, 0 to 2**64 - 1.
        Returns: classes (n_way,), support rows (n_way, k_shot), query rows (n_way, n_query); int64.
        Raises: ArgumentError if i is out of its range.
        Cost: O(n_way * (k_shot + n_query)) draws.
        """
        check_number("EpisodeSampler: episode number", i, 0, 2**64 - 1)
        per_class = self.k_shot + self.n_query
        words = iter(_words(self.seed, self.split.name, 0, i, self.n_way * (1 + per_class)))
        classes = np.array(_draw(words, self.split.n_classes, self.n_way), np.int64)
        sizes = np.diff(self.split.offsets)[classes].tolist()
        rows = self.split.offsets[classes, None] + np.array([_draw(words, size, per_class) for size in sizes], np.int64)
        return classes, rows[:, : self.k_shot], rows[:, self.k_shot :]

    def episodes(self, start: int, stop: int) -> Episodes:
        """Episodes start, …, stop - 1.

        Args: start: number of the first episode, >= 0; stop: one past the last, > start.
        Returns: Episodes with E = stop - start, on the device of the split's images.
        Raises: ArgumentError if the range is empty or negative.
        Cost: reads (and converts) E * n_way * (k_shot + n_query) images.
        """
        check_number("EpisodeSampler: stop", stop, start + 1)
        images = self.split.images
        xp = backend_of(images).xp
        parts: list[Array] = []
        for rows in zip(*(self.indices(i)[1:] for i in range(start, stop)), strict=True):
            labels = np.repeat(np.arange(self.n_way, dtype=np.int64), rows[0].shape[1])
            there = xp.asarray(np.stack(rows).reshape(len(rows), -1))
            parts.append(xp.asarray(images[there]) if self.dtype == np.uint8 else gather(images, there, self.dtype))
            parts.append(xp.asarray(np.tile(labels, (len(rows), 1))))
        return Episodes(*parts)

    def batch(self, i: int) -> Episodes:
        """Meta-batch i: episodes i * meta_batch to (i + 1) * meta_batch - 1. Raises: as `episodes`."""
        return self.episodes(i * self.meta_batch, (i + 1) * self.meta_batch)


class LabelledBatch(NamedTuple):
    """Images with the numbers of their classes within a split; a pytree of arrays.

    Args: images: (B, H, W, C), float32 or float64; labels: (B,), int64.
    """

    images: Any
    labels: Any


@dataclass(eq=False)
class ImageSampler:
    """Draws batches of labelled images from a split, to train or test a classifier of all its classes.

    A batch has different images, drawn uniformly. Batch i is a function of (seed, the split's name, i) and of the number of images
    alone, by the generator of `EpisodeSampler` with the counter (0, 0, 1, i).

    Args:
        split: the images to draw from.
        batch_size: images of a batch, >= 1.
        held_out: share of the images to hold out, from 0 to below 1; drawn uniformly, with the counter (0, 0, 2, 0).
        of_held_out: whether to draw from these instead of the others.
        seed: 0 to 2**64 - 1.
        dtype: float32 or float64.
    Raises: ArgumentError if a number is out of its range; DataError if there are fewer images than batch_size to draw from.
    Cost: O(images of the split) once, for the list of those to draw from.
    """

    split: ImageClasses
    batch_size: int
    held_out: float = 0.0
    of_held_out: bool = False
    seed: int = 0
    dtype: DTypeLike = np.float32

    def __post_init__(self) -> None:
        check_number("ImageSampler: batch_size", self.batch_size, 1)
        check_number("ImageSampler: seed", self.seed, 0, 2**64 - 1)
        if not 0.0 <= self.held_out < 1.0:
            raise ArgumentError(f"ImageSampler: held_out is {self.held_out}, expected a share from 0 to below 1; pass for instance 0.1")
        count = round(self.held_out * self.split.n_images)
        chosen = np.zeros(self.split.n_images, bool)
        chosen[_draw(iter(_words(self.seed, self.split.name, 2, 0, count)), self.split.n_images, count)] = True
        self._rows = np.flatnonzero(chosen == self.of_held_out)
        if self.batch_size > len(self._rows):
            raise DataError(
                f"ImageSampler: batch_size is {self.batch_size}, expected at most {len(self._rows)} because there are so many "
                f"{'held-out ' if self.of_held_out else ''}images in split '{self.split.name}' to draw from; lower it, or change held_out"
            )

    def batch(self, i: int) -> LabelledBatch:
        """Batch i, on the device of the split's images. Raises: ArgumentError if i is out of its range. Cost: reads its images."""
        check_number("ImageSampler: batch number", i, 0, 2**64 - 1)
        rows = self._rows[_draw(iter(_words(self.seed, self.split.name, 1, i, self.batch_size)), len(self._rows), self.batch_size)]
        xp = backend_of(self.split.images).xp
        labels = np.searchsorted(self.split.offsets, rows, side="right") - 1
        return LabelledBatch(gather(self.split.images, xp.asarray(rows[None]), self.dtype)[0], xp.asarray(labels))


def _words(seed: int, name: str, stream: int, i: int, count: int) -> list[int]:
    """`count` numbers of 64 bits: the i-th draw of a stream, from a split of that name."""
    key, counter = [seed, zlib.crc32(name.encode())], [0, 0, stream, i]
    numbers: list[int] = np.random.Philox(key=np.array(key, np.uint64), counter=np.array(counter, np.uint64)).random_raw(count).tolist()
    return numbers


def _draw(words: Iterator[int], n: int, k: int) -> list[int]:
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


@dataclass(frozen=True)
class Accuracy:
    """Mean accuracy over episodes.

    Args:
        mean: between 0 and 1.
        interval: half width of the 95% interval, 1.96 * std / sqrt(n_episodes).
        n_episodes: how many episodes were counted.
    """

    mean: float
    interval: float
    n_episodes: int

    @classmethod
    def of(cls, accuracies: NDArray[np.float64]) -> "Accuracy":
        """Summarise accuracies of single episodes, (n,), n >= 1; std divides by n."""
        return cls(float(np.mean(accuracies)), float(1.96 * np.std(accuracies) / np.sqrt(len(accuracies))), len(accuracies))

    def __str__(self) -> str:
        return f"{100 * self.mean:.2f} ± {100 * self.interval:.2f} % over {self.n_episodes} episodes"


def pixel_baseline(
    split: ImageClasses, n_way: int, k_shot: int, n_query: int = 15, *, n_episodes: int = 600, seed: int = 0, tick: Tick | None = None
) -> "Accuracy":
    """Accuracy of the nearest support image's label, by Euclidean distance of pixels (exact integers): what every result is held against.

    A tie goes to the support image that comes first.

    Args:
        split: the classes to draw episodes from.
        n_way, k_shot, n_query, seed: as in EpisodeSampler; with the same numbers the episodes are the same.
        n_episodes: >= 1.
        tick: called with 1 after each episode, as a `Reporter.progress` gives it.
    Returns: Accuracy.
    Raises: ArgumentError if n_episodes < 1; DataError as EpisodeSampler.
    Cost: 2 * n_episodes * n_way**2 * k_shot * n_query * H*W*C flop; one episode in memory. 600 episodes 5-way 1-shot take 1 s on
        28x28x1 and 8 s on 84x84x3.
    """
    check_number("pixel_baseline: n_episodes", n_episodes, 1)
    sampler = EpisodeSampler(split, n_way, k_shot, n_query, seed=seed, meta_batch=1, dtype=np.uint8)
    accuracies = np.empty(n_episodes, np.float64)
    for i in range(n_episodes):
        episode = sampler.batch(i)
        support, query = (x[0].reshape(x.shape[1], -1).astype(np.float64) for x in (episode.support, episode.query))
        # |q - s|^2 without |q|^2, which is the same for every s
        distance = np.einsum("sd,sd->s", support, support) - 2.0 * (query @ support.T)
        accuracies[i] = np.mean(episode.support_labels[0][distance.argmin(axis=1)] == episode.query_labels[0])
        if tick is not None:
            tick(1)
    return Accuracy.of(accuracies)
