"""The kernels that undo steps of SGD against the same search and the same bits by NumPy, which calls the step itself."""

import numpy as np
import pytest
import test_kernels as suite
from checks import guarded_outputs
from test_kernels import DTYPES, LEVELS

import hypergrad as hg
from hypergrad import _host
from hypergrad.errors import ArgumentError
from hypergrad.optimizers import SGD
from hypergrad.passes import reversible
from hypergrad.tape import Tensor
from hypergrad.transforms import tree_tensors

pytestmark = pytest.mark.backends("host", "emulated")

SIZES = [0, 1, 2, 31, 33, 257, 1023, 1025]
SMALL = {np.float32: 1e-45, np.float64: 5e-324}


def drawn(kind, dtype, n, rng):
    """Weights, velocities and gradients."""
    w, v, g = (rng.standard_normal(n) for _ in range(3))
    largest = float(np.finfo(dtype).max)
    if kind == "training":  # velocities and gradients of one size, some of them zero
        v, g = 0.1 * v, np.where(rng.random(n) < 0.2, 0.0, 0.1 * g)
    elif kind == "equal":
        w, v, g = (np.full(n, x) for x in (0.5, -0.25, 0.125))
    elif kind == "zeros":
        w, v, g = (np.where(rng.random(n) < 0.5, 0.0, -0.0) for _ in range(3))
    elif kind == "denormal":
        w, v, g = (rng.integers(-9, 10, n) * SMALL[dtype] for _ in range(3))
    elif kind == "huge":
        w, v, g = (0.3 * largest * np.clip(x, -1, 1) for x in (w, v, g))
    elif kind == "swallowed":
        v, g = v * np.exp2(rng.integers(-140, 0, n)), g * np.exp2(rng.integers(-20, 80, n))
    elif kind == "powers":
        w, v, g = (np.exp2(rng.integers(-30, 30, n)) * rng.choice([-1, 1], n) for _ in range(3))
    return [np.asarray(x, dtype) for x in (w, v, g)]


KINDS = ["random", "training", "equal", "zeros", "denormal", "huge", "swallowed", "powers"]


def everywhere(f):
    """f(), arrays, each element of which a kernel writes: it does not show what outputs held before."""
    with guarded_outputs(255):
        first = f()
    with guarded_outputs(0):
        again = f()
    assert [np.asarray(x).tobytes() for x in first] == [np.asarray(x).tobytes() for x in again]
    return first


class Problem:
    """A step of SGD from drawn numbers, one leaf for each size."""

    def __init__(self, kind, dtype, sizes, optimizer, seed=0):
        rng = np.random.default_rng(seed)
        columns = zip(*(drawn(kind, dtype, n, rng) for n in sizes), strict=True)
        self.w, self.v, self.g = (list(column) for column in columns)
        self.optimizer = optimizer
        w, v, g = (tree_tensors(x, "test") for x in (self.w, self.v, self.g))
        self.after = optimizer.advance(w, v, g, 0)

    def steps(self):
        """The step by kernels and by the op."""
        kernels = reversible.step_of(self.optimizer, self.after)
        assert isinstance(kernels, reversible.ByKernels)
        return kernels, reversible.ByOp(self.optimizer, self.after)

    def check(self):
        kernels, op = self.steps()
        bits, *counts = everywhere(lambda: [(x := kernels.pack(self.w, self.v, self.g))[0], *x[1]])
        expected, expected_counts = op.pack(self.w, self.v, self.g)
        assert tuple(counts) == expected_counts and counts[:2] == [0, 0]
        np.testing.assert_array_equal(bits, expected)
        *w, place = everywhere(lambda: [*(x := kernels.weights(bits))[0], x[1]])
        w_expected, place_expected = op.weights(bits)
        assert int(place) == place_expected
        v = everywhere(lambda: kernels.velocities(self.w, self.g, bits, place))
        v_expected = op.velocities(self.w, self.g, bits, place_expected)
        for restored in ((w, v), (w_expected, v_expected)):
            for got, given in zip([*restored[0], *restored[1]], [*self.w, *self.v], strict=True):
                assert (got + 0.0).tobytes() == (given + 0.0).tobytes()  # but for the signs of zeros
        return [bits, *w, *v]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("momentum", [0.9, 0.5, 1.0, 0.98, 1.5, 0.001])
def test_bits_of_the_search_by_numpy(kind, dtype, momentum, backend):
    if kind == "huge" and momentum > 1:
        momentum = 1.1
    for lr, decay in ((0.1, 0.0), (-0.01, 0.01)):
        Problem(kind, dtype, SIZES, SGD(lr=lr, momentum=momentum, weight_decay=decay)).check()


@pytest.mark.parametrize("dtype", DTYPES)
def test_fields_that_are_arrays(dtype, backend):
    def tensor(x):
        return Tensor(np.asarray(x, dtype))

    sizes = [5, 33, 1025]
    Problem("training", dtype, sizes, SGD(lr=tensor(0.1), momentum=tensor(0.9), weight_decay=tensor(0.0))).check()
    each = [[tensor(x * (1 + i)) for i in range(3)] for x in (0.1, 0.3, 0.01)]
    Problem("training", dtype, sizes, SGD(lr=each[0], momentum=each[1], weight_decay=each[2])).check()


