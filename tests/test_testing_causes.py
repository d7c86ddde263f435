"""Planted faults of a whole problem: `check_hypergrad` fails on each, and names the leaf and the cause."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest

import hypergrad as hg
from hypergrad import rules, transforms
from hypergrad.testing import check_hypergrad

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((12, 3)), RNG.standard_normal(12)
XV, YV = RNG.standard_normal((8, 3)), RNG.standard_normal(8)
H = {"decay": np.float64(-1.0), "lr": np.float64(0.1), "out": np.float64(0.5), "w0": RNG.standard_normal(3)}


class Minibatches:
    """Four rows a step, the same whenever they are asked for."""

    def __len__(self):
        return 5

    def __getitem__(self, t):
        return X[self.rows(t)], Y[self.rows(t)]

    def rows(self, t):
        return np.random.default_rng(t).integers(0, 12, 4)


def inner(w, h, batch):
    x, y = batch
    return hg.mean((x @ w - y) ** 2) + hg.exp(h["decay"]) * hg.sum(w * w)


def outer(w, h):
    return hg.mean((XV @ w - YV) ** 2) + h["out"] * hg.sum(w * w)


SOUND = hg.Bilevel(inner, outer, lambda h: h["w0"], lambda h: hg.SGD(lr=h["lr"], momentum=0.5))


def fails(match, problem=SOUND, *, batches=None, hparams=H, **options):
    options = {"directions": 1, "checkpoints": ["all"], **options}
    with pytest.raises(AssertionError, match=match) as caught:
        check_hypergrad(problem, hparams, Minibatches() if batches is None else batches, **options)
    return str(caught.value)


# --- detached values ----------------------------------------------------------------------------------------

CUTS = {"stop_gradient": hg.stop_gradient, "value": lambda x: x.value, "detach": lambda x: x.detach()}
PLACES = {
    "inner_loss at step 0": ("decay", lambda cut: replace(SOUND, inner_loss=lambda w, h, b: inner(w, {**h, "decay": cut(h["decay"])}, b))),
    "outer_loss": ("out", lambda cut: replace(SOUND, outer_loss=lambda w, h: outer(w, {**h, "out": cut(h["out"])}))),
    "init": ("w0", lambda cut: replace(SOUND, init=lambda h: cut(h["w0"]))),
    "optimizer at step 0": ("lr", lambda cut: replace(SOUND, optimizer=lambda h: hg.SGD(lr=cut(h["lr"]), momentum=0.5))),
    "running_loss": ("out", lambda cut: replace(SOUND, running_loss=lambda w, h, t: 0.1 * cut(h["out"]) * hg.sum(w * w))),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("place", PLACES)
def test_a_detached_hyperparameter(place, cut):
    name, faulty = PLACES[place]

    def safe(x):
        return CUTS[cut](x) if isinstance(x, hg.Tensor) else x

    fails(
        rf"hparams\['{name}'\].* is .*it looks like a value detached \(stop_gradient, detach\(\) or .value\).* in {place}: along "
        rf"hparams\['{name}'\]",
        faulty(safe),
    )


def test_a_weight_detached_in_the_outer_loss():
    fails(
        r"a value detached .* somewhere in outer_loss: along w ", replace(SOUND, outer_loss=lambda w, h: outer(w, h) + hg.sum(w * w.value))
    )


def test_a_weight_detached_in_an_update():
    @dataclass(frozen=True)
    class Normalised(hg.Optimizer):
        lr: Any = 0.1

        def update(self, w, state, g, t):
            return w - self.lr * g * hg.stop_gradient(hg.sqrt(hg.sum(w * w))), state

    fails("a value detached .* somewhere in optimizer at step 0: along w ", replace(SOUND, optimizer=lambda h: Normalised(lr=h["lr"])))


def test_a_value_that_takes_a_side_door():
    """It leaves one function detached and enters another: each function alone is right."""
    kept = {}

    def init(h):
        kept["out"] = h["out"].value
        return h["w0"]

    fails(
        r"hparams\['out'\].*every function alone has the derivative of its value.*through a closure",
        replace(SOUND, init=init, outer_loss=lambda w, h: outer(w, {**h, "out": kept["out"]})),
    )


# --- the same twice -----------------------------------------------------------------------------------------


def test_a_random_mask():
    rng = np.random.default_rng(0)
    fails(
        "the inner loss of step .* it looks like randomness or state in inner_loss at step 0: it gave .* draw what is random in batches",
        replace(SOUND, inner_loss=lambda w, h, b: inner(w * rng.integers(0, 2, 3).astype(float), h, b)),
    )


@pytest.mark.parametrize("place", ["init", "optimizer at step 0", "outer_loss"])
def test_randomness_elsewhere(place):
    rng = np.random.default_rng(0)

    def noise():
        return 1.0 + 1e-6 * rng.standard_normal()

    faulty = {
        "init": replace(SOUND, init=lambda h: h["w0"] * noise()),
        "outer_loss": replace(SOUND, outer_loss=lambda w, h: outer(w, h) * noise()),
        "optimizer at step 0": replace(SOUND, optimizer=lambda h: hg.SGD(lr=h["lr"] * noise())),
    }
    fails(rf"(value|params|hparams).* is .*expected the same bits.*it looks like randomness or state in {place}", faulty[place])


def test_a_counter():
    calls = []

    def counting(w, h, b):
        calls.append(1)
        return inner(w, h, b) * (1.0 + 0.1 * (len(calls) % 7))

    fails("the inner loss of step .* it looks like randomness or state in inner_loss at step 0", replace(SOUND, inner_loss=counting))


def test_batches_that_are_reshuffled_for_every_epoch():
    class Reshuffled(Minibatches):
        rng = np.random.default_rng(0)

        def rows(self, t):
            if t == 0:
                self.order = self.rng.permutation(12)
            return self.order[:4] + 0 * t if t == 0 else np.roll(self.order, t)[:4]

    fails(
        r"batches\[0\] changed between two readings \(leaf 0\).*it looks like randomness or state in batches, such as a new shuffle",
        batches=Reshuffled(),
    )


def test_batches_that_reuse_a_buffer():
    class Reused(Minibatches):
        buffer = np.empty((4, 3))

        def __getitem__(self, t):
            self.buffer[...] = X[self.rows(t)]
            return self.buffer, Y[self.rows(t)]

    assert "shuffle" not in fails(
        r"batches\[0\] changed .* \(leaf 0\): reading later batches wrote to it.*it looks like one buffer", batches=Reused()
    )


@pytest.mark.parametrize("place", ["outer_loss", "inner_loss"])
def test_init_returns_a_shared_array_that_is_overwritten(place):
    start = {"w": np.zeros(3)}

    def warm(w):
        start["w"][...] = 0.5 * w["w"].value + 0.1

    def outer_of(w, h):
        if place == "outer_loss":
            warm(w)
        return outer(w["w"], h)

    def inner_of(w, h, b):
        if place == "inner_loss":
            warm(w)
        return inner(w["w"], h, b)

    fails(
        r"w\['w'\] that init returned was written to during the run.*it looks like a shared array that is overwritten",
        replace(SOUND, init=lambda h: start, inner_loss=inner_of, outer_loss=outer_of),
    )


def test_a_hyperparameter_that_is_overwritten():
    def init(h):
        h["decay"].value[...] *= 1.5
        return h["w0"]

    fails(r"\['decay'\] was written to during the run", replace(SOUND, init=init), hparams={**H, "decay": np.array(-1.0)})


# --- pullbacks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", [r"hparams\['decay'\]", r"w\['w'\] that init returned"])
def test_a_pullback_that_reads_what_was_written_to(monkeypatch, written):
    """Without the engine's own look at what it reads again, and with a loss that is the same whatever was written."""
    monkeypatch.setattr(transforms._Held, "check", lambda self: None)
    start = {"w": np.ones(3)}
    problem = hg.Bilevel(
        lambda w, h, b: 0.0 * hg.sum(w["w"]),
        lambda w, h: hg.sum(w["w"]),
        lambda h: start,
        lambda h: hg.SGD(lr=h["lr"], weight_decay=h["decay"] if "decay" in written else 0.5),
    )
    hparams = {"decay": np.float64(0.5), "lr": np.float64(0.1)}
    message = fails(
        rf"a pullback after {written} was written to: hparams\['lr'\].*expected the same bits",
        problem,
        batches=hg.full_batch(None, 1),
        hparams=hparams,
    )
    assert "an array that is read again without being looked at" in message
    np.testing.assert_array_equal(start["w"], np.ones(3))


