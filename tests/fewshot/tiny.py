"""A few-shot problem that trains in a second; run as a program, it trains until done or killed."""

import sys

import numpy as np

from hypergrad.data import ImageClasses, MetaDataset
from hypergrad.errors import RunError
from hypergrad.fewshot.config import Config, make_config, save_config
from hypergrad.fewshot.methods import METHODS
from hypergrad.fewshot.pretrained import PretrainedMethod
from hypergrad.fewshot.problem import FewShot
from hypergrad.runs.directory import RunDirectory
from hypergrad.runs.loop import State, train


def tiny_split(name: str, classes: int, seed: int, per_class: int = 10, size: int = 8) -> ImageClasses:
    """Random binary prototypes with noise, one class after the other."""
    rng = np.random.default_rng(seed)
    prototypes = rng.integers(0, 2, (classes, 1, size, size, 1)) * 150
    images = prototypes + rng.integers(0, 105, (classes, per_class, size, size, 1))
    offsets = np.arange(classes + 1, dtype=np.int64) * per_class
    names = tuple(f"{name}{c}" for c in range(classes))
    return ImageClasses(name, images.reshape(-1, size, size, 1).astype(np.uint8), offsets, names)


def tiny_data() -> MetaDataset:
    return MetaDataset("tiny", tiny_split("train", 12, 1), tiny_split("validation", 6, 2), tiny_split("test", 6, 3))


def tiny_config(method: str = "hyper-representation", **changes: object) -> Config:
    sizes = {
        **{"n_way": 3, "k_shot": 1, "n_query": 4, "filters": 4, "blocks": 2, "meta_batch": 2, "outer_lr": 0.01},
        **{"iterations": 60, "eval_every": 7, "eval_episodes": 10, "test_episodes": 10},
    }
    steps = {"n_steps": 3, "sweep": (1, 2, 3)} if METHODS[method]().usual_steps else {}
    batch = {"batch_size": 16} if issubclass(METHODS[method], PretrainedMethod) else {}
    return make_config(method=method, **{**sizes, **steps, **batch, **changes})


def tiny_train(run: RunDirectory, config: Config, *args: object, data: MetaDataset | None = None, **options: object) -> State:
    return train(run, config.training, FewShot(config, data or tiny_data()), *args, **options)


def main(path: str) -> None:
    config = tiny_config()
    try:
        run = RunDirectory(path)
    except RunError:
        run = RunDirectory.create(path, save_config(config))
    with run:
        tiny_train(run, config, snapshot_s=0.01)


if __name__ == "__main__":
    main(sys.argv[1])
