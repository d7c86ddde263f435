"""The configuration of a few-shot run: a frozen dataclass and tables of presets that change its defaults."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..backends import DEVICES
from ..errors import ArgumentError, RunError
from .hyper_representation import HyperRepresentation

FORMAT = 2  # of config.json; a change of the fields' meaning raises it


@dataclass(frozen=True)
class Config:
    """Everything that a training run depends on; two runs with equal configurations give equal models.

    Args:
        data: "glyphs", "omniglot", "miniimagenet" or "folder" (any folder of class folders).
        root: where the files of the data set are, None for glyphs.
        image_size: side of the images, None for the data set's own; glyphs have 28.
        n_way, k_shot, n_query: classes of an episode, support and query images per class.
        filters, blocks: of the network.
        n_steps, step_size, log_step_size, centred, normalized, statistics, last_gamma, last_beta: options of
            the method, see `HyperRepresentation`.
        meta_batch: episodes per outer step.
        outer_lr: Adam's step size in the first iteration.
        schedule: "linear": in iteration i it is outer_lr * (1 - i / iterations); "inverse-time": it is
            outer_lr / (1 + outer_decay * i), as published.
        outer_decay: of the inverse-time schedule.
        iterations: outer steps at most.
        eval_every: iterations between two evaluations on meta-validation episodes.
        eval_episodes: meta-validation episodes of one evaluation, the same ones each time.
        patience: evaluations without a better validation accuracy after which training stops.
        test_episodes: meta-test episodes of the final evaluation.
        sweep: numbers of inner steps tried at the end; the best on meta-validation is used for meta-test.
        seed: of the network and of the episodes.
        device: "cpu", or "cuda" for a GPU: images are kept there as bytes, everything else is computed there.
        graphs: on a GPU, record a meta-step as a CUDA graph and replay it.
    Raises: ArgumentError for a value out of its range.
    Source: Franceschi et al. 2017, arXiv:1712.06283, section 4, and the authors' public code (FAR-HO).
    """

    data: str = "glyphs"
    root: str | None = None
    image_size: int | None = None
    preset: str = "default"
    n_way: int = 5
    k_shot: int = 1
    n_query: int = 15
    filters: int = 32
    blocks: int = 4
    n_steps: int = 5
    step_size: float = 1.0
    log_step_size: bool = False
    centred: bool = True
    normalized: bool = False
    statistics: Literal["separate", "joint"] = "separate"
    last_gamma: float = 1.0
    last_beta: float = 0.0
    meta_batch: int = 4
    outer_lr: float = 3e-3
    schedule: Literal["linear", "inverse-time"] = "linear"
    outer_decay: float = 1e-5
    iterations: int = 800
    eval_every: int = 100
    eval_episodes: int = 100
    patience: int = 40
    test_episodes: int = 600
    sweep: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10)
    seed: int = 0
    device: str = "cpu"
    graphs: bool = True

    def __post_init__(self) -> None:
        for field, allowed in (
            ("data", DATA),
            ("preset", PRESETS),
            ("statistics", ("separate", "joint")),
            ("schedule", ("linear", "inverse-time")),
            ("device", DEVICES),
        ):
            if getattr(self, field) not in allowed:
                raise ArgumentError(f"config: {field} is {getattr(self, field)!r}, expected one of {', '.join(allowed)}; pass one of these")
        for field, low in LOWEST.items():
            value = getattr(self, field)
            if value < low:
                raise ArgumentError(f"config: {field} is {value}, expected at least {low}; pass a larger number")
        for field in ("step_size", "outer_lr"):
            if not 0 < getattr(self, field) < float("inf"):
                raise ArgumentError(
                    f"config: {field} is {getattr(self, field)}, expected a positive finite number; pass for "
                    f"instance {type(self).__dataclass_fields__[field].default}"
                )
        if not self.sweep or min(self.sweep) < 0:
            raise ArgumentError(f"config: sweep is {self.sweep}, expected at least one number of steps >= 0; pass for instance 2,4,6")
        if self.data == "glyphs" and self.root is not None:
            raise ArgumentError(
                f"config: root is {self.root!r} with the glyphs data, expected none because glyphs are rendered from "
                "matplotlib's fonts; leave --root away or name another --data"
            )

    def outer_step_size(self, iteration: int) -> float:
        """Adam's step size in an iteration, 0 <= iteration < iterations. Cost: O(1)."""
        if self.schedule == "linear":
            return self.outer_lr * (1.0 - iteration / self.iterations)
        return self.outer_lr / (1.0 + self.outer_decay * iteration)

    def method(self) -> HyperRepresentation:
        """The method with this configuration's options. Cost: O(1)."""
        return HyperRepresentation(
            n_way=self.n_way,
            n_steps=self.n_steps,
            step_size=self.step_size,
            log_step_size=self.log_step_size,
            centred=self.centred,
            normalized=self.normalized,
            statistics=self.statistics,
            last_gamma=self.last_gamma,
            last_beta=self.last_beta,
        )

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, with the format's number. Cost: O(1)."""
        return {"format": FORMAT, **dataclasses.asdict(self), "sweep": list(self.sweep)}

    @classmethod
    def from_json(cls, record: Any, where: str) -> "Config":
        """The configuration that `to_json` wrote.

        Args: record: the parsed file; where: its name, for messages.
        Returns: a Config.
        Raises: RunError if it has another format, or fields that are missing, unknown or of a wrong type.
        Cost: O(1).
        """
        found = record.get("format") if isinstance(record, dict) else None
        if found != FORMAT:
            raise RunError(
                f"config: {where} has format {found!r}, expected {FORMAT} because another version of hypergrad wrote "
                "it; use that version, or start a new run"
            )
        values = {name: value for name, value in record.items() if name != "format"}
        fields = {field.name for field in dataclasses.fields(cls)}
        if odd := sorted(fields.symmetric_difference(values)):
            raise RunError(
                f"config: {where} has missing or unknown fields ({', '.join(odd)}), expected those of this version "
                "of hypergrad; use the version that wrote it, or start a new run"
            )
        hints = typing.get_type_hints(cls)
        for name, value in values.items():
            if not _fits(value, hints[name]):
                raise RunError(
                    f"config: {where} has {name} = {value!r}, expected another type because it was changed by hand "
                    "or damaged; restore the file, or start a new run"
                )
        try:
            return cls(**{**values, "sweep": tuple(values["sweep"])})
        except ArgumentError as error:
            raise RunError(f"config: {where} is not valid ({error})") from error


