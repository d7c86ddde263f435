"""MNIST's own file format, idx: a magic number, the sizes, then one byte an element; plain or gzipped."""

import gzip
import math
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..guards import open_plain
from .files import check_root, reading

MAX_BYTES = 1 << 28
PARTS = {"train": "train", "test": "t10k"}  # our name of a part, and the beginning of its files' names
WHERE = "put MNIST's four files there (train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-…), gzipped or not"


def read_idx(path: str | os.PathLike[str], axes: int) -> NDArray[np.uint8]:
    """The array in an idx file of bytes.

    Args:
        path: the file; one whose name ends in .gz is gzipped.
        axes: how many the array has: 3 for images, 1 for labels.
    Returns: a read-only uint8 array.
    Raises: DataError that names the file if it is unreadable, not of this format, cut off, too long or too large.
    Cost: one read.
    """
    name, head = Path(path), 4 + 4 * axes
    with reading("idx file", name), open_plain(name, MAX_BYTES) as file:
        content = (gzip.GzipFile(fileobj=file) if name.suffix == ".gz" else file).read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise DataError(f"mnist: {name} has more than {MAX_BYTES} bytes, expected MNIST's original file; get it again")
    magic, *sizes = np.frombuffer(content[:head].ljust(head, b"\0"), ">u4").tolist()
    if magic != 0x0800 + axes:
        raise DataError(
            f"mnist: {name} begins with the magic number {magic}, expected {0x0800 + axes}, an idx file of {axes} axes; get it again"
        )
    expected = head + math.prod(sizes)
    if len(content) != expected:
        raise DataError(
            f"mnist: {name} has {len(content)} bytes, expected {expected} because its head says {'x'.join(map(str, sizes))}; get it again"
        )
    return np.frombuffer(content, np.uint8, offset=head).reshape(tuple(sizes))


def read_mnist(root: str | os.PathLike[str], part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The training or the test part of MNIST, or of a data set in the same files, from its idx files.

    Args:
        root: folder with train-images-idx3-ubyte, train-labels-idx1-ubyte and the same of t10k; each may end in .gz and may have a
            prefix, such as mnist_.
        part: "train" or "test".
    Returns: images (n, H, W), uint8, and labels (n,), int64.
    Raises: DataError if a file is missing, is there twice or is damaged, or if the two do not fit.
    Cost: one read of two files.
    """
    folder, begin = check_root("mnist", root, WHERE), PARTS[part]
    image_file, label_file = _find(folder, f"{begin}-images-idx3-ubyte"), _find(folder, f"{begin}-labels-idx1-ubyte")
    images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
    if len(images) != len(labels) or not len(images):
        raise DataError(
            f"mnist: {image_file} has {len(images)} images and {label_file} {len(labels)} labels, expected one label an image; "
            "get both files again"
        )
    return images, labels.astype(np.int64)


def _find(folder: Path, name: str) -> Path:
    """The one file of this name, which may have a prefix and end in .gz; the plain name goes before a prefix, and .gz before none."""
    for ending in (f"{name}.gz", name):
        if (folder / ending).is_file():
            return folder / ending
    found = sorted(p for ending in (f"{name}.gz", name) for p in folder.glob(f"*{ending}") if not p.name.startswith("."))
    if len(found) != 1:
        have = ", ".join(p.name for p in found) or f"no {name}.gz"
        raise DataError(f"mnist: root {folder} has {have}, expected one file with this part because nothing is downloaded; {WHERE}")
    return found[0]
