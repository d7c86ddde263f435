"""TensorBoard event files, through the optional `tensorboard` package (without TensorFlow or torch)."""

import importlib
import importlib.util
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import RunError

OF_THE_LOOP = ("iteration", "seconds", "best")  # in a record, but no metrics


def tag(name: str) -> str:
    """The scalar's name: "train/loss", "validation/accuracy". Cost: O(1)."""
    part, _, rest = name.partition("_")
    return f"validation/{rest}" if part == "validation" else f"train/{name}"


def require_tensorboard() -> None:
    """Raise RunError unless the tensorboard package is installed. Cost: one look-up."""
    if importlib.util.find_spec("tensorboard") is None:
        raise RunError(
            "tensorboard: the package is not installed, expected it because --tensorboard writes its event files; "
            "pip install tensorboard, or leave --tensorboard away"
        )


class EventWriter:
    """Writes the records of metrics.jsonl as scalars.

    Args:
        directory: where the event file goes.
        iteration: of the first record; TensorBoard forgets later ones of an earlier, interrupted part of the run.
    Raises: RunError if the tensorboard package is missing or the directory cannot be written.
    """

    def __init__(self, directory: Path, iteration: int) -> None:
        require_tensorboard()
        # not imported at the top: the package is optional and takes half a second
        self._events = importlib.import_module("tensorboard.compat.proto.event_pb2")
        self._summaries = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        writers = importlib.import_module("tensorboard.summary.writer.event_file_writer")
        try:
            self._writer = writers.EventFileWriter(str(directory))
        except (OSError, RuntimeError) as error:  # RuntimeError: the system gives no thread to write with
            raise RunError(
                f"tensorboard: {directory} cannot be written ({getattr(error, 'strerror', error)}), expected a writable run directory and "
                "a thread to write with; check permissions and limits, or leave --tensorboard away"
            ) from error
        session = self._events.SessionLog(status=self._events.SessionLog.START)
        self._writer.add_event(self._events.Event(wall_time=time.time(), step=iteration, session_log=session))

    def write(self, record: Mapping[str, Any]) -> None:
        """Add one record of metrics.jsonl. Cost: a queue entry; a thread writes it."""
        numbers = {tag(name): value for name, value in record.items() if name not in OF_THE_LOOP}
        values = [self._summaries.Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        event = self._events.Event(wall_time=time.time(), step=record["iteration"], summary=self._summaries.Summary(value=values))
        self._writer.add_event(event)

    def close(self) -> None:
        """Write everything that is queued. Cost: one flush."""
        self._writer.close()
