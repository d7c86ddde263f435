"""What every call of a kernel promises: a clear error for a wrong one, forks, settings, and arrays of other libraries."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hypergrad as hg
from hypergrad import _host
from hypergrad.backends import as_array, backend_of
from hypergrad.backends.host import HOST
from hypergrad.errors import ArgumentError, DeviceError, DTypeError, ShapeError
from hypergrad.tape import Tensor

LEVELS = _host.build_info()["simd_supported"]


def good_call():
    x, w = np.ones((1, 1, 2, 5, 5, 3), np.float32), np.ones((1, 1, 3, 3, 3, 4), np.float32)
    y = np.empty((1, 1, 2, 5, 5, 4), np.float32)
    return {"name": "conv2d_fprop", "x": x, "w": w, "y": y, "stride": 1, "pad_h": 1, "pad_w": 1, "precision": 0}


def broken(**changes):
    c = good_call()
    for key, change in changes.items():
        c[key] = change(c[key]) if callable(change) else change
    return {key: value for key, value in c.items() if value is not LEFT_OUT}


def run(call):
    call = dict(call)
    return HOST.run(call.pop("name"), **call)


LEFT_OUT = object()


def read_only(a):
    a.flags.writeable = False
    return a


BAD_CALLS = {
    "unknown kernel": (lambda: broken(name="conv3d"), ArgumentError, "conv3d"),
    "an input is left out": (lambda: broken(x=LEFT_OUT), ArgumentError, "conv2d_fprop: x is missing, expected an array"),
    "an input is None": (lambda: broken(w=None), ArgumentError, "w is missing"),
    "an output is not wanted": (lambda: broken(y=None), ArgumentError, "y is not wanted, expected an output"),
    "unknown array": (lambda: broken(z=np.ones(3)), ArgumentError, "conv2d_fprop: argument z is not known, expected one of x=AB|NHWC w="),
    "an axis that differs": (lambda: broken(N=3), ShapeError, r"x has shape \(1, 1, 2, 5, 5, 3\), expected"),
    "an axis that is no size": (lambda: broken(N="2"), ArgumentError, "axis N is '2', expected a size >= 0"),
    "missing attribute": (lambda: broken(pad_w=LEFT_OUT), ArgumentError, "attribute pad_w is missing"),
    "unknown attribute": (lambda: broken(dilation=2), ArgumentError, "dilation"),
    "attribute is text": (lambda: broken(stride="1"), ArgumentError, "stride"),
    "attribute is a fraction": (lambda: broken(stride=1.5), ArgumentError, "stride"),
    "stride of zero": (lambda: broken(stride=0), ArgumentError, "stride"),
    "negative padding": (lambda: broken(pad_h=-1), ArgumentError, "pad_h"),
    "huge padding": (lambda: broken(pad_h=2**62), ArgumentError, "pad_h"),
    "mixed dtypes": (lambda: broken(w=lambda a: a.astype(np.float64)), DTypeError, "w has dtype float64"),
    "integers": (lambda: broken(x=lambda a: a.astype(np.int64)), DTypeError, "has dtype int64"),
    "half precision": (lambda: broken(x=lambda a: a.astype(np.float16)), DTypeError, "float16"),
    "swapped bytes": (lambda: broken(x=lambda a: a.astype(">f4")), DTypeError, "byte order"),
    "a list": (lambda: broken(x=lambda a: [1.0]), DTypeError, "x is a list"),
    "channels differ": (lambda: broken(w=lambda a: np.ones((1, 1, 3, 3, 2, 4), "f")), ShapeError, "w has shape"),
    "an axis is missing": (lambda: broken(x=lambda a: a[0]), ShapeError, "6 axes"),
    "seven axes": (lambda: broken(x=lambda a: a[None]), ShapeError, "7 axes"),
    "output too small": (lambda: broken(y=lambda a: a[..., :4, :].copy()), ShapeError, "where P = "),
    "filter too large": (lambda: broken(pad_h=0, pad_w=0, y=True, w=lambda a: np.ones((1, 1, 9, 3, 3, 4), "f")), ShapeError, "filter is 9"),
    "inner axes strided": (lambda: broken(x=lambda a: np.ones((1, 1, 2, 5, 5, 6), "f")[..., ::2]), ShapeError, "stride"),
    "inner axes reversed": (lambda: broken(x=lambda a: a[:, :, :, ::-1]), ShapeError, "stride"),
    "output strided": (lambda: broken(y=lambda a: np.ones((1, 1, 2, 5, 5, 8), "f")[..., ::2]), ShapeError, "y has a stride"),
    "output read-only": (lambda: broken(y=read_only), ArgumentError, "read-only"),
    "not aligned": (
        lambda: broken(x=lambda a: np.ones(a.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(a.shape)),
        ShapeError,
        "aligned",
    ),
    "required array absent": (lambda: broken(w=lambda a: np.empty(0, np.float32)), ShapeError, "w has shape"),
}


def test_the_good_call_is_good():
    c = good_call()
    out = run(c)
    assert out == {"y": c["y"]} and c["y"][0, 0, 0, 2, 2, 0] == 27


def test_outputs_are_allocated_from_the_axes():
    for way in (LEFT_OUT, True):
        y = run(broken(y=way))["y"]
        assert y.shape == (1, 1, 2, 5, 5, 4) and y.dtype == np.float32 and y[0, 0, 0, 2, 2, 0] == 27
    given = {"y_bar": np.ones((1, 1, 2, 5, 5, 4)), "w": np.ones((1, 1, 3, 3, 3, 4)), "stride": 2, "pad_h": 1, "pad_w": 1, "precision": 0}
    with pytest.raises(ShapeError, match="conv2d_dgrad: x_bar has no size on axis H, expected one that other arguments give"):
        HOST.run("conv2d_dgrad", **given)
    for h in (9, 10):  # both have 5 output rows
        assert HOST.run("conv2d_dgrad", **given, H=h, W=9)["x_bar"].shape == (1, 1, 2, h, 9, 3)


def test_optional_outputs():
    given = {"y_bar": np.ones((1, 3, 2)), "x": np.arange(6.0).reshape(1, 3, 2), **{k: np.ones((1, 2)) for k in ("mean", "rstd", "gamma")}}
    for unwanted in (None, False):
        out = HOST.run("batch_norm_vjp", **given, x_bar=unwanted)
        assert out["x_bar"] is None and list(out) == ["x_bar", "gamma_bar", "beta_bar"] and (out["beta_bar"] == 3).all()


def test_an_output_without_element_type_raises():
    given = {"images": np.zeros((2, 1, 1, 1), np.uint8), "index": np.zeros((1, 1), np.int64)}
    with pytest.raises(ArgumentError, match="gather_images: x has no element type"):
        HOST.run("gather_images", **given)


@pytest.mark.parametrize("case", BAD_CALLS, ids=str)
def test_bad_calls_raise(case):
    make, error, text = BAD_CALLS[case]
    with pytest.raises(error, match=text):
        run(make())


def test_output_that_overlaps_an_input_raises():
    memory = np.zeros(200, np.float32)
    with pytest.raises(ArgumentError, match="output y shares memory with x"):
        run(broken(x=memory[:150].reshape(1, 1, 2, 5, 5, 3), y=memory.reshape(1, 1, 2, 5, 5, 4)))


FORK = """
import os, sys
import numpy as np
from hypergrad import _host
from hypergrad.backends.host import HOST
_host.set_threads(3)
def run():
    x, w = np.ones((1, 8, 30, 30, 30, 3), np.float32), np.ones((1, 8, 3, 3, 3, 4), np.float32)
    y = HOST.run("conv2d_fprop", x=x, w=w, stride=1, pad_h=1, pad_w=1, precision=0)["y"]
    return y[0, 0, 0, 5, 5, 0] == 27