LOWEST: dict[str, float] = {
    **dict.fromkeys(("n_way", "meta_batch", "eval_every", "eval_episodes", "patience", "test_episodes"), 1),
    **dict.fromkeys(("k_shot", "n_query", "filters", "blocks", "n_steps", "iterations"), 1),
    **{"n_way": 2, "outer_decay": 0.0, "seed": 0},
}

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # The published protocol to the letter. What the paper leaves open comes from the authors' code, but for
    # the initial scale of the features: as small as here, the inner step size of 0.1 is a stable one.
    "paper": {
        "step_size": 0.1,
        "log_step_size": False,
        "outer_lr": 1e-3,
        "schedule": "inverse-time",
        "centred": False,
        "normalized": False,
        "statistics": "separate",
        "last_gamma": 0.3,
        "last_beta": -0.3,
        "iterations": 100_000,
        "eval_every": 1000,
        "eval_episodes": 600,
        "sweep": (2, 3, 4, 5, 6, 7, 8),
    },
}

LARGE_IMAGES: dict[str, Any] = {"normalized": True, "step_size": 10.0, "log_step_size": True}
DATA: dict[str, dict[str, Any]] = {
    "glyphs": {},
    "omniglot": {"iterations": 6000, "eval_every": 250, "eval_episodes": 200},
    # 84x84 images give 800 features instead of 32; normalized features need no other step size for that.
    "miniimagenet": LARGE_IMAGES | {"iterations": 20_000, "eval_every": 500, "eval_episodes": 200},
    "folder": LARGE_IMAGES | {"iterations": 2000, "eval_every": 200},
}

# The published numbers of iterations are those of MiniImagenet; smaller data need, and allow, shorter runs.
PRESET_OF_DATA: dict[tuple[str, str], dict[str, Any]] = {
    ("paper", "glyphs"): {"iterations": 800, "eval_every": 100, "eval_episodes": 100},
    ("paper", "omniglot"): {"iterations": 5000, "eval_every": 250, "eval_episodes": 200},
}


def make_config(data: str = "glyphs", preset: str = "default", **changes: Any) -> Config:
    """A configuration: defaults, then the data set's table, the preset's, that of both, then `changes`.

    Args:
        data: a key of `DATA`; preset: a key of `PRESETS`.
        **changes: fields of `Config`; None means "as the tables say".
    Returns: a Config.
    Raises: ArgumentError for an unknown name or a value out of its range.
    Cost: O(1).
    """
    given = {name: value for name, value in changes.items() if value is not None}
    names = {field.name for field in dataclasses.fields(Config)}
    if unknown := sorted(set(given) - names):
        raise ArgumentError(f"make_config: unknown fields {', '.join(unknown)}, expected fields of Config; see its documentation")
    tables: list[Mapping[str, Any]] = [DATA.get(data, {}), PRESETS.get(preset, {}), PRESET_OF_DATA.get((preset, data), {}), given]
    merged: dict[str, Any] = {"data": data, "preset": preset}
    for table in tables:
        merged.update(table)
    return Config(**merged)


def quick(config: Config) -> Config:
    """A shortened run of every part of the job: 30 iterations, 20 episodes per evaluation. Cost: O(1)."""
    return dataclasses.replace(
        config,
        iterations=min(config.iterations, 30),
        eval_every=min(config.eval_every, 10),
        eval_episodes=min(config.eval_episodes, 20),
        test_episodes=min(config.test_episodes, 20),
    )


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value fits a field's annotation; an int may stand for a float."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in args
    if origin is tuple:
        return isinstance(value, list) and all(_fits(item, args[0]) for item in value)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, arg) for arg in args)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
