"""hg.precision on the host: checked, kept by the ops, and without effect on what NumPy arrays compute."""

from __future__ import annotations

import numpy as np
import pytest

import hypergrad as hg
from hypergrad.backends.host import HOST
from hypergrad.errors import ArgumentError
from hypergrad.rules import PRECISIONS, precision_now

KERNELS = sorted(name for name, (_, _, attributes) in HOST.kernels().items() if "precision" in attributes)


def test_names() -> None:
    for i, name in enumerate(PRECISIONS):
        with hg.precision(name):
            assert precision_now() == i
        assert precision_now() == 0
    for wrong in ("fp16", "TF32", ""):
        with pytest.raises(ArgumentError, match=f"precision: name has '{wrong}', expected one of 'float32', 'tf32', '3xtf32' .*; pass"):
            with hg.precision(wrong):
                pass


def test_host_kernels_compute_in_full_precision() -> None:
    draw = np.random.default_rng(0).standard_normal
    x, w, gamma, beta = (draw(s).astype(np.float32) for s in ((2, 6, 6, 8), (3, 3, 8, 5), (5,), (5,)))
    found = []
    for name in PRECISIONS:
        with hg.precision(name):
            y, pullback = hg.vjp(hg.conv_bn_relu_pool, x, w, gamma, beta)
            found.append([hg.conv2d(x, w).value, y, *pullback(np.ones_like(y))])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a.tobytes() == b.tobytes()


def test_kernels_that_have_a_precision() -> None:
    """All that convolve but those of a first block, whose images have up to 4 channels."""
    rungs = ("jvp", "value", "vjp", "vjp_jvp")
    assert KERNELS == sorted(["conv2d_dgrad", "conv2d_fprop", "conv2d_wgrad", *(f"conv_bn_relu_pool_{rung}" for rung in rungs)])


@pytest.mark.parametrize("precision", [-1, 3])
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_refuse_others(kernel: str, precision: int) -> None:
    inputs, outputs, attributes = HOST.kernels()[kernel]
    given = {"eps": 1e-5, "stride": 1, "pad_h": 1, "pad_w": 1}
    arrays = {name: np.ones(shape_of(kernel, name), np.uint8 if name == "code" else np.float32) for name in (*inputs, *outputs)}
    with pytest.raises(ArgumentError, match=f"{kernel}: attribute precision is {precision}, expected an integer from 0 to 2"):
        HOST.run(kernel, **arrays, **{name: given.get(name, precision) for name in attributes})


def shape_of(kernel: str, name: str) -> tuple[int, ...]:
    """One episode, direction, channel and filter, and images of 2 x 2 pixels."""
    image, pooled, filters, channel = (1, 2, 2, 1), (1, 1, 1, 1), (3, 3, 1, 1), (1,)
    if kernel.startswith("conv2d"):
        return (1, 1, *(filters if name.startswith("w") else image))
    of = {"x": image, "z": image, "y": pooled, "code": pooled, "w": filters}
    root = name.split("_")[0]
    core = channel if name == "z_dot_mean" else of.get(root, channel)
    directions = name.endswith("_dot") or name in ("z_dot_mean", "c")
    return (1, 1, *core) if directions else (1, *core)
