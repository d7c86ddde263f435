"""Your own optimiser: a frozen dataclass whose fields are hyperparameters and whose update is written in ops.

Here: sign descent, softened to tanh so that it has a derivative, with a decaying step size. Both numbers are tuned.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import optree

import hypergrad as hg
from hypergrad.testing import check_hypergrad


@dataclass(frozen=True)
class SoftSign(hg.Optimizer):
    """w <- w - lr * decay^t * tanh(g / width)."""

    lr: Any
    decay: Any
    width: float = 0.1

    def init(self, w):  # no memory
        return ()

    def update(self, w, state, g, t):
        return optree.tree_map(lambda x, d: x - self.lr * self.decay**t * hg.tanh(d / self.width), w, g), state


def main():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 5))
    y = x @ rng.normal(size=5)
    problem = hg.Bilevel(
        lambda w, lam, batch: hg.mean((x @ w - y) ** 2),
        lambda w, lam: hg.mean((x @ w - y) ** 2),
        lambda lam: np.zeros(5),
        lambda lam: SoftSign(lr=hg.exp(lam["log_lr"]), decay=hg.sigmoid(lam["logit_decay"])),
    )
    lam, steps = {"log_lr": np.array(-3.0), "logit_decay": np.array(2.0)}, hg.full_batch(None, 12)
    check_hypergrad(problem, lam, hg.full_batch(None, 4))  # raises where an update loses a derivative
    outer, state, values = hg.Adam(lr=0.4), None, []
    for t in range(15):
        r = hg.forward(problem, lam, steps)  # two hyperparameters
        values.append(float(r.value))
        lam, state = outer.step(lam, state, r.grad, t)
    print(f"loss after 12 steps {values[0]:.4f} -> {values[-1]:.4f}, lr {np.exp(lam['log_lr']):.3f}")
    assert values[-1] < 0.5 * values[0]
