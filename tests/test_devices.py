"""Arrays on a device: ops, NumPy's functions, training and the command line, on a GPU and on a pretended one; and what is missing.

The pretended GPU shows on any machine that no NumPy array meets the device's; the real one, that CuPy and CUDA agree.
"""

import json
import re
import sys
import types

import numpy as np
import pytest
import tiny
from cases import CASES
from PIL import Image
from typer.testing import CliRunner

import hypergrad as hg
import hypergrad.backends as backends
import hypergrad.data
from hypergrad.backends import as_array, backend_of, is_on_gpu
from hypergrad.backends.cuda import CUDA, MISSING
from hypergrad.backends.host import HOST
from hypergrad.cli import app
from hypergrad.errors import DeviceError, DTypeError, ExtensionError, ShapeError
from hypergrad.fewshot.config import save_config
from hypergrad.fewshot.evaluation import evaluate_run
from hypergrad.fewshot.methods import METHODS
from hypergrad.runs.directory import RESULT, RunDirectory

on_devices = pytest.mark.backends("pretended", "gpu")
RESUMED = ("hyper-representation", "maml", "protonet")  # methods whose runs are also resumed, and made without graphs
built = pytest.mark.skipif(MISSING is not None, reason=f"_cuda is not built: {MISSING}")
# Cases with an array of the host bound in them are no jobs for a GPU; getitem and softmax_cross_entropy reach put, pick, place.
OF_THE_HOST = (
    "put[",
    "dropout",
    "pick",
    "place",
    "concatenate[with a constant]",
    "conv_bn_relu_pool[first",
    "operators[array left]",
    "matmul[constant",
    "power[+-x[",
)


@pytest.fixture
def cupy(backend):
    """The module cupy, of a GPU or of a pretended one."""
    return backend.xp


def close(there, here, dtype):
    """The device's array against the host's."""
    assert is_on_gpu(there)
    a, b = there.get().astype(np.float64), np.asarray(here, np.float64)
    assert a.shape == b.shape and there.dtype == dtype
    bound = 2e-4 if dtype == np.float32 else 1e-10
    np.testing.assert_allclose(a, b, rtol=0, atol=bound * max(1.0, np.abs(b).max(initial=0)))


def second_order(f, arguments, dots):
    """f's value, tangent, vjp, and the tangent of the vjp; lists of arrays."""
    out, out_dot = hg.jvp(f, arguments, dots)
    weights = out * 0 + 0.5

    def loss(*args):
        return hg.sum(f(*args) * weights)

    value, grad, product = hg.hvp(loss, arguments, dots)
    return [out, out_dot, value, *grad, *product]


@on_devices
@pytest.mark.parametrize("case", [c for c in CASES if not c.name.startswith(OF_THE_HOST)], ids=str)
def test_ops(case, cupy):
    """Every case of every op: nothing of it needs the host."""
    arguments = case.arguments(np.float64)
    dots = tuple(np.cos(np.arange(a.size, dtype=a.dtype)).reshape(a.shape) for a in arguments)
    here = second_order(case.f, arguments, dots)
    there = second_order(case.f, tuple(map(cupy.asarray, arguments)), tuple(map(cupy.asarray, dots)))
    for a, b in zip(there, here, strict=True):
        close(a, b, np.float64)


@on_devices
def test_labels_on_the_device_are_not_read(cupy):
    logits, labels = np.zeros((3, 2)), np.array([0, 1, 2])
    x, w, b = np.zeros((3, 4)), np.zeros((4, 2)), np.zeros(2)
    on = cupy.asarray
    for losses in (hg.softmax_cross_entropy(on(logits), on(labels)), hg.linear_cross_entropy(on(x), on(w), on(b), on(labels))):
        assert np.isnan(losses.value.get()).tolist() == [False, False, True]
    for fused in (True, False):
        with hg.fusion(fused):
            after = hg.linear_head_descent(on(x), on(w), on(b), on(labels), 0.1, 1)
        assert all(np.isnan(a.value.get()).all() for a in after)
    with pytest.raises(hg.errors.ArgumentError, match="labels has values 0 to 2, expected 0 to 1"):
        hg.softmax_cross_entropy(on(logits), labels)  # the host's are read before they are copied
    with pytest.raises(hg.errors.DeviceError):
        hg.softmax_cross_entropy(logits, on(labels))
    with pytest.raises(hg.errors.ArgumentError, match="take: index has"):
        hg.take(on(logits), [0, 7])


