"""Measured seconds and peak bytes."""

from __future__ import annotations

import gc
import sys
import time
import tracemalloc
from typing import Any

_open: list[Meter] = []  # meters that are tracing, outermost first; they share tracemalloc's single peak


class Meter:
    """Context that measures wall-clock seconds and, where memory is traced, the peak of allocated bytes.

    NumPy reports its buffers to tracemalloc, so the peak counts arrays as well as Python objects. On a GPU the arrays are in
    CuPy's memory pool, whose hooks count this thread's allocations, rounded up as the pool does. Tracing slows small
    operations down several times; measure time and memory in separate runs.

    Python keeps freed tuples, lists and floats for later ones, which then allocate nothing. Where memory is traced, the outermost meter
    collects garbage on entry, which empties these lists, so that the peak does not depend on what ran before.

    Meters nest.

    Args:
        memory: start tracemalloc for the duration of the context (it is left running if it already runs).
    Attributes:
        seconds: wall-clock time inside the context.
        peak_bytes: highest number of bytes allocated above what was held on entry, or None if tracemalloc was off.
        peak_device_bytes: the same for the GPU, or None if tracemalloc was off, CuPy was not imported on entry, or no GPU
            array was made or freed inside.
    """

    def __init__(self, *, memory: bool = False) -> None:
        self.memory = memory
        self.seconds = 0.0
        self.peak_bytes: int | None = None
        self.peak_device_bytes: int | None = None
        self._peak = self._held = self._lap = 0
        self._pool: Any = None

    def __enter__(self) -> Meter:
        self._started = self.memory and not tracemalloc.is_tracing()
        if self._started:
            tracemalloc.start()
        self._traced = tracemalloc.is_tracing()
        if self._traced:
            if not _open:
                gc.collect()
            self._held, peak = tracemalloc.get_traced_memory()
            _note(peak)
            self._peak = self._lap = self._held
            _open.append(self)
            tracemalloc.reset_peak()
            self._pool = _pool_hook()
            if self._pool is not None:
                self._pool.__enter__()
        self._start = time.perf_counter()
        return self

    def lap(self) -> tuple[int, int]:
        """Bytes held now, and their peak since the last lap, both above what was held on entry; on a GPU those of the device.

        It may be asked where memory is traced. Meters that are open inside or around this one go on as if it had not been.
        """
        held, peak = tracemalloc.get_traced_memory()
        _note(peak)
        tracemalloc.reset_peak()
        peak, self._lap = self._lap, held
        if self._pool is not None and self._pool.peak is not None:
            of_device: tuple[int, int] = self._pool.lap()
            return of_device
        return held - self._held, peak - self._held

    def __exit__(self, *error: Any) -> None:
        self.seconds = time.perf_counter() - self._start
        if self._pool is not None:
            self._pool.__exit__(*error)
            self.peak_device_bytes, self._pool = self._pool.peak, None
        if self._traced:
            _open.remove(self)
            if tracemalloc.is_tracing():
                self.peak_bytes = max(self._peak, tracemalloc.get_traced_memory()[1]) - self._held
        if self._started:
            tracemalloc.stop()


def _note(peak: int) -> None:
    """Tells all open meters of a peak, before tracemalloc forgets it."""
    for meter in _open:
        meter._peak, meter._lap = max(meter._peak, peak), max(meter._lap, peak)


def _pool_hook() -> Any:
    """A hook of CuPy's memory pools that counts what they hand out from now on; None where CuPy is not imported."""
    cupy: Any = sys.modules.get("cupy")  # an array of CuPy's exists only where CuPy is imported
    if cupy is None:
        return None

    class Count(cupy.cuda.MemoryHook):  # type: ignore[misc]
        held = lap_peak = 0
        peak: int | None = None

        def malloc_postprocess(self, *, mem_size: int, mem_ptr: int, **_: Any) -> None:
            self._change(mem_size if mem_ptr else 0)  # 0 where the allocation failed

        def free_postprocess(self, *, mem_size: int, **_: Any) -> None:
            self._change(-mem_size)

        def _change(self, by: int) -> None:
            self.held += by
            self.peak, self.lap_peak = max(self.peak or 0, self.held), max(self.lap_peak, self.held)

        def lap(self) -> tuple[int, int]:
            peak, self.lap_peak = self.lap_peak, self.held
            return self.held, peak

    hook = Count()
    hook.name = f"hypergrad.Meter {id(hook)}"  # CuPy knows hooks by name
    return hook
