"""The strengths of data augmentation, learned: shift, zoom, blur, noise and contrast, by hypergradients through training on augmented
images.

An image x (H, W) becomes (1 + contrast c) (R x C^T) + noise z. Row i of the matrix R takes a weighted mean of rows around the place

    p_i = m + (i - m) (1 + zoom u) + shift v,    R_ij ∝ exp(-(j - p_i)^2 / (2 b^2)),    b^2 = SHARP^2 + (blur a)^2,    m the middle

and C does the same for columns. c, z, u, v and a are drawn for each image and step. So the image is a smooth function of the strengths,
which are exp(lambda).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...bilevel import Batches, Bilevel, DrawnBatches
from ...data import Accuracy, LabelledImages
from ...ops import exp, matmul, mean, reshape, softmax, transpose
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
AUGMENTED_PNG = "augmented.png"
SHARP = 0.25  # of a pixel: the width of the means without blur
NAMES = ("shift", "zoom", "blur", "noise", "contrast")
START = {"shift": 0.3, "zoom": 0.02, "blur": 0.2, "noise": 0.02, "contrast": 0.02}  # shift and blur in pixels
MOST = {"shift": 8.0, "zoom": 0.5, "blur": 3.0, "noise": 1.0, "contrast": 1.0}
NONE = 1e-4  # a strength that is as good as none
SHOWN = 8  # images in the figure


class Draws(NamedTuple):
    """The random numbers of an augmented minibatch. Attributes: place: (4, n), zoom and shift of rows and columns; blur: (n,); noise:
    (n, H, W); contrast: (n,)."""

    place: Array
    blur: Array
    noise: Array
    contrast: Array


class Minibatch(NamedTuple):
    """Attributes: x: images (n, H, W); y: labels (n,); draws: for their augmentation."""

    x: Array
    y: Array
    draws: Draws


@dataclass(frozen=True)
class Augmentation(ImageProblem):
    """The problem and its options.

    Args: see the options' help.
    Source: Lorraine et al. 2020, arXiv:1911.02590 (learned augmentation).
    """

    title: ClassVar[str] = "the strengths of data augmentation"
    source: ClassVar[str] = "Lorraine et al. 2020, arXiv:1911.02590"
    modes: ClassVar[tuple[str, ...]] = ("reverse", "forward")
    settings: ClassVar[Mapping[str, Any]] = {"outer_lr": 0.1, "iterations": 60, "eval_every": 5}
    quick: ClassVar[Mapping[str, Any]] = {
        **{"n_train": 30, "n_validation": 60, "n_test": 60, "n_steps": 8, "batch": 10, "hidden": 8, "repeats": 2},
        **{"iterations": 6, "eval_every": 2},
    }
    figures: ClassVar[Mapping[str, str]] = {AUGMENTED_PNG: "training images, augmented with the tuned strengths"}

    n_train: int | None = option(100, "Training examples.", low=1)
    hidden: int = option(64, "Hidden units; 0 is softmax regression.", low=0)
    n_steps: int = option(80, "Inner steps T.", low=1)
    batch: int = option(50, "Images of a step.", low=1)
    inner_lr: float = option(0.1, "Step size of the inner run.", above=0)
    momentum: float = option(0.9, "Momentum of the inner run.", low=0)
    repeats: int = option(5, "Runs with other draws in the final evaluation.", low=1)

    def open(self, seed: int, dtype: DTypeLike | None = None) -> Task:
        return AugmentationTask(self, self.open_images(seed, dtype), seed)


class AugmentationTask(Task):
    """The task. Args: options: of the problem; images: the data; seed: of the first weights and of the draws."""

    def __init__(self, options: Augmentation, images: LabelledImages, seed: int) -> None:
        self.options, self.images, self.seed, self.description = options, images, seed, images.describe()
        self.dtype = images.train.x.dtype

    def init(self) -> Arrays:
        """The logarithms of weak strengths."""
        return {name: np.asarray(np.log(START[name]), self.dtype) for name in NAMES}

    def project(self, hparams: Arrays) -> Arrays:
        return {name: np.clip(value, np.log(NONE), np.log(MOST[name])).astype(value.dtype) for name, value in hparams.items()}

    def inner(self, draw: int) -> tuple[Bilevel, Batches]:
        return self._inner((self.seed, 0, draw))

    def _inner(self, key: Sequence[int]) -> tuple[Bilevel, Batches]:
        """The problem, with the draws of a key."""
        options, images, validation = self.options, self.images, self.images.validation
        w_0 = classifier.start(images.train.x.shape[1], images.n_classes, options.hidden, self.seed, self.dtype)

        def inner_loss(w: PyTree, hparams: PyTree, batch: Minibatch) -> Tensor:
            x = augmented(hparams, batch.x, batch.draws)
            return mean(classifier.losses(w, reshape(x, (len(batch.y), -1)), batch.y))

        def outer_loss(w: PyTree, hparams: PyTree) -> Tensor:
            return mean(classifier.losses(w, validation.x, validation.y))

        problem = Bilevel(inner_loss, outer_loss, lambda hparams: w_0, lambda hparams: SGD(lr=options.inner_lr, momentum=options.momentum))
        return problem, DrawnBatches(options.n_steps, lambda t: minibatch(images, options.batch, (*key, t)))

    def metrics(self, hparams: Arrays) -> Record:
        """The strengths."""
        return {name: float(np.exp(hparams[name])) for name in NAMES}

    def judge(self, hparams: Arrays, w: PyTree) -> Record:
        return {"accuracy": classifier.accuracy(w, self.images.validation).mean}

    def evaluate(self, hparams: Arrays, title: str) -> Evaluation:
        none = {name: np.asarray(np.log(NONE), self.dtype) for name in NAMES}
        found = {name: self._test(h) for name, h in (("tuned", hparams), ("start", self.init()), ("none", none))}
        meaning = {"tuned": "tuned strengths", "start": "strengths at the start", "none": "no augmentation"}
        numbers: Record = {"strengths": self.metrics(hparams)}
        for name, score in found.items():
            numbers |= {f"{name}_accuracy": score.mean, f"{name}_interval": score.interval}
        lines = [(f"test accuracy, {meaning[name]}", classifier.percent(score)) for name, score in found.items()]
        lines += [(name, f"{START[name]:g} to {value:.4f}{_unit(name)}") for name, value in self.metrics(hparams).items()]
        references = [Reference("no augmentation, test", found["none"].mean)]
        tuned = found["tuned"]
        return Evaluation(numbers, lines, {AUGMENTED_PNG: self._figure(hparams, title)}, references, (tuned.mean, tuned.interval))

    def _test(self, hparams: Arrays) -> Accuracy:
        """Mean test accuracy over runs with other draws, the same for all strengths, with its interval over these runs."""
        scores = []
        for i in range(self.options.repeats):
            problem, batches = self._inner((self.seed, 1, i))
            w, _ = trained(problem, hparams, batches)
            scores.append(classifier.accuracy(w, self.images.test).mean)
        return Accuracy.of(np.array(scores))

    def _figure(self, hparams: Arrays, title: str) -> bytes:
        """A few training images in the first column, beside eight augmentations of each."""
        count = min(6, len(self.images.train))
        shape = (count, *self.images.image_shape)
        x = self.images.train.x[:count].reshape(shape)
        columns = [x] + [augmented(hparams, x, drawn(shape, (self.seed, 2, i), self.dtype)).value for i in range(SHOWN)]
        rows = np.stack(columns, axis=1).reshape(-1, *shape[1:])
        return gallery(rows, (["original"] + [""] * SHOWN) * count, SHOWN + 1, title)


def minibatch(images: LabelledImages, size: int, key: Sequence[int]) -> Minibatch:
    """Training images drawn with replacement, and their random numbers, a function of `key`. Args: size: of the batch. Cost: O(size)."""
    train, shape = images.train, (size, *images.image_shape)
    rows = np.random.default_rng([*key, 0]).integers(0, len(train), size)
    return Minibatch(train.x[rows].reshape(shape), train.y[rows], drawn(shape, (*key, 1), train.x.dtype))


def drawn(shape: Sequence[int], key: Sequence[int], dtype: DTypeLike) -> Draws:
    """The random numbers for images of a shape (n, H, W), a function of `key`: standard normal ones. Cost: one draw a pixel."""
    rng, n = np.random.default_rng([*key]), shape[0]
    sizes = ((4, n), (n,), tuple(shape), (n,))
    return Draws(*(rng.standard_normal(size).astype(dtype) for size in sizes))


def augmented(hparams: Mapping[str, Any], x: Any, draws: Draws) -> Tensor:
    """Augmented images, differentiable in the strengths.

    Args: hparams: logarithms of the strengths in `NAMES`; x: images (n, H, W); draws: of `drawn`. Returns: (n, H, W).
    Cost: 2 n H W (H + W) flop.
    """
    strength = {name: exp(hparams[name]) for name in NAMES}
    rows, columns = (_means(size, draws.place[2 * i : 2 * i + 2], draws.blur, strength) for i, size in enumerate(x.shape[1:]))
    moved = matmul(matmul(rows, x), transpose(columns, (0, 2, 1)))
    result: Tensor = (1.0 + strength["contrast"] * draws.contrast[:, None, None]) * moved + strength["noise"] * draws.noise
    return result


def _means(size: int, place: Array, blur: Array, strength: Mapping[str, Tensor]) -> Tensor:
    """The matrices R of each image, (n, size, size)."""
    at = np.arange(size, dtype=place.dtype)
    middle = place.dtype.type((size - 1) / 2)
    zoom, shift = (draws[:, None] for draws in place)
    places = at + (at - middle) * (strength["zoom"] * zoom) + strength["shift"] * shift  # (n, size)
    width = SHARP**2 + (strength["blur"] * blur) ** 2  # (n,)
    apart = reshape(places, (len(blur), size, 1)) - at
    return softmax(apart * apart / reshape(-2.0 * width, (len(blur), 1, 1)), axis=-1)  # a place beyond the image finds its edge


def _unit(name: str) -> str:
    return " pixels" if name in ("shift", "blur") else ""
