"""From files of images to bytes of one size, class by class."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import zipfile
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ArgumentError, DataError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# What Pillow raises on damaged or hostile contents, format by format (UnidentifiedImageError is an OSError).
IMAGE_ERRORS = (
    OSError,
    EOFError,
    LookupError,
    OverflowError,
    SyntaxError,
    TypeError,
    ValueError,
    Image.DecompressionBombError,
    struct.error,
    zlib.error,
)
# Below this many bytes a file the interpreter's lock, which decoding releases, costs more than a second
# thread gains.
_THREADS_FROM_BYTES = 1 << 14


@dataclass(frozen=True)
class ImageFile:
    """An image on disk, or inside a zip file.

    Args:
        path: the file, or the zip file that holds it.
        member: its name inside the zip file; "" where the image is a file of its own.
        n_bytes: size as stored.
    """

    path: Path
    member: str
    n_bytes: int

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)


@dataclass(frozen=True)
class Look:
    """How an image becomes an array.

    Args:
        size: height and width of the result; an image of another size is resized (both sides, nothing cut off).
        channels: 1 (grey) or 3 (red, green, blue).
        invert: exchange dark and light, so that dark ink on light paper becomes 255.
    """

    size: tuple[int, int]
    channels: int
    invert: bool = False


class Reader:
    """Opens image files and zip members; keeps zip files open until closed; safe among threads."""

    def __init__(self) -> None:
        self._zips: dict[Path, zipfile.ZipFile] = {}

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        for archive in self._zips.values():
            archive.close()

    def prepare(self, files: Iterable[ImageFile]) -> None:
        """Open the zip files that `files` need. Raises: DataError if one cannot be read."""
        for path in {file.path for file in files if file.member} - self._zips.keys():
            self._zips[path] = open_zip(path)

    def read(self, file: ImageFile) -> bytes:
        """The stored bytes. Raises: DataError naming the file if it cannot be read."""
        try:
            return self._zips[file.path].read(file.member) if file.member else file.path.read_bytes()
        except (OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(
                f"image: {file} has no readable bytes ({error}), expected an image because it is listed in the data set; restore the file"
            ) from error

    def decode(self, file: ImageFile, look: Look) -> NDArray[np.uint8]:
        """One image, (H, W, C), uint8. Raises: DataError naming the file if it is not a whole image."""
        try:
            with Image.open(io.BytesIO(self.read(file))) as image:
                return to_array(image, look)
        except DataError:
            raise
        except IMAGE_ERRORS as error:
            raise DataError(
                f"image: {file} has damaged or unknown contents ({error}), expected a whole image because every "
                "image of a class is used; restore or remove the file"
            ) from error


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip file for reading. Raises: DataError naming it if it is missing or damaged."""
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(
            f"zip: {path} has unreadable contents ({error}), expected a zip file because of its name; fetch it again"
        ) from error


def read_text(path: Path, member: str = "") -> str:
    """The text of a file, or of a member of a zip file. Raises: DataError naming it if it cannot be read."""
    try:
        if not member:
            return path.read_text("utf-8-sig")
        with open_zip(path) as archive:
            return archive.read(member).decode("utf-8-sig")
    except (OSError, KeyError, UnicodeDecodeError, zipfile.BadZipFile, zlib.error) as error:
        place = f"{path}:{member}" if member else str(path)
        raise DataError(
            f"list: {place} has unreadable contents ({error}), expected UTF-8 text because it is a split list; fetch it again"
        ) from error


def to_array(image: Image.Image, look: Look) -> NDArray[np.uint8]:
    """Convert and resize a picture.

    16-bit grey is brought to 8 bits; transparency is laid on white paper; resizing uses Lanczos' filter.

    Args:
        image: any mode and size.
        look: what to make of it.
    Returns: (H, W, C), uint8.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255)
        image = Image.fromarray(grey.astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image.convert("RGBA"))
    image = image.convert("L" if look.channels == 1 else "RGB")
    height, width = look.size
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    pixels = np.asarray(image, dtype=np.uint8).reshape(height, width, look.channels)
    return 255 - pixels if look.invert else pixels


def decode_classes(classes: Sequence[Sequence[ImageFile]], look: Look, threads: int | None = None) -> Iterator[NDArray[np.uint8]]:
    """Decode the files of each class.

    Args:
        classes: the files of each class, in the order wanted.
        look: how an image becomes an array.
        threads: at once; by default 1 for small files and up to 4 for large ones.
    Returns: for each class (n_c, H, W, C), uint8; the same whatever the number of threads.
    Raises: DataError naming the first file that cannot be decoded.
    Memory: one class, and with threads two classes a thread.
    """
    if threads is None:
        sizes = [file.n_bytes for files in classes[:32] for file in files[:8]]
        large = bool(sizes) and sum(sizes) / len(sizes) >= _THREADS_FROM_BYTES
        threads = min(4, os.cpu_count() or 1) if large else 1
    with Reader() as reader:
        reader.prepare(file for files in classes for file in files)

        def decode(files: Sequence[ImageFile]) -> NDArray[np.uint8]:
            block = np.empty((len(files), *look.size, look.channels), np.uint8)
            for i, file in enumerate(files):
                block[i] = reader.decode(file, look)
            return block

        if threads == 1:
            yield from map(decode, classes)
            return
        with ThreadPoolExecutor(threads) as pool:
            waiting: deque[Future[NDArray[np.uint8]]] = deque()
            try:
                for files in classes:
                    waiting.append(pool.submit(decode, files))
                    if len(waiting) > 2 * threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()


def list_images(folder: Path) -> list[ImageFile]:
    """The image files directly inside a folder, by name; hidden files are left out.

    Raises: DataError if the folder cannot be read.
    Cost: one directory read and one stat a file.
    """
    return [
        ImageFile(Path(entry.path), "", entry.stat().st_size)
        for entry in scan(folder)
        if entry.name.lower().endswith(EXTENSIONS) and entry.is_file()
    ]


def list_folders(folder: Path) -> list[Path]:
    """The folders directly inside a folder, by name, hidden ones left out. Raises: DataError as `scan`."""
    return [Path(entry.path) for entry in scan(folder) if entry.is_dir()]


def scan(folder: Path) -> list[os.DirEntry[str]]:
    """Entries of a folder by name, hidden ones left out. Raises: DataError if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise DataError(
            f"folder: {folder} has no readable contents ({error.strerror}), expected a folder because the data set "
            "lies there; check the path and its permissions"
        ) from error


def fingerprint(paths: Iterable[Path]) -> str:
    """SHA-256 over path, size and time of change of each file: equal while nobody has touched them.

    Raises: DataError if a file has vanished.
    Cost: one stat a file.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            state = os.stat(path)
        except OSError as error:
            raise DataError(
                f"file: {path} has vanished or is unreadable ({error.strerror}), expected a file because it was "
                "listed a moment ago; try again"
            ) from error
        digest.update(f"{path}\0{state.st_size}\0{state.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def digest_of(value: object) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def square(image_size: int | None, default: int) -> tuple[int, int]:
    """Height and width from the option image_size. Raises: ArgumentError if it is not 4 to 1024."""
    size = default if image_size is None else image_size
    if not 4 <= size <= 1024:
        raise ArgumentError(f"dataset: image_size is {size}, expected 4 to 1024 because images are kept decoded; choose a size between")
    return size, size