ok = run()
pid = os.fork()
if pid == 0:
    os._exit(0 if run() and run() else 1)
_, status = os.waitpid(pid, 0)
sys.exit(0 if ok and run() and status == 0 else 1)
"""


def python(code, **env):
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        env={**os.environ, **env},
        cwd=Path(__file__).parent,  # not the checkout, whose folder would stand in for the installed package
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_forked_child_can_run_kernels():
    result = python(FORK)
    assert result.returncode == 0, result.stderr


FORK_MEANWHILE = """
import threading
stop, wrong = threading.Event(), []
def compute():
    while not stop.is_set():
        if not run():
            wrong.append("in the thread")
worker = threading.Thread(target=compute)
worker.start()
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if run() and run() else 1)
    if os.waitpid(pid, 0)[1] != 0 or not run():
        wrong.append("in a child or beside it")
stop.set()
worker.join()
sys.exit(str(wrong) if wrong else 0)
"""


def test_a_child_that_is_forked_while_another_thread_computes_can_run_kernels():
    """A lock that a thread of the parent holds would never be freed in the child, which `python` waits for only so long."""
    result = python(FORK.partition("ok = run()")[0] + FORK_MEANWHILE)
    assert result.returncode == 0, result.stderr


FEW_THREADS = """
import os, resource
import numpy as np
from hypergrad import _host
from hypergrad.backends.host import HOST
rng = np.random.default_rng(0)
x, w = rng.standard_normal((1, 8, 30, 30, 30, 3), np.float32), rng.standard_normal((1, 8, 3, 3, 3, 4), np.float32)
run = lambda: HOST.run("conv2d_fprop", x=x, w=w, stride=1, pad_h=1, pad_w=1, precision=0)["y"].tobytes()
_host.set_threads(1)
one = run()
size = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (size + (24 << 20), -1))  # room for the stacks of two threads, not of 63
_host.set_threads(64)
assert run() == one and run() == one
threads = [line.split()[1] for line in open("/proc/self/status") if line.startswith("Threads")]
print("threads", *threads)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_where_no_more_threads_can_be_started_those_there_do_the_work():
    result = python(FEW_THREADS, OPENBLAS_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[1]) < 60


