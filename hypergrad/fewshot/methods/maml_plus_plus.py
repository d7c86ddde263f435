"""MAML++: MAML whose inner step sizes are learned, one for each layer and step, and whose outer loss sees every inner step.

min over lambda of sum_t v_t mean_e E_e(w_t), t = 1..T. The weights v are equal at first. They move to v_T = 1 while training goes on, and
then the objective is that of MAML. lambda are the initial weights, the step sizes, and the normalizations' scales and shifts.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike

from ...data import Episodes
from ...ops import mean, stack
from ...ops import sum as sum_
from ...optimizers import SGD, schedule
from ...passes.unroll import unroll
from ...runs.configuration import option
from ...tape import Tensor
from ..learner import BIAS, WEIGHT, NetworkMethod, network_loss, start, weight_names
from ..method import Array, HParams, Settings, accuracies
from ..network import features

PREFIX = "step_sizes."
NORM = (".gamma", ".beta")  # what the names of a normalization's parameters end with
STAGES = 10  # of the falling weights of the earlier losses


@dataclass(frozen=True)
class MAMLPlusPlus(NetworkMethod):
    """The method and its options; see `NetworkMethod`.

    Of the paper's six changes to MAML, these are here: losses of all steps, an order of derivatives that rises, step sizes for each layer
    and step, and scales and shifts for each step. Running statistics for each step are left out: statistics are those of the batch, in
    training and evaluation, as in the authors' code. For the falling outer step size (the paper's is a cosine) see the option `schedule`.

    Args: see the options' help; n_way: classes of an episode, and outputs of the network; earlier: weight of the losses before the
        last step, relative to the equal weights 1 / T that it starts from; no option, since `during` sets it.
    Source: Antoniou et al. 2019, arXiv:1810.09502, section 4. The weights fall as in the authors' code, but to 0, in `STAGES` stages.
    """

    title: ClassVar[str] = "MAML++"
    source: ClassVar[str] = "Antoniou et al. 2019, arXiv:1810.09502"
    settings: ClassVar[Settings] = {
        (None, "miniimagenet"): {"step_size": 0.01, "outer_lr": 1e-3},
        (None, "folder"): {"step_size": 0.01, "outer_lr": 1e-3},
    }

    n_steps: int = option(5, "Inner steps T in meta-training.", low=1)
    step_size: float = option(0.1, "Initial inner step size of every layer and step; each is learned.", above=0)
    all_losses: float = option(0.1, "Share of the meta-training in which the query losses after the earlier inner steps count, too.", low=0)
    first_order_share: float = option(0.0, "Share of the meta-training, from its start, that takes inner gradients for constants.", low=0)
    step_norms: bool = option(True, "Each inner step has normalizations of its own, which the inner steps do not train.")
    sweep: tuple[int, ...] = option((1, 2, 3, 5, 7, 10), "Inner steps tried at the end; the best on meta-validation counts.", low=0)
    earlier: float = 0.0
    first_order: bool = False

    def during(self, progress: float) -> "MAMLPlusPlus":
        left = max(0.0, 1.0 - progress / self.all_losses) if self.all_losses else 0.0
        return dataclasses.replace(self, earlier=math.ceil(STAGES * left) / STAGES, first_order=progress < self.first_order_share)

    def moving(self, hparams: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of the weights that the inner steps train. Cost: O(len(hparams))."""
        return tuple(name for name in weight_names(hparams) if not (self.step_norms and name.endswith(NORM)))

    def init(self, seed: int, image_shape: Sequence[int], filters: int, blocks: int = 4, dtype: DTypeLike = np.float32) -> HParams:
        hparams = super().init(seed, image_shape, filters, blocks, dtype)
        sizes = {PREFIX + name: np.full(self.n_steps, self.step_size, dtype) for name in self.moving(hparams)}
        norms = {of_step(t, name): hparams[name] for name in hparams if name.endswith(NORM) for t in range(1, self.n_steps)}
        return {**hparams, **sizes, **(norms if self.step_norms else {})}

    def norms(self, hparams: Mapping[str, Any], t: int) -> dict[str, Any]:
        """Scales and shifts of step t that the inner steps do not train, under the names of the network's. Cost: O(len(hparams))."""
        names = [name for name in weight_names(hparams) if name.endswith(NORM)] if self.step_norms else []
        return {name: hparams[of_step(t, name)] for name in names}

    def adapt(self, hparams: Mapping[str, Any], episodes: Episodes, n_steps: int | None = None, learner: Any = None) -> Any:
        """The weights of each episode, by the number of steps that led to them. Steps after the T of meta-training are as its last one."""
        ((done, w),) = (learner or {0: start(hparams, episodes, self.moving(hparams))}).items()
        n_steps = self.n_steps if n_steps is None else n_steps
        if n_steps == 0:
            return {done: w}
        steps = [min(t, self.n_steps - 1) for t in range(done, done + n_steps)]
        sizes = {name: stack([hparams[PREFIX + name][t] for t in steps]) for name in w}
        norms = {t: self.norms(hparams, t) for t in set(steps)}
        batches = [(episodes.support, episodes.support_labels, t) for t in steps]
        optimizer = SGD(lr=schedule(sizes))
        return {done + n_steps: unroll(step_loss, w, norms, batches, optimizer=optimizer, first_order=self.first_order)}

    def head(self, hparams: Mapping[str, Any], learner: Any, episodes: Episodes) -> tuple[Tensor, Any, Any]:
        ((done, w),) = learner.items()
        norms = self.norms(hparams, min(max(done, 1), self.n_steps) - 1)  # those of the last step
        return features({**w, **norms}, episodes.query), w[WEIGHT], w[BIAS]

    def meta_loss(self, hparams: Mapping[str, Any], episodes: Episodes) -> tuple[Tensor, Array]:
        if not self.earlier:
            return super().meta_loss(hparams, episodes)
        share, learner, terms = self.earlier / self.n_steps, None, list[Tensor]()
        for weight in [share] * (self.n_steps - 1) + [1.0 - (self.n_steps - 1) * share]:
            learner = self.adapt(hparams, episodes, 1, learner)
            losses, logits = self.judge(hparams, learner, episodes)
            terms.append(weight * mean(losses))
        return sum_(stack(terms)), accuracies(logits, episodes.query_labels)

    def metrics(self, hparams: Mapping[str, Any]) -> dict[str, float]:
        """The mean of the step sizes that `hparams` (arrays) hold."""
        sizes = [x for name, x in hparams.items() if name.startswith(PREFIX)]
        return {"step_size": float(sum(x.mean() for x in sizes)) / len(sizes)}


def of_step(t: int, name: str) -> str:
    """The name of the hyperparameter that stands for `name` in inner step t, counted from 0. Cost: O(1)."""
    return name if t == 0 else f"step{t + 1}.{name}"


def step_loss(w: Any, norms: Any, batch: Any) -> Tensor:
    """`network_loss` with the normalizations of a step.

    Args: w: parameters with a leading axis of episodes; norms: scales and shifts by step and name; batch: images (E, S, H, W, C), labels
        (E, S) and the step. Returns: a scalar Tensor. Cost: one forward run of the network.
    """
    images, labels, t = batch
    return network_loss({**w, **norms[t]}, {}, (images, labels))
