"""Ops that move elements, and the transposes that only rules call."""

from __future__ import annotations

from functools import partial

import numpy as np
from checks import Array, Case

import hypergrad as hg
from hypergrad.rules import REGISTRY

CASES: list[Case] = []


def moves(name: str, f, reference, *shapes: tuple[int, ...]) -> None:
    CASES.append(Case(name, f, reference, shapes, exact=True))


for _from, _to in (
    ((6,), (2, 3)),
    ((2, 3), -1),
    ((2, 3, 4), (-1, 2)),
    ((1025,), (25, 41)),
    ((0,), (0, 3)),
    ((2, 0), (-1,)),
    ((), (1, 1)),
    ((1,), ()),
):
    moves(f"reshape[{list(_from)} to {_to}]", lambda x, s=_to: hg.reshape(x, s), lambda x, s=_to: np.reshape(x, s), _from)
for _from, _to in (
    ((3,), (2, 3)),
    ((2, 1, 3), (2, 4, 3)),
    ((), (3,)),
    ((), ()),
    ((1,), (257,)),
    ((1, 1), (2, 3, 4)),
    ((1,), (0,)),
    ((2, 3), (2, 3)),
):
    moves(f"broadcast_to[{list(_from)} to {_to}]", lambda x, s=_to: hg.broadcast_to(x, s), lambda x, s=_to: np.broadcast_to(x, s), _from)
for _shape, _perm in (
    ((), None),
    ((5,), None),
    ((2, 3), None),
    ((2, 3, 4), (1, 2, 0)),
    ((2, 3, 4), (-1, 0, 1)),
    ((3, 0, 2), (2, 0, 1)),
    ((33, 31), (1, 0)),
):
    moves(f"transpose[{list(_shape)}, {_perm}]", lambda x, a=_perm: hg.transpose(x, a), lambda x, a=_perm: np.transpose(x, a), _shape)
moves("transpose[.T]", lambda x: x.T, lambda x: x.T, (2, 3, 4))
moves(
    "methods",
    lambda x: x.reshape(3, 2).sum(0) + x.mean(axis=1, keepdims=True),
    lambda x: x.reshape(3, 2).sum(0) + x.mean(axis=1, keepdims=True),
    (2, 3),
)

