"""Steps of momentum SGD that are undone bit for bit, in the floating-point arithmetic that they were done in.

A step is two maps of each element: v' = momentum*v + g for the velocity, then w' = w - lr*v' for the weight. Rounding makes them
lose information: several v give the same v'. But each map is monotone, so the v that give v' are neighbours among the floating-point
numbers, and bisection finds the first and the last. The first run keeps which of them v was: its index, in as few bits as their
number needs. That is the residue of the step: log2(1/momentum) bits a weight, and what the addition of g loses. The backward run
finds w from (w', v'), then the gradient g at w, then v from (v', g).

Source: Maclaurin, Duvenaud & Adams 2015, arXiv:1502.03492, Algorithm 3, which keeps the information that a multiplication of integers
loses. Here the numbers stay floats, so that the run has the same bits as one whose states are stored.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import numpy as np

from ..backends import Array, backend_of
from ..errors import ArgumentError, DifferentiationError
from ..ops.optimizer_step import kernels_serve, sgd_step
from ..optimizers import SGD, Optimizer, Schedule, per_leaf
from ..tape import Tensor
from ..trees import PyTree, tree_flatten, tree_leaves, tree_unflatten

_PLACES = 7  # that a search tries at once
Half = Callable[[Array, Any], Array]
"""One of the two maps of a leaf: (floats, the elements that they stand for) -> their images."""


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


def residue(optimizer: Optimizer, state: PyTree, after: PyTree, g: PyTree, t: int) -> Array:
    """What `undo` needs beside the state after step t, given the state before it and the gradient: packed bits, uint8."""
    step = _Step(optimizer, after)
    bits = _Bits(step.xp)
    before = [
        (w, v, step.weights(i), step.velocities(i, w, g))
        for i, (w, v, g) in enumerate(zip(step.flat(state[0]), step.flat(state[1]), step.gradient(g), strict=True))
    ]
    weights = [(w, image, of_w) for (w, _, of_w, _), image in zip(before, step.w_next, strict=True)]
    velocities = [(v, image, of_v) for (_, v, _, of_v), image in zip(before, step.v_next, strict=True)]
    for x, image, half in weights + velocities:
        if not bool(step.xp.isfinite(image).all()):
            raise DifferentiationError(
                f"unroll: the state after step {t} is not finite, expected finite numbers because the run diverged; lower the step size"
            )
        first, count = _preimages(step.xp, half, image, x)
        index = _ordered(step.xp, x) - first
        if not bool((index < count).all()):
            raise DifferentiationError(
                f"unroll: step {t} is not the step of hg.SGD to the last bit, expected it because reversible mode undoes that step; "
                "choose other checkpoints such as 'sqrt'"
            )
        bits.write(index, count)
        bits.write_signs(x)
    return bits.packed()


def undo(optimizer: Optimizer, after: PyTree, gradient: Callable[[PyTree], PyTree], packed: Array) -> PyTree:
    """The state before a step, bit for bit.

    Args:
        optimizer: of that step.
        after: the state after it, (weights, velocity).
        gradient: weights -> gradient of the inner loss.
        packed: the step's `residue`.
    Returns: (weights, velocity).
    """
    step = _Step(optimizer, after)
    bits = _Bits(step.xp, packed)
    w = [_restored(bits, step.weights(i), image, 1.0) for i, image in enumerate(step.w_next)]
    weights = step.tree(w)
    g = step.gradient(gradient(weights))
    v = [_restored(bits, step.velocities(i, w[i], g[i]), image, step.momentum(i)) for i, image in enumerate(step.v_next)]
    return weights, step.tree(v)


class _Step:
    """The two maps of each leaf, by the very op that the run took, on any of the leaf's elements."""

    def __init__(self, optimizer: Optimizer, after: PyTree) -> None:
        assert isinstance(optimizer, SGD)
        self.clip = optimizer.clip
        self.leaves, self.spec = tree_flatten(after[0])
        self.xp = backend_of(*(x.value for x in self.leaves)).xp
        self.fields = {k: per_leaf(self.spec, self.leaves, k, getattr(optimizer, k)) for k in optimizer.numeric_fields}
        fields = [x for f in self.fields.values() for x in (f if isinstance(f, list) else [f])]
        self.by_kernel = kernels_serve([self.leaves, tree_leaves(after[1])], [x for x in fields if not isinstance(x, (int, float))])
        self.joined = self.by_kernel and len(fields) == len(self.fields)  # the same fields for all leaves: they are taken as one
        self.w_next, self.v_next = self.flat(after[0]), self.flat(after[1])

    def flat(self, tree: PyTree) -> list[Array]:
        """A tree like the weights as flat arrays: one for each leaf, or one for all."""
        rows = [x.value.ravel() for x in tree_leaves(tree)]
        return [self.xp.concatenate(rows)] if self.joined and rows else rows

    def tree(self, rows: list[Array]) -> PyTree:
        """The tree of `flat`'s arrays."""
        if self.joined and rows:
            starts = [0, *accumulate(x.size for x in self.leaves)]
            rows = [rows[0][start : start + x.size] for start, x in zip(starts, self.leaves, strict=False)]
        return tree_unflatten(self.spec, [Tensor(x.reshape(leaf.shape)) for x, leaf in zip(rows, self.leaves, strict=True)])

    def gradient(self, g: PyTree) -> list[Array]:
        """The gradient that the update sees, as `flat`."""
        return self.flat(g if self.clip is None else self.clip(g))

    def _field(self, name: str, i: int, rows: Any) -> Any:
        """A field for some elements of leaf i: without axes where the kernels served the step, else with one value an element."""
        field = self.fields[name]
        x = field[i] if isinstance(field, list) else field
        if self.by_kernel:
            return x
        values = x.value if isinstance(x, Tensor) else self.xp.asarray(x, self.w_next[i].dtype)
        return Tensor(self.xp.broadcast_to(values, self.leaves[i].shape).ravel()[rows])

    def momentum(self, i: int) -> Any:
        """Of leaf i: a number or an array."""
        x = self._field("momentum", i, slice(None))
        return x.value if isinstance(x, Tensor) else x

    def weights(self, i: int) -> Half:
        """w -> w' at the velocity v' of leaf i. 1*v' + (-0) is v' itself, so the op takes it as the next velocity."""
        v_next, nothing = self.v_next[i], -self.xp.zeros_like(self.v_next[i])

        def half(x: Array, rows: Any) -> Array:
            own = [Tensor(x)], [Tensor(v_next[rows])], [Tensor(nothing[rows])]
            return sgd_step(*own, self._field("lr", i, rows), 1.0, 0.0, nesterov=False)[0][0].value

        return half

    def velocities(self, i: int, w: Array, g: Array) -> Half:
        """v -> v' at the weights and the gradient of leaf i."""

        def half(x: Array, rows: Any) -> Array:
            fields = (self._field(k, i, rows) for k in ("lr", "momentum", "weight_decay"))
            _, v_next = sgd_step([Tensor(w[rows])], [Tensor(x)], [Tensor(g[rows])], *fields, nesterov=False)
            assert v_next is not None
            return v_next[0].value

        return half


