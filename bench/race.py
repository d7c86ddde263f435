"""The neutral race of bilevel solvers, benchopt/benchmark_bilevel, with this package's methods in it.

    git clone https://github.com/benchopt/benchmark_bilevel
    python bench/race.py benchmark_bilevel --mnist DIR [--seconds 20] [--rounds 3] [--only NAME ...] [--out DIR]

It needs `pip install benchopt jax scikit-learn pyyaml` beside this package. The data, the losses, the measures and the solvers are the
benchmark's own, imported from its folder; its solvers run at the parameters that its authors publish as the best ones. All solvers
start from the same point, in one process, one after the other, in each of several rounds. A clock stands still while a solver
compiles and while a point is copied. What each point is worth is worked out afterwards by the benchmark's own measures.

Ours read the same arrays. On the simulated problem the means of the sampled matrices are taken by our solver, inside its time.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import pickle
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import yaml
from common import HERE, environment, write_lines
from matplotlib.ticker import NullFormatter
from rich.console import Console
from rich.table import Table

import hypergrad as hg
from hypergrad.data.idx import read_mnist
from hypergrad.runs.curves import BLUE, GREEN, new_figure, png

Array = Any
Point = tuple[Array, Array]  # the inner and the outer variable, flat
POINTS = 40  # that a run keeps, at equal ratios of their times
LEFT_OUT = "Optuna"  # of the benchmark's solvers: it needs a package of its own, and sees the hyperparameters as a black box
REPORTED = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)  # seconds
OUR_BATCH = 1000  # of saba on MNIST, found by a few runs on the outer loss


@dataclass(frozen=True, eq=False)
class Problem:
    """One of the benchmark's problems. `config` are its files of best parameters, the newest first; `measure` is what the plot shows."""

    name: str
    dataset: str
    parameters: dict[str, Any]
    config: tuple[str, ...]
    measure: str
    levels: tuple[float, ...]
    ours: dict[str, Callable[[Any, Any], None]]
    theirs: dict[str, dict[str, Any]]  # solvers of the benchmark at parameters of ours


@dataclass
class Clock:
    """The time that a solver has used, and the points that it passed."""

    limit: float
    start: float = field(default_factory=time.perf_counter)
    paused: float = 0.0
    points: list[tuple[float, Point]] = field(default_factory=list)

    def see(self, inner: Array, outer: Array) -> bool:
        """Keeps this point if it is time for one. Returns: whether there is time left. The clock stands still meanwhile."""
        jax.block_until_ready((inner, outer))
        now = time.perf_counter()
        used = now - self.start - self.paused
        due = 0.02 * (self.limit / 0.02) ** (len(self.points) / POINTS)
        if used >= due or used >= self.limit or not self.points:
            self.points.append((used, (np.array(inner).ravel(), np.array(outer).ravel())))
        self.paused += time.perf_counter() - now
        return used < self.limit


class OutOfTime(Exception):
    """Ends a run of ours."""


def load(folder: Path, path: str) -> ModuleType:
    """A module of the benchmark, by its path in the benchmark's folder."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{Path(path).stem}", folder / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def published(folder: Path, files: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Solver -> the parameters that the benchmark's authors found best. Of several files the first that names a solver counts."""
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        for line in yaml.safe_load((folder / "config" / file).read_text())["solver"]:
            name, _, text = line.partition("[")
            name = {"AmIGOAmIGO": "AmIGO"}.get(name, name)  # as one file spells it
            pairs = re.findall(r"(\w+)=([\w.e+-]+)", text)
            values = {{"init_memory": "mode_init_memory"}.get(k, k): yaml.safe_load(v) for k, v in pairs if k != "framework"}
            numbers = {k: float(v) if re.fullmatch(r"[\d.]+e[+-]?\d+", str(v)) else v for k, v in values.items()}
            if name != LEFT_OUT:
                found.setdefault(name, numbers)
    return found


