"""Transfer by a linear classifier: a network trained on all meta-training classes, and a logistic regression on top per episode."""

from dataclasses import dataclass
from typing import ClassVar

from ...runs.configuration import option
from ..logistic import LogisticMethod
from ..pretrained import FixedRepresentation


@dataclass(frozen=True)
class Multiclass(FixedRepresentation, LogisticMethod):
    """The method and its options: pretraining as in `FixedRepresentation`, the logistic regression as in `LogisticMethod`.

    The pretrained features have any scale, and the logits a larger one. So they are normalized, and one step size fits all.

    The paper's Table 2: "Multiclass-linear" is representation="linear" with held_out=0.1; "NN-linear" the same with 64 filters and
    early stopping on episodes. Its logistic regressions are neither centred nor normalized.

    Args: see the options' help; n_way: classes of an episode.
    Source: Franceschi et al. 2017, arXiv:1712.06283, appendix A.
    """

    title: ClassVar[str] = "multiclass transfer"
    source: ClassVar[str] = "Franceschi et al. 2017, arXiv:1712.06283"

    step_size: float = option(10.0, "Inner step size.", above=0)
    normalized: bool = option(True, "Divide both by the root mean square norm of the support features, after centring.")
