"""Time and memory of forward mode and of every reverse policy, over the steps T and over the hyperparameters N.

    python bench/memory_time.py [--quick] [--out DIR] [--mnist ROOT]

The problem is the one by which RFHO checked forward against reverse mode: a network on images of MNIST's size, trained
by gradient descent with momentum. The hyperparameters are the step size, the momentum and a weight for each group of
examples; N is varied by the number of groups. Seconds are medians of runs in alternating order; peak bytes come from
runs of their own, since tracing allocations costs time.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import HERE, environment, synthetic_digits, write_lines
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import hypergrad as hg
from hypergrad.data import read_mnist, to_float

MODES = ("forward", "all", "sqrt", "10", "3")
LABELS = {"forward": "forward", "all": "reverse all", "sqrt": "reverse sqrt", "10": "reverse 10", "3": "reverse 3"}
Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """The sizes of a run."""

    steps: tuple[int, ...]  # T, at `hparams_fixed` hyperparameters
    hparams: tuple[int, ...]  # N, at `steps_fixed` steps
    steps_fixed: int
    hparams_fixed: int
    hidden: int
    batch: int
    repeats: int


FULL = Setting(
    steps=(8, 16, 32, 64, 128, 256), hparams=(3, 4, 8, 16, 32, 64), steps_fixed=32, hparams_fixed=8, hidden=64, batch=100, repeats=3
)
QUICK = Setting(steps=(4, 12, 36), hparams=(3, 6, 12), steps_fixed=12, hparams_fixed=6, hidden=16, batch=50, repeats=1)


class Minibatches:
    """Rows of the training set, drawn anew for each step by a generator seeded with t."""

    def __init__(self, x: Any, y: Any, size: int, n_steps: int) -> None:
        self.x, self.y, self.size, self.n_steps = x, y, size, n_steps

    def __len__(self) -> int:
        return self.n_steps

    def __getitem__(self, t: int) -> tuple[Any, Any, Any]:
        rows = np.random.default_rng((0, t)).integers(0, len(self.y), self.size)
        return self.x[rows], self.y[rows], rows


def make_problem(data: tuple[Any, Any], setting: Setting, n_steps: int, n_hparams: int) -> tuple[hg.Bilevel, Any, Any]:
    """(problem, hparams, batches): a tanh network with one hidden layer; the last fifth of the data validates."""
    x, y = data
    n_train, groups = 4 * len(y) // 5, n_hparams - 2
    rng = np.random.default_rng(1)
    start = {
        "w1": (rng.standard_normal((784, setting.hidden)) / 28).astype(np.float32),
        "b1": np.zeros(setting.hidden, np.float32),
        "w2": (rng.standard_normal((setting.hidden, 10)) / math.sqrt(setting.hidden)).astype(np.float32),
        "b2": np.zeros(10, np.float32),
    }

    def losses(w: Any, x: Any, y: Any) -> hg.Tensor:
        return hg.softmax_cross_entropy(hg.linear(hg.tanh(hg.linear(x, w["w1"], w["b1"])), w["w2"], w["b2"]), y)

    def inner_loss(w: Any, hparams: Any, batch: Any) -> hg.Tensor:
        x, y, rows = batch
        return hg.mean(hg.take(hg.sigmoid(hparams["group"]), rows % groups) * losses(w, x, y))

    problem = hg.Bilevel(
        inner_loss,
        outer_loss=lambda w, hparams: hg.mean(losses(w, x[n_train:], y[n_train:])),
        init=lambda hparams: start,
        optimizer=lambda hparams: hg.SGD(lr=hparams["lr"], momentum=hparams["momentum"]),
    )
    hparams = {"lr": np.float32(0.1), "momentum": np.float32(0.8), "group": np.zeros(groups, np.float32)}
    return problem, hparams, Minibatches(x[:n_train], y[:n_train], setting.batch, n_steps)


def run(mode: str, problem: hg.Bilevel, hparams: Any, batches: Any) -> hg.HyperGradient:
    """One hypergradient."""
    if mode == "forward":
        return hg.forward(problem, hparams, batches)
    return hg.reverse(problem, hparams, batches, checkpoints=int(mode) if mode.isdigit() else mode)


def difference(r: hg.HyperGradient, reference: hg.HyperGradient) -> float:
    """Largest difference of two hypergradients, relative to the leaf's largest element."""
    return max(float(np.abs(r.grad[k] - g).max() / np.abs(g).max()) for k, g in reference.grad.items())


