"""Arrays of `vmap`: one array for each example, computed together.

A `Batched` stands for the array of one example, and has its shape and dtype. All of them are held as a single array with the examples on
its first axis. Tapes, tangents and derivative rules run on it as on any array, and know nothing of examples:

* an op is computed on the whole array, in the way that its declaration states (`batching` in rules.py; `_OPS` below);
* a function of NumPy's, of which ops make masks and indices, by the table `_FUNCTIONS`;
* what states nothing is refused by name, and so is everything that needs the numbers of a single example, such as ``if``.

vmap nests: the array inside a Batched may be a Batched of the vmap around it.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from ..errors import ArgumentError, DTypeError

REMEDY = "because all examples are computed at once; pass loop=True to vmap, which calls the function once for each example"


class Batched(NDArrayOperatorsMixin):
    """One array for each example.

    Attributes:
        level: the call of vmap, with its `number`, which is larger inside of another call, and its `count` of examples.
        whole: all of the arrays, with the examples on the first axis.
        base: the backend of `whole`.
    """

    __slots__ = ("level", "whole")
    base: Any  # a property, which __init__.py adds because it knows all backends
    __array_priority__ = 1000.0  # CuPy's operators then leave the work to the ones here
    flags = SimpleNamespace(owndata=False, writeable=False, c_contiguous=False)  # so that a caller gets a copy

    def __init__(self, level: Any, whole: Any) -> None:
        self.level, self.whole = level, whole

    shape = property(lambda self: tuple(self.whole.shape[1:]))
    dtype = property(lambda self: self.whole.dtype)
    ndim = property(lambda self: self.whole.ndim - 1)
    size = property(lambda self: self.whole.size // self.level.count)
    nbytes = property(lambda self: self.whole.nbytes)
    T = property(lambda self: self.transpose())

    def __len__(self) -> int:
        return int(self.shape[0])

    def __repr__(self) -> str:
        return f"Batched({self.level.count} examples of shape {self.shape}, {self.dtype})"

    def like(self, whole: Any) -> Batched:
        """Another array for each of the same examples."""
        return Batched(self.level, whole)

    def astype(self, dtype: Any, **kwargs: Any) -> Batched:
        """As numpy.ndarray.astype."""
        return self.like(self.whole.astype(dtype, **kwargs))

    def copy(self) -> Batched:
        """As numpy.ndarray.copy."""
        return self.like(self.whole.copy())

    def __getitem__(self, index: Any) -> Batched:
        parts: tuple[Any, ...] = index if isinstance(index, tuple) else (index,)
        if any(type(p) is Batched for p in parts):
            raise refused("x[i] of bare arrays with another i for each example (hg.take has it)")
        return self.like(self.whole[(slice(None),) + parts])

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if any(hasattr(x, "node") for x in inputs):
            return NotImplemented  # a Tensor, which knows what to do
        if method != "__call__" or kwargs.get("out") is not None:
            raise refused(f"numpy.{ufunc.__name__}.{method}")
        return call(ufunc.__name__, *inputs, **kwargs)

    def __array_function__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if any(hasattr(t, "node") for t in types):
            return NotImplemented
        package = func.__module__.removeprefix("numpy").lstrip(".")
        return call(f"linalg.{func.__name__}" if package == "linalg" else func.__name__, *args, **kwargs)


def refused(name: str) -> ArgumentError:
    """The error for an op or a function that does not take an axis of examples."""
    return ArgumentError(f"{name}: used inside vmap, expected ops that take an axis of examples in front {REMEDY}")


def bare(x: Any) -> Any:
    """The array inside, with an axis in front for each vmap; x itself where it is no Batched."""
    while type(x) is Batched:
        x = x.whole
    return x


def levels(x: Any) -> Iterator[Any]:
    """The calls of vmap whose examples x has, the innermost first."""
    while type(x) is Batched:
        yield x.level
        x = x.whole


def is_batched(values: Iterable[Any]) -> bool:
    """Whether one of them is an array of vmap, or a Tensor or a sequence that holds one."""
    return any(is_batched(x) if type(x) in (tuple, list) else type(getattr(x, "value", x)) is Batched for x in values)


def _innermost(values: Iterable[Any]) -> Any:
    """A Batched of the innermost vmap among the values, looked for in sequences, too; None where there is no Batched."""
    found = None
    for x in values:
        x = _innermost(x) if type(x) in (tuple, list) else x
        if type(x) is Batched and (found is None or x.level.number > found.level.number):
            found = x
    return found


def _ndim(x: Any) -> int:
    return np.ndim(x) if type(x) in (tuple, list) else int(getattr(x, "ndim", 0))


def _backend(like: Batched, values: Iterable[Any]) -> Any:
    """The backend of what those of the values hold that have the examples of `like`, and of the others."""
    inner = _innermost([x.whole if type(x) is Batched and x.level is like.level else x for x in values])
    return like.base if inner is None else backend_over(inner.base)


def _front(x: Any, level: Any, ndim: int) -> Any:
    """The whole array with axes of length 1 behind the examples, so that x has `ndim` axes; x itself where it is one for all examples."""
    if type(x) is not Batched or x.level is not level:
        return x
    return x.whole if x.ndim >= ndim else x.whole.reshape((level.count,) + (1,) * (ndim - x.ndim) + x.shape)


def _full(x: Any, like: Batched) -> Any:
    """The whole array; where x is one for all examples, repeated for each without a copy."""
    if type(x) is Batched and x.level is like.level:
        return x.whole
    return _backend(like, [x]).xp.broadcast_to(x, (like.level.count, *x.shape))


# --- ops: what is computed on the whole arrays, (arguments, attributes) of the same op, by the word of its declaration ------------------

Whole = tuple[list[Any], dict[str, Any]]


def _broadcast(like: Batched, values: list[Any], attrs: dict[str, Any]) -> Whole:
    """Leading axes broadcast, those of an array among the attributes as well."""
    ndim = max(_ndim(x) for x in [*values, *(x for x in attrs.values() if hasattr(x, "nbytes"))])
    return [_front(x, like.level, ndim) for x in values], {k: _front(x, like.level, ndim) for k, x in attrs.items()}


def _lead(like: Batched, values: list[Any], attrs: dict[str, Any]) -> Whole:
    """The op leaves the first `lead` axes alone."""
    return [values[0].whole], {**attrs, "lead": attrs.get("lead", 0) + 1}


def _axis(like: Batched, values: list[Any], attrs: dict[str, Any]) -> Whole:
    """The op works along an axis of all of its arguments."""
    return [_full(x, like) for x in values], {**attrs, "axis": attrs["axis"] + 1}


_OPS = {"broadcast": _broadcast, "lead": _lead, "axis": _axis}


def _picked(like: Batched, x: Any, attrs: dict[str, Any], ndim: int) -> Whole:
    """An index for each example that the op broadcasts with the first `ndim` axes of x."""
    return [_full(x, like)], {**attrs, "index": _front(attrs["index"], like.level, ndim)}


def _indexed(like: Batched, index: tuple[Any, ...], lead: int, ndim: int) -> tuple[tuple[Any, ...], int, int]:
    """x[index] of every example as an index of the whole array, x having `ndim` axes behind `lead` ones that are left alone.

    Returns: the index, the number of axes that its arrays give together, and that of the axes in front of them in the result for one
        example. In the result for all examples the former come first, for NumPy moves them there.
    """
    arrays = [p for p in index if _ndim(p) or type(p) is Batched]
    if any(p.dtype == bool for p in arrays):
        raise refused("x[mask] with another mask for each example, whose results differ in length (hg.where keeps it),")
    taken = sum(p is not None and p is not Ellipsis for p in index)
    dots = next((i for i, p in enumerate(index) if p is Ellipsis), len(index))
    index = (*index[:dots], *(slice(None),) * (ndim - taken), *index[dots + 1 :])
    chosen = [i for i, p in enumerate(index) if p is not None and not isinstance(p, slice)]
    apart = chosen[-1] - chosen[0] + 1 != len(chosen)
    width = max(_ndim(p) for p in arrays)
    rows = like.base.xp.arange(like.level.count).reshape(-1, *(1,) * width)
    parts = [_front(p, like.level, width) for p in index]
    return (rows, *(slice(None),) * lead, *parts), width, lead + (0 if apart else chosen[0])


def _items(like: Batched, op: Any, x: Any, attrs: dict[str, Any]) -> Any:
    """getitem, or its transpose put, with another index for each example."""
    lead, backend = attrs.get("lead", 0), _backend(like, [x, *attrs["index"]])
    xp = backend.xp
    ndim = len(attrs["shape"]) if "shape" in attrs else x.ndim - lead
    index, width, before = _indexed(like, attrs["index"], lead, ndim)
    first, there = tuple(range(1, width + 1)), tuple(range(before + 1, before + width + 1))
    whole = _full(x, like)
    if "shape" not in attrs:
        (out,), _ = backend.applied(op, [whole], {"index": index})
        return xp.moveaxis(out, first, there)
    shape = (like.level.count, *x.shape[:lead], *attrs["shape"])
    (out,), _ = backend.applied(op, [xp.moveaxis(whole, there, first)], {"index": index, "shape": shape})
    return out


# --- functions of NumPy's on bare arrays -----------------------------------------------------------------------------------------------


def _shifted(axis: Any) -> Any:
    """An axis, or several, of the array of an example as those of the whole array."""
    return tuple(map(_shifted, axis)) if isinstance(axis, (tuple, list)) else axis + (axis >= 0)


def _elementwise(f: Any, like: Batched, *args: Any, **kwargs: Any) -> Any:
    ndim = max(map(_ndim, args))
    return f(*[_front(x, like.level, ndim) for x in args], **kwargs)


def _reduced(f: Any, like: Batched, x: Any, axis: Any = None, **kwargs: Any) -> Any:
    return f(x.whole, axis=tuple(range(1, x.ndim + 1)) if axis is None else _shifted(axis), **kwargs)


def _line(f: Any, like: Batched, x: Any, axis: Any = None, **kwargs: Any) -> Any:
    return f(x.whole.reshape(len(x.whole), -1), axis=1, **kwargs) if axis is None else f(x.whole, axis=_shifted(axis), **kwargs)


def _sorted(f: Any, like: Batched, x: Any, axis: Any = -1, **kwargs: Any) -> Any:
    return _line(f, like, x, axis, **kwargs)


def _reshape(f: Any, like: Batched, x: Any, *shape: Any) -> Any:
    return f(x.whole, (len(x.whole), *(shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape)))


def _transpose(f: Any, like: Batched, x: Any, *axes: Any) -> Any:
    order = axes[0] if len(axes) == 1 and isinstance(axes[0], (tuple, list)) else axes or range(x.ndim)[::-1]
    return f(x.whole, (0, *(a % x.ndim + 1 for a in order)))


def _moved(f: Any, like: Batched, x: Any, first: Any, second: Any) -> Any:
    return f(x.whole, _shifted(first), _shifted(second))


def _broadcast_to(f: Any, like: Batched, x: Any, shape: Any) -> Any:
    return f(_front(x, like.level, len(shape)), (like.level.count, *shape))


def _diagonal(f: Any, like: Batched, x: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Any:
    return f(x.whole, offset, _shifted(axis1), _shifted(axis2))


def _rows(f: Any, like: Batched, x: Any, **kwargs: Any) -> Any:
    return f(x.whole, **kwargs)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("where", "clip", "round", "nan_to_num", "isposinf", "isneginf"), _elementwise),
    **dict.fromkeys(("sum", "mean", "prod", "max", "min", "amax", "amin", "std", "var", "any", "all", "count_nonzero"), _reduced),
    **dict.fromkeys(("argmax", "argmin", "cumsum", "cumprod"), _line),
    **dict.fromkeys(("argsort", "sort"), _sorted),
    **dict.fromkeys(("moveaxis", "swapaxes"), _moved),
    "reshape": _reshape,
    "transpose": _transpose,
    "broadcast_to": _broadcast_to,
    "diagonal": _diagonal,
    "linalg.svd": _rows,
}
_STATIC: dict[str, Callable[..., Any]] = {  # one result for all examples
    "shape": lambda x: x.shape,
    "ndim": lambda x: x.ndim,
    "size": lambda x: x.size,
    "zeros_like": lambda x: x.base.xp.zeros(x.shape, x.dtype),
    "ones_like": lambda x: x.base.xp.ones(x.shape, x.dtype),
}


def call(name: str, /, *args: Any, **kwargs: Any) -> Any:
    """NumPy's function of that name, for all examples; some of the arguments are Batched."""
    if name in _STATIC:
        return _STATIC[name](*args, **kwargs)
    like = _innermost((*args, *kwargs.values()))
    ufunc = getattr(np, name, None)
    rule = _elementwise if isinstance(ufunc, np.ufunc) and ufunc.signature is None and ufunc.nout == 1 else _FUNCTIONS.get(name)
    hidden = _innermost((*kwargs.values(), *(x for x in args if type(x) in (tuple, list))))  # where no rule looks for it
    if rule is None or hidden is not None or rule is not _elementwise and _innermost(args[:1]) is not like:
        raise refused(f"numpy.{name}")
    return like.like(rule(operator.attrgetter(name)(_backend(like, args).xp), like, *args, **kwargs))


