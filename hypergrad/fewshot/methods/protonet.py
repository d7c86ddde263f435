"""Prototypical networks: a query image belongs to the class whose mean support feature is nearest.

min over lambda of the cross-entropy of softmax(-|h(x) - c_k|^2), c_k being the mean of h over the support examples of class k.
Expanded, the logits are linear in h(x): 2 h(x)·c_k - |c_k|^2, up to |h(x)|^2, which is the same for all classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike

from ...backends import backend_of
from ...data import Episodes
from ...ops import sum as sum_
from ...ops import transpose
from ...runs.configuration import option
from ...tape import Tensor
from ..method import HParams, LinearMethod
from ..network import feature_size, features, init_network


@dataclass(frozen=True)
class ProtoNet(LinearMethod):
    """The method and its options; there are no inner steps.

    Batch normalization is by the statistics of the support images for them, and of the query images for those; there are no
    running averages.

    Args: see the options' help; n_way: classes of an episode.
    Source: Snell et al. 2017, arXiv:1703.05175.
    """

    title: ClassVar[str] = "prototypical network"
    batch_norm: ClassVar[str] = "support and query images each by their own"
    source: ClassVar[str] = "Snell et al. 2017, arXiv:1703.05175"

    temperature: float = option(1.0, "Squared distances are divided by it.", above=0)

    def init(self, seed: int, image_shape: Sequence[int], filters: int, blocks: int = 4, dtype: DTypeLike = np.float32) -> HParams:
        height, width, channels = image_shape
        feature_size(height, width, filters, blocks)
        return init_network(seed, channels, filters, blocks, dtype)

    def adapt(self, hparams: Mapping[str, Any], episodes: Episodes, n_steps: int | None = None, learner: Any = None) -> Tensor:
        """The prototypes (E, n_way, D)."""
        h = features(hparams, episodes.support)
        labels, xp = episodes.support_labels, backend_of(h.value).xp
        of_class = labels[:, :, None] == xp.arange(self.n_way)  # (E, S, n_way)
        share = (of_class / of_class.sum(axis=1, keepdims=True)).astype(h.dtype)
        prototypes: Tensor = sum_(share[..., None] * h[:, :, None, :], axis=1)
        return prototypes

    def head(self, hparams: Mapping[str, Any], learner: Any, episodes: Episodes) -> tuple[Tensor, Any, Any]:
        weight = transpose(learner, (0, 2, 1)) * (2.0 / self.temperature)
        return features(hparams, episodes.query), weight, sum_(learner * learner, axis=-1) * (-1.0 / self.temperature)
