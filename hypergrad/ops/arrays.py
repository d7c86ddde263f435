"""Ops that move elements: reshape, transpose, indexing, concatenation. All linear."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..backends import HOST, TRACING, Array, Backend, backend_of, bare, is_batched, is_on_gpu
from ..backends.tracing import recording_of
from ..errors import ArgumentError, ShapeError
from ..rules import Linear, Op, Registered, linear
from ..rules import broadcast_to as _broadcast_to
from ..rules import reshape as _reshape
from ..stretch import PLACING
from ..tape import Node, Tensor, apply, to_tensors
from .arguments import array_of, dtype_of, integer, integers, shown
from .elementwise import for_each

__all__ = ["astype", "broadcast_to", "concatenate", "reshape", "stack", "take", "transpose"]

SHAPE, AXIS = "it counts elements", "axes are numbered"


def normalise_axis(name: str, axis: Any, ndim: int) -> int:
    """A non-negative axis; ArgumentError where `axis` is no integer or does not exist."""
    number = integer(name, "axis", axis, AXIS)
    if not -ndim <= number < ndim:
        raise ArgumentError(f"{name}: axis has {number}, expected {-ndim} to {ndim - 1} because the argument has {ndim} axes")
    return number % ndim


def line(name: str, x: Any, axis: Any) -> tuple[Tensor, int]:
    """x and one of its axes; with None, all elements in C order and the axis 0."""
    (x,) = to_tensors(name, [x])
    return (reshape(x, -1), 0) if axis is None else (x, normalise_axis(name, axis, x.ndim))


def reshape(x: Any, shape: int | Sequence[int]) -> Tensor:
    """x with another shape and the same elements in C order.

    Args:
        x: array or Tensor.
        shape: the new shape; one entry may be -1.
    Returns: Tensor; a view where NumPy gives one.
    Raises: ShapeError if the sizes differ.
    Example:
        >>> hg.reshape(np.array([[1.0, 2.0], [3.0, 4.0]]), -1)
        Tensor(array([1., 2., 3., 4.]))
    """
    (x,) = to_tensors("reshape", [x])
    shape = integers("reshape", "shape", shape, SHAPE)
    if -1 in shape:
        rest = int(np.prod([n for n in shape if n != -1]))
        shape = tuple([(x.size // rest if rest else 0) if n == -1 else n for n in shape])
    return _reshape(x, shape=shape)


def broadcast_to(x: Any, shape: int | Sequence[int]) -> Tensor:
    """x repeated along new or unit axes until it has `shape`, without a copy.

    Args:
        x: array or Tensor.
        shape: the new shape.
    Returns: Tensor (a read-only view).
    Raises: ShapeError if x does not broadcast.
    Example:
        >>> hg.broadcast_to(np.array([1.0, 2.0]), (2, 2))
        Tensor(array([[1., 2.],
               [1., 2.]]))
    """
    return _broadcast_to(x, shape=integers("broadcast_to", "shape", shape, SHAPE))


_transpose: Op = linear(
    "transpose",
    lambda b, x, *, lead, axes: x.transpose(*range(lead), *(a + lead for a in axes)),
    lambda bar, x, *, lead, axes: _transpose(bar, axes=tuple([int(a) for a in np.argsort(axes)]), lead=lead),
)


def transpose(x: Any, axes: Sequence[int] | None = None) -> Tensor:
    """x with its axes permuted (reversed by default).

    Args:
        x: array or Tensor.
        axes: a permutation of range(ndim).
    Returns: Tensor; a view.
    Raises: ArgumentError if `axes` is no permutation.
    Example:
        >>> hg.transpose(np.array([[1.0, 2.0], [3.0, 4.0]]))
        Tensor(array([[1., 3.],
               [2., 4.]]))
    """
    (x,) = to_tensors("transpose", [x])
    axes = (
        tuple(range(x.ndim))[::-1]
        if axes is None
        else tuple([normalise_axis("transpose", a, x.ndim) for a in integers("transpose", "axes", axes, AXIS)])
    )
    if sorted(axes) != list(range(x.ndim)):
        raise ArgumentError(f"transpose: axes has {axes}, expected a permutation of 0 to {x.ndim - 1} because every axis must stay")
    return _transpose(x, axes=axes)


def swap_last(x: Tensor) -> Tensor:
    """x with its last two axes exchanged."""
    n = x.ndim
    return _transpose(x, axes=(*range(n - 2), n - 1, n - 2))


# --- indexing: getitem and its transpose put ---------------------------------------------------------------


def _is_array(index: Any) -> bool:
    return hasattr(index, "shape") and not isinstance(index, np.generic)


def _apart(index: tuple[Any, ...]) -> bool:
    """Whether integer arrays stand apart, so that NumPy moves their axes to the front."""
    where = [i for i, part in enumerate(index) if _is_array(part) or isinstance(part, (int, np.integer))]
    return any(_is_array(p) for p in index) and bool(where) and where[-1] - where[0] + 1 != len(where)


def _getitem_value(b: Backend, x: Array, *, lead: int = 0, index: tuple[Any, ...]) -> Array:
    if lead and _apart(index):
        return b.concatenate([_getitem_value(b, row, lead=lead - 1, index=index)[None] for row in x], 0)
    return x[(slice(None),) * lead + index]


def _put_value(b: Backend, x: Array, *, lead: int = 0, index: tuple[Any, ...], shape: tuple[int, ...]) -> Array:
    out = b.xp.zeros(x.shape[:lead] + shape, x.dtype)
    if lead and _apart(index):
        for row, source in zip(out, x, strict=True):
            row[...] = _put_value(b, source, lead=lead - 1, index=index, shape=shape)
    elif any(_is_array(part) and part.dtype != bool for part in index):
        b.xp.add.at(out, (slice(None),) * lead + index, x)
    else:
        out[(slice(None),) * lead + index] = x
    return out


class _Indexed(Linear):
    """A linear op with an index, which may be another one for each example of `vmap`."""

    def __call__(self, *args: Any, **attrs: Any) -> Tensor:
        index = attrs["index"]
        if is_batched((index,)):
            (x,) = to_tensors(self.name, args)
            args = (for_each(x, index if type(index) is tuple else (index,)),)
        return super().__call__(*args, **attrs)

    def forward(self, backend: Backend, values: list[Array], attrs: dict[str, Any]) -> tuple[tuple[Array, ...], Any]:
        """The value, recorded where the index is, too: x may be the same in every run, such as the cotangent of a mean."""
        return super().forward(TRACING if backend is HOST and recording_of(attrs["index"]) is not None else backend, values, attrs)


_getitem: Op = _Indexed("getitem", _getitem_value, lambda bar, x, *, lead, index: put(bar, index=index, shape=x.shape[lead:], lead=lead))
put: Op = _Indexed("put", _put_value, lambda bar, x, *, lead, index, shape: _getitem(bar, index=index, lead=lead))


def getitem(x: Any, index: Any) -> Tensor:
    """x[index] for numbers, slices, None, Ellipsis, integer arrays and bool masks.

    Args:
        x: array or Tensor.
        index: as NumPy; a Tensor is no index.
    Returns: Tensor; a view for numbers and slices.
    Raises: ArgumentError if an index is out of range; a CuPy array's entries are not read by the host and wrap around.
    """
    (x,) = to_tensors("getitem", [x])
    return look_up("getitem", x, as_index("getitem", index))


def as_index(name: str, index: Any) -> tuple[Any, ...]:
    """An index as NumPy's users write it as a tuple, with lists and foreign arrays as arrays."""
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(p, Tensor) for p in parts):
        raise ArgumentError(f"{name}: index is a Tensor, expected integers because no derivative exists in an index; use an integer array")
    what = "integers, bools, slices, None or Ellipsis", "it chooses elements"
    arrays = [np.asarray(p, None if p else np.intp) if isinstance(p, list) else p for p in parts]
    return tuple([array_of(name, "index", p, "biufc", *what) if isinstance(p, np.ndarray) else p for p in arrays])


