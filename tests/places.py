"""The backends that tests run on: the host, the CUDA kernels on emulated threads, a pretended GPU, and a GPU.

A test says which with `@pytest.mark.backends("host", "emulated")` and runs once on each; the fixture `backend` is its Place. The
emulator stands in the host backend's place and takes the same NumPy arrays, so that a test of ops needs no change. On a GPU,
pretended or not, arrays must be put there; kernels called by name copy their NumPy arrays there and back.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optree
import pretended
import pytest

from hypergrad import backends
from hypergrad.backends.cuda import CUDA
from hypergrad.backends.emulated import EMULATED, MISSING
from hypergrad.backends.host import HOST

# For tests that run kernels on the pretended GPU.
needs_emulator = pytest.mark.skipif(MISSING is not None, reason=f"no emulator: {MISSING}")

RIM = 256  # bytes before and after an argument on the GPU, also the alignment that arrays keep


@dataclass
class Place:
    """A backend under test.

    Attributes:
        name: "host", "emulated", "pretended" or "gpu".
        kernels: runs kernels on NumPy arrays.
        xp: the module of its arrays.
        orders: orders of threads and blocks, or repetitions, in which results must have the same bits.
        machine: of the pretended GPU.
    """

    name: str
    kernels: Any
    xp: Any = np
    orders: Sequence[str] = ()
    machine: Any = None
    runs: Counter[str] = field(default_factory=Counter)

    def put(self, tree: Any) -> Any:
        """Arrays on this backend."""
        return optree.tree_map(self.xp.asarray, tree)

    def same_bits(self, f: Callable[[], Sequence[Any]]) -> Sequence[Any]:
        """f(), arrays, whose bits no order of threads and no repetition changes."""
        first = f()
        for order in self.orders:
            if self.name == "emulated":
                EMULATED.set_order(order)
            for a, b in zip(first, f(), strict=True):
                assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), order
        if self.name == "emulated":
            EMULATED.set_order("forward")
        return first


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """How often each kernel of the backend of NumPy arrays runs inside."""
    runs: Counter[str] = Counter()
    kind = type(backends.HOST)
    original = kind.run

    def run(self: Any, name: str, *args: Any, **attrs: Any) -> Any:
        runs[name] += 1
        return original(self, name, *args, **attrs)

    kind.run = run
    try:
        yield runs
    finally:
        kind.run = original


def unavailable(name: str) -> str | None:
    """Why tests cannot run on the backend; None where they can."""
    if name in ("emulated", "pretended") and MISSING is not None:
        return f"needs the emulator, built with -DHYPERGRAD_EMULATOR=ON: {MISSING}"
    if name == "gpu" and CUDA.device_count() == 0:
        return "needs a GPU and the extension hypergrad._cuda"
    return None


@contextlib.contextmanager
def placed(name: str, patch: Any) -> Iterator[Place]:
    """The backend under test, in use.

    Args: name: of an available one; patch: pytest's monkeypatch.
    """
    if name == "pretended":
        with pretended.gpu(patch) as machine:
            yield Place(name, None, CUDA.xp, machine=machine)
        return
    place = {
        "host": lambda: Place(name, HOST),
        "emulated": lambda: Place(name, EMULATED, orders=("reverse", "shuffle:1", "shuffle:2")),
        "gpu": lambda: Place(name, on_gpu(), CUDA.xp, ("again", "and again")),
    }[name]()
    if name == "emulated":
        patch.setattr(backends, "HOST", EMULATED)
        EMULATED.set_order("forward")
    if "test_kernels" in sys.modules:  # calls kernels by name, for its own cases and those of other files
        patch.setattr(sys.modules["test_kernels"], "HOST", place.kernels)
    yield place
    if name == "emulated":
        EMULATED.set_order("forward")


@dataclass(frozen=True)
class Mirror:
    """Kernels of a device on NumPy arrays, by copying every argument there and back.

    The copies keep strides, offsets and what lies between elements, and a rim around them shows writes out of bounds.
    run: of the device's backend. to_device, to_host: copy bytes, (n,) uint8. view(memory, offset, a): the device's array with
    shape, dtype and strides of `a` that begins `offset` bytes into `memory`.
    """

    run_there: Callable[..., dict[str, Any]]
    to_device: Callable[[Any], Any]
    to_host: Callable[[Any], Any]
    view: Callable[[Any, int, Any], Any]
    name: str = "mirror"
    xp: Any = np

    def run(self, name: str, /, **arguments: Any) -> dict[str, Any]:
        """Copies, runs, copies the outputs back; one that is left out is computed to learn its shape, then once more into `empty`."""
        there: list[tuple[Any, Any, Any]] = []  # array, memory and view there

        def copied(x: Any) -> Any:
            if isinstance(x, (list, tuple)):
                return [copied(row) for row in x]
            if not isinstance(x, np.ndarray):
                return x
            there.append((x, *self._copy(x)))
            return there[-1][2]

        def own(key: str, y: Any, wanted: Any) -> Any:
            if isinstance(y, list):
                return [own(key, row, wanted[i] if isinstance(wanted, (list, tuple)) else wanted) for i, row in enumerate(y)]
            if y is None or isinstance(wanted, np.ndarray):
                return y if y is None else wanted
            return self.empty(y.shape, np.dtype(str(y.dtype)))

        shapes = self.run_there(name, **{key: copied(x) for key, x in arguments.items()})
        outputs = {key: own(key, y, arguments.get(key)) for key, y in shapes.items()}
        there.clear()
        self.run_there(name, **{key: copied(x) for key, x in {**arguments, **outputs}.items()})
        written = {id(y) for row in outputs.values() for y in (row if isinstance(row, list) else [row])}
        for a, memory, _ in there:
            if id(a) in written and a.size:
                back = self.to_host(memory)
                assert (back[:RIM] == 0x5A).all() and (back[-RIM:] == 0x5A).all(), f"{name} wrote beyond an output"
                _bytes_of(a)[...] = back[RIM:-RIM]
        return outputs

    def empty(self, shape: Sequence[int], dtype: Any) -> Any:
        """An uninitialised array."""
        return np.empty(shape, dtype)

    def number(self, value: float, dtype: Any) -> Any:
        """A Python number as a 0-d array."""
        return np.asarray(value, dtype)

    def concatenate(self, arrays: Sequence[Any], axis: int) -> Any:
        """Arrays joined along an axis."""
        return np.concatenate(arrays, axis)

    def _copy(self, a: Any) -> tuple[Any, Any]:
        rim = np.full(RIM, 0x5A, np.uint8)
        if a.size == 0:
            memory = self.to_device(rim)
            return memory, self.view(memory, 0, a)
        memory = self.to_device(np.concatenate([rim, _bytes_of(a), rim]))
        return memory, self.view(memory, RIM + a.ctypes.data - _low(a), a)


def on_gpu() -> Mirror:
    """The CUDA backend for NumPy arrays."""
    cupy = CUDA.xp
    return Mirror(
        CUDA.run,
        cupy.asarray,
        cupy.asnumpy,
        lambda memory, offset, a: cupy.ndarray(a.shape, a.dtype, memptr=memory.data + offset, strides=a.strides),
    )


def _low(a: Any) -> int:
    """Address of the first byte that belongs to an element."""
    return int(a.ctypes.data + sum((n - 1) * s for n, s in zip(a.shape, a.strides, strict=True) if s < 0))


def _bytes_of(a: Any) -> Any:
    """The memory from the array's first to its last byte."""
    size = a.itemsize + sum((n - 1) * abs(s) for n, s in zip(a.shape, a.strides, strict=True))
    return np.frombuffer((ctypes.c_char * size).from_address(_low(a)), np.uint8)
