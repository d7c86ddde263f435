"""Sums, means, maxima and the softmax family over every kind of axis."""

from __future__ import annotations

from functools import partial

import numpy as np
from checks import Array, Case

import hypergrad as hg

CASES: list[Case] = []
AXES = (
    ((), None),
    ((0,), None),
    ((1,), 0),
    ((31,), None),
    ((33,), 0),
    ((257,), -1),
    ((1025,), None),
    ((3, 0), 1),
    ((0, 3), 1),
    ((2, 3, 4), None),
    ((2, 3, 4), 0),
    ((2, 3, 4), -2),
    ((2, 3, 4), (0, -1)),
    ((2, 3, 4), (-1, 0)),
    ((2, 3, 4), ()),
    ((2, 1, 4), (1, 2)),
)


def spread(shape: tuple[int, ...], rng: np.random.Generator) -> list[Array]:
    """Distinct elements, at least 0.05 apart, so that a maximum has no rival."""
    n = int(np.prod(shape))
    return [(rng.permutation(n) * 0.1 + rng.uniform(0, 0.05, n) - 0.05 * n).reshape(shape)]


def gap(axis, x: Array) -> float:
    """Distance of the largest element from the second, along the axes."""
    axes = tuple(range(x.ndim)) if axis is None else tuple(np.atleast_1d(axis))
    moved = np.moveaxis(x, axes, range(-len(axes), 0)).reshape(
        *(n for i, n in enumerate(x.shape) if i not in {a % x.ndim for a in axes}), -1
    )
    ordered = np.sort(moved, axis=-1)
    return float(np.min(ordered[..., -1] - ordered[..., -2])) if ordered.shape[-1] > 1 and ordered.size else np.inf


for _shape, _axis in AXES:
    for _keep in (False, True):
        _id = f"[{list(_shape)}, axis={_axis}, keepdims={_keep}]"
        _np = {"axis": _axis, "keepdims": _keep}
        CASES.append(Case("sum" + _id, partial(hg.sum, **_np), partial(np.sum, **_np), (_shape,), exact=True))
        if _shape != (0,) and (_shape, _axis) != ((3, 0), 1):  # a mean of nothing raises: see test_errors.py
            CASES.append(Case("mean" + _id, partial(hg.mean, **_np), partial(np.mean, **_np), (_shape,), exact=True))
        if 0 not in _shape and _axis != ():
            CASES.append(
                Case(
                    "max" + _id,
                    partial(hg.max, **_np),
                    partial(np.max, **_np),
                    (_shape,),
                    margin=partial(gap, _axis),
                    make=partial(spread, _shape),
                )
            )


def naive_logsumexp(x: Array, axis: int = -1, keepdims: bool = False) -> Array:
    return np.log(np.sum(np.exp(x), axis=axis, keepdims=keepdims))


def naive_softmax(x: Array, axis: int = -1) -> Array:
    return np.exp(x) / np.sum(np.exp(x), axis=axis, keepdims=True)


for _shape, _axis in (
    ((1,), 0),
    ((31,), -1),
    ((257,), 0),
    ((1025,), -1),
    ((2, 5), -1),
    ((5, 2), 0),
    ((0, 3), 1),
    ((2, 3, 4), 1),
    ((2, 3, 4), -3),
):
    CASES.append(
        Case(f"softmax[{list(_shape)}, axis={_axis}]", partial(hg.softmax, axis=_axis), partial(naive_softmax, axis=_axis), (_shape,))
    )
    for _keep in (False, True):
        CASES.append(
            Case(
                f"logsumexp[{list(_shape)}, axis={_axis}, keepdims={_keep}]",
                partial(hg.logsumexp, axis=_axis, keepdims=_keep),
                partial(naive_logsumexp, axis=_axis, keepdims=_keep),
                (_shape,),
            )
        )

_labels = np.random.default_rng(2).integers(0, 5, (3, 4))


def cross_entropy(z: Array, labels: Array) -> Array:
    flat = naive_logsumexp(z).reshape(-1) - z.reshape(-1, z.shape[-1])[np.arange(labels.size), labels.ravel()]
    return flat.reshape(labels.shape)


for _name, _lab, _shape in (
    ("one", _labels[0, 0], (5,)),
    ("rows", _labels[0], (4, 5)),
    ("episodes", _labels, (3, 4, 5)),
    ("uint8", _labels[0].astype(np.uint8), (4, 5)),
    ("one class", np.zeros(3, int), (3, 1)),
    ("nothing", np.zeros(0, int), (0, 5)),
    ("257 rows", np.arange(257) % 5, (257, 5)),
):
    CASES.append(
        Case(
            f"softmax_cross_entropy[{_name}]",
            partial(hg.softmax_cross_entropy, labels=_lab),
            partial(cross_entropy, labels=np.asarray(_lab)),
            (_shape,),
        )
    )
