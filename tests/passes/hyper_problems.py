"""Small float64 bilevel problems that the tests of the passes share: (problem, hparams, batches)."""

import numpy as np

import hypergrad as hg


class Minibatches:
    """Minibatches drawn by a generator seeded with (seed, t): pure in t."""

    def __init__(self, x, y, size, n_steps, seed=0):
        self.x, self.y, self.size, self.n_steps, self.seed = x, y, size, n_steps, seed

    def __len__(self):
        return self.n_steps

    def __getitem__(self, t):
        rows = np.random.default_rng((self.seed, t)).integers(0, len(self.x), self.size)
        return self.x[rows], self.y[rows]


def classes(rng, n, d, k):
    """Points of k Gaussian classes, and their labels."""
    y = np.arange(n) % k
    return rng.standard_normal((n, d)) + 1.5 * rng.standard_normal((k, d))[y], y


def hyper_cleaning(n_steps=11, clip=False):
    """A softmax-linear model, full batch, one weight an example: sigmoid, or clipped to [0, 1]."""
    rng = np.random.default_rng(1)
    x, y = classes(rng, 24, 6, 3)
    noisy = np.where(np.arange(18) % 3 == 0, (y[:18] + 1) % 3, y[:18])

    def weights(raw):
        return hg.minimum(hg.maximum(raw, 0.0), 1.0) if clip else hg.sigmoid(raw)

    def inner(w, h, batch):
        losses = hg.softmax_cross_entropy(hg.linear(batch[0], w["w"], w["b"]), batch[1])
        return hg.mean(weights(h["example"]) * losses)

    def outer(w, h):
        return hg.mean(hg.softmax_cross_entropy(hg.linear(x[18:], w["w"], w["b"]), y[18:]))

    problem = hg.Bilevel(inner, outer, lambda h: {"w": np.zeros((6, 3)), "b": np.zeros(3)}, lambda h: hg.SGD(lr=hg.exp(h["log_lr"])))
    hparams = {"example": rng.uniform(-0.3, 1.3, 18) if clip else rng.standard_normal(18), "log_lr": np.float64(-1.0)}
    return problem, hparams, hg.full_batch((x[:18], noisy), n_steps)


def mlp(n_steps=13, activation=hg.tanh):
    """A two-layer network on minibatches, with momentum, weight decay and a weight for each class."""
    rng = np.random.default_rng(2)
    x, y = classes(rng, 60, 5, 3)
    start = {
        "layers": [(0.5 * rng.standard_normal((5, 6)), 0.1 * rng.standard_normal(6)), (0.5 * rng.standard_normal((6, 3)), np.zeros(3))]
    }

    def logits(w, x):
        (w1, b1), (w2, b2) = w["layers"]
        return hg.linear(activation(hg.linear(x, w1, b1)), w2, b2)

    def inner(w, h, batch):
        x, y = batch
        return hg.mean(hg.take(hg.softplus(h["class"]), y) * hg.softmax_cross_entropy(logits(w, x), y))

    def outer(w, h):
        return hg.mean(hg.softmax_cross_entropy(logits(w, x[40:]), y[40:])) + 1e-3 * hg.sum(h["class"] ** 2)

    problem = hg.Bilevel(inner, outer, lambda h: start, lambda h: hg.SGD(lr=h["lr"], momentum=h["momentum"], weight_decay=h["decay"]))
    hparams = {"class": rng.standard_normal(3), "lr": np.float64(0.15), "momentum": np.float64(0.8), "decay": np.float64(0.01)}
    return problem, hparams, Minibatches(x[:40], y[:40], 8, n_steps)


def blocks(rng, channels, filters):
    """Weights of a chain of conv_bn_relu_pool blocks."""
    made = []
    for _ in range(2):
        made.append(
            {
                "w": 0.7 * rng.standard_normal((3, 3, channels, filters)),
                "gamma": rng.uniform(0.7, 1.3, filters),
                "beta": 0.2 * rng.standard_normal(filters),
            }
        )
        channels = filters
    return made