@pytest.mark.parametrize("level", LEVELS)
def test_environment_chooses_instruction_set_and_threads(level):
    code = "from hypergrad import _host; print(_host.build_info()['simd'], _host.threads())"
    result = python(code, HYPERGRAD_SIMD=level, HYPERGRAD_NUM_THREADS="3")
    assert result.stdout.split() == [level, "3"]


@pytest.mark.parametrize("variable", ["HYPERGRAD_SIMD", "HYPERGRAD_NUM_THREADS"])
def test_wrong_environment_is_reported_when_a_kernel_is_called(variable):
    code = (
        "from hypergrad.backends.host import HOST\nfrom hypergrad.errors import ExtensionError\n"
        "try:\n    HOST.run('patch_cov')\nexcept ExtensionError as error:\n    print(error)"
    )
    result = python(code, **{variable: "many"})
    assert variable in result.stdout and "many" in result.stdout, result.stderr


def test_kernel_table():
    inputs, outputs, attributes = HOST.kernels()["conv_bn_relu_pool_value"]
    assert inputs == {"x": "ENHWC", "w": "E33CK", "gamma": "EK", "beta": "EK"}
    assert outputs == {"y": "ENhwK", "code": "ENhwK", "mean": "EK", "rstd": "EK", "z": "ENHWK"}
    assert attributes == ("eps", "precision")


def test_as_array_shares_memory():
    a = np.arange(6.0).reshape(2, 3)
    assert as_array(a) is a
    assert np.shares_memory(as_array(memoryview(a)), a)

    class Interface:
        __array_interface__ = a.__array_interface__

    class Capsule:
        def __dlpack__(self, **kwargs):
            return a.__dlpack__(**kwargs)

        def __dlpack_device__(self):
            return a.__dlpack_device__()

    assert np.shares_memory(as_array(Interface()), a)
    assert np.shares_memory(as_array(Capsule()), a)
    assert np.shares_memory(as_array((ctypes.c_double * 6).from_buffer(a.reshape(-1))), a)
    assert as_array(2.5).shape == () and as_array([[1, 2], [3, 4]]).shape == (2, 2)
    assert as_array(np.float32(1)).dtype == np.float32


@pytest.mark.parametrize("x", ["text", [[1, 2], [3]], None, object(), {"a": 1}], ids=lambda x: type(x).__name__)
def test_as_array_rejects_what_is_no_number(x):
    with pytest.raises(ArgumentError, match="as_array: x is a"):
        as_array(x)


LOOKS = {
    "masked": (np.ma.masked_array([1.0, 2.0], [False, True]), ArgumentError, "its mask would be ignored silently; pass x.filled"),
    "masked without a mask": (np.ma.masked_array([1.0, 2.0]), ArgumentError, "its mask would be ignored"),
    "masked constant": (np.ma.masked, ArgumentError, "its mask would be ignored"),
    "matrix": (np.ones((2, 2)).view(np.matrix), ArgumentError, "its \\* is another product"),
    "objects": (np.array([1.0, None]), DTypeError, "has dtype object, expected numbers"),
    "text": (np.array(["1.0"]), DTypeError, "has dtype <U3"),
    "bytes": (np.array([b"1"]), DTypeError, "has dtype .S1"),
    "dates": (np.array(["2020-01-01"], "datetime64[D]"), DTypeError, "has dtype datetime64"),
    "durations": (np.array([1], "timedelta64[s]"), DTypeError, "has dtype timedelta64"),
    "records": (np.zeros(2, [("a", float)]), DTypeError, "has dtype"),
    "record array": (np.zeros(2, [("a", float)]).view(np.recarray), DTypeError, "has dtype"),
}