def closed_over(f: Any) -> dict[str, Any]:
    """The variables that a function of the benchmark reads from around it, by name."""
    while hasattr(f, "func") or hasattr(f, "__wrapped__"):
        f = f.func if hasattr(f, "func") else f.__wrapped__
    return dict(zip(f.__code__.co_freevars, (cell.cell_contents for cell in f.__closure__), strict=True))


# --- ours ----------------------------------------------------------------------------------------------------


def _watched(clock: Clock) -> Callable[..., None]:
    """A callback of the outer loops that stops them when the time is over."""

    def callback(step: int, hparams: Any, w: Any, value: Any) -> None:
        if not clock.see(w, hparams):
            raise OutOfTime

    return callback


def _cleaning(objective: dict[str, Any], reg: float = 0.2) -> tuple[hg.Bilevel, Any, Any]:
    """The problem of data cleaning, (training images, labels), (validation images, labels)."""
    inner, outer = closed_over(objective["f_inner"]), closed_over(objective["f_outer"])
    train = np.asarray(inner["X_train"]), np.asarray(inner["y_train"]).argmax(1)
    validation = np.asarray(outer["X_val"]), np.asarray(outer["y_val"]).argmax(1)
    start, bias = np.zeros((train[0].shape[1], 10), train[0].dtype), np.zeros(10, train[0].dtype)

    def inner_loss(w: Any, hparams: Any, batch: Any) -> Any:
        x, y, rows = batch
        return hg.mean(hg.sigmoid(hparams[rows]) * hg.linear_cross_entropy(x, w, bias, y)) + reg * hg.sum(w * w)

    def outer_loss(w: Any, hparams: Any, batch: Any) -> Any:
        return hg.mean(hg.linear_cross_entropy(batch[0], w, bias, batch[1]))

    return hg.Bilevel(inner_loss, outer_loss, lambda hparams: start, lambda hparams: hg.SGD(lr=0.15, momentum=0.9)), train, validation


def cleaning_saba(objective: dict[str, Any], clock: Clock) -> None:
    """`hg.saba` on minibatches of 1,000."""
    problem, (x, y), (x_outer, y_outer) = _cleaning(objective)
    parts = [slice(i, i + OUR_BATCH) for i in range(0, len(y), OUR_BATCH)]
    outer = [(x_outer[i : i + OUR_BATCH], y_outer[i : i + OUR_BATCH]) for i in range(0, len(y_outer), OUR_BATCH)]
    start, rows = np.array(objective["outer_var0"]), np.arange(len(y))
    hg.saba(problem, start, [(x[p], y[p], rows[p]) for p in parts], outer, 1e4, 0.2, 10**9, callback=_watched(clock))


def cleaning_hoag(objective: dict[str, Any], clock: Clock) -> None:
    """`hg.hoag` on all data, Adam outside."""
    problem, (x, y), validation = _cleaning(objective)

    def solver(tolerance: float) -> hg.CG:
        return hg.CG(max(tolerance, 0.05), max_iterations=3)

    settings: dict[str, Any] = {"least": 1e-3, "max_steps": 5, "solver": solver, "outer_batch": validation}
    start = np.array(objective["outer_var0"])
    hg.hoag(problem, start, (x, y, slice(None)), hg.Adam(lr=6.0), 10**9, **settings, callback=_watched(clock))


