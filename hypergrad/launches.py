"""Sums of many small arrays in few launches, for gradients on a GPU, where a launch takes longer than most of these sums."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .backends import is_on_gpu
from .backends.cuda import CUDA


def added(xs: Sequence[Any], ys: Sequence[Any]) -> list[Any]:
    """x + y of each pair of Tensors; the other one where one is None. On a GPU those that nothing follows are added in one launch."""
    pairs = [(x, y) for x, y in zip(xs, ys, strict=True) if x is not None and y is not None]
    if pairs and all(_plain(t) for pair in pairs for t in pair):
        sums = CUDA.sum_trees([x.value for x, _ in pairs], [y.value for _, y in pairs])
        left = iter([type(pairs[0][0])(a) for a in sums])
    else:
        left = iter([x + y for x, y in pairs])
    return [y if x is None else x if y is None else next(left) for x, y in zip(xs, ys, strict=True)]


def linear_in(leaves: Iterable[int], nodes: Sequence[Any]) -> set[int]:
    """The ids of the leaves, and of those nodes that are linear ops of one of them alone."""
    found = set(leaves)
    for node in nodes:
        if (node.op is None or getattr(node.op, "linear", False)) and id(node.inputs[0].node) in found:
            found.add(id(node))
    return found


class Terms:
    """The cotangents of leaves on a GPU: what is added to them is added at the end, for all leaves at once."""

    def __init__(self) -> None:
        self.of: dict[int, list[Any]] = {}

    def add(self, leaf: int, bar: Any) -> None:
        """One more term of the leaf with that id."""
        self.of.setdefault(leaf, []).append(bar)

    def totals(self, leaves: Sequence[int]) -> list[Any]:
        """The sums in the order of arrival, one for each leaf; None for a leaf without terms."""
        while many := [terms for terms in self.of.values() if len(terms) > 1]:
            for terms, total in zip(many, added([t[0] for t in many], [t[1] for t in many]), strict=True):
                terms[:2] = [total]
        return [self.of[leaf][0] if leaf in self.of else None for leaf in leaves]


def pull_broadcasts(nodes: Sequence[Any], pending: dict[int, list[Any]], add: Callable[[Any, Any], None]) -> None:
    """Pulls the pending cotangents of those nodes that broadcast one row to many, where no other of the nodes reads them, in one launch.

    Args: nodes: in the order of a sweep; pending: by a node's id, taken out where it was pulled; add: gets the input and its cotangent.
    """
    read = {id(node.inputs[0].node) for node in nodes}
    chosen = []
    for node in nodes:
        bars = pending.get(id(node))
        if bars is None or getattr(node.op, "name", "") != "broadcast_to" or id(node) in read:
            continue
        one, many = node.inputs[0].shape, bars[0].shape
        if many and one in ((1, *many[1:]), many[1:]) and _plain(bars[0]):
            chosen.append(node)
    if chosen:
        bars = [pending.pop(id(node))[0] for node in chosen]
        for node, row in zip(chosen, CUDA.sum_rows([b.value for b in bars]), strict=True):
            add(node.inputs[0], type(bars[0])(row.reshape(node.inputs[0].shape)))


def _plain(t: Any) -> bool:
    """Whether the Tensor is an array on a GPU that no derivative follows."""
    return t.node is None and t.dot is None and is_on_gpu(t.value)
