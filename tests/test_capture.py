"""`capture`: a function of device arrays as one launch, on a GPU and on a pretended one; without a GPU it calls the function.

The pretended GPU shows on any machine that a meta-step never waits, that a recording holds nothing that CUDA or CuPy refuse to
record, and that a graph depends on nothing but its arguments; the real one, that CuPy and CUDA agree.
"""

import numpy as np
import pytest

import hypergrad as hg
from hypergrad.backends import is_on_gpu
from hypergrad.errors import DifferentiationError

on_devices = pytest.mark.backends("pretended", "gpu")


@pytest.fixture
def cupy(backend):
    """The module cupy, of a GPU or of a pretended one."""
    return backend.xp


def test_on_numpy_arrays_it_calls_the_function():
    calls = []

    def f(x, n):
        calls.append(n)
        return {"grad": hg.grad(lambda a: hg.sum(a**n))(x)}

    captured = hg.capture(f)
    for _ in range(2):
        np.testing.assert_array_equal(captured(np.arange(3.0), 2)["grad"], [0, 2, 4])
    assert calls == [2, 2]


def test_it_has_no_derivative():
    captured = hg.capture(lambda x: x)
    with pytest.raises(DifferentiationError, match="capture: called inside a transform, expected arrays"):
        hg.grad(lambda x: hg.sum(captured(x)))(np.ones(2))
    with pytest.raises(DifferentiationError, match="capture the function that takes the gradient"):
        captured(hg.Tensor(np.ones(2)))


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


def representation(p, batch):
    """The loss of a head that is trained in two steps on the network's features."""
    w = hg.linear_head_descent(network(p, batch["support"]), p["head"], p["bias"], batch["labels"], p["lr"], 2)
    return hg.mean(hg.linear_cross_entropy(network(p, batch["query"]), *w, batch["labels"]))


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
    "AdamW": maml(lambda lr: hg.AdamW(lr=lr)),
    "RMSprop": maml(lambda lr: hg.RMSprop(lr=0.1 * lr, momentum=0.5)),
    "Adagrad": maml(lambda lr: hg.Adagrad(lr=lr)),
    "head": hg.value_and_grad(representation),
    "composed": unfused(maml(lambda lr: hg.SGD(lr=lr, momentum=0.5))),
}


@on_devices
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
        again, twice = captured(p, batch)
        assert other.get() == again.get()
        for key, g in grad.items():
            np.testing.assert_array_equal(twice[key].get(), repeated[key].get(), err_msg=key)
            # Products, of which the composed step is made, add up in another order in a graph.
            off = 0 if name != "composed" else 1e-12 if dtype == "float64" else 1e-4
            np.testing.assert_allclose(repeated[key].get(), g.get(), rtol=0, atol=off * max(1, abs(g.get()).max()), err_msg=key)
        np.testing.assert_allclose(other.get(), value.get(), rtol=off)
        p = {key: a - 0.01 * grad[key] for key, a in p.items()}
    here, batch = parameters(np, dtype), few_shot(np, 0, dtype)
    there = captured(parameters(cupy, dtype), few_shot(cupy, 0, dtype))
    value, grad = step(here, batch)
    for a, b in zip([there[0], *there[1].values()], [value, *grad.values()], strict=True):
        off = 1e-10 if dtype == "float64" else 0.02  # in float32 rounding moves winners of the max-pool
        assert is_on_gpu(a) and a.dtype == dtype
        np.testing.assert_allclose(a.get(), b, rtol=0, atol=off * max(1, abs(b).max()))


