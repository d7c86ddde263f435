"""Learning to optimise: an LSTM that moves every weight by itself is trained on many tasks, and held against tuned rivals on new ones.

    min over lambda of sum over t of log f(theta_t),    theta_{t+1} = theta_t + m_lambda(g_0, ..., g_t)

Here f is a task's training loss and g_t its gradient on a minibatch. Two families of tasks are offered.

- classifiers: a network with one hidden layer of tanh units learns to tell Gaussian classes apart, from minibatches. The classes of each
  task are drawn anew. Andrychowicz et al. train such a network on MNIST, and Li and Malik 2016 (arXiv:1606.01885) draw such classes.
  The noise of minibatches and the many scales of a network's gradients leave much for an optimiser to learn.
- quadratics: f = |W theta - y|^2 without noise, the entries of W and y being normal numbers. Momentum is close to the best that any
  optimiser can do there. So this family is the harder one for a learned optimiser.

The logarithm lets easy and hard tasks count alike, and the last steps as much as the first. One outer iteration sees one window of the
run, K of its T steps. The steps before the window are run with the present network and count as constants. The next iteration takes the
next window of the same tasks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...bilevel import Batches, Bilevel, DrawnBatches, full_batch
from ...errors import ArgumentError
from ...learned import LSTMOptimizer, lstm_params
from ...ops import linear, linear_cross_entropy, log, mean, tanh
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
GRID = tuple(float(x) for x in np.logspace(-4, 1, 21))  # step sizes of the optimisers that are not learned
RIVALS: Mapping[str, Mapping[str, Callable[[float], Optimizer]]] = {  # each is tuned over its variants and all of GRID
    "adam": {f"beta2 {b}": partial(lambda lr, b: Adam(lr=lr, beta2=b), b=b) for b in (0.9, 0.99, 0.999)},
    "sgd": {f"momentum {m}": partial(lambda lr, m: SGD(lr=lr, momentum=m), m=m) for m in (0.0, 0.9)},
    "rmsprop": {f"decay {d}": partial(lambda lr, d: RMSprop(lr=lr, decay=d), d=d) for d in (0.9, 0.99)},
}
NAMES = {"learned": "learned (LSTM)", "adam": "Adam", "sgd": "SGD", "rmsprop": "RMSprop"}
COLORS = {"learned": ORANGE, "adam": BLUE, "sgd": GREEN, "rmsprop": GREY}
TRAIN, VALIDATION, TUNE, TEST = range(4)  # streams of random numbers
FLOOR = 1e-6  # added to a loss before its logarithm, about the rounding of a loss near one in float32


class Quadratics(NamedTuple):
    """Some tasks of least squares. Attributes: w: (n, d, d); y: (n, d, 1)."""

    w: Array
    y: Array

    def start(self) -> Array:
        """Where each run begins: zeros, (n, d, 1). Cost: O(size)."""
        return np.zeros_like(self.y)

    def losses(self, theta: Any) -> Any:
        """The loss of each task. Args: theta: (n, d, 1). Returns: (n,). Cost: n d^2 products."""
        return sum_((self.w @ theta - self.y) ** 2, axis=(-2, -1))


class Classifiers(NamedTuple):
    """Some tasks of classification.

    Attributes: x: points, (n, m, d); y: their classes, (n, m); first: weights before training, "v" (n, d, h), "c" (n, h), "w" (n, h, k)
        and "b" (n, k).
    """

    x: Array
    y: Array
    first: Arrays

    def start(self) -> Arrays:
        """Where each run begins. Cost: O(1)."""
        return self.first

    def losses(self, theta: Any) -> Any:
        """The mean cross-entropy of each task. Args: theta: like `first`. Returns: (n,). Cost: a forward run of m points for each."""
        hidden = tanh(linear(self.x, theta["v"], theta["c"]))
        return mean(linear_cross_entropy(hidden, theta["w"], theta["b"], self.y), axis=-1)

    def take(self, rows: Array) -> "Classifiers":
        """Some points of each task. Args: rows: indices, (n, B). Returns: the tasks with these. Cost: one copy of them."""
        x, y = np.take_along_axis(self.x, rows[:, :, None], 1), np.take_along_axis(self.y, rows, 1)
        return self._replace(x=x, y=y)


Tasks = Quadratics | Classifiers


class Drawn(NamedTuple):
    """Tasks as they were drawn. Attributes: tasks: of one family; seed: of their minibatches."""

    tasks: Tasks
    seed: tuple[int, ...]


@dataclass(frozen=True)
class LearnedOptimiser(Problem):
    """The problem and its options.

    Args: see the options' help.
    Raises: ArgumentError for a window that does not divide the run.
    Source: Andrychowicz et al. 2016, arXiv:1606.04474, sections 3.1 and 3.2; what the network sees: Lv et al. 2017, arXiv:1703.03633.
    """

    title: ClassVar[str] = "a learned optimiser"
    source: ClassVar[str] = "Andrychowicz et al. 2016, arXiv:1606.04474"
    score: ClassVar[str] = "norm"
    modes: ClassVar[tuple[str, ...]] = ("reverse",)
    settings: ClassVar[Mapping[str, Any]] = {"outer_lr": 0.01, "iterations": 400, "eval_every": 50}
    quick: ClassVar[Mapping[str, Any]] = {
        **{"n_train": 4, "n_validation": 20, "n_test": 20, "n_steps": 20, "window": 10, "features": 4, "units": 4, "points": 32},
        **{"hidden": 5, "outer_lr": 0.03, "iterations": 20, "eval_every": 10},
    }
    figures: ClassVar[Mapping[str, str]] = {
        LOSSES_PNG: "losses of new tasks over the steps of each optimiser, and their ratios task by task"
    }

    family: Literal["classifiers", "quadratics"] = option("classifiers", "The tasks: small networks with minibatches, or least squares.")
    n_train: int = option(8, "Tasks of an outer iteration, drawn anew for each run of windows.", low=1)
    n_validation: int = option(100, "Tasks of the validation, and of the choice of the other optimisers' step sizes.", low=1)
    n_test: int = option(100, "Tasks of the final evaluation.", low=2)
    features: int = option(8, "Dimension of a quadratic, or of a classifier's points.", low=1)
    classes: int = option(4, "Classes of a classifier.", low=2)
    units: int = option(8, "Hidden units of a classifier.", low=1)
    points: int = option(64, "Training points of a classifier.", low=1)
    batch: int = option(16, "Points of a classifier's minibatch.", low=1)
    hidden: int = option(10, "Units of each layer of the LSTM.", low=1)
    inputs: Literal["averages", "gradient"] = option(
        "averages", "What the LSTM sees: averages of the gradient divided by its size, or the gradient."
    )
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

    def optimizer(self, params: PyTree) -> LSTMOptimizer:
        """The learned optimiser. Args: params: the network's weights, as `lstm_params`. Cost: O(1)."""
        return LSTMOptimizer(params, decay=0.95 if self.inputs == "averages" else None)


