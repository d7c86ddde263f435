"""The command line: `hypergrad train`, `evaluate`, `predict`, `reproduce`, `sweep`, `tune`, `plan`, `profile` and others."""

import contextlib
import importlib.metadata
import os
import platform
import runpy
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from . import __version__, startup
from .backends import DEVICES
from .backends.cuda import CUDA
from .backends.host import HOST
from .data import cache_dir
from .data.images import check_number
from .data.report import Reporter, SilentReporter
from .errors import ArgumentError, EndedError, HypergradError, RunError
from .fewshot import jobs as few_shot
from .fewshot.config import DATA, FIRST_METHOD, Config, load_config
from .fewshot.evaluation import PAIRS_PNG, STEPS_PNG
from .fewshot.jobs import EVALUATION, OPTIONS, evaluate_again, open_data
from .fewshot.methods import METHODS
from .fewshot.prediction import Predictions, predict, write_csv
from .fewshot.reproduction import TABLES, reproduce
from .hpo import jobs as tuning
from .hpo.planning import figure as plan_figure
from .hpo.planning import plan_problem
from .hpo.problems import PROBLEMS
from .parallel import ALONE, Ranks, world
from .profiling import profile
from .runs.command import with_default, with_options
from .runs.configuration import changed
from .runs.curves import CURVE_PNG, seconds_of_instructions
from .runs.directory import CONFIG, METRICS, MODEL, RESULT, STATE, RunDirectory, write_file
from .runs.events import require_tensorboard
from .runs.interrupts import interruptible
from .runs.machine import machine, without_paths
from .runs.terminal import Commands, cell, echo, show
from .runs.view import EVENTS
from .runs.watch import Watch
from .sweep import read_sweep, run_sweep

PACKAGES = ("numpy", "optree", "safetensors", "matplotlib", "pillow", "typer", "rich", "tensorboard", "mpi4py")
PRIVATE = ("methods", "problems", "data cache")  # names in a person's own folders, and such a folder
FILES = {
    CONFIG: "the settings",
    METRICS: "losses and accuracies, one JSON object a line",
    MODEL: "the parameters with the best validation accuracy",
    STATE: "what --resume goes on from",
    RESULT: "the result below as JSON",
    EVALUATION: "the result of `hypergrad evaluate`",
    CURVE_PNG: "losses and accuracies against iterations",
    PAIRS_PNG: "nearest and farthest images in the learned representation",
    STEPS_PNG: "accuracy against the number of inner steps",
    EVENTS: "event files for tensorboard --logdir",
}

app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
ProblemName = Annotated[
    str | None, typer.Argument(metavar="PROBLEM", help=f"One of {', '.join(PROBLEMS)}; none with --resume.", show_default=False)
]
Device = Annotated[str | None, typer.Option(help=with_default(f"Where to compute: {', '.join(DEVICES)}.", "the run's"))]


def _version(wanted: bool) -> None:
    if wanted:
        echo(f"hypergrad {__version__}")
        raise typer.Exit


@app.callback()
def main(version: Annotated[bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)] = False) -> None:
    """Differentiate through training: meta-train few-shot learners, tune hyperparameters by the thousand."""


