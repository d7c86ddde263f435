"""Stretches of instructions without Python: what they refuse, and that the checks of NumPy's loops see other loops than expected."""

from __future__ import annotations

import numpy as np
import pytest

from hypergrad import _host
from hypergrad.backends.host import HOST
from hypergrad.errors import ArgumentError
from hypergrad.stretch import Loop, Reduction, _is_numpys, _reduces_as_numpy

X = np.arange(6.0)


def at(x, number=-1, offset=None):
    """An operand: an array that stays, or what lies in a register."""
    return number, x.ctypes.data if offset is None else offset, x.strides, x.dtype


def loop_of(ufunc, types):
    return ufunc.types.index(types)


def doubling(number=0):
    """A stretch that doubles the array of a register into one that it makes, register 1."""
    stretch = _host.Stretch()
    stretch.expect(number, X.shape, X.strides, X.dtype, False)
    stretch.expect(1, X.shape, X.strides, X.dtype, True)
    stretch.add_ufunc(np.add, loop_of(np.add, "dd->d"), [at(X, number, 0), at(X, number, 0), at(X, 1, 0)], X.shape, True)
    return stretch


def test_a_loop_writes_what_numpy_does_to_an_array_of_its_own():
    registers = [X, None]
    assert doubling()(registers, HOST.empty)
    assert np.array_equal(registers[1], X + X) and registers[0] is X


def test_what_is_let_go_is_cleared():
    stretch = doubling()
    stretch.let_go([0])
    registers = [X, None]
    assert stretch(registers, HOST.empty)
    assert registers[0] is None


@pytest.mark.parametrize(
    "other",
    [X[:5], X.reshape(2, 3), X[::-1], X.astype(np.float32), X.astype(">f8"), np.frombuffer(bytes(52), np.float64, 6, 4), None, 3.0],
    ids=["shape", "axes", "strides", "dtype", "byte order", "alignment", "nothing", "a number"],
)
def test_an_array_that_is_unlike_the_recordings_is_refused(other):
    with pytest.raises(ArgumentError, match="unlike"):
        doubling()([other, None], HOST.empty)


def test_a_register_that_nobody_named_is_refused():
    with pytest.raises(ArgumentError, match="register 7"):
        _host.Stretch().add_guard(7, 0, True)


@pytest.mark.parametrize("index", [-1, 1000])
def test_a_loop_that_the_function_does_not_have_is_refused(index):
    with pytest.raises(ArgumentError, match="no loop"):
        _host.Stretch().add_ufunc(np.add, index, [at(X)] * 3, X.shape, False)


def test_a_guard_says_whether_the_answer_is_the_same():
    stretch, truth = _host.Stretch(), np.array(True)
    stretch.add_guard(-1, truth.ctypes.data, True)
    assert stretch([], HOST.empty)
    truth[...] = False
    assert not stretch([], HOST.empty)


@pytest.mark.parametrize("kind", ["f", "d", "l"])
def test_the_check_of_a_loop_sees_another_one(kind):
    """As if NumPy's table were in another order."""
    types = f"{kind}{kind}->{kind}"
    right = loop_of(np.multiply, types)
    assert _is_numpys(Loop(np.multiply, right, 3 * kind))
    others = [i for i, t in enumerate(np.multiply.types) if t[0] in "bBhHiIlLqQfd" and np.dtype(t[0]).itemsize <= np.dtype(kind).itemsize]
    seen = [not _is_numpys(Loop(np.multiply, i, 3 * kind)) for i in others if np.dtype(np.multiply.types[i][0]) != np.dtype(kind)]
    assert any(seen) and (kind == "l" or all(seen))  # a loop of other integers of that size gives the same bits
    assert not _is_numpys(Loop(np.multiply, 1000, 3 * kind))


def test_the_check_of_a_reduction_sees_another_order_and_another_start(monkeypatch):
    right = Reduction(np.add, loop_of(np.add, "ff->f"), "f", (40, 30), (120, 4), (1,))
    assert _reduces_as_numpy(right)
    _reduces_as_numpy.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(Reduction, "start", np.asarray(1.0, np.float32))
        assert not _reduces_as_numpy(right)
    _reduces_as_numpy.cache_clear()
    with monkeypatch.context() as patch:  # along the other axis
        patch.setattr(Reduction, "spread", lambda self, strides: (0, 4))
        assert not _reduces_as_numpy(right._replace(shape=(30, 30)))
    _reduces_as_numpy.cache_clear()
    assert not _reduces_as_numpy(right._replace(loop=loop_of(np.add, "hh->h")))
    _reduces_as_numpy.cache_clear()
