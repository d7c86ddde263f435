"""CuPy arrays and the compiled CUDA kernels, on CuPy's current stream and in CuPy's memory pool.

CuPy is optional and imported when the first CUDA array is met. Without CuPy, a driver, a device or the extension,
every use raises an error that names what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np

from ..errors import ArgumentError, DeviceError, DTypeError, ExtensionError, ShapeError
from .recording import recalled, recording

try:
    from .. import _cuda
except ImportError as error:
    MISSING: str | None = str(error)  # why there are no kernels; None if there are
else:
    MISSING = None
    _cuda.set_error_types(ShapeError, DTypeError, ArgumentError)

MOST_AXES = 6  # of a kernel's array


class CudaBackend:
    """Arrays are CuPy arrays; kernels are queued on the current stream of the arrays' device and never wait."""

    name = "cuda"

    def __init__(self) -> None:
        self._tickets_of: dict[tuple[int, int], Any] = {}  # by device and stream

    @cached_property
    def xp(self) -> Any:
        """The module cupy.

        Raises: DeviceError where CuPy is not installed, or finds no driver and device.
        """
        try:
            cupy = import_module("cupy")
        except ImportError as error:
            raise DeviceError(
                f"cuda: CuPy is missing, expected it because arrays on the GPU are CuPy's ({error}); install "
                "hypergrad-engine[cuda13], or [cuda12] for an older driver"
            ) from error
        if not cupy.cuda.is_available():
            raise DeviceError(
                "cuda: CuPy finds no usable GPU, expected one; check that "
                "nvidia-smi lists a device and that its driver is new enough for this CuPy"
            )
        return cupy

    def require(self, where: str) -> None:
        """Raises ExtensionError without the compiled extension, DeviceError without CuPy, driver or GPU."""
        if MISSING is not None:
            raise ExtensionError(
                f"{where}: the compiled extension hypergrad._cuda is missing, expected it because the arrays "
                f"are on a GPU ({MISSING}); install from source with nvcc on the PATH"
            )
        if self.device_count() == 0:
            raise DeviceError(
                f"{where}: there is no CUDA device, expected one because the arrays are to live on it "
                f"({self.build_info()['cuda']}); check nvidia-smi, or stay on the cpu"
            )
        assert self.xp

    def applied(self, op: Any, values: list[Any], attrs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        """What an op gives on these arrays (outputs, saved); see tape.Rule. In a recording an earlier result where there is one."""
        found: tuple[tuple[Any, ...], Any] = recalled(op.name, values, attrs, lambda: op.forward(self, values, attrs))
        return found

    def run(self, name: str, /, **arguments: Any) -> dict[str, Any]:
        """Queues one kernel; arguments and outputs as the host backend's, on CuPy arrays.

        Raises: ExtensionError without the compiled extension; DeviceError without a GPU; ShapeError, DTypeError or
            ArgumentError for a wrong call; RuntimeError where CUDA refuses a launch.
        Cost: the kernel's; scratch comes from CuPy's pool and goes back when the kernels are queued.
        """
        if MISSING is not None:
            self.require(name)
        cupy = self.xp
        rows = (a if isinstance(a, (list, tuple)) else (a,) for a in arguments.values())
        arrays = [a for row in rows for a in row if not isinstance(a, (int, float, type(None)))]
        sides = ["GPU" if isinstance(a, cupy.ndarray) else "host" for a in arrays]
        if "host" in sides:
            raise DeviceError(
                f"{name}: its arrays lie on {', '.join(sides)}, expected all on one side because kernels never copy between "
                "devices; move one of them"
            )
        with arrays[0].device if arrays else nullcontext():
            stream = cupy.cuda.get_current_stream().ptr
            outputs: dict[str, Any] = _cuda.run(name, arguments, self.empty, lambda n: cupy.empty(n, cupy.uint8), self._tickets, stream)
        return outputs

    def _tickets(self, n: int) -> Any:
        """At least n bytes of zeros, of the current stream alone, since kernels leave them as zeros only when they are done."""
        cupy, own = self.xp, recording.get()
        size = max(1 << 16, 1 << (n - 1).bit_length())
        if own is not None:
            return own.constant(("tickets", size), lambda: cupy.zeros(size, cupy.uint8))
        key = cupy.cuda.Device().id, cupy.cuda.get_current_stream().ptr
        found = self._tickets_of.get(key)
        if found is None or found.size < size:
            found = self._tickets_of[key] = cupy.zeros(size, cupy.uint8)
        return found

    def empty(self, shape: Sequence[int], dtype: Any) -> Any:
        """An uninitialised array on the current device."""
        return self.xp.empty(tuple(shape), dtype)

    def number(self, value: float, dtype: Any) -> Any:
        """A Python number as a 0-d array, written by a kernel: a copy from the host would wait, and a graph cannot record one.

        In a recording it is a constant that others may share, so it must not be written to.
        """
        own = recording.get()
        if own is None:
            return self.xp.full((), value, dtype)
        return own.constant(("number", repr(value), str(np.dtype(dtype))), lambda: self.xp.full((), value, dtype))

    def sum_trees(self, xs: Sequence[Any], ys: Sequence[Any]) -> list[Any]:
        """x + y of each pair of arrays of one shape; contiguous arrays of one dtype in one launch."""
        outs = self._sum_leaves([a[None] for a in xs], ys=list(ys))
        return [x + y for x, y in zip(xs, ys, strict=True)] if outs is None else outs

    def sum_rows(self, xs: Sequence[Any]) -> list[Any]:
        """The sum over the first axis of each array; contiguous arrays of one dtype and number of rows in one launch."""
        outs = self._sum_leaves(list(xs))
        return [a.sum(0) for a in xs] if outs is None else outs

    def copies(self, xs: Sequence[Any]) -> list[Any]:
        """Contiguous copies; of contiguous arrays of one dtype, or of arrays whose rows are one row repeated, in one launch."""
        counts = {len(a) if a.ndim and len(a) > 1 and a.strides[0] == 0 else 0 for a in xs}
        if len(counts) == 1 and (count := counts.pop()):
            outs = self._sum_leaves([a[:1] for a in xs], Q=count)
        else:
            outs = self._sum_leaves([a[None] for a in xs])
        return [a.copy() for a in xs] if outs is None else outs

    def fill(self, own: Sequence[Any], given: Sequence[Any]) -> None:
        """Overwrites each of `own` with the array given for it; contiguous ones of one floating dtype in one launch."""
        floats = [(a, b) for a, b in zip(own, given, strict=True) if a.dtype.char in "fd" and b.flags.c_contiguous]
        kind = floats[0][0].dtype if floats else None
        same = [(a, b) for a, b in floats if a.dtype == kind and b.dtype == kind]
        done = {id(a) for a, _ in same}
        if self._sum_leaves([b[None] for _, b in same], out=[a for a, _ in same]) is None:
            done.clear()
        for a, b in zip(own, given, strict=True):
            if id(a) not in done:
                a[...] = b

    def _sum_leaves(
        self, xs: list[Any], ys: list[Any] | None = None, out: list[Any] | None = None, Q: int | None = None
    ) -> list[Any] | None:
        """The outputs of the kernel sum_leaves; None where it does not serve, or saves no launch.

        Without `out` and the number Q of copies they are new arrays without the first axis, no views, so that they can be handed on.
        """
        rest = xs if ys is None else [*xs, *ys]
        if len(xs) < 2 or xs[0].dtype.char not in "fd" or len({(str(a.dtype), a.shape[0]) for a in xs}) > 1:
            return None
        if any(not a.flags.c_contiguous or a.ndim > MOST_AXES or a.dtype != xs[0].dtype for a in rest):
            return None
        if Q is not None:
            copies: list[Any] = self.run("sum_leaves", x=xs, y=ys, Q=Q)["out"]
            return copies
        own = [self.empty(a.shape[1:], a.dtype) for a in xs] if out is None else out
        self.run("sum_leaves", x=xs, y=ys, out=[a[None] for a in own])
        return own

    def concatenate(self, arrays: Sequence[Any], axis: int) -> Any:
        """Arrays joined along an axis, at most 8 at a time: for more, CuPy copies a table of pointers from the host."""
        rows = list(arrays)
        while len(rows) > 1:
            rows = [self.xp.concatenate(rows[i : i + 8], axis) for i in range(0, len(rows), 8)]
        return rows[0]

    def matmul(self, x: Any, y: Any) -> Any:
        """The matrix product, by cuBLAS; for a recording by a convolution of images of one pixel.

        CuPy refuses to call cuBLAS while a stream records (github.com/cupy/cupy/issues/6290).
        """
        if recording.get() is None:
            return self.xp.matmul(x, y)
        batch: tuple[int, ...] = (1, 1, *np.broadcast_shapes(x.shape[:-2], y.shape[:-2]))
        x, y = (self.xp.broadcast_to(self.xp.ascontiguousarray(a), (*batch, *a.shape[-2:])) for a in (x, y))
        lead, (m, k), n = (math.prod(batch[:-1]), batch[-1]), x.shape[-2:], y.shape[-1]
        images, filters = x.reshape(*lead, m, 1, 1, k), y.reshape(*lead, 1, 1, k, n)
        product = self.run("conv2d_fprop", x=images, w=filters, P=1, Q=1, stride=1, pad_h=0, pad_w=0, precision=0)["y"]
        return product.reshape(*batch[2:], m, n)

    def build_info(self) -> dict[str, Any]:
        """Compiler, runtime, driver and devices of the extension, or why there is none."""
        return {"missing": MISSING} if MISSING is not None else _cuda.build_info()

    def device_count(self) -> int:
        """GPUs that the extension can use; 0 without extension, driver or GPU."""
        return 0 if MISSING is not None else _cuda.device_count()

    def kernels(self) -> dict[str, tuple[dict[str, str], dict[str, str], tuple[str, ...]]]:
        """Of every kernel: axes of the inputs and of the outputs by name, and the names of the attributes; empty without the extension."""
        return {} if MISSING is not None else _cuda.kernels()


CUDA = CudaBackend()
