"""Run directories: every file is replaced whole or not at all; a crash or a full disk costs nothing old.

A run may come from a stranger. Its files are opened relative to the directory's descriptor, links in it are refused, and new files have
random names until they are whole. So nothing outside of the directory is ever written.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import time
import weakref
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from ..errors import InUseError, RunError
from ..guards import check_plain, parse_json, read_plain

Array = NDArray[Any]
CONFIG, METRICS, MODEL, STATE, RESULT = ("config.json", "metrics.jsonl", "model.safetensors", "state.safetensors", "result.json")
LOCK = "lock"
# The one key of a safetensors file's metadata that we use: JSON of the metadata and of a digest. Older files have OLD_METADATA, no digest.
METADATA, OLD_METADATA = "hypergrad-checked", "hypergrad"
_MAX_JSON, _MAX_METRICS, _MAX_TENSORS = 1 << 24, 1 << 30, 1 << 33  # bytes
_LEFTOVER = re.compile(r"\.[\w.-]+\.[0-9a-f]{16}\.tmp")  # what `_replace` names a file that is not whole yet
_UNBORN = re.compile(r"\.new-[a-z0-9_]{8}")  # what `create` names a directory that is not whole yet
_STALE_S = 86400.0  # no process takes so long to make a directory


class RunDirectory:
    """One training run on disk, locked while it is open.

    config.json       the configuration
    metrics.jsonl     one JSON object per training iteration and per validation
    state.safetensors everything a resumed run needs
    model.safetensors the best parameters so far
    result.json       the final result

    Args:
        path: an existing run directory; see `create` for a new one.
        locked: False to read only, also while another process trains.
    Raises: RunError if it is no run directory, holds a link, cannot be written or is in use by another process.
    """

    def __init__(self, path: str | os.PathLike[str], *, locked: bool = True) -> None:
        self.path = Path(path)
        try:
            self._folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._release = weakref.finalize(self, os.close, self._folder)
            os.stat(CONFIG, dir_fd=self._folder, follow_symlinks=False)
        except (OSError, ValueError) as error:
            raise RunError(
                f"run: {self.path} has no {CONFIG}, expected a run directory because its settings are read from "
                f"there ({error}); pass the directory that the command printed"
            ) from error
        with os.scandir(self._folder) as entries:
            links = sorted(entry.name for entry in entries if entry.is_symlink())
        if links:
            raise RunError(
                f"run: {self.path / links[0]} is a link, expected plain files because a link leads out of the run; put the file there"
            )
        self._metrics: IO[bytes] | None = None
        self._metrics_crc = 0
        self._lock: IO[bytes] | None = self._locked() if locked else None

    @classmethod
    def create(cls, path: str | os.PathLike[str] | None, config: Mapping[str, Any], stem: str = "run") -> "RunDirectory":
        """A new run directory; it appears with its config.json inside or not at all.

        Args:
            path: where; None means runs/<stem>-001 or the next free number under the working directory.
            config: what config.json shall hold.
            stem: used when `path` is None.
        Returns: the open RunDirectory.
        Raises: RunError if the place is taken or cannot be written.
        Cost: one small file.
        """
        parent = Path("runs") if path is None else Path(path).parent
        with _writing(parent if path is None else Path(path)):
            parent.mkdir(parents=True, exist_ok=True)
            _clear_unborn(parent)
            fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
        try:
            with _writing(parent if path is None else Path(path)):
                os.chmod(fresh, 0o755)
                _replace_in(fresh, CONFIG, _json(config))
                target = _publish(fresh, path, stem)
                _sync(parent)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return cls(target)

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock. Cost: O(1)."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        if self._lock is not None:
            self._lock.close()
        self._release()
        self._folder = -1

    def _locked(self) -> IO[bytes]:
        """The lock file, held open: the lock ends with the process, even when it is killed. Clears away what a killed one was writing."""
        with _writing(self.path / LOCK):
            lock = self._open(LOCK, os.O_WRONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise InUseError(
                f"run: {self.path} is in use by another process, expected no other because two would mix their files; wait for it to end, "
                "or choose another --run-dir"
            ) from error
        with _writing(self.path):
            for name in filter(_LEFTOVER.fullmatch, os.listdir(self._folder)):
                os.unlink(name, dir_fd=self._folder)
        return lock

    def _open(self, name: str, flags: int) -> IO[bytes]:
        """A plain file of the run, to write, created where it is missing. Raises: OSError."""
        flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = open(os.open(name, flags, 0o666, dir_fd=self._folder), "wb", buffering=0)
        try:
            if check_plain(file.fileno()).st_nlink > 1:
                raise OSError(errno.EMLINK, "it has a second name (a hard link), so another file would change with it; copy the run")
        except OSError:
            file.close()
            raise
        return file

    def _read(self, name: str, most: int) -> bytes:
        """Raises: OSError, DataError."""
        return read_plain(name, most, folder=self._folder, links=False)

    def write(self, name: str, content: bytes) -> Path:
        """As `write_file`, for a file of the run."""
        with _writing(self.path / name):
            _replace(self._folder, name, content)
        return self.path / name

    def write_json(self, name: str, record: Mapping[str, Any]) -> Path:
        """As `write_file`, for a JSON object."""
        return self.write(name, _json(record))

    def read_json(self, name: str) -> Any:
        """The JSON value in file `name`. Raises: RunError if it is missing or damaged. Cost: one read."""
        try:
            return parse_json(self._read(name, _MAX_JSON))
        except (OSError, ValueError) as error:
            raise RunError(
                f"run: {self.path / name} cannot be read ({error}), expected JSON that hypergrad wrote; restore the file, or start a new "
                "run"
            ) from error

    def read_result(self, *numbers: str) -> dict[str, Any]:
        """What result.json holds. Args: numbers: names that must stand for numbers. Raises: RunError, as `read_json`. Cost: one read."""
        found = self.read_json(RESULT)
        lacks = [name for name in numbers if not isinstance(found, dict) or not isinstance(found.get(name), (int, float))]
        if lacks:
            raise RunError(
                f"run: {self.path / RESULT} has no number for {', '.join(lacks)}, expected what the end of training wrote; restore the "
                "file, or remove it and resume the run"
            )
        result: dict[str, Any] = found
        return result

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl. Raises: RunError if it cannot be written. Cost: one write."""
        with _writing(self.path / METRICS):
            if self._metrics is None:
                self._metrics = self._open(METRICS, os.O_WRONLY | os.O_APPEND)
            line = json.dumps(record).encode() + b"\n"
            if self._metrics.write(line) != len(line):  # a raw file may write a part when the disk fills up
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._metrics_crc = zlib.crc32(line, self._metrics_crc)

    def sync_metrics(self) -> None:
        """Make the metrics durable, before a state that counts them. Raises: RunError. Cost: one fsync."""
        if self._metrics is not None:
            with _writing(self.path / METRICS):
                os.fsync(self._metrics.fileno())

    def metrics_bytes(self) -> int:
        """Length of metrics.jsonl, 0 if there is none: what `truncate_metrics` takes. Cost: O(1)."""
        try:
            return os.stat(METRICS, dir_fd=self._folder, follow_symlinks=False).st_size
        except OSError:
            return 0

    def metrics_crc(self) -> int:
        """CRC-32 of the lines of metrics.jsonl, also what `truncate_metrics` takes. Cost: O(1)."""
        return self._metrics_crc

    def truncate_metrics(self, n_bytes: int, crc: int | None = None) -> None:
        """Forget the metrics after the first `n_bytes`: their iterations will be run again.

        Args: n_bytes: of the metrics to keep; crc: their CRC-32, None where it is not known.
        Raises: RunError if fewer bytes or other ones are there, or a line is no record. Cost: one read.
        """
        content = self._metrics_content()[:n_bytes]
        found = zlib.crc32(content)
        if len(content) < n_bytes or (crc is not None and crc != found):
            raise RunError(
                f"run: {self.path / METRICS} has {len(content)} bytes"
                f"{'' if len(content) < n_bytes else ' with another checksum'}, expected the {n_bytes} bytes that the run's state counts "
                "because the curve is drawn from them; restore the file from a copy, or start a new run"
            )
        self._records(content)
        self._metrics_crc = found
        if self.metrics_bytes() > n_bytes:
            with _writing(self.path / METRICS), self._open(METRICS, os.O_WRONLY) as file:
                os.ftruncate(file.fileno(), n_bytes)

    def read_metrics(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl; an unfinished last line is left out.

        Raises: RunError if a line is no JSON object of numbers with an iteration. Cost: one read.
        """
        return self._records(self._metrics_content())

    def _metrics_content(self) -> bytes:
        try:
            return self._read(METRICS, _MAX_METRICS)
        except FileNotFoundError:
            return b""
        except (OSError, ValueError) as error:
            raise RunError(f"run: {self.path / METRICS} cannot be read ({error}), expected lines of JSON; restore the file") from error

    def _records(self, content: bytes) -> list[dict[str, Any]]:
        try:
            records = [parse_json(line) for line in content.split(b"\n")[:-1]]
        except ValueError as error:
            raise RunError(
                f"run: {self.path / METRICS} has a line that is no JSON ({error}), expected one object a line; restore the file"
            ) from error
        for i, record in enumerate(records):
            numbers = isinstance(record, dict) and all(isinstance(value, (int, float)) for value in record.values())
            if not numbers or type(record.get("iteration")) is not int:
                raise RunError(
                    f"run: {self.path / METRICS} has another record in line {i + 1}, expected an object of numbers with an iteration; "
                    "restore the file"
                )
        return records

    def write_tensors(self, name: str, tensors: Mapping[str, Array], metadata: Mapping[str, Any]) -> Path:
        """Replace the safetensors file `name`, atomically, with a digest of everything in it.

        Args: tensors: arrays by name; metadata: JSON values.
        Returns: its path. Raises: RunError; the previous file then stays. Cost: the bytes, their SHA-256, and two fsync.
        """
        # safetensors writes the buffer as it lies in memory: transposed arrays have to be copied first
        contiguous = {key: np.asarray(value, order="C") for key, value in tensors.items()}
        checked = {"sha256": _digest(contiguous, metadata), "metadata": metadata}
        return self.write(name, save(contiguous, metadata={METADATA: json.dumps(checked)}))

    def read_tensors(self, name: str) -> tuple[dict[str, Array], dict[str, Any]]:
        """Arrays and metadata of the safetensors file `name`.

        Raises: RunError if it is missing, truncated, damaged or not written by hypergrad; older files have no digest to notice damage by.
        Cost: one read and one SHA-256.
        """
        path = self.path / name
        try:
            content = self._read(name, _MAX_TENSORS)
            header = parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
            metadata = parse_json(header[METADATA if METADATA in header else OLD_METADATA])
            tensors = dict(sorted(load(content).items()))  # the package gives them in any order
            if METADATA in header:
                digest, metadata = metadata["sha256"], metadata["metadata"]
                if digest != _digest(tensors, metadata):
                    raise ValueError("other checksum")
            if not isinstance(metadata, dict):
                raise ValueError("its metadata is no object")
            return tensors, metadata
        except FileNotFoundError as error:
            raise RunError(
                f"run: {path} does not exist, expected a file of the run because training writes it after the first "
                "validation; train longer, or start a new run"
            ) from error
        except Exception as error:  # the system, JSON, NumPy and safetensors raise their own
            raise RunError(
                f"run: {path} is damaged ({str(error) or type(error).__name__}), expected a whole safetensors file written by hypergrad; "
                "restore it from a copy, or start a new run"
            ) from error


def _digest(tensors: Mapping[str, Array], metadata: Mapping[str, Any]) -> str:
    """SHA-256 of the metadata, and of the name, dtype, shape and elements of every array."""
    result = hashlib.sha256(json.dumps(metadata).encode())
    for name, value in sorted(tensors.items()):
        result.update(json.dumps([name, value.dtype.str, value.shape]).encode())
        result.update(value.tobytes())
    return result.hexdigest()


def write_file(path: Path, content: bytes) -> Path:
    """Replace a file by `content`, atomically and durably (temporary file, fsync, rename); a link's target, and not the link.

    A device or a pipe is written to, not replaced.
    Returns: `path`. Raises: RunError; the previous file then stays. Cost: the bytes, and two fsync.
    """
    with _writing(path):
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():
            target.write_bytes(content)
        else:
            _replace_in(target.parent, target.name, content)
    return path


def _json(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, indent=2).encode() + b"\n"


def _publish(fresh: Path, path: str | os.PathLike[str] | None, stem: str) -> Path:
    """Rename the finished directory to its final name; onto a directory that holds something it fails."""
    number = 1
    while True:
        target = fresh.parent / f"{stem}-{number:03d}" if path is None else Path(path)
        try:
            os.rename(fresh, target)
            return target if path is not None else Path("runs") / target.name
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            if path is not None:
                raise RunError(
                    f"run: {target} exists already, expected a new or empty directory because a run never overwrites "
                    f"another; use --resume {target}, or choose another --run-dir"
                ) from error
            number += 1


def _clear_unborn(parent: Path) -> None:
    """Remove what processes that were killed in `create` have left in a folder, once it is old; nothing with other files in it."""
    for name in filter(_UNBORN.fullmatch, os.listdir(parent) if os.access(parent, os.R_OK) else []):
        with contextlib.suppress(OSError):  # another process is clearing it, or it is another's
            folder = os.open(parent / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                files = os.listdir(folder)
                old = time.time() - os.fstat(folder).st_mtime > _STALE_S
                if old and all(file == CONFIG or _LEFTOVER.fullmatch(file) for file in files):
                    for file in files:
                        os.unlink(file, dir_fd=folder)
                    os.rmdir(parent / name)
            finally:
                os.close(folder)


def _replace_in(folder: Path, name: str, content: bytes) -> None:
    """`_replace` in a folder by its path."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _replace(descriptor, name, content)
    finally:
        os.close(descriptor)


def _replace(folder: int, name: str, content: bytes) -> None:
    """Write `content` beside file `name` of an open folder, make it durable, rename it to `name`, make the rename durable."""
    temporary = f".{name}.{secrets.token_hex(8)}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(temporary, flags, 0o666, dir_fd=folder), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:  # an interrupt, too, must not leave the temporary file behind
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
    os.fsync(folder)


def _sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn an operating system's refusal to write `path` into one clear RunError."""
    try:
        yield
    except ValueError as error:  # a path with a NUL
        raise RunError(f"run: {str(path)!r} cannot be written ({error}), expected a path; choose another --run-dir") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise RunError(
                f"run: {path} cannot be written because the disk is full, expected free space; the previous files "
                "are whole: free some space, then go on with `--resume`"
            ) from error
        raise RunError(
            f"run: {path} cannot be written ({error.strerror}), expected a writable place; check its permissions, or "
            "choose another --run-dir"
        ) from error
