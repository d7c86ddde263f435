"""Optimisers whose update is not linear in the gradient: the passes must not take it for linear, whatever the class inherits."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import optree
import pytest

import hypergrad as hg
from hypergrad.testing import check_hypergrad

pytestmark = pytest.mark.filterwarnings("ignore:.*no influence")  # fixtures with more hyperparameters than a test reads

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((12, 4)), RNG.standard_normal((12, 2))


def clipped(g, limit):
    return optree.tree_map(lambda x: hg.minimum(hg.maximum(x, -limit), limit), g)


def each(f):
    """f on every leaf of trees."""
    return lambda *trees: optree.tree_map(f, *trees)


def limited(tree, limit):
    """Scaled to a norm of at most `limit`."""
    norm = hg.sqrt(sum(hg.sum(x * x) for x in optree.tree_leaves(tree)) + 1e-12)
    return each(lambda x: x * hg.minimum(1.0, limit / norm))(tree)


def own(base, before=lambda self, g, w: g, after=lambda self, w: w, **fields):
    """A subclass that changes the gradient before the base's update, or the weights after it."""

    def update(self, w, state, g, t):
        w, state = base.update(self, w, state, before(self, g, w), t)
        return after(self, w), state

    namespace = {"__annotations__": dict.fromkeys(fields, Any), "update": update, **fields}
    return dataclass(frozen=True)(type("Own", (base,), namespace))


ValueClippedSGD = own(hg.SGD, lambda self, g, w: clipped(g, self.limit), limit=0.05)
NormClippedSGD = own(hg.SGD, lambda self, g, w: limited(g, self.limit), limit=0.05)
NormalisedSGD = own(hg.SGD, lambda self, g, w: each(lambda x: x / hg.sqrt(hg.sum(x * x) + 1e-6))(g))
ProjectedSGD = own(hg.SGD, after=lambda self, w: limited(w, self.radius), radius=1.2)
BoxSGD = own(hg.SGD, after=lambda self, w: clipped(w, 0.6))
# A gradient step and the proximal map of an L1 penalty.
ISTA = own(hg.SGD, after=lambda self, w: each(lambda x: hg.relu(x - self.lr * self.l1) - hg.relu(-x - self.lr * self.l1))(w), l1=0.02)
TanhSGD = own(hg.SGD, lambda self, g, w: each(lambda x: hg.tanh(3.0 * x))(g))
BoundedWeightsSGD = own(hg.SGD, after=lambda self, w: each(hg.tanh)(w))
SquaredGradientSGD = own(hg.SGD, lambda self, g, w: each(lambda x: x + x * x)(g))
# Linear in the gradient, with a slope that depends on the weights.
WeightedGradientSGD = own(hg.SGD, lambda self, g, w: each(lambda x, y: x * (1.0 + y * y))(g, w))
ValueClippedAdam = own(hg.Adam, lambda self, g, w: clipped(g, 0.05))
ProjectedAdam = own(hg.Adam, after=lambda self, w: clipped(w, 0.6))
ValueClippedRMSprop = own(hg.RMSprop, lambda self, g, w: clipped(g, 0.05))


class Clipping:
    """A mixin in front of an optimiser."""

    def update(self, w, state, g, t):
        return super().update(w, state, clipped(g, 0.05), t)


@dataclass(frozen=True)
class MixedSGD(Clipping, hg.SGD):
    pass


@dataclass(frozen=True)
class SignLike(hg.Optimizer):
    """An optimiser from nothing, with a state of its own that its init returns as NumPy arrays."""

    lr: Any
    decay: Any = 0.5

    def init(self, w):
        return optree.tree_map(lambda x: np.zeros(x.shape), w)

    def update(self, w, state, g, t):
        m = optree.tree_map(lambda m, x: self.decay * m + (1.0 - self.decay) * hg.tanh(5.0 * x), state, g)
        return optree.tree_map(lambda x, m: x - self.lr * m, w, m), m


