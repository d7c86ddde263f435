"""Every kernel's time at the sizes of the meta-step against its floor: operations and bytes over the rates of ceilings.cu.

    python bench/kernel_times.py [--device cuda] [--ceilings FILE]   # one line of JSON a kernel and block

A floor counts what the kernel must do: multiply-adds as two operations, and every argument read or written once. On a GPU
the launches are captured in a graph, so that neither Python nor the launches are timed; buffers of the later blocks
(42x42 images and smaller) fit in part in the L2 cache, as they do in a meta-step, so their bytes are no strict floor.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from meta_problems import EPS, TINY, Sizes

from hypergrad.backends.cuda import CUDA
from hypergrad.backends.host import HOST
from hypergrad.rules import PRECISIONS

REPEATS = 7
RUNGS = ("value", "jvp", "vjp", "vjp_jvp")  # in an order in which each finds what the ones before saved
Dims = dict[str, Any]  # of an axis letter its length, of ~ the shapes of the leaves
Row = dict[str, Any]


def family_of(kernel: str) -> str:
    """The name without its rung."""
    for rung in sorted(RUNGS, key=len, reverse=True):
        if kernel.endswith(f"_{rung}"):
            return kernel.removesuffix(f"_{rung}")
    return kernel


def dims_of(family: str, sizes: Sizes) -> list[Dims]:
    """The axes' lengths at which a family of kernels is timed: the query images of a meta-batch, block by block."""
    e, n, k = sizes.episodes, sizes.ways * sizes.queries, sizes.filters
    blocks = [(sizes.side >> i, sizes.channels if i == 0 else k) for i in range(sizes.blocks)]
    images = [{"E": e, "N": n, "H": side, "W": side, "C": c, "K": k} for side, c in blocks]
    if family == "conv_bn_relu_pool":
        return [{**d, "h": d["H"] // 2, "w": d["W"] // 2, "P": 1} for d in images[1:]]
    if family in ("conv_bn_relu_pool_first", "patch_cov"):
        return [{**d, "h": d["H"] // 2, "w": d["W"] // 2, "g": 9 * d["C"], "P": 1} for d in images[:1]]
    if family.startswith("conv2d_"):
        return [{**d, "A": 1, "B": e, "R": 3, "S": 3, "P": d["H"], "Q": d["W"]} for d in images]
    if family == "batch_norm":
        return [{"E": e, "M": n * d["H"] * d["W"], "K": k, "P": 1} for d in images]
    if family == "max_pool":
        return [{"E": e * n, "H": d["H"], "W": d["W"], "K": k, "Q": d["H"] // 2, "R": d["W"] // 2, "P": 1} for d in images]
    if family == "linear_cross_entropy":
        return [{"E": e, "N": n, "D": sizes.features, "K": sizes.ways, "P": 1}]
    if family == "linear_head_descent":
        return [{"E": e, "N": sizes.ways * sizes.shots, "D": sizes.features, "K": sizes.ways, "T": sizes.steps}]
    if family == "matmul":
        return [{"A": 1, "B": e, "M": n, "K": sizes.features, "N": sizes.ways}]
    if family == "gather_images":
        return [{**d, "M": e * n} for d in images[:1]]
    if family.endswith(("_step", "_leaves")) or family.startswith("sgd_"):
        filters = [shape for _, c in blocks for shape in ((3, 3, c, k), (k,), (k,))]
        leaves = [*filters, (sizes.features, sizes.ways), (sizes.ways,)]
        return [{"~": leaves, "n": len(leaves), "P": 1, "Q": 1, "B": sum(int(np.prod(shape)) for shape in leaves)}]
    return [{**d, "A": 1, "B": e, "P": 1, "D": sizes.features, "M": n * d["H"] * d["W"]} for d in images]


def operations(kernel: str, d: Dims) -> float:
    """Floating-point operations that the formulas need; 0 for kernels that bytes alone bound.

    A gradient that is zero off the pooled winners counts those alone.
    """
    family = family_of(kernel)
    rung = kernel.removeprefix(f"{family}_")
    if family == "linear_cross_entropy":
        return 2.0 * d["E"] * d["N"] * d["D"] * d["K"] * {"value": 1, "vjp": 2, "jvp": 2, "vjp_jvp": 4}[rung]
    if family == "linear_head_descent":  # the products over features, and those of the steps
        products = d["D"] * (d["N"] + 4 * d["K"]) if rung == "value" else 2 * d["D"] * (d["N"] + 4 * d["K"])
        return float(d["E"] * d["N"] * (products + 2 * d["T"] * d["N"] * d["K"] * (1 if rung == "value" else 3)))
    if family == "matmul":
        return 2.0 * d["A"] * d["B"] * d["M"] * d["K"] * d["N"]
    if family not in ("patch_cov", "conv_bn_relu_pool_first", "conv_bn_relu_pool") and not family.startswith("conv2d_"):
        return 0.0
    pixels = float(d["E"] * d["N"] * d["H"] * d["W"])
    if kernel == "patch_cov":
        return pixels * d["g"] * (d["g"] + 1)  # half of a symmetric matrix
    conv = 18.0 * pixels * d["C"] * d["K"]
    if family == "conv_bn_relu_pool_first":
        winners = 18.0 * d["E"] * d["N"] * d["h"] * d["w"] * d["C"] * d["K"]
        return {"value": conv, "vjp": winners, "jvp": winners, "vjp_jvp": 2 * winners}[rung]
    return conv * {"value": 1, "vjp": 2, "jvp": 2, "vjp_jvp": 4}.get(rung, 1)


class Timer:
    """Runs kernels on one device and times them."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device == "cuda"
        self.backend: Any = CUDA if self.on_gpu else HOST
        self.xp = self.backend.xp
        self.rng = np.random.default_rng(0)

    def array(self, name: str, shape: tuple[int, ...], classes: int) -> Any:
        """Random float32 numbers (second moments positive), labels below `classes`, each image's row once, or zeros for bytes, counts."""
        if name in ("code", "images", "packed"):
            return self.xp.zeros(shape, np.uint8)
        if name in ("counts", "begin", "end"):
            return self.xp.zeros(shape, np.int64)
        if name == "index":
            return self.xp.asarray(self.rng.permutation(int(np.prod(shape))).reshape(shape))
        if name == "label":
            return self.xp.asarray(self.rng.integers(0, classes, shape))
        numbers = self.rng.standard_normal(shape, dtype=np.float32)
        return self.xp.asarray(np.abs(numbers) if name == "s" else numbers)

    def seconds(self, run: Callable[[], Any]) -> list[float]:
        """Seconds of one run, REPEATS times."""
        return self._on_gpu(run) if self.on_gpu else self._on_host(run)

    def _on_host(self, run: Callable[[], Any]) -> list[float]:
        run()
        out = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            run()
            out.append(time.perf_counter() - start)
        return out

    def _on_gpu(self, run: Callable[[], Any]) -> list[float]:
        cuda, in_graph = self.xp.cuda, 10
        with cuda.Stream(non_blocking=True) as stream:
            for _ in range(3):  # the pool then has the scratch, which a capture cannot allocate
                run()
            stream.synchronize()
            stream.begin_capture()
            for _ in range(in_graph):
                run()
            graph = stream.end_capture()
            graph.launch(stream)
            out = []
            for _ in range(REPEATS):
                start, stop = cuda.Event(), cuda.Event()
                start.record(stream)
                graph.launch(stream)
                stop.record(stream)
                stop.synchronize()
                out.append(cuda.get_elapsed_time(start, stop) * 1e-3 / in_graph)
        return out


def measure(timer: Timer, sizes: Sizes, ceilings: dict[str, float] | None) -> Iterator[Row]:
    """A row for each kernel and size, on a GPU in every precision that the kernel has."""
    known = timer.backend.kernels()
    for family in dict.fromkeys(family_of(kernel) for kernel in known):
        kernels = [kernel for kernel in (f"{family}_{rung}" for rung in RUNGS) if kernel in known] or [family]
        for dims in dims_of(family, sizes):
            arrays: dict[Any, Any] = {}
            for kernel in kernels:
                mixed = timer.on_gpu and "precision" in known[kernel][2]
                for precision in range(len(PRECISIONS) if mixed else 1):
                    yield _row(timer, kernel, precision, dims, arrays, ceilings)


def shapes_of(axes: str, dims: Dims) -> list[tuple[int, ...] | None]:
    """Shapes of an argument's arrays; None where absent: a step's fields are numbers here."""
    if axes == "n":
        return [None]
    own = tuple(int(axis) if axis.isdigit() else dims[axis] for axis in axes.strip("*~"))
    if not axes.startswith("*"):
        return [own]
    return [(*own, *leaf) if axes.endswith("~") else None for leaf in dims["~"]]


def call_of(timer: Timer, kernel: str, precision: int, dims: Dims, arrays: dict[Any, Any]) -> tuple[dict[str, Any], float]:
    """Arguments by name, and the bytes of all arrays among them. `arrays` keeps those that the next kernels of a family use again."""
    inputs, outputs, attributes = timer.backend.kernels()[kernel]
    given: dict[str, Any] = {}
    for name, axes in (inputs | outputs).items():
        row = []
        for i, shape in enumerate(shapes_of(axes, dims)):
            if shape is not None and (name, i, shape) not in arrays:
                arrays[name, i, shape] = timer.array(name, shape, dims.get("K", 0))
            row.append(None if shape is None else arrays[name, i, shape])
        given[name] = row if axes.startswith("*") else row[0]
    values = {
        "eps": EPS,
        "stride": 1,
        "pad_h": 1,
        "pad_w": 1,
        "precision": precision,
        "size": 2,
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-3,
        "decay": 0.9,
        "nesterov": 0,
        "beta1": 0.9,
        "beta2": 0.999,
        "t": 1,
    }
    used = [a for row in given.values() for a in (row if isinstance(row, list) else [row]) if a is not None]
    return given | {name: values[name] for name in attributes}, float(sum(a.nbytes for a in used))


def _row(timer: Timer, kernel: str, precision: int, dims: Dims, arrays: dict[Any, Any], ceilings: dict[str, float] | None) -> Row:
    call, n_bytes = call_of(timer, kernel, precision, dims, arrays)
    all_seconds = timer.seconds(lambda: timer.backend.run(kernel, **call))
    flop = operations(kernel, dims)
    seconds = statistics.median(all_seconds)
    row: Row = {
        "kernel": kernel,
        "precision": PRECISIONS[precision],
        "dims": dims,
        "seconds": seconds,
        "all_seconds": all_seconds,
        "flop": flop,
        "bytes": n_bytes,
        "flop_per_second": flop / seconds,
        "bytes_per_second": n_bytes / seconds,
    }
    if ceilings is not None:
        by_flop, by_bytes = flop / ceilings["ffma_flop_per_second"], n_bytes / ceilings["copy_bytes_per_second"]
        row |= {
            "floor": max(by_flop, by_bytes),
            "bound": "arithmetic" if by_flop > by_bytes else "memory",
            "of_floor": max(by_flop, by_bytes) / seconds,
            "of_ffma": by_flop / seconds,
        }
    return row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--sizes", choices=("full", "tiny"), default="full")
    parser.add_argument("--ceilings", type=Path, help="JSON that ceilings.cu printed")
    options = parser.parse_args()
    ceilings = json.loads(options.ceilings.read_text()) if options.ceilings else None
    for row in measure(Timer(options.device), Sizes() if options.sizes == "full" else TINY, ceilings):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
