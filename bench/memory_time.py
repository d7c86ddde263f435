"""Time and memory of every exact pass, over the steps T, the hyperparameters N and the weights W, beside what `hg.plan` predicts.

    python bench/memory_time.py [--quick] [--out DIR] [--mnist ROOT] [--device cpu|cuda] [--report]

The problem is the one by which RFHO checked forward against reverse mode: a network on images of MNIST's size, trained
by gradient descent with momentum. The hyperparameters are the step size, the momentum and a weight for each group of
examples; N is varied by the number of groups. Seconds are medians of turns: a plan, then runs in alternating order. Peak bytes come from
runs of their own, since tracing allocations costs time. A cell for which the plan predicts too long a run is not run.
JAX and PyTorch run the same problem over T, on the CPU and where they are installed; see memory_time_peers.py.

The last part is RFHO's own check: 328,810 weights, 8 hyperparameters, 100 steps. `--report` measures nothing: it writes the figures of
bench/results/memory_time-cpu.jsonl into bench/README.md, as a whole run on the CPU does in the end.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import subprocess
import sys
import tempfile
import tracemalloc
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from common import HERE, environment, synthetic_digits, write_lines
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from memory_time_peers import KINDS
from memory_time_report import section, write
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import hypergrad as hg
from hypergrad.backends import backend_of
from hypergrad.data import read_mnist, to_float

MODES = ("forward", "all", "sqrt", "log", "reversible", "host")
LABELS = {
    "forward": "forward",
    "all": "reverse all",
    "sqrt": "reverse sqrt",
    "log": "reverse log₂ T + 2 states",
    "reversible": "reverse reversible",
    "host": "reverse host",
}
STORED = HERE / "results" / "memory_time-cpu.jsonl"
# Of RFHO's authors: https://github.com/lucfra/RFHO, states in MiB and seconds on their CPU.
THEIRS = {"forward": {"state_mib": 22.6, "seconds": 49.0}, "all": {"state_mib": 255.9, "seconds": 15.0}}
WITHIN = {"peak_bytes": 0.05, "seconds": 0.25}  # of the plan, what is to be within
Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """The sizes of a run. `hidden` are layer widths: of the sweeps over T and N, of the sweep over W, and of RFHO's network."""

    steps: tuple[int, ...]
    hparams: tuple[int, ...]
    widths: tuple[int, ...]
    steps_fixed: int
    hparams_fixed: int
    width_fixed: int
    rfho: tuple[int, ...]
    batch: int
    repeats: int
    most_s: float  # a cell that is predicted to take longer is not run


FULL = Setting(
    steps=(25, 100, 400, 1000, 4000),
    hparams=(1, 4, 16, 64, 5000),
    widths=(13, 126, 1258),
    steps_fixed=100,
    hparams_fixed=16,
    width_fixed=16,
    rfho=(300, 300),
    batch=100,
    repeats=3,
    most_s=40.0,
)
QUICK = Setting(
    steps=(4, 12),
    hparams=(1, 6),
    widths=(4, 8),
    steps_fixed=6,
    hparams_fixed=4,
    width_fixed=4,
    rfho=(6, 6),
    batch=20,
    repeats=1,
    most_s=40.0,
)


class Minibatches:
    """Rows of the training set, drawn beforehand: those of step t by a generator seeded with t."""

    def __init__(self, x: Any, y: Any, size: int, n_steps: int) -> None:
        self.x, self.y = x, y
        self.rows = np.stack([np.random.default_rng((0, t)).integers(0, len(y), size) for t in range(n_steps)])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, t: int) -> tuple[Any, Any, Any]:
        rows = backend_of(self.x).xp.asarray(self.rows[t])
        return self.x[rows], self.y[rows], rows


