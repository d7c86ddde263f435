"""Ridge regression with one L2 hyperparameter: the T-step problem against the exact one, which has a closed form.

    L_lambda(w) = |X w - y|^2 / (2 n) + exp(lambda) |w|^2 / 2,    E(w) = |X' w - y'|^2 / (2 m)

    w* = H^-1 X^T y / n,    f'(lambda) = -exp(lambda) <H^-1 grad E(w*), w*>,    H = X^T X / n + exp(lambda) I

T steps of gradient descent from zero end at w* - (I - lr H)^T w*. So with q = max |1 - lr h| over the eigenvalues h of H, the error of
w_T falls as q^T, and that of its derivative, and so of the hypergradient, as T q^T. The step size is a share of 1 / max h.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...bilevel import Batches, Bilevel, full_batch
from ...ops import exp, mean
from ...ops import sum as sum_
from ...optimizers import SGD
from ...passes.forward import forward
from ...passes.implicit import implicit
from ...passes.solvers import CG
from ...runs.configuration import option
from ...runs.curves import BLUE, GREEN, GREY, ORANGE, Reference, legend_below, new_figure, png
from ...runs.loop import Arrays, Record
from ...tape import Tensor
from ...trees import PyTree
from ..problem import Evaluation, Problem, Task

Array = NDArray[Any]
CONVERGENCE_PNG = "convergence.png"
RANGE = (-14.0, 8.0)  # where the minimisers are looked for
TOLERANCE = 1e-13  # of the minimisers
FLOOR = 1e-13  # relative errors below it are rounding, and no part of a slope


@dataclass(frozen=True)
class Ridge(Problem):
    """The problem and its options; float64.

    Args: see the options' help.
    Source: Franceschi et al. 2018, ICML (convergence of the T-step problem).
    """

    title: ClassVar[str] = "ridge regression against its closed form"
    source: ClassVar[str] = "Franceschi et al. 2018, ICML"
    score: ClassVar[str] = "strength"
    settings: ClassVar[Mapping[str, Any]] = {"mode": "forward", "outer_lr": 0.2, "iterations": 60, "eval_every": 5}
    quick: ClassVar[Mapping[str, Any]] = {"features": 5, "n_steps": 20, "sweep": (5, 10, 20), "iterations": 10, "eval_every": 2}
    figures: ClassVar[Mapping[str, str]] = {CONVERGENCE_PNG: "errors of the T-step problem over T"}
    dtype: ClassVar[DTypeLike] = np.float64

    n_train: int = option(40, "Training examples.", low=2)
    n_validation: int = option(200, "Validation examples.", low=1)
    n_test: int = option(1000, "Test examples.", low=1)
    features: int = option(20, "Features of an example.", low=1)
    noise: float = option(0.7, "Standard deviation of the targets' noise.", low=0)
    start: float = option(-2.0, "Logarithm of the L2 strength to start from, where the sweep over T is made, too.")
    n_steps: int = option(100, "Inner steps T.", low=1)
    inner_lr: float = option(1.0, "Step size, as a share of the inverse of H's largest eigenvalue.", above=0)
    sweep: tuple[int, ...] = option((2, 4, 8, 16, 32, 64, 128, 256), "Numbers of steps to compare with the closed form.", low=1)

    def open(self, seed: int, dtype: DTypeLike | None = None) -> Task:
        return RidgeTask(self, seed, self.dtype if dtype is None else dtype)


class RidgeTask(Task):
    """The task. Args: options: of the problem; seed: of the data; dtype: of the arrays."""

    def __init__(self, options: Ridge, seed: int, dtype: DTypeLike) -> None:
        self.options = options
        rng, d = np.random.default_rng(seed), options.features
        scales = np.linspace(1.0, 0.3, d)  # of the features, so that the eigenvalues differ
        truth = rng.standard_normal(d) / np.sqrt(d)
        parts = []
        for n in (options.n_train, options.n_validation, options.n_test):
            x = rng.standard_normal((n, d)) * scales
            parts.append((x.astype(dtype), (x @ truth + options.noise * rng.standard_normal(n)).astype(dtype)))
        self.train, self.validation, self.test = parts
        self.dtype = dtype
        self.largest = float(np.linalg.eigvalsh(self.train[0].T @ self.train[0] / options.n_train)[-1])
        sizes = f"{options.n_train} training, {options.n_validation} validation, {options.n_test} test examples"
        self.description = f"linear targets with noise, {d} features: {sizes}"

    def init(self) -> Arrays:
        """The logarithm of the strength."""
        return {"log_strength": np.asarray(self.options.start, self.dtype)}

    def inner(self, draw: int) -> tuple[Bilevel, Batches]:
        return self.problem(), full_batch(self.train, self.options.n_steps)

    def problem(self) -> Bilevel:
        """The bilevel problem, for any number of steps. Cost: O(1)."""
        x_val, y_val = self.validation

        def inner_loss(w: PyTree, hparams: PyTree, batch: tuple[Array, Array]) -> Tensor:
            x, y = batch
            loss: Tensor = 0.5 * mean((x @ w - y) ** 2) + 0.5 * exp(hparams["log_strength"]) * sum_(w * w)
            return loss

        def outer_loss(w: PyTree, hparams: PyTree) -> Tensor:
            loss: Tensor = 0.5 * mean((x_val @ w - y_val) ** 2)
            return loss

        zero = np.zeros(self.train[0].shape[1], self.dtype)
        share, largest = self.options.inner_lr, self.largest

        def optimizer(hparams: PyTree) -> SGD:
            return SGD(lr=share / (largest + exp(hparams["log_strength"])))

        return Bilevel(inner_loss, outer_loss, lambda hparams: zero, optimizer)

    def metrics(self, hparams: Arrays) -> Record:
        """The L2 strength."""
        return {"strength": float(np.exp(hparams["log_strength"]))}

    def exact(self, log_strength: float) -> "Exact":
        """The problem with its inner problem solved, in closed form. Cost: one linear system."""
        (x, y), (x_val, y_val) = self.train, self.validation
        strength = np.exp(log_strength)
        hessian = x.T @ x / len(y) + strength * np.eye(x.shape[1])
        w = np.linalg.solve(hessian, x.T @ y / len(y))
        left = x_val @ w - y_val
        slope = -strength * float(np.linalg.solve(hessian, x_val.T @ left / len(left)) @ w)
        return Exact(0.5 * float(np.mean(left**2)), slope, w)

    def at(self, log_strength: float, n_steps: int) -> tuple[float, Array]:
        """The hypergradient of the T-step problem, and w_T. Args: n_steps: T. Cost: T steps in forward mode."""
        r = forward(self.problem(), {"log_strength": np.asarray(log_strength, self.dtype)}, full_batch(self.train, n_steps))
        return float(r.grad["log_strength"]), r.params

    def minimiser(self, start: float, n_steps: int | None = None) -> float | None:
        """The minimiser in the logarithm of the strength, where the derivative changes its sign around `start`.

        Args: start: a point near it; n_steps: T, None for the exact problem.
        Returns: the minimiser, None where the derivative keeps its sign down or up to the end of `RANGE`, as for a few steps, which
            need no strength at all.
        Cost: about 20 derivatives.
        """

        def slope(at: float) -> float:
            return self.exact(at).slope if n_steps is None else self.at(at, n_steps)[0]

        low = high = start
        width, below, above = 0.25, slope(start), slope(start)
        while below > 0 and low > RANGE[0]:
            low, width = max(low - width, RANGE[0]), 2 * width
            below = slope(low)
        while above < 0 and high < RANGE[1]:
            high, width = min(high + width, RANGE[1]), 2 * width
            above = slope(high)
        if below > 0 or above < 0:
            return None
        return float(_root(slope, low, high, below, above))

    def evaluate(self, hparams: Arrays, title: str) -> Evaluation:
        options, start = self.options, self.options.start
        exact, solver = self.exact(start), CG(tolerance=1e-13, max_iterations=10 * options.features)
        lowest = float(min(np.linspace(*RANGE, 89), key=lambda at: self.exact(at).loss))
        found = self.minimiser(lowest)
        best = lowest if found is None else found  # at an end of the range, where the more or the less strength the better
        rows: list[Record] = []
        for n_steps in sorted(set(options.sweep)):
            grad, w = self.at(start, n_steps)
            minimiser = self.minimiser(best, n_steps)
            row = {
                "n_steps": n_steps,
                "w_error": float(np.linalg.norm(w - exact.w) / np.linalg.norm(exact.w)),
                "hypergradient_error": abs(grad - exact.slope) / abs(exact.slope),
                "minimiser_error": None if minimiser is None else abs(minimiser - best),
            }
            rows.append(row)
        eigenvalues = self._eigenvalues(start)
        rate = float(np.abs(1.0 - options.inner_lr * eigenvalues / eigenvalues[-1]).max())
        at_solution = implicit(self.problem(), self.init(), exact.w, self.train, solver=solver).grad["log_strength"]
        tuned = float(hparams["log_strength"])
        numbers = {
            "log_strength": tuned,
            "exact_log_strength": best,
            "exact_hypergradient": exact.slope,
            "implicit_error": abs(float(at_solution) - exact.slope) / abs(exact.slope),
            "rate": rate,
            "w_rate": measured_rate(rows, "w_error"),
            "hypergradient_rate": measured_rate(rows, "hypergradient_error", over_steps=True),
            "sweep": rows,
            **{f"{name}_test_error": self._test_error(at) for name, at in (("tuned", tuned), ("exact", best), ("start", start))},
        }
        return Evaluation(numbers, self._lines(numbers), {CONVERGENCE_PNG: convergence(rows, rate, title)}, self._references(best))

    def _lines(self, numbers: Record) -> list[tuple[str, str]]:
        lines = [
            ("L2 strength, tuned", f"{np.exp(numbers['log_strength']):.6f}"),
            ("L2 strength, exact minimiser", f"{np.exp(numbers['exact_log_strength']):.6f}"),
            *((f"test error, {name}", f"{numbers[f'{name}_test_error']:.6f}") for name in ("tuned", "exact", "start")),
            ("rate of convergence, theory", _rate(numbers["rate"])),
            ("measured, of w_T", _rate(numbers["w_rate"])),
            ("measured, of the hypergradient over T", _rate(numbers["hypergradient_rate"])),
            ("implicit at the exact solution", f"relative error {numbers['implicit_error']:.1e}"),
        ]
        for row in numbers["sweep"]:
            names = {"w_T": "w_error", "hypergradient": "hypergradient_error", "minimiser": "minimiser_error"}
            shown = ("none" if row[key] is None else f"{row[key]:.1e}" for key in names.values())
            lines.append((f"errors of T = {row['n_steps']} steps", ", ".join(map(" ".join, zip(names, shown, strict=True)))))
        return lines

    def _references(self, best: float) -> list[Reference]:
        return [Reference("exact minimiser", float(np.exp(best)))]

    def _eigenvalues(self, log_strength: float) -> Array:
        x, _ = self.train
        found: Array = np.linalg.eigvalsh(x.T @ x / len(x)) + np.exp(log_strength)
        return found

    def _test_error(self, log_strength: float) -> float:
        """Mean squared error on the test examples of the exact inner solution."""
        x, y = self.test
        return float(np.mean((x @ self.exact(log_strength).w - y) ** 2))


def _root(slope: Callable[[float], float], low: float, high: float, below: float, above: float) -> float:
    """Where an increasing function is 0 between two points with its values `below` <= 0 <= `above`: false position (Illinois)."""
    side, at = 0, low if below == 0 else high
    for _ in range(100):
        if below == above or high - low <= TOLERANCE * max(1.0, abs(low)):
            break
        before, at = at, (low * above - high * below) / (above - below)
        value = slope(at)
        if value == 0 or abs(at - before) <= TOLERANCE * max(1.0, abs(at)):
            break
        if value < 0:
            low, below, above = at, value, above / 2 if side < 0 else above
        else:
            high, above, below = at, value, below / 2 if side > 0 else below
        side = -1 if value < 0 else 1
    return at


class Exact(NamedTuple):
    """The exact problem at one strength. Attributes: loss: the outer one; slope: its derivative in lambda; w: the inner solution."""

    loss: float
    slope: float
    w: Array


def measured_rate(rows: Sequence[Record], name: str, over_steps: bool = False) -> float | None:
    """By what factor an error falls in one step: exp of the slope of its logarithm over the last half of the steps tried.

    Args: rows: of the sweep; name: of the error; over_steps: whether to take error / T, for an error that falls as T q^T.
    Returns: the factor, or None where fewer than two errors are above rounding. Cost: O(rows).
    """
    above = [r for r in rows if r[name] > FLOOR]
    above = above[-max(2, len(above) // 2) :]
    if len(above) < 2:
        return None
    steps = np.array([r["n_steps"] for r in above], float)
    logs = np.log([r[name] / (r["n_steps"] if over_steps else 1) for r in above])
    return float(np.exp(np.polyfit(steps, logs, 1)[0]))


def _rate(rate: float | None) -> str:
    return "unknown, all errors are rounding" if rate is None else f"the error falls by {rate:.5f} a step"


def convergence(rows: Sequence[Record], rate: float, title: str) -> bytes:
    """Errors over T, with the lines of the theory through the last points above rounding.

    Args: rows: of the sweep; rate: q; title: of the figure. Returns: a PNG file. Cost: about half a second.
    """
    figure, axes = new_figure(6.5, 4.8, 1, 1)
    steps = np.array([row["n_steps"] for row in rows], float)
    named = (
        ("w_error", "w_T, relative", BLUE, rate**steps),
        ("hypergradient_error", "hypergradient, relative", ORANGE, steps * rate**steps),
        ("minimiser_error", "minimiser of the T-step problem", GREEN, None),
    )
    for name, label, color, law in named:
        errors = np.array([row[name] for row in rows], float)  # NaN for None
        axes.plot(steps, errors, "o", color=color, markersize=5, label=label)
        above = np.flatnonzero(errors > FLOOR)
        if law is not None and len(above):
            at = above[-1]
            axes.plot(steps, law * errors[at] / law[at], "--", color=color, linewidth=1.0, label="∝ T qᵀ" if color == ORANGE else "∝ qᵀ")
    axes.axhline(np.finfo(np.float64).eps, color=GREY, linestyle=":", linewidth=1.0, label="rounding of float64")
    axes.set_yscale("log")
    axes.set_xlabel("inner steps T")
    axes.set_ylabel("error against the closed form")
    axes.set_title(f"{title}\nq = {rate:.4f}", fontsize=8)
    axes.grid(alpha=0.25)
    legend_below(axes)
    return png(figure)
