"""Transfer by nearest neighbours: a network trained on all meta-training classes represents the images, and the nearest one decides."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ...data import Episodes
from ...ops import matmul, transpose
from ...ops import max as max_
from ...ops import sum as sum_
from ...runs.configuration import option
from ...tape import Tensor
from ..metric import of_each_class, unit
from ..pretrained import FixedRepresentation


@dataclass(frozen=True)
class NearestNeighbour(FixedRepresentation):
    """The method and its options: pretraining as in `FixedRepresentation`; there are no inner steps.

    The logit of a class is minus the squared distance to its nearest support image, up to a number that all classes share.

    Args: see the options' help; n_way: classes of an episode.
    Source: Ravi & Larochelle 2017, Optimization as a model for few-shot learning, section 5.1; cosines: Vinyals et al.
        2016, arXiv:1606.04080.
    """

    title: ClassVar[str] = "nearest-neighbour transfer"
    batch_norm: ClassVar[str] = "support and query images each by their own"
    source: ClassVar[str] = "Ravi & Larochelle 2017, ICLR"

    distance: Literal["euclidean", "cosine"] = option(
        "euclidean", "Distance of two images: of their representations, or of these scaled to length 1."
    )

    def adapt(self, hparams: Mapping[str, Any], episodes: Episodes, n_steps: int | None = None, learner: Any = None) -> Tensor:
        """The representations of the support images, (E, S, D)."""
        return self._points(hparams, episodes.support)

    def predict(self, hparams: Mapping[str, Any], learner: Any, episodes: Episodes) -> Tensor:
        x = self._points(hparams, episodes.query)
        near = matmul(x, transpose(learner, (0, 2, 1))) * 2.0 - sum_(learner * learner, axis=-1)[:, None]  # (E, Q, S)
        return max_(of_each_class(near, episodes.support_labels, self.n_way), axis=-1)

    def _points(self, hparams: Mapping[str, Any], images: Any) -> Tensor:
        x = self.embed(hparams, images)
        return unit(x) if self.distance == "cosine" else x
