"""Every function of NumPy's that an op serves, called as NumPy's users call it; keywords and defaults that differ from the op's as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

X = np.array([[0.5, 1.25, 2.0], [0.75, 3.0, 1.5]])
Y = np.array([[1.0, 0.25, 0.6], [2.5, 0.9, 1.1]])
MASK = X > 1
INDEX = np.array([[2, 0], [1, 1]])


def square_part(x: Any) -> Any:
    """A symmetric, positive definite matrix that depends on x."""
    return x[:, :2] + np.transpose(x[:, :2]) + 3 * np.eye(2, dtype=x.dtype)


CALLS: dict[str, list[Callable[[Any, Any], Any]]] = {
    "abs": [lambda x, y: np.abs(-x), lambda x, y: np.absolute(x)],
    "add": [np.add, lambda x, y: np.add(x, 2), lambda x, y: np.add(x, y, where=True, dtype=None, casting="same_kind", order="K")],
    "amax": [lambda x, y: np.amax(x), lambda x, y: np.amax(x, 0)],
    "broadcast_to": [lambda x, y: np.broadcast_to(x, (2, 2, 3)), lambda x, y: np.broadcast_to(array=x, shape=(2, 3), subok=False)],
    "concatenate": [
        lambda x, y: np.concatenate([x, y]),
        lambda x, y: np.concatenate((x, y, x), axis=1),
        lambda x, y: np.concatenate([x, y[0]], axis=None),
        lambda x, y: np.concatenate([x, Y.astype(x.dtype)], -1),
    ],
    "divide": [np.divide, np.true_divide, lambda x, y: np.divide(1.0, y)],
    "einsum": [
        lambda x, y: np.einsum("ij,ij->i", x, y),
        lambda x, y: np.einsum("ij,kj", x, y),
        lambda x, y: np.einsum("ba", x),
        lambda x, y: np.einsum("ij, ij", x, y, optimize=True),
    ],
    "exp": [lambda x, y: np.exp(x)],
    "fabs": [lambda x, y: np.fabs(x - 1.1)],
    "log": [lambda x, y: np.log(x)],
    "log1p": [lambda x, y: np.log1p(x)],
    "matmul": [lambda x, y: np.matmul(x, np.transpose(y)), lambda x, y: X.astype(y.dtype) @ y[0]],
    "max": [
        lambda x, y: np.max(x),
        lambda x, y: np.max(x, axis=1),
        lambda x, y: np.max(x, 0, None, True),
        lambda x, y: np.max(x, axis=(0, 1), keepdims=True, out=None),
    ],
    "maximum": [np.maximum, lambda x, y: np.maximum(x, 1)],
    "mean": [
        lambda x, y: np.mean(x),
        lambda x, y: np.mean(a=x, axis=np.int64(1), dtype=None),
        lambda x, y: np.mean(x, -1, keepdims=True),
        lambda x, y: np.mean(x, axis=()),
    ],
    "minimum": [np.minimum],
    "multiply": [np.multiply, lambda x, y: np.multiply(2, y)],
    "negative": [lambda x, y: np.negative(x)],
    "positive": [lambda x, y: np.positive(x)],
    "power": [
        np.power,
        lambda x, y: np.power(-x, 3),
        lambda x, y: np.power(-x, np.array(2, x.dtype)),
        lambda x, y: np.power(-x, np.array([3, 2, 0], x.dtype)),
        lambda x, y: np.power(2.0, y),
    ],
    "reciprocal": [lambda x, y: np.reciprocal(x)],
    "reshape": [
        lambda x, y: np.reshape(x, 6),
        lambda x, y: np.reshape(x, (3, -1)),
        lambda x, y: np.reshape(x, (3, 2), order="C"),
        lambda x, y: np.reshape(x, [6, 1], "C"),
    ],
    "sqrt": [lambda x, y: np.sqrt(x)],
    "square": [lambda x, y: np.square(x)],
    "stack": [lambda x, y: np.stack([x, y]), lambda x, y: np.stack((x, Y.astype(x.dtype)), axis=-1)],
    "subtract": [np.subtract],
    "sum": [
        lambda x, y: np.sum(x),
        lambda x, y: np.sum(x, 1),
        lambda x, y: np.sum(x, axis=(0, 1), keepdims=True),
        lambda x, y: np.sum(x, axis=np.int64(-1), dtype=None, out=None),
    ],
    "take": [
        lambda x, y: np.take(x, [0, 5, 0]),
        lambda x, y: np.take(x, INDEX, axis=1),
        lambda x, y: np.take(x, 1, 0),
        lambda x, y: np.take(x, np.array(4), mode="raise"),
        lambda x, y: np.take(x, [-1], axis=None),
    ],
    "tanh": [lambda x, y: np.tanh(x)],
    "transpose": [lambda x, y: np.transpose(x), lambda x, y: np.transpose(x, (1, 0)), lambda x, y: np.transpose(x, axes=None)],
    "where": [
        lambda x, y: np.where(MASK, x, y),
        lambda x, y: np.where(x > 1, x, 0),
        lambda x, y: np.where(MASK[0], 2.0, y),
    ],
}  # fmt: skip
for _name in (
    "sin", "cos", "tan", "arctan", "sinh", "cosh", "arcsinh", "sinc", "deg2rad", "radians", "rad2deg", "degrees", "expm1", "exp2", "log2",
    "log10", "cbrt", "real", "conjugate", "real_if_close", "ravel", "flipud", "fliplr", "cumprod", "prod", "median",
):  # fmt: skip
    CALLS[_name] = [lambda x, y, n=_name: getattr(np, n)(x)]
for _name in ("hypot", "arctan2", "logaddexp", "logaddexp2", "fmax", "fmin", "inner", "outer", "vdot", "kron", "cross"):
    CALLS[_name] = [lambda x, y, n=_name: getattr(np, n)(x, y)]
CALLS |= {
    "append": [lambda x, y: np.append(x, y), lambda x, y: np.append(x, y, axis=0)],
    "arccos": [lambda x, y: np.arccos(x / 4)],
    "arccosh": [lambda x, y: np.arccosh(x + 1)],
    "arcsin": [lambda x, y: np.arcsin(x / 4)],
    "arctanh": [lambda x, y: np.arctanh(x / 4)],
    "array_split": [lambda x, y: np.array_split(x, 2, axis=1)[0], lambda x, y: np.array_split(x, [1], 1)[1]],
    "atleast_1d": [lambda x, y: np.atleast_1d(x[0, 0])],
    "atleast_2d": [lambda x, y: np.atleast_2d(x[0]), lambda x, y: np.atleast_2d(x[0], y)[1]],
    "atleast_3d": [lambda x, y: np.atleast_3d(x)],
    "clip": [
        lambda x, y: np.clip(x, 0.8, 1.9),
        lambda x, y: np.clip(x, a_min=None, a_max=y),
        lambda x, y: np.clip(x, np.array(0.8, x.dtype), None),
    ],
    "column_stack": [lambda x, y: np.column_stack([x[0], y.T[:, 0]]), lambda x, y: np.column_stack((x, y))],
    "cross": [lambda x, y: np.cross(x, y), lambda x, y: np.cross(x.T, y.T, axis=0)],
    "cumprod": [lambda x, y: np.cumprod(x), lambda x, y: np.cumprod(x, axis=1)],
    "cumsum": [lambda x, y: np.cumsum(x), lambda x, y: np.cumsum(x, 1), lambda x, y: np.cumsum(x, axis=0, dtype=None)],
    "diag": [lambda x, y: np.diag(x), lambda x, y: np.diag(x[0], k=-1)],
    "diagonal": [lambda x, y: np.diagonal(x), lambda x, y: np.diagonal(x, 1, axis1=0, axis2=1)],
    "diff": [lambda x, y: np.diff(x), lambda x, y: np.diff(x, n=1, axis=0)],
    "dot": [lambda x, y: np.dot(x, y.T), lambda x, y: np.dot(x[0], y[0]), lambda x, y: np.dot(np.array(2.0, y.dtype), y)],
    "dsplit": [lambda x, y: np.dsplit(np.reshape(x, (1, 2, 3)), 3)[1]],
    "dstack": [lambda x, y: np.dstack([x, y])],
    "expand_dims": [lambda x, y: np.expand_dims(x, 0), lambda x, y: np.expand_dims(x, axis=(0, -1))],
    "flip": [lambda x, y: np.flip(x), lambda x, y: np.flip(x, axis=1)],
    "fmod": [lambda x, y: np.fmod(-x, 0.7)],
    "hsplit": [lambda x, y: np.hsplit(x, 3)[1]],
    "hstack": [lambda x, y: np.hstack([x, y]), lambda x, y: np.hstack((x[0], y[1]))],
    "linspace": [lambda x, y: np.linspace(x, y, 4), lambda x, y: np.linspace(0.5, y, num=3)],
    "min": [lambda x, y: np.min(x), lambda x, y: np.min(x, axis=1, keepdims=True)],
    "amin": [lambda x, y: np.amin(x, 0)],
    "mod": [lambda x, y: np.mod(x, 0.7)],
    "moveaxis": [lambda x, y: np.moveaxis(x, 0, 1), lambda x, y: np.moveaxis(x, source=[0], destination=[-1])],
    "nan_to_num": [lambda x, y: np.nan_to_num(x), lambda x, y: np.nan_to_num(x, nan=1.0)],
    "pad": [lambda x, y: np.pad(x, 1), lambda x, y: np.pad(x, (1, 0), "edge"), lambda x, y: np.pad(x, 1, constant_values=2)],
    "partition": [lambda x, y: np.partition(x[:, :2], 1)],
    "prod": [lambda x, y: np.prod(x), lambda x, y: np.prod(x, axis=1)],
    "remainder": [lambda x, y: np.remainder(x, 0.7), lambda x, y: x % 0.7],
    "repeat": [lambda x, y: np.repeat(x, 2), lambda x, y: np.repeat(x, [1, 2], axis=0)],
    "roll": [lambda x, y: np.roll(x, 1), lambda x, y: np.roll(x, shift=-1, axis=1)],
    "rollaxis": [lambda x, y: np.rollaxis(x, 1)],
    "rot90": [lambda x, y: np.rot90(x), lambda x, y: np.rot90(x, k=2)],
    "sort": [lambda x, y: np.sort(x), lambda x, y: np.sort(x, axis=None)],
    "split": [lambda x, y: np.split(x, 3, axis=1)[2], lambda x, y: np.split(x, [1])[0]],
    "squeeze": [lambda x, y: np.squeeze(x[:1]), lambda x, y: np.squeeze(x[:1], axis=0)],
    "std": [lambda x, y: np.std(x), lambda x, y: np.std(x, axis=1, ddof=1)],
    "swapaxes": [lambda x, y: np.swapaxes(x, 0, 1)],
    "take_along_axis": [lambda x, y: np.take_along_axis(x, INDEX, axis=1), lambda x, y: np.take_along_axis(x, np.argsort(x), 1)],
    "tensordot": [lambda x, y: np.tensordot(x, y), lambda x, y: np.tensordot(x, y, axes=([1], [1]))],
    "tile": [lambda x, y: np.tile(x, 2), lambda x, y: np.tile(x, (2, 1))],
    "trace": [lambda x, y: np.trace(x), lambda x, y: np.trace(x, offset=1)],
    "tril": [lambda x, y: np.tril(x), lambda x, y: np.tril(x, k=1)],
    "triu": [lambda x, y: np.triu(x, 1)],
    "var": [lambda x, y: np.var(x), lambda x, y: np.var(x, axis=0, keepdims=True), lambda x, y: np.var(x, ddof=1)],
    "vsplit": [lambda x, y: np.vsplit(x, 2)[1]],
    "vstack": [lambda x, y: np.vstack([x[0], y])],
    "linalg.cholesky": [lambda x, y: np.linalg.cholesky(square_part(x))],
    "linalg.det": [lambda x, y: np.linalg.det(x[:, :2])],
    "linalg.eigh": [lambda x, y: np.linalg.eigh(square_part(x))[1] ** 2, lambda x, y: np.linalg.eigh(square_part(x), UPLO="L")[0]],
    "linalg.eigvalsh": [lambda x, y: np.linalg.eigvalsh(square_part(x))],
    "linalg.inv": [lambda x, y: np.linalg.inv(square_part(x) * y[:, :2])],
    "linalg.norm": [
        lambda x, y: np.linalg.norm(x),
        lambda x, y: np.linalg.norm(x, ord=np.inf, axis=1),
        lambda x, y: np.linalg.norm(x, 1, (0, 1), keepdims=True),
    ],
    "linalg.pinv": [lambda x, y: np.linalg.pinv(x)],
    "linalg.qr": [lambda x, y: np.linalg.qr(x)[0], lambda x, y: np.linalg.qr(x[:, :2], mode="reduced")[1]],
    "linalg.slogdet": [lambda x, y: np.linalg.slogdet(x[:, 1:])[1]],
    "linalg.solve": [lambda x, y: np.linalg.solve(x[:, :2], y), lambda x, y: np.linalg.solve(x[:, :2], y[:, 0])],
    "linalg.svd": [
        lambda x, y: np.linalg.svd(x, compute_uv=False),
        lambda x, y: np.linalg.svd(x, full_matrices=False)[0] ** 2,
        lambda x, y: np.linalg.svd(x[:, :2])[2] ** 2,
    ],
}
if hasattr(np.linalg, "svdvals"):  # since NumPy 2
    CALLS["linalg.svdvals"] = [lambda x, y: np.linalg.svdvals(x)]
if hasattr(np, "astype"):
    CALLS["astype"] = [lambda x, y: np.astype(x, x.dtype)]


def numpys(name: str) -> Any:
    """The function of NumPy's, such as "exp" or "linalg.norm"."""
    head, _, tail = name.partition(".")
    return getattr(getattr(np, head), tail) if tail else getattr(np, head)