_METHODS = ("reshape", "transpose", "swapaxes", "sum", "mean", "max", "min", "any", "all", "argmax", "argmin", "argsort", "cumsum", "clip")


def _method(name: str) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: call(name, self, *args, **kwargs)


for _name in _METHODS:
    setattr(Batched, _name, _method(_name))


def _refusal(what: str) -> Callable[..., Any]:
    def method(self: Batched, *_: Any, **__: Any) -> Any:
        raise DTypeError(f"vmap: {what}, expected ops and functions of arrays {REMEDY}")

    return method


for _name in ("__array__", "__bool__", "__float__", "__int__", "__index__", "__complex__", "__iter__", "item", "tolist"):
    setattr(Batched, _name, _refusal(f"the function takes numbers out of an array of one example ({_name.strip('_')})"))
setattr(Batched, "__setitem__", _refusal("the function writes into an array of one example"))  # noqa: B010


# --- the backend ---------------------------------------------------------------------------------------------------------------------


class _Namespace:
    """An array module whose functions take Batched arrays, too."""

    def __init__(self, xp: Any, path: str = "") -> None:
        self._xp, self._path = xp, path

    def asarray(self, x: Any, dtype: Any = None) -> Any:
        """As numpy.asarray."""
        return x.like(self.asarray(x.whole, dtype)) if type(x) is Batched else self._xp.asarray(x, dtype)

    def ascontiguousarray(self, x: Any) -> Any:
        """As numpy.ascontiguousarray; nobody sees how a Batched lies in memory."""
        return x if type(x) is Batched else self._xp.ascontiguousarray(x)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._xp, name)
        if name == "linalg":
            return _Namespace(found, f"{self._path}{name}.")
        if isinstance(found, type) or not callable(found):
            return found
        return lambda *args, **kwargs: (
            found(*args, **kwargs) if _innermost((*args, *kwargs.values())) is None else call(f"{self._path}{name}", *args, **kwargs)
        )


