"""Reads pickles that hold arrays and plain containers, and nothing else.

A pickle is a program that may call any function it names. Here it can only write down which of the admitted names it calls with what;
`_value` then does the work, since NumPy's own reconstruction trusts its arguments.
"""

import mmap
import pickle
import pickletools
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..guards import open_plain
from .files import reading

_MAX_BYTES, _MAX_STEPS = 1 << 31, 1 << 20
_OPERATIONS = {operation.code: operation for operation in pickletools.opcodes}
_COUNTED = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT4: 4, pickletools.TAKEN_FROM_ARGUMENT4U: 4}
_COUNTED |= {pickletools.TAKEN_FROM_ARGUMENT8U: 8}  # bytes of the count before an operand

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
    with reading("pickle", path), open_plain(path, _MAX_BYTES) as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as program:
            _check_program(program)
        return _value(_Unpickler(file, fix_imports=False, encoding="latin-1").load(), {})


def _check_program(program: mmap.mmap) -> None:
    """Refuse a pickle of too many steps, and one that reserves memory which its bytes do not fill: nine bytes can ask for gigabytes."""
    at = steps = 0
    name = ""
    while name != "STOP":
        steps += 1
        code = program[at : at + 1].decode("latin-1")
        if code not in _OPERATIONS or steps > _MAX_STEPS:
            raise pickle.UnpicklingError("it is cut off or no pickle" if steps <= _MAX_STEPS else f"it has more than {_MAX_STEPS} steps")
        operation = _OPERATIONS[code]
        name, operand, start = operation.name, operation.arg, at + 1
        at, n = start, 0 if operand is None else operand.n
        if n == pickletools.UP_TO_NEWLINE:
            for _ in range(2 if name in ("GLOBAL", "INST") else 1):
                at = program.find(b"\n", at) + 1 or len(program) + 1
        elif n in _COUNTED:
            at += _COUNTED[n] + int.from_bytes(program[at : at + _COUNTED[n]], "little")
        else:
            at += n
        number = program[start : min(at, start + 20)]
        index = int(number) if name == "PUT" else int.from_bytes(number, "little") if name.endswith("BINPUT") else 0
        end = at + int.from_bytes(number, "little") if name == "FRAME" else at
        if end > len(program) or not 0 <= index <= steps:
            raise pickle.UnpicklingError("it is cut off, or it asks for more memory than its contents need")


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
