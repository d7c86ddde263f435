"""A function of another library as an op: its derivatives of every order are functions of that library, too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import numpy as np

from ..backends import Array, Backend, as_array, digest, is_on_gpu
from ..errors import ArgumentError, DeviceError, DifferentiationError, DTypeError
from ..state import IDLE, current, within
from ..tape import Node, Rule, Tensor, apply, levels_of, to_tensors
from ..transforms import arrays_of, result, tree_tensors, vjp, zeros_like
from ..trees import PyTree, tree_flatten, tree_unflatten

Foreign = Callable[..., Sequence[Any]]
"""A function (fixed, *arrays) of the other library's arrays that returns a list of them; `fixed` is a list that is not differentiated."""


class Library(Protocol):
    """What an op needs of the other library.

    Attributes:
        name: of the library.
        caches: whether one Foreign serves all calls of the same structure, so that it may be compiled.
    """

    name: str
    caches: bool

    def evaluate(self, f: Foreign, fixed: Sequence[Any], values: Sequence[Array], keep: bool) -> tuple[list[Array], Any]:
        """f's results as NumPy arrays that share memory with nothing; with `keep`, what `pull_kept` needs, or None."""

    def pull_kept(self, kept: Any, bars: Sequence[Array], want: Sequence[bool]) -> list[Array]:
        """The wanted cotangents, from what `evaluate` kept."""

    def pulled(self, f: Foreign, n_inputs: int, want: Sequence[bool], check: Callable[[Sequence[Any]], None]) -> Foreign:
        """The function (fixed, *inputs, *bars) -> wanted cotangents. It calls `check` with f's results."""

    def pushed(self, f: Foreign, n_inputs: int, moving: Sequence[bool], check: Callable[[Sequence[Any]], None]) -> Foreign:
        """The function (fixed, *inputs, *dots of the moving ones, with a leading axis P) -> tangents of the results."""


class ForeignOp:
    """The op of one call of a function of another library.

    Args:
        library: of the function.
        f: see `Foreign`.
        fixed: its first argument.
        name: of the op, in errors.
        proven: whether the derivatives are known to be those of the value; see rules.Registered.
        keep: whether the first evaluation may keep its graph for a pullback.
    """

    def __init__(self, library: Library, f: Foreign, fixed: Sequence[Any], name: str, proven: bool, keep: bool) -> None:
        self.library, self.f, self.fixed, self.name, self.proven, self.keep = library, f, fixed, name, proven, keep
        self.digests: list[int | None] = []

    def forward(self, backend: Backend, values: list[Array], attrs: dict[str, Any]) -> tuple[tuple[Array, ...], Any]:
        """See tape.Rule."""
        if any(map(is_on_gpu, values)):
            raise DeviceError(
                f"{self.name}: an argument is a CuPy array, expected NumPy arrays because only these are handed over; copy it"
            )
        outs, kept = self.library.evaluate(self.f, self.fixed, values, self.keep)
        self.digests = [digest(x) for x in outs]
        return tuple(outs), kept

    def check(self, arrays: Sequence[Array]) -> None:
        """Raises: DifferentiationError unless a second evaluation gave the same bits."""
        if [digest(x) for x in arrays] != self.digests:
            raise DifferentiationError(
                f"{self.name}: the function gave other bits when it was evaluated again, expected the same because its derivative is that "
                "of the second evaluation; pass what is random as an argument, change no array that it reads until the gradient is there"
            )

    def push(self, node: Node, inputs: list[Tensor], dots: list[Tensor | None]) -> Sequence[Tensor | None]:
        """See tape.Rule."""
        moving = [d is not None for d in dots]
        g = self.library.pushed(self.f, len(inputs), moving, self.check)
        return apply(cast(Rule, self._of(g)), [*inputs, *(d for d in dots if d is not None)], {})

    def pull(self, node: Node, bars: list[Tensor | None], want: Sequence[int]) -> Sequence[Tensor | None]:
        """See tape.Rule."""
        full = [zeros_like(Tensor(v)) if b is None else b for (v, _), b in zip(node.outputs, bars, strict=True)]
        wanted = [bool(w) for w in want]
        together = [*node.inputs, *full]
        followed = levels_of(together) or any(t.dot is not None for t in together)
        if node.saved is not None and not followed:
            got = [Tensor(x) for x in self.library.pull_kept(node.saved, [b.value for b in full], wanted)]
        else:
            got = apply(cast(Rule, self._of(self.library.pulled(self.f, len(node.inputs), wanted, self.check))), together, {})
        rows = iter(got)
        return [next(rows) if w else None for w in wanted]

    def _of(self, g: Foreign) -> ForeignOp:
        return ForeignOp(self.library, g, self.fixed, self.name, self.proven, self.keep)


