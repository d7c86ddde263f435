"""Where the states of a run are kept until the backward run asks for them."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from ..backends import backend_of, is_on_gpu
from ..bilevel import Stats
from ..errors import ArgumentError, DeviceError
from ..tape import Tensor
from ..trees import PyTree, tree_flatten, tree_leaves, tree_map, tree_unflatten
from . import schedule

_COPIES = 2  # states that may be on their way to the host at once
_ALIGN = 64  # bytes; where an array starts in a file


class Store(ABC):
    """What a run needs of a store of states. Each state is a pytree of Tensors that no tape records.

    Attributes:
        exact: whether `get` gives the run's own states, so that a step from one must be the same when it is run again.
        held: bytes of the states that are not on their device.
    """

    exact = True

    def __init__(self, stats: Stats) -> None:
        self.stats, self.held = stats, 0

    @abstractmethod
    def put(self, t: int, state: PyTree) -> None:
        """Keeps the state before step t."""

    @abstractmethod
    def get(self, t: int) -> PyTree:
        """The state before step t, bit for bit as it was put where the store is exact."""

    @abstractmethod
    def drop(self, t: int) -> None:
        """Forgets the state before step t."""

    def offload(self, size: int) -> None:
        """Counts so many bytes more that are not on their device."""
        self.held += size
        self.stats.offloaded_bytes = max(self.stats.offloaded_bytes, self.held)


class Memory(Store):
    """States stay in the memory of their device. Nothing is copied: no op writes into its inputs."""

    def __init__(self, stats: Stats) -> None:
        super().__init__(stats)
        self.states: dict[int, PyTree] = {}

    def put(self, t: int, state: PyTree) -> None:
        self.states[t] = state
        self.stats.hold(t, n_bytes(state))

    def get(self, t: int) -> PyTree:
        return self.states[t]

    def drop(self, t: int) -> None:
        del self.states[t]
        self.stats.release(t)


class Line(Memory):
    """The first and the last state. The states between them are taken for equally spaced points of a straight line."""

    exact = False

    def get(self, t: int) -> PyTree:
        if t in self.states:
            return self.states[t]
        share = t / max(self.states)
        return tree_map(lambda a, b: Tensor(a.value + share * (b.value - a.value)), self.states[0], self.states[max(self.states)])


class _Layout(NamedTuple):
    """How a state lies in the file: of each leaf its place after the state's first byte, dtype and shape; and the bytes in all."""

    spec: Any
    leaves: list[tuple[int, np.dtype[Any], tuple[int, ...]]]
    length: int
    n_bytes: int