OPTIMIZERS = {
    "value-clipped SGD": lambda h: ValueClippedSGD(lr=h["lr"], limit=h["a"]),
    "value-clipped momentum": lambda h: ValueClippedSGD(lr=h["lr"], momentum=h["mu"], limit=h["a"]),
    "value-clipped Nesterov": lambda h: ValueClippedSGD(lr=h["lr"], momentum=h["mu"], nesterov=True, limit=h["a"]),
    "norm-clipped SGD": lambda h: NormClippedSGD(lr=h["lr"], limit=h["a"]),
    "norm-clipped Nesterov": lambda h: NormClippedSGD(lr=h["lr"], momentum=h["mu"], nesterov=True, limit=h["a"]),
    "normalised SGD": lambda h: NormalisedSGD(lr=h["lr"], momentum=h["mu"]),
    "projected SGD": lambda h: ProjectedSGD(lr=h["lr"], radius=10.0 * h["a"]),
    "box": lambda h: BoxSGD(lr=h["lr"], momentum=h["mu"]),
    "ISTA": lambda h: ISTA(lr=h["lr"], l1=h["a"]),
    "tanh of the gradient": lambda h: TanhSGD(lr=h["lr"], momentum=h["mu"]),
    "tanh of the weights": lambda h: BoundedWeightsSGD(lr=h["lr"]),
    "squared gradient": lambda h: SquaredGradientSGD(lr=h["lr"]),
    "gradient times weights": lambda h: WeightedGradientSGD(lr=h["lr"], momentum=h["mu"]),
    "a mixin": lambda h: MixedSGD(lr=h["lr"]),
    "value-clipped Adam": lambda h: ValueClippedAdam(lr=h["lr"], beta1=h["mu"], eps=1e-3),
    "projected Adam": lambda h: ProjectedAdam(lr=h["lr"], eps=1e-3),
    "from nothing": lambda h: SignLike(lr=h["lr"], decay=h["mu"]),
    "clip_by_value": lambda h: hg.SGD(lr=h["lr"], momentum=h["mu"], clip=hg.clip_by_value(h["a"])),
    "clip_by_norm": lambda h: hg.SGD(lr=h["lr"], momentum=h["mu"], nesterov=True, clip=hg.clip_by_norm(h["a"])),
    "clip_by_norm, Adam": lambda h: hg.Adam(lr=h["lr"], eps=1e-3, clip=hg.clip_by_norm(h["a"])),
    "AdamW": lambda h: hg.AdamW(lr=0.2 * h["lr"], beta1=h["mu"], eps=1e-3, weight_decay=h["a"]),
    "RMSprop": lambda h: hg.RMSprop(lr=0.1 * h["lr"], decay=h["mu"], eps=1e-3),
    "RMSprop with momentum": lambda h: hg.RMSprop(lr=0.1 * h["lr"], eps=1e-3, momentum=h["mu"]),
    "Adagrad": lambda h: hg.Adagrad(lr=h["lr"], eps=h["a"]),
    "value-clipped RMSprop": lambda h: ValueClippedRMSprop(lr=0.1 * h["lr"], decay=h["mu"], eps=1e-3),
    "clip_by_norm, AdamW": lambda h: hg.AdamW(lr=0.2 * h["lr"], eps=1e-3, weight_decay=h["mu"], clip=hg.clip_by_norm(h["a"])),
    "clip_by_norm, Adagrad": lambda h: hg.Adagrad(lr=h["lr"], eps=1e-3, clip=hg.clip_by_norm(h["a"])),
    "clip_by_norm, own": lambda h: SignLike(lr=h["lr"], clip=hg.clip_by_norm(h["a"])),
    "fixed limits": lambda h: hg.SGD(lr=0.1, clip=hg.clip_by_value(0.05)),
}


def inner(w, h, batch):
    """The gradient's elements differ in size, and so some of them are clipped and some are not."""
    return hg.mean((hg.tanh(X @ w["w"] + w["b"]) - Y) ** 2 * h["weights"][:, None])


def problem(optimizer):
    start = np.random.default_rng(1).standard_normal((4, 2)) * 0.5
    return hg.Bilevel(
        inner,
        lambda w, h: hg.sum(w["w"] ** 2) + hg.sum(w["b"] * np.array([1.0, -2.0])),
        lambda h: {"w": start * h["scale"], "b": np.array([0.1, -0.2])},
        optimizer,
    )


def hparams():
    return {"lr": np.array(0.3), "mu": np.array(0.6), "a": np.array(0.08), "scale": np.array(1.1), "weights": np.linspace(0.5, 1.5, 12)}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_policy_and_forward_mode_and_differences_agree(name):
    report = check_hypergrad(
        problem(OPTIMIZERS[name]), hparams(), hg.full_batch(None, 5), rtol=1e-8, forward_rtol=1e-11, checkpoints=("sqrt", 1, 2, 3)
    )
    assert max(report.difference_error.values()) < 1e-8 and report.forward_error < 1e-11


