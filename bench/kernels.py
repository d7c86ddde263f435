"""Every host kernel in GFLOP/s and GB/s beside this machine's measured ceilings, and beside another build of the kernels.

    python bench/kernels.py [--other PATH/_host.so] [--threads 2] [--sizes tiny] [--out DIR]

It writes kernels-cpu.jsonl and a roofline plot. With `--other`, both builds run in this process and take turns on the same arrays;
the ratio says how many times faster this package's build is. FLOP are those of the formulas, as if every kernel multiplied directly:
Winograd's algorithm needs fewer, and so passes the ceiling.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from common import environment, write_lines
from kernel_times import RUNGS, Timer, call_of, dims_of, family_of, operations
from meta_problems import TINY, Sizes
from rich.console import Console
from rich.table import Table

from hypergrad import _host
from hypergrad.backends.host import HOST

HERE = Path(__file__).resolve().parent
ROUNDS = 7
Row = dict[str, Any]


class Build:
    """The kernels of another extension file, called as HOST is."""

    def __init__(self, path: Path) -> None:
        spec = importlib.util.spec_from_file_location(f"other.{_host.__name__.rpartition('.')[2]}", path)
        if spec is None or spec.loader is None:
            raise SystemExit(f"--other is {path}, expected an extension file such as build/_host.so")
        self.module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)

    def run(self, name: str, /, **arguments: Any) -> Any:
        """Runs one kernel; outputs are the caller's."""
        return self.module.run(name, arguments, np.empty)


def measured_ceilings(threads: int) -> dict[str, float]:
    """Rates of multiply-adds and copies by so many threads, of a program that the C++ compiler builds."""
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/ceilings"
        flags = ["-O3", "-std=c++17", "-march=native", "-ffp-contract=fast", "-pthread"]
        subprocess.run([os.environ.get("CXX", "c++"), *flags, str(HERE / "ceilings.cpp"), "-o", program], check=True)
        answer = subprocess.run([program, str(threads)], check=True, capture_output=True, text=True).stdout
    ceilings: dict[str, float] = json.loads(answer)
    return ceilings


def measure(sizes: Sizes, other: Build | None, say: Any) -> list[Row]:
    """A row for each kernel and size."""
    timer, known, rows = Timer("cpu"), HOST.kernels(), []
    for family in dict.fromkeys(family_of(kernel) for kernel in known):
        kernels = [kernel for kernel in (f"{family}_{rung}" for rung in RUNGS) if kernel in known] or [family]
        for dims in dims_of(family, sizes):
            arrays: dict[Any, Any] = {}
            for kernel in kernels:
                say(kernel)
                call, n_bytes = call_of(timer, kernel, 0, dims, arrays)
                compared = other is not None and kernel in other.module.kernels()
                builds: dict[str, Any] = {"this": HOST} | ({"other": other} if compared else {})
                seconds: dict[str, list[float]] = {name: [] for name in builds}
                for turn in range(ROUNDS + 1):  # the first warms up
                    for name, build in list(builds.items())[:: 1 if turn % 2 else -1]:
                        start = time.perf_counter()
                        build.run(kernel, **call)
                        if turn:
                            seconds[name].append(time.perf_counter() - start)
                took, flop = statistics.median(seconds["this"]), operations(kernel, dims)
                row: Row = {"kind": "kernel", "kernel": kernel, "dims": dims, "seconds": took, "all_seconds": seconds["this"]}
                row |= {"flop": flop, "bytes": n_bytes, "flop_per_second": flop / took, "bytes_per_second": n_bytes / took}
                if compared:
                    row["other_seconds"] = seconds["other"]
                    row["ratio"] = statistics.median(a / b for a, b in zip(seconds["other"], seconds["this"], strict=True))
                rows.append(row)
    return rows


def table(rows: list[Row], ceilings: dict[str, float]) -> Table:
    """The rows to read."""
    out = Table(title="host kernels: direct FLOP of the formulas, bytes of the arguments")
    for column in ("kernel", "pixels or rows", "ms", "GFLOP/s", "GB/s", "of the bound", "times faster"):
        out.add_column(column, justify="left" if column == "kernel" else "right", no_wrap=column == "kernel")
    for row in rows:
        bound = max(row["flop"] / ceilings["ffma_flop_per_second"], row["bytes"] / ceilings["copy_bytes_per_second"])
        side = row["dims"].get("H", row["dims"].get("M", row["dims"].get("D", "")))
        out.add_row(
            row["kernel"],
            f"{side}",
            f"{1e3 * row['seconds']:.2f}",
            f"{1e-9 * row['flop_per_second']:.0f}" if row["flop"] else "",
            f"{1e-9 * row['bytes_per_second']:.1f}",
            f"{100 * bound / row['seconds']:.0f} %",
            f"{row['ratio']:.2f}" if "ratio" in row else "",
        )
    return out


def plot(rows: list[Row], ceilings: dict[str, float], path: Path) -> None:
    """Operations a second over operations a byte, with the two ceilings."""
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    flop, copy = ceilings["ffma_flop_per_second"], ceilings["copy_bytes_per_second"]
    at = np.geomspace(0.05, 2000, 200)
    axes.loglog(at, np.minimum(flop, copy * at) * 1e-9, "k-", label="multiply-adds and copies, measured")
    counted = [row for row in rows if row["flop"]]
    for family in dict.fromkeys(family_of(row["kernel"]) for row in counted):
        own = [row for row in counted if family_of(row["kernel"]) == family]
        axes.loglog([r["flop"] / r["bytes"] for r in own], [1e-9 * r["flop_per_second"] for r in own], "o", label=family)
    axes.set(xlabel="FLOP a byte of arguments", ylabel="GFLOP/s", title=f"Host kernels on {int(ceilings['threads'])} threads, float32")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path, help="an extension file of another build, to take turns with")
    parser.add_argument("--threads", type=int, default=_host.threads(), help="threads of the kernels (default: all)")
    parser.add_argument("--sizes", choices=("full", "tiny"), default="full")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="where the results go (default: bench/results)")
    options = parser.parse_args(arguments)
    console = Console()
    other = Build(options.other) if options.other else None
    _host.set_threads(options.threads)
    if other is not None:
        other.module.set_threads(options.threads)
    ceilings = measured_ceilings(options.threads)
    with console.status("") as status:
        rows = measure(Sizes() if options.sizes == "full" else TINY, other, status.update)
    console.print(table(rows, ceilings))
    first = environment() | {"kernels": HOST.build_info() | {"threads": options.threads}}
    write_lines(options.out / "kernels-cpu.jsonl", [first, {"kind": "ceilings", **ceilings}, *rows])
    plot(rows, ceilings, options.out / "kernels-cpu.png")


if __name__ == "__main__":
    main()
