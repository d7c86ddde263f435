"""Python's operators and a few methods, put on Tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..backends import as_array
from ..tape import Tensor
from . import arrangement, arrays, bounds, constants, elementwise, linalg, matrices, reductions, shapes, statistics


def _compare(name: str) -> Callable[[Tensor, Any], Any]:
    """A comparison of values; its result is a plain bool array, since no derivative flows through it."""

    def compare(self: Tensor, other: Any) -> Any:
        other = other.value if isinstance(other, Tensor) else other
        return getattr(self.value, name)(other if isinstance(other, (int, float)) else as_array(other))

    compare.__name__ = name
    return compare


def _times(self: Tensor, other: Any) -> Tensor:
    """The product, as `multiply`."""
    return elementwise.scale(self, by=other) if type(other) in (int, float) else elementwise.multiply(self, other)


def _reshape(self: Tensor, *shape: Any) -> Tensor:
    """The elements in another shape, given as one tuple or as numbers, as `reshape`."""
    return arrays.reshape(self, shape[0] if len(shape) == 1 else shape)


def _transpose(self: Tensor, *axes: Any) -> Tensor:
    """The axes permuted, given as one tuple or as numbers (reversed by default), as `transpose`."""
    return arrays.transpose(self, axes[0] if len(axes) == 1 else axes or None)


def _take(self: Tensor, indices: Any, axis: int | None = None) -> Tensor:
    """Slices at indices along an axis, as `take`; without an axis, of all elements in C order."""
    return arrays.take(arrays.reshape(self, -1), indices) if axis is None else arrays.take(self, indices, axis)


Tensor.__add__ = Tensor.__radd__ = lambda self, other: elementwise.add(self, other)
Tensor.__sub__ = lambda self, other: elementwise.subtract(self, other)
Tensor.__rsub__ = lambda self, other: elementwise.subtract(other, self)
Tensor.__mul__ = Tensor.__rmul__ = _times
Tensor.__truediv__ = lambda self, other: elementwise.divide(self, other)
Tensor.__rtruediv__ = lambda self, other: elementwise.divide(other, self)
Tensor.__mod__ = lambda self, other: bounds.mod(self, other)
Tensor.__rmod__ = lambda self, other: bounds.mod(other, self)
Tensor.__neg__ = lambda self: elementwise.negative(self)
Tensor.__pow__ = lambda self, exponent: elementwise.power(self, exponent)
Tensor.__rpow__ = lambda self, base: elementwise.power(base, self)
Tensor.__matmul__ = lambda self, other: linalg.matmul(self, other)
Tensor.__rmatmul__ = lambda self, other: linalg.matmul(other, self)
Tensor.__getitem__ = lambda self, index: arrays.getitem(self, index)
Tensor.T = property(lambda self: arrays.transpose(self), doc="The Tensor with its axes reversed, as `transpose`.")
Tensor.reshape, Tensor.transpose, Tensor.take, Tensor.flatten = _reshape, _transpose, _take, shapes.ravel
for _op in (
    *(arrays.astype, bounds.clip, shapes.ravel, shapes.squeeze, shapes.swapaxes, arrangement.repeat),
    *(matrices.diagonal, matrices.trace, reductions.max, reductions.mean, reductions.min, reductions.sum),
    *(statistics.cumprod, statistics.cumsum, statistics.prod, statistics.std, statistics.var),
    *(constants.all, constants.any, constants.argmax, constants.argmin, constants.argsort, constants.round),
):
    setattr(Tensor, _op.__name__, _op)  # a method's first argument is the Tensor
for _name in ("__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__"):
    setattr(Tensor, _name, _compare(_name))
setattr(Tensor, "__hash__", object.__hash__)  # noqa: B010  (== compares elements, so identity must hash)
