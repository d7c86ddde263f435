"""The engine on CuPy arrays: meta-steps agree with the host's, and repeat themselves bit for bit."""

import meta_hypergrad
import meta_problems
import numpy as np
import pytest
from meta_problems import PROBLEMS, TINY, Sizes

from hypergrad.backends.cuda import CUDA

MEDIUM = Sizes(episodes=3, ways=4, queries=5, side=33, filters=32, blocks=3, steps=3)


def step(variant, device, problem, sizes, dtype):
    data, params = meta_problems.make_data(sizes, dtype), meta_problems.make_params(problem, sizes, dtype)
    return meta_hypergrad.VARIANTS[variant](problem, sizes, dtype, data, params, device, False)


def result(prepared):
    out = prepared.run()
    prepared.wait()
    return prepared.result(out)


def test_what_needs_a_gpu_says_so():
    with pytest.raises(meta_hypergrad.Unsupported, match="GPU only"):
        step("hypergrad", "cpu", PROBLEMS[0], TINY, "float32")


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_step_is_the_derivative(problem):
    """The host's meta-gradient in a random direction against central differences of the loss."""
    data, params = meta_problems.make_data(TINY, "float64"), meta_problems.make_params(problem, TINY, "float64")
    rng = np.random.default_rng(0)
    along = {name: rng.standard_normal(a.shape) for name, a in params.items()}

    def at(t):
        moved = {name: a + t * along[name] for name, a in params.items()}
        return result(meta_hypergrad.VARIANTS["hypergrad host"](problem, TINY, "float64", data, moved, "cpu", False))

    slope = sum(np.sum(g * along[name]) for name, g in at(0.0)[1].items())
    assert abs((at(1e-6)[0] - at(-1e-6)[0]) / 2e-6 - slope) <= 1e-6 * abs(slope)


@pytest.mark.skipif(CUDA.device_count() == 0, reason="needs a GPU and the extension hypergrad._cuda")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", [TINY, MEDIUM], ids=["tiny", "medium"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_meta_steps_on_the_gpu(problem, sizes, dtype):
    loss, grads = result(step("hypergrad host", "cpu", problem, sizes, "float64"))
    prepared = step("hypergrad", "cuda", problem, sizes, dtype)
    loss_there, grads_there = result(prepared)
    assert all(grads_there[name].dtype == dtype and grads_there[name].shape == g.shape for name, g in grads.items())
    bound = 1e-9 if dtype == "float64" else 5e-2  # in float32 rounding moves winners of the max-pool
    assert abs(loss_there - loss) <= bound * abs(loss)
    off = np.concatenate([(grads_there[name] - g).ravel() for name, g in grads.items()])
    assert np.linalg.norm(off) <= bound * np.linalg.norm(np.concatenate([g.ravel() for g in grads.values()]))
    for name, g in result(prepared)[1].items():
        np.testing.assert_array_equal(g, grads_there[name], err_msg=name)