@pytest.mark.backends("pretended")
def test_meta_steps_never_wait(backend, cupy):
    """Neither an eager nor a recorded meta-step makes the host wait; a recorded one is one launch."""
    machine, p, batch, captured = backend.machine, parameters(cupy), few_shot(cupy, 0), hg.capture(STEPS["momentum"])
    STEPS["momentum"](p, batch)
    assert machine.waits == 0
    rungs = ("value", "vjp", "jvp", "vjp_jvp")
    assert {f"conv_bn_relu_pool_{kind}{rung}" for kind in ("", "first_") for rung in rungs} <= set(machine.kernels)
    captured(p, batch)
    before, launches = machine.waits, machine.launches
    ran = len(machine.kernels)
    captured(p, few_shot(cupy, 1))
    assert (machine.waits, machine.launches) == (before, launches + 1)
    assert machine.kernels[ran:] == ["sum_leaves"] * 2  # nothing was issued by the host but the copies in and out


@on_devices
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("x", "y"),
    [
        ((3, 4), (4, 5)),
        ((4,), (4,)),
        ((2, 3, 4), (4, 5)),
        ((3, 4), (2, 4, 5)),
        ((2, 3, 4), (2, 4, 1)),
        ((3, 2, 5, 4), (2, 4, 3)),
        ((2, 1, 3, 3, 4), (2, 1, 4, 2)),
        ((3, 0), (0, 5)),
        ((0, 4), (4, 5)),
        ((2, 33, 129), (2, 129, 65)),
    ],
    ids=str,
)
def test_products_in_a_graph(x, y, dtype, cupy):
    """Values and second derivatives; CuPy records no cuBLAS."""
    rng = np.random.default_rng(0)
    args = [rng.standard_normal(shape).astype(dtype) for shape in (x, y)]
    dots = [rng.standard_normal((2, *a.shape)).astype(dtype) for a in args]

    def run(args, dots):
        _, grads, products = hg.hvp(lambda x, y: hg.sum(hg.matmul(x, y) ** 2), tuple(args), tuple(dots))
        return [hg.matmul(*args).value, *grads, *products]

    there = hg.capture(run)([cupy.asarray(a) for a in args], [cupy.asarray(d) for d in dots])
    for a, b in zip(there, run(args, dots), strict=True):
        assert is_on_gpu(a) and a.dtype == dtype and a.shape == b.shape
        np.testing.assert_allclose(a.get(), b, rtol=0, atol=(1e-4 if dtype == np.float32 else 1e-12) * max(1, np.abs(b).max(initial=0)))


# What CuPy or CUDA refuse while a stream records: the host's reading of a number, and libraries.
REFUSED = {
    "float": lambda a, cupy: a * float(a.sum()),
    "int": lambda a, cupy: a * int(a.sum()),
    "bool": lambda a, cupy: a if a.sum() else -a,
    "item": lambda a, cupy: a * a.sum().item(),
    "get": lambda a, cupy: a * cupy.asarray(a.get()),
    "asnumpy": lambda a, cupy: a * cupy.asnumpy(a).sum(),
    "tolist": lambda a, cupy: a * a.tolist()[0],
    "a mask as an index": lambda a, cupy: a[a > 0],
    "nonzero": lambda a, cupy: cupy.nonzero(a)[0],
    "where": lambda a, cupy: cupy.where(a)[0],
    "synchronize": lambda a, cupy: cupy.cuda.get_current_stream().synchronize() or a,
    "matmul": lambda a, cupy: cupy.matmul(a[None], a[:, None]),
    "@": lambda a, cupy: a[None] @ a[:, None],
    "dot": lambda a, cupy: a[None].dot(a[:, None]),
    "tensordot": lambda a, cupy: cupy.tensordot(a[None], a[:, None], 1),
    "einsum": lambda a, cupy: cupy.einsum("ij,jk->ik", a[None], a[:, None]),
}


# What a recording may swallow, and the graph then reads from memory that is gone: only the pretended GPU is sure to refuse it.
COPIED = {"an array": lambda a, cupy: a * cupy.asarray(np.ones(3)), "a list as an index": lambda a, cupy: a[[0, 1]]}


@pytest.mark.backends("pretended")
@pytest.mark.parametrize("name", COPIED)
def test_a_recording_copies_nothing_from_the_host(name, cupy):
    with pytest.raises(hg.errors.DeviceError, match="capture: the function cannot be recorded"):
        hg.capture(lambda a: COPIED[name](a, cupy))(cupy.asarray(np.ones(3)))


