"""Decompositions of matrices by LAPACK: eigenvalues of symmetric ones, singular values, QR.

Vectors are not determined where two values are equal: there a derivative is refused by an ArgumentError. The checks read numbers, for
which the host waits on a GPU.

Source: Giles 2008, Collected matrix derivative results for forward and reverse mode algorithmic differentiation (eigh); Townsend 2016,
Differentiating the singular value decomposition; Walter & Lehmann 2012, arXiv:1001.1654 (QR).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..backends import Array, backend_of
from ..errors import ArgumentError
from ..tape import Tensor
from .arguments import switch
from .arrays import concatenate, getitem
from .arrays import swap_last as T
from .elementwise import divide, multiply, negative, subtract
from .lapack import Many, call, column, eps, every, largest, lower, matrices, refuse, row, singular, symmetric, symmetric_part
from .linalg import matmul
from .systems import right_solve

__all__ = ["eigh", "eigvalsh", "qr", "svd", "svdvals"]


def _distinct(name: str, values: Array, squared: bool = False) -> None:
    """Raises where two values (sorted) are equal to working precision and, for singular values, where one is 0."""
    xp = backend_of(values).xp
    if values.shape[-1] == 0:
        return
    size = largest(xp, values, 1)[..., None]
    tiny = values.shape[-1] * eps(values) * size
    close = xp.abs(values[..., 1:] - values[..., :-1]) <= tiny
    if not every(~close):
        what, why = "equal eigenvalues or singular values", "their vectors are not determined, and none of them has a derivative"
        raise refuse(
            name, what, "distinct ones", why, "perturb the matrix, or use functions of all values together, such as slogdet or trace"
        )
    if squared and not every(~(xp.abs(values) <= tiny)):
        raise refuse(name, "a singular value of 0", "positive ones", "no derivative exists there", "add a multiple of the identity")


def _diagonal(x: Tensor) -> Tensor:
    """The diagonals of square matrices."""
    n = backend_of(x.value).xp.arange(min(x.shape[-2:]))
    return getitem(x, (..., n, n))


def _gaps(values: Tensor) -> Tensor:
    """1 / (values[j] - values[i]) in row i and column j, and 0 on the diagonal. The values are distinct."""
    eye = Tensor(backend_of(values.value).xp.eye(values.shape[-1], dtype=values.dtype))
    return subtract(divide(1.0, (row(values) - column(values)) + eye), eye)


def _added(first: Tensor | None, second: Tensor) -> Tensor:
    return second if first is None else first + second


def _eigh_x_bar(bars: Sequence[Tensor | None], outs: list[Tensor], x: Tensor) -> Tensor:
    w, v = outs
    _distinct("eigh", w.value)
    total = None if bars[0] is None else matmul(multiply(v, row(bars[0])), T(v))
    if bars[1] is not None:
        total = _added(total, matmul(matmul(v, multiply(_gaps(w), matmul(T(v), bars[1]))), T(v)))
    assert total is not None
    return symmetric_part(total)


def _eigh_dots(dot: Tensor, outs: list[Tensor], x: Tensor) -> Sequence[Tensor]:
    w, v = outs
    _distinct("eigh", w.value)
    inner = matmul(T(v), matmul(dot, v))
    return _diagonal(inner), matmul(v, multiply(_gaps(w), inner))


_eigh = Many("eigh", lambda b, x: tuple(call("eigh", b.xp.linalg.eigh, x)), _eigh_x_bar, _eigh_dots)


class Eigh(NamedTuple):
    """What `eigh` gives.

    Attributes:
        eigenvalues: ascending, (..., N).
        eigenvectors: of norm 1, in columns, (..., N, N).
    """

    eigenvalues: Tensor
    eigenvectors: Tensor


def eigh(x: Any) -> Eigh:
    """Eigenvalues and eigenvectors of symmetric matrices.

    Args:
        x: symmetric matrices, (..., N, N).
    Returns: (eigenvalues, eigenvectors). LAPACK chooses the signs of the vectors, which a derivative leaves as they are.
    Raises: ShapeError; ArgumentError for a matrix that is not symmetric (by 1e-6 of its largest element, 4e-4 in float32), and for a
        derivative where two eigenvalues are equal.
    Rules: w_dot = diag(v.T x_dot v), v_dot = v (F * (v.T x_dot v)) with F_ij = 1 / (w_j - w_i) off the diagonal; any order.
    Example:
        >>> hg.eigh(np.array([[2.0, 1.0], [1.0, 2.0]])).eigenvalues
        Tensor(array([1., 3.]))
    """
    return Eigh(*_eigh.outputs(symmetric("eigh", x)))


def eigvalsh(x: Any) -> Tensor:
    """Eigenvalues of symmetric matrices, ascending, (..., N), as `eigh`.

    Args:
        x: symmetric matrices, (..., N, N).
    Returns: Tensor, (..., N).
    Example:
        >>> hg.eigvalsh(np.array([[2.0, 1.0], [1.0, 2.0]]))
        Tensor(array([1., 3.]))
    """
    return _eigh.outputs(symmetric("eigvalsh", x))[0]


def _outside(u: Tensor, y: Tensor) -> Tensor:
    """The part of the columns of y outside the space that the orthonormal columns of u span."""
    return subtract(y, matmul(u, matmul(T(u), y)))


def _svd_x_bar(bars: Sequence[Tensor | None], outs: list[Tensor], x: Tensor) -> Tensor:
    u, s, vt = outs
    _distinct("svd", s.value, squared=True)
    gaps, scales = _gaps(multiply(s, s)), row(s)
    inner: Tensor | None = None  # of u inner vt
    total: Tensor | None = None
    if bars[0] is not None:
        turn = matmul(T(u), bars[0])
        inner = multiply(multiply(gaps, subtract(turn, T(turn))), scales)
        total = matmul(divide(_outside(u, bars[0]), scales), vt)
    if bars[1] is not None:
        square = matmul(multiply(u, row(bars[1])), vt)
        total = _added(total, square)
    if bars[2] is not None:
        v_bar = T(bars[2])
        turn = matmul(vt, v_bar)
        inner = _added(inner, multiply(column(s), multiply(gaps, subtract(turn, T(turn)))))
        total = _added(total, matmul(divide(u, scales), T(_outside(T(vt), v_bar))))
    if inner is not None:
        total = _added(total, matmul(matmul(u, inner), vt))
    assert total is not None
    return total


def _svd_dots(dot: Tensor, outs: list[Tensor], x: Tensor) -> Sequence[Tensor]:
    u, s, vt = outs
    _distinct("svd", s.value, squared=True)
    gaps, scales = _gaps(multiply(s, s)), row(s)
    right = matmul(dot, T(vt))
    inner = matmul(T(u), right)
    left = matmul(T(dot), u)
    rows, columns = multiply(inner, scales), multiply(column(s), inner)
    u_dot = matmul(u, multiply(gaps, rows + T(rows))) + divide(_outside(u, right), scales)
    v_dot = matmul(T(vt), multiply(gaps, columns + T(columns))) + divide(_outside(T(vt), left), scales)
    return u_dot, _diagonal(inner), T(v_dot)


_svd = Many("svd", lambda b, x: tuple(call("svd", b.xp.linalg.svd, x, full_matrices=False)), _svd_x_bar, _svd_dots)


class SVD(NamedTuple):
    """What `svd` gives, K being the smaller of M and N.

    Attributes:
        U: orthonormal columns, (..., M, K).
        S: singular values, descending, (..., K).
        Vh: orthonormal rows, (..., K, N).
    """

    U: Tensor
    S: Tensor
    Vh: Tensor


def svd(x: Any, full_matrices: bool = True) -> SVD:
    """Singular value decomposition, x = U diag(S) Vh.

    Args:
        x: matrices, (..., M, N).
        full_matrices: False where M and N differ: the further columns of U or rows of Vh are not determined and have no derivative.
    Returns: (U, S, Vh). LAPACK chooses the signs, which a derivative leaves as they are.
    Raises: ShapeError; ArgumentError for full_matrices=True of matrices that are not square, and for a derivative where two singular
        values are equal or one is 0.
    Rules: Townsend 2016; any order.
    Example:
        >>> u, s, vh = hg.svd(np.array([[3.0, 0.0], [0.0, 2.0]]))
        >>> s
        Tensor(array([3., 2.]))
    """
    x = matrices("svd", x, square=False)
    if switch("svd", "full_matrices", full_matrices) and x.shape[-1] != x.shape[-2]:
        raise ArgumentError(
            f"svd: full_matrices has True, expected False because x has shape {x.shape}, and further vectors would have no derivative; "
            "pass full_matrices=False"
        )
    return SVD(*_svd.outputs(x))


def svdvals(x: Any) -> Tensor:
    """Singular values of matrices, descending, (..., K) with K the smaller of M and N, as `svd`.

    Args:
        x: matrices, (..., M, N).
    Returns: Tensor, (..., K).
    Example:
        >>> hg.svdvals(np.array([[0.0, 2.0], [3.0, 0.0]]))
        Tensor(array([3., 2.]))
    """
    return svd(matrices("svdvals", x, square=False), full_matrices=False).S


def _independent(r: Tensor) -> Tensor:
    """R, where the columns are linearly independent: else an entry of its diagonal is rounding alone, and so would the derivative be."""
    xp = backend_of(r.value).xp
    diagonal = xp.abs(xp.diagonal(r.value, axis1=-2, axis2=-1))
    if not every(diagonal > r.shape[-1] * eps(r.value) * largest(xp, r.value)[..., None]):
        raise singular("qr")
    return r


def _qr_x_bar(bars: Sequence[Tensor | None], outs: list[Tensor], x: Tensor) -> Tensor:
    q, r = outs
    inner = None if bars[1] is None else matmul(r, T(bars[1]))
    if bars[0] is not None:
        turn = negative(matmul(T(bars[0]), q))
        inner = turn if inner is None else inner + turn
    assert inner is not None
    symmetric = multiply(inner, lower(inner)) + T(multiply(inner, lower(inner, -1)))
    return right_solve("qr", _added(bars[0], matmul(q, symmetric)), T(_independent(r)))


def _qr_dots(dot: Tensor, outs: list[Tensor], x: Tensor) -> Sequence[Tensor]:
    q, r = outs
    change = right_solve("qr", dot, _independent(r))
    inner = matmul(T(q), change)
    below = multiply(inner, lower(inner, -1))
    turn = subtract(below, T(below))
    return subtract(change, matmul(q, subtract(inner, turn))), matmul(subtract(inner, turn), r)


_qr = Many("qr", lambda b, x: tuple(call("qr", b.xp.linalg.qr, x)), _qr_x_bar, _qr_dots)


class QR(NamedTuple):
    """What `qr` gives, K being the smaller of M and N.

    Attributes:
        Q: orthonormal columns, (..., M, K).
        R: upper triangular, (..., K, N).
    """

    Q: Tensor
    R: Tensor


def qr(x: Any) -> QR:
    """QR decomposition, x = Q R.

    Args:
        x: matrices, (..., M, N).
    Returns: (Q, R). LAPACK chooses the signs, which a derivative leaves as they are.
    Raises: ShapeError; ArgumentError for a derivative where the first K columns are linearly dependent.
    Rules: Walter & Lehmann 2012; any order. Where M < N the first M columns are decomposed, and R of the others is Q.T times them.
    Example:
        >>> q, r = hg.qr(np.array([[1.0, 2.0], [3.0, 4.0]]))
        >>> bool(np.allclose((q @ r).value, np.array([[1.0, 2.0], [3.0, 4.0]])))
        True
    """
    x = matrices("qr", x, square=False)
    rows = x.shape[-2]
    if rows >= x.shape[-1]:
        return QR(*_qr.outputs(x))
    q, r = _qr.outputs(getitem(x, (..., slice(rows))))
    return QR(q, concatenate([r, matmul(T(q), getitem(x, (..., slice(rows, None))))], -1))
