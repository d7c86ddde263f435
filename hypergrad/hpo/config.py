"""The configuration of a tuning run."""

import json
from dataclasses import dataclass
from typing import Any

from ..errors import ArgumentError, RunError
from ..runs.configuration import Section, changed, from_json, option, section, to_json
from ..runs.directory import CONFIG, RunDirectory
from ..runs.loop import Training
from .hypergradient import Hypergradient
from .problem import Problem
from .problems import PROBLEMS

FORMAT = "tune-1"  # of config.json; few-shot runs have numbers
FIRST_PROBLEM = "hyper-cleaning"


@dataclass(frozen=True)
class Config(Section):
    """Everything that a tuning run depends on. Two runs with equal configurations give equal results, unless one was extended.

    Args: sections, see their classes.
    Raises: ArgumentError for a value out of its range.
    """

    seed: int = option(0, "Seed of everything random.", low=0, high=2**64 - 1)
    problem: Problem = section(PROBLEMS[FIRST_PROBLEM], kinds=PROBLEMS)
    hypergradient: Hypergradient = section(Hypergradient)
    training: Training = section(Training)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hypergradient.mode not in self.problem.modes:
            raise ArgumentError(
                f"config: mode is {self.hypergradient.mode!r}, expected {' or '.join(self.problem.modes)} because the inner run of "
                f"{self.problem_name} approaches no solution; pass another --mode"
            )

    @property
    def problem_name(self) -> str:
        """The problem's name on the command line."""
        return next(name for name, kind in PROBLEMS.items() if kind is type(self.problem))


def make_config(problem: str = FIRST_PROBLEM, shorten: bool = False, **changes: Any) -> Config:
    """A configuration: defaults, then what the problem changes, then its short form, then `changes`.

    Args:
        problem: a key of `PROBLEMS`.
        shorten: whether to take the short form.
        **changes: options of `Config` by name; None means "as the problem says".
    Returns: a Config.
    Raises: ArgumentError for an unknown name or a value out of its range.
    Cost: O(options).
    """
    if problem not in PROBLEMS:
        raise ArgumentError(f"config: problem is {problem!r}, expected one of {', '.join(PROBLEMS)}; pass one of these")
    kind, given = PROBLEMS[problem], {name: value for name, value in changes.items() if value is not None}
    own = {**kind.settings, **(kind.quick if shorten else {})}
    return changed(Config(), {**own, **given, "problem": problem})


def save_config(config: Config) -> dict[str, Any]:
    """What config.json holds. Cost: O(options)."""
    return {"format": FORMAT, **to_json(config)}


def load_config(run: RunDirectory) -> Config:
    """A run's configuration.

    Raises: RunError if it is that of another command's run, if a newer version wrote it, or if it is damaged. Cost: one file.
    """
    record, where = run.read_json(CONFIG), str(run.path / CONFIG)
    found = record.get("format") if isinstance(record, dict) else None
    if found != FORMAT:
        other = "it is a run of `hypergrad train`: use that" if isinstance(found, int) else "restore the file, or start a new run"
        raise RunError(f"config: {where} has format {json.dumps(found)}, expected {json.dumps(FORMAT)}; {other}")
    return from_json(Config, {name: value for name, value in record.items() if name != "format"}, where)
