"""What every op is held to, as functions that raise AssertionError; test_checks.py plants faults for each.

A case gives an op as a function of Tensors, an independent NumPy reference and sampled arguments.
`derivatives` computes everything the engine can say about it up to second order, and the checks compare:

* float64 with the reference, and with the finite differences of hypergrad.testing up to the third order;
* the ways to one derivative with each other: vjp with jvp, forward-over-reverse with reverse-over-reverse and
  reverse-over-forward, several directions in one run with one at a time;
* float32 with float64, by the largest element error against what roundings bring about (rounding.py);
* memory layouts with contiguous arguments, two runs with each other, arguments with their copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import rounding

import hypergrad as hg
from hypergrad import backends
from hypergrad.testing import check_gradients
from hypergrad.testing.differences import difference

Array = Any
EPS = {np.dtype(np.float32): float(np.finfo(np.float32).eps), np.dtype(np.float64): float(np.finfo(np.float64).eps)}

# Two ways to one number in float64 differ by rounding alone: a few hundred operations of 1.1e-16 each,
# amplified by the cases' conditioning (at most about 50). A wrong formula is off by far more than 1e-11 of
# the largest element.
SAME = 1e-11
# Differences with step 1e-3 have a truncation error of h^4 f^(5) / 480 = 2e-15 f^(5), f^(5) staying below 1e5 at the cases'
# distance from singularities, and a rounding error of 1e-16 / 1e-3 = 1e-13, amplified as above.
DIFFERENCED = 1e-9


@dataclass(frozen=True)
class Case:
    """One op at one sample.

    Attributes:
        name: id of the test, "op[detail]".
        f: Tensors -> Tensor; attributes are bound in it.
        reference: NumPy arrays -> NumPy array, in the arrays' dtype, written without hypergrad.
        shapes: shapes of the arguments.
        low, high: range of the sampled elements.
        exact: the op is linear or bilinear, so that differences with step 1 are exact.
        margin: arrays -> distance of the sample from the nearest kink; None where there is none.
        clear: distance that the sample keeps from kinks; differences need a few of their steps.
        seed: of the sample.
        make: arrays in place of uniform samples (called with a generator).
        composed: the op is composed of ops that have cases of their own, whose float32 is compared with the error model of rounding.py;
            or the same kernel is in another case, and this one shows that it goes through all arrays of a long list.
    """

    name: str
    f: Callable[..., hg.Tensor]
    reference: Callable[..., Array]
    shapes: tuple[tuple[int, ...], ...]
    low: float = -1.5
    high: float = 1.5
    exact: bool = False
    margin: Callable[..., float] | None = None
    clear: float = 4e-3
    seed: int = 0
    make: Callable[[np.random.Generator], Sequence[Array]] | None = None
    composed: bool = False

    def arguments(self, dtype: Any) -> list[Array]:
        """The sample, away from kinks; both dtypes get the same numbers (those of float32)."""
        for attempt in range(50):
            rng = np.random.default_rng((self.seed, attempt))
            raw = self.make(rng) if self.make else [rng.uniform(self.low, self.high, s) for s in self.shapes]
            args = [np.asarray(a, np.float32).astype(dtype) for a in raw]
            if self.margin is None or self.margin(*args) > self.clear:
                return args
        raise AssertionError(f"{self.name}: no sample keeps {self.clear} away from the kinks")

    def __str__(self) -> str:
        return self.name


def largest(a: Array) -> float:
    """Largest magnitude; NaN if there is one, 0 of nothing."""
    return float(np.max(np.abs(a))) if np.size(a) else 0.0


def assert_same(got: Array, want: Array, what: str, tolerance: float = SAME, scale: float | None = None) -> None:
    """Equal shapes, and every element within tolerance * (largest element of `want`, or `scale`)."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    size = largest(want) if scale is None else scale
    bound = tolerance * max(size, 1e-3)
    error = largest(got.astype(np.float64) - want)
    assert error <= bound, f"{what}: largest element error {error:.3g}, allowed {bound:.3g}"


def differenced(f: Callable[..., Any], args: Sequence[Array], dots: Sequence[Array], step: float | None = None) -> Array:
    """The derivative of a function of arrays along `dots`, by hypergrad.testing's finite difference."""
    values: Array = difference(lambda a: f(*a), list(args), list(dots), step, 1e-9).values
    return values.reshape(np.shape(f(*args)))


