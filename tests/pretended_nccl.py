"""NCCL pretended by MPI, for processes with a pretended GPU each (pretended.py): the part of `cupy.cuda.nccl` that carries bytes.

Stricter than NCCL: what would wait for ever is an error.
"""

from __future__ import annotations

import ctypes
import sys
import types
from typing import Any

import pretended

NCCL_UINT8 = 1
IDENTITY = tuple(range(-64, 64))


def install(patch: Any, comm: Any, gpus: int) -> list[str]:
    """Puts it in the place of CuPy's module. Args: patch: pytest's monkeypatch; comm: of mpi4py; gpus: different ones that there are.

    Returns: what was called, to be read later.
    """
    calls: list[str] = []
    group: list[Any] = []  # requests of an open group behind one None

    class NcclCommunicator:
        def __init__(self, size: int, identity: tuple[int, ...], rank: int) -> None:
            assert (size, identity, rank) == (comm.Get_size(), IDENTITY, comm.Get_rank())
            assert len(set(comm.allgather(pretended.Device().pci_bus_id))) == size, "ncclInvalidUsage: Duplicate GPU detected"
            self.comm, self.aborted = comm.Dup(), False

        def send(self, pointer: int, count: int, kind: int, peer: int, stream: int) -> None:
            assert group and kind == NCCL_UINT8 and count > 0, "a send outside of a group waits for its receiver"
            group.append(self.comm.Isend(memory(pointer, count), peer))

        def recv(self, pointer: int, count: int, kind: int, peer: int, stream: int) -> None:
            assert group and kind == NCCL_UINT8 and count > 0, "a recv outside of a group waits for its sender"
            group.append(self.comm.Irecv(memory(pointer, count), peer))

        def allGather(self, sent: int, received: int, count: int, kind: int, stream: int) -> None:
            assert not group and kind == NCCL_UINT8
            calls.append("allGather")
            self.comm.Allgather(memory(sent, count), memory(received, count * self.comm.Get_size()))

        def abort(self) -> None:
            self.aborted = True

    def start() -> None:
        assert not group
        group.append(None)

    def end() -> None:
        assert group.pop(0) is None
        for request in group:
            request.Wait()
        group.clear()
        calls.append("group")

    patch.setattr(pretended.Device, "pci_bus_id", f"0000:0{comm.Get_rank() % gpus}:00.0")
    module: Any = types.ModuleType("cupy.cuda.nccl")
    module.available, module.NCCL_UINT8, module.NcclCommunicator = True, NCCL_UINT8, NcclCommunicator
    module.get_unique_id, module.groupStart, module.groupEnd = lambda: IDENTITY, start, end
    patch.setitem(sys.modules, "cupy.cuda.nccl", module)
    return calls


def memory(pointer: int, count: int) -> Any:
    """So many bytes there, for MPI."""
    return (ctypes.c_ubyte * count).from_address(pointer)
