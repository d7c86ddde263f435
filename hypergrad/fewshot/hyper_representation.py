"""Hyper-representation: filters are hyperparameters, a logistic regression is trained on top per episode.

min over lambda of mean_e E_e(w_T(lambda), lambda), where w_T is reached from zero by T gradient steps on the
cross-entropy of episode e's support examples and E_e is the cross-entropy of its query examples
(Franceschi et al. 2017, "A bridge between hyperparameter optimization and learning-to-learn",
arXiv:1712.06283).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..backends import backend_of, to_host
from ..bilevel import full_batch
from ..capture import capture
from ..data import Episodes
from ..errors import ArgumentError
from ..ops import exp, linear_cross_entropy, matmul, mean, reshape, sqrt
from ..ops import sum as sum_
from ..optimizers import SGD
from ..passes.unroll import unroll
from ..tape import Tensor
from .network import feature_size, features, init_network

Array = NDArray[Any]
HParams = dict[str, Array]
STEP_SIZE = "inner.step_size"
LOG_STEP_SIZE = "inner.log_step_size"
SMALLEST_SQUARE = 1e-12  # keeps the derivative of the norm finite where all features are zero


class Sampler(Protocol):
    """batch(i) -> the i-th meta-batch of episodes, a pure function of i."""

    def batch(self, index: int) -> Any: ...


@dataclass(frozen=True)
class HyperRepresentation:
    """The method and its options; every option is part of a run's configuration.

    Args:
        n_way: classes of an episode.
        n_steps: T, gradient steps of the ground model in meta-training.
        step_size: initial step size of the ground model; learned together with the filters.
        log_step_size: learn the logarithm of the step size, so that it stays positive and moves by factors.
        centred: subtract the mean feature of the support set from support and query features. ReLU features
            share a large common component, which makes the logistic regression badly conditioned; the mean
            uses no query image. False is the published protocol.
        normalized: divide both by the root mean square norm of the support features, after centring. The
            stable step sizes then do not depend on the number or the scale of the features.
        statistics: "separate": batch statistics of the support set for support images and of the query set
            for query images, as published; "joint": of both together.
        last_gamma, last_beta: initial scale and shift of the last block's normalization. Small features keep
            the published inner step size of 0.1 below the edge of stability of gradient descent, 2 over the
            largest curvature; the paper leaves the initial values open.
    Source: Franceschi et al. 2017, arXiv:1712.06283, section 4.
    """

    n_way: int = 5
    n_steps: int = 5
    step_size: float = 0.1
    log_step_size: bool = False
    centred: bool = True
    normalized: bool = False
    statistics: Literal["separate", "joint"] = "separate"
    last_gamma: float = 1.0
    last_beta: float = 0.0

    def init(self, seed: int, image_shape: Sequence[int], filters: int, blocks: int = 4, dtype: DTypeLike = np.float32) -> HParams:
        """Hyperparameters to start from: the network's parameters and the step size in one flat dictionary.

        Args: seed: of the draw; image_shape: (H, W, C); filters, blocks: of the network; dtype: float32 or float64.
        Returns: the dictionary of `init_network` with "inner.step_size" or "inner.log_step_size", shape ().
        Raises: ShapeError if the images are too small for the network.
        Cost: one draw a parameter.
        """
        height, width, channels = image_shape
        feature_size(height, width, filters, blocks)
        hparams = init_network(seed, channels, filters, blocks, dtype, self.last_gamma, self.last_beta)
        if self.log_step_size:
            hparams[LOG_STEP_SIZE] = np.asarray(np.log(self.step_size), dtype)
        else:
            hparams[STEP_SIZE] = np.asarray(self.step_size, dtype)
        return hparams

    def current_step_size(self, hparams: Mapping[str, Any]) -> float:
        """The step size that `hparams` (arrays) hold. Cost: O(1)."""
        value = to_host(hparams[LOG_STEP_SIZE if self.log_step_size else STEP_SIZE])
        return float(np.exp(value) if self.log_step_size else value)

    def represent(self, hparams: Mapping[str, Any], episodes: Episodes) -> tuple[Tensor, Tensor]:
        """Features of the support images (E, S, D) and of the query images (E, Q, D).

        Args: hparams: of `init`, arrays or Tensors; episodes: E episodes.
        Returns: two Tensors. Cost: one forward run of the network.
        """
        if self.statistics == "joint":
            count = episodes.support.shape[1]
            images = [episodes.support, episodes.query]
            both = features(hparams, backend_of(*images).concatenate(images, 1))
            support, query = both[:, :count], both[:, count:]
        else:
            support = features(hparams, episodes.support)
            query = features(hparams, episodes.query)
        if self.centred:
            centre = mean(support, axis=1, keepdims=True)
            support, query = support - centre, query - centre
        if self.normalized:
            squares = sum_(support * support, axis=-1, keepdims=True)
            norm = sqrt(mean(squares, axis=1, keepdims=True) + SMALLEST_SQUARE)
            support, query = support / norm, query / norm
        return support, query

    def adapt(self, hparams: Mapping[str, Any], w: Any, support: Any, labels: Array, n_steps: int) -> Any:
        """The ground model's parameters after `n_steps` further gradient steps from `w`.

        Args: w: of `zero_model` or of an earlier call; support: (E, S, D); labels: (E, S) integers.
        Returns: {"weight": (E, D, n_way), "bias": (E, 1, n_way)}: Tensors that depend differentiably
            on `hparams`, `w` and `support`.
        Cost: 4*E*S*D*n_way flop a step.
        """
        optimizer = SGD(lr=exp(hparams[LOG_STEP_SIZE]) if self.log_step_size else hparams[STEP_SIZE])
        return unroll(inner_loss, w, {"features": support}, full_batch(labels, n_steps), optimizer=optimizer)

    def zero_model(self, support: Any) -> dict[str, Array]:
        """The ground model of zeros for features (E, S, D), a Tensor, on their device. Cost: O(E*D*n_way)."""
        episodes, _, size = support.shape
        xp = backend_of(support.value).xp
        return {"weight": xp.zeros((episodes, size, self.n_way), support.dtype), "bias": xp.zeros((episodes, 1, self.n_way), support.dtype)}

    def meta_loss(self, hparams: Mapping[str, Any], episodes: Episodes) -> tuple[Tensor, Array]:
        """The outer objective of one meta-batch: mean query cross-entropy after T inner steps.

        Args: hparams: of `init`, arrays or Tensors; episodes: E episodes of `n_way` classes.
        Returns: (loss, accuracy): a scalar Tensor and the E query accuracies, an array (E,).
        Cost: one forward run of the network and T inner steps; its gradient one reverse pass over both.
        """
        support, query = self.represent(hparams, episodes)
        w = self.adapt(hparams, self.zero_model(support), support, episodes.support_labels, self.n_steps)
        loss = mean(ground_losses(w, query, episodes.query_labels))
        return loss, accuracy(w, query, episodes.query_labels)

    def sweep(self, hparams: Mapping[str, Any], episodes: Episodes, steps: Sequence[int]) -> tuple[Array, Array]:
        """Query loss and accuracy after each number of inner steps in `steps`, in one run.

        Args: steps: increasing numbers of steps, >= 0.
        Returns: losses and accuracies, each (E, len(steps)).
        Cost: one forward run of the network and max(steps) inner steps.
        """
        support, query = self.represent(hparams, episodes)
        w: Any = self.zero_model(support)
        losses, accuracies, done = [], [], 0
        for n_steps in steps:
            if n_steps > done:  # plain gradient descent has no state but w, so a run can be continued from it
                w, done = self.adapt(hparams, w, support, episodes.support_labels, n_steps - done), n_steps
            losses.append(mean(ground_losses(w, query, episodes.query_labels), axis=-1).value)
            accuracies.append(accuracy(w, query, episodes.query_labels))
        join = backend_of(*losses).concatenate
        return join([a[:, None] for a in losses], 1), join([a[:, None] for a in accuracies], 1)


def inner_loss(w: Any, hparams: Any, labels: Array) -> Tensor:
    """The ground model's training loss: cross-entropy on the support set, summed over episodes.

    A sum and not a mean over episodes, so that every episode's gradient, and its step size, is that of its
    own loss.

    Args:
        w: {"weight": (E, D, n_way), "bias": (E, 1, n_way)}.
        hparams: {"features": (E, S, D)}.
        labels: (E, S).
    Returns: a scalar Tensor. Cost: 2*E*S*D*n_way flop.
    """
    total: Tensor = sum_(ground_losses(w, hparams["features"], labels)) * (1.0 / labels.shape[-1])
    return total


def ground_losses(w: Any, inputs: Any, labels: Array) -> Tensor:
    """Cross-entropies (E, N) of the ground model `w` on features (E, N, D). Cost: 2*E*N*D*n_way flop."""
    episodes, _, n_way = w["bias"].shape
    return linear_cross_entropy(inputs, w["weight"], reshape(w["bias"], (episodes, n_way)), labels)


def accuracy(w: Any, inputs: Tensor, labels: Array) -> Array:
    """Share of right answers of the ground model per episode, off the tape.

    Args: w: as in `inner_loss`, arrays or Tensors; inputs: (E, N, D); labels: (E, N). Returns: float64 (E,).
    Cost: 2*E*N*D*n_way flop.
    """
    weight, bias = (p.value if isinstance(p, Tensor) else p for p in (w["weight"], w["bias"]))
    logits = (matmul(inputs.value, weight) + bias).value
    hits: Array = (logits.argmax(axis=-1) == labels).mean(axis=-1)
    return hits


@dataclass(frozen=True)
class Evaluation:
    """Losses and accuracies of every episode, (n_episodes, len(steps)), for each number of inner steps."""

    steps: tuple[int, ...]
    losses: Array
    accuracies: Array

    def mean(self, n_steps: int) -> float:
        """Mean accuracy over the episodes after `n_steps` inner steps, which must be one of `steps`."""
        return float(np.mean(self.accuracies[:, self.steps.index(n_steps)]))

    def loss(self, n_steps: int) -> float:
        """Mean query loss over the episodes after `n_steps` inner steps."""
        return float(np.mean(self.losses[:, self.steps.index(n_steps)]))

    def interval(self, n_steps: int) -> float:
        """Half width of the 95% interval of the mean: 1.96 * std / sqrt(n_episodes)."""
        return interval(self.accuracies[:, self.steps.index(n_steps)])

    def best_steps(self) -> int:
        """The number of inner steps with the highest mean accuracy, the smallest of equals."""
        return self.steps[int(np.argmax(self.accuracies.mean(axis=0)))]


def interval(accuracies: Array) -> float:
    """Half width of the 95% interval of a mean, 1.96 * std / sqrt(n). Args: accuracies: (n,). Cost: O(n)."""
    return float(1.96 * np.std(accuracies) / np.sqrt(len(accuracies)))


def evaluate(
    method: HyperRepresentation,
    hparams: Mapping[str, Any],
    sampler: Sampler,
    n_episodes: int,
    steps: Sequence[int],
    progress: Callable[[int], None] | None = None,
    graphs: bool = True,
) -> Evaluation:
    """Accuracy on the first `n_episodes` episodes of `sampler` after each number of inner steps in `steps`.

    Args:
        method: the options of the run.
        hparams: of `HyperRepresentation.init`.
        sampler: batch(i) gives a meta-batch; batches 0, 1, ... are read until there are enough episodes.
        n_episodes: >= 1.
        steps: numbers of inner steps, in any order.
        progress: called with the number of episodes just finished.
        graphs: on a GPU, record the work on one meta-batch as a CUDA graph and replay it for the others.
    Returns: an Evaluation with `steps` sorted.
    Raises: ArgumentError if there is no episode or no number of steps.
    Cost: n_episodes forward runs of the network, each with max(steps) inner steps.
    """
    ordered = tuple(sorted(set(steps)))
    if n_episodes < 1 or not ordered or ordered[0] < 0:
        raise ArgumentError(
            f"evaluate: n_episodes is {n_episodes} and steps {list(steps)}, expected at least one episode and "
            "numbers of steps >= 0; pass for instance n_episodes=600, steps=[5]"
        )
    losses: list[Array] = []
    accuracies: list[Array] = []
    done = index = 0

    def work(hparams: Any, batch: Episodes) -> tuple[Array, Array]:
        return method.sweep(hparams, batch, ordered)

    sweep = capture(work) if graphs else work
    while done < n_episodes:
        batch_losses, batch_accuracies = sweep(hparams, sampler.batch(index))
        losses.append(to_host(batch_losses))
        accuracies.append(to_host(batch_accuracies))
        fresh = min(len(batch_losses), n_episodes - done)
        done, index = done + fresh, index + 1
        if progress is not None:
            progress(fresh)
    return Evaluation(ordered, np.concatenate(losses)[:n_episodes], np.concatenate(accuracies)[:n_episodes])
