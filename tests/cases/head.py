"""The head: linear layer and cross-entropy in one op."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from checks import Array, Case

import hypergrad as hg

CASES: list[Case] = []


def head_reference(x: Array, w: Array, bias: Array, labels: Array) -> Array:
    z = np.matmul(x, w) + (bias if bias.ndim == 1 else bias[:, None, :])
    total = np.log(np.sum(np.exp(z), axis=-1))
    return total - np.take_along_axis(z, labels[..., None].astype(int), axis=-1)[..., 0]


for _name, _x, _w, _bias in (
    ("one example", (1, 3), (3, 2), (2,)),
    ("rows", (5, 7), (7, 4), (4,)),
    ("one feature, 6 classes", (4, 1), (1, 6), (6,)),
    ("no feature", (2, 0), (0, 3), (3,)),
    ("one class", (3, 2), (2, 1), (1,)),
    ("no example", (0, 3), (3, 2), (2,)),
    ("5 episodes of none", (5, 0, 3), (3, 2), (2,)),
    ("17 classes, 33 features", (3, 33), (33, 17), (17,)),
    ("episodes, shared", (3, 4, 5), (5, 3), (3,)),
    ("episodes, own weights", (3, 2, 5), (3, 5, 4), (3, 4)),
    ("episodes, own bias", (2, 3, 5), (5, 4), (2, 4)),
    ("episodes, own weights, shared bias", (2, 3, 9), (2, 9, 5), (5,)),
    ("67 rows", (67, 9), (9, 5), (5,)),
):
    _labels = np.random.default_rng(4).integers(0, _w[-1], _x[:-1])
    CASES.append(
        Case(
            f"linear_cross_entropy[{_name}]",
            partial(lambda x, w, b, labels: hg.linear_cross_entropy(x, w, b, labels), labels=_labels.astype(np.uint8)),
            partial(head_reference, labels=_labels),
            (_x, _w, _bias),
        )
    )


def descended(x: Array, w: Array, bias: Array, lr: Array, labels: Array, n_steps: int) -> Array:
    """The weights and biases of each episode after the steps, in one array."""
    episodes = labels.shape[0] if labels.ndim == 2 else 1
    features, index = x.reshape(episodes, *x.shape[-2:]), labels.reshape(episodes, -1)
    weights = [w if w.ndim == 2 else w[e] for e in range(episodes)]
    biases = [bias if bias.ndim == 1 else bias[e] for e in range(episodes)]
    for e in range(episodes):
        rate = (lr if lr.ndim == 0 else lr[e]) / x.dtype.type(features.shape[1])
        for _ in range(n_steps):
            p = np.exp(features[e] @ weights[e] + biases[e])
            p /= p.sum(-1, keepdims=True)
            p[np.arange(len(p)), index[e]] -= 1
            weights[e], biases[e] = weights[e] - rate * (features[e].T @ p), biases[e] - rate * p.sum(0)
    return np.concatenate([a.ravel() for a in (*weights, *biases)])


def descent_case(name: str, x: Any, w: Any, bias: Any, lr: Any, n_steps: int) -> Case:
    """Steps of a head; their results are joined in one Tensor."""
    labels = np.random.default_rng(5).integers(0, w[-1], x[:-1])

    def f(x: Any, w: Any, bias: Any, lr: Any) -> hg.Tensor:
        return hg.concatenate([hg.reshape(y, -1) for y in hg.linear_head_descent(x, w, bias, labels, lr, n_steps)])

    def make(rng: np.random.Generator) -> list[Array]:
        size = max(x[-1], 1)  # logits are of order one, and so is the step size times the curvature
        rates = rng.uniform(0.3, 0.9, lr) * min(1, 8 / size)
        return [rng.uniform(-1.5, 1.5, x), rng.uniform(-1.5, 1.5, w) / np.sqrt(size), rng.uniform(-1, 1, bias), rates]

    reference = partial(descended, labels=labels, n_steps=n_steps)
    return Case(f"linear_head_descent[{name}]", f, reference, (x, w, bias, lr), make=make)


CASES += [
    descent_case("one example", (1, 3), (3, 2), (2,), (), 2),
    descent_case("rows", (5, 4), (4, 3), (3,), (), 3),
    descent_case("no step", (3, 2), (2, 2), (2,), (), 0),
    descent_case("no feature, one class", (2, 0), (0, 1), (1,), (1,), 1),
    descent_case("episodes, shared", (3, 4, 5), (5, 3), (3,), (), 2),
    descent_case("episodes, own", (2, 3, 5), (2, 5, 4), (2, 4), (2,), 2),
    descent_case("more examples than the kernels take", (129, 2), (2, 2), (2,), (), 1),
]
