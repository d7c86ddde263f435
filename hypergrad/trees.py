"""Pytrees by optree, loosely typed: a tree may hold anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, TypeVar, cast

import optree

PyTree = Any
T = TypeVar("T")


def tree_node(cls: type[T]) -> type[T]:
    """Class decorator: a dataclass whose fields are subtrees."""
    made = cast(Any, cls)
    optree.register_pytree_node(
        made,
        lambda x: (tuple(getattr(x, f.name) for f in fields(made)), None),
        lambda _, xs: made(*xs),
        namespace=optree.registry.__GLOBAL_NAMESPACE,
    )
    return cls


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


def tree_named(tree: PyTree, root: str) -> list[tuple[str, Any]]:
    """(name, leaf) in flattening order; a name is the Python expression that reaches the leaf from `root`."""
    accessors = optree.tree_accessors(cast(Any, tree))
    return [(a.codify(root), x) for a, x in zip(accessors, tree_leaves(tree), strict=True)]


def leaves_below(tree: PyTree, kind: type) -> list[bool]:
    """For each leaf of the tree, in flattening order, whether it stands below a node of that class."""
    nodes = optree.tree_leaves(cast(Any, tree), is_leaf=lambda x: isinstance(x, kind))
    return [isinstance(x, kind) for x in nodes for _ in tree_leaves(x)]
