"""The head: linear layer and cross-entropy in one op."""

from __future__ import annotations

from functools import partial

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