def as_op(
    library: Library,
    f: Callable[..., Any],
    to_foreign: Callable[[Array], Any],
    is_foreign: Callable[[Any], bool],
    check: Callable[[Sequence[Any], Sequence[Any]], None],
    *,
    proven: bool,
) -> Callable[..., Any]:
    """A function of the other library's arrays, in pytrees, as a function of Tensors.

    Args:
        library, proven: see `ForeignOp`.
        f: takes what the caller passes, with an array of the other library for every Tensor and NumPy array of floating numbers.
        to_foreign: a NumPy array as one of the library's, for those that are not differentiated.
        is_foreign: whether a leaf of f's result is an array of the library.
        check: called once with f's results and arguments.
    """
    name = f"from_{library.name}({getattr(f, '__name__', type(f).__name__)})"
    known: dict[Any, _Flat] = {}

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        leaves, spec = tree_flatten((args, kwargs))
        inputs, fixed = [x for x in leaves if isinstance(x, Tensor)], [x for x in leaves if isinstance(x, np.ndarray)]
        if not inputs:
            raise ArgumentError(f"{name}: no argument is a Tensor, expected one at least; call {library.name}'s own function on its arrays")
        frame = [_INPUT if isinstance(x, Tensor) else _FIXED if isinstance(x, np.ndarray) else x for x in leaves]
        flat = _Flat(f, name, library.name, spec, frame, is_foreign, check)
        if library.caches:
            try:
                flat = known.setdefault((spec, *((type(x), x) for x in frame)), flat)
            except TypeError:  # an argument that has no hash
                pass
        keep = bool(levels_of(inputs)) and current().jvp is None
        op = ForeignOp(library, flat.call, [to_foreign(x) for x in fixed], name, proven, keep)
        outs = apply(cast(Rule, op), to_tensors(name, inputs), {})
        return tree_unflatten(flat.out_spec, outs)

    return wrapped


_INPUT, _FIXED = object(), object()  # in the frame of a call: a Tensor, and a NumPy array


class _Flat:
    """A function of pytrees as a Foreign, for calls with one structure; it sees the structure of the results.

    Args: as `as_op`; frame: the leaves of a call, with _INPUT and _FIXED in the places of arrays.
    """

    def __init__(
        self, f: Callable[..., Any], name: str, library: str, spec: Any, frame: list[Any], is_foreign: Callable[[Any], bool], check: Any
    ) -> None:
        self.out_spec: Any = None

        def call(fixed: Sequence[Any], *arrays: Any) -> Sequence[Any]:
            inputs, others = iter(arrays), iter(fixed)
            full = [next(inputs) if x is _INPUT else next(others) if x is _FIXED else x for x in frame]
            args, kwargs = tree_unflatten(spec, full)
            outs, out_spec = tree_flatten(f(*args, **kwargs))
            wrong = [x for x in outs if not is_foreign(x)]
            if wrong or not outs:
                raise ArgumentError(
                    f"{name}: the result has a leaf of {type(wrong[0]) if wrong else None}, expected {library} arrays of floating "
                    "numbers; return these alone"
                )
            if self.out_spec is None:
                check(outs, arrays)
                self.out_spec = out_spec
            return outs

        self.call = call


class Given:
    """A function of Tensors as a function of a list of NumPy arrays, for the other library's wrapper: values and pullbacks.

    Args:
        where: the wrapper, as errors name it.
        f: takes pytrees of Tensors, returns a pytree of Tensors.
        args, kwargs: of the call, with other objects in the places of the arrays.
        is_array: whether a leaf is one of the arrays.
    """

    def __init__(self, where: str, f: Callable[..., Any], args: Any, kwargs: Any, is_array: Callable[[Any], bool]) -> None:
        self.where, self.f = where, f
        self.leaves, self.spec = tree_flatten((args, kwargs))
        self.at = [i for i, x in enumerate(self.leaves) if is_array(x)]
        self.arrays = [self.leaves[i] for i in self.at]
        self.out_spec: Any = None

    def __call__(self, *values: Any) -> list[Any]:
        """f as a function of Tensors or arrays, in the order of `arrays`, with the leaves of its result."""
        full = list(self.leaves)
        for i, x in zip(self.at, values, strict=True):
            full[i] = x
        args, kwargs = tree_unflatten(self.spec, full)
        outs, self.out_spec = tree_flatten(tree_tensors(self.f(*args, **kwargs), self.where, "result"))
        return outs

    def tree(self, outs: Sequence[Any]) -> PyTree:
        """The result of f with these leaves."""
        return tree_unflatten(self.out_spec, list(outs))


def values_of(f: Callable[..., list[Any]], values: Sequence[Array]) -> list[Array]:
    """f's results at these arrays, as arrays of the caller's own."""
    found: list[Array] = within(IDLE, lambda: result(f(*map(Tensor, values)), arrays_of(list(values)), copy=True))
    return found


def pullback_of(f: Callable[..., list[Any]], values: Sequence[Array]) -> tuple[list[Array], Callable[[Sequence[Array]], list[Array]]]:
    """f's results at these arrays, and what pulls cotangents back; both outside of every transform that is at work."""
    outs, pullback = within(IDLE, vjp, f, *values)
    return list(outs), lambda bars: list(within(IDLE, pullback, list(bars)))


def pulled(f: Callable[..., list[Any]], n_inputs: int) -> Callable[..., list[Any]]:
    """The function (*inputs, *bars) -> cotangents of the inputs, in ops, which may be differentiated again."""
    return lambda *given: list(vjp(f, *given[:n_inputs])[1](list(given[n_inputs:])))


def floating(where: str, dtype: Any) -> None:
    """Raises: DTypeError for floating numbers that are neither float32 nor float64."""
    if str(dtype).rpartition(".")[2] not in ("float32", "float64"):
        raise DTypeError(f"{where}: an argument has dtype {dtype}, expected float32 or float64 because the kernels have these; convert it")


def host(where: str, x: Any) -> Array:
    """x as a NumPy array, without a copy. Raises: as `backends.as_array`."""
    array = as_array(x)
    if array.dtype.kind == "f":
        floating(where, array.dtype)
    return array
