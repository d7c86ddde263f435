"""The engine on the emulated CUDA kernels: second-order hypergradients and training agree with the host's."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import hypergrad as hg
from hypergrad import backends
from hypergrad.backends.emulated import EMULATED, MISSING
from hypergrad.fewshot import training
from hypergrad.fewshot.run import RunDirectory

sys.path.insert(0, str(Path(__file__).parents[1] / "fewshot"))
import tiny  # noqa: E402

if MISSING is not None:
    pytest.skip(f"build with -DHYPERGRAD_EMULATOR=ON: {MISSING}", allow_module_level=True)


@pytest.fixture
def on_emulator(monkeypatch):
    """A function that puts the emulator in the host's place and counts its kernels."""
    counts = Counter()

    def run(name, **arguments):
        counts[name] += 1
        return type(EMULATED).run(EMULATED, name, **arguments)

    def switch():
        EMULATED.set_order("shuffle:4")
        monkeypatch.setattr(EMULATED, "run", run, raising=False)
        monkeypatch.setattr(backends, "HOST", EMULATED)
        return counts

    yield switch
    EMULATED.set_order("forward")


def maml(dtype):
    """A network of two blocks and a linear layer, all of it moved by the inner steps; its start and the step size are learned."""
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((2, 3, 8, 8, 1)).astype(dtype), np.arange(3)
    k = 4

    def draw(*shape, scale=0.4):
        return (rng.standard_normal(shape) * scale).astype(dtype)

    start = {
        "w0": draw(3, 3, 1, k), "g0": 1 + draw(k), "b0": draw(k),
        "w1": draw(3, 3, k, k), "g1": 1 + draw(k), "b1": draw(k),
        "out": draw(4 * k, 3),
    }  # fmt: skip

    def loss(w, images):
        h = hg.conv_bn_relu_pool(images, w["w0"], w["g0"], w["b0"])
        h = hg.conv_bn_relu_pool(h, w["w1"], w["g1"], w["b1"])
        return hg.mean(hg.softmax_cross_entropy(hg.matmul(hg.reshape(h, (3, -1)), w["out"]), labels))

    problem = hg.Bilevel(
        inner_loss=lambda w, hparams, batch: loss(w, batch),
        outer_loss=lambda w, hparams: loss(w, x[1]),
        init=lambda hparams: hparams["start"],
        optimizer=lambda hparams: hg.SGD(lr=hparams["lr"]),
    )
    return problem, {"start": start, "lr": np.asarray(0.1, dtype)}, hg.full_batch(x[0], 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("checkpoints", ["all", "sqrt"])
def test_second_order_reverse(checkpoints, dtype, on_emulator):
    host = hg.reverse(*maml(dtype), checkpoints=checkpoints)
    counts = on_emulator()
    emulated = hg.reverse(*maml(dtype), checkpoints=checkpoints)
    bound = 1e-3 if dtype == np.float32 else 1e-10
    assert abs(host.value - emulated.value) <= bound * abs(host.value)
    for group in (host.grad["start"], {"lr": host.grad["lr"]}):
        other = emulated.grad["start"] if len(group) > 1 else {"lr": emulated.grad["lr"]}
        for name, expected in group.items():
            assert np.abs(other[name] - expected).max() <= bound * max(np.abs(expected).max(), 1e-2), name
    for rung in ("value", "vjp", "jvp", "vjp_jvp"):
        assert counts[f"conv_bn_relu_pool_{rung}"] > 0 and counts[f"conv_bn_relu_pool_first_{rung}"] > 0


def test_forward_equals_reverse(on_emulator):
    """The same hypergradient of the step size by tangents and by the adjoint, both on the CUDA kernels."""
    counts = on_emulator()
    problem, hparams, batches = maml(np.float64)
    start = hparams["start"]
    step_only = hg.Bilevel(problem.inner_loss, problem.outer_loss, lambda h: start, problem.optimizer)
    lr = {"lr": hparams["lr"]}
    forward, reverse = hg.forward(step_only, lr, batches), hg.reverse(step_only, lr, batches)
    np.testing.assert_allclose(forward.grad["lr"], reverse.grad["lr"], rtol=1e-10)
    assert counts["conv_bn_relu_pool_jvp"] > 0


def test_short_training_run(tmp_path, on_emulator):
    """Hyper-representation with float32 on the emulator follows the host's run."""
    changes = {"iterations": 3, "eval_every": 3, "eval_episodes": 2, "test_episodes": 2}
    states = []
    for place in ("host", "emulator"):
        counts = on_emulator() if place == "emulator" else None
        config = tiny.tiny_config(**changes)
        with RunDirectory.create(tmp_path / place, config.to_json()) as run:
            states.append(training.train(run, config, tiny.tiny_data()))
    for name, expected in states[0].best_hparams.items():
        np.testing.assert_allclose(states[1].best_hparams[name], expected, rtol=0, atol=2e-3, err_msg=name)
    assert counts["conv_bn_relu_pool_first_vjp"] > 0 and counts["conv_bn_relu_pool_vjp"] > 0
