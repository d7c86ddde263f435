"""Pytrees by optree, with types that stay out of the way: a tree may hold anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import optree

PyTree = Any


def tree_flatten(tree: PyTree) -> tuple[list[Any], Any]:
    """Leaves of the tree in optree's order (dictionary keys sorted) and its structure; None is an empty subtree."""
    leaves, spec = optree.tree_flatten(cast(Any, tree))
    return list(leaves), spec


def tree_leaves(tree: PyTree, *, none_is_leaf: bool = False) -> list[Any]:
    """Leaves of the tree."""
    return list(optree.tree_leaves(cast(Any, tree), none_is_leaf=none_is_leaf))


def tree_unflatten(spec: Any, leaves: Iterable[Any]) -> PyTree:
    """The tree of structure `spec` with these leaves."""
    return optree.tree_unflatten(spec, leaves)


def tree_map(f: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """f over the leaves of trees of one structure."""
    return optree.tree_map(f, cast(Any, tree), *rest)


def tree_structure(tree: PyTree) -> Any:
    """The structure of the tree."""
    return optree.tree_structure(cast(Any, tree))


def is_leaf(spec: Any) -> bool:
    """Whether a structure is that of a single leaf."""
    return bool(spec.is_leaf())
