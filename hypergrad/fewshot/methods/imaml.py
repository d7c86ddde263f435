"""iMAML: MAML's inner problem is held near its start, and differentiated where it ends instead of along the way.

min over w_0 of mean_e E_e(w*_e(w_0)),    w*_e(w_0) = argmin_w L_e(w) + lambda/2 |w - w_0|^2.

By the implicit function theorem the gradient is mean_e (I + H_e / lambda)^-1 grad E_e(w*_e), H_e being the Hessian of L_e at w*_e. Its
memory and time do not depend on the number of inner steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ...backends import backend_of
from ...bilevel import Bilevel, full_batch
from ...data import Episodes
from ...ops import mean, stack
from ...ops import sum as sum_
from ...optimizers import SGD
from ...passes.implicit import at_point
from ...passes.point import Losses
from ...passes.solvers import Product, conjugate
from ...passes.unroll import unroll
from ...runs.configuration import option
from ...tape import Tensor
from ...transforms import stop_gradient, tree_values
from ...trees import tree_leaves
from ..learner import NetworkMethod, network_loss, start, weight_names
from ..method import Array, Settings, accuracies, with_gradient


@dataclass(frozen=True)
class EpisodesCG:
    """Conjugate gradients for each episode by itself, where a vector is the flat weights of all episodes.

    Args: weights: by name, each (E, ...), in the order of the vectors; max_iterations: products at most.
    """

    weights: Mapping[str, Any]
    max_iterations: int
    tolerance: float = 1e-6
    damping: float = 0.0

    def solve(self, product: Product, b: Array, start: Array | None) -> Array:
        """See `hypergrad.passes.solvers.Solver`. Cost: `max_iterations` products at most."""
        leaves = tree_leaves(self.weights)
        episodes, ends = len(leaves[0]), np.cumsum([x.size for x in leaves])[:-1].tolist()
        backend = backend_of(b)

        def rows(flat: Array) -> Array:
            joined: Array = backend.concatenate([part.reshape(episodes, -1) for part in backend.xp.split(flat, ends)], 1)
            return joined

        def flat(rows: Array) -> Array:
            joined: Array = backend.concatenate(
                [part.reshape(-1) for part in backend.xp.split(rows, [end // episodes for end in ends], axis=1)], 0
            )
            return joined

        first = None if start is None else rows(start)
        return flat(conjugate(lambda v: rows(product(flat(v)[None])[0]), rows(b), first, self.tolerance, self.max_iterations))


@dataclass(frozen=True)
class IMAML(NetworkMethod):
    """The method and its options; see `NetworkMethod`.

    Each episode has a linear system of its own; one product serves all of them. Conjugate gradients stop after `cg_steps` products at
    most, so the gradient is approximate, as published. It is exact up to the error of this solver and of the inner steps, which have to
    come near the inner solution. The solver reads its residuals on the host, so on a GPU the meta-steps are no CUDA graphs.

    Args: see the options' help; n_way: classes of an episode, and outputs of the network.
    Source: Rajeswaran et al. 2019, arXiv:1909.04630, Algorithms 1 and 2. The defaults are those of the authors' example for Omniglot, 5-way
        1-shot, but for lambda, which is 2 there: with 0.2 a short run on glyphs does much better. Their code adds damping to the system.
    """

    title: ClassVar[str] = "iMAML"
    source: ClassVar[str] = "Rajeswaran et al. 2019, arXiv:1909.04630"
    recordable: ClassVar[bool] = False
    settings: ClassVar[Settings] = {
        (None, "miniimagenet"): {"step_size": 0.01, "outer_lr": 1e-3},
        (None, "folder"): {"step_size": 0.01, "outer_lr": 1e-3},
    }

    n_steps: int = option(16, "Inner steps T in meta-training.", low=1)
    step_size: float = option(0.1, "Inner step size.", above=0)
    proximal: float = option(0.2, "Strength lambda of the pull to the initial weights.", above=0)
    cg_steps: int = option(5, "Iterations of conjugate gradients at most.", low=1)
    sweep: tuple[int, ...] = option((4, 8, 16, 24), "Inner steps tried at the end; the best on meta-validation counts.", low=0)

    def adapt(self, hparams: Mapping[str, Any], episodes: Episodes, n_steps: int | None = None, learner: Any = None) -> Any:
        w_0 = start(hparams, episodes, weight_names(hparams))
        w, n_steps = learner or w_0, self.n_steps if n_steps is None else n_steps
        batches = full_batch((episodes.support, episodes.support_labels), n_steps)
        return unroll(self.inner_loss, w, {"start": w_0}, batches, optimizer=SGD(lr=self.step_size)) if n_steps else w

    def inner_loss(self, w: Any, hparams: Any, batch: Any) -> Tensor:
        """The cross-entropy of the support images and the pull to the initial weights, summed over episodes.

        Args: w: parameters with a leading axis of episodes; hparams: {"start": like w}; batch: images (E, S, H, W, C) and labels (E, S).
        Returns: a scalar Tensor. Cost: one forward run of the network.
        """
        away = sum_(stack([sum_((w[name] - w_0) ** 2) for name, w_0 in hparams["start"].items()]))
        total: Tensor = network_loss(w, {}, batch) + 0.5 * self.proximal * away
        return total

    def meta_loss(self, hparams: Mapping[str, Any], episodes: Episodes) -> tuple[Tensor, Array]:
        """The query loss of `Method.meta_loss`; its gradient is the implicit one. Cost: also `cg_steps` + 1 Hessian products."""
        fixed = stop_gradient(dict(hparams))
        learner, judged = self.adapt(fixed, episodes), []

        def query_loss(w: Any, _: Any) -> Tensor:
            losses, logits = self.judge(fixed, w, episodes)
            judged.append(logits)
            return mean(losses)

        problem = Bilevel(self.inner_loss, query_loss, lambda lam: lam["start"], lambda lam: SGD(lr=self.step_size))
        w_0, w_star = tree_values((start(fixed, episodes, tuple(learner)), learner))
        batch, solver = (episodes.support, episodes.support_labels), EpisodesCG(learner, max_iterations=self.cg_steps)
        found = at_point(Losses("imaml", problem), {"start": w_0}, w_star, batch, lambda _: solver, check=False)
        direction = {name: slope.sum(axis=0) for name, slope in found.grad["start"].items()}
        return with_gradient(found.value, hparams, direction), accuracies(judged[-1], episodes.query_labels)
