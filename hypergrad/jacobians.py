"""Whole matrices of derivatives: Jacobians by forward or reverse mode, and Hessians by forward over reverse."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

from .backends import backend_of
from .errors import ArgumentError
from .ops.arrays import reshape, stack, transpose
from .state import current
from .tape import Tape, Tensor, with_tangents
from .transforms import Selection, arrays_of, dots_of, grad, result, seed, tree_tensors, zeros_like
from .trees import PyTree, tree_flatten, tree_unflatten


def jacobian(
    f: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    *,
    argnames: str | tuple[str, ...] | None = None,
    mode: Literal["forward", "reverse"] | None = None,
) -> Callable[..., Any]:
    """The function that returns all derivatives of f's result in an argument.

    Args:
        f: takes pytrees of Tensors, returns a pytree of Tensors.
        argnums, argnames: the arguments to differentiate; see `value_and_grad`.
        mode: "forward" (all directions of the argument in one run), "reverse" (one sweep for each element of the result), or None:
            forward where the result has at least as many elements as the argument, reverse elsewhere and inside a jvp.
    Returns: a function of the same arguments. Its result is like f's, with a tree like the argument (a tuple of such for a tuple of
        numbers or names) in the place of each leaf: d result / d argument, of shape (*result.shape, *argument.shape).
    Raises: ArgumentError for another mode; DifferentiationError for forward mode inside a jvp; as `value_and_grad`.
    Cost: N elements in the argument and M in the result: forward about 1 + 2N evaluations of f in one run, whose live values count 1 + N
        times; reverse f and M sweeps of about 2 evaluations, with the memory of every intermediate value. None evaluates f once more
        where it takes forward mode. The result has M N elements.
    Example: ``hg.jacobian(lambda x: x * x)(np.array([1.0, 2.0]))`` gives diag(2, 4).
    Example:
        >>> hg.jacobian(lambda x: hg.cumprod(x))(np.array([1.0, 2.0, 3.0]))
        array([[1., 0., 0.],
               [2., 1., 0.],
               [6., 3., 2.]])
    """
    if mode not in (None, "forward", "reverse"):
        raise ArgumentError(f"jacobian: mode has {mode!r}, expected 'forward', 'reverse' or None; pass one of them")
    selection = Selection("jacobian", f, argnums, argnames)

    @functools.wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        chosen, of = selection.of(args, kwargs)
        leaves, spec = tree_flatten(tree_tensors(chosen, "jacobian"))
        got = None if mode == "forward" else _reverse(of, leaves, spec, only_if_smaller=mode is None and current().jvp is None)
        rows, out_spec = with_tangents(_forward, of, leaves, spec) if got is None else got
        tree = tree_unflatten(out_spec, [selection.like(tree_unflatten(spec, row)) for row in rows])
        return result(tree, arrays_of(args, kwargs))

    return wrapped


def hessian(
    f: Callable[..., Any], argnums: int | tuple[int, ...] = 0, *, argnames: str | tuple[str, ...] | None = None
) -> Callable[..., Any]:
    """The function that returns all second derivatives of a scalar f: the Jacobian of its gradient.

    Args:
        f: takes pytrees of Tensors, returns a scalar Tensor.
        argnums, argnames: the arguments to differentiate twice; see `value_and_grad`.
    Returns: a function of the same arguments. Its result is like the gradient, with a tree like the argument in the place of each
        leaf, of shape (*leaf.shape, *argument.shape).
    Raises: as `value_and_grad`.
    Cost: N elements in the argument: about 2 + 4N evaluations of f in one run, forward over reverse, whose live values count 1 + N
        times. Inside a jvp N sweeps instead, reverse over reverse.
    Example: ``hg.hessian(lambda x: hg.sum(x * x))(np.ones(2))`` gives diag(2, 2).
    Example:
        >>> hg.hessian(lambda w: w[0] ** 2 * w[1])(np.array([1.0, 2.0]))
        array([[4., 2.],
               [2., 0.]])
    """
    gradient = grad(f, argnums, argnames=argnames)

    @functools.wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        mode: Literal["forward", "reverse"] = "forward" if current().jvp is None else "reverse"
        return jacobian(gradient, argnums, argnames=argnames, mode=mode)(*args, **kwargs)

    return wrapped


Rows = tuple[list[list[Tensor]], Any]
"""For each leaf of the result, its derivatives in each leaf of the argument; and the structure of the result."""


def _forward(f: Callable[[Any], Any], leaves: Sequence[Tensor], spec: Any) -> Rows:
    """All directions in one run."""
    count, start, directions = sum(x.size for x in leaves), 0, []
    for x in leaves:
        d = backend_of(x.value).xp.zeros((count, x.size), x.dtype)
        d[start : start + x.size] = backend_of(x.value).xp.eye(x.size, dtype=x.dtype)
        directions.append(d.reshape(count, *x.shape))
        start += x.size
    seeded, _, _ = seed(tree_unflatten(spec, leaves), tree_unflatten(spec, directions), "jacobian")
    outs, out_spec = tree_flatten(tree_tensors(f(seeded), "jacobian", "result"))
    rows = []
    for out in outs:
        dots, start, row = dots_of(out, count), 0, []
        dots = transpose(dots, (*range(1, dots.ndim), 0))  # (*out.shape, count)
        for x in leaves:
            row.append(reshape(dots[..., start : start + x.size], (*out.shape, *x.shape)))
            start += x.size
        rows.append(row)
    return rows, out_spec


def _reverse(f: Callable[[Any], Any], leaves: Sequence[Tensor], spec: Any, *, only_if_smaller: bool) -> Rows | None:
    """One sweep for each element of the result. With `only_if_smaller`, None unless that has fewer elements than the argument."""
    tape = Tape()

    def taped() -> tuple[list[Tensor], PyTree]:
        watched = [tape.watch(x) for x in leaves]
        return watched, tree_tensors(f(tree_unflatten(spec, watched)), "jacobian", "result")

    watched, out = tape.run(taped)
    outs, out_spec = tree_flatten(out)
    if only_if_smaller and sum(x.size for x in outs) >= sum(x.size for x in leaves):
        return None
    rows = []
    for out in outs:
        sweeps = []
        for i in range(out.size):
            bar = backend_of(out.value).xp.zeros(out.size, out.dtype)
            bar[i] = 1
            got = tape.gradients([out], [Tensor(bar.reshape(out.shape))], watched, keep=True)
            sweeps.append([zeros_like(x) if b is None else b for x, b in zip(leaves, got, strict=True)])
        columns = zip(*sweeps, strict=True) if sweeps else ([] for _ in leaves)
        rows.append([_stacked(list(column), out, x) for column, x in zip(columns, leaves, strict=True)])
    return rows, out_spec


def _stacked(column: list[Tensor], out: Tensor, x: Tensor) -> Tensor:
    """Gradients of the elements of `out` in x, as one Tensor (*out.shape, *x.shape)."""
    if not column:
        return Tensor(backend_of(x.value).xp.zeros((*out.shape, *x.shape), x.dtype))
    return reshape(stack(column), (*out.shape, *x.shape))
