"""A sum over slices whose gradients are taken one after the other, so that only one slice's intermediate values are ever held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from ..backends import backend_of
from ..errors import ArgumentError, ShapeError
from ..rules import Surroundings
from ..state import current, is_idle, set_aside
from ..tape import Node, Rule, Tape, Tensor, levels_of, record, untaped
from ..transforms import owned, scalar, tree_tensors
from ..trees import PyTree, tree_flatten, tree_map, tree_unflatten

Slice = Callable[[PyTree, PyTree, slice], tuple[Tensor, Any]]


def accumulate(f: Slice, shared: PyTree, sliced: PyTree, n_rows: int, slice_rows: int) -> tuple[Tensor, list[Any]]:
    """The sum of f over slices of rows: gradient accumulation as one differentiable op.

    Where one gradient follows the result, each slice's gradient is taken as soon as its value is there, and its intermediate values
    are dropped. The gradient of the sum then costs no more than before, and the memory is that of one slice. In every other
    nesting (a jvp, a gradient of a gradient, or none) the sum runs as plain ops, with the same bits.

    Args:
        f: (shared, part, rows) -> (scalar Tensor, aux). `part` is `sliced` with every leaf cut to the rows of the slice `rows`;
            `aux` is not differentiated. f must use no Tensor from outside that a gradient follows.
        shared: pytree of arrays or Tensors, the same for every slice.
        sliced: pytree of arrays or Tensors (n_rows, ...); () if there is none.
        n_rows: rows in all, >= 1.
        slice_rows: rows of a slice, >= 1. The last one may have fewer.
    Returns: (total, aux): the sum, a scalar Tensor, and what f returned beside it, slice by slice.
    Raises: ShapeError for a leaf of `sliced` without n_rows rows and for a result that is no scalar; ArgumentError for numbers below 1;
        DifferentiationError for a Tensor from outside that a gradient follows.
    Cost: f, once a slice. Under one gradient about three times that, and the later sweep costs nothing.
    Memory: the intermediate values of one slice, and the gradient.
    Example:
        >>> x = np.arange(6.0)
        >>> total, _ = hg.accumulate(lambda w, part, rows: (hg.sum((w * part) ** 2), None), np.array(2.0), x, 6, 2)
        >>> total
        Tensor(array(220.))
    """
    if n_rows < 1 or slice_rows < 1:
        raise ArgumentError(f"accumulate: n_rows is {n_rows} and slice_rows {slice_rows}, expected at least 1; pass positive numbers")
    own, own_spec = tree_flatten(tree_tensors(shared, "accumulate", "shared"))
    cut, cut_spec = tree_flatten(tree_tensors(sliced, "accumulate", "sliced"))
    for x in cut:
        if x.shape[:1] != (n_rows,):
            raise ShapeError(
                f"accumulate: a leaf of sliced has shape {x.shape}, expected {n_rows} rows; pass what all slices share as shared"
            )

    def one(leaves: Sequence[Tensor], rows: slice) -> tuple[Tensor, Any]:
        result = f(tree_unflatten(own_spec, leaves[: len(own)]), tree_unflatten(cut_spec, leaves[len(own) :]), rows)
        if not (isinstance(result, tuple) and len(result) == 2):
            raise ArgumentError(f"accumulate: f's result is a {type(result).__name__}, expected the pair (value, aux); return both")
        return scalar("accumulate", result[0]), result[1]

    slices = [slice(start, min(start + slice_rows, n_rows)) for start in range(0, n_rows, slice_rows)]
    levels = levels_of([*own, *cut])
    if len(slices) > 1 and levels and not levels & (levels - 1) and current().jvp is None:
        op = _Accumulated(one, own, cut, slices)
        return op(levels), op.aux
    total, aux = None, []
    for rows in slices:
        value, beside = one([*own, *(x if rows == slice(0, n_rows) else x[rows] for x in cut)], rows)
        total = value if total is None else total + value
        aux.append(beside)
    assert total is not None
    return (Tensor(owned(total, [x.value for x in (*own, *cut)])) if is_idle() else total), aux


class _Accumulated:
    """The op of one sum under one gradient. Its inputs are the leaves of `shared` and of `sliced`."""

    name = "accumulate"

    def __init__(self, f: Callable[..., tuple[Tensor, Any]], own: list[Tensor], cut: list[Tensor], slices: list[slice]) -> None:
        self.f, self.own, self.cut, self.slices, self.proven = f, own, cut, slices, True
        self.total: Tensor | None = None
        self.aux: list[Any] = []
        self.bars: list[Any] = [None] * len(own)  # the gradient, None where nothing flows
        self.bars_cut: list[list[Tensor | None]] = []  # one row a slice

    def __call__(self, levels: int) -> Tensor:
        """The sum, on the tape that `levels` names; all gradients are taken on the way."""
        surroundings = Surroundings()
        for rows in self.slices:
            set_aside(surroundings.run, self._add, rows)
        assert self.total is not None
        node = Node(cast(Rule, self), [*self.own, *self.cut], {}, None, levels)  # no forward or push: the work is done
        node.outputs = [(self.total.value, None)]
        record(node)
        return node.output()

    def _add(self, rows: slice) -> None:
        """Adds one slice's value and gradient."""
        tape = Tape()

        def taped() -> tuple[list[Tensor], Tensor, Any]:
            watched = [tape.watch(untaped(x)) for x in self.own] + [tape.watch(Tensor(x.value[rows])) for x in self.cut]
            return watched, *self.f(watched, rows)

        watched, value, aux = tape.run(taped)
        self.proven &= tape.proven
        self.aux.append(tree_map(lambda x: untaped(x) if isinstance(x, Tensor) else x, aux))
        one = Tensor(backend_of(value.value).number(1.0, value.dtype))
        roots, value = [value], untaped(value)
        bars = tape.gradients(roots, [one], watched)
        self.total = value if self.total is None else self.total + value
        for i, bar in enumerate(bars[: len(self.own)]):
            if bar is not None:
                self.bars[i] = bar if self.bars[i] is None else self.bars[i] + bar
        self.bars_cut.append(bars[len(self.own) :])

    def pull(self, node: Node, bars: list[Tensor | None], want: Sequence[int]) -> Sequence[Tensor | None]:
        """The gradient times the sum's cotangent."""
        (bar,) = bars
        assert bar is not None
        got: list[Tensor | None] = [g if g is None else g * bar for g in self.bars]
        for x, column in zip(self.cut, zip(*self.bars_cut, strict=True), strict=True):
            got.append(None if all(g is None for g in column) else self._joined(x, column) * bar)
        return [g if wanted else None for g, wanted in zip(got, want, strict=True)]

    def _joined(self, x: Tensor, column: Sequence[Tensor | None]) -> Tensor:
        """The rows of all slices' cotangents of `x`."""
        b = backend_of(x.value, *[g.value for g in column if g is not None])
        rows = [b.xp.zeros_like(x.value[s]) if g is None else g.value for s, g in zip(self.slices, column, strict=True)]
        return Tensor(b.concatenate(rows, 0))