def train_command(  # its other options are made from those of the configuration, below
    changes: dict[str, Any],
    run_dir: Annotated[Path | None, typer.Option(help=with_default("New directory of the run.", "runs/..."))] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run; with more --iterations, beyond its end.")] = None,
    shorten: Annotated[bool, typer.Option("--quick", help="30 iterations, 20 episodes: to try it out.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write event files.")] = False,
    debug: Debug = False,
) -> None:
    """Meta-train a few-shot learner and evaluate it on classes it has never seen."""
    with _clear_errors(debug, together=True) as ending:
        if tensorboard:
            require_tensorboard()
        ranks = ending.ranks
        ranks.divide_cores()
        with few_shot.open_run(changes, run_dir, resume, shorten, _reporter(), ranks) as (run, config, data):
            if run is not None:
                ending.interrupted = f"Interrupted; the run is saved. Go on with:  hypergrad train --resume {run.path}"
                if ranks.size > 1:
                    ending.watch = Watch(
                        f"error: train: a process was lost, and the job ends. Go on with:  hypergrad train --resume {run.path}"
                    )
                together = f"; {ranks.size} processes" if ranks.size > 1 else ""
                together += f", gradients by {ranks.by}" if ranks.size > 1 and config.device == "cuda" else ""
                echo(f"{config.method_name}, {config.task} on {data.describe()}; preset {config.preset}{together}; run {run.path}")
            events = run.path / EVENTS if run is not None and tensorboard else None
            result = few_shot.train_run(run, config, data, _reporter() if run is not None else SilentReporter(), events, ranks)
            if run is not None:
                _show(run, config, result)


def _defaults(name: str) -> str:
    """The defaults of an option that depend on the data set or the method, for its help."""
    of_data = [f"{data} {table[name]}" for data, table in DATA.items() if name in table]
    chosen = [(method, data, kind.settings_for("default", data)) for method, kind in METHODS.items() for data in DATA]
    return "; ".join(of_data + [f"{method} on {data} {table[name]}" for method, data, table in chosen if name in table])


app.command("train")(
    with_options(
        train_command, OPTIONS, {"method": {FIRST_METHOD: METHODS[FIRST_METHOD], **METHODS}}, {o.name: _defaults(o.name) for o in OPTIONS}
    )
)


