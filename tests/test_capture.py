"""`capture` without a GPU; tests/cuda/test_gpu_jobs.py has what it records."""

import numpy as np
import pytest

import hypergrad as hg
from hypergrad.errors import DifferentiationError


def test_on_numpy_arrays_it_calls_the_function():
    calls = []

    def f(x, n):
        calls.append(n)
        return {"grad": hg.grad(lambda a: hg.sum(a**n))(x)}

    captured = hg.capture(f)
    for _ in range(2):
        np.testing.assert_array_equal(captured(np.arange(3.0), 2)["grad"], [0, 2, 4])
    assert calls == [2, 2]


def test_it_has_no_derivative():
    captured = hg.capture(lambda x: x)
    with pytest.raises(DifferentiationError, match="capture: called inside a transform, expected arrays"):
        hg.grad(lambda x: hg.sum(captured(x)))(np.ones(2))
    with pytest.raises(DifferentiationError, match="capture the function that takes the gradient"):
        captured(hg.Tensor(np.ones(2)))
