"""What backends are tested with finds faults: stray writes on a device, bits that change, and recordings that no GPU would make."""

import numpy as np
import pretended
import pytest
import test_kernels as suite
from places import RIM, Mirror, Place
from test_build import HOST_ALONE

import hypergrad as hg
from hypergrad.backends.cuda import CUDA
from hypergrad.backends.host import HOST
from hypergrad.errors import ArgumentError, DTypeError, ShapeError


def view(memory, offset, a):
    return np.ndarray(a.shape, a.dtype, memory, offset, a.strides)


@pytest.mark.parametrize("sizes", [(3, 2, 7, 7, 5, 33), (2, 3, 2, 3, 3, 5)], ids=str)
def test_kernels_run_through_a_mirror(sizes, monkeypatch):
    mirror = Mirror(HOST.run, np.copy, np.copy, view)
    monkeypatch.setattr(suite, "HOST", mirror)
    suite.test_block_rungs(sizes, np.float32, Place("mirror", mirror))
    suite.test_batch_axes_may_have_any_stride()
    suite.test_empty_sums_are_zero()


def test_writes_beyond_an_output_are_found():
    def overrun(name, y):
        y.base[RIM + y.nbytes] = 1
        return {"y": y}

    with pytest.raises(AssertionError, match="some_kernel wrote beyond an output"):
        Mirror(overrun, np.copy, np.copy, view).run("some_kernel", y=np.ones(3))


def test_only_outputs_change_and_gaps_keep_their_bytes():
    def add(name, x, y):
        y[...] = x + 1
        x[...] = 0
        return {"y": y}

    whole = np.arange(12.0)
    a, out = np.arange(6.0), whole[::-2]
    Mirror(add, np.copy, np.copy, view).run("add", x=a, y=out)
    assert (a == np.arange(6.0)).all()
    assert (whole[1::2] == [6, 5, 4, 3, 2, 1]).all() and (whole[::2] == np.arange(0, 12, 2)).all()


def test_bits_that_change_are_found():
    calls = iter(range(3))
    with pytest.raises(AssertionError, match="again"):
        Place("device", None, orders=["again"]).same_bits(lambda: [np.nextafter(1.0, 2.0) if next(calls) else 1.0])


@pytest.mark.backends("pretended")
def test_a_graph_holds_no_foreign_memory_and_loads_no_kernel(backend):
    xp, machine = backend.xp, backend.machine
    x, warm = xp.asarray(np.ones(3)), []

    def cold(a):
        warm.append(1)
        return a + 1.0 if len(warm) < 2 else xp.cos(a)  # another kernel when it is recorded

    with pytest.raises(hg.errors.DeviceError, match="cos is loaded, expected it loaded by the warm-up"):
        hg.capture(cold)(x)
    stream = xp.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        with pytest.raises(AssertionError, match="recorded memory comes from the common pool"):
            x + 1.0
        stream.end_capture()
    assert machine.pool.used == 512 and machine.recording is None


@pytest.mark.backends("pretended")
def test_what_the_host_reads_is_counted(backend):
    x = backend.put(np.arange(3.0))
    for n, read in enumerate((float, bool, repr, lambda a: a.get(), lambda a: a.tolist()), 1):
        read(x[1])
        assert backend.machine.waits == n
    assert len(x[x > 0]) == 2 and backend.machine.waits == 6
    with pytest.raises(TypeError, match="an array of the host"):
        x + np.ones(3)


def test_memory_that_is_forgotten_goes_back(monkeypatch):
    with pretended.gpu(monkeypatch) as machine:
        a = pretended.asarray(np.ones(100))
        b = a[10:]
        assert machine.pool.used == 1024
        del a
        assert machine.pool.used == 1024  # the view holds it
        del b
        assert machine.pool.used == 0


@pytest.mark.backends("emulated", "gpu")
def test_every_backend_has_the_same_kernels(backend):
    """Only those are the host's alone that test_build.py names: the product of matrices, and kernels that programs call."""
    kernels = CUDA.kernels() if backend.name == "gpu" else backend.kernels.kernels()
    host = {name: kernel for name, kernel in HOST.kernels().items() if name not in HOST_ALONE}
    assert kernels == host


@pytest.mark.backends("emulated")
def test_wrong_calls_of_the_emulator_are_exceptions(backend):
    x, w = np.ones((1, 1, 1, 4, 4, 2)), np.ones((1, 1, 3, 3, 2, 2))
    attrs = {"stride": 1, "pad_h": 1, "pad_w": 1, "precision": 0}
    for (x_, w_), y, changes, error, text in (
        ([x, w], np.ones((1, 1, 1, 4, 4, 3)), {}, ShapeError, "conv2d_fprop: .*expected"),
        ([x, w.astype("f")], x.copy(), {}, DTypeError, "float32"),
        ([x, w], x.copy(), {"stride": 0}, ArgumentError, "stride"),
        ([x, w], x.copy(), {"precision": 3}, ArgumentError, "precision is 3, expected an integer from 0 to 2"),
        ([x, w], x.copy(), {"pad_h": 2}, ShapeError, r"P = \(H\+2\*pad_h-R\)/stride\+1"),
    ):
        with pytest.raises(error, match=text):
            backend.kernels.run("conv2d_fprop", x=x_, w=w_, y=y, **{**attrs, **changes})
    with pytest.raises(ValueError, match="order is 'backwards'"):
        backend.kernels.set_order("backwards")
