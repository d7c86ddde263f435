"""Products, running products, variances, norms, order, and elements written at places."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from checks import Array, Case

import hypergrad as hg
from cases.elementwise import two_sided
from cases.reductions import gap, naive_logsumexp, spread

CASES: list[Case] = []


def reduced(name: str, axis=None, keepdims: bool = False, shape: tuple[int, ...] = (2, 3, 2), make=None, margin=None, **options) -> None:
    given = {"axis": axis, "keepdims": keepdims, **options}
    detail = ", ".join(f"{k}={v}" for k, v in given.items())
    f, reference = (lambda x, m=m: getattr(m, name)(x, **given) for m in (hg, np))
    CASES.append(Case(f"{name}[{list(shape)}, {detail}]", f, reference, (shape,), make=make, margin=margin))


def smallest(axis, x: Array) -> float:
    return gap(axis, -x)


reduced("min", (0, 2), make=partial(spread, (2, 3, 2)), margin=partial(smallest, (0, 2)))
reduced("min", keepdims=True, make=partial(spread, (2, 3, 2)), margin=partial(smallest, None))
reduced("prod", 1)
reduced("prod", shape=(5,))
reduced("var", (0, 2), ddof=1)
reduced("var", 1, True)
reduced("std", 1)
reduced("median", 1, make=partial(spread, (2, 3, 2)))
reduced("median", make=partial(spread, (2, 3, 2)))
for _shape, _axis in (((2, 3), 1), ((4,), None)):
    CASES.append(Case(f"cumprod[{list(_shape)}]", partial(hg.cumprod, axis=_axis), partial(np.cumprod, axis=_axis), (_shape,)))
CASES.append(Case("log_softmax", partial(hg.log_softmax, axis=0), lambda x: x - naive_logsumexp(x, 0, True), ((3, 2),)))
CASES.append(Case("prod[zeros]", lambda x: hg.prod(hg.where(np.array([True, False, True]), x, 0.0)), lambda x: 0 * np.prod(x), ((3,),)))

for _ord, _axis in ((None, None), (2, 1), (3, 0), (1, 1)):
    CASES.append(
        Case(
            f"norm[{_ord}, {_axis}]",
            partial(hg.norm, ord=_ord, axis=_axis),
            partial(np.linalg.norm, ord=_ord, axis=_axis),
            ((2, 3),),
            make=partial(two_sided, (2, 3)),
        )
    )
for _ord in ("fro", "nuc", np.inf):
    CASES.append(
        Case(
            f"norm[{_ord}, matrices]",
            partial(hg.norm, ord=_ord, axis=(2, 0), keepdims=True),
            partial(np.linalg.norm, ord=_ord, axis=(2, 0), keepdims=True),
            ((2, 2, 3),),
            make=partial(two_sided, (2, 2, 3)),
            margin=None if _ord != np.inf else lambda x: gap(0, np.abs(x).sum(0).T),
        )
    )

# --- order and places ----------------------------------------------------------------------------------------------------

_index = np.array([[2, 0, 2, 1], [1, 1, 0, 0]])


def largest(x: Array, k: int) -> Array:
    return -np.sort(-x, -1)[..., :k]


def written(x: Array, y: Array, add: bool) -> Array:
    out = x.copy()
    if add:
        np.add.at(out, (slice(None), [2, 0, 2]), y)
    else:
        out[:, [2, 0, 2]] = y
    return out


_distinct = partial(spread, (2, 4))
CASES += [
    Case("sort", partial(hg.sort, axis=0), partial(np.sort, axis=0), ((2, 4),), make=_distinct),
    Case("sort[all]", partial(hg.sort, axis=None), partial(np.sort, axis=None), ((2, 4),), make=_distinct),
    Case("partition", lambda x: hg.partition(x, 1), lambda x: np.sort(x), ((2, 4),), make=_distinct),
    Case("topk", lambda x: hg.topk(x, 2)[0], partial(largest, k=2), ((2, 4),), make=_distinct),
    Case("take_along_axis", lambda x: hg.take_along_axis(x, _index, 1), lambda x: np.take_along_axis(x, _index, 1), ((2, 3),), exact=True),
    Case("add_at", lambda x, y: hg.add_at(x, (slice(None), [2, 0, 2]), y), partial(written, add=True), ((2, 3), (3,)), exact=True),
    Case("set_at", lambda x, y: hg.set_at(x, (slice(None), [2, 0, 2]), y), partial(written, add=False), ((2, 3), (3,)), exact=True),
    Case(
        "methods[of reductions]",
        lambda x: x.std(0) * x.min(0) + x.var(1, keepdims=True) * x.prod() + x.cumprod(0)[1] + x.clip(-5, 5)[0] * x.max(),
        lambda x: x.std(0) * x.min(0) + x.var(1, keepdims=True) * x.prod() + x.cumprod(0)[1] + x.clip(-5, 5)[0] * x.max(),
        ((2, 3),),
        make=partial(spread, (2, 3)),
    ),
]

COMPOSED = (
    "min",
    "prod",
    "var",
    "std",
    "median",
    "cumprod",
    "log_softmax",
    "sort",
    "partition",
    "topk",
    "take_along_axis",
    "add_at",
    "set_at",
    "methods",
    "norm[3",
    "norm[1",
    "norm[inf",
)
CASES = [replace(case, composed=case.name.startswith(COMPOSED)) for case in CASES]
