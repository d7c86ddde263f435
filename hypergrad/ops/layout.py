"""Arrays as the kernels of fused ops take them: episodes on the first axis, each of them contiguous."""

from __future__ import annotations

from ..backends import Array, Backend
from ..tape import Tensor
from .arrays import broadcast_to, reshape


def rows(b: Backend, values: list[Array]) -> list[Array]:
    """The arrays with every episode contiguous; the episode axis itself may have any stride."""
    return [v if not len(v) or v[0].flags.c_contiguous else b.xp.ascontiguousarray(v) for v in values]


def optional(b: Backend, dot: Array | None) -> Array | None:
    """Tangents, contiguous; None says zero."""
    return None if dot is None else b.xp.ascontiguousarray(dot)


def like(b: Backend, count: int, *arrays: Array) -> list[Array]:
    """Uninitialised arrays for `count` tangents of the given ones."""
    return [b.empty((count, *a.shape), a.dtype) for a in arrays]


def with_episodes(p: Tensor, episodes: int, ndim: int) -> Tensor:
    """A parameter with the episode axis; shared ones are broadcast by strides, and the transpose sums over episodes."""
    p = p if p.ndim == ndim else reshape(p, (1, *p.shape))
    return p if p.shape[0] == episodes else broadcast_to(p, (episodes, *p.shape[1:]))