def features(net, x):
    """Two blocks, and what they give as one vector an image."""
    for block in net:
        x = hg.conv_bn_relu_pool(x, block["w"], block["gamma"], block["beta"])
    return hg.reshape(x, (x.shape[0], -1))


def episode(rng, n, channels=1, size=8):
    """Images of two classes that differ by a stripe, in one support and one query set."""
    y = np.arange(n) % 2
    x = rng.standard_normal((n, size, size, channels))
    x[:, :, : size // 2] += 1.5 * y[:, None, None, None]
    return x, y


def maml(n_steps=3):
    """w_0 and the step size are the hyperparameters of a network of two blocks and a linear layer."""
    rng = np.random.default_rng(3)
    support, query = episode(rng, 4), episode(rng, 6)
    w0 = {"blocks": blocks(rng, 1, 2), "w": 0.3 * rng.standard_normal((8, 2)), "b": np.zeros(2)}

    def loss(w, batch):
        x, y = batch
        return hg.mean(hg.softmax_cross_entropy(hg.linear(features(w["blocks"], x), w["w"], w["b"]), y))

    problem = hg.Bilevel(lambda w, h, batch: loss(w, batch), lambda w, h: loss(w, query), lambda h: h["w0"], lambda h: hg.SGD(lr=h["lr"]))
    return problem, {"w0": w0, "lr": np.float64(0.1)}, hg.full_batch(support, n_steps)


def hyper_representation(n_steps=6):
    """Logistic regression from zero on the features of two blocks; the blocks are the hyperparameters.

    The representation stands before the inner problem: Bilevel passes it on through a function that is given the
    hyperparameters, where `unroll` alone would take the features as its own (see test_unroll.py).
    """
    rng = np.random.default_rng(4)
    support, query = episode(rng, 4), episode(rng, 6)

    def inner(w, h, batch):
        x, y = batch
        return hg.mean(hg.softmax_cross_entropy(hg.linear(features(h["blocks"], x), w["w"], w["b"]), y))

    def outer(w, h):
        z = features(h["blocks"], query[0])
        return hg.mean(hg.softmax_cross_entropy(hg.linear(z, w["w"], w["b"]), query[1]))

    problem = hg.Bilevel(inner, outer, lambda h: {"w": np.zeros((8, 2)), "b": np.zeros(2)}, lambda h: hg.SGD(lr=hg.exp(h["log_lr"])))
    return problem, {"blocks": blocks(rng, 1, 2), "log_lr": np.float64(-1.5)}, hg.full_batch(support, n_steps)


def quadratic(size=1, n_steps=10):
    """0.5 * a * |w - b|^2 from w_0, against 0.5 * |w - c|^2: hparams a, b, w0, lr. See `quadratic_exact`."""
    rng = np.random.default_rng(5)
    c = rng.standard_normal(size)
    problem = hg.Bilevel(
        lambda w, h, batch: 0.5 * h["a"] * hg.sum((w - h["b"]) ** 2),
        lambda w, h: 0.5 * hg.sum((w - c) ** 2),
        lambda h: h["w0"],
        lambda h: hg.SGD(lr=h["lr"]),
    )
    hparams = {"a": np.float64(0.7), "b": rng.standard_normal(size), "w0": rng.standard_normal(size), "lr": np.float64(0.2)}
    return problem, hparams, hg.full_batch(None, n_steps), c


def quadratic_exact(hparams, c, n_steps):
    """Value and hypergradient of `quadratic`, from w_T = b + (1 - lr a)^T (w_0 - b)."""
    a, b, w0, lr = (hparams[k] for k in ("a", "b", "w0", "lr"))
    q = (1 - lr * a) ** n_steps
    q_slope = n_steps * (1 - lr * a) ** (n_steps - 1) if n_steps else 0.0
    error = b + q * (w0 - b) - c
    along = float(error @ (w0 - b)) * q_slope
    return 0.5 * float(error @ error), {"a": -lr * along, "b": (1 - q) * error, "w0": q * error, "lr": -a * along}
