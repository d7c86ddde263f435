"""Every CUDA kernel under AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer.

Calls are recorded from the kernels' cases and run by a program without Python, with AddressSanitizer in three orders of threads and blocks.
"""

import os
import subprocess

import fused_checks
import numpy as np
import pytest
import test_fused
import test_gather_images
import test_head_descent
import test_kernels as suite
import test_precision as precise
import test_step_kernels as steps
import test_sum_leaves
import toolchain
from places import Place
from test_kernels import CONVOLUTIONS, Problem

import hypergrad as hg
from hypergrad import backends
from hypergrad.backends.emulated import EMULATED, MISSING

pytestmark = [
    pytest.mark.sanitizer,
    pytest.mark.skipif(toolchain.COMPILER is None, reason="needs g++ on the PATH"),
    pytest.mark.skipif(MISSING is not None, reason=f"build with -DHYPERGRAD_EMULATOR=ON: {MISSING}"),
]
UNDOING = {"sgd_residue", "sgd_undo_weights", "sgd_undo_velocities"}
ORDERS = ["forward", "reverse", "shuffle:3"]
BLOCKS = [(1, 2, 5, 7, 2, 16), (2, 3, 7, 5, 5, 33), (1, 1, 22, 20, 36, 8), (1, 5, 3, 3, 3, 5), (1, 3, 5, 7, 32, 32)]


def undone(dtype):
    """Three steps of momentum SGD, and the kernels that undo them, on leaves of no, one, odd and many elements."""
    start = [np.linspace(-1, 1, n, dtype=dtype) for n in (3, 0, 1, 1030)]
    problem = hg.Bilevel(
        lambda w, h, batch: sum(hg.sum(hg.exp(h * x)) for x in w),
        lambda w, h: sum(hg.sum(x * x) for x in w),
        lambda h: start,
        lambda h: hg.SGD(lr=0.1, momentum=0.9, weight_decay=0.01),
    )
    hg.reverse(problem, dtype(0.5), hg.full_batch(None, 3), checkpoints="reversible")


@pytest.fixture(scope="module")
def recorder():
    """Calls of every kernel, general and vectorised paths, in both precisions."""
    recorder = toolchain.Recorder()
    recording = Place("recorder", recorder)
    EMULATED.set_order("forward")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "HOST", recorder)
        for dtype in suite.DTYPES:
            for sizes in BLOCKS:
                Problem(sizes, dtype, shared=sizes[1] == 3).everything()
                Problem((*sizes[:4], min(sizes[4], 3), sizes[5]), dtype, first=True).everything()
            for sizes in (CONVOLUTIONS[1], CONVOLUTIONS[4], CONVOLUTIONS[7], CONVOLUTIONS[-1]):
                suite.test_convolutions(sizes, dtype, recording)
            for sizes in test_gather_images.SIZES[1:]:
                test_gather_images.test_values(sizes, dtype, recording)
                if sizes[1] > 1:
                    test_gather_images.test_a_row_out_of_range_is_nan(sizes, dtype)
            test_sum_leaves.test_sums_of_leaves("odd", (4, 2), dtype, recording)
            for kind, (_, fields, _) in steps.KINDS.items():
                steps.Step(kind, [(3, 2), (0,), (), (1030,)], dtype, fields).everything()
                steps.Step(kind, [(i % 3,) for i in range(30)], dtype).everything()
        for precision in (1, 2):
            for kind in precise.KINDS:
                arrays, shape = precise.factors((1, 2, 5, 7, 9, 33), kind, precise.random(0))
                precise.convolve(kind, arrays, shape, precision)
            p = Problem((2, 3, 7, 5, 9, 33), np.float32, shared=True)
            p.precision = precision
            p.everything()
        patch.setattr(EMULATED, "run", recorder.run, raising=False)
        patch.setattr(backends, "HOST", EMULATED)
        for case in test_fused.SMALL:
            for dtype in suite.DTYPES:
                args, w = fused_checks.setting(case, dtype)
                hg.hvp(w.loss(case.f), tuple(args), tuple(w.dots))  # all four rungs
        for case in (test_head_descent.SMALL, *test_head_descent.CASES):
            for dtype in suite.DTYPES:
                args, w = fused_checks.setting(case, dtype)
                hg.grad(w.loss(case.f), argnums=tuple(range(len(args))))(*args)
        for dtype in suite.DTYPES:
            undone(dtype)
    assert recorder.kernels() == set(EMULATED.kernels())
    return recorder


@pytest.mark.parametrize("flags", [toolchain.ADDRESS, toolchain.THREAD], ids=["address,undefined", "thread"])
def test_kernels_are_clean(flags, recorder, tmp_path):
    program = toolchain.build(toolchain.DRIVER, flags, tmp_path / "build")
    recorder.write(tmp_path / "calls")
    orders = ORDERS if flags == toolchain.ADDRESS else ORDERS[-1:]  # a race is found by what does not synchronize, in any order
    result = subprocess.run(
        [program, tmp_path / "calls", tmp_path / "outputs", *orders],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"},
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert "ThreadSanitizer" not in result.stderr
    for name, attrs, expected, actual in recorder.read(tmp_path / "outputs"):
        if expected.dtype == np.uint8 or name in UNDOING:
            continue  # which of two nearly equal pixels wins, and which numbers a step came from, depend on the compiler's rounding
        assert (np.isnan(actual) == np.isnan(expected)).all(), name
        actual, expected = np.nan_to_num(actual), np.nan_to_num(expected)
        bound = 1e-5 if expected.dtype == np.float32 else 1e-13
        if attrs.get("precision") == 1:
            bound = 1e-3  # the compiler's rounding may change to which tf32 number a cotangent is rounded
        assert np.abs(actual - expected).max(initial=0) <= bound * max(np.abs(expected).max(initial=0), 1), name