def look_up(name: str, x: Tensor, index: tuple[Any, ...]) -> Tensor:
    """x[index] for the op `name`; index arrays of the host are checked and copied to where x is."""
    try:
        if is_on_gpu(bare(x.value)) and any(isinstance(p, np.ndarray) for p in index):
            np.broadcast_to(np.int8(0), x.shape)[tuple([0 if is_on_gpu(p) else p for p in index])]  # CuPy would wrap around
        return _getitem(x, index=beside(x, index))
    except IndexError as error:
        given = ", ".join(f"an array of shape {p.shape}" if _is_array(p) else str(p) for p in index)
        raise ArgumentError(f"{name}: index has {given}, expected one that fits shape {x.shape} because {error}") from error


def beside(x: Tensor, index: tuple[Any, ...]) -> tuple[Any, ...]:
    """The index with its arrays where x is."""
    if not is_on_gpu(bare(x.value)):
        return index
    return tuple([backend_of(x.value).xp.asarray(p) if isinstance(p, np.ndarray) else p for p in index])


def take(x: Any, indices: Any, axis: int = 0) -> Tensor:
    """Slices of x at integer `indices` along `axis`, as numpy.take.

    Args:
        x: array or Tensor.
        indices: integer or integer array, 0 <= index < x.shape[axis] or negative from the end; repeats allowed.
        axis: the axis to index.
    Returns: Tensor, x's shape with `axis` replaced by the shape of `indices`.
    Raises: ArgumentError out of range; DTypeError for indices that are no integers. A CuPy array's entries are not read by the
        host and wrap around.
    Example:
        >>> hg.take(np.array([3.0, 1.0, 2.0]), [2, 0])
        Tensor(array([2., 3.]))
    """
    (x,) = to_tensors("take", [x])
    axis = normalise_axis("take", axis, x.ndim)
    return look_up("take", x, (slice(None),) * axis + (array_of("take", "indices", indices, "iu", "integers", "they number slices"),))