def measure(data: tuple[Any, Any], setting: Setting, progress: Progress) -> list[Row]:
    """A row for each sweep, size and mode."""
    sizes = [("T", t, setting.hparams_fixed) for t in setting.steps] + [("N", setting.steps_fixed, n) for n in setting.hparams]
    cells = [(*size, mode) for size in sizes for mode in MODES]
    problems = {size: make_problem(data, setting, *size[1:]) for size in sizes}
    task = progress.add_task("measuring", total=len(cells) * (setting.repeats + 1))
    traced: dict[Any, hg.HyperGradient] = {}
    seconds: dict[Any, list[float]] = {cell: [] for cell in cells}
    for cell in cells:
        tracemalloc.start()
        traced[cell] = run(cell[3], *problems[cell[:3]])
        tracemalloc.stop()
        progress.advance(task)
    for repeat in range(setting.repeats):
        # All cells before the next repeat, there and back: what slows the machine for a while slows no curve alone.
        for cell in cells if repeat % 2 == 0 else cells[::-1]:
            seconds[cell].append(run(cell[3], *problems[cell[:3]]).stats.seconds)
            progress.advance(task)
    rows: list[Row] = []
    for cell in cells:
        sweep, n_steps, n_hparams, mode = cell
        stats = traced[cell].stats.as_dict()
        rows.append(
            {
                "kind": "row",
                "sweep": sweep,
                "mode": mode,
                "n_steps": n_steps,
                "n_hparams": n_hparams,
                "seconds": statistics.median(seconds[cell]),
                "all_seconds": seconds[cell],
                "peak_bytes": stats["peak_bytes"],
                "difference": difference(traced[cell], traced[(*cell[:3], "all")]),
                "stats": stats,
            }
        )
    return rows


def curve(rows: list[Row], sweep: str, mode: str, what: str) -> tuple[list[int], list[float]]:
    """Sizes and values of one curve of the plot."""
    mine = [r for r in rows if r["sweep"] == sweep and r["mode"] == mode]
    return [r["n_steps" if sweep == "T" else "n_hparams"] for r in mine], [r[what] for r in mine]


def less_where(letter: str, sizes: list[int], a: list[float], b: list[float]) -> str:
    """For which sizes a is less than b, in words; crossings are interpolated on logarithmic axes."""
    gap = [math.log(p / q) for p, q in zip(a, b, strict=True)]
    crossings = []
    for i in range(1, len(sizes)):
        if (gap[i - 1] > 0) != (gap[i] > 0):
            share = gap[i - 1] / (gap[i - 1] - gap[i])
            crossings.append(math.exp((1 - share) * math.log(sizes[i - 1]) + share * math.log(sizes[i])))
    if not crossings:
        return "nowhere" if gap[-1] > 0 else "everywhere"
    if len(crossings) > 1:
        return "here and there, the two being close"
    return f"{'below' if gap[-1] > 0 else 'above'} {letter} ≈ {crossings[0]:.{0 if crossings[0] >= 10 else 1}f}"


def verdict(rows: list[Row], setting: Setting) -> list[str]:
    """Which mode is cheaper where, as measured."""
    lines = []
    for letter, fixed in (("T", f"N = {setting.hparams_fixed}"), ("N", f"T = {setting.steps_fixed}")):
        for what, less in (("seconds", "is faster than"), ("peak_bytes", "needs less memory than")):
            for other in MODES[1:]:
                sizes, mine = curve(rows, letter, "forward", what)
                _, theirs = curve(rows, letter, other, what)
                lines.append(
                    f"{fixed}, {letter} = {sizes[0]} to {sizes[-1]}: forward {less} {LABELS[other]} "
                    f"{less_where(letter, sizes, mine, theirs)}; at {letter} = {sizes[-1]} the ratio is "
                    f"{mine[-1] / theirs[-1]:.2g}"
                )
    return lines


