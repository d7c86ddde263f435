"""Both losses of a bilevel problem at one point (w, lambda): what the passes that keep no run are made of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from ..backends import Array, backend_of
from ..backends.host import HOST
from ..bilevel import Bilevel
from ..errors import ArgumentError, DifferentiationError
from ..replay import Changed, Replays, shared_by
from ..rules import settings
from ..tape import Tape, Tensor, with_tangents
from ..transforms import dependence, scalar, tensor_value_and_grad
from ..trees import PyTree, tree_flatten, tree_leaves, tree_named, tree_unflatten
from .descent import second_order
from .dynamics import Bars
from .replay import LEAST_STEPS

R = TypeVar("R")


class Flat:
    """The leaves of a tree side by side: vectors like the tree are rows of one array, (P, n)."""

    def __init__(self, tree: PyTree) -> None:
        self.leaves, self.spec = tree_flatten(tree)

    def split(self, rows: Array) -> Bars:
        """Views of the parts that belong to the leaves, (P, ...)."""
        out: Bars = []
        start = 0
        for x in self.leaves:
            out.append(Tensor(rows[:, start : start + x.size].reshape(-1, *x.shape)))
            start += x.size
        return out

    def join(self, parts: Bars, count: int = 1) -> Array:
        """A new array with one row for each of `count` vectors; None is zero."""
        rows = [
            backend_of(x.value).xp.zeros((count, x.size), x.dtype) if d is None else d.value.reshape(count, x.size)
            for x, d in zip(self.leaves, parts, strict=True)
        ]
        return backend_of(*rows).concatenate(rows, 1)

    def tree(self, row: Array) -> PyTree:
        """The tree of one vector (n,), views of it."""
        return tree_unflatten(self.spec, [Tensor(x.value[0, ...]) for x in self.split(row[None]) if x is not None])


def norm(leaves: Iterable[Any]) -> float:
    """The Euclidean norm of some arrays together."""
    return math.hypot(*(math.sqrt(float((x * x).sum())) for x in leaves))


class Losses:
    """The losses of a problem, for a pass of the name `where`. After some calls they are replayed where they can be, with the same bits.

    Raises: ArgumentError for a problem with a running loss.
    """

    def __init__(self, where: str, problem: Bilevel) -> None:
        if problem.running_loss is not None:
            raise ArgumentError(f"{where}: problem has a running_loss, expected none because there is no run; use hg.reverse")
        self.where, self.problem = where, problem
        self._replays = Replays(whole=True, shared=shared_by(problem.inner_loss))
        self._calls: Counter[str] = Counter()
        self._last: set[str] = set()

    @property
    def program(self) -> str:
        """What is replayed, or why nothing is."""
        return self._replays.program

    def _inner(self, w: PyTree, hparams: PyTree, batch: Any) -> Tensor:
        return scalar("inner_loss", self.problem.inner_loss(w, hparams, batch))

    def _outer(self, w: PyTree, hparams: PyTree, batch: Any) -> Tensor:
        return scalar("outer_loss", self.problem.outer_loss(w, hparams, *(() if batch is None else (batch,))))

    def outer(self, w: PyTree, hparams: PyTree, batch: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """E, and its gradients in the leaves of w and of hparams."""

        def f(w: PyTree, hparams: PyTree, batch: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
            value, _, (w_bar, h_bar) = tensor_value_and_grad(
                lambda both: self._outer(both[0], both[1], batch), (w, hparams), where="outer_loss"
            )
            return value, tree_leaves(w_bar), tree_leaves(h_bar)

        return self._call("outer_loss", f, self._outer, w, hparams, batch)

    def inner(self, w: PyTree, hparams: PyTree, batch: Any) -> PyTree:
        """The gradient of L in w."""

        def f(w: PyTree, hparams: PyTree, batch: Any) -> PyTree:
            return tensor_value_and_grad(lambda w: self.problem.inner_loss(w, hparams, batch), w, where="inner_loss")[2]

        return self._call("gradient of inner_loss", f, self._inner, w, hparams, batch)

    def inner_along(self, w: PyTree, hparams: PyTree, batch: Any, rows: Bars) -> tuple[Tensor, list[Tensor], Bars, Bars]:
        """L, its gradient in the leaves of w, and H_ww v and H_lambda,w v along each of the rows; see `second_order`."""

        def f(w: PyTree, hparams: PyTree, batch: Any, rows: Bars) -> tuple[Tensor, list[Tensor], Bars, Bars]:
            loss, g, hessian, mixed = with_tangents(second_order, lambda w, h: self._inner(w, h, batch), w, hparams, rows)
            return loss, tree_leaves(g), hessian, mixed

        return self._call("inner_loss", f, self._inner, w, hparams, batch, rows)

    def _call(self, name: str, f: Callable[..., R], loss: Callable[..., Tensor], w: PyTree, *args: Any) -> R:
        """f(w, *args), replayed where it can be. Args: loss: takes the first three of these."""
        self._calls[name] += 1
        on_host = backend_of(*[x.value for x in tree_leaves(w)]) is HOST
        if self._calls[name] <= LEAST_STEPS or not self._replays.able or not on_host or not settings()[0]:
            return f(w, *args)
        last = name in self._last
        self._last.discard(name)
        try:
            result: R = self._replays.call(
                name, lambda _, args: f(*args), 0, (w, *args), settings(), check=lambda _, args: loss(*args[:3]), last=last
            )
        except Changed:
            raise DifferentiationError(
                f"{self.where}: the {name} is another function at the last step than at the first ones, expected the same one because it "
                "was recorded and replayed; pass what changes in hparams or in the batches, or switch that off: hg.fusion(False)"
            ) from None
        return result

    def begin_last_step(self) -> None:
        """Says that a loop begins its last step. Each loss is then recorded once more, as a callback might have changed it on the way."""
        self._last = {*self._calls}

    def check(self, w: PyTree, hparams: PyTree, batch: Any, outer_batch: Any) -> None:
        """Raises: DifferentiationError that names a leaf of hparams which no loss reads; and for an inner loss that is not proven."""
        tape = Tape()
        inner = dependence(lambda both: self._inner(both[0], both[1], batch), (w, hparams), tape=tape)
        if not tape.proven:
            raise DifferentiationError(
                f"{self.where}: inner_loss has an op whose rules are declared outside this package, expected proven ones because the "
                "Hessian must be symmetric; use hg.reverse"
            )
        outer = dependence(lambda both: self._outer(both[0], both[1], outer_batch), (w, hparams))
        read = [a or b for a, b in zip(inner, outer, strict=True)]
        names = [name for name, _ in tree_named(hparams, "hparams")]
        idle = [name for known, name in zip(read[len(read) - len(names) :], names, strict=True) if not known]
        if idle:
            raise DifferentiationError(
                f"{self.where}: {', '.join(idle)} is read by neither inner_loss nor outer_loss, expected an influence on the solution; a "
                "hyperparameter of the optimiser or of the start has none there: use hg.reverse or hg.forward, or leave it out"
            )