def _pick_value(b: Backend, x: Array, *, lead: int = 0, index: Array) -> Array:
    full = b.xp.broadcast_to(index, x.shape[:-1])[..., None]
    return b.xp.take_along_axis(x, full, axis=-1)[..., 0]


def _place_value(b: Backend, x: Array, *, lead: int = 0, index: Array, size: int) -> Array:
    out = b.xp.zeros((*x.shape, size), x.dtype)
    b.xp.put_along_axis(out, b.xp.broadcast_to(index, x.shape)[..., None], x[..., None], axis=-1)
    return out


PLACING.append(_place_value)
pick: Op = _Indexed("pick", _pick_value, lambda bar, x, *, lead, index: place(bar, index=index, size=x.shape[-1], lead=lead))
place: Op = _Indexed("place", _place_value, lambda bar, x, *, lead, index, size: pick(bar, index=index, lead=lead))


# --- precision -----------------------------------------------------------------------------------------------

_astype: Op = linear(
    "astype", lambda b, x, *, lead, dtype: x.astype(dtype), lambda bar, x, *, lead, dtype: _astype(bar, dtype=x.dtype, lead=lead)
)


def astype(x: Any, dtype: Any) -> Tensor:
    """x in another precision. Its derivative comes back in that of x.

    Args:
        x: array or Tensor, float32 or float64.
        dtype: np.float32 or np.float64.
    Returns: Tensor; x itself where it has that dtype.
    Raises: DTypeError for another dtype.
    Example:
        >>> hg.astype(np.array([3.0, 1.0, 2.0]), np.float32)
        Tensor(array([3., 1., 2.], dtype=float32))
    """
    (x,) = to_tensors("astype", [x])
    found = dtype_of("astype", dtype, "f", "float32 or float64", "derivatives have these")
    return x if found == x.dtype else _astype(x, dtype=found)