def make_problem(data: tuple[Any, Any], batch: int, n_steps: int, n_hparams: int, hidden: tuple[int, ...]) -> tuple[hg.Bilevel, Any, Any]:
    """(problem, hparams, batches): a tanh network; the last fifth of the data validates. One hyperparameter is the step size alone."""
    x, y = data
    n_train, groups = 4 * len(y) // 5, n_hparams - 2
    rng = np.random.default_rng(1)
    sizes = (784, *hidden, 10)
    xp = backend_of(x).xp
    start = [
        (xp.asarray((rng.standard_normal((m, n)) / math.sqrt(m)).astype(np.float32)), xp.zeros(n, np.float32))
        for m, n in zip(sizes[:-1], sizes[1:], strict=True)
    ]

    def losses(w: Any, x: Any, y: Any) -> hg.Tensor:
        for weights, bias in w[:-1]:
            x = hg.tanh(hg.linear(x, weights, bias))
        return hg.softmax_cross_entropy(hg.linear(x, *w[-1]), y)

    def inner_loss(w: Any, hparams: Any, batch: Any) -> hg.Tensor:
        x, y, rows = batch
        found = losses(w, x, y)
        return hg.mean(hg.take(hg.sigmoid(hparams["group"]), rows % groups) * found if "group" in hparams else found)

    hparams = {"lr": np.float32(0.1), "momentum": np.float32(0.9), "group": np.zeros(max(groups, 0), np.float32)}
    hparams = {k: xp.asarray(hparams[k]) for k in list(hparams)[: min(n_hparams, 3)]}
    problem = hg.Bilevel(
        inner_loss,
        outer_loss=lambda w, hparams: hg.mean(losses(w, x[n_train:], y[n_train:])),
        init=lambda hparams: start,
        optimizer=lambda hparams: hg.SGD(lr=hparams["lr"], momentum=hparams.get("momentum", 0.9)),
    )
    return problem, hparams, Minibatches(x[:n_train], y[:n_train], batch, n_steps)


def n_weights(hidden: tuple[int, ...]) -> int:
    """Weights of the network."""
    sizes = (784, *hidden, 10)
    return sum(m * n + n for m, n in zip(sizes[:-1], sizes[1:], strict=True))


def mode_of(route: Any) -> str:
    """The name that a route has in MODES."""
    checkpoints = route.options.get("checkpoints", "forward")
    return "log" if isinstance(checkpoints, int) else checkpoints


def difference(grad: Any, reference: Any) -> float:
    """Largest difference of two hypergradients, relative to the leaf's largest element."""
    return max(float(np.abs(grad[k] - g).max() / np.abs(g).max()) for k, g in reference.items())


def measure_size(sweep: str, problem: Any, sizes: Row, setting: Setting) -> list[Row]:
    """A row for each route at one size: what a plan predicts, and what is measured right after it; the medians of some turns of both."""
    plan = hg.plan(*problem)
    routes = {mode_of(r): r for r in plan.routes}
    run = {k: r for k, r in routes.items() if r.seconds <= setting.most_s}
    traced: dict[str, hg.HyperGradient] = {}
    planned: dict[str, list[float]] = {k: [r.seconds] for k, r in routes.items()}
    seconds: dict[str, list[float]] = {k: [] for k in run}
    for repeat in range(setting.repeats):  # in turns, since the machine's speed drifts
        for r in hg.plan(*problem).routes if repeat and run else ():
            planned[mode_of(r)].append(r.seconds)
        for k in list(run) if repeat % 2 == 0 else list(run)[::-1]:
            if repeat == 0 or routes[k].seconds * setting.repeats < setting.most_s:
                seconds[k].append(plan.run(routes[k]).stats.seconds)
    for k, route in run.items():
        tracemalloc.start()
        traced[k] = plan.run(route)
        tracemalloc.stop()
    rows: list[Row] = []
    for k in MODES:
        if k not in routes:
            continue
        plans = planned[k][: max(len(seconds.get(k, ())), 1)]  # of the turns in which this mode ran
        row = {"kind": "row", "sweep": sweep, "mode": k, **sizes, "plan_s": statistics.median(plans), "all_plan_s": plans}
        row["plan_bytes"] = routes[k].peak_bytes
        row |= {"seconds": None, "peak_bytes": None, "chosen": routes[k] is plan.choice}
        if k in run:
            stats = traced[k].stats.as_dict()
            peak = stats["peak_bytes"] if stats["peak_device_bytes"] is None else stats["peak_device_bytes"]
            row |= {"seconds": statistics.median(seconds[k]), "all_seconds": seconds[k], "peak_bytes": peak}
            row |= {"difference": difference(traced[k].grad, traced["all"].grad) if "all" in traced else None, "stats": stats}
        rows.append(row)
    return rows


