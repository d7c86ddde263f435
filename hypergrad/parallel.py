"""Several processes on one gradient, by MPI: the tasks of a meta-batch, and the directions of forward mode.

Sums are taken in the order of the tasks, whichever process has computed them. So 1, 2 and 8 processes give the same bits.

An error in one process leaves the others waiting. `mpiexec -n 8 python -m mpi4py script.py` ends them all.

Example:
    >>> ranks = hg.parallel.world()  # the processes that mpiexec has started, or this one alone
    >>> episodes = [np.full(2, 1.0), np.full(2, 2.0), np.full(2, 3.0)]
    >>> loss = lambda w, x: hg.sum((w - x) ** 2)
    >>> value, grad = hg.parallel.sum_tasks(lambda i: hg.value_and_grad(loss)(np.zeros(2), episodes[i]), 3, ranks)
    >>> value.item(), grad
    (28.0, array([-12., -12.]))
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import operator
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, NamedTuple, TypeVar

import numpy as np

from .backends import CUDA, Array, backend_of, is_on_gpu, place, to_host
from .backends.host import HOST
from .bilevel import Batches, Bilevel, HyperGradient
from .errors import ArgumentError, EndedError, ExtensionError
from .passes import forward as forward_mode
from .passes.schedule import is_count
from .startup import LAUNCHERS
from .transforms import tree_tensors, tree_values
from .trees import PyTree, tree_flatten, tree_leaves, tree_map, tree_unflatten

__all__ = ["ALONE", "Ranks", "forward", "sum_tasks", "world"]

T = TypeVar("T")
START_S = 300  # for all processes to start MPI
PATIENCE_S = 30.0  # for the others, in a process that ends the job
_SPIN_S, _NAP_S = 1e-3, 1e-4  # a process that waits gives its core away after the first, and looks again after each of the second


class _End(NamedTuple):
    """Of a job. Args: status: the exit status; rank: of the process that has ended it, the first one of several."""

    status: int
    rank: int


class Ranks:
    """The processes that share the tasks, each with a number, its rank; by default this process alone.

    Every method but `share` has to be called by all of them, in the same order. Arrays travel through host memory, also those on a GPU;
    after `divide_gpus` sums may go from GPU to GPU.

    Args: comm: a communicator of mpi4py, such as `MPI.COMM_WORLD`; None for this process alone.
    Attributes: comm: the same; rank: 0 to size - 1; size: how many processes there are; by: "NCCL" or "host memory", what sums of arrays on
        GPUs go by.
    """

    def __init__(self, comm: Any = None) -> None:
        self.comm = comm
        self._max = None if comm is None else importlib.import_module("mpi4py.MPI").MAX
        self._request: Any = None  # of a meeting that has not ended
        self._nccl: Any = None  # CuPy's communicator, where each process has a GPU of its own
        self.rank: int = 0 if comm is None else comm.Get_rank()
        self.size: int = 1 if comm is None else comm.Get_size()

    @property
    def by(self) -> str:
        """What sums of arrays on GPUs go by."""
        return "host memory" if self._nccl is None else "NCCL"

    @property
    def waits(self) -> bool:
        """Whether this process has given up waiting for the others, so that an orderly end of MPI is out of reach."""
        return self._request is not None

    def share(self, n_tasks: int, rank: int | None = None) -> range:
        """The tasks of a process, by default of this one: neighbours, and at most one more than any other has.

        Args: n_tasks: tasks 0, ..., n_tasks - 1; rank: of the process. Returns: a range, empty where there are more processes than tasks;
            that of rank 0 never is. Cost: O(1).
        """
        rank = self.rank if rank is None else rank
        return range(-(-n_tasks * rank // self.size), -(-n_tasks * (rank + 1) // self.size))

    def broadcast(self, value: T) -> T:
        """What process 0 passes, in all processes. Args: value: anything that pickle takes; only that of process 0 is read.

        Returns: it; a copy in the other processes, whose CuPy arrays are on their own GPU. Cost: its bytes, log2(size) times one after
            the other.
        """
        if self.size == 1:
            return value
        self._meet()
        found: T = self.comm.bcast(value)
        return found

    def gather(self, values: Sequence[T]) -> list[T]:
        """The values of all processes, those of process 0 first, in all processes. Args: values: what pickle takes, any number.

        Returns: a list. Cost: all bytes go to every process, so the values should be small.
        """
        if self.size == 1:
            return list(values)
        self._meet()
        return [value for each in self.comm.allgather(list(values)) for value in each]

    def sum(self, parts: Sequence[PyTree], n_tasks: int) -> PyTree:
        """The sum of one tree for each task, added up in the order of the tasks.

        Args:
            parts: pytrees of arrays, all of one structure, one for each task of this process's `share`, in that order.
            n_tasks: of all processes.
        Returns: a pytree of arrays, in all processes: ((part 0 + part 1) + part 2) + ..., the same bits for any number of processes.
        Raises: ArgumentError for another number of parts.
        Cost: each process sends its parts once, and the sum once: each adds up one piece of the arrays, and all pieces go to all.
        """
        count = len(self.share(n_tasks))
        if len(parts) != count or n_tasks < 1:
            raise ArgumentError(
                f"parallel: process {self.rank} has {len(parts)} parts of {n_tasks} tasks, expected {count}, one for each task of its "
                "share, and at least one task; pass these"
            )
        trees = [tree_map(_as_array, tree_values(part)) for part in parts]
        if self.size == 1:
            return reduce(lambda a, b: tree_map(operator.iadd, a, b), trees[1:], tree_map(lambda x: x.copy(), trees[0]))
        kinds, spec = (_kinds(trees[0]) if trees else None), (tree_flatten(trees[0])[1] if trees else None)
        if n_tasks < self.size:  # a process without a part does not know what the others have
            kinds, spec = self.broadcast((kinds, spec))
        assert kinds is not None
        direct = self._nccl is not None and all(device == "cuda" for _, _, device in kinds)
        xp = CUDA.xp if direct else np
        rows = [[(leaf if direct else to_host(leaf)).reshape(-1) for leaf in tree_leaves(tree)] for tree in trees]
        sums: list[Any] = [None] * len(kinds)
        for dtype in dict.fromkeys(dtype for _, dtype, _ in kinds):
            chosen = [i for i, kind in enumerate(kinds) if kind[1] == dtype]
            ends = np.cumsum([0, *(int(np.prod(kinds[i][0])) for i in chosen)])
            stacked = xp.empty((len(rows), int(ends[-1])), dtype)
            for row, leaves in zip(stacked, rows, strict=True):
                for i, start, stop in zip(chosen, ends, ends[1:], strict=False):
                    row[start:stop] = leaves[i]
            total = self._sum_rows_on_gpus(stacked, n_tasks) if direct else self._sum_rows(stacked, n_tasks)
            for i, start, stop in zip(chosen, ends, ends[1:], strict=False):
                shape, _, device = kinds[i]
                sums[i] = place(total[start:stop].reshape(shape).copy(), device)
        return tree_unflatten(spec, sums)

    def _sum_rows(self, rows: Array, n_tasks: int) -> Array:
        """The sum over the rows (tasks of this process, elements) of all processes: each process adds up a range of elements."""
        n = rows.shape[1]
        bounds = [n * r // self.size for r in range(self.size + 1)]
        lengths = np.diff(bounds)
        pieces = np.concatenate([rows[:, a:b].reshape(-1) for a, b in zip(bounds, bounds[1:], strict=False)])
        mine = int(lengths[self.rank])
        received = np.empty((n_tasks, mine), rows.dtype)  # in the order of the tasks, since shares are in the order of the ranks
        self._meet()
        counts = [len(self.share(n_tasks, r)) * mine for r in range(self.size)]
        _until(self.comm.Ialltoallv([pieces, (lengths * len(rows)).tolist()], [received, counts]))
        total = received[0].copy()
        for row in received[1:]:
            total += row
        whole = np.empty(n, rows.dtype)
        _until(self.comm.Iallgatherv(total, [whole, lengths.tolist()]))
        return whole

    def _sum_rows_on_gpus(self, rows: Array, n_tasks: int) -> Array:
        """As `_sum_rows`, from GPU to GPU. NCCL only carries the bytes: its own sums would depend on the number of processes."""
        xp, n = CUDA.xp, rows.shape[1]
        nccl, stream = importlib.import_module("cupy.cuda.nccl"), xp.cuda.get_current_stream().ptr
        shares = [self.share(n_tasks, r) for r in range(self.size)]
        length = -(-n // self.size)  # of a process's range; the last ones are filled up
        filled = xp.zeros((len(rows), self.size * length), rows.dtype)
        filled[:, :n] = rows
        pieces = xp.ascontiguousarray(filled.reshape(len(rows), self.size, length).transpose(1, 0, 2))
        received = xp.empty((n_tasks, length), rows.dtype)
        self._meet()
        nccl.groupStart()
        for r, share in enumerate(shares):
            if len(rows):
                self._nccl.send(pieces[r].data.ptr, pieces[r].nbytes, nccl.NCCL_UINT8, r, stream)
            if share:
                arriving = received[share.start : share.stop]
                self._nccl.recv(arriving.data.ptr, arriving.nbytes, nccl.NCCL_UINT8, r, stream)
        nccl.groupEnd()
        total = received[0].copy()
        for row in received[1:]:
            total += row
        whole = xp.empty(self.size * length, rows.dtype)
        self._nccl.allGather(total.data.ptr, whole.data.ptr, total.nbytes, nccl.NCCL_UINT8, stream)
        return whole[:n]

    def _meet(self) -> None:
        """Wait until all processes are here, so that what follows takes no longer than its data.

        MPI's own waiting takes a whole core, and holds an interrupt back.
        """
        self._arrive(0)
        if ended := self._wait(math.inf):
            raise EndedError(f"parallel: process {ended.rank} has ended the job, expected it to take part; see what it says", ended.status)

    def end(self, status: int) -> bool:
        """End the job with an error: every other process raises EndedError in the next method that it calls.

        Args: status: the exit status, 1 to 255. Returns: whether this process is the one to say what has happened, if several end the job.
        Cost: that of what the others are doing; after `PATIENCE_S` they are waited for no longer.
        """
        if self.size == 1:
            return True
        if self._nccl is not None:
            self._nccl.abort()  # its destructor would wait for the others
        if self._request is not None and (ended := self._wait(PATIENCE_S)):  # an error has struck while this process waited
            return False
        if self._request is None:
            self._arrive(status)
            ended = self._wait(PATIENCE_S)
        return ended is None or ended.rank == self.rank

    def _arrive(self, status: int) -> None:
        """Tell the others that this process is here, and whether it ends the job."""
        news = np.array([status * self.size + self.size - 1 - self.rank if status else 0], np.int64)
        self._heard = np.zeros_like(news)
        self._request = self.comm.Iallreduce(news, self._heard, op=self._max)
        self._news = news  # kept until it has been read

    def _wait(self, seconds: float) -> _End | None:
        """Until all are here, or for so long. Returns: who ends the job, if somebody does."""
        if not _until(self._request, seconds):
            return None
        self._request = None
        heard = int(self._heard[0])
        return _End(heard // self.size, self.size - 1 - heard % self.size) if heard else None

    def divide_cores(self) -> None:
        """Give the processes that share cores the same number of threads each for the kernels, unless HYPERGRAD_NUM_THREADS says how many.

        Results do not depend on it. Cost: one message.
        """
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
        home = (platform.node(), tuple(cores))
        beside = self.gather([home]).count(home)
        if self.size > 1 and not os.environ.get("HYPERGRAD_NUM_THREADS"):
            HOST.set_threads(max(1, len(cores) // beside))

    def divide_gpus(self) -> None:
        """Let the processes of a machine use its GPUs in turn. Where each has one of its own, and CuPy finds NCCL, `sum` goes by that.

        Results do not depend on it; `by` says what has come of it. Before it no array may lie on a GPU but the first.
        Raises: DeviceError without CuPy, driver or GPU. Cost: three messages, and the start of NCCL, some seconds.
        """
        if self.size == 1:
            return
        cuda, nodes = CUDA.xp.cuda, self.gather([platform.node()])
        cuda.Device(nodes[: self.rank].count(platform.node()) % CUDA.device_count()).use()
        nccl = importlib.import_module("cupy.cuda.nccl")
        found = self.gather([(platform.node(), cuda.Device().pci_bus_id, nccl.available)])
        if len({place[:2] for place in found}) == self.size and all(available for *_, available in found):
            identity = self.broadcast(nccl.get_unique_id() if self.rank == 0 else None)
            self._nccl = nccl.NcclCommunicator(self.size, identity, self.rank)


ALONE = Ranks()  # one process without others


def world() -> Ranks:
    """All processes that an MPI launcher (mpiexec, srun) has started, or this one alone where none has.

    Returns: Ranks. Raises: ExtensionError without mpi4py or with one for another MPI than the launcher's.
    Cost: the first call imports mpi4py, which starts MPI.
    """
    launcher = next((name for name in LAUNCHERS if name in os.environ), None)
    if launcher is None:
        return ALONE
    remedy = "pip install mpi4py mpich, and take the mpiexec that comes with it"
    if importlib.util.find_spec("mpi4py") is None:
        raise ExtensionError(f"parallel: mpi4py is not installed, expected it because mpiexec has started this process; {remedy}")
    try:
        with _alarm(START_S):
            comm = importlib.import_module("mpi4py.MPI").COMM_WORLD
    except (ImportError, RuntimeError) as error:
        raise ExtensionError(f"parallel: mpi4py finds no MPI library ({error}), expected one; {remedy}") from error
    wanted = os.environ.get(LAUNCHERS[launcher], "")
    if wanted.isdecimal() and int(wanted) != comm.Get_size():
        raise ExtensionError(
            f"parallel: mpi4py sees {comm.Get_size()} processes, expected {wanted} because the launcher has started so many; "
            f"it belongs to another MPI: {remedy}"
        )
    return Ranks(comm)


@contextlib.contextmanager
def _alarm(seconds: int) -> Iterator[None]:
    """End the process where the block takes longer, also inside of a library: MPI's start waits for processes that have ended before it."""
    here = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    if here:
        signal.alarm(seconds)
    try:
        yield
    finally:
        if here:
            signal.alarm(0)