@dataclass(frozen=True)
class Weights:
    """Everything drawn besides the arguments: 3 directions each, a cotangent, the weights of a scalar loss.

    The loss sum(c y) + sum(e y^2) / 2 gives every output its own cotangent, and that cotangent a tangent.
    """

    dots: list[Array]
    y_bar: Array
    c: Array
    e: Array

    @staticmethod
    def draw(args: Sequence[Array], y_shape: tuple[int, ...], dtype: Any) -> Weights:
        rng = np.random.default_rng(7)

        def uniform(shape: tuple[int, ...]) -> Array:
            return rng.uniform(-1, 1, shape).astype(np.float32).astype(dtype)

        return Weights([uniform((3, *a.shape)) for a in args], uniform(y_shape), uniform(y_shape), uniform(y_shape))

    def laid_out(self, layout: str) -> Weights:
        """The same numbers, lying differently in memory."""
        arrays = (laid_out(a, layout) for a in (self.y_bar, self.c, self.e))
        return Weights([laid_out(d, layout) for d in self.dots], *arrays)

    def loss(self, f: Callable[..., hg.Tensor]) -> Callable[..., hg.Tensor]:
        """The scalar loss on Tensors."""

        def scalar(*args: Any) -> hg.Tensor:
            y = f(*args)
            return hg.sum(y * self.c) + 0.5 * hg.sum(y * y * self.e)

        return scalar


def inner(xs: Sequence[Any], ys: Sequence[Any]) -> Any:
    """<x, y> over several Tensors."""
    total: Any = 0.0
    for x, y in zip(xs, ys, strict=True):
        total = hg.sum(x * y) + total
    return total


def derivatives(f: Callable[..., hg.Tensor], args: Sequence[Array], w: Weights) -> dict[str, list[Array]]:
    """Everything up to second order, by every route. Keys with one meaning share the part before the bar."""
    args = tuple(args)
    numbers = tuple(range(len(args)))
    one = [d[0] for d in w.dots]
    loss = w.loss(f)
    out: dict[str, list[Array]] = {}

    y, pullback = hg.vjp(f, *args)
    out["value|vjp"] = [y]
    out["bars|vjp"] = list(pullback(w.y_bar))
    y, y_dots = hg.jvp(f, args, tuple(w.dots))
    out["value|jvp"], out["dots|P=3"] = [y], [y_dots]
    out["dots|P=1"] = [np.stack([hg.jvp(f, args, tuple(d[i] for d in w.dots))[1] for i in range(3)])]

    value, grads = hg.value_and_grad(loss, argnums=numbers)(*args)
    out["loss|grad"], out["grad|grad"] = [value], list(grads)
    value, grads, products = hg.hvp(loss, args, tuple(w.dots))
    out["loss|hvp"], out["grad|hvp"], out["hvps|P=3"] = [value], list(grads), list(products)
    out["hvp|P=1"] = list(hg.hvp(loss, args, tuple(one))[2])
    out["hvp|forward over reverse"] = list(hg.jvp(hg.grad(loss, argnums=numbers), args, tuple(one))[1])
    out["hvp|reverse over reverse"] = list(hg.grad(lambda *a: inner(hg.grad(loss, argnums=numbers)(*a), one), argnums=numbers)(*args))
    # The Hessian product is linear in its direction and symmetric: its transpose there is itself.
    other = tuple(d[1] for d in w.dots)
    out["hvp|in its direction"] = list(hg.grad(lambda *v: inner(hg.hvp(loss, args, v)[2], one), argnums=numbers)(*other))
    out["hvp|reverse over forward"] = list(hg.grad(lambda *a: hg.jvp(loss, a, tuple(one))[1], argnums=numbers)(*args))
    return out


def check_routes(found: dict[str, list[Array]], name: str, tolerance: float) -> None:
    """All routes to one derivative agree."""
    first: dict[str, str] = {}
    for key, arrays in found.items():
        meaning = key.partition("|")[0]
        other = found[first.setdefault(meaning, key)]
        for i, (a, b) in enumerate(zip(arrays, other, strict=True)):
            assert_same(a, b, f"{name}: {key} against {first[meaning]}, argument {i}", tolerance)
    for i, (many, single) in enumerate(zip(found["hvps|P=3"], found["hvp|P=1"], strict=True)):
        assert_same(many[0], single, f"{name}: first of three Hessian products, argument {i}", tolerance)


