"""Tensors beside NumPy arrays, numbers and the arrays of other libraries."""

from __future__ import annotations

import array
from typing import Any

import numpy as np
import pytest
from checks import Array

import hypergrad as hg
from hypergrad.errors import DTypeError
from hypergrad.tape import Tape, Tensor

X = np.array([0.5, -1.25, 2.0])
V = np.array([1.0, 0.25, -0.75])


def test_numpy_arrays_leave_operators_to_tensors() -> None:
    t = Tensor(X)
    for out, wanted in (
        (V * t, V * X),
        (V + t, V + X),
        (V - t, V - X),
        (V / t, V / X),
        (V @ t, V @ X),
        (np.float64(2) * t, 2 * X),
        (np.ones((2, 1)) * t, np.ones((2, 3)) * X),
    ):
        assert type(out) is Tensor and np.array_equal(out.value, wanted)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("number", [2, 2.5, True, np.int64(2), np.array(2), np.array([1, 2, 3])], ids=repr)
def test_numbers_and_integers_take_the_tensors_dtype(dtype: type, number: Any) -> None:
    t = Tensor(X.astype(dtype))
    for out in (t * number, number * t, t + number, number - t, t / number, hg.maximum(t, number), hg.where(t > 0, t, number)):
        assert out.dtype == dtype
    assert hg.exp(number).dtype == np.float64 if isinstance(number, (int, float)) else True


def test_two_precisions_do_not_mix() -> None:
    t = Tensor(X.astype(np.float32))
    for f in (
        lambda: t * X,
        lambda: X * t,
        lambda: t + Tensor(X),
        lambda: np.float32(2) * Tensor(X),
        lambda: t * np.float64(2),
        lambda: hg.matmul(t, X),
        lambda: hg.concatenate([t, X]),
        lambda: hg.where(X > 0, t, X),
    ):
        with pytest.raises(DTypeError, match="float32.*float64|float64.*float32"):
            f()


def test_numpy_functions_serve_tensors_and_conversions_refuse_them() -> None:
    t = Tensor(X)
    for got, wanted in ((np.exp(t), np.exp(X)), (np.sum(t), np.sum(X)), (np.add(t, 1.0), X + 1.0)):
        assert type(got) is Tensor and np.array_equal(got.value, wanted)
    for f in (np.asarray, np.frexp, np.nancumsum, lambda t: np.array([t])):
        with pytest.raises(DTypeError):
            f(t)
    with pytest.raises(DTypeError, match="^Tensor: NumPy asked for its array, expected an op of hypergrad"):
        np.asarray(t)


def test_comparisons_are_plain_arrays() -> None:
    t = Tensor(X)
    for found, wanted in ((t > 0, X > 0), (t >= V, X >= V), (t < Tensor(V), X < V), (0 <= t, X >= 0), (t == X, X == X), (t != 2.0, X != 2)):
        assert type(found) is np.ndarray and found.dtype == bool and np.array_equal(found, wanted)
    assert len({t, Tensor(X)}) == 2  # hashed by identity, since == compares elements


def test_attributes_and_python_protocols() -> None:
    t = Tensor(np.arange(6.0).reshape(2, 3))
    assert (t.shape, t.ndim, t.size, t.dtype, len(t)) == ((2, 3), 2, 6, np.float64, 2)
    assert [float(x) for x in t[1]] == [3.0, 4.0, 5.0]
    assert "array([[0., 1., 2.]" in repr(t)
    assert "2 tangents" in repr(Tensor(X, Tensor(np.zeros((2, 3)))))
    tape = Tape()
    assert "taped" in repr(tape.run(tape.watch, t))


class Exports:
    """An array of another library, by one protocol only."""

    def __init__(self, base: Array, protocol: str) -> None:
        if protocol == "dlpack":
            self.__dict__["shape"] = base.shape
        self.base, self.protocol = base, protocol

    def __getattr__(self, name: str) -> Any:
        if self.protocol == "interface" and name == "__array_interface__":
            return self.base.__array_interface__
        raise AttributeError(name)


class ExportsDLPack:
    """The same by DLPack."""

    def __init__(self, base: Array) -> None:
        self.base = base

    def __dlpack__(self, **options: Any) -> Any:
        return self.base.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.base.__dlpack_device__()


@pytest.mark.parametrize(
    "wrap", [lambda a: Exports(a, "interface"), ExportsDLPack, memoryview, lambda a: a], ids=["interface", "dlpack", "buffer", "numpy"]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_of_other_libraries_are_not_copied(wrap: Any, dtype: type) -> None:
    base = np.arange(6, dtype=dtype)
    foreign = wrap(base)
    assert np.shares_memory(hg.reshape(foreign, (2, 3)).value, base)
    assert np.array_equal((hg.exp(foreign) * foreign).value, np.exp(base) * base)
    gradient = hg.grad(lambda x: hg.sum(x * x * foreign))(foreign)
    assert gradient.dtype == dtype and np.array_equal(gradient, 2 * base * base)
    seen: list[Any] = []
    hg.vjp(lambda x: seen.append(x.value) or x, foreign)
    assert np.shares_memory(seen[0], base)


def test_array_module_arrays_are_accepted() -> None:
    assert np.array_equal(hg.sum(array.array("d", [1.0, 2.0])).value, 3.0)
