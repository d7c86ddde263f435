"""The public checkers pass on sound problems and fail, naming what is wrong, on planted faults."""

import sys

import numpy as np
import pytest

import hypergrad as hg
from hypergrad import rules
from hypergrad.errors import DTypeError
from hypergrad.testing import check_gradients, check_hypergrad

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((12, 3)), RNG.standard_normal(12)
XV, YV = RNG.standard_normal((8, 3)), RNG.standard_normal(8)


class Minibatches:
    """Four rows a step; pure unless told otherwise."""

    def __init__(self, n_steps=6, rows=lambda t: np.random.default_rng(t).integers(0, 12, 4)):
        self.n_steps, self.rows = n_steps, rows

    def __len__(self):
        return self.n_steps

    def __getitem__(self, t):
        rows = self.rows(t)
        return {"x": X[rows], "y": Y[rows]}


def inner(w, h, batch):
    return hg.mean((batch["x"] @ w - batch["y"]) ** 2) + hg.exp(h["log_decay"]) * hg.sum(w * w)


def outer(w, h):
    return hg.mean((XV @ w - YV) ** 2) + 0.01 * h["lr"] ** 2


def problem(inner=inner, outer=outer, init=lambda h: h["w0"], optimizer=lambda h: hg.SGD(lr=h["lr"], momentum=0.5)):
    return hg.Bilevel(inner, outer, init, optimizer)


H = {"log_decay": np.float64(-1.0), "lr": np.float64(0.1), "w0": RNG.standard_normal(3)}


def fails(match, **faulty):
    batches = faulty.pop("batches", None) or Minibatches()
    with pytest.raises(AssertionError, match=match) as caught:
        check_hypergrad(problem(**faulty), H, batches)
    return str(caught.value)


def test_a_sound_problem_passes_with_a_report():
    report = check_hypergrad(problem(), H, Minibatches())
    r = hg.reverse(problem(), H, Minibatches())
    assert report.value == float(r.value) and (report.n_steps, report.n_hparams) == (6, 5)
    assert report.states_held == {"all": 6, "sqrt": 4, 3: 3, 1: 1}
    assert set(report.difference_error) == {"hparams['log_decay']", "hparams['lr']", "hparams['w0']"}
    assert max(report.difference_error.values()) < 1e-7
    assert report.forward_error < 1e-12 and report.inner_error < 1e-7


def test_options():
    report = check_hypergrad(problem(), H, Minibatches(), directions=1, eps=1e-4, rtol=1e-4, checkpoints=[2], seed=3)
    assert report.states_held == {"all": 6, 2: 2}
    check_hypergrad(problem(), H, Minibatches(0))
    check_hypergrad(problem(), H, Minibatches(60), directions=1)


def test_many_hyperparameters_are_compared_along_directions():
    many = {**H, "example": RNG.standard_normal(70)}

    def weighted(w, h, batch):
        return inner(w, h, batch) * hg.mean(hg.sigmoid(h["example"]))

    assert check_hypergrad(problem(weighted), many, Minibatches()).n_hparams == 75


def test_single_precision_is_refused():
    with pytest.raises(DTypeError, match=r"hparams\['lr'\] has dtype float32, expected float64"):
        check_hypergrad(problem(), {**H, "lr": np.float32(0.1)}, Minibatches())
    with pytest.raises(DTypeError, match=r"args\[1\] has dtype float32"):
        check_gradients(lambda x, y: x + y, np.ones(2), np.ones(2, np.float32))


# --- planted faults: batches ----------------------------------------------------------------------


def test_batches_from_an_iterator():
    stream = np.random.default_rng(0)
    fails(r"batches\[5\] changed between two readings", batches=Minibatches(rows=lambda t: stream.integers(0, 12, 4)))