def measure_peers(data: tuple[Any, Any], problem: tuple[hg.Bilevel, Any, Any], reference: hg.HyperGradient, repeats: int) -> list[Row]:
    """A row for each of KINDS that is installed: seconds, those of the first run, peak bytes, and the difference from ours."""
    bilevel, hparams, batches = problem
    arrays = {f"{k}{i}": x for i, layer in enumerate(bilevel.init(hparams)) for k, x in zip(("weights", "bias"), layer, strict=True)}
    arrays |= {f"hparams_{k}": x for k, x in hparams.items()}
    arrays |= {"x": data[0], "y": data[1], "n_train": len(batches.y)}
    arrays["rows"] = batches.rows
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        given, out = Path(scratch) / "problem.npz", Path(scratch) / "out.npz"
        np.savez(given, **arrays)
        for kind in (k for k, module in KINDS.items() if importlib.util.find_spec(module)):
            command = [sys.executable, str(Path(__file__).with_name("memory_time_peers.py")), kind, str(given), str(out), str(repeats)]
            answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            with np.load(out) as grad:
                found = difference(grad, reference.grad)
            rows.append({"mode": kind, "seconds": statistics.median(answer["all_seconds"]), **answer, "difference": found})
    return rows


def measure(data: tuple[Any, Any], setting: Setting, progress: Progress) -> list[Row]:
    """The rows of the three sweeps and of the most hyperparameters with the most weights; with the peers' over T."""
    fixed = (setting.steps_fixed, setting.hparams_fixed, (setting.width_fixed,))
    cells = [("T", t, *fixed[1:]) for t in setting.steps] + [("N", fixed[0], n, fixed[2]) for n in setting.hparams]
    cells += [("W", *fixed[:2], (h,)) for h in setting.widths]
    cells.append(("N and W", fixed[0], max(setting.hparams), (max(setting.widths),)))
    rows: list[Row] = []
    for sweep, n_steps, n_hparams, hidden in progress.track(cells, description="measuring"):
        problem = make_problem(data, setting.batch, n_steps, n_hparams, hidden)
        sizes = {"n_steps": n_steps, "n_hparams": n_hparams, "n_weights": n_weights(hidden)}
        rows += measure_size(sweep, problem, sizes, setting)
        if sweep == "T" and isinstance(data[0], np.ndarray):
            peers = measure_peers(data, problem, hg.reverse(*problem, checkpoints="sqrt"), setting.repeats)
            rows += [{"kind": "peer", "sweep": sweep, **sizes, **row} for row in peers]
    return rows


def measure_rfho(data: tuple[Any, Any], setting: Setting) -> list[Row]:
    """RFHO's own check, forward beside reverse."""
    problem = make_problem(data, setting.batch, 100, 8, setting.rfho)
    found: dict[str, list[hg.HyperGradient]] = {k: [] for k in THEIRS}
    for _ in range(setting.repeats):
        for k in found:
            found[k].append(hg.forward(*problem) if k == "forward" else hg.reverse(*problem))
    rows = []
    for k, runs in found.items():
        stats = runs[0].stats
        rows.append(
            {
                "kind": "rfho",
                "mode": k,
                "n_weights": n_weights(setting.rfho),
                "seconds": statistics.median(r.stats.seconds for r in runs),
                "state_mib": stats.state_bytes / 2**20,
                "difference": difference(runs[0].grad, found["all"][0].grad),
                "theirs": THEIRS[k],
            }
        )
    peers = measure_peers(data, problem, found["all"][0], setting.repeats) if isinstance(data[0], np.ndarray) else []
    return rows + [{"kind": "rfho peer", "n_weights": n_weights(setting.rfho), **row} for row in peers]


