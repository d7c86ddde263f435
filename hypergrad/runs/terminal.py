"""What the commands say, to readers that may be gone, full or closed, with names that others have chosen."""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from ..errors import RunError
from ..guards import printable


class OutputError(RunError):
    """Standard output cannot be written."""


class Commands(TyperGroup):
    """The group of all commands. Its streams are open, and an exhausted memory is one line. Args: as typer gives them."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command that the arguments name. Cost: its own."""
        _open_streams()
        warnings.filterwarnings("ignore", module=r"PIL\b")  # of what it can mend; what it cannot is an error
        try:
            return super().main(*args, **kwargs)
        except OutputError as error:
            echo(f"error: {error}", err=True)
        except MemoryError as error:
            echo(f"error: memory: {str(error) or 'nothing is left'}, expected enough for these sizes; ask for smaller ones", err=True)
        sys.exit(1)


def _open_streams() -> None:
    """Open what was closed, so that no file of a run gets the number of a standard stream, and with it what others print."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout if sys.stdout is not None else open(os.devnull, "w")
    sys.stderr = sys.stderr if sys.stderr is not None else open(os.devnull, "w")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # where the stream's encoding lacks a letter


def echo(text: str = "", err: bool = False) -> None:
    """Print text of one or more lines; of an error, one line.

    Args: text: what to say; err: whether on standard error, where nobody minds if it cannot be written.
    Raises: OutputError if standard output cannot be written. Cost: one write.
    """
    if err:
        with contextlib.suppress(OutputError), speaking(sys.stderr):
            typer.echo(printable(text.strip("\n")), err=True)
    else:
        with speaking(sys.stdout):
            typer.echo(printable(text, lines=True))


@contextlib.contextmanager
def speaking(stream: TextIO) -> Iterator[None]:
    """Around writing to `stream`. Raises: OutputError for a full device; a reader that is gone (`| head`) ends the command quietly."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        with contextlib.suppress(OSError):  # a stream without a number
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())  # what is left in its buffer must not fail once more at the end
            os.close(nowhere)
        raise OutputError(f"output: it cannot be written ({error.strerror}), expected a place with room; send it elsewhere") from error


def show(table: Table, width: int) -> None:
    """Print a table.

    Args: table: its cells made by `cell`; width: in characters where standard output is no terminal.
    Raises: as `echo`. Cost: O(cells).
    """
    with speaking(sys.stdout):
        Console(width=None if sys.stdout.isatty() else width).print(table)


def cell(text: str) -> str:
    """A cell of a table with a name that others have chosen: no markup and no control codes. Cost: O(len(text))."""
    return escape(printable(text))
