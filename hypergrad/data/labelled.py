"""Classification data: images as rows of numbers with a label each, in a training, a validation and a test part.

From MNIST's files, from scikit-learn's digits (the optional package), or from letters rendered from fonts, which need no file.
"""

import functools
import importlib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import ArgumentError, DataError
from ..trees import tree_node
from .files import check_root
from .glyphs import SIZE, Letter, draw_letter, find_letters
from .idx import WHERE, read_mnist
from .images import check_choice, check_number, to_float

Array = NDArray[Any]
CLASSES = 10  # of the letters, as many as there are digits
SIZES: Mapping[str, tuple[int, int, int]] = {"glyphs": (600, 600, 2000), "digits": (600, 600, 597), "mnist": (5000, 5000, 10_000)}
"""Examples of the training, validation and test part, by data set, where nothing else is said."""


@tree_node
@dataclass(frozen=True, eq=False)
class Examples:
    """Images with their labels, in random order: a pytree of both. Args: x: (n, D), in [0, 1]; y: (n,), int64, a class each."""

    x: Array
    y: Array

    def __len__(self) -> int:
        return len(self.y)

    def __add__(self, other: "Examples") -> "Examples":
        return Examples(np.concatenate([self.x, other.x]), np.concatenate([self.y, other.y]))

    def take(self, rows: Array) -> "Examples":
        """Some of the examples. Args: rows: indices, or a mask (n,). Cost: one copy."""
        return Examples(self.x[rows], self.y[rows])


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Three parts with the same classes and no image in common.

    Args:
        name: a key of `SIZES`.
        train, validation, test: the parts.
        image_shape: (H, W), H*W being the length of a row of `x`.
        class_names: one name a class.
    """

    name: str
    train: Examples
    validation: Examples
    test: Examples
    image_shape: tuple[int, int]
    class_names: tuple[str, ...]

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def describe(self) -> str:
        """One line: name, image shape, classes, and examples of each part. Cost: O(1)."""
        height, width = self.image_shape
        parts = f"{len(self.train)} training, {len(self.validation)} validation, {len(self.test)} test"
        return f"{self.name} {height}x{width}, {self.n_classes} classes: {parts} images"


def open_labelled(
    name: str | None = None,
    root: str | os.PathLike[str] | None = None,
    *,
    n_train: int | None = None,
    n_validation: int | None = None,
    n_test: int | None = None,
    seed: int = 0,
    dtype: DTypeLike = np.float32,
) -> LabelledImages:
    """Open a classification data set. Nothing is ever downloaded.

    Args:
        name: "glyphs", ten letters rendered from matplotlib's fonts; "digits", the 1,797 digits of 8x8 pixels in scikit-learn; or "mnist".
            None stands for "mnist" with a root and "glyphs" without one.
        root: folder with MNIST's idx files.
        n_train, n_validation, n_test: examples of each part; None for the numbers in `SIZES`.
        seed: of the random choice of examples; the glyphs are drawn anew.
        dtype: of the images, float32 or float64.
    Returns: LabelledImages. MNIST's test part comes from its own test files, the other two from its training files.
    Raises: ArgumentError for an unknown name, a number below 1, or a root for data that need none; DataError if files or the package are
        missing, damaged, or hold too few images.
    Cost: glyphs 1 s and 0.2 ms an image, digits 1 s, MNIST 0.5 s.
    """
    name = name if name is not None else "glyphs" if root is None else "mnist"
    check_choice("open_labelled: name", name, SIZES)
    check_number("open_labelled: seed", seed, 0, 2**64 - 1)
    if name != "mnist" and root is not None:
        raise ArgumentError(f"open_labelled: root is '{root}' with the {name} data, expected none because they need no file; leave it out")
    given = (n_train, n_validation, n_test)
    sizes = [usual if n is None else n for n, usual in zip(given, SIZES[name], strict=True)]
    for part, n in zip(("n_train", "n_validation", "n_test"), sizes, strict=True):
        check_number(f"open_labelled: {part}", n, 1)
    if name == "glyphs":
        return _glyphs(sizes, seed, dtype)
    if name == "digits":
        pools = [(name, *_digits(), sizes)]
    else:
        folder = check_root(name, root, WHERE)
        pools = [(name, *read_mnist(folder, "train"), sizes[:2]), ("mnist: test", *read_mnist(folder, "test"), sizes[2:])]
    shapes = [(images.shape[1], images.shape[2]) for _, images, _, _ in pools]
    if shapes[0] != shapes[-1]:
        raise DataError(
            f"mnist: the training images have {shapes[0]} pixels and the test images {shapes[-1]}, expected the same; get the files again"
        )
    rng, parts = np.random.default_rng(seed), []
    for of, images, labels, wanted in pools:
        if sum(wanted) > len(labels):
            raise DataError(
                f"{of} has {len(labels)} images, expected at least {sum(wanted)} for the parts asked for; lower --n-train, "
                "--n-validation or --n-test"
            )
        for rows in np.split(rng.permutation(len(labels))[: sum(wanted)], np.cumsum(wanted)[:-1]):
            x = images[rows].reshape(len(rows), -1)
            parts.append(Examples(to_float(x, dtype) if x.dtype == np.uint8 else x.astype(dtype), labels[rows]))
    n_classes = 1 + max(int(labels.max()) for _, _, labels, _ in pools)
    return LabelledImages(name, parts[0], parts[1], parts[2], shapes[0], tuple(map(str, range(n_classes))))


def _digits() -> tuple[Array, Array]:
    """The digits of scikit-learn: (1797, 8, 8) in [0, 1] and their labels."""
    if importlib.util.find_spec("sklearn") is None:
        raise DataError(
            "digits: the package scikit-learn is not installed, expected it because the images are in it; pip install "
            "'hypergrad-engine[sklearn]', or take the glyphs data"
        )
    found = importlib.import_module("sklearn.datasets").load_digits()  # not imported at the top: optional, and it takes a second
    return found.images / 16.0, found.target.astype(np.int64)


@functools.cache  # of two seconds' work; the letters depend on the installed fonts alone
def _letters() -> tuple[Letter, ...]:
    return tuple(letter for letter in find_letters() if letter.name.startswith("latin/"))[:CLASSES]


def _glyphs(sizes: list[int], seed: int, dtype: DTypeLike) -> LabelledImages:
    """The first ten Latin letters; every class has the same number of drawings in a part, up to one."""
    letters, rng = _letters(), np.random.default_rng(seed)
    labels = [np.sort(np.arange(n, dtype=np.int64) % CLASSES) for n in sizes]
    counts = np.array([np.bincount(y, minlength=CLASSES) for y in labels])  # (3, CLASSES)
    drawn = [draw_letter(letter, int(n), seed) for letter, n in zip(letters, counts.sum(axis=0), strict=True)]
    shuffled = [images[rng.permutation(len(images))] for images in drawn]  # draw_letter takes the faces in turn
    cut = [np.split(images, np.cumsum(own)[:-1]) for images, own in zip(shuffled, counts.T, strict=True)]  # letter by letter, part by part
    parts = []
    for y, images in zip(labels, map(np.concatenate, zip(*cut, strict=True)), strict=True):
        order = rng.permutation(len(y))
        parts.append(Examples(to_float(images.reshape(len(y), -1), dtype)[order], y[order]))
    return LabelledImages("glyphs", parts[0], parts[1], parts[2], (SIZE, SIZE), tuple(letter.name[-1] for letter in letters))
