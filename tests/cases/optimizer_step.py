"""Steps of the optimisers. Arguments are flat: the leaves of the weights, of each state and of the gradient lie one after
the other in one array each, and a field is one number or one number per leaf.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from checks import Array, Case

import hypergrad as hg
from hypergrad.ops.optimizer_step import adam_step, sgd_step

Shape = tuple[int, ...]
NUMBERS = {"lr": 0.3, "momentum": 0.7, "weight_decay": 0.1, "beta1": 0.7, "beta2": 0.8, "eps": 0.1}
FIELDS = {"sgd_step": ("lr", "momentum", "weight_decay"), "adam_step": ("lr", "beta1", "beta2", "eps")}
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
    sgd = name == "sgd_step"
    states = ("w", "g") if plain else ("w", "v", "g") if sgd else ("w", "m", "s", "g")
    given = [k for k in FIELDS[name] if k in arrays]
    fixed = {**NUMBERS, **(numbers or {}), **({"momentum": 0.0} if plain else {})}
    size, n = sum(prod(s) for s in leaves), len(leaves)
    shapes = (*((size,) for _ in states), *(() if arrays[k] == "shared" else (n,) for k in given))

    def unpack(args: Any) -> tuple[list[Any], list[Any]]:
        columns = {k: split(a, leaves) for k, a in zip(states, args, strict=False)}
        found = dict(zip(given, args[len(states) :], strict=True))
        fields = [
            fixed[k] if k not in found else found[k] if arrays[k] == "shared" else [found[k][i] for i in range(n)] for k in FIELDS[name]
        ]
        return [columns.get(k) for k in (("w", "v", "g") if sgd else states)], fields

    def f(*args: Any) -> hg.Tensor:
        columns, fields = unpack(args)
        if sgd:
            w, v = sgd_step(*columns, *fields, **extra)
            return joined([w] if v is None else [w, v])
        return joined(list(adam_step(*columns, *fields, **extra)))

    def reference(*args: Array) -> Array:
        columns, fields = unpack(args)
        after = []
        for i in range(n):
            own = [None if c is None else c[i] for c in columns]
            at = [x[i] if isinstance(x, list) else x for x in fields]
            after.append(sgd_by_hand(*own, *at, **extra) if sgd else adam_by_hand(*own, *at, **extra))
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
        }
        return [rng.uniform(*ranges.get(k, (-1.5, 1.5)), s) for k, s in zip((*states, *given), shapes, strict=True)]

    return Case(f"{name}[{detail or leaves}]", f, reference, shapes, make=make, seed=seed)


def sgd_by_hand(w: Array, v: Array, g: Array, lr: Any, mu: Any, decay: Any, *, nesterov: bool) -> tuple[Any, Any]:
    g = g + decay * w
    if v is None:
        return w - lr * g, None
    v = mu * v + g
    return w - lr * (g + mu * v if nesterov else v), v


def adam_by_hand(w: Array, m: Array, s: Array, g: Array, lr: Any, b1: Any, b2: Any, eps: Any, *, t: int) -> tuple[Array, Array, Array]:
    m, s = b1 * m + (1 - b1) * g, b2 * s + (1 - b2) * g**2
    return w - lr * (m / (1 - b1 ** (t + 1))) / np.sqrt(s / (1 - b2 ** (t + 1)) + eps), m, s


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
]
