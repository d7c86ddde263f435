"""An interrupt while the command starts or ends: one line, where Python would show the traceback of half an import.

The package imports this module first. It does something only in a process that is the command `hypergrad`.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

INTERRUPTED = 130  # the exit status of a program that an interrupt has ended, 128 + SIGINT


def _is_command() -> bool:
    """Whether this process is the command, by its name or as `python -m hypergrad.cli`."""
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    return name == "hypergrad" or (name == "-m" and "hypergrad.cli" in sys.orig_argv)  # "-m" until the module itself is found


def leave(*_: object) -> None:
    """The handler of an interrupt outside of a command's work: say so and end the process at once."""
    os.write(2, b"\nInterrupted.\n")
    os._exit(INTERRUPTED)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Inside the block an interrupt is a KeyboardInterrupt, as everywhere in Python. After it, it is `leave`, or ignored where the block
    has already ended by one."""
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


if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, leave)
