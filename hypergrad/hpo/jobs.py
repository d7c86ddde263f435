"""What the command does with a tuning run: begin it or go on with it, tune, evaluate, and say what came out."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..backends import to_host
from ..errors import ArgumentError
from ..runs.command import check_resume
from ..runs.configuration import changed, options_of
from ..runs.curves import CURVE_PNG, curve, plain
from ..runs.directory import CONFIG, METRICS, MODEL, RESULT, STATE, RunDirectory
from ..runs.loop import Record, State, check_extension, train
from ..runs.usage import usage
from ..runs.view import EVENTS, training_view
from .config import Config, load_config, make_config, save_config
from .problem import Evaluation, SingleRun, Task
from .problems import PROBLEMS
from .tuning import Tuning

OPTIONS = tuple(options_of(Config))
ON_RESUME = {o.name: o.flag for o in OPTIONS if o.field.metadata["on_resume"]}
FILES = {
    CONFIG: "the settings",
    METRICS: "losses and other numbers, one JSON object a line",
    MODEL: "the hyperparameters with the best validation loss",
    STATE: "what --resume goes on from",
    RESULT: "the result below as JSON",
    CURVE_PNG: "losses and scores against outer iterations",
    EVENTS: "event files for tensorboard --logdir",
}


def defaults() -> dict[str, str]:
    """The defaults of the options that a problem changes, for the options' help. Cost: O(options)."""
    return {
        o.name: ", ".join(f"{name} {kind.settings[o.name]}" for name, kind in PROBLEMS.items() if o.name in kind.settings) for o in OPTIONS
    }


@contextlib.contextmanager
def open_run(
    problem: str | None, changes: Mapping[str, Any], run_dir: Path | None, resume: Path | None, shorten: bool
) -> Iterator[tuple[RunDirectory, Config, Task | SingleRun]]:
    """A new run, or one to go on with.

    Args:
        problem: a key of `PROBLEMS`; changes: options by name; run_dir: of the new run, None for the next free one below runs/.
        resume: an existing run instead; shorten: whether to take the problem's short form.
    Yields: the run, its configuration and its task; wrong options and wrong data leave no new directory.
    Raises: ArgumentError, DataError, RunError. Cost: that of `Problem.open`.
    """
    if resume is None:
        config = make_config(shorten=shorten, **({} if problem is None else {"problem": problem}), **changes)
        task = config.problem.open(config.seed)
        with RunDirectory.create(run_dir, save_config(config), config.problem_name) as run:
            yield run, config, task
        return
    own = ["PROBLEM"] * (problem is not None) + ["--quick"] * shorten + ["--run-dir"] * (run_dir is not None)
    check_resume("tune", changes, ON_RESUME, own)
    with RunDirectory(resume) as run:
        before = load_config(run)
        if before.problem.single_run:
            raise ArgumentError(
                f"tune: {run.path} is a run of {before.problem_name}, expected one with an outer loop because one training run with its "
                "tangents is not stored on the way; start a new run"
            )
        config = changed(before, changes)
        check_extension(run, before.training, config.training)
        task = config.problem.open(config.seed)
        run.write_json(CONFIG, save_config(config))
        yield run, config, task


def tune_run(run: RunDirectory, config: Config, task: Task | SingleRun, events: Path | None = None, quiet: bool = False) -> Evaluation:
    """Tune, or go on; evaluate; write result.json and the figures.

    Args: events: folder for TensorBoard's event files, None for none; quiet: show nothing on the way.
    Returns: the evaluation. Raises: as `runs.loop.train`. Cost: tuning, and the task's evaluation.
    """
    begun = time.monotonic()
    with training_view(config.training.iterations, events, quiet) as view:
        if isinstance(task, SingleRun):
            state, evaluate = _run_once(run, config, task, view)
        else:
            state = train(run, config.training, Tuning(config, task), view)
            evaluate = functools.partial(task.evaluate, state.best_hparams)
    title = f"{config.problem.title} (run {plain(run.path.name)})\n{task.description}"
    found = evaluate(title)
    for name, content in found.figures.items():
        run.write(name, content)
    names = ("outer iterations", "validations")
    run.write(CURVE_PNG, curve(run.read_metrics(), title, found.references, found.test, config.problem.score, names))
    result = {"problem": config.problem_name, "data": task.description, "validation_score": state.best_score, **found.numbers}
    run.write_json(RESULT, {**result, **usage(run, config.training, state, time.monotonic() - begun)})
    return found


def _run_once(
    run: RunDirectory, config: Config, task: SingleRun, view: Callable[[Record], None]
) -> tuple[State, Callable[[str], Evaluation]]:
    """The run of a `SingleRun`, with its records and its model. Returns: its end as the loop's state, and its evaluation."""
    begun = time.monotonic()

    def report(record: Record) -> None:
        timed = {**record, "seconds": round(time.monotonic() - begun, 4)}
        run.append_metrics(timed)
        view(timed)

    mode: Any = config.hypergradient.mode
    done = task.run(config.training, mode, report)
    score, updates = -float(done.values[-1]), len(done.values)
    seconds = time.monotonic() - begun
    state = State(updates, done.hparams, None, task.description, done.hparams, score, updates, 0, run.metrics_bytes(), seconds)
    metadata = {"iteration": updates, "validation_score": score, "problem": config.problem_name}
    run.write_tensors(MODEL, {name: to_host(value) for name, value in done.hparams.items()}, metadata)
    return state, functools.partial(task.evaluate, done)


def report(run: RunDirectory, config: Config, found: Evaluation) -> Iterator[str]:
    """What the command says at the end, line by line. Args: found: the evaluation. Cost: O(files)."""
    yield f"\nfiles in {run.path}:"
    for name, meaning in {**FILES, **config.problem.figures}.items():
        if (run.path / name).exists():
            yield f"  {name:<18} {meaning}"
    yield f"\n{config.problem.title}{':' if config.problem.single_run else ', with the hyperparameters of the best validation:'}"
    width = max(len(name) for name, _ in found.lines)
    for name, value in found.lines:
        yield f"  {name:<{width}}  {value}"