def _restored(bits: _Bits, half: Half, image: Array, slope: Any) -> Array:
    """The floats before a half step, from their images and the bits of their indices."""
    xp = bits.xp
    with np.errstate(over="ignore", divide="ignore"):
        guess = (image - half(xp.zeros_like(image), slice(None))) / slope
    largest = xp.finfo(image.dtype).max
    guess = xp.clip(guess, -largest, largest).astype(image.dtype)
    first, count = _preimages(xp, half, image, guess)
    return bits.with_signs(_floats(xp, first + bits.read(count), image.dtype))


# --- floats as integers ------------------------------------------------------------------------------------


def _word(dtype: Any) -> Any:
    """The unsigned integer type as large as a float."""
    return np.uint32 if dtype.itemsize == 4 else np.uint64


def _ordered(xp: Any, x: Array) -> Array:
    """Unsigned integers in the order of the floats, neighbours for neighbours. Both zeros are one integer."""
    word = _word(x.dtype)
    top = word(1 << (8 * x.dtype.itemsize - 1))
    bits = x.view(word)
    return xp.where(bits >= top, xp.zeros_like(bits) - bits, bits + top)


def _floats(xp: Any, n: Array, dtype: Any) -> Array:
    """The floats of `_ordered`'s integers."""
    top = _word(dtype)(1 << (8 * dtype.itemsize - 1))
    return xp.where(n >= top, n - top, xp.zeros_like(n) - n).view(dtype)


def _preimages(xp: Any, half: Half, image: Array, guess: Array) -> tuple[Array, Array]:
    """The floats that a map which never decreases sends to `image`: the first, as an integer of `_ordered`, and how many there are.

    Their two edges are where the image is first `image` or more, and first more. Each is looked for from `guess`: at its neighbour,
    which for most elements is the answer, and by a search for the rest.
    """
    dtype = image.dtype
    one = _word(dtype)(1)
    goal, start = _ordered(xp, image), _ordered(xp, guess)
    least, most = _ordered(xp, xp.asarray([-np.inf, np.inf], dtype))
    with np.errstate(over="ignore"):
        at_start = _ordered(xp, half(guess, slice(None)))
        lows, highs, goals, rest = [], [], [goal, goal + one], []  # an edge lies in (low, high]
        for aim in goals:
            down = at_start >= aim
            x = xp.where(down, start - one, start + one)
            yes = _ordered(xp, half(_floats(xp, x, dtype), slice(None))) >= aim
            lows.append(xp.where(yes, xp.where(down, least, start), x))
            highs.append(xp.where(yes, x, xp.where(down, start, most)))
            rest.append(xp.nonzero(yes == down)[0])
        rows = xp.concatenate(rest)
        if len(rows):
            low, high, aim = (xp.concatenate([a[r] for a, r in zip(x, rest, strict=True)]) for x in (lows, highs, goals))
            found = _edges(xp, half, aim, low, high, least, most, rows, dtype)
            highs[0][rest[0]], highs[1][rest[1]] = found[: len(rest[0])], found[len(rest[0]) :]
    return highs[0], highs[1] - highs[0]