def test_clipping_is_active_in_some_elements_only():
    """Or the agreement above would show nothing."""
    w = {"w": np.random.default_rng(1).standard_normal((4, 2)) * 0.55, "b": np.array([0.1, -0.2])}
    sizes = np.abs(np.concatenate([x.ravel() for x in optree.tree_leaves(hg.grad(inner)(w, hparams(), None))]))
    assert (sizes > 0.08).any() and (sizes < 0.08).any()


def test_by_hand():
    """L = w h, w_0 = 1, h = 3, lr = 1, the gradient clipped to 1, one step, E = w: w_1 = 0 whatever h > 1."""
    p = hg.Bilevel(lambda w, h, b: w * h, lambda w, h: w, lambda h: np.array(1.0), lambda h: ValueClippedSGD(lr=1.0, limit=1.0))
    r = hg.reverse(p, np.array(3.0), hg.full_batch(None, 1))
    assert r.value == 0 and r.grad == 0
    assert hg.reverse(p, np.array(0.5), hg.full_batch(None, 1)).grad == -1


def test_what_is_linear_is_said_by_the_class_that_defines_the_update():
    @dataclass(frozen=True)
    class Renamed(hg.SGD):
        """Nothing but another default."""

        momentum: Any = 0.9

    @dataclass(frozen=True)
    class Half(hg.Optimizer):
        lr: Any
        linear_in_gradient: ClassVar[bool] = True

        def update(self, w, state, g, t):
            return optree.tree_map(lambda x, y: x - 0.5 * self.lr * y, w, g), state

    @dataclass(frozen=True)
    class HalfClipped(Half):
        def update(self, w, state, g, t):
            return super().update(w, state, clipped(g, 0.05), t)

    assert hg.SGD(lr=0.1).is_linear() and Renamed(lr=0.1).is_linear() and Half(lr=0.1).is_linear()
    for other in (
        hg.Adam(lr=0.1),
        hg.AdamW(lr=0.1),
        hg.RMSprop(lr=0.1),
        hg.Adagrad(lr=0.1),
        ValueClippedSGD(lr=0.1),
        MixedSGD(lr=0.1),
        HalfClipped(lr=0.1),
        Half(lr=0.1, clip=hg.clip_by_value(1.0)),
        hg.SGD(lr=0.1, clip=hg.clip_by_norm(1.0)),
    ):
        assert not other.is_linear(), other
    for optimizer in (lambda h: Renamed(lr=h["lr"]), lambda h: Half(lr=h["lr"]), lambda h: HalfClipped(lr=h["lr"])):
        check_hypergrad(problem(optimizer), hparams(), hg.full_batch(None, 4), rtol=1e-8)


@pytest.mark.parametrize("clip", [hg.clip_by_value, hg.clip_by_norm])
def test_limits(clip):
    g = {"a": np.array([3.0, -0.5]), "b": np.array(-4.0)}
    w = optree.tree_map(np.zeros_like, g)
    step, _ = hg.SGD(lr=1.0, clip=clip(2.0)).step(w, None, g, 0)
    expected = {"a": [-2.0, 0.5], "b": 2.0} if clip is hg.clip_by_value else {k: -x * 2.0 / np.sqrt(25.25) for k, x in g.items()}
    for k in g:
        np.testing.assert_allclose(step[k], expected[k], rtol=1e-15)
    untouched, _ = hg.SGD(lr=1.0, clip=clip(50.0)).step(w, None, g, 0)
    assert all(np.array_equal(untouched[k], -g[k]) for k in g)
    for limit in (0, -1.0, float("nan")):
        with pytest.raises(hg.errors.ArgumentError, match=f"{clip.__name__}: limit has"):
            clip(limit)


def test_clipping_by_norm_has_a_derivative_where_the_gradient_is_zero():
    p = hg.Bilevel(
        lambda w, h, b: hg.sum((w - h) ** 2),
        lambda w, h: hg.sum(w),
        lambda h: np.zeros(3),
        lambda h: hg.SGD(lr=0.1, clip=hg.clip_by_norm(1.0)),
    )
    np.testing.assert_allclose(hg.reverse(p, np.zeros(3), hg.full_batch(None, 2)).grad, 1 - 0.8**2, rtol=1e-14)
