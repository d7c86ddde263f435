"""Reads pickles that hold arrays and plain containers, and nothing else.

A pickle is a program: it may call any function it names. This reader knows the names that NumPy arrays,
dicts, lists, tuples, strings, bytes and numbers need, and answers each with an object of this file that does
the same work; not even NumPy's own reconstruction functions are reachable. Any other name stops the reading.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import DataError

_KINDS = "biufcSU"
_MAX_DEPTH = 100


class _DType:
    """Stands for numpy.dtype while the pickle is read; only plain numbers and strings."""

    __slots__ = ("dtype",)

    def __init__(self, spec: object) -> None:
        dtype = np.dtype(spec) if isinstance(spec, str) and spec.isascii() and "," not in spec else np.dtype(object)
        if dtype.kind not in _KINDS or dtype.fields is not None or dtype.subdtype is not None:
            raise _Forbidden(f"an array of dtype {spec!r}")
        self.dtype = dtype

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise _Forbidden("a structured array")
        if state[1] not in ("<", ">", "|", "="):
            raise _Forbidden(f"a byte order {state[1]!r}")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for an array while the pickle is read: NumPy fills an empty array by its state."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: Any = None

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise _Forbidden("an array with an unknown state")
        _, shape, dtype, fortran, data = state
        self.value = _make(data, dtype, shape, "F" if fortran else "C")


def _make(data: object, dtype: object, shape: object, order: str) -> Any:
    if not isinstance(dtype, _DType):
        raise _Forbidden("an array whose dtype is not a dtype")
    if isinstance(data, str):
        data = data.encode("latin-1")  # Python 2 wrote bytes as text
    if not isinstance(data, (bytes, bytearray)):
        raise _Forbidden("an array of Python objects")
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise _Forbidden(f"an array of shape {shape!r}")
    return np.frombuffer(bytes(data), dtype.dtype).reshape(shape, order="F" if order == "F" else "C")


# Each name is answered by an instance without attributes, so that no pickle can change one for the next.
class _MakeDType:
    __slots__ = ()

    def __call__(self, spec: object, align: object = False, copy: object = False, *_: object) -> _DType:
        return _DType(spec)


class _NDArray:
    __slots__ = ()


class _Reconstruct:
    __slots__ = ()

    def __call__(self, kind: object, shape: object, typecode: object) -> _Array:
        if not isinstance(kind, _NDArray):
            raise _Forbidden("an array of a class of its own")
        return _Array()


class _FromBuffer:
    __slots__ = ()

    def __call__(self, data: object, dtype: object, shape: object, order: object) -> _Array:
        array = _Array()
        array.value = _make(data, dtype, shape, str(order))
        return array


class _Scalar:
    __slots__ = ()

    def __call__(self, dtype: object, data: object) -> Any:
        return _make(data, dtype, (), "C")[()]


class _OrderedDict:
    __slots__ = ()

    def __call__(self, items: object = ()) -> dict[Any, Any]:
        return {key: value for key, value in items} if isinstance(items, (list, tuple)) else {}


class _Encode:
    """Stands for _codecs.encode, by which Python 3 writes bytes for Python 2."""

    __slots__ = ()

    def __call__(self, text: object, encoding: object) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise _Forbidden(f"an encoding {encoding!r}")
        return text.encode("latin-1")


class _EmptyBytes:
    __slots__ = ()

    def __call__(self) -> bytes:
        return b""


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _MakeDType(),
    ("numpy", "ndarray"): _NDArray(),
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Reconstruct() for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _Scalar() for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _FromBuffer() for core in ("core", "_core")},
    ("collections", "OrderedDict"): _OrderedDict(),
    ("_codecs", "encode"): _Encode(),
    ("builtins", "bytes"): _EmptyBytes(),
    ("__builtin__", "bytes"): _EmptyBytes(),
}


class _Forbidden(Exception):
    """The pickle asks for something that is neither an array nor a plain container."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise _Forbidden(f"{module}.{name}") from None

    def persistent_load(self, pid: object) -> Any:
        raise _Forbidden("an object kept outside the pickle")


def read_pickle(path: Path) -> Any:
    """Read a pickle of arrays, dicts, lists, tuples, strings, bytes, numbers, booleans and None.

    Pickles of Python 2 are read with latin-1 text. An OrderedDict comes back as a dict.

    Args:
        path: the file.
    Returns: the object; its arrays are read-only.
    Raises: DataError naming the file and what it asks for, if that is anything else (object arrays,
        structured arrays, classes, functions), or if the file is not a whole pickle. Nothing is executed.
    Memory: the contents once.
    """
    try:
        with open(path, "rb") as file:
            return _load(file)
    except _Forbidden as error:
        raise DataError(
            f"unpickle: {path} asks for {error}, expected only NumPy arrays and plain containers because a pickle "
            "can run any code; nothing of it was executed: get the data from a source you trust, or as folders of "
            "images"
        ) from error
    except OSError as error:
        raise DataError(
            f"unpickle: {path} has no readable bytes ({error.strerror}), expected a pickle because of its name; "
            "check the path and its permissions"
        ) from error
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ImportError,
        MemoryError,
        OverflowError,
        RecursionError,
    ) as error:
        raise DataError(
            f"unpickle: {path} has damaged contents ({type(error).__name__}: {error}), expected a whole pickle "
            "because of its name; fetch it again"
        ) from error


def _load(file: BinaryIO) -> Any:
    return _unwrap(_Unpickler(file, fix_imports=False, encoding="latin-1").load(), {}, 0)


def _unwrap(value: Any, done: dict[int, Any], depth: int) -> Any:
    """Exchange the stand-ins for the arrays they hold; `done` remembers parts that occur more than once."""
    if value is None or isinstance(value, (bool, int, float, str, bytes, bytearray, np.generic)):
        return value
    if depth > _MAX_DEPTH:
        raise _Forbidden(f"containers nested more than {_MAX_DEPTH} deep")
    if id(value) in done:
        return done[id(value)]
    result: Any
    if isinstance(value, _Array) and value.value is not None:
        result = value.value
    elif isinstance(value, dict):
        result = {_unwrap(k, done, depth + 1): _unwrap(v, done, depth + 1) for k, v in value.items()}
    elif isinstance(value, (list, tuple)):
        result = type(value)([_unwrap(v, done, depth + 1) for v in value])
    else:
        raise _Forbidden(f"an object of type {type(value).__name__.lstrip('_')}")
    done[id(value)] = result
    return result
