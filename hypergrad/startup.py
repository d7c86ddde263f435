"""The first thing that the command does: an interrupt while it is still being imported is one line, and no traceback of half an import.

The package imports this module first, and it imports nothing that Python has not loaded for itself.
"""

import os
import signal
import sys

INTERRUPTED = 130  # the exit status of a program that an interrupt has ended, 128 + SIGINT
_leaving = False


def is_command() -> bool:
    """Whether this process is the command `hypergrad`, by its name or as `python -m hypergrad.cli`."""
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    return name == "hypergrad" or (name == "-m" and "hypergrad.cli" in sys.orig_argv)  # "-m" until the module itself is found


def leave(*_: object) -> None:
    """The handler of an interrupt outside of a command's work: say so and end the process at once."""
    global _leaving
    if _leaving:  # a second one came inside this function
        return
    _leaving = True
    os.write(2, b"\nInterrupted.\n")
    os._exit(INTERRUPTED)


if is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, leave)
