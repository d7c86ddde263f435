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


def keep_memory() -> None:
    """Lets the NumPy arrays that are made from now on, in the calling context (contextvars), keep their memory for later ones.

    Fresh memory is cleared by the system page by page, which took an eighth of a meta-step. What is kept and what is in use stay
    below the most that was in use at once.
    """
    if MISSING is None:
        _host.use_memory()


def release_memory() -> int:
    """Gives the memory that freed arrays have left for later ones back to the system.

    NumPy arrays that are made inside a transform or a pass take their memory from those that were freed before, as CuPy's pool does
    on a GPU. No more is kept than was ever in use at once.

    Returns: bytes given back.
    Cost: that of freeing them.
    """
    if MISSING is not None:
        return 0
    kept: int = _host.memory_use()["kept"]
    _host.release_memory()
    return kept


class HostBackend:
    """Arrays are NumPy arrays, kernels run on the CPU's cores."""

    name = "host"
    xp: Any = np

    def run(self, name: str, /, **arguments: Any) -> dict[str, Any]:
        """Runs one kernel.

        Args:
            name: a name of `kernels()`.
            arguments: by the names in the kernel's signature. Inputs are arrays, or lists of arrays; an optional one may be left out
                or None. Attributes are numbers. An output is allocated by `empty` where it is left out or True, not computed
                where it is None or False, else an array to overwrite in full; a list says so for each element. An axis that no
                array has is given by its letter, `H=28`.
        Returns: the outputs by name: arrays, lists of them, None for what was not computed.
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
        outputs: dict[str, Any] = _host.run(name, arguments, self.empty)
        return outputs

    def empty(self, shape: Sequence[int], dtype: Any) -> Any:
        """An uninitialised array; see `release_memory`."""
        return np.empty(shape, dtype) if MISSING is not None else _host.empty(shape, dtype)

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

    def kernels(self) -> dict[str, tuple[dict[str, str], dict[str, str], tuple[str, ...]]]:
        """Of every kernel: axes of the inputs and of the outputs by name, and the names of the attributes; empty without the extension."""
        return {} if MISSING is not None else _host.kernels()


HOST = HostBackend()
