"""Finite differences, and how far a derivative may be from them.

Everything is in float64. A derivative is compared with central differences with one Richardson extrapolation,
D = (4 D(h/2) - D(h)) / 3, whose error falls as h^4. The steps h = 1e-3 to 1e-6 are tried in turn until D(h/2) and D agree. A
direction is as large as the argument itself: a learning rate of 1e-3 is moved by 1e-6, not by 1e-3.

Where a derivative is zero because large terms cancel, its own size says nothing about the error to expect. Two measurements do.
The rounding of the differences is measured from the function's values near the point. The rounding of the derivative follows from
the size of the terms that cancel. To measure that, every input is moved a little, in a random direction: the derivative moves in
proportion to the terms. Where it is zero at every point, it jumps by its rounding instead. A few hundred units in the last place of
those terms are allowed, so a derivative that is wrong by more is still found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from ..backends import Array, backend_of
from ..errors import DTypeError
from ..passes.finite_differences import central, size_of
from ..tape import Tensor, to_tensors
from ..transforms import jvp
from ..trees import PyTree, tree_flatten, tree_leaves, tree_map, tree_named, tree_unflatten

Vector = Any
"""A NumPy vector of float64."""
STEPS = (1e-3, 1e-4, 1e-5, 1e-6)
EPS = float(np.finfo(np.float64).eps)
_SHAKE = 1e-9  # far above rounding, far below what changes the terms themselves
_NOISE = 1e-8  # the largest jump of a derivative that counts as rounding, relative to the size of its function
_ROUNDINGS = 100  # allowed error of a derivative in units in the last place of its terms, each the result of many operations
_LOOK_FOR = "look for a detached value, a wrong rule, or a kink within the step"


def fail(message: str) -> NoReturn:
    """Raises: AssertionError."""
    raise AssertionError(message)


def float64(tree: PyTree, where: str, root: str) -> PyTree:
    """The tree as arrays, all of them float64."""
    arrays = tree_map(lambda x: to_tensors(where, [x])[0].value, tree)
    for name, x in tree_named(arrays, root):
        if x.dtype != np.float64:
            raise DTypeError(
                f"{where}: {name} has dtype {x.dtype}, expected float64 because finite differences in lower precision tell "
                "nothing; convert it, and all data that the functions close over, with astype"
            )
    return arrays


def direction(tree: PyTree, rng: np.random.Generator) -> PyTree:
    """A random direction. In each leaf it is as large as the leaf, or as 1 where the leaf is zero."""

    def one(x: Array) -> Array:
        return backend_of(x).xp.asarray(rng.standard_normal(x.shape) * size_of(x))  # an array even where x has no axes

    return tree_map(one, tree)


def cotangent(out: PyTree, rng: np.random.Generator) -> PyTree:
    """A random cotangent of a result, of the size of 1 whatever the result."""
    return direction(tree_map(lambda x: backend_of(x).xp.ones_like(x), out), rng)


def moved(x: PyTree, v: PyTree, s: float) -> PyTree:
    """x + s v."""
    return tree_map(lambda a, d: a + s * d, x, v)


def only(i: int, tree: PyTree) -> PyTree:
    """The direction in leaf i alone."""
    leaves, spec = tree_flatten(tree)
    return tree_unflatten(spec, [x if j == i else 0 * x for j, x in enumerate(leaves)])


def host(x: Any) -> Any:
    """The array in host memory."""
    x = x.value if isinstance(x, Tensor) else x
    return x.get() if hasattr(x, "get") else x  # CuPy's arrays have get


def names(roots: Sequence[str], trees: Sequence[PyTree]) -> list[str]:
    """The names of all leaves of some trees."""
    return [name for root, tree in zip(roots, trees, strict=True) for name, _ in tree_named(tree, root)]


def vector(tree: PyTree) -> Vector:
    """All elements of a tree, in host memory."""
    flat = [np.ravel(host(x)) for x in tree_leaves(tree)]
    return np.concatenate(flat) if flat else np.zeros(0)


def split(values: Vector, tree: PyTree, root: str) -> list[tuple[str, Vector]]:
    """The parts of a vector that belong to the leaves of a tree, by name."""
    parts, start = [], 0
    for name, x in tree_named(tree, root):
        parts.append((name, values[start : start + x.size]))
        start += x.size
    return parts


def largest(values: Vector) -> float:
    """The largest magnitude; 0 for an empty vector."""
    return float(np.abs(values).max(initial=0.0))


@dataclass(frozen=True)
class Difference:
    """A finite difference.

    Attributes:
        values: the derivative, as a vector.
        spread: its distance from D(h/2), which shows how far it has settled.
        rounding: the rounding error to expect in it, if f is exact to the last places of its value.
        h: its step.
        at: s -> f(x + s v), as a vector.
    """

    values: Vector
    spread: float
    rounding: float
    h: float
    at: Callable[[float], Vector]

    def weighted(self, weights: Vector) -> Difference:
        """The finite difference of the scalar <weights, f>."""
        values, rounding = np.atleast_1d(weights @ self.values), self.rounding * float(np.abs(weights).sum())
        return Difference(values, self.spread, rounding, self.h, lambda s: np.atleast_1d(weights @ self.at(s)))

    def check(
        self, where: str, terms: Vector, rtol: float, rounding: Callable[[], Rounding], cause: Callable[[], str] = lambda: _LOOK_FOR
    ) -> float:
        """As `compare`, for the derivative along a direction: the sum of `terms`, one for each element of the argument."""
        scale = float(np.linalg.norm(terms))
        return compare(where, terms.sum(), self.values, rtol, scale, against=self, rounding=rounding, cause=cause)

    def noise(self) -> float:
        """The rounding error to expect in it, measured from values of f; 0 for an f that gives two values at one point."""
        found = 0.0
        if self.at(self.h).tobytes() != self.at(self.h).tobytes():
            return found
        for end in (self.h, -self.h):
            found = max(found, largest(_noise(np.stack([self.at(end + 1e-3 * self.h * k) for k in range(-4, 5)]))))
        return 2 * found / self.h

    def size(self) -> float:
        """The largest value of f that went into it."""
        return self.rounding * self.h / (20 * EPS)

    def kink(self) -> bool:
        """Whether f has a kink within the step: the one-sided derivatives differ by the same at two steps, or no step settles."""
        size, middle = largest(self.values), self.at(0.0)
        if self.spread > 1e-3 * size and self.spread > 100 * self.rounding + self.noise():
            return True
        for h in (1e-4, 1e-5):
            jumps = [largest(self.at(s) + self.at(-s) - 2 * middle) / s for s in (h, h / 10)]
            if jumps[1] > 0.5 * jumps[0] and jumps[1] > 1e-4 * size + 1000 * EPS * largest(middle) / h:
                return True
        return False


def difference(f: Callable[[PyTree], PyTree], x: PyTree, v: PyTree, eps: float | None, rtol: float) -> Difference:
    """The derivative of f at x along v."""
    best: Difference | None = None

    def at(s: float) -> Vector:
        return vector(f(moved(x, v, s)))

    for h in STEPS if eps is None else (eps,):
        (coarse, ends), (fine, halves) = central(at, h), central(at, h / 2)
        values = (4 * fine - coarse) / 3
        rounding = 20 * EPS * max(largest(e) for e in (*ends, *halves)) / h
        found = Difference(values, largest(values - fine), rounding, h, at)
        if best is None or not found.spread + found.rounding > best.spread + best.rounding:
            best = found
        if best.spread + best.rounding <= 0.1 * rtol * largest(values):
            break
    assert best is not None
    return best


def slopes(f: Callable[..., PyTree], args: tuple[PyTree, ...], v: PyTree) -> Vector:
    """The derivative of f along v by forward mode; with P directions on a leading axis of v, all of them. Trees may hold None."""
    return vector(jvp(f, args, v)[1])


@dataclass(frozen=True)
class Rounding:
    """The rounding error to expect in a derivative, a number or one for each element.

    Attributes:
        terms: from the size of the terms that cancel in it.
        noise: how much the derivative jumps from point to point; this is its rounding where its terms cancel at every point.
    """

    terms: Any = 0.0
    noise: Any = 0.0

    def largest(self) -> Rounding:
        """The rounding of the worst element."""
        return Rounding(largest(self.terms), largest(self.noise))

    def along(self, v: Vector) -> Rounding:
        """The rounding of the derivative along v."""
        return Rounding(float(self.terms @ np.abs(v)), float(self.noise @ np.abs(v)))

    def allowed(self, size: float) -> float:
        """The error allowed in the derivative of a function as large as `size`. A larger jump is a kink and no rounding."""
        return float(self.terms) + min(float(self.noise), _NOISE * size)


def rounding_of(f: Callable[[PyTree], Vector], x: PyTree, rng: np.random.Generator) -> Rounding:
    """The rounding error to expect in each element of f(x), which may be a small rest of large terms that cancel.

    It is 0 for an f that gives two values at one point.
    """
    middle = f(x)
    if middle.tobytes() != f(x).tobytes():
        return Rounding(np.zeros_like(middle), np.zeros_like(middle))
    terms, noise = np.zeros_like(middle), np.zeros_like(middle)
    for _ in range(2):
        v = direction(x, rng)
        shaken = np.stack([middle if k == 0 else f(moved(x, v, _SHAKE * k)) for k in range(-3, 4)])
        terms = np.maximum(terms, _ROUNDINGS * EPS / _SHAKE * np.abs(shaken[4] - middle))
        noise = np.maximum(noise, _noise(shaken))
    return Rounding(terms, noise)


def _noise(points: Any) -> Vector:
    """A bound on the rounding in values at neighbouring points, from their fourth differences, which remove what is smooth.

    Source: More & Wild 2011, SIAM J. Sci. Comput. 33(3).
    """
    return 10 * np.sqrt((np.diff(points, 4, axis=0) ** 2).mean(axis=0) / 70.0)


def compare(
    where: str,
    got: Any,
    want: Any,
    rtol: float,
    scale: float = 0.0,
    *,
    against: Difference | None = None,
    size: float = 0.0,
    rounding: Callable[[], Rounding] = Rounding,
    cause: Callable[[], str] = lambda: _LOOK_FOR,
) -> float:
    """The largest relative error of one derivative, `got`, from the same by another way, `want`.

    Args:
        scale: what the error is relative to, if it is larger than the derivative.
        against: the finite difference that `want` is a part of; None where `want` comes from reverse mode.
        size: the size of the function that was differentiated: for a Hessian product the scalar, whose gradient `against` differences.
        rounding: gives the rounding error to expect in `got`; called only where the error is larger than rtol.
        cause: gives the words on the likely cause.
    Raises: AssertionError for an error beyond rtol and the roundings.
    """
    got, want = np.atleast_1d(got), np.atleast_1d(want)
    errors = np.abs(got - want)
    if not errors.size:
        return 0.0
    worst = int(np.argmax(np.where(np.isnan(errors), np.inf, errors)))
    error, scale = float(errors[worst]), max(scale, largest(want))
    allowed = rtol * scale + (against.rounding if against else 0.0)
    if not error <= allowed and not error <= allowed + _excused(against, rounding(), rtol, size):
        other, settled = ("reverse mode", "") if against is None else ("a finite difference", f" (settled to {against.spread:.1g})")
        place = f", element {worst}," if errors.size > 1 else ""
        fail(f"{where}{place} is {got[worst]:.12g}, {other} gives {want[worst]:.12g}{settled}, expected them equal to {rtol:g}; {cause()}")
    return error / scale if scale and error <= allowed else 0.0  # 0 where it is only the rounding of terms that cancel


def _excused(against: Difference | None, rounding: Rounding, rtol: float, size: float) -> float:
    """The rounding of the derivative, and that of the difference up to rtol of the terms that cancel or a jump of `_NOISE`."""
    if against is None:
        return rounding.allowed(size)
    size = max(size, against.size())
    return rounding.allowed(size) + min(against.noise(), max(rtol * float(rounding.terms) / (_ROUNDINGS * EPS), _NOISE * size))
