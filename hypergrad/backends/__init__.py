"""Where arrays live, and which backend runs kernels on them. The device follows the data."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from ..errors import ArgumentError, DeviceError, DTypeError
from .batched import Batched, BatchedBackend, backend_over, bare, is_batched, levels, refused
from .cuda import CUDA, CudaBackend
from .cuda import MISSING as NO_CUDA
from .host import HOST, HostBackend
from .tracing import TRACING, Traced, recorded_if_whole

__all__ = [
    "CUDA",
    "DEVICES",
    "HOST",
    "TRACING",
    "Array",
    "Backend",
    "Batched",
    "as_array",
    "backend_of",
    "backend_on",
    "bare",
    "digest",
    "is_batched",
    "is_on_gpu",
    "is_readable",
    "levels",
    "place",
    "refused",
    "to_host",
]

Array: TypeAlias = Any  # a NumPy or CuPy array; array modules share no type

DEVICES = ("cpu", "cuda")

_DLPACK_CPU = (1, 3)  # kDLCPU and kDLCUDAHost of dlpack.h: memory the CPU reads in place

Backend: TypeAlias = HostBackend | CudaBackend | BatchedBackend  # an array module and the kernels that run on its arrays


def backend_of(*arrays: Any) -> Backend:
    """The backend of some arrays (the host for none).

    Args:
        arrays: NumPy arrays, or CuPy arrays where the CUDA kernels are installed; and scalars.
    Raises: DeviceError for anything else, and for arrays on both sides.
    Cost: O(1) per array.
    """
    for a in arrays:
        if type(a) is not np.ndarray and (type(a) is Traced or not isinstance(a, (np.ndarray, np.generic, int, float))):
            return _device_backend(a, arrays)
    return HOST


def _device_backend(first: Any, arrays: Sequence[Any]) -> Backend:
    """The CUDA backend, where `first` is a CuPy array and no other one is in host memory; that of vmap or of recordings for theirs."""
    batched = [a for a in arrays if type(a) is Batched]
    if batched:
        return backend_over(max(batched, key=lambda a: a.level.number).base)
    if type(first) is Traced:
        return TRACING
    if not is_on_gpu(first):
        raise _no_backend("backend_of", first)
    for a in arrays:
        if isinstance(a, np.ndarray) and a.ndim > 0:
            raise DeviceError(
                f"backend_of: arguments are a CuPy array and a NumPy array of shape {a.shape}, expected one side "
                "because kernels never copy between devices; move one of them"
            )
        if not isinstance(a, (np.ndarray, np.generic, int, float)) and not is_on_gpu(a):
            raise _no_backend("backend_of", a)
    return CUDA


Batched.base = property(lambda self: backend_of(self.whole))


def backend_on(device: str) -> Backend:
    """The backend of a device by name.

    Args: device: "cpu", or "cuda" for the current GPU.
    Raises: ArgumentError for another name; ExtensionError without the CUDA kernels; DeviceError without CuPy, driver or GPU.
    Cost: O(1) but for the first import of CuPy.
    """
    if device not in DEVICES:
        raise ArgumentError(f"device: name is {device!r}, expected one of {', '.join(DEVICES)}; pass one of these")
    if device == "cpu":
        return HOST
    CUDA.require("device")
    return CUDA


def place(x: Any, device: str) -> Array:
    """A NumPy or CuPy array on the named device: the array itself if it lies there, else a copy.

    Raises: as `backend_on`. Cost: one copy where it lies elsewhere.
    """
    return backend_on(device).xp.asarray(x) if device != "cpu" else to_host(x)


def to_host(x: Any) -> Any:
    """x as a NumPy array: itself, or a copy from the GPU, for which the host waits."""
    return x.get() if is_on_gpu(x) else x


def is_on_gpu(x: Any) -> bool:
    """Whether x is a CuPy array and there are kernels for it."""
    cupy = sys.modules.get("cupy")  # an array of CuPy's exists only where CuPy is imported
    return NO_CUDA is None and cupy is not None and isinstance(x, cupy.ndarray)


def is_readable(x: Any) -> bool:
    """Whether the host may read elements of x: not of an array on a GPU, and not of one in a recording of a whole function."""
    return not (type(x) is Traced and x.recording.whole) and not is_on_gpu(x)


def digest(x: Any) -> int | None:
    """As `HostBackend.digest`; None for an array whose elements the host does not read (`is_readable`)."""
    if not is_readable(x):
        return None
    if type(x) is Batched:
        return digest(x.whole)
    if type(x) is Traced:
        raise x.recording.refuse("a digest of an array is taken")
    return HOST.digest(x)


def as_array(x: Any) -> Array:
    """x as an array, without a copy where it already is one in host memory and in the processor's byte order.

    Args:
        x: a NumPy array (returned as it is, or as a plain view for a subclass such as `memmap`), a number or nested sequence of
            numbers, or an object with `__dlpack__`, `__array_interface__`, `__array__` or the buffer protocol.
    Returns: a plain NumPy array that shares x's memory where x has any; other byte orders are copied.
    Raises: DeviceError if x is on a GPU; DTypeError for an array of anything but numbers; ArgumentError if x cannot be exported, is
        not made of numbers, or is a masked array or a matrix, which mean more than their elements.
    Cost: O(1) for arrays, O(size) for numbers and sequences.
    """
    if type(x) is np.ndarray and x.dtype.char in _PLAIN and x.dtype.isnative:
        return recorded_if_whole(x)
    if type(x) in (Traced, Batched) or is_on_gpu(x):
        return x
    if isinstance(x, np.ndarray):
        return _plain(x)
    if isinstance(x, (int, float, list, tuple, np.generic)):
        return _numbers(x)
    if hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__"):
        if x.__dlpack_device__()[0] not in _DLPACK_CPU:
            raise _no_backend("as_array", x)
        try:
            return np.from_dlpack(x)
        except (BufferError, RuntimeError, TypeError) as error:
            raise ArgumentError(
                f"as_array: x is a {_type_name(x)} that cannot be exported ({error}), expected plain "
                "numbers in host memory; detach or convert it first"
            ) from error
    if hasattr(x, "__cuda_array_interface__"):
        raise _no_backend("as_array", x)
    return _numbers(x)


_PLAIN = "?bhilqpBHILQPefdgFDG"  # NumPy's characters of bools, integers, floats and complex numbers
_MEANINGS = {  # of subclasses of arrays that are more than their elements
    np.ma.MaskedArray: ("its mask would be ignored silently", "pass x.filled(value), or x.data and the mask as an array of its own"),
    np.matrix: ("its * is another product than that of arrays", "pass numpy.asarray(x)"),
}


def _plain(x: Any) -> Array:
    """A NumPy array of any class and dtype as a plain one of numbers."""
    for kind, (reason, remedy) in _MEANINGS.items():
        if isinstance(x, kind):
            raise ArgumentError(f"as_array: x is a {_type_name(x)}, expected a plain array because {reason}; {remedy}")
    if x.dtype.char not in _PLAIN:
        raise DTypeError(f"as_array: x has dtype {x.dtype}, expected numbers; convert with astype")
    x = x if type(x) is np.ndarray else x.view(np.ndarray)
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))


def _numbers(x: Any) -> Array:
    try:
        a = np.asanyarray(x)
    except ValueError as error:  # ragged nesting
        raise ArgumentError(f"as_array: x is a {_type_name(x)} that is no array ({error}), expected numbers in equal rows") from error
    if a.dtype.char not in _PLAIN:
        raise ArgumentError(f"as_array: x is a {_type_name(x)} with elements of dtype {a.dtype}, expected numbers")
    return _plain(a)


def _type_name(x: Any) -> str:
    return f"{type(x).__module__}.{type(x).__qualname__}".removeprefix("builtins.")


def _no_backend(where: str, x: Any) -> DeviceError:
    cuda = hasattr(x, "__cuda_array_interface__") or hasattr(x, "__dlpack__")
    if not cuda:
        return DeviceError(f"{where}: argument is a {_type_name(x)}, expected a NumPy array; convert it first")
    info = HOST.build_info()
    why = info.get("cuda") or info.get("missing")
    return DeviceError(
        f"{where}: argument is a {_type_name(x)} outside host memory, expected a NumPy array because this "
        f"build has no backend for CuPy arrays ({why}); copy it to the host first"
    )
