"""Run directories: every file is replaced whole or not at all; a crash or a full disk costs nothing old."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..errors import InUseError, RunError

Array = NDArray[Any]
CONFIG, METRICS, MODEL, STATE, RESULT = ("config.json", "metrics.jsonl", "model.safetensors", "state.safetensors", "result.json")
METADATA = "hypergrad"  # the one key of a safetensors file's metadata that we use; it holds JSON


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
    Raises: RunError if it is no run directory, cannot be written or is in use by another process.
    """

    def __init__(self, path: str | os.PathLike[str], *, locked: bool = True) -> None:
        self.path = Path(path)
        if not (self.path / CONFIG).is_file():
            raise RunError(
                f"run: {self.path} has no {CONFIG}, expected a run directory because its settings are read from "
                "there; pass the directory that the command printed"
            )
        self._metrics: IO[bytes] | None = None
        self._lock: IO[bytes] | None = _lock(self.path) if locked else None

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
        parent = Path("runs") if path is None else Path(path).absolute().parent
        with _writing(parent):
            parent.mkdir(parents=True, exist_ok=True)
            fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
        try:
            with _writing(parent):
                os.chmod(fresh, 0o755)
                _replace(fresh / CONFIG, _json(config))
                target = _publish(fresh, path, stem)
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

    def write(self, name: str, content: bytes) -> Path:
        """As `write_file`, for a file of the run."""
        return write_file(self.path / name, content)

    def write_json(self, name: str, record: Mapping[str, Any]) -> Path:
        """As `write_file`, for a JSON object."""
        return self.write(name, _json(record))

    def read_json(self, name: str) -> Any:
        """The JSON value in file `name`. Raises: RunError if it is missing or damaged. Cost: one read."""
        path = self.path / name
        try:
            return json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise RunError(
                f"run: {path} cannot be read ({error}), expected JSON that hypergrad wrote; restore the file, or start a new run"
            ) from error

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl. Raises: RunError if it cannot be written. Cost: one write."""
        path = self.path / METRICS
        with _writing(path):
            if self._metrics is None:
                self._metrics = open(path, "ab", buffering=0)
            line = json.dumps(record).encode() + b"\n"
            if self._metrics.write(line) != len(line):  # a raw file may write a part when the disk fills up
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def metrics_bytes(self) -> int:
        """Length of metrics.jsonl, 0 if there is none: what `truncate_metrics` takes. Cost: O(1)."""
        path = self.path / METRICS
        return path.stat().st_size if path.is_file() else 0

    def truncate_metrics(self, n_bytes: int) -> None:
        """Forget the metrics after the first `n_bytes`: their iterations will be run again. Cost: O(1)."""
        path = self.path / METRICS
        if self.metrics_bytes() > n_bytes:
            with _writing(path):
                os.truncate(path, n_bytes)

    def read_metrics(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl; an unfinished last line is left out. Cost: one read."""
        path = self.path / METRICS
        if not path.is_file():
            return []
        try:
            return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
        except ValueError as error:
            raise RunError(f"run: {path} has a line that is no JSON ({error}), expected one object a line; restore the file") from error

    def write_tensors(self, name: str, tensors: Mapping[str, Array], metadata: Mapping[str, Any]) -> Path:
        """Replace the safetensors file `name`, atomically.

        Args: tensors: arrays by name; metadata: JSON values.
        Returns: its path. Raises: RunError; the previous file then stays. Cost: the bytes, and two fsync.
        """
        # safetensors writes the buffer as it lies in memory: transposed arrays have to be copied first
        contiguous = {key: np.asarray(value, order="C") for key, value in tensors.items()}
        return self.write(name, save(contiguous, metadata={METADATA: json.dumps(metadata)}))

    def read_tensors(self, name: str) -> tuple[dict[str, Array], dict[str, Any]]:
        """Arrays and metadata of the safetensors file `name`.

        Raises: RunError if it is missing, truncated or not written by hypergrad. Cost: one read.
        """
        path = self.path / name
        if not path.is_file():
            raise RunError(
                f"run: {path} does not exist, expected a file of the run because training writes it after the first "
                "validation; train longer, or start a new run"
            )
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = json.loads((file.metadata() or {})[METADATA])
                return {key: file.get_tensor(key) for key in file.keys()}, metadata
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise RunError(
                f"run: {path} is damaged ({error}), expected a whole safetensors file written by hypergrad; restore "
                "it from a copy, or start a new run"
            ) from error


def _lock(path: Path) -> IO[bytes]:
    """The run's lock file, held open: the lock ends with the process, even when it is killed."""
    with _writing(path / "lock"):
        lock = open(path / "lock", "ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise InUseError(
            f"run: {path} is in use by another process, expected no other because two would mix their files; wait for it to end, or "
            "choose another --run-dir"
        ) from error
    return lock


def write_file(path: Path, content: bytes) -> Path:
    """Replace a file by `content`, atomically and durably (temporary file, fsync, rename).

    Returns: `path`. Raises: RunError; the previous file then stays. Cost: the bytes, and two fsync.
    """
    with _writing(path):
        _replace(path, content)
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


def _replace(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, make it durable, rename it over `path`, make the rename durable."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # an interrupt, too, must not leave the temporary file behind
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn an operating system's refusal to write `path` into one clear RunError."""
    try:
        yield
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
