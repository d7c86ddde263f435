"""The final evaluation of a run: sweep of inner steps, meta-test accuracy, pixel baseline and figures."""

from pathlib import Path
from typing import Any

import numpy as np

from ..backends import place, to_host
from ..data import Accuracy, ImageClasses, MetaDataset, pixel_baseline
from ..data.report import Reporter
from . import plots
from .config import Config
from .hyper_representation import Evaluation, HParams, evaluate
from .run import RunDirectory
from .training import sampler

STEPS_PNG, PAIRS_PNG, CURVE_PNG = "steps.png", "pairs.png", "curve.png"


def evaluate_run(
    run: RunDirectory, config: Config, data: MetaDataset, hparams: HParams, n_episodes: int, reporter: Reporter
) -> dict[str, Any]:
    """Meta-test accuracy with T chosen on meta-validation; writes steps.png and pairs.png.

    Args:
        run: where the figures go.
        config: the run's configuration; data: its data set; hparams: its best parameters.
        n_episodes: episodes of meta-validation and of meta-test, and of the baseline (the same ones).
        reporter: shows progress.
    Returns: what result.json and evaluation.json hold: accuracies as shares, intervals as half widths.
    Raises: RunError if a figure cannot be written.
    Cost: 2 * n_episodes forward runs of the network.
    """
    method = config.method()
    placed = {name: place(value, config.device) for name, value in hparams.items()}
    hparams = {name: to_host(value) for name, value in hparams.items()}  # for the figures
    found: dict[str, Evaluation] = {}
    for name, split in (("validation", data.validation), ("test", data.test)):
        with reporter.progress(f"evaluating on meta-{name}", n_episodes) as tick:
            episodes = sampler(config, split.on(config.device))
            found[name] = evaluate(method, placed, episodes, n_episodes, config.sweep, tick, graphs=config.graphs)
    validation, test = found["validation"], found["test"]
    chosen = validation.best_steps()
    baseline = pixels(config, data.test, n_episodes, reporter)
    run.write(STEPS_PNG, plots.steps(validation, test, chosen))
    rows = [
        plots.find_pairs(hparams, data_set_images(config, split), name)
        for name, split in (("meta-train", data.train), ("meta-test", data.test))
    ]
    run.write(PAIRS_PNG, plots.pairs(rows, config.seed))
    return {
        "data": data.describe(),
        "n_way": config.n_way,
        "k_shot": config.k_shot,
        "episodes": n_episodes,
        "n_steps": chosen,
        "test_accuracy": test.mean(chosen),
        "test_interval": test.interval(chosen),
        "validation_accuracy": validation.mean(chosen),
        "baseline_accuracy": baseline.mean,
        "baseline_interval": baseline.interval,
        "sweep": [
            {
                "n_steps": n_steps,
                "validation_accuracy": validation.mean(n_steps),
                "validation_interval": validation.interval(n_steps),
                "test_accuracy": test.mean(n_steps),
                "test_interval": test.interval(n_steps),
            }
            for n_steps in test.steps
        ],
    }


def data_set_images(config: Config, split: Any) -> Any:
    """All images (N, H, W, C) of the first data set that the split's sampler draws. Cost: one episode."""
    episodes = sampler(config, split).batch(0)
    return np.concatenate([episodes.support[0], episodes.query[0]])


def pixels(config: Config, split: ImageClasses, n_episodes: int, reporter: Reporter) -> Accuracy:
    """Nearest neighbour on raw pixels, on the episodes that the split's sampler draws. Cost: `n_episodes` episodes."""
    with reporter.progress(f"pixel baseline on meta-{split.name}", n_episodes) as tick:
        return pixel_baseline(split, config.n_way, config.k_shot, config.n_query, n_episodes=n_episodes, seed=config.seed, tick=tick)


def write_curve(run: RunDirectory, config: Config, data: MetaDataset, result: dict[str, Any], reporter: Reporter) -> Path:
    """Draw curve.png from metrics.jsonl, with the pixel baseline (validation episodes) and the test result.

    Returns: its path. Raises: RunError if it cannot be written. Cost: `eval_episodes` episodes of the baseline.
    """
    baseline = pixels(config, data.validation, config.eval_episodes, reporter)
    test = (result["test_accuracy"], result["test_interval"])
    return run.write(CURVE_PNG, plots.curve(run.read_metrics(), baseline.mean, test))
