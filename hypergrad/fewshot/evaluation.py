"""The final evaluation of a run: sweep of inner steps, meta-test accuracy, pixel baseline and figures."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..backends import place, to_host
from ..data import Accuracy, ImageClasses, MetaDataset, pixel_baseline
from ..data.report import Reporter
from ..parallel import ALONE, Ranks
from ..runs.curves import CURVE_PNG, Reference, curve, plain
from ..runs.directory import RunDirectory
from . import plots
from .config import Config
from .method import Array, HParams
from .network import count_blocks
from .problem import Evaluation, evaluate, sampler

STEPS_PNG, PAIRS_PNG = "steps.png", "pairs.png"


def evaluate_run(
    run: RunDirectory | None, config: Config, data: MetaDataset, hparams: HParams, n_episodes: int, reporter: Reporter, ranks: Ranks = ALONE
) -> dict[str, Any]:
    """Meta-test accuracy with T chosen on meta-validation; writes pairs.png, and steps.png where there are inner steps.

    Args:
        run: where the figures go; None in a process that is not the first one.
        config: the run's configuration; data: its data set; hparams: its best parameters.
        n_episodes: episodes of meta-validation and of meta-test, and of the baseline (the same ones).
        reporter: shows progress; ranks: the processes that share the episodes.
    Returns: what result.json and evaluation.json hold: accuracies as shares, intervals as half widths. Without a run nothing.
    Raises: RunError if a figure cannot be written.
    Cost: 2 * n_episodes runs of the method with the most inner steps that are tried.
    """
    method = config.sized_method(data.train.n_classes)
    placed = {name: place(value, config.device) for name, value in hparams.items()}
    hparams = {name: to_host(value) for name, value in hparams.items()}  # for the figures
    found: dict[str, Evaluation] = {}
    for name, split in (("validation", data.validation), ("test", data.test)):
        with reporter.progress(f"evaluating on meta-{name}", n_episodes) as tick:
            episodes = sampler(config, split.on(config.device))
            found[name] = evaluate(method, placed, episodes, n_episodes, method.steps, tick, config.graphs, ranks)
    if run is None:
        return {}
    validation, test = found["validation"], found["test"]
    chosen = validation.best_steps()
    baseline = pixels(config, data.test, n_episodes, reporter)
    title = title_of(run, config, data)
    if len(test.steps) > 1:
        run.write(STEPS_PNG, plots.steps(validation, test, chosen, title, 1.0 / config.episodes.n_way))
    if count_blocks(hparams):
        rows = [
            plots.find_pairs(hparams, *first_images(config, split), name=name)
            for name, split in (("meta-train", data.train), ("meta-test", data.test))
        ]
        run.write(PAIRS_PNG, plots.pairs(rows, config.seed, title))
    return {
        "data": data.describe(),
        "method": config.method_name,
        "n_way": config.episodes.n_way,
        "k_shot": config.episodes.k_shot,
        "episodes": n_episodes,
        "n_steps": chosen,
        **_numbers(test=test.accuracy(chosen), baseline=baseline),
        "validation_accuracy": validation.accuracy(chosen).mean,
        "sweep": [{"n_steps": n, **_numbers(validation=validation.accuracy(n), test=test.accuracy(n))} for n in test.steps],
    }


def _numbers(**accuracies: Accuracy) -> dict[str, float]:
    return {f"{name}_{key}": value for name, a in accuracies.items() for key, value in (("accuracy", a.mean), ("interval", a.interval))}


def title_of(run: RunDirectory, config: Config, data: MetaDataset) -> str:
    """What a figure shows: method, data, n-way k-shot and the run's name. Cost: O(1)."""
    sizes = f"{config.episodes.n_way}-way {config.episodes.k_shot}-shot"
    return f"{config.method.title} on {data.name}, {sizes} (run {plain(run.path.name)})"


def first_images(config: Config, split: ImageClasses) -> tuple[Array, list[str]]:
    """The images (N, H, W, C) of the first episode that the split's sampler draws, and the names of their classes. Cost: one episode."""
    drawn = sampler(config, split)
    episodes, (classes, _, _) = drawn.batch(0), drawn.indices(0)
    labels = np.concatenate([to_host(episodes.support_labels[0]), to_host(episodes.query_labels[0])])
    images = np.concatenate([to_host(episodes.support[0]), to_host(episodes.query[0])])
    return images, [split.class_names[classes[label]] for label in labels]


def pixels(config: Config, split: ImageClasses, n_episodes: int, reporter: Reporter) -> Accuracy:
    """Nearest neighbour on raw pixels, on the episodes that the split's sampler draws. Cost: `n_episodes` episodes."""
    sizes = config.episodes
    with reporter.progress(f"pixel baseline on meta-{split.name}", n_episodes) as tick:
        return pixel_baseline(split, sizes.n_way, sizes.k_shot, sizes.n_query, n_episodes=n_episodes, seed=config.seed, tick=tick)


def write_curve(run: RunDirectory, config: Config, data: MetaDataset, result: Mapping[str, Any], reporter: Reporter) -> None:
    """Draw curve.png from metrics.jsonl, with chance, the pixel baseline on the validation episodes, and the test result.

    Raises: RunError if it cannot be written. Cost: `eval_episodes` episodes of the baseline.
    """
    baseline = pixels(config, data.validation, config.evaluation.eval_episodes, reporter)
    lines = [Reference("pixel nearest neighbour, meta-validation", baseline.mean), Reference("chance", 1.0 / config.episodes.n_way)]
    test = (result["test_accuracy"], result["test_interval"])
    run.write(CURVE_PNG, curve(run.read_metrics(), title_of(run, config, data), lines, test))
