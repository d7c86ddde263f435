"""Learning to optimise: an LSTM that moves every coordinate by itself is trained on random quadratics, and held against Adam.

    f(theta) = |W theta - y|^2,    min over lambda of sum over t of f(theta_t),    theta_{t+1} = theta_t + m_lambda(grad f(theta_t))

The entries of W and y are normal numbers. One outer iteration sees one window of the run, K of its T steps. The steps before the window
are run with the present network and count as constants. The next iteration takes the next window of the same tasks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...bilevel import Batches, Bilevel, full_batch
from ...errors import ArgumentError
from ...learned import LSTMOptimizer, lstm_params
from ...ops import mean
from ...ops import sum as sum_
from ...optimizers import SGD, Adam, Optimizer, RMSprop
from ...passes.unroll import unroll
from ...runs.configuration import option
from ...runs.curves import BLUE, GREEN, GREY, ORANGE, legend_below, new_figure, png
from ...runs.loop import Arrays, Record
from ...tape import Tensor
from ...trees import PyTree
from ..problem import Evaluation, Problem, Task

Array = NDArray[Any]
LOSSES_PNG = "losses.png"
GRID = tuple(float(x) for x in np.logspace(-4, 0.5, 19))  # step sizes of the optimisers that are not learned
RIVALS: Mapping[str, Callable[[float], Optimizer]] = {
    "adam": lambda lr: Adam(lr=lr),
    "sgd": lambda lr: SGD(lr=lr, momentum=0.9),
    "rmsprop": lambda lr: RMSprop(lr=lr),
}
NAMES = {"learned": "learned (LSTM)", "adam": "Adam", "sgd": "SGD with momentum 0.9", "rmsprop": "RMSprop"}
COLORS = {"learned": ORANGE, "adam": BLUE, "sgd": GREEN, "rmsprop": GREY}
TRAIN, VALIDATION, TUNE, TEST = range(4)  # streams of random numbers


class Quadratics(NamedTuple):
    """Some tasks. Attributes: w: (n, d, d); y: (n, d, 1)."""

    w: Array
    y: Array

    def losses(self, theta: Any) -> Any:
        """The loss of each task. Args: theta: (n, d, 1). Returns: (n,). Cost: n d^2 products."""
        return sum_((self.w @ theta - self.y) ** 2, axis=(-2, -1))


@dataclass(frozen=True)
class LearnedOptimiser(Problem):
    """The problem and its options.

    Args: see the options' help.
    Raises: ArgumentError for a window that does not divide the run.
    Source: Andrychowicz et al. 2016, arXiv:1606.04474, section 3.1.
    """

    title: ClassVar[str] = "a learned optimiser"
    source: ClassVar[str] = "Andrychowicz et al. 2016, arXiv:1606.04474"
    score: ClassVar[str] = "norm"
    modes: ClassVar[tuple[str, ...]] = ("reverse",)
    settings: ClassVar[Mapping[str, Any]] = {"outer_lr": 0.01, "iterations": 600, "eval_every": 25}
    quick: ClassVar[Mapping[str, Any]] = {
        **{"n_train": 8, "n_validation": 20, "n_test": 20, "n_steps": 20, "window": 10, "features": 4, "hidden": 5},
        **{"outer_lr": 0.03, "iterations": 20, "eval_every": 10},
    }
    figures: ClassVar[Mapping[str, str]] = {LOSSES_PNG: "losses of new tasks over the steps of each optimiser"}

    n_train: int = option(16, "Tasks of an outer iteration, drawn anew for each run of windows.", low=1)
    n_validation: int = option(100, "Tasks of the validation, and of the choice of the other optimisers' step sizes.", low=1)
    n_test: int = option(100, "Tasks of the final evaluation.", low=2)
    features: int = option(10, "Dimension of a task.", low=1)
    hidden: int = option(20, "Units of each layer of the LSTM.", low=1)
    n_steps: int = option(100, "Inner steps T of a whole run.", low=1)
    window: int = option(20, "Steps K that an outer iteration goes back; T must be a multiple of it.", low=1)
    first_order: bool = option(True, "Take the gradients that the LSTM sees for constants, as the paper does.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_steps % self.window:
            raise ArgumentError(
                f"config: window is {self.window} with {self.n_steps} steps, expected a divisor because the windows make up the run; pass "
                f"for instance --window {self.n_steps}"
            )

    def open(self, seed: int, dtype: DTypeLike | None = None) -> Task:
        return OptimiserTask(self, seed, self.dtype if dtype is None else dtype)


class OptimiserTask(Task):
    """The task. Args: options: of the problem; seed: of the tasks and of the network; dtype: of the arrays."""

    def __init__(self, options: LearnedOptimiser, seed: int, dtype: DTypeLike) -> None:
        self.options, self.seed, self.dtype = options, seed, dtype
        self.reverse_options = {"last": options.window, "first_order": options.first_order}
        self.validation = self.draw(options.n_validation, VALIDATION)
        self.description = f"quadratics of {options.features} dimensions: {options.n_validation} validation, {options.n_test} test tasks"

    def draw(self, count: int, stream: int, number: int = 0) -> Quadratics:
        """Some tasks, a function of the arguments. Args: count: of tasks; stream: their use; number: of the draw. Cost: the numbers."""
        rng, d = np.random.default_rng([self.seed, stream, number]), self.options.features
        return Quadratics(rng.standard_normal((count, d, d)).astype(self.dtype), rng.standard_normal((count, d, 1)).astype(self.dtype))

    def init(self) -> Arrays:
        """An LSTM that has learned nothing."""
        return dict(lstm_params(self.seed, self.options.hidden, self.dtype))

    def inner(self, draw: int) -> tuple[Bilevel, Batches]:
        """For draw 0 the whole run on the validation tasks, whose objective is that of the last step; else one window."""
        options = self.options
        if draw == 0:
            return self.problem(self.validation, None), full_batch(self.validation, options.n_steps)
        run, window = divmod(draw - 1, options.n_steps // options.window)
        tasks = self.draw(options.n_train, TRAIN, run)
        start = window * options.window
        return self.problem(tasks, start), full_batch(tasks, start + options.window)

    def problem(self, tasks: Quadratics, start: int | None) -> Bilevel:
        """The bilevel problem. Args: tasks: of it; start: of the window whose losses count, None for the last step alone. Cost: O(1)."""
        share = 1.0 if start is None else 1.0 / self.options.window

        def inner_loss(theta: PyTree, hparams: PyTree, batch: Quadratics) -> Tensor:
            return sum_(batch.losses(theta))

        def outer_loss(theta: PyTree, hparams: PyTree) -> Tensor:
            loss: Tensor = share * mean(tasks.losses(theta))
            return loss

        def running_loss(theta: PyTree, hparams: PyTree, t: int) -> Tensor:
            return outer_loss(theta, hparams) if start is not None and t > start else Tensor(np.zeros((), self.dtype))

        zero = np.zeros_like(tasks.y)
        return Bilevel(inner_loss, outer_loss, lambda hparams: zero, LSTMOptimizer, None if start is None else running_loss)

    def metrics(self, hparams: Arrays) -> Record:
        """The norm of the network's weights."""
        return {"norm": float(np.sqrt(sum(float((x**2).sum()) for x in hparams.values())))}

    def losses(self, optimizer: Optimizer, tasks: Quadratics) -> Array:
        """The loss of each task before each step and after the last, (T + 1, n); not finite where it diverges. Cost: T steps."""
        rows: list[Array] = []

        def see(t: int, theta: PyTree, loss: Any) -> None:
            rows.append(tasks.losses(theta).value)

        def inner_loss(theta: PyTree, hparams: PyTree, batch: Quadratics) -> Tensor:
            return sum_(batch.losses(theta))

        batches = full_batch(tasks, self.options.n_steps)
        with np.errstate(over="ignore", invalid="ignore"):
            end = unroll(inner_loss, np.zeros_like(tasks.y), (), batches, optimizer=optimizer, checkpoints=1, callback=see)
            return np.stack([*rows, tasks.losses(end).value]).astype(np.float64)

    def best_step_size(self, kind: Callable[[float], Optimizer]) -> float:
        """The step size of `GRID` with the smallest mean final loss on tasks for this choice alone. Cost: a run for each step size."""
        tasks = self.draw(self.options.n_validation, TUNE)
        ends = {lr: float(self.losses(kind(lr), tasks)[-1].mean()) for lr in GRID}
        return min(ends, key=lambda lr: ends[lr] if np.isfinite(ends[lr]) else np.inf)

    def evaluate(self, hparams: Arrays, title: str) -> Evaluation:
        test = self.draw(self.options.n_test, TEST)
        step_sizes = {name: self.best_step_size(kind) for name, kind in RIVALS.items()}
        optimizers = {"learned": LSTMOptimizer(hparams), **{name: kind(step_sizes[name]) for name, kind in RIVALS.items()}}
        curves = {name: self.losses(optimizer, test) for name, optimizer in optimizers.items()}
        numbers: Record = {}
        lines = []
        for name, losses in curves.items():
            middle, half = interval(losses)
            numbers |= {f"{name}_loss": float(middle[-1]), f"{name}_interval": float(half[-1])}
            numbers |= {f"{name}_median": float(np.median(losses[-1])), f"{name}_curve": [float(x) for x in middle]}
            lr = f", step size {step_sizes[name]:.3g}" if name in step_sizes else ""
            text = f"{middle[-1]:.4f} ± {half[-1]:.4f}, median {numbers[f'{name}_median']:.4f}"
            lines.append((f"final loss, {NAMES[name]}{lr}", text))
        numbers |= {f"{name}_step_size": lr for name, lr in step_sizes.items()}
        for name in RIVALS:
            numbers[f"better_than_{name}"] = float(np.mean(curves["learned"][-1] < curves[name][-1]))
            lines.append((f"tasks that it ends lower on than {NAMES[name]}", f"{100 * numbers[f'better_than_{name}']:.0f} %"))
        return Evaluation(numbers, lines, {LOSSES_PNG: drawn(curves, title)})


