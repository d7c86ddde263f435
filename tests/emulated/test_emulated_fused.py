"""Head, batch normalisation and max-pooling on the emulated CUDA kernels: the host's cases, with equal bits in every order of
threads and blocks."""

from collections import Counter

import numpy as np
import pytest
import test_fused as suite
from checks import assert_same, derivatives, essentials, longest_routes, within_rounding

import hypergrad as hg
from hypergrad import backends
from hypergrad.backends.emulated import EMULATED, MISSING
from hypergrad.backends.host import HOST

if MISSING is not None:
    pytest.skip(f"build with -DHYPERGRAD_EMULATOR=ON: {MISSING}", allow_module_level=True)

ORDERS = ["reverse", "shuffle:1", "shuffle:2"]
# Several parts of pixels and of examples, several tiles of channels and of classes.
LARGE = [
    suite.head((1, 530, 3), (3, 4), (4,)),
    suite.head((2, 2, 700), (700, 9), (2, 9)),
    suite.norm((2, 2, 25, 43, 5), (2, 5)),
    suite.norm((1, 3, 7, 68), (68,)),
    suite.pool((2, 3, 14, 18, 8), 2),
]


@pytest.fixture(autouse=True)
def runs(monkeypatch):
    """The emulator in the host's place; how often each of its kernels runs."""
    counts = Counter()
    original = type(EMULATED).run

    def run(name, **arguments):
        counts[name] += 1
        return original(EMULATED, name, **arguments)

    monkeypatch.setattr(EMULATED, "run", run, raising=False)
    monkeypatch.setattr(backends, "HOST", EMULATED)
    EMULATED.set_order("forward")
    yield counts
    EMULATED.set_order("forward")


@pytest.mark.parametrize("case", [c for c in suite.CASES if "1100" not in c.name] + LARGE, ids=str)
def test_float64(case, runs):
    args, w = suite.setting(case)
    with hg.fusion(False):
        want = derivatives(case.f, args, w)
    assert not runs
    got = derivatives(case.f, args, w)
    op = suite.op_of(case)
    assert set(runs) == {f"{op}_{rung}" for rung in suite.RUNGS[op]}
    for key in want:
        for i, (a, b) in enumerate(zip(got[key], want[key], strict=True)):
            assert_same(a, b, f"{key}, argument {i}", 1e-9 if "mean 100" in case.name else 1e-11)


@pytest.mark.parametrize("case", [suite.CASES[i] for i in (1, 2, 4, 7, 9, 10, 11, 14, 16, 17)] + LARGE, ids=str)
def test_float32_in_every_order(case):
    args, w = suite.setting(case)
    single, w_single = suite.setting(case, np.float32)
    with hg.fusion(False):
        exact = longest_routes(case.f, args, w)
    within_rounding(case.f, args, w, exact, longest_routes(case.f, single, w_single), str(case))
    got = essentials(case.f, single, w_single)
    for order in ORDERS:
        EMULATED.set_order(order)
        again = essentials(case.f, single, w_single)
        for key, arrays in got.items():
            assert [a.tobytes() for a in arrays] == [b.tobytes() for b in again[key]], (key, order)


@pytest.mark.parametrize("case", suite.SMALL, ids=str)
def test_some_inputs_only(case):
    suite.test_tangents_on_some_inputs_only(case, True)
    suite.test_cotangents_of_some_inputs_only(case)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_special_values(dtype):
    suite.test_pooling_breaks_ties_and_passes_nan_as_its_reference(2, dtype)
    suite.test_pooling_breaks_ties_and_passes_nan_as_its_reference(3, dtype)
    suite.test_head_survives_large_logits()
    suite.test_head_of_a_nan_is_nan()
    suite.test_head_masks_the_classes_whose_bias_is_minus_infinity()
    suite.test_constant_channels_are_shifted_only()


def test_every_element_is_written():
    """Also those of sizes that fill no block; the host's results are the reference."""
    rng = np.random.default_rng(9)
    label = rng.integers(0, 3, (2, 5))
    draw = rng.normal
    for name, arguments in (
        ("max_pool_vjp", {"y_bar": draw(size=(3, 2, 2, 3, 5)), "code": rng.integers(0, 9, (2, 2, 3, 5)).astype(np.uint8),
                          "size": 3, "H": 8, "W": 11}),
        ("linear_cross_entropy_value", {"x": draw(size=(2, 5, 7)), "w": draw(size=(2, 7, 3)), "bias": draw(size=(2, 3)), "label": label}),
        ("linear_cross_entropy_vjp", {"y_bar": draw(size=(2, 0)), "residual": draw(size=(2, 0, 3)), "x": draw(size=(2, 0, 4)),
                                      "w": draw(size=(2, 4, 3))}),
        ("batch_norm_vjp", {"y_bar": draw(size=(2, 1, 33)), "mean": draw(size=(2, 33)), "rstd": draw(size=(2, 33)),
                            "x": draw(size=(2, 1, 33)), "gamma": draw(size=(2, 33))}),
    ):  # fmt: skip
        outs = [type(b).run(b, name, **arguments) for b in (EMULATED, HOST)]
        mine, theirs = [[np.full(y.shape, np.nan) for y in out.values()] for out in outs]
        for b, rows in ((EMULATED, mine), (HOST, theirs)):
            type(b).run(b, name, **arguments, **dict(zip(outs[0], rows, strict=True)))
        for a, b in zip(mine, theirs, strict=True):
            assert_same(a, b, name)