@on_devices
def test_numpys_functions_and_the_devices_arrays(cupy):
    """CuPy asks the same two protocols as NumPy: its arrays stand on either side of a Tensor, and NumPy's functions take both."""
    x, v = np.array([[0.5, 1.25], [2.0, 0.75]]), np.array([[1.0, -0.5], [0.25, 3.0]])
    on = cupy.asarray(v)

    def f(t, c, xp):
        total = c * t + t * c - c + t - (c - t) / (2.0 + c * c) + c @ t + 2.0**t + np.exp(t) + np.maximum(c, t) + np.where(t > 1, t, c)
        total = total + np.concatenate([c, t])[1:3] + np.stack([t, c], axis=1)[:, 0] + np.full_like(t, 2.0) * t
        return hg.sum(total * xp.asarray(v)) + np.mean(t) + np.max(t, axis=0)[1] + np.float64(2) * np.sum(np.square(t))

    value, gradient = hg.value_and_grad(lambda t: f(t, on, cupy))(cupy.asarray(x))
    wanted_value, wanted = hg.value_and_grad(lambda t: f(t, v, np))(x)
    assert type(gradient) is cupy.ndarray
    np.testing.assert_allclose(cupy.asnumpy(gradient), wanted, rtol=1e-14)
    np.testing.assert_allclose(cupy.asnumpy(value), wanted_value, rtol=1e-14)
    t = hg.Tensor(cupy.asarray(x))
    for got, plain in ((on > t, v > x), (t > on, x > v), (np.isfinite(t), np.isfinite(x)), (np.zeros_like(t), np.zeros_like(x))):
        assert type(got) is cupy.ndarray and np.array_equal(cupy.asnumpy(got), plain)
    for write in (lambda: np.add(on, t, out=on), lambda: np.add.at(on, 0, t), lambda: np.frexp(t)):
        with pytest.raises((TypeError, ValueError)):
            write()


@on_devices
def test_sides_may_not_mix(cupy):
    one, other = cupy.asarray(np.ones((1, 1, 2, 2, 1))), np.ones((3, 3, 1, 1))
    with pytest.raises(hg.errors.DeviceError, match="expected one side|expected all on one side"):
        hg.conv2d(one, other)
    with pytest.raises(hg.errors.DeviceError, match="patch_cov: its arrays lie on GPU, host, GPU"):
        CUDA.run("patch_cov", x=one, patch_mean=np.ones((1, 9)), patch_cov=cupy.ones((1, 9, 9)))


@on_devices
@pytest.mark.parametrize("method, graphs", [*((name, False) for name in RESUMED), *((name, True) for name in METHODS)])
def test_training(graphs, method, cupy, tmp_path):
    """A whole run on the device: the images stay there as bytes, and the result is the host's up to rounding."""
    changes = {"iterations": 2, "eval_every": 2, "eval_episodes": 2, "test_episodes": 2, "graphs": graphs}
    states = {}
    for device in ("cpu", "cuda"):
        config = tiny.tiny_config(method, **changes, device=device)
        with RunDirectory.create(tmp_path / device, save_config(config)) as run:
            states[device] = tiny.tiny_train(run, config)
            if device == "cuda":
                run.write_json(
                    RESULT, evaluate_run(run, config, tiny.tiny_data(), states[device].best_hparams, 2, hg.data.SilentReporter())
                )
        assert all(is_on_gpu(a) == (device == "cuda") for a in states[device].hparams.values())
    for name, expected in states["cpu"].hparams.items():
        np.testing.assert_allclose(states["cuda"].hparams[name].get(), expected, rtol=0, atol=5e-3, err_msg=name)


@on_devices
@pytest.mark.parametrize("method", RESUMED)
@pytest.mark.parametrize("graphs", [True, False])
def test_a_run_on_the_device_is_resumed_bit_for_bit(graphs, method, cupy, tmp_path):
    config = tiny.tiny_config(method, iterations=4, eval_every=2, eval_episodes=4, graphs=graphs, device="cuda")
    with RunDirectory.create(tmp_path / "whole", save_config(config)) as run:
        whole = tiny.tiny_train(run, config)
    with RunDirectory.create(tmp_path / "parts", save_config(config)) as run:
        stop = iter(range(3))

        def interrupt(record):
            if "loss" in record and next(stop) == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            tiny.tiny_train(run, config, interrupt)
        resumed = tiny.tiny_train(run, config)
    for name, expected in whole.hparams.items():
        np.testing.assert_array_equal(resumed.hparams[name].get(), expected.get(), err_msg=name)


