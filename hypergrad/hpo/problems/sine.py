"""Regression of sine waves from a few points: MAML's first experiment. The initial weights of a small network are the hyperparameters.

    min over lambda of mean over waves of E(w_T),    w_0 = lambda,    w_t = w_{t-1} - lr grad L(w_{t-1})

A wave is y = a sin(x - p), with an amplitude a in [0.1, 5], a phase p in [0, pi] and points x in [-5, 5], all drawn uniformly. L is the
mean squared error of the network at k points of a wave, and E that at other points of it. Every outer iteration draws new waves.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...bilevel import Batches, Bilevel, full_batch
from ...ops import broadcast_to, linear, mean, relu
from ...ops import sum as sum_
from ...optimizers import SGD, Adam
from ...passes.unroll import unroll
from ...runs.configuration import option
from ...runs.curves import BLUE, GREY, ORANGE, Reference, legend_below, new_figure, png
from ...runs.loop import Arrays, Record
from ...tape import Tensor
from ...transforms import grad
from ...trees import PyTree
from ..problem import Evaluation, Problem, Task

Array = NDArray[Any]
SINE_PNG = "sine.png"
GRID = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)  # step sizes that the network trained on all waves may choose from
VALIDATION, TUNE, TEST, PRETRAIN, TRAIN = range(5)  # streams of random numbers
SHOWN = 10  # steps of the final evaluation
COLORS = {"tuned": ORANGE, "pretrained": BLUE}


class Waves(NamedTuple):
    """Points of some waves. Attributes: x, y: support points, (n, k, 1); x_query, y_query: others, (n, q, 1)."""

    x: Array
    y: Array
    x_query: Array
    y_query: Array


@dataclass(frozen=True)
class Sine(Problem):
    """The problem and its options. The network has two hidden layers of ReLU units. The step size is that of the paper, and is not tuned.

    Args: see the options' help.
    Source: Finn et al. 2017, arXiv:1703.03400, section 5.1. It takes 70,000 outer iterations.
    """

    title: ClassVar[str] = "initial weights for regression of sine waves"
    source: ClassVar[str] = "Finn et al. 2017, arXiv:1703.03400"
    score: ClassVar[str] = "start_error"
    modes: ClassVar[tuple[str, ...]] = ("reverse", "forward")
    settings: ClassVar[Mapping[str, Any]] = {"outer_lr": 1e-3, "iterations": 5000, "eval_every": 250}
    quick: ClassVar[Mapping[str, Any]] = {
        **{"hidden": 20, "n_validation": 20, "n_test": 20, "pretraining": 50},
        **{"iterations": 40, "eval_every": 10, "outer_lr": 5e-3},
    }
    figures: ClassVar[Mapping[str, str]] = {SINE_PNG: "errors of new waves over the steps, and one of these waves"}

    k_shot: int = option(10, "Points of a wave that the network is trained on.", low=1)
    n_query: int = option(10, "Points of a wave that it is judged on.", low=1)
    hidden: int = option(40, "Units of each hidden layer.", low=1)
    n_steps: int = option(1, "Inner steps T.", low=1)
    inner_lr: float = option(0.01, "Step size of the inner run.", above=0)
    n_train: int = option(25, "Waves of an outer iteration.", low=1)
    n_validation: int = option(100, "Waves of the validation, and of the choice of the other network's step size.", low=1)
    n_test: int = option(600, "Waves of the final evaluation.", low=2)
    pretraining: int = option(5000, "Iterations that train the other network on all waves.", low=1)

    def open(self, seed: int, dtype: DTypeLike | None = None) -> Task:
        return SineTask(self, seed, self.dtype if dtype is None else dtype)


class SineTask(Task):
    """The task. Args: options: of the problem; seed: of the waves and of the network; dtype: of the arrays."""

    def __init__(self, options: Sine, seed: int, dtype: DTypeLike) -> None:
        self.options, self.seed, self.dtype = options, seed, dtype
        self.validation = self.draw(options.n_validation, VALIDATION)
        self.description = (
            f"sine waves of {options.k_shot} points: {options.n_train} in an iteration, {options.n_validation} validation, "
            f"{options.n_test} test"
        )

    def draw(self, count: int, stream: int, number: int = 0) -> Waves:
        """Waves. Args: count: how many; stream: one of the streams; number: of the draw. Cost: O(count)."""
        rng = np.random.default_rng([self.seed, stream, number])
        amplitude, phase = rng.uniform(0.1, 5.0, (count, 1, 1)), rng.uniform(0.0, np.pi, (count, 1, 1))
        x, x_query = (rng.uniform(-5.0, 5.0, (count, size, 1)) for size in (self.options.k_shot, self.options.n_query))
        arrays = x, amplitude * np.sin(x - phase), x_query, amplitude * np.sin(x_query - phase)
        return Waves(*(a.astype(self.dtype) for a in arrays))

    def init(self) -> Arrays:
        """Weights and biases drawn uniformly between -1 and 1 over the root of a layer's inputs."""
        rng, hidden = np.random.default_rng([self.seed, TRAIN]), self.options.hidden
        found: Arrays = {}
        for layer, (inputs, units) in enumerate(((1, hidden), (hidden, hidden), (hidden, 1)), 1):
            for name, shape in (("w", (inputs, units)), ("b", (units,))):
                found[f"{name}{layer}"] = rng.uniform(-(inputs**-0.5), inputs**-0.5, shape).astype(self.dtype)
        return found

    def inner(self, draw: int) -> tuple[Bilevel, Batches]:
        waves = self.draw(self.options.n_train, TRAIN, draw) if draw else self.validation

        def outer_loss(w: PyTree, hparams: PyTree) -> Tensor:
            return mean(errors(w, waves.x_query, waves.y_query))

        optimizer = SGD(lr=self.options.inner_lr)
        problem = Bilevel(inner_loss, outer_loss, lambda hparams: start(hparams, len(waves.x)), lambda hparams: optimizer)
        return problem, full_batch((waves.x, waves.y), self.options.n_steps)

    def metrics(self, hparams: Arrays) -> Record:
        waves = self.validation
        return {"start_error": float(mean(errors(start(hparams, len(waves.x)), waves.x_query, waves.y_query)))}

    def evaluate(self, hparams: Arrays, title: str) -> Evaluation:
        other, tune = self.pretrained(), self.draw(self.options.n_validation, TUNE)
        at = min(self.options.n_steps, SHOWN)
        with np.errstate(over="ignore", invalid="ignore"):  # too long steps diverge
            ends = {lr: self.errors_of(other, tune, lr)[at].mean() for lr in GRID}
        lr = min(GRID, key=lambda lr: ends[lr] if np.isfinite(ends[lr]) else np.inf)
        test = self.draw(self.options.n_test, TEST)
        found = {"tuned": self.errors_of(hparams, test, self.options.inner_lr), "pretrained": self.errors_of(other, test, lr)}
        numbers: Record = {"pretrained_step_size": lr}
        lines = []
        for name, meaning in (("tuned", "tuned start"), ("pretrained", f"trained on all waves, step size {lr:g}")):
            middle, half = found[name].mean(axis=1), 1.96 * found[name].std(axis=1) / np.sqrt(found[name].shape[1])
            numbers |= {f"{name}_curve": middle.tolist(), f"{name}_curve_interval": half.tolist()}
            for steps in dict.fromkeys((0, at, SHOWN)):
                lines.append((f"test error after {steps} steps, {meaning}", f"{middle[steps]:.3f} ± {half[steps]:.3f}"))
        reference = Reference("trained on all waves, test", numbers["pretrained_curve"][0])
        figures = {SINE_PNG: self._drawn(hparams, other, lr, found, test, title)}
        return Evaluation(numbers, lines, figures, [reference], (numbers["tuned_curve"][0], numbers["tuned_curve_interval"][0]))

    def pretrained(self) -> Arrays:
        """The same network trained on the points of all waves, by Adam with a step size that falls to 0. Cost: `pretraining` steps."""
        w, state, total = self.init(), None, self.options.pretraining
        optimizer = Adam(lr=lambda t: 5e-3 * (1.0 - t / total))
        for t in range(total):
            waves = self.draw(self.options.n_train, PRETRAIN, t)
            slope = grad(lambda w, waves=waves: mean(errors(start(w, len(waves.x)), waves.x, waves.y)))(w)
            w, state = optimizer.step(w, state, slope, t)
        return w

    def errors_of(self, hparams: Arrays, waves: Waves, lr: float) -> Array:
        """Errors of each wave after 0 to `SHOWN` steps from these weights. Returns: (SHOWN + 1, n). Cost: a run of all waves."""
        w: Any = start(hparams, len(waves.x))
        found = [errors(w, waves.x_query, waves.y_query).value]
        for _ in range(SHOWN):
            w = unroll(inner_loss, w, (), full_batch((waves.x, waves.y), 1), optimizer=SGD(lr=lr))
            found.append(errors(w, waves.x_query, waves.y_query).value)
        return np.stack(found)

    def _drawn(self, hparams: Arrays, other: Arrays, lr: float, found: Mapping[str, Array], test: Waves, title: str) -> bytes:
        figure, (top, bottom) = new_figure(6.5, 7.6, 2, 1)
        at = int(np.abs(test.y).max(axis=(1, 2)).argmax())  # a wave of a large amplitude
        one, x = Waves(*(a[at : at + 1] for a in test)), np.linspace(-5.0, 5.0, 201, dtype=self.dtype)[None, :, None]
        starts = {"tuned": ("tuned start", hparams, self.options.inner_lr), "pretrained": ("trained on all waves", other, lr)}
        for name, (words, w_0, step) in starts.items():
            top.plot(range(SHOWN + 1), found[name].mean(axis=1), "o-", markersize=3, color=COLORS[name])
            for steps, style in ((0, ":"), (SHOWN, "-")):
                batches = full_batch((one.x, one.y), steps)
                w = unroll(inner_loss, start(w_0, 1), (), batches, optimizer=SGD(lr=step))
                bottom.plot(x[0, :, 0], network(w, x).value[0, :, 0], style, color=COLORS[name], label=f"{words}, {steps} steps")
        order = np.argsort(one.x_query[0, :, 0])
        bottom.plot(one.x_query[0, order, 0], one.y_query[0, order, 0], "x", color=GREY, label="query points")
        bottom.plot(one.x[0, :, 0], one.y[0, :, 0], "o", color="black", label="points that it is trained on")
        top.set_yscale("log")
        top.set_xlabel("inner steps")
        top.set_ylabel("mean squared error of new waves")
        bottom.set_xlabel("x")
        bottom.set_ylabel("y")
        top.set_title(title, fontsize=8)
        for axes in (top, bottom):
            axes.grid(alpha=0.25)
        legend_below(bottom)
        return png(figure)


def start(hparams: Mapping[str, Any], count: int) -> dict[str, Tensor]:
    """The weights of `count` networks that start alike: (count, ...). Cost: no copy."""
    return {name: broadcast_to(x, (count, *x.shape)) for name, x in hparams.items()}


def network(w: Mapping[str, Any], x: Any) -> Tensor:
    """The network of each wave. Args: w: with a leading axis of waves; x: (n, k, 1). Returns: (n, k, 1). Cost: 2 n k h^2 flop."""
    hidden = relu(linear(relu(linear(x, w["w1"], w["b1"])), w["w2"], w["b2"]))
    return linear(hidden, w["w3"], w["b3"])


def errors(w: Mapping[str, Any], x: Array, y: Array) -> Tensor:
    """The mean squared error of each wave, (n,). Args: w: with a leading axis of waves; x, y: (n, k, 1). Cost: that of `network`."""
    found: Tensor = mean((network(w, x) - y) ** 2, axis=(-2, -1))
    return found


def inner_loss(w: PyTree, hparams: PyTree, batch: tuple[Array, Array]) -> Tensor:
    """The sum of the waves' errors, so that each takes a step of its own. Args: batch: x and y. Cost: that of `network`."""
    total: Tensor = sum_(errors(w, *batch))
    return total