@app.command("evaluate")
def evaluate_command(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run.")],
    episodes: Annotated[int, typer.Option(help="Episodes of meta-validation and of meta-test.")] = 600,
    root: Annotated[str | None, typer.Option(help="Folder of the data set, if it has moved.")] = None,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Evaluate a run's best model: accuracy with its interval, sweep of inner steps, figures."""
    with _clear_errors(debug), RunDirectory(run_dir) as run:
        check_number("evaluate: --episodes", episodes, 1)
        config = _of_run(run, root=root, device=device)
        _show(run, config, evaluate_again(run, config, open_data(config, _reporter()), episodes, _reporter()))


@app.command("predict")
def predict_command(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run.")],
    support: Annotated[Path, typer.Argument(metavar="SUPPORT_FOLDER", help="A folder of class folders with a few example images each.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="The images to label.")],
    csv: Annotated[Path | None, typer.Option(help="Also write the probabilities to this file.")] = None,
    invert: Annotated[
        bool, typer.Option("--invert", help="Swap dark and light: for ink on paper, where a model knows white on black.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Label your own images with a run's best model, from a few examples of each class."""
    with _clear_errors(debug), RunDirectory(run_dir, locked=False) as run:
        config = load_config(run)
        found = predict(run, config, support, images, lambda: open_data(config, _reporter()).image_shape, invert)
        if csv is not None:
            write_csv(found, csv)
        _show_predictions(found)


@app.command("reproduce")
def reproduce_command(
    target: Annotated[str, typer.Argument(metavar="TARGET", help=f"One of {', '.join(TABLES)}.", show_default=False)],
    data: Annotated[str, typer.Option(help=f"Data set. One of {', '.join(DATA)}.")] = "miniimagenet",
    root: Annotated[str | None, typer.Option(help="Folder with the files of the data set.")] = None,
    budget: Annotated[str, typer.Option(help="Of each run: iterations (2000), minutes (30min), or paper.")] = "2000",
    out: Annotated[Path, typer.Option(help="Folder of the runs and the result; the same one goes on where it stopped.")] = Path(
        "reproduction"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the networks and of the episodes.")] = 0,
    device: Annotated[str, typer.Option(help=f"Where to compute: {', '.join(DEVICES)}.")] = "cpu",
    shorten: Annotated[bool, typer.Option("--quick", help="30 iterations, 20 episodes a run: to try it out.")] = False,
    debug: Debug = False,
) -> None:
    """Run the systems of the paper's tables and figures, beside its figures (Franceschi et al. 2017, arXiv:1712.06283)."""
    with _clear_errors(debug) as ending:
        ending.interrupted = "Interrupted; what is done is saved. The same command goes on."
        changes = {"data": data, "root": root, "seed": seed, "device": device}
        for file in reproduce(target, out, budget, changes, lambda c: open_data(c, _reporter()), _reporter(), echo, shorten):
            echo(f"written: {file}")


@app.command("sweep")
def sweep_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A TOML file: command, seeds, metrics, [settings], [grid].")],
    out: Annotated[
        Path | None, typer.Option(help=with_default("Folder of the runs and the table; the same one goes on.", "runs/NAME of FILE"))
    ] = None,
    shorten: Annotated[bool, typer.Option("--quick", help="Every run cut to some seconds: to try it out.")] = False,
    debug: Debug = False,
) -> None:
    """Run a command for every combination of settings and for several seeds; write one table."""
    with _clear_errors(debug, together=True) as ending:
        ending.ranks.divide_cores()
        ending.interrupted = "Interrupted; what is done is saved. The same command goes on."
        folder = Path("runs") / file.stem if out is None else out
        sweep = read_sweep(file, shorten)
        written, missing = run_sweep(sweep, folder, _reporter() if ending.ranks.rank == 0 else SilentReporter(), echo, ending.ranks)
        for path in written:
            echo(f"written: {path}")
        if missing:
            raise RunError(
                f"sweep: {missing} of {len(sweep.cells)} runs have no result yet, expected one of each; the same command goes on"
            )


def tune_command(  # its other options are made from those of the configuration, below
    changes: dict[str, Any],
    problem: ProblemName = None,
    run_dir: Annotated[Path | None, typer.Option(help=with_default("New directory of the run.", "runs/..."))] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run; with more --iterations, beyond its end.")] = None,
    shorten: Annotated[bool, typer.Option("--quick", help="A short form of some seconds: to try it out.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write event files.")] = False,
    debug: Debug = False,
) -> None:
    """Tune the hyperparameters of a problem by hypergradients, and hold the result against what it competes with."""
    with _clear_errors(debug) as ending:
        if tensorboard:
            require_tensorboard()
        if problem is None and resume is None:
            raise ArgumentError(f"tune: PROBLEM is missing, expected one of {', '.join(PROBLEMS)}; pass one, or --resume RUN")
        with tuning.open_run(problem, changes, run_dir, resume, shorten) as (run, config, task):
            echo(f"{config.problem_name} on {task.description}; run {run.path}")
            ending.interrupted = f"Interrupted; the run is saved. Go on with:  hypergrad tune --resume {run.path}"
            if config.problem.single_run:
                ending.interrupted = f"Interrupted; {config.problem_name} is one training run, which cannot go on. Start a new one."
            found = tuning.tune_run(run, config, task, run.path / EVENTS if tensorboard else None)
            for line in tuning.report(run, config, found):
                echo(line)


app.command("tune")(with_options(tune_command, tuning.OPTIONS, {}, tuning.defaults()))


def plan_command(  # its other options are made from those of the configuration, below
    changes: dict[str, Any],
    problem: Annotated[str, typer.Argument(metavar="PROBLEM", help=f"One of {', '.join(PROBLEMS)}.", show_default=False)],
    memory: Annotated[float | None, typer.Option(help="The most memory that a pass may take, in MB.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw memory against time into this PNG file.")] = None,
    shorten: Annotated[bool, typer.Option("--quick", help="Of the problem's short form.")] = False,
    debug: Debug = False,
) -> None:
    """Predict seconds and memory of every way to a problem's hypergradient, and pick the fastest one that fits."""
    with _clear_errors(debug):
        config, found = plan_problem(problem, changes, shorten, None if memory is None else round(1e6 * memory))
        echo(f"{config.problem_name}: one hypergradient, as measured on this device just now")
        echo(str(found))
        if plot is not None:
            write_file(plot, plan_figure(found, config.problem.title))
            echo(f"written: {plot}")


app.command("plan")(with_options(plan_command, tuning.OPTIONS, {}, tuning.defaults()))


@app.command("profile", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def profile_command(
    context: typer.Context,
    script: Annotated[Path, typer.Argument(metavar="SCRIPT", help="A Python script; what follows it are its own arguments.", exists=True)],
    plot: Annotated[Path | None, typer.Option(help="Also draw the table into this PNG file; give it before SCRIPT.")] = None,
) -> None:
    """Run a script and show where the time of its replayed steps went: seconds, bytes and flop of every instruction."""
    sys.argv = [str(script), *context.args]
    with profile() as found:
        runpy.run_path(str(script), run_name="__main__")
    echo(str(found))
    if plot is not None:
        write_file(plot, seconds_of_instructions(found, f"replayed steps of {script.name}"))
        echo(f"written: {plot}")


@app.command("problems")
def problems_command() -> None:
    """List the problems that `hypergrad tune` solves, with their papers."""
    table = Table("PROBLEM", "what it is", "hypergradients by", "source", box=None, pad_edge=False)
    for name, kind in PROBLEMS.items():
        table.add_row(name, kind.title, ", ".join(kind.modes), kind.source)
    show(table, 200)


@app.command("methods")
def methods_command() -> None:
    """List the few-shot methods, with their presets, batch normalization and papers."""
    table = Table("--method", "what it is", "presets", "batch normalization by the statistics of", "source", box=None, pad_edge=False)
    for name, kind in METHODS.items():
        table.add_row(name, kind.title, ", ".join(kind.presets()), kind.batch_norm, kind.source)
    show(table, 200)


@app.command("info")
def info_command(
    bug_report: Annotated[bool, typer.Option("--bug-report", help="More of the machine, without paths, to paste into an issue.")] = False,
) -> None:
    """Show versions, compiled extensions (and why one is missing), SIMD level, threads and GPU."""
    found = _environment()
    if bug_report:
        found = {name: without_paths(value) for name, value in found.items() if name not in PRIVATE} | machine()
        echo("```text")
    for name, value in found.items():
        echo(f"{name:<16} {value}")
    if bug_report:
        echo("```")


def _environment() -> dict[str, str]:
    """Everything that decides how this installation computes. It works without the compiled extension, too."""
    build, kernels = HOST.build_info(), HOST.kernels()
    missing = build.get("missing")
    if missing is None:
        host = f"{build['compiler']}, {len(kernels)} kernels"
        simd = f"{build['simd']} in use; compiled {', '.join(build['simd_compiled'])}; "
        simd += f"this processor has {', '.join(build['simd_supported'])}"
        threads, cuda = str(build["threads"]), str(build["cuda"])
    else:
        host, cuda = f"missing: {missing}", "unknown without _host"
        simd = threads = "none without _host"
    if "missing" not in CUDA.build_info():
        cuda = f"{CUDA.build_info()['cuda']}, {len(CUDA.kernels())} kernels"
    found = {
        "hypergrad": __version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "extension _host": host,
        "extension _cuda": cuda,
        "SIMD": simd,
        "threads": f"{threads} ({os.cpu_count()} processors)",
        "GPU": f"{CUDA.device_count()} usable",
        "methods": ", ".join(METHODS),
        "problems": ", ".join(PROBLEMS),
        "data cache": str(cache_dir()),
    }
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _of_run(run: RunDirectory, **given: Any) -> Config:
    """A run's configuration with some options set. None leaves an option as it is."""
    return changed(load_config(run), {name: value for name, value in given.items() if value is not None})


def _show(run: RunDirectory, config: Config, result: dict[str, Any]) -> None:
    """The result beside the baseline, and the files."""
    share = 1.0 - result["test_accuracy"], 1.0 - result["baseline_accuracy"]
    echo(f"\nfiles in {run.path}:")
    for name, meaning in FILES.items():
        if (run.path / name).exists():
            echo(f"  {name:<18} {meaning}")
    sizes = f"{config.episodes.n_way}-way {config.episodes.k_shot}-shot"
    steps = f", T = {result['n_steps']} inner steps (best on meta-validation)" if len(result["sweep"]) > 1 else ""
    echo(f"\nmeta-test, {sizes}, {result['episodes']} episodes of unseen classes{steps}:")
    for name, key in ((config.method.title, "test"), ("pixel nearest neighbour", "baseline")):
        echo(f"  {name:<24} {100 * result[f'{key}_accuracy']:6.2f} ± {100 * result[f'{key}_interval']:.2f} %")
    if share[1] > 0:
        echo(f"  its error is {share[0] / share[1]:.2f} times the baseline's")


def _show_predictions(found: Predictions) -> None:
    """A line for each image, and what was done to the images."""
    table = Table("image", "label", *map(cell, found.classes), box=None, pad_edge=False)
    for name, label, shares in zip(found.paths, found.labels, found.probabilities, strict=True):
        table.add_row(cell(name), cell(label), *(f"{100 * share:.1f} %" for share in shares))
    show(table, 10_000)
    if found.resized:
        height, width, _ = found.image_shape
        echo(f"resized to {height}x{width}, the model's size: {', '.join(found.resized)}")


def _reporter() -> Reporter:
    return Reporter(Console(stderr=True, force_terminal=sys.stderr.isatty()))


@dataclass
class _Ending:
    """How a command ends.

    Args: ranks: the processes that run it together; interrupted: what an interrupt makes it say; watch: speaks where this one is killed,
        as a launcher does when another one is lost.
    """

    ranks: Ranks = ALONE
    interrupted: str = ""
    watch: Watch | None = None

    def end(self, status: int, text: str, *, err: bool = True) -> typer.Exit:
        """Say one line, and end the other processes, too. Returns: what to raise."""
        if self.ranks.end(status) and (self.ranks.size > 1 or not startup.launched_rank()):
            echo(f"process {self.ranks.rank}: {text}" if self.ranks.rank > 0 else text, err=err)
        return self.leave(status)

    def leave(self, status: int) -> typer.Exit:
        """Close what is open. Returns: what to raise. Where another process does not answer, this one ends here."""
        if self.watch is not None:
            self.watch.close()
            self.watch = None
        if self.ranks.waits:
            sys.stdout.flush()
            os._exit(status)
        return typer.Exit(status)


@contextlib.contextmanager
def _clear_errors(debug: bool, together: bool = False) -> Iterator[_Ending]:
    """Print an error raised on purpose, or an interrupt, as one line; anything else is a fault and keeps its traceback.

    Args: debug: keep all tracebacks; together: whether the command is one that several processes may run together.
    """
    ending = _Ending()
    try:
        ending.ranks = world()  # until MPI has started, an interrupt ends the process at once
        with interruptible():
            if ending.ranks.size > 1 and not together:
                raise ArgumentError(
                    f"mpiexec: {ending.ranks.size} processes run this command, expected one because only train and sweep share their work; "
                    "run it without mpiexec"
                )
            yield ending
    except Exception as error:
        if isinstance(error, EndedError):
            raise ending.leave(error.status) from error
        if isinstance(error, HypergradError) and not debug:
            raise ending.end(1, f"error: {error}") from error
        if ending.ranks.size > 1:
            raise ending.end(1, traceback.format_exc()) from error
        raise
    except KeyboardInterrupt:
        raise ending.end(startup.INTERRUPTED, f"\n{ending.interrupted or 'Interrupted.'}", err=not ending.interrupted) from None
    else:
        ending.leave(0)


if __name__ == "__main__":
    app()
