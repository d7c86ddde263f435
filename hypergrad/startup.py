"""The command's first and last moments: one line for an interrupt, and no more threads than the system gives.

The package imports this module first. By itself it does something only in a process that is the command `hypergrad`.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

_MOST_BLAS_THREADS = 64  # of the OpenBLAS in NumPy's wheels
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


def startable_threads(wanted: int) -> int:
    """How many threads, up to `wanted`, the system lets this process start now. Cost: starts and ends them."""
    done, started = threading.Event(), list[threading.Thread]()
    try:
        for _ in range(wanted):
            thread = threading.Thread(target=done.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError:  # "can't start new thread"
        pass
    finally:
        done.set()
    for thread in started:
        thread.join()
    return len(started)


def _spare_threads() -> None:
    """NumPy's OpenBLAS interrupts the process where it gets fewer threads than cores, so there it is told to take none.

    The kernels take those that they get.
    """
    cores = min(os.cpu_count() or 1, _MOST_BLAS_THREADS)
    if "OPENBLAS_NUM_THREADS" not in os.environ and startable_threads(cores) < cores:
        os.environ["OPENBLAS_NUM_THREADS"] = "1"


if _is_command():
    _spare_threads()
if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, leave)