class BatchedBackend:
    """Computes for all examples of a vmap by the backend `base` of their whole array."""

    def __init__(self, base: Any) -> None:
        self.base, self.name, self.xp = base, base.name, _Namespace(base.xp)
        self.number, self.empty = base.number, base.empty

    def applied(self, op: Any, values: Sequence[Any], attrs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        """What the op gives on these arrays.

        Raises: ArgumentError for an op whose declaration does not say how it takes an axis of examples.
        """
        kind = getattr(op, "batching", None)
        if kind == "own":
            found: tuple[tuple[Any, ...], Any] = op.forward(self, values, attrs)
            return found
        if kind not in _OPS:
            raise refused(op.name)
        like = _innermost((*values, *attrs.values()))
        index = attrs.get("index")
        if kind != "lead" or _innermost((index,)) is None or _innermost((index,)).level is not like.level:
            wholes, own = _OPS[kind](like, list(values), attrs)
        elif type(index) is tuple:
            return (like.like(_items(like, op, values[0], attrs)),), None
        else:
            wholes, own = _picked(like, values[0], attrs, values[0].ndim - (op.name == "pick"))
        outs, _ = _backend(like, [*wholes, *own.values()]).applied(op, wholes, own)
        return tuple([like.like(y) for y in outs]), None

    def run(self, name: str, /, **arguments: Any) -> Any:
        """Refuses: fused ops, whose kernels these are, run as the ops that define them."""
        raise refused(f"the kernel {name}")

    def copies(self, xs: Sequence[Any]) -> list[Any]:
        """Copies of arrays."""
        return [x.copy() for x in xs]

    def concatenate(self, arrays: Sequence[Any], axis: int) -> Any:
        """Arrays joined along an axis."""
        like = _innermost(arrays)
        return like.like(_backend(like, arrays).concatenate([_full(x, like) for x in arrays], axis + (axis >= 0)))


backend_over = functools.cache(BatchedBackend)