def errors(rows: list[Row]) -> list[str]:
    """How far the plan was off, for each mode."""
    lines = []
    for k in MODES:
        mine = [r for r in rows if r["mode"] == k and r["seconds"] is not None and "plan_s" in r]
        if not mine:
            continue
        for what, plan, unit in (("peak_bytes", "plan_bytes", "bytes"), ("seconds", "plan_s", "seconds")):
            ratios = sorted(r[what] / r[plan] for r in mine)
            near = sum(abs(x - 1) <= WITHIN[what] for x in ratios)
            lines.append(
                f"{LABELS[k]}: measured {unit} over the plan's: median {statistics.median(ratios):.2f}, from {ratios[0]:.2f} to "
                f"{ratios[-1]:.2f}; {near} of {len(ratios)} cells within {WITHIN[what]:.0%}"
            )
    return lines


KEYS = {"T": "n_steps", "N": "n_hparams", "W": "n_weights"}
TABLES = {**KEYS, "N and W": "n_weights"}


def table(rows: list[Row], sweep: str) -> Table:
    """The measurements of one sweep. "/ plan" is measured over planned, "diff." the largest relative difference from "reverse all".

    A cell that was not run has the plan's figures in brackets.
    """
    out = Table(title=f"over {sweep}", title_justify="left", box=SIMPLE_HEAD)
    for name in (sweep, "mode", "seconds", "/ plan", "peak MB", "/ plan", "states", "re-runs", "diff."):
        out.add_column(name, justify="left" if name == "mode" else "right", no_wrap=True)
    for r in (r for r in rows if r["sweep"] == sweep):
        if r["kind"] == "peer":
            peak = f"{r['peak_bytes'] / 1e6:.1f}"
            out.add_row(str(r[TABLES[sweep]]), r["mode"], f"{r['seconds']:.3f}", "-", peak, "-", "-", "-", f"{r['difference']:.0e}")
            continue
        stats = r.get("stats")
        figures = (
            (f"({r['plan_s']:.0f})", "-", f"({r['plan_bytes'] / 1e6:.1f})", "-", "-", "-", "-")
            if stats is None
            else (
                f"{r['seconds']:.3f}",
                f"{r['seconds'] / r['plan_s']:.2f}",
                f"{r['peak_bytes'] / 1e6:.1f}",
                f"{r['peak_bytes'] / r['plan_bytes']:.2f}",
                str(stats["states_held"]),
                str(stats["steps_rerun"]),
                "-" if r["difference"] is None else f"{r['difference']:.0e}",
            )
        )
        name = LABELS[r["mode"]] + (" *" if r["chosen"] else "")
        out.add_row(str(r[TABLES[sweep]]), name, *figures, end_section=r["mode"] == "host")
    return out