USES = {
    "as_array": as_array,
    "an op": hg.exp,
    "an op of two": lambda x: hg.add(1.0, x),
    "labels": lambda x: hg.softmax_cross_entropy(np.ones((2, 2)), x),
    "condition": lambda x: hg.where(x, 1.0, 2.0),
    "index": lambda x: Tensor(np.ones(3))[x] if x is not np.ma.masked else as_array(x),
    "comparison": lambda x: Tensor(np.ones(2)) < x,
}


@pytest.mark.parametrize("name", LOOKS)
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_arrays_that_are_not_what_they_look_like_are_refused(name, use):
    x, kind, message = LOOKS[name]
    with pytest.raises(kind, match=f"as_array: x .*?{message}"):
        use(x)


@pytest.mark.parametrize("use", [hg.exp, lambda x: hg.where(True, x, 0.0), lambda x: hg.grad(lambda y: hg.sum(x * y))(np.ones(2))])
def test_complex_numbers_are_refused(use):
    with pytest.raises(DTypeError, match="complex128"):
        use(np.ones(2, complex))


def test_other_subclasses_become_plain_views(tmp_path):
    class Mine(np.ndarray):
        pass

    for x in (np.ones(3).view(Mine), np.memmap(tmp_path / "x", float, "w+", shape=3)):
        assert type(as_array(x)) is np.ndarray and np.shares_memory(as_array(x), x)
        assert type(hg.add(x, 1.0).value) is np.ndarray


@pytest.mark.parametrize("dtype", ["f4", "f8", "i2"])
def test_any_byte_order_is_served(dtype):
    x = np.array([1, 2, -3], dtype).astype(np.dtype(dtype).newbyteorder())
    assert not x.dtype.isnative and as_array(x).dtype == np.dtype(dtype) and np.array_equal(as_array(x), [1, 2, -3])
    y = x if dtype != "i2" else x[:2]
    one = np.ones(len(y), np.float32 if dtype == "f4" else np.float64)
    assert np.array_equal(hg.multiply(y, one).value, y) and hg.multiply(y, one).dtype == one.dtype
    assert as_array(memoryview(x)).dtype.isnative


class OnGpu:
    __cuda_array_interface__ = {"shape": (1,), "typestr": "<f4", "data": (0, False), "version": 3}

    def __dlpack__(self, **kwargs):
        raise AssertionError("must not be asked for memory on another device")

    def __dlpack_device__(self):
        return (2, 0)


class OnGpuWithoutDlpack:
    __cuda_array_interface__ = OnGpu.__cuda_array_interface__


@pytest.mark.parametrize("kind", [OnGpu, OnGpuWithoutDlpack])
def test_device_arrays_name_what_is_missing(kind):
    with pytest.raises(DeviceError, match="CuPy"):
        as_array(kind())
    with pytest.raises(DeviceError, match="CuPy"):
        backend_of(np.ones(2), kind())


def test_unexportable_array_is_an_argument_error():
    class NeedsDetach:
        def __dlpack__(self, **kwargs):
            raise RuntimeError("requires grad")

        def __dlpack_device__(self):
            return (1, 0)

    with pytest.raises(ArgumentError, match="requires grad"):
        as_array(NeedsDetach())


@pytest.mark.parametrize("level", ["baseline", "avx2", "avx512"])
def test_emulated_and_cuda_kernels_have_no_instruction_set_to_choose(level):
    code = """
import numpy as np
from hypergrad.backends.cuda import CUDA
from hypergrad.backends.emulated import EMULATED, MISSING
print(MISSING or EMULATED.run("max_pool_value", x=np.ones((1, 2, 2, 1)), size=2)["y"].item())
print(CUDA.build_info().get("missing") or "max_pool_value" in CUDA.kernels())
"""
    result = python(code, HYPERGRAD_SIMD=level)
    emulated, cuda = result.stdout.splitlines()
    assert (emulated == "1.0" or "_emulated" in emulated) and (cuda == "True" or "_cuda" in cuda), result.stderr
