"""Steps of the optimisers. Arguments are flat: the leaves of the weights, of each state and of the gradient lie one after
the other in one array each, and a field is one number or one number per leaf.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from checks import Array, Case

import hypergrad as hg
from hypergrad.ops.optimizer_step import adagrad_step, adam_step, rmsprop_step, sgd_step

Shape = tuple[int, ...]
NUMBERS = {"lr": 0.3, "momentum": 0.7, "weight_decay": 0.1, "beta1": 0.7, "beta2": 0.8, "eps": 0.1, "decay": 0.6}
MANY = 25  # leaves: more than a launch takes
MIXED = ((3, 2), (), (1,), (0,), (5,), (2, 0, 3), (33,), (2, 1, 2))


def split(flat: Any, leaves: tuple[Shape, ...]) -> list[Any]:
    """The leaves that lie in a flat array or Tensor."""
    out, start = [], 0
    for shape in leaves:
        out.append(flat[start : start + prod(shape)].reshape(shape))
        start += prod(shape)
    return out


def joined(columns: list[list[Any]]) -> hg.Tensor:
    """All leaves in one Tensor."""
    return hg.concatenate([hg.reshape(x, (-1,)) for column in columns for x in column])


def sgd_by_hand(w: Array, v: Array, g: Array, lr: Any, mu: Any, decay: Any, *, nesterov: bool) -> tuple[Any, Any]:
    g = g + decay * w
    if v is None:
        return w - lr * g, None
    v = mu * v + g
    return w - lr * (g + mu * v if nesterov else v), v


def adam_by_hand(w: Array, m: Array, s: Array, g: Array, lr: Any, b1: Any, b2: Any, eps: Any, *, t: int) -> tuple[Array, Array, Array]:
    m, s = b1 * m + (1 - b1) * g, b2 * s + (1 - b2) * g**2
    return w - lr * (m / (1 - b1 ** (t + 1))) / np.sqrt(s / (1 - b2 ** (t + 1)) + eps), m, s


def adamw_by_hand(w: Array, m: Array, s: Array, g: Array, lr: Any, b1: Any, b2: Any, eps: Any, decay: Any, *, t: int) -> tuple[Array, ...]:
    after, m, s = adam_by_hand(w, m, s, g, lr, b1, b2, eps, t=t)
    return after - lr * decay * w, m, s


def rmsprop_by_hand(w: Array, s: Array, v: Any, g: Array, lr: Any, decay: Any, eps: Any, mu: Any) -> tuple[Any, Any, Any]:
    s = decay * s + (1 - decay) * g**2
    after = g / np.sqrt(s + eps) + (0 if v is None else mu * v)
    return w - lr * after, s, None if v is None else after


def adagrad_by_hand(w: Array, s: Array, g: Array, lr: Any, eps: Any) -> tuple[Array, Array]:
    s = s + g**2
    return w - lr * g / np.sqrt(s + eps), s


ADAM_FIELDS = ("lr", "beta1", "beta2", "eps")
STEPS: dict[str, tuple[Any, Any, tuple[str, ...], tuple[str, ...]]] = {  # step, by hand, states, fields
    "sgd_step": (sgd_step, sgd_by_hand, ("w", "v", "g"), ("lr", "momentum", "weight_decay")),
    "adam_step": (adam_step, adam_by_hand, ("w", "m", "s", "g"), ADAM_FIELDS),
    "adamw_step": (adam_step, adamw_by_hand, ("w", "m", "s", "g"), (*ADAM_FIELDS, "weight_decay")),
    "rmsprop_step": (rmsprop_step, rmsprop_by_hand, ("w", "s", "v", "g"), ("lr", "decay", "eps", "momentum")),
    "adagrad_step": (adagrad_step, adagrad_by_hand, ("w", "s", "g"), ("lr", "eps")),
}


def step_case(
    name: str,
    leaves: tuple[Shape, ...],
    arrays: dict[str, str],
    detail: str = "",
    *,
    plain: bool = False,
    seed: int = 0,
    numbers: dict[str, float] | None = None,
    **extra: Any,
) -> Case:
    """A step on `leaves`; a field in `arrays` is an array that is "shared" or there for "each" leaf. `plain` has no velocity."""
    step, by_hand, columns_of, fields_of = STEPS[name]
    states = tuple(k for k in columns_of if k != "v" or not plain)
    given = [k for k in fields_of if k in arrays]
    fixed = {**NUMBERS, **(numbers or {}), **({"momentum": 0.0} if plain else {})}
    size, n = sum(prod(s) for s in leaves), len(leaves)
    shapes = (*((size,) for _ in states), *(() if arrays[k] == "shared" else (n,) for k in given))

    def unpack(args: Any) -> tuple[list[Any], list[Any]]:
        columns = {k: split(a, leaves) for k, a in zip(states, args, strict=False)}
        found = dict(zip(given, args[len(states) :], strict=True))
        fields = [fixed[k] if k not in found else found[k] if arrays[k] == "shared" else [found[k][i] for i in range(n)] for k in fields_of]
        return [columns.get(k) for k in columns_of], fields

    def f(*args: Any) -> hg.Tensor:
        columns, fields = unpack(args)
        return joined([x for x in step(*columns, *fields, **extra) if x is not None])

    def reference(*args: Array) -> Array:
        columns, fields = unpack(args)
        after = []
        for i in range(n):
            own = [None if c is None else c[i] for c in columns]
            at = [x[i] if isinstance(x, list) else x for x in fields]
            after.append(by_hand(*own, *at, **extra))
        return np.concatenate([np.ravel(x) for column in zip(*after, strict=True) for x in column if x is not None])

    def make(rng: np.random.Generator) -> list[Array]:
        ranges = {
            "s": (1.0, 2.0),
            "lr": (0.1, 0.5),
            "momentum": (0.3, 0.9),
            "weight_decay": (0.05, 0.5),
            "beta1": (0.3, 0.6),
            "beta2": (0.4, 0.6),
            "eps": (0.1, 0.3),
            "decay": (0.3, 0.6),
        }
        return [rng.uniform(*ranges.get(k, (-1.5, 1.5)), s) for k, s in zip((*states, *given), shapes, strict=True)]

    return Case(f"{name}[{detail or leaves}]", f, reference, shapes, make=make, seed=seed, composed=n >= MANY)


SHARED = {k: "shared" for k in NUMBERS}
EACH = {k: "each" for k in NUMBERS}
CASES: list[Case] = [
    step_case("sgd_step", ((4,),), {}, "numbers", nesterov=False),
    step_case("sgd_step", MIXED, {}, "numbers, odd leaves, Nesterov", nesterov=True),
    step_case("sgd_step", MIXED, {}, "no velocity", plain=True, nesterov=False),
    step_case("sgd_step", MIXED, {"lr": "shared"}, "no velocity, no decay", plain=True, nesterov=False, numbers={"weight_decay": 0.0}),
    step_case("sgd_step", MIXED, SHARED, "shared fields", nesterov=False),
    step_case("sgd_step", MIXED, SHARED, "shared fields, Nesterov", nesterov=True),
    step_case("sgd_step", MIXED, EACH, "a field per leaf", nesterov=False),
    step_case("sgd_step", MIXED, {"lr": "each", "momentum": "shared"}, "both kinds, Nesterov", nesterov=True),
    step_case("sgd_step", ((7,),), {"lr": "each", "weight_decay": "shared"}, "one leaf", nesterov=False),
    step_case("sgd_step", tuple((i % 4,) for i in range(50)), EACH, "50 leaves", nesterov=False),
    step_case("sgd_step", ((1025,), (257,)), SHARED, "larger leaves", nesterov=False),
    step_case("adam_step", ((4,),), {}, "numbers", t=0),
    step_case("adam_step", MIXED, SHARED, "shared fields", t=2),
    step_case("adam_step", MIXED, SHARED, "shared fields, first step", t=0),
    step_case("adam_step", MIXED, EACH, "a field per leaf", t=1),
    step_case("adam_step", MIXED, {"beta1": "each", "eps": "shared"}, "both kinds", t=3),
    step_case("adam_step", tuple((i % 3,) for i in range(25)), {"lr": "each"}, "25 leaves", t=1),
    step_case("adam_step", ((257,),), SHARED, "a larger leaf", t=1),
    step_case("adamw_step", ((4,),), {}, "numbers", t=0),
    step_case("adamw_step", MIXED, SHARED, "shared fields", t=2),
    step_case("adamw_step", MIXED, EACH, "a field per leaf", t=1),
    step_case("adamw_step", MIXED, {"beta1": "each", "weight_decay": "shared"}, "both kinds", t=3),
    step_case("adamw_step", tuple((i % 3,) for i in range(25)), {"weight_decay": "each"}, "25 leaves", t=1),
    step_case("adamw_step", ((257,),), SHARED, "a larger leaf", t=1),
    step_case("rmsprop_step", ((4,),), {}, "numbers"),
    step_case("rmsprop_step", MIXED, SHARED, "shared fields"),
    step_case("rmsprop_step", MIXED, EACH, "a field per leaf"),
    step_case("rmsprop_step", MIXED, {"decay": "each", "momentum": "shared"}, "both kinds"),
    step_case("rmsprop_step", MIXED, {"lr": "shared", "decay": "each", "eps": "shared"}, "no velocity", plain=True),
    step_case("rmsprop_step", tuple((i % 3,) for i in range(25)), {"momentum": "each"}, "25 leaves"),
    step_case("rmsprop_step", ((257,),), SHARED, "a larger leaf"),
    step_case("adagrad_step", ((4,),), {}, "numbers"),
    step_case("adagrad_step", MIXED, SHARED, "shared fields"),
    step_case("adagrad_step", MIXED, EACH, "a field per leaf"),
    step_case("adagrad_step", MIXED, {"lr": "each", "eps": "shared"}, "both kinds"),
    step_case("adagrad_step", tuple((i % 3,) for i in range(25)), {"lr": "each"}, "25 leaves"),
    step_case("adagrad_step", ((257,),), SHARED, "a larger leaf"),
]
