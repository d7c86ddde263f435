"""vmap: a function of one example, over all examples of a batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from .backends import Array, Backend, as_array, backend_of, is_on_gpu
from .errors import ArgumentError, DTypeError, HypergradError, ShapeError
from .tape import Node, Rule, Tensor, apply, to_tensors
from .transforms import arrays_of, result, zeros_like
from .trees import PyTree, tree_flatten, tree_named, tree_unflatten

Axes = int | None | Sequence[int | None]


def vmap(f: Callable[..., Any], in_axes: Axes = 0, out_axes: int = 0) -> Callable[..., Any]:
    """The function that applies f to each slice of its arguments, and stacks the results.

    Args:
        f: takes pytrees, returns a pytree of arrays or Tensors of the same structure, shapes and dtypes for every slice.
        in_axes: the axis of the examples in every leaf of the arguments; None for an argument that is passed whole; or a tuple or list
            with one of these for each positional argument.
        out_axes: the axis of the examples in the leaves of the result.
    Returns: a function of the same arguments. Keyword arguments are passed whole. It may stand inside other transforms and around
        them: ``vmap(grad(f), (None, 0))`` gives one gradient per example.
    Raises: ArgumentError for axes that do not fit the arguments, and where there is no example; ShapeError for leaves with other
        numbers of examples, and for results that differ in shape or structure; DTypeError for results that are no numbers.
    Cost: a loop in Python: one call of f per example. Slices are views, and the results are stacked once. A function that is written for
        arrays with a leading axis of examples is faster.
    Rules: those of f. Values that f decides by (``if x.value > 0``) may differ from slice to slice.
    Example:
        >>> hg.vmap(lambda x, y: hg.vdot(x, y), in_axes=(0, None))(np.arange(6.0).reshape(3, 2), np.array([1.0, 10.0]))
        array([10., 32., 54.])
    """

    @functools.wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        axes = list(in_axes) if isinstance(in_axes, (tuple, list)) else [in_axes] * len(args)
        if len(axes) != len(args):
            raise ArgumentError(f"vmap: in_axes has {len(axes)} entries, expected {len(args)}, one for each positional argument")
        flat = [tree_flatten(a) for a in args]
        cut = {
            (i, j): _slices(x, axis, f"args[{i}]", args[i], j)
            for i, ((leaves, _), axis) in enumerate(zip(flat, axes, strict=True))
            if axis is not None
            for j, x in enumerate(leaves)
        }
        counts = {len(rows) for rows in cut.values()}
        if len(counts) > 1:
            raise ShapeError(f"vmap: the leaves have {sorted(counts)} examples, expected one number; make their axes equally long")
        if counts in (set(), {0}):
            raise ArgumentError(
                "vmap: the arguments have no example, expected at least one because the shapes of the results come from f; pass an "
                "array with a non-empty axis that in_axes names"
            )
        (count,) = counts
        rows = []
        for k in range(count):
            example = [
                tree_unflatten(spec, [cut[i, j][k] if (i, j) in cut else x for j, x in enumerate(leaves)])
                for i, (leaves, spec) in enumerate(flat)
            ]
            rows.append(f(*example, **kwargs))
        return result(_stacked(rows, out_axes), arrays_of(args, kwargs))

    return wrapped


def _slices(x: Any, axis: Any, root: str, tree: PyTree, number: int) -> Sequence[Any]:
    """The slices of a leaf along an axis: Tensors of floating numbers, arrays of others."""
    try:
        x = x if isinstance(x, Tensor) else as_array(x)
    except HypergradError as error:
        raise type(error)(f"vmap: {tree_named(tree, root)[number][0]} has no slices: {error}") from error
    if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)) or not -x.ndim <= axis < x.ndim:
        raise ArgumentError(
            f"vmap: in_axes has {axis!r} for {tree_named(tree, root)[number][0]} of shape {tuple(x.shape)}, expected None or an integer "
            f"from {-x.ndim} to {x.ndim - 1}; choose one of its axes"
        )
    axis = int(axis) % x.ndim
    if isinstance(x, Tensor) or x.dtype.char in "fd":
        (x,) = to_tensors("vmap", [x])
        return apply(cast(Rule, _CUT), [x], {"axis": axis}) if x.shape[axis] else []
    return [x[(slice(None),) * axis + (k, ...)] for k in range(x.shape[axis])]


def _stacked(rows: Sequence[PyTree], axis: Any) -> PyTree:
    """The results of all examples, stacked."""
    flat = [tree_flatten(row) for row in rows]
    if other := next((k for k, (_, spec) in enumerate(flat) if spec != flat[0][1]), None):
        raise ShapeError(
            f"vmap: the results of examples 0 and {other} have structures {flat[0][1]} and {flat[other][1]}, expected one because they are "
            "stacked; return the same tree for every example"
        )
    return tree_unflatten(flat[0][1], [_join(list(column), axis) for column in zip(*(leaves for leaves, _ in flat), strict=True)])


def _join(column: list[Any], axis: Any) -> Any:
    """One leaf of the results of all examples, stacked."""
    column = [x if isinstance(x, Tensor) else as_array(x) for x in column]
    shapes, kinds = [tuple(x.shape) for x in column], {x.dtype for x in column}
    other = next((k for k, shape in enumerate(shapes) if shape != shapes[0]), 0)
    if other:
        raise ShapeError(f"vmap: the results of examples 0 and {other} have shapes {shapes[0]} and {shapes[other]}, expected one shape")
    if len(kinds) > 1:
        raise DTypeError(f"vmap: the results have dtypes {sorted(map(str, kinds))}, expected one; convert them with astype")
    ndim = len(shapes[0]) + 1
    if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)) or not -ndim <= axis < ndim:
        raise ArgumentError(f"vmap: out_axes has {axis!r}, expected an integer from {-ndim} to {ndim - 1}, an axis of the stacked results")
    axis = int(axis) % ndim
    if kinds & {np.dtype(np.float32), np.dtype(np.float64)}:
        return apply(cast(Rule, _JOIN), to_tensors("vmap", column), {"axis": axis})[0]
    return (backend_of(*column).xp if any(map(is_on_gpu, column)) else np).stack(column, axis)


# --- the two ops: each is the other's transpose, so that a sweep costs the size of the batch at every order ------------


class _Cut:
    """The slices of one argument along an axis, as views."""

    name, proven = "vmap", True

    def forward(self, backend: Backend, values: list[Array], attrs: dict[str, Any]) -> tuple[tuple[Array, ...], Any]:
        """See tape.Rule."""
        (x,), place = values, (slice(None),) * attrs["axis"]
        return tuple([x[place + (k, ...)] for k in range(x.shape[attrs["axis"]])]), None

    def push(self, node: Node, inputs: list[Tensor], dots: list[Tensor | None]) -> Sequence[Tensor | None]:
        """See tape.Rule. The tangents have one more axis in front."""
        return apply(cast(Rule, self), dots, {"axis": node.attrs["axis"] + 1})

    def pull(self, node: Node, bars: list[Tensor | None], want: Sequence[int]) -> Sequence[Tensor | None]:
        """See tape.Rule."""
        full = [zeros_like(Tensor(value)) if b is None else b for (value, _), b in zip(node.outputs, bars, strict=True)]
        return apply(cast(Rule, _JOIN), full, node.attrs)


class _Join:
    """Arguments of one shape along a new axis."""

    name, proven = "vmap", True

    def forward(self, backend: Backend, values: list[Array], attrs: dict[str, Any]) -> tuple[tuple[Array, ...], Any]:
        """See tape.Rule."""
        place = (slice(None),) * attrs["axis"]
        return (backend.concatenate([x[place + (None, ...)] for x in values], attrs["axis"]),), None

    def push(self, node: Node, inputs: list[Tensor], dots: list[Tensor | None]) -> Sequence[Tensor | None]:
        """See tape.Rule."""
        count = next(d.shape[0] for d in dots if d is not None)
        xp = backend_of(inputs[0].value).xp
        full = [Tensor(xp.zeros((count, *x.shape), x.dtype)) if d is None else d for x, d in zip(inputs, dots, strict=True)]
        return apply(cast(Rule, self), full, {"axis": node.attrs["axis"] + 1})

    def pull(self, node: Node, bars: list[Tensor | None], want: Sequence[int]) -> Sequence[Tensor | None]:
        """See tape.Rule."""
        return apply(cast(Rule, _CUT), bars, node.attrs)


_CUT, _JOIN = _Cut(), _Join()
