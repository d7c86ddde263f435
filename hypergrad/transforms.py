"""The transforms: grad, value_and_grad, vjp, jvp and hvp, on pytrees of arrays."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .backends import backend_of, digest
from .backends.recording import is_fixed
from .backends.tracing import recorded_if_whole
from .errors import ArgumentError, DifferentiationError, HypergradError, ShapeError
from .state import current, is_idle, within
from .tape import Tape, Tensor, primal, to_tensors, untaped, with_tangents
from .trees import PyTree, tree_flatten, tree_leaves, tree_map, tree_named, tree_unflatten


def tree_tensors(tree: PyTree, where: str, root: str = "argument", like: Tensor | None = None) -> PyTree:
    """The tree with every leaf a Tensor. Python numbers take the dtype of `like`, or of the tree's first array.

    Raises: DTypeError, ArgumentError or DeviceError for a leaf that is no array of floating numbers. The message calls the tree `root`.
    """
    leaves, spec = tree_flatten(tree)
    model = [x for x in leaves if type(x) not in _NUMBERS][:1] if like is None else [like]

    def convert(i: int, x: Any) -> Any:
        if isinstance(x, Tensor):
            return x
        if type(x) is np.ndarray and x.dtype.char in "fd" and x.dtype.isnative:  # the common case, and the fast one
            return Tensor(recorded_if_whole(x))
        try:
            return to_tensors(where, [x, *model] if type(x) in _NUMBERS else [x])[0]
        except HypergradError as error:
            raise type(error)(f"{where}: {tree_named(tree, root)[i][0]} cannot be followed: {error}") from error

    return tree_unflatten(spec, [convert(i, x) for i, x in enumerate(leaves)])


_NUMBERS = (bool, int, float)  # exactly these: NumPy's scalars have a dtype of their own


def tree_values(tree: PyTree) -> PyTree:
    """The tree with every Tensor replaced by its array."""
    return tree_map(lambda x: x.value if isinstance(x, Tensor) else x, tree)


def arrays_of(*trees: PyTree) -> list[Any]:
    """The arrays of some trees."""
    return [x.value if isinstance(x, Tensor) else x for x in tree_leaves(trees)]


def owned(tree: PyTree, given: Sequence[Any] = (), *, copy: bool = False) -> PyTree:
    """The tree with every Tensor replaced by a writable array that shares memory with no other result and with none of `given`.

    Args:
        tree: a pytree; what is no Tensor stays as it is.
        given: arrays that the caller holds already.
        copy: whether to copy every array, even one that seems to be held nowhere else.
    Cost: an array that an op made for this result alone is not copied.
    """
    taken = {id(x) for x in given}
    leaves, spec = tree_flatten(tree)
    copied = []
    for i, x in enumerate(leaves):
        if not isinstance(x, Tensor):
            continue
        leaves[i] = x = x.value
        flags = x.flags
        if copy or id(x) in taken or not flags.owndata or not getattr(flags, "writeable", True) or is_fixed(x):
            copied.append(i)
        else:
            taken.add(id(x))
    if copied:
        for i, x in zip(copied, backend_of(leaves[copied[0]]).copies([leaves[i] for i in copied]), strict=True):
            leaves[i] = x
    return tree_unflatten(spec, leaves)


def result(tree: PyTree, given: Sequence[Any] = (), *, copy: bool = False) -> PyTree:
    """What a public transform returns: arrays that belong to the caller, or Tensors inside an enclosing transform."""
    return owned(tree, given, copy=copy) if is_idle() else tree


def zeros_like(x: Tensor) -> Tensor:
    """Zeros of x's shape, dtype and device, without tangents."""
    return Tensor(backend_of(x.value).xp.zeros_like(x.value))


def constant(x: Tensor) -> bool:
    """Whether no derivative follows the Tensor. Its array may then be one that the user passed in."""
    return x.node is None and x.dot is None


def scalar(where: str, out: Any) -> Tensor:
    """`out` if it is a scalar Tensor; the error otherwise."""
    if out is None or isinstance(out, (tuple, list, dict)):
        raise ArgumentError(
            f"{where}: the function's result is a {type(out).__name__}, expected one scalar Tensor; return the loss alone, "
            "or use value_and_grad(..., has_aux=True)"
        )
    (value,) = to_tensors(where, [out])
    if value.ndim:
        raise ShapeError(
            f"{where}: the function's result has shape {value.shape}, expected (), a scalar; take hg.sum or hg.mean, or use hg.vjp"
        )
    return value


