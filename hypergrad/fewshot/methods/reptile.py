"""Reptile: the initial weights move towards the weights that training from there leads to.

w_0 <- w_0 + epsilon (mean_e w_T,e - w_0), where w_T,e is reached from w_0 by T gradient steps on minibatches of all images of episode e.
The direction w_0 - mean_e w_T,e is the gradient of no loss. It stands in the gradient's place, and epsilon is the outer step size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ...backends import backend_of
from ...bilevel import full_batch
from ...data import Episodes
from ...ops import mean
from ...optimizers import SGD
from ...passes.unroll import unroll
from ...runs.configuration import option
from ...tape import Tensor
from ...transforms import stop_gradient
from ..learner import NetworkMethod, network_loss, start, weight_names
from ..method import Array, Settings, with_gradient


@dataclass(frozen=True)
class Reptile(NetworkMethod):
    """The method and its options; see `NetworkMethod`.

    In meta-training an episode is not divided: its support and query images are one training set, so that there are enough of them. The
    loss that is reported is that of the query images after adapting to the support images alone, as for the other methods. With
    `--outer-optimizer sgd --outer-lr 1` the outer step is Algorithm 2's, and epsilon falls from 1 to 0. By default Adam takes the
    direction, which does better in runs of some hundred iterations. The inner optimizer is gradient descent, as in the paper's analysis;
    its experiments take Adam.

    Args: see the options' help; n_way: classes of an episode, and outputs of the network.
    Source: Nichol et al. 2018, arXiv:1803.02999, Algorithm 2.
    """

    title: ClassVar[str] = "Reptile"
    source: ClassVar[str] = "Nichol et al. 2018, arXiv:1803.02999"
    settings: ClassVar[Settings] = {
        (None, "miniimagenet"): {"step_size": 0.01, "outer_lr": 1e-3},
        (None, "folder"): {"step_size": 0.01, "outer_lr": 1e-3},
    }

    n_steps: int = option(8, "Inner steps T on the support images, in validation and for the reported loss.", low=1)
    train_steps: int = option(8, "Inner steps on all images of an episode, in meta-training.", low=1)
    minibatches: int = option(4, "Parts that the images of an episode are divided into in meta-training; a step takes one.", low=1)
    step_size: float = option(0.1, "Inner step size.", above=0)
    sweep: tuple[int, ...] = option((1, 2, 4, 8, 16, 32), "Inner steps tried at the end; the best on meta-validation counts.", low=0)

    def adapt(self, hparams: Mapping[str, Any], episodes: Episodes, n_steps: int | None = None, learner: Any = None) -> Any:
        w = learner or start(hparams, episodes, weight_names(hparams))
        n_steps = self.n_steps if n_steps is None else n_steps
        batches = full_batch((episodes.support, episodes.support_labels), n_steps)
        return unroll(network_loss, w, {}, batches, optimizer=SGD(lr=self.step_size)) if n_steps else w

    def direction(self, hparams: Mapping[str, Any], episodes: Episodes) -> dict[str, Array]:
        """w_0 - mean_e w_T,e by name. Args: hparams: arrays. Cost: `train_steps` gradients of a part of the episode."""
        join = backend_of(episodes.support).concatenate
        images, labels = join([episodes.support, episodes.query], 1), join([episodes.support_labels, episodes.query_labels], 1)
        count = min(self.minibatches, images.shape[1])
        parts = [slice(t % count, None, count) for t in range(self.train_steps)]
        batches = [(images[:, part], labels[:, part]) for part in parts]
        w_0 = start(hparams, episodes, weight_names(hparams))
        w = unroll(network_loss, w_0, {}, batches, optimizer=SGD(lr=self.step_size))
        return {name: mean(w_0[name] - w[name], axis=0).value for name in w}

    def meta_loss(self, hparams: Mapping[str, Any], episodes: Episodes) -> tuple[Tensor, Array]:
        """The query loss of `Method.meta_loss`; its gradient is `direction`. Cost: that of `adapt`, `judge` and `direction`."""
        fixed = stop_gradient(dict(hparams))
        loss, shares = super().meta_loss(fixed, episodes)
        return with_gradient(loss, hparams, self.direction(fixed, episodes)), shares
