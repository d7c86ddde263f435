"""The optimisers' steps on emulated CUDA threads: the host kernels' cases, with equal bits in every order of threads and
blocks."""

import numpy as np
import pytest
import test_kernels
import test_optimizer_step as ops
import test_step_kernels as suite
from test_kernels import DTYPES
from test_step_kernels import (  # noqa: F401  collected here, too, and run with the fixture below
    test_absent_cotangents,
    test_absent_tangents,
    test_bad_lists_raise,
    test_directions_and_attributes_must_fit,
    test_each_field_on_its_own,
    test_late_steps_of_adam,
    test_lists_must_be_equally_long,
    test_no_velocity,
    test_nothing_decays_and_nothing_is_lost_without_decay,
    test_the_good_call_is_good,
    test_unaligned_leaves,
    test_unwanted_cotangents_change_nothing_else,
    test_zero_eps_of_a_last_vector,
)

from hypergrad import backends
from hypergrad.backends.emulated import EMULATED, MISSING

if MISSING is not None:
    pytest.skip(f"build with -DHYPERGRAD_EMULATOR=ON: {MISSING}", allow_module_level=True)

ORDERS = ["reverse", "shuffle:1", "shuffle:2"]


@pytest.fixture(autouse=True)
def emulator(monkeypatch):
    monkeypatch.setattr(test_kernels, "HOST", EMULATED)
    EMULATED.set_order("forward")
    yield
    EMULATED.set_order("forward")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("leaves", suite.LEAVES)
@pytest.mark.parametrize("kind", suite.KINDS)
def test_rungs_in_every_order(kind, leaves, dtype):
    step = suite.Step(kind, suite.LEAVES[leaves], dtype, suite.KINDS[kind][1])
    step.check()
    first = step.everything()
    for order in ORDERS:
        EMULATED.set_order(order)
        for a, b in zip(first, step.everything(), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=order)


@pytest.mark.parametrize("kind", suite.KINDS)
def test_leaves_so_large_that_a_thread_owns_several_quads(kind):
    step = suite.Step(kind, [(3,), (1_048_577,), (1025,)], np.float32, suite.KINDS[kind][1], directions=1)
    step.check()


@pytest.mark.parametrize("case", ops.CASES, ids=str)
def test_in_the_engine(case, monkeypatch):
    monkeypatch.setattr(backends, "HOST", EMULATED)
    ops.check(case)
