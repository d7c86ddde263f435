"""What a person sees of a run while it trains: a progress bar on a terminal, a line for each validation elsewhere."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..threads import startable_threads
from .events import OF_THE_LOOP, EventWriter
from .loop import Record
from .terminal import speaking

EVENTS = "tensorboard"
PERCENT = ("accuracy",)  # metrics that are shares


def formatted(name: str, value: float) -> str:
    """A metric with its name: "loss 0.123", "accuracy 91.40 %". Cost: O(1)."""
    return f"{name.replace('_', ' ')} " + (f"{100 * value:.2f} %" if name in PERCENT else f"{value:.4f}")


def validation_line(record: Mapping[str, Any]) -> str:
    """A validation as one line of text. Cost: O(len(record))."""
    numbers = {name.removeprefix("validation_"): value for name, value in record.items() if name.startswith("validation_")}
    half = numbers.pop("interval", None)
    text = "  ".join(formatted(name, value) for name, value in numbers.items())
    text += f" ± {100 * half:.2f} %" if half is not None else ""
    return f"iteration {record['iteration']:6d}  {record['seconds']:7.1f} s  validation {text}{'  best' if record['best'] else ''}"


def is_validation(record: Mapping[str, Any]) -> bool:
    """Whether a record is that of a validation and not of an iteration. Cost: O(1)."""
    return "best" in record


@contextlib.contextmanager
def training_view(iterations: int, events: Path | None = None, quiet: bool = False) -> Iterator[Callable[[Record], None]]:
    """Show records of metrics.jsonl as they come.

    Args: iterations: in all; events: folder for TensorBoard's event files, None for none; quiet: show nothing.
    Yields: what to call with each record. Cost: little beside an iteration.
    """
    console = Console(quiet=quiet)
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[status]}"))
    bar = Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal or not startable_threads(1))
    task = bar.add_task("training", total=iterations, status="")
    with bar, contextlib.ExitStack() as stack:
        writer: EventWriter | None = None

        def view(record: Record) -> None:
            nonlocal writer
            if is_validation(record):
                with speaking(sys.stdout):
                    console.print(validation_line(record), markup=False, highlight=False, soft_wrap=True)
            else:
                numbers = {name: value for name, value in record.items() if name not in OF_THE_LOOP}
                status = "  ".join(formatted(name, value) for name, value in numbers.items())
                bar.update(task, completed=record["iteration"], status=status)
            if events is not None:
                if writer is None:
                    writer = EventWriter(events, record["iteration"])
                    stack.callback(writer.close)
                writer.write(record)

        yield view
