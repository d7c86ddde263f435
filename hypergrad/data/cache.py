"""Decoded images on disk: uint8 arrays that the next start maps into memory.

A cache entry is one file: the images of all splits as a .npy file, and behind them a description as JSON. It is written under a
temporary name and renamed when whole, so a reader never sees half of one, and two writers at once are fine. On opening, a CRC-32 of the
entry's name, the description and up to 48 MiB of the images (all of a smaller file, evenly spaced blocks of a larger one) is compared.
"""

import hashlib
import json
import math
import os
import re
import shutil
import stat
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import platformdirs
from numpy.typing import NDArray

from ..errors import DataError, HypergradError, ShapeError
from ..guards import open_plain, parse_json
from ..threads import startable_threads
from .files import reading
from .images import SPLITS, ImageClasses, MetaDataset, check_classes
from .report import Reporter

FORMAT = 4
_BLOCK_BYTES, _N_BLOCKS = 1 << 16, 768
_THREADS, _AHEAD = 4, 16  # threads that decode, and the most blocks that they hold
_THREADS_FROM_BYTES = 1 << 14  # of smaller files one thread decodes: the interpreter's lock costs more than a second one gains
_STALE_S = 86400.0
_LEFTOVER = re.compile(r"\.[a-z]+-[0-9a-f]{20}-\w{8}\.tmp")  # the name of an entry that is being written