@on_devices
def test_what_cannot_be_recorded_says_so(cupy):
    x = cupy.asarray(np.ones(3))
    for wrong in REFUSED.values():
        with pytest.raises(hg.errors.DeviceError, match="capture: the function cannot be recorded .*expected kernels only"):
            hg.capture(lambda a, wrong=wrong: wrong(a, cupy))(x)
    assert hg.capture(lambda a: a * 2)(x).get().tolist() == [2, 2, 2]  # the failed recording left nothing behind
    with pytest.raises(hg.errors.DeviceError, match="capture: an argument is a NumPy array of shape .3,. beside CuPy arrays"):
        hg.capture(lambda a, b: a)(x, np.ones(3))
    with pytest.raises(hg.errors.ArgumentError, match="capture: an argument is a object, expected arrays"):
        hg.capture(lambda a, b: a)(x, object())
    with pytest.raises(hg.errors.DifferentiationError, match="capture: called inside a transform"):
        hg.grad(lambda a: hg.sum(hg.capture(lambda b: b)(a)))(x)
    with pytest.raises(hg.errors.ShapeError, match="matmul"):
        hg.capture(hg.matmul)(x, cupy.asarray(np.ones(4)))


@on_devices
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


@on_devices
def test_many_arrays_are_joined_in_a_graph(cupy):
    rows = [np.full((2, 3), float(i)) for i in range(75)]
    got = hg.capture(lambda arrays: hg.stack(arrays, axis=1).value)([cupy.asarray(a) for a in rows])
    np.testing.assert_array_equal(got.get(), np.stack(rows, axis=1))


@on_devices
def test_activations_that_are_kept_change_no_bit(cupy):
    """A run's transposed steps take what its steps have computed; without that, they compute it again."""
    p, batch = parameters(cupy), few_shot(cupy, 0)
    for name in ("SGD", "Adam"):
        (value, grad), (other, again) = (hg.capture(STEPS[name], keep_activations=keep)(p, batch) for keep in (True, False))
        assert value.get() == other.get()
        for key, g in grad.items():
            np.testing.assert_array_equal(g.get(), again[key].get(), err_msg=key)


@pytest.mark.backends("pretended")
def test_activations_that_are_kept_spare_kernels(backend, cupy):
    p, batch = parameters(cupy), few_shot(cupy, 0)
    counts = []
    for keep in (True, False):
        hg.capture(STEPS["SGD"], keep_activations=keep)(p, batch)
        counts.append([node.call for node in backend.machine.nodes].count("conv_bn_relu_pool_value"))
    assert 0 < counts[0] < counts[1]


@pytest.mark.backends("pretended")
def test_constants_of_a_graph_are_nobodys_to_write_to(cupy):
    """A gradient that is one or zero everywhere belongs to the caller, who may add to it in the same recording."""

    def f(x, y):
        grads = hg.grad(lambda x, y: hg.sum(x) + 0.0 * hg.sum(y), argnums=(0, 1))(x, y)
        for g in (*grads, hg.grad(lambda x: x)(x[0])):
            g[...] = g + 1
        return *grads, hg.grad(lambda x: x)(x[0])

    captured = hg.capture(f)
    x = cupy.asarray(np.ones(3))
    for _ in range(3):
        a, b, c = captured(x, x)
        assert a.get().tolist() == [2, 2, 2] and b.get().tolist() == [1, 1, 1] and c.get() == 1


@pytest.mark.backends("pretended")
def test_calls_on_two_streams_run_one_after_the_other(cupy):
    """They share the graph's memory: the second one waits for the event behind the first."""
    captured, x = hg.capture(lambda a: 2 * a), cupy.asarray(np.ones(3))
    one, two = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    for stream in (one, one, two, one):
        with stream:
            assert captured(x).get().tolist() == [2, 2, 2]
    assert [event[0] for event in two.waited] == [one.ptr] and [event[0] for event in one.waited] == [two.ptr]
