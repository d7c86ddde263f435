"""Sums and a gradient by forward mode that several processes compute; run as a program, under mpiexec."""

import json
import sys

import numpy as np
import pretended
import pretended_nccl
import pytest

import hypergrad as hg
from hypergrad import parallel
from hypergrad.cli import app
from hypergrad.errors import EndedError


def task(i):
    """Numbers of very different sizes, so that the order of a sum shows in its bits."""
    rng = np.random.default_rng(i)
    scale = 10.0 ** rng.integers(-4, 5)
    return {"a": scale * rng.standard_normal((3, 5)), "b": (np.float32(rng.standard_normal()), np.asarray(i)), "c": scale * rng.random(2)}


def problem():
    x, y = np.random.default_rng(0).standard_normal((30, 6)), np.arange(30) % 3
    loss = lambda w: hg.mean(hg.softmax_cross_entropy(x @ w, y))  # noqa: E731
    return hg.Bilevel(
        lambda w, h, _: loss(w) + hg.sum(hg.exp(h["l2"])[:, None] * w * w),
        lambda w, h: loss(w),
        lambda h: np.zeros((6, 3)),
        lambda h: hg.SGD(lr=h["lr"], momentum=h["momentum"]),
    ), {"l2": np.full(6, -3.0), "lr": np.array(0.1), "momentum": np.array(0.5)}


def bits(tree):
    return b"".join(np.ascontiguousarray(x).tobytes() for x in parallel.tree_leaves(tree)).hex()


def computed(ranks):
    """Sums of more and fewer tasks than processes, and a gradient by forward mode in blocks of directions."""
    sums = [bits(parallel.sum_tasks(task, n, ranks)) for n in (1, 2, 11)]
    r = parallel.forward(*problem(), hg.full_batch(None, 5), ranks, directions=3)
    return [*sums, bits((r.grad, r.value, r.params))]


def on_gpus(ranks, gpus):
    """The same sums of arrays on so many pretended GPUs: what they went by, how, whether through the host, and their bits."""
    with pytest.MonkeyPatch.context() as patch, pretended.gpu(patch) as machine:
        calls, xp = pretended_nccl.install(patch, ranks.comm, gpus), parallel.CUDA.xp
        ranks.divide_gpus()
        found = []
        for n in (1, 2, 11):
            tasks = [parallel.tree_map(xp.asarray, task(i)) for i in ranks.share(n)]
            before = machine.waits
            total = ranks.sum(tasks, n)
            crossed = machine.waits > before
            assert all(isinstance(x, xp.ndarray) for x in parallel.tree_leaves(total))
            found.append((ranks.by, calls[:], crossed, bits(parallel.tree_map(xp.asnumpy, total))))
            calls.clear()
        return found


def command_on_gpus(args):
    """The command `hypergrad`, each process on a pretended GPU of its own."""
    with pytest.MonkeyPatch.context() as patch, pretended.gpu(patch):
        ranks = parallel.world()
        pretended_nccl.install(patch, ranks.comm, ranks.size)
        app(args)


def main():
    """Print it once, then end the job as the last process does that meets an error."""
    ranks = parallel.world()
    ranks.divide_cores()
    found = ranks.gather([on_gpus(ranks, int(sys.argv[1]))]) if len(sys.argv) > 1 else computed(ranks)
    assert ranks.gather([str(ranks.rank)]) == [*map(str, range(ranks.size))]
    if ranks.rank == 0:
        print(json.dumps(found))
    if ranks.rank == ranks.size - 1:
        assert ranks.end(7)
        assert ranks.by == "host memory" or ranks._nccl.aborted
        return
    with pytest.raises(EndedError, match=f"process {ranks.size - 1} has ended the job") as caught:
        ranks.broadcast(None)
    assert caught.value.status == 7


if __name__ == "__main__":
    command_on_gpus(sys.argv[1:]) if sys.argv[1:2] == ["train"] else main()