def sum_tasks(task: Callable[[int], PyTree], n_tasks: int, ranks: Ranks) -> PyTree:
    """The sum of task(0), ..., task(n_tasks - 1), each computed by one of the processes.

    Args: task: gives a pytree of arrays for a number, such as an episode's loss and gradient; always of the same structure, and the same
        in every process. n_tasks: >= 1; ranks: the processes.
    Returns: ((task(0) + task(1)) + task(2)) + ..., in all processes, the same bits for any number of them.
    Raises: what a task raises. Cost: n_tasks / ranks.size tasks, and that of `Ranks.sum`.
    """
    return ranks.sum([task(i) for i in ranks.share(n_tasks)], n_tasks)


def forward(
    problem: Bilevel, hparams: PyTree, batches: Batches, ranks: Ranks, *, directions: int = forward_mode.DIRECTIONS, **options: Any
) -> HyperGradient:
    """`hypergrad.forward` whose blocks of directions are spread over the processes.

    Args:
        problem, hparams, batches: as in `hypergrad.forward`, the same in every process.
        ranks: the processes.
        directions: in a block, >= 1. The bits may depend on it, but not on the number of processes. With N hyperparameters there are
            N / directions blocks to spread, so it should be N / ranks.size or less.
        options: outer_batch, state and first_order of `hypergrad.forward`.
    Returns: a HyperGradient, in all processes. Its `stats` are those of process 0.
    Raises: as `hypergrad.forward`.
    Memory: that of `hypergrad.forward` with as many directions. Time: its number of blocks / ranks.size runs of T steps, rounded up.
    """
    if not is_count(directions):
        raise ArgumentError(f"forward: directions has {directions!r}, expected an integer >= 1; pass for instance 8")
    leaves, spec = tree_flatten(tree_tensors(hparams, "forward", "hparams"))
    count = sum(x.size for x in leaves)
    found: list[HyperGradient] = []
    for i in ranks.share(max(1, -(-count // directions))):
        seeds = forward_mode.units(leaves, i * directions, min((i + 1) * directions, count))
        along = tree_unflatten(spec, [None if v is None else v.value for v in seeds])
        found.append(forward_mode.forward(problem, hparams, batches, along=along, directions=directions, **options))
    slopes = ranks.gather([to_host(r.grad) for r in found])
    r = ranks.broadcast(found[0] if found else None)
    assert r is not None
    xp = backend_of(r.value).xp
    return replace(r, grad=tree_values(tree_unflatten(spec, forward_mode.split(leaves, xp.asarray(np.concatenate(slopes))))))


def _until(request: Any, seconds: float = math.inf) -> bool:
    """Wait for a request of MPI, and leave the core to others. Returns: whether it has ended within so many seconds."""
    begun = time.monotonic()
    while not request.Test():
        waited = time.monotonic() - begun
        if waited > seconds:
            return False
        if waited > _SPIN_S:
            time.sleep(_NAP_S)
    return True


def _as_array(x: Any) -> Array:
    return x if is_on_gpu(x) else np.asarray(x)


def _kinds(tree: PyTree) -> list[tuple[tuple[int, ...], Any, str]]:
    """Shape, dtype and device of the leaves."""
    return [(leaf.shape, np.dtype(leaf.dtype), "cuda" if is_on_gpu(leaf) else "cpu") for leaf in tree_leaves(tree)]