def quadratic_hoag(objective: dict[str, Any], clock: Clock) -> None:
    """`hg.hoag` on the means of the sampled matrices, gradient descent with momentum outside."""
    sampled = [closed_over(objective[f]) for f in ("f_inner", "f_outer")]
    names = ("hess_inner", "hess_outer", "cross", "linear_inner", "linear_outer")
    inner, outer = ({k: np.asarray(s[k]).mean(0) for k in names} for s in sampled)

    def loss(m: dict[str, Array], z: Any, x: Any) -> Any:
        terms = 0.5 * z * (m["hess_inner"] @ z) + m["linear_inner"] * z + (x @ m["cross"]) * z
        return hg.sum(terms) + hg.sum(0.5 * x * (m["hess_outer"] @ x) + m["linear_outer"] * x)

    start = np.array(objective["inner_var0"])
    problem = hg.Bilevel(
        lambda z, x, batch: loss(inner, z, x), lambda z, x: loss(outer, z, x), lambda x: start, lambda x: hg.SGD(lr=0.6, momentum=0.6)
    )
    settings: dict[str, Any] = {"tolerance": 1.0, "least": 3e-6}
    optimizer = hg.SGD(lr=0.3, momentum=0.8)
    hg.hoag(problem, np.array(objective["outer_var0"]), None, optimizer, 10**9, **settings, callback=_watched(clock))


PROBLEMS = (
    Problem(
        "mnist",
        "mnist",
        {"ratio": 0.5},
        ("datacleaning0_5_021424_best_params.yml", "datacleaning0_5_best_params.yml"),
        "outer_loss",
        (0.76, 0.745, 0.74, 0.736),
        {"hg.saba": cleaning_saba, "hg.hoag": cleaning_hoag},
        {
            name: {"step_size": 0.2, "outer_ratio": 2e-5, "batch_size": OUR_BATCH, "eval_freq": 8, **more}
            for name, more in (("SABA", {"mode_init_memory": "full"}), ("SOBA", {}))
        },
    ),
    Problem(
        "simulated",
        "simulated",
        {"dim_outer": 10},
        ("quadratics_021424_best_params.yml",),
        "value",
        (1e-2, 1e-4, 1e-6, 1e-9),
        {"hg.hoag": quadratic_hoag},
        {},
    ),
)


# --- the race ------------------------------------------------------------------------------------------------


def entrants(folder: Path, problem: Problem) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name in the table -> the benchmark's solver and its parameters."""
    best = {name: (name, parameters) for name, parameters in published(folder, problem.config).items()}
    return {**best, **{f"{name}, batch {p['batch_size']}": (name, p) for name, p in problem.theirs.items()}}


def race_theirs(folder: Path, solver: str, parameters: dict[str, Any], objective: dict[str, Any], seconds: float) -> Clock:
    """One run of one of the benchmark's solvers, after it has compiled."""
    allowed = load(folder, f"solvers/{solver.lower()}.py").Solver
    own = {k: v for k, v in parameters.items() if k in allowed.parameters}
    runner = allowed.get_instance(**own)
    runner.set_objective(**objective)  # runs two rounds, which compiles everything
    clock = Clock(seconds)
    clock.see(objective["inner_var0"], objective["outer_var0"])
    runner.run(lambda: clock.see(runner.inner_var, runner.outer_var))
    jax.clear_caches()  # compiled solvers hold copies of the data, gigabytes in all
    gc.collect()
    return clock


def race_ours(method: Callable[[Any, Any], None], objective: dict[str, Any], seconds: float) -> Clock:
    """One run of one of ours."""
    clock = Clock(seconds)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "hoag: ")  # its tolerances are looser than its steps at times
        try:
            method(objective, clock)
        except OutOfTime:
            pass
    return clock


def judged(problem: Problem, data: dict[str, Any], clock: Clock) -> Iterator[dict[str, float]]:
    """Each point's time and measures: the benchmark's own, and the outer loss at the point."""
    outer_loss = data["pb_outer"][3]
    for seconds, (inner, outer) in clock.points:
        z, x = jax.numpy.asarray(inner), jax.numpy.asarray(outer)
        yield {"seconds": seconds, "outer_loss": float(outer_loss(z, x)), **{k: float(v) for k, v in data["metrics"](z, x).items()}}


