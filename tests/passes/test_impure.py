"""Steps and batches that are not the same twice: noticed in every policy, with the step, both values and what to do."""

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import optree
import pytest

import hypergrad as hg
from hypergrad.errors import DifferentiationError

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((6, 8, 3)), RNG.standard_normal((6, 8))
H = {"decay": np.array(0.3), "lr": np.array(0.1)}
POLICIES = ["all", "sqrt", 1, 2, "host"]


def loss(w, h, batch):
    x, y = batch
    return hg.mean((hg.tanh(x @ w) - y) ** 2) + h["decay"] * hg.sum(w * w)


class Batches(list):
    """Batches that a function may change as they are read."""

    def __init__(self, change):
        super().__init__(zip(X, Y, strict=True))
        self.change, self.reads = change, 0

    def __getitem__(self, t):
        self.reads += 1
        return self.change(self, t, super().__getitem__(t))


def reshuffled():
    """Another order of the examples in every epoch, an epoch being one pass over the batches."""
    return Batches(lambda self, t, batch: list.__getitem__(self, (t + self.reads // 7) % 6))


def one_sweep():
    """What a data loader does: the batch is the next one, whatever t is."""
    return Batches(lambda self, t, batch: list.__getitem__(self, (self.reads - 1) % 4))


def noisy():
    rng = np.random.default_rng(1)
    return Batches(lambda self, t, batch: (batch[0] + 0.01 * rng.standard_normal(batch[0].shape), batch[1]))


def overwritten():
    """The batch of step 2 is written to after the first run has read them all."""

    def change(self, t, batch):
        if self.reads == 7:
            list.__getitem__(self, 2)[0][0, 0] += 1e-9
        return batch

    batches = Batches(change)
    batches[:] = [(x.copy(), y) for x, y in zip(X, Y, strict=True)]
    return batches


def masked():
    rng = np.random.default_rng(1)
    return lambda w, h, b: loss(w * (rng.random(3) < 0.7), h, b)


def counted():
    calls = []

    def counting(w, h, b):
        calls.append(0)
        return loss(w, h, b) * (1.0 + 0.1 * (len(calls) % 5))

    return counting


def averaged():
    """A running mean that the loss keeps outside its arguments."""
    mean = [np.zeros(8)]

    def normalised(w, h, b):
        mean[0] = 0.9 * mean[0] + 0.1 * b[1]
        return loss(w, h, (b[0], b[1] - mean[0]))

    return normalised


def annealed():
    state = {"temperature": 1.0}

    def cooling(w, h, b):
        state["temperature"] *= 0.99
        return loss(w * state["temperature"], h, b)

    return cooling


def in_place():
    """A buffer that every call adds to."""
    buffer = np.zeros(3)

    def adding(w, h, b):
        np.add(buffer, 0.01, out=buffer)
        return loss(w + buffer.copy(), h, b)

    return adding


def still():
    return list(zip(X, Y, strict=True))


IMPURE = {
    "a mask drawn in inner_loss": (masked, still),
    "a counter in inner_loss": (counted, still),
    "a running mean in inner_loss": (averaged, still),
    "a temperature in inner_loss": (annealed, still),
    "a buffer written in inner_loss": (in_place, still),
    "reshuffled batches": (lambda: loss, reshuffled),
    "batches that go on by themselves": (lambda: loss, one_sweep),
    "noise drawn in batches": (lambda: loss, noisy),
    "a batch overwritten after the first run": (lambda: loss, overwritten),
}


def problem(inner, optimizer=lambda h: hg.SGD(lr=h["lr"], momentum=0.5)):
    return hg.Bilevel(inner, lambda w, h: hg.sum(w * w), lambda h: np.ones(3), optimizer)


@pytest.mark.parametrize("checkpoints", POLICIES)
@pytest.mark.parametrize(
    "optimizer",
    [lambda h: hg.SGD(lr=h["lr"], momentum=0.5), lambda h: hg.SGD(lr=0.1), lambda h: hg.Adam(lr=h["lr"])],
    ids=["momentum", "no field", "adam"],
)
@pytest.mark.parametrize("name", IMPURE)
def test_an_impure_step_is_named(name, optimizer, checkpoints):
    make_loss, make_batches = IMPURE[name]
    with pytest.raises(DifferentiationError) as error:
        hg.reverse(problem(make_loss(), optimizer), H, make_batches(), checkpoints=checkpoints)
    found = re.search(r"the inner loss of step (\d) was ([-\d.e]+) and is ([-\d.e]+) when the step is run again", str(error.value))
    assert found and int(found[1]) < 6 and found[2] != found[3]
    assert "draw what is random in batches, as a function of t alone" in str(error.value)


@pytest.mark.parametrize("checkpoints", POLICIES)
def test_randomness_that_depends_on_t_alone_is_fine(checkpoints):
    batches = Batches(lambda self, t, batch: (batch[0] + np.random.default_rng((3, t)).standard_normal(batch[0].shape), batch[1]))
    expected = hg.forward(problem(loss), H, batches).grad
    got = hg.reverse(problem(loss), H, batches, checkpoints=checkpoints).grad
    for k in H:
        np.testing.assert_allclose(got[k], expected[k], rtol=1e-11)


@pytest.mark.parametrize("checkpoints", POLICIES)
def test_a_random_update_is_named(checkpoints):
    rng = np.random.default_rng(0)

    @dataclass(frozen=True)
    class Noisy(hg.SGD):
        def update(self, w, state, g, t):
            return super().update(w, state, g * rng.random(3), t)

    @dataclass(frozen=True)
    class Counting(hg.Optimizer):
        lr: Any

        def update(self, w, state, g, t):
            return w - self.lr * g * (1.0 + 0.1 * next(count)), state

    @dataclass(frozen=True)
    class SaysLinear(hg.Optimizer):
        """Linear in the gradient as it says, and random."""

        lr: Any
        linear_in_gradient: ClassVar[bool] = True

        def update(self, w, state, g, t):
            return w - self.lr * g * rng.uniform(0.5, 1.5), state

    for optimizer in (
        lambda h: Noisy(lr=h["lr"]),
        lambda h: Counting(lr=h["lr"]),
        lambda h: SaysLinear(lr=h["lr"]),
        lambda h: SaysLinear(lr=0.1),
    ):
        count = iter(range(1000))
        with pytest.raises(DifferentiationError, match=r"step \d led to another state when it was run again|the inner loss of step"):
            hg.reverse(problem(loss, optimizer), H, still(), checkpoints=checkpoints)


@pytest.mark.parametrize("checkpoints", POLICIES)
def test_a_random_step_of_a_scan_is_named(checkpoints):
    rng = np.random.default_rng(0)

    def step(state, h, batch):
        return hg.tanh(state * h + rng.random()), None

    with pytest.raises(DifferentiationError, match=r"scan: step \d led to another state when it was run again"):
        hg.grad(lambda h: hg.sum(hg.scan(step, np.ones(3), h, range(5), checkpoints=checkpoints)[0]))(np.array(0.5))


# --- arrays written to between a forward run and its pullback --------------------------------------------------------


def run_of(x):
    return hg.sum(hg.unroll(loss, x["w"], {"decay": x["decay"]}, still(), optimizer=hg.SGD(lr=x["lr"])) ** 2)


DATA = RNG.standard_normal(3)
WRITTEN = {
    "an argument": (lambda x: hg.sum(hg.exp(x["w"]) * x["lr"]), lambda x: x["w"]),
    "a scalar argument": (lambda x: hg.sum(x["w"] * x["lr"]), lambda x: x["lr"]),
    "the start of a run": (run_of, lambda x: x["w"]),
    "a hyperparameter of a run": (run_of, lambda x: x["decay"]),
    "a step size": (run_of, lambda x: x["lr"]),
    "data of the function": (lambda x: hg.sum(x["w"] * x["w"] * DATA), lambda x: DATA),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_pullback_reads_again_may_not_be_written_to(name):
    f, chosen = WRITTEN[name]
    x = {"w": np.linspace(0.5, 1.0, 3), "decay": np.array(0.3), "lr": np.array(0.1)}
    _, pullback = hg.vjp(f, x)
    before = pullback(np.array(1.0))
    array = chosen(x)
    saved = array.copy()
    array[...] += 1e-12
    with pytest.raises(DifferentiationError, match="vjp: an array of shape .* was written to since"):
        pullback(np.array(1.0))
    array[...] = saved
    after = pullback(np.array(1.0))
    assert [a.tobytes() for a in optree.tree_leaves(before)] == [a.tobytes() for a in optree.tree_leaves(after)]


def test_what_a_pullback_handed_out_may_be_written_to():
    x = np.linspace(0.5, 1.0, 3)
    out, pullback = hg.vjp(lambda x: hg.exp(x), x)
    out[...] = 0.0
    first = pullback(np.ones(3))[0]
    np.testing.assert_array_equal(first, np.exp(x))
    first[...] = 0.0
    np.testing.assert_array_equal(pullback(np.ones(3))[0], np.exp(x))


def test_images_written_to_between_steps_get_their_own_statistics():
    """A loader that fills one buffer again and again: the first block's statistics belong to the contents, not to the array."""
    images = RNG.random((3, 1, 4, 8, 8, 2))
    buffer = np.empty((1, 4, 8, 8, 2))

    class Buffered:
        def __len__(self):
            return 3

        def __getitem__(self, t):
            buffer[...] = images[t]
            return buffer

    def inner(w, h, x):
        y = hg.conv_bn_relu_pool(x, w, np.ones(3), h, eps=1e-5)
        return hg.sum(y * y)

    w0 = RNG.standard_normal((3, 3, 2, 3))
    p = hg.Bilevel(inner, lambda w, h: hg.sum(w * w), lambda h: w0, lambda h: hg.SGD(lr=1e-3))
    h = np.linspace(0.1, 0.3, 3)
    for checkpoints in POLICIES:
        a, b = (hg.reverse(p, h, x, checkpoints=checkpoints) for x in (Buffered(), list(images)))
        assert a.grad.tobytes() == b.grad.tobytes() and a.value == b.value


@pytest.mark.parametrize("size", [10, 8192, 100_003])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_write_is_noticed(size, dtype):
    """Another value, two elements exchanged, a part turned round, a part shifted: near and far, in small and large arrays."""
    x = np.arange(size, dtype=dtype)
    changes = {
        "one bit": lambda a: a.view(np.uint8).__setitem__(size // 2, a.view(np.uint8)[size // 2] ^ 1),
        "neighbours exchanged": lambda a: a.__setitem__(slice(2, 4), a[2:4][::-1].copy()),
        "a block turned round": lambda a: a.__setitem__(slice(0, 512), a[:512][::-1].copy()),
        "far ones exchanged": lambda a: a.__setitem__([0, size - 1], a[[size - 1, 0]]),
        "shifted": lambda a: a.__setitem__(slice(None), np.roll(a, 1)),
        "all turned round": lambda a: a.__setitem__(slice(None), a[::-1].copy()),
    }
    for name, change in changes.items():
        w = x.copy()
        _, pullback = hg.vjp(lambda w: hg.sum(w * w), w)
        change(w)
        with pytest.raises(DifferentiationError, match="was written to since"):
            pullback(dtype(1.0))
        assert not np.array_equal(w, x), name


@pytest.mark.parametrize("mode", ["forward", "unroll"])
@pytest.mark.parametrize("what", ["number", "array"])
def test_a_loss_that_a_callback_changes_late_is_told(what, mode):
    """Nothing runs the steps again there. What changes early makes two recordings differ."""
    number, array, h = [1.0], np.ones(3), np.float64(0.1)

    def loss(w, h, batch):
        return number[0] * hg.sum(w * w) + hg.sum(array * w)

    def change(t, *_):
        if t > 20:
            number[0] *= 0.9 if what == "number" else 1.0
            array[:] = array * (0.9 if what == "array" else 1.0)

    def run(callback=None):
        steps = hg.full_batch(None, 40)
        if mode == "unroll":
            return hg.unroll(loss, np.ones(3), {}, steps, optimizer=hg.SGD(lr=h), callback=callback)
        problem = hg.Bilevel(loss, lambda w, h: hg.sum(w), lambda h: np.ones(3), lambda h: hg.SGD(lr=h))
        return hg.forward(problem, h, steps, callback=callback)

    run()
    with hg.fusion(False):
        run(change)
    number[0], array[:] = 1.0, 1.0
    with pytest.raises(DifferentiationError, match="unroll: step 39 does not do what the first ones have done, .* hg.fusion"):
        run(change)
