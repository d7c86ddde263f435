"""Where the states of a run are kept until the backward run asks for them."""

from __future__ import annotations

from typing import Protocol

from ..bilevel import Stats
from ..trees import PyTree, tree_leaves


class Store(Protocol):
    """What a run needs of a store of states. Each state is a pytree of Tensors that no tape records."""

    def put(self, t: int, state: PyTree) -> None:
        """Keeps the state before step t."""

    def get(self, t: int) -> PyTree:
        """The state before step t, bit for bit as it was put."""

    def drop(self, t: int) -> None:
        """Forgets the state before step t."""


class Memory:
    """States stay in the memory of their device. Nothing is copied: no op writes into its inputs."""

    def __init__(self, stats: Stats) -> None:
        self.stats = stats
        self.states: dict[int, PyTree] = {}

    def put(self, t: int, state: PyTree) -> None:
        """See `Store`."""
        self.states[t] = state
        self.stats.hold(t, n_bytes(state))

    def get(self, t: int) -> PyTree:
        """See `Store`."""
        return self.states[t]

    def drop(self, t: int) -> None:
        """See `Store`."""
        del self.states[t]
        self.stats.release(t)


def n_bytes(state: PyTree) -> int:
    """Bytes of a state, tangents included."""
    return sum(x.value.nbytes + (0 if x.dot is None else x.dot.value.nbytes) for x in tree_leaves(state))
