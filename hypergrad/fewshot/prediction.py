"""Labels for a person's own images, from a folder with a few examples of each class."""

import csv
import dataclasses
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data import Episodes, read_images, read_support_folder, to_float
from ..errors import RunError
from ..ops import softmax
from ..runs.configuration import fits
from ..runs.directory import MODEL, RESULT, RunDirectory, write_file
from ..runs.loop import load_model
from .config import Config
from .method import Array, Method

_MOST_STEPS = 100_000  # of inner training


@dataclass(frozen=True)
class Predictions:
    """What a model says of images.

    Args: paths: of the images; classes: names; probabilities: (len(paths), len(classes)); resized: images, of both folders, that had
        another size than the model's; image_shape: that size (H, W, C).
    """

    paths: tuple[str, ...]
    classes: tuple[str, ...]
    probabilities: Array
    resized: tuple[str, ...]
    image_shape: tuple[int, int, int]

    @property
    def labels(self) -> tuple[str, ...]:
        """The most probable class of each image."""
        return tuple(self.classes[best] for best in self.probabilities.argmax(axis=1))


def predict(
    run: RunDirectory,
    config: Config,
    support: str | os.PathLike[str],
    paths: Sequence[str | os.PathLike[str]],
    old_image_shape: Callable[[], Sequence[int]] | None = None,
    invert: bool = False,
) -> Predictions:
    """Label images with a run's best model, adapted to the classes of a folder.

    Batch normalization needs a batch: each image is judged together with the support images, so that its label does not depend on
    which other images are asked for.

    Args:
        run: a run with a model; config: its configuration.
        support: a folder with one folder for each class, with at least one image in each.
        paths: image files.
        old_image_shape: gives (H, W, C) of the model's images where the model's file does not say it, as those of format 2.
        invert: whether the images are dark on light and the model's are light on dark, or the other way round.
    Returns: Predictions.
    Raises: DataError for a folder or an image that cannot be read; RunError if the model is missing or was trained for another number
        of classes.
    Cost: for each image one adaptation, and one forward run of the network on it and the support images.
    """
    hparams, metadata = load_model(run)
    known_shape = metadata.get("image_shape") or (old_image_shape() if old_image_shape is not None else None)
    if known_shape is None:
        raise RunError(f"predict: {run.path / MODEL} does not say the size of its images, expected old_image_shape; pass it")
    if not fits(tuple(known_shape), tuple[int, ...]) or len(known_shape) != 3:
        raise RunError(f"predict: {run.path / MODEL} has images of size {known_shape}, expected (H, W, C); restore the file")
    height, width, channels = known_shape
    shape = (height, width, channels)
    images, labels, classes, resized = read_support_folder(support, shape, invert=invert)
    asked, also_resized = read_images(paths, shape, invert=invert)
    method: Method = dataclasses.replace(config.method, n_way=len(classes), train_classes=metadata.get("train_classes", 1))
    network = config.network
    drawn = method.init(config.seed, shape, network.filters, network.blocks)
    if {name: value.shape for name, value in drawn.items()} != {name: value.shape for name, value in hparams.items()}:
        raise RunError(
            f"predict: {support} has {len(classes)} classes, expected {config.episodes.n_way} because the classifier of "
            f"{config.method.title} was trained for that many; give that many folders, or take a run of a method without a trained "
            "classifier"
        )
    dtype = next(iter(hparams.values())).dtype
    known, new = (to_float(part, dtype) for part in (images, asked))
    steps = _best_steps(run) if (run.path / RESULT).is_file() else method.usual_steps
    probabilities = np.concatenate([_judge(method, hparams, known, labels, image[None], steps) for image in new])
    return Predictions(tuple(map(str, paths)), tuple(classes), probabilities, (*map(str, resized), *map(str, also_resized)), shape)


def _best_steps(run: RunDirectory) -> int:
    """The number of inner steps that was best on meta-validation."""
    steps = run.read_result("n_steps")["n_steps"]
    if not fits(steps, int) or not 0 <= steps <= _MOST_STEPS:
        raise RunError(f"predict: {run.path / RESULT} has n_steps {steps}, expected 0 to {_MOST_STEPS}; restore the file")
    return int(steps)


def _judge(method: Method, hparams: Mapping[str, Any], known: Array, labels: Array, image: Array, steps: int) -> Array:
    """Probabilities (1, n_way) of one image."""
    query = np.concatenate([image, known])
    episodes = Episodes(known[None], labels[None], query[None], np.concatenate([[0], labels])[None])
    learner = method.adapt(hparams, episodes, steps)
    probabilities: Array = softmax(method.predict(hparams, learner, episodes)).value[0, :1]
    return probabilities


def write_csv(predictions: Predictions, path: Path) -> None:
    """One line for each image: its path, label, and the probability of each class.

    Raises: RunError if the file cannot be written. Cost: one small file.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["image", "label", *predictions.classes])
    for name, label, shares in zip(predictions.paths, predictions.labels, predictions.probabilities, strict=True):
        rows.writerow([name, label, *(f"{share:.6f}" for share in shares)])
    write_file(path, text.getvalue().encode())