def test_what_init_returns_gets_its_values_back():
    start = RNG.standard_normal(3)
    before = start.copy()
    check_hypergrad(replace(SOUND, init=lambda h: start), {k: x for k, x in H.items() if k != "w0"}, Minibatches(), directions=1)
    np.testing.assert_array_equal(start, before)


# --- optimisers ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grows(hg.Optimizer):
    """The weights get another axis, or the state another row at the third step, or another dtype."""

    kind: str = "w"

    def init(self, w):
        return {"v": np.zeros(3)}

    def update(self, w, state, g, t):
        if self.kind == "w":
            return w - 0.1 * g * np.ones((2, 1)), state
        if self.kind == "dtype":
            return w - 0.1 * g, {"v": np.zeros(3, np.float32)}
        return w - 0.1 * g, {"v": np.zeros(3 + t // 2)}


class DeclaredGrows(Grows):
    """Says that it is not linear, and is trusted to keep its shapes."""

    linear_in_gradient: ClassVar[bool] = False
    update = Grows.update


@pytest.mark.parametrize("optimizer", [Grows, DeclaredGrows])
@pytest.mark.parametrize(
    ("kind", "leaf"),
    [
        ("w", r"step 0: .*w has shape \(2, 3\)"),
        ("state", r"step 2: .*state\['v'\] has shape \(4,\)"),
        ("dtype", r"step 0: .*state\['v'\] has .*float32"),
    ],
)
def test_an_update_that_does_not_keep_its_leaves(optimizer, kind, leaf):
    fails(leaf + ".*it looks like an update that does not keep its leaves", replace(SOUND, optimizer=lambda h: optimizer(kind=kind)))


@dataclass(frozen=True)
class Cubic(hg.Optimizer):
    """Says that it is linear, and is not."""

    lr: Any = 0.1
    linear_in_gradient: ClassVar[bool] = True

    def update(self, w, state, g, t):
        return w - self.lr * (g + 0.1 * g**3), state


@dataclass(frozen=True)
class Limited(hg.Optimizer):
    """Says that it is linear, and is as long as the gradient is small."""

    lr: Any = 0.1
    linear_in_gradient: ClassVar[bool] = True

    def update(self, w, state, g, t):
        return w - self.lr * hg.minimum(hg.maximum(g, -0.9), 0.9), state


@pytest.mark.parametrize("optimizer", [Cubic, Limited])
@pytest.mark.parametrize("field", [True, False])
def test_an_update_that_is_wrongly_declared_as_linear(optimizer, field):
    fails(
        rf"optimizer at step 0: the slope of {optimizer.__name__}.update in gradient, element \d, is .* linear_in_gradient = True; it "
        "looks like a declaration that is wrong",
        replace(SOUND, optimizer=lambda h: optimizer(lr=h["lr"] if field else 0.1)),
    )


def test_a_declaration_that_is_right_passes():
    @dataclass(frozen=True)
    class Decoupled(hg.Optimizer):
        lr: Any = 0.1
        linear_in_gradient: ClassVar[bool] = True

        def update(self, w, state, g, t):
            return w - self.lr * (g + 0.1 * w * w), state

    check_hypergrad(replace(SOUND, optimizer=lambda h: Decoupled(lr=h["lr"])), H, Minibatches(), directions=1)


# --- custom ops ---------------------------------------------------------------------------------------------


def cube(vjp=3.0, jvp=3.0):
    """x^3 with a factor of its own in the derivative of each mode."""
    return rules.Op(
        "planted_cube", lambda b, x: x**3, vjp=(lambda bar, out, x: bar * vjp * x * x,), jvp=(lambda dot, out, x: dot * jvp * x * x,)
    )


RULES = {"the transpose": (3.1, 3.0), "the tangent": (3.0, 3.1), "both": (3.1, 3.1)}


@pytest.mark.parametrize("fault", RULES)
def test_a_wrong_rule_in_the_inner_loss(planted, fault):
    op = cube(*RULES[fault])
    fails(
        "it looks like a wrong rule of the custom op planted_cube in (the gradient of )?inner_loss at step 0",
        replace(SOUND, inner_loss=lambda w, h, b: inner(w, h, b) + 0.1 * hg.sum(op(w))),
    )


@pytest.mark.parametrize("fault", RULES)
@pytest.mark.parametrize("argument", ["w", "gradient", "hparams['lr']"])
def test_a_wrong_rule_in_the_update(planted, fault, argument):
    op = cube(*RULES[fault])

    @dataclass(frozen=True)
    class Custom(hg.Optimizer):
        lr: Any = 0.1

        def update(self, w, state, g, t):
            return {
                "w": w - self.lr * (g + op(w)),
                "gradient": w - self.lr * (g + 0.1 * op(g)),
                "hparams['lr']": w - op(self.lr + 0.2) * g,
            }[argument], state

    message = fails(
        "it looks like a wrong rule of the custom op planted_cube in optimizer at step 0",
        replace(SOUND, optimizer=lambda h: Custom(lr=h["lr"])),
    )
    assert f"of {argument} is" in message or f"along {argument} its derivative" in message


@pytest.mark.parametrize("fault", RULES)
def test_a_wrong_rule_in_the_outer_loss(planted, fault):
    op = cube(*RULES[fault])
    fails(
        "it looks like a wrong rule of the custom op planted_cube in outer_loss: along w ",
        replace(SOUND, outer_loss=lambda w, h: outer(w, h) + hg.sum(op(w))),
    )


def test_right_rules_pass(planted):
    op = cube()
    check_hypergrad(
        replace(
            SOUND, outer_loss=lambda w, h: outer(w, h) + hg.sum(op(w)), inner_loss=lambda w, h, b: inner(w, h, b) + 0.01 * hg.sum(op(w))
        ),
        H,
        Minibatches(),
        directions=1,
    )


# --- kinks, and hyperparameters without influence -------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("outer_loss", replace(SOUND, outer_loss=lambda w, h: outer(w, h) + hg.relu(h["out"] - 0.5))),
        ("init", replace(SOUND, init=lambda h: h["w0"] + 0.1 * hg.relu(h["out"] - 0.5))),
        ("optimizer at step 0", replace(SOUND, optimizer=lambda h: hg.SGD(lr=h["lr"] + 0.1 * hg.relu(h["out"] - 0.5)))),
        ("outer_loss", replace(SOUND, outer_loss=lambda w, h: outer(w, h) + hg.relu(h["out"] - (0.5 + 1e-9)))),
    ],
)
def test_a_kink_within_the_step(place, problem):
    fails(rf"it looks like a kink within the step of {place} in hparams\['out'\]", problem)


