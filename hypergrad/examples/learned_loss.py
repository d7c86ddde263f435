"""A learned loss: the hyperparameters are the weights of a loss, tuned so that training on wrong labels gives a right model.

The model minimises sum_k -q_k log p_k, where q mixes the given label with the model's own belief. How much of each is learned.
"""

import numpy as np

import hypergrad as hg


def main():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(6, 3))
    x, x_val = rng.normal(size=(120, 6)), rng.normal(size=(60, 6))
    y, y_val = (x @ truth).argmax(1), (x_val @ truth).argmax(1)
    y[:60] = rng.integers(0, 3, 60)  # half of the labels are drawn anew
    given = np.eye(3)[y]

    def learned(logits, lam):
        p = hg.softmax(logits, axis=1)
        log_p = logits - hg.logsumexp(logits, axis=1)[:, None]
        trust = hg.sigmoid(lam["trust"] + lam["slope"] * hg.sum(p * given, axis=1))[:, None]  # more where the model agrees
        return -hg.mean(hg.sum((trust * given + (1.0 - trust) * p) * log_p, axis=1))

    problem = hg.Bilevel(
        lambda w, lam, batch: learned(x @ w, lam),
        lambda w, lam: hg.mean(hg.softmax_cross_entropy(x_val @ w, y_val)),  # a few clean examples say what is right
        lambda lam: np.zeros((6, 3)),
        lambda lam: hg.SGD(lr=1.0),
    )
    lam, steps = {"trust": np.array(3.0), "slope": np.array(0.0)}, hg.full_batch(None, 15)  # nearly the cross-entropy
    outer, state, values = hg.Adam(lr=0.3), None, []
    for t in range(12):
        r = hg.reverse(problem, lam, steps)
        values.append(float(r.value))
        lam, state = outer.step(lam, state, r.grad, t)
    print(f"clean validation loss {values[0]:.3f} -> {values[-1]:.3f}; trust {lam['trust']:.2f}, slope {lam['slope']:.2f}")
    assert values[-1] < values[0] and lam["slope"] > 0
