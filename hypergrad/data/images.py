"""Images grouped by class, and the three splits of a data set for meta-learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..backends import Array, backend_of, place
from ..errors import ArgumentError, DataError, DTypeError, ShapeError


def to_float(images: NDArray[Any], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """Pixels as numbers in [0, 1]: value / 255.

    Args:
        images: any shape, uint8.
        dtype: float32 or float64.
    Returns: a new array of the same shape; each element is the correctly rounded quotient.
    Raises: DTypeError if `images` is not uint8 or `dtype` is not one of the two.
    Cost: one pass; no scratch.
    """
    kind = _float_of_bytes("to_float", images, dtype)
    quotient: NDArray[Any] = np.divide(images, kind.type(255), dtype=kind)
    return quotient


def gather(images: Array, rows: Array, dtype: DTypeLike = np.float32) -> Array:
    """Chosen images as numbers in [0, 1], in one pass: the bits of `to_float(images[rows])`.

    Args:
        images: (M, H, W, C), uint8: a NumPy array, such as a memory map, or a CuPy array. The device follows the data.
        rows: (E, N), int64, on the same device, each from 0 to M - 1. On a GPU nobody looks, since that would wait for it:
            there the image of a row out of range is NaN.
        dtype: float32 or float64.
    Returns: a new array (E, N, H, W, C) on that device.
    Raises: DTypeError for other dtypes; ShapeError for other axes, and on a GPU where an image's pixels do not lie together;
        ArgumentError for a row out of range in host memory; DeviceError for arrays on both sides.
    Cost: reads E*N images and writes as many; no scratch (on the host one copy where an image's pixels do not lie together).
    """
    kind = _float_of_bytes("gather", images, dtype)
    backend = backend_of(images, rows)
    if isinstance(rows, np.ndarray) and rows.size and not (rows.min() >= 0 and rows.max() < len(images)):
        raise ArgumentError(
            f"gather: rows has values {rows.min()} to {rows.max()}, expected 0 to {len(images) - 1} because there are "
            f"{len(images)} images; correct the rows"
        )
    if isinstance(images, np.ndarray) and not images[:1].flags.c_contiguous:  # a view of larger images, say
        images, rows = np.ascontiguousarray(images[rows.reshape(-1)]), np.arange(rows.size).reshape(rows.shape)
    x = backend.empty((*rows.shape, *images.shape[1:]), kind)
    backend.run("gather_images", images=images, index=rows, x=x)
    return x


def _float_of_bytes(where: str, images: Array, dtype: DTypeLike) -> np.dtype[Any]:
    """The dtype to convert the bytes to, if both are of the right kind."""
    kind = np.dtype(dtype)
    if images.dtype != np.uint8:
        raise DTypeError(f"{where}: images has dtype {images.dtype}, expected uint8 because pixels are bytes; pass the images of a split")
    if kind not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise DTypeError(f"{where}: dtype is {kind}, expected float32 or float64 because the engine computes in those; choose one of them")
    return kind


@dataclass(frozen=True, eq=False)
class ImageClasses:
    """One split: images that lie class by class, usually a read-only memory map.

    Class c owns `images[offsets[c]:offsets[c + 1]]`.

    Args:
        name: "train", "validation", "test" or any name of your own; it takes part in the draw of episodes.
        images: (n, H, W, C), uint8, C is 1 or 3, grouped by class; a NumPy or CuPy array.
        offsets: (n_classes + 1,), int64, from 0 to n, strictly increasing.
        class_names: one name a class.
    Raises: DTypeError or ShapeError if the arrays are not of that form; DataError if a class is empty.
    Cost: nothing is copied.
    """

    name: str
    images: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8:
            raise DTypeError(
                f"ImageClasses: images of split '{self.name}' has dtype {self.images.dtype}, expected uint8 because "
                "pixels are kept as bytes; convert with (255 * x).astype('uint8')"
            )
        if self.images.ndim != 4:
            raise ShapeError(
                f"ImageClasses: images of split '{self.name}' has shape {self.images.shape}, expected (n, H, W, C) "
                "because channels come last; add the axis with images[..., None]"
            )
        if self.offsets.shape != (len(self.class_names) + 1,):
            raise ShapeError(
                f"ImageClasses: offsets of split '{self.name}' has shape {self.offsets.shape}, expected "
                f"({len(self.class_names) + 1},) because there are {len(self.class_names)} class names; give where "
                "each class begins and where the last one ends"
            )
        sizes = np.diff(self.offsets)
        if len(sizes) == 0:
            raise DataError(
                f"ImageClasses: split '{self.name}' has 0 classes, expected at least 1 because episodes are drawn "
                "from classes; check the folder or the split list"
            )
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.images) or (sizes < 0).any():
            raise ShapeError(
                f"ImageClasses: offsets of split '{self.name}' runs from {self.offsets[0]} to {self.offsets[-1]}, "
                f"expected 0 to {len(self.images)} without a decrease because classes lie one after the other; use "
                "ImageClasses.from_labels"
            )
        empty = np.flatnonzero(sizes == 0)
        if len(empty):
            names = ", ".join(f"'{self.class_names[c]}'" for c in empty[:5])
            more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
            raise DataError(
                f"ImageClasses: class {names}{more} of split '{self.name}' has 0 images, expected at least 1 because "
                "an episode draws images of every class; add images or remove the class"
            )

    @classmethod
    def from_labels(
        cls, name: str, images: NDArray[np.uint8], labels: NDArray[Any], class_names: Sequence[str] | None = None
    ) -> ImageClasses:
        """Group images that lie in any order.

        Args:
            name: the split's name.
            images: (n, H, W, C), uint8.
            labels: (n,), integers from 0 to n_classes - 1.
            class_names: one name a class; by default "0", "1", … up to the largest label.
        Returns: an ImageClasses; within a class the images keep their order.
        Raises: DataError if a label is out of range or a class is empty; ShapeError, DTypeError as the class.
        Cost: one copy of the images.
        """
        given = np.asarray(labels)
        if given.dtype.kind not in "iu":
            raise DTypeError(
                f"from_labels: labels of split '{name}' has dtype {given.dtype}, expected integers because a label "
                "is a class number; convert it"
            )
        if given.shape != images.shape[:1]:
            raise ShapeError(
                f"from_labels: labels of split '{name}' has shape {given.shape}, expected {images.shape[:1]} because "
                "each image has one label; check both arrays"
            )
        largest = int(given.max()) if given.size else -1
        names = tuple(class_names) if class_names is not None else tuple(str(c) for c in range(largest + 1))
        if given.size and (int(given.min()) < 0 or largest >= len(names)):
            raise DataError(
                f"from_labels: labels of split '{name}' has values {given.min()} to {largest}, expected 0 to "
                f"{len(names) - 1} because there are {len(names)} classes; correct the labels"
            )
        counts = np.bincount(given.astype(np.int64), minlength=len(names))
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(name, images[np.argsort(given, kind="stable")], offsets, names)

    def on(self, device: str) -> ImageClasses:
        """The split with its images on a device, as the bytes they are; episodes are then gathered there.

        Args: device: "cpu" or "cuda".
        Raises: as `backend_on`. Cost: one copy of the bytes where they lie elsewhere.
        """
        return replace(self, images=place(self.images, device))

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def n_images(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(n_classes,), int64: how many images each class has."""
        return np.diff(self.offsets)

    @property
    def labels(self) -> NDArray[np.int64]:
        """(n,), int64: the class of each image."""
        return np.repeat(np.arange(self.n_classes, dtype=np.int64), self.sizes)

    def class_images(self, index: int) -> NDArray[np.uint8]:
        """The images of one class, (n_c, H, W, C), uint8, without a copy.

        Args:
            index: class number, 0 to n_classes - 1.
        Raises: ArgumentError if there is no such class.
        """
        if not 0 <= index < self.n_classes:
            raise ArgumentError(
                f"class_images: index is {index}, expected 0 to {self.n_classes - 1} because split '{self.name}' has "
                f"{self.n_classes} classes; choose one of them"
            )
        return self.images[self.offsets[index] : self.offsets[index + 1]]


@dataclass(frozen=True, eq=False)
class MetaDataset:
    """A data set for meta-learning: three splits with no class in common (unless `notes` says so).

    Args:
        name: "glyphs", "omniglot", "miniimagenet", "folder" or a name of your own.
        train: classes to meta-train on.
        validation: classes for early stopping and for the choice of settings.
        test: classes for the final figure.
        options: the options it was opened with, ready for a run's config.
        notes: what a user should know, one sentence each.
    Raises: ShapeError if the splits' images differ in shape.
    """

    name: str
    train: ImageClasses
    validation: ImageClasses
    test: ImageClasses
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shapes = {split.name: split.image_shape for split in (self.train, self.validation, self.test)}
        if len(set(shapes.values())) != 1:
            raise ShapeError(
                f"MetaDataset: images of '{self.name}' have shapes {shapes}, expected one shape because one network "
                "reads all splits; resize them alike"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        return self.train.image_shape

    def split(self, name: str) -> ImageClasses:
        """One split by name.

        Args:
            name: "train", "validation" (or "val") or "test".
        Raises: ArgumentError on another name.
        """
        splits = {"train": self.train, "validation": self.validation, "val": self.validation, "test": self.test}
        if name not in splits:
            raise ArgumentError(
                f"split: name is '{name}', expected train, validation or test because '{self.name}' has those; choose one of them"
            )
        return splits[name]

    def describe(self) -> str:
        """One line: name, image shape, classes and images of each split."""
        parts = ", ".join(
            f"{label} {split.n_classes} classes / {split.n_images} images"
            for label, split in (("train", self.train), ("validation", self.validation), ("test", self.test))
        )
        height, width, channels = self.image_shape
        return f"{self.name} {height}x{width}x{channels}: {parts}"
