"""What every fused op is held to: kernels and composed reference agree in all rungs and nestings, whatever inputs take part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from checks import SAME, Array, Case, Weights, assert_same, derivatives, essentials, within_rounding
from places import counted

import hypergrad as hg
from hypergrad import _host

RUNGS = ("value", "jvp", "vjp", "vjp_jvp")


def setting(case: Case, dtype: Any = np.float64) -> tuple[list[Array], Weights]:
    """The sample's arguments, and the weights and directions of its derivatives."""
    args = case.arguments(dtype)
    return args, Weights.draw(args, np.shape(case.reference(*args)), dtype)


def against_composed(f: Callable[[], Any], what: str) -> None:
    """Fused equals composed, result by result."""
    got = f()
    with hg.fusion(False):
        want = f()
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert_same(a, b, f"{what}, result {i}")


def check_float64(case: Case, kernels: set[str], tolerance: float = SAME) -> Counter[str]:
    """Everything up to second order; with fusion all `kernels` run, without it none. Returns what ran with it."""
    args, w = setting(case)
    with hg.fusion(False), counted() as runs:
        want = derivatives(case.f, args, w)
    assert not kernels & set(runs), f"fusion(False) ran {runs}"
    with counted() as runs:
        got = derivatives(case.f, args, w)
    assert kernels <= set(runs), f"expected the kernels to run, got {runs}"
    for key in want:
        for i, (a, b) in enumerate(zip(got[key], want[key], strict=True)):
            assert_same(a, b, f"{key}, argument {i}", tolerance)
    return runs


def check_float32(case: Case) -> None:
    """Kernels in float32 are as near to the composed ops in float64 as composed ops in float32 may be off."""
    args, w = setting(case)
    with hg.fusion(False):
        exact = derivatives(case.f, args, w)
    within_rounding(case.f, args, w, exact, derivatives(case.f, *setting(case, np.float32)), str(case))


def subsets(n: int) -> list[tuple[int, ...]]:
    """All choices of at least one of n arguments."""
    return [s for r in range(1, n + 1) for s in combinations(range(n), r)]


def total(parts: Sequence[Sequence[Array]], chosen: Iterable[int]) -> list[Array]:
    """The sum of some rows, entry by entry."""
    return [sum(column) for column in zip(*(parts[i] for i in chosen), strict=True)]


def all_same(got: Sequence[Array], want: Sequence[Array], what: str) -> None:
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert_same(a, b, f"{what}, result {i}")


def check_tangents_of_some(case: Case, curved: bool) -> None:
    """Tangents on every choice of the inputs, several and one; `curved` gives the cotangent a tangent, too.

    Derivatives are linear in the tangents. So what the composed ops give for a choice is the sum of what they give for each input alone.
    """
    args, w = setting(case)
    loss, n = w.loss(case.f) if curved else lambda *a: hg.sum(case.f(*a) * w.c), len(args)

    def derivatives_along(dots: tuple[Any, ...]) -> tuple[list[Array], list[Array]]:
        _, grads, products = hg.hvp(loss, args, dots)
        return list(grads), [hg.jvp(case.f, args, dots)[1], *products]

    def only(chosen: Iterable[int], dots: Sequence[Array]) -> tuple[Any, ...]:
        return tuple(d if i in chosen else None for i, d in enumerate(dots))

    with hg.fusion(False):
        (slopes, *_), alone = zip(*(derivatives_along(only((i,), w.dots)) for i in range(n)), strict=True)
    for chosen in subsets(n):
        want = total(alone, chosen)
        for dots, wanted in ((w.dots, want), ([d[1] for d in w.dots], [x[1] for x in want])):
            grads, got = derivatives_along(only(chosen, dots))
            all_same(grads, slopes, f"gradient beside the hvp in {chosen}")
            all_same(got, wanted, f"jvp and hvp in {chosen}")


def check_cotangents_of_some(case: Case) -> None:
    """Cotangents of every choice of the inputs; the others carry tangents all the same, or they alone.

    The composed ops give all cotangents at once, and their tangents along each input alone, of which the rest are sums.
    """
    args, w = setting(case)
    loss, every = w.loss(case.f), tuple(range(len(args)))
    with hg.fusion(False):
        slopes = hg.grad(loss, argnums=every)(*args)
        alone = [hg.jvp(hg.grad(loss, argnums=every), args, tuple(d if i == j else None for j, d in enumerate(w.dots)))[1] for i in every]
    for wanted in subsets(len(args)):
        gradient = hg.grad(loss, argnums=wanted)
        all_same(gradient(*args), [slopes[i] for i in wanted], f"grad by {wanted}")
        curvature = total(alone, every)
        all_same(hg.jvp(gradient, args, tuple(w.dots))[1], [curvature[i] for i in wanted], f"jvp of grad by {wanted}")
        rest = [i for i in every if i not in wanted]
        if rest:
            mixed = total(alone, rest)
            got = hg.jvp(gradient, args, tuple(w.dots[i][0] if i in rest else None for i in every))[1]
            all_same(got, [mixed[i][0] for i in wanted], f"mixed derivatives, grad by {wanted}")


def check_tangent_of_the_cotangent(case: Case, op: str) -> None:
    """The cotangent alone carries tangents, one or three: the vjp kernel serves them; and the derivative in those tangents."""
    args, w = setting(case)
    numbers = tuple(range(1, len(args) + 1))

    def products(s_dot: Any) -> Any:
        return hg.jvp(lambda s: hg.grad(lambda s, *a: hg.sum(s * case.f(*a)), argnums=numbers)(s, *args), (w.c,), (s_dot,))[1]

    for directions in (1, 3):
        s_dot = np.random.default_rng(5).normal(size=(directions, *w.c.shape))
        with counted() as runs:
            products(s_dot)
        assert runs[f"{op}_vjp"] and not runs[f"{op}_vjp_jvp"]
        against_composed(lambda d=s_dot: products(d), f"jvp of grad, {directions} directions")
        along = lambda s_dot, n=directions: sum((hg.sum(p * d[:n]) for p, d in zip(products(s_dot), w.dots, strict=True)), 0.0)  # noqa: E731
        against_composed(lambda d=s_dot, f=along: [hg.grad(f)(d)], f"grad in the cotangent's {directions} tangents")


def check_bits_for_any_threads(case: Case, level: str) -> None:
    """In float32, with the instruction set `level`: one, two and three threads give the same bits."""
    chosen, threads = _host.build_info()["simd"], _host.threads()
    args, w = setting(case, np.float32)
    found = []
    try:
        _host.set_simd(level)
        for n in (1, 2, 3):
            _host.set_threads(n)
            found.append(essentials(case.f, args, w))
    finally:
        _host.set_simd(chosen)
        _host.set_threads(threads)
    for other in found[1:]:
        for key, arrays in found[0].items():
            assert [a.tobytes() for a in arrays] == [b.tobytes() for b in other[key]], key