def test_batches_whose_length_changes():
    seen = []

    class Growing(Minibatches):
        def __getitem__(self, t):
            seen.append(t)
            return [np.ones(2)] * (1 + len(seen) // 7)

    fails(r"batches\[5\] had 1 leaves and has 2", batches=Growing())


def test_batches_that_write_into_one_buffer():
    buffer = np.empty((4, 3))

    class Reused(Minibatches):
        def __getitem__(self, t):
            buffer[...] += t
            return {"x": buffer, "y": np.ones(4)}

    fails("changed between two readings", batches=Reused())


# --- planted faults: functions --------------------------------------------------------------------


def test_a_random_inner_loss():
    rng = np.random.default_rng(0)
    message = fails(
        "the inner loss of step 5 was .* and is .* expected the same bits",
        inner=lambda w, h, b: inner(w, h, b) + 1e-9 * rng.standard_normal() * hg.sum(w),
    )
    assert "draw what is random in batches" in message


def test_an_inner_loss_that_counts_its_calls():
    """A dropout mask by call number: another one when a step is run again."""
    calls = []

    def counting(w, h, b):
        calls.append(1)
        return inner(w, h, b) * (1.0 + 0.1 * (len(calls) % 5))

    fails("expected the same bits", inner=counting)


@pytest.mark.parametrize("name", ["log_decay", "lr", "w0"])
def test_a_detached_hyperparameter(name):
    def cut(h):
        return {**h, name: h[name].detach() if isinstance(h[name], hg.Tensor) else h[name]}

    def detached(h):
        """Neither tape nor tangent: what .value in a loss does."""
        return {**h, name: h[name].value if isinstance(h[name], hg.Tensor) else h[name]}

    message = fails(
        rf"hparams\['{name}'\]",
        inner=lambda w, h, b: inner(w, detached(h), b),
        init=lambda h: detached(h)["w0"],
        optimizer=lambda h: hg.SGD(lr=detached(h)["lr"]),
    )
    assert "a finite difference gives" in message
    fails(
        rf"hparams\['{name}'\]",
        inner=lambda w, h, b: inner(w, cut(h), b),
        init=lambda h: cut(h)["w0"],
        optimizer=lambda h: hg.SGD(lr=cut(h)["lr"]),
    )


def test_a_detached_weight_in_the_inner_loss():
    fails(
        "inner_loss at step 0: reverse: the gradient along a random direction of w",
        inner=lambda w, h, b: inner(w, h, b) + hg.sum(w * w.value),
    )


def test_a_detached_weight_in_the_outer_loss():
    fails(r"reverse: the derivative along a random direction of hparams\['", outer=lambda w, h: outer(w, h) + hg.sum(w * w.value))


def test_an_objective_that_is_not_finite():
    fails("the outer objective is nan", outer=lambda w, h: outer(w, h) * np.nan)


def test_a_kink_within_every_step():
    fails("a kink within the step", outer=lambda w, h: outer(w, h) + hg.relu(h["lr"] - 0.1))


# --- planted faults: rules ------------------------------------------------------------------------


@pytest.fixture
def planted():
    """Declare ops with wrong rules; the registry is as before at the end."""
    before = set(rules.REGISTRY)
    yield
    for name in set(rules.REGISTRY) - before:
        del rules.REGISTRY[name]


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


@pytest.mark.parametrize(
    ("partials", "where"),
    [
        ((wrong, wrong), "inner_loss at step 0: reverse: the gradient"),
        ((wrong, right), "inner_loss at step 0: reverse: the gradient"),
        ((right, wrong), "inner_loss at step 0: H_ww v"),
        ((cut, right), "inner_loss at step 0: H_ww v"),
    ],
)
def test_a_wrong_rule_in_an_inner_loss(planted, partials, where):
    op = cube(*partials)
    fails(where, inner=lambda w, h, b: inner(w, h, b) + 0.1 * hg.sum(op(w)) ** 2)


def test_a_wrong_jvp_in_the_outer_loss_shows_in_forward_mode(planted):
    op = cube(right, wrong)
    fails(r"forward: hparams\['log_decay'\].*reverse mode gives", outer=lambda w, h: outer(w, h) + hg.sum(op(w)))


def test_sound_rules_pass(planted):
    op = cube(right, right)
    report = check_gradients(lambda x: op(x), np.array([0.5, -0.7]))
    assert report.first_order < 1e-8 and set(report.second_order) == {
        "forward over reverse",
        "reverse over forward",
        "reverse over reverse",
    }
    check_hypergrad(problem(inner=lambda w, h, b: inner(w, h, b) + 0.1 * hg.sum(op(w))), H, Minibatches(), directions=1)


def test_an_unstable_derivative_is_not_excused():
    """A NaN derivative is no agreement."""
    with np.errstate(all="ignore"), pytest.raises(AssertionError, match="nan"):
        check_gradients(lambda x: hg.sqrt(x * x * 0.0 + 0.0) + x, np.array([1.0]))


def test_schedule_that_breaks_its_promise_is_caught(monkeypatch):
    """A pass that stores every state while asked for one."""
    schedule = sys.modules["hypergrad.passes.schedule"]
    monkeypatch.setattr(schedule, "parse", lambda checkpoints, n_steps: schedule.All(n_steps))
    fails("checkpoints=3 held 6 states, expected at most 3")
