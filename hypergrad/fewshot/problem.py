"""Few-shot learning as a problem of the outer loop, and the evaluation of a method on episodes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ..backends import backend_of, place, to_host
from ..capture import capture
from ..data import Accuracy, EpisodeSampler, MetaDataset
from ..errors import ArgumentError
from ..parallel import ALONE, Ranks, sum_tasks
from ..runs.loop import Record
from ..transforms import value_and_grad
from ..trees import tree_map
from .config import Config
from .method import Array, HParams, Method


class FewShot:
    """The problem that `runs.loop.train` trains.

    Args: config: the run's configuration; data: its data set, whose train and validation splits are used; ranks: the processes that share
        the episodes; several of them only with `per_episode`.
    Raises: DataError if the episodes do not fit the data.
    """

    def __init__(self, config: Config, data: MetaDataset, ranks: Ranks = ALONE) -> None:
        self.config, self.method, self.data = config, config.sized_method(data.train.n_classes), data
        self.ranks = ranks
        train, validation = (sampler(config, split.on(config.device)) for split in (data.train, data.validation))
        train = replace(train, meta_batch=1) if config.per_episode else train
        self.train, self.validation = self.method.samplers(train, validation)
        self._phase, self._gradient = self._objective(self.method)

    def _objective(self, method: Method) -> tuple[Method, Callable[..., Any]]:
        """A method, and the gradient of its meta-loss."""
        gradient = value_and_grad(method.meta_loss, has_aux=True)
        return method, capture(gradient) if self.config.graphs and method.recordable else gradient

    @property
    def description(self) -> str:
        """Of the data set."""
        return self.data.describe()

    @property
    def metadata(self) -> Record:
        """What the images are that the model was trained for, and how many classes they had."""
        return {"image_shape": list(self.data.image_shape), "train_classes": self.data.train.n_classes}

    def init(self) -> HParams:
        """Hyperparameters to start from, on the configuration's device. Cost: one draw a parameter."""
        network = self.config.network
        drawn = self.method.init(self.config.seed, self.data.image_shape, network.filters, network.blocks)
        return {name: place(value, self.config.device) for name, value in drawn.items()}

    def gradient(self, hparams: HParams, iteration: int) -> tuple[Array, HParams, Mapping[str, Any]]:
        """Loss, hypergradient and accuracy of a meta-batch; replayed if `graphs` is set. Cost: one meta-step.

        With `per_episode`, the processes share the episodes. The gradients are added up in the order of the episodes.
        """
        phase = self.method.during(iteration / self.config.training.iterations)
        if phase != self._phase:
            self._phase, self._gradient = self._objective(phase)
        if not self.config.per_episode:
            (loss, accuracies), grad = self._gradient(hparams, self.train.batch(iteration))
            return loss, grad, {"accuracy": accuracies.mean()}
        count = self.config.episodes.meta_batch

        def of_episode(i: int) -> tuple[Array, Array, HParams]:
            (loss, accuracies), grad = self._gradient(hparams, self.train.batch(iteration * count + i))
            return loss, accuracies.mean(), grad

        sums = sum_tasks(of_episode, count, self.ranks)
        loss, accuracy, grad = tree_map(lambda x: backend_of(x).xp.asarray(x / count), sums)
        return loss, grad, {"accuracy": accuracy}

    def metrics(self, hparams: HParams) -> Record:
        """The method's own, such as a learned step size. Cost: O(1)."""
        return self.method.metrics(hparams)

    def validate(self, hparams: HParams) -> tuple[float, Record]:
        """Mean accuracy on the fixed meta-validation episodes. Cost: `eval_episodes` episodes."""
        count, steps = self.config.evaluation.eval_episodes, self.method.usual_steps
        found = evaluate(self.method, hparams, self.validation, count, [steps], graphs=self.config.graphs, ranks=self.ranks)
        accuracy = found.accuracy(steps)
        numbers = {"loss": found.loss(steps), "accuracy": accuracy.mean, "interval": accuracy.interval}
        return accuracy.mean, {f"validation_{name}": value for name, value in numbers.items()}


def sampler(config: Config, split: Any) -> EpisodeSampler:
    """The seeded sampler of a split's episodes with the configuration's sizes. Raises: DataError if they do not fit. Cost: O(1)."""
    return EpisodeSampler(split, seed=config.seed, **vars(config.episodes))


@dataclass(frozen=True)
class Evaluation:
    """Every episode's result. Args: steps: numbers of inner steps; losses, accuracies: (n_episodes, len(steps))."""

    steps: tuple[int, ...]
    losses: Array
    accuracies: Array

    def accuracy(self, n_steps: int) -> Accuracy:
        """Over the episodes after `n_steps` inner steps, which must be one of `steps`."""
        return Accuracy.of(self.accuracies[:, self.steps.index(n_steps)])

    def loss(self, n_steps: int) -> float:
        """Mean query loss over the episodes after `n_steps` inner steps."""
        return float(np.mean(self.losses[:, self.steps.index(n_steps)]))

    def best_steps(self) -> int:
        """The number of inner steps with the highest mean accuracy, the smallest of equals."""
        return self.steps[int(np.argmax(self.accuracies.mean(axis=0)))]


def evaluate(
    method: Method,
    hparams: Mapping[str, Any],
    episodes: Any,
    n_episodes: int,
    steps: Sequence[int],
    progress: Callable[[int], None] | None = None,
    graphs: bool = True,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Accuracy on the first `n_episodes` episodes after each number of inner steps in `steps`.

    Args:
        method: with the options of the run.
        hparams: of `Method.init`.
        episodes: a sampler; batch(i) gives the i-th meta-batch, and batches 0, 1, ... are read until there are enough.
        n_episodes: >= 1.
        steps: numbers of inner steps, in any order.
        progress: called with the number of episodes just finished.
        graphs: record the work on a meta-batch and replay it for the others; see `capture`.
        ranks: the processes that share the meta-batches; the result is the same in all, and for any number.
    Returns: an Evaluation with `steps` sorted.
    Raises: ArgumentError if there is no episode or no number of steps.
    Cost: that of `Method.evaluate` on n_episodes episodes.
    """
    ordered = tuple(sorted(set(steps)))
    if n_episodes < 1 or not ordered or ordered[0] < 0:
        raise ArgumentError(
            f"evaluate: n_episodes is {n_episodes} and steps {list(steps)}, expected at least one episode and "
            "numbers of steps >= 0; pass for instance n_episodes=600, steps=[5]"
        )
    sweep: Callable[..., Any] = partial(method.evaluate, steps=ordered)
    sweep = capture(sweep) if graphs else sweep
    rows = getattr(episodes, "meta_batch", None) or len(sweep(hparams, episodes.batch(0))[0])
    found: list[tuple[Array, Array]] = []
    for index in ranks.share(-(-n_episodes // rows)):
        losses, accuracies = sweep(hparams, episodes.batch(index))
        found.append((to_host(losses), to_host(accuracies)))
        if progress is not None:
            progress(min(rows, n_episodes - index * rows) * ranks.size)
    joined = (np.concatenate(part)[:n_episodes] for part in zip(*ranks.gather(found), strict=True))
    return Evaluation(ordered, *joined)
