"""A user's own optimisers: what would lose a hyperparameter is refused where the class is made or first used."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import optree
import pytest

import hypergrad as hg
from hypergrad.errors import ArgumentError, DTypeError, ShapeError
from hypergrad.testing import check_hypergrad

H = {"lr": np.array(0.1), "a": np.array(0.7)}


def problem(optimizer):
    return hg.Bilevel(
        lambda w, h, b: hg.sum(hg.exp(0.3 * w["x"])) + hg.sum(w["y"] ** 2),
        lambda w, h: hg.sum(w["x"] ** 2) + hg.sum(w["y"]),
        lambda h: {"x": h["a"] * np.arange(3.0), "y": np.ones((2, 2))},
        optimizer,
    )


def run(optimizer):
    return hg.reverse(problem(optimizer), H, hg.full_batch(None, 3))


def descend(self, w, state, g, t):
    return optree.tree_map(lambda x, y: x - self.lr * y, w, g), state


# --- classes ----------------------------------------------------------------------------------------------------------


def test_an_own_init_is_refused_where_the_class_is_made():
    with pytest.raises(ArgumentError, match=r"optimizer: Mine defines __init__.*@dataclass\(frozen=True\)"):

        class Mine(hg.Optimizer):
            def __init__(self, lr=0.1):
                object.__setattr__(self, "lr", lr)

            update = descend

    with pytest.raises(ArgumentError, match="defines __init__"):

        class Louder(hg.SGD):
            def __init__(self, lr):
                super().__init__(lr=2 * lr)


def test_fields_without_the_decorator_are_refused_where_it_is_first_used():
    class Mine(hg.Optimizer):
        lr: Any = 0.1
        update = descend

    with pytest.raises(ArgumentError, match=r"optimizer: Mine declares lr but is no dataclass.*@dataclass\(frozen=True\)"):
        Mine()

    class Faster(hg.SGD):
        factor: Any = 2.0

    with pytest.raises(ArgumentError, match="Faster declares factor"):
        Faster(lr=0.1)


@pytest.mark.parametrize("name", ["updat", "upadte", "udpate", "updates", "update_", "Update", "initt"])
def test_a_misspelt_method_is_refused(name):
    with pytest.raises(ArgumentError, match=f"optimizer: Mine defines {name}, expected (update|init)"):
        type("Mine", (hg.Optimizer,), {name: descend})
    with pytest.raises(ArgumentError, match=f"optimizer: Mine defines {name}"):
        type("Mine", (hg.SGD,), {name: descend})


def test_no_update_at_all_is_refused():
    @dataclass(frozen=True)
    class Mine(hg.Optimizer):
        lr: Any = 0.1

    with pytest.raises(ArgumentError, match="optimizer: Mine has no update"):
        Mine()
    with pytest.raises(ArgumentError, match="optimizer: Optimizer has no update"):
        hg.Optimizer().step(np.ones(2), None, np.ones(2), 0)


def test_what_a_dataclass_allows_is_allowed():
    @dataclass(frozen=True, slots=True)
    class Slotted(hg.Optimizer):
        lr: Any
        update = descend

    @dataclass(frozen=True)
    class Derived(hg.Optimizer):
        lr: Any
        doubled: Any = field(init=False, default=None)
        note: ClassVar[str] = "kept"

        def update(self, w, state, g, t):
            return optree.tree_map(lambda x, y: x - self.rate() * y, w, g), state

        def rate(self):
            return self.lr * 2.0

    class Quiet(hg.SGD):
        """Neither fields nor methods."""

        unit = "steps"

    for make in (lambda h: Slotted(lr=h["lr"]), lambda h: Quiet(lr=h["lr"]), lambda h: Quiet(h["lr"], 0.5)):
        assert run(make).grad["lr"] != 0
    assert Derived(lr=0.1).rate() == 0.2
    check_hypergrad(problem(lambda h: Slotted(lr=h["lr"])), H, hg.full_batch(None, 3))


# --- what a step returns -------------------------------------------------------------------------------------------------


def make(update, init=None):
    return dataclass(frozen=True)(
        type("Mine", (hg.Optimizer,), {"__annotations__": {"lr": Any}, "update": update, **({} if init is None else {"init": init})})
    )


@pytest.mark.parametrize(
    ("update", "error", "message"),
    [
        (lambda self, w, s, g, t: None, ArgumentError, "Mine.update returned a NoneType, expected the pair"),
        (lambda self, w, s, g, t: w, ArgumentError, "Mine.update returned a dict, expected the pair"),
        (lambda self, w, s, g, t: (w, w), ArgumentError, "Mine.update: state has the structure"),
        (lambda self, w, s, g, t: (w["x"], s), ArgumentError, "Mine.update: w has the structure"),
        (lambda self, w, s, g, t: ({**w, "x": w["x"] * np.ones((2, 3))}, s), ShapeError, r"Mine.update: w\['x'\] has shape \(2, 3\)"),
        (lambda self, w, s, g, t: ({**w, "y": hg.sum(w["y"])}, s), ShapeError, r"Mine.update: w\['y'\] has shape \(\)"),
        (lambda self, w, s, g, t: ({**w, "x": np.ones(3, np.float32)}, s), DTypeError, r"Mine.update: w\['x'\] has .* dtype float32"),
        (lambda self, w, s, g, t: ({**w, "x": w["x"].value.astype(int)}, s), DTypeError, "cannot be followed.*int64"),
    ],
)
def test_an_update_returns_what_it_got(update, error, message):
    with pytest.raises(error, match=message):
        run(lambda h: make(update)(lr=h["lr"]))


@pytest.mark.parametrize("linear", [True, False])
def test_an_own_update_is_checked_whatever_it_declares(linear):
    enlarging = make(lambda self, w, s, g, t: (optree.tree_map(lambda x, y: x - self.lr * y * np.ones((2, 1)), w, g), s))
    enlarging.linear_in_gradient = linear
    with pytest.raises(ShapeError, match=r"Mine.update: w\['x'\] has shape \(2, 3\)"):
        run(lambda h: enlarging(lr=h["lr"]))


def test_init_and_update_may_return_numpy_arrays():
    counting = make(
        lambda self, w, s, g, t: (optree.tree_map(lambda x, y: x - self.lr * y, w, g), {"n": np.full(2, t + 1.0)}),
        init=lambda self, w: {"n": np.zeros(2)},
    )
    r = run(lambda h: counting(lr=h["lr"]))
    assert np.array_equal(r.state["n"], [3.0, 3.0]) and r.grad["lr"] == run(lambda h: hg.SGD(lr=h["lr"])).grad["lr"]


def test_an_init_that_depends_on_the_weights_and_the_fields_is_differentiated():
    """An average that starts from the weights: the derivative through the start counts."""

    def update(self, w, average, g, t):
        w = optree.tree_map(lambda x, y: x - self.lr * y, w, g)
        average = optree.tree_map(lambda a, x: 0.5 * a + 0.5 * x, average, w)
        return optree.tree_map(lambda x, a: 0.9 * x + 0.1 * a, w, average), average

    averaging = make(update, init=lambda self, w: optree.tree_map(lambda x: x * self.lr * 10.0, w))
    check_hypergrad(problem(lambda h: averaging(lr=h["lr"])), H, hg.full_batch(None, 3), rtol=1e-8)


def test_a_tensor_that_hides_in_the_optimiser_is_refused():
    """A closure over a hyperparameter is no field: its derivative would be lost."""

    def optimizer(h):
        return make(lambda self, w, s, g, t: (optree.tree_map(lambda x, y: x - h["lr"] * y, w, g), s))(lr=0.1)

    with pytest.raises(hg.errors.DifferentiationError, match="pass the Tensor through hparams"):
        run(optimizer)


@pytest.mark.filterwarnings("ignore:.*no influence")
def test_fields_that_are_no_arrays_stay_as_they_are():
    scaled = make(lambda self, w, s, g, t: (optree.tree_map(lambda x, y: x - 0.1 * self.lr(y), w, g), s))
    assert run(lambda h: scaled(lr=hg.tanh)).value > 0
    named = make(lambda self, w, s, g, t: (optree.tree_map(lambda x, y: x - {"slow": 0.1}[self.lr] * y, w, g), s))
    assert run(lambda h: named(lr="slow")).value == run(lambda h: hg.SGD(lr=0.1)).value
