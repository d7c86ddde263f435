"""A stand-in for CuPy's memory pool and its hooks, on a machine without a GPU.

As in CuPy 14: hooks are registered by name in each thread; malloc hooks hear the requested size, the size rounded up to 512
bytes and the address, which is 0 where the allocation failed or was of no bytes; free hooks the rounded size.
"""

from __future__ import annotations

import sys
import threading
import types

UNIT = 512


class Hooks(threading.local):
    """The hooks of a thread by name."""

    def __init__(self):
        self.by_name = {}


_hooks = Hooks()


class MemoryHook:
    """The base class of hooks."""

    name = "MemoryHook"

    def __enter__(self):
        if self.name in _hooks.by_name:
            raise KeyError(f"memory hook {self.name} already exists")
        _hooks.by_name[self.name] = self
        return self

    def __exit__(self, *_):
        del _hooks.by_name[self.name]

    def malloc_preprocess(self, **kwargs):
        """Before memory is taken from the pool."""

    def malloc_postprocess(self, **kwargs):
        """After it was taken."""

    def free_preprocess(self, **kwargs):
        """Before it goes back."""

    def free_postprocess(self, **kwargs):
        """After it went back."""


def call(method, **what):
    for hook in _hooks.by_name.values():
        getattr(hook, method)(**what)


class Memory:
    """A piece of the pool; goes back when it is freed or forgotten."""

    def __init__(self, pool, address, size):
        self.pool, self.ptr, self.size = pool, address, size

    def free(self):
        if self.ptr:
            what = {"device_id": 0, "mem_size": self.size, "mem_ptr": self.ptr, "pmem_id": id(self)}
            self.ptr = 0
            call("free_preprocess", **what)
            self.pool.used -= self.size
            call("free_postprocess", **what)

    __del__ = free


class MemoryPool:
    """Hands out addresses, up to `limit` bytes."""

    def __init__(self, limit=1 << 30):
        self.limit, self.used, self.next = limit, 0, UNIT

    def used_bytes(self):
        return self.used

    def malloc(self, size):
        rounded = (size + UNIT - 1) // UNIT * UNIT
        call("malloc_preprocess", device_id=0, size=size, mem_size=rounded)
        memory = None
        try:
            if self.used + rounded > self.limit:
                raise MemoryError("out of memory")
            memory = Memory(self, self.next if rounded else 0, rounded)
            self.used, self.next = self.used + rounded, self.next + rounded
        finally:
            address, name = (0, 0) if memory is None else (memory.ptr, id(memory))
            call("malloc_postprocess", device_id=0, size=size, mem_size=rounded, mem_ptr=address, pmem_id=name)
        return memory


def install(monkeypatch):
    """Puts a new stand-in in CuPy's place; its pool is `pool`."""
    pool = MemoryPool()
    stream = types.SimpleNamespace(synchronize=lambda: None)
    cuda = types.SimpleNamespace(MemoryHook=MemoryHook, get_current_stream=lambda: stream)
    cupy = types.SimpleNamespace(pool=pool, ndarray=Memory, cuda=cuda, get_default_memory_pool=lambda: pool)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return cupy


def hooks():
    """Names of this thread's hooks."""
    return list(_hooks.by_name)
