"""Finite differences, and what a derivative may differ from them.

Everything is in float64. A derivative is compared with central differences with one Richardson extrapolation,
D = (4 D(h/2) - D(h)) / 3, whose error falls as h^4. The steps 1e-3 to 1e-6 are tried in turn until D(h/2) and D agree. A
direction is as large as the argument itself, so that a step size of 1e-3 is moved by 1e-6 and not by 1e-3.

Where a derivative is zero because large terms cancel, its own size says nothing about the error to expect. Two measurements do.
The rounding of the differences is read off the function near the point. The rounding of the derivative follows from the size of the
terms that cancel: everything that it is computed from is moved a little, each leaf on its own, and the derivative moves in proportion,
or, where it is zero at every point, jumps by its rounding. What is allowed is a few hundred units in the last place of those terms: a
derivative that is wrong by more is still found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from ..backends import Array, backend_of
from ..errors import DTypeError
from ..tape import Tensor, to_tensors
from ..transforms import jvp
from ..trees import PyTree, tree_flatten, tree_leaves, tree_map, tree_named, tree_unflatten

Vector = Any
"""A NumPy vector of float64."""
STEPS = (1e-3, 1e-4, 1e-5, 1e-6)
EPS = float(np.finfo(np.float64).eps)
_SHAKE = 1e-9  # far above rounding, far below what changes the terms themselves
_NOISE = 1e-8  # of a function: the most that its derivative may jump by rounding
_ROUNDINGS = 100  # units in the last place of the terms that a derivative may be off: a term has been through many operations
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
    """A random direction, in every leaf as large as the leaf (as 1 where that is zero)."""

    def one(x: Array) -> Array:
        xp = backend_of(x).xp
        size = float(xp.sqrt(xp.mean(x * x))) if x.size else 1.0
        return xp.asarray(rng.standard_normal(x.shape) * (size or 1.0))  # an array, also without axes

    return tree_map(one, tree)


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


def vector(tree: PyTree) -> Vector:
    """All elements."""
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
    """The largest magnitude, 0 of nothing."""
    return float(np.abs(values).max(initial=0.0))


@dataclass(frozen=True)
class Difference:
    """A finite difference.

    Attributes:
        values: the derivative, as a vector.
        spread: how far it has settled.
        rounding: the rounding error to expect in it, if f is exact to the last places of its value.
        h: its step.
        at: s -> f(x + s v), as a vector.
    """

    values: Vector
    spread: float
    rounding: float
    h: float
    at: Callable[[float], Vector]

    def noise(self) -> float:
        """The rounding error to expect in it, measured where the function was evaluated; 0 for a function that is not the same twice."""
        found = 0.0
        if self.at(self.h).tobytes() != self.at(self.h).tobytes():
            return found
        for end in (self.h, -self.h):
            found = max(found, largest(_noise(np.stack([self.at(end + 1e-3 * self.h * k) for k in range(-4, 5)]))))
        return 2 * found / self.h

    def size(self) -> float:
        """The largest value of f that it was made of."""
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
        ends, halves = (at(h), at(-h)), (at(h / 2), at(-h / 2))
        coarse, fine = (ends[0] - ends[1]) / (2 * h), (halves[0] - halves[1]) / h
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
    leaves, spec = tree_flatten(args)
    return vector(jvp(lambda *xs: f(*tree_unflatten(spec, xs)), leaves, tree_leaves(v))[1])


@dataclass(frozen=True)
class Rounding:
    """The rounding error to expect in a derivative, a number or one for each element.

    Attributes:
        terms: from the size of the terms that cancel in it.
        noise: how much it jumps from point to point, where its terms cancel at every point and moving it tells nothing.
    """

    terms: Any = 0.0
    noise: Any = 0.0

    def largest(self) -> Rounding:
        """That of the worst element."""
        return Rounding(largest(self.terms), largest(self.noise))

    def along(self, v: Vector) -> Rounding:
        """That of the derivative along v."""
        return Rounding(float(self.terms @ np.abs(v)), float(self.noise @ np.abs(v)))

    def allowed(self, size: float) -> float:
        """The error allowed in the derivative of a function as large as `size`: what jumps by more is no rounding, but a kink."""
        return float(self.terms) + min(float(self.noise), _NOISE * size)


def rounding_of(f: Callable[[PyTree], Vector], x: PyTree, rng: np.random.Generator) -> Rounding:
    """The rounding error to expect in each element of f(x), which may be what is left of large terms that cancel.

    A function that is not the same twice has none: 0.
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
    """A bound of the rounding in values at neighbouring points, from their fourth differences, in which nothing smooth is left.

    Source: More & Wild 2011, SIAM J. Sci. Comput. 33(3).
    """
    return 10 * np.sqrt((np.diff(points, 4, axis=0) ** 2).mean(axis=0) / 70.0)


