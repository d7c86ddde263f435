"""Two meta-learning steps that hypergrad and its peers compute from the same arrays: sizes, data, and hypergrad's own version.

Hyper-representation (Franceschi et al. 2017): the filters of four blocks of [3x3 convolution, batch normalization by the
batch's own statistics, ReLU, 2x2 max-pool] and the step size are hyperparameters; per episode a logistic regression is
trained from zero on the support features by T gradient steps. MAML (Finn et al. 2017), second order: T gradient steps move
the whole network from its meta-learned start. Both return the mean query loss and its gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

PROBLEMS = ("hyper-representation", "maml")
EPS = 1e-5  # of batch normalization
Arrays = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """Sizes of a meta-batch and its network; the defaults are those of 5-way 1-shot MiniImagenet."""

    episodes: int = 4
    ways: int = 5
    shots: int = 1
    queries: int = 15
    side: int = 84
    channels: int = 3
    filters: int = 32
    blocks: int = 4
    steps: int = 5

    @property
    def features(self) -> int:
        """Components of the representation."""
        return (self.side >> self.blocks) ** 2 * self.filters


TINY = Sizes(episodes=2, ways=3, queries=2, side=16, filters=4, blocks=3, steps=2)
SANITIZED = Sizes(episodes=2, ways=3, queries=2, side=16, filters=36, blocks=3, steps=2)  # filters: more than a tile, no whole chunks
INNER_STEP = 0.01  # of MAML, as published for MiniImagenet; fixed


def make_data(sizes: Sizes, dtype: Any, seed: int = 0) -> Arrays:
    """Images (E, N, H, W, C) in [0, 1] and labels (E, N) of the support and query sets."""
    rng = np.random.default_rng(seed)

    def images(n: int) -> Any:
        means = rng.random((sizes.episodes, sizes.ways, 1, sizes.side, sizes.side, sizes.channels))
        noisy = 0.6 * means + 0.4 * rng.random((sizes.episodes, sizes.ways, n, sizes.side, sizes.side, sizes.channels))
        return noisy.reshape(sizes.episodes, -1, *noisy.shape[3:]).astype(dtype)

    def labels(n: int) -> Any:
        return np.tile(np.repeat(np.arange(sizes.ways), n), (sizes.episodes, 1))

    return {
        "support": images(sizes.shots),
        "query": images(sizes.queries),
        "support_labels": labels(sizes.shots),
        "query_labels": labels(sizes.queries),
    }


def make_params(problem: str, sizes: Sizes, dtype: Any, seed: int = 1) -> Arrays:
    """What the gradient is taken by: w{i} (3, 3, C, K), gamma{i}, beta{i} (K,) and either lr () or head (D, ways), bias (ways,)."""
    rng = np.random.default_rng(seed)
    out: Arrays = {}
    channels = sizes.channels
    for i in range(sizes.blocks):
        limit = np.sqrt(6.0 / (9 * channels + 9 * sizes.filters))
        last = i == sizes.blocks - 1  # small features keep the inner step size of the logistic regression a stable one
        out[f"w{i}"] = rng.uniform(-limit, limit, (3, 3, channels, sizes.filters))
        out[f"gamma{i}"] = (0.3 if last else 1.0) + 0.1 * rng.standard_normal(sizes.filters)
        out[f"beta{i}"] = (-0.1 if last else 0.0) + 0.1 * rng.standard_normal(sizes.filters)
        channels = sizes.filters
    if problem == "maml":
        out["head"] = rng.standard_normal((sizes.features, sizes.ways)) / np.sqrt(sizes.features)
        out["bias"] = np.zeros(sizes.ways)
    else:
        out["lr"] = np.asarray(0.1)
    return {name: np.asarray(a, dtype) for name, a in out.items()}


class Step(Protocol):
    """One meta-step, prepared: its arrays are on the device."""

    def run(self) -> Any:
        """Queues the step and returns what `result` reads."""

    def wait(self) -> None:
        """Returns when everything queued is done."""

    def result(self, out: Any) -> tuple[float, Arrays]:
        """The loss, and the gradient as NumPy arrays in the shapes of `make_params`."""

    def peak_bytes(self) -> int | None:
        """The most bytes of arrays held on the device so far, counted by the framework; None where it does not count."""


# A variant makes a Step of (problem, sizes, dtype, data, params, device, tf32); sizes are Sizes, or RunSizes of run_problems.py.
Variant = Callable[[str, Any, str, Arrays, Arrays, str, bool], Step]


class Unsupported(RuntimeError):
    """This version, or this machine, has no such variant."""