def tensor_value_and_grad(
    f: Callable[..., Any],
    tree: PyTree,
    *,
    where: str = "value_and_grad",
    has_aux: bool = False,
    tape: Tape | None = None,
    values: bool = True,
) -> tuple[Tensor, Any, PyTree]:
    """(value, aux, gradient) of ``f(tree)``, all Tensors, with the tangents they carry. The passes call this.

    A caller that needs to know what was recorded passes a new `tape`. One that reads only the tangents of the gradient says values=False.
    """
    tape = Tape() if tape is None else tape
    leaves, spec = tree_flatten(tree_tensors(tree, where))

    def taped() -> tuple[list[Tensor], Tensor, Any]:
        watched = [tape.watch(x) for x in leaves]
        out, aux = f(tree_unflatten(spec, watched)), None
        if has_aux:
            if not (isinstance(out, tuple) and len(out) == 2):
                raise ArgumentError(
                    f"{where}: the function's result is a {type(out).__name__}, expected the pair (value, aux) because "
                    "has_aux is True; return both"
                )
            out, aux = out
        return watched, scalar(where, out), aux

    watched, out, aux = tape.run(taped)
    if constant(out):
        out = Tensor(out.value.copy())
    one = Tensor(backend_of(out.value).number(1.0, out.dtype))
    roots = [out]
    if out.node is not None and not out.node.levels:
        out = untaped(out)  # no other tape follows it: let go of the graph, so that the sweep can free it
    bars = within(current(), tape.gradients, roots, [one], watched, values=values)
    return out, aux, tree_unflatten(spec, [zeros_like(x) if b is None else b for x, b in zip(leaves, bars, strict=True)])


def dependence(f: Callable[[PyTree], Tensor], tree: PyTree, *, tape: Tape | None = None) -> list[bool]:
    """Whether a scalar depends on each leaf of a tree of Tensors: whether any derivative flows to it, be it zero. `tape` is a new one."""
    tape = Tape() if tape is None else tape
    leaves, spec = tree_flatten(tree)

    def taped() -> tuple[list[Tensor], Tensor]:
        watched = [tape.watch(x) for x in leaves]
        return watched, f(tree_unflatten(spec, watched))

    watched, out = tape.run(taped)
    return [bar is not None for bar in tape.gradients([out], [Tensor(backend_of(out.value).number(1.0, out.dtype))], watched)]


