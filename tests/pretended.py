"""A GPU pretended on the CPU: a module `cupy` on host memory, the CUDA kernels by the emulator, and graphs.

Stricter than CuPy: an array of the device never meets a NumPy array, nothing but `asarray` and `asnumpy` crosses over, and
what makes the host wait is counted. While a stream records, everything fails that fails on a GPU: waiting, crossing, CuPy's
libraries (it refuses to call cuBLAS, cupy/cupy#6290), memory of the common pool, and kernels that the warm-up did not load.
All else is written down, and a graph's launch does it again, in the same memory, on poisoned temporaries.
"""

from __future__ import annotations

import contextlib
import operator
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from pretended_memory import MemoryHook, MemoryPool

import hypergrad.backends as backends
from hypergrad.backends import emulated
from hypergrad.backends.cuda import CUDA
from hypergrad.backends.emulated import EMULATED

PRODUCTS = {"dot", "einsum", "inner", "matmul", "outer", "tensordot", "vdot"}  # cuBLAS
# The host reads how large the result is, or a library of sorts waits.
WAITS = {"argpartition", "argsort", "argwhere", "bincount", "compress", "dump", "dumps", "extract", "flatnonzero", "histogram", "lexsort",
         "nonzero", "partition", "sort", "tobytes", "tofile", "tolist", "unique"}  # fmt: skip


class CaptureUnsupported(RuntimeError):
    """What CUDA answers with while a stream records: cudaErrorStreamCaptureUnsupported."""


# --- the machine -------------------------------------------------------------------------------------------


class GraphNode(NamedTuple):
    """A kernel of this package, or an operation of CuPy (one kernel or copy of its own), in a graph.

    Attributes:
        name: of the kernel or operation.
        call: what it was launched by, "" for an operation of CuPy.
        blocks, threads, shared: of the launch, 0 for an operation.
        arrays: names and shapes of the call's or operation's arrays.
    """

    name: str
    call: str
    blocks: int
    threads: int
    shared: int
    arrays: dict[str, Any]


class Machine:
    """The streams, the recording and the counts of one pretended GPU.

    Attributes:
        computes: whether kernels are run. Without, their results hold whatever was there, and graphs of any size are recorded soon.
        nodes: of the graph that was recorded last, or what was done while they are written down.
        noting: whether they are.
    """

    def __init__(self) -> None:
        self.computes, self.noting = True, False
        self.nodes: list[GraphNode] = []
        self.recording: list[Callable[[], None]] | None = None
        self.pool = self.allocator = MemoryPool()
        self.waits = self.launches = 0
        self.kernels: list[str] = []
        self.loaded: set[Any] = set()  # kernels, by name and dtypes
        self.streams: list[Any] = []

    def wait(self, what: str) -> None:
        """The host waits for the GPU."""
        if self.recording is not None:
            raise CaptureUnsupported(f"cudaErrorStreamCaptureUnsupported: {what}")
        self.waits += 1

    def load(self, name: str, inputs: list[Any]) -> None:
        """The module of a kernel is loaded at its first launch, which no graph can record."""
        key = (name, *(a.dtype.char for a in inputs))
        if self.recording is not None and key not in self.loaded:
            raise CaptureUnsupported(f"cudaErrorStreamCaptureUnsupported: {name} is loaded, expected it loaded by the warm-up")
        self.loaded.add(key)

    def do(self, f: Callable[..., Any], *args: Any, name: str | None = None, **attrs: Any) -> Any:
        """f on arrays of the device, queued: recorded where a stream records."""
        raw_args, raw_attrs, name = bare(args), bare(attrs), name or f.__name__
        inputs = arrays_in((raw_args, raw_attrs))
        if name in PRODUCTS and self.recording is not None:
            raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
        if name in WAITS or name == "where" and len(args) == 1:
            self.wait(name)
        out = solid(f(*raw_args, **raw_attrs))
        own = self._fresh(out, inputs)
        if own or out is None:  # a view is no kernel
            self.load(name, inputs)
        for a in own:
            self._allocate(a)
        if self.recording is not None:

            def replay() -> None:
                for a, b in zip(own, self._fresh(solid(f(*raw_args, **raw_attrs)), inputs), strict=True):
                    a[...] = b

            self.recording.append(replay)
        if self.noting and name != "empty" and (own or out is None):
            self.nodes.append(GraphNode(name, "", 0, 0, 0, {str(i): (a.shape, a.nbytes) for i, a in enumerate([*own, *inputs])}))
        return worn(out)

    @contextlib.contextmanager
    def writing_down(self) -> Iterator[None]:
        """Kernels and operations inside are added to `nodes`."""
        self.noting = True
        try:
            yield
        finally:
            self.noting = False

    @staticmethod
    def _fresh(out: Any, inputs: list[Any]) -> list[Any]:
        """Results with memory of their own."""
        return [a for a in arrays_in(out) if a.size and not any(np.may_share_memory(a, x) for x in inputs)]

    def _allocate(self, a: Any) -> None:
        """Memory of the current allocator, as long as the NumPy array that has it lives."""
        if self.recording is not None and self.allocator is self.pool:
            raise AssertionError("recorded memory comes from the common pool, expected the graph's own: others would overwrite it")
        while isinstance(a.base, np.ndarray):
            a = a.base
        weakref.finalize(a, self.allocator.malloc(a.nbytes).free)


