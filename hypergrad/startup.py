"""The first thing that the command does: an interrupt while it is still being imported is one line, and no traceback of half an import.

The package imports this module first, and it imports nothing that Python has not loaded for itself.
"""

import atexit
import os
import signal
import sys

INTERRUPTED = 130  # the exit status of a program that an interrupt has ended, 128 + SIGINT
# What an MPI launcher tells each process: its number, and where it does, how many there are.
LAUNCHERS = {"PMI_RANK": "PMI_SIZE", "OMPI_COMM_WORLD_RANK": "OMPI_COMM_WORLD_SIZE", "PMIX_RANK": ""}
_leaving = False


def is_command() -> bool:
    """Whether this process is the command `hypergrad`, by its name or as `python -m hypergrad.cli`."""
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    return name == "hypergrad" or (name == "-m" and "hypergrad.cli" in sys.orig_argv)  # "-m" until the module itself is found


def launched_rank() -> int | None:
    """The number that an MPI launcher has given this process, None without one."""
    number = next((os.environ[name] for name in LAUNCHERS if name in os.environ), None)
    return None if number is None else int(number) if number.isdecimal() else 0


def leave(*_: object) -> None:
    """The handler of an interrupt outside of a command's work: say so and end the process at once."""
    global _leaving
    if _leaving:  # a second one came inside this function
        return
    _leaving = True
    launched = launched_rank()
    if not launched:
        os.write(2, b"\nInterrupted.\n")
    if launched is not None:  # one that exits before MPI has started would be waited for without end
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(INTERRUPTED)


if is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, leave)
    # Python's own end takes a tenth of a second. It begins by giving interrupts back to the system, for which a command that has done
    # everything would then be one that was interrupted. MPI's end waits for others, so there an interrupt must still count.
    if launched_rank() is None:
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
