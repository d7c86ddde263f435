"""How far float32 may be off: an error model, sampled in float64 (Parker 1997, Monte Carlo arithmetic).

Every result that an op stores is rounded, and a rounding is a random relative error delta that depends on nothing else (Higham
& Mary 2019, SIAM J. Sci. Comput. 41). `perturbed` runs the composed ops in float64 and multiplies what each of them stores by
1 + delta; nothing is rounded in between, so the result is off by exactly what the roundings of float32 bring about, with
their correlations and their cancellations. No float32 kernel and no instruction set takes part.

One op's error, with u = 2^-24 and deltas uniform in [-1, 1] times:

* 0 for ops that move, choose or negate elements;
* u for one operation of IEEE 754, or 0 where float32 holds the result;
* FUNCTION * u for a function of the mathematical library;
* for a result of LAPACK, that of arguments which are off by FUNCTION * u of their largest element: it is backward stable;
* for a sum of n terms t that add up to s, added in any order: the final sum is rounded, and n - 1 partial sums are. After j
  terms drawn in random order a partial sum has the mean square (j/n)^2 s^2 + j(n-j)/n var(t). Over all j that is
  n (s^2/3 + q/6), q being the sum of t^2. The terms of a product are themselves rounded, which adds q.

`allowed` is SIGMAS times the root mean square error, over TRIALS runs, of the element where it is largest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import hypergrad as hg
from hypergrad.ops.lapack import Many
from hypergrad.rules import Op

Array = Any
U = 2.0**-24
# NumPy's exp and log of float32 arrays are off by 2.5 and 3.8 units in the last place at most, and by less than 1 on average:
# SIGMAS deviations of this, which are 4.3 such units, hold them.
FUNCTION = 2.5
TRIALS = 8
# A normal error exceeds 6 deviations once in 5e8; the deviation itself is estimated from at least TRIALS runs, of which a scalar's error
# exceeds 6 once in 3000 if the model were exact. Roundings of numbers of random mantissas are 0.7 times those of the model: once in 4e4.
SIGMAS = 6.0

EXACT = {
    "negative",
    "abs",
    "relu",
    "maximum",
    "minimum",
    "where",
    "reshape",
    "broadcast_to",
    "transpose",
    "getitem",
    "pick",
    "place",
    "astype",
}
ONCE = {"add", "subtract", "divide", "sqrt", "scale"}
SUMS = {"sum", "mean", "sum_to", "put", "cumsum"}
LAPACK = {"solve", "inv", "det", "slogdet", "cholesky", "pinv", "eigh", "svd", "qr"}
PRODUCTS = {"multiply", "matmul", "conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad"}


def rounding_of(op: Op, backend: Any, values: list[Array], attrs: dict[str, Any], out: Array) -> Array:
    """The size of the error that `op` makes in each element of its result."""
    if op.name in EXACT:
        return np.zeros_like(out)
    if op.name in ONCE:
        return np.where(out == out.astype(np.float32), 0.0, U * np.abs(out))
    if op.name in SUMS | PRODUCTS:
        count = op.value(backend, *(np.ones_like(v) for v in values), **attrs)
        squares = op.value(backend, *(v * v for v in values), **attrs)
        if op.name == "mean":
            terms = values[0].size / max(out.size, 1)
            count, squares = count * terms, squares / terms
        return U * np.sqrt(of_sum(count, out, squares) + (squares if op.name in PRODUCTS else 0.0))
    if op.name in ("logsumexp", "softmax"):  # total = sum of terms exp(lower), lower = x - largest
        lower = np.maximum(values[0] - values[0].max(axis=-1, keepdims=True), -1e4)  # a masked element has no weight
        terms = np.exp(lower)
        total, in_terms = terms.sum(-1, keepdims=True), FUNCTION**2 + lower**2
        squares, errors = (terms**2).sum(-1, keepdims=True), (terms**2 * in_terms).sum(-1, keepdims=True)
        in_total = (of_sum(lower.shape[-1], total, squares) + errors) / total**2
        if op.name == "logsumexp":  # largest + log(total)
            return U * np.sqrt(out**2 + (FUNCTION * np.log(total)) ** 2 + in_total)
        return U * out * np.sqrt(1 + in_terms + in_total)
    return FUNCTION * U * np.abs(out)


def of_sum(count: Array, total: Array, squares: Array) -> Array:
    """The squared error, in units of u, of a sum of `count` terms with that total and sum of squares."""
    return np.where(count > 1, total**2 + (count - 1) * (total**2 / 3 + squares / 6), 0.0)


@contextmanager
def perturbed(seed: int) -> Iterator[None]:
    """Context in which ops on float64 arrays, fused ones composed, give what they might give in float32."""
    rng = np.random.default_rng(seed)
    original, original_many = Op.forward, Many.forward

    def off(values: list[Array]) -> list[Array]:
        return [v + FUNCTION * U * np.max(np.abs(v), initial=0.0) * rng.uniform(-1, 1, v.shape) for v in values]

    def many(self: Many, backend: Any, values: list[Array], attrs: dict[str, Any]) -> tuple[tuple[Array, ...], Any]:
        return original_many(self, backend, off(values), attrs)

    def forward(self: Op, backend: Any, values: list[Array], attrs: dict[str, Any]) -> tuple[tuple[Array, ...], Any]:
        if self.name in LAPACK:
            return original(self, backend, off(values), attrs)
        if self.name == "scale":  # the number is rounded, too: once for all elements
            attrs = attrs | {"by": attrs["by"] * (1 + U * rng.uniform(-1, 1))}
        (out,), saved = original(self, backend, values, attrs)
        error = rounding_of(self, backend, values, attrs, out)
        return (out + error * rng.uniform(-1, 1, np.shape(out)) if error.any() else out,), saved

    Op.forward, Many.forward = forward, many  # type: ignore[method-assign]
    try:
        with hg.fusion(False):
            yield
    finally:
        Op.forward, Many.forward = original, original_many  # type: ignore[method-assign]


def allowed(run: Callable[[], dict[str, list[Array]]], exact: dict[str, list[Array]]) -> dict[str, list[float]]:
    """The largest element error that float32 may have, for each array of each entry.

    Args:
        run: computes the entries in float64, in ops.
        exact: what it gives unperturbed.
    """
    squares: dict[str, list[list[Array]]] = {key: [] for key in exact}
    for seed in range(TRIALS):
        with perturbed(seed):
            found = run()
        for key, arrays in found.items():
            squares[key].append([np.square(a - e) for a, e in zip(arrays, exact[key], strict=True)])
    return {
        key: [SIGMAS * float(np.sqrt(np.max(np.mean(many, axis=0), initial=0.0))) for many in zip(*trials, strict=True)]
        for key, trials in squares.items()
    }
