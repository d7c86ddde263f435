"""Steps of momentum SGD that are undone bit for bit, in the floating-point arithmetic that they were done in.

A step is two maps of each element: v' = momentum*v + g for the velocity, then w' = w - lr*v' for the weight. Rounding makes them
lose information: several v give the same v'. But each map is monotone, so the v that give v' are neighbours among the floating-point
numbers, and a search finds the first and the last. The first run keeps which of them v was: its index, in as few bits as their
number needs. That is the residue of the step: log2(1/momentum) bits a weight, and what the addition of g loses. The backward run
finds w from (w', v'), then the gradient g at w, then v from (v', g).

Kernels search, write and read the bits where they serve the step, and NumPy does elsewhere.

Source: Maclaurin, Duvenaud & Adams 2015, arXiv:1502.03492, Algorithm 3, which keeps the information that a multiplication of integers
loses. Here the numbers stay floats, so that the run has the same bits as one whose states are stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..backends import Array, backend_of, to_host
from ..errors import ArgumentError, DifferentiationError
from ..ops.optimizer_step import kernels_serve, served_fields, sgd_step
from ..optimizers import SGD, Optimizer, Schedule, per_leaf
from ..rules import settings
from ..tape import Tensor
from ..trees import PyTree, tree_flatten, tree_leaves, tree_unflatten
from . import preimages
from .dynamics import Residue
from .preimages import Half


class Counts(NamedTuple):
    """Of a step: numbers after it that are not finite, numbers that are not those of the op, and negative zeros before it."""

    infinite: int
    foreign: int
    negative: int


def check(optimizer: Optimizer) -> None:
    """Raises: ArgumentError unless the steps of an optimiser can be undone."""
    found = type(optimizer).__name__
    if isinstance(optimizer, SGD) and type(optimizer).update is SGD.update:
        momentum = optimizer.momentum.values if isinstance(optimizer.momentum, Schedule) else optimizer.momentum
        least = min((float(x.value.min()) if isinstance(x, Tensor) else float(x) for x in tree_leaves(momentum)), default=1.0)
        if least > 0 and not optimizer.nesterov:
            return
        found = "SGD with Nesterov's momentum" if optimizer.nesterov else f"SGD with momentum {least:g}"
    raise ArgumentError(
        f"reverse: checkpoints is 'reversible' and optimizer is {found}, expected SGD with a momentum above 0 and without Nesterov's form "
        "because no other step can be undone; give it momentum, or choose other checkpoints such as 'sqrt'"
    )


def residue(optimizer: Optimizer, state: PyTree, after: PyTree, g: PyTree, t: int) -> Residue:
    """What `undo` needs beside the state after step t, given the state before it and the gradient."""
    step = step_of(optimizer, after)
    w, v = ([x.value for x in tree_leaves(tree)] for tree in state)
    bits, counts = step.pack(w, v, step.gradient(g))
    if counts.infinite:
        raise DifferentiationError(
            f"unroll: the state after step {t} is not finite, expected finite numbers because the run diverged; lower the step size"
        )
    if counts.foreign:
        raise DifferentiationError(
            f"unroll: step {t} is not the step of hg.SGD to the last bit, expected it because reversible mode undoes that step; "
            "choose other checkpoints such as 'sqrt'"
        )
    return Residue(bits, [[step.xp.packbits(step.xp.signbit(x[x == 0])) for x in xs] for xs in (w, v)] if counts.negative else None)


def undo(optimizer: Optimizer, after: PyTree, gradient: Callable[[PyTree], PyTree], residue: Residue) -> PyTree:
    """The state before a step, bit for bit.

    Args:
        optimizer: of that step.
        after: the state after it, (weights, velocity).
        gradient: weights -> gradient of the inner loss.
        residue: the step's `residue`.
    Returns: (weights, velocity).
    """
    step = step_of(optimizer, after)
    w, place = step.weights(residue.bits)
    if residue.signs is not None:
        w = [_with_signs(step.xp, x, signs) for x, signs in zip(w, residue.signs[0], strict=True)]
    weights = step.tree(w)
    v = step.velocities(w, step.gradient(gradient(weights)), residue.bits, place)
    if residue.signs is not None:
        v = [_with_signs(step.xp, x, signs) for x, signs in zip(v, residue.signs[1], strict=True)]
    return weights, step.tree(v)


def _with_signs(xp: Any, x: Array, signs: Array) -> Array:
    """x with these signs of its zeros: a search does not tell the zeros apart."""
    flat = x.reshape(-1)
    rows = xp.nonzero(flat == 0)[0]
    flat[rows] = xp.where(xp.unpackbits(signs)[: len(rows)] > 0, -xp.zeros_like(flat[rows]), flat[rows])
    return x


class _Step:
    """A step of SGD that led to the state `after`. Leaves are lists of arrays."""

    def __init__(self, optimizer: SGD, after: PyTree) -> None:
        self.clip = optimizer.clip
        self.leaves, self.spec = tree_flatten(after[0])
        self.after = [self.leaves, tree_leaves(after[1])]
        self.w_next, self.v_next = ([x.value for x in xs] for xs in self.after)
        self.backend = backend_of(*self.w_next)
        self.xp = self.backend.xp
        self.fields = {k: per_leaf(self.spec, self.leaves, k, getattr(optimizer, k)) for k in optimizer.numeric_fields}

    def gradient(self, g: PyTree) -> list[Array]:
        """The gradient that the update sees."""
        return [x.value for x in tree_leaves(g if self.clip is None else self.clip(g))]

    def tree(self, rows: list[Array]) -> PyTree:
        """The tree of the weights' kind with these leaves."""
        return tree_unflatten(self.spec, [Tensor(x) for x in rows])


