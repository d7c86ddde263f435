"""What a few-shot method is: frozen options, and functions on episodes. A method is one file in `methods/`.

A method gives `init` and `adapt`, and either `predict` or, where its classifier is linear in some features, `head`
(`LinearMethod`). The meta-loss, the evaluation and the command follow from these.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..backends import backend_of, is_on_gpu
from ..data import Episodes, EpisodeSampler
from ..ops import linear_cross_entropy, matmul, mean, softmax_cross_entropy, stack
from ..ops import sum as sum_
from ..passes.accumulate import accumulate
from ..runs.configuration import Section
from ..tape import Tensor
from ..transforms import stop_gradient

Array = NDArray[Any]
HParams = dict[str, Array]
PIXELS_AT_ONCE = 100_000  # of query images that a meta-loss judges at a time on the host: one episode of MiniImagenet or Omniglot
Settings = Mapping[tuple[str | None, str | None], Mapping[str, Any]]


@dataclass(frozen=True)
class Method(Section, ABC):
    """A few-shot method. Its options are its dataclass fields, made with `runs.configuration.option`.

    Class attributes:
        title: in words, for tables and figures.
        source: the paper.
        batch_norm: whose statistics normalize support and query images, if there is batch normalization.
        recordable: whether the GPU never has to wait for the host in `meta_loss`, so that a CUDA graph can hold it; see `capture`.
        by_episode: whether the meta-loss of a batch is the mean of those of its episodes, each by itself.
        settings: options that presets and data sets change, by (preset, data set); None stands for any. `presets` lists the presets.
    Args:
        n_way: classes of an episode; comes with the episodes and is no option of the method.
        train_classes: classes of the meta-training split; comes with the data and is no option either.
    """

    title: ClassVar[str]
    source: ClassVar[str] = ""
    batch_norm: ClassVar[str] = ""
    recordable: ClassVar[bool] = True
    by_episode: ClassVar[bool] = True
    settings: ClassVar[Settings] = {}
    n_way: int = 5
    train_classes: int = 1

    @classmethod
    def presets(cls) -> tuple[str, ...]:
        """Names of the method's presets, "default" first. Cost: O(len(settings))."""
        return tuple(dict.fromkeys(("default", *(preset for preset, _ in cls.settings if preset is not None))))

    @classmethod
    def settings_for(cls, preset: str, data: str) -> dict[str, Any]:
        """Options that a preset and a data set change, of any section. Cost: O(len(settings))."""
        keys = ((None, data), (preset, None), (preset, data))
        return {name: value for key in keys for name, value in cls.settings.get(key, {}).items()}

    @property
    def steps(self) -> tuple[int, ...]:
        """Numbers of inner steps to try in the final evaluation: the option `sweep`, (0,) for a method without it."""
        return tuple(getattr(self, "sweep", (0,)))

    @property
    def usual_steps(self) -> int:
        """The number of inner steps in meta-training and validation: the option `n_steps`, 0 for a method without it."""
        return int(getattr(self, "n_steps", 0))

    def samplers(self, train: EpisodeSampler, validation: EpisodeSampler) -> tuple[Any, Any]:
        """What meta-training and its validation draw their batches from: by default the samplers of episodes themselves.

        Args: train, validation: of the configuration's episodes.
        Returns: two objects whose batch(i) gives what `meta_loss` and what `evaluate` takes, a function of i alone.
        Raises: DataError if the data have not enough images. Cost: O(1).
        """
        return train, validation

    def during(self, progress: float) -> "Method":
        """The method as it is while a share `progress` (0 to 1) of the meta-training is done: itself, where nothing is annealed.

        Each different method is recorded anew, so it should change in few stages. Cost: O(options).
        """
        return self

    @abstractmethod
    def init(self, seed: int, image_shape: Sequence[int], filters: int, blocks: int = 4, dtype: DTypeLike = np.float32) -> HParams:
        """Hyperparameters to start from.

        Args: seed: of the draw; image_shape: (H, W, C); filters, blocks: of the network; dtype: float32 or float64.
        Returns: arrays by name, the same bits for the same arguments.
        Raises: ShapeError if the images are too small for the network.
        Cost: one draw a parameter.
        """

    @abstractmethod
    def adapt(self, hparams: Mapping[str, Any], episodes: Episodes, n_steps: int | None = None, learner: Any = None) -> Any:
        """What the support examples of each episode teach: a learner for the query images of the same episodes.

        Args:
            hparams: of `init`, arrays or Tensors.
            episodes: E episodes; the labels of the query images are not read.
            n_steps: inner steps, by default `usual_steps`; learner: an earlier result to go on from, None to begin.
        Returns: a pytree of arrays or Tensors (E, ...) that depends differentiably on `hparams`.
        Cost: one forward run of the network on the support images at least.
        """

    @abstractmethod
    def predict(self, hparams: Mapping[str, Any], learner: Any, episodes: Episodes) -> Tensor:
        """Logits (E, Q, n_way) of the query images. Args: learner: of `adapt` on these episodes. Cost: one forward run of the network."""

    def judge(self, hparams: Mapping[str, Any], learner: Any, episodes: Episodes) -> tuple[Tensor, Array]:
        """Cross-entropies of the query images (E, Q), differentiable, and their logits (E, Q, n_way), an array.

        Cost: that of `predict`.
        """
        logits = self.predict(hparams, learner, episodes)
        return softmax_cross_entropy(logits, episodes.query_labels), logits.value

    def meta_loss(self, hparams: Mapping[str, Any], episodes: Episodes) -> tuple[Tensor, Array]:
        """The outer objective of one meta-batch: the mean query cross-entropy after adapting.

        Args: hparams: of `init`, arrays or Tensors; episodes: E episodes of `n_way` classes.
        Returns: (loss, accuracies): a scalar Tensor and the query accuracies, a float64 array (E,).
        Cost: that of `adapt` and `judge`. Memory: on the host the query images' values are held for a few episodes at a time.
        """
        count, n_query = episodes.query_labels.shape

        def judged(hparams: Any, learner: Any, rows: slice) -> tuple[Tensor, Array]:
            some = Episodes(*(x[rows] for x in episodes))
            losses, logits = self.judge(hparams, learner, some)
            return sum_(losses) * (1.0 / (count * n_query)), accuracies(logits, some.query_labels)

        at_once = count if is_on_gpu(episodes.query) else max(1, PIXELS_AT_ONCE // math.prod(episodes.query.shape[1:-1]))
        loss, shares = accumulate(judged, hparams, self.adapt(hparams, episodes), count, at_once)
        return loss, backend_of(*shares).concatenate(shares, 0)

    def evaluate(self, hparams: Mapping[str, Any], episodes: Episodes, steps: Sequence[int]) -> tuple[Array, Array]:
        """Query loss and accuracy after each number of inner steps, in one run.

        Args: steps: increasing numbers of steps, >= 0.
        Returns: losses and accuracies, each (E, len(steps)).
        Cost: that of `adapt` with max(steps) steps and of len(steps) times `judge`.
        """
        found = list(self._judged(hparams, episodes, steps))
        join = backend_of(found[0][0]).concatenate
        return join([losses[:, None] for losses, _ in found], 1), join([share[:, None] for _, share in found], 1)

    def _judged(self, hparams: Mapping[str, Any], episodes: Episodes, steps: Sequence[int]) -> Iterator[tuple[Array, Array]]:
        learner, done = None, 0
        for n_steps in steps:
            learner, done = self.prepare(hparams, self.adapt(hparams, episodes, n_steps - done, learner), episodes), n_steps
            losses, logits = self.judge(hparams, learner, episodes)
            yield mean(losses, axis=-1).value, accuracies(logits, episodes.query_labels)

    def prepare(self, hparams: Mapping[str, Any], learner: Any, episodes: Episodes) -> Any:
        """The learner with what `judge` would otherwise compute again after each number of inner steps; by default as it is.

        Cost: none by default.
        """
        return learner

    def metrics(self, hparams: Mapping[str, Any]) -> dict[str, float]:
        """Numbers worth recording that `hparams` (arrays) hold. Cost: O(1)."""
        return {}


class LinearMethod(Method):
    """A method whose classifier is linear in features: a fused loss. Args: n_way: classes of an episode."""

    @abstractmethod
    def head(self, hparams: Mapping[str, Any], learner: Any, episodes: Episodes) -> tuple[Tensor, Any, Any]:
        """Features of the query images (E, Q, D), weight (E, D, n_way) and bias (E, n_way). Args: learner: of `adapt`."""

    def predict(self, hparams: Mapping[str, Any], learner: Any, episodes: Episodes) -> Tensor:
        x, weight, bias = self.head(hparams, learner, episodes)
        logits: Tensor = matmul(x, weight) + bias[:, None]
        return logits

    def judge(self, hparams: Mapping[str, Any], learner: Any, episodes: Episodes) -> tuple[Tensor, Array]:
        x, weight, bias = self.head(hparams, learner, episodes)
        values = [p.value if isinstance(p, Tensor) else p for p in (x, weight, bias)]  # the logits are not differentiated
        logits = matmul(values[0], values[1]) + values[2][:, None]
        return linear_cross_entropy(x, weight, bias, episodes.query_labels), logits.value


def accuracies(logits: Array, labels: Array) -> Array:
    """Share of right answers of each episode. Args: logits: (E, Q, n_way); labels: (E, Q). Returns: float64 (E,). Cost: O(size)."""
    hits: Array = (logits.argmax(axis=-1) == labels).mean(axis=-1)
    return hits


def with_gradient(loss: Tensor, hparams: Mapping[str, Any], direction: Mapping[str, Array]) -> Tensor:
    """A meta-loss whose gradient is given: the value of `loss` with `direction` in the place of its gradient.

    It is loss + sum_i <direction_i, hparams_i - their values>, where `loss` and `direction` count as constants. The second term is zero.
    So are its second derivatives, and the gradient in what `direction` does not name.

    Args: loss: a scalar; hparams: Tensors by name; direction: arrays like some of them. Returns: a scalar Tensor. Cost: O(size).
    """
    zeros = [sum_(d * (hparams[name] - stop_gradient(hparams[name]))) for name, d in direction.items()]
    total: Tensor = stop_gradient(loss) + sum_(stack(zeros))
    return total