machine = Machine()


def bare(x: Any) -> Any:
    """The NumPy arrays inside; a NumPy array of the host's among them is an error, as CuPy's "Unsupported type"."""
    if isinstance(x, ndarray):
        return x._a
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}: an array of the host, shape {x.shape}, met the device")
    if isinstance(x, (tuple, list)):
        return type(x)(bare(item) for item in x)
    return {k: bare(v) for k, v in x.items()} if isinstance(x, dict) else x


def solid(x: Any) -> Any:
    """Scalars as 0-d arrays, which have memory."""
    if isinstance(x, (tuple, list)):
        return (list if isinstance(x, list) else tuple)(solid(item) for item in x)  # CuPy has no named tuples
    return np.asarray(x) if isinstance(x, np.generic) else x


def worn(x: Any) -> Any:
    """Results as arrays of the device."""
    if isinstance(x, np.ndarray):
        return ndarray(x)
    return type(x)(worn(item) for item in x) if isinstance(x, (tuple, list)) else x


def arrays_in(x: Any) -> list[Any]:
    """All NumPy arrays inside."""
    if isinstance(x, np.ndarray):
        return [x]
    items = x.values() if isinstance(x, dict) else x if isinstance(x, (tuple, list)) else ()
    return [a for item in items for a in arrays_in(item)]


class Device(contextlib.nullcontext[None]):
    """The one device. Args: number: of it."""

    id, pci_bus_id = 0, "0000:00:1E.0"

    def __init__(self, number: int = 0) -> None:
        assert number == 0
        super().__init__()

    def use(self) -> None:
        """It is always in use."""


class ndarray:
    """An array of the device. Beside foreign types it asks NumPy's protocols, as CuPy does (cupy/_core/core.pyx)."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, a: Any) -> None:
        self._a = a

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **attrs: Any) -> Any:
        if method != "__call__" or not all(isinstance(x, (ndarray, np.ndarray, np.generic, bool, int, float)) for x in inputs):
            return NotImplemented
        return machine.do(ufunc, *inputs, **attrs)

    def __array_function__(self, func: Any, kinds: Any, args: Any, attrs: Any) -> Any:
        if not all(issubclass(kind, (ndarray, np.ndarray)) for kind in kinds):
            return NotImplemented
        return machine.do(func, *args, **attrs)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self._a.__array_interface__, "strides": self._a.strides}

    @property
    def device(self) -> Device:
        return Device()

    @property
    def data(self) -> Any:
        """Where it lies, for a library of another's."""
        return types.SimpleNamespace(ptr=self._a.ctypes.data)

    @property
    def T(self) -> ndarray:
        return machine.do(lambda a: a.T, self, name="T")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(self._a, name)
        if not callable(found) or name in ("dtype", "flags"):
            return found
        return lambda *args, **attrs: machine.do(lambda a, *rest, **more: getattr(a, name)(*rest, **more), self, *args, name=name, **attrs)

    def get(self) -> Any:
        machine.wait("get")
        return self._a.copy()

    def item(self) -> Any:
        machine.wait("item")
        return self._a.item()

    def __repr__(self) -> str:
        return repr(self.get())

    def __len__(self) -> int:
        return len(self._a)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        parts = index if isinstance(index, tuple) else (index,)
        if any(isinstance(i, ndarray) and i.dtype == bool for i in parts):
            machine.wait("the number of elements that a mask chooses")
        if any(isinstance(i, list) for i in parts):
            machine.wait("copy of an index from the host")
        return machine.do(lambda a, i: np.asarray(a[i]), self, index, name="getitem")

    def __setitem__(self, index: Any, value: Any) -> None:
        machine.do(operator.setitem, self, index, value)


