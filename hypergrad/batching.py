"""vmap: a function of one example, over all examples of a batch."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from .backends import Array, Backend, Batched, as_array, backend_of, levels
from .errors import ArgumentError, DTypeError, HypergradError, ShapeError
from .tape import Node, Rule, Tensor, apply, to_tensors
from .transforms import arrays_of, result, zeros_like
from .trees import PyTree, tree_flatten, tree_named, tree_unflatten

Axes = int | None | Sequence[int | None]


def vmap(f: Callable[..., Any], in_axes: Axes = 0, out_axes: int = 0, *, loop: bool = False) -> Callable[..., Any]:
    """The function that applies f to each slice of its arguments, and stacks the results.

    f is called once. Its Tensors and arrays have the shapes of one slice, and each op computes all of them at once. What needs the numbers
    of a single slice is refused: ``if``, ``float()``, indexing by bools, and ops that take no axis of examples, such as `unroll`. For these
    there is ``loop=True``. A loop is never taken silently, for it costs as many calls of f as there are slices.

    Args:
        f: takes pytrees, returns a pytree of arrays or Tensors.
        in_axes: the axis of the examples in every leaf of the arguments; None for an argument that is passed whole; or a tuple or list
            with one of these for each positional argument.
        out_axes: the axis of the examples in the leaves of the result.
        loop: True calls f once for each slice. f may then do anything, but returns the same structure, shapes and dtypes for every slice.
    Returns: a function of the same arguments. Keyword arguments are passed whole. It may stand inside other transforms and around
        them: ``vmap(grad(f), (None, 0))`` gives one gradient per example.
    Raises: ArgumentError for axes that do not fit the arguments, where there is no example, and for an op that takes no axis of examples;
        ShapeError for leaves with other numbers of examples, and in a loop for results that differ in shape or structure; DTypeError for
        results that are no numbers, and for numbers taken out of a slice.
    Cost: that of f on arrays with one axis more; fused ops run as the ops that define them. In a loop, one call of f per example.
    Rules: those of f. A Tensor of an enclosing gradient that f uses for all slices gets the sum of their derivatives.
    Example:
        >>> hg.vmap(lambda x, y: hg.vdot(x, y), in_axes=(0, None))(np.arange(6.0).reshape(3, 2), np.array([1.0, 10.0]))
        array([10., 32., 54.])
        >>> hg.vmap(lambda x: x if x > 0 else -x, loop=True)(np.array([-1.0, 2.0]))
        array([1., 2.])
    """

    @functools.wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        axes = list(in_axes) if isinstance(in_axes, (tuple, list)) else [in_axes] * len(args)
        if len(axes) != len(args):
            raise ArgumentError(f"vmap: in_axes has {len(axes)} entries, expected {len(args)}, one for each positional argument")
        flat = [tree_flatten(a) for a in args]
        mapped = {
            (i, j): _mapped(x, axis, f"args[{i}]", args[i], j)
            for i, ((leaves, _), axis) in enumerate(zip(flat, axes, strict=True))
            if axis is not None
            for j, x in enumerate(leaves)
        }
        counts = {x.shape[axis] for x, axis in mapped.values()}
        if len(counts) > 1:
            raise ShapeError(f"vmap: the leaves have {sorted(counts)} examples, expected one number; make their axes equally long")
        if counts in (set(), {0}):
            raise ArgumentError(
                "vmap: the arguments have no example, expected at least one because the shapes of the results come from f; pass an "
                "array with a non-empty axis that in_axes names"
            )
        level = Level(*counts)
        split = {place: (_slices if loop else _all)(x, axis, level) for place, (x, axis) in mapped.items()}

        def call(k: int) -> PyTree:
            trees = [
                tree_unflatten(spec, [split[i, j][k] if (i, j) in split else x for j, x in enumerate(leaves)])
                for i, (leaves, spec) in enumerate(flat)
            ]
            return f(*trees, **kwargs)

        try:
            out = _stacked([call(k) for k in range(level.count)], out_axes) if loop else _joined(call(0), out_axes, level)
        finally:
            level.running = False
        return result(out, arrays_of(args, kwargs))

    return wrapped


class Level:
    """One call of a function that vmap has made.

    Attributes:
        count: the number of examples.
        number: larger than that of every call before, and so of those around it.
        running: whether the function is still being called. A sweep meanwhile is part of it, and gives each example its own cotangents.
    """

    numbers = itertools.count()

    def __init__(self, count: int) -> None:
        self.count, self.number, self.running = count, next(self.numbers), True

    @staticmethod
    def settled(bar: Tensor, value: Array) -> Tensor:
        """The cotangent of a Tensor with that value.

        A sweep after the call sees one Tensor where all examples used it. Its cotangent is the sum over them.
        """
        for level in [level for level in levels(bar.value) if not level.running and level not in levels(value)]:
            (bar,) = apply(cast(Rule, _TOTAL), [bar], {"level": level})
        return bar


def _mapped(x: Any, axis: Any, root: str, tree: PyTree, number: int) -> tuple[Any, int]:
    """A leaf as a Tensor of floating numbers or an array of others, and the axis of its examples."""
    try:
        x = x if isinstance(x, Tensor) else as_array(x)
    except HypergradError as error:
        raise type(error)(f"vmap: {tree_named(tree, root)[number][0]} has no slices: {error}") from error
    if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)) or not -x.ndim <= axis < x.ndim:
        raise ArgumentError(
            f"vmap: in_axes has {axis!r} for {tree_named(tree, root)[number][0]} of shape {tuple(x.shape)}, expected None or an integer "
            f"from {-x.ndim} to {x.ndim - 1}; choose one of its axes"
        )
    return (to_tensors("vmap", [x])[0] if isinstance(x, Tensor) or x.dtype.char in "fd" else x), int(axis) % x.ndim


def _placed(axis: Any, ndim: int) -> int:
    """The axis of the examples in a result with that number of axes."""
    if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)) or not -ndim <= axis < ndim:
        raise ArgumentError(f"vmap: out_axes has {axis!r}, expected an integer from {-ndim} to {ndim - 1}, an axis of the stacked results")
    return int(axis) % ndim


# --- all examples at once ----------------------------------------------------------------------------------------------


def _all(x: Any, axis: int, level: Level) -> Sequence[Any]:
    """A leaf as the function sees it."""
    if isinstance(x, Tensor):
        return apply(cast(Rule, _ENTER), [x], {"axis": axis, "level": level})
    return [_entered(x, axis, level)]


def _joined(tree: PyTree, axis: Any, level: Level) -> PyTree:
    """The results of the function as arrays and Tensors with the axis of the examples."""
    leaves, spec = tree_flatten(tree)
    found = []
    for x in leaves:
        x = x if isinstance(x, Tensor) else as_array(x)
        place = _placed(axis, x.ndim + 1)
        if isinstance(x, Tensor) or x.dtype.char in "fd":
            found += apply(cast(Rule, _LEAVE), to_tensors("vmap", [x]), {"axis": place, "level": level})
        else:
            found.append(_left(x, place, level))
    return tree_unflatten(spec, found)


def _entered(x: Array, axis: int, level: Level) -> Array:
    """An array with an axis of examples as one array for each."""
    return Batched(level, backend_of(x).xp.moveaxis(x, axis, 0) if axis else x)


def _left(x: Array, axis: int, level: Level) -> Array:
    """One array for each example as an array with an axis of them."""
    whole = x.whole if level in levels(x) else backend_of(x).xp.broadcast_to(x, (level.count, *x.shape))
    return backend_of(whole).xp.moveaxis(whole, 0, axis) if axis else whole


def _summed(x: Array, level: Level) -> Array:
    """The sum over the examples of a level."""
    if level not in levels(x):
        return x * level.count
    return backend_of(x.whole).xp.sum(x.whole, axis=0) if x.level is level else x.like(_summed(x.whole, level))


class _Move:
    """An op of one argument that is linear, and moves what it works on between the arrays of examples and their whole.

    Args: value: (array, **attrs) -> array; transpose: the op to which it belongs, None for the identity.
    """

    name, proven, batching = "vmap", True, "own"

    def __init__(self, value: Callable[..., Array]) -> None:
        self.value = value
        self.transpose: _Move | None = None

    def forward(self, backend: Backend, values: list[Array], attrs: dict[str, Any]) -> tuple[tuple[Array, ...], Any]:
        """See tape.Rule."""
        return (self.value(values[0], **attrs),), None

    def push(self, node: Node, inputs: list[Tensor], dots: list[Tensor | None]) -> Sequence[Tensor | None]:
        """See tape.Rule. The tangents have one more axis in front."""
        attrs = node.attrs
        return apply(cast(Rule, self), dots, {**attrs, "axis": attrs["axis"] + 1} if "axis" in attrs else attrs)

    def pull(self, node: Node, bars: list[Tensor | None], want: Sequence[int]) -> Sequence[Tensor | None]:
        """See tape.Rule."""
        return bars if self.transpose is None else apply(cast(Rule, self.transpose), bars, node.attrs)


_ENTER, _LEAVE, _TOTAL = _Move(_entered), _Move(_left), _Move(_summed)
_ENTER.transpose, _LEAVE.transpose = _LEAVE, _ENTER


# --- a loop: each of its two ops is the other's transpose, so that a sweep costs the size of the batch at every order ------------


def _slices(x: Any, axis: int, level: Level) -> Sequence[Any]:
    """The slices of a leaf."""
    if isinstance(x, Tensor):
        return apply(cast(Rule, _CUT), [x], {"axis": axis})
    return [x[(slice(None),) * axis + (k, ...)] for k in range(level.count)]


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
    axis = _placed(axis, len(shapes[0]) + 1)
    if kinds & {np.dtype(np.float32), np.dtype(np.float64)}:
        return apply(cast(Rule, _JOIN), to_tensors("vmap", column), {"axis": axis})[0]
    return backend_of(*column).xp.stack(column, axis)


class _Cut:
    """The slices of one argument along an axis, as views."""

    name, proven, batching = "vmap", True, "own"

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

    name, proven, batching = "vmap", True, "own"

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
