"""What a Tensor has of NumPy's arrays, declared for type checkers.

The operators and methods are ops, which are written on Tensors, so tape.py cannot define them. ops/operators.py puts them on Tensor;
ops/conversions.py and ops/numpy_protocol.py add the other protocols.
"""

from __future__ import annotations

from typing import Any


class ArrayMethods:
    """Operators, methods and properties of arrays, each as the op of its name."""

    __slots__ = ()

    __add__: Any
    __radd__: Any
    __sub__: Any
    __rsub__: Any
    __mul__: Any
    __rmul__: Any
    __truediv__: Any
    __rtruediv__: Any
    __mod__: Any
    __rmod__: Any
    __neg__: Any
    __pow__: Any
    __rpow__: Any
    __matmul__: Any
    __rmatmul__: Any
    __getitem__: Any
    __iter__: Any
    __float__: Any

    T: Any
    all: Any
    any: Any
    argmax: Any
    argmin: Any
    argsort: Any
    astype: Any
    clip: Any
    cumprod: Any
    cumsum: Any
    diagonal: Any
    flatten: Any
    item: Any
    max: Any
    mean: Any
    min: Any
    prod: Any
    ravel: Any
    repeat: Any
    reshape: Any
    round: Any
    squeeze: Any
    std: Any
    sum: Any
    swapaxes: Any
    take: Any
    trace: Any
    transpose: Any
    var: Any
