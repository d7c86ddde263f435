"""The meta-learner LSTM: a recurrent network trains the learner's network, whose weights are the cell of an LSTM.

    w_t = f_t * w_{t-1} - i_t * grad L(w_{t-1})

Each weight has a forget gate f and an input gate i of its own. Its gates are functions of its gradient, the loss, its value and its
last gates, and all weights share these functions. They are hyperparameters, and so is the initial cell w_0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike

from ...backends import backend_of
from ...bilevel import full_batch
from ...data import Episodes
from ...errors import ArgumentError
from ...learned import preprocess
from ...ops import broadcast_to, concatenate, linear, linear_cross_entropy, lstm_cell, mean, reshape, sigmoid
from ...ops import sum as sum_
from ...passes.scan import scan
from ...runs.configuration import option
from ...tape import Tensor
from ...transforms import stop_gradient, tensor_value_and_grad
from ..learner import BIAS, WEIGHT, NetworkMethod, start, weight_names
from ..method import HParams, Settings
from ..network import features

GATES = ("forget", "input")
PREPROCESS_P = 10.0  # p of `learned.preprocess`
SMALL = 0.01  # of the network's initial weights


@dataclass(frozen=True)
class MetaLearnerLSTM(NetworkMethod):
    """The method and its options; see `NetworkMethod`.

    The gradient and the loss go through an LSTM layer first, and its output, the weight and its last gates make the gates, as in the
    authors' code. So do its initial values: small weights, forget gates near 1 and small input gates, which is nearly gradient descent.
    The gradients and losses that a step sees count as constants, the paper's independence assumption. For evaluation the paper takes
    running averages in batch normalization. Here they are statistics of the batch, as in meta-training.

    Args: see the options' help; n_way: classes of an episode, and outputs of the network.
    Raises: ArgumentError for an initial gate of 1 or more.
    Source: Ravi & Larochelle 2017, Optimization as a model for few-shot learning, ICLR, section 3; what is seen of gradients and losses:
        Andrychowicz et al. 2016, arXiv:1606.04474, appendix A.
    """

    title: ClassVar[str] = "meta-learner LSTM"
    source: ClassVar[str] = "Ravi & Larochelle 2017, ICLR"
    settings: ClassVar[Settings] = {
        (None, "miniimagenet"): {"n_steps": 12, "step_size": 0.01, "outer_lr": 1e-3},
        (None, "folder"): {"step_size": 0.01, "outer_lr": 1e-3},
    }

    n_steps: int = option(5, "Inner steps T in meta-training.", low=1)
    step_size: float = option(0.05, "Initial input gate, so about the first inner step size; below 1.", above=0)
    forget: float = option(0.01, "Initial share of a weight that a step forgets; below 1.", above=0)
    hidden: int = option(20, "Units of the LSTM layer that sees gradients and losses.", low=1)
    sweep: tuple[int, ...] = option((1, 2, 3, 5, 7, 10), "Inner steps tried at the end; the best on meta-validation counts.", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("step_size", "forget"):
            if getattr(self, name) >= 1.0:
                raise ArgumentError(
                    f"config: {name} is {getattr(self, name)}, expected a number below 1 because a gate is a share; pass for instance 0.01"
                )

    def init(self, seed: int, image_shape: Sequence[int], filters: int, blocks: int = 4, dtype: DTypeLike = np.float32) -> HParams:
        rng, h = np.random.default_rng([seed, 0x6C73746D]), self.hidden
        shapes = {"lstm.weight": (4 + h, 4 * h), "forget.weight": (h + 2, 1), "input.weight": (h + 2, 1)}
        drawn = {name: rng.uniform(-SMALL, SMALL, shape).astype(dtype) for name, shape in shapes.items()}
        biases = {"lstm.bias": np.zeros(4 * h), "forget.bias": [logit(1.0 - self.forget)], "input.bias": [logit(self.step_size)]}
        network = super().init(seed, image_shape, filters, blocks, dtype)
        return {**network, **drawn, **{name: np.asarray(x, dtype) for name, x in biases.items()}}

    def adapt(self, hparams: Mapping[str, Any], episodes: Episodes, n_steps: int | None = None, learner: Any = None) -> Any:
        """The state: "w" (E, N, 1), the N weights of each episode side by side; the LSTM's "h" and "c" (E, N, H); gates (E, N, 1)."""
        names = weight_names(hparams)
        if learner is None:
            count = len(episodes.support)
            flat = [reshape(x, (count, -1)) for x in start(hparams, episodes, names).values()]
            w = concatenate(flat, axis=1)[..., None]
            sizes, zeros = {"h": self.hidden, "c": self.hidden, **dict.fromkeys(GATES, 1)}, backend_of(w.value).xp.zeros
            learner = {"w": w, **{k: zeros((*w.shape[:2], n), w.dtype) for k, n in sizes.items()}}
        n_steps = self.n_steps if n_steps is None else n_steps
        if n_steps == 0:
            return learner
        shapes = {name: hparams[name].shape for name in names}
        own = {name: value for name, value in hparams.items() if name not in shapes}

        def step(state: Any, own: Any, batch: Any) -> tuple[Any, None]:
            return moved(state, own, *observed(state["w"], shapes, batch)), None

        return scan(step, learner, own, full_batch((episodes.support, episodes.support_labels), n_steps))[0]

    def head(self, hparams: Mapping[str, Any], learner: Any, episodes: Episodes) -> tuple[Tensor, Any, Any]:
        w = split(learner["w"], {name: hparams[name].shape for name in weight_names(hparams)})
        return super().head(hparams, w, episodes)

    def metrics(self, hparams: Mapping[str, Any]) -> dict[str, float]:
        """The input gate of a weight whose LSTM says nothing, as `hparams` (arrays) have it."""
        return {"step_size": float(1.0 / (1.0 + np.exp(-float(hparams["input.bias"][0]))))}


