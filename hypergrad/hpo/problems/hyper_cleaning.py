"""Data hyper-cleaning: one weight for each training example, half of whose labels are wrong.

    min over lambda of E(w_T),    L_lambda(w) = 1/R sum_i lambda_i loss(w; x_i, y_i),    0 <= lambda_i <= 1,    sum_i lambda_i <= R

E is the mean loss on clean validation examples. Wrong labels end with lambda_i = 0 and are dropped.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...bilevel import Batches, Bilevel, full_batch
from ...constraints import Budget
from ...data import Examples, LabelledImages
from ...errors import ArgumentError
from ...ops import mean
from ...ops import sum as sum_
from ...optimizers import SGD
from ...runs.configuration import option
from ...runs.curves import BLUE, ORANGE, Reference, legend_below, new_figure, png
from ...runs.loop import Arrays, Record
from ...tape import Tensor
from ...trees import PyTree
from .. import classifier
from ..images import ImageProblem, gallery
from ..problem import Evaluation, Task

Array = NDArray[Any]
DISCARDED = 1e-3  # an example with a smaller weight counts as dropped
WEIGHTS_PNG, EXAMPLES_PNG = "weights.png", "examples.png"
SHOWN = 10  # images in a row of the figure of examples


@dataclass(frozen=True)
class HyperCleaning(ImageProblem):
    """The problem and its options.

    The model is softmax regression, trained from zero by full-batch gradient descent.

    Args: see the options' help.
    Raises: ArgumentError for a value out of its range.
    Source: Franceschi et al. 2017, arXiv:1703.01785, section 5.1.
    """

    title: ClassVar[str] = "data hyper-cleaning"
    source: ClassVar[str] = "Franceschi et al. 2017, arXiv:1703.01785"
    settings: ClassVar[Mapping[str, Any]] = {"outer_lr": 0.005, "schedule": "constant", "iterations": 500, "eval_every": 25}
    quick: ClassVar[Mapping[str, Any]] = {
        **{"n_train": 100, "n_validation": 100, "n_test": 100, "n_steps": 5, "final_steps": 20},
        **{"outer_lr": 0.05, "iterations": 20, "eval_every": 5},
    }
    figures: ClassVar[Mapping[str, str]] = {
        WEIGHTS_PNG: "the weights of right and of wrong labels",
        EXAMPLES_PNG: "examples that were dropped and kept",
    }

    noise: float = option(0.5, "Share of the training labels that are wrong, each drawn uniformly from the other classes.", low=0)
    budget: float = option(0.5, "R, the most that the weights may add up to, as a share of the training examples.", above=0)
    n_steps: int = option(30, "Inner steps T.", low=1)
    inner_lr: float = option(0.5, "Step size of the inner run.", above=0)
    final_steps: int = option(300, "Steps of the final training on the examples kept and the validation examples.", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise > 1:
            raise ArgumentError(f"config: noise is {self.noise}, expected at most 1 because it is a share of the labels; lower it")

    def open(self, seed: int, dtype: DTypeLike | None = None) -> Task:
        return CleaningTask(self, self.open_images(seed, dtype), seed)


class CleaningTask(Task):
    """The task. Args: options: of the problem; images: the data, with right labels; seed: of the wrong ones."""

    def __init__(self, options: HyperCleaning, images: LabelledImages, seed: int) -> None:
        self.options, self.images = options, images
        y, count = images.train.y, len(images.train)
        self.wrong = wrong_labels(count, options.noise, seed)
        shift = np.random.default_rng([seed, 1]).integers(1, images.n_classes, count)
        self.train = Examples(images.train.x, np.where(self.wrong, (y + shift) % images.n_classes, y))
        self.total = options.budget * count
        self.description = f"{images.describe()}, {np.count_nonzero(self.wrong)} wrong labels"

    def init(self) -> Arrays:
        """Weight 0 for every example."""
        return {"weights": np.zeros(len(self.train), self.train.x.dtype)}

    def project(self, hparams: Arrays) -> Arrays:
        return {"weights": Budget(self.total).project(hparams["weights"])}

    def inner(self, draw: int) -> tuple[Bilevel, Batches]:
        start, validation, share = self._start(), self.images.validation, 1.0 / self.total

        def inner_loss(w: PyTree, hparams: PyTree, batch: Examples) -> Tensor:
            loss: Tensor = share * sum_(hparams["weights"] * classifier.losses(w, batch.x, batch.y))
            return loss

        def outer_loss(w: PyTree, hparams: PyTree) -> Tensor:
            return mean(classifier.losses(w, validation.x, validation.y))

        problem = Bilevel(inner_loss, outer_loss, lambda hparams: start, lambda hparams: SGD(lr=self.options.inner_lr))
        return problem, full_batch(self.train, self.options.n_steps)

    def metrics(self, hparams: Arrays) -> Record:
        """Of the weights: their sum, and F1 of the dropped examples against the wrong labels."""
        return {"sum": float(hparams["weights"].sum()), "f1": self.found(hparams)["f1"]}

    def judge(self, hparams: Arrays, w: PyTree) -> Record:
        return {"accuracy": classifier.accuracy(w, self.images.validation).mean}

    def found(self, hparams: Arrays) -> Record:
        """How well the dropped examples are those with wrong labels: counts, precision, recall and F1. Cost: O(n)."""
        dropped = hparams["weights"] < DISCARDED
        hits, n_dropped, n_wrong = (int(np.count_nonzero(x)) for x in (dropped & self.wrong, dropped, self.wrong))
        return {
            "discarded": n_dropped,
            "wrong": n_wrong,
            "precision": hits / n_dropped if n_dropped else 1.0,
            "recall": hits / n_wrong if n_wrong else 1.0,
            "f1": 2 * hits / (n_dropped + n_wrong) if n_dropped + n_wrong else 1.0,
        }

    def evaluate(self, hparams: Arrays, title: str) -> Evaluation:
        kept = hparams["weights"] >= DISCARDED
        everything = np.ones(len(self.train), bool)
        rows = {"tuned": kept, "oracle": ~self.wrong, "baseline": everything}
        scores = {name: classifier.accuracy(self._final(chosen), self.images.test) for name, chosen in rows.items()}
        found = self.found(hparams)
        numbers = {f"{name}_{what}": getattr(a, what) for name, a in scores.items() for what in ("mean", "interval")}
        numbers = {name.replace("_mean", "_accuracy"): value for name, value in numbers.items()}
        meaning = {"tuned": "examples kept", "oracle": "oracle, right labels alone", "baseline": "baseline, all examples"}
        lines = [(f"test accuracy, {meaning[name]}", classifier.percent(score)) for name, score in scores.items()]
        dropped = f"{found['discarded']} of {len(self.train)} examples, {found['wrong']} labels are wrong"
        lines += [("dropped", dropped)]
        lines += [(name, f"{found[key]:.4f}") for name, key in (("precision", "precision"), ("recall", "recall"), ("F1", "f1"))]
        figures = {WEIGHTS_PNG: self._weights(hparams["weights"], title), EXAMPLES_PNG: self._examples(hparams["weights"], title)}
        references = [Reference("oracle, test", scores["oracle"].mean), Reference("baseline, test", scores["baseline"].mean)]
        return Evaluation({**numbers, **found}, lines, figures, references, (scores["tuned"].mean, scores["tuned"].interval))

    def _start(self) -> classifier.Weights:
        return classifier.start(self.train.x.shape[1], self.images.n_classes, 0, 0, self.train.x.dtype)

    def _final(self, rows: Array) -> classifier.Weights:
        """Trained on some of the training examples and on all validation examples."""
        data = self.train.take(rows) + self.images.validation
        return classifier.fit(self._start(), data, SGD(lr=self.options.inner_lr), self.options.final_steps)

    def _weights(self, weights: Array, title: str) -> bytes:
        figure, axes = new_figure(6.5, 4.4, 1, 1)
        bins = np.linspace(0.0, 1.0, 41)
        for rows, color, name in ((~self.wrong, BLUE, "right labels"), (self.wrong, ORANGE, "wrong labels")):
            axes.hist(weights[rows], bins=bins, color=color, alpha=0.6, label=f"{np.count_nonzero(rows)} {name}")
        axes.set_xlabel("weight of the example")
        axes.set_ylabel("examples")
        axes.set_yscale("log")
        axes.set_title(title, fontsize=8)
        legend_below(axes)
        return png(figure)

    def _examples(self, weights: Array, title: str) -> bytes:
        """The first examples that are dropped with a wrong label, dropped with a right one, kept with a right one, kept with a wrong."""
        dropped, names = weights < DISCARDED, self.images.class_names
        parts = ((dropped, True), (dropped, False), (~dropped, False), (~dropped, True))
        chosen = np.concatenate([np.flatnonzero(rows & (self.wrong == wrong))[:SHOWN] for rows, wrong in parts])
        texts = []
        for i in chosen:
            label, true = names[self.train.y[i]], names[self.images.train.y[i]]
            texts.append(f"{label}{f' ({true})' if self.wrong[i] else ''}: {weights[i]:.2f}")
        images = self.train.x[chosen].reshape(-1, *self.images.image_shape)
        return gallery(images, texts, SHOWN, f"{title}\nlabel (true label where it is wrong): weight")


def wrong_labels(count: int, share: float, seed: int) -> NDArray[np.bool_]:
    """Which labels are to be wrong. Args: count: of labels; share: of wrong ones; seed: of the draw. Returns: a mask. Cost: O(count)."""
    mask = np.zeros(count, bool)
    mask[np.random.default_rng([seed, 0]).permutation(count)[: round(share * count)]] = True
    return mask
