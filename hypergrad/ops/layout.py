"""Arrays as the kernels of fused ops take them: episodes on the first axis, each of them contiguous."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..backends import Array, Backend
from ..tape import Tensor
from .arrays import broadcast_to, reshape


def rows(b: Backend, values: list[Array]) -> list[Array]:
    """The arrays with every episode contiguous; the episode axis itself may have any stride."""
    return [v if not len(v) or v[0].flags.c_contiguous else b.xp.ascontiguousarray(v) for v in values]


def optional(b: Backend, dot: Array | None) -> Array | None:
    """Tangents, contiguous; None says zero."""
    return None if dot is None else b.xp.ascontiguousarray(dot)


def tangents(b: Backend, names: Sequence[str], dots: Sequence[Array | None]) -> dict[str, Array | None]:
    """The tangents of the first arguments as a kernel takes them, by name."""
    return {f"{name}_dot": optional(b, dot) for name, dot in zip(names, dots, strict=False)}


def wanted(out: dict[str, Any], want: Sequence[bool]) -> list[Array | None]:
    """A kernel's outputs, in the order of its signature, where they are wanted."""
    return [y if w else None for y, w in zip(out.values(), want, strict=True)]


def with_episodes(p: Tensor, episodes: int, ndim: int) -> Tensor:
    """A parameter with the episode axis; shared ones are broadcast by strides, and the transpose sums over episodes."""
    p = p if p.ndim == ndim else reshape(p, (1, *p.shape))
    return p if p.shape[0] == episodes else broadcast_to(p, (episodes, *p.shape[1:]))
