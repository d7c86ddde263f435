"""Checks of derivatives, for a function and for a whole bilevel problem; AssertionError names both numbers.

Everything is checked in float64 against central finite differences with one Richardson extrapolation,
D = (4 D(h/2) - D(h)) / 3, whose error falls as h^4. The steps 1e-3 to 1e-6 are tried in turn until D(h/2)
and D agree; what does not settle is a kink, or a function that is not the same twice. A derivative is
compared along random directions that are as large as the argument itself, so that a step size of 1e-3 is
moved by 1e-6 and not by 1e-3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from .backends import Array, backend_of
from .bilevel import Batches, Bilevel, HyperGradient, Stats
from .errors import DifferentiationError, DTypeError
from .passes.forward import forward
from .passes.reverse import objective, reverse
from .tape import Tensor, to_tensors
from .transforms import grad, hvp, jvp, tree_tensors, tree_values, vjp
from .trees import PyTree, tree_flatten, tree_leaves, tree_map, tree_named, tree_unflatten

_STEPS = (1e-3, 1e-4, 1e-5, 1e-6)
_FULL_FORWARD = 64  # up to so many hyperparameters the forward pass is compared in every one
_PURITY_SAMPLE = 50


@dataclass(frozen=True)
class GradientReport:
    """What `check_gradients` found: the largest errors, each relative to the derivative it belongs to.

    Attributes:
        first_order: of the vjp and the jvp.
        second_order: of the Hessian products, by nesting.
    """

    first_order: float
    second_order: dict[str, float]


@dataclass(frozen=True)
class HypergradReport:
    """What `check_hypergrad` found; every error is relative.

    Attributes:
        value: the outer objective.
        n_steps: T.
        n_hparams: number of hyperparameters.
        states_held: by checkpoint policy, as counted.
        forward_error: largest difference of forward from reverse mode.
        difference_error: largest difference of a finite difference from reverse mode, by hyperparameter leaf.
        inner_error: the same for the inner loss's gradient and Hessian products.
    """

    value: float
    n_steps: int
    n_hparams: int
    states_held: dict[Any, int]
    forward_error: float
    difference_error: dict[str, float]
    inner_error: float


def _fail(message: str) -> NoReturn:
    raise AssertionError(message)


def _float64(tree: PyTree, where: str, root: str) -> PyTree:
    """The tree as arrays, all of them float64."""
    arrays = tree_map(lambda x: to_tensors(where, [x])[0].value, tree)
    for name, x in tree_named(arrays, root):
        if x.dtype != np.float64:
            raise DTypeError(
                f"{where}: {name} has dtype {x.dtype}, expected float64 because finite differences in lower "
                "precision tell nothing; convert it, and all data that the functions close over, with astype"
            )
    return arrays


def _direction(tree: PyTree, rng: np.random.Generator) -> PyTree:
    """A random direction, in every leaf as large as the leaf (as 1 where that is zero)."""

    def one(x: Array) -> Array:
        xp = backend_of(x).xp
        size = float(xp.sqrt(xp.mean(x * x))) if x.size else 1.0
        return xp.asarray(rng.standard_normal(x.shape)) * (size or 1.0)

    return tree_map(one, tree)


def _only(i: int, tree: PyTree) -> PyTree:
    """The direction in leaf i alone."""
    leaves, spec = tree_flatten(tree)
    return tree_unflatten(spec, [x if j == i else 0 * x for j, x in enumerate(leaves)])


def _vector(tree: PyTree) -> Any:
    """All elements, as a NumPy vector."""
    parts = [x.value if isinstance(x, Tensor) else x for x in tree_leaves(tree)]
    flat = [np.ravel(x.get() if hasattr(x, "get") else x) for x in parts]  # CuPy's arrays have get
    return np.concatenate(flat) if flat else np.zeros(0)


@dataclass(frozen=True)
class _Difference:
    """A finite difference, how far it has settled, and the rounding error to expect in it."""

    values: Any
    spread: float
    rounding: float


def _difference(
    f: Callable[[PyTree], PyTree], x: PyTree, v: PyTree, eps: float | None, rtol: float
) -> _Difference:
    """The derivative of f at x along v, as a vector."""
    best: _Difference | None = None

    def at(s: float) -> Any:
        return _vector(f(tree_map(lambda a, d: a + s * d, x, v)))

    for h in _STEPS if eps is None else (eps,):
        ends, halves = (at(h), at(-h)), (at(h / 2), at(-h / 2))
        coarse, fine = (ends[0] - ends[1]) / (2 * h), (halves[0] - halves[1]) / h
        values = (4 * fine - coarse) / 3
        largest = max(float(np.abs(e).max(initial=0.0)) for e in (*ends, *halves))
        rounding = 20 * np.finfo(np.float64).eps * largest / h
        found = _Difference(values, float(np.abs(values - fine).max(initial=0.0)), rounding)
        if best is None or not found.spread + found.rounding > best.spread + best.rounding:
            best = found
        if best.spread + best.rounding <= 0.1 * rtol * float(np.abs(values).max(initial=0.0)):
            break
    assert best is not None
    return best


def _compare(
    where: str, got: Any, difference: _Difference, values: Any, rtol: float, scale: float = 0.0
) -> float:
    """The largest relative error of `got` from `values`, a part of the difference; error beyond rtol."""
    got, values = np.atleast_1d(got), np.atleast_1d(values)
    scale = max(scale, float(np.abs(values).max(initial=0.0)), float(np.abs(got).max(initial=0.0)))
    errors = np.abs(got - values)
    if not errors.size:
        return 0.0
    worst = int(np.argmax(np.where(np.isnan(errors), np.inf, errors)))
    if not errors[worst] <= rtol * scale + difference.rounding:
        _fail(
            f"{where} is {got[worst]:.12g}, a finite difference gives {values[worst]:.12g} (settled to "
            f"{difference.spread:.1g}), expected them equal to {rtol:g}; look for a detached value, a wrong rule, or "
            "a kink within the step"
        )
    return float(errors[worst] / scale) if scale else 0.0


def _split(vector: Any, tree: PyTree, root: str) -> list[tuple[str, Any]]:
    """The parts of a vector that belong to the leaves of a tree, by name."""
    parts, start = [], 0
    for name, x in tree_named(tree, root):
        parts.append((name, vector[start : start + x.size]))
        start += x.size
    return parts


def check_gradients(
    f: Callable[..., Any],
    *args: PyTree,
    order: int = 2,
    eps: float | None = None,
    rtol: float = 1e-6,
    seed: int = 0,
) -> GradientReport:
    """Check a function's vjp, jvp and Hessian products (all nestings) against finite differences, in float64.

    Args:
        f: takes pytrees of Tensors, returns a pytree of Tensors; smooth near `args`.
        args: where to check, pytrees of float64 arrays.
        order: 2, or 1 to leave the Hessian products out.
        eps: the only step of the finite differences; None tries several (see the head of this file).
        rtol: error allowed, relative to the largest element of the derivative.
        seed: of the random directions.
    Returns: GradientReport.
    Raises: AssertionError that names the derivative, the argument's leaf and both numbers; DTypeError for an
        argument that is not float64.
    Cost: 4 to 16 evaluations of f for each leaf, and as many gradients; three Hessian products.
    """
    args = _float64(args, "check_gradients", "args")
    rng = np.random.default_rng(seed)
    out, pullback = vjp(f, *args)
    out_bar = _direction(tree_map(lambda x: backend_of(x).xp.ones_like(x), out), rng)
    bars = pullback(out_bar)

    def weighted(xs: Sequence[PyTree]) -> Tensor:
        """The scalar <out_bar, f(xs)>."""
        return sum(
            (((y * b).sum()) for y, b in zip(tree_leaves(f(*xs)), tree_leaves(out_bar), strict=True)),
            start=Tensor(np.zeros(())),
        )

    def value(xs: PyTree) -> PyTree:
        return tree_values(f(*tree_tensors(xs, "check_gradients")))

    v = _direction(args, rng)
    first = 0.0
    for i, ((name, bar), direction) in enumerate(zip(tree_named(bars, "args"), tree_leaves(v), strict=True)):
        alone = _only(i, v)
        d = _difference(value, args, alone, eps, rtol)
        _, out_dot = jvp(f, args, alone)
        first = max(
            first, _compare(f"check_gradients: jvp along {name}", _vector(out_dot), d, d.values, rtol)
        )
        terms = _vector(bar) * _vector(direction)
        weights = _vector(out_bar)
        along = _Difference(weights @ d.values, d.spread, d.rounding * float(np.abs(weights).sum()))
        first = max(
            first,
            _compare(
                f"check_gradients: vjp of {name} along a random direction",
                terms.sum(),
                along,
                along.values,
                rtol,
                scale=float(np.sqrt((terms * terms).sum())),
            ),
        )
    if order == 1:
        return GradientReport(first, {})
    d = _difference(grad(weighted), args, v, eps, rtol)
    nestings: dict[str, Callable[[], PyTree]] = {
        "forward over reverse": lambda: hvp(weighted, (args,), (v,))[2][0],
        "reverse over forward": lambda: grad(lambda xs: jvp(weighted, (xs,), (v,))[1])(args),
        "reverse over reverse": lambda: grad(
            lambda xs: sum(
                ((g * b).sum() for g, b in zip(tree_leaves(grad(weighted)(xs)), tree_leaves(v), strict=True)),
                start=Tensor(np.zeros(())),
            )
        )(args),
    }
    second = {}
    scale = float(np.abs(d.values).max(initial=0.0))
    for nesting, product in nestings.items():
        parts = zip(_split(_vector(product()), args, "args"), _split(d.values, args, "args"), strict=True)
        second[nesting] = max(
            (
                _compare(f"check_gradients: Hessian product, {nesting}: {name}", got, d, part, rtol, scale)
                for (name, got), (_, part) in parts
            ),
            default=0.0,
        )
    return GradientReport(first, second)


def check_hypergrad(
    problem: Bilevel,
    hparams: PyTree,
    batches: Batches,
    *,
    directions: int = 2,
    eps: float | None = None,
    rtol: float = 1e-6,
    forward_rtol: float = 1e-9,
    checkpoints: Sequence[Any] | None = None,
    seed: int = 0,
) -> HypergradReport:
    """Check a bilevel problem's hypergradient in every mode, in float64: your own problem, with few steps.

    In this order: batches give the same twice; reverse mode gives the same bits twice and under every
    checkpoint policy, and holds no more states than it promises; the inner loss's gradient and Hessian
    products, at the first and the last step, equal finite differences; forward mode equals reverse mode;
    reverse mode equals finite differences.

    Args:
        problem: the bilevel problem; smooth near `hparams`.
        hparams: pytree of float64 arrays.
        batches: indexable; T = len(batches).
        directions: random directions for each leaf of hparams along which finite differences are taken, >= 1.
        eps: the only step of the finite differences; None tries several (see the head of this file).
        rtol: error allowed against finite differences, relative to the derivative.
        forward_rtol: error allowed between forward and reverse mode, relative to the leaf's largest element.
        checkpoints: policies to compare; None stands for "all", "sqrt", 3 and, up to 50 steps, 1.
        seed: of the random directions.
    Returns: HypergradReport.
    Raises: AssertionError that names the mode, the leaf and both numbers; DTypeError for hparams that are not float64.
    Cost: for each leaf and direction 4 to 16 inner runs; a reverse run for each policy; a forward run with
        all hyperparameters, or with the random directions alone where there are more than 64.
    """
    hparams = _float64(hparams, "check_hypergrad", "hparams")
    n_steps, rng = len(batches), np.random.default_rng(seed)
    if checkpoints is None:
        checkpoints = ("all", "sqrt", 3, 1) if n_steps <= 50 else ("all", "sqrt", 3)
    _check_purity(batches)
    r = _reverse(problem, hparams, batches, "all")
    if not np.isfinite(float(r.value)):
        _fail(
            f"check_hypergrad: the outer objective is {float(r.value)}, expected a finite number; lower the step "
            "size or T"
        )
    held = {}
    for policy in (
        "all",
        *(c for c in checkpoints if c != "all"),
    ):  # "all" a second time: is it the same twice?
        other = _reverse(problem, hparams, batches, policy)
        _check_same_bits(r, other, policy)
        held[policy] = other.stats.states_held
        if isinstance(policy, int) and held[policy] > policy:
            _fail(
                f"check_hypergrad: reverse with checkpoints={policy} held {held[policy]} states, expected at most "
                f"{policy}"
            )
    inner = _check_inner(problem, hparams, r.params, batches, eps, rtol, rng) if n_steps else 0.0
    moves = [
        (i, _only(i, v))
        for v in (_direction(hparams, rng) for _ in range(directions))
        for i in range(len(tree_leaves(hparams)))
    ]
    agreement = _check_forward(problem, hparams, batches, r, [v for _, v in moves], forward_rtol)

    def value(h: PyTree) -> PyTree:
        return objective(problem, tree_tensors(h, "check_hypergrad"), batches, Stats("check"))[0].value

    names = [name for name, _ in tree_named(hparams, "hparams")]
    errors = dict.fromkeys(names, 0.0)
    for i, v in moves:
        terms = _vector(tree_leaves(r.grad)[i]) * _vector(tree_leaves(v)[i])
        d = _difference(value, hparams, v, eps, rtol)
        errors[names[i]] = max(
            errors[names[i]],
            _compare(
                f"check_hypergrad: reverse: the derivative along a random direction of {names[i]}",
                terms.sum(),
                d,
                d.values,
                rtol,
                scale=float(np.sqrt((terms * terms).sum())),
            ),
        )
    return HypergradReport(
        float(r.value), n_steps, sum(x.size for x in tree_leaves(hparams)), held, agreement, errors, inner
    )


def _reverse(problem: Bilevel, hparams: PyTree, batches: Batches, policy: Any) -> HyperGradient:
    """A reverse run; a step that is not the same twice is a finding of the check."""
    try:
        return reverse(problem, hparams, batches, checkpoints=policy)
    except DifferentiationError as error:
        _fail(f"check_hypergrad: reverse with checkpoints={policy!r}: {error}")


def _check_purity(batches: Batches) -> None:
    """The batches of some steps, read in order and then once more from the end."""
    steps = sorted({int(t) for t in np.linspace(0, len(batches) - 1, min(len(batches), _PURITY_SAMPLE))})
    before = {t: [_frozen(x) for x in tree_leaves(batches[t])] for t in steps}
    for t in reversed(steps):
        after = [_frozen(x) for x in tree_leaves(batches[t])]
        for i, (old, new) in enumerate(zip(before[t], after, strict=False)):
            if old != new:
                _fail(
                    f"check_hypergrad: batches[{t}] changed between two readings (leaf {i}), expected the same "
                    "because a step that is run again must see its batch again; derive the batch from t alone, such "
                    "as by default_rng((seed, t))"
                )
        if len(before[t]) != len(after):
            _fail(
                f"check_hypergrad: batches[{t}] had {len(before[t])} leaves and has {len(after)}, expected the same "
                "twice"
            )


def _frozen(x: Any) -> Any:
    """Something to compare a leaf of a batch by, that does not change when the leaf does."""
    value = x.value if isinstance(x, Tensor) else x
    return (str(value.dtype), value.shape, value.tobytes()) if hasattr(value, "tobytes") else value


def _check_same_bits(r: HyperGradient, other: HyperGradient, policy: Any) -> None:
    """Value, gradient and weights of two reverse runs, bit for bit."""
    for root, a, b in (
        ("value", r.value, other.value),
        ("params", r.params, other.params),
        ("hparams", r.grad, other.grad),
    ):
        for (name, x), (_, y) in zip(tree_named(a, root), tree_named(b, root), strict=True):
            if x.tobytes() != y.tobytes():
                xs, ys = _vector(x), _vector(y)
                i = int(np.argmax(xs != ys))
                _fail(
                    f"check_hypergrad: reverse with checkpoints={policy!r}: {name}, element {i}, is {ys[i]:.17g}, in "
                    f"the first run with 'all' it was {xs[i]:.17g}, expected the same bits because steps are pure; "
                    "look for randomness or state in inner_loss, init, optimizer or batches"
                )


def _check_forward(
    problem: Bilevel, hparams: PyTree, batches: Batches, r: HyperGradient, moves: list[PyTree], rtol: float
) -> float:
    """Forward against reverse mode: in every hyperparameter, or along the directions where there are many."""
    worst = 0.0
    if sum(x.size for x in tree_leaves(hparams)) <= _FULL_FORWARD:
        f = forward(problem, hparams, batches)
        if abs(float(f.value) - float(r.value)) > rtol * abs(float(r.value)):
            _fail(
                f"check_hypergrad: forward: the objective is {float(f.value):.12g}, reverse mode gives "
                f"{float(r.value):.12g}"
            )
        for (name, x), y in zip(tree_named(f.grad, "hparams"), tree_leaves(r.grad), strict=True):
            worst = max(worst, _agree(name, _vector(x), _vector(y), 0.0, rtol))
        return worst
    stacked = tree_map(lambda *vs: backend_of(vs[0]).xp.stack(vs), moves[0], *moves[1:])
    _, dots = jvp(lambda h: objective(problem, h, batches, Stats("check"))[0], (hparams,), (stacked,))
    names = [name for name, _ in tree_named(hparams, "hparams")]
    for i, (dot, move) in enumerate(zip(_vector(dots), moves, strict=True)):
        terms = _vector(r.grad) * _vector(move)
        worst = max(
            worst,
            _agree(
                f"the derivative along a random direction of {names[i % len(names)]}",
                np.asarray([dot]),
                np.asarray([terms.sum()]),
                float(np.sqrt((terms * terms).sum())),
                rtol,
            ),
        )
    return worst


def _agree(name: str, forward_values: Any, reverse_values: Any, scale: float, rtol: float) -> float:
    """The largest relative difference of two modes; AssertionError beyond rtol."""
    scale = max(scale, float(np.abs(reverse_values).max(initial=0.0)))
    errors = np.abs(forward_values - reverse_values)
    if not errors.size:
        return 0.0
    worst = int(np.argmax(np.where(np.isnan(errors), np.inf, errors)))
    if not errors[worst] <= rtol * scale:
        _fail(
            f"check_hypergrad: forward: {name}, element {worst}, is {forward_values[worst]:.12g}, reverse mode gives "
            f"{reverse_values[worst]:.12g}, expected them equal to {rtol:g}; look for an op whose vjp and jvp differ"
        )
    return float(errors[worst] / scale) if scale else 0.0


def _check_inner(
    problem: Bilevel,
    hparams: PyTree,
    w_last: PyTree,
    batches: Batches,
    eps: float | None,
    rtol: float,
    rng: np.random.Generator,
) -> float:
    """The inner loss's gradient and Hessian products along a direction in w, at the first and last step."""
    worst = 0.0
    w_first = tree_values(
        tree_tensors(problem.init(tree_tensors(hparams, "check_hypergrad")), "check_hypergrad")
    )
    for t, w in ((0, w_first), (len(batches) - 1, w_last)):
        w, batch = _float64(w, "check_hypergrad", "w"), batches[t]
        where = f"check_hypergrad: inner_loss at step {t}"

        def loss(w: PyTree, h: PyTree, batch: Any = batch) -> Tensor:
            return problem.inner_loss(w, h, batch)

        def value(w: PyTree, loss: Any = loss) -> Array:
            return loss(tree_tensors(w, "check_hypergrad"), tree_tensors(hparams, "check_hypergrad")).value

        def gradient(w: PyTree, loss: Any = loss) -> PyTree:
            return grad(loss, (0, 1))(w, hparams)

        v = _direction(w, rng)
        none = tree_map(lambda x: None, hparams)
        _, (g, _), (h_ww, h_hw) = hvp(loss, (w, hparams), (v, none))
        leaves = tree_leaves(w)
        for i, (name, part) in enumerate(tree_named(g, "w")):
            alone = _only(i, v)
            terms = _vector(part) * _vector(tree_leaves(alone)[i])
            d = _difference(value, w, alone, eps, rtol)
            worst = max(
                worst,
                _compare(
                    f"{where}: reverse: the gradient along a random direction of {name}",
                    terms.sum(),
                    d,
                    d.values,
                    rtol,
                    scale=float(np.sqrt((terms * terms).sum())),
                ),
            )
        d = _difference(gradient, w, v, eps, rtol)
        n_w = sum(x.size for x in leaves)
        for label, got, values, tree, root in (
            ("H_ww v", h_ww, d.values[:n_w], w, "w"),
            ("H_hw v", h_hw, d.values[n_w:], hparams, "hparams"),
        ):
            scale = float(np.abs(values).max(initial=0.0))
            for (name, x), (_, part) in zip(tree_named(got, root), _split(values, tree, root), strict=True):
                worst = max(
                    worst,
                    _compare(
                        f"{where}: {label}, forward over reverse: {name}", _vector(x), d, part, rtol, scale
                    ),
                )
    return worst
