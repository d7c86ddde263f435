"""From files of images to bytes of one size: for the data sets, class by class, and for a person's own images."""

import contextlib
import io
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..errors import ArgumentError, DataError
from ..guards import open_plain
from .cache import Block, Plan
from .files import MAX_BYTES, Classes, File, list_classes, reading

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # others may start programs: EPS does
MAX_PIXELS = 1 << 25
_LARGE_BYTES, _LARGE_PIXELS = 1 << 22, 1 << 22  # larger images are decoded one at a time, so that threads do not multiply their memory
_LARGE = threading.RLock()
_ORIENTATION, _LYING = 0x0112, (5, 6, 7, 8)  # the tag of EXIF, and its values that exchange height and width


class Look(NamedTuple):
    """How an image becomes an array: height and width, to which it is resized (both sides, nothing cut off), 1 or 3 channels, and
    whether dark and light are exchanged, so that dark ink on light paper becomes 255."""

    size: tuple[int, int]
    channels: int
    invert: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return (*self.size, self.channels)


def sides(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width from the option image_size. Raises: ArgumentError unless both are 4 to 1024."""
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or not all(4 <= side <= 1024 for side in size):
        raise ArgumentError(f"dataset: image_size is {image_size}, expected one side or (height, width), each 4 to 1024; choose another")
    return size[0], size[1]


def to_array(image: Image.Image, look: Look) -> NDArray[np.uint8]:
    """A picture as (H, W, C), uint8: made upright in place by its EXIF data, 16-bit grey brought to 8 bits, transparency laid on white
    paper, resized by Lanczos' filter. Raises: ValueError for numbers of other types, whose white is not known."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "I" or image.mode.startswith("I;16"):
        deep = np.asarray(image)
        low, high = int(deep.min()), int(deep.max())
        if low < 0 or high > 0xFFFF:
            raise ValueError(f"its pixels go from {low} to {high}, expected 0 to {0xFFFF}, those of 16 bits")
        image = Image.fromarray((deep.astype(np.int32) >> 8).astype(np.uint8))
    elif image.mode == "F":
        numbers = np.asarray(image)
        raise ValueError(f"its pixels are fractions from {numbers.min():g} to {numbers.max():g}, expected 8 or 16 bits; convert it")
    elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image if image.mode == "RGBA" else image.convert("RGBA"))
    image = image.convert("L" if look.channels == 1 else "RGB")
    height, width = look.size
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    pixels = np.asarray(image, dtype=np.uint8).reshape(height, width, look.channels)
    return 255 - pixels if look.invert else pixels


def decode(file: File, look: Look) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """The image, and its height and width before it was resized. Raises: DataError naming the file if it is not a whole image."""
    with _one_at_a_time(file.n_bytes > _LARGE_BYTES):
        contents = file.read()
        with reading("image", file), Image.open(io.BytesIO(contents), formats=FORMATS) as image:
            n_pixels = image.width * image.height
            if n_pixels > MAX_PIXELS:
                raise ValueError(f"it has {n_pixels} pixels, expected at most {MAX_PIXELS}")
            with _one_at_a_time(n_pixels > _LARGE_PIXELS):
                return to_array(image, look), (image.height, image.width)  # in this order: the first makes it upright


def _one_at_a_time(large: bool) -> contextlib.AbstractContextManager[object]:
    return _LARGE if large else contextlib.nullcontext()


def header(file: File) -> tuple[bool, tuple[int, int]]:
    """Whether an image is grey, and its height and width, from its first bytes. Raises: DataError as `decode`."""
    with reading("image", file), open_plain(file.path, MAX_BYTES) as opened, Image.open(opened, formats=FORMATS) as image:
        known = image.format != "PNG" or "exif" in image.info  # of other PNG files Pillow would decode all to look for it
        lying = known and image.format != "TIFF" and image.getexif().get(_ORIENTATION) in _LYING  # Pillow turns TIFF itself
        size = (image.width, image.height) if lying else (image.height, image.width)
        return image.mode.startswith(("1", "L", "I")), size


def decode_all(files: Sequence[File], look: Look) -> NDArray[np.uint8]:
    """The images of a class, (n, H, W, C), uint8. Raises: DataError naming the first file that cannot be decoded."""
    return np.stack([decode(file, look)[0] for file in files])


def plan_files(splits: Mapping[str, Classes], look: Look) -> Plan:
    """The plan of splits whose classes are lists of image files."""
    return {
        split: [
            Block((name,), len(own), partial(decode_all, own, look), sum(file.n_bytes for file in own)) for name, own in classes.items()
        ]
        for split, classes in splits.items()
    }


def read_images(
    paths: Iterable[str | os.PathLike[str]], image_size: tuple[int, int, int], *, invert: bool = False
) -> tuple[NDArray[np.uint8], list[Path]]:
    """Read image files for prediction, as the folder data set reads them.

    Args:
        paths: N image files.
        image_size: (H, W, C) of the result, for instance `MetaDataset.image_shape`; C is 1 or 3.
        invert: exchange dark and light, as the option of the folder data set.
    Returns: images (N, H, W, C), uint8; and the paths of those that were resized, both sides, nothing cut off.
    Raises: DataError naming the file that is missing, unreadable or no whole image; ArgumentError on another image_size.
    Cost: one decoding a file.
    """
    if len(image_size) != 3 or image_size[2] not in (1, 3):
        raise ArgumentError(f"read_images: image_size is {image_size}, expected (H, W, C) with C 1 or 3; pass the data set's image_shape")
    look = Look(sides(image_size[:2]), image_size[2], invert)
    files = [File(os.fspath(path)) for path in paths]
    decoded = [decode(file, look) for file in files]
    images = np.array([pixels for pixels, _ in decoded], np.uint8).reshape(len(files), *image_size)
    return images, [Path(file.path) for file, (_, stored) in zip(files, decoded, strict=True) if stored != look.size]


def read_support_folder(
    root: str | os.PathLike[str], image_size: tuple[int, int, int], *, invert: bool = False
) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...], list[Path]]:
    """Read the labelled examples of a task of one's own: one folder a class, each with at least one image.

    Args:
        root: the folder that holds the class folders.
        image_size, invert: as `read_images`.
    Returns: images (N, H, W, C), uint8, class by class; labels (N,), int64; the names of the classes; and the paths that were resized.
    Raises: DataError if there are fewer than two class folders or one holds no image; otherwise as `read_images`.
    Cost: one decoding a file.
    """
    classes = list_classes(Path(root), 1)
    if len(classes) < 2 or not all(classes.values()):
        have = ", ".join(f"{name}: {len(files)} images" for name, files in classes.items()) or "none"
        raise DataError(f"read_support_folder: {root} has class folders ({have}), expected two or more with images in each; add them")
    images, resized = read_images([file.path for files in classes.values() for file in files], image_size, invert=invert)
    return images, np.repeat(np.arange(len(classes)), [*map(len, classes.values())]), tuple(classes), resized
