"""Training of a classifier's head by gradient descent on fixed features: all steps as one op, with a kernel for them and one for their vjp.

csrc/linear_head_descent.h has the formulas. The weights stay in the span of the features, so the kernels step in the products of the
examples, whatever the number of features.
"""

from __future__ import annotations

from typing import Any

from ..backends import Array, Backend, backend_of, is_on_gpu
from ..errors import ArgumentError, ShapeError
from ..rules import FusedMany
from ..tape import Tensor, to_tensors
from .arguments import integer
from .arrays import broadcast_to, reshape, swap_last
from .elementwise import scale
from .head import head_arguments
from .layout import optional, rows, wanted
from .linalg import linear, matmul
from .reductions import softmax, sum

__all__ = ["linear_head_descent"]

Attrs = dict[str, Any]
MOST_EXAMPLES = 128  # of an episode that the kernels take: they form the products of all pairs, and one block does all of them


def _reference(x: Tensor, w: Tensor, bias: Tensor, lr: Tensor, *, labels: Array, n_steps: int) -> list[Tensor]:
    """The definition, on (E, N, D), (E, D, K), (E, K) and (E,)."""
    classes = backend_of(labels).xp.arange(w.shape[-1])
    target = (labels[..., None] == classes).astype(x.dtype)
    if is_on_gpu(labels):
        known = (labels >= 0) & (labels < w.shape[-1])
        target = backend_of(labels).xp.where(known[..., None], target, float("nan"))
    rate, columns = scale(reshape(lr, (-1, 1, 1)), by=1.0 / labels.shape[-1]), swap_last(x)
    for _ in range(n_steps):
        residual = softmax(linear(x, w, bias)) - target
        w, bias = w - rate * matmul(columns, residual), bias - reshape(rate, (-1, 1)) * sum(residual, axis=1)
    return [w, bias]


def _value(b: Backend, values: list[Array], attrs: Attrs) -> tuple[list[Array], dict[str, Array]]:
    x, w, bias = rows(b, values[:3])
    saved = b.run("linear_head_descent_value", x=x, w=w, bias=bias, lr=values[3], label=attrs["labels"], T=attrs["n_steps"])
    return [saved.pop("w_next"), saved.pop("bias_next")], saved


def _vjp(
    b: Backend, values: list[Array], bars: list[Array | None], want: list[bool], attrs: Attrs, saved: dict[str, Array]
) -> list[Array | None]:
    x, w, _ = rows(b, values[:3])
    given = {"x": x, "w": w, "lr": values[3], "label": attrs["labels"], **saved}
    w_next_bar, bias_next_bar = (optional(b, bar) for bar in bars)
    out = b.run("linear_head_descent_vjp", **given, w_next_bar=w_next_bar, bias_next_bar=bias_next_bar, x_bar=want[0], w_bar=want[1])
    return wanted(out, want)


_descent = FusedMany("linear_head_descent", 4, _reference, value=_value, jvp=None, vjp=_vjp, vjp_jvp=None)


def linear_head_descent(x: Any, w: Any, bias: Any, labels: Any, lr: Any, n_steps: int) -> tuple[Tensor, Tensor]:
    """Weights and bias after steps of gradient descent on the mean cross-entropy of softmax(x w + bias), as one differentiable op.

    With unroll it is ``unroll(lambda w, x, labels: mean(linear_cross_entropy(x, *w, labels)), (w, bias), x, full_batch(labels, n_steps),
    optimizer=SGD(lr))`` for each episode, up to rounding. It has a kernel for all steps and one for their transposes, and derivatives
    of every order.

    Args:
        x: features, (N, D) or (E, N, D), float32 or float64, N >= 1.
        w: the first weights, (D, K), or (E, D, K) for one matrix per episode.
        bias: the first bias, (K,), or (E, K) for one per episode; -inf masks a class.
        labels: integer array, (N,) or (E, N) as x, 0 <= label < K.
        lr: the step size: a number, or an array or Tensor, () or (E,) for one per episode.
        n_steps: number of steps, >= 0.
    Returns: Tensors (D, K) and (K,); (E, D, K) and (E, K) for features of episodes.
    Raises: ShapeError if the shapes do not fit or there is no example; DTypeError for mixed dtypes or labels that are no integers;
        ArgumentError for a label out of range or a negative n_steps. Labels in a CuPy array are not read by the host: one out of
        range makes its episode's results NaN.
    Rules: kernels for value and vjp of up to 128 examples an episode; the definition in ops for more, and for every other nesting.
    Memory: the kernels keep N*(N + n_steps*K) numbers an episode, the ops every step's weights.
    Cost: about E*N*(N*D + 4*D*K + 2*n_steps*N*K) flop forward, and twice that backward.
    Source: Franceschi et al. 2017, arXiv:1712.06283, section 4: the inner problem of hyper-representation.
    Example:
        >>> x, labels = np.array([[1.0], [-1.0]]), np.array([0, 1])
        >>> w, bias = hg.linear_head_descent(x, np.zeros((1, 2)), np.zeros(2), labels, 0.5, 4)
        >>> w.value.round(3), bias.value.round(3)
        (array([[ 0.704, -0.704]]), array([0., 0.]))
    """
    x, w, bias = to_tensors("linear_head_descent", [x, w, bias])
    features, w, bias, index = head_arguments("linear_head_descent", x, w, bias, labels)
    episodes, n, _ = features.shape
    n_steps = integer("linear_head_descent", "n_steps", n_steps, "it counts steps")
    if n_steps < 0:
        raise ArgumentError(f"linear_head_descent: n_steps has {n_steps}, expected >= 0 because it counts steps; pass such a number")
    if n == 0:
        raise ShapeError(f"linear_head_descent: x has shape {x.shape}, expected at least one example because the loss is a mean; add one")
    _, lr = to_tensors("linear_head_descent", [x, lr])
    if lr.shape not in ((), (episodes,)):
        raise ShapeError(f"linear_head_descent: lr has shape {lr.shape}, expected () or ({episodes},), one for each episode of x")
    given = features, w, bias, lr if lr.ndim else broadcast_to(lr, (episodes,))
    steps = _descent.outputs if n <= MOST_EXAMPLES else _reference
    w, bias = steps(*given, labels=index, n_steps=n_steps)
    return (reshape(w, w.shape[1:]), reshape(bias, bias.shape[1:])) if x.ndim == 2 else (w, bias)
