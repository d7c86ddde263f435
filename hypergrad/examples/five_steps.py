"""The low-level API in five steps: ops, gradients, a training run as one op, its hypergradient, and a loop that tunes.

The problem: ridge regression on 30 examples, with one L2 strength for each of 10 features, of which 2 matter.
"""

import numpy as np

import hypergrad as hg


def main():
    rng = np.random.default_rng(0)
    x, x_val = rng.normal(size=(30, 10)), rng.normal(size=(30, 10))
    truth = np.array([2.0, -1.0] + [0.0] * 8)
    y, y_val = x @ truth + rng.normal(size=30), x_val @ truth + rng.normal(size=30)

    # 1. Functions are written in ops with NumPy's names. They take arrays, and return Tensors.
    def inner_loss(w, lam, batch):
        return hg.mean((x @ w - y) ** 2) + hg.sum(hg.exp(lam["log_l2"]) * w * w)

    def outer_loss(w, lam):
        return hg.mean((x_val @ w - y_val) ** 2)

    lam = {"log_l2": np.full(10, -4.0), "log_lr": np.array(-3.0)}  # any pytree of arrays

    # 2. Transforms give derivatives, as arrays.
    g = hg.grad(inner_loss)(np.zeros(10), lam, None)
    print("1-2  the inner gradient at zero has the shape", g.shape)

    # 3. T steps of an optimiser are one op. Code before and after it is ordinary code.
    steps = hg.full_batch(None, 20)  # steps[t] is the batch of step t

    def objective(lam):
        w = hg.unroll(inner_loss, np.zeros(10), lam, steps, optimizer=hg.SGD(lr=hg.exp(lam["log_lr"])), checkpoints="sqrt")
        return outer_loss(w, lam)

    by_hand = hg.grad(objective)(lam)

    # 4. The same as a problem with passes: they also say what they did.
    problem = hg.Bilevel(inner_loss, outer_loss, lambda lam: np.zeros(10), lambda lam: hg.SGD(lr=hg.exp(lam["log_lr"])))
    r = hg.reverse(problem, lam, steps, checkpoints="sqrt")
    assert all(np.array_equal(r.grad[k], by_hand[k]) for k in lam)
    print(f"3-4  d loss / d log_lr = {r.grad['log_lr']:+.4f}; {r.stats.states_held} states held for {len(steps)} steps")

    # 5. Any optimiser may follow the hypergradient.
    outer, state, first = hg.Adam(lr=0.3), None, float(r.value)
    for t in range(20):
        r = hg.reverse(problem, lam, steps)
        lam, state = outer.step(lam, state, r.grad, t)
    l2 = np.exp(lam["log_l2"])
    print(f"5    validation loss {first:.3f} -> {r.value:.3f}")
    print(f"     L2 of the features that matter: {l2[:2].max():.3f}; mean of the rest: {l2[2:].mean():.3f}")
    assert r.value < first and l2[:2].max() < l2[2:].mean()
