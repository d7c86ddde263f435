"""Reads pickles that hold arrays and plain containers, and nothing else.

A pickle is a program that may call any function it names. Here it can only write down which of the admitted names it calls with what;
`_value` then does the work, since NumPy's own reconstruction trusts its arguments.
"""

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .files import reading

_NAMES = {"numpy.dtype", "numpy.ndarray", "numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar"}
_NAMES |= {"numpy.core.numeric._frombuffer", "collections.OrderedDict", "_codecs.encode", "builtins.bytes"}


def _forbidden(what: str) -> pickle.UnpicklingError:
    return pickle.UnpicklingError(
        f"it asks for {what}, expected only NumPy arrays and plain containers because a pickle can run any code; nothing of it was "
        "executed: get the data from a source you trust, or as folders of images"
    )


class _Call:
    """A call that a pickle wrote down, and the state it gave to the result."""

    __slots__ = __match_args__ = ("name", "arguments", "state")

    def __init__(self, name: str, *arguments: Any) -> None:
        self.name, self.arguments, self.state = name, arguments, None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}".replace("numpy._core.", "numpy.core.").replace("__builtin__.", "builtins.")
        if full not in _NAMES:
            raise _forbidden(f"{module}.{name}")
        return dict if full == "collections.OrderedDict" else partial(_Call, full)


def read_pickle(path: Path) -> Any:
    """Read a pickle of arrays, dicts, lists, tuples, strings, bytes, numbers, booleans and None.

    Pickles of Python 2 are read with latin-1 text. An OrderedDict comes back as a dict.

    Args: path: the file.
    Returns: the object; its arrays are read-only.
    Raises: DataError naming the file and what it asks for, if that is anything else (object arrays, structured arrays, classes,
        functions), or if the file is not a whole pickle. Nothing is executed.
    Cost: the contents once in memory.
    """
    with reading("pickle", path), open(path, "rb") as file:
        return _value(_Unpickler(file, fix_imports=False, encoding="latin-1").load(), {})


def _value(value: Any, done: dict[int, Any]) -> Any:
    """What a pickle's object stands for; `done` remembers parts that occur more than once."""
    if value is None or isinstance(value, (bool, int, float, str, bytes, bytearray)):
        return value
    if id(value) in done:
        return done[id(value)]
    result: Any
    match value:
        case dict():
            result = {_value(k, done): _value(v, done) for k, v in value.items()}
        case list() | tuple():
            result = type(value)(_value(part, done) for part in value)
        case _Call("numpy.core.multiarray._reconstruct", (partial(args=("numpy.ndarray",)), *_), (_, shape, dtype, fortran, data)):
            result = _array(_value(data, done), _dtype(dtype), shape, "F" if fortran else "C")
        case _Call("numpy.core.numeric._frombuffer", (data, dtype, shape, "C" | "F" as order)):
            result = _array(_value(data, done), _dtype(dtype), shape, order)
        case _Call("numpy.core.multiarray.scalar", (dtype, data)):
            result = _array(_value(data, done), _dtype(dtype), (), "C")[()]
        case _Call("_codecs.encode", (str(text), "latin1" | "latin-1")):  # by which Python 3 writes bytes for Python 2
            result = text.encode("latin-1")
        case _Call("builtins.bytes", ()):
            result = b""
        case _Call():
            raise _forbidden(f"{value.name} in an unknown form")
        case _:
            raise _forbidden(f"an object of type {type(value).__name__}")
    done[id(value)] = result
    return result


def _dtype(value: Any) -> np.dtype[Any]:
    """A dtype of numbers or strings, without fields."""
    match value:
        case _Call("numpy.dtype", (str(spec), *_), None | (_, "<" | ">" | "|" | "=", None, None, None, *_)) if "," not in spec:
            dtype = np.dtype(spec)
            if dtype.kind in "biufcSU" and dtype.subdtype is None:
                return dtype.newbyteorder(value.state[1]) if value.state else dtype
    raise _forbidden(f"an array of dtype {value.arguments[0] if isinstance(value, _Call) and value.arguments else value!r}")


def _array(data: Any, dtype: np.dtype[Any], shape: Any, order: Any) -> Any:
    contents = data.encode("latin-1") if isinstance(data, str) else data  # Python 2 wrote bytes as text
    if not isinstance(contents, (bytes, bytearray)):
        raise _forbidden("an array of Python objects")
    array = np.frombuffer(contents, dtype).reshape(shape, order=order)
    array.flags.writeable = False
    return array
