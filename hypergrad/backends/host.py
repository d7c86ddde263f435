"""NumPy arrays and the compiled host kernels.

The package imports without its extension, so that a broken installation can still be asked what is wrong with
it (`hypergrad info`); only calling a kernel then raises, with the reason.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
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

AT_RELEASE: list[Callable[[], Any]] = []  # what `release_memory` calls first: it lets go of arrays that are only kept to save time
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def keep_memory() -> None:
    """Lets the NumPy arrays that are made from now on, in the calling context (contextvars), keep their memory for later ones.

    Fresh memory is cleared by the system page by page, which took an eighth of a meta-step. What is kept and what is in use stay
    below five quarters of the most that was in use at once.
    """
    if MISSING is None:
        _host.use_memory()


def release_memory() -> int:
    """Gives the memory that freed arrays have left for later ones back to the system.

    NumPy arrays that are made inside a transform or a pass take their memory from those that were freed before, as CuPy's pool does
    on a GPU. With what is in use, it is at most five quarters of what ever was in use at once. What programs of earlier runs keep for
    later ones, at most 64 MiB, is given back, too.

    Returns: bytes given back.
    Cost: that of freeing them.
    Example:
        >>> hg.release_memory() >= 0
        True
    """
    for let_go in AT_RELEASE:
        let_go()
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

    def applied(self, op: Any, values: list[Any], attrs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        """What an op gives on these arrays (outputs, saved); see tape.Rule."""
        found: tuple[tuple[Any, ...], Any] = op.forward(self, values, attrs)
        return found

    def empty(self, shape: Sequence[int], dtype: Any) -> Any:
        """An uninitialised array; see `release_memory`."""
        return np.empty(shape, dtype) if MISSING is not None else _host.empty(shape, dtype)

    def digest(self, x: Any) -> int:
        """A number that tells whether an array was written to. One change in 2^64 is missed.

        Cost: that of reading the array once.
        """
        x = np.ascontiguousarray(x)
        return zlib.crc32(x.reshape(-1).view(np.uint8)) if MISSING is not None else _host.digest(x)

    def number(self, value: float, dtype: Any) -> Any:
        """A Python number as a 0-d array."""
        return np.asarray(value, dtype)

    def copies(self, xs: Sequence[Any]) -> list[Any]:
        """Copies of arrays."""
        return [a.copy() for a in xs]

    def concatenate(self, arrays: Sequence[Any], axis: int) -> Any:
        """Arrays joined along an axis."""
        return np.concatenate(arrays, axis)

    def matmul(self, x: Any, y: Any) -> Any:
        """The matrix product, as numpy.matmul gives it.

        Of float32 and float64 by a kernel: the bits of an element depend on its row of `x` and its column of `y`, and on whether either
        matrix is a vector. Those of NumPy's libraries change with the number of threads. Other element types go to NumPy.
        """
        return self.matmul_into(x, y)

    def matmul_into(self, x: Any, y: Any, out: Any = None) -> Any:
        """As `matmul`, written to `out` where that is given, both factors have the dtype of `out` and neither is a vector."""
        dtype = x.dtype
        if dtype != y.dtype or dtype not in _FLOATS:
            dtype = np.result_type(x, y)
            if dtype not in _FLOATS:
                return np.matmul(x, y)
            x, y = np.asarray(x, dtype), np.asarray(y, dtype)
        if not (x.ndim == 2 == y.ndim and x.flags.aligned and y.flags.aligned):
            return self._matmul_of_any(x, y, out)
        out = self.empty((x.shape[0], y.shape[1]), dtype) if out is None else out
        self.run("matmul", x=x[None, None], y=y[None, None], out=out[None, None])  # an array that is given saves the call time
        return out

    def _matmul_of_any(self, x: Any, y: Any, out: Any = None) -> Any:
        """The product of floating-point arrays with any number of axes."""
        if not x.ndim or not y.ndim:
            return np.matmul(x, y)  # which says what is wrong
        if x.ndim == 1:
            return self.matmul(x[None], y)[..., 0, :] if y.ndim > 1 else self.matmul(x[None], y[:, None])[0, 0]
        if y.ndim == 1:
            return self.matmul(x, y[:, None])[..., 0]
        x, y = (a if a.flags.aligned else a.copy() for a in (x, y))
        if out is None:
            out = self.empty((*np.broadcast_shapes(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-1]), x.dtype)
        self.run("matmul", **self.product(x, y, out))
        return out

    def product(self, x: Any, y: Any, out: Any) -> dict[str, Any]:
        """The arguments of the kernel `matmul` for aligned factors that are no vectors, with axes in front that broadcast."""
        batch = out.shape[:-2]
        x, y = (a if a.shape[:-2] == batch else np.broadcast_to(a, (*batch, *a.shape[-2:])) for a in (x, y))
        lead = (1,) * (2 - len(batch)) + batch if len(batch) < 3 else (math.prod(batch[:-1]), batch[-1])
        return {name: a.reshape(*lead, *a.shape[-2:]) for name, a in (("x", x), ("y", y), ("out", out))}

    def set_threads(self, n: int) -> None:
        """How many threads a kernel takes from now on, 1 to 4096; no result depends on it."""
        if MISSING is None:
            _host.set_threads(n)

    def build_info(self) -> dict[str, Any]:
        """Compiler, instruction sets, threads and CUDA status of the extension, or why there is none."""
        return {"missing": MISSING} if MISSING is not None else _host.build_info()

    def kernels(self) -> dict[str, tuple[dict[str, str], dict[str, str], tuple[str, ...]]]:
        """Of every kernel: axes of the inputs and of the outputs by name, and the names of the attributes; empty without the extension."""
        return {} if MISSING is not None else _host.kernels()


HOST = HostBackend()
