"""The optimisers' steps on a GPU: the host kernels' own cases, by copying arguments there and back."""

import numpy as np
import pytest
import test_kernels
import test_step_kernels as suite
from test_cuda_kernels import on_gpu
from test_step_kernels import (  # noqa: F401  collected here, too, and run with the fixture below
    test_absent_cotangents,
    test_absent_tangents,
    test_each_field_on_its_own,
    test_late_steps_of_adam,
    test_no_velocity,
    test_nothing_decays_and_nothing_is_lost_without_decay,
    test_rungs,
    test_unaligned_leaves,
    test_unwanted_cotangents_change_nothing_else,
    test_zero_eps_of_a_last_vector,
)


@pytest.fixture(autouse=True)
def kernels_of_the_gpu(monkeypatch):
    monkeypatch.setattr(test_kernels, "HOST", on_gpu())


@pytest.mark.parametrize("kind", suite.KINDS)
def test_repeated_runs_have_equal_bits(kind):
    step = suite.Step(kind, [(3,), (1_500_000,), (1025,)], np.float32, suite.KINDS[kind][1])
    expected = step.everything()
    for _ in range(5):
        for a, b in zip(expected, step.everything(), strict=True):
            np.testing.assert_array_equal(a, b)
