"""What the loops that move the hyperparameters themselves share: the projection, the callback, and the check of every number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..backends import backend_of
from ..errors import ArgumentError, DifferentiationError
from ..ops.arguments import integer
from ..optimizers import same_kind
from ..tape import Tensor
from ..transforms import tree_tensors
from ..trees import PyTree, tree_map, tree_named
from .unroll import view

Project = Callable[[PyTree], PyTree]
"""hparams -> the nearest allowed ones, on pytrees of arrays."""
Callback = Callable[[int, PyTree, PyTree, Any], None]


def count(where: str, name: str, value: Any) -> int:
    """A number of updates. Raises: ArgumentError unless it is an integer >= 0."""
    found = integer(where, name, value, "it counts updates")
    if found < 0:
        raise ArgumentError(f"{where}: {name} is {found}, expected an integer >= 0 because it counts updates; pass such a number")
    return found


def projected(where: str, project: Project, hparams: PyTree) -> PyTree:
    """The projection of Tensors, as Tensors. Raises: an error that names the leaf unless it is like hparams."""
    after = tree_tensors(project(tree_map(view, hparams)), where, "hparams")
    same_kind(f"{where}: project", (hparams,), (after,), ("hparams",))
    return after


def see(callback: Callback, t: int, hparams: PyTree, w: PyTree, value: Tensor) -> None:
    """Calls the callback on read-only views."""
    callback(t, tree_map(view, hparams), tree_map(view, w), view(value))


def check_finite(where: str, step: int, trees: dict[str, PyTree]) -> None:
    """Raises: DifferentiationError that names the first leaf of the trees with a number that is not finite."""
    for root, tree in trees.items():
        for name, x in tree_named(tree, root):
            if not bool(backend_of(x.value).xp.isfinite(x.value).all()):
                raise DifferentiationError(
                    f"{where}: {name} is no longer finite after step {step}, expected finite numbers because the run diverged; lower the "
                    "inner or the outer step size, or bound the hyperparameters with project"
                )
