"""The check of a whole bilevel problem: every mode against every other, against finite differences, and against itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..backends import Array, backend_of
from ..bilevel import Batches, Bilevel, HyperGradient
from ..errors import DifferentiationError
from ..passes.forward import forward
from ..passes.reverse import reverse
from ..transforms import grad, hvp, tree_tensors, vjp
from ..trees import PyTree, tree_leaves, tree_map, tree_named
from .differences import Rounding, compare, difference, direction, fail, float64, largest, names, only, rounding_of, slopes, split, vector
from .parts import Point, Subject, check_adjoint, check_transposed, likely_cause, loss_part, update_part, walk
from .purity import Watched, check_batches, check_pullback, check_same_bits

_FULL_FORWARD = 64  # the most hyperparameters for which forward mode is compared in every one of them


@dataclass(frozen=True)
class HypergradReport:
    """What `check_hypergrad` found; every error is relative.

    Attributes:
        value: the outer objective.
        n_steps: T.
        n_hparams: number of hyperparameters.
        states_held: by checkpoint policy, as counted.
        forward_error: largest difference of forward from reverse mode.
        difference_error: largest difference of a finite difference from reverse mode, by leaf of the hyperparameters and of the
            optimiser's first state, where one is given.
        inner_error: the same for the inner loss's gradient and Hessian products.
        without_influence: the leaves on which the objective does not depend at all: both the derivative and the differences are
            exactly 0.
    Example:
        >>> from hypergrad.testing import check_hypergrad
        >>> problem = hg.Bilevel(
        ...     lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum(w**2), lambda h: np.zeros(2), lambda h: hg.SGD(lr=0.25)
        ... )
        >>> check_hypergrad(problem, np.array([1.0, 2.0]), hg.full_batch(None, 3)).states_held
        {'all': 3, 'sqrt': 2, 3: 3, 1: 1}
    """

    value: float
    n_steps: int
    n_hparams: int
    states_held: dict[Any, int]
    forward_error: float
    difference_error: dict[str, float]
    inner_error: float
    without_influence: tuple[str, ...] = ()


def check_hypergrad(
    problem: Bilevel,
    hparams: PyTree,
    batches: Batches,
    *,
    outer_batch: Any = None,
    state: PyTree = None,
    directions: int = 2,
    eps: float | None = None,
    rtol: float = 1e-6,
    forward_rtol: float = 1e-9,
    checkpoints: Sequence[Any] | None = None,
    seed: int = 0,
) -> HypergradReport:
    """Check a bilevel problem's hypergradient in every mode, in float64: your own problem, with few steps.

    The checks, in order: Batches give the same twice and are not overwritten. The optimiser keeps shape and dtype of every leaf. Reverse
    mode gives the same bits twice and under every policy, and holds no more states than it promises. A pullback gives the same bits when
    called again, and after a write to what it reads the same bits or an error. At the first and the last step, an update declared linear
    in the gradient is linear, the vjp and jvp of the update and of the inner loss agree, and the inner loss's gradient and Hessian
    products equal finite differences. Forward mode equals reverse mode. Reverse mode equals finite differences.

    Where something differs, the functions of the problem are checked one by one, and the error names the likely cause: a detached
    value, a wrong rule of a custom op, randomness or state, a kink within the step, or an update that is wrongly declared as linear.

    Args:
        problem: the bilevel problem; smooth near `hparams`.
        hparams: pytree of float64 arrays.
        batches: indexable; T = len(batches).
        outer_batch, state: as in `hypergrad.reverse`. The derivative in the leaves of `state` is checked, too.
        directions: random directions for each leaf of hparams along which finite differences are taken, >= 1.
        eps: the only step of the finite differences; None tries several (see the head of differences.py).
        rtol: error allowed against finite differences, relative to the derivative. Where that is zero because terms cancel, a few
            hundred units in the last place of those terms are allowed, and the rounding of the differences.
        forward_rtol: error allowed between forward and reverse mode, relative to the leaf's largest element, with the same exception.
        checkpoints: policies to compare; None stands for "all", "sqrt", 3 and, up to 50 steps, 1.
        seed: of the random directions.
    Returns: HypergradReport.
    Raises: AssertionError that names the mode, the leaf, both numbers and the likely cause; DTypeError for hparams that are not float64.
    Cost: for each leaf and direction 4 to 16 inner runs; a reverse run for each policy and two for the pullback; a forward run with
        all hyperparameters, or with the random directions alone where there are more than 64. Looking for a cause takes a few
        dozen evaluations of each function, and is done only where something differs.
    Example:
        >>> from hypergrad.testing import check_hypergrad
        >>> problem = hg.Bilevel(
        ...     lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum(w**2), lambda h: np.zeros(2), lambda h: hg.SGD(lr=0.25)
        ... )
        >>> report = check_hypergrad(problem, np.array([1.0, 2.0]), hg.full_batch(None, 3))
        >>> report.n_hparams, report.forward_error < 1e-9
        (2, True)
    """
    hparams, state = float64(hparams, "check_hypergrad", "hparams"), float64(state, "check_hypergrad", "state")
    n_steps = len(batches)
    if checkpoints is None:
        checkpoints = ("all", "sqrt", 3, 1) if n_steps <= 50 else ("all", "sqrt", 3)
    check_batches(batches)
    check = _Check(Subject(problem, batches, outer_batch), hparams, state, eps, rtol, forward_rtol, seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*no influence on the outer objective")  # the report has them
        return check.run(checkpoints, directions)


class _Check:
    """One run of `check_hypergrad`."""

    def __init__(
        self, subject: Subject, hparams: PyTree, state: PyTree, eps: float | None, rtol: float, forward_rtol: float, seed: int
    ) -> None:
        self.subject, self.hparams, self.state = subject, hparams, state
        self.eps, self.rtol, self.forward_rtol, self.seed = eps, rtol, forward_rtol, seed
        self.rng = np.random.default_rng(seed)
        self.points: list[Point] = []
        self.w_last: PyTree = None

    def run(self, checkpoints: Sequence[Any], directions: int) -> HypergradReport:
        """See `check_hypergrad`."""
        self.points, self.w_last = walk(self.subject, self.hparams, self.state)
        watched = Watched(self.subject, (self.hparams, self.state), "inputs")
        try:
            r = self._reverse(watched.subject, "all")
        finally:
            watched.check()
        if not np.isfinite(float(r.value)):
            fail(f"check_hypergrad: the outer objective is {float(r.value)}, expected a finite number; lower the step size or T")
        held = {}
        for policy in ("all", *(c for c in checkpoints if c != "all")):  # "all" once more, to see the same bits twice
            other = self._reverse(self.subject, policy)
            check_same_bits(r, other, policy, self._cause)
            held[policy] = other.stats.states_held
            if isinstance(policy, int) and held[policy] > policy:
                fail(f"check_hypergrad: reverse with checkpoints={policy} held {held[policy]} states, expected at most {policy}")
        state_bar = check_pullback(self.subject, self.hparams, self.state, r, self._cause)
        inner = max((self._check_step(point) for point in self.points), default=0.0)
        self.inputs, self.bars = (self.hparams, self.state), tree_leaves((r.grad, state_bar))
        self.names = names(("hparams", "state"), self.inputs)
        moves = [(i, only(i, v)) for v in (direction(self.inputs, self.rng) for _ in range(directions)) for i in range(len(self.names))]
        agreement = self._check_forward(r, moves)
        errors, without = self._check_differences(moves)
        n_hparams = sum(x.size for x in tree_leaves(self.hparams))
        return HypergradReport(float(r.value), len(self.subject.batches), n_hparams, held, agreement, errors, inner, without)

    def _reverse(self, subject: Subject, policy: Any) -> HyperGradient:
        """A reverse run. A step that is not the same twice fails the check."""
        try:
            return reverse(
                subject.problem, self.hparams, subject.batches, checkpoints=policy, outer_batch=subject.outer_batch, state=self.state
            )
        except DifferentiationError as error:
            fail(f"check_hypergrad: reverse with checkpoints={policy!r}: {error}; {self._cause()}")

    def _cause(self, whole: Callable[[], str | None] = lambda: None) -> str:
        return likely_cause(self.subject, self.hparams, self.points, self.w_last, self.seed, whole=whole)

    # --- one step -----------------------------------------------------------------------------------------

    def _check_step(self, point: Point) -> float:
        """The optimiser's declaration, both modes of the update and of the inner loss, and the inner loss against differences."""
        check_transposed(self.subject, self.hparams, point, self.rng, self._cause)
        check_adjoint(update_part(self.subject, self.hparams, point), self.forward_rtol, self.rng)
        worst = self._check_inner(point)
        check_adjoint(loss_part(self.subject, self.hparams, point), self.forward_rtol, self.rng)
        return worst

    def _check_inner(self, point: Point) -> float:
        """The inner loss's gradient and Hessian products along a direction in w."""
        worst, where = 0.0, f"check_hypergrad: inner_loss at step {point.t}"
        loss, w, hparams = self.subject.inner(point.t), point.w, self.hparams

        def value(w: PyTree) -> Array:
            return loss(tree_tensors(w, "check_hypergrad"), tree_tensors(hparams, "check_hypergrad")).value

        v, still = direction(w, self.rng), tree_map(lambda _: None, hparams)

        def products(both: PyTree) -> tuple[PyTree, PyTree]:
            _, (g, _), hessian = hvp(loss, both, (v, still))
            return g, hessian

        def rounding(f: Callable[[PyTree], Any]) -> Callable[[], Rounding]:
            return lambda: rounding_of(f, (w, hparams), self.rng).largest()

        g, (h_ww, h_hw) = products((w, hparams))
        n_w = sum(x.size for x in tree_leaves(w))
        for i, (name, part) in enumerate(tree_named(g, "w")):
            alone = only(i, v)
            terms = vector(part) * vector(tree_leaves(alone)[i])

            def slope(both: PyTree, alone: PyTree = alone) -> Any:
                return np.atleast_1d(vector(products(both)[0]) @ vector(alone))

            d = difference(value, w, alone, self.eps, self.rtol)
            label = f"{where}: reverse: the gradient along a random direction of {name}"
            worst = max(worst, d.check(label, terms, self.rtol, rounding(slope), self._cause))
        d = difference(lambda w: grad(loss, (0, 1))(w, hparams), w, v, self.eps, self.rtol)
        rows = (("H_ww v", h_ww, d.values[:n_w], w, "w"), ("H_hw v", h_hw, d.values[n_w:], hparams, "hparams"))
        options: Any = {"against": d, "rounding": rounding(lambda both: vector(products(both)[1])), "cause": self._cause}
        for kind, got, values, tree, root in rows:
            scale, size = largest(values), largest(vector(value(w)))
            for (name, x), (_, part) in zip(tree_named(got, root), split(values, tree, root), strict=True):
                label = f"{where}: {kind}, forward over reverse: {name}"
                worst = max(worst, compare(label, vector(x), part, self.rtol, scale, size=size, **options))
        return worst

    # --- the whole run ------------------------------------------------------------------------------------

    @cached_property
    def _roundings(self) -> tuple[list[Rounding], Rounding]:
        """The rounding to expect in each leaf of the derivative and in the objective, from the terms that cancel in them.

        For that the hyperparameters and the state are moved, and the weights at the start, in every inner loss and at the end. Each
        inner loss moves them by another amount: one amount for all would only shift the point to which a run converges.
        """
        subject, problem = self.subject, self.subject.problem
        w_first = self.points[0].w if self.points else self.w_last
        still = tree_map(lambda x: 0.0 * x, (w_first, w_first, self.w_last))

        def plus(w: PyTree, shift: PyTree) -> PyTree:
            return tree_map(lambda x, d: x + d, tree_tensors(w, "check_hypergrad"), shift)

        amounts = self.rng.standard_normal(len(subject.batches))
        batches = [(amount, subject.batches[t]) for t, amount in enumerate(amounts)]

        def everything(inputs: PyTree) -> Any:
            h, s, shifts = inputs
            first, within, last = (
                tree_map(lambda x, d: d * (largest(vector(x)) or 1.0), x, d)
                for x, d in zip((w_first, w_first, self.w_last), shifts, strict=True)
            )
            shaken = replace(
                problem,
                inner_loss=lambda w, h, b: problem.inner_loss(plus(w, tree_map(lambda x: b[0] * x, within)), h, b[1]),
                outer_loss=lambda w, h, *b: problem.outer_loss(plus(w, last), h, *b),
                init=lambda h: plus(problem.init(h), first),
            )
            out, pullback = vjp(replace(subject, problem=shaken, batches=batches).value, h, s)
            return np.concatenate([vector(pullback(out * 0 + 1)), vector(out)])

        found = rounding_of(everything, (self.hparams, self.state, still), self.rng)
        terms, noise = (split(x, (self.hparams, self.state), "inputs") for x in (found.terms, found.noise))
        leaves = [Rounding(own, jumps) for (_, own), (_, jumps) in zip(terms, noise, strict=True)]
        return leaves, Rounding(found.terms[-1], found.noise[-1])

    def _along(self, i: int, v: PyTree) -> tuple[Any, Callable[[], Rounding]]:
        """The terms of reverse mode's derivative along a direction of leaf i, and its rounding."""
        own = vector(tree_leaves(v)[i])
        return vector(self.bars[i]) * own, lambda: self._roundings[0][i].along(own)

    def _check_forward(self, r: HyperGradient, moves: list[tuple[int, PyTree]]) -> float:
        """Compares forward with reverse mode: in every hyperparameter or, where there are many, along the directions."""
        worst, value, subject, n = 0.0, abs(float(r.value)), self.subject, len(tree_leaves(self.hparams))

        def same(what: str, got: Any, want: Any, rounding: Callable[[], Rounding], size: float, scale: float = 0.0) -> float:
            options: Any = {"rounding": rounding, "size": size, "cause": self._cause}
            return compare(f"check_hypergrad: forward: {what}", got, want, self.forward_rtol, scale, **options)

        if sum(x.size for x in tree_leaves(self.hparams)) <= _FULL_FORWARD:
            f = forward(subject.problem, self.hparams, subject.batches, outer_batch=subject.outer_batch, state=self.state)
            same("the objective", vector(f.value), vector(r.value), lambda: self._roundings[1], value)
            for i, x in enumerate(tree_leaves(f.grad)):

                def rounding(i: int = i) -> Rounding:
                    return self._roundings[0][i].largest()

                worst = max(worst, same(self.names[i], vector(x), vector(self.bars[i]), rounding, value / _size(self.inputs, i)))
            moves = [(i, v) for i, v in moves if i >= n]
        if not moves:
            return worst
        stacked = tree_map(lambda *vs: backend_of(vs[0]).xp.stack(vs), *(v for _, v in moves))
        for (i, v), dot in zip(moves, slopes(subject.value, self.inputs, stacked), strict=True):
            terms, along = self._along(i, v)
            what = f"the derivative along a random direction of {self.names[i]}"
            worst = max(worst, same(what, np.array([dot]), np.array([terms.sum()]), along, value, float(np.linalg.norm(terms))))
        return worst

    def _check_differences(self, moves: list[tuple[int, PyTree]]) -> tuple[dict[str, float], tuple[str, ...]]:
        """Compares reverse mode with finite differences along the directions, and finds the leaves without influence."""
        errors = dict.fromkeys(self.names, 0.0)
        still = dict.fromkeys(self.names, True)

        def value(inputs: PyTree) -> PyTree:
            return self.subject.value(*tree_tensors(inputs, "check_hypergrad")).value

        for i, v in moves:
            name, (terms, rounding) = self.names[i], self._along(i, v)
            d = difference(value, self.inputs, v, self.eps, self.rtol)

            def cause(d: Any = d, name: str = name) -> str:
                kink = f"a kink within the step of the objective in {name}; move the hyperparameters off it"
                return self._cause(lambda: kink if d.kink() else None)

            label = f"check_hypergrad: reverse: the derivative along a random direction of {name}"
            errors[name] = max(errors[name], d.check(label, terms, self.rtol, rounding, cause))
            still[name] &= not largest(vector(self.bars[i])) and not largest(d.values)
        return errors, tuple(name for name in self.names if still[name])


def _size(tree: PyTree, i: int) -> float:
    """How large leaf i is; 1 where it is zero."""
    x = vector(tree_leaves(tree)[i])
    return float(np.sqrt(np.mean(x * x))) or 1.0 if x.size else 1.0
