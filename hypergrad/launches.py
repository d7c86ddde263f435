"""Sums and copies of many small arrays in few launches, for gradients on a GPU, where a launch takes longer than most of these."""

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


def in_full(tensors: Sequence[Any]) -> list[Any]:
    """The Tensors; on a GPU one that broadcasting repeats is copied, once and not in every kernel that reads it, all in one launch."""
    out = list(tensors)
    repeated = [i for i, t in enumerate(out) if is_on_gpu(t.value) and not t.value.flags.c_contiguous]
    if repeated:
        for i, x in zip(repeated, CUDA.copies([out[i].value for i in repeated]), strict=True):
            out[i] = type(out[i])(x, out[i].dot)
    return out


def linear_in(leaves: Iterable[int], nodes: Sequence[Any]) -> set[int]:
    """The ids of the leaves, and of those nodes that are linear ops of one of them alone."""
    found = set(leaves)
    for node in nodes:
        if (node.op is None or getattr(node.op, "linear", False)) and id(node.inputs[0].node) in found:
            found.add(id(node))
    return found


class Late:
    """What a sweep of a tape on a GPU does at its end, when few launches do for all leaves: their sums, and what is linear in one of them.

    Args: leaves: the ids of the leaves; nodes: those of the tape.
    """

    def __init__(self, leaves: set[int], nodes: Sequence[Any]) -> None:
        self._leaves, self._linear = leaves, linear_in(leaves, nodes) - leaves
        self._nodes: list[Any] = []  # put off, in the order of the sweep
        self._terms: dict[int, list[Any]] = {}  # the cotangents of each leaf

    def takes(self, node: Any, bar: Any) -> bool:
        """Whether the node is a leaf, whose cotangent is then a term of its sum."""
        if id(node) not in self._leaves:
            return False
        self._terms.setdefault(id(node), []).append(bar)
        return True

    def puts_off(self, node: Any) -> bool:
        """Whether the node waits for `rest`."""
        if id(node) not in self._linear:
            return False
        self._nodes.append(node)
        return True

    def rest(self, pending: dict[int, list[Any]], add: Callable[[Any, Any], None]) -> list[Any]:
        """The nodes that were put off, the first one last. Those that broadcast one row to many are pulled, in one launch.

        Args: pending: cotangents by a node's id, taken out where it was pulled; add: gets the input and its cotangent.
        """
        read = {id(node.inputs[0].node) for node in self._nodes}
        chosen = []
        for node in self._nodes:
            bars = pending.get(id(node))
            if bars is None or getattr(node.op, "name", "") != "broadcast_to" or id(node) in read:
                continue
            one, many = node.inputs[0].shape, bars[0].shape
            if many and one in ((1, *many[1:]), many[1:]) and _plain(bars[0]):
                chosen.append(node)
        if chosen:
            bars = [pending.pop(id(node))[0] for node in chosen]
            for node, row in zip(chosen, CUDA.sum_rows([b.value for b in bars]), strict=True):
                shape = node.inputs[0].shape
                add(node.inputs[0], type(bars[0])(row if row.shape == shape else row.reshape(shape)))
        self._linear = set()
        return self._nodes[::-1]

    def totals(self, leaves: Sequence[Any]) -> list[Any]:
        """The sums in the order of arrival, one for each leaf; None for a leaf without terms."""
        while many := [terms for terms in self._terms.values() if len(terms) > 1]:
            for terms, total in zip(many, added([t[0] for t in many], [t[1] for t in many]), strict=True):
                terms[:2] = [total]
        return [self._terms[id(leaf)][0] if id(leaf) in self._terms else None for leaf in leaves]


def _plain(t: Any) -> bool:
    """Whether the Tensor is an array on a GPU that no derivative follows."""
    return t.node is None and t.dot is None and is_on_gpu(t.value)
