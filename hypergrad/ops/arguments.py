"""Arguments that are no arrays: whole numbers, numbers and switches, in Python's or NumPy's types, or a clear error."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..backends import Array, Batched, as_array, bare
from ..errors import ArgumentError, DTypeError, HypergradError
from ..tape import Tensor


def shown(value: Any) -> str:
    """The value as a message names it: itself, or the shape of an array."""
    if isinstance(value, Tensor) or not isinstance(value, type) and hasattr(value, "shape") and value.shape:
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    return repr(value.item() if isinstance(value, np.generic) else value)


def integer(op: str, argument: str, value: Any, reason: str) -> int:
    """A whole number given as an int, a NumPy integer or a 0-d integer array.

    Raises: ArgumentError for anything else, bools and floats among them.
    """
    if not isinstance(value, (bool, np.bool_)):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise ArgumentError(f"{op}: {argument} has {shown(value)}, expected an integer because {reason}; pass an int")


def integers(op: str, argument: str, value: Any, reason: str) -> tuple[int, ...]:
    """Whole numbers given as one, or as a sequence or 1-d array of them; errors as `integer`."""
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, dict, set, Tensor)) and not _is_scalar(value):
        return tuple([integer(op, argument, n, reason) for n in value])
    return (integer(op, argument, value, reason),)


def _is_scalar(value: Any) -> bool:
    return hasattr(value, "shape") and not value.shape


def number(
    op: str,
    argument: str,
    value: Any,
    wanted: str,
    reason: str,
    least: float,
    *,
    excluded: bool = False,
    below: float = math.inf,
    infinite: bool = False,
) -> float:
    """A real number of at least `least` (above it where that is `excluded`) and below `below`, in Python's or NumPy's types.

    Infinity is one only where `infinite` says so. Of a number for each example of `vmap`, all are looked at, and the first is given.

    Raises: ArgumentError for anything else: bools, NaN, strings, None and Tensors, whose derivative would be lost, among them.
    """
    plain = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if plain or _is_scalar(value) and not isinstance(value, (Tensor, np.bool_)) and value.dtype.kind in "iuf":
        every = bare(value).ravel().tolist() if type(value) is Batched else [float(value)]
        if all((least < n if excluded else least <= n) and (n < below or infinite and n == math.inf) for n in every):
            return float(every[0])
    raise ArgumentError(f"{op}: {argument} has {shown(value)}, expected {wanted} because {reason}; pass such a number")


def switch(op: str, argument: str, value: Any) -> bool:
    """True or False, also as NumPy's, or as 1 or 0.

    Raises: ArgumentError for anything else.
    """
    if isinstance(value, (bool, int, np.bool_, np.integer)) and value in (0, 1):
        return bool(value)
    raise ArgumentError(f"{op}: {argument} has {shown(value)}, expected True or False because it is a switch; pass one of them")


def dtype_of(op: str, dtype: Any, kinds: str, wanted: str, reason: str) -> np.dtype[Any]:
    """A dtype of one of the kinds, floats being float32 or float64, given as a NumPy dtype, its class or its name.

    Raises: DTypeError for anything else.
    """
    found = None
    if isinstance(dtype, (str, type, np.dtype)):
        try:
            found = np.dtype(dtype)
        except TypeError:
            found = None
    if found is None or found.kind not in kinds or found.kind == "f" and found.itemsize not in (4, 8):
        raise DTypeError(f"{op}: dtype has {shown(dtype)}, expected {wanted} because {reason}; pass one")
    return found


def array_of(op: str, argument: str, value: Any, kinds: str, wanted: str, reason: str) -> Array:
    """An array of one of the dtype kinds, through which no derivative flows; a GPU's stays there.

    Raises: DTypeError for other dtypes; ArgumentError or DeviceError for what is no array.
    """
    try:
        array = value.value if isinstance(value, Tensor) else as_array(value)
    except HypergradError as error:
        raise type(error)(f"{op}: {argument} is no array, expected {wanted} because {reason}; {error}") from error
    if array.dtype.kind not in kinds:
        raise DTypeError(f"{op}: {argument} has dtype {array.dtype}, expected {wanted} because {reason}; convert with astype")
    return array
