"""Transfer by fine-tuning: a network trained on all meta-training classes, and trained on per episode with a new output layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ...backends import backend_of
from ...bilevel import full_batch
from ...data import Episodes
from ...optimizers import SGD
from ...passes.unroll import unroll
from ...runs.configuration import option
from ...tape import Tensor
from ..learner import BIAS, WEIGHT, network_loss, start
from ..method import LinearMethod, Settings
from ..network import features
from ..pretrained import OUTPUT_WEIGHT, PretrainedMethod


@dataclass(frozen=True)
class FineTuning(PretrainedMethod, LinearMethod):
    """The method and its options: pretraining as in `PretrainedMethod`, then gradient steps on the support set. These move all weights.

    Args: see the options' help; n_way: classes of an episode.
    Source: Ravi & Larochelle 2017, Optimization as a model for few-shot learning, section 5.1.
    """

    title: ClassVar[str] = "fine-tuning"
    batch_norm: ClassVar[str] = "support and query images each by their own"
    source: ClassVar[str] = "Ravi & Larochelle 2017, ICLR"
    settings: ClassVar[Settings] = {(None, "miniimagenet"): {"step_size": 0.01}, (None, "folder"): {"step_size": 0.01}}  # as in MAML

    n_steps: int = option(5, "Inner steps T in validation.", low=1)
    step_size: float = option(0.05, "Inner step size.", above=0)
    sweep: tuple[int, ...] = option((1, 2, 3, 5, 7, 10, 20), "Inner steps tried at the end; the best on meta-validation counts.", low=0)

    def adapt(self, hparams: Mapping[str, Any], episodes: Episodes, n_steps: int | None = None, learner: Any = None) -> Any:
        w = learner or self.pretrained(hparams, episodes)
        n_steps = self.n_steps if n_steps is None else n_steps
        if n_steps == 0:
            return w
        steps = full_batch((episodes.support, episodes.support_labels), n_steps)
        return unroll(network_loss, w, {}, steps, optimizer=SGD(lr=self.step_size))

    def pretrained(self, hparams: Mapping[str, Any], episodes: Episodes) -> dict[str, Any]:
        """The pretrained blocks and an output layer of zeros, for each episode. Cost: no copy."""
        count, xp = len(episodes.support), backend_of(episodes.support).xp
        w = start(hparams, episodes, [name for name in hparams if name.startswith("block")])
        size, dtype = hparams[OUTPUT_WEIGHT].shape[0], hparams[OUTPUT_WEIGHT].dtype
        return {**w, WEIGHT: xp.zeros((count, size, self.n_way), dtype), BIAS: xp.zeros((count, self.n_way), dtype)}

    def head(self, hparams: Mapping[str, Any], learner: Any, episodes: Episodes) -> tuple[Tensor, Any, Any]:
        return features(learner, episodes.query), learner[WEIGHT], learner[BIAS]