class File(Store):
    """States of host arrays lie in one file without a name, which is gone when the run is. They are read as read-only memory maps.

    Args:
        stats: counts the states in the file (offloaded_bytes), and as held the one that is being read.
        directory: where the file is made; None for the system's directory of temporary files.
    Raises: ArgumentError if no file can be written there; DeviceError for arrays on a GPU.
    """

    def __init__(self, stats: Stats, directory: os.PathLike[str] | None = None) -> None:
        super().__init__(stats)
        self.directory = directory or tempfile.gettempdir()
        self.starts: list[int] = []  # of state t in the file, at place t
        self.layouts: list[_Layout | None] = []  # states alike share theirs; None for a state that is not there
        self.layout: _Layout | None = None
        self.end = 0
        self.map: mmap.mmap | None = None
        try:
            self.file = tempfile.TemporaryFile(prefix="hypergrad-", dir=self.directory)
        except OSError as error:
            raise self._failed(error) from error
        weakref.finalize(self, self.file.close)  # maps stay valid

    def put(self, t: int, state: PyTree) -> None:
        leaves, spec = tree_flatten(state)
        if any(is_on_gpu(x.value) for x in leaves):
            raise DeviceError("reverse: states are on the GPU, expected host arrays for states in a file; choose other checkpoints")
        layout = self._layout_of(spec, leaves, n_bytes(state))
        self.map = None
        try:
            for x, (place, _, _) in zip(leaves, layout.leaves, strict=True):
                self.file.seek(self.end + place)  # written, not mapped: a full disk is then an error and not a fault of the bus
                self.file.write(np.ascontiguousarray(x.value).data)
            self.file.truncate(self.end + layout.length)  # as long as the map will be, whatever the last leaf is; it flushes, too
        except OSError as error:
            raise self._failed(error) from error
        self.starts.extend([0] * (t + 1 - len(self.starts)))
        self.layouts.extend([None] * (t + 1 - len(self.layouts)))
        self.starts[t], self.layouts[t] = self.end, layout
        self.end += layout.length
        self.offload(layout.n_bytes)

    def _layout_of(self, spec: Any, leaves: list[Tensor], size: int) -> _Layout:
        """The layout of a state: that of the state before where it is the same."""
        places, end = [], 0
        for x in leaves:
            places.append((end, x.dtype, x.shape))
            end += -(-x.value.nbytes // _ALIGN) * _ALIGN
        layout = _Layout(spec, places, end, size)
        if self.layout != layout:
            self.layout = layout
        return self.layout

    def get(self, t: int) -> PyTree:
        start, layout = self.starts[t], self.layouts[t]
        assert layout is not None
        if self.map is None and self.end:
            self.map = mmap.mmap(self.file.fileno(), self.end, access=mmap.ACCESS_READ)
        self.stats.hold(t, layout.n_bytes)
        return tree_unflatten(layout.spec, [Tensor(self._array(start + place, dtype, shape)) for place, dtype, shape in layout.leaves])

    def _array(self, start: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
        if self.map is None or 0 in shape:
            return np.empty(shape, dtype)
        return np.ndarray(shape, dtype, self.map, start)

    def drop(self, t: int) -> None:
        layout, self.layouts[t] = self.layouts[t], None
        assert layout is not None
        self.offload(-layout.n_bytes)
        self.stats.release(t)

    def _failed(self, error: OSError) -> ArgumentError:
        return ArgumentError(
            f"reverse: the states cannot be written in {self.directory} ({error.strerror or error}), expected a directory with room for "
            "them; pass another one as checkpoints=pathlib.Path(...)"
        )


class Pinned(Store):
    """States of GPU arrays lie in page-locked memory of the host. A stream of its own copies them, while the steps go on.

    Args:
        stats: counts the states on the host (offloaded_bytes), and as held the one that is being read.
    """

    def __init__(self, stats: Stats) -> None:
        super().__init__(stats)
        self.hosted: dict[int, tuple[Any, list[Any], int]] = {}  # by t: the tree's structure, arrays on the host, bytes
        self.leaving: list[tuple[Any, list[Tensor]]] = []  # with the event after which the device's arrays are no longer read
        self.coming: dict[int, tuple[Any, list[Tensor]]] = {}  # with the event after which they are there
        self.side: Any = None

    def put(self, t: int, state: PyTree) -> None:
        """Waits only where more than two states are still on their way."""
        leaves, spec = tree_flatten(state)
        cuda = backend_of(*(x.value for x in leaves)).xp.cuda
        self.side = self.side or cuda.Stream(non_blocking=True)
        self.side.wait_event(cuda.get_current_stream().record())
        arrays = []
        for x in leaves:
            host = np.frombuffer(cuda.alloc_pinned_memory(max(x.value.nbytes, 1)), x.dtype, x.size).reshape(x.shape)
            x.value.get(stream=self.side, out=host, blocking=False)
            arrays.append(host)
        self.leaving = [(event, kept) for event, kept in self.leaving if not event.done][-_COPIES:]
        if len(self.leaving) == _COPIES:
            self.leaving.pop(0)[0].synchronize()
        self.leaving.append((self.side.record(), leaves))
        self.hosted[t] = spec, arrays, n_bytes(state)
        self.offload(self.hosted[t][2])

    def get(self, t: int) -> PyTree:
        """It also sends for the stored state before it, which the backward run wants next."""
        spec, arrays, size = self.hosted[t]
        event, leaves = self.coming.pop(t) if t in self.coming else self._fetched(arrays)
        cuda = backend_of(*(x.value for x in leaves)).xp.cuda
        cuda.get_current_stream().wait_event(event)
        self.stats.hold(t, size)
        earlier = next((k for k in reversed(self.hosted) if k < t), None)
        if earlier is not None and earlier not in self.coming:
            self.coming = {earlier: self._fetched(self.hosted[earlier][1])}
        return tree_unflatten(spec, leaves)

    def _fetched(self, arrays: list[Any]) -> tuple[Any, list[Tensor]]:
        """The event of their arrival, and the arrays on the device."""
        cupy = import_module("cupy")
        leaves = [cupy.empty(x.shape, x.dtype) for x in arrays]
        self.side.wait_event(cupy.cuda.get_current_stream().record())  # whoever had this memory before is done with it
        for x, host in zip(leaves, arrays, strict=True):
            x.set(host, stream=self.side)
        return self.side.record(), [Tensor(x) for x in leaves]

    def drop(self, t: int) -> None:
        self.offload(-self.hosted.pop(t)[2])
        self.coming.pop(t, None)
        self.stats.release(t)


def parse(checkpoints: Any, start: PyTree) -> Callable[[Stats], Store]:
    """What makes the store that a checkpoint policy means for a run from the state `start`: memory, if it is not one of these.

    A directory (an os.PathLike) stands for a file in it, "host" for page-locked memory or, where the state is on the host, for a
    file, and the class schedule.Line for the states of a line.
    """
    if checkpoints is schedule.Line:
        return Line
    if isinstance(checkpoints, str) and checkpoints == "host":
        return Pinned if any(is_on_gpu(x.value) for x in tree_leaves(start)) else File
    return partial(File, directory=checkpoints) if isinstance(checkpoints, os.PathLike) else Memory


def n_bytes(state: PyTree) -> int:
    """Bytes of a state, tangents included."""
    return sum(x.value.nbytes + (0 if x.dot is None else x.dot.value.nbytes) for x in tree_leaves(state))
