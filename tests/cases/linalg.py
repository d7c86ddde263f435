"""Products: matmul in every combination of axes, einsum, linear."""

from __future__ import annotations

from functools import partial

import numpy as np
from checks import Array, Case

import hypergrad as hg

CASES: list[Case] = []

for _x, _y in (
    ((2, 3), (3, 4)),
    ((3,), (3,)),
    ((3,), (3, 2)),
    ((2, 3), (3,)),
    ((2, 2, 3), (3, 4)),
    ((2, 3), (2, 3, 2)),
    ((2, 1, 2, 3), (3, 3, 2)),
    ((2, 2, 3, 1, 2), (2, 1, 2, 2)),
    ((3,), (2, 3, 2)),
    ((2, 2, 3), (3,)),
    ((0, 3), (3, 2)),
    ((2, 0), (0, 3)),
    ((1, 1), (1, 1)),
    ((31, 33), (33, 5)),
    ((1, 257), (257, 1)),
    ((1025,), (1025,)),
):
    CASES.append(Case(f"matmul{list(_x)}{list(_y)}", hg.matmul, np.matmul, (_x, _y), exact=True))
CASES.append(Case("matmul[@]", lambda x, y: x @ y, np.matmul, ((2, 3), (3, 2)), exact=True))
CASES.append(
    Case("matmul[constant @]", lambda x: np.ones((2, 3), x.dtype) @ x, lambda x: np.ones((2, 3), x.dtype) @ x, ((3, 2),), exact=True)
)

for _terms, _shapes in (
    ("nd,dk->nk", ((3, 4), (4, 2))),
    ("nd,dk->kn", ((3, 4), (4, 2))),
    ("i,i->", ((5,), (5,))),
    ("i,j->ij", ((3,), (2,))),
    ("i,j->ji", ((3,), (2,))),
    ("bij,bjk->bik", ((2, 3, 4), (2, 4, 2))),
    ("bij,bij->b", ((2, 3, 4), (2, 3, 4))),
    ("ij->ji", ((2, 3),)),
    ("ijk->ik", ((2, 3, 4),)),
    ("ij->", ((2, 3),)),
    ("i,ij,j->", ((3,), (3, 4), (4,))),
    ("bi,bj->bij", ((2, 3), (2, 4))),
    ("ab,bc,cd->ad", ((2, 3), (3, 4), (4, 2))),
    ("ia,jb->ab", ((2, 3), (2, 2))),
    ("a,ab->ab", ((2,), (2, 3))),
    (",i->i", ((), (3,))),
    ("ij,jk->ik", ((0, 3), (3, 2))),
):
    CASES.append(
        Case(f"einsum[{_terms}]", partial(hg.einsum, _terms), lambda *xs, s=_terms: np.einsum(s, *xs), _shapes, exact=len(_shapes) < 3)
    )


def affine(x: Array, w: Array, bias: Array) -> Array:
    return np.matmul(x, w) + (bias if bias.ndim == 1 else bias[..., None, :])


for _shapes in (
    ((4, 3), (3, 2), (2,)),
    ((2, 4, 3), (3, 2), (2,)),
    ((2, 4, 3), (2, 3, 2), (2, 2)),
    ((0, 3), (3, 2), (2,)),
    ((2, 4, 3), (3, 2), (2, 2)),
):
    CASES.append(Case(f"linear{list(_shapes[0])}{list(_shapes[1])}{list(_shapes[2])}", hg.linear, affine, _shapes, exact=True))
CASES.append(Case("linear[no bias]", hg.linear, np.matmul, ((4, 3), (3, 2)), exact=True))
