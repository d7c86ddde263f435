"""Products under NumPy's names, einsum with dots and repeated letters, and what LAPACK computes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from checks import Array, Case

import hypergrad as hg

CASES: list[Case] = []

for _name, _shapes in (
    ("dot", ((2, 3), (2, 3, 2))),
    ("inner", ((2, 3), (2, 2, 3))),
    ("outer", ((2,), (3,))),
    ("vdot", ((2, 3), (3, 2))),
    ("kron", ((2, 2), (3,))),
    ("cross", ((2, 3), (3,))),
):
    CASES.append(Case(_name, getattr(hg, _name), getattr(np, _name), _shapes, exact=True))
for _axes in (1, ([0, 1], [1, 0])):
    CASES.append(
        Case(f"tensordot[{_axes}]", partial(hg.tensordot, axes=_axes), partial(np.tensordot, axes=_axes), ((2, 3), (3, 2)), exact=True)
    )
for _terms, _shapes in (
    ("...ij,jk", ((2, 1, 3), (3, 2))),
    ("...,i...->...i", ((2, 1), (3, 2, 2))),
    ("iji->j", ((2, 3, 2),)),
    ("ii,...i", ((2, 2), (3, 2))),
):
    CASES.append(Case(f"einsum[{_terms}]", partial(hg.einsum, _terms), lambda *xs, s=_terms: np.einsum(s, *xs), _shapes, exact=True))


def shifted(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Matrices with singular values that are apart and none of them small."""
    m, n = shape[-2:]
    u, _, vt = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    return u * (np.arange(min(m, n)) * 0.5 + 0.8) @ vt


def made(*shapes: tuple[int, ...]):
    return lambda rng: [shifted(shapes[0], rng), *(rng.uniform(-1, 1, s) for s in shapes[1:])]


def lapack(name: str, f, reference, *shapes: tuple[int, ...]) -> None:
    CASES.append(Case(name, f, reference, shapes, make=made(*shapes)))


def gram(x):
    """x x.T, symmetric and positive definite."""
    return x @ x.swapaxes(-1, -2)


for _shapes in (((3, 3), (3,)), ((2, 2, 2), (2, 1)), ((2, 2), (2, 2, 1))):
    _vectors = len(_shapes[1]) == 1
    lapack(f"solve{list(_shapes)}", hg.solve, np.linalg.solve, *_shapes)
lapack("inv", hg.inv, np.linalg.inv, (2, 2, 2))
lapack("det", hg.det, np.linalg.det, (2, 2, 2))
lapack("slogdet", lambda x: hg.slogdet(x).logabsdet, lambda x: np.linalg.slogdet(x)[1], (3, 3))
lapack("cholesky", lambda x: hg.cholesky(gram(x)), lambda x: np.linalg.cholesky(gram(x)), (2, 3, 3))
lapack("eigvalsh", lambda x: hg.eigvalsh(gram(x)), lambda x: np.linalg.eigvalsh(gram(x)), (2, 3, 3))
lapack("eigh[vectors]", lambda x: hg.eigh(gram(x))[1] ** 2, lambda x: np.linalg.eigh(gram(x))[1] ** 2, (3, 3))
lapack("svdvals", hg.svdvals, lambda x: np.linalg.svd(x, compute_uv=False), (2, 2, 3))


def vectors(outs):
    """Products of singular vectors that have no sign."""
    u, _, vh = outs
    return u[..., :, :1] * vh[..., :1, :] + (u[..., :, 1:2] * vh[..., 1:2, :]) ** 2


for _shape in ((3, 2), (2, 3)):
    lapack(
        f"svd[vectors, {_shape}]",
        lambda x: vectors(hg.svd(x, full_matrices=False)),
        lambda x: vectors(np.linalg.svd(x, full_matrices=False)),
        _shape,
    )
lapack("qr[Q]", lambda x: hg.qr(x).Q, lambda x: np.linalg.qr(x)[0], (3, 2))
lapack("qr[R of wide matrices]", lambda x: hg.qr(x).R, lambda x: np.linalg.qr(x)[1], (2, 3))
for _shape in ((3, 2), (2, 3)):
    lapack(f"pinv[{_shape}]", hg.pinv, np.linalg.pinv, _shape)
lapack("lstsq", hg.lstsq, lambda x, y: np.linalg.lstsq(x, y, rcond=None)[0].astype(x.dtype), (3, 2), (3,))

COMPOSED = ("dot", "inner", "outer", "vdot", "kron", "cross", "tensordot", "einsum", "svdvals", "lstsq")
CASES = [replace(case, composed=case.name.startswith(COMPOSED)) for case in CASES]