class Selection:
    """The arguments of f that a transform differentiates.

    Args:
        where: the transform, as errors name it.
        f: the function.
        argnums: the number of a positional argument, or a tuple of them.
        argnames: the name of an argument, or a tuple of them, in place of argnums.
    Raises: ArgumentError for numbers that are no integers, names that are no strings, or both at once.
    """

    def __init__(self, where: str, f: Callable[..., Any], argnums: Any, argnames: Any) -> None:
        self.where, self.f, self.argnums = where, f, argnums
        given = argnums if argnames is None else argnames
        self.single = not isinstance(given, (tuple, list))
        self.names = None if argnames is None else tuple((given,) if self.single else given)
        if self.names is not None and (argnums != 0 or not all(isinstance(n, str) for n in self.names)):
            raise ArgumentError(
                f"{where}: argnames has {argnames!r} and argnums has {argnums!r}, expected names alone or numbers alone; pass "
                "argnames='x' or argnums=1"
            )
        try:
            self.numbers = tuple(operator.index(i) for i in ((given,) if self.single else given)) if self.names is None else ()
        except TypeError:
            raise ArgumentError(
                f"{where}: argnums has {argnums!r}, expected an integer or a tuple of integers; pass 0 for the first argument"
            ) from None

    def of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Callable[[tuple[Any, ...]], Any]]:
        """The chosen arguments of a call, and f as a function of them alone."""
        places = self._numbered(args) if self.names is None else [self._named(name, args, kwargs) for name in self.names]

        def of(chosen: tuple[Any, ...]) -> Any:
            full, named = list(args), dict(kwargs)
            for place, a in zip(places, chosen, strict=True):
                if isinstance(place, int):
                    full[place] = a
                else:
                    named[place] = a
            return self.f(*full, **named)

        return tuple(args[p] if isinstance(p, int) else kwargs[p] for p in places), of

    def _numbered(self, args: tuple[Any, ...]) -> Sequence[int | str]:
        if any(not 0 <= i < len(args) for i in self.numbers):
            raise ArgumentError(
                f"{self.where}: argnums has {self.argnums}, expected 0 to {len(args) - 1} because f got "
                f"{len(args)} positional arguments; use argnames for one that is passed by its name"
            )
        return self.numbers

    def _named(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | str:
        """Where the argument of that name stands in a call: its number, or the name itself."""
        if name in kwargs:
            return name
        try:
            order = [p.name for p in inspect.signature(self.f).parameters.values() if p.kind <= p.POSITIONAL_OR_KEYWORD]
        except (TypeError, ValueError):  # a callable of C, which tells no names
            order = []
        if name not in order[: len(args)]:
            raise ArgumentError(
                f"{self.where}: argnames has {name!r}, expected an argument of the call, which passes {[*order[: len(args)], *kwargs]}; "
                "pass it, for a default has no gradient"
            )
        return order.index(name)

    def like(self, trees: tuple[PyTree, ...]) -> PyTree:
        """One tree per chosen argument as the caller wants them: the tree alone for a single number or name."""
        return trees[0] if self.single else trees


def value_and_grad(
    f: Callable[..., Any], argnums: int | tuple[int, ...] = 0, *, argnames: str | tuple[str, ...] | None = None, has_aux: bool = False
) -> Callable[..., Any]:
    """The function that returns f's value and its gradient, by reverse mode.

    Args:
        f: takes pytrees of Tensors, returns a scalar Tensor, or (scalar, aux) with `has_aux`.
        argnums: the positional argument, or tuple of arguments, to differentiate.
        argnames: the name, or tuple of names, of arguments to differentiate in place of argnums, however they are passed.
        has_aux: whether f returns a second pytree that is passed through.
    Returns: a function of the same arguments (pytrees of arrays) with result (value, grad) or
        ((value, aux), grad); grad is like the argument, or a tuple of such for a tuple of numbers or names.
        Inside another transform the results are Tensors, so gradients nest, to any order.
    Raises: ShapeError if f's result is not a scalar; DTypeError for leaves that are not floating;
        ArgumentError for an argnum out of range or the name of an argument that is not passed.
    Cost: 2 to 4 evaluations of f; memory of every intermediate value.
    Example: ``hg.value_and_grad(lambda w, *, l2: l2 * hg.sum(w * w), argnames="l2")(np.ones(3), l2=0.5)`` gives (1.5, 3.0).
    Example:
        >>> hg.value_and_grad(lambda w, x: hg.sum(w * x), argnums=(0, 1))(np.array([1.0, 2.0]), np.array([3.0, 4.0]))
        (array(11.), (array([3., 4.]), array([1., 2.])))
    """
    selection = Selection("value_and_grad", f, argnums, argnames)

    @functools.wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        chosen, of = selection.of(args, kwargs)
        value, aux, grads = tensor_value_and_grad(of, chosen, has_aux=has_aux)
        value, grads = result((value, selection.like(grads)), arrays_of(args, kwargs))
        return (value, result(aux, copy=True)) if has_aux else value, grads

    return wrapped


def grad(
    f: Callable[..., Any], argnums: int | tuple[int, ...] = 0, *, argnames: str | tuple[str, ...] | None = None, has_aux: bool = False
) -> Callable[..., Any]:
    """The function that returns the gradient of scalar f, or (gradient, aux) with `has_aux`.

    For argnums, argnames, errors and cost see `value_and_grad`. Gradients nest to any order, and so do `hvp`, `jacobian` and `hessian`
    inside of them; each order multiplies the cost by about three.

    Example:
        >>> hg.grad(lambda w: hg.sum(w**2))(np.array([1.0, 2.0]))
        array([2., 4.])
        >>> hg.grad(hg.grad(hg.grad(lambda x: x**4)))(np.array(1.0))
        array(24.)
    """
    both = value_and_grad(f, argnums, argnames=argnames, has_aux=has_aux)

    @functools.wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        value, gradient = both(*args, **kwargs)
        return (gradient, value[1]) if has_aux else gradient

    return wrapped


def vjp(f: Callable[..., Any], *primals: PyTree, **kwargs: Any) -> tuple[PyTree, Callable[[PyTree], tuple[PyTree, ...]]]:
    """f's output and the function that pulls cotangents of it back to the inputs.

    Args:
        f: takes pytrees of Tensors, returns a pytree of Tensors.
        primals: where to evaluate, pytrees of float32 or float64 arrays.
        kwargs: passed on to f by name, and not differentiated.
    Returns: (out, pullback); pullback(out_bar), with out_bar like out, gives a tuple like primals and may
        be called again.
    Raises: ShapeError if a cotangent is not shaped like its output; DTypeError if its dtype differs.
    Cost: f once, and about twice f for every pullback; memory of every intermediate value until both are dropped.
    Example:
        >>> y, pullback = hg.vjp(lambda x: x**2, np.array([1.0, 3.0]))
        >>> pullback(np.array([1.0, 1.0]))
        (array([2., 6.]),)
    """
    leaves, spec = tree_flatten(tree_tensors(primals, "vjp"))
    tape = Tape()

    def taped() -> tuple[list[Tensor], PyTree]:
        watched = [tape.watch(x) for x in leaves]
        return watched, tree_tensors(f(*tree_unflatten(spec, watched), **kwargs), "vjp")

    watched, out = tape.run(taped)
    outs, out_spec = tree_flatten(out)
    held = _Held(tape) if is_idle() else None

    def pullback(out_bar: PyTree) -> tuple[PyTree, ...]:
        given, bar_spec = tree_flatten(out_bar)
        if bar_spec != out_spec:
            raise ShapeError(f"vjp: out_bar has structure {bar_spec}, expected {out_spec}; pass one cotangent per output")
        bars = [to_tensors("vjp", [o, b])[1] for o, b in zip(outs, given, strict=True)]
        if any(b.shape != o.shape for b, o in zip(bars, outs, strict=True)):
            raise ShapeError(
                f"vjp: out_bar has shapes {[b.shape for b in bars]}, expected {[o.shape for o in outs]}, those of the outputs; "
                "reshape the cotangents"
            )
        if held is not None:
            held.check()
        got = within(current(), tape.gradients, outs, bars, watched, keep=True)
        grads = [zeros_like(x) if b is None else b for x, b in zip(leaves, got, strict=True)]
        return tuple(result(tree_unflatten(spec, grads), [*arrays_of(leaves, bars), *(held.arrays if held else ())]))

    return result(out, copy=True), pullback


class _Held:
    """The arrays that the tape's sweep will read and that the user may write to before it."""

    def __init__(self, tape: Tape) -> None:
        made: set[int] = set()
        for node in tape.nodes:  # an op may return one of its input arrays itself
            made |= {id(value) for value, _ in node.outputs} - {id(t.value) for t in node.inputs}
        inputs = {id(t.value): t.value for node in tape.nodes for t in node.inputs}
        for node in tape.nodes:  # arrays among attributes: images, labels, indices, conditions
            inputs |= {id(x): x for x in tree_leaves(node.attrs) if type(x) is np.ndarray}
        self.arrays = [x for k, x in inputs.items() if k not in made]
        self.digests = [digest(x) for x in self.arrays]

    def check(self) -> None:
        """Raises: DifferentiationError if one of them was written to."""
        for x, before in zip(self.arrays, self.digests, strict=True):
            if digest(x) != before:
                raise DifferentiationError(
                    f"vjp: an array of shape {tuple(x.shape)} that the function used was written to since, expected "
                    "it unchanged because the pullback reads it again; pass a copy, or call vjp again"
                )


def seed(primals: PyTree, dots: PyTree, where: str) -> tuple[PyTree, int, bool]:
    """Primals carrying `dots` (leading axis P, added where missing), P, and whether the caller's tangents had that axis."""
    leaves, spec = tree_flatten(tree_tensors(primals, where))
    given, places = tree_leaves(dots, none_is_leaf=True), tree_leaves(primals, none_is_leaf=True)
    if len(given) == len(places):  # a primal that is None takes no tangent
        given = [d for d, x in zip(given, places, strict=True) if x is not None]
    if len(given) != len(leaves):
        raise ShapeError(
            f"{where}: tangents have {len(given)} leaves, expected {len(leaves)}, one per primal; write None for a zero tangent"
        )
    seeded, batched, counts = [], set(), set()
    for x, d in zip(leaves, given, strict=True):
        if d is None:
            seeded.append(Tensor(x.value, None, x.node, x.index))
            continue
        t = to_tensors(where, [x, d])[1]
        t = t if t is d else Tensor(t.value)
        if t.shape != x.shape and t.shape[1:] != x.shape:
            raise ShapeError(
                f"{where}: a tangent has shape {t.shape}, expected {x.shape} or (P, *{x.shape}); reshape it to its primal's shape"
            )
        batched.add(t.ndim > x.ndim)
        t = t if t.ndim > x.ndim else t.reshape((1, *t.shape))
        counts.add(t.shape[0])
        seeded.append(Tensor(x.value, t, x.node, x.index))
    if len(batched) > 1 or len(counts) > 1:
        raise ShapeError(f"{where}: tangents have {sorted(counts)} directions, expected the same number for all leaves; match them")
    return tree_unflatten(spec, seeded), max(counts, default=1), batched == {True}


def dots_of(tree: PyTree, count: int, batched: bool = True) -> PyTree:
    """The `count` tangents of a tree of Tensors, zeros where there is none; without the axis P unless `batched`."""
    leaves, spec = tree_flatten(tree)
    out = []
    for t in leaves:
        d = t.dot
        if d is None:
            d = Tensor(backend_of(t.value).xp.zeros((count, *t.shape), t.dtype))
        out.append(d if batched else d.reshape(t.shape))
    return tree_unflatten(spec, out)


def jvp(f: Callable[..., Any], primals: Sequence[PyTree], dots: Sequence[PyTree], **kwargs: Any) -> tuple[PyTree, PyTree]:
    """f's output and its directional derivative, by forward mode.

    Args:
        f: takes pytrees of Tensors, returns a pytree of Tensors.
        primals: tuple of arguments, pytrees of float32 or float64 arrays.
        dots: tangents like primals (None for zero), or all with a leading axis P, for P directions in one run.
        kwargs: passed on to f by name, and not differentiated.
    Returns: (out, out_dot); out_dot is like out, with the leading axis P if the tangents have it.
    Raises: ShapeError for tangents that do not fit; DifferentiationError inside another jvp.
    Cost: about 1 + 2P evaluations of f; memory (1 + P) times the live values.
    Example:
        >>> hg.jvp(lambda x: x**2, (np.array([1.0, 3.0]),), (np.array([1.0, 0.0]),))
        (array([1., 9.]), array([2., 0.]))
    """

    def tangent() -> tuple[PyTree, PyTree]:
        seeded, count, batched = seed(tuple(primals), tuple(dots), "jvp")
        out = tree_tensors(f(*seeded, **kwargs), "jvp")
        return tree_map(lambda x: Tensor(x.value.copy()) if constant(x) else primal(x), out), dots_of(out, count, batched)

    both: tuple[PyTree, PyTree] = result(with_tangents(tangent), arrays_of(primals, dots, kwargs))
    return both


def hvp(f: Callable[..., Any], primals: Sequence[PyTree], dots: Sequence[PyTree], **kwargs: Any) -> tuple[Any, PyTree, PyTree]:
    """Value, gradient and Hessian product of a scalar f in one pass: forward over reverse.

    Args:
        f: takes pytrees of Tensors, returns a scalar Tensor.
        primals: tuple of arguments.
        dots: direction of each argument (None for zero), or P directions on a leading axis.
        kwargs: passed on to f by name, and not differentiated.
    Returns: (value, grad, hvp); grad and hvp are tuples like primals (hvp with a leading axis P if the tangents have it).
        With a tangent on one argument alone, hvp holds the mixed derivatives for the other arguments.
    Raises: as `jvp` and `value_and_grad`.
    Cost: about 2 + 4P evaluations of f. Source: Pearlmutter 1994, Neural Computation 6(1).
    Example:
        >>> value, grads, products = hg.hvp(lambda w: hg.sum(w**3), (np.array([1.0, 2.0]),), (np.array([1.0, 0.0]),))
        >>> products
        (array([6., 0.]),)
    """

    def tangent() -> tuple[Tensor, PyTree, PyTree]:
        seeded, count, batched = seed(tuple(primals), tuple(dots), "hvp")
        value, _, grads = tensor_value_and_grad(lambda args: f(*args, **kwargs), seeded, where="hvp")
        return primal(value), tree_map(primal, grads), dots_of(grads, count, batched)

    three: tuple[Any, PyTree, PyTree] = result(with_tangents(tangent), arrays_of(primals, dots, kwargs))
    return three


def stop_gradient(x: PyTree) -> PyTree:
    """The same values as constants to every derivative, in reverse and forward mode and in every nesting.

    Args:
        x: a pytree of arrays, numbers or Tensors.
    Returns: a pytree of Tensors like x.
    Rules: its derivative is zero. In the inner loss of `unroll`, every pass takes x for a constant of the step.
    Example:
        >>> hg.grad(lambda x: x * hg.stop_gradient(x))(np.array(3.0))
        array(3.)
    """
    return tree_map(Tensor.detach, tree_tensors(x, "stop_gradient"))