def test_a_kink_of_the_whole_run():
    """It is where the run ends, not where a function is looked at alone."""
    end = float(hg.reverse(SOUND, H, Minibatches()).params[0])
    message = fails("it looks like a kink within the step", replace(SOUND, outer_loss=lambda w, h: outer(w, h) + hg.relu(w[0] - end)))
    assert "outer_loss in w" in message or "the objective in hparams" in message


def test_a_hyperparameter_without_influence_is_reported():
    report = check_hypergrad(SOUND, {**H, "unused": np.ones(2), "off": np.float64(-3.0)}, Minibatches(), directions=1)
    assert report.without_influence == ("hparams['off']", "hparams['unused']")
    assert report.difference_error["hparams['unused']"] == 0.0
    relu = replace(SOUND, outer_loss=lambda w, h: outer(w, h) + hg.relu(h["off"]) + 0.0 * h["unused"][0])
    report = check_hypergrad(relu, {**H, "unused": np.ones(2), "off": np.float64(-3.0)}, Minibatches(), directions=1)
    assert report.without_influence == ("hparams['off']", "hparams['unused']")


# --- running loss, outer batch, state ---------------------------------------------------------------------------

FULL = replace(SOUND, running_loss=lambda w, h, t: 0.1 * t * h["out"] * hg.sum(w**3), outer_loss=lambda w, h, b: outer(w, h) * b["factor"])
STATE = RNG.standard_normal(3)


