"""Online tuning: step size, momentum and weight decay move during one training run, against twelve runs with fixed step sizes.

    w_t = Phi(w_{t-1}, lambda),    every few steps: lambda <- lambda - outer step along dE(w_t)/dlambda

In forward mode the tangents of the weights are carried through the run (real-time hyperparameter optimisation, RTHO), and a discount
lets those of early steps fade (MARTHE): they speak of weights that the run has left long ago, and they grow where steps are large. E is the
validation loss. There is one inner run and no outer loop: an outer iteration of the command is one update of the hyperparameters.

The inner steps see minibatches. A step size that is fixed must then choose between speed at first and little noise at the end, which one
that moves need not. The outer step size falls to zero along the run, because the hypergradient is noisy, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...bilevel import Batches, Bilevel, DrawnBatches, full_batch
from ...data import Examples, LabelledImages
from ...ops import exp, mean, sigmoid
from ...optimizers import SGD
from ...passes.online import Mode, Online, online
from ...passes.unroll import unroll
from ...runs.configuration import option
from ...runs.curves import BLUE, GREEN, GREY, ORANGE, Reference, legend_below, new_figure, plain_ticks, png
from ...runs.loop import Arrays, Record, Training
from ...tape import Tensor
from ...transforms import tree_values
from ...trees import PyTree
from .. import classifier
from ..images import ImageProblem
from ..problem import Evaluation, Report, SingleRun

Array = NDArray[Any]
ONLINE_PNG = "online.png"
GRID = tuple(float(lr) for lr in np.logspace(-2, 0.5, 12))  # of the runs with a fixed step size
BATCHES = 3  # stream of random numbers

WORDS = {"lr": "step size", "momentum": "momentum", "decay": "weight decay"}


@dataclass(frozen=True)
class OnlineProblem(ImageProblem):
    """The problem and its options. The model has one hidden layer, trained on minibatches.

    Args: see the options' help.
    Source: Franceschi et al. 2017, arXiv:1703.01785, sections 3.3 and 5.3; the discount: Donini et al. 2020, arXiv:1910.08525.
    """

    title: ClassVar[str] = "hyperparameters that move during training"
    source: ClassVar[str] = "Franceschi et al. 2017, arXiv:1703.01785"
    modes: ClassVar[tuple[str, ...]] = ("forward", "reverse")
    single_run: ClassVar[bool] = True
    settings: ClassVar[Mapping[str, Any]] = {
        **{"mode": "forward", "n_train": 2000, "outer_lr": 0.05, "schedule": "linear", "iterations": 150, "eval_every": 10}
    }
    quick: ClassVar[Mapping[str, Any]] = {
        **{"n_train": 100, "n_validation": 100, "n_test": 100, "hidden": 8, "every": 3, "outer_lr": 0.2, "iterations": 10, "eval_every": 5}
    }
    figures: ClassVar[Mapping[str, str]] = {ONLINE_PNG: "losses over the steps, and the hyperparameters as they move"}

    hidden: int = option(32, "Hidden units of the model; 0 for softmax regression.", low=0)
    every: int = option(4, "Inner steps between two updates of the hyperparameters.", low=1)
    discount: float = option(0.95, "Factor of the tangents at each update; 1 keeps all. Mode reverse has none.", low=0.0, high=1.0)
    batch: int = option(20, "Training images of a step, drawn anew for each; all of them where there are no more.", low=1)
    start_lr: float = option(0.1, "Step size that the run begins with.", above=0)
    start_momentum: float = option(0.5, "Momentum that the run begins with, and that of the runs with a fixed step size.", above=0)
    start_decay: float = option(1e-3, "Weight decay that the run begins with, and that of the other runs.", above=0)

    def open(self, seed: int, dtype: DTypeLike | None = None) -> SingleRun:
        return OnlineRun(self, self.open_images(seed, dtype), seed)


class Fixed(NamedTuple):
    """A run with a fixed step size.

    Attributes:
        w: the weights after it.
        losses: "training", one before each step, and "validation", one after each `every` steps and one at the end.
    """

    w: PyTree
    losses: Mapping[str, list[float]]


class OnlineRun(SingleRun):
    """The run. Args: options: of the problem; images: the data; seed: of the weights before training."""

    def __init__(self, options: OnlineProblem, images: LabelledImages, seed: int) -> None:
        self.options, self.images, self.seed = options, images, seed
        shape = images.train.x.shape[1], images.n_classes
        self.start = classifier.start(*shape, options.hidden, seed, images.train.x.dtype)
        self.description = f"{images.describe()}, {options.every} steps between two updates"

    def init(self) -> Arrays:
        """Logarithm of the step size, logit of the momentum, logarithm of the weight decay."""
        o, dtype = self.options, self.images.train.x.dtype
        logit = np.log(o.start_momentum / (1.0 - o.start_momentum))
        return {
            "log_lr": np.asarray(np.log(o.start_lr), dtype),
            "logit_momentum": np.asarray(logit, dtype),
            "log_decay": np.asarray(np.log(o.start_decay), dtype),
        }

    def problem(self) -> Bilevel:
        """The bilevel problem: the inner loss on training images, the outer one on validation images. Cost: O(1)."""
        validation = self.images.validation

        def outer_loss(w: PyTree, hparams: PyTree) -> Tensor:
            return mean(classifier.losses(w, validation.x, validation.y))

        return Bilevel(inner_loss, outer_loss, lambda hparams: self.start, optimizer_of)

    def batches(self, n_steps: int) -> Batches:
        """The minibatches, the same for every run. Args: n_steps: T. Cost: O(1)."""
        train, size = self.images.train, self.options.batch
        if size >= len(train):
            return full_batch(train, n_steps)
        return DrawnBatches(n_steps, lambda t: train.take(np.random.default_rng([self.seed, BATCHES, t]).integers(0, len(train), size)))

    def run(self, training: Training, mode: Mode, report: Report) -> Online:
        best = np.inf

        def see(k: int, hparams: PyTree, w: PyTree, value: Array) -> None:
            nonlocal best
            accuracy, loss = classifier.accuracy(w, self.images.validation).mean, float(value)
            report({"iteration": k + 1, "loss": loss, "accuracy": accuracy, **named(hparams)})
            if (k + 1) % training.eval_every == 0 or k + 1 == training.iterations:
                report({"iteration": k + 1, "validation_loss": loss, "validation_accuracy": accuracy, "best": loss < best})
                best = min(best, loss)

        batches = self.batches(training.iterations * self.options.every)
        discount = self.options.discount if mode == "forward" else 1.0
        options: Any = {"mode": mode, "discount": discount, "callback": see}
        return online(self.problem(), self.init(), batches, training.optimizer(), self.options.every, **options)

    def evaluate(self, done: Online, title: str) -> Evaluation:
        fixed = [self.fixed(lr, len(done.losses)) for lr in GRID]
        finals = [run.losses["validation"][-1] for run in fixed]
        at = int(np.argmin([x if np.isfinite(x) else np.inf for x in finals]))
        ends = {"online": done.params, "best_fixed": fixed[at].w}
        names = {"online": "one online run", "best_fixed": f"best of {len(GRID)} fixed step sizes, {GRID[at]:.3g}"}
        numbers: Record = {"inner_steps": len(done.losses), "best_fixed_lr": GRID[at], "fixed_lrs": list(GRID)}
        numbers["fixed_validation_losses"] = [x if np.isfinite(x) else None for x in finals]
        lines, scores = [], {}
        for name, w in ends.items():
            scores[name] = classifier.accuracy(w, self.images.test)
            parts = {"training": self.images.train, "validation": self.images.validation, "test": self.images.test}
            found = {part: self.mean_loss(w, data) for part, data in parts.items()}
            numbers |= {f"{name}_{part}_loss": value for part, value in found.items()}
            numbers |= {f"{name}_accuracy": scores[name].mean, f"{name}_interval": scores[name].interval}
            lines += [(f"{part} loss, {names[name]}", f"{value:.4f}") for part, value in found.items()]
            lines.append((f"test accuracy, {names[name]}", classifier.percent(scores[name])))
        numbers |= {f"final_{name}": value for name, value in named(done.hparams).items()}
        lines += [(f"{WORDS[name]} at the end", f"{value:.4g}") for name, value in named(done.hparams).items()]
        references = [Reference("best fixed step size, test", scores["best_fixed"].mean)]
        figures = {ONLINE_PNG: self._drawn(done, fixed, at, title)}
        return Evaluation(numbers, lines, figures, references, (scores["online"].mean, scores["online"].interval))

    def mean_loss(self, w: PyTree, data: Examples) -> float:
        """The mean cross-entropy of a model. Args: w: arrays; data: examples. Cost: one forward run."""
        return float(mean(classifier.losses(w, data.x, data.y)).value)

    def fixed(self, lr: float, n_steps: int) -> Fixed:
        """A run whose step size stays, with the momentum and the weight decay that the online run begins with.

        Args: lr: the step size; n_steps: T. Returns: a Fixed, with numbers that are not finite where it diverges. Cost: T steps.
        """
        found: dict[str, list[float]] = {"training": [], "validation": []}
        every, validation = self.options.every, self.images.validation

        def see(t: int, w: PyTree, loss: Any) -> None:
            if t and t % every == 0:
                found["validation"].append(self.mean_loss(w, validation))
            found["training"].append(float(loss))

        hparams = {**self.init(), "log_lr": np.asarray(np.log(lr), self.images.train.x.dtype)}
        batches = self.batches(n_steps)
        with np.errstate(over="ignore", invalid="ignore"):
            w = tree_values(unroll(inner_loss, self.start, hparams, batches, optimizer=optimizer_of(hparams), checkpoints=1, callback=see))
            found["validation"].append(self.mean_loss(w, validation))
        return Fixed(w, found)

    def _drawn(self, done: Online, fixed: list[Fixed], at: int, title: str) -> bytes:
        """Validation losses of all runs, and below them the hyperparameters of the online run."""
        figure, grid = new_figure(7.5, 8.5, 4, 1, sharex=True, height_ratios=(2.4, 1, 1, 1))
        every = self.options.every
        steps = every * (1 + np.arange(len(done.values)))
        top = grid[0]
        for i, run in enumerate(fixed):
            style = {"color": BLUE, "linewidth": 1.6, "label": f"best fixed step size, {GRID[at]:.3g}"} if i == at else {"color": GREY}
            style = {"linewidth": 0.7, "alpha": 1.0 if i == at else 0.5, **style}
            top.plot(steps, run.losses["validation"], **style)
        top.plot(steps, done.values, color=ORANGE, linewidth=1.8, label="online, one run")
        top.plot([], [], color=GREY, linewidth=0.7, label=f"the other {len(fixed) - 1} fixed step sizes")
        shown = np.concatenate([done.values, fixed[at].losses["validation"]])
        top.set_ylim(0.9 * float(shown.min()), 1.3 * float(shown.max()))
        top.set_yscale("log")
        plain_ticks(top)
        top.set_ylabel("validation loss")
        top.set_title(title, fontsize=8)
        for axes, (name, values) in zip(grid[1:], named_history(done.history).items(), strict=True):
            axes.plot(steps, values, color=GREEN, linewidth=1.4)
            axes.set_ylabel(WORDS[name], fontsize=8)
            if name != "momentum":
                axes.set_yscale("log")
        for axes in grid:
            axes.grid(alpha=0.25)
        grid[-1].set_xlabel("inner steps")
        legend_below(top)
        return png(figure)


def inner_loss(w: PyTree, hparams: PyTree, batch: Examples) -> Tensor:
    """The mean cross-entropy. Args: w: weights; hparams: not used; batch: examples. Returns: a scalar. Cost: one forward run."""
    return mean(classifier.losses(w, batch.x, batch.y))


def optimizer_of(hparams: PyTree) -> SGD:
    """SGD with the hyperparameters. Args: hparams: as `OnlineRun.init`. Cost: O(1)."""
    return SGD(lr=exp(hparams["log_lr"]), momentum=sigmoid(hparams["logit_momentum"]), weight_decay=exp(hparams["log_decay"]))


def named_history(hparams: PyTree) -> dict[str, Array]:
    """Step size, momentum and weight decay. Args: hparams: as `OnlineRun.init`, with any axes. Cost: O(size)."""
    momentum = 1.0 / (1.0 + np.exp(-hparams["logit_momentum"]))
    return {"lr": np.exp(hparams["log_lr"]), "momentum": momentum, "decay": np.exp(hparams["log_decay"])}


def named(hparams: PyTree) -> Record:
    """The same as numbers. Args: hparams: as `OnlineRun.init`. Cost: O(1)."""
    return {name: float(value) for name, value in named_history(hparams).items()}
