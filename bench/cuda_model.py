"""A model of how long each kernel of the captured meta-steps takes on a GPU, from its grid, occupancy, instructions, bytes and latencies.

    python bench/cuda_model.py                     # predicted times on an H200, kernel by kernel; needs the emulator, no GPU
    python bench/cuda_model.py --gpu A100
    python bench/cuda_model.py --update            # writes bench/results/cuda_model.json

A kernel takes the longer of its arithmetic and its bytes, and its warps' serial waits for memory once a wave of blocks. Arithmetic is
issued at the share of multiply-adds among a kernel's instructions, and at that of the warps which a multiprocessor holds, for three a
scheduler hide each other's latencies. The constants are estimates until a GPU corrects them: bench/gpu.py prints what it measures beside
this model's figures.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import graph_nodes
from meta_problems import PROBLEMS, Sizes
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "bench" / "results" / "cuda_model.json"
RESOURCES = ROOT / "bench" / "results" / "cuda_resources.json"
ROUND_TRIP = 0.5e-6  # seconds from a load to the next one that depends on it: L2, partly overlapped
HIDING = 3.0  # warps of a scheduler that hide each other's latencies
SHORT = 5e-6  # seconds up to which a kernel may leave multiprocessors idle


@dataclass(frozen=True)
class Gpu:
    """A GPU. `fma` and `fma64`: multiply-adds of a multiprocessor in a cycle; `node`: seconds between two nodes of a graph."""

    multiprocessors: int
    clock: float
    bandwidth: float
    arch: str
    fma: int = 128
    fma64: int = 64
    threads: int = 2048
    shared: int = 228 << 10
    node: float = 1.3e-6


GPUS = {
    "H200": Gpu(132, 1.75e9, 4.3e12, "sm_90"),
    "H100": Gpu(132, 1.75e9, 3.0e12, "sm_90"),
    "A100": Gpu(108, 1.41e9, 1.8e12, "sm_80", fma=64, fma64=32, shared=164 << 10, node=1.8e-6),
}


class Work(NamedTuple):
    """What all blocks of a launch do together: multiply-adds; and what each warp waits for, one after the other.

    Attributes:
        fma: multiply-adds.
        rounds: round trips to memory of a warp.
        issue: share of the issued instructions that are these multiply-adds.
        kernel: how the kernel's name begins in the table of resources, for its registers.
        double: whether the arithmetic is float64.
        last: round trips of the last block, which closes the sums of all.
    """

    fma: float = 0.0
    rounds: float = 2.0
    issue: float = 0.3
    kernel: str = ""
    double: bool = False
    last: float = 0.0


def _dims(node: Any) -> dict[str, int]:
    """Axes of a block's call: E, N, H, W, C, K, and P directions."""
    arrays = node.arrays
    if len(arrays["x"]) != 5:  # features of a head
        return {}
    e, n, h, w, c = arrays["x"]
    dots = [arrays[name] for name in ("y_dot", "w_bar_dot", "y_bar_dot") if arrays.get(name)]
    k = arrays["w"][-1] if "w" in arrays else 1
    counts = {"pixels": e * n * h * w, "windows": n * (h // 2) * (w // 2)}  # of all episodes, of one
    return {"E": e, "N": n, "H": h, "W": w, "C": c, "K": k, "P": dots[0][0] if dots else 1, **counts}


def _by_winograd(inputs: int, outputs: int) -> bool:
    """As csrc/cuda/winograd.h."""
    return inputs >= 16 and inputs % 8 == 0 and outputs > 0 and outputs % 32 == 0


def _share(useful: float, each: float, n: float, once: float) -> float:
    """Of multiply-adds among a thread's instructions, counted in sm_90 code: `useful` among `each` in a loop of n, and `once` around it."""
    return useful * n / (each * n + once)


def _convolution(source: str) -> Callable[[Any, dict[str, int]], Work]:
    """A 3x3 convolution; two terms where both factors carry tangents. A cotangent is formed while it is loaded."""

    def work(node: Any, d: dict[str, int]) -> Work:
        given = [node.arrays.get(name) for name in ("x_dot", "w_dot")]
        terms = sum(g is not None for g in given) if "jvp" in node.call and source == "Images" else 1 + (given[1] is not None)
        inputs, outputs = (d["C"], d["K"]) if source == "Images" else (d["K"], d["C"])
        chunks = math.ceil(inputs / 8)
        if _by_winograd(inputs, outputs):  # 16 products of 32 windows by 32 filters; a chunk is loaded while the one before is multiplied
            n = chunks * terms
            issue = _share(512, 960 if source == "Images" else 1130, n, 1100)
            closing = 0 if source == "Cotangent" else 2 + node.blocks / (d["E"] * d["P"] * math.ceil(outputs / 32)) / 64
            return Work(node.blocks * 16.0 * 32 * 32 * inputs * terms, 1 + n, issue, "winograd3x3<", last=closing)
        issue = {"Images": 0.6, "Cotangent": 0.5}[source]
        return Work(d["P"] * d["pixels"] * 9.0 * d["C"] * d["K"] * terms, 2 * chunks * terms, issue, "conv3x3<float")

    return work


def _wgrad(node: Any, d: dict[str, int]) -> Work:
    terms = 2 if node.arrays.get("x_dot") else 1
    return Work(d["P"] * d["pixels"] * 9.0 * d["C"] * d["K"] * terms, 3 * terms, 0.45, "wgrad3x3<float")


def _winograd_wgrad(node: Any, d: dict[str, int]) -> Work:
    """16 products of 32 channels by 32 filters at each window, 8 windows at a time."""
    chunks = math.ceil(_wgrad_windows(d) / 8)
    n = chunks * (2 if node.arrays.get("x_dot") else 1)
    return Work(node.blocks * 8 * n * 16.0 * 32 * 32, 1 + n, _share(512, 1150, n, 1600), "winograd_wgrad3x3<")


def _wgrad_windows(d: dict[str, int]) -> int:
    """Windows of a part, as csrc/cuda/winograd_wgrad.h cuts them."""
    columns = d["E"] * d["P"] * math.ceil(d["C"] / 32) * math.ceil(d["K"] / 32)
    return min(256, 8 * math.ceil(math.ceil(_windows(d) / max(1, 264 // columns)) / 8))


def _windows(d: dict[str, int]) -> int:
    """Of an episode, those that hang over the edge as well."""
    return d["N"] * math.ceil(d["H"] / 2) * math.ceil(d["W"] / 2)


def _patch_products(node: Any, d: dict[str, int]) -> Work:
    """27 x 27 / 3 pairs of taps at each pixel: tap row 0 with all three, of which a thread has one at a row of pixels."""
    parts, groups = node.blocks // d["E"], math.ceil(d["N"] * (d["H"] + 2) / 128)
    columns = math.ceil(d["W"] * groups / parts)
    rounds = 4 + math.ceil(columns / 28) + 2 * math.ceil(parts / 16)
    return Work(node.blocks * 384.0 * 81 * columns, rounds, _share(81, 140, columns, 1300), "patch_products<float, 3")


def _parts(node: Any, d: dict[str, int]) -> int:
    """Blocks of an entry and its filters."""
    return max(1, node.blocks // (d["E"] * d["P"] * math.ceil(d["K"] / 32)))


def _reduce(node: Any, d: dict[str, int]) -> Work:
    parts = _parts(node, d)
    return Work(rounds=2 * math.ceil(d["windows"] / parts / 32) + 2 + parts / 8)


def _close_first(node: Any, d: dict[str, int]) -> Work:
    tiles = math.ceil(d["N"] * d["H"] * d["W"] / 1024)
    tiles = tiles if tiles <= 64 else 1
    return Work(rounds=(1 + (node.arrays.get("y_bar_dot") is not None)) * math.ceil(tiles / 4) + 15, double=True)


WORK: dict[str, Callable[[Any, dict[str, int]], Work]] = {
    "conv_statistics": _convolution("Images"),
    "conv_moments": _convolution("Images"),
    "conv_pool": lambda node, d: Work(d["pixels"] * 9.0 * d["C"] * d["K"], 3, 0.5, "conv3x3<float"),
    "conv_pool_dot": lambda node, d: Work(d["P"] * d["pixels"] * 9.0 * d["C"] * d["K"], 3, 0.5, "conv3x3<float"),
    "conv_cotangent": _convolution("Cotangent"),
    "wgrad3x3": _wgrad,
    "winograd_wgrad3x3": _winograd_wgrad,
    "reduce_winners": _reduce,
    "gather_winners": lambda node, d: Work(d["windows"] * d["E"] * 27.0 * d["K"], 16 + 2, 0.2, "gather_winners<float"),
    "close_first": _close_first,
    "first_statistics": lambda node, d: Work(rounds=12, double=True),
    "combine_filters": lambda node, d: Work(rounds=14, double=True),
    "merge_parts": lambda node, d: Work(rounds=2 + d["N"] * d["H"] * d["W"] / 1024 / 64),
    "tap_sums": lambda node, d: Work(9.0 * d["pixels"] * d["C"], d["pixels"] / node.blocks / 256 * d["C"] + 6, 0.4, double=True),
    "patch_products": _patch_products,
    "sum_parts": lambda node, d: Work(rounds=2 + _parts_of_wgrad(d) / 8),
    "bn_relu_pool": lambda node, d: Work(rounds=3),
    "pool_dot": lambda node, d: Work(rounds=4),
}


def _parts_of_wgrad(d: dict[str, int]) -> float:
    if _by_winograd(d["C"], d["K"]) and _by_winograd(d["K"], d["C"]):
        return math.ceil(_windows(d) / _wgrad_windows(d))
    return max(1.0, d["N"] * d["H"] * d["W"] / 128 / max(1, d["N"] // 20))


def _head(node: Any, pairs: Callable[[int, int], int]) -> Work:
    """A head's steps, a block an episode: its warps form the products of pairs over the features; then one phase follows another."""
    (e, n, size), k, steps = node.arrays["x"], node.arrays["w"][-1], node.arrays["residual"][1]
    products = math.ceil(pairs(n, k) / (node.threads / 32))
    first, later = math.ceil(size / 256), 0.1 * math.ceil(size / 256) + 0.5  # the first product loads the features from beyond L1
    rounds = first + products * later + 1.5 * steps + 0.1 * math.ceil(size * k / node.threads) + 2
    return Work(e * size * (pairs(n, k) + n * (n + 2 * k)), rounds, 0.2, "")


WORK["descend_head"] = lambda node, d: _head(node, lambda n, k: n * (n + 1) // 2 + n * k)
WORK["pull_head"] = lambda node, d: _head(node, lambda n, k: n * k)

OTHERS = {  # round trips of kernels that wait for memory and do little else
    "head_value": 8.0,
    "head_jvp": 14.0,
    "head_bars": 6.0,
    "head_logits_bar_dot": 3.0,
    "step_value": 3.0,
    "step_jvp": 3.0,
    "step_vjp": 5.0,
    "add_leaves": 3.0,
}


class Model:
    """Times of nodes on one GPU.

    Args:
        gpu: a name of GPUS.
    """

    def __init__(self, gpu: str) -> None:
        self.gpu = GPUS[gpu]
        self.registers: dict[str, int] = {}
        for name, figures in json.loads(RESOURCES.read_text())["kernels"][self.gpu.arch].items():
            source, _, kernel = name.partition(": ")
            self.registers[f"{source} {kernel}"] = figures["registers"]

    def seconds(self, node: Any) -> float:
        """Of a node, with the pause before it."""
        gpu = self.gpu
        n_bytes = _bytes_of(node)
        if not node.call:
            return gpu.node + 2 * ROUND_TRIP + n_bytes / gpu.bandwidth
        work = WORK[node.name](node, _dims(node)) if node.name in WORK else Work(rounds=OTHERS[node.name])
        resident = min(
            gpu.threads // node.threads, 65536 // (self._registers(node, work) * node.threads), gpu.shared // (node.shared + 1024)
        )
        own = math.ceil(node.blocks / gpu.multiprocessors)  # blocks of the busiest multiprocessor
        together = max(1, min(resident, own))
        warps = together * node.threads / 128  # of a scheduler
        rate = (gpu.fma64 if work.double else gpu.fma) * gpu.clock * work.issue * min(1.0, warps / HIDING)
        arithmetic = own * work.fma / max(1, node.blocks) / rate
        waiting = (math.ceil(own / together) * work.rounds + work.last) * ROUND_TRIP
        return gpu.node + max(arithmetic, n_bytes / gpu.bandwidth) + waiting

    def _registers(self, node: Any, work: Work) -> int:
        source = node.call.removesuffix("_jvp") if node.call.endswith("_vjp_jvp") else node.call.replace("first_jvp", "first_value")
        found = [n for name, n in self.registers.items() if work.kernel and name.startswith(f"{source} {work.kernel}")]
        return max(found, default=48)


TOUCHED = {  # arrays of a call that a kernel of several reads or writes, where it is not all of them
    "reduce_winners": ("y_bar", "y_bar_dot", "code", "z", "z_dot"),
    "bn_relu_pool": ("z", "y", "code"),
    "pool_dot": ("z", "z_dot", "code", "y_dot"),
}


def _bytes_of(node: Any) -> float:
    """Bytes that the node reads and writes: all arrays of its call or those TOUCHED, but for kernels that close sums, which are small."""
    if not node.call:
        return float(sum(n for _, n in node.arrays.values()))
    if node.name in ("sum_parts", "close_first", "first_statistics", "combine_filters", "merge_parts", "head_logits_bar_dot"):
        return 0.0
    total = 0.0
    for name, row in node.arrays.items():
        if name in TOUCHED.get(node.name, (name,)):
            size = 1.0 if name == "code" else 4.0
            total += size * sum(math.prod(shape) for shape in (row if isinstance(row, list) else [row]) if isinstance(shape, tuple))
    return total


def rows_of(problem: str, gpu: str) -> list[dict[str, Any]]:
    """The nodes of a problem's captured meta-step at full size: kernel, grid, count and seconds of one."""
    model, rows = Model(gpu), {}
    for node in graph_nodes.recorded(problem, Sizes()):
        seconds = model.seconds(node)
        key = node.call or "CuPy", node.name, node.blocks, round(seconds * 1e8)
        row = rows.setdefault(key, {"call": key[0], "kernel": key[1], "blocks": key[2], "count": 0, "seconds": float(f"{seconds:.3g}")})
        row["count"] += 1
    return list(rows.values())


def idle(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Kernels that take more than SHORT and leave multiprocessors of an H100 or H200 without a block."""
    return [row for row in rows if 0 < row["blocks"] < GPUS["H200"].multiprocessors and row["seconds"] > SHORT]


def predictions(gpu: str) -> dict[str, Any]:
    """Of both problems: the rows, and their sums."""
    out = {}
    for problem in PROBLEMS:
        rows = rows_of(problem, gpu)
        out[problem] = {
            "nodes": sum(row["count"] for row in rows),
            "seconds": float(f"{sum(row['count'] * row['seconds'] for row in rows):.3g}"),
            "rows": rows,
        }
    return out


def main(arguments: list[str] | None = None) -> int:
    """Print, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", choices=GPUS, default="H200")
    parser.add_argument("--update", action="store_true", help="write the table for all GPUs")
    options = parser.parse_args(arguments)
    console = Console(width=120)
    if options.update:
        all_of_them = {gpu: predictions(gpu) for gpu in GPUS}
        TABLE.write_text(json.dumps(all_of_them, indent=1).replace("{\n     ", "{").replace("\n     ", " ").replace("\n    }", "}") + "\n")
        console.print(f"written: {TABLE}")
    for problem, found in predictions(options.gpu).items():
        table = Table(title=f"{problem} on {options.gpu}: {found['nodes']} nodes, {found['seconds'] * 1e3:.2f} ms", title_justify="left")
        for heading in ("kernel", "of", "blocks", "count", "µs", "µs in all"):
            table.add_column(heading, justify="left" if heading in ("kernel", "of") else "right")
        for row in sorted(found["rows"], key=lambda row: -float(row["count"]) * float(row["seconds"])):
            each = row["seconds"] * 1e6
            mark = " idle" if row in idle(found["rows"]) else ""
            table.add_row(
                row["kernel"] + mark, row["call"], str(row["blocks"]), str(row["count"]), f"{each:.1f}", f"{each * row['count']:.0f}"
            )
        console.print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