def _edges(xp: Any, half: Half, goal: Array, low: Array, high: Array, least: Any, most: Any, elements: Array, dtype: Any) -> Array:
    """The first integers in (low, high] whose floats' images are at least the goal. One of low and high is an end of all floats.

    Many places are tried at once, since a call costs more than its few elements: first at growing distances from the other end, then
    at equal ones within what is left.
    """
    word, bits = goal.dtype.type, 8 * dtype.itemsize

    def missed(rows: Array, x: Array) -> Array:
        """How many of each row's places, in ascending order, lie before the edge."""
        images = half(_floats(xp, x.ravel(), dtype), xp.repeat(elements[rows], x.shape[1]))
        return (_ordered(xp, images).reshape(x.shape) < goal[rows][:, None]).sum(1)

    def narrow(rows: Array, x: Array) -> None:
        count = missed(rows, x)
        places = xp.concatenate([low[rows][:, None], x, high[rows][:, None]], 1)
        at = xp.arange(len(rows))
        low[rows], high[rows] = places[at, count], places[at, count + 1]

    distances = xp.asarray([2] + [4 * 8**i for i in range((bits - 2) // 3)], goal.dtype)
    for some in (distances[:1], distances[1:]):  # most edges are two places away
        rows = xp.nonzero(low == least)[0]
        if len(rows):
            top = high[rows][:, None]
            narrow(rows, xp.where(top - least > some[::-1], top - some[::-1], least))
        rows = xp.nonzero(high == most)[0]
        if len(rows):
            bottom = low[rows][:, None]
            narrow(rows, xp.where(most - bottom > some, bottom + some, most))
    shares = xp.arange(1, _PLACES + 1).astype(goal.dtype)
    while len(rows := xp.nonzero(high - low > word(1))[0]):
        stride = xp.maximum((high[rows] - low[rows]) // word(_PLACES + 1), word(1))[:, None]
        narrow(rows, xp.minimum(low[rows][:, None] + stride * shares, high[rows][:, None]))
    return high


class _Bits:
    """A sequence of bits, written and read in the same order."""

    def __init__(self, xp: Any, packed: Array | None = None) -> None:
        self.xp, self.at = xp, 0
        self.parts: list[Array] = []
        self.bits = None if packed is None else xp.unpackbits(packed)

    def packed(self) -> Array:
        """All that was written, eight bits a byte."""
        return self.xp.packbits(self.xp.concatenate(self.parts)) if self.parts else self.xp.zeros(0, np.uint8)

    def _put(self, bits: Array) -> None:
        self.parts.append(bits.astype(np.uint8))

    def _take(self, n: int) -> Array:
        assert self.bits is not None
        self.at += n
        return self.bits[self.at - n : self.at]

    def write(self, index: Array, count: Array) -> None:
        """Integers 0 <= index < count, each in the number of bits of count - 1, plane by plane."""
        for plane, rows in self._planes(count):
            self._put((index[rows] >> count.dtype.type(plane)) & count.dtype.type(1))

    def read(self, count: Array) -> Array:
        """The integers that `write` wrote."""
        index = self.xp.zeros_like(count)
        for plane, rows in self._planes(count):
            index[rows] |= self._take(len(rows)).astype(count.dtype) << count.dtype.type(plane)
        return index

    def _planes(self, count: Array) -> Any:
        """Each plane, and the elements that have a bit in it."""
        rest, plane = count - count.dtype.type(1), 0
        rows = self.xp.nonzero(rest)[0]
        while len(rows):
            yield plane, rows
            plane += 1
            rows = rows[(rest[rows] >> count.dtype.type(plane)) > 0]

    def write_signs(self, x: Array) -> None:
        """Whether there is a negative zero, and if so all signs of zeros: `_ordered` does not tell them apart."""
        signs = self.xp.signbit(x[x == 0])
        some = bool(signs.any())
        self._put(self.xp.asarray([some]))
        if some:
            self._put(signs)

    def with_signs(self, x: Array) -> Array:
        """x with the signs of its zeros that `write_signs` wrote."""
        if self._take(1)[0]:
            rows = self.xp.nonzero(x == 0)[0]
            x[rows] = self.xp.where(self._take(len(rows)) > 0, -x[rows], x[rows])
        return x
