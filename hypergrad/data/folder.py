"""Any folder of class folders of images."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArgumentError, DataError
from .cache import Source
from .decode import Look, header, plan_files, sides
from .files import Classes, check_once, digest, list_classes
from .images import SPLITS, check_choice, check_number

SPLIT_NAMES = {"train": ("train",), "validation": ("val", "validation", "valid"), "test": ("test",)}
WHERE = "put one folder a class, each with that class's images, into root, or into root/train, root/val and root/test"
_LARGEST_OWN_SIZE = 256  # larger images are photographs, which few-shot networks read at 84x84


def source(
    root: Path,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    invert: bool = False,
    fractions: tuple[float, float, float] = (0.64, 0.16, 0.20),
    seed: int = 0,
    n_way: int = 5,
) -> Source:
    """Class folders as a source for the cache: in `train/`, `val/` (or `validation/`, `valid/`) and `test/`, or directly in root.

    Args:
        root: the folder.
        image_size: one side or (height, width); other sizes are resized, both sides, nothing cut off. By default the size of most of
            the classes' first images if it is at most 256x256, else 84; a note says which.
        channels: 1 or 3; by default 1 if the first image of every class is grey, else 3.
        invert: exchange dark and light (dark ink on light paper becomes 255).
        fractions, seed, n_way: of the division of classes that lie directly in root, as `find_classes`.
    """
    check_choice("folder: channels", channels, (None, 1, 3))
    asked = None if image_size is None else sides(image_size)
    splits, division = find_classes(root, fractions, seed, n_way)
    headers = [header(files[0]) for classes in splits.values() for files in classes.values() if files]
    usual, count = Counter(size for _, size in headers).most_common(1)[0] if headers else ((0, 0), 0)
    fits = 2 * count > len(headers) and min(usual) >= 4 and max(usual) <= _LARGEST_OWN_SIZE
    size = asked or (usual if fits else (84, 84))
    note = f"images of {count} of {len(headers)} classes are {usual[0]}x{usual[1]}; all are read at {size[0]}x{size[1]} (see image_size)"
    look = Look(size, channels or (1 if all(grey for grey, _ in headers) else 3), invert)
    options = {"image_size": size[0] if size[0] == size[1] else size, "channels": look.channels, "invert": invert, **division}
    key, plan = {"look": look, "files": digest(splits)}, partial(plan_files, splits, look)
    return Source("folder", options, key, look.shape, plan, () if asked else (note,))


def find_classes(root: Path, fractions: tuple[float, float, float], seed: int, n_way: int) -> tuple[dict[str, Classes], dict[str, Any]]:
    """The classes of each split, and the options of their division.

    Root holds folders train, val and test with class folders, or class folders: these are shuffled by seed and cut by fractions, but so
    that each split gets n_way. Raises: ArgumentError if fractions or seed are out of range; DataError if there are only some splits, or
    fewer than 3 * n_way classes.
    """
    check_number("folder: seed", seed, 0, 2**64 - 1)
    if min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ArgumentError(f"folder: fractions is {fractions}, expected three positive numbers that sum to 1; correct them")
    places = {split: [root / name for name in names if (root / name).is_dir()] for split, names in SPLIT_NAMES.items()}
    missing = [split for split in SPLITS if not places[split]]
    check_once(f"folder: {root}", ((place.resolve(), split) for split, found in places.items() for place in found), "remove the link")
    if twice := next((found for found in places.values() if len(found) > 1), None):
        raise DataError(f"folder: {root} has {' and '.join(p.name for p in twice)}, expected one folder for this split; remove the others")
    if not missing:
        return {split: list_classes(places[split][0], 1) for split in SPLITS}, {"form": "splits"}
    if len(missing) < len(SPLITS):
        raise DataError(f"folder: {root} has no folder for {' and '.join(missing)}, expected all of train, val and test or none; {WHERE}")
    classes = list_classes(root, 1)
    n = len(classes)
    if n < 3 * n_way:
        lower = f", or lower n_way (--n-way) to {n // 3}" if n >= 6 else ""
        raise DataError(
            f"folder: {root} has {n} class folders, expected at least {3 * n_way} because train, validation and test each need "
            f"n_way = {n_way} classes of their own; add {3 * n_way - n} classes{lower}: {WHERE}"
        )
    n_validation = min(max(n_way, round(fractions[1] * n)), n - 2 * n_way)
    n_test = min(max(n_way, round(fractions[2] * n)), n - n_validation - n_way)
    raw = np.random.Philox(key=np.array([seed, 0], np.uint64)).random_raw(n)
    names = [list(classes)[i] for i in np.argsort(raw, kind="stable")]
    cuts = {"train": names[n_validation + n_test :], "validation": names[:n_validation], "test": names[n_validation:][:n_test]}
    splits = {split: {name: classes[name] for name in sorted(cuts[split])} for split in SPLITS}
    return splits, {"form": "classes", "fractions": list(fractions), "seed": seed, "n_way": n_way}