class ByKernels(_Step):
    """The kernels search and pack in one pass. `served`: the fields as they take them."""

    def __init__(self, optimizer: SGD, after: PyTree, served: dict[str, Any]) -> None:
        super().__init__(optimizer, after)
        self.served = served

    def _run(self, name: str, fields: tuple[str, ...], leaves: dict[str, list[Array]], **more: Any) -> dict[str, Any]:
        whole = {k: [self.xp.ascontiguousarray(x) for x in xs] for k, xs in leaves.items()}
        return self.backend.run(name, **whole, **{k: self.served[k] for k in fields}, **more)

    def pack(self, w: list[Array], v: list[Array], g: list[Array]) -> tuple[Array, Counts]:
        """The bits of the step from (w, v) at the gradient g."""
        leaves = {"w": w, "v": v, "g": g, "w_next": self.w_next, "v_next": self.v_next}
        room = sum(x.size for x in w) // 4 + 64  # bytes: two bits a weight are almost always enough
        while True:
            out = self._run("sgd_residue", ("lr", "momentum", "weight_decay"), leaves, B=room)
            bits, *counts = to_host(out["counts"]).tolist()
            size = (bits + 7) // 8
            if size <= room:
                return out["packed"][:size].copy(), Counts(*counts)
            room = size

    def weights(self, bits: Array) -> tuple[list[Array], Array]:
        """The weights before the step, and the place of the velocities' bits."""
        out = self._run("sgd_undo_weights", ("lr",), {"w_next": self.w_next, "v_next": self.v_next}, packed=bits)
        return out["w"], out["end"]

    def velocities(self, w: list[Array], g: list[Array], bits: Array, place: Array) -> list[Array]:
        """The velocities before the step, from its weights and gradient."""
        leaves = {"w": w, "g": g, "v_next": self.v_next}
        v: list[Array] = self._run("sgd_undo_velocities", ("momentum", "weight_decay"), leaves, packed=bits, begin=place)["v"]
        return v


