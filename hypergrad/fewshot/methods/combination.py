"""Hyper-representation and MAML combined: some filters are shared by all episodes, the others are initial points trained per episode.

min over lambda and w_0 of mean_e E_e(w_T(w_0, lambda), lambda), where w_T is reached from w_0 by T gradient steps on the cross-entropy of
episode e's support examples and E_e is the cross-entropy of its query examples. In depth, lambda are the lower blocks and w_0 the upper
ones; in width, every block has filters of both kinds. The classifier belongs to w_0. The hypergradient is exact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import DTypeLike

from ...backends import to_host
from ...bilevel import full_batch
from ...data import Episodes
from ...errors import ArgumentError
from ...ops import broadcast_to, concatenate, reshape
from ...optimizers import SGD
from ...passes.unroll import unroll
from ...runs.configuration import option
from ...tape import Tensor
from ..learner import BIAS, HEAD, WEIGHT, head_loss
from ..method import HParams, LinearMethod, Settings
from ..network import count_blocks, feature_size, features, init_network, run_blocks

STEP_SIZE = "inner.step_size"
PARTS = ("filters", "gamma", "beta")  # of a block; their last axis numbers the filters


@dataclass(frozen=True)
class Combination(LinearMethod):
    """The method and its options.

    The first filters of a block are shared and the last ones adapted. With all of them adapted the method is MAML with a learned step
    size, and with none the classifier alone is trained. Blocks below the first one with an adapted filter run once an episode, the
    others once an inner step. Batch normalization is by the statistics of the support images for them, and of the query images for those.

    Args: see the options' help; n_way: classes of an episode, and outputs of the network.
    Source: Franceschi et al. 2017, arXiv:1712.06283, section 4, which announces both combinations.
    """

    title: ClassVar[str] = "shared and adapted filters"
    batch_norm: ClassVar[str] = "support and query images each by their own"
    source: ClassVar[str] = "Franceschi et al. 2017, arXiv:1712.06283"
    settings: ClassVar[Settings] = {
        (None, "miniimagenet"): {"step_size": 0.01, "outer_lr": 1e-3},
        (None, "folder"): {"step_size": 0.01, "outer_lr": 1e-3},
    }

    mixture: Literal["depth", "width"] = option("depth", "Which filters are adapted: all of the upper blocks, or a share in every block.")
    adapted_blocks: int = option(1, "In depth: how many upper blocks are adapted.", low=0)
    adapted_share: float = option(0.25, "In width: share of the filters that are adapted, at most 1.", low=0)
    n_steps: int = option(5, "Inner steps T in meta-training.", low=1)
    step_size: float = option(0.05, "Initial inner step size; it is learned.", above=0)
    sweep: tuple[int, ...] = option((1, 2, 3, 5, 7, 10), "Inner steps tried at the end; the best on meta-validation counts.", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adapted_share > 1:
            raise ArgumentError(f"config: adapted_share is {self.adapted_share}, expected a share of at most 1; pass for instance 0.25")

    def init(self, seed: int, image_shape: Sequence[int], filters: int, blocks: int = 4, dtype: DTypeLike = np.float32) -> HParams:
        if self.mixture == "depth" and self.adapted_blocks > blocks:
            raise ArgumentError(
                f"config: adapted_blocks is {self.adapted_blocks}, expected at most {blocks} because the network has so many blocks; "
                "lower it, or add blocks"
            )
        height, width, channels = image_shape
        size = feature_size(height, width, filters, blocks)
        head = {WEIGHT: np.zeros((size, self.n_way), dtype), BIAS: np.zeros(self.n_way, dtype)}
        return {**init_network(seed, channels, filters, blocks, dtype), **head, STEP_SIZE: np.asarray(self.step_size, dtype)}

    def metrics(self, hparams: Mapping[str, Any]) -> dict[str, float]:
        """The step size that `hparams` (arrays) hold."""
        return {"step_size": float(to_host(hparams[STEP_SIZE]))}

    def n_shared(self, hparams: Mapping[str, Any]) -> list[int]:
        """How many filters are shared in each block, from the lowest up. Cost: O(blocks)."""
        blocks, filters = count_blocks(hparams), hparams["block1.gamma"].shape[-1]
        if self.mixture == "depth":
            return [filters] * (blocks - self.adapted_blocks) + [0] * self.adapted_blocks
        return [filters - round(self.adapted_share * filters)] * blocks

    def adapt(self, hparams: Mapping[str, Any], episodes: Episodes, n_steps: int | None = None, learner: Any = None) -> Any:
        w = learner or self.start(hparams, len(episodes.support))
        n_steps = self.n_steps if n_steps is None else n_steps
        if n_steps == 0:
            return w
        low, shared = self.lower_blocks(hparams), self.shared(hparams)
        if low:
            shared["x"] = run_blocks(hparams, episodes.support, low)
        steps = full_batch((episodes.support, episodes.support_labels), n_steps)
        return unroll(inner_loss, w, shared, steps, optimizer=SGD(lr=hparams[STEP_SIZE]))

    def lower_blocks(self, hparams: Mapping[str, Any]) -> range:
        """Numbers of the blocks below the first one with an adapted filter. Cost: O(blocks)."""
        numbers, filters = self.n_shared(hparams), hparams["block1.gamma"].shape[-1]
        return range(1, 1 + next((i for i, n in enumerate(numbers) if n < filters), len(numbers)))

    def shared(self, hparams: Mapping[str, Any]) -> dict[str, Any]:
        """The shared filters of the upper blocks, by the names of their arrays. Cost: views."""
        low = len(self.lower_blocks(hparams))
        counts = {f"block{i}.{part}": n for i, n in enumerate(self.n_shared(hparams), 1) for part in PARTS if i > low and n > 0}
        return {name: hparams[name][..., :n] for name, n in counts.items()}

    def start(self, hparams: Mapping[str, Any], episodes: int) -> dict[str, Tensor]:
        """The adapted filters and the classifier before the first inner step, for each episode. Cost: no copy."""
        filters = hparams["block1.gamma"].shape[-1]
        counts = {f"block{i}.{part}": n for i, n in enumerate(self.n_shared(hparams), 1) for part in PARTS if n < filters}
        w = {**{name: hparams[name][..., n:] for name, n in counts.items()}, **{name: hparams[name] for name in HEAD}}
        return {name: broadcast_to(x, (episodes, *x.shape)) for name, x in w.items()}

    def head(self, hparams: Mapping[str, Any], learner: Any, episodes: Episodes) -> tuple[Tensor, Any, Any]:
        lower = {name: hparams[name] for name in hparams if name.startswith("block")}
        return features({**lower, **joined(learner, self.shared(hparams))}, episodes.query), learner[WEIGHT], learner[BIAS]


def joined(w: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """The blocks' arrays by name, the shared filters before the adapted ones.

    Args: w: (E, ..., K_a) each; shared: (..., K_s) each; either may lack an array. Returns: (E, ..., K). Cost: one copy of what both have.
    """
    blocks = {**shared, **w}
    for name in shared.keys() & w.keys():
        first = broadcast_to(shared[name], (len(w[name]), *shared[name].shape))
        blocks[name] = concatenate([first, w[name]], axis=-1)
    return blocks


def inner_loss(w: Any, hparams: Any, batch: Any) -> Tensor:
    """Cross-entropy of the classifier on support images, a mean for each episode, summed over episodes.

    Args:
        w: adapted filters and the classifier, with a leading axis of episodes.
        hparams: shared filters; "x", the lower blocks' output for the support images, if there are lower blocks.
        batch: support images (E, S, H, W, C) and labels (E, S).
    Returns: a scalar Tensor. Cost: one forward run of the upper blocks.
    """
    images, labels = batch
    blocks = joined(w, {name: x for name, x in hparams.items() if name != "x"})
    upper = sorted({int(name[len("block") : name.index(".")]) for name in blocks if name.startswith("block")})
    x = run_blocks(blocks, hparams.get("x", images), upper)
    return head_loss(w, {"features": reshape(x, (*x.shape[:2], -1))}, labels)
