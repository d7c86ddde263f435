"""NumPy's functions on Tensors, such as np.exp(t), np.mean(t, axis=0) and array @ t, so that code written for NumPy differentiates.

NumPy asks an argument's `__array_ufunc__` or `__array_function__` before it computes (NEP 13, NEP 18). Both look here:

* an op serves the NumPy function of its name (`serve`, called with all ops); a few aliases and adapters stand below;
* functions whose result no derivative flows through, such as comparisons and argmax, give plain arrays;
* an argument that the op does not have must have NumPy's default, or it is refused: nothing is ignored;
* everything else is refused by an error that names what to write instead.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ..errors import ArgumentError, DTypeError
from ..tape import Tensor
from . import arrays, bounds, decompositions, elementwise, linalg, products, shapes
from .conversions import WITHOUT_OP

Function = Callable[..., Any]

# --- what differs from the op of that name --------------------------------------------------------------------


def _where(condition: Any, x: Any = None, y: Any = None) -> Any:
    """np.where: with one argument, the places where it is not zero."""
    return np.nonzero(plain(condition)) if x is None and y is None else elementwise.where(condition, x, y)


def _take(a: Any, indices: Any, axis: int | None = None) -> Tensor:
    """np.take: without an axis, of all elements in C order."""
    return arrays.take(arrays.reshape(a, -1), indices) if axis is None else arrays.take(a, indices, axis)


def _concatenate(tensors: Sequence[Any], axis: int | None = 0) -> Tensor:
    """np.concatenate: without an axis, of all elements in C order."""
    return arrays.concatenate([arrays.reshape(x, -1) for x in tensors]) if axis is None else arrays.concatenate(tensors, axis)


def _einsum(*operands: Any, optimize: Any = False) -> Tensor:
    """np.einsum; `optimize` changes no value."""
    subscripts, *rest = operands
    if not isinstance(subscripts, str):
        raise ArgumentError(
            "einsum: the first argument is no string, expected subscripts such as 'ij,jk->ik' because the op takes no "
            "lists of axes; write a string"
        )
    return linalg.einsum(subscripts, *rest)


def _clip(a: Any, a_min: Any = None, a_max: Any = None, *, min: Any = None, max: Any = None) -> Tensor:
    """np.clip, with both names of the bounds."""
    return bounds.clip(a, a_min if min is None else min, a_max if max is None else max)


def _cross(a: Any, b: Any, axis: int | None = None) -> Tensor:
    """np.cross along one axis."""
    return products.cross(a, b, -1 if axis is None else axis)


def _svd(a: Any, full_matrices: bool = True, compute_uv: bool = True) -> Any:
    """np.linalg.svd, with or without the vectors."""
    return decompositions.svd(a, full_matrices) if compute_uv else decompositions.svdvals(a)


def _each(op: Function) -> Function:
    """An op of one array as a function of several, whose result is then a tuple."""
    return lambda *arrays: op(*arrays) if len(arrays) == 1 else tuple(map(op, arrays))


ADAPTED: dict[str, Function] = {
    "atleast_1d": _each(shapes.atleast_1d),
    "atleast_2d": _each(shapes.atleast_2d),
    "atleast_3d": _each(shapes.atleast_3d),
    "clip": _clip,
    "concatenate": _concatenate,
    "conjugate": lambda x: x,
    "cross": _cross,
    "einsum": _einsum,
    "fabs": elementwise.abs,
    "linalg.svd": _svd,
    "positive": lambda x: x,
    "real": lambda val: val,
    "real_if_close": lambda a: a,
    "take": _take,
    "where": _where,
}
# Those of np.linalg that are the ops of their names; its trace, for instance, is not.
LINALG = ("cholesky", "det", "eigh", "eigvalsh", "inv", "norm", "pinv", "qr", "slogdet", "solve", "svdvals")

# Their results do not change with small changes of the arguments, or are not numbers.
PLAIN = (
    "all",
    "allclose",
    "any",
    "argmax",
    "argmin",
    "argpartition",
    "argsort",
    "argwhere",
    "around",
    "array2string",
    "array_equal",
    "array_equiv",
    "array_repr",
    "array_str",
    "ceil",
    "count_nonzero",
    "digitize",
    "empty_like",
    "fix",
    "flatnonzero",
    "floor",
    "full_like",
    "iscomplexobj",
    "isclose",
    "isin",
    "isneginf",
    "isposinf",
    "isrealobj",
    "lexsort",
    "may_share_memory",
    "nanargmax",
    "nanargmin",
    "ndim",
    "nonzero",
    "ones_like",
    "result_type",
    "rint",
    "round",
    "searchsorted",
    "shape",
    "shares_memory",
    "sign",
    "size",
    "trunc",
    "zeros_like",
)

_FINITE = "hg.where(np.isnan(x.value), 0.0, x), and the function without nan"
RELATIVES = {
    **{name: instead for name, (_, _, instead) in WITHOUT_OP.items()},
    **dict.fromkeys(("unstack", "delete"), "x[start:stop]"),
    **dict.fromkeys(("block", "insert"), "hg.concatenate or hg.stack"),
    **dict.fromkeys(
        ("vecdot", "matvec", "vecmat", "linalg.vecdot", "linalg.multi_dot", "linalg.matrix_power"), "hg.matmul, or hg.sum(x * y)"
    ),
    **dict.fromkeys(("copyto", "put", "place", "putmask", "put_along_axis", "fill_diagonal"), "hg.where, or hg.set_at"),
    **dict.fromkeys(("select", "choose", "piecewise", "heaviside"), "hg.where"),
    **dict.fromkeys(("nansum", "nanprod", "nancumsum", "nancumprod"), _FINITE),
    **dict.fromkeys(("nanmean", "nanmedian", "nanstd", "nanvar", "nanmax", "nanmin"), "x[~np.isnan(x.value)], and no nan in the name"),
    **dict.fromkeys(("percentile", "quantile", "nanpercentile", "nanquantile"), "hg.sort(x)[i]"),
    **dict.fromkeys(("copy", "array", "asarray"), "x itself, which is never written"),
    **dict.fromkeys(("save", "savez", "savez_compressed", "savetxt"), "x.value"),
    **dict.fromkeys(("imag", "angle"), "zeros, for a Tensor is real"),
    **dict.fromkeys(("linalg.eig", "linalg.eigvals"), "hg.eigh, for symmetric matrices"),
    **dict.fromkeys(("linalg.vector_norm", "linalg.matrix_norm"), "hg.norm(x, ord, axis)"),
    **dict.fromkeys(("linalg.cond", "linalg.matrix_rank"), "hg.svdvals"),
    "add.reduce": "hg.sum(x, axis)",
    "maximum.reduce": "hg.max(x, axis)",
    "multiply.outer": "x[:, None] * y[None, :]",
    "average": "hg.sum(weights * x) / hg.sum(weights)",
    "cov": "d = x - hg.mean(x, axis=1, keepdims=True), then d @ d.T / (n - 1)",
    "gradient": "hg.diff(x)",
    "interp": "hg.take, and a mean weighted by the distances",
    "linalg.lstsq": "hg.lstsq(x, y), which gives the solution alone",
    "linalg.diagonal": "hg.diagonal(x, offset, -2, -1)",
    "linalg.trace": "hg.trace(x, offset, -2, -1)",
    "matrix_transpose": "hg.swapaxes(x, -2, -1)",
    "linalg.matrix_transpose": "hg.swapaxes(x, -2, -1)",
    "polyval": "Horner's scheme, y = y * x + c",
    "ptp": "hg.max(x, axis) - hg.min(x, axis)",
}
_SYMBOLS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/", "power": "**", "matmul": "@"}
_DEFAULTS = {"where": True, "casting": "same_kind", "order": "K", "dtype": None, "subok": True, "keepdims": False}  # of a ufunc

_served: dict[Function, Function] = {}  # NumPy's function: the op
_names: tuple[str, ...] = ()  # of all ops
_plain = {getattr(np, name) for name in PLAIN}


def serve(ops: Mapping[str, Function]) -> None:
    """Enters every op that has the name of a NumPy function, and the adapters.

    Args:
        ops: the public ops by name.
    """
    global _names
    _names = tuple(ops)
    named = {**ops, **{f"linalg.{name}": ops[name] for name in LINALG}, **ADAPTED}
    for name, op in named.items():
        head, _, tail = name.partition(".")
        func = getattr(getattr(np, head), tail, None) if tail else getattr(np, name, None)
        if isinstance(func, (np.ufunc, type(np.sum))) and func not in _plain:  # the others do not ask their arguments
            _served[func] = op


def plain(x: Any) -> Any:
    """x with the value in the place of every Tensor, in lists and tuples as well."""
    if isinstance(x, Tensor):
        return x.value
    return type(x)(map(plain, x)) if type(x) in (list, tuple) else x


# --- the two protocols ------------------------------------------------------------------------------------------


def _array_ufunc(self: Tensor, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
    """What NumPy calls for a ufunc with a Tensor among its arguments; `array * tensor` comes here."""
    op = _served.get(ufunc)
    if op is not None and not kwargs and method == "__call__":
        return op(*inputs)
    return _other_ufunc(ufunc, method, inputs, kwargs)


def _other_ufunc(ufunc: Any, method: str, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A ufunc with keywords, one without an op, or one of its methods."""
    name = ufunc.__name__
    if method != "__call__":
        raise _no_op(f"{name}.{method}")
    if ufunc in _plain or not {"d->?", "dd->?"}.isdisjoint(ufunc.types):
        _refuse_output(name, kwargs)
        return ufunc(*map(plain, inputs), **kwargs)
    if ufunc not in _served:
        raise _no_op(name)
    for key, value in sorted(kwargs.items(), key=lambda item: item[0] != "out"):  # `c @= t` sets axes, too
        if not _is(value, _DEFAULTS.get(key)):
            raise _no_argument(name, key, value)
    return _served[ufunc](*inputs)