def observed(w: Any, shapes: Mapping[str, tuple[int, ...]], batch: Any) -> tuple[Tensor, Tensor]:
    """What a step sees, constants: the loss of each episode (E,), and the gradient of each weight (E, N, 1).

    Args: w: (E, N, 1); shapes: of the network's parameters, by name; batch: images (E, S, H, W, C) and labels (E, S). Cost: one gradient.
    """
    images, labels = batch

    def support_loss(w: Tensor) -> tuple[Tensor, Tensor]:
        tree = split(w, shapes)
        losses = mean(linear_cross_entropy(features(tree, images), tree[WEIGHT], tree[BIAS], labels), axis=-1)
        return sum_(losses), losses

    _, losses, slope = tensor_value_and_grad(support_loss, stop_gradient(w), has_aux=True)
    return stop_gradient(losses), slope


def moved(state: Any, own: Mapping[str, Any], losses: Tensor, slope: Tensor) -> dict[str, Tensor]:
    """The state after one step of all weights.

    Args: state: see `adapt`; own: the hyperparameters but for w_0; losses, slope: of `observed`. Cost: 8H (H + 4) flop a weight.
    """
    shape = state["w"].shape
    of_losses = broadcast_to(preprocess(losses[:, None], PREPROCESS_P)[:, None], (*shape[:2], 2))
    w, before_h, before_c = (reshape(state[k], (-1, state[k].shape[-1])) for k in "whc")  # all weights in one axis
    before = {k: reshape(state[k], (-1, 1)) for k in GATES}
    slope = reshape(slope, (-1, 1))
    x = concatenate([preprocess(slope, PREPROCESS_P), reshape(of_losses, (-1, 2))], axis=1)
    h, c = lstm_cell(x, before_h, before_c, own["lstm.weight"], bias=own["lstm.bias"])
    gates = {k: sigmoid(linear(concatenate([h, w, before[k]], axis=1), own[f"{k}.weight"], own[f"{k}.bias"])) for k in GATES}
    after = {"w": gates["forget"] * w - gates["input"] * slope, "h": h, "c": c, **gates}
    return {k: reshape(v, (*shape[:2], -1)) for k, v in after.items()}


def split(w: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The weights by name, each with a leading axis of episodes. Args: w: (E, N, 1); shapes: by name. Cost: O(size)."""
    at, found = 0, dict[str, Tensor]()
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        found[name] = reshape(w[:, at : at + size], (len(w), *shape))
        at += size
    return found


def logit(share: float) -> float:
    """What a sigmoid makes `share` of. Args: share: above 0, below 1. Cost: O(1)."""
    return float(np.log(share) - np.log1p(-share))