@pytest.mark.parametrize("optimizer", [lambda h: hg.SGD(lr=h["lr"], momentum=0.5), lambda h: hg.Adam(lr=h["lr"], eps=1e-2)])
@pytest.mark.parametrize("n_steps", [0, 1, 5])
def test_everything_that_a_pass_takes(optimizer, n_steps):
    momentum = isinstance(optimizer({"lr": 0.1}), hg.SGD)
    state = STATE if momentum else {"m": STATE, "s": STATE**2}
    batches = [Minibatches()[t] for t in range(n_steps)]
    report = check_hypergrad(replace(FULL, optimizer=optimizer), H, batches, outer_batch={"factor": 1.5}, state=state)
    names = ["state"] if momentum else ["state['m']", "state['s']"]
    assert [k for k in report.difference_error if k.startswith("state")] == names
    assert set(report.without_influence) == ({*names, "hparams['decay']", "hparams['lr']"} if n_steps == 0 else set())
    expected = hg.reverse(replace(FULL, optimizer=optimizer), H, batches, outer_batch={"factor": 1.5}, state=state).value
    assert report.value == float(expected)


def test_many_hyperparameters_beside_a_state():
    def weighted(w, h, b):
        return inner(w, h, b) * hg.mean(hg.sigmoid(h["many"]))

    check_hypergrad(
        replace(FULL, inner_loss=weighted),
        {**H, "many": RNG.standard_normal(70)},
        Minibatches(),
        directions=1,
        outer_batch={"factor": 1.5},
        state=STATE,
    )


def test_a_state_that_is_cut():
    @dataclass(frozen=True)
    class Cut(hg.SGD):
        def update(self, w, state, g, t):
            return super().update(w, state if t else hg.stop_gradient(state), g, t)

    fails(
        "reverse: the derivative along a random direction of state .*a value detached .* in optimizer at step 0: along state",
        replace(FULL, optimizer=lambda h: Cut(lr=h["lr"], momentum=0.5)),
        outer_batch={"factor": 1.5},
        state=STATE,
    )


def test_trees_with_nothing_in_them():
    check_hypergrad(
        replace(
            SOUND,
            init=lambda h: {"w": h["w0"], "none": None},
            inner_loss=lambda w, h, b: inner(w["w"], h, b),
            outer_loss=lambda w, h: outer(w["w"], h),
        ),
        {**H, "none": None},
        Minibatches(),
        directions=1,
    )
