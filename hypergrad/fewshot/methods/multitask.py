"""Joint training of a representation and of a classifier for each of many episodes: multitask learning, without inner steps.

min over lambda, w_1, ..., w_N of mean_e E_e(w_e, lambda), where E_e is the cross-entropy of episode e's support examples. The paper
calls it "Classic" and holds it against the bilevel problem. On new episodes the representation is fixed, and a logistic regression is
trained on top.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from ...backends import backend_of
from ...data import Episodes, EpisodeSampler
from ...ops import linear_cross_entropy, matmul, mean, take
from ...runs.configuration import option
from ...tape import Tensor
from ...transforms import stop_gradient
from ..logistic import LARGE_IMAGES, LogisticMethod
from ..method import Array, HParams, Settings, accuracies
from ..network import feature_size, init_network

WEIGHTS, BIASES = "heads.weight", "heads.bias"


@dataclass(frozen=True)
class Multitask(LogisticMethod):
    """The method and its options. The episodes of meta-training come again and again, each with its own classifier.

    The paper's Table 2: "Classic-train 16x5" is train_k_shot=16. It leaves the number of episodes open.

    Args: see the options' help; n_way: classes of an episode.
    Source: Franceschi et al. 2017, arXiv:1712.06283, appendix A ("Classic"); Baxter 1995, Learning internal representations (COLT).
    """

    title: ClassVar[str] = "joint multitask training"
    source: ClassVar[str] = "Franceschi et al. 2017, arXiv:1712.06283"
    settings: ClassVar[Settings] = {  # with the number of iterations there, each episode comes about 30 times, or more
        (None, "omniglot"): {"train_episodes": 800},
        (None, "miniimagenet"): {**LARGE_IMAGES, "train_episodes": 2000},
        (None, "folder"): LARGE_IMAGES,
    }

    train_episodes: int = option(100, "Episodes of meta-training, each with a classifier of its own.", low=1)
    train_k_shot: int | None = option(None, "Support images per class in meta-training, by default as in the evaluation.", low=1)

    def init(self, seed: int, image_shape: Sequence[int], filters: int, blocks: int = 4, dtype: DTypeLike = np.float32) -> HParams:
        height, width, channels = image_shape
        size, count = feature_size(height, width, filters, blocks), self.train_episodes
        heads = {WEIGHTS: np.zeros((count, size, self.n_way), dtype), BIASES: np.zeros((count, self.n_way), dtype)}
        return {**init_network(seed, channels, filters, blocks, dtype), **heads}

    def samplers(self, train: EpisodeSampler, validation: EpisodeSampler) -> tuple[Any, Any]:
        shots = dataclasses.replace(train, k_shot=self.train_k_shot or train.k_shot, n_query=1)  # query images are not read
        return Cycle(shots, self.train_episodes), validation

    def meta_loss(self, hparams: Mapping[str, Any], batch: Any) -> tuple[Tensor, Array]:
        """The joint objective. Args: batch: `Numbered`. Returns: it, and the accuracies on the support images (E,)."""
        episodes, numbers = batch
        x = self.represent(hparams, episodes._replace(query=episodes.support))["support"]
        weight, bias = take(hparams[WEIGHTS], numbers), take(hparams[BIASES], numbers)
        logits = matmul(*stop_gradient((x, weight))) + bias.value[:, None]
        losses = linear_cross_entropy(x, weight, bias, episodes.support_labels)
        return mean(losses), accuracies(logits.value, episodes.support_labels)


class Numbered(NamedTuple):
    """Episodes with their numbers. Args: numbers: (E,), int64, on the episodes' device."""

    episodes: Episodes
    numbers: Any


@dataclass(frozen=True)
class Cycle:
    """The first episodes of a sampler, again and again. Args: sampler: of episodes; count: how many, >= 1."""

    sampler: EpisodeSampler
    count: int

    def batch(self, i: int) -> Numbered:
        """Meta-batch i, of `sampler.meta_batch` episodes. Cost: that of the sampler's."""
        numbers = np.arange(i * self.sampler.meta_batch, (i + 1) * self.sampler.meta_batch) % self.count
        single = [self.sampler.episodes(int(n), int(n) + 1) for n in numbers]
        backend = backend_of(single[0].support)
        parts = (backend.concatenate(list(part), 0) for part in zip(*single, strict=True))
        return Numbered(Episodes(*parts), backend.xp.asarray(numbers))
