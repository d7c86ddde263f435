"""The command line: `hypergrad train`, `hypergrad evaluate RUN`, `hypergrad info`."""

import contextlib
import importlib.metadata
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from . import __version__
from .backends import DEVICES, backend_on
from .backends.cuda import CUDA
from .backends.host import HOST
from .data import MetaDataset, cache_dir, open_dataset
from .data.report import Reporter, Tick
from .errors import ArgumentError, HypergradError
from .fewshot.config import DATA, PRESETS, Config, make_config, quick
from .fewshot.evaluation import CURVE_PNG, PAIRS_PNG, STEPS_PNG, evaluate_run, write_curve
from .fewshot.events import EventWriter, require_tensorboard
from .fewshot.run import CONFIG, METRICS, MODEL, RESULT, STATE, RunDirectory
from .fewshot.training import Record, finished, load_model, sampler, train

EVALUATION = "evaluation.json"
EVENTS = "tensorboard"
PACKAGES = ("numpy", "optree", "safetensors", "matplotlib", "pillow", "typer", "rich", "tensorboard")
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

app = typer.Typer(
    help="Differentiate through training: meta-train a hyper-representation for few-shot learning.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.command("train")
def train_command(
    data: Annotated[str | None, typer.Option(help=f"Data set: {', '.join(DATA)}. [default: glyphs]")] = None,
    root: Annotated[str | None, typer.Option(help="Folder with the files of the data set.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the images. [default: the data's]")] = None,
    preset: Annotated[str | None, typer.Option(help=f"Settings: {', '.join(PRESETS)}. [default: default]")] = None,
    n_way: Annotated[int | None, typer.Option(help="Classes of an episode.")] = None,
    k_shot: Annotated[int | None, typer.Option(help="Support images per class.")] = None,
    n_query: Annotated[int | None, typer.Option(help="Query images per class.")] = None,
    filters: Annotated[int | None, typer.Option(help="Filters of every block.")] = None,
    steps: Annotated[int | None, typer.Option(help="Inner steps T in meta-training.")] = None,
    step_size: Annotated[float | None, typer.Option(help="Initial inner step size; it is learned.")] = None,
    centred: Annotated[bool | None, typer.Option(help="Subtract the mean feature of the support set.")] = None,
    meta_batch: Annotated[int | None, typer.Option(help="Episodes per outer iteration.")] = None,
    outer_lr: Annotated[float | None, typer.Option(help="Step size of the outer Adam.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Outer iterations at most.")] = None,
    eval_every: Annotated[int | None, typer.Option(help="Iterations between two validations.")] = None,
    eval_episodes: Annotated[int | None, typer.Option(help="Episodes of one validation.")] = None,
    test_episodes: Annotated[int | None, typer.Option(help="Episodes of the final evaluation.")] = None,
    patience: Annotated[int | None, typer.Option(help="Validations without progress before stopping.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the network and the episodes.")] = None,
    device: Annotated[str | None, typer.Option(help=f"Where to compute: {', '.join(DEVICES)}. [default: cpu]")] = None,
    graphs: Annotated[bool | None, typer.Option(help="On a GPU, replay each meta-step as a CUDA graph. [default: graphs]")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="New directory of the run. [default: runs/...]")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this interrupted run.")] = None,
    shorten: Annotated[bool, typer.Option("--quick", help="30 iterations, 20 episodes: to try it out.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write event files.")] = False,
    debug: Debug = False,
) -> None:
    """Meta-train a hyper-representation and evaluate it on classes it has never seen."""
    changes: dict[str, Any] = {
        "data": data,
        "image_size": image_size,
        "preset": preset,
        "n_way": n_way,
        "k_shot": k_shot,
        "n_query": n_query,
        "filters": filters,
        "n_steps": steps,
        "step_size": step_size,
        "centred": centred,
        "meta_batch": meta_batch,
        "outer_lr": outer_lr,
        "iterations": iterations,
        "eval_every": eval_every,
        "eval_episodes": eval_episodes,
        "test_episodes": test_episodes,
        "patience": patience,
        "seed": seed,
        "device": device,
        "graphs": graphs,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    with _clear_errors(debug):
        begun = time.monotonic()
        if tensorboard:
            require_tensorboard()
        if resume is not None:
            if given or shorten or run_dir is not None:
                raise ArgumentError(
                    f"train: --resume came with {', '.join(sorted(given)) or '--quick or --run-dir'}, expected none "
                    "of the settings because a resumed run keeps its own; leave them away, or start a new run"
                )
            run = RunDirectory(resume)
        else:
            config = make_config(root=root, **given)
            config = quick(config) if shorten else config
            dataset = _open(config, root)  # before the directory is made: wrong data leave no empty run
            run = RunDirectory.create(run_dir, config.to_json(), f"{config.data}-{n_way_k_shot(config)}")
        with run:
            config = Config.from_json(run.read_json(CONFIG), str(run.path / CONFIG))
            if resume is not None:
                dataset = _open(config, root)
            try:
                _train(run, config, dataset, tensorboard, begun)
            except KeyboardInterrupt:
                _say(f"\nInterrupted; the run is saved. Go on with:  hypergrad train --resume {run.path}")
                raise typer.Exit(130) from None


@app.command("evaluate")
def evaluate_command(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run.")],
    episodes: Annotated[int, typer.Option(help="Episodes of meta-validation and of meta-test.")] = 600,
    root: Annotated[str | None, typer.Option(help="Folder of the data set, if it has moved.")] = None,
    device: Annotated[str | None, typer.Option(help=f"Where to compute: {', '.join(DEVICES)}. [default: the run's]")] = None,
    debug: Debug = False,
) -> None:
    """Evaluate a run's best model: accuracy with its interval, sweep of inner steps, figures."""
    with _clear_errors(debug), RunDirectory(run_dir) as run:
        config = Config.from_json(run.read_json(CONFIG), str(run.path / CONFIG))
        config = replace(config, device=device or config.device)
        if episodes < 1:
            raise ArgumentError(f"evaluate: --episodes is {episodes}, expected at least 1; pass for instance 600")
        dataset = _open(config, root)
        hparams, metadata = load_model(run, config, dataset)
        result = evaluate_run(run, config, dataset, hparams, episodes, _reporter())
        run.write_json(EVALUATION, {**result, "iteration": metadata["iteration"]})
        _show(run, config, result)


@app.command("info")
def info_command() -> None:
    """Show versions, compiled extensions (and why one is missing), SIMD level, threads and GPU."""
    for name, value in _environment().items():
        _say(f"{name:<16} {value}")


def _cuda_text(status: str) -> str:
    """The CUDA kernels, runtime and driver; or `status`, why there are none."""
    build = CUDA.build_info()
    return status if "missing" in build else f"{build['cuda']}, {len(CUDA.kernels())} kernels"


def _environment() -> dict[str, str]:
    """What decides how this installation computes; works without the compiled extension, too."""
    build, kernels = HOST.build_info(), HOST.kernels()
    missing = build.get("missing")
    if missing is None:
        host = f"{build['compiler']}, {len(kernels)} kernels"
        simd = f"{build['simd']} in use; compiled {_listed(build['simd_compiled'])}; "
        simd += f"this processor has {_listed(build['simd_supported'])}"
        threads, cuda = str(build["threads"]), str(build["cuda"])
    else:
        host, cuda = f"missing: {missing}", "unknown without _host"
        simd = threads = "none without _host"
    found = {
        "hypergrad": __version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "extension _host": host,
        "extension _cuda": _cuda_text(cuda),
        "SIMD": simd,
        "threads": f"{threads} ({os.cpu_count()} processors)",
        "GPU": f"{CUDA.device_count()} usable",
        "data cache": str(cache_dir()),
    }
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _listed(names: Any) -> str:
    return ", ".join(names)


def _train(run: RunDirectory, config: Config, data: MetaDataset, tensorboard: bool, begun: float) -> None:
    """Train, evaluate, write the result and the curve, print them."""
    _say(f"{n_way_k_shot(config)} on {data.describe()}; preset {config.preset}; run {run.path}")
    with _training_view(config) as view, contextlib.ExitStack() as stack:
        writer: EventWriter | None = None

        def report(record: Record) -> None:
            nonlocal writer
            view(record)
            if tensorboard:
                if writer is None:
                    writer = EventWriter(run.path / EVENTS, record["iteration"])
                    stack.callback(writer.close)
                writer.write(record)

        state = train(run, config, data, report)
    result = evaluate_run(run, config, data, state.best_hparams, config.test_episodes, _reporter())
    result |= {
        "iterations": state.iteration,
        "best_iteration": state.best_iteration,
        "stopped_by": finished(config, state),
        "training_s": round(state.seconds, 2),
        "iteration_s": _iteration_s(run.read_metrics()),
        "command_s": round(time.monotonic() - begun, 2),
        "peak_bytes": _peak_bytes(),
    }
    write_curve(run, config, data, result, _reporter())
    run.write_json(RESULT, result)
    _show(run, config, result)


def _open(config: Config, root: str | None) -> MetaDataset:
    """The run's data set; a missing device and episodes it cannot give are refused here, before anything is written."""
    backend_on(config.device)
    folder = root if root is not None else config.root
    data = open_dataset(config.data, folder, n_way=config.n_way, reporter=_reporter(), image_size=config.image_size)
    for split in (data.train, data.validation, data.test):
        sampler(config, split)
    config.method().init(config.seed, data.image_shape, config.filters, config.blocks)
    return data


def n_way_k_shot(config: Config) -> str:
    """For instance "5way1shot"."""
    return f"{config.n_way}way{config.k_shot}shot"


def _show(run: RunDirectory, config: Config, result: dict[str, Any]) -> None:
    """The result beside the baseline, and the files."""
    share = 1.0 - result["test_accuracy"], 1.0 - result["baseline_accuracy"]
    _say("")
    _say(f"files in {run.path}:")
    for name, meaning in FILES.items():
        if (run.path / name).exists():
            _say(f"  {name:<18} {meaning}")
    _say("")
    _say(
        f"meta-test, {config.n_way}-way {config.k_shot}-shot, {result['episodes']} episodes of unseen classes, T = "
        f"{result['n_steps']} inner steps (best on meta-validation):"
    )
    for name, key in (("hyper-representation", "test"), ("pixel nearest neighbour", "baseline")):
        _say(f"  {name:<24} {100 * result[f'{key}_accuracy']:6.2f} ± {100 * result[f'{key}_interval']:.2f} %")
    if share[1] > 0:
        _say(f"  its error is {share[0] / share[1]:.2f} times the baseline's")


class _LineReporter(Reporter):
    """Messages only, for output that is no terminal."""

    @contextlib.contextmanager
    def progress(self, description: str, total: int) -> Iterator[Tick]:
        """No bar."""
        yield lambda n: None


def _reporter() -> Reporter:
    return Reporter() if sys.stderr.isatty() else _LineReporter()


@contextlib.contextmanager
def _training_view(config: Config) -> Iterator[Any]:
    """A progress bar on a terminal; elsewhere one line for each validation."""
    console = Console()
    if not console.is_terminal:
        yield _say_validation
        return
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[status]}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task: TaskID = bar.add_task("training", total=config.iterations, status="")

        def view(record: Record) -> None:
            if "validation_loss" in record:
                bar.console.print(_validation_line(record), highlight=False, soft_wrap=True)
            else:
                status = f"loss {record['loss']:.3f}  step size {record['step_size']:.3f}"
                bar.update(task, completed=record["iteration"], status=status)

        yield view


def _say_validation(record: Record) -> None:
    if "validation_loss" in record:
        _say(_validation_line(record))


def _validation_line(record: Record) -> str:
    return (
        f"iteration {record['iteration']:6d}  {record['seconds']:7.1f} s  validation loss "
        f"{record['validation_loss']:.4f}  accuracy {100 * record['validation_accuracy']:5.2f} ± "
        f"{100 * record['validation_interval']:.2f} %{'  best' if record['best'] else ''}"
    )


def _iteration_s(metrics: list[Record]) -> float | None:
    """The median seconds of an outer iteration, so that validations do not count; None for a single one."""
    ends = [record["seconds"] for record in metrics if "loss" in record]
    return round(float(np.median(np.diff(ends))), 5) if len(ends) > 1 else None


def _peak_bytes() -> int:
    """The most memory this process has held; macOS counts in bytes, Linux in KiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _say(text: str) -> None:
    typer.echo(text)


@contextlib.contextmanager
def _clear_errors(debug: bool) -> Iterator[None]:
    """Print an error raised on purpose as one line; anything else is a fault and keeps its traceback."""
    try:
        yield
    except HypergradError as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        typer.echo("\nInterrupted.", err=True)
        raise typer.Exit(130) from None


if __name__ == "__main__":
    app()
