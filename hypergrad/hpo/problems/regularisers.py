"""One L2 strength for each weight, each input or each array of a classifier, against the best single one of a grid.

L_lambda(w) = mean_i loss(w; x_i, y_i) + 1/2 sum_j exp(lambda_j) w_j^2,    E(w) = mean validation loss
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...bilevel import Batches, Bilevel, full_batch
from ...data import Accuracy, Examples, LabelledImages
from ...ops import exp, mean
from ...ops import sum as sum_
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
STRENGTHS_PNG = "strengths.png"
LEAST = -14.0  # the smallest logarithm of a strength: as good as none


@dataclass(frozen=True)
class Regularisers(ImageProblem):
    """The problem and its options.

    Args: see the options' help.
    Source: Maclaurin et al. 2015, arXiv:1502.03492 (a strength for each pixel); Lorraine et al. 2020, arXiv:1911.02590.
    """

    title: ClassVar[str] = "an L2 strength for each weight"
    source: ClassVar[str] = "Maclaurin et al. 2015, arXiv:1502.03492; Lorraine et al. 2020, arXiv:1911.02590"
    settings: ClassVar[Mapping[str, Any]] = {"outer_lr": 0.2, "iterations": 100, "eval_every": 10}
    quick: ClassVar[Mapping[str, Any]] = {
        **{"n_train": 40, "n_validation": 60, "n_test": 60, "n_steps": 10, "grid": (-6.0, -3.0)},
        **{"iterations": 10, "eval_every": 2},
    }
    figures: ClassVar[Mapping[str, str]] = {STRENGTHS_PNG: "the strengths, dark where a weight is held back most"}

    n_train: int | None = option(200, "Training examples.", low=1)
    per: Literal["weight", "input", "array"] = option("weight", "What has a strength of its own: each weight, input, or array of weights.")
    hidden: int = option(0, "Hidden units; 0 is softmax regression.", low=0)
    start: float = option(-5.0, "Logarithm of every strength at the start.")
    n_steps: int = option(100, "Inner steps T.", low=1)
    inner_lr: float = option(0.2, "Step size of the inner run.", above=0)
    grid: tuple[float, ...] = option((-8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0), "Logarithms of single strengths to compare with.")

    def open(self, seed: int, dtype: DTypeLike | None = None) -> Task:
        return RegulariserTask(self, self.open_images(seed, dtype), seed)


class RegulariserTask(Task):
    """The task. Args: options: of the problem; images: the data; seed: of the first weights."""

    def __init__(self, options: Regularisers, images: LabelledImages, seed: int) -> None:
        self.options, self.images, self.description = options, images, images.describe()
        self.w_0 = classifier.start(images.train.x.shape[1], images.n_classes, options.hidden, seed, images.train.x.dtype)
        self.most = float(np.log(1.0 / options.inner_lr))  # with a larger strength a step would pass beyond zero

    def init(self) -> Arrays:
        """The same logarithm everywhere; biases have none."""
        found = {}
        for name, w in self._matrices().items():
            shapes = {"weight": w.shape, "input": (len(w), 1), "array": ()}
            found[name] = self._full(shapes[self.options.per], self.options.start)
        return found

    def project(self, hparams: Arrays) -> Arrays:
        return {name: np.clip(value, LEAST, self.most) for name, value in hparams.items()}

    def inner(self, draw: int) -> tuple[Bilevel, Batches]:
        w_0, validation, names = self.w_0, self.images.validation, tuple(self._matrices())

        def inner_loss(w: PyTree, hparams: PyTree, batch: Examples) -> Tensor:
            loss: Tensor = mean(classifier.losses(w, batch.x, batch.y))
            for name in names:
                loss = loss + 0.5 * sum_(exp(hparams[name]) * (w[name] * w[name]))
            return loss

        def outer_loss(w: PyTree, hparams: PyTree) -> Tensor:
            return mean(classifier.losses(w, validation.x, validation.y))

        problem = Bilevel(inner_loss, outer_loss, lambda hparams: w_0, lambda hparams: SGD(lr=self.options.inner_lr))
        return problem, full_batch(self.images.train, self.options.n_steps)

    def metrics(self, hparams: Arrays) -> Record:
        """The mean logarithm of all strengths, and the standard deviation among them."""
        logs = np.concatenate([value.reshape(-1) for value in hparams.values()]).astype(np.float64)
        return {"mean_log_strength": float(logs.mean()), "spread": float(logs.std())}

    def judge(self, hparams: Arrays, w: PyTree) -> Record:
        return {"accuracy": classifier.accuracy(w, self.images.validation).mean}

    def evaluate(self, hparams: Arrays, title: str) -> Evaluation:
        tuned, _ = self._test(hparams)
        single: dict[float, tuple[Accuracy, float]] = {
            at: self._test({name: self._full((), at) for name in hparams}) for at in sorted({*self.options.grid, LEAST})
        }
        best = min(self.options.grid, key=lambda at: single[at][1])
        found = {"tuned": tuned, "single": single[best][0], "none": single[LEAST][0]}
        meaning = {
            "tuned": f"{sum(v.size for v in hparams.values())} strengths, tuned",
            "single": f"one strength, exp({best:g}), the grid's best",
            "none": "no regularisation",
        }
        numbers: Record = {"hyperparameters": sum(v.size for v in hparams.values()), "best_of_grid": best, **self.metrics(hparams)}
        for name, score in found.items():
            numbers |= {f"{name}_accuracy": score.mean, f"{name}_interval": score.interval}
        numbers["grid"] = [
            {"log_strength": at, "validation_loss": loss, "test_accuracy": score.mean} for at, (score, loss) in single.items()
        ]
        lines = [(f"test accuracy, {meaning[name]}", classifier.percent(score)) for name, score in found.items()]
        lines.append(("logarithms of the strengths", f"mean {numbers['mean_log_strength']:.2f}, deviation {numbers['spread']:.2f}"))
        references = [Reference(f"{name}, test", found[name].mean) for name in ("single", "none")]
        return Evaluation(numbers, lines, self._figures(hparams, title), references, (tuned.mean, tuned.interval))

    def _test(self, hparams: Arrays) -> tuple[Accuracy, float]:
        """Accuracy on the test examples, and the validation loss, of the run with these strengths."""
        problem, batches = self.inner(0)
        w, loss = trained(problem, hparams, batches)
        return classifier.accuracy(w, self.images.test), loss

    def _matrices(self) -> dict[str, Array]:
        return {name: value for name, value in self.w_0.items() if value.ndim == 2}

    def _full(self, shape: tuple[int, ...], value: float) -> Array:
        return np.full(shape, value, self.images.train.x.dtype)

    def _figures(self, hparams: Arrays, title: str) -> dict[str, bytes]:
        """The strengths of the first matrix as images of the inputs: one for each unit, or one for all."""
        first = next(iter(hparams))
        rows = np.broadcast_to(hparams[first], (len(self.w_0[first]), *hparams[first].shape[1:]) or (len(self.w_0[first]), 1))
        maps = rows.reshape(len(rows), -1).T[:40].reshape(-1, *self.images.image_shape)
        names = self.images.class_names if first == "w" and len(maps) > 1 else tuple(map(str, range(len(maps))))
        low, high = float(maps.min()), float(maps.max())
        text = f"{title}\nlogarithms of the strengths, white {low:.2f} to black {high:.2f}"
        return {STRENGTHS_PNG: gallery(maps, names, min(10, max(4, len(maps))), text, (low, high if high > low else low + 1.0))}
