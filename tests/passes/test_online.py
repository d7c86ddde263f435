"""Online optimisation: its hypergradients are those of the passes while nothing moves, and a loop written by hand when it does."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import optree
import pytest
from hyper_problems import mlp

import hypergrad as hg
from hypergrad.errors import ArgumentError, DifferentiationError

pytestmark = pytest.mark.filterwarnings("ignore:.*no influence")  # fixtures with more hyperparameters than a test reads

SEEN: list[Any] = []


@dataclass(frozen=True)
class Still(hg.Optimizer):
    """Moves nothing and writes down the gradients."""

    linear_in_gradient: ClassVar[bool] = False

    def update(self, w, state, g, t):
        SEEN.append((t, optree.tree_map(lambda x: x.value, g)))
        return w, state


def gradients(*args, **more):
    SEEN.clear()
    r = hg.online(*args[:3], Still(), *args[3:], **more)
    assert [t for t, _ in SEEN] == list(range(len(r.values)))
    return r, [g for _, g in SEEN]


def close(a, b, rtol=1e-11):
    assert optree.tree_structure(a) == optree.tree_structure(b)
    for x, y in zip(optree.tree_leaves(a), optree.tree_leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-13)


def optimizers():
    problem, h, batches = mlp()
    for optimizer in (
        problem.optimizer,
        lambda h: hg.Adam(lr=0.1 * h["lr"], beta1=h["momentum"]),
        lambda h: hg.SGD(lr=lambda t: h["lr"] / (1 + t), momentum=hg.schedule(h["momentum"] * np.linspace(1, 0.5, 13))),
        lambda h: hg.SGD(lr=h["lr"]),
    ):
        yield hg.Bilevel(problem.inner_loss, problem.outer_loss, problem.init, optimizer), h, batches


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("every", [1, 4, 13, 50])
def test_while_nothing_moves_it_is_the_forward_pass(which, every):
    """Tangents, the optimiser's state and its step number go on through the windows."""
    problem, h, batches = list(optimizers())[which]
    r, found = gradients(problem, h, batches, every)
    ends = [*range(every, 13, every), 13]
    for k, end in enumerate(ends):
        exact = hg.forward(first_steps(problem, end), h, batches[:end] if isinstance(batches, list) else [batches[t] for t in range(end)])
        close((r.values[k], found[k]), (exact.value, exact.grad))
    close((r.params, r.state, r.losses), (exact.params, exact.state, exact.losses))
    close(r.hparams, h)
    assert r.stats.steps_run == 13 and r.stats.states_held == 1 + 6


@pytest.mark.parametrize("which", range(4))
def test_a_discount_stands_between_all_steps_and_those_since_the_last_update(which):
    """0 is what reverse windows give. The third window's gradient is a parabola in the discount, which the first window meets twice."""
    args = list(optimizers())[which]
    greedy = gradients(*args, 5, discount=0.0)[1]
    close(greedy, gradients(*args, 5, mode="reverse")[1], rtol=1e-9)
    all_steps, half = gradients(*args, 5)[1], gradients(*args, 5, discount=0.5)[1]
    minus = gradients(*args, 5, discount=0.25)[1]
    for k in range(3):
        for a, b, c, d in zip(*map(optree.tree_leaves, (greedy[k], minus[k], half[k], all_steps[k])), strict=True):
            # of a + x*u + x*x*v at 0, 1/4, 1/2 and 1: the value at 1 by Lagrange's formula from the other three
            np.testing.assert_allclose(d, 3 * a - 8 * b + 6 * c, rtol=1e-8, atol=1e-11)


def first_steps(problem, end):
    """The problem whose schedules are cut to `end` steps."""

    def cut(h):
        optimizer = problem.optimizer(h)
        return optimizer.scheduled(13, range(end)) if isinstance(optimizer, hg.SGD) else optimizer

    return hg.Bilevel(problem.inner_loss, problem.outer_loss, problem.init, cut)


