"""Measured seconds and peak bytes."""

from __future__ import annotations

import time
import tracemalloc
from types import TracebackType

_open: list[Meter] = []  # meters that are tracing, outermost first: tracemalloc knows one peak only


class Meter:
    """Context that measures wall-clock seconds and, where memory is traced, the peak of allocated bytes.

    NumPy reports its buffers to tracemalloc, so the peak counts arrays as well as Python objects. Tracing slows small
    operations down several times; measure time and memory in runs of their own.

    Meters nest.

    Args:
        memory: start tracemalloc for the duration of the context (it is left running if it already runs).
    Attributes:
        seconds: wall-clock time inside the context.
        peak_bytes: highest number of bytes allocated above what was held on entry, or None if nothing traced.
    """

    def __init__(self, *, memory: bool = False) -> None:
        self.memory = memory
        self.seconds = 0.0
        self.peak_bytes: int | None = None
        self._peak = self._held = 0

    def __enter__(self) -> Meter:
        self._started = self.memory and not tracemalloc.is_tracing()
        if self._started:
            tracemalloc.start()
        self._traced = tracemalloc.is_tracing()
        if self._traced:
            self._held, peak = tracemalloc.get_traced_memory()
            for meter in _open:
                meter._peak = max(meter._peak, peak)
            self._peak = self._held
            _open.append(self)
            tracemalloc.reset_peak()
        self._start = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.seconds = time.perf_counter() - self._start
        if self._traced:
            _open.remove(self)
            if tracemalloc.is_tracing():
                self.peak_bytes = max(self._peak, tracemalloc.get_traced_memory()[1]) - self._held
        if self._started:
            tracemalloc.stop()