def plot(rows: list[Row], path: Path) -> None:
    """Seconds and bytes against T, N and W on logarithmic axes: points are measured, lines are the plan's."""
    figure = Figure(figsize=(13, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3, sharex="col", sharey="row")
    colours = {k: f"C{i}" if k != "forward" else "black" for i, k in enumerate(MODES)}
    for column, (sweep, key) in enumerate(KEYS.items()):
        mine = [r for r in rows if r["sweep"] == sweep and r["kind"] == "row"]
        peers = [r for r in rows if r["sweep"] == sweep and r["kind"] == "peer"]
        fixed = ", ".join(f"{s} = {mine[0][k]:,}" for s, k in KEYS.items() if s != sweep)
        for line, (what, plan, label, scale) in enumerate(
            (("seconds", "plan_s", "seconds", 1.0), ("peak_bytes", "plan_bytes", "peak memory, MB", 1e-6))
        ):
            axis = axes[line, column]
            for mode, marker in zip(MODES, "os^DvP", strict=True):
                own = [r for r in mine if r["mode"] == mode]
                axis.loglog([r[key] for r in own], [scale * r[plan] for r in own], color=colours[mode], linewidth=1.2)
                run = [r for r in own if r["seconds"] is not None]
                axis.loglog(
                    [r[key] for r in run], [scale * r[what] for r in run], marker, color=colours[mode], markersize=6, label=LABELS[mode]
                )
            for mode, style in zip(KINDS, ("1:", "2:", "3:", "4:"), strict=True):
                own = [r for r in peers if r["mode"] == mode]
                if own:
                    axis.loglog([r[key] for r in own], [scale * r[what] for r in own], style, color="grey", markersize=9, label=mode)
            places = sorted({r[key] for r in mine})
            axis.set_xticks(places, [f"{p:,}" for p in places])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.yaxis.set_minor_locator(NullLocator())
            axis.grid(True, alpha=0.3)
            if column == 0:
                axis.set_ylabel(label)
            if line == 1:
                axis.set_xlabel(f"{ {'T': 'inner steps T', 'N': 'hyperparameters N', 'W': 'weights W'}[sweep] }  ({fixed})")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    figure.suptitle("Hypergradients: time and memory of every pass. Points are measured, lines are what hg.plan predicts")
    figure.savefig(path, dpi=130)


def first_images(root: Path, n: int) -> tuple[Any, Any]:
    """The first n training images of MNIST as float32 (n, 784) in [0, 1], and their labels. Raises: DataError without whole files."""
    images, labels = read_mnist(root, "train")
    return to_float(images[:n].reshape(-1, images[0].size)), labels[:n]


def on_device(data: tuple[Any, Any], device: str) -> tuple[Any, Any]:
    """The data as NumPy arrays, or as CuPy's where the device is "cuda"."""
    if device == "cpu":
        return data
    cupy = import_module("cupy")
    return cupy.asarray(data[0]), cupy.asarray(data[1])


def report() -> None:
    """Writes the figures of the stored run into bench/README.md."""
    lines = [json.loads(line) for line in STORED.read_text().splitlines()]
    write(HERE / "README.md", section(lines, LABELS, STORED.relative_to(HERE.parent).as_posix()))


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write memory_time-DEVICE.jsonl and .png."""
    parser = argparse.ArgumentParser(description="Time and memory of every pass, over T, N and the weights, beside the plan's predictions.")
    parser.add_argument("--quick", action="store_true", help="small sizes, one run each: under 20 seconds")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for the results (default: bench/results)")
    parser.add_argument("--mnist", type=Path, metavar="ROOT", help="folder with MNIST's idx files, instead of synthetic images")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the arrays are (default: cpu)")
    parser.add_argument("--report", action="store_true", help="write the figures of the stored run into bench/README.md; measure nothing")
    options = parser.parse_args(arguments)
    setting, console = QUICK if options.quick else FULL, Console(width=None if sys.stdout.isatty() else 110)
    if options.report:
        return report()
    data = first_images(options.mnist, 6250) if options.mnist else synthetic_digits(6250)
    data = on_device(data, options.device)
    with Progress(console=console, transient=True) as progress:
        rows = measure(data, setting, progress)
    rfho = measure_rfho(data, setting)
    for sweep in TABLES:
        console.print(table(rows, sweep))
    said = errors(rows)
    for r in rfho:
        if r["kind"] == "rfho peer":
            said.append(
                f"RFHO's check, {r['mode']}: {r['seconds']:.2f} s, peak {r['peak_bytes'] / 1e6:.1f} MB, difference {r['difference']:.0e}"
            )
            continue
        said.append(
            f"RFHO's check, {r['n_weights']:,} weights, 8 hyperparameters, 100 steps, {r['mode']}: {r['seconds']:.2f} s and "
            f"{r['state_mib']:.1f} MiB of states (theirs: {r['theirs']['seconds']:g} s, {r['theirs']['state_mib']:g} MiB), "
            f"difference {r['difference']:.0e}"
        )
    console.print("\n".join(said), soft_wrap=True)
    head = {
        **environment(),
        "peers": {k: version(k) for k in dict.fromkeys(KINDS.values()) if importlib.util.find_spec(k)},
        "data": "mnist" if options.mnist else "synthetic",
        "dtype": "float32",
        "batch": setting.batch,
        "repeats": setting.repeats,
    }
    path = options.out / f"memory_time-{options.device}.jsonl"
    write_lines(path, [head, *rows, *rfho, *({"kind": "verdict", "text": line} for line in said)])
    plot(rows, path.with_suffix(".png"))
    console.print(f"written: {path} and {path.with_suffix('.png').name}")
    if path == STORED:
        report()


if __name__ == "__main__":
    main()
