"""Images grouped by class, and the three splits of a data set for meta-learning."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..backends import Array, backend_of, place
from ..errors import ArgumentError, DataError, DTypeError, ShapeError

SPLITS = ("train", "validation", "test")


def to_float(images: NDArray[Any], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """Pixels as numbers in [0, 1]: value / 255.

    Args: images: any shape, uint8; dtype: float32 or float64.
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
            f"gather: rows has values {rows.min()} to {rows.max()}, expected 0 to {len(images) - 1} because there are {len(images)} "
            "images; correct the rows"
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
        raise DTypeError(f"{where}: images has dtype {images.dtype}, expected uint8; pass the images of a split")
    if kind not in (np.float32, np.float64):
        raise DTypeError(f"{where}: dtype is {kind}, expected float32 or float64; choose one of them")
    return kind


def check_number(what: str, value: int, least: int, most: int | None = None) -> None:
    """Raise ArgumentError unless least <= value <= most; `what` names the argument, as in "glyphs: seed"."""
    if value < least or (most is not None and value > most):
        raise ArgumentError(f"{what} is {value}, expected {f'at least {least}' if most is None else f'{least} to {most}'}; choose another")


def check_choice(what: str, value: object, known: Collection[object]) -> None:
    """Raise ArgumentError unless value is among those known; `what` names the argument, as in "omniglot: split"."""
    if value not in known:
        raise ArgumentError(f"{what} is '{value}', expected {', '.join(map(str, known))}; choose one of them")


def check_classes(split: str, class_names: Sequence[str], counts: Sequence[int] | NDArray[np.int64], n_way: int = 1) -> None:
    """Raise DataError unless a split has n_way classes and each of them an image."""
    if len(class_names) < n_way:
        lower = f", or lower n_way (--n-way) to {len(class_names)}" if len(class_names) > 1 else ""
        raise DataError(
            f"dataset: split '{split}' has {len(class_names)} classes, expected at least {n_way} to draw {n_way}-way episodes from; "
            f"add classes{lower}"
        )
    empty = [name for name, count in zip(class_names, counts, strict=True) if count == 0]
    if empty:
        names = ", ".join(f"'{name}'" for name in empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        raise DataError(f"dataset: class {names} of split '{split}' has 0 images, expected at least 1; add images or remove the class")


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
        of = f"of split '{self.name}'"
        if self.images.dtype != np.uint8:
            raise DTypeError(f"ImageClasses: images {of} has dtype {self.images.dtype}, expected uint8; use (255 * x).astype('uint8')")
        if self.images.ndim != 4:
            raise ShapeError(f"ImageClasses: images {of} has shape {self.images.shape}, expected (n, H, W, C); use images[..., None]")
        n = self.n_classes
        if self.offsets.shape != (n + 1,) or self.offsets[0] != 0 or self.offsets[-1] != len(self.images) or (self.sizes < 0).any():
            raise ShapeError(
                f"ImageClasses: offsets {of} has shape {self.offsets.shape}, expected {n + 1} numbers for {n} class names, from 0 to "
                f"{len(self.images)} without a decrease; use ImageClasses.from_labels"
            )
        check_classes(self.name, self.class_names, self.sizes)

    @classmethod
    def from_labels(
        cls, name: str, images: NDArray[np.uint8], labels: NDArray[Any], class_names: Sequence[str] | None = None
    ) -> "ImageClasses":
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
        given, of = np.asarray(labels), f"labels of split '{name}'"
        if given.dtype.kind not in "iu":
            raise DTypeError(f"from_labels: {of} has dtype {given.dtype}, expected integers; convert it")
        if given.shape != images.shape[:1]:
            raise ShapeError(
                f"from_labels: {of} has shape {given.shape}, expected {images.shape[:1]}, one label an image; check both arrays"
            )
        least, most = (int(given.min()), int(given.max())) if given.size else (0, -1)
        names = tuple(map(str, range(most + 1))) if class_names is None else tuple(class_names)
        if least < 0 or most >= len(names):
            raise DataError(f"from_labels: {of} has values {least} to {most}, expected 0 to {len(names) - 1}; correct the labels")
        order = np.argsort(given, kind="stable")
        return cls(name, images[order], np.searchsorted(given[order], np.arange(len(names) + 1)), names)

    def on(self, device: str) -> "ImageClasses":
        """The split with its images on a device, as the bytes they are; episodes are then gathered there.

        Args: device: "cpu" or "cuda". Raises: as `backend_on`. Cost: one copy of the bytes where they lie elsewhere.
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

        Args: index: class number, 0 to n_classes - 1. Raises: ArgumentError if there is no such class.
        """
        check_number("class_images: index", index, 0, self.n_classes - 1)
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
        shapes = {name: self.split(name).image_shape for name in SPLITS}
        if len(set(shapes.values())) != 1:
            raise ShapeError(
                f"MetaDataset: images of '{self.name}' have shapes {shapes}, expected one shape because one network reads all splits; "
                "resize them alike"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        return self.train.image_shape

    def split(self, name: str) -> "ImageClasses":
        """One split by name.

        Args: name: "train", "validation" (or "val") or "test". Raises: ArgumentError on another name.
        """
        splits = {"train": self.train, "validation": self.validation, "val": self.validation, "test": self.test}
        check_choice("split: name", name, splits)
        return splits[name]

    def describe(self) -> str:
        """One line: name, image shape, classes and images of each split."""
        parts = (f"{name} {self.split(name).n_classes} classes / {self.split(name).n_images} images" for name in SPLITS)
        height, width, channels = self.image_shape
        return f"{self.name} {height}x{width}x{channels}: {', '.join(parts)}"