@on_devices
def test_the_command(cupy, tmp_path):
    """`hypergrad train --device cuda` and `hypergrad evaluate` from images in a folder to the figures."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for c in range(3):
            (tmp_path / "images" / split / f"class{c}").mkdir(parents=True)
            for i in range(4):
                pixels = rng.integers(0, 255, (16, 16), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / f"class{c}" / f"{i}.png")
    sizes = "--n-way 3 --n-query 2 --filters 4 --n-steps 2 --meta-batch 2 --iterations 2 --eval-every 1 --eval-episodes 2 --test-episodes 2"
    environment = {"HYPERGRAD_CACHE": str(tmp_path / "cache")}
    for command in (["train", "--device", "cuda", "--data", "folder", "--root", str(tmp_path / "images"), *sizes.split(),
                     "--run-dir", str(tmp_path / "run")], ["evaluate", str(tmp_path / "run"), "--episodes", "2"]):  # fmt: skip
        result = CliRunner().invoke(app, command, env=environment)
        assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "run" / "config.json").read_text())["device"] == "cuda"
    assert (tmp_path / "run" / "curve.png").stat().st_size > 0


# --- which backend, and what is missing -----------------------------------------------------------------


@on_devices
def test_cupy_arrays_go_to_cuda(cupy):
    a = cupy.asarray(np.ones(3))
    assert backend_of(a, 1.0, np.float64(2)) is CUDA and as_array(a) is a
    assert backend_of(np.ones(3)) is HOST
    with pytest.raises(DeviceError, match="a NumPy array of shape .3,., expected one side"):
        backend_of(a, np.ones(3))
    with pytest.raises(DeviceError, match="CuPy"):
        backend_of(a, types.SimpleNamespace(__cuda_array_interface__={}))


class FakeArray:
    """Host memory that says it is a GPU's, as far as a CUDA call without a GPU gets."""

    def __init__(self, a):
        self.a = a

    @property
    def __cuda_array_interface__(self):
        return {**self.a.__array_interface__, "strides": self.a.strides}


def test_cupy_is_missing_or_has_no_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # as if it were not installed
    CUDA.__dict__.pop("xp", None)
    with pytest.raises(DeviceError, match="CuPy is missing.*install hypergrad-engine"):
        CUDA.empty((2,), np.float32)
    no_gpu = types.SimpleNamespace(cuda=types.SimpleNamespace(is_available=lambda: False))
    monkeypatch.setitem(sys.modules, "cupy", no_gpu)
    with pytest.raises(DeviceError, match="CuPy finds no usable GPU"):
        CUDA.empty((2,), np.float32)


@pytest.mark.skipif(MISSING is None, reason="_cuda is built")
def test_extension_is_missing():
    assert CUDA.device_count() == 0 and CUDA.kernels() == {} and CUDA.build_info() == {"missing": MISSING}
    with pytest.raises(ExtensionError, match="_cuda is missing.*nvcc"):
        CUDA.run("patch_cov")


@built
def test_no_device_is_said_by_every_call():
    assert re.match(r"CUDA \d+\.\d.* for .*, runtime \d+\.\d+, driver ", CUDA.build_info()["cuda"])
    if CUDA.device_count() > 0:
        pytest.skip("there is a GPU")
    x = FakeArray(np.ones((1, 1, 2, 2, 1)))
    m, cov = FakeArray(np.ones((1, 9))), FakeArray(np.ones((1, 9, 9)))
    with pytest.raises(RuntimeError, match="patch_cov: there is no CUDA device.*nvidia-smi"):
        backends.cuda._cuda.run("patch_cov", {"x": x, "patch_mean": m, "patch_cov": cov}, None, lambda n: None, lambda n: None)


@built
def test_scratch_is_said_before_the_call():
    """Arrays are read through __cuda_array_interface__; what scratch a call takes needs no GPU."""
    scratch_bytes = backends.cuda._cuda.scratch_bytes
    x = FakeArray(np.ones((1, 1, 2, 2, 1)))
    m, cov = FakeArray(np.ones((1, 9))), FakeArray(np.ones((1, 9, 9)))
    given = {"x": x, "patch_mean": m, "patch_cov": cov}
    assert scratch_bytes("patch_cov", given) > 0
    with pytest.raises(ShapeError, match="patch_cov: patch_cov has shape .* expected"):
        scratch_bytes("patch_cov", {**given, "patch_cov": m})
    with pytest.raises(DTypeError, match="x is a ndarray, expected a CuPy array"):
        scratch_bytes("patch_cov", {**given, "x": np.ones(3)})
