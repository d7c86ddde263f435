"""What the commands do with a few-shot run: begin it or go on with it, open its data, train and evaluate it, evaluate it again."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..backends import backend_on
from ..data import MetaDataset, open_dataset
from ..data.report import Reporter, SilentReporter
from ..errors import ArgumentError
from ..parallel import ALONE, Ranks
from ..runs.command import check_resume
from ..runs.configuration import changed, options_of
from ..runs.directory import CONFIG, RESULT, RunDirectory
from ..runs.loop import check_extension, load_model, train
from ..runs.usage import usage
from ..runs.view import training_view
from .config import Config, load_config, make_config, quick, save_config
from .evaluation import evaluate_run, write_curve
from .problem import FewShot, sampler

EVALUATION = "evaluation.json"
OPTIONS = tuple(options_of(Config))
ON_RESUME = {o.name: o.flag for o in OPTIONS if o.field.metadata["on_resume"]}


def open_data(config: Config, reporter: Reporter) -> MetaDataset:
    """The run's data set; a missing device and episodes it cannot give are refused here, before anything is written.

    Raises: DeviceError, DataError, ShapeError. Cost: that of `open_dataset`.
    """
    backend_on(config.device)
    chosen, network = config.dataset, config.network
    data = open_dataset(chosen.data, chosen.root, n_way=config.episodes.n_way, reporter=reporter, image_size=chosen.image_size)
    method = config.sized_method(data.train.n_classes)
    train, validation, _ = (sampler(config, split) for split in (data.train, data.validation, data.test))
    method.samplers(train, validation)
    method.init(config.seed, data.image_shape, network.filters, network.blocks)
    return data


@contextlib.contextmanager
def open_run(
    changes: Mapping[str, Any], run_dir: Path | None, resume: Path | None, shorten: bool, reporter: Reporter, ranks: Ranks = ALONE
) -> Iterator[tuple[RunDirectory | None, Config, MetaDataset]]:
    """A new run, or one to go on with.

    Args:
        changes: options by name; run_dir: of the new run, None for the next free one below runs/.
        resume: an existing run instead; shorten: whether to take the short form.
        reporter: shows what opening the data has to say; ranks: the processes that train together.
    Yields: the run (in process 0, None in the others), its configuration and its data. Wrong options and data leave no new directory.
    Raises: ArgumentError, DataError, RunError. Cost: that of `open_data`.
    """
    config: Config | None = None
    with contextlib.ExitStack() as stack:
        run: RunDirectory | None = None
        if ranks.rank == 0 and resume is None:
            config = make_config(**changes)
            if ranks.comm is not None and "per_episode" not in changes and (config.method.by_episode or ranks.size > 1):
                config = changed(config, {"per_episode": True})
            config = quick(config) if shorten else config
            data = open_data(config, reporter)
            check_processes(config, ranks)
            run = stack.enter_context(RunDirectory.create(run_dir, save_config(config), f"{config.dataset.data}-{config.task}"))
        elif ranks.rank == 0 and resume is not None:
            check_resume("train", changes, ON_RESUME, ["--quick"] * shorten + ["--run-dir"] * (run_dir is not None))
            run = stack.enter_context(RunDirectory(resume))
            before = load_config(run)
            config = changed(before, changes)
            check_extension(run, before.training, config.training)
            check_processes(config, ranks)
            data = open_data(config, reporter)
            run.write_json(CONFIG, save_config(config))
        config = ranks.broadcast(config)
        assert config is not None
        if config.device == "cuda":
            ranks.divide_gpus()
        if ranks.rank > 0:  # the first process has filled the cache
            data = open_data(config, SilentReporter())
        yield run, config, data


def check_processes(config: Config, ranks: Ranks) -> None:
    """Raise ArgumentError where several processes are to share a run that adds up gradients in one pass. Cost: O(1)."""
    if ranks.size > 1 and not config.per_episode:
        raise ArgumentError(
            f"train: the run takes the gradient of a meta-batch in one pass, expected that of each episode because {ranks.size} processes "
            "share them; go on in one process, or start a new run with --per-episode"
        )


def train_run(
    run: RunDirectory | None,
    config: Config,
    data: MetaDataset,
    reporter: Reporter,
    events: Path | None = None,
    ranks: Ranks = ALONE,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train, or go on; evaluate; write result.json and the figures.

    Args: run: in process 0, None in the others; events: folder for TensorBoard's event files, None for none; ranks: the processes that
        train together; quiet: show nothing on the way.
    Returns: what result.json holds, {} without a run. Raises: as `runs.loop.train`. Cost: training, and `evaluate_run`.
    """
    begun, problem = time.monotonic(), FewShot(config, data, ranks)
    with training_view(config.training.iterations, events, quiet or run is None) as view:
        state = train(run, config.training, problem, view, ranks=ranks)
    result = evaluate_run(run, config, data, state.best_hparams, config.evaluation.test_episodes, reporter, ranks)
    if run is not None:
        result |= usage(run, config.training, state, time.monotonic() - begun)
        write_curve(run, config, data, result, reporter)
        run.write_json(RESULT, result)
    ranks.broadcast(None)  # the other processes wait for the files
    return result


def evaluate_again(run: RunDirectory, config: Config, data: MetaDataset, n_episodes: int, reporter: Reporter) -> dict[str, Any]:
    """Evaluate a run's best model; write evaluation.json and the figures.

    Returns: what evaluation.json holds. Raises: RunError if the model is missing, damaged or of another network. Cost: `evaluate_run`.
    """
    hparams, metadata = load_model(run, FewShot(config, data).init())
    result = evaluate_run(run, config, data, hparams, n_episodes, reporter)
    run.write_json(EVALUATION, {**result, "iteration": metadata["iteration"]})
    return result
