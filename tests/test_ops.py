"""Every op of the registry: value, vjp, jvp and order 2 in both nestings, in float64 and float32; see checks.py."""

from __future__ import annotations

import numpy as np
import pytest
from cases import CASES
from checks import Case, check_float32, check_float64, check_layouts, check_outputs_written

import hypergrad as hg
import hypergrad.ops
from hypergrad.rules import REGISTRY
from hypergrad.tape import Tape, Tensor

EVERY = pytest.mark.parametrize("case", CASES, ids=str)
KERNELS = [case for case in CASES if case.name.startswith(("conv2d", "conv_bn"))]


@EVERY
def test_float64(case: Case) -> None:
    check_float64(case)


@EVERY
def test_float32(case: Case) -> None:
    check_float32(case)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@EVERY
def test_layouts_repeats_and_arguments(case: Case, dtype: type) -> None:
    check_layouts(case, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", KERNELS, ids=str)
def test_kernels_write_all_of_their_outputs_and_nothing_else(case: Case, dtype: type) -> None:
    if 0 not in [n for shape in case.shapes for n in shape]:
        check_outputs_written(case, dtype)


def test_names_of_cases_are_unique() -> None:
    names = [case.name for case in CASES]
    assert sorted(names) == sorted(set(names))


def applied(case: Case) -> set[str]:
    """Names of the ops that the case applies to a Tensor that a tape follows."""
    with Tape() as tape:
        watched = [tape.watch(Tensor(a)) for a in case.arguments(np.float64)]
        case.f(*watched)
    return {node.op.name for node in tape.nodes if node.op is not None}


def test_every_registered_op_is_the_subject_of_a_case() -> None:
    reached = set().union(*(applied(case) for case in CASES))
    assert set(REGISTRY) - reached == set()


def test_every_public_op_has_a_case() -> None:
    subjects = {case.name.partition("[")[0] for case in CASES}
    assert set(hypergrad.ops.__all__) - subjects == set()
    assert all(getattr(hg, name) is getattr(hypergrad.ops, name) for name in hypergrad.ops.__all__)
