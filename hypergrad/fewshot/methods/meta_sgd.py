"""Meta-SGD: beside the initial weights, a step size for each of them is a hyperparameter.

w_t = w_{t-1} - alpha * grad L(w_{t-1}), where alpha has an element for each weight: it learns the direction of a step, its length and,
where an element is negative, its sign. The rest is MAML.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike

from ...optimizers import SGD
from ...runs.configuration import option
from ..method import HParams, Settings
from .maml import MAML

PREFIX = "step_size."


@dataclass(frozen=True)
class MetaSGD(MAML):
    """The method and its options; see `NetworkMethod`. The paper takes one inner step; MAML's five do better here.

    Args: see the options' help; n_way: classes of an episode, and outputs of the network.
    Source: Li et al. 2017, arXiv:1707.09835, Algorithm 1.
    """

    title: ClassVar[str] = "Meta-SGD"
    source: ClassVar[str] = "Li et al. 2017, arXiv:1707.09835"
    settings: ClassVar[Settings] = MAML.settings

    step_size: float = option(0.05, "Initial inner step size of every weight; each is learned.", above=0)

    def init(self, seed: int, image_shape: Sequence[int], filters: int, blocks: int = 4, dtype: DTypeLike = np.float32) -> HParams:
        hparams = super().init(seed, image_shape, filters, blocks, dtype)
        return {**hparams, **{PREFIX + name: np.full(hparams[name].shape, self.step_size, dtype) for name in self.moving(hparams)}}

    def optimizer(self, hparams: Mapping[str, Any]) -> SGD:
        return SGD(lr={name: hparams[PREFIX + name] for name in self.moving(hparams)})

    def metrics(self, hparams: Mapping[str, Any]) -> dict[str, float]:
        """The mean of the step sizes that `hparams` (arrays) hold."""
        rates = [hparams[PREFIX + name] for name in self.moving(hparams)]
        return {"step_size": float(sum(x.sum() for x in rates)) / sum(x.size for x in rates)}
