"""Solvers of (H + damping) q = b for a symmetric H that is known by its products.

`product` takes rows (P, n) to their products (P, n); b, the start and the result are (n,). All of them run in b's dtype and on its device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..backends import Array, backend_of
from ..errors import ArgumentError

Product = Callable[[Array], Array]
Preconditioner = Callable[[Array], Array]
"""r (n,) -> an approximation of (H + damping)^-1 r."""


class Solver(Protocol):
    """What the implicit pass needs of a solver. Any object with these is one."""

    @property
    def damping(self) -> float:
        """What is added to the diagonal of H."""

    @property
    def tolerance(self) -> float:
        """The residual, relative to the norm of b, that is asked for."""

    def solve(self, product: Product, b: Array, start: Array | None) -> Array:
        """q, from `start` (zero where it is None)."""


def _check(solver: Solver, *, above_zero: tuple[str, ...] = (), **least: float) -> None:
    """Raises: ArgumentError unless the fields in `above_zero` are > 0, those in `least` at least their bound, and no other is negative."""
    for name, bound in {"tolerance": 0, "damping": 0, **least}.items():
        value = getattr(solver, name)
        if not value >= bound:
            raise ArgumentError(f"{type(solver).__name__}: {name} is {value!r}, expected a number at least {bound}; choose another")
    for name in above_zero:
        value = getattr(solver, name)
        if not value > 0:
            raise ArgumentError(f"{type(solver).__name__}: {name} is {value!r}, expected a number above 0; choose another")


def _damped(product: Product, damping: float) -> Callable[[Array], Array]:
    """v (n,) -> (H + damping) v."""
    return lambda v: product(v[None])[0] + damping * v


def _dot(a: Array, b: Array) -> Array:
    """Of rows (..., n), in float64: (..., 1)."""
    return (a * b).sum(axis=-1, keepdims=True).astype(np.float64)


def conjugate(
    apply: Callable[[Array], Array], b: Array, start: Array | None, tolerance: float, most: int, precondition: Preconditioner | None = None
) -> Array:
    """Conjugate gradients on positive definite operators. The rows of b, (n,) or (systems, n), are right sides of systems of their own.

    A system is left as it is once its residual is small enough, or where it meets a direction of no positive curvature.
    """
    xp = backend_of(b).xp
    x = 0 * b if start is None else start
    r = b - apply(x) if start is not None else b
    z = r if precondition is None else precondition(r)
    p, rz, goal, going = z, _dot(r, z), tolerance**2 * _dot(b, b), True
    for _ in range(most):
        going = going & (_dot(r, r) > goal)
        if not going.any():
            break
        ap = apply(p)
        curvature = _dot(p, ap)
        going = going & (curvature > 0)
        step = xp.where(going, rz / xp.where(going, curvature, 1), 0).astype(b.dtype)
        x, r = x + step * p, r - step * ap
        z = r if precondition is None else precondition(r)
        rz, before = _dot(r, z), rz
        p = z + xp.where(going, rz / xp.where(going, before, 1), 0).astype(b.dtype) * p
    return x


@dataclass(frozen=True)
class CG:
    """Conjugate gradients, for a positive definite H (a strongly convex inner loss).

    Args: tolerance: relative residual; max_iterations: products at most; damping: added to H's diagonal; preconditioner: r -> about
        (H + damping)^-1 r, symmetric and positive definite, on flat arrays (n,); None for none.
    Source: Hestenes & Stiefel 1952. Its error falls by (sqrt(k) - 1) / (sqrt(k) + 1) a product, k being the condition number.
    Example:
        >>> problem = hg.Bilevel(
        ...     lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum(w**2), lambda h: np.zeros(2), lambda h: hg.SGD(lr=0.25)
        ... )
        >>> r = hg.implicit(problem, np.array([1.0, 2.0]), np.array([1.0, 2.0]), None, solver=hg.CG(tolerance=1e-8))
        >>> r.grad.round(6)
        array([2., 4.])
    """

    tolerance: float = 1e-6
    max_iterations: int = 100
    damping: float = 0.0
    preconditioner: Preconditioner | None = None

    def __post_init__(self) -> None:
        _check(self, max_iterations=1)

    def solve(self, product: Product, b: Array, start: Array | None) -> Array:
        """See `Solver`."""
        return conjugate(_damped(product, self.damping), b, start, self.tolerance, self.max_iterations, self.preconditioner)


@dataclass(frozen=True)
class NormalCG:
    """Conjugate gradients on H^2 q = H b, for an H that may be indefinite; two products an iteration.

    Args: tolerance: relative residual of H^2 q = H b; max_iterations, damping: as `CG`.
    Source: Hestenes & Stiefel 1952, section 10. The condition number counts squared.
    Example:
        >>> problem = hg.Bilevel(
        ...     lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum(w**2), lambda h: np.zeros(2), lambda h: hg.SGD(lr=0.25)
        ... )
        >>> r = hg.implicit(problem, np.array([1.0, 2.0]), np.array([1.0, 2.0]), None, solver=hg.NormalCG())
        >>> r.grad.round(6)
        array([2., 4.])
    """

    tolerance: float = 1e-6
    max_iterations: int = 100
    damping: float = 0.0

    def __post_init__(self) -> None:
        _check(self, max_iterations=1)

    def solve(self, product: Product, b: Array, start: Array | None) -> Array:
        """See `Solver`."""
        apply = _damped(product, self.damping)
        return conjugate(lambda v: apply(apply(v)), apply(b), start, self.tolerance, self.max_iterations)


@dataclass(frozen=True)
class FixedPoint:
    """The iteration q <- q - lr ((H + damping) q - b), which is the backward run of gradient descent that stays at w*.

    Args: lr: step size, below 2 over H's largest eigenvalue; tolerance, max_iterations, damping: as `CG`.
    Source: Grazzi et al. 2020, On the iteration complexity of hypergradient computation. The error
        falls by 1 - lr times the smallest eigenvalue.
    Example:
        >>> problem = hg.Bilevel(
        ...     lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum(w**2), lambda h: np.zeros(2), lambda h: hg.SGD(lr=0.25)
        ... )
        >>> r = hg.implicit(problem, np.array([1.0, 2.0]), np.array([1.0, 2.0]), None, solver=hg.FixedPoint(lr=0.4))
        >>> r.grad.round(4)
        array([2., 4.])
    """

    lr: float
    tolerance: float = 1e-6
    max_iterations: int = 1000
    damping: float = 0.0

    def __post_init__(self) -> None:
        _check(self, above_zero=("lr",), max_iterations=1)

    def solve(self, product: Product, b: Array, start: Array | None) -> Array:
        """See `Solver`."""
        apply, goal = _damped(product, self.damping), self.tolerance**2 * _dot(b, b)
        q = 0 * b if start is None else start
        for _ in range(self.max_iterations):
            r = b - apply(q)
            if not _dot(r, r) > goal:
                break
            q = q + self.lr * r
        return q


@dataclass(frozen=True)
class Neumann:
    """The first terms of the Neumann series: q = lr * sum of (1 - lr (H + damping))^k b for k = 0 .. terms.

    Args: lr: step size, below 2 over H's largest eigenvalue; terms: products; tolerance: above it the pass warns; damping: as `CG`.
    Source: Lorraine et al. 2020, Optimizing millions of hyperparameters by implicit differentiation, Algorithm 3. A start is not used.
    Example:
        >>> problem = hg.Bilevel(
        ...     lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum(w**2), lambda h: np.zeros(2), lambda h: hg.SGD(lr=0.25)
        ... )
        >>> r = hg.implicit(problem, np.array([1.0, 2.0]), np.array([1.0, 2.0]), None, solver=hg.Neumann(lr=0.4))
        >>> r.grad.round(4)
        array([2., 4.])
    """

    lr: float
    terms: int = 20
    tolerance: float = 1e-2
    damping: float = 0.0

    def __post_init__(self) -> None:
        _check(self, above_zero=("lr",), terms=0)

    def solve(self, product: Product, b: Array, start: Array | None) -> Array:
        """See `Solver`."""
        apply, term, total = _damped(product, self.damping), self.lr * b, self.lr * b
        for _ in range(self.terms):
            term = term - self.lr * apply(term)
            total = total + term
        return total


@dataclass(frozen=True)
class Nystrom:
    """The inverse of a low-rank approximation: H[:, K] H[K, K]^-1 H[K, :] for `rank` random indices K, whose columns take one pass.

    Args: rank: columns, at most n; damping: above 0, since the rest of H is taken for zero; seed: of the indices; tolerance: above it the
        pass warns.
    Source: Hataya & Yamada 2023, Nystrom method for accurate and scalable implicit differentiation, eq. 6. Exact (up to damping) where
        H has a rank of at most `rank`. A start is not used.
    Example:
        >>> problem = hg.Bilevel(
        ...     lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum(w**2), lambda h: np.zeros(2), lambda h: hg.SGD(lr=0.25)
        ... )
        >>> r = hg.implicit(problem, np.array([1.0, 2.0]), np.array([1.0, 2.0]), None, solver=hg.Nystrom(rank=2, damping=1e-6))
        >>> r.grad.round(3)
        array([2., 4.])
    """

    rank: int = 10
    damping: float = 1e-2
    seed: int = 0
    tolerance: float = 1e-2

    def __post_init__(self) -> None:
        _check(self, above_zero=("damping",), rank=1)

    def solve(self, product: Product, b: Array, start: Array | None) -> Array:
        """See `Solver`."""
        xp, n = backend_of(b).xp, len(b)
        chosen = np.sort(np.random.default_rng(self.seed).permutation(n)[: self.rank])
        rows = xp.zeros((len(chosen), n), b.dtype)
        rows[xp.arange(len(chosen)), xp.asarray(chosen)] = 1
        columns = product(rows)  # (rank, n)
        core = columns[:, xp.asarray(chosen)]
        inner = core + columns @ columns.T / self.damping
        weights = xp.linalg.lstsq(inner, columns @ b, rcond=None)[0]
        return b / self.damping - columns.T @ weights / self.damping**2