def _array_function(self: Tensor, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    """What NumPy calls for its other functions with a Tensor among their arguments."""
    name = f"{func.__module__}.{func.__name__}".removeprefix("numpy.")
    if func in _plain:
        _refuse_output(name, {**dict(zip(_positions(func), args, strict=False)), **kwargs})
        if name.endswith("_like"):  # takes shape and dtype of the first argument, and the numbers of the others
            return func(*map(plain, args[:1]), *args[1:], **{k: plain(v) if k in ("a", "prototype") else v for k, v in kwargs.items()})
        return func(*map(plain, args), **{k: plain(v) for k, v in kwargs.items()})
    if func not in _served:
        raise _no_op(name)
    return _call(name, func, _served[func], args, kwargs)


class _Reading(NamedTuple):
    """How the arguments of a NumPy function are those of an op."""

    positions: tuple[str, ...]  # NumPy's names of positional arguments
    names: dict[str, str]  # NumPy's name: the op's, for the arguments that both have
    defaults: dict[str, Any]  # NumPy's, of the arguments that the op does not have
    variadic: bool  # whether any number of positional arguments is taken


_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@cache
def _parameters(func: Function) -> Mapping[str, inspect.Parameter]:
    """The arguments of a NumPy function; none where it is one of C that states no signature, as several of NumPy 1."""
    try:
        return inspect.signature(func).parameters
    except ValueError:
        return {}


def _positions(func: Function) -> tuple[str, ...]:
    """Names of the positional arguments of a NumPy function."""
    return tuple(p.name for p in _parameters(func).values() if p.kind in _BY_PLACE)


@cache
def _reading(func: Function, op: Function) -> _Reading:
    """The arguments that the op requires are NumPy's first ones, the others go by name."""
    ours = inspect.signature(op).parameters
    theirs = _parameters(func) or ours
    positions = tuple(p.name for p in theirs.values() if p.kind in _BY_PLACE)
    required = [p.name for p in ours.values() if p.default is p.empty and p.kind in _BY_PLACE]
    further = any(p.kind is p.VAR_KEYWORD for p in theirs.values())
    names = {**{n: n for n in ours if n in theirs or further}, **dict(zip(positions, required, strict=False))}
    defaults = {n: p.default for n, p in theirs.items() if n not in names}
    return _Reading(positions, names, defaults, any(p.kind is p.VAR_POSITIONAL for p in theirs.values()))


def _call(name: str, func: Function, op: Function, args: Any, kwargs: Any) -> Any:
    """The op on NumPy's arguments; one that the op does not have is refused unless it has NumPy's default."""
    reading = _reading(func, op)
    given = kwargs if reading.variadic else {**dict(zip(reading.positions, args, strict=False)), **kwargs}
    if len(args) > len(reading.positions) and not reading.variadic:
        raise _no_argument(name, "out", args[len(reading.positions)])
    for key, value in given.items():
        if key not in reading.names and not _is(value, reading.defaults.get(key)):
            raise _no_argument(name, key, value)
    chosen = {reading.names[key]: value for key, value in given.items() if key in reading.names}
    return op(*args, **chosen) if reading.variadic else op(**chosen)


def _is(value: Any, default: Any) -> bool:
    """Whether an argument is NumPy's default."""
    return value is default or isinstance(value, (str, bool)) and type(default) is type(value) and value == default


# --- errors -------------------------------------------------------------------------------------------------------


def _refuse_output(name: str, given: Mapping[str, Any]) -> None:
    """Raises ArgumentError where `out` is a Tensor."""
    out = given.get("out")
    if any(isinstance(o, Tensor) for o in (out if isinstance(out, tuple) else (out,))):
        raise _no_argument(name, "out", out)


def _no_argument(name: str, argument: str, value: Any) -> ArgumentError:
    """The error for an argument that the op does not have."""
    if argument == "out":
        assignment = f"c = c {_SYMBOLS[name]} t" if name in _SYMBOLS else f"c = np.{name}(...)"
        return ArgumentError(
            f"{name}: out is an array to write into, expected none because an array holds no derivative; write {assignment}"
        )
    given = repr(value) if isinstance(value, (str, int, float, type)) else f"a {type(value).__name__}"
    return ArgumentError(
        f"{name}: {argument} has {given}, expected NumPy's default because the op has no such argument; leave it out"
        + (", and convert with astype before" if argument == "dtype" else "")
    )


def _no_op(name: str) -> DTypeError:
    """The error for a function that no op stands for: it names the nearest."""
    near = difflib.get_close_matches(name.rpartition(".")[2], _names, n=2)
    if name in RELATIVES:
        remedy = f"use {RELATIVES[name].format(name)}"
    else:
        remedy = f"the nearest is {' or '.join(f'hg.{n}' for n in near)}" if near else "build it from the ops in hypergrad.ops"
    return DTypeError(f"{name}: got a Tensor, expected arrays because hypergrad has no op for np.{name}; {remedy}")


for _name, _method in (("__array_ufunc__", _array_ufunc), ("__array_function__", _array_function)):
    setattr(Tensor, _name, _method)
