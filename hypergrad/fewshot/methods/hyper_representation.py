"""Hyper-representation: filters are hyperparameters, a logistic regression is trained on top per episode.

min over lambda of mean_e E_e(w_T(lambda), lambda), where w_T is reached from zero by T gradient steps on the
cross-entropy of episode e's support examples and E_e is the cross-entropy of its query examples.

Two options take away what the paper's Table 2 shows to matter: the split into support and query examples, and the derivative of w_T.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import DTypeLike

from ...backends import to_host
from ...data import Episodes, EpisodeSampler
from ...ops import exp
from ...runs.configuration import option
from ...tape import Tensor
from ...transforms import stop_gradient
from ..logistic import LARGE_IMAGES, LogisticMethod
from ..method import Array, HParams, Settings
from ..network import feature_size, init_network

SMALL_IMAGES = {"normalized": True, "step_size": 5.0}
STEP_SIZE = "inner.step_size"
LOG_STEP_SIZE = "inner.log_step_size"


@dataclass(frozen=True)
class HyperRepresentation(LogisticMethod):
    """The method and its options.

    With `normalized`, which the default preset sets, the stored results have a step size of `n_way`: the mean over classes divides the
    gradient by their number. Without it nothing keeps the learned step size below the edge of stability.

    Small initial features (`last_gamma`, `last_beta`) keep the published inner step size of 0.1 below the edge of
    stability of gradient descent, 2 over the largest curvature; the paper leaves the initial values open.

    The paper's Table 2: "Bilevel-train 16x5" is train_k_shot=16 with outer_images="support"; "Approx-train" the same with
    gradient="approximate"; "Approx" with the split gradient="approximate" alone. "Classic" is the method `multitask`.

    Args: see the options' help; n_way: classes of an episode.
    Source: Franceschi et al. 2017, arXiv:1712.06283, section 4 and appendix A.
    """

    title: ClassVar[str] = "hyper-representation"
    source: ClassVar[str] = "Franceschi et al. 2017, arXiv:1712.06283"
    settings: ClassVar[Settings] = {
        (None, "glyphs"): SMALL_IMAGES,
        (None, "omniglot"): SMALL_IMAGES,
        (None, "miniimagenet"): {**LARGE_IMAGES, "log_step_size": True},
        (None, "folder"): {**LARGE_IMAGES, "log_step_size": True},
        # The published protocol to the letter. What the paper leaves open comes from the authors' code, but for
        # the initial scale of the features: as small as here, the inner step size of 0.1 is a stable one.
        ("paper", None): {
            **{"step_size": 0.1, "log_step_size": False, "centred": False, "normalized": False, "statistics": "separate"},
            **{"last_gamma": 0.3, "last_beta": -0.3, "outer_lr": 1e-3, "schedule": "inverse-time"},
            **{"iterations": 100_000, "eval_every": 1000, "eval_episodes": 600, "sweep": (2, 3, 4, 5, 6, 7, 8)},
        },
        # The published number of iterations is that of MiniImagenet; smaller data need, and allow, shorter runs.
        ("paper", "glyphs"): {"iterations": 800, "eval_every": 100, "eval_episodes": 100},
        ("paper", "omniglot"): {"iterations": 5000, "eval_every": 250, "eval_episodes": 200},
    }

    n_steps: int = option(5, "Inner steps T in meta-training.", low=1)
    step_size: float = option(1.0, "Initial inner step size; it is learned.", above=0)
    log_step_size: bool = option(False, "Learn the logarithm of the step size: it stays positive and moves by factors.")
    last_gamma: float = option(1.0, "Initial scale of the last block's normalization, so of the features.")
    last_beta: float = option(0.0, "Its initial shift.")
    gradient: Literal["exact", "approximate"] = option(
        "exact", "Hypergradient: exact, or approximate, which takes w_T for a constant; then the step size is not learned."
    )
    outer_images: Literal["query", "support"] = option(
        "query", "What the outer loss is taken on: query images, or the support images themselves, without a split."
    )
    train_k_shot: int | None = option(None, "Support images per class in meta-training, by default as in the evaluation.", low=1)

    def init(self, seed: int, image_shape: Sequence[int], filters: int, blocks: int = 4, dtype: DTypeLike = np.float32) -> HParams:
        height, width, channels = image_shape
        feature_size(height, width, filters, blocks)
        hparams = init_network(seed, channels, filters, blocks, dtype, self.last_gamma, self.last_beta)
        name, value = (LOG_STEP_SIZE, np.log(self.step_size)) if self.log_step_size else (STEP_SIZE, self.step_size)
        return {**hparams, name: np.asarray(value, dtype)}

    def metrics(self, hparams: Mapping[str, Any]) -> dict[str, float]:
        """The step size that `hparams` (arrays) hold."""
        value = to_host(hparams[LOG_STEP_SIZE if self.log_step_size else STEP_SIZE])
        return {"step_size": float(np.exp(value) if self.log_step_size else value)}

    def inner_step_size(self, hparams: Mapping[str, Any]) -> Any:
        return exp(hparams[LOG_STEP_SIZE]) if self.log_step_size else hparams[STEP_SIZE]

    def samplers(self, train: EpisodeSampler, validation: EpisodeSampler) -> tuple[Any, Any]:
        n_query = 1 if self.outer_images == "support" else train.n_query  # those are not read
        return dataclasses.replace(train, k_shot=self.train_k_shot or train.k_shot, n_query=n_query), validation

    def meta_loss(self, hparams: Mapping[str, Any], episodes: Episodes) -> tuple[Tensor, Array]:
        if self.outer_images == "support":
            episodes = episodes._replace(query=episodes.support, query_labels=episodes.support_labels)
        return super().meta_loss(hparams, episodes)

    def adapt(self, hparams: Mapping[str, Any], episodes: Episodes, n_steps: int | None = None, learner: Any = None) -> Any:
        learner = super().adapt(hparams, episodes, n_steps, learner)
        if self.gradient == "approximate":
            learner |= stop_gradient({name: learner[name] for name in ("weight", "bias")})
        return learner
