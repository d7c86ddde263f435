"""Which pass when: one problem, every pass, what each held in memory and ran again.

* few hyperparameters, many steps: `forward`. Its memory does not grow with T, its time grows with the hyperparameters.
* many hyperparameters: `reverse`. All states if they fit, "sqrt" or a number of checkpoints if not.
* an inner problem that is solved to the end: `implicit`. It needs the solution alone.
"""

import numpy as np

import hypergrad as hg


def main():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 8)), rng.normal(size=40)
    x_val, y_val = rng.normal(size=(40, 8)), rng.normal(size=40)
    problem = hg.Bilevel(
        lambda w, lam, batch: hg.mean((x @ w - y) ** 2) + hg.sum(hg.exp(lam["log_l2"]) * w * w),
        lambda w, lam: hg.mean((x_val @ w - y_val) ** 2),
        lambda lam: np.zeros(8),
        lambda lam: hg.SGD(lr=0.1, momentum=0.5),
    )
    lam, steps = {"log_l2": np.full(8, -1.0)}, hg.full_batch(None, 60)

    exact = hg.reverse(problem, lam, steps)
    runs = {
        'reverse, checkpoints="all"': exact,
        'reverse, checkpoints="sqrt"': hg.reverse(problem, lam, steps, checkpoints="sqrt"),
        "reverse, checkpoints=5": hg.reverse(problem, lam, steps, checkpoints=5),
        'reverse, checkpoints="reversible"': hg.reverse(problem, lam, steps, checkpoints="reversible"),
        "reverse, last=10 (truncated)": hg.reverse(problem, lam, steps, last=10),
        "forward": hg.forward(problem, lam, steps),
        "implicit at w_T": hg.implicit(problem, lam, exact.params, None),
    }
    print(f"{'pass':36} states held  steps run again  difference")
    for name, r in runs.items():
        difference = np.abs(r.grad["log_l2"] - exact.grad["log_l2"]).max()
        print(f"{name:36} {r.stats.states_held:11}  {r.stats.steps_rerun:15}  {difference:.1e}")
        if "reverse" in name and "last" not in name:
            assert difference == 0  # every policy gives the same bits
    assert np.allclose(runs["forward"].grad["log_l2"], exact.grad["log_l2"], rtol=1e-12)
    print("hg.plan(problem, lam, steps, memory_bytes=...) measures seconds and bytes on this machine, and chooses.")
