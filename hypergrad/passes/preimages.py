"""The floats that a map which never decreases sends to given ones, by NumPy, and integers in as few bits as they need.

Floats are taken as integers in their order, neighbours for neighbours. These are the definitions that the kernels of csrc/preimages.h
and csrc/host/sgd_residue.cpp are tested against.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..backends import Array

Half = Callable[[Array, Any], Array]
"""One of the two maps of a leaf's step: (floats, the elements that they stand for) -> their images."""

_PLACES = 7  # that a search tries at once


def _word(dtype: Any) -> Any:
    """The unsigned integer type as large as a float."""
    return np.uint32 if dtype.itemsize == 4 else np.uint64


def ordered(xp: Any, x: Array) -> Array:
    """Unsigned integers in the order of the floats, neighbours for neighbours. Both zeros are one integer."""
    word = _word(x.dtype)
    top = word(1 << (8 * x.dtype.itemsize - 1))
    bits = x.view(word)
    return xp.where(bits >= top, xp.zeros_like(bits) - bits, bits + top)


def floats(xp: Any, n: Array, dtype: Any) -> Array:
    """The floats of `ordered`'s integers."""
    top = _word(dtype)(1 << (8 * dtype.itemsize - 1))
    return xp.where(n >= top, n - top, xp.zeros_like(n) - n).view(dtype)


def preimages(xp: Any, half: Half, image: Array, guess: Array) -> tuple[Array, Array]:
    """The floats that a map which never decreases sends to `image`: the first, as an integer of `ordered`, and how many there are.

    Their two edges are where the image is first `image` or more, and first more. Each is looked for from `guess`: at its neighbour,
    which for most elements is the answer, and by a search for the rest.
    """
    dtype = image.dtype
    one = _word(dtype)(1)
    goal, start = ordered(xp, image), ordered(xp, guess)
    least, most = ordered(xp, xp.asarray([-np.inf, np.inf], dtype))
    with np.errstate(over="ignore"):
        at_start = ordered(xp, half(guess, slice(None)))
        lows, highs, goals, rest = [], [], [goal, goal + one], []  # an edge lies in (low, high]
        for aim in goals:
            down = at_start >= aim
            x = xp.where(down, start - one, start + one)
            yes = ordered(xp, half(floats(xp, x, dtype), slice(None))) >= aim
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
        images = half(floats(xp, x.ravel(), dtype), xp.repeat(elements[rows], x.shape[1]))
        return (ordered(xp, images).reshape(x.shape) < goal[rows][:, None]).sum(1)

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


def packed(xp: Any, rows: list[tuple[Array, Array]]) -> Array:
    """Integers 0 <= index < count, each in the number of bits of count - 1, lowest bit first, one after the other in bytes.

    Args: rows: pairs of arrays of unsigned integers, (index, count).
    """
    parts = []
    for index, count in rows:
        at, total = _bits_of(xp, count)
        bits = xp.zeros(total, np.uint8)
        for plane, elements in _planes(xp, count):
            bits[at[elements] + plane] = (index[elements] >> count.dtype.type(plane)) & count.dtype.type(1)
        parts.append(bits)
    return xp.packbits(xp.concatenate(parts), bitorder="little") if parts else xp.zeros(0, np.uint8)


def unpacked(xp: Any, data: Array, count: Array, begin: int) -> tuple[Array, int]:
    """The integers below `count` whose bits begin at place `begin`, and the place behind them."""
    at, total = _bits_of(xp, count)
    bits = xp.unpackbits(data, bitorder="little")[begin : begin + total]
    index = xp.zeros_like(count)
    for plane, elements in _planes(xp, count):
        index[elements] |= bits[at[elements] + plane].astype(count.dtype) << count.dtype.type(plane)
    return index, begin + total


def _bits_of(xp: Any, count: Array) -> tuple[Array, int]:
    """Where each integer's bits begin, and how many there are in all."""
    widths = xp.zeros(count.size, np.int64)
    for plane, elements in _planes(xp, count):
        widths[elements] = plane + 1
    ends = xp.cumsum(widths)
    return ends - widths, int(ends[-1]) if count.size else 0


def _planes(xp: Any, count: Array) -> Iterator[tuple[int, Array]]:
    """Each plane of bits, and the elements that have a bit in it."""
    rest, plane = count - count.dtype.type(1), 0
    elements = xp.nonzero(rest)[0]
    while len(elements):
        yield plane, elements
        plane += 1
        if plane == 8 * count.dtype.itemsize:
            return
        elements = elements[(rest[elements] >> count.dtype.type(plane)) > 0]
