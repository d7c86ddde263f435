"""What the methods share that train a logistic regression on top of a representation, anew for each episode."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..backends import backend_of
from ..data import Episodes
from ..ops import linear_head_descent, mean, sqrt
from ..ops import sum as sum_
from ..runs.configuration import option
from ..tape import Tensor
from .method import Array, LinearMethod
from .metric import SMALLEST_SQUARE
from .network import features

LARGE_IMAGES = {"normalized": True, "step_size": 10.0}  # 84x84 images give 800 features instead of 32


@dataclass(frozen=True)
class LogisticMethod(LinearMethod):
    """A method that trains a logistic regression on the support set from zero, by T gradient steps.

    Batch normalization is by the statistics of the images that an episode gives, see `statistics`; there are no running averages.
    The mean that `centred` subtracts uses no query image: ReLU features share a large common component, which makes the logistic
    regression badly conditioned. With `normalized` the stable step sizes do not depend on the number or the scale of the features.

    Args: see the options' help; n_way: classes of an episode.
    """

    batch_norm: ClassVar[str] = "support and query images each by their own (separate) or by all (joint)"

    n_steps: int = option(5, "Inner steps T in validation.", low=1)
    step_size: float = option(1.0, "Inner step size.", above=0)
    centred: bool = option(True, "Subtract the mean feature of the support set from support and query features.")
    normalized: bool = option(False, "Divide both by the root mean square norm of the support features, after centring.")
    statistics: Literal["separate", "joint"] = option(
        "separate", "Batch statistics: support and query images each by their own (published), or both by those of all."
    )
    sweep: tuple[int, ...] = option((1, 2, 3, 4, 5, 6, 8, 10), "Inner steps tried at the end; the best on meta-validation counts.", low=0)

    def embed(self, hparams: Mapping[str, Any], images: Any) -> Tensor:
        """The representation (E, N, D) of images (E, N, H, W, C): the network's features. Cost: one forward run of the network."""
        return features(hparams, images)

    def inner_step_size(self, hparams: Mapping[str, Any]) -> Any:
        """Of the gradient steps: a number, or a Tensor that depends on `hparams`. Cost: O(1)."""
        return self.step_size

    def represent(self, hparams: Mapping[str, Any], episodes: Episodes) -> dict[str, Any]:
        """What the logistic regression reads of the support images, "support" (E, S, D), and what others are "centred" and "divided" by.

        Also `embed` of the query images, "query" (E, Q, D), with joint statistics, and where the support images stand for them, too.

        Cost: one forward run of the network.
        """
        found = {}
        if episodes.query is episodes.support:
            support = found["query"] = self.embed(hparams, episodes.support)
        elif self.statistics == "joint":
            count = episodes.support.shape[1]
            images = [episodes.support, episodes.query]
            both = self.embed(hparams, backend_of(*images).concatenate(images, 1))
            support, found["query"] = both[:, :count], both[:, count:]
        else:
            support = self.embed(hparams, episodes.support)
        if self.centred:
            found["centred"] = mean(support, axis=1, keepdims=True)
            support = support - found["centred"]
        if self.normalized:
            squares = sum_(support * support, axis=-1, keepdims=True)
            found["divided"] = sqrt(mean(squares, axis=1, keepdims=True) + SMALLEST_SQUARE)
            support = support / found["divided"]
        return {**found, "support": support}

    def prepare(self, hparams: Mapping[str, Any], learner: Any, episodes: Episodes) -> Any:
        return learner if "query" in learner else {**learner, "query": self.embed(hparams, episodes.query)}

    def adapt(self, hparams: Mapping[str, Any], episodes: Episodes, n_steps: int | None = None, learner: Any = None) -> Any:
        if learner is None:
            learner = self.represent(hparams, episodes)
            learner |= self.zero_model(learner["support"])
        n_steps = self.n_steps if n_steps is None else n_steps
        step_size = self.inner_step_size(hparams)
        weight, bias = linear_head_descent(
            learner["support"], learner["weight"], learner["bias"], episodes.support_labels, step_size, n_steps
        )
        return {**learner, "weight": weight, "bias": bias}

    def zero_model(self, support: Any) -> dict[str, Array]:
        """The logistic regression of zeros for features (E, S, D), a Tensor, on their device. Cost: O(E*D*n_way)."""
        episodes, _, size = support.shape
        xp = backend_of(support.value).xp
        shapes = {"weight": (episodes, size, self.n_way), "bias": (episodes, self.n_way)}
        return {name: xp.zeros(shape, support.dtype) for name, shape in shapes.items()}

    def head(self, hparams: Mapping[str, Any], learner: Any, episodes: Episodes) -> tuple[Tensor, Any, Any]:
        query = self.prepare(hparams, learner, episodes)["query"]
        if self.centred:
            query = query - learner["centred"]
        if self.normalized:
            query = query / learner["divided"]
        return query, learner["weight"], learner["bias"]
