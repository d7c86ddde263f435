"""Hyper-representation: filters are hyperparameters, a logistic regression is trained on top per episode.

min over lambda of mean_e E_e(w_T(lambda), lambda), where w_T is reached from zero by T gradient steps on the
cross-entropy of episode e's support examples and E_e is the cross-entropy of its query examples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import DTypeLike

from ...backends import backend_of, to_host
from ...bilevel import full_batch
from ...data import Episodes
from ...ops import exp, linear_cross_entropy, mean, reshape, sqrt
from ...ops import sum as sum_
from ...optimizers import SGD
from ...passes.unroll import unroll
from ...runs.configuration import option
from ...tape import Tensor
from ..method import Array, HParams, LinearMethod, Settings
from ..network import feature_size, features, init_network

STEP_SIZE = "inner.step_size"
LOG_STEP_SIZE = "inner.log_step_size"
SMALLEST_SQUARE = 1e-12  # keeps the derivative of the norm finite where all features are zero
LARGE_IMAGES = {"normalized": True, "step_size": 10.0, "log_step_size": True}  # 84x84 images give 800 features instead of 32


@dataclass(frozen=True)
class HyperRepresentation(LinearMethod):
    """The method and its options.

    Batch normalization is by the statistics of the images that an episode gives, see `statistics`; there are no running averages.
    Small initial features (`last_gamma`, `last_beta`) keep the published inner step size of 0.1 below the edge of
    stability of gradient descent, 2 over the largest curvature; the paper leaves the initial values open. The mean that `centred`
    subtracts uses no query image: ReLU features share a large common component, which makes the logistic regression badly
    conditioned. With `normalized` the stable step sizes do not depend on the number or the scale of the features.

    Args: see the options' help; n_way: classes of an episode.
    Source: Franceschi et al. 2017, arXiv:1712.06283, section 4.
    """

    title: ClassVar[str] = "hyper-representation"
    batch_norm: ClassVar[str] = "support and query images each by their own (separate) or by all (joint)"
    source: ClassVar[str] = "Franceschi et al. 2017, arXiv:1712.06283"
    settings: ClassVar[Settings] = {
        (None, "miniimagenet"): LARGE_IMAGES,
        (None, "folder"): LARGE_IMAGES,
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
    centred: bool = option(True, "Subtract the mean feature of the support set from support and query features.")
    normalized: bool = option(False, "Divide both by the root mean square norm of the support features, after centring.")
    statistics: Literal["separate", "joint"] = option(
        "separate", "Batch statistics: support and query images each by their own (published), or both by those of all."
    )
    last_gamma: float = option(1.0, "Initial scale of the last block's normalization, so of the features.")
    last_beta: float = option(0.0, "Its initial shift.")
    sweep: tuple[int, ...] = option((1, 2, 3, 4, 5, 6, 8, 10), "Inner steps tried at the end; the best on meta-validation counts.", low=0)

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

    def represent(self, hparams: Mapping[str, Any], episodes: Episodes) -> dict[str, Any]:
        """Features of the support images, "support" (E, S, D), and what those of query images are "centred" and "divided" by.

        With joint statistics also those of the query images, "query" (E, Q, D). Cost: one forward run of the network.
        """
        found = {}
        if self.statistics == "joint":
            count = episodes.support.shape[1]
            images = [episodes.support, episodes.query]
            both = features(hparams, backend_of(*images).concatenate(images, 1))
            support, found["query"] = both[:, :count], both[:, count:]
        else:
            support = features(hparams, episodes.support)
        if self.centred:
            found["centred"] = mean(support, axis=1, keepdims=True)
            support = support - found["centred"]
        if self.normalized:
            squares = sum_(support * support, axis=-1, keepdims=True)
            found["divided"] = sqrt(mean(squares, axis=1, keepdims=True) + SMALLEST_SQUARE)
            support = support / found["divided"]
        return {**found, "support": support}

    def once(self, hparams: Mapping[str, Any], learner: Any, episodes: Episodes) -> Any:
        return learner if "query" in learner else {**learner, "query": features(hparams, episodes.query)}

    def adapt(self, hparams: Mapping[str, Any], episodes: Episodes, n_steps: int | None = None, learner: Any = None) -> Any:
        if learner is None:
            learner = self.represent(hparams, episodes)
            learner |= self.zero_model(learner["support"])
        n_steps = self.n_steps if n_steps is None else n_steps
        if n_steps == 0:
            return learner
        w = {name: learner[name] for name in ("weight", "bias")}
        optimizer = SGD(lr=exp(hparams[LOG_STEP_SIZE]) if self.log_step_size else hparams[STEP_SIZE])
        steps = full_batch(episodes.support_labels, n_steps)
        return {**learner, **unroll(inner_loss, w, {"features": learner["support"]}, steps, optimizer=optimizer)}

    def zero_model(self, support: Any) -> dict[str, Array]:
        """The logistic regression of zeros for features (E, S, D), a Tensor, on their device. Cost: O(E*D*n_way)."""
        episodes, _, size = support.shape
        xp = backend_of(support.value).xp
        shapes = {"weight": (episodes, size, self.n_way), "bias": (episodes, 1, self.n_way)}
        return {name: xp.zeros(shape, support.dtype) for name, shape in shapes.items()}

    def head(self, hparams: Mapping[str, Any], learner: Any, episodes: Episodes) -> tuple[Tensor, Any, Any]:
        query = self.once(hparams, learner, episodes)["query"]
        if self.centred:
            query = query - learner["centred"]
        if self.normalized:
            query = query / learner["divided"]
        return query, learner["weight"], reshape(learner["bias"], (-1, self.n_way))


def inner_loss(w: Any, hparams: Any, labels: Array) -> Tensor:
    """The logistic regression's training loss: cross-entropy on the support set, summed over episodes.

    A sum and not a mean over episodes, so that every episode's gradient, and its step size, is that of its
    own loss.

    Args: w: {"weight": (E, D, n_way), "bias": (E, 1, n_way)}; hparams: {"features": (E, S, D)}; labels: (E, S).
    Returns: a scalar Tensor. Cost: 2*E*S*D*n_way flop.
    """
    bias = reshape(w["bias"], (len(labels), w["bias"].shape[-1]))
    total: Tensor = sum_(linear_cross_entropy(hparams["features"], w["weight"], bias, labels)) * (1.0 / labels.shape[-1])
    return total
