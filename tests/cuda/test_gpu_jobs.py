"""Whole jobs on the device: ops, hypergradients, graphs and training, on a GPU and on one pretended by the emulator.

The pretended one shows on any machine that no NumPy array meets the device's, that a meta-step never waits for the GPU, and
that a recorded graph depends on nothing but its arguments; the real one, that CuPy and CUDA agree.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pretend
import pytest
from PIL import Image
from typer.testing import CliRunner

import hypergrad as hg
import hypergrad.data
from hypergrad.backends import is_on_gpu
from hypergrad.backends.cuda import CUDA
from hypergrad.backends.emulated import MISSING as NO_EMULATOR
from hypergrad.cli import app
from hypergrad.fewshot import training
from hypergrad.fewshot.evaluation import evaluate_run
from hypergrad.fewshot.run import RESULT, RunDirectory

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "fewshot")]
import tiny  # noqa: E402
from cases import CASES  # noqa: E402

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


@pytest.fixture(params=["pretended", "real"])
def cupy(request, monkeypatch):
    """The module cupy, of a GPU or of a pretended one."""
    if request.param == "real":
        if CUDA.device_count() == 0:
            pytest.skip("needs a GPU and the extension hypergrad._cuda")
        yield CUDA.xp
    else:
        if NO_EMULATOR is not None:
            pytest.skip(f"build with -DHYPERGRAD_EMULATOR=ON: {NO_EMULATOR}")
        with pretend.gpu(monkeypatch):
            yield CUDA.xp


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


@pytest.mark.parametrize("case", [c for c in CASES if not c.name.startswith(OF_THE_HOST)], ids=str)
def test_ops(case, cupy):
    """Every case of every op: nothing of it needs the host."""
    arguments = case.arguments(np.float64)
    dots = tuple(np.cos(np.arange(a.size, dtype=a.dtype)).reshape(a.shape) for a in arguments)
    here = second_order(case.f, arguments, dots)
    there = second_order(case.f, tuple(map(cupy.asarray, arguments)), tuple(map(cupy.asarray, dots)))
    for a, b in zip(there, here, strict=True):
        close(a, b, np.float64)


def few_shot(cupy, seed, dtype="float32"):
    """Hyperparameters and a meta-batch of two episodes for `hyper_representation`."""
    rng = np.random.default_rng(seed)
    labels = np.tile(np.arange(3), (2, 1))
    images = rng.standard_normal((2, 2, 3, 8, 8, 1)).astype(dtype)
    return {"support": cupy.asarray(images[0]), "query": cupy.asarray(images[1]), "labels": cupy.asarray(labels)}


def parameters(cupy, dtype="float32"):
    rng = np.random.default_rng(0)
    shapes = {"w0": (3, 3, 1, 4), "w1": (3, 3, 4, 4), "head": (16, 3)}
    drawn = {name: (0.4 * rng.standard_normal(shape)).astype(dtype) for name, shape in shapes.items()}
    drawn |= {"gamma": np.ones(4, dtype), "beta": np.zeros(4, dtype), "bias": np.zeros(3, dtype), "lr": np.asarray(0.02, dtype)}
    return {name: cupy.asarray(a) for name, a in drawn.items()}


def network(p, images):
    for w in (p["w0"], p["w1"]):
        images = hg.conv_bn_relu_pool(images, w, p["gamma"], p["beta"])
    return hg.reshape(images, (2, 3, 16))


def maml(optimizer):
    """Two inner steps on the whole network."""

    def losses(w, images, labels):
        return hg.linear_cross_entropy(network(w, images), w["head"], w["bias"], labels)

    def meta_loss(p, batch):
        start = {name: a for name, a in p.items() if name != "lr"}
        steps = hg.full_batch((batch["support"], batch["labels"]), 2)
        w = hg.unroll(lambda w, h, b: hg.sum(losses(w, *b)), start, {}, steps, optimizer=optimizer(p["lr"]), checkpoints="sqrt")
        return hg.mean(losses(w, batch["query"], batch["labels"]))

    return hg.value_and_grad(meta_loss)


def unfused(step):
    """The meta-step with composed ops only."""

    def run(*args):
        with hg.fusion(False):
            return step(*args)

    return run


STEPS = {
    "SGD": maml(lambda lr: hg.SGD(lr=lr)),
    "momentum": maml(lambda lr: hg.SGD(lr=lr, momentum=0.9, nesterov=True, weight_decay=0.01)),
    "Adam": maml(lambda lr: hg.Adam(lr=lr)),
    "composed": unfused(maml(lambda lr: hg.SGD(lr=lr, momentum=0.5))),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", STEPS)
def test_a_graph_repeats_the_meta_step(name, dtype, cupy):
    """Bit for bit, for data that came after the recording, too."""
    step = STEPS[name]
    captured = hg.capture(step)
    p = parameters(cupy, dtype)
    for seed in range(3):
        batch = few_shot(cupy, seed, dtype)
        value, grad = step(p, batch)
        other, repeated = captured(p, batch)
        assert other.get() == value.get()
        for key, g in grad.items():
            np.testing.assert_array_equal(repeated[key].get(), g.get(), err_msg=key)
        p = {key: a - 0.01 * grad[key] for key, a in p.items()}
    here, batch = parameters(np, dtype), few_shot(np, 0, dtype)
    there = captured(parameters(cupy, dtype), few_shot(cupy, 0, dtype))
    value, grad = step(here, batch)
    for a, b in zip([there[0], *there[1].values()], [value, *grad.values()], strict=True):
        close(a, b, dtype) if dtype == "float64" else np.testing.assert_allclose(a.get(), b, rtol=0, atol=0.02 * max(1, abs(b).max()))


def test_meta_steps_never_wait(monkeypatch):
    """Neither an eager nor a recorded meta-step makes the host wait; a recorded one is one launch."""
    if NO_EMULATOR is not None:
        pytest.skip(f"build with -DHYPERGRAD_EMULATOR=ON: {NO_EMULATOR}")
    with pretend.gpu(monkeypatch) as machine:
        cupy = CUDA.xp
        p, batch, captured = parameters(cupy), few_shot(cupy, 0), hg.capture(STEPS["momentum"])
        STEPS["momentum"](p, batch)
        assert machine.waits == 0
        captured(p, batch)
        before, launches = machine.waits, machine.launches
        ran = len(machine.kernels)
        captured(p, few_shot(cupy, 1))
        assert (machine.waits, machine.launches) == (before, launches + 1)
        assert len(machine.kernels) == ran  # nothing was issued by the host


def test_what_cannot_be_recorded_says_so(cupy):
    x = cupy.asarray(np.ones(3))
    with pytest.raises(hg.errors.DeviceError, match="capture: the function cannot be recorded .*expected kernels only"):
        hg.capture(lambda a: a * float(a.sum()))(x)
    assert hg.capture(lambda a: a * 2)(x).get().tolist() == [2, 2, 2]  # the failed recording left nothing behind
    with pytest.raises(hg.errors.DeviceError, match="capture: an argument is a NumPy array of shape .3,. beside CuPy arrays"):
        hg.capture(lambda a, b: a)(x, np.ones(3))
    with pytest.raises(hg.errors.ArgumentError, match="capture: an argument is a object, expected arrays"):
        hg.capture(lambda a, b: a)(x, object())
    with pytest.raises(hg.errors.DifferentiationError, match="capture: called inside a transform"):
        hg.grad(lambda a: hg.sum(hg.capture(lambda b: b)(a)))(x)
    with pytest.raises(hg.errors.ShapeError, match="matmul"):
        hg.capture(hg.matmul)(x, cupy.asarray(np.ones(4)))


def test_each_kind_of_arguments_is_a_recording(cupy):
    calls = []

    def f(a, power):
        calls.append(a.shape)
        return {"out": hg.power(a, power).value, "power": power}

    captured = hg.capture(f)
    for shape in ((2,), (3,), (2,), (3,)):
        for power in (2, 3):
            got = captured(cupy.full(shape, 3.0), power)
            assert got["power"] == power and got["out"].get().tolist() == [3.0**power] * shape[0]
    assert len(calls) == 2 * 4  # warmed up and recorded: two shapes, two powers
    first, second = captured(cupy.full(2, 2.0), 2), captured(cupy.full(2, 5.0), 2)
    assert first["out"].get().tolist() == [4, 4] and second["out"].get().tolist() == [25, 25]  # results are the caller's


def test_many_arrays_are_joined_in_a_graph(cupy):
    rows = [np.full((2, 3), float(i)) for i in range(75)]
    got = hg.capture(lambda arrays: hg.stack(arrays, axis=1).value)([cupy.asarray(a) for a in rows])
    np.testing.assert_array_equal(got.get(), np.stack(rows, axis=1))


def test_labels_on_the_device_are_not_read(cupy):
    logits, labels = np.zeros((3, 2)), np.array([0, 1, 2])
    x, w, b = np.zeros((3, 4)), np.zeros((4, 2)), np.zeros(2)
    on = cupy.asarray
    for losses in (hg.softmax_cross_entropy(on(logits), on(labels)), hg.linear_cross_entropy(on(x), on(w), on(b), on(labels))):
        assert np.isnan(losses.value.get()).tolist() == [False, False, True]
    with pytest.raises(hg.errors.ArgumentError, match="labels has values 0 to 2, expected 0 to 1"):
        hg.softmax_cross_entropy(on(logits), labels)  # the host's are read before they are copied
    with pytest.raises(hg.errors.DeviceError):
        hg.softmax_cross_entropy(logits, on(labels))
    with pytest.raises(hg.errors.ArgumentError, match="take: index has"):
        hg.take(on(logits), [0, 7])


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
    for write in (lambda: np.add(on, t, out=on), lambda: np.add.at(on, 0, t), lambda: np.sin(t)):
        with pytest.raises((TypeError, ValueError)):
            write()


def test_sides_may_not_mix(cupy):
    one, other = cupy.asarray(np.ones((1, 1, 2, 2, 1))), np.ones((3, 3, 1, 1))
    with pytest.raises(hg.errors.DeviceError, match="expected one side|expected all on one side"):
        hg.conv2d(one, other)
    with pytest.raises(hg.errors.DeviceError, match="patch_cov: its arrays lie on GPU, host, GPU"):
        CUDA.run("patch_cov", x=one, patch_mean=np.ones((1, 9)), patch_cov=cupy.ones((1, 9, 9)))


@pytest.mark.parametrize("graphs", [True, False])
def test_training(graphs, cupy, tmp_path):
    """A whole run on the device: the images stay there as bytes, the result is the host's up to rounding, a resumed run its own."""
    changes = {"iterations": 4, "eval_every": 2, "eval_episodes": 4, "test_episodes": 4, "graphs": graphs}
    states = {}
    for device in ("cpu", "cuda"):
        config = tiny.tiny_config(**changes, device=device)
        with RunDirectory.create(tmp_path / device, config.to_json()) as run:
            state = states[device] = training.train(run, config, tiny.tiny_data())
            result = evaluate_run(run, config, tiny.tiny_data(), state.best_hparams, 4, hg.data.SilentReporter())
            run.write_json(RESULT, result)
        assert all(is_on_gpu(a) == (device == "cuda") for a in state.hparams.values())
    for name, expected in states["cpu"].hparams.items():
        np.testing.assert_allclose(states["cuda"].hparams[name].get(), expected, rtol=0, atol=5e-3, err_msg=name)
    whole = {name: a.get() for name, a in states["cuda"].hparams.items()}
    config = tiny.tiny_config(**{**changes, "iterations": 4}, device="cuda")
    with RunDirectory.create(tmp_path / "parts", config.to_json()) as run:
        stop = iter(range(3))

        def interrupt(record):
            if "loss" in record and next(stop) == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            training.train(run, config, tiny.tiny_data(), interrupt)
        resumed = training.train(run, config, tiny.tiny_data())
    for name, expected in whole.items():
        np.testing.assert_array_equal(resumed.hparams[name].get(), expected, err_msg=name)


def test_the_command(cupy, tmp_path):
    """`hypergrad train --device cuda` and `hypergrad evaluate` from images in a folder to the figures."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for c in range(3):
            (tmp_path / "images" / split / f"class{c}").mkdir(parents=True)
            for i in range(4):
                pixels = rng.integers(0, 255, (16, 16), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / f"class{c}" / f"{i}.png")
    sizes = "--n-way 3 --n-query 2 --filters 4 --steps 2 --meta-batch 2 --iterations 2 --eval-every 1 --eval-episodes 2 --test-episodes 2"
    environment = {"HYPERGRAD_CACHE": str(tmp_path / "cache")}
    for command in (["train", "--device", "cuda", "--data", "folder", "--root", str(tmp_path / "images"), *sizes.split(),
                     "--run-dir", str(tmp_path / "run")], ["evaluate", str(tmp_path / "run"), "--episodes", "2"]):  # fmt: skip
        result = CliRunner().invoke(app, command, env=environment)
        assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "run" / "config.json").read_text())["device"] == "cuda"
    assert (tmp_path / "run" / "curve.png").stat().st_size > 0
