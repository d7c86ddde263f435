"""Copies between a pretended GPU and page-locked memory of the host."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pretended


class Copies:
    """Streams whose copies between device and host take place only when something waits for them, as late as CUDA allows.

    Args: patch: pytest's monkeypatch, inside of `pretended.gpu`.
    Attributes: pinned_bytes: of the page-locked memory that was asked for.
    """

    def __init__(self, patch: Any) -> None:
        self.pending: list[Callable[[], None]] = []
        self.pinned_bytes = 0
        plain = pretended.ndarray.get
        patch.setattr(pretended.Stream, "record", lambda stream: Event(self), raising=False)
        patch.setattr(pretended.Stream, "wait_event", lambda stream, event: event.synchronize(), raising=False)
        patch.setattr(pretended.ndarray, "get", lambda x, **attrs: self.get(x, **attrs) if attrs else plain(x))
        patch.setattr(pretended.ndarray, "set", lambda x, host, stream: self.set(x, host), raising=False)
        sys.modules["cupy"].cuda.alloc_pinned_memory = self.allocate

    def allocate(self, n: int) -> bytearray:
        """Page-locked memory."""
        self.pinned_bytes += n
        return bytearray(b"\xff" * n)

    def get(self, x: Any, *, stream: Any, out: Any, blocking: bool) -> Any:
        """To the host."""
        assert stream is not None and not blocking
        self.pending.append(lambda: np.copyto(out, x._a))
        return out

    def set(self, x: Any, host: Any) -> None:
        """To the device."""
        self.pending.append(lambda: np.copyto(x._a, host))


class Event:
    """What was queued before it."""

    def __init__(self, copies: Copies) -> None:
        self.copies, self.mine = copies, list(copies.pending)

    @property
    def done(self) -> bool:
        """Whether all of it took place."""
        return not any(copy in self.copies.pending for copy in self.mine)

    def synchronize(self) -> None:
        """Waits for it."""
        for copy in self.mine:
            if copy in self.copies.pending:
                self.copies.pending.remove(copy)
                copy()
