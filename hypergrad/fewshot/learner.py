"""What the methods share whose inner steps train the network: the weights, their start in every episode, and the loss."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike

from ..data import Episodes
from ..ops import broadcast_to, linear_cross_entropy
from ..ops import sum as sum_
from ..tape import Tensor
from .method import HParams, LinearMethod
from .network import feature_size, features, init_network

WEIGHT, BIAS = "head.weight", "head.bias"
HEAD = (WEIGHT, BIAS)
WEIGHTS = ("block", "head.")  # what the names of weights begin with; a method gives other hyperparameters other names


class NetworkMethod(LinearMethod):
    """A method that learns the initial weights of the network and its classifier. Its learner is the weights of each episode, by name.

    Batch normalization is by the statistics of the images at hand, in the inner steps by those of the support images, for the query
    images by their own (transductive); there are no running averages. The classifier starts at zero, so that no class is preferred
    before the first inner step.

    Args: n_way: classes of an episode, and outputs of the network.
    Source of the classifier's start: Ye & Chao 2022, arXiv:2106.16245.
    """

    batch_norm: ClassVar[str] = "support and query images each by their own"

    def init(self, seed: int, image_shape: Sequence[int], filters: int, blocks: int = 4, dtype: DTypeLike = np.float32) -> HParams:
        height, width, channels = image_shape
        size = feature_size(height, width, filters, blocks)
        head = {WEIGHT: np.zeros((size, self.n_way), dtype), BIAS: np.zeros(self.n_way, dtype)}
        return {**init_network(seed, channels, filters, blocks, dtype), **head}

    def head(self, hparams: Mapping[str, Any], learner: Any, episodes: Episodes) -> tuple[Tensor, Any, Any]:
        return features({**hparams, **learner}, episodes.query), learner[WEIGHT], learner[BIAS]


def weight_names(hparams: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the network's and the classifier's weights among those of all hyperparameters, sorted. Cost: O(len(hparams)).

    A resumed run reads its hyperparameters in another order; what is summed in the order of these names has the same bits.
    """
    return tuple(sorted(name for name in hparams if name.startswith(WEIGHTS)))


def start(hparams: Mapping[str, Any], episodes: Episodes, names: Sequence[str]) -> dict[str, Tensor]:
    """The weights of these names before the first inner step, the same in each episode: (E, ...). Cost: no copy."""
    count = len(episodes.support)
    return {name: broadcast_to(hparams[name], (count, *hparams[name].shape)) for name in names}


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