class ByOp(_Step):
    """The two maps of each leaf, by the very op that the run took, on any of the leaf's elements."""

    def __init__(self, optimizer: SGD, after: PyTree) -> None:
        super().__init__(optimizer, after)
        fields = [x for f in self.fields.values() for x in (f if isinstance(f, list) else [f])]
        self.by_kernel = kernels_serve(self.after, [x for x in fields if not isinstance(x, (int, float))])

    def _field(self, name: str, i: int, rows: Any) -> Any:
        """A field for some elements of leaf i: without axes where the kernels served the step, else with one value an element."""
        field = self.fields[name]
        x = field[i] if isinstance(field, list) else field
        if self.by_kernel:
            return x
        values = x.value if isinstance(x, Tensor) else self.xp.asarray(x, self.w_next[i].dtype)
        return Tensor(self.xp.broadcast_to(values, self.leaves[i].shape).ravel()[rows])

    def _weight_map(self, i: int) -> Half:
        """w -> w' at the velocity v' of leaf i. 1*v' + (-0) is v' itself, so the op takes it as the next velocity."""
        v_next = self.v_next[i].ravel()
        nothing = -self.xp.zeros_like(v_next)

        def half(x: Array, rows: Any) -> Array:
            own = [Tensor(x)], [Tensor(v_next[rows])], [Tensor(nothing[rows])]
            return sgd_step(*own, self._field("lr", i, rows), 1.0, 0.0, nesterov=False)[0][0].value

        return half

    def _velocity_map(self, i: int, w: Array, g: Array) -> Half:
        """v -> v' at the weights and the gradient of leaf i."""
        w, g = w.ravel(), g.ravel()

        def half(x: Array, rows: Any) -> Array:
            fields = (self._field(k, i, rows) for k in ("lr", "momentum", "weight_decay"))
            _, v_next = sgd_step([Tensor(w[rows])], [Tensor(x)], [Tensor(g[rows])], *fields, nesterov=False)
            assert v_next is not None
            return v_next[0].value

        return half

    def pack(self, w: list[Array], v: list[Array], g: list[Array]) -> tuple[Array, Counts]:
        """See `ByKernels`."""
        xp, images = self.xp, [*self.w_next, *self.v_next]
        if infinite := sum(int((~xp.isfinite(x)).sum()) for x in images):
            return xp.zeros(0, np.uint8), Counts(infinite, 0, 0)
        maps = [*map(self._weight_map, range(len(w))), *map(self._velocity_map, range(len(v)), w, g)]
        before = [x.ravel() for x in (*w, *v)]
        rows = []
        for x, image, half in zip(before, images, maps, strict=True):
            first, count = preimages.preimages(xp, half, image.ravel(), x)
            rows.append((preimages.ordered(xp, x) - first, count))
        foreign = sum(int((index >= count).sum()) for index, count in rows)
        bits = xp.zeros(0, np.uint8) if foreign else preimages.packed(xp, rows)
        return bits, Counts(0, foreign, sum(int(xp.signbit(x[x == 0]).sum()) for x in before))

    def weights(self, bits: Array) -> tuple[list[Array], int]:
        """See `ByKernels`."""
        place, w = 0, []
        for i in range(len(self.leaves)):
            x, place = self._restored(bits, place, self._weight_map(i), self.w_next[i], 1.0)
            w.append(x)
        return w, place

    def velocities(self, w: list[Array], g: list[Array], bits: Array, place: int) -> list[Array]:
        """See `ByKernels`."""
        v = []
        for i in range(len(self.leaves)):
            momentum = self._field("momentum", i, slice(None))
            slope = momentum.value if isinstance(momentum, Tensor) else momentum
            x, place = self._restored(bits, place, self._velocity_map(i, w[i], g[i]), self.v_next[i], slope)
            v.append(x)
        return v

    def _restored(self, bits: Array, place: int, half: Half, image: Array, slope: Any) -> tuple[Array, int]:
        """The floats before a half step, from their images and the bits of their indices, and the place behind those."""
        xp, flat = self.xp, image.ravel()
        with np.errstate(over="ignore", divide="ignore"):
            guess = (flat - half(xp.zeros_like(flat), slice(None))) / slope
        largest = xp.finfo(flat.dtype).max
        guess = xp.clip(guess, -largest, largest).astype(flat.dtype)
        first, count = preimages.preimages(xp, half, flat, guess)
        index, place = preimages.unpacked(xp, bits, count, place)
        return preimages.floats(xp, first + index, flat.dtype).reshape(image.shape), place


def step_of(optimizer: Optimizer, after: PyTree) -> ByKernels | ByOp:
    """The step that led to `after`, by kernels where the step itself was taken by one."""
    assert isinstance(optimizer, SGD)
    by_op = ByOp(optimizer, after)
    served = served_fields(by_op.after, by_op.fields) if settings()[0] else None
    return by_op if served is None else ByKernels(optimizer, after, served)
