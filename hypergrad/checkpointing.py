"""checkpoint: a function whose intermediate values are computed again in the reverse sweep, not kept."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, cast

from .backends import digest
from .errors import DifferentiationError
from .rules import Surroundings
from .state import current, set_aside
from .tape import Node, Rule, Tape, Tensor, levels_of, record, untaped
from .transforms import tree_tensors
from .trees import PyTree, tree_flatten, tree_unflatten


def checkpoint(f: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, whose intermediate values are not kept for the reverse sweep but computed again in it.

    Args:
        f: takes any arguments, returns a pytree of floating Tensors or arrays. It must be pure: it is run twice. The Tensors among
            its arguments, in pytrees and by keyword, too, are those that a gradient may follow; it must use no such Tensor from outside.
    Returns: a function of the same arguments. It gives the same values and derivatives, bit for bit, in every mode and nesting.
    Raises: DifferentiationError where f uses a Tensor from outside that a gradient follows, and where the second run gives
        other bits or another structure than the first (not checked on a GPU).
    Memory: the arguments and results of f, and its intermediate values during its own part of the sweep alone.
    Time: f once more for each sweep. Where a tape records tangents (the gradient of a jvp), and where no tape records,
        f runs as if it were not checkpointed.
    Source: Griewank & Walther 2000, Algorithm 799 (revolve); Chen et al. 2016, arXiv:1604.06174. For the steps of a loop, `scan` and
        `unroll` have better schedules.
    Example: ``hg.grad(lambda x: hg.sum(hg.checkpoint(lambda x: hg.exp(hg.tanh(x)))(x)))(np.ones(3))`` keeps no tanh.
    Example:
        >>> f = hg.checkpoint(lambda x: hg.tanh(hg.tanh(hg.tanh(x))))
        >>> hg.grad(f)(np.array(0.0))
        array(1.)
    """

    @functools.wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        leaves, spec = tree_flatten((args, kwargs))
        levels, jvp = levels_of([x for x in leaves if isinstance(x, Tensor)]), current().jvp
        dots = [x.dot for x in leaves if isinstance(x, Tensor)]
        if not levels or jvp is not None and (levels & jvp.levels or levels_of(dots)):
            return f(*args, **kwargs)

        def of(tensors: Sequence[Tensor]) -> PyTree:
            given = iter(tensors)
            args, kwargs = tree_unflatten(spec, [next(given) if isinstance(x, Tensor) else x for x in leaves])
            return tree_tensors(f(*args, **kwargs), "checkpoint", "result")

        return _Checkpoint(of, [x for x in leaves if isinstance(x, Tensor)], levels)()

    return wrapped


class _Checkpoint:
    """The op of one call: a function of a list of Tensors."""

    name = "checkpoint"

    def __init__(self, f: Callable[[Sequence[Tensor]], PyTree], inputs: list[Tensor], levels: int) -> None:
        self.f, self.inputs, self.levels = f, inputs, levels
        self.proven = True  # until the second run shows another
        self.surroundings = Surroundings()
        self.digests: list[int | None] = []
        self.tapes: list[weakref.ref[Tape]] = []  # a tape holds this object

    def __call__(self) -> PyTree:
        """The result of the first run, of which nothing is recorded but this op."""
        leaves, spec = set_aside(self._run, [untaped(x) for x in self.inputs])
        self.spec, self.digests = spec, [digest(x.value) for x in leaves]
        self.tapes = [weakref.ref(tape) for tape in current().tapes if self.levels & tape.bit]
        node = Node(cast(Rule, self), self.inputs, {}, None, self.levels)  # no forward or push: the first run has done their work
        node.outputs = [(x.value, x.dot) for x in leaves]
        record(node)
        return tree_unflatten(spec, node.results())

    def _run(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        leaves, spec = tree_flatten(self.surroundings.run(self.f, inputs))
        self.surroundings.kept.clear()
        return leaves, spec

    def pull(self, node: Node, bars: list[Tensor | None], want: Sequence[int]) -> Sequence[Tensor | None]:
        """The second run, on a tape of its own. Tapes that are still open record it as well, and tangents flow through it."""
        tape = Tape()

        def taped() -> tuple[list[Tensor], list[Tensor], Any]:
            given = [tape.watch(x) if wanted else x for x, wanted in zip(node.inputs, want, strict=True)]
            return [x for x, wanted in zip(given, want, strict=True) if wanted], *self._run(given)

        watched, outs, spec = tape.run(taped)
        if spec != self.spec or [digest(x.value) for x in outs] != self.digests:
            raise DifferentiationError(
                "checkpoint: the function gave another result when it was run again, expected the same bits because the gradient is that "
                "of the second run; pass what is random or counted as an argument, and do not write to arrays that it reads until "
                "the gradient is there"
            )
        got = iter(tape.gradients(outs, bars, watched))
        if not tape.proven:
            self.proven = False
            for reference in self.tapes:
                if (outer := reference()) is not None:
                    outer.proven = False
        return [next(got) if wanted else None for wanted in want]