def test_many_leaves(backend):
    p = Problem("training", np.float32, [i % 5 for i in range(53)], SGD(lr=0.1, momentum=0.9))
    backend.same_bits(p.check)


def test_large_leaves(backend):
    backend.same_bits(Problem("training", np.float32, [17001, 3, 0, 8192, 8193], SGD(lr=0.1, momentum=0.9)).check)


def test_more_bits_than_the_first_room(backend):
    """Velocities that gradients swallow take 20 bits and more each: the kernel is asked again with the room that it needs."""
    p = Problem("swallowed", np.float32, [1025], SGD(lr=0.1, momentum=0.9))
    bits = p.check()[0]
    assert bits.size > 1025 // 4 + 64


def test_what_does_not_fit_is_left_out(backend):
    p = Problem("training", np.float64, [1025], SGD(lr=0.1, momentum=0.9))
    (w_next, v_next), numbers = ([[x.value for x in tree] for tree in p.after]), {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}
    given = {"w": p.w, "v": p.v, "g": p.g, "w_next": w_next, "v_next": v_next, **numbers}
    whole = suite.HOST.run("sgd_residue", **given, B=1000)
    size = -(-int(whole["counts"][0]) // 8)
    assert 10 < size < 1000 and not whole["packed"][size:].any()
    for room in (0, 1, 7, size - 1, size, size + 1):
        part = suite.HOST.run("sgd_residue", **given, B=room)
        np.testing.assert_array_equal(part["counts"], whole["counts"])
        np.testing.assert_array_equal(part["packed"], whole["packed"][:room])


def test_faults_are_counted(backend):
    """Numbers after the step that are not finite or not the step's, and negative zeros before it."""
    p = Problem("training", np.float64, [100, 3], SGD(lr=0.1, momentum=0.9))
    kernels, _ = p.steps()
    assert kernels.pack(p.w, p.v, p.g)[1] == (0, 0, 0)
    p.w[0][3] *= 1.5
    p.v[1][1] = np.nextafter(p.v[1][1], np.inf) + 1
    assert kernels.pack(p.w, p.v, p.g)[1] == (0, 2, 0)
    for n, value in enumerate((np.inf, -np.inf, np.nan), 1):
        kernels.v_next[0][n] = value
        assert kernels.pack(p.w, p.v, p.g)[1].infinite == n
    zeros = Problem("zeros", np.float32, [100], SGD(lr=0.1, momentum=0.9))
    negative = sum(int(np.signbit(x).sum()) for x in (*zeros.w, *zeros.v))
    assert negative and zeros.steps()[0].pack(zeros.w, zeros.v, zeros.g)[1] == (0, 0, negative)


def test_a_residue_that_ends_early_reads_as_zeros(backend):
    """Wrong numbers, but no read beyond the end."""
    p = Problem("training", np.float32, [1025], SGD(lr=0.1, momentum=0.9))
    kernels, _ = p.steps()
    bits, _ = kernels.pack(p.w, p.v, p.g)
    w, place = kernels.weights(bits[:1])
    zeros = kernels.velocities(p.w, p.g, bits[:0], place)[0]
    assert np.isfinite(w[0]).all() and np.isfinite(zeros).all()
    assert np.array_equal(kernels.velocities(p.w, p.g, bits, np.asarray(2**62))[0], zeros)
    before, first = np.asarray(-1), np.asarray(0)  # a GPU cannot tell
    if backend.name == "host":
        with pytest.raises(ArgumentError, match="begin is -1, expected the place of a bit"):
            kernels.velocities(p.w, p.g, bits, before)
    else:
        assert np.array_equal(kernels.velocities(p.w, p.g, bits, before)[0], kernels.velocities(p.w, p.g, bits, first)[0])


def test_the_op_takes_what_the_kernels_do_not_serve(backend):
    p = Problem("training", np.float64, [4], SGD(lr=0.1, momentum=Tensor(np.full(4, 0.9))))
    assert isinstance(reversible.step_of(p.optimizer, p.after), reversible.ByOp)
    with hg.fusion(False):
        p = Problem("training", np.float64, [4], SGD(lr=0.1, momentum=0.9))
        assert isinstance(reversible.step_of(p.optimizer, p.after), reversible.ByOp)


@pytest.mark.backends("host")
@pytest.mark.parametrize("level", LEVELS)
def test_bits_for_any_threads_and_every_instruction_set(level, backend):
    chosen, threads = _host.build_info()["simd"], _host.threads()
    try:
        _host.set_simd(level)
        for kind in KINDS:
            for dtype in DTYPES:
                Problem(kind, dtype, SIZES, SGD(lr=0.1, momentum=0.9, weight_decay=0.01)).check()
        runs = []
        for n in (1, 2, 3, 2):
            _host.set_threads(n)
            runs.append(Problem("training", np.float32, [70001, 3, 0, 20000], SGD(lr=0.1, momentum=0.9)).check())
    finally:
        _host.set_simd(chosen)
        _host.set_threads(threads)
    for run in runs[1:]:
        for a, b in zip(runs[0], run, strict=True):
            assert a.tobytes() == b.tobytes()
