"""The files of a data set: listed and read alike in folders and in zip files, behind one guard.

Nothing is unpacked to disk. Hidden names are left out, and with them `..`. A file has a largest size, and no more of a zip member is
decompressed than its entry says, so a small file cannot fill the memory.
"""

import hashlib
import os
import re
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError, HypergradError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MAX_BYTES = 1 << 28


class File(NamedTuple):
    """A file on disk, or the member of a zip file; and when the one or the other was changed."""

    path: str
    member: str = ""
    n_bytes: int = 0
    changed_ns: int = 0

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else self.path


Classes = dict[str, list[File]]  # class -> its images


@contextmanager
def reading(kind: str, place: object) -> Iterator[None]:
    """Turn whatever missing, truncated or hostile contents raise in the block into a DataError that names the file."""
    try:
        yield
    except HypergradError:
        raise
    except Exception as error:  # the system, zipfile, Pillow and each of its formats raise their own
        raise DataError(f"{kind}: {place} has unreadable contents ({error}), expected a whole {kind}; restore or remove it") from error


class Opener(ExitStack):
    """Reads files; zip files stay open until the block ends. Safe among threads."""

    def __init__(self) -> None:
        super().__init__()
        self._zips: dict[str, zipfile.ZipFile] = {}
        self._lock = threading.Lock()

    def archive(self, path: str) -> zipfile.ZipFile:
        """A zip file. Raises: DataError naming it if it is missing or damaged."""
        with self._lock, reading("zip file", path):
            if path not in self._zips:
                self._zips[path] = self.enter_context(zipfile.ZipFile(path))
            return self._zips[path]

    def read(self, file: File) -> bytes:
        """The contents. Raises: DataError naming the file if it is missing, unreadable, truncated or too large."""
        archive = self.archive(file.path) if file.member else None
        with reading("file", file):
            info = archive.getinfo(file.member) if archive else None
            n_bytes = info.file_size if info else os.stat(file.path).st_size
            if n_bytes > MAX_BYTES:
                raise DataError(f"file: {file} has {n_bytes} bytes, expected at most {MAX_BYTES}; replace or remove it")
            if archive is None or info is None:
                return Path(file.path).read_bytes()
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(f"file: {file} has another compression, expected stored or deflated; zip it again")  # zipfile bounds these
            with archive.open(info) as stream:
                return stream.read(n_bytes + 1)  # a number, since read() decompresses whatever there is


def list_classes(place: Path, levels: int, within: str = "") -> Classes:
    """class -> its images, by name; an empty list for a class folder without images.

    A class is `levels` folders deep in `place`: 1 for class/image, 2 for alphabet/character/image, 0 for images in `place`, of class "".
    `place` is a folder, or the folder `within` of a zip file. Raises: DataError if it cannot be read. Cost: one stat a file.
    """
    found: Classes = {}
    if place.is_file():
        pattern = re.compile(f"{re.escape(within)}{'/' if within else ''}((?:[^/.][^/]*/){{{levels}}})")
        path, changed_ns = str(place), place.stat().st_mtime_ns
        with Opener() as opener:
            members = sorted(opener.archive(path).infolist(), key=attrgetter("filename"))
        for folder, own in groupby(members, lambda member: member.filename.rpartition("/")[0]):
            match = pattern.fullmatch(folder and f"{folder}/")
            if match:
                images = found.setdefault(match[1][:-1], [])
                images += [File(path, m.filename, m.file_size, changed_ns) for m in own if _is_image(m.filename[len(match[0]) :])]
        return found
    with reading("folder", place):
        _list_folder(str(place), levels, "", found)
    return found


def _list_folder(folder: str, levels: int, name: str, found: Classes) -> None:
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=attrgetter("name"))
    if levels == 0:
        images = [e for e in entries if _is_image(e.name) and e.is_file()]
        found[name] = [File(e.path, "", e.stat().st_size, e.stat().st_mtime_ns) for e in images]
        return
    for entry in entries:
        if entry.is_dir() and not entry.name.startswith("."):
            _list_folder(entry.path, levels - 1, f"{name}/{entry.name}".lstrip("/"), found)


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def find_list(root: Path, name: str, folders: tuple[str, ...], hint: str) -> tuple[File, str] | None:
    """The first split list of this name, in `folders` of root or in split_lists.zip under a folder like `hint`; and its text."""
    lists = str(root / "split_lists.zip")
    with Opener() as opener:
        files = [File(str(root / folder / name)) for folder in folders if (root / folder / name).is_file()]
        if not files and os.path.isfile(lists):
            files = [File(lists, m) for m in opener.archive(lists).namelist() if m.endswith(f"/{name}") and hint in m.lower()]
        for file in files:
            with reading("split list", file):
                return file, opener.read(file).decode("utf-8-sig")
    return None


def digest(splits: Mapping[str, Classes]) -> str:
    """SHA-256 over the division into splits and classes and over path, size and time of change of every file."""
    result = hashlib.sha256()
    for split, classes in splits.items():
        for name, files in classes.items():
            columns = [column if len(set(column)) > 1 else column[:1] for column in zip(*files, strict=True)]  # one zip file is named once
            result.update(repr((split, name, len(files), columns)).encode("utf-8", "backslashreplace"))
    return result.hexdigest()