# --- joining -------------------------------------------------------------------------------------------------


class _Concatenate(Registered):
    """Any number of arguments joined along one axis; its transpose cuts."""

    batching = "axis"

    def __call__(self, *args: Any, **attrs: Any) -> Tensor:
        return apply(self, args, attrs)[0]

    def forward(self, backend: Backend, values: list[Array], attrs: dict[str, Any]) -> tuple[tuple[Array, ...], Any]:
        return (backend.concatenate(values, attrs["axis"]),), None

    def push(self, node: Node, inputs: list[Tensor], dots: list[Tensor | None]) -> Sequence[Tensor | None]:
        count = next(d.shape[0] for d in dots if d is not None)
        xp = backend_of(inputs[0].value).xp
        full = [Tensor(xp.zeros((count, *x.shape), x.dtype)) if d is None else d for x, d in zip(inputs, dots, strict=True)]
        return (self(*full, axis=node.attrs["axis"] + 1),)

    def pull(self, node: Node, bars: list[Tensor | None], want: Sequence[int]) -> Sequence[Tensor | None]:
        axis, start, cuts = node.attrs["axis"], 0, []
        for x, wanted in zip(node.inputs, want, strict=True):
            stop = start + x.shape[axis]
            cuts.append(getitem(bars[0], (slice(None),) * axis + (slice(start, stop),)) if wanted else None)
            start = stop
        return cuts


def to_join(name: str, tensors: Any) -> list[Tensor]:
    """The arrays to join, as Tensors."""
    if isinstance(tensors, (str, bytes)) or not isinstance(tensors, Iterable) or hasattr(tensors, "ndim") and not tensors.ndim:
        raise ArgumentError(f"{name}: tensors has {shown(tensors)}, expected a list of arrays because several are joined; pass a list")
    found = list(tensors)
    if not found:
        raise ArgumentError(f"{name}: tensors is empty, expected at least one array")
    return to_tensors(name, found)


_concatenate = _Concatenate("concatenate", arity=-1)


def concatenate(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """Arrays joined along an existing axis.

    Args:
        tensors: arrays or Tensors, equal in shape but for `axis`; at least one.
        axis: where to join.
    Returns: Tensor.
    Raises: ShapeError if the shapes do not fit; ArgumentError for an empty list.
    Example:
        >>> hg.concatenate([np.zeros(2), np.ones(1)])
        Tensor(array([0., 0., 1.]))
    """
    items = to_join("concatenate", tensors)
    axis = normalise_axis("concatenate", axis, items[0].ndim)
    rest = {x.shape[:axis] + x.shape[axis + 1 :] for x in items}
    if len(rest) > 1 or len({x.ndim for x in items}) > 1:
        raise ShapeError(f"concatenate: tensors have shapes {[x.shape for x in items]}, expected equal shapes but for axis {axis}")
    return _concatenate(*items, axis=axis)


def stack(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """Arrays of one shape joined along a new axis.

    Args:
        tensors: arrays or Tensors of one shape; at least one.
        axis: place of the new axis in the result.
    Returns: Tensor.
    Raises: ShapeError if the shapes differ; ArgumentError for an empty list.
    Example:
        >>> hg.stack([np.zeros(2), np.ones(2)])
        Tensor(array([[0., 0.],
               [1., 1.]]))
    """
    items = to_join("stack", tensors)
    if len({x.shape for x in items}) > 1:
        raise ShapeError(f"stack: tensors have shapes {[x.shape for x in items]}, expected one shape; broadcast them first")
    axis = normalise_axis("stack", axis, items[0].ndim + 1)
    shape = items[0].shape
    return concatenate([reshape(x, (*shape[:axis], 1, *shape[axis:])) for x in items], axis=axis)
