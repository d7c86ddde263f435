"""MAML: the initial weights of a network are hyperparameters; every episode trains the network from there.

min over w_0 of mean_e E_e(w_T(w_0)), where w_T is reached from w_0 by T gradient steps on the cross-entropy of episode e's
support examples and E_e is the cross-entropy of its query examples. With moves="head" only the classifier is trained (ANIL).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import DTypeLike

from ...bilevel import full_batch
from ...data import Episodes
from ...ops import broadcast_to, linear_cross_entropy
from ...ops import sum as sum_
from ...optimizers import SGD
from ...passes.unroll import unroll
from ...runs.configuration import option
from ...tape import Tensor
from ..method import HParams, LinearMethod, Settings
from ..network import feature_size, features, init_network

WEIGHT, BIAS = "head.weight", "head.bias"
HEAD = (WEIGHT, BIAS)


@dataclass(frozen=True)
class MAML(LinearMethod):
    """The method and its options.

    Batch normalization is by the statistics of the images at hand, in the inner steps by those of the support images, for the query
    images by their own, as in the authors' code (transductive); there are no running averages. The classifier starts at zero, so that
    no class is preferred before the first inner step.

    Args: see the options' help; n_way: classes of an episode, and outputs of the network.
    Source: Finn et al. 2017, arXiv:1703.03400; ANIL: Raghu et al. 2020, arXiv:1909.09157; the classifier's start: Ye & Chao 2022,
        arXiv:2106.16245.
    """

    title: ClassVar[str] = "MAML"
    batch_norm: ClassVar[str] = "support and query images each by their own"
    source: ClassVar[str] = "Finn et al. 2017, arXiv:1703.03400"
    settings: ClassVar[Settings] = {
        (None, "miniimagenet"): {"step_size": 0.01, "outer_lr": 1e-3},
        (None, "folder"): {"step_size": 0.01, "outer_lr": 1e-3},
    }

    n_steps: int = option(5, "Inner steps T in meta-training.", low=1)
    step_size: float = option(0.05, "Inner step size.", above=0)
    moves: Literal["all", "head"] = option("all", "What the inner steps train: all weights, or the classifier alone (ANIL).")
    first_order: bool = option(False, "Take the inner gradients for constants (first-order MAML).")
    sweep: tuple[int, ...] = option((1, 2, 3, 5, 7, 10), "Inner steps tried at the end; the best on meta-validation counts.", low=0)

    def init(self, seed: int, image_shape: Sequence[int], filters: int, blocks: int = 4, dtype: DTypeLike = np.float32) -> HParams:
        height, width, channels = image_shape
        size = feature_size(height, width, filters, blocks)
        head = {WEIGHT: np.zeros((size, self.n_way), dtype), BIAS: np.zeros(self.n_way, dtype)}
        return {**init_network(seed, channels, filters, blocks, dtype), **head}

    def adapt(self, hparams: Mapping[str, Any], episodes: Episodes, n_steps: int | None = None, learner: Any = None) -> Any:
        moving = HEAD if self.moves == "head" else tuple(hparams)
        count = len(episodes.support)
        w = learner or {name: broadcast_to(hparams[name], (count, *hparams[name].shape)) for name in moving}
        n_steps = self.n_steps if n_steps is None else n_steps
        if n_steps == 0:
            return w
        options: dict[str, Any] = {"optimizer": SGD(lr=self.step_size), "first_order": self.first_order}
        if self.moves == "head":
            x = {"features": features(hparams, episodes.support)}
            return unroll(head_loss, w, x, full_batch(episodes.support_labels, n_steps), **options)
        return unroll(network_loss, w, {}, full_batch((episodes.support, episodes.support_labels), n_steps), **options)

    def head(self, hparams: Mapping[str, Any], learner: Any, episodes: Episodes) -> tuple[Tensor, Any, Any]:
        return features({**hparams, **learner}, episodes.query), learner[WEIGHT], learner[BIAS]


def network_loss(w: Any, hparams: Any, batch: Any) -> Tensor:
    """Cross-entropy of the whole network on support images, a mean for each episode, summed over episodes.

    Args: w: parameters with a leading axis of episodes; hparams: {}; batch: images (E, S, H, W, C) and labels (E, S).
    Returns: a scalar Tensor. Cost: one forward run of the network.
    """
    images, labels = batch
    return head_loss(w, {"features": features(w, images)}, labels)


def head_loss(w: Any, hparams: Any, labels: Any) -> Tensor:
    """The same of the classifier alone. Args: hparams: {"features": (E, S, D)}; labels: (E, S). Cost: 2*E*S*D*n_way flop."""
    losses = linear_cross_entropy(hparams["features"], w[WEIGHT], w[BIAS], labels)
    total: Tensor = sum_(losses) * (1.0 / labels.shape[-1])
    return total
