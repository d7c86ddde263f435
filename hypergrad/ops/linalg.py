"""Products: matmul, einsum, linear."""

from __future__ import annotations

from typing import Any

from ..backends import backend_of
from ..errors import ArgumentError, ShapeError
from ..rules import Op, bilinear
from ..tape import Tensor, to_tensors
from .arguments import shown
from .arrays import getitem, reshape, swap_last, transpose
from .elementwise import add, multiply
from .reductions import sum

__all__ = ["einsum", "linear", "matmul"]

_matmul: Op = bilinear(
    "matmul",
    lambda b, x, y: b.matmul(x, y),
    (lambda bar, x, y: _matmul(bar, swap_last(y)), lambda bar, x, y: _matmul(swap_last(x), bar)),
    core=(2, 2, 2),
)


def matmul(x: Any, y: Any) -> Tensor:
    """Matrix product, as numpy.matmul: leading axes broadcast, vectors are allowed.

    Args:
        x: array or Tensor, (..., M, K) or (K,).
        y: array or Tensor, (..., K, N) or (K,).
    Returns: Tensor, (..., M, N), without the axis of a vector argument.
    Raises: ShapeError if the inner sizes differ or an argument has no axis.
    Rules: bilinear; any order.
    Cost: 2*M*K*N flop per batch element.
    Example:
        >>> hg.matmul(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 2.0], [3.0, 4.0]]))
        Tensor(array([[ 7., 10.],
               [15., 22.]]))
    """
    x, y = to_tensors("matmul", [x, y])
    if not x.ndim or not y.ndim or x.shape[-1] != y.shape[-2 if y.ndim > 1 else 0]:
        raise ShapeError(f"matmul: arguments have shapes {x.shape} and {y.shape}, expected (..., M, K) and (..., K, N); transpose one")
    out = _matmul(reshape(x, (1, *x.shape)) if x.ndim == 1 else x, reshape(y, (*y.shape, 1)) if y.ndim == 1 else y)
    if y.ndim == 1:
        out = reshape(out, out.shape[:-1])
    if x.ndim == 1:
        out = reshape(out, (*out.shape[:-2], out.shape[-1]) if y.ndim > 1 else out.shape[:-1])
    return out


def linear(x: Any, w: Any, bias: Any = None) -> Tensor:
    """x @ w + bias.

    Args:
        x: (..., N, D).
        w: (D, K), or (..., D, K) for one matrix per episode.
        bias: (K,) or (..., K), or None.
    Returns: Tensor, (..., N, K).
    Raises: ShapeError if D differs.
    Example:
        >>> hg.linear(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0], [10.0]]), np.array([0.5]))
        Tensor(array([[21.5],
               [43.5]]))
    """
    out = matmul(x, w)
    if bias is None:
        return out
    (bias,) = to_tensors("linear", [bias])
    return add(out, reshape(bias, (*bias.shape[:-1], 1, bias.shape[-1])) if bias.ndim > 1 else bias)


def einsum(subscripts: str, *operands: Any) -> Tensor:
    """Einstein summation of one or more arrays, by diagonals, transposes, sums and matrix products, from left to right.

    Args:
        subscripts: such as "nd,dk->nk". A letter twice in one term takes a diagonal; "..." stands for further axes, which broadcast;
            without "->" the result has the axes of "..." and then the letters that occur once, in alphabetical order.
        operands: arrays or Tensors.
    Returns: Tensor with the axes after "->".
    Raises: ArgumentError for a malformed string; ShapeError if sizes of one letter differ.
    Cost: that of the pairwise matrix products.
    Example:
        >>> hg.einsum("ij,j->i", np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([1.0, 10.0]))
        Tensor(array([21., 43.]))
    """
    if not isinstance(subscripts, str):
        raise ArgumentError(
            f"einsum: subscripts has {shown(subscripts)}, expected a string because it names axes; write it first, such as 'nd,dk->nk'"
        )
    terms, arrow, result = subscripts.replace(" ", "").replace("...", ELLIPSIS).partition("->")
    names = terms.split(",")
    letters = set("".join(names))
    if not arrow:
        once = sorted(c for c in letters if terms.count(c) == 1 and c != ELLIPSIS)
        result = ELLIPSIS * (ELLIPSIS in letters) + "".join(once)
    if (
        len(names) != len(operands)
        or not all(c.isalpha() or c == ELLIPSIS for c in letters | set(result))
        or not set(result) <= letters
        or len(set(result)) < len(result)
        or any(n.count(ELLIPSIS) > 1 for n in names)
    ):
        raise ArgumentError(
            f"einsum: subscripts has {subscripts!r}, expected one term of letters per operand, and '->' with distinct letters of them; "
            "write such terms"
        )
    tensors = to_tensors("einsum", operands)
    if ELLIPSIS in letters:
        names, tensors, result = _spelt_out(names, tensors, result)
    sizes: dict[str, int] = {}
    for name, t in zip(names, tensors, strict=True):
        if len(name) != t.ndim or any(sizes.setdefault(c, n) != n for c, n in zip(name, t.shape, strict=True)):
            name = "".join("." if c >= DOTS else c for c in name)
            raise ShapeError(f"einsum: operand {name!r} has shape {t.shape}, expected {[sizes.get(c, '?') for c in name]}")
    pairs = [_without_repeats(name, t) for name, t in zip(names, tensors, strict=True)]
    name, t = pairs[0]
    for i in range(1, len(pairs)):
        name, t = _contract(name, t, *pairs[i], set("".join(n for n, _ in pairs[i + 1 :])) | set(result))
    name, t = _drop(name, t, set(result))
    return transpose(t, [name.index(c) for c in result]) if name != result else t


