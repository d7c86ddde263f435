"""How a network is written: functions, and a tree of weights. There is no module system.

A layer is a function of its weights, and a network is a function that calls layers. Its weights are any tree of arrays. What changes in
training without a gradient, such as running statistics, goes in and comes out. So nothing is hidden from a derivative, and a whole
training run is a function that can be differentiated.
"""

import numpy as np
import optree

import hypergrad as hg


def weights(seed):
    return {
        "in": {"w": hg.he_normal(seed, (8, 16)), "gamma": np.ones(16), "beta": np.zeros(16)},
        "out": {"w": hg.glorot_uniform(seed + 1, (16, 3)), "b": np.zeros(3)},
    }


def network(w, running, x, mask=None):
    """Logits and running statistics. With a mask of dropout the network is in training, without one it is evaluated."""
    h, running = hg.batch_norm(x @ w["in"]["w"], w["in"]["gamma"], w["in"]["beta"], running=running, training=mask is not None)
    h = hg.relu(h) if mask is None else hg.dropout(hg.relu(h), mask, rate=0.2)
    return hg.linear(h, w["out"]["w"], w["out"]["b"]), running


def loss(w, running, x, labels, mask):
    logits, running = network(w, running, x, mask)
    return hg.mean(hg.softmax_cross_entropy(logits, labels)), running


def main():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 120)
    x = 3 * np.eye(3, 8)[labels] + rng.normal(size=(120, 8))
    w, running, optimizer, state = weights(0), (np.zeros(16), np.ones(16)), hg.Adam(lr=0.02), None
    for t in range(60):
        rows = rng.permutation(100)[:50]  # the last 20 are held out
        (value, running), g = hg.value_and_grad(loss, has_aux=True)(w, running, x[rows], labels[rows], rng.random((50, 16)) > 0.2)
        w, state = optimizer.step(w, state, g, t)
    right = network(w, running, x[100:])[0].value.argmax(axis=1) == labels[100:]
    print(f"loss {value:.2f} after 60 steps, {right.sum()} of 20 held out examples right")
    assert right.mean() >= 0.8

    # The whole run as one op: how the evaluated loss depends on the step size, running statistics and all.
    masks = [np.random.default_rng((1, t)).random((100, 16)) > 0.2 for t in range(10)]

    def step(state, h, mask):
        w, running = state
        g, running = hg.grad(loss, has_aux=True)(w, running, x[:100], labels[:100], mask)
        return (optree.tree_map(lambda w, g: w - h * g, w, g), running), None

    def after(h):
        w, running = hg.scan(step, (weights(0), (np.zeros(16), np.ones(16))), h, masks)[0]
        return hg.mean(hg.softmax_cross_entropy(network(w, running, x[100:])[0], labels[100:]))

    slope = hg.grad(after)(np.array(0.1))
    difference = (after(np.array(0.1 + 1e-5)).value - after(np.array(0.1 - 1e-5)).value) / 2e-5
    print(f"d held-out loss / d step size: {slope:.6f}, by differences {difference:.6f}")
    assert np.isclose(slope, difference, rtol=1e-5)
