"""What the transfer methods share: a network trained as one plain classifier of all meta-training classes, without episodes."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import DTypeLike

from ..data import EpisodeSampler, ImageSampler, LabelledBatch
from ..ops import linear, linear_cross_entropy, mean, softmax
from ..runs.configuration import option
from ..tape import Tensor
from ..transforms import stop_gradient
from .method import Array, HParams, Method, accuracies
from .network import feature_size, features, init_network

OUTPUT_WEIGHT, OUTPUT_BIAS = "output.weight", "output.bias"


@dataclass(frozen=True)
class PretrainedMethod(Method):
    """A method whose meta-training minimises the cross-entropy of a classifier of all classes, on batches of images.

    Batch normalization is by the statistics of the batch, and in episodes by those of the images there; there are no running averages.
    Early stopping looks at validation episodes, solved as the method solves them, or at held-out images of the training classes.

    Args: see the options' help; train_classes: outputs of the network.
    Source: Franceschi et al. 2017, arXiv:1712.06283, appendix A; Ravi & Larochelle 2017, Optimization as a model for few-shot learning.
    """

    by_episode: ClassVar[bool] = False
    batch_size: int = option(128, "Images of a batch in meta-training.", low=1)
    held_out: float = option(
        0.0, "Share of the images to hold out, whose classification then decides on early stopping; 0: validation episodes do.", low=0
    )

    def init(self, seed: int, image_shape: Sequence[int], filters: int, blocks: int = 4, dtype: DTypeLike = np.float32) -> HParams:
        height, width, channels = image_shape
        size, classes = feature_size(height, width, filters, blocks), self.train_classes
        output = {OUTPUT_WEIGHT: np.zeros((size, classes), dtype), OUTPUT_BIAS: np.zeros(classes, dtype)}
        return {**init_network(seed, channels, filters, blocks, dtype), **output}

    def samplers(self, train: EpisodeSampler, validation: EpisodeSampler) -> tuple[Any, Any]:
        images = ImageSampler(train.split, self.batch_size, held_out=self.held_out, seed=train.seed)
        return images, dataclasses.replace(images, of_held_out=True) if self.held_out else validation

    def meta_loss(self, hparams: Mapping[str, Any], batch: Any) -> tuple[Tensor, Array]:
        """The mean cross-entropy of a batch. Args: batch: a LabelledBatch. Returns: it, and the accuracy (1,)."""
        x, labels = features(hparams, batch.images[None]), batch.labels[None]
        weight, bias = hparams[OUTPUT_WEIGHT], hparams[OUTPUT_BIAS]
        logits = linear(*stop_gradient((x, weight, bias)))
        return mean(linear_cross_entropy(x, weight, bias, labels)), accuracies(logits.value, labels)

    def evaluate(self, hparams: Mapping[str, Any], episodes: Any, steps: Sequence[int]) -> tuple[Array, Array]:
        """As `Method.evaluate`; of a LabelledBatch the mean cross-entropy and the accuracy of the classifier, each (1, len(steps))."""
        if not isinstance(episodes, LabelledBatch):
            return super().evaluate(hparams, episodes, steps)
        loss, accuracy = self.meta_loss(hparams, episodes)
        return loss.value.reshape(1, 1).repeat(len(steps), axis=1), accuracy.reshape(1, 1).repeat(len(steps), axis=1)


@dataclass(frozen=True)
class FixedRepresentation(PretrainedMethod):
    """One that represents images by an output of the network, which no episode changes. Args: see the options' help."""

    representation: Literal["conv", "linear", "softmax"] = option(
        "conv", "What represents an image: the output of the last block, the logits of the training classes, or their probabilities."
    )

    def embed(self, hparams: Mapping[str, Any], images: Any) -> Tensor:
        """The representation (E, N, D) of images (E, N, H, W, C). Cost: one forward run of the network."""
        h = features(hparams, images)
        if self.representation == "conv":
            return h
        logits = linear(h, hparams[OUTPUT_WEIGHT], hparams[OUTPUT_BIAS])
        return logits if self.representation == "linear" else softmax(logits)
