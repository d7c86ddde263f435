"""hypergrad and JAX: a function of one library inside a gradient of the other. It needs the extra `jax`; host memory alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..backends import Array
from ..bilevel import HyperGradient
from ..errors import ArgumentError, DTypeError, ShapeError
from ..state import IDLE, within
from ..trees import PyTree, tree_flatten, tree_leaves, tree_structure, tree_unflatten
from .foreign import Foreign, Given, as_op, floating, host, pulled, values_of

__all__ = ["from_jax", "hypergradient", "to_jax"]


def to_jax(f: Callable[..., Any], like: PyTree) -> Callable[..., Any]:
    """A function of hypergrad Tensors as a function of JAX arrays, through which JAX differentiates, inside jit, vmap and scan as well.

    Args:
        f: takes pytrees of Tensors, returns a pytree of Tensors, such as the weights that `hg.unroll` ends at. It must be pure. It gets a
            Tensor for each floating array, and a NumPy array for each of integers or bools; every other argument is passed as it is.
        like: a pytree of arrays or jax.ShapeDtypeStructs with the structure, shapes and dtypes of f's result, or a function that gives one
            for the arguments, since JAX traces before it computes.
    Returns: a function of the same arguments, in JAX arrays.
    Raises: DTypeError for bfloat16, float16 and complex arrays; in the callback, ShapeError and DTypeError for results unlike `like`, and
        what f raises. jit wraps errors of the callback in its own.
    Rules: a `jax.pure_callback` with a `jax.custom_vjp`: reverse mode of any order where the derivatives of f nest; those of
        `hg.unroll` and `hg.scan` do not, and raise DifferentiationError. JAX refuses forward mode. vmap calls f once for each slice.
    Cost: f once, and for each gradient f and its pullback: a pure function keeps no tape. f must not call JAX itself, which may wait for
        the callback.
    Example:
        >>> import jax
        >>> from hypergrad.interop.jax import to_jax
        >>> jax.grad(lambda x: jax.numpy.sum(to_jax(lambda t: hg.square(t), like=x)(x)))(jax.numpy.array([1.0, 3.0]))
        Array([2., 6.], dtype=float32)
    """

    @functools.wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        wanted, structure = tree_flatten(like(*args, **kwargs) if callable(like) else like)
        given = Given("to_jax", f, args, kwargs, lambda x: isinstance(x, (jax.Array, np.ndarray)))
        moving = [_floats(x) for x in given.arrays]
        for x, m in zip(given.arrays, moving, strict=True):
            if m:
                floating("to_jax", x.dtype)

        def of(n: int, *values: Any) -> list[Any]:
            """f of the floating arrays; the other ones, n of them, come first."""
            others, floats = iter(values[:n]), iter(values[n:])
            return given(*(next(floats) if m else next(others) for m in moving))

        floats = tuple(jnp.asarray(x) for x, m in zip(given.arrays, moving, strict=True) if m)
        others = tuple(jnp.asarray(x) for x, m in zip(given.arrays, moving, strict=True) if not m)
        return tree_unflatten(structure, _call(of, tuple(_shape(x) for x in wanted), floats, others))

    return wrapped


def _call(f: Callable[..., list[Any]], shapes: Sequence[Any], floats: Sequence[Any], others: Sequence[Any]) -> Sequence[Any]:
    """f(len(others), *others, *floats), of results with these shapes, as a callback with its pullback, which is such a callback, too."""

    def compute(floats: Sequence[Any], others: Sequence[Any]) -> tuple[Array, ...]:
        fixed = [host("to_jax", np.asarray(x)) for x in others]
        outs = values_of(lambda *xs: f(len(fixed), *fixed, *xs), [host("to_jax", np.asarray(x)) for x in floats])
        if [x.shape for x in outs] != [tuple(s.shape) for s in shapes]:
            raise ShapeError(
                f"to_jax: the result has shapes {[x.shape for x in outs]}, expected {[tuple(s.shape) for s in shapes]}, those of like; "
                "correct it"
            )
        if [x.dtype for x in outs] != [s.dtype for s in shapes]:
            raise DTypeError(
                f"to_jax: the result has dtypes {[str(x.dtype) for x in outs]}, expected {[str(s.dtype) for s in shapes]}, those of like; "
                "correct it"
            )
        return tuple(outs)

    @jax.custom_vjp
    def call(floats: Sequence[Any], others: Sequence[Any]) -> Any:
        return jax.pure_callback(compute, tuple(shapes), floats, others, vmap_method="sequential")

    def forward(floats: Sequence[Any], others: Sequence[Any]) -> Any:
        return call(floats, others), (floats, others)

    def backward(kept: Any, bars: Any) -> Any:
        floats, others = kept

        def back(n: int, *values: Any) -> list[Any]:
            return pulled(lambda *xs: f(n, *values[:n], *xs), len(floats))(*values[n:])

        return tuple(_call(back, [_shape(x) for x in floats], (*floats, *bars), others)), None

    call.defvjp(forward, backward)
    outs: Sequence[Any] = call(tuple(floats), tuple(others))
    return outs


def hypergradient(run: Callable[[PyTree], HyperGradient]) -> Callable[[PyTree], Any]:
    """The outer objective of a bilevel problem as a function of JAX arrays, with the hypergradient as its gradient.

    Args:
        run: hparams, a pytree of NumPy arrays -> HyperGradient: any pass, such as ``lambda h: hg.reverse(problem, h, batches)``,
            `hg.forward`, or `hg.implicit` at weights that it finds itself. It must be pure.
    Returns: a function of hparams, a pytree of floating JAX arrays of one dtype, with a 0-d array as its result.
    Raises: DTypeError for other dtypes, and for a value that has another one than hparams; in the callback ArgumentError for a gradient
        unlike hparams. JAX raises where it is differentiated twice, or by forward mode.
    Cost: one call of `run`, which gives the value and the gradient.
    Example:
        >>> import jax
        >>> from hypergrad.interop.jax import hypergradient
        >>> problem = hg.Bilevel(
        ...     lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum(w**2), lambda h: 0.0 * h, lambda h: hg.SGD(lr=0.25)
        ... )
        >>> jax.grad(hypergradient(lambda h: hg.reverse(problem, h, range(3))))(jax.numpy.array([1.0, 2.0]))
        Array([1.53125, 3.0625 ], dtype=float32)
    """

    def objective(hparams: PyTree) -> Any:
        leaves, spec = tree_flatten(hparams)
        leaves = [jnp.asarray(x) for x in leaves]
        kinds = {x.dtype for x in leaves}
        for kind in kinds:
            floating("hypergradient", kind)
        if len(kinds) != 1 or not all(map(_floats, leaves)):
            raise DTypeError(
                f"hypergradient: hparams have dtypes {sorted(map(str, kinds))}, expected float32 or float64; convert with astype"
            )
        (kind,) = kinds

        def compute(*values: Any) -> tuple[Array, ...]:
            r = within(IDLE, run, tree_unflatten(spec, [host("hypergradient", np.asarray(x)) for x in values]))
            grads = tree_leaves(r.grad)
            if tree_structure(r.grad) != spec or [g.shape for g in grads] != [x.shape for x in values]:
                raise ArgumentError(
                    f"hypergradient: r.grad has structure {tree_structure(r.grad)} and shapes {[g.shape for g in grads]}, expected "
                    "those of hparams; give run's argument to the pass as it is"
                )
            if r.value.dtype != kind:
                raise DTypeError(f"hypergradient: the value has dtype {r.value.dtype}, expected {kind}, that of hparams; use one dtype")
            return r.value, *grads

        shapes = (jax.ShapeDtypeStruct((), kind), *map(_shape, leaves))

        @jax.custom_vjp
        def call(*xs: Any) -> Any:
            return forward(*xs)[0]

        def forward(*xs: Any) -> Any:
            value, *grads = jax.pure_callback(compute, shapes, *xs, vmap_method="sequential")
            return value, tuple(grads)

        call.defvjp(forward, lambda grads, bar: tuple(bar * g for g in grads))
        return call(*leaves)

    return objective


def from_jax(f: Callable[..., Any], *, proven: bool = False) -> Callable[..., Any]:
    """A function of JAX arrays as a function of hypergrad Tensors: an inner loss or a step of `hg.scan` may be written in JAX.

    Args:
        f: takes pytrees of JAX arrays, returns a pytree of floating JAX arrays. It must be pure, as for every transform of JAX. It gets a
            JAX array for each Tensor and NumPy array among its arguments; every other argument is passed as it is.
        proven: whether the derivatives of f are those of its value, as they are unless it has a jax.custom_vjp that decides otherwise.
            Then `hg.unroll` transposes a step by the symmetric Hessian, and `hg.implicit` takes the loss.
    Returns: a function of the same arguments with Tensors in its result. It may be differentiated in its Tensors, in every mode and
        nesting (JAX raises for a jax.custom_vjp in forward mode).
    Raises: DTypeError for float64 where JAX has it switched off (jax_enable_x64), and for float32 beside float64; ArgumentError for a
        result that is no floating array; DeviceError for CuPy arrays.
    Cost: Tensors and results are copied. Each derivative evaluates f again; a tangent all directions in one `jax.vmap`. Of a function
        made by jax.jit, the derivatives are compiled, too: once for each shape and structure of the arguments.
    Example:
        >>> import jax
        >>> from hypergrad.interop.jax import from_jax
        >>> loss = from_jax(jax.jit(lambda w, h, batch: jax.numpy.mean((w - h) ** 2)))
        >>> hg.grad(loss)(np.array([1.0, 2.0], np.float32), np.zeros(2, np.float32), None)
        array([1., 2.], dtype=float32)
    """
    library = _Jax(compiled=hasattr(f, "lower"))  # a method of what jax.jit returns
    return as_op(library, f, _array, lambda x: isinstance(x, jax.Array) and _floats(x), lambda outs, inputs: None, proven=proven)


class _Jax:
    """See foreign.Library.

    Args: compiled: whether the function and its derivatives are compiled, once for each structure and shape of arguments.
    """

    name = "jax"
    caches = True

    def __init__(self, compiled: bool) -> None:
        self.compiled = compiled

    def evaluate(self, f: Foreign, fixed: Sequence[Any], values: Sequence[Array], keep: bool) -> tuple[list[Array], Any]:
        # Always with its pullback, so that XLA runs one program each time.
        kept = _kept_with(f)
        if "vjp" not in kept:

            def both(fixed: Sequence[Any], *xs: Any) -> Any:
                return jax.vjp(lambda *xs: list(f(fixed, *xs)), *xs)

            kept["vjp"] = jax.jit(both) if self.compiled else both
        outs, pullback = kept["vjp"](fixed, *map(_array, values))
        return [np.array(x) for x in outs], pullback if keep else None

    def pull_kept(self, kept: Any, bars: Sequence[Array], want: Sequence[bool]) -> list[Array]:
        return [np.array(g) for g, wanted in zip(kept([_array(b) for b in bars]), want, strict=True) if wanted]

    def pulled(self, f: Foreign, n_inputs: int, want: Sequence[bool], check: Callable[[Sequence[Any]], None]) -> Foreign:
        def g(fixed: Sequence[Any], *given: Any) -> list[Any]:
            _, pullback = jax.vjp(lambda *xs: list(f(fixed, *xs)), *given[:n_inputs])
            return [x for x, wanted in zip(pullback(list(given[n_inputs:])), want, strict=True) if wanted]

        found: Foreign = _kept_with(f).setdefault(("pulled", *want), g)
        return found

    def pushed(self, f: Foreign, n_inputs: int, moving: Sequence[bool], check: Callable[[Sequence[Any]], None]) -> Foreign:
        def g(fixed: Sequence[Any], *given: Any) -> list[Any]:
            inputs, dots = given[:n_inputs], given[n_inputs:]

            def of(*some: Any) -> list[Any]:
                rest = iter(some)
                return list(f(fixed, *(next(rest) if m else x for x, m in zip(inputs, moving, strict=True))))

            primals = tuple(x for x, m in zip(inputs, moving, strict=True) if m)
            found: list[Any] = jax.vmap(lambda ds: jax.jvp(of, primals, ds)[1])(tuple(dots))
            return found

        found: Foreign = _kept_with(f).setdefault(("pushed", *moving), g)
        return found


def _kept_with(f: Foreign) -> dict[Any, Any]:
    """What was derived of a function, kept with it, so that JAX traces and compiles it once."""
    kept: dict[Any, Any] = vars(f).setdefault("derived", {})
    return kept


def _floats(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))


def _shape(x: Any) -> Any:
    return jax.ShapeDtypeStruct(tuple(x.shape), x.dtype)


def _array(x: Array) -> Any:
    """A NumPy array as one of JAX's. Raises: DTypeError where JAX would make it float32."""
    kind = jax.dtypes.canonicalize_dtype(x.dtype)
    if kind != x.dtype and x.dtype.kind == "f":
        raise DTypeError(
            f"from_jax: an argument has dtype {x.dtype} and JAX makes it {kind}, expected one dtype because the precision would "
            "change silently; call jax.config.update('jax_enable_x64', True) first, or convert it with astype"
        )
    return jnp.array(x)
