"""NumPy arrays and the compiled host kernels.

The package imports without its extension, so that a broken installation can still be asked what is wrong with
it (`hypergrad info`); only calling a kernel then raises, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ArgumentError, DTypeError, ExtensionError, ShapeError

try:
    from .. import _host
except ImportError as error:
    MISSING: str | None = str(error)  # why there are no kernels; None if there are
else:
    MISSING = None
    _host.set_error_types(ShapeError, DTypeError, ArgumentError)

_ABSENT = np.empty(0, np.float32)  # how a kernel is told that an optional argument is not given


class HostBackend:
    """Arrays are NumPy arrays, kernels run on the CPU's cores."""

    name = "host"
    xp: Any = np

    def run(self, name: str, inputs: Sequence[Any], outputs: Sequence[Any], **attrs: float) -> None:
        """Runs one kernel; outputs are overwritten in full.

        Args:
            name: a name of `kernels()`.
            inputs, outputs: arrays in the kernel's order, allocated by the caller; None where an optional one
                is absent.
            attrs: the kernel's attributes, all of them.
        Raises: ExtensionError without the compiled extension; ShapeError, DTypeError or ArgumentError for a
            wrong call.
        Cost: the kernel's; no array is copied.
        """
        if MISSING is not None:
            raise ExtensionError(
                f"{name}: the compiled extension hypergrad._host is missing, expected it inside the package "
                f"({MISSING}); install with pip install ., and run from another folder than the checkout, whose sources would be "
                "imported instead"
            )
        _host.run(name, [_ABSENT if a is None else a for a in (*inputs, *outputs)], attrs)

    def empty(self, shape: Sequence[int], dtype: Any) -> Any:
        """An uninitialised array."""
        return np.empty(shape, dtype)

    def number(self, value: float, dtype: Any) -> Any:
        """A Python number as a 0-d array."""
        return np.asarray(value, dtype)

    def concatenate(self, arrays: Sequence[Any], axis: int) -> Any:
        """Arrays joined along an axis."""
        return np.concatenate(arrays, axis)

    def matmul(self, x: Any, y: Any) -> Any:
        """The matrix product."""
        return np.matmul(x, y)

    def build_info(self) -> dict[str, Any]:
        """Compiler, instruction sets, threads and CUDA status of the extension, or why there is none."""
        return {"missing": MISSING} if MISSING is not None else _host.build_info()

    def kernels(self) -> dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]]:
        """Names of the inputs, outputs and attributes of every kernel; empty without the extension."""
        return {} if MISSING is not None else _host.kernels()


HOST = HostBackend()
