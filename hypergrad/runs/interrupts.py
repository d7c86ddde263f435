"""Ctrl-C: during training the iteration ends first, so that what stops a run never stops half a step."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ..startup import leave


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """What the command does: inside the block an interrupt is a KeyboardInterrupt, as everywhere in Python.

    After it, it ends the process, or it is ignored where one has already ended the block. In other programs nothing changes. Cost: none.
    """
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is leave
    after: Any = leave
    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        after = signal.SIG_IGN
        raise
    finally:
        if ours:
            signal.signal(signal.SIGINT, after)


@contextlib.contextmanager
def interrupts_held() -> Iterator[Callable[[], bool]]:
    """Inside the block the first interrupt (SIGINT) is only noted; the second one is a KeyboardInterrupt at once.

    Where the program has a handler of its own, or in another thread than the main one, nothing changes.

    Yields: what tells whether an interrupt was noted. Raises: KeyboardInterrupt at the end of the block, where one was. Cost: none.
    """
    noted = False

    def note(number: int, frame: object) -> None:
        nonlocal noted
        if noted:
            raise KeyboardInterrupt
        noted = True

    held = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if held:
        signal.signal(signal.SIGINT, note)
    try:
        yield lambda: noted
    finally:
        if held:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if noted:
        raise KeyboardInterrupt
