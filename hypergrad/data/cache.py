"""Decoded images on disk: uint8 arrays that the next start maps into memory.

A cache entry is a folder `<name>-<key>/` with one `.npy` file a split and `meta.json`. It is written under a
temporary name and renamed when whole, so a reader never sees half of one; two writers at once are fine, the
first rename wins. On opening, the size of each array and a CRC-32 of up to 16 MiB of it (all of a smaller
one, evenly spaced blocks of a larger one) are compared with `meta.json`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import platformdirs
from numpy.typing import NDArray

from ..errors import DataError, ShapeError
from .images import ImageClasses, MetaDataset
from .report import Reporter

FORMAT = 1
SPLITS = ("train", "validation", "test")
_BLOCK_BYTES = 1 << 16
_N_BLOCKS = 256
_STALE_S = 86400.0


@dataclass(frozen=True)
class SplitPlan:
    """How one split will be built.

    Args:
        class_names: one name a class.
        counts: images in each class.
        image_shape: (H, W, C).
        blocks: gives, class by class, the images (counts[c], H, W, C), uint8.
    """

    class_names: tuple[str, ...]
    counts: tuple[int, ...]
    image_shape: tuple[int, int, int]
    blocks: Callable[[], Iterator[NDArray[np.uint8]]]

    @property
    def n_bytes(self) -> int:
        """Bytes of the images."""
        return sum(self.counts) * int(np.prod(self.image_shape))


class Source(Protocol):
    """A data set that can be decoded: what the readers of this package implement.

    `key` holds all that the decoded bytes depend on (files with sizes and times, options, versions), as JSON
    values; `plan` is called only when the cache has no entry for the key.
    """

    name: str

    @property
    def key(self) -> Mapping[str, Any]: ...

    @property
    def options(self) -> Mapping[str, Any]: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def plan(self) -> Mapping[str, SplitPlan]: ...


def cache_dir(override: str | os.PathLike[str] | None = None) -> Path:
    """Where decoded data sets are kept.

    Args:
        override: a folder to use instead.
    Returns: `override`, else the environment variable HYPERGRAD_CACHE, else the user's cache folder of the
        platform (on Linux ~/.cache/hypergrad). The folder need not exist. Deleting it is always safe.
    """
    if override is not None:
        return Path(override)
    chosen = os.environ.get("HYPERGRAD_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("hypergrad"))


def load(source: Source, folder: Path, reporter: Reporter) -> MetaDataset:
    """Open a data set from the cache, building its entry first where there is none.

    Args:
        source: what to decode.
        folder: the cache folder; made if missing.
        reporter: shows the progress of decoding, and says so when a damaged entry is rebuilt.
    Returns: MetaDataset whose images are read-only memory maps.
    Raises: DataError if the source is faulty, or the cache cannot be written (a full disk leaves no file).
    Cost: from the cache, at most 16 MiB read a split; otherwise one decoding and n bytes written.
    """
    digest = hashlib.sha256(json.dumps({"format": FORMAT, **source.key}, sort_keys=True).encode()).hexdigest()
    entry = folder / f"{source.name}-{digest[:20]}"
    if entry.exists():
        try:
            return _open(source, entry)
        except _Damaged as fault:
            reporter.message(f"cache: {entry} is damaged ({fault}); decoding the images again")
    try:
        _build(source, entry, reporter)
    except OSError as error:
        raise DataError(_write_fault(error, folder)) from error
    try:
        return _open(source, entry)
    except _Damaged as fault:
        raise DataError(
            f"cache: {entry} has damage ({fault}) right after it was written, expected what was written because the "
            "disk should keep it; check the disk or set HYPERGRAD_CACHE to another"
        ) from fault


class _Damaged(Exception):
    """A cache entry is not what was written."""


def _open(source: Source, entry: Path) -> MetaDataset:
    try:
        meta = json.loads((entry / "meta.json").read_text("utf-8"))
        splits = {name: _open_split(entry, name, meta["splits"][name]) for name in SPLITS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _Damaged(f"{type(error).__name__}: {error}") from error
    return MetaDataset(source.name, **splits, options=dict(source.options), notes=source.notes)


def _open_split(entry: Path, name: str, meta: Mapping[str, Any]) -> ImageClasses:
    path = entry / f"{name}.npy"
    if path.stat().st_size != meta["file_bytes"]:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes instead of {meta['file_bytes']}")
    with open(path, "rb") as file:
        if _sampled_crc(file, meta["file_bytes"]) != meta["crc32"]:
            raise ValueError(f"{path.name} has another checksum than when it was written")
    images: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    offsets = np.concatenate([[0], np.cumsum(meta["counts"])]).astype(np.int64)
    return ImageClasses(name, images, offsets, tuple(meta["class_names"]))


def _sampled_crc(file: BinaryIO, n_bytes: int) -> int:
    """CRC-32 of the whole file, or of _N_BLOCKS evenly spaced blocks, the first and the last among them."""
    crc = 0
    n_all = -(-n_bytes // _BLOCK_BYTES)
    count = min(n_all, _N_BLOCKS)
    for i in range(count):
        block = i if count == n_all else i * (n_all - 1) // (_N_BLOCKS - 1)
        file.seek(block * _BLOCK_BYTES)
        crc = zlib.crc32(file.read(_BLOCK_BYTES), crc)
    return crc


def _build(source: Source, entry: Path, reporter: Reporter) -> None:
    folder = entry.parent
    plans = source.plan()
    for name in SPLITS:
        _check_classes(name, plans[name])
    folder.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)
    need = sum(plan.n_bytes for plan in plans.values())
    free = shutil.disk_usage(folder).free
    if free < need + (1 << 20):
        raise DataError(
            f"cache: the disk of {folder} has {_mib(free)} free, expected {_mib(need)} because the decoded images of "
            f"'{source.name}' are kept there; free space, or set HYPERGRAD_CACHE to a folder on another disk"
        )
    temporary = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", suffix=".tmp", dir=folder))
    try:
        meta: dict[str, Any] = {"format": FORMAT, "name": source.name, "key": dict(source.key), "splits": {}}
        total = sum(sum(plan.counts) for plan in plans.values())
        with reporter.progress(f"decoding {source.name}", total) as tick:
            for name in SPLITS:
                meta["splits"][name] = _write_split(temporary / f"{name}.npy", plans[name], tick)
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1), "utf-8")
        _publish(source, temporary, entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_split(path: Path, plan: SplitPlan, tick: Callable[[int], None]) -> dict[str, Any]:
    shape = (sum(plan.counts), *plan.image_shape)
    # A plain file, not a writable map: a full disk is then an error of write() and not a bus error.
    with open(path, "w+b") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for count, block in zip(plan.counts, plan.blocks(), strict=True):
            if block.shape != (count, *plan.image_shape) or block.dtype != np.uint8:
                raise ShapeError(
                    f"cache: a class of split '{path.stem}' decoded to {block.shape} {block.dtype}, expected "
                    f"{(count, *plan.image_shape)} uint8 because the plan says so; correct the source"
                )
            file.write(np.ascontiguousarray(block).data)
            tick(count)
        file.flush()
        os.fsync(file.fileno())
        n_bytes = file.tell()
        crc = _sampled_crc(file, n_bytes)
    return {"file_bytes": n_bytes, "crc32": crc, "counts": list(plan.counts), "class_names": list(plan.class_names)}


def _publish(source: Source, temporary: Path, entry: Path) -> None:
    """Rename the finished folder into place, unless another process has just done so with the same images."""
    while True:
        try:
            os.replace(temporary, entry)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        try:
            _open(source, entry)
            return
        except _Damaged:
            aside = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", suffix=".tmp", dir=entry.parent))
            try:
                os.replace(entry, aside)
            except FileNotFoundError:
                continue  # another process has moved it first
            finally:
                shutil.rmtree(aside, ignore_errors=True)


def _remove_stale(folder: Path) -> None:
    """Remove what processes that were killed while writing left behind more than a day ago."""
    for path in folder.glob(".*.tmp"):
        try:
            stale = time.time() - path.stat().st_mtime > _STALE_S
        except FileNotFoundError:
            continue  # its owner has just finished
        if stale:
            shutil.rmtree(path, ignore_errors=True)


def _check_classes(split: str, plan: SplitPlan) -> None:
    if not plan.class_names:
        raise DataError(
            f"dataset: split '{split}' has 0 classes, expected at least 1 because episodes are drawn from classes; "
            "check the folder or the split list"
        )
    for name, count in zip(plan.class_names, plan.counts, strict=True):
        if count == 0:
            raise DataError(
                f"dataset: class '{name}' of split '{split}' has 0 images, expected at least 1 because an episode "
                "draws images of every class; add images or remove the class"
            )


def _write_fault(error: OSError, folder: Path) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    what = "no space left" if full else f"a fault ({error.strerror or error})"
    remedy = "free space, or " if full else ""
    return (
        f"cache: writing under {folder} has {what}, expected room and permission to write because decoded images are "
        f"kept there (nothing of this attempt was left behind); {remedy}set HYPERGRAD_CACHE to another folder"
    )


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.0f} MiB"