def check_float64(case: Case) -> None:
    """Values against the reference, derivatives against each other and against finite differences."""
    args = case.arguments(np.float64)
    wanted = case.reference(*args)
    w = Weights.draw(args, np.shape(wanted), np.float64)
    found = derivatives(case.f, args, w)
    assert_same(found["value|vjp"][0], wanted, f"{case}: value against NumPy")
    for key in ("bars|vjp", "grad|grad", "hvp|P=1"):
        shapes = [np.shape(a) for a in found[key]]
        assert shapes == [a.shape for a in args], f"{case}: {key} has shapes {shapes}, expected those of the arguments"
    check_routes(found, case.name, SAME)
    for i, direction in enumerate(zip(*w.dots, strict=True)):
        terms = [w.y_bar * found["dots|P=3"][0][i], *(-b * d for b, d in zip(found["bars|vjp"], direction, strict=True))]
        assert_same(
            sum(np.sum(t) for t in terms),
            0.0,
            f"{case}: <y_bar, J x_dot> - <J^T y_bar, x_dot>, direction {i}",
            scale=sum(float(np.sum(np.abs(t))) for t in terms),
        )
    eps, rtol = (1.0, SAME) if case.exact else (None, DIFFERENCED)
    one, two, loss = tuple(d[0] for d in w.dots), tuple(d[1] for d in w.dots), w.loss(case.f)
    check_gradients(case.f, *args, order=1, eps=eps, rtol=rtol)
    check_gradients(loss, *args, eps=eps, rtol=rtol)

    def curvature(*a: Any) -> Any:
        return inner(hg.grad(loss, argnums=tuple(range(len(args))))(*a), one)

    # d/dt of H(x + t v2) v1 is T[v1, v2], which forward over reverse over reverse gives as H(curvature) v2.
    third = _joined(hg.hvp(curvature, tuple(args), two)[2])
    by_difference = differenced(lambda *a: _joined(hg.hvp(loss, a, one)[2]), args, two, eps)
    assert_same(third, by_difference, f"{case}: third derivative against differences of the Hessian product", rtol)


def _joined(arrays: Sequence[Array]) -> Array:
    return np.concatenate([np.ravel(a) for a in arrays])


def check_float32(case: Case) -> None:
    """Every derivative in float32, by its worst element: within what rounding every stored result may bring about."""
    args = case.arguments(np.float64)
    w = Weights.draw(args, np.shape(case.reference(*args)), np.float64)
    want = derivatives(case.f, args, w)
    single = [a.astype(np.float32) for a in args]
    dtype = case.f(*map(hg.Tensor, single)).dtype
    assert dtype == np.float32, f"{case}: value of float32 arguments has dtype {dtype}"
    if case.composed:
        return composed_float32(case, args, w)
    got = derivatives(case.f, single, _cast(w, np.float32))
    within_rounding(case.f, args, w, want, got, str(case))


def composed_float32(case: Case, args: list[Array], w: Weights) -> None:
    """One route to every derivative in float32: its dtype, and its numbers within a thousand roundings of the largest one."""
    want, got = essentials(case.f, args, w), essentials(case.f, [a.astype(np.float32) for a in args], _cast(w, np.float32))
    for key in want:
        for g, a in zip(got[key], want[key], strict=True):
            assert g.dtype == np.float32, f"{case}: {key} has dtype {g.dtype}"
            assert_same(g, a, f"{case}: {key} in float32", 1000 * EPS[g.dtype], max(largest(a), 1.0))


def within_rounding(
    f: Callable[..., hg.Tensor], args: Sequence[Array], w: Weights, want: dict[str, list[Array]], got: dict[str, list[Array]], name: str
) -> None:
    """`got`, in float32, is as near to `want`, in float64, as the error model of rounding.py allows."""
    bounds = rounding.allowed(lambda: longest_routes(f, args, w), longest_routes(f, args, w))
    for key in want:
        for i, (g, a, bound) in enumerate(zip(got[key], want[key], bounds[key.partition("|")[0]], strict=True)):
            assert g.dtype == np.float32, f"{name}: {key} has dtype {g.dtype}"
            assert g.shape == a.shape, f"{name}: {key} has shape {g.shape}, expected {a.shape}"
            error = largest(g.astype(np.float64) - a)
            assert error <= bound, f"{name}: {key}, argument {i}, float32: largest element error {error:.3g}, allowed {bound:.3g}"


def longest_routes(f: Callable[..., hg.Tensor], args: Sequence[Array], w: Weights) -> dict[str, list[Array]]:
    """What `derivatives` gives, by its meaning; of several routes the one with the most ops, whose roundings are the most."""
    numbers, one, loss = tuple(range(len(args))), [d[0] for d in w.dots], w.loss(f)
    y, pullback = hg.vjp(f, *args)
    value, grads, products = hg.hvp(loss, tuple(args), tuple(w.dots))
    twice = hg.grad(lambda *a: inner(hg.grad(loss, argnums=numbers)(*a), one), argnums=numbers)(*args)
    return {
        "value": [y],
        "bars": list(pullback(w.y_bar)),
        "dots": [hg.jvp(f, tuple(args), tuple(w.dots))[1]],
        "loss": [value],
        "grad": list(grads),
        "hvps": list(products),
        "hvp": list(twice),
    }


def _cast(w: Weights, dtype: Any) -> Weights:
    return Weights([d.astype(dtype) for d in w.dots], w.y_bar.astype(dtype), w.c.astype(dtype), w.e.astype(dtype))


