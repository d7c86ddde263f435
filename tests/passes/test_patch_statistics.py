"""Statistics of the images' patches: computed once for each array in an unroll, nowhere kept longer, and never mistaken."""

import gc
import weakref

import numpy as np
import pytest
from places import counted

import hypergrad as hg

LABELS = np.arange(3)
PASSES = {
    "all": lambda *a: hg.reverse(*a),
    "sqrt": lambda *a: hg.reverse(*a, checkpoints="sqrt"),
    "one state": lambda *a: hg.reverse(*a, checkpoints=1),
    "forward": lambda *a: hg.forward(*a),
}


@pytest.fixture
def runs():
    """How often each kernel ran."""
    with counted() as counts:
        yield counts


def images(seed, dtype=np.float64, episodes=None):
    shape = (3, 6, 6, 2) if episodes is None else (episodes, 3, 6, 6, 2)
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def problem():
    """The filters move in the inner run; their scale and the step size are hyperparameters."""
    start = {"w": images(1)[0, :3, :3, :, None] * np.ones(4), "out": images(2).reshape(-1)[:108].reshape(36, 3) / 4}

    def inner_loss(w, hparams, x):
        y = hg.conv_bn_relu_pool(x, w["w"] * hparams["scale"], np.ones(4), np.zeros(4))
        return hg.mean(hg.softmax_cross_entropy(hg.matmul(hg.reshape(y, (-1, 36)), w["out"]), np.tile(LABELS, y.size // 108)))

    bilevel = hg.Bilevel(
        inner_loss=inner_loss,
        outer_loss=lambda w, hparams: hg.sum(w["w"] ** 2) + hg.sum(w["out"] ** 2),
        init=lambda hparams: start,
        optimizer=lambda hparams: hg.SGD(lr=hparams["lr"]),
    )
    return bilevel, {"scale": np.array([0.5, 1.0, 1.5, 2.0]), "lr": np.array(0.3)}


def bits(result):
    return [a.tobytes() for a in (result.value, result.grad["scale"], result.grad["lr"], result.params["w"])]


class Fresh:
    """Batches made anew at every request; remembers which are still there."""

    def __init__(self, seeds):
        self.seeds, self.made = seeds, []

    def __len__(self):
        return len(self.seeds)

    def __getitem__(self, t):
        x = images(self.seeds[t])
        self.made.append(weakref.ref(x))
        return x


@pytest.mark.parametrize("run", PASSES.values(), ids=PASSES)
@pytest.mark.parametrize("episodes", [None, 2])
def test_once_for_each_array(runs, run, episodes):
    x, y = images(3, episodes=episodes), images(4, episodes=episodes)
    result = run(*problem(), [x, y, x, x, y])
    assert runs["patch_cov"] == 2 and runs["conv_bn_relu_pool_first_value"] >= 5
    runs.clear()
    apart = run(*problem(), [a.copy() for a in (x, y, x, x, y)])
    assert runs["patch_cov"] == 5
    assert bits(result) == bits(apart)


def test_once_for_bytes_of_each_precision(runs):
    """One array of bytes under filters of both precisions has statistics in both."""
    x = np.random.default_rng(0).integers(0, 9, (3, 6, 6, 2), dtype=np.uint8)

    def inner_loss(w, hparams, batch):
        filters = [np.asarray(w.value, dtype)[..., None] * np.ones((1, 4), dtype) for dtype in (np.float32, np.float64)]
        low, high = (hg.conv_bn_relu_pool(batch, f, f[0, 0, 0], f[0, 0, 1]) for f in filters)
        assert low.dtype == np.float32 and high.dtype == np.float64
        return hg.sum(w * w) * float(hg.sum(high).value)

    hg.unroll(inner_loss, images(1)[0, :3, :3], (), hg.full_batch(x, 3), optimizer=hg.SGD(lr=0.1))
    assert runs["patch_cov"] == 2 and runs["conv_bn_relu_pool_first_value"] == 6


@pytest.mark.parametrize("run", PASSES.values(), ids=PASSES)
def test_minibatches_are_let_go_and_never_mistaken(runs, run):
    """Arrays that die give their address to the next, which has other images."""
    batches = Fresh([3, 4, 5, 6])
    gc.disable()
    try:
        result = run(*problem(), batches)
        assert runs["patch_cov"] == len(batches.made) and all(ref() is None for ref in batches.made)
    finally:
        gc.enable()
    assert bits(result) == bits(run(*problem(), [images(seed) for seed in batches.seeds]))


def test_nothing_is_kept_between_passes(runs):
    """Where the caller overwrites a buffer between two passes, the second sees the new images."""
    buffer = images(3)
    hg.reverse(*problem(), [buffer] * 3)
    buffer[...] = images(4)
    assert bits(hg.reverse(*problem(), [buffer] * 3)) == bits(hg.reverse(*problem(), [images(4)] * 3))
    runs.clear()
    for _ in range(2):
        hg.conv_bn_relu_pool(buffer, np.ones((3, 3, 2, 4)), np.ones(4), np.zeros(4))
    assert runs["patch_cov"] == 2


def test_a_pullback_called_again_computes_them_again(runs):
    bilevel, hparams = problem()
    start = bilevel.init(hparams)

    def run(start):
        return hg.unroll(bilevel.inner_loss, start, hparams, [x] * 3, optimizer=hg.SGD(lr=0.3))

    x = images(3)
    out, pullback = hg.vjp(run, start)
    first = pullback(out)[0]
    assert runs["patch_cov"] == 1
    second = pullback(out)[0]
    assert runs["patch_cov"] == 2 and all((first[name] == second[name]).all() for name in first)


def test_numbers_that_are_no_array_work_as_before(runs):
    x = images(3)
    assert bits(hg.reverse(*problem(), [x.tolist()] * 3)) == bits(hg.reverse(*problem(), [x] * 3))
