"""hypergrad's own versions of the hypergradients through a long run."""

from __future__ import annotations

from typing import Any

import numpy as np
from meta_problems import Arrays
from run_problems import CLEANING_STEP, RunSizes

import hypergrad as hg


class _Minibatches:
    """The batch of step t."""

    def __init__(self, data: Arrays) -> None:
        self.x, self.y, self.rows = data["x"], data["y"], data["rows"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, t: int) -> tuple[Any, Any]:
        return self.x[self.rows[t]], self.y[self.rows[t]]


def hyper_cleaning(sizes: RunSizes, data: Arrays) -> tuple[hg.Bilevel, Any]:
    """(problem, batches) of the hyperparameters {weights}."""
    dtype = data["x"].dtype
    zero = np.zeros(sizes.classes, dtype)

    def inner_loss(w: Any, hparams: Any, batch: Any) -> Any:
        return hg.mean(hg.sigmoid(hparams["weights"]) * hg.linear_cross_entropy(data["x"], w, zero, data["y"]))

    problem = hg.Bilevel(
        inner_loss,
        outer_loss=lambda w, hparams: hg.mean(hg.linear_cross_entropy(data["x_val"], w, zero, data["y_val"])),
        init=lambda hparams: np.zeros((sizes.features, sizes.classes), dtype),
        optimizer=lambda hparams: hg.SGD(lr=CLEANING_STEP),
    )
    return problem, hg.full_batch(None, sizes.steps)


def three_scalars(sizes: RunSizes, data: Arrays) -> tuple[hg.Bilevel, Any]:
    """(problem, batches) of the hyperparameters {lr, momentum, decay}."""

    def loss(w: Any, x: Any, y: Any) -> Any:
        hidden = hg.relu(hg.linear(x, w["weight0"], w["bias0"]))
        return hg.mean(hg.linear_cross_entropy(hidden, w["weight1"], w["bias1"], y))

    problem = hg.Bilevel(
        lambda w, hparams, batch: loss(w, *batch),
        outer_loss=lambda w, hparams: loss(w, data["x_val"], data["y_val"]),
        init=lambda hparams: {name: data[name] for name in ("weight0", "bias0", "weight1", "bias1")},
        optimizer=lambda h: hg.SGD(lr=h["lr"], momentum=h["momentum"], weight_decay=h["decay"]),
    )
    return problem, _Minibatches(data)


def value_and_grad(problem: str, sizes: RunSizes, data: Arrays, mode: str) -> Any:
    """params -> (loss, gradient), forward or in reverse with the checkpoints that `mode` names."""
    bilevel, batches = (hyper_cleaning if problem == "hyper-cleaning" else three_scalars)(sizes, data)

    def run(params: Arrays) -> tuple[Any, Any]:
        found = hg.forward(bilevel, params, batches) if mode == "forward" else hg.reverse(bilevel, params, batches, checkpoints=mode)
        return found.value, found.grad

    return run