# --- layouts, repeats, unwritten elements ---------------------------------------------------------

LAYOUTS = ("transposed", "offset", "negative", "strided")


def laid_out(a: Array, layout: str) -> Array:
    """An array equal to `a` that lies differently in memory."""
    if layout == "transposed":
        return a.T.copy(order="C").T
    if layout == "offset":
        buffer = np.full(a.size + 3, np.nan, a.dtype)
        buffer[3:] = a.ravel()
        return buffer[3:].reshape(a.shape)
    if layout == "negative":
        back = (..., *(slice(None, None, -1),) * a.ndim)
        return a[back].copy(order="C")[back]
    wide = np.full(tuple(2 * n for n in a.shape), np.nan, a.dtype)
    view = wide[(..., *(slice(None, None, 2),) * a.ndim)]
    view[...] = a
    return view


def check_layouts(case: Case, dtype: Any) -> None:
    """Views give what contiguous arrays give, a second run gives the same bits, and nothing is written to."""
    args = case.arguments(dtype)
    w = Weights.draw(args, np.shape(case.reference(*args)), dtype)

    def run(layout: str | None) -> dict[str, list[Array]]:
        views = [a.copy() if layout is None else laid_out(a, layout) for a in args]
        for v in views:
            v.flags.writeable = False
        found = essentials(case.f, views, w if layout is None else w.laid_out(layout))
        for v, a in zip(views, args, strict=True):
            assert np.array_equal(v, a), f"{case}: an argument was written to"
        return found

    plain, again = run(None), run(None)
    for key in plain:
        for a, b in zip(plain[key], again[key], strict=True):
            assert a.tobytes() == b.tobytes(), f"{case}: {key} differs between two runs"
    for layout in LAYOUTS:
        found = run(layout)
        for key in plain:
            for a, b in zip(plain[key], found[key], strict=True):
                # Sums run in the order of memory: rounding may differ, by a few hundred operations' worth.
                assert_same(b, a, f"{case}: {key} of {layout} arguments", 100 * EPS[np.dtype(dtype)])


def essentials(f: Callable[..., hg.Tensor], args: Sequence[Array], w: Weights) -> dict[str, list[Array]]:
    """Value, vjp, jvp, gradient and Hessian products: one route each."""
    y, pullback = hg.vjp(f, *args)
    _, y_dots = hg.jvp(f, tuple(args), tuple(w.dots))
    _, grads, products = hg.hvp(w.loss(f), tuple(args), tuple(w.dots))
    return {"value": [y], "vjp": list(pullback(w.y_bar)), "jvp": [y_dots], "grad": list(grads), "hvp": list(products)}


class Guarded:
    """A backend's `empty` whose arrays begin as one byte everywhere, 255 (NaN in floats), between rims that kernels must leave alone."""

    rim = 64

    def __init__(self, byte: int = 255) -> None:
        self.byte = byte
        self.handed: list[tuple[Array, Array]] = []

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        """An array, and its rims around it."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        buffer = np.full(size + 2 * self.rim, 77, np.uint8)
        inside = buffer[self.rim : self.rim + size]
        inside[...] = self.byte
        self.handed.append((buffer, inside.view(dtype).reshape(tuple(shape))))
        return self.handed[-1][1]

    def check(self, written: bool = True) -> None:
        """Fails where a kernel wrote outside an array or, if `written`, left NaN or, in bytes, 255."""
        for buffer, out in self.handed:
            assert (buffer[: self.rim] == 77).all() and (buffer[-self.rim :] == 77).all(), "written outside an output"
            if written and out.dtype.kind == "f":
                assert not np.isnan(out).any(), "elements of an output are unwritten"
            elif written and out.dtype == np.uint8:
                assert not (out == 255).any(), "elements of an output are unwritten"


@contextmanager
def guarded_outputs(byte: int = 255) -> Iterator[None]:
    """Context in which the outputs of the backend of NumPy arrays are Guarded; not for several threads at once."""
    guarded = Guarded(byte)
    with mock.patch.object(type(backends.HOST), "empty", lambda self, shape, dtype: guarded.empty(shape, dtype)):
        yield
    assert guarded.handed, "guarded_outputs: no array was asked for"
    guarded.check(written=False)


def check_outputs_written(case: Case, dtype: Any) -> None:
    """Every element of every kernel's output is written, and nothing beside them."""
    args = case.arguments(dtype)
    w = Weights.draw(args, np.shape(case.reference(*args)), dtype)
    with guarded_outputs():
        found = essentials(case.f, args, w)
    for key, arrays in found.items():
        for a in arrays:
            assert np.all(np.isfinite(a)), f"{case}: {key} has an element that was not written"
