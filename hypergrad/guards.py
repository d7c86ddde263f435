"""Guards for what a stranger may have written: plain files of a limited size, shallow JSON, and text that a terminal may be shown."""

import errno
import json
import os
import stat
from typing import Any, BinaryIO

from .errors import DataError

MAX_JSON_DEPTH = 32
_MAX_SHOWN = 4000  # characters of one text


def printable(text: str, lines: bool = False) -> str:
    """Text without what a terminal would obey or cannot show.

    Args: text: any, such as a name found in a file; lines: whether it may have several lines, and any length.
    Returns: the text, control codes, direction marks and the like written as \\x1b or \\u202e; a single line is cut after 4,000 characters.
    Cost: O(len(text)).
    """
    cut = not lines and len(text) > _MAX_SHOWN
    shown = "".join(c if c.isprintable() or (lines and c == "\n") else repr(c)[1:-1] for c in (text[:_MAX_SHOWN] if cut else text))
    return f"{shown}…" if cut else shown


def check_size(place: object, n_bytes: int, most: int) -> None:
    """Raise DataError that names the file if it is larger than `most` bytes. Cost: O(1)."""
    if n_bytes > most:
        raise DataError(f"file: {place} has {n_bytes} bytes, expected at most {most}; replace or remove it")


def open_plain(path: str | os.PathLike[str], most: int, *, folder: int | None = None, links: bool = True) -> BinaryIO:
    """Open a plain file to read. A pipe or a device is refused without waiting for it.

    Args:
        path: the file; most: bytes that it may have.
        folder: descriptor of the folder that a relative path starts from; None for the working directory.
        links: whether the path may end in a symbolic link.
    Returns: the open file. Raises: OSError; DataError if it is too large. Cost: O(1).
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if links else os.O_NOFOLLOW)
    descriptor = os.open(path, flags, dir_fd=folder)
    try:
        check_size(path, check_plain(descriptor).st_size, most)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_plain(descriptor: int) -> os.stat_result:
    """What the system knows of an open file. Raises: OSError unless it is a plain file. Cost: O(1)."""
    found = os.fstat(descriptor)
    if stat.S_ISDIR(found.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe, a device or a socket, not a plain file")
    return found


def read_plain(path: str | os.PathLike[str], most: int, *, folder: int | None = None, links: bool = True) -> bytes:
    """The contents of a plain file. Arguments and errors as `open_plain`. Cost: one read."""
    with open_plain(path, most, folder=folder, links=links) as file:
        return file.read(os.fstat(file.fileno()).st_size)  # a number, since a file may grow without end


def parse_json(text: bytes | str) -> Any:
    """The value of a JSON text. Raises: ValueError if it is none, or nested deeper than 32 levels. Cost: O(len(text))."""
    try:
        value = json.loads(text)
        deep = _deeper(value, MAX_JSON_DEPTH)
    except RecursionError:
        deep = True
    if deep:
        raise ValueError(f"nested deeper than {MAX_JSON_DEPTH} levels")
    return value


def _deeper(value: Any, levels: int) -> bool:
    """Whether lists and dicts are nested deeper than so many levels."""
    if not isinstance(value, (list, dict)):
        return False
    return levels == 0 or any(_deeper(part, levels - 1) for part in (value.values() if isinstance(value, dict) else value))
