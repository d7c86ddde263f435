"""Linear systems, inverses and determinants of matrices (..., N, N), Cholesky factors, pseudo-inverses, by LAPACK.

A singular matrix is refused by an ArgumentError, and so is the derivative of a pseudo-inverse where the rank is not full. The checks
read numbers, for which the host waits on a GPU.

Source: Giles 2008, Collected matrix derivative results for forward and reverse mode algorithmic differentiation; Murray 2016,
arXiv:1602.07527 (Cholesky); Golub & Pereyra 1973, SIAM J. Numer. Anal. 10 (pseudo-inverse).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..backends import Array, Backend, backend_of
from ..errors import ShapeError
from ..rules import Op, align, sum_to
from ..tape import Tensor, to_tensors
from .arrays import reshape
from .arrays import swap_last as T
from .elementwise import add, multiply, negative, subtract
from .lapack import Many, call, column, eps, every, finite, largest, lower, matrices, refuse, singular, symmetric, symmetric_part
from .linalg import matmul
from .reductions import sum

__all__ = ["cholesky", "det", "inv", "lstsq", "pinv", "slogdet", "solve"]


def _solve_value(b: Backend, x: Array, y: Array, *, name: str) -> Array:
    xp = b.xp
    if x.shape[:-2] != y.shape[:-2] and xp is not np:  # CuPy's does not broadcast
        lead = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        x, y = xp.broadcast_to(x, lead + x.shape[-2:]), xp.broadcast_to(y, lead + y.shape[-2:])
    try:
        out = xp.linalg.solve(x, y)
    except np.linalg.LinAlgError as error:
        raise singular(name) from error
    if out.size:
        # A matrix of condition k may let the solution grow to k |y| / |x|; at 1 / eps no digit of it is right.
        growth = largest(xp, x) * largest(xp, out) * eps(x) > largest(xp, y)
        if bool((growth & (largest(xp, y) > 0)).any()) or not bool(xp.isfinite(out).all()):
            raise singular(name)
    return out


def _solve_x_bar(bar: Tensor, out: Tensor, x: Tensor, y: Tensor, name: str) -> Tensor:
    return sum_to(negative(matmul(_solve(T(x), bar, name=name), T(out))), shape=x.shape)


_solve: Op = Op(
    "solve",
    _solve_value,
    vjp=(_solve_x_bar, lambda bar, out, x, y, name: sum_to(_solve(T(x), bar, name=name), shape=y.shape)),
    jvp=(
        lambda dot, out, x, y, name: negative(_solve(x, matmul(align(dot, out.ndim, x.ndim), out), name=name)),
        lambda dot, out, x, y, name: _solve(x, align(dot, out.ndim, y.ndim), name=name),
    ),
    batching="broadcast",
)


def right_solve(name: str, x: Tensor, r: Tensor) -> Tensor:
    """x r^-1."""
    return T(_solve(T(r), T(x), name=name))


def solve(x: Any, y: Any) -> Tensor:
    """The solution z of x z = y.

    Args:
        x: square matrices, (..., N, N).
        y: right-hand sides, (N,) or (..., N, K); leading axes broadcast.
    Returns: Tensor, (..., N) for one vector, else (..., N, K).
    Raises: ShapeError if the shapes do not fit; ArgumentError for a singular matrix.
    Rules: z_dot = x^-1 (y_dot - x_dot z); any order.
    Cost: 2/3 N^3 flop a matrix, and as much for each derivative; the host waits for a GPU.
    Example:
        >>> hg.solve(np.array([[2.0, 0.0], [0.0, 4.0]]), np.array([2.0, 2.0]))
        Tensor(array([1. , 0.5]))
    """
    x, y = to_tensors("solve", [x, y])
    x = matrices("solve", x)
    vector = y.ndim == 1
    if not y.ndim or y.shape[-1 if vector else -2] != x.shape[-1]:
        raise ShapeError(
            f"solve: y has shape {y.shape}, expected (N,) or (..., N, K) because x has shape {x.shape}; reshape or transpose it"
        )
    out = _solve(x, column(y) if vector else y, name="solve")
    return reshape(out, out.shape[:-1]) if vector else out


def _inv_value(b: Backend, x: Array, *, name: str) -> Array:
    try:
        out = b.xp.linalg.inv(x)
    except np.linalg.LinAlgError as error:
        raise singular(name) from error
    if out.size:
        condition = b.xp.sum(b.xp.abs(x), axis=-2).max(axis=-1) * b.xp.sum(b.xp.abs(out), axis=-2).max(axis=-1)
        if not bool((condition * eps(x) < 1).all()):
            raise singular(name)
    return out


_inv: Op = Op(
    "inv",
    _inv_value,
    vjp=(lambda bar, out, x, name: negative(matmul(matmul(T(out), bar), T(out))),),
    jvp=(lambda dot, out, x, name: negative(matmul(matmul(out, dot), out)),),
    batching="broadcast",
)


def inv(x: Any) -> Tensor:
    """The inverse of matrices; `solve` is more exact where it is multiplied by something.

    Args:
        x: square matrices, (..., N, N).
    Returns: Tensor like x.
    Raises: ShapeError; ArgumentError for a matrix that is singular to working precision (condition number in the 1-norm above 1 / eps).
    Cost: 2 N^3 flop a matrix; the host waits for a GPU.
    Example:
        >>> hg.inv(np.array([[2.0, 0.0], [1.0, 4.0]]))
        Tensor(array([[ 0.5  ,  0.   ],
               [-0.125,  0.25 ]]))
    """
    return _inv(matrices("inv", x), name="inv")


_det: Op = Op(
    "det",
    lambda b, x: b.xp.linalg.det(x),
    vjp=(lambda bar, out, x: multiply(reshape(multiply(bar, out), (*out.shape, 1, 1)), T(_inv(x, name="det"))),),
    jvp=(lambda dot, out, x: multiply(out, sum(multiply(dot, T(_inv(x, name="det"))), axis=(-2, -1))),),
    batching="broadcast",
)


def det(x: Any) -> Tensor:
    """The determinant of matrices; `slogdet` is safe from overflow.

    Args:
        x: square matrices, (..., N, N).
    Returns: Tensor, (...).
    Raises: ShapeError; ArgumentError where the derivative at a singular matrix is wanted.
    Rules: det(x) x^-T; any order.
    Example:
        >>> hg.det(np.array([[2.0, 1.0], [1.0, 2.0]]))
        Tensor(array(3.))
    """
    return _det(matrices("det", x))


def _slogdet_value(b: Backend, x: Array) -> tuple[Array, ...]:
    sign, out = b.xp.linalg.slogdet(x)
    if not bool((out > -np.inf).all()):
        raise singular("slogdet")
    return sign, out


def _slogdet_x_bar(bars: Sequence[Tensor | None], outs: list[Tensor], x: Tensor) -> Tensor:
    bar = bars[1]
    assert bar is not None  # the sign leaves the op as a constant
    return multiply(reshape(bar, (*bar.shape, 1, 1)), T(_inv(x, name="slogdet")))


_slogdet = Many(
    "slogdet", _slogdet_value, _slogdet_x_bar, lambda dot, outs, x: (None, sum(multiply(dot, T(_inv(x, name="slogdet"))), axis=(-2, -1)))
)


class Slogdet(NamedTuple):
    """What `slogdet` gives.

    Attributes:
        sign: of the determinants, an array of -1 and 1, (...); constant.
        logabsdet: logarithms of their magnitudes, (...).
    """

    sign: Any
    logabsdet: Tensor


def slogdet(x: Any) -> Slogdet:
    """Sign and logarithm of the magnitude of the determinant of matrices.

    Args:
        x: square matrices, (..., N, N).
    Returns: (sign, logabsdet).
    Raises: ShapeError; ArgumentError for a singular matrix.
    Rules: x^-T; any order.
    Example:
        >>> hg.slogdet(np.array([[2.0, 1.0], [1.0, 2.0]])).logabsdet
        Tensor(array(1.09861229))
    """
    sign, out = _slogdet.outputs(matrices("slogdet", x))
    return Slogdet(sign.value, out)


def _halved(x: Tensor) -> Tensor:
    """The lower triangle of matrices with half of their diagonal."""
    return multiply(x, 0.5 * (lower(x) + lower(x, -1)))


def _cholesky_x_bar(bar: Tensor, out: Tensor, x: Tensor) -> Tensor:
    inner = _halved(matmul(T(out), bar))
    left = _solve(T(out), inner, name="cholesky")
    return symmetric_part(T(_solve(T(out), T(left), name="cholesky")))


def _cholesky_dot(dot: Tensor, out: Tensor, x: Tensor) -> Tensor:
    left = _solve(out, dot, name="cholesky")
    return matmul(out, _halved(T(_solve(out, T(left), name="cholesky"))))


def _cholesky_value(b: Backend, x: Array) -> Array:
    out = call("cholesky", b.xp.linalg.cholesky, x)
    finite("cholesky", out)
    if b.xp is not np and x.size and bool((largest(b.xp, out @ out.swapaxes(-1, -2) - x) > 1e-3 * largest(b.xp, x)).any()):
        raise refuse("cholesky", "a matrix for which there is no result", "a positive definite one", "CuPy does not say so", "change it")
    return out


_cholesky: Op = Op("cholesky", _cholesky_value, vjp=(_cholesky_x_bar,), jvp=(_cholesky_dot,), batching="broadcast")


def cholesky(x: Any) -> Tensor:
    """The lower triangular L with L L.T = x.

    Args:
        x: symmetric positive definite matrices, (..., N, N).
    Returns: Tensor like x.
    Raises: ShapeError; ArgumentError for a matrix that is not symmetric (by 1e-6 of its largest element, 4e-4 in float32) or not positive
        definite.
    Rules: L_dot = L tril(L^-1 x_dot L^-T) with half of the diagonal; any order. The cotangent is symmetric.
    Example:
        >>> hg.cholesky(np.array([[4.0, 2.0], [2.0, 5.0]]))
        Tensor(array([[2., 0.],
               [1., 2.]]))
    """
    return _cholesky(symmetric("cholesky", x))


def _full_rank(x: Array) -> None:
    """Raises where the rank is below the smaller of M and N: there the pseudo-inverse jumps."""
    s = call("pinv", backend_of(x).xp.linalg.svd, x, compute_uv=False)
    if s.shape[-1] and not every(s[..., -1] > max(x.shape[-2:]) * eps(x) * s[..., 0]):
        what, why = "linearly dependent rows or columns", "the pseudo-inverse jumps there and has no derivative"
        raise refuse("pinv", what, "a matrix of full rank", why, "add a multiple of the identity to x.T @ x and use solve")


def _pinv_x_bar(bar: Tensor, out: Tensor, x: Tensor) -> Tensor:
    _full_rank(x.value)
    first = negative(matmul(matmul(T(out), bar), T(out)))
    second = subtract(T(bar), matmul(matmul(x, out), T(bar)))  # (I - x x+) bar.T
    third = subtract(T(bar), matmul(T(bar), matmul(out, x)))  # bar.T (I - x+ x)
    return add(add(first, matmul(second, matmul(out, T(out)))), matmul(matmul(T(out), out), third))


def _pinv_dot(dot: Tensor, out: Tensor, x: Tensor) -> Tensor:
    _full_rank(x.value)
    first = negative(matmul(matmul(out, dot), out))
    second = subtract(T(dot), matmul(T(dot), matmul(x, out)))
    third = subtract(T(dot), matmul(matmul(out, x), T(dot)))
    return add(add(first, matmul(matmul(out, T(out)), second)), matmul(third, matmul(T(out), out)))


_pinv: Op = Op("pinv", lambda b, x: call("pinv", b.xp.linalg.pinv, x), vjp=(_pinv_x_bar,), jvp=(_pinv_dot,), batching="broadcast")


def pinv(x: Any) -> Tensor:
    """The Moore-Penrose pseudo-inverse, with NumPy's cut-off for small singular values.

    Args:
        x: matrices, (..., M, N).
    Returns: Tensor, (..., N, M).
    Raises: ShapeError; ArgumentError for a derivative where the rank is below the smaller of M and N.
    Rules: Golub & Pereyra 1973, equation 4.12; any order.
    Example:
        >>> hg.pinv(np.array([[2.0], [0.0]])).value.round(6)
        array([[0.5, 0. ]])
    """
    x = matrices("pinv", x, square=False)
    out = _pinv(x)
    finite("pinv", out.value)
    return out


def lstsq(x: Any, y: Any) -> Tensor:
    """The z of least norm among those that minimise |x z - y|: the pseudo-inverse of x times y.

    Args:
        x: matrices, (..., M, N).
        y: right-hand sides, (M,) or (..., M, K).
    Returns: Tensor, (..., N) for one vector, else (..., N, K): the solution alone, where numpy.linalg.lstsq gives more.
    Raises: ShapeError if the shapes do not fit; ArgumentError as `pinv`.
    Example:
        >>> hg.lstsq(np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]), np.array([1.0, 3.0, 5.0])).value.round(6)
        array([1., 2.])
    """
    x, y = to_tensors("lstsq", [x, y])
    x = matrices("lstsq", x, square=False)
    if not y.ndim or y.shape[-1 if y.ndim == 1 else -2] != x.shape[-2]:
        raise ShapeError(
            f"lstsq: y has shape {y.shape}, expected (M,) or (..., M, K) because x has shape {x.shape}; reshape or transpose it"
        )
    return matmul(pinv(x), y)
