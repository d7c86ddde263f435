"""The laws of memory and time: states held and steps run again, over T and over the checkpoint policy.

    all        T states, no step again           sqrt     2 ceil(sqrt(T)) states at most, fewer than T steps again
    c states   the fewest steps again that       forward  1 + P states for P directions, whatever T
               c states allow (binomial)

The laws are counts, and `stats` says what one call did. bench/memory_time.py measures bytes and seconds.
Source: Franceschi et al. 2017, arXiv:1703.01785; Griewank & Walther 2000, Algorithm 799.
"""

import math

import numpy as np

import hypergrad as hg


def fewest(n, c):
    """Steps run again with c states: revolve runs r l - binomial(c + r, c + 1) for l = n + 1, the outer loss being the last step."""
    r = next(r for r in range(n + 1) if math.comb(c + r, c) > n)
    return r * (n + 1) - math.comb(c + r, c + 1) - n


def main():
    problem = hg.Bilevel(
        lambda w, h, batch: hg.sum(hg.exp(h) * w * w), lambda w, h: hg.sum(w), lambda h: np.ones(3), lambda h: hg.SGD(lr=0.01)
    )
    h = np.array([-1.0, 0.0, 0.5])
    print("   T   policy  states held  steps run again")
    for n in (16, 64):
        batches = hg.full_batch(None, n)
        for policy in ("all", "sqrt", 6, 3):
            stats = hg.reverse(problem, h, batches, checkpoints=policy).stats
            print(f"{n:4}   {policy!s:6}  {stats.states_held:11}  {stats.steps_rerun:15}")
            assert stats.steps_run == n
            if policy == "all":
                assert (stats.states_held, stats.steps_rerun) == (n, 0)
            elif policy == "sqrt":
                assert stats.states_held <= 2 * math.ceil(math.sqrt(n)) and stats.steps_rerun < n
            elif isinstance(policy, int):
                assert stats.states_held <= policy and stats.steps_rerun == fewest(n, policy)
        stats = hg.forward(problem, h, batches).stats
        print(f"{n:4}   forward {stats.states_held:11}  {stats.steps_rerun:15}")
        assert stats.states_held == 1 + h.size