def table(rows: list[Row], sweep: str, fixed: str) -> Table:
    """The measurements of one sweep; "diff." is the largest relative difference from "reverse all"."""
    out = Table(title=f"over {sweep} at {fixed}", title_justify="left")
    for name in (sweep, "mode", "seconds", "peak MB", "states", "their MB", "re-runs", "diff."):
        out.add_column(name, justify="left" if name == "mode" else "right", no_wrap=True)
    for r in (r for r in rows if r["sweep"] == sweep):
        stats = r["stats"]
        out.add_row(
            str(r["n_steps" if sweep == "T" else "n_hparams"]),
            LABELS[r["mode"]],
            f"{r['seconds']:.3f}",
            f"{r['peak_bytes'] / 1e6:.1f}",
            str(stats["states_held"]),
            f"{stats['state_bytes'] / 1e6:.1f}",
            str(stats["steps_rerun"]),
            f"{r['difference']:.0e}",
            end_section=r["mode"] == MODES[-1],
        )
    return out


def plot(rows: list[Row], setting: Setting, path: Path) -> None:
    """Seconds and bytes against T and against N, on logarithmic axes."""
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    for column, (sweep, title) in enumerate(
        (("T", f"inner steps T (N = {setting.hparams_fixed})"), ("N", f"hyperparameters N (T = {setting.steps_fixed})"))
    ):
        for line, (what, label, scale) in enumerate((("seconds", "seconds", 1.0), ("peak_bytes", "peak memory, MB", 1e-6))):
            axis = axes[line, column]
            for mode, marker in zip(MODES, "os^Dv", strict=True):
                sizes, values = curve(rows, sweep, mode, what)
                axis.loglog(
                    sizes,
                    [v * scale for v in values],
                    marker=marker,
                    markersize=5,
                    label=LABELS[mode],
                    linewidth=2.2 if mode == "forward" else 1.3,
                    color="black" if mode == "forward" else None,
                )
            axis.set_xticks(sizes, [str(s) for s in sizes])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.yaxis.set_minor_locator(NullLocator())
            axis.grid(True, alpha=0.3)
            if column == 0:
                axis.set_ylabel(label)
            if line == 1:
                axis.set_xlabel(title)
    axes[0, 0].legend(fontsize=9)
    figure.suptitle("Hypergradients: time and memory of forward and reverse mode")
    figure.savefig(path, dpi=130)


def first_images(root: Path, n: int) -> tuple[Any, Any]:
    """The first n training images of MNIST as float32 (n, 784) in [0, 1], and their labels. Raises: DataError without whole files."""
    images, labels = read_mnist(root, "train")
    return to_float(images[:n].reshape(-1, images[0].size)), labels[:n]


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write memory_time-cpu.jsonl and .png."""
    parser = argparse.ArgumentParser(description="Time and memory of forward and reverse mode, over T and over N.")
    parser.add_argument("--quick", action="store_true", help="small sizes, one run each: under 20 seconds")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for the results (default: bench/results)")
    parser.add_argument("--mnist", type=Path, metavar="ROOT", help="folder with MNIST's idx files, instead of synthetic images")
    options = parser.parse_args(arguments)
    setting, console = QUICK if options.quick else FULL, Console()
    data = first_images(options.mnist, 2500) if options.mnist else synthetic_digits(2500)
    with Progress(console=console, transient=True) as progress:
        rows = measure(data, setting, progress)
    console.print(table(rows, "T", f"N = {setting.hparams_fixed}"))
    console.print(table(rows, "N", f"T = {setting.steps_fixed}"))
    said = verdict(rows, setting)
    console.print("\n".join(said), soft_wrap=True)
    weights = 784 * setting.hidden + setting.hidden + 10 * setting.hidden + 10
    head = {
        **environment(),
        "data": "mnist" if options.mnist else "synthetic",
        "weights": weights,
        "dtype": "float32",
        "batch": setting.batch,
        "repeats": setting.repeats,
    }
    path = options.out / "memory_time-cpu.jsonl"
    write_lines(path, [head, *rows, *({"kind": "verdict", "text": line} for line in said)])
    plot(rows, setting, path.with_suffix(".png"))
    console.print(f"written: {path} and {path.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
