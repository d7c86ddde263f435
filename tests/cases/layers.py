"""Losses and layers, each against its formula."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from checks import Array, Case

import hypergrad as hg
from cases.reductions import naive_logsumexp, naive_softmax

CASES: list[Case] = []


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def log_softmax(x: Array) -> Array:
    return x - naive_logsumexp(x, -1, True)


def huber(x: Array, y: Array, delta: Array) -> Array:
    d = np.abs(x - y)
    return np.where(d <= delta, d * d / 2, delta * (d - delta / 2))


def probabilities(rng: np.random.Generator) -> list[Array]:
    p = rng.uniform(0.1, 1, (2, 3))
    return [rng.uniform(-1.5, 1.5, (2, 3)), p / p.sum(-1, keepdims=True)]


def smoothed(z: Array, p: Array, s: Array) -> Array:
    return -np.sum(((1 - s) * p + s / 3) * log_softmax(z), -1)


_labels = np.array([2, 0])


def signed(rng: np.random.Generator) -> list[Array]:
    """Scores and classes whose products are at least 0.1 away from 1."""
    x = rng.choice([-0.5, 0.5, 1.5], 4) + rng.uniform(0, 0.3, 4)
    return [x, np.array([1.0, -1.0, 1.0, -1.0])]


CASES += [
    Case("mse_loss", hg.mse_loss, lambda x, y: np.mean((x - y) ** 2), ((2, 3), (2, 3))),
    Case(
        "huber_loss",
        lambda x, y, d: hg.huber_loss(x, y, d),
        huber,
        ((4,), (4,), ()),
        make=lambda rng: [rng.uniform(0, 0.3, 4) + [0.2, 1.2, -0.6, -2.0], rng.uniform(0, 0.1, 4), np.array(0.8)],
    ),
    Case("hinge_loss", lambda x, y: hg.hinge_loss(x, y), lambda x, y: np.maximum(0, 1 - x * y), ((4,), (4,)), make=signed),
    Case(
        "binary_cross_entropy_with_logits",
        hg.binary_cross_entropy_with_logits,
        lambda z, y: -y * np.log(sigmoid(z)) - (1 - y) * np.log(1 - sigmoid(z)),
        ((3,), (3,)),
        0.1,
        0.9,
    ),
    Case("cross_entropy[soft]", hg.cross_entropy, lambda z, p: smoothed(z, p, 0 * z.dtype.type(0)), ((2, 3),) * 2, make=probabilities),
    Case(
        "cross_entropy[labels, smoothing]",
        lambda z, s: hg.cross_entropy(z, _labels, label_smoothing=s),
        lambda z, s: smoothed(z, np.eye(3, dtype=z.dtype)[_labels], s),
        ((2, 3), ()),
        0.1,
        0.5,
    ),
    Case(
        "kl_divergence", hg.kl_divergence, lambda x, y: np.sum(naive_softmax(x) * (log_softmax(x) - log_softmax(y)), -1), ((2, 3), (2, 3))
    ),
]


def normalised(axes, x: Array, gamma: Array | None = None, beta: Array | None = None) -> Array:
    d = x - x.mean(axes, keepdims=True)
    y = d / np.sqrt((d * d).mean(axes, keepdims=True) + x.dtype.type(1e-5))
    return y if gamma is None else y * gamma + beta


def grouped(x: Array, gamma: Array, beta: Array) -> Array:
    return normalised((1, 2, 4), x.reshape(2, 2, 1, 2, 2)).reshape(x.shape) * gamma + beta


def attention(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.dtype.type(q.shape[-1]))
    return naive_softmax(scores if mask is None else np.where(mask, scores, -1e30)) @ v


def lstm(x: Array, h: Array, c: Array, w: Array, u: Array, bias: Array) -> Array:
    i, f, g, o = np.split(x @ w + h @ u + bias, 4, -1)
    cell = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return np.concatenate([sigmoid(o) * np.tanh(cell), cell], -1)


def gru(x: Array, h: Array, w: Array, u: Array, b: Array, b_h: Array) -> Array:
    (r, z, n), (r_h, z_h, n_h) = np.split(x @ w + b, 3, -1), np.split(h @ u + b_h, 3, -1)
    s = sigmoid(z + z_h)
    return (1 - s) * np.tanh(n + sigmoid(r + r_h) * n_h) + s * h


_mask = np.array([[True, False, True], [True, True, False]])
CASES += [
    Case("layer_norm[plain]", hg.layer_norm, partial(normalised, -1), ((2, 4),)),
    Case("layer_norm[affine]", partial(hg.layer_norm, axis=(1, 2)), partial(normalised, (1, 2)), ((2, 2, 2), (2,), (2, 2))),
    Case("instance_norm", hg.instance_norm, partial(normalised, (1, 2)), ((2, 2, 2, 2), (2,), (2,))),
    Case("group_norm", lambda x, g, b: hg.group_norm(x, 2, g, b), grouped, ((2, 2, 1, 4), (4,), (4,))),
    Case("embedding", lambda t: hg.embedding(t, _labels), lambda t: t[_labels], ((3, 2),), exact=True),
    Case("scaled_dot_product_attention[all]", hg.scaled_dot_product_attention, attention, ((2, 2, 2), (3, 2), (3, 2))),
    Case(
        "scaled_dot_product_attention[mask]",
        lambda q, k, v: hg.scaled_dot_product_attention(q, k, v, _mask),
        partial(attention, mask=_mask),
        ((2, 2), (3, 2), (3, 1)),
    ),
    Case(
        "lstm_cell",
        lambda *args: hg.concatenate(hg.lstm_cell(*args), -1),
        lstm,
        ((2, 3), (2, 2), (2, 2), (3, 8), (2, 8), (8,)),
    ),
    Case(
        "lstm_cell[one product]",
        lambda x, h, c, w, bias: hg.concatenate(hg.lstm_cell(x, h, c, w, bias=bias), -1),
        lambda x, h, c, w, bias: lstm(x, h, c, w[:3], w[3:], bias),
        ((2, 3), (2, 2), (2, 2), (5, 8), (8,)),
    ),
    Case("gru_cell", hg.gru_cell, gru, ((2, 3), (2, 2), (3, 6), (2, 6), (6,), (6,))),
    Case("dropout[generator]", lambda x: hg.dropout(x, np.random.default_rng(3), rate=0.5),
         lambda x: x * (np.random.default_rng(3).random(x.shape) >= 0.5) * 2, ((5, 3),), exact=True),
]  # fmt: skip

CASES = [replace(case, composed=True) for case in CASES]
