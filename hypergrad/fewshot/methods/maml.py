"""MAML: the initial weights of a network are hyperparameters; every episode trains the network from there.

min over w_0 of mean_e E_e(w_T(w_0)), where w_T is reached from w_0 by T gradient steps on the cross-entropy of episode e's
support examples and E_e is the cross-entropy of its query examples. With moves="head" only the classifier is trained (ANIL).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ...bilevel import full_batch
from ...data import Episodes
from ...optimizers import SGD
from ...passes.unroll import unroll
from ...runs.configuration import option
from ..learner import HEAD, NetworkMethod, head_loss, network_loss, start, weight_names
from ..method import Settings
from ..network import features


@dataclass(frozen=True)
class MAML(NetworkMethod):
    """The method and its options; see `NetworkMethod`. Batch normalization is that of the authors' code.

    Args: see the options' help; n_way: classes of an episode, and outputs of the network.
    Source: Finn et al. 2017, arXiv:1703.03400; ANIL: Raghu et al. 2020, arXiv:1909.09157.
    """

    title: ClassVar[str] = "MAML"
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

    def moving(self, hparams: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of the weights that the inner steps train. Cost: O(len(hparams))."""
        return HEAD if self.moves == "head" else weight_names(hparams)

    def optimizer(self, hparams: Mapping[str, Any]) -> SGD:
        """That of the inner steps. Cost: O(1)."""
        return SGD(lr=self.step_size)

    def adapt(self, hparams: Mapping[str, Any], episodes: Episodes, n_steps: int | None = None, learner: Any = None) -> Any:
        w = learner or start(hparams, episodes, self.moving(hparams))
        n_steps = self.n_steps if n_steps is None else n_steps
        if n_steps == 0:
            return w
        options: dict[str, Any] = {"optimizer": self.optimizer(hparams), "first_order": self.first_order}
        if self.moves == "head":
            x = {"features": features(hparams, episodes.support)}
            return unroll(head_loss, w, x, full_batch(episodes.support_labels, n_steps), **options)
        return unroll(network_loss, w, {}, full_batch((episodes.support, episodes.support_labels), n_steps), **options)