def _operators() -> None:
    """Python's operators: on the device's own arrays and numbers at once, on other types by NumPy's ufunc, unless they opt out."""

    def foreign(other: Any) -> bool:
        return not isinstance(other, (ndarray, np.ndarray, np.generic, bool, int, float))

    def left(f: Callable[..., Any], ufunc: Any) -> Any:
        def method(self: ndarray, *other: Any) -> Any:
            if any(map(foreign, other)):
                return NotImplemented if getattr(type(other[0]), "__array_ufunc__", None) is None else ufunc(self, *other)
            return machine.do(f, self, *other)

        return method

    def right(f: Callable[..., Any]) -> Any:
        return lambda self, other: NotImplemented if foreign(other) else machine.do(lambda a, b: f(b, a), self, other)

    for name, ufunc in (
        ("add", np.add), ("sub", np.subtract), ("mul", np.multiply), ("truediv", np.divide), ("pow", np.power), ("matmul", np.matmul),
        ("mod", np.remainder), ("and_", np.bitwise_and), ("or_", np.bitwise_or),
    ):  # fmt: skip
        f, plain = getattr(operator, name), name.rstrip("_")
        setattr(ndarray, f"__{plain}__", left(f, ufunc))
        setattr(ndarray, f"__r{plain}__", right(f))
    for name, ufunc in (
        ("neg", np.negative), ("invert", np.invert), ("eq", np.equal), ("ne", np.not_equal), ("lt", np.less), ("le", np.less_equal),
        ("gt", np.greater), ("ge", np.greater_equal),
    ):  # fmt: skip
        setattr(ndarray, f"__{name}__", left(getattr(operator, name), ufunc))


_operators()
for _convert in (float, int, bool, complex, operator.index):
    setattr(ndarray, f"__{_convert.__name__}__", lambda self, convert=_convert: convert(self.item()))


class Stream:
    """A stream; work on it is done at once. `waited` are the events that it waited for."""

    null: Any = None

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.ptr = id(self) if non_blocking else 0
        self.waited: list[Any] = []

    def record(self) -> Any:
        return (self.ptr, len(machine.kernels))

    def wait_event(self, event: Any) -> None:
        self.waited.append(event)

    def __enter__(self) -> Stream:
        machine.streams.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        assert machine.streams.pop() is self

    def synchronize(self) -> None:
        machine.wait("synchronize")

    def begin_capture(self, mode: Any = None) -> None:
        assert machine.streams[-1:] == [self] and machine.recording is None
        machine.recording, machine.nodes, machine.noting = [], [], True

    def end_capture(self) -> Graph:
        assert machine.recording is not None
        graph, machine.recording, machine.noting = Graph(machine.recording), None, False
        return graph


class Graph:
    """What a stream recorded."""

    def __init__(self, steps: list[Callable[[], None]]) -> None:
        self.steps = steps

    def launch(self, stream: Any = None) -> None:
        assert machine.recording is None
        machine.launches += 1
        for step in self.steps if machine.computes else ():
            step()


@contextlib.contextmanager
def using_allocator(allocator: Any) -> Iterator[None]:
    before, machine.allocator = machine.allocator, allocator.__self__
    try:
        yield
    finally:
        machine.allocator = before


class _Ufunc:
    """A ufunc with its methods."""

    def __init__(self, f: Any) -> None:
        self.f = f

    def __call__(self, *args: Any, **attrs: Any) -> Any:
        return machine.do(self.f, *args, **attrs)

    def at(self, *args: Any) -> None:
        machine.do(self.f.at, *args, name=f"{self.f.__name__}.at")


def asarray(a: Any, dtype: Any = None) -> Any:
    """Copies to the device what is not there."""
    if isinstance(a, ndarray):
        return machine.do(lambda x: x if dtype is None else x.astype(dtype, copy=False), a, name="astype")
    if machine.recording is not None:
        raise CaptureUnsupported("cudaErrorStreamCaptureUnsupported: copy from the host")
    return machine.do(lambda: np.array(a, dtype), name="copy from the host")


def array(a: Any, dtype: Any = None) -> Any:
    """A copy on the device."""
    return machine.do(lambda x: np.array(x, dtype), a, name="copy") if isinstance(a, ndarray) else asarray(a, dtype)


def asnumpy(a: Any) -> Any:
    return a.get()


def empty(shape: Any, dtype: Any = float) -> Any:
    """Memory full of NaN, which it has again at every launch of a graph."""

    def poisoned() -> Any:
        if not machine.computes:
            return np.empty(shape, dtype)
        return np.frombuffer(bytearray(b"\xff") * (int(np.prod(shape)) * np.dtype(dtype).itemsize), dtype).reshape(shape)

    return machine.do(poisoned, name="empty")


