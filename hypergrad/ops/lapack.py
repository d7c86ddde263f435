"""What ops that run LAPACK share: arguments, refusals, triangles, and ops with several outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..backends import Array, Backend, backend_of, bare
from ..errors import ArgumentError, ShapeError
from ..rules import Registered
from ..tape import Node, Tensor, to_tensors
from .arrays import reshape
from .arrays import swap_last as T
from .elementwise import scale


def matrices(name: str, x: Any, *, square: bool = True) -> Tensor:
    """x as a Tensor of matrices."""
    (t,) = to_tensors(name, [x])
    if t.ndim < 2 or square and t.shape[-1] != t.shape[-2]:
        wanted = "(..., N, N)" if square else "(..., M, N)"
        raise ShapeError(f"{name}: x has shape {t.shape}, expected {wanted} because it holds matrices; reshape it")
    return t


def refuse(name: str, what: str, expected: str, reason: str, remedy: str) -> ArgumentError:
    return ArgumentError(f"{name}: x has {what}, expected {expected} because {reason}; {remedy}")


def call(name: str, f: Callable[..., Any], *args: Array, **options: Any) -> Any:
    """A function of LAPACK, whose failure is an error of this package."""
    try:
        return f(*args, **options)
    except np.linalg.LinAlgError as error:
        raise refuse(name, "a matrix for which there is no result", "one that has", f"LAPACK says: {error}", "change the matrix") from error


def singular(name: str) -> ArgumentError:
    what, expected = "a singular matrix (to working precision)", "one with an inverse"
    return refuse(
        name, what, expected, "the result would be infinite or have no digit right", "add a multiple of the identity, or use pinv"
    )


def finite(name: str, *arrays: Array) -> None:
    """Raises where a result is not finite: LAPACK on a GPU does not say so."""
    for a in arrays:
        if not every(backend_of(a).xp.isfinite(a)):
            raise refuse(name, "no finite result", "a finite one", "a matrix is singular or has NaN or infinities", "check the matrix")


def every(mask: Array) -> bool:
    """Whether all elements are true, of all examples where there are several (see backends/batched.py)."""
    return bool(bare(mask).all())


def eps(x: Array) -> float:
    return float(np.finfo(x.dtype).eps)


def largest(xp: Any, x: Array, axes: int = 2) -> Array:
    """The largest magnitude of each matrix, or of each vector; 0 of nothing."""
    if not x.size:
        return xp.zeros(x.shape[:-axes], x.dtype)
    return xp.max(xp.abs(x), axis=tuple(range(-axes, 0)))


def symmetric(name: str, x: Any) -> Tensor:
    """The symmetric part of x, which is x. Raises: ArgumentError where it is not."""
    x = matrices(name, x)
    xp = backend_of(x.value).xp
    gap, size = largest(xp, x.value - x.value.swapaxes(-1, -2)), largest(xp, x.value)
    if not every(~(gap > max(eps(x.value) ** 0.5, 1e-6) * size)):
        raise refuse(name, "a matrix that is not symmetric", "x = x.T", "only one half of it would be read", "pass (x + x.T) / 2")
    return symmetric_part(x)


def symmetric_part(x: Tensor) -> Tensor:
    return scale(x + T(x), by=0.5)


def lower(x: Tensor, k: int = 0) -> Array:
    """Ones on and below the k-th diagonal, a constant of the shape of one matrix."""
    return backend_of(x.value).xp.tri(x.shape[-2], x.shape[-1], k, dtype=x.dtype)


def column(x: Tensor) -> Tensor:
    """(..., N) as (..., N, 1)."""
    return reshape(x, (*x.shape, 1))


def row(x: Tensor) -> Tensor:
    """(..., N) as (..., 1, N)."""
    return reshape(x, (*x.shape[:-1], 1, x.shape[-1]))


class Many(Registered):
    """An op of one argument with several outputs, declared by one vjp and one jvp rule.

    Args:
        value: (backend, x) -> the outputs.
        vjp: (bars, outs, x) -> x_bar; a bar is None where an output is not used.
        jvp: (x_dot, outs, x) -> the outputs' tangents.
    """

    batching = "broadcast"

    def __init__(
        self,
        name: str,
        value: Callable[[Backend, Array], tuple[Array, ...]],
        vjp: Callable[[Sequence[Tensor | None], list[Tensor], Tensor], Tensor],
        jvp: Callable[[Tensor, list[Tensor], Tensor], Sequence[Tensor | None]],
    ) -> None:
        super().__init__(name, 1)
        self.value, self.vjp, self.jvp = value, vjp, jvp

    def forward(self, backend: Backend, values: list[Array], attrs: dict[str, Any]) -> tuple[tuple[Array, ...], Any]:
        """The outputs; nothing is saved."""
        outs = self.value(backend, values[0])
        finite(self.name, *outs)
        return outs, None

    def push(self, node: Node, inputs: list[Tensor], dots: list[Tensor | None]) -> Sequence[Tensor | None]:
        """The jvp rule."""
        assert dots[0] is not None
        return self.jvp(dots[0], [node.output(i) for i in range(len(node.outputs))], inputs[0])

    def pull(self, node: Node, bars: list[Tensor | None], want: list[bool]) -> Sequence[Tensor | None]:
        """The vjp rule."""
        return (self.vjp(bars, [node.output(i) for i in range(len(node.outputs))], node.inputs[0]),)
