"""The classifiers that the image problems train: softmax regression, or a network with one hidden layer of tanh units."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..backends import to_host
from ..bilevel import full_batch
from ..data import Accuracy, Examples
from ..ops import linear, linear_cross_entropy, mean, tanh
from ..optimizers import Optimizer
from ..passes.unroll import unroll
from ..tape import Tensor
from ..transforms import tree_values
from ..trees import PyTree

Array = NDArray[Any]
Weights = dict[str, Array]


def start(inputs: int, classes: int, hidden: int, seed: int | Sequence[int], dtype: DTypeLike) -> Weights:
    """Weights before training: zero for softmax regression (hidden = 0), else drawn for the hidden layer.

    Args: inputs, hidden, classes: sizes of the layers; seed: of the draw; dtype: float32 or float64.
    Returns: arrays by name. Cost: one draw a weight.
    """
    rng = np.random.default_rng(seed)
    if hidden == 0:
        return {"w": np.zeros((inputs, classes), dtype), "b": np.zeros(classes, dtype)}
    return {
        "v": (rng.standard_normal((inputs, hidden)) / np.sqrt(inputs)).astype(dtype),
        "c": np.zeros(hidden, dtype),
        "w": (rng.standard_normal((hidden, classes)) / np.sqrt(hidden)).astype(dtype),
        "b": np.zeros(classes, dtype),
    }


def losses(w: Mapping[str, Any], x: Any, y: Array) -> Tensor:
    """Cross-entropy of each example. Args: w: as `start`; x: (n, D); y: labels (n,). Returns: (n,). Cost: one forward run."""
    return linear_cross_entropy(_features(w, x), w["w"], w["b"], y)


def _features(w: Mapping[str, Any], x: Any) -> Any:
    return tanh(linear(x, w["v"], w["c"])) if "v" in w else x


def logits(w: Mapping[str, Any], x: Any) -> Tensor:
    """Logits of each example. Args: w: as `start`; x: (n, D). Returns: (n, classes). Cost: one forward run."""
    return linear(_features(w, x), w["w"], w["b"])


def accuracy(w: Mapping[str, Any], data: Examples) -> Accuracy:
    """Share of right answers with its 95% interval. Args: w: arrays. Cost: one forward run."""
    guesses = logits(w, data.x).value.argmax(axis=-1)
    return Accuracy.of(to_host(guesses == data.y).astype(np.float64))


def fit(w: Weights, data: Examples, optimizer: Optimizer, n_steps: int, penalty: Callable[[PyTree], Any] | None = None) -> Weights:
    """Train on the mean cross-entropy, full batch, without derivatives.

    Args: w: to start from; data: to train on; n_steps: of `optimizer`; penalty: of the weights, a scalar to add; None for none.
    Returns: the weights after it. Cost: n_steps gradients.
    """

    def loss(w: PyTree, _: PyTree, batch: Examples) -> Tensor:
        value = mean(losses(w, batch.x, batch.y))
        return value if penalty is None else value + penalty(w)

    found: Weights = tree_values(unroll(loss, w, (), full_batch(data, n_steps), optimizer=optimizer, checkpoints=1))
    return found


def percent(found: Accuracy) -> str:
    """For instance "91.40 ± 0.55 %". Cost: O(1)."""
    return f"{100 * found.mean:.2f} ± {100 * found.interval:.2f} %"
