"""Where loaders tell of their progress and of anything a user should see: a progress bar on standard error, or nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..guards import printable
from ..threads import startable_threads

Tick = Callable[[int], None]  # called as work proceeds, with the number of items done since the last call


class Reporter:
    """Shows messages of data loading and, on a terminal or in a notebook, progress bars.

    Args: console: a rich console to draw on, None for standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console if console is not None else Console(stderr=True)

    def message(self, text: str) -> None:
        """Show one line of text that the user should see, such as a cache that is being rebuilt."""
        with suppress(OSError):  # a closed or full standard error costs only the words
            self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Tick]:
        """Show a bar of `total` items, >= 0, while the block runs; it is given a callable that takes the number of items just done."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        hidden = not (self.console.is_terminal or self.console.is_jupyter) or not startable_threads(1)
        with Progress(*columns, console=self.console, transient=True, disable=hidden) as bar:
            yield partial(bar.advance, bar.add_task(description, total=total))


class SilentReporter(Reporter):
    """Shows nothing; keeps every message in `messages`."""

    def __init__(self) -> None:
        super().__init__(Console(stderr=True, quiet=True))
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)
