"""A learned loss: a small network replaces the cross-entropy, so that training on wrong labels gives a model that is right.

    L_lambda(w) = mean over examples of sum over classes k of (-y_k log p_k + n_lambda(log p_k, y_k)),    min over lambda of E(w_T)

p are the model's probabilities and y is 1 for the label's class, else 0. n_lambda has one layer of tanh units and is zero before tuning:
the learned loss begins as the cross-entropy. E is the cross-entropy of clean validation examples.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...bilevel import Batches, Bilevel, full_batch
from ...data import Examples, LabelledImages
from ...ops import linear, logsumexp, mean, reshape, tanh
from ...ops import sum as sum_
from ...optimizers import SGD
from ...passes.unroll import unroll
from ...runs.configuration import option
from ...runs.curves import BLUE, GREY, ORANGE, Reference, legend_below, new_figure, png
from ...runs.loop import Arrays, Record
from ...tape import Tensor
from ...transforms import tree_values
from ...trees import PyTree
from .. import classifier
from ..images import ImageProblem
from ..problem import Evaluation, Task
from .hyper_cleaning import wrong_labels

Array = NDArray[Any]
LOSS_PNG = "loss.png"
GRID = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # step sizes that the cross-entropy may choose from


@dataclass(frozen=True)
class LearnedLoss(ImageProblem):
    """The problem and its options. The model has one hidden layer, trained by full-batch gradient descent.

    Args: see the options' help.
    Source: Franceschi et al. 2017, arXiv:1712.06283, section 3 (learning ground loss functions).
    """

    title: ClassVar[str] = "a learned loss for wrong labels"
    source: ClassVar[str] = "Franceschi et al. 2017, arXiv:1712.06283"
    modes: ClassVar[tuple[str, ...]] = ("reverse", "forward")
    settings: ClassVar[Mapping[str, Any]] = {"n_train": 400, "outer_lr": 0.01, "iterations": 150, "eval_every": 10}
    quick: ClassVar[Mapping[str, Any]] = {
        **{"n_train": 100, "n_validation": 100, "n_test": 100, "hidden": 8, "units": 4, "n_steps": 10},
        **{"iterations": 20, "eval_every": 5},
    }
    figures: ClassVar[Mapping[str, str]] = {LOSS_PNG: "the learned loss beside the cross-entropy"}

    noise: float = option(0.5, "Share of the training labels that are wrong, each drawn uniformly from the other classes.", low=0)
    hidden: int = option(32, "Hidden units of the model; 0 for softmax regression.", low=0)
    units: int = option(8, "Units of the network that is the loss.", low=1)
    n_steps: int = option(60, "Inner steps T.", low=1)
    inner_lr: float = option(0.2, "Step size of the inner run.", above=0)

    def open(self, seed: int, dtype: DTypeLike | None = None) -> Task:
        return LossTask(self, self.open_images(seed, dtype), seed)


class LossTask(Task):
    """The task. Args: options: of the problem; images: the data, with right labels; seed: of the wrong ones and of the network."""

    def __init__(self, options: LearnedLoss, images: LabelledImages, seed: int) -> None:
        self.options, self.images, self.seed = options, images, seed
        self.train = self.spoilt(seed)
        self.description = f"{images.describe()}, {np.count_nonzero(self.train.y != images.train.y)} wrong labels"

    def spoilt(self, seed: int) -> Examples:
        """The training examples with wrong labels. Args: seed: of the choice. Cost: O(n)."""
        train, classes = self.images.train, self.images.n_classes
        wrong = wrong_labels(len(train), self.options.noise, seed)
        shift = np.random.default_rng([seed, 1]).integers(1, classes, len(train))
        return Examples(train.x, np.where(wrong, (train.y + shift) % classes, train.y))

    def init(self) -> Arrays:
        """A network whose output is zero."""
        units, dtype = self.options.units, self.train.x.dtype
        rng = np.random.default_rng([self.seed, 2])
        return {
            "in": rng.standard_normal((2, units)).astype(dtype),
            "bias": rng.standard_normal(units).astype(dtype),
            "out": np.zeros((units, 1), dtype),
        }

    def inner(self, draw: int) -> tuple[Bilevel, Batches]:
        validation, start = self.images.validation, self._start()

        def outer_loss(w: PyTree, hparams: PyTree) -> Tensor:
            return mean(classifier.losses(w, validation.x, validation.y))

        problem = Bilevel(self._inner_loss, outer_loss, lambda hparams: start, lambda hparams: SGD(lr=self.options.inner_lr))
        return problem, full_batch(self._batch(self.train), self.options.n_steps)

    def judge(self, hparams: Arrays, w: PyTree) -> Record:
        return {"accuracy": classifier.accuracy(w, self.images.validation).mean}

    def evaluate(self, hparams: Arrays, title: str) -> Evaluation:
        images = self.images
        validation = {lr: classifier.accuracy(self._by_cross_entropy(self.train, lr), images.validation).mean for lr in GRID}
        lr = max(GRID, key=lambda lr: validation[lr])
        others = self.spoilt(self.seed + 1)
        models = {
            "tuned": self._by_learned_loss(hparams, self.train),
            "baseline": self._by_cross_entropy(self.train, lr),
            "same_step": self._by_cross_entropy(self.train, self.options.inner_lr),
            "fresh_tuned": self._by_learned_loss(hparams, others),
            "fresh_baseline": self._by_cross_entropy(others, lr),
            "oracle": self._by_cross_entropy(images.train, lr),
        }
        meaning = {
            "tuned": "learned loss",
            "baseline": f"cross-entropy, step size {lr:g} (best of {len(GRID)} on validation)",
            "same_step": f"cross-entropy, step size {self.options.inner_lr:g} as the learned loss",
            "fresh_tuned": "learned loss, other labels wrong than in tuning",
            "fresh_baseline": "cross-entropy on these",
            "oracle": "oracle, cross-entropy and right labels alone",
        }
        scores = {name: classifier.accuracy(w, images.test) for name, w in models.items()}
        numbers: Record = {"baseline_step_size": lr}
        for name, score in scores.items():
            numbers |= {f"{name}_accuracy": score.mean, f"{name}_interval": score.interval}
        lines = [(f"test accuracy, {meaning[name]}", classifier.percent(score)) for name, score in scores.items()]
        references = [Reference("oracle, test", scores["oracle"].mean), Reference("cross-entropy, test", scores["baseline"].mean)]
        figures = {LOSS_PNG: self._drawn(hparams, title)}
        return Evaluation(numbers, lines, figures, references, (scores["tuned"].mean, scores["tuned"].interval))

    def _start(self) -> classifier.Weights:
        shape = self.train.x.shape[1], self.images.n_classes
        return classifier.start(*shape, self.options.hidden, self.seed, self.train.x.dtype)

    def _batch(self, data: Examples) -> tuple[Array, Array]:
        """The images, and the labels as rows with a single 1."""
        return data.x, np.eye(self.images.n_classes, dtype=data.x.dtype)[data.y]

    @staticmethod
    def _inner_loss(w: PyTree, hparams: PyTree, batch: tuple[Array, Array]) -> Tensor:
        x, y = batch
        logits = classifier.logits(w, x)
        return mean(learned_losses(hparams, logits - logsumexp(logits, axis=-1, keepdims=True), y))

    def _by_learned_loss(self, hparams: Arrays, data: Examples) -> PyTree:
        batches = full_batch(self._batch(data), self.options.n_steps)
        optimizer = SGD(lr=self.options.inner_lr)
        return tree_values(unroll(self._inner_loss, self._start(), hparams, batches, optimizer=optimizer, checkpoints=1))

    def _by_cross_entropy(self, data: Examples, lr: float) -> classifier.Weights:
        return classifier.fit(self._start(), data, SGD(lr=lr), self.options.n_steps)

    def _drawn(self, hparams: Arrays, title: str) -> bytes:
        """The loss over the probability of the label, where the other classes share the rest."""
        figure, axes = new_figure(6.5, 4.6, 1, 1)
        p, classes = np.linspace(0.002, 0.998, 400), self.images.n_classes
        rows = np.repeat(((1.0 - p) / (classes - 1))[:, None], classes, axis=1)
        rows[:, 0] = p
        y = np.eye(classes)[np.zeros(len(p), int)]
        own = {name: x.astype(np.float64) for name, x in hparams.items()}
        learned = learned_losses(own, np.log(rows), y).value
        axes.plot(p, -np.log(p), color=BLUE, linewidth=1.5, label="cross-entropy")
        axes.plot(p, learned - learned[-1], color=ORANGE, linewidth=1.5, label="learned loss, moved to end at 0")
        axes.axvline(1.0 / classes, color=GREY, linestyle=":", linewidth=1.0, label="chance")
        axes.set_xlabel("probability of the label; the other classes share the rest")
        axes.set_ylabel("loss")
        axes.set_title(title, fontsize=8)
        axes.grid(alpha=0.25)
        legend_below(axes)
        return png(figure)


def learned_losses(hparams: Mapping[str, Any], log_p: Any, y: Array) -> Tensor:
    """The learned loss of each example.

    Args: hparams: of the network, as `LossTask.init`; log_p: log-probabilities (n, classes); y: 1 for the label's class, else 0.
    Returns: (n,). Cost: n times classes runs of the network.
    """
    n, classes = y.shape
    seen = reshape(log_p, (n * classes, 1)) * hparams["in"][:1] + y.reshape(-1, 1) * hparams["in"][1:] + hparams["bias"]
    extra = reshape(linear(tanh(seen), hparams["out"]), (n, classes))
    loss: Tensor = sum_(extra - y * log_p, axis=1)
    return loss