@pytest.mark.parametrize("every", [1, 4, 13])
def test_reverse_windows_are_the_truncated_pass(every):
    problem, h, batches = mlp()
    r, found = gradients(problem, h, batches, every, mode="reverse")
    for k, end in enumerate([*range(every, 13, every), 13]):
        exact = hg.reverse(problem, h, [batches[t] for t in range(end)], last=end - k * every)
        close((r.values[k], found[k]), (exact.value, exact.grad))


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_one_window_is_one_outer_step(mode):
    problem, h, batches = mlp()
    outer = hg.Adam(lr=0.1)
    r = hg.online(problem, h, batches, outer, len(batches), mode=mode)
    exact = hg.reverse(problem, h, batches)
    close(r.hparams, outer.step(h, None, exact.grad, 0)[0])
    close(optree.tree_map(lambda x: x[0], r.history), optree.tree_map(np.asarray, h))


def test_a_quadratic_by_hand():
    """w <- w - h (w - c), E = (w - d)^2 / 2; Z <- (1 - h) Z - (w - c), h <- h - a (w - d) Z after every two steps."""
    c, d, a = 2.0, 1.0, 0.05
    problem = hg.Bilevel(
        lambda w, h, b: 0.5 * (w - c) ** 2, lambda w, h: 0.5 * (w - d) ** 2, lambda h: np.array(0.0), lambda h: hg.SGD(lr=h)
    )
    r = hg.online(problem, np.array(0.1), hg.full_batch(None, 7), hg.SGD(lr=a), 2, project=lambda h: np.minimum(h, 0.11))
    w, z, h, seen = 0.0, 0.0, 0.1, []
    for t in range(7):
        w, z = w - h * (w - c), (1 - h) * z - (w - c)
        if t % 2 or t == 6:
            seen.append(h)
            h = min(h - a * (w - d) * z, 0.11)
    close((r.hparams, r.params, r.history), (np.array(h), np.array(w), np.array(seen)))
    assert 0.11 in seen


def test_outer_batches_and_callback():
    problem, h, batches = mlp()
    weighted = hg.Bilevel(problem.inner_loss, lambda w, h, b: b * problem.outer_loss(w, h), problem.init, problem.optimizer)
    seen = []
    r = hg.online(
        weighted, h, batches, Still(), 5, outer_batches=[1.0, 2.0, 3.0], callback=lambda k, h, w, value: seen.append((k, float(value)))
    )
    plain = hg.online(problem, h, batches, Still(), 5)
    close(r.values, plain.values * [1, 2, 3])
    assert seen == list(enumerate(r.values.tolist()))


def test_no_step():
    problem, h, _ = mlp()
    r = hg.online(problem, h, [], hg.SGD(lr=0.1))
    close(r.hparams, h)
    assert r.values.shape == r.losses.shape == (0,) and r.history["class"].shape == (0, 3)


def test_refusals():
    problem, h, batches = mlp()
    for change, text in (
        ({"every": 0}, "every has 0"),
        ({"mode": "sideways"}, "mode has 'sideways'"),
        ({"outer_optimizer": 0.1}, "outer_optimizer is a float"),
        ({"discount": 1.5}, "discount has 1.5 in mode 'forward'"),
        ({"discount": float("nan")}, "discount has nan"),
        ({"discount": 0.5, "mode": "reverse"}, "discount has 0.5 in mode 'reverse'"),
    ):
        with pytest.raises(ArgumentError, match=f"online: {text}"):
            hg.online(problem, h, batches, **{"outer_optimizer": hg.SGD(lr=0.1), **change})
    running = hg.Bilevel(problem.inner_loss, problem.outer_loss, problem.init, problem.optimizer, lambda w, h, t: hg.sum(h["class"]))
    with pytest.raises(ArgumentError, match="online: problem has a running_loss"):
        hg.online(running, h, batches, hg.SGD(lr=0.1))
    with np.errstate(all="ignore"), pytest.raises(DifferentiationError, match=r"online: .* is no longer finite after step \d+"):
        hg.online(problem, {**h, "lr": np.array(1e200)}, batches, hg.SGD(lr=0.1))
