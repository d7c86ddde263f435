"""Classification data: images as rows of numbers with a label each, in a training, a validation and a test part.

From MNIST's files, from scikit-learn's digits (the optional package), or from letters rendered from fonts, which need no file.
"""

import importlib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import ArgumentError, DataError
from .glyphs import draw_letter, find_letters
from .idx import read_mnist
from .images import check_choice, check_number, to_float

Array = NDArray[Any]
CLASSES = 10  # of the letters, as many as there are digits
SIZES: Mapping[str, tuple[int, int, int]] = {"glyphs": (600, 600, 2000), "digits": (600, 600, 597), "mnist": (5000, 5000, 10_000)}
"""Examples of the training, validation and test part, by data set, where nothing else is said."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Images with their labels, in random order. Args: x: (n, D), in [0, 1]; y: (n,), int64, a class each."""

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
    rng = np.random.default_rng(seed)
    if name == "digits":
        images, labels = _digits()
        rows = _rows(name, len(labels), sum(sizes), rng)
        ends = np.cumsum(sizes)[:-1]
        parts = [Examples(images[r].astype(dtype), labels[r]) for r in np.split(rows, ends)]
        return LabelledImages(name, parts[0], parts[1], parts[2], (8, 8), tuple(map(str, range(10))))
    if root is None:
        raise DataError("mnist: root is missing, expected a folder (--root) with MNIST's idx files because nothing is downloaded; pass one")
    images, labels = read_mnist(root, "train")
    test_images, test_labels = read_mnist(root, "test")
    if images.shape[1:] != test_images.shape[1:]:
        raise DataError(
            f"mnist: the training images have {images.shape[1:]} pixels and the test images {test_images.shape[1:]}, expected the same; "
            "get the files again"
        )
    rows = _rows(name, len(labels), sizes[0] + sizes[1], rng)
    test_rows = _rows("mnist: test", len(test_labels), sizes[2], rng)
    taken = ((images, labels, rows[: sizes[0]]), (images, labels, rows[sizes[0] :]), (test_images, test_labels, test_rows))
    parts = [Examples(to_float(x[r].reshape(len(r), -1), dtype), y[r]) for x, y, r in taken]
    classes = int(max(labels.max(), test_labels.max())) + 1
    height, width = images.shape[1:]
    return LabelledImages(name, parts[0], parts[1], parts[2], (height, width), tuple(map(str, range(classes))))


def _rows(name: str, there: int, wanted: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Some of the examples, in random order. Raises: DataError if there are too few."""
    if wanted > there:
        raise DataError(
            f"{name} has {there} images, expected at least {wanted} for the parts asked for; lower --n-train, --n-validation or --n-test"
        )
    return rng.permutation(there)[:wanted]


def _digits() -> tuple[Array, Array]:
    """The digits of scikit-learn: (1797, 64) in [0, 1] and their labels."""
    if importlib.util.find_spec("sklearn") is None:
        raise DataError(
            "digits: the package scikit-learn is not installed, expected it because the images are in it; pip install "
            "'hypergrad-engine[sklearn]', or take the glyphs data"
        )
    found = importlib.import_module("sklearn.datasets").load_digits()  # not imported at the top: optional, and it takes a second
    return found.data / 16.0, found.target.astype(np.int64)


def _glyphs(sizes: list[int], seed: int, dtype: DTypeLike) -> LabelledImages:
    """The first ten Latin letters; every class has the same number of drawings in a part, up to one."""
    letters = [letter for letter in find_letters() if letter.name.startswith("latin/")][:CLASSES]
    labels = [np.arange(n, dtype=np.int64) % CLASSES for n in sizes]
    counts = np.array([np.bincount(y, minlength=CLASSES) for y in labels])  # (3, CLASSES)
    drawn = [draw_letter(letter, int(n), seed) for letter, n in zip(letters, counts.sum(axis=0), strict=True)]
    rng = np.random.default_rng(seed)
    shuffled = [images[rng.permutation(len(images))] for images in drawn]  # draw_letter takes the faces in turn
    parts = []
    for i, y in enumerate(labels):
        ends = counts[: i + 1].sum(axis=0)
        images = np.concatenate([own[end - n : end] for own, end, n in zip(shuffled, ends, counts[i], strict=True)])
        order = rng.permutation(len(y))
        parts.append(Examples(to_float(images.reshape(len(y), -1), dtype)[order], np.sort(y)[order]))
    height, width = drawn[0].shape[1:3]
    return LabelledImages("glyphs", parts[0], parts[1], parts[2], (height, width), tuple(letter.name[-1] for letter in letters))