def _wrapped(f: Callable[..., Any]) -> Callable[..., Any]:
    """take_along_axis or put_along_axis with CuPy's indices, which wrap around."""
    return lambda a, index, *rest, axis: machine.do(
        lambda x, i, *more: f(x, i % x.shape[axis], *more, axis=axis), a, index, *rest, name=f.__name__
    )


def concatenate(arrays: Any, axis: int = 0) -> Any:
    """Of more than 8 arrays CuPy copies the pointers to the device."""
    if machine.recording is not None and len(arrays) > 8:
        raise CaptureUnsupported("cudaErrorStreamCaptureUnsupported: copy of pointers from the host")
    return machine.do(np.concatenate, arrays, axis=axis)


def stack(arrays: Any, axis: int = 0) -> Any:
    return concatenate([machine.do(np.expand_dims, a, axis) for a in arrays], axis)


class _Module(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        found = getattr(np, name)
        if isinstance(found, np.ufunc):
            return _Ufunc(found)
        if isinstance(found, type) or not callable(found) or name in ("broadcast_shapes", "dtype"):
            return found
        return lambda *args, **attrs: machine.do(found, *args, **attrs)


def cupy() -> Any:
    """The module."""
    module = _Module("cupy")
    module.ndarray, module.asarray, module.array, module.asnumpy, module.empty = ndarray, asarray, array, asnumpy, empty  # type: ignore[attr-defined]
    module.concatenate, module.stack = concatenate, stack  # type: ignore[attr-defined]
    module.take_along_axis, module.put_along_axis = _wrapped(np.take_along_axis), _wrapped(np.put_along_axis)  # type: ignore[attr-defined]
    module.cuda = types.SimpleNamespace(  # type: ignore[attr-defined]
        is_available=lambda: True, Stream=Stream, Graph=Graph, MemoryPool=MemoryPool, using_allocator=using_allocator,
        MemoryHook=MemoryHook, Device=Device, get_current_stream=lambda: machine.streams[-1] if machine.streams else Stream())  # fmt: skip
    module.get_default_memory_pool = lambda: machine.pool  # type: ignore[attr-defined]
    return module


def shapes_of(x: Any) -> Any:
    """Shapes in the place of arrays."""
    return [shapes_of(row) for row in x] if isinstance(x, list) else x.shape if isinstance(x, np.ndarray) else x


def run(name: str, arguments: dict[str, Any], empty: Any, scratch: Any, tickets: Any, stream: int) -> dict[str, Any]:
    """`_cuda.run` by the emulator."""
    assert not bare(tickets(4)).any()
    given = bare(arguments)
    rows = [row if isinstance(row, list) else [row] for row in arguments.values()]
    made = {id(a._a): a for row in rows for a in row if isinstance(a, ndarray)}
    machine.kernels.append(name)
    machine.load(name, arrays_in(given))

    def allocate(shape: Any, dtype: Any) -> Any:
        array = empty(shape, dtype)
        made[id(array._a)] = array
        return array._a

    def launch(arguments: dict[str, Any]) -> dict[str, Any]:
        return emulated.run(name, arguments, allocate)

    emulated._emulated.record_launches(machine.computes)
    try:
        outputs = launch(given)
    finally:
        launched = emulated._emulated.recorded_launches()
    if machine.noting:
        shapes = {k: shapes_of(v) for k, v in {**given, **outputs}.items()}
        machine.nodes += [GraphNode(kernel, name, *sizes, shapes) for kernel, *sizes in launched]
    if machine.recording is not None:
        machine.recording.append(lambda: launch({**given, **outputs}))
    return {k: [made.get(id(row)) for row in y] if isinstance(y, list) else made.get(id(y)) for k, y in outputs.items()}


@contextlib.contextmanager
def gpu(patch: Any) -> Iterator[Machine]:
    """Puts the pretended GPU in the place of CuPy and of `_cuda`.

    Args: patch: pytest's monkeypatch.
    """
    machine.__init__()  # type: ignore[misc]
    patch.setitem(sys.modules, "cupy", cupy())
    patch.setattr(backends, "NO_CUDA", None)
    patch.setattr(backends.cuda, "MISSING", None)
    patch.setattr(backends.cuda, "_cuda", types.SimpleNamespace(run=run, kernels=EMULATED.kernels, device_count=lambda: 1), raising=False)
    CUDA.__dict__.pop("xp", None)
    patch.setattr(CUDA, "_tickets_of", {})
    try:
        yield machine
    finally:
        CUDA.__dict__.pop("xp", None)