def interval(losses: Array) -> tuple[Array, Array]:
    """Means over tasks and half widths of their 95% intervals. Args: losses: (T + 1, n). Returns: two arrays (T + 1,). Cost: O(size)."""
    return losses.mean(axis=1), 1.96 * losses.std(axis=1, ddof=1) / np.sqrt(losses.shape[1])


def drawn(curves: Mapping[str, Array], title: str) -> bytes:
    """Mean losses over steps with their intervals.

    Args: curves: (T + 1, n) by name; title: of the figure. Returns: a PNG file. Cost: about half a second.
    """
    figure, axes = new_figure(6.5, 4.8, 1, 1)
    for name, losses in curves.items():
        middle, half = interval(losses)
        steps, floor = np.arange(len(middle)), 1e-3 * middle  # so that the logarithmic axis shows the lower end
        axes.plot(steps, middle, color=COLORS[name], linewidth=1.5, label=NAMES[name])
        axes.fill_between(steps, np.maximum(middle - half, floor), middle + half, color=COLORS[name], alpha=0.2, linewidth=0)
    axes.set_yscale("log")
    axes.set_xlabel("steps")
    axes.set_ylabel("mean loss of new tasks, with 95 % interval")
    axes.set_title(title, fontsize=8)
    axes.grid(alpha=0.25)
    legend_below(axes)
    return png(figure)
