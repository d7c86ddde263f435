"""What the commands do with a few-shot run: open its data, train and evaluate it, evaluate it again."""

import time
from pathlib import Path
from typing import Any

from ..backends import backend_on
from ..data import MetaDataset, open_dataset
from ..data.report import Reporter
from ..runs.directory import RESULT, RunDirectory
from ..runs.loop import load_model, train
from ..runs.usage import usage
from ..runs.view import training_view
from .config import Config
from .evaluation import evaluate_run, write_curve
from .problem import FewShot, sampler

EVALUATION = "evaluation.json"


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


def train_run(run: RunDirectory, config: Config, data: MetaDataset, reporter: Reporter, events: Path | None = None) -> dict[str, Any]:
    """Train, or go on; evaluate; write result.json and the figures.

    Args: events: folder for TensorBoard's event files, None for none.
    Returns: what result.json holds. Raises: as `runs.loop.train`. Cost: training, and `evaluate_run`.
    """
    begun, problem = time.monotonic(), FewShot(config, data)
    with training_view(config.training.iterations, events) as view:
        state = train(run, config.training, problem, view)
    result = evaluate_run(run, config, data, state.best_hparams, config.evaluation.test_episodes, reporter)
    result |= usage(run, config.training, state, time.monotonic() - begun)
    write_curve(run, config, data, result, reporter)
    run.write_json(RESULT, result)
    return result


def evaluate_again(run: RunDirectory, config: Config, data: MetaDataset, n_episodes: int, reporter: Reporter) -> dict[str, Any]:
    """Evaluate a run's best model; write evaluation.json and the figures.

    Returns: what evaluation.json holds. Raises: RunError if the model is missing, damaged or of another network. Cost: `evaluate_run`.
    """
    hparams, metadata = load_model(run, FewShot(config, data).init())
    result = evaluate_run(run, config, data, hparams, n_episodes, reporter)
    run.write_json(EVALUATION, {**result, "iteration": metadata["iteration"]})
    return result