ELLIPSIS, DOTS = "\u2026", "\ue000"  # one character for three dots; the first of the letters of their axes, which nobody writes


def _spelt_out(names: list[str], tensors: list[Tensor], result: str) -> tuple[list[str], list[Tensor], str]:
    """Terms with letters in the place of the dots; axes of length 1 that broadcast are gone."""
    counts = [t.ndim - len(n) + 1 if ELLIPSIS in n else 0 for n, t in zip(names, tensors, strict=True)]
    if min(counts) < 0:
        i = counts.index(min(counts))
        raise ShapeError(f"einsum: operand {i} has shape {tensors[i].shape}, expected at least {len(names[i]) - 1} axes beside the dots")
    dots = "".join(chr(ord(DOTS) + i) for i in range(max(counts)))
    names = [n.replace(ELLIPSIS, dots[len(dots) - count :]) for n, count in zip(names, counts, strict=True)]
    wide = {c for n, t in zip(names, tensors, strict=True) for c, size in zip(n, t.shape, strict=False) if c in dots and size != 1}
    kept = []
    for name, t in zip(names, tensors, strict=True):
        stay = [i for i, c in enumerate(name) if not (c in wide and t.shape[i] == 1)]
        kept.append(("".join(name[i] for i in stay), reshape(t, [t.shape[i] for i in stay]) if len(stay) < t.ndim else t))
    return [n for n, _ in kept], [t for _, t in kept], result.replace(ELLIPSIS, dots)


def _without_repeats(name: str, t: Tensor) -> tuple[str, Tensor]:
    """The diagonal of an operand along the letters that its term has more than once."""
    while repeated := next((c for c in name if name.count(c) > 1), None):
        i = name.index(repeated)
        j = name.index(repeated, i + 1)
        rest = [k for k in range(t.ndim) if k not in (i, j)]
        along = backend_of(t.value).xp.arange(t.shape[i])
        t = getitem(transpose(t, [*rest, i, j]), (..., along, along))
        name = "".join(name[k] for k in rest) + repeated
    return name, t


def _drop(name: str, t: Tensor, needed: set[str]) -> tuple[str, Tensor]:
    """Sum over the axes that nothing needs any more."""
    axes = [i for i, c in enumerate(name) if c not in needed]
    return "".join(c for c in name if c in needed), sum(t, axis=axes) if axes else t


def _contract(x_name: str, x: Tensor, y_name: str, y: Tensor, needed: set[str]) -> tuple[str, Tensor]:
    """The product of two operands as one batched matmul; letters in both are batch (if needed later) or contracted."""
    x_name, x = _drop(x_name, x, needed | set(y_name))
    y_name, y = _drop(y_name, y, needed | set(x_name))
    size = dict(zip(x_name + y_name, x.shape + y.shape, strict=True))
    batch = "".join(c for c in x_name if c in y_name and c in needed)
    inner = "".join(c for c in x_name if c in y_name and c not in needed)
    left = "".join(c for c in x_name if c not in y_name)
    right = "".join(c for c in y_name if c not in x_name)
    if not inner:  # an outer product: broadcasting says it without a product of ones
        x = reshape(transpose(x, [x_name.index(c) for c in batch + left]), [size[c] for c in batch + left] + [1] * len(right))
        y = reshape(
            transpose(y, [y_name.index(c) for c in batch + right]), [size[c] for c in batch] + [1] * len(left) + [size[c] for c in right]
        )
        return batch + left + right, multiply(x, y)

    def matrix(t: Tensor, name: str, rows: str, columns: str) -> Tensor:
        flat = [size[c] for c in batch]
        for group in (rows, columns):
            n = 1
            for c in group:
                n *= size[c]
            flat.append(n)
        return reshape(transpose(t, [name.index(c) for c in batch + rows + columns]), flat)

    out = matmul(matrix(x, x_name, left, inner), matrix(y, y_name, inner, right))
    return batch + left + right, reshape(out, [size[c] for c in batch + left + right])
