"""The memory of the pretended GPU: a pool and its hooks, which are CuPy 14's.

Hooks are registered by name in each thread. Malloc hooks hear the requested size, the size rounded up to 512 bytes and the address, which
is 0 where the allocation failed or was of no bytes; free hooks the rounded size.
"""

from __future__ import annotations

import threading
from typing import Any

UNIT = 512
LIMIT = 1 << 30  # bytes of a pool


class _Hooks(threading.local):
    """The hooks of a thread by name."""

    def __init__(self) -> None:
        self.by_name: dict[str, Any] = {}

    def call(self, method: str, **what: Any) -> None:
        for hook in self.by_name.values():
            getattr(hook, method)(**what)


hooks = _Hooks()


class MemoryHook:
    """The base class of hooks."""

    name = "MemoryHook"

    def __enter__(self) -> MemoryHook:
        if self.name in hooks.by_name:
            raise KeyError(f"memory hook {self.name} already exists")
        hooks.by_name[self.name] = self
        return self

    def __exit__(self, *_: object) -> None:
        del hooks.by_name[self.name]

    def _ignore(self, **_: Any) -> None:
        """What a hook does not ask for."""

    malloc_preprocess = malloc_postprocess = free_preprocess = free_postprocess = _ignore


class Memory:
    """A piece of a pool; goes back when it is freed or forgotten."""

    def __init__(self, pool: MemoryPool, address: int, size: int) -> None:
        self.pool, self.ptr, self.size = pool, address, size

    def free(self) -> None:
        if self.ptr:
            what = {"device_id": 0, "mem_size": self.size, "mem_ptr": self.ptr, "pmem_id": id(self)}
            self.ptr = 0
            hooks.call("free_preprocess", **what)
            self.pool.used -= self.size
            hooks.call("free_postprocess", **what)

    __del__ = free


class MemoryPool:
    """Hands out addresses, up to `limit` bytes."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit, self.used, self.next = limit or LIMIT, 0, UNIT

    def used_bytes(self) -> int:
        return self.used

    def malloc(self, size: int) -> Memory:
        rounded = (size + UNIT - 1) // UNIT * UNIT
        hooks.call("malloc_preprocess", device_id=0, size=size, mem_size=rounded)
        memory = None
        try:
            if self.used + rounded > self.limit:
                raise MemoryError("out of memory")
            memory = Memory(self, self.next if rounded else 0, rounded)
            self.used, self.next = self.used + rounded, self.next + rounded
        finally:
            address, name = (0, 0) if memory is None else (memory.ptr, id(memory))
            hooks.call("malloc_postprocess", device_id=0, size=size, mem_size=rounded, mem_ptr=address, pmem_id=name)
        return memory