class Block(NamedTuple):
    """Classes that are decoded at once: their names, images of each, what gives all, (len(names) * n_each, H, W, C), uint8, and the size
    of their files."""

    names: tuple[str, ...]
    n_each: int
    decode: Callable[[], NDArray[np.uint8]]
    n_bytes: int = 0

    def turned(self, turns: Sequence[int]) -> "Block":
        """This one class as several, its images turned by so many times 90 degrees."""

        def decode() -> NDArray[np.uint8]:
            images = self.decode()
            return np.concatenate([np.rot90(images, turn, axes=(1, 2)) for turn in turns])

        return Block(tuple(f"{self.names[0]}/rot{90 * turn:03d}" for turn in turns), self.n_each, decode, self.n_bytes)

    def checked(self, image_shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        """The images, lying together. Raises: ShapeError if they are not what was planned."""
        images, expected = np.ascontiguousarray(self.decode()), (len(self.names) * self.n_each, *image_shape)
        if images.shape != expected or images.dtype != np.uint8:
            raise ShapeError(
                f"cache: class '{self.names[0]}' decoded to {images.shape} {images.dtype}, expected {expected} uint8 because the plan "
                "says so; correct the source"
            )
        return images


Plan = Mapping[str, Sequence[Block]]  # split -> its classes


class Source(NamedTuple):
    """A data set that can be decoded, what the readers of this package return: with the options it was opened with, all that the decoded
    bytes depend on as JSON values, (H, W, C), what plans the splits (called only when the cache has no entry for the key) and notes for
    the user."""

    name: str
    options: Mapping[str, Any]
    key: Mapping[str, Any]
    image_shape: tuple[int, int, int]
    plan: Callable[[], Plan]
    notes: tuple[str, ...] = ()


def cache_dir(override: str | os.PathLike[str] | None = None) -> Path:
    """Where decoded data sets are kept.

    Args: override: a folder to use instead.
    Returns: `override`, else the environment variable HYPERGRAD_CACHE, else the user's cache folder of the platform (on Linux
        ~/.cache/hypergrad). The folder need not exist. Deleting it is always safe.
    """
    chosen = override if override is not None else os.environ.get("HYPERGRAD_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("hypergrad"))


def load(source: Source, folder: Path, reporter: Reporter, n_way: int = 1) -> MetaDataset:
    """Open a data set from the cache, as read-only memory maps; decode it first where there is no whole entry, which `reporter` shows.

    Raises: DataError if a split has fewer than n_way classes (before anything is decoded), the source is faulty, or the cache cannot be
        written (a full disk leaves no file). Cost: from the cache, at most 48 MiB read; otherwise one decoding and n bytes written.
    """
    key = hashlib.sha256(json.dumps({"format": FORMAT, **source.key}, sort_keys=True).encode()).hexdigest()
    entry = folder / f"{source.name}-{key[:20]}.images"
    splits: dict[str, ImageClasses] = {}
    if os.path.lexists(entry):
        try:
            splits = _read(entry)
        except DataError as fault:
            reporter.message(f"decoding the images again: {fault}")
    if not splits:
        try:
            _write(source, entry, reporter, n_way)
        except (OSError, ValueError) as error:
            if isinstance(error, HypergradError):
                raise
            reason = getattr(error, "strerror", None) or error
            raise DataError(
                f"cache: writing under {folder} failed ({reason}), expected room and permission to write because decoded "
                "images are kept there (nothing of this attempt was left behind); free space, or set HYPERGRAD_CACHE to another folder"
            ) from error
        splits = _read(entry)
    for name, split in splits.items():
        check_classes(name, split.class_names, split.sizes, n_way)
    return MetaDataset(source.name, **splits, options=dict(source.options), notes=source.notes)


def _read(entry: Path) -> dict[str, ImageClasses]:
    splits = {}
    with reading("cache", entry), open_plain(entry, 1 << 62) as file:
        images = np.load(entry, mmap_mode="r", allow_pickle=False)
        n_bytes = file.seek(images.offset + images.nbytes)
        meta = parse_json(file.read())
        if _crc(file, n_bytes, [entry.name, meta["splits"]]) != meta["crc32"]:
            raise ValueError("other checksum")
        for name, class_names, counts in meta["splits"]:
            offsets = np.cumsum([0, *counts])
            splits[name] = ImageClasses(name, images[: offsets[-1]], offsets, tuple(class_names))
            images = images[offsets[-1] :]
    return splits


def _crc(file: BinaryIO, n_bytes: int, described: Any) -> int:
    """CRC-32 of what describes the images and of the first n_bytes, or of _N_BLOCKS evenly spaced blocks of them, the ends included."""
    crc, n_all = zlib.crc32(json.dumps(described).encode()), -(-n_bytes // _BLOCK_BYTES)
    for i in np.linspace(0, n_all - 1, min(n_all, _N_BLOCKS)).astype(int).tolist():
        file.seek(i * _BLOCK_BYTES)
        crc = zlib.crc32(file.read(min(_BLOCK_BYTES, n_bytes - i * _BLOCK_BYTES)), crc)
    return crc


def _write(source: Source, entry: Path, reporter: Reporter, n_way: int) -> None:
    folder, shape, plan = entry.parent, source.image_shape, source.plan()
    splits = [(name, [c for b in plan[name] for c in b.names], [b.n_each for b in plan[name] for _ in b.names]) for name in SPLITS]
    for name, class_names, counts in splits:
        check_classes(name, class_names, counts, n_way)
    folder.mkdir(parents=True, exist_ok=True)
    for path in filter(lambda path: _LEFTOVER.fullmatch(path.name), folder.iterdir()):  # of processes that were killed while writing
        with suppress(OSError):  # its owner has just finished, or it is another's
            found = path.lstat()
            if stat.S_ISREG(found.st_mode) and time.time() - found.st_mtime > _STALE_S:
                path.unlink()
    n_images = sum(sum(counts) for _, _, counts in splits)
    need, free = n_images * math.prod(shape) + (1 << 20), shutil.disk_usage(folder).free
    if free < need:
        raise DataError(
            f"cache: the disk of {folder} has {free >> 20} MiB free, expected {need >> 20} MiB because the decoded images of "
            f"'{source.name}' are kept there; free space, or set HYPERGRAD_CACHE to a folder on another disk"
        )
    blocks = [block for name in SPLITS for block in plan[name]]
    threads = _THREADS if sum(block.n_bytes for block in blocks) >= _THREADS_FROM_BYTES * n_images else 1
    threads = startable_threads(threads)
    handle, temporary = tempfile.mkstemp(prefix=f".{entry.stem}-", suffix=".tmp", dir=folder)
    try:
        # A plain file, not a writable map: a full disk is then an error of write() and not a bus error.
        with (
            open(handle, "w+b") as file,
            reporter.progress(f"decoding {source.name}", n_images) as tick,
            ThreadPoolExecutor(threads or 1) as pool,
        ):
            decoded = pool.map if threads else map
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (n_images, *shape)})
            for start in range(0, len(blocks), _AHEAD):
                for images in decoded(lambda block: block.checked(shape), blocks[start : start + _AHEAD]):
                    file.write(images.data)
                    tick(len(images))
            n_bytes = file.tell()
            text = json.dumps({"crc32": _crc(file, n_bytes, [entry.name, splits]), "splits": splits}).encode()
            file.seek(n_bytes)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, entry)
    finally:
        Path(temporary).unlink(missing_ok=True)
