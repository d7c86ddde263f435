"""The public checkers: their reports and options, and the faults that test_testing_causes.py does not plant."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from test_testing_causes import SOUND, H, Minibatches, fails, inner, outer

import hypergrad as hg
from hypergrad import rules
from hypergrad.errors import DTypeError
from hypergrad.testing import check_gradients, check_hypergrad


def test_a_sound_problem_passes_with_a_report():
    report = check_hypergrad(SOUND, H, Minibatches())
    r = hg.reverse(SOUND, H, Minibatches())
    assert report.value == float(r.value) and (report.n_steps, report.n_hparams) == (5, 6)
    assert report.states_held == {"all": 5, "sqrt": 3, 3: 3, 1: 1}
    assert set(report.difference_error) == {f"hparams['{name}']" for name in H}
    assert max(report.difference_error.values()) < 1e-7
    assert report.forward_error < 1e-12 and report.inner_error < 1e-7 and report.without_influence == ()


def test_options():
    report = check_hypergrad(SOUND, H, Minibatches(), directions=1, eps=1e-4, rtol=1e-4, checkpoints=[2], seed=3)
    assert report.states_held == {"all": 5, 2: 2}
    check_hypergrad(SOUND, H, [])
    check_hypergrad(SOUND, H, [Minibatches()[t] for t in range(60)], directions=1)


def test_single_precision_is_refused():
    with pytest.raises(DTypeError, match=r"hparams\['lr'\] has dtype float32, expected float64"):
        check_hypergrad(SOUND, {**H, "lr": np.float32(0.1)}, Minibatches())
    with pytest.raises(DTypeError, match=r"args\[1\] has dtype float32"):
        check_gradients(lambda x, y: x + y, np.ones(2), np.ones(2, np.float32))


def test_batches_from_an_iterator():
    class Stream(Minibatches):
        stream = np.random.default_rng(0)

        def rows(self, t):
            return self.stream.integers(0, 12, 4)

    fails(r"batches\[4\] changed between two readings", batches=Stream())


def test_batches_whose_length_changes():
    seen = []

    class Growing(Minibatches):
        def __getitem__(self, t):
            seen.append(t)
            return [np.ones(2)] * (1 + len(seen) // 6)

    fails(r"batches\[4\] had 1 leaves and has 2", batches=Growing())


def test_a_detached_weight_in_the_inner_loss():
    fails(
        "inner_loss at step 0: reverse: the gradient along a random direction of w",
        replace(SOUND, inner_loss=lambda w, h, b: inner(w, h, b) + hg.sum(w * w.value)),
    )


def test_an_objective_that_is_not_finite():
    fails("the outer objective is nan", replace(SOUND, outer_loss=lambda w, h: outer(w, h) * np.nan))


def cube(partial_vjp, partial_jvp):
    """x^3 with its own derivative in each mode."""
    return rules.Op(
        "planted_cube", lambda b, x: x**3, vjp=(lambda bar, out, x: bar * partial_vjp(x),), jvp=(lambda dot, out, x: dot * partial_jvp(x),)
    )


def right(x):
    return 3.0 * x * x


def wrong(x):
    return 3.1 * x * x


def cut(x):
    """The right value, but what depends on x in it is lost at second order."""
    return 3.0 * x * x.value


FAULTS = {
    "vjp": (wrong, right, "vjp of args"),
    "jvp": (right, wrong, "jvp along args"),
    "second order of the vjp": (cut, right, "Hessian product, forward over reverse"),
    "second order of the jvp": (right, cut, "Hessian product, reverse over forward"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_rule_in_a_function(planted, fault):
    *partials, where = FAULTS[fault]
    op = cube(*partials)
    with pytest.raises(AssertionError, match=where):
        check_gradients(lambda x: {"y": hg.sum(op(x["p"])) * x["q"]}, {"p": np.array([0.5, -0.7]), "q": np.float64(2.0)})


def test_a_rule_in_an_inner_loss_that_is_wrong_at_second_order(planted):
    op = cube(cut, right)
    fails("inner_loss at step 0: H_ww v", replace(SOUND, inner_loss=lambda w, h, b: inner(w, h, b) + 0.1 * hg.sum(op(w)) ** 2))


def test_sound_rules_pass(planted):
    op = cube(right, right)
    report = check_gradients(lambda x: op(x), np.array([0.5, -0.7]))
    assert report.first_order < 1e-8
    assert set(report.second_order) == {"forward over reverse", "reverse over forward", "reverse over reverse"}


def test_an_unstable_derivative_is_not_excused():
    """A NaN derivative is no agreement."""
    with np.errstate(all="ignore"), pytest.raises(AssertionError, match="nan"):
        check_gradients(lambda x: hg.sqrt(x * x * 0.0 + 0.0) + x, np.array([1.0]))


def test_schedule_that_breaks_its_promise_is_caught(monkeypatch):
    """A pass that stores every state while asked for one."""
    schedule = sys.modules["hypergrad.passes.schedule"]
    monkeypatch.setattr(schedule, "parse", lambda checkpoints, n_steps, **more: schedule.All(n_steps))
    fails("checkpoints=3 held 5 states, expected at most 3", checkpoints=[3])
