"""The configuration of a few-shot run, and the settings that a data set and a preset change."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from ..backends import DEVICES
from ..data import OPTIONS as DATA_SETS
from ..errors import ArgumentError, RunError
from ..runs.configuration import Section, changed, from_json, option, section, to_json
from ..runs.directory import CONFIG, RunDirectory
from ..runs.loop import Training
from .method import Method
from .methods import METHODS

FORMAT = 3  # of config.json; a change of the fields' meaning raises it, a new option with a default does not
FLAT = 2  # the format whose only method was hyper-representation, and whose options lay side by side
FIRST_METHOD = "hyper-representation"
FLAT_FOLDER_SIZE = 84  # of images in folders where format 2 names no size; today it is the images' own

DATA: dict[str, dict[str, Any]] = {
    "glyphs": {},
    "omniglot": {"iterations": 6000, "eval_every": 250, "eval_episodes": 200},
    "miniimagenet": {"iterations": 20_000, "eval_every": 500, "eval_episodes": 200},
    "folder": {"iterations": 2000, "eval_every": 200},
}


@dataclass(frozen=True)
class Dataset(Section):
    """The data. Args: see the options' help."""

    data: str = option("glyphs", "Data set.", choices=tuple(DATA_SETS))
    root: str | None = option(None, "Folder with the files of the data set.", on_resume=True)
    image_size: int | None = option(None, "Side of the images, by default the data's.", low=1)


@dataclass(frozen=True)
class EpisodeSizes(Section):
    """The episodes of a meta-batch. Args: see the options' help."""

    n_way: int = option(5, "Classes of an episode.", low=2)
    k_shot: int = option(1, "Support images per class.", low=1)
    n_query: int = option(15, "Query images per class.", low=1)
    meta_batch: int = option(4, "Episodes per outer iteration.", low=1, high=2**16)


@dataclass(frozen=True)
class Network(Section):
    """The network. Args: see the options' help."""

    filters: int = option(32, "Filters of every block.", low=1, high=2**16)
    blocks: int = option(4, "Blocks of the network.", low=1, high=32)


@dataclass(frozen=True)
class EvaluationSizes(Section):
    """How much is evaluated. Args: see the options' help."""

    eval_episodes: int = option(100, "Meta-validation episodes of one validation, the same ones each time.", low=1)
    test_episodes: int = option(600, "Meta-test episodes of the final evaluation.", low=1)


@dataclass(frozen=True)
class Config(Section):
    """Everything that a training run depends on. Two runs with equal configurations give equal models, unless one was extended.

    Args: sections, see their classes; preset: one of the method's `presets`.
    Raises: ArgumentError for a value out of its range.
    """

    preset: str = option("default", "A method's settings by name; paper is the published protocol.")
    seed: int = option(0, "Seed of the network and of the episodes.", low=0, high=2**64 - 1)
    device: str = option("cpu", "Where to compute; on a GPU images are kept there as bytes.", choices=DEVICES)
    graphs: bool = option(True, "Record a meta-step and replay it: on a GPU as a CUDA graph.")
    per_episode: bool = option(
        False, "Take the gradient of each episode by itself: the same bits on any number of processes. mpiexec sets it."
    )
    dataset: Dataset = section(Dataset)
    episodes: EpisodeSizes = section(EpisodeSizes)
    network: Network = section(Network)
    method: Method = section(METHODS[FIRST_METHOD], kinds=METHODS)
    training: Training = section(Training)
    evaluation: EvaluationSizes = section(EvaluationSizes)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset not in self.method.presets():
            raise ArgumentError(
                f"config: preset is {self.preset!r}, expected one of {', '.join(self.method.presets())}, those of {self.method_name}; "
                "pass one of these"
            )
        if self.per_episode and not self.method.by_episode:
            raise ArgumentError(
                f"config: per_episode is set for {self.method_name}, expected a method that trains on episodes because this one "
                "takes batches of images; leave it out, and train in one process"
            )

    @property
    def method_name(self) -> str:
        """The method's name on the command line."""
        return next(name for name, kind in METHODS.items() if kind is type(self.method))

    def sized_method(self, train_classes: int) -> Method:
        """The method, for episodes of this configuration's number of classes. Args: train_classes: those of the meta-training split."""
        return dataclasses.replace(self.method, n_way=self.episodes.n_way, train_classes=train_classes)

    @property
    def task(self) -> str:
        """For instance "5way1shot"."""
        return f"{self.episodes.n_way}way{self.episodes.k_shot}shot"


def make_config(data: str = "glyphs", preset: str = "default", method: str = FIRST_METHOD, **changes: Any) -> Config:
    """A configuration: defaults, then what the data set, the method and its preset change, then `changes`.

    Args:
        data: a key of `DATA`; preset: one of the method's; method: a key of `METHODS`.
        **changes: options of `Config` by name; None means "as the settings say".
    Returns: a Config.
    Raises: ArgumentError for an unknown name or a value out of its range.
    Cost: O(options).
    """
    given = {name: value for name, value in changes.items() if value is not None}
    start = changed(Config(), {"data": data, "method": method, "preset": "default"})
    chosen = start.method.settings_for(preset, data) if preset in start.method.presets() else {}
    return changed(start, {**DATA.get(data, {}), **chosen, "preset": preset, **given})


def quick(config: Config) -> Config:
    """A shortened run of every part of the job: 30 iterations, 20 episodes per evaluation. Cost: O(options)."""
    most = {"iterations": 30, "eval_every": 10, "eval_episodes": 20, "test_episodes": 20}
    now = {**vars(config.training), **vars(config.evaluation)}
    return changed(config, {name: min(now[name], value) for name, value in most.items()})


def save_config(config: Config) -> dict[str, Any]:
    """What config.json holds. Cost: O(options)."""
    return {"format": FORMAT, **to_json(config)}


def load_config(run: RunDirectory) -> Config:
    """A run's configuration, written by this version or an older one.

    Raises: RunError if a newer version wrote it, or if it is damaged. Cost: one file.
    """
    return read_config(run.read_json(CONFIG), str(run.path / CONFIG))


def read_config(record: Any, where: str) -> Config:
    """The configuration in a parsed config.json. Args: where: the file's name, for messages. Raises: RunError. Cost: O(options)."""
    found = record.get("format") if isinstance(record, dict) else None
    if found not in (FLAT, FORMAT):
        newer = isinstance(found, int) and found > FORMAT
        raise RunError(
            f"config: {where} has format {json.dumps(found)}, expected {FLAT} or {FORMAT}; "
            + ("a newer version of hypergrad wrote it: update hypergrad" if newer else "restore the file, or start a new run")
        )
    rest = {name: value for name, value in record.items() if name != "format"}
    if found == FLAT:
        rest["method"] = FIRST_METHOD
        if rest.get("data") == "folder" and rest.get("image_size") is None:
            rest["image_size"] = FLAT_FOLDER_SIZE
    return from_json(Config, rest, where)
