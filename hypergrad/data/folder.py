"""Any folder of class folders of images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ArgumentError, DataError
from .cache import SplitPlan
from .decode import IMAGE_ERRORS, ImageFile, Look, decode_classes, digest_of, fingerprint, list_folders, list_images, square

Classes = dict[str, list[ImageFile]]
SPLIT_NAMES = {"train": ("train",), "validation": ("val", "validation", "valid"), "test": ("test",)}
WHERE = "put one folder a class, each with that class's images, into root, or into root/train, root/val and root/test"


class Folder:
    """Class folders as a source for the cache.

    The root holds either `train/`, `val/` (or `validation/`, `valid/`) and `test/` with class folders in
    each, or class folders directly; those are then divided among the splits by `seed`.

    Args:
        root: the folder.
        image_size: height and width, default 84; other sizes are resized, both sides, nothing cut off.
        channels: 1 or 3; by default 1 if the first image of every class is grey, else 3.
        invert: exchange dark and light (dark ink on light paper becomes 255).
        fractions: parts of the classes that go to train, validation and test where the root is not divided.
        seed: of that division, 0 to 2**64 - 1.
        name: what the data set is called.
    Raises: ArgumentError on an option out of range; DataError saying what is missing and where to put it.
    Cost: lists the files and opens one image a class; decoding once, 0.1 ms to 5 ms an image by size.
    """

    def __init__(
        self,
        root: Path,
        image_size: int | None = None,
        channels: int | None = None,
        invert: bool = False,
        fractions: tuple[float, float, float] = (0.64, 0.16, 0.20),
        seed: int = 0,
        name: str = "folder",
    ) -> None:
        if channels not in (None, 1, 3):
            raise ArgumentError(f"folder: channels is {channels}, expected 1 or 3 because images are grey or coloured; choose one of them")
        self.name, self.root, self.invert = name, root, invert
        self.size = square(image_size, 84)
        self._splits, self.form = find_classes(root, fractions, seed)
        self._division = {"fractions": list(fractions), "seed": seed} if self.form == "classes" else {}
        self.channels = channels if channels is not None else _channels(self._splits)

    @property
    def options(self) -> Mapping[str, Any]:
        return {"image_size": self.size[0], "channels": self.channels, "invert": self.invert, "form": self.form, **self._division}

    @property
    def key(self) -> Mapping[str, Any]:
        return {**self.options, "format": 1, **stamps(self._splits)}

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    def plan(self) -> Mapping[str, SplitPlan]:
        return plan_files(self._splits, Look(self.size, self.channels, self.invert))


def stamps(splits: Mapping[str, Classes]) -> dict[str, str]:
    """What identifies the files of all splits and their division into classes, as JSON values."""
    paths = dict.fromkeys(file.path for classes in splits.values() for files in classes.values() for file in files)
    division = {split: [[name, [str(file) for file in files]] for name, files in classes.items()] for split, classes in splits.items()}
    return {"files": fingerprint(paths), "classes": digest_of(division)}


def plan_files(splits: Mapping[str, Classes], look: Look) -> dict[str, SplitPlan]:
    """The plan of splits whose classes are lists of image files."""

    def blocks(files: Sequence[Sequence[ImageFile]]) -> Iterator[NDArray[np.uint8]]:
        return decode_classes(files, look)

    return {
        split: SplitPlan(
            tuple(classes),
            tuple(len(files) for files in classes.values()),
            (*look.size, look.channels),
            partial(blocks, list(classes.values())),
        )
        for split, classes in splits.items()
    }


def find_classes(root: Path, fractions: tuple[float, float, float], seed: int) -> tuple[dict[str, Classes], str]:
    """The classes of each split.

    Args:
        root: the folder.
        fractions: of the classes for train, validation and test, where the root is not divided.
        seed: of that division.
    Returns: split -> class -> image files; and "splits" or "classes", the form that was found.
    Raises: ArgumentError, DataError as Folder.
    """
    present = {split: [root / name for name in names if (root / name).is_dir()] for split, names in SPLIT_NAMES.items()}
    if all(present.values()):
        return {split: read_classes(folders[0]) for split, folders in present.items()}, "splits"
    if any(present.values()):
        missing = [split for split, folders in present.items() if not folders]
        have = [split for split, folders in present.items() if folders]
        raise DataError(
            f"folder: {root} has {' and '.join(have)} but not {' and '.join(missing)}, expected all three or none "
            f"because a folder is divided either by itself or by seed; {WHERE}"
        )
    return divide(read_classes(root), root, fractions, seed), "classes"


def read_classes(folder: Path) -> Classes:
    """Class folders directly inside a folder; one without images is an error.

    Raises: DataError naming the empty class, or if there are no class folders.
    """
    classes = {path.name: list_images(path) for path in list_folders(folder)}
    if not classes:
        raise DataError(
            f"folder: {folder} has no class folders, expected one folder a class because classes are named by their folders; {WHERE}"
        )
    for name, files in classes.items():
        if not files:
            raise DataError(
                f"folder: class '{name}' in {folder} has 0 images, expected at least 1 because an episode draws "
                "images of every class; add images or remove the folder"
            )
    return classes


def divide(classes: Classes, root: Path, fractions: tuple[float, float, float], seed: int) -> dict[str, Classes]:
    """Divide classes among the splits: shuffled by seed, then cut; each split gets at least one class.

    Raises: ArgumentError if fractions or seed are out of range; DataError if there are fewer than three classes.
    """
    if min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ArgumentError(
            f"folder: fractions is {fractions}, expected three positive numbers that sum to 1 because they are the "
            "parts of the classes; correct them"
        )
    if not 0 <= seed < 2**64:
        raise ArgumentError(
            f"folder: seed is {seed}, expected 0 to 2**64 - 1 because it is one 64-bit word of the generator's key; choose another"
        )
    n = len(classes)
    if n < 3:
        raise DataError(
            f"folder: {root} has {n} class folders, expected at least 3 because train, validation and test have no class in common; {WHERE}"
        )
    n_validation = max(1, round(fractions[1] * n))
    n_test = min(max(1, round(fractions[2] * n)), n - n_validation - 1)
    raw = np.random.Philox(key=np.array([seed, 0], np.uint64)).random_raw(n)
    names = [sorted(classes)[i] for i in np.argsort(raw, kind="stable")]
    cuts = {
        "train": names[n_validation + n_test :],
        "validation": names[:n_validation],
        "test": names[n_validation : n_validation + n_test],
    }
    return {split: {name: classes[name] for name in sorted(cuts[split])} for split in ("train", "validation", "test")}


def _channels(splits: Mapping[str, Classes]) -> int:
    for classes in splits.values():
        for files in classes.values():
            try:
                with Image.open(files[0].path) as image:
                    if not image.mode.startswith(("1", "L", "I;16")):
                        return 3
            except IMAGE_ERRORS as error:
                raise DataError(
                    f"image: {files[0]} has damaged or unknown contents ({error}), expected a whole image because "
                    "every image of a class is used; restore or remove the file"
                ) from error
    return 1
