"""The check of a function's derivatives against finite differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..tape import Tensor
from ..transforms import grad, hvp, jvp, tree_tensors, tree_values, vjp
from ..trees import PyTree, tree_leaves, tree_named
from .differences import Rounding, compare, cotangent, difference, direction, float64, largest, only, rounding_of, slopes, split, vector


@dataclass(frozen=True)
class GradientReport:
    """What `check_gradients` found: the largest errors, each relative to the derivative it belongs to.

    Attributes:
        first_order: of the vjp and the jvp.
        second_order: of the Hessian products, by nesting.
    Example:
        >>> from hypergrad.testing import check_gradients
        >>> check_gradients(lambda x: hg.exp(x), np.array([0.5])).first_order < 1e-6
        True
    """

    first_order: float
    second_order: dict[str, float]


def check_gradients(
    f: Callable[..., Any], *args: PyTree, order: int = 2, eps: float | None = None, rtol: float = 1e-6, seed: int = 0
) -> GradientReport:
    """Check a function's vjp, jvp and Hessian products (all nestings) against finite differences, in float64.

    Args:
        f: takes pytrees of Tensors, returns a pytree of Tensors; smooth near `args`.
        args: where to check, pytrees of float64 arrays.
        order: 2, or 1 to leave the Hessian products out.
        eps: the only step of the finite differences; None tries several (see the head of differences.py).
        rtol: error allowed, relative to the largest element of the derivative. Where that is zero because terms cancel, a few
            hundred units in the last place of those terms are allowed, and the rounding of the differences.
        seed: of the random directions.
    Returns: GradientReport.
    Raises: AssertionError that names the derivative, the argument's leaf and both numbers; DTypeError for an
        argument that is not float64.
    Cost: 4 to 16 evaluations of f for each leaf, and as many gradients; three Hessian products.
    Example:
        >>> from hypergrad.testing import check_gradients
        >>> sorted(check_gradients(lambda x: hg.exp(x), np.array([0.5])).second_order)
        ['forward over reverse', 'reverse over forward', 'reverse over reverse']
    """
    args = float64(args, "check_gradients", "args")
    rng = np.random.default_rng(seed)
    out, pullback = vjp(f, *args)
    out_bar = cotangent(out, rng)
    bars, weights = pullback(out_bar), vector(out_bar)

    def weighted(xs: Sequence[PyTree]) -> Tensor:
        return _inner(f(*xs), out_bar)

    def value(xs: PyTree) -> PyTree:
        return tree_values(f(*tree_tensors(xs, "check_gradients")))

    v = direction(args, rng)
    first = 0.0
    for i, (name, bar) in enumerate(tree_named(bars, "args")):
        alone = only(i, v)

        def dot(xs: Sequence[PyTree], alone: PyTree = alone) -> Any:
            return slopes(f, tuple(xs), alone)

        def slope(xs: Sequence[PyTree], alone: PyTree = alone) -> Any:
            return np.atleast_1d(vector(vjp(f, *xs)[1](out_bar)) @ vector(alone))

        d = difference(value, args, alone, eps, rtol)
        terms = vector(bar) * vector(tree_leaves(v)[i])
        first = max(
            first,
            compare(f"check_gradients: jvp along {name}", dot(args), d.values, rtol, against=d, rounding=_rounding(dot, args, seed)),
            d.weighted(weights).check(
                f"check_gradients: vjp of {name} along a random direction", terms, rtol, _rounding(slope, args, seed)
            ),
        )
    if order == 1:
        return GradientReport(first, {})
    d = difference(grad(weighted), args, v, eps, rtol)
    nestings: dict[str, Callable[[PyTree], PyTree]] = {
        "forward over reverse": lambda xs: hvp(weighted, (xs,), (v,))[2][0],
        "reverse over forward": grad(lambda xs: jvp(weighted, (xs,), (v,))[1]),
        "reverse over reverse": grad(lambda xs: _inner(grad(weighted)(xs), v)),
    }
    second, size = {}, float(np.abs(weights) @ np.abs(vector(out)))
    for nesting, product in nestings.items():

        def products(xs: PyTree, product: Callable[[PyTree], PyTree] = product) -> Any:
            return vector(product(xs))

        options: Any = {"against": d, "size": size, "rounding": _rounding(products, args, seed)}
        parts = zip(split(products(args), args, "args"), split(d.values, args, "args"), strict=True)
        second[nesting] = max(
            (
                compare(f"check_gradients: Hessian product, {nesting}: {name}", got, part, rtol, largest(d.values), **options)
                for (name, got), (_, part) in parts
            ),
            default=0.0,
        )
    return GradientReport(first, second)


def _inner(xs: PyTree, ys: PyTree) -> Tensor:
    """The scalar <xs, ys>."""
    return sum(((x * y).sum() for x, y in zip(tree_leaves(xs), tree_leaves(ys), strict=True)), start=Tensor(np.zeros(())))


def _rounding(f: Callable[[PyTree], Any], args: PyTree, seed: int) -> Callable[[], Rounding]:
    """What `compare` asks for: the rounding to expect in the vector f(args)."""
    return lambda: rounding_of(f, args, np.random.default_rng(seed)).largest()
