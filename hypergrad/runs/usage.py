"""What a finished run took: iterations, seconds, bytes; a part of every result.json."""

import resource
import sys
from typing import Any

import numpy as np

from .directory import RunDirectory
from .loop import Record, State, Training, finished
from .view import is_validation


def usage(run: RunDirectory, training: Training, state: State, command_s: float) -> dict[str, Any]:
    """What a run took.

    Args: run: its directory; training: its configuration; state: its last state; command_s: seconds of the whole command.
    Returns: JSON values. Cost: one read of metrics.jsonl.
    """
    return {
        "iterations": state.iteration,
        "best_iteration": state.best_iteration,
        "stopped_by": finished(training, state),
        "training_s": round(state.seconds, 2),
        "iteration_s": _iteration_s(run.read_metrics()),
        "command_s": round(command_s, 2),
        "peak_bytes": _peak_bytes(),
    }


def _iteration_s(metrics: list[Record]) -> float | None:
    """The median seconds of an outer iteration, so that validations do not count; None for a single one."""
    ends = [record["seconds"] for record in metrics if not is_validation(record) and "seconds" in record]
    return round(float(np.median(np.diff(ends))), 5) if len(ends) > 1 else None


def _peak_bytes() -> int:
    """The most memory this process has held; macOS counts in bytes, Linux in KiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