class OptimiserTask(Task):
    """The task. Args: options: of the problem; seed: of the tasks and of the network; dtype: of the arrays."""

    def __init__(self, options: LearnedOptimiser, seed: int, dtype: DTypeLike) -> None:
        self.options, self.seed, self.dtype = options, seed, dtype
        self.reverse_options = {"last": options.window, "first_order": options.first_order}
        self.validation = self.draw(options.n_validation, VALIDATION)
        o = options
        sizes = f"of {o.features} dimensions" + (f", {o.points} points, {o.classes} classes" if o.family == "classifiers" else "")
        self.description = f"{o.family} {sizes}: {o.n_validation} validation, {o.n_test} test tasks"

    def draw(self, count: int, stream: int, number: int = 0) -> Drawn:
        """Some tasks, a function of the arguments. Args: count: of tasks; stream: their use; number: of the draw. Cost: the numbers.

        The means of a classifier's classes and the noise around them are normal. A normal matrix, another for each task, then mixes the
        features, so that they are correlated. The weights begin as draws of variance 1 / inputs, the biases as zero.
        """
        seed, o = (self.seed, stream, number), self.options
        rng, d = np.random.default_rng(seed), o.features
        if o.family == "quadratics":
            w, target = rng.standard_normal((count, d, d)), rng.standard_normal((count, d, 1))
            return Drawn(Quadratics(w.astype(self.dtype), target.astype(self.dtype)), seed)
        means, y = rng.standard_normal((count, o.classes, d)), rng.integers(0, o.classes, (count, o.points))
        x = np.take_along_axis(means, y[:, :, None], 1) + rng.standard_normal((count, o.points, d))
        x = x @ rng.standard_normal((count, d, d)) / np.sqrt(d)
        first = {
            "v": rng.standard_normal((count, d, o.units)) / np.sqrt(d),
            "c": np.zeros((count, o.units)),
            "w": rng.standard_normal((count, o.units, o.classes)) / np.sqrt(o.units),
            "b": np.zeros((count, o.classes)),
        }
        return Drawn(Classifiers(x.astype(self.dtype), y, {name: value.astype(self.dtype) for name, value in first.items()}), seed)

    def batches(self, drawn: Drawn, n_steps: int) -> Batches:
        """What the first steps see of the tasks: minibatches of a classifier's points, all of a quadratic. Cost: O(1)."""
        if isinstance(drawn.tasks, Classifiers):
            tasks, (n, m), size = drawn.tasks, drawn.tasks.y.shape, self.options.batch
            return DrawnBatches(n_steps, lambda t: tasks.take(np.random.default_rng([*drawn.seed, t]).integers(0, m, (n, size))))
        return full_batch(drawn.tasks, n_steps)

    def init(self) -> Arrays:
        """An LSTM that has learned nothing."""
        return dict(lstm_params(self.seed, self.options.hidden, self.dtype))

    def inner(self, draw: int) -> tuple[Bilevel, Batches]:
        """For draw 0 the whole run on the validation tasks, whose objective is that of the last step; else one window."""
        options = self.options
        if draw == 0:
            return self.problem(self.validation.tasks, None), self.batches(self.validation, options.n_steps)
        run, window = divmod(draw - 1, options.n_steps // options.window)
        drawn = self.draw(options.n_train, TRAIN, run)
        start = window * options.window
        return self.problem(drawn.tasks, start), self.batches(drawn, start + options.window)

    def problem(self, tasks: Tasks, start: int | None) -> Bilevel:
        """The bilevel problem. Its objective is the mean of log(1 + f / FLOOR): log(f + FLOOR), and a constant that makes it positive.

        Args: tasks: of it; start: of the window whose losses count, None for the last step alone. Cost: O(1).
        """
        share = 1.0 if start is None else 1.0 / self.options.window

        def outer_loss(theta: PyTree, hparams: PyTree) -> Tensor:
            loss: Tensor = share * mean(log(1.0 + tasks.losses(theta) / FLOOR))
            return loss

        def running_loss(theta: PyTree, hparams: PyTree, t: int) -> Tensor:
            return outer_loss(theta, hparams) if start is not None and t > start else Tensor(np.zeros((), self.dtype))

        first, optimizer = tasks.start(), self.options.optimizer
        return Bilevel(inner_loss, outer_loss, lambda hparams: first, optimizer, None if start is None else running_loss)

    def metrics(self, hparams: Arrays) -> Record:
        """The norm of the network's weights."""
        return {"norm": float(np.sqrt(sum(float((x**2).sum()) for x in hparams.values())))}

    def losses(self, optimizer: Optimizer, drawn: Drawn, steps: bool = True) -> Array:
        """The loss of each task on all of its points.

        Args: optimizer: of the runs; drawn: the tasks; steps: whether to return the losses before each step and after the last, (T + 1, n),
            or those at the end alone, (1, n).
        Returns: float64, not finite where a run diverges. Cost: T steps.
        """
        tasks, rows = drawn.tasks, []

        def see(t: int, theta: PyTree, loss: Any) -> None:
            rows.append(tasks.losses(theta).value)

        batches, callback = self.batches(drawn, self.options.n_steps), see if steps else None
        with np.errstate(over="ignore", invalid="ignore"):
            end = unroll(inner_loss, tasks.start(), (), batches, optimizer=optimizer, checkpoints=1, callback=callback)
            return np.stack([*rows, tasks.losses(end).value]).astype(np.float64)

    def tuned(self, name: str) -> tuple[str, float]:
        """The best variant and step size of a rival: the smallest mean logarithm of the final loss, on tasks for this choice alone.

        Args: name: a key of `RIVALS`. Returns: the variant's name and the step size. Cost: a run for each variant and step size.
        """
        drawn = self.draw(self.options.n_validation, TUNE)
        ends = {
            (variant, lr): float(log10(self.losses(kind(lr), drawn, steps=False)).mean())
            for variant, kind in RIVALS[name].items()
            for lr in GRID
        }
        return min(ends, key=lambda choice: ends[choice] if np.isfinite(ends[choice]) else np.inf)

    def evaluate(self, hparams: Arrays, title: str) -> Evaluation:
        test = self.draw(self.options.n_test, TEST)
        choices = {name: self.tuned(name) for name in RIVALS}
        rivals = {name: RIVALS[name][variant](lr) for name, (variant, lr) in choices.items()}
        curves = {name: self.losses(optimizer, test) for name, optimizer in {"learned": self.options.optimizer(hparams), **rivals}.items()}
        words = {name: f"{NAMES[name]} ({variant}, step size {lr:.3g})" for name, (variant, lr) in choices.items()}
        words["learned"] = NAMES["learned"]
        numbers: Record = {}
        lines = []
        for name, losses in curves.items():
            for kind, (middle, half) in {"": interval(losses), "log10_": interval(log10(losses))}.items():
                numbers |= {f"{name}_{kind}loss": float(middle[-1]), f"{name}_{kind}interval": float(half[-1])}
                numbers |= {f"{name}_{kind}curve": middle.tolist(), f"{name}_{kind}curve_interval": half.tolist()}
            numbers[f"{name}_median"] = float(np.median(losses[-1]))
            text = f"{numbers[f'{name}_loss']:.4f} ± {numbers[f'{name}_interval']:.4f}, median {numbers[f'{name}_median']:.4f}"
            lines.append((f"final loss, {words[name]}", text))
        for name, (variant, lr) in choices.items():
            middle, half = interval(log10(curves["learned"]) - log10(curves[name]))
            lower = float(np.mean(curves["learned"][-1] < curves[name][-1]))
            numbers |= {f"{name}_step_size": lr, f"{name}_variant": variant, f"better_than_{name}": lower}
            numbers |= {f"paired_{name}": float(middle[-1]), f"paired_{name}_interval": float(half[-1])}
            text = f"{middle[-1]:+.3f} ± {half[-1]:.3f}, lower on {100 * lower:.0f} % of the tasks"
            lines.append((f"log10 of the final loss, learned minus {NAMES[name]}, task by task", text))
        return Evaluation(numbers, lines, {LOSSES_PNG: drawn_losses(curves, words, title)})


def inner_loss(theta: PyTree, hparams: PyTree, batch: Tasks) -> Tensor:
    """The sum of the tasks' losses. Args: theta: weights of all; hparams: not used; batch: the tasks. Cost: `losses`."""
    return sum_(batch.losses(theta))


def log10(losses: Array) -> Array:
    """log10(losses + FLOOR). Args: losses: any shape. Cost: O(size)."""
    found: Array = np.log10(losses + FLOOR)
    return found


def interval(losses: Array) -> tuple[Array, Array]:
    """Means over tasks and half widths of their 95% intervals. Args: losses: (T + 1, n). Returns: two arrays (T + 1,). Cost: O(size)."""
    return losses.mean(axis=1), 1.96 * losses.std(axis=1, ddof=1) / np.sqrt(losses.shape[1])


def drawn_losses(curves: Mapping[str, Array], words: Mapping[str, str], title: str) -> bytes:
    """Geometric means of the losses, and below them of the ratio to each rival's loss of the same task, with their intervals.

    Args: curves: (T + 1, n) by name; words: for the legend; title: of the figure. Returns: a PNG file. Cost: about half a second.
    """
    figure, (top, bottom) = new_figure(6.5, 7.5, 2, 1, sharex=True, height_ratios=(1.5, 1))
    logs = {name: log10(losses) for name, losses in curves.items()}
    for axes, shift in ((top, 0.0), (bottom, logs["learned"])):
        for name, values in logs.items():
            if axes is bottom and name == "learned":
                continue
            middle, half = interval(values if axes is top else shift - values)
            steps = np.arange(len(middle))
            axes.plot(steps, 10**middle, color=COLORS[name], linewidth=1.5, label=words[name])
            axes.fill_between(steps, 10 ** (middle - half), 10 ** (middle + half), color=COLORS[name], alpha=0.2, linewidth=0)
        axes.set_yscale("log")
        axes.grid(alpha=0.25)
    bottom.axhline(1.0, color="black", linewidth=0.8)
    top.set_ylabel("loss of new tasks, geometric mean\nwith 95 % interval")
    bottom.set_ylabel("learned / rival, the same task")
    bottom.set_xlabel("steps")
    top.set_title(title, fontsize=8)
    legend_below(top)
    return png(figure)
