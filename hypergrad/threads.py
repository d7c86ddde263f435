"""How many threads the system gives, where users, containers or address spaces are limited."""

import os
import threading

from .startup import is_command

_MOST_BLAS_THREADS = 64  # of the OpenBLAS in NumPy's wheels


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


def spare_threads() -> None:
    """Before NumPy is imported: its OpenBLAS interrupts a process that gets fewer threads than cores, so there it is told to start none.

    The kernels take the threads that they get. Cost: that of `startable_threads`.
    """
    cores = min(os.cpu_count() or 1, _MOST_BLAS_THREADS)
    if "OPENBLAS_NUM_THREADS" not in os.environ and startable_threads(cores) < cores:
        os.environ["OPENBLAS_NUM_THREADS"] = "1"


if is_command():
    spare_threads()
