"""Layers as functions of their weights: normalisations, embedding, attention, cells of recurrent networks. Channels come last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..errors import ArgumentError, ShapeError
from ..tape import Tensor, to_tensors
from .arguments import array_of, integer, number
from .arrays import concatenate, getitem, reshape, swap_last, take
from .elementwise import add, divide, multiply, scale, sigmoid, sqrt, subtract, tanh, where
from .linalg import matmul
from .reductions import mean, reduced_axes, softmax

__all__ = ["embedding", "group_norm", "gru_cell", "instance_norm", "layer_norm", "lstm_cell", "scaled_dot_product_attention"]


def _normalised(name: str, x: Tensor, axes: Sequence[int], eps: Any) -> Tensor:
    """(x - mean) / sqrt(var + eps) over axes."""
    eps = number(name, "eps", eps, "> 0", "the variance may be 0", 0, excluded=True)
    if not math.prod(x.shape[a] for a in axes):
        raise ShapeError(f"{name}: x has shape {x.shape}, expected at least one element to normalise because 0/0 has no value")
    d = subtract(x, mean(x, axis=axes, keepdims=True))
    return divide(d, sqrt(add(mean(multiply(d, d), axis=axes, keepdims=True), eps)))


def _affine(y: Tensor, gamma: Any, beta: Any) -> Tensor:
    y = y if gamma is None else multiply(y, gamma)
    return y if beta is None else add(y, beta)


def layer_norm(x: Any, gamma: Any = None, beta: Any = None, *, axis: int | Sequence[int] = -1, eps: float = 1e-5) -> Tensor:
    """Normalisation of each example over axes: gamma (x - mean) / sqrt(var + eps) + beta.

    Args:
        x: array or Tensor.
        gamma, beta: arrays or Tensors that broadcast with x, such as (C,); None for 1 and 0.
        axis: the axes of the features, one or several.
        eps: added to the variance, > 0.
    Returns: Tensor like x.
    Raises: ShapeError, DTypeError; ArgumentError for an axis that does not exist or an eps that is not above 0.
    Source: Ba et al. 2016, arXiv:1607.06450.
    Example:
        >>> hg.layer_norm(np.array([1.0, 2.0, 3.0])).value.round(2)
        array([-1.22,  0.  ,  1.22])
    """
    (x,) = to_tensors("layer_norm", [x])
    axes = reduced_axes("layer_norm", axis, x.ndim)
    return _affine(_normalised("layer_norm", x, axes, eps), gamma, beta)


def _image(name: str, x: Any) -> Tensor:
    (t,) = to_tensors(name, [x])
    if t.ndim < 3:
        raise ShapeError(f"{name}: x has shape {t.shape}, expected (..., H, W, C) because pixels are normalised; reshape it")
    return t


def instance_norm(x: Any, gamma: Any = None, beta: Any = None, *, eps: float = 1e-5) -> Tensor:
    """Normalisation of each image and channel over its pixels.

    Args:
        x: (..., H, W, C).
        gamma, beta: arrays or Tensors that broadcast with x, such as (C,); None for 1 and 0.
        eps: added to the variance, > 0.
    Returns: Tensor like x.
    Raises: ShapeError, DTypeError; ArgumentError for an eps that is not above 0.
    Source: Ulyanov et al. 2016, arXiv:1607.08022.
    Example:
        >>> hg.instance_norm(np.arange(4.0).reshape(1, 2, 2, 1)).value.ravel().round(2)
        array([-1.34, -0.45,  0.45,  1.34])
    """
    x = _image("instance_norm", x)
    return _affine(_normalised("instance_norm", x, (x.ndim - 3, x.ndim - 2), eps), gamma, beta)


def group_norm(x: Any, groups: int, gamma: Any = None, beta: Any = None, *, eps: float = 1e-5) -> Tensor:
    """Normalisation of each image over its pixels and each group of neighbouring channels.

    Args:
        x: (..., H, W, C).
        groups: number of groups, a divisor of C.
        gamma, beta: arrays or Tensors that broadcast with x, such as (C,); None for 1 and 0.
        eps: added to the variance, > 0.
    Returns: Tensor like x.
    Raises: ShapeError, DTypeError; ArgumentError for groups that do not divide C or an eps that is not above 0.
    Source: Wu & He 2018, arXiv:1803.08494.
    Example:
        >>> hg.group_norm(np.arange(8.0).reshape(1, 2, 2, 2), groups=2).value[0, :, 0].round(2)
        array([[-1.34, -1.34],
               [ 0.45,  0.45]])
    """
    x = _image("group_norm", x)
    count, channels = integer("group_norm", "groups", groups, "it counts groups"), x.shape[-1]
    if count < 1 or channels % count:
        raise ArgumentError(f"group_norm: groups has {count}, expected a divisor of {channels} because x has so many channels; pass one")
    wide = reshape(x, (*x.shape[:-1], count, channels // count))
    y = _normalised("group_norm", wide, (wide.ndim - 4, wide.ndim - 3, wide.ndim - 1), eps)
    return _affine(reshape(y, x.shape), gamma, beta)


def embedding(table: Any, indices: Any) -> Tensor:
    """Rows of a table by their numbers.

    Args:
        table: (V, D), array or Tensor.
        indices: integers, (...), 0 <= index < V.
    Returns: Tensor, (..., D).
    Raises: ShapeError for a table of other axes; ArgumentError out of range; DTypeError for indices that are no integers. A CuPy array's
        entries are not read by the host and wrap around.
    Example:
        >>> hg.embedding(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([1, 0, 1]))
        Tensor(array([[3., 4.],
               [1., 2.],
               [3., 4.]]))
    """
    (table,) = to_tensors("embedding", [table])
    if table.ndim != 2:
        raise ShapeError(f"embedding: table has shape {table.shape}, expected (V, D) because its rows are taken; reshape it")
    return take(table, array_of("embedding", "indices", indices, "iu", "integers", "they number rows"))


def scaled_dot_product_attention(q: Any, k: Any, v: Any, mask: Any = None) -> Tensor:
    """softmax(q k.T / sqrt(D)) v, over all keys that the mask admits.

    Args:
        q: queries, (..., L, D).
        k: keys, (..., S, D).
        v: values, (..., S, N); leading axes broadcast.
        mask: bools that broadcast with (..., L, S), True where the query sees the key; None for everywhere. A query that sees no key
            gets zeros.
    Returns: Tensor, (..., L, N).
    Raises: ShapeError if the shapes do not fit; DTypeError if mixed, or for a mask of floats.
    Cost: 2 L S (D + N) flop, and the L S weights are kept.
    Source: Vaswani et al. 2017, arXiv:1706.03762, equation 1.
    Example:
        >>> q, k, v = np.ones((5, 4)), np.ones((3, 4)), np.arange(6.0).reshape(3, 2)
        >>> hg.scaled_dot_product_attention(q, k, v)[0]
        Tensor(array([2., 3.]))
    """
    q, k, v = to_tensors("scaled_dot_product_attention", [q, k, v])
    if min(q.ndim, k.ndim, v.ndim) < 2 or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ShapeError(
            f"scaled_dot_product_attention: q, k, v have shapes {q.shape}, {k.shape}, {v.shape}, expected (..., L, D), (..., S, D) and "
            "(..., S, N); transpose or reshape them"
        )
    scores = scale(matmul(q, swap_last(k)), by=1 / math.sqrt(max(q.shape[-1], 1)))
    if mask is not None:
        admitted = array_of("scaled_dot_product_attention", "mask", mask, "biu", "bools", "it admits keys")
        scores = where(admitted, scores, -math.inf)
    return matmul(softmax(scores), v)


def _gates(name: str, x: Any, h: Any, w: Any, u: Any, count: int, units: int) -> list[Tensor]:
    """x, h, w, u as Tensors whose shapes fit, for so many gates of H = `units`."""
    x, h, w, u = to_tensors(name, [x, h, w, u])
    columns = count * units
    if not x.ndim or not h.ndim or w.shape[-2:] != (x.shape[-1], columns) or u.shape[-2:] != (h.shape[-1], columns):
        raise ShapeError(
            f"{name}: x, h, w, u have shapes {x.shape}, {h.shape}, {w.shape}, {u.shape}, expected (..., D), (..., R), (D, {columns}) and "
            f"(R, {columns}) because there are {count} gates of {units} units; transpose or reshape them"
        )
    return [x, h, w, u]


def _parts(z: Tensor, count: int) -> list[Tensor]:
    n = z.shape[-1] // count
    return [getitem(z, (..., slice(i * n, (i + 1) * n))) for i in range(count)]


def lstm_cell(x: Any, h: Any, c: Any, w: Any, u: Any = None, bias: Any = None) -> tuple[Tensor, Tensor]:
    """One step of a long short-term memory: with i, f, g, o the parts of x w + h u + bias,

    c' = sigmoid(f) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c').

    Args:
        x: inputs, (..., D).
        h: output so far, (..., H), or another recurrent input, (..., R).
        c: cell so far, (..., H).
        w, u: weights, (D, 4 H) and (R, 4 H), the gates in the order i, f, g, o; or u None and w both of them, (D + R, 4 H), which is one
            product in place of two.
        bias: (4 H,), or None.
    Returns: (h', c'), Tensors like c.
    Raises: ShapeError if the shapes do not fit; DTypeError if mixed.
    Source: Hochreiter & Schmidhuber 1997, Neural Computation 9; the gate f: Gers et al. 2000, Neural Computation 12.
    Example:
        >>> h = c = np.zeros((4, 2))
        >>> h, c = hg.lstm_cell(np.ones((4, 3)), h, c, np.ones((3, 8)), np.ones((2, 8)))
        >>> h.shape, c.shape
        ((4, 2), (4, 2))
    """
    (c,) = to_tensors("lstm_cell", [c])
    n = c.shape[-1] if c.ndim else 0
    if u is None:
        x, h, w = to_tensors("lstm_cell", [x, h, w])
        if not x.ndim or not h.ndim or w.shape[-2:] != (x.shape[-1] + h.shape[-1], 4 * n):
            raise ShapeError(
                f"lstm_cell: x, h, w have shapes {x.shape}, {h.shape}, {w.shape}, expected (..., D), (..., R) and (D + R, {4 * n}) because "
                f"c has shape {c.shape}; transpose or reshape them"
            )
        z = matmul(concatenate([x, h], -1), w)
    else:
        x, h, w, u = _gates("lstm_cell", x, h, w, u, 4, n)
        z = add(matmul(x, w), matmul(h, u))
    z = z if bias is None else add(z, bias)
    both, g, o = (getitem(z, (..., slice(a * n, b * n))) for a, b in ((0, 2), (2, 3), (3, 4)))
    both = sigmoid(both)
    cell = add(multiply(getitem(both, (..., slice(n, None))), c), multiply(getitem(both, (..., slice(n))), tanh(g)))
    return multiply(sigmoid(o), tanh(cell)), cell


def gru_cell(x: Any, h: Any, w: Any, u: Any, bias: Any = None, recurrent_bias: Any = None) -> Tensor:
    """One step of a gated recurrent unit: with r, z, n the parts of x w + bias, and r_h, z_h, n_h those of h u + recurrent_bias,

    h' = (1 - s) tanh(n + sigmoid(r + r_h) n_h) + s h, s = sigmoid(z + z_h).

    Args:
        x: inputs, (..., D).
        h: output so far, (..., H).
        w, u: weights, (D, 3 H) and (H, 3 H), the gates in the order r, z, n.
        bias, recurrent_bias: (3 H,), or None.
    Returns: h', a Tensor like h.
    Raises: ShapeError if the shapes do not fit; DTypeError if mixed.
    Source: Cho et al. 2014, arXiv:1406.1078, with the reset gate after the product, as in cuDNN and PyTorch.
    Example:
        >>> h = hg.gru_cell(np.ones((4, 3)), np.zeros((4, 2)), np.ones((3, 6)), np.ones((2, 6)))
        >>> h.shape
        (4, 2)
    """
    (h,) = to_tensors("gru_cell", [h])
    x, h, w, u = _gates("gru_cell", x, h, w, u, 3, h.shape[-1] if h.ndim else 0)
    of_x, of_h = matmul(x, w), matmul(h, u)
    r, z, n = _parts(of_x if bias is None else add(of_x, bias), 3)
    r_h, z_h, n_h = _parts(of_h if recurrent_bias is None else add(of_h, recurrent_bias), 3)
    s = sigmoid(add(z, z_h))
    new = tanh(add(n, multiply(sigmoid(add(r, r_h)), n_h)))
    return add(multiply(subtract(1.0, s), new), multiply(s, h))