def compare(
    where: str,
    got: Any,
    against: Difference,
    values: Any,
    rtol: float,
    scale: float = 0.0,
    *,
    size: float = 0.0,
    rounding: Callable[[], Rounding] = Rounding,
    cause: Callable[[], str] = lambda: _LOOK_FOR,
) -> float:
    """The largest relative error of `got` from `values`, a part of the difference `against`.

    Args:
        scale: what the error is relative to, if it is larger than the derivative.
        size: how large the function is whose derivative it is, if that is more than what the difference is of: of a gradient, the scalar.
        rounding: the rounding error to expect in `got`; asked for only where the error is larger than rtol.
        cause: what to say of the likely cause.
    Raises: AssertionError for an error beyond rtol and both roundings.
    """
    got, values = np.atleast_1d(got), np.atleast_1d(values)
    scale = max(scale, largest(values), largest(got))
    errors = np.abs(got - values)
    if not errors.size:
        return 0.0
    worst = int(np.argmax(np.where(np.isnan(errors), np.inf, errors)))
    allowed = rtol * scale + against.rounding
    if not errors[worst] <= allowed and not errors[worst] <= allowed + _excused(against, rounding(), rtol, size):
        fail(
            f"{where} is {got[worst]:.12g}, a finite difference gives {values[worst]:.12g} (settled to {against.spread:.1g}), "
            f"expected them equal to {rtol:g}; {cause()}"
        )
    return _relative(float(errors[worst]), scale, allowed)


def _excused(against: Difference, rounding: Rounding, rtol: float, size: float) -> float:
    """The rounding of a derivative and of its difference, which is at most rtol of the terms that cancel, or jumps by `_NOISE`."""
    size = max(size, against.size())
    return rounding.allowed(size) + min(against.noise(), max(rtol * float(rounding.terms) / (_ROUNDINGS * EPS), _NOISE * size))


def agree(
    where: str,
    got: Vector,
    want: Vector,
    rtol: float,
    scale: float = 0.0,
    *,
    other: str,
    rounding: Callable[[], Rounding],
    size: float,
    cause: Callable[[], str],
) -> float:
    """The largest relative difference of two ways to one derivative.

    Args:
        scale, rounding, cause: as in `compare`.
        other: the name of the second way.
        size: how large the function is whose derivative it is.
    Raises: AssertionError for a difference beyond rtol and the rounding, which is asked for only where it matters.
    """
    scale = max(scale, largest(want))
    errors = np.abs(got - want)
    if not errors.size:
        return 0.0
    worst = int(np.argmax(np.where(np.isnan(errors), np.inf, errors)))
    if not errors[worst] <= rtol * scale and not errors[worst] <= rtol * scale + rounding().allowed(size):
        fail(
            f"{where}, element {worst}, is {got[worst]:.12g}, {other} gives {want[worst]:.12g}, expected them equal to {rtol:g}; {cause()}"
        )
    return _relative(float(errors[worst]), scale, rtol * scale)


def _relative(error: float, scale: float, allowed: float) -> float:
    """The error to report: one that is rounding of terms that cancel is none of the derivative."""
    return error / scale if scale and error <= allowed else 0.0