_i, _j = np.array([0, 2, 2]), np.array([[1], [0]])
_bool = np.array([True, False, True])
INDICES = {
    "number": 1,
    "negative": -1,
    "slice": slice(1, 3),
    "step": slice(None, None, 2),
    "backwards": slice(None, None, -1),
    "ellipsis": (..., 1),
    "new axis": (None, 1, ..., None),
    "everything": (),
    "array": _i,
    "2-D array": _j,
    "negative array": np.array([-1, 0, -1]),
    "list": [0, 2],
    "mask": _bool,
    "mask of two axes": np.arange(12).reshape(3, 4) % 3 == 0,
    "empty": np.array([], int),
    "two arrays": (_i, np.array([3, 3, 3])),
    "broadcast arrays": (_i, _j),
    "arrays apart": (_i, slice(None), np.array([1, 0, 1])),
    "array and number apart": (1, slice(None), _i[:2] // 2),
    "array and number together": (slice(None), _i, 1),
    "number, array, slice": (0, _i, slice(1)),
    "array apart by None": (_i, None, _i),
    "array after slice": (slice(None), _i),
    "array last": (..., np.array([1, 1, 0])),
    "mask apart": (_bool, slice(None), np.array([1, 0])),
    "0-d array": (slice(None), np.array(1)),
    "numpy integer": (np.int64(1), slice(0, 0)),
}
for _name, _index in INDICES.items():
    moves(f"getitem[{_name}]", lambda x, k=_index: x[k], lambda x, k=_index: x[np.asarray(k) if isinstance(k, list) else k], (3, 4, 2))
for _name in ("number", "array", "mask", "arrays apart", "broadcast arrays", "slice", "array and number apart"):
    _index = INDICES[_name]
    _part = np.zeros((3, 4, 2))[_index].shape

    def _scatter(y: Array, k=_index) -> Array:
        out = np.zeros((3, 4, 2), y.dtype)
        np.add.at(out, k, y)
        return out

    moves(
        f"put[{_name}]", lambda y, k=_index: REGISTRY["put"](y, index=k if isinstance(k, tuple) else (k,), shape=(3, 4, 2)), _scatter, _part
    )
moves("getitem[iteration]", lambda x: sum((row * float(i) for i, row in enumerate(x)), 0.0), lambda x: 1 * x[1] + 2 * x[2], (3, 4))

for _shape, _take, _axis in (
    ((5,), _i, 0),
    ((3, 4), _i, 0),
    ((2, 3), _j, -1),
    ((2, 5, 2), np.array([4, -5, 4]), 1),
    ((3, 2), 1, 0),
    ((3, 2), [2, 0], 0),
    ((257, 2), np.arange(1025) % 257, 0),
    ((4,), np.array([], int), 0),
):
    moves(
        f"take[{list(_shape)}, axis={_axis}, {np.asarray(_take).size} indices]",
        partial(hg.take, indices=_take, axis=_axis),
        lambda x, i=_take, a=_axis: np.take(x, i, axis=a),
        _shape,
    )

_pick = np.array([[0, 2, 1], [1, 1, 0]])
moves("pick", lambda x: REGISTRY["pick"](x, index=_pick), lambda x: np.take_along_axis(x, _pick[..., None], -1)[..., 0], (2, 3, 3))
moves(
    "pick[shared index]",
    lambda x: REGISTRY["pick"](x, index=_pick),
    lambda x: np.take_along_axis(x, _pick[None, ..., None], -1)[..., 0],
    (4, 2, 3, 3),
)
moves("place", lambda x: REGISTRY["place"](x, index=_pick, size=3), lambda x: x[..., None] * (_pick[..., None] == np.arange(3)), (2, 3))
for _from, _to in (((2, 3), (3,)), ((2, 3), (1, 3)), ((2, 3), ()), ((4, 2, 3), (2, 1)), ((0, 3), (1, 3)), ((2, 3), (2, 3))):
    _added = len(_from) - len(_to)
    _axes = tuple(i for i in range(len(_from)) if i < _added or (_to[i - _added] == 1))
    moves(
        f"sum_to[{list(_from)} to {list(_to)}]",
        lambda x, s=_to: REGISTRY["sum_to"](x, shape=s),
        lambda x, s=_to, a=_axes: np.sum(x, axis=a).reshape(s),
        _from,
    )

for _axis, _shapes in (
    (0, ((2, 3), (1, 3), (4, 3))),
    (1, ((2, 3), (2, 1))),
    (-1, ((2, 2, 3), (2, 2, 0), (2, 2, 1))),
    (0, ((1025,), (31,))),
    (-2, ((1, 2), (1, 2))),
):
    moves(
        f"concatenate[axis={_axis}, {len(_shapes)} of {list(_shapes[0])}]",
        lambda *xs, a=_axis: hg.concatenate(xs, axis=a),
        lambda *xs, a=_axis: np.concatenate(xs, axis=a),
        *_shapes,
    )
for _axis in (0, 1, 2, -1, -3):
    moves(
        f"stack[axis={_axis}]", lambda *xs, a=_axis: hg.stack(xs, axis=a), lambda *xs, a=_axis: np.stack(xs, axis=a), (2, 3), (2, 3), (2, 3)
    )
moves("stack[scalars]", lambda *xs: hg.stack(xs), lambda *xs: np.stack(xs), (), ())
moves(
    "concatenate[with a constant]",
    lambda x: hg.concatenate([np.ones((1, 2), x.dtype), x]),
    lambda x: np.concatenate([np.ones((1, 2), x.dtype), x]),
    (3, 2),
)
