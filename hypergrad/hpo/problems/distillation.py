"""Dataset distillation: a few synthetic images on which T steps of training give a good classifier of real ones.

    min over (images, lr) of E(w_T),    L(w) = mean loss(w; images, labels),    w_t = w_{t-1} - lr grad L(w_{t-1})

E is the mean loss on the real training examples, in validation that on the validation examples. The labels are fixed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...bilevel import Batches, Bilevel, full_batch
from ...data import Accuracy, Examples, LabelledImages
from ...ops import exp, mean
from ...optimizers import SGD
from ...runs.configuration import option
from ...runs.curves import Reference
from ...runs.loop import Arrays, Record
from ...tape import Tensor
from ...trees import PyTree
from .. import classifier
from ..hypergradient import trained
from ..images import ImageProblem, gallery
from ..problem import Evaluation, Task

Array = NDArray[Any]
DISTILLED_PNG = "distilled.png"


@dataclass(frozen=True)
class Distillation(ImageProblem):
    """The problem and its options.

    Args: see the options' help.
    Source: Wang et al. 2018, arXiv:1811.10959; Maclaurin et al. 2015, arXiv:1502.03492 (learned training data).
    """

    title: ClassVar[str] = "dataset distillation"
    source: ClassVar[str] = "Wang et al. 2018, arXiv:1811.10959; Maclaurin et al. 2015, arXiv:1502.03492"
    modes: ClassVar[tuple[str, ...]] = ("reverse", "forward")
    settings: ClassVar[Mapping[str, Any]] = {"outer_lr": 0.03, "iterations": 300, "eval_every": 20}
    quick: ClassVar[Mapping[str, Any]] = {
        **{"n_train": 60, "n_validation": 60, "n_test": 60, "n_steps": 4, "full_steps": 20, "repeats": 2, "rates": (0.1, 0.5)},
        **{"iterations": 20, "eval_every": 5},
    }
    figures: ClassVar[Mapping[str, str]] = {DISTILLED_PNG: "the learned images"}

    per_class: int = option(1, "Synthetic images of each class.", low=1)
    hidden: int = option(0, "Hidden units; 0 is softmax regression.", low=0)
    fixed_start: bool = option(True, "Start each run from the same weights, else from new ones; without hidden units they are 0.")
    bounded: bool = option(False, "Keep the pixels of the synthetic images between 0 and 1.")
    n_steps: int = option(10, "Inner steps T.", low=1)
    inner_lr: float = option(0.1, "Step size at the start.", above=0)
    rates: tuple[float, ...] = option((0.03, 0.1, 0.3, 1.0), "Step sizes to choose from in training on real images.", above=0)
    full_steps: int = option(200, "Steps of training on all real training images.", low=1)
    repeats: int = option(10, "Choices of real images, or starts, in the final evaluation.", low=1)

    def open(self, seed: int, dtype: DTypeLike | None = None) -> Task:
        return DistillationTask(self, self.open_images(seed, dtype), seed)


class DistillationTask(Task):
    """The task. Args: options: of the problem; images: the data; seed: of everything random."""

    def __init__(self, options: Distillation, images: LabelledImages, seed: int) -> None:
        self.options, self.images, self.seed = options, images, seed
        self.labels = np.tile(np.arange(images.n_classes), options.per_class)
        self.description = f"{images.describe()}, {len(self.labels)} synthetic images"

    def init(self) -> Arrays:
        """Images of noise, and the logarithm of the step size."""
        x = self.images.train.x
        noise = np.random.default_rng([self.seed, 0]).standard_normal((len(self.labels), x.shape[1]))
        start = {"images": (0.5 + 0.1 * noise).astype(x.dtype), "log_lr": np.asarray(np.log(self.options.inner_lr), x.dtype)}
        return self.project(start)

    def project(self, hparams: Arrays) -> Arrays:
        return {**hparams, "images": np.clip(hparams["images"], 0.0, 1.0)} if self.options.bounded else hparams

    def inner(self, draw: int) -> tuple[Bilevel, Batches]:
        labels, w_0 = self.labels, self._start(draw)
        real = self.images.validation if draw == 0 else self.images.train

        def inner_loss(w: PyTree, hparams: PyTree, batch: Any) -> Tensor:
            return mean(classifier.losses(w, hparams["images"], labels))

        def outer_loss(w: PyTree, hparams: PyTree) -> Tensor:
            return mean(classifier.losses(w, real.x, real.y))

        problem = Bilevel(inner_loss, outer_loss, lambda hparams: w_0, lambda hparams: SGD(lr=exp(hparams["log_lr"])))
        return problem, full_batch(None, self.options.n_steps)

    def metrics(self, hparams: Arrays) -> Record:
        """The step size."""
        return {"lr": float(np.exp(hparams["log_lr"]))}

    def judge(self, hparams: Arrays, w: PyTree) -> Record:
        return {"accuracy": classifier.accuracy(w, self.images.validation).mean}

    def evaluate(self, hparams: Arrays, title: str) -> Evaluation:
        repeats = range(self.options.repeats)
        starts = repeats if self.options.hidden and not self.options.fixed_start else range(1)
        synthetic = []
        for i in starts:
            problem, batches = self.inner(i)  # what it is judged by plays no part in the run
            synthetic.append(classifier.accuracy(trained(problem, hparams, batches)[0], self.images.test))
        tuned = synthetic[0] if len(synthetic) == 1 else Accuracy.of(np.array([a.mean for a in synthetic]))
        real = Accuracy.of(np.array([self._best(self._choice(i), self.options.n_steps, i).mean for i in repeats]))
        full = self._best(self.images.train, self.options.full_steps, 0)
        found = {"tuned": tuned, "real": real, "full": full}
        count = len(self.labels)
        meaning = {
            "tuned": f"{count} synthetic images, {self.options.n_steps} steps",
            "real": f"{count} real images, {self.options.n_steps} steps, {len(repeats)} choices",
            "full": f"{len(self.images.train)} real images, {self.options.full_steps} steps",
        }
        numbers: Record = {"synthetic_images": count, **self.metrics(hparams)}
        for name, score in found.items():
            numbers |= {f"{name}_accuracy": score.mean, f"{name}_interval": score.interval}
        lines = [(f"test accuracy, {meaning[name]}", classifier.percent(score)) for name, score in found.items()]
        lines.append(("step size", f"{self.options.inner_lr:g} to {numbers['lr']:.4f}"))
        references = [Reference("real images, as many, test", real.mean), Reference("all real images, test", full.mean)]
        return Evaluation(numbers, lines, {DISTILLED_PNG: self._figure(hparams, title)}, references, (tuned.mean, tuned.interval))

    def _start(self, draw: int) -> classifier.Weights:
        x, key = self.images.train.x, [self.seed, 1, 0 if self.options.fixed_start else draw]
        return classifier.start(x.shape[1], self.images.n_classes, self.options.hidden, key, x.dtype)

    def _choice(self, i: int) -> Examples:
        """As many real training images of each class as there are synthetic ones, or all where there are fewer."""
        rng, y = np.random.default_rng([self.seed, 2, i]), self.images.train.y
        rows = [rng.permutation(np.flatnonzero(y == c))[: self.options.per_class] for c in range(self.images.n_classes)]
        return self.images.train.take(np.concatenate(rows))

    def _best(self, data: Examples, n_steps: int, draw: int) -> Accuracy:
        """Test accuracy of training on real images, with the step size that the validation examples like best."""
        runs = [classifier.fit(self._start(draw), data, SGD(lr=lr), n_steps) for lr in self.options.rates]
        best = max(runs, key=lambda w: classifier.accuracy(w, self.images.validation).mean)
        return classifier.accuracy(best, self.images.test)

    def _figure(self, hparams: Arrays, title: str) -> bytes:
        pictures = hparams["images"].reshape(-1, *self.images.image_shape)
        low, high = float(pictures.min()), float(pictures.max())
        names = [self.images.class_names[label] for label in self.labels]
        return gallery(pictures, names, self.images.n_classes, f"{title}\nwhite {low:.2f} to black {high:.2f}", (low, high))
