"""The files of a data set: listed and read alike in folders and in zip files, behind one guard.

Nothing is unpacked to disk. Hidden names are left out, and with them `..`. Only plain files are read. A file has a largest size, and no
more of a zip member is decompressed than its entry says, so a small file cannot fill the memory.
"""

import hashlib
import os
import threading
import zipfile
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..errors import DataError, HypergradError
from ..guards import check_size, open_plain, read_plain

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MAX_BYTES = 1 << 26
_MAX_LIST_BYTES = 1 << 23  # of a split list
_MAX_DIRECTORY_BYTES = 1 << 25  # of a zip file's list of members, 300,000 or so
_ZIP_LOCK = threading.Lock()  # zipfile counts the open members of a file without one


@contextmanager
def reading(kind: str, place: object) -> Iterator[None]:
    """Turn whatever missing, truncated or hostile contents raise in the block into a DataError that names the file."""
    try:
        yield
    except HypergradError:
        raise
    except Exception as error:  # the system, zipfile, Pillow and each of its formats raise their own
        reason = str(error) or type(error).__name__
        raise DataError(f"{kind}: {place} has unreadable contents ({reason}), expected a whole {kind}; restore or remove it") from error


def check_root(name: str, root: str | os.PathLike[str] | None, where: str) -> Path:
    """The folder of a data set's files. Raises: DataError saying what belongs `where`, if there is no such folder."""
    try:
        folder = None if root is None else Path(root).expanduser().resolve()
        found = folder is not None and folder.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # no such user, a loop of links, no working directory, a NUL
        raise DataError(f"{name}: root {root} cannot be looked up ({error}), expected a folder with its files; {where}") from error
    if folder is None or not found:
        have = f"'{name}' has no root" if folder is None else f"root {folder} is no folder"
        raise DataError(f"{name}: {have}, expected one (--root) with its files because nothing is downloaded; {where}")
    return folder


class File(NamedTuple):
    """A file on disk, or the member of a zip file; and when the one or the other was changed.

    An open zip file is closed when the last of its Files is gone.
    """

    path: str
    member: str = ""
    n_bytes: int = 0
    changed_ns: int = 0
    archive: zipfile.ZipFile | None = None

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else self.path

    def read(self, most: int = MAX_BYTES) -> bytes:
        """The contents. Safe among threads. Raises: DataError naming the file if it is missing, unreadable, no plain file, truncated or
        larger than `most` bytes."""
        with reading("file", self):
            if self.archive is None:
                return read_plain(self.path, most)
            info = self.archive.getinfo(self.member)
            check_size(self, info.file_size, most)
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(f"file: {self} has another compression, expected stored or deflated; zip it again")  # zipfile bounds these
            with _ZIP_LOCK, self.archive.open(info) as stream:
                return stream.read(info.file_size + 1)  # a number, since read() decompresses whatever there is


Classes = dict[str, list[File]]  # class -> its images


def open_zip(path: Path) -> list[File]:
    """The members of a zip file, by name. Raises: DataError naming it if it is missing or damaged, or if two members have one name."""
    with reading("zip file", path):
        with open_plain(path, 1 << 62) as file:
            check_size(f"{path}, its list of members,", _directory_bytes(file), _MAX_DIRECTORY_BYTES)
        archive, changed_ns = zipfile.ZipFile(path), path.stat().st_mtime_ns
    members = sorted(archive.infolist(), key=attrgetter("filename"))
    check_once(f"zip file: {path}", ((member.filename, "") for member in members), "remove one of the two")
    return [File(str(path), member.filename, member.file_size, changed_ns, archive) for member in members]


def _directory_bytes(file: BinaryIO) -> int:
    """Size of a zip file's list of members, by the record at the file's end."""
    file.seek(-min(file.seek(0, os.SEEK_END), 66_000), os.SEEK_END)
    tail = file.read()
    fields = ((b"PK\5\6", 12, 4), (b"PK\6\6", 40, 8))  # of the record and of that of large files: begin, place and bytes of the size
    found = [(tail.rfind(begin) + at, n) for begin, at, n in fields if begin in tail]
    return max((int.from_bytes(tail[at : at + n], "little") for at, n in found if tail[at : at + n] != b"\xff" * n), default=0)


def check_once(where: str, items: Iterable[tuple[Hashable, str]], remedy: str) -> None:
    """Raise DataError if something comes twice. Args: where: it is listed; items: with the place of each, such as its split."""
    seen: dict[Hashable, str] = {}
    for item, place in items:
        if item in seen:
            name = "/".join(map(str, item)) if isinstance(item, tuple) else item
            places = " and ".join(dict.fromkeys(part for part in (seen[item], place) if part))
            raise DataError(
                f"{where} has '{name}' twice{f' ({places})' if places else ''}, expected it once because an image that is both learned "
                f"from and asked for falsifies the result; {remedy}"
            )
        seen[item] = place


def list_classes(place: Path, levels: int, within: str = "") -> Classes:
    """class -> its images, by name; an empty list for a class folder without images.

    A class is `levels` folders deep in `place`: 1 for class/image, 2 for alphabet/character/image, 0 for images in `place`, of class "".
    `place` is a folder, or the folder `within` of a zip file. Raises: DataError if it cannot be read. Cost: one stat a file.
    """
    found: Classes = {}
    with reading("folder", place):
        if not place.is_file():
            _list_folder(str(place), levels, "", found)
            check_once(f"folder: {place}", ((os.path.realpath(place / name), "") for name in found), "remove the link")
            return found
    for file in open_zip(place):
        *folders, name = file.member.split("/")
        if folders[:1] == [within] and len(folders) == levels + 1 and all(part and part[0] != "." for part in folders):
            images = found.setdefault("/".join(folders[1:]), [])
            if _is_image(name):
                images.append(file)
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


def find_list(root: Path, name: str, folders: tuple[str, ...], hint: str, expected: str) -> tuple[File, str]:
    """The first split list of this name, in `folders` of root or in split_lists.zip under a folder like `hint`; and its text.

    Raises: DataError if there is none, which says what is `expected`, or if it is no text.
    """
    lists = root / "split_lists.zip"
    files = [File(str(root / folder / name)) for folder in folders if (root / folder / name).is_file()]
    if not files and lists.is_file():
        files = [file for file in open_zip(lists) if file.member.endswith(f"/{name}") and hint in file.member.lower()]
    if not files:
        raise DataError(f"split list: {root} has no {name}, expected {expected}")
    with reading("split list", files[0]):
        return files[0], files[0].read(_MAX_LIST_BYTES).decode("utf-8-sig")


def digest(splits: Mapping[str, Classes]) -> str:
    """SHA-256 over the division into splits and classes and over path, size and time of change of every file."""
    result = hashlib.sha256()
    for split, classes in splits.items():
        for name, files in classes.items():
            columns = [column if len(set(column)) > 1 else column[:1] for column in list(zip(*files, strict=True))[:4]]
            result.update(repr((split, name, len(files), columns)).encode("utf-8", "backslashreplace"))
    return result.hexdigest()