def run(problem: Problem, folder: Path, seconds: float, rounds: int, only: list[str], console: Console) -> list[dict[str, Any]]:
    """All rounds of one problem: a row a run."""
    data = load(folder, f"datasets/{problem.dataset}.py").Dataset.get_instance(**problem.parameters).get_data()
    objective_of = load(folder, "objective.py").Objective.get_instance()
    objective_of.set_data(**data)
    objective = objective_of.get_objective()
    theirs, rows = entrants(folder, problem), []
    for k in range(rounds):
        for name in [n for n in (*problem.ours, *theirs) if not only or n in only]:
            if name in problem.ours:
                parameters: dict[str, Any] = {}
                clock = race_ours(problem.ours[name], objective, seconds)
            else:
                solver, parameters = theirs[name]
                clock = race_theirs(folder, solver, parameters, objective, seconds)
            points = list(judged(problem, data, clock))
            rows.append({"kind": "run", "problem": problem.name, "solver": name, "round": k, "parameters": parameters, "points": points})
            console.print(f"{problem.name} round {k}: {name}: {problem.measure} {points[-1][problem.measure]:.5g}")
    return rows


def reached(points: list[dict[str, float]], measure: str, level: float) -> float:
    """Seconds until a measure is at most `level` for good; infinity if it never is."""
    late = [i for i, p in enumerate(points) if not p[measure] <= level]
    first = late[-1] + 1 if late else 0
    return points[first]["seconds"] if first < len(points) else float("inf")


def at(points: list[dict[str, float]], measure: str, seconds: float) -> float:
    """A measure at the last point up to a time."""
    return [p[measure] for p in points if p["seconds"] <= seconds][-1]


def summary(problem: Problem, rows: list[dict[str, Any]], seconds: float) -> list[dict[str, Any]]:
    """One line a solver: medians over the rounds of the seconds to each level and of the measure at each time."""
    lines = []
    for name in dict.fromkeys(row["solver"] for row in rows):
        runs = [row["points"] for row in rows if row["solver"] == name]
        times = {str(level): float(np.median([reached(p, problem.measure, level) for p in runs])) for level in problem.levels}
        values = {str(s): float(np.median([at(p, problem.measure, s) for p in runs])) for s in REPORTED if s <= seconds}
        last = {k: float(np.median([p[-1][k] for p in runs])) for k in runs[0][-1] if k != "seconds"}
        row: dict[str, Any] = {"kind": "summary", "problem": problem.name, "solver": name, "rounds": len(runs), "measure": problem.measure}
        row["seconds_to"] = {k: v if np.isfinite(v) else None for k, v in times.items()}
        lines.append({**row, "at_seconds": values, "last": last})
    return sorted(lines, key=lambda line: line["last"][problem.measure])


def table(problem: Problem, lines: list[dict[str, Any]]) -> Table:
    """The summary, printed."""
    levels, moments = (f"s to {x:g}" for x in problem.levels), (f"at {s} s" for s in lines[0]["at_seconds"])
    out = Table("solver", *levels, *moments, title=problem.name)
    for line in lines:
        times = ["-" if v is None else f"{v:.2f}" for v in line["seconds_to"].values()]
        out.add_row(line["solver"], *times, *(f"{v:.4g}" for v in line["at_seconds"].values()))
    return out


