"""The CUDA kernels on NumPy arrays, run by the emulator: how they are tested on a machine without a GPU.

Not chosen by `backend_of`; a test puts EMULATED in the host backend's place. Build it with -DHYPERGRAD_EMULATOR=ON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ArgumentError, DTypeError, ExtensionError, ShapeError
from .host import HostBackend

try:
    from .. import _emulated
except ImportError as error:
    MISSING: str | None = str(error)  # why there are no kernels; None if there are
else:
    MISSING = None
    _emulated.set_error_types(ShapeError, DTypeError, ArgumentError)


def _scratch(size: int) -> Any:
    """Scratch filled with NaN, so that a result shows when a kernel read what no kernel wrote."""
    return np.full(size, 0xFF, np.uint8)


def run(name: str, arguments: dict[str, Any], empty: Any) -> dict[str, Any]:
    """Runs one kernel, whose tickets must be zeros again afterwards."""
    given: list[Any] = []

    def tickets(size: int) -> Any:
        given.append(np.zeros(size, np.uint8))
        return given[-1]

    outputs: dict[str, Any] = _emulated.run(name, arguments, empty, _scratch, tickets)
    if any(a.any() for a in given):
        raise RuntimeError(f"{name}: its tickets are not zeros afterwards, expected that because the next kernel counts on it")
    return outputs


class EmulatedBackend(HostBackend):
    """Arrays are NumPy arrays, kernels are the CUDA kernels, one fiber per CUDA thread."""

    name = "emulated"

    def run(self, name: str, /, **arguments: Any) -> dict[str, Any]:
        """Runs one kernel; arguments, errors and outputs as the host backend's.

        Raises: RuntimeError that names the waiting threads, where a kernel's barriers do not fit together or it writes
            beyond its shared memory.
        """
        if MISSING is not None:
            raise ExtensionError(
                f"{name}: the emulator hypergrad._emulated is missing, expected it because this is a test "
                f"of the CUDA kernels ({MISSING}); build with -DHYPERGRAD_EMULATOR=ON"
            )
        return run(name, arguments, self.empty)

    def empty(self, shape: Sequence[int], dtype: Any) -> Any:
        return np.empty(shape, dtype)

    def matmul(self, x: Any, y: Any) -> Any:
        return np.matmul(x, y)

    def set_order(self, order: str) -> None:
        """Order of threads and blocks: "forward", "reverse" or "shuffle:SEED"."""
        _emulated.set_order(order)

    def build_info(self) -> dict[str, Any]:
        """Compiler and thread order, or why there is no emulator."""
        return {"missing": MISSING} if MISSING is not None else _emulated.build_info()

    def kernels(self) -> dict[str, tuple[dict[str, str], dict[str, str], tuple[str, ...]]]:
        return {} if MISSING is not None else _emulated.kernels()


EMULATED = EmulatedBackend()
