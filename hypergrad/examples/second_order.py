"""Whole Hessians, gradients per example, and memory for time: hessian, jacobian, vmap and checkpoint.

Newton's method on a logistic loss, the influence of each example, and a deep function that keeps one value in ten.
"""

import numpy as np

import hypergrad as hg


def main():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 4))
    y = (x @ np.array([1.0, -2.0, 0.5, 0.0]) + rng.normal(size=50) > 0) * 2.0 - 1.0

    def one(w, x, y):  # the loss of one example
        return hg.softplus(-y * (x @ w)) + 0.01 * hg.sum(w * w)

    def loss(w):
        return hg.mean(hg.softplus(-y * (x @ w))) + 0.01 * hg.sum(w * w)

    w = np.zeros(4)
    for _ in range(6):
        w = w - np.linalg.solve(hg.hessian(loss)(w), hg.grad(loss)(w))
    print("Newton: the gradient's norm after 6 steps is", np.linalg.norm(hg.grad(loss)(w)))
    assert np.linalg.norm(hg.grad(loss)(w)) < 1e-12

    each = hg.vmap(hg.grad(one), in_axes=(None, 0, 0))(w, x, y)  # one gradient per example
    influence = -each @ np.linalg.inv(hg.hessian(loss)(w))
    print("the most influential example:", np.linalg.norm(influence, axis=1).argmax(), "of", len(each))
    assert np.allclose(each.mean(axis=0), hg.grad(loss)(w), atol=1e-15)

    j = hg.jacobian(lambda w: hg.sigmoid(x @ w))(w)  # forward mode: 50 numbers of 4
    p = 1 / (1 + np.exp(-x @ w))
    assert np.allclose(j, (p * (1 - p))[:, None] * x, rtol=1e-12)

    def ten(z):
        for _ in range(10):
            z = hg.tanh(z * 1.1)
        return z

    part = hg.checkpoint(ten)  # keeps its argument, and computes the ten values again in the sweep
    deep = lambda f: lambda z: hg.sum(f(f(f(z))))  # noqa: E731
    assert np.array_equal(hg.grad(deep(part))(w), hg.grad(deep(ten))(w))
    print("checkpointed: the same bits")