def plot(lines: list[dict[str, Any]]) -> bytes:
    """The measure against seconds, a line a run; ours are thick."""
    raced = {p: rows for p in PROBLEMS if (rows := [x for x in lines if x["kind"] == "run" and x["problem"] == p.name])}
    figure, axes = new_figure(7.0 * len(raced), 5.5, 1, len(raced), squeeze=False)
    for (problem, rows), ax in zip(raced.items(), axes[0], strict=True):
        names = list(dict.fromkeys(row["solver"] for row in rows))
        ours = [name for name in names if name in problem.ours]
        for row in rows:
            name, points = row["solver"], [p for p in row["points"] if p["seconds"] > 0]
            mine = name in ours
            place = names.index(name)
            color = (BLUE, GREEN)[ours.index(name)] if mine else f"C{place % 10}"
            style: dict[str, Any] = (
                {"linewidth": 2.2, "zorder": 3} if mine else {"linewidth": 0.9, "linestyle": "--" if place < 10 else ":"}
            )
            x, y = [p["seconds"] for p in points], [p[problem.measure] for p in points]
            ax.plot(x, y, color=color, label=None if row["round"] else name, **style)
        ax.set_xscale("log")
        ax.set_xlim(left=0.01)
        ax.set_yscale("log")
        ax.set_xlabel("seconds")
        ax.set_ylabel({"outer_loss": "outer loss", "value": "squared norm of the hypergradient"}[problem.measure])
        if problem.measure == "outer_loss":
            ax.set_ylim(0.72, 1.2)
            ax.yaxis.set_minor_formatter(NullFormatter())
            ax.set_yticks([0.73, 0.75, 0.8, 0.9, 1.0, 1.2], ["0.73", "0.75", "0.8", "0.9", "1", "1.2"])
        ax.set_title(f"benchmark_bilevel: {problem.name}", fontsize=10)
        ax.grid(alpha=0.25)
        ax.legend(fontsize=7)
    return png(figure)


def write_mnist(root: Path) -> None:
    """The file that the benchmark keeps MNIST in, in the working folder, so that it downloads nothing."""
    parts = {part: read_mnist(root, part) for part in ("train", "test")}
    names = {"train": "training", "test": "test"}
    arrays = {f"{names[p]}_images": x.reshape(len(x), -1) for p, (x, _) in parts.items()}
    arrays |= {f"{names[p]}_labels": y.astype(np.uint8) for p, (_, y) in parts.items()}
    with Path("mnist.pkl").open("wb") as file:
        pickle.dump(arrays, file)


def main(arguments: list[str] | None = None) -> None:
    """Run the race and write bench/results/race-cpu.jsonl and race-cpu.png; the lines of problems that were not run are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", type=Path, help="a clone of benchopt/benchmark_bilevel")
    parser.add_argument("--mnist", type=Path, metavar="DIR", help="folder with MNIST's idx files; without it that problem is skipped")
    parser.add_argument("--problems", nargs="+", choices=[p.name for p in PROBLEMS], default=[p.name for p in PROBLEMS])
    parser.add_argument("--only", nargs="+", default=[], metavar="SOLVER", help="solvers to run")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each solver")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="where the results go")
    options = parser.parse_args(arguments)
    console, folder, out = Console(), options.benchmark.resolve(), options.out.resolve()
    sys.path.insert(0, str(folder))
    mnist = None if options.mnist is None else options.mnist.resolve()
    env = environment()
    env["versions"] |= {name: version(name) for name in ("benchopt", "jax", "jaxlib", "scikit-learn")}
    results: dict[str, list[dict[str, Any]]] = {}
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)  # the benchmark writes its caches into the working folder
        try:
            for problem in PROBLEMS:
                if problem.name not in options.problems or problem.name == "mnist" and mnist is None:
                    continue
                if problem.name == "mnist":
                    write_mnist(mnist)
                results[problem.name] = run(problem, folder, options.seconds, options.rounds, options.only, console)
        finally:
            os.chdir(before)
    path = out / "race-cpu.jsonl"
    before_lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    lines: list[dict[str, Any]] = []
    for problem in PROBLEMS:
        rows = results.get(problem.name)
        if rows is None:
            lines += [line for line in before_lines if line["problem"] == problem.name]
            continue
        summaries = summary(problem, rows, options.seconds)
        console.print(table(problem, summaries))
        lines += [{**env, "problem": problem.name, "seconds": options.seconds}, *summaries, *rows]
    write_lines(path, lines)
    path.with_suffix(".png").write_bytes(plot(lines))
    console.print(f"written: {path} and {path.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
