"""Two hypergradients through a long inner run that hypergrad and its peers compute from the same arrays: sizes and data.

Hyper-cleaning (Franceschi et al. 2017): a logistic regression without a bias descends from zero by full batches. Its loss weights
each training example by the sigmoid of a hyperparameter; three in ten labels are drawn anew. Three scalars: a network with
one hidden layer is trained on minibatches by gradient descent with momentum. Its step size, momentum and weight decay are
the hyperparameters. Both return the validation loss after the last step and its gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from meta_problems import Arrays

PROBLEMS = ("hyper-cleaning", "three-scalars")
CLEANING_STEP = 0.1  # of hyper-cleaning; fixed
SCALARS = {"lr": 0.05, "momentum": 0.9, "decay": 1e-3}


@dataclass(frozen=True)
class RunSizes:
    """Sizes of a run; `hidden` and `batch` are those of the network with three scalars."""

    steps: int = 100
    examples: int = 5000
    features: int = 784
    classes: int = 10
    hidden: int = 300
    batch: int = 128


TINY_RUN = RunSizes(steps=6, examples=60, features=12, classes=3, hidden=5, batch=8)


def make_data(problem: str, sizes: RunSizes, dtype: Any, seed: int = 0) -> Arrays:
    """x (N, D), labels y (N,), the same to validate, and for the network its start and the rows (T, B) of its minibatches."""
    rng = np.random.default_rng(seed)
    means = 0.12 * rng.standard_normal((sizes.classes, sizes.features))
    out: Arrays = {}
    for suffix in ("", "_val"):
        y = rng.integers(0, sizes.classes, sizes.examples)
        out[f"x{suffix}"] = (means[y] + 0.3 * rng.standard_normal((sizes.examples, sizes.features))).astype(dtype)
        out[f"y{suffix}"] = y
    if problem == "hyper-cleaning":
        wrong = rng.random(sizes.examples) < 0.3
        out["y"] = np.where(wrong, rng.integers(0, sizes.classes, sizes.examples), out["y"])
        return out
    widths = (sizes.features, sizes.hidden, sizes.classes)
    for i, (m, n) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        out[f"weight{i}"] = (rng.standard_normal((m, n)) * np.sqrt((2.0 - i) / m)).astype(dtype)
        out[f"bias{i}"] = np.zeros(n, dtype)
    out["rows"] = rng.integers(0, sizes.examples, (sizes.steps, sizes.batch))
    return out


def make_params(problem: str, sizes: RunSizes, dtype: Any, seed: int = 1) -> Arrays:
    """What the gradient is taken by: weights (N,), or lr, momentum and decay ()."""
    if problem == "three-scalars":
        return {name: np.asarray(value, dtype) for name, value in SCALARS.items()}
    return {"weights": (0.1 * np.random.default_rng(seed).standard_normal(sizes.examples)).astype(dtype)}
