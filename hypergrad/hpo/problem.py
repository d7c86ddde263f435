"""What a tuning problem is: frozen options that open a task, and a task that gives the bilevel problem. A problem is one file in
`problems/`.

A `Task` gives `init`, `inner` and `evaluate`; the outer loop, the passes and the command follow from these.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike

from ..bilevel import Batches, Bilevel
from ..passes.online import Mode, Online
from ..runs.configuration import Section
from ..runs.curves import Reference
from ..runs.loop import Arrays, Record, Training
from ..trees import PyTree

Report = Callable[[Record], None]


@dataclass(frozen=True)
class Evaluation:
    """The final evaluation of a run.

    Args:
        numbers: JSON values, what result.json holds.
        lines: name and value of what a person reads first.
        figures: PNG files by the names in `Problem.figures`.
        references: lines for the curve of the score; test: the final score and half width of its 95% interval, or None.
    """

    numbers: Record
    lines: Sequence[tuple[str, str]]
    figures: Mapping[str, bytes] = field(default_factory=dict)
    references: Sequence[Reference] = ()
    test: tuple[float, float] | None = None


class Task(ABC):
    """A problem with its data, ready to be tuned.

    Attributes:
        description: of the data; a run goes on with the data it was started with.
        reverse_options: of `hypergrad.reverse`, beside its checkpoints, such as {"last": 20} for a truncated gradient.
    """

    description: str
    reverse_options: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def init(self) -> Arrays:
        """Hyperparameters to start from: arrays by name, the same bits each time. Cost: little."""

    @abstractmethod
    def inner(self, draw: int) -> tuple[Bilevel, Batches]:
        """The bilevel problem, and the batches of its inner run.

        Args: draw: number of the random draw, for a problem that draws something anew in each outer iteration: 0 for validation and the
            final evaluation, i + 1 for outer iteration i.
        Returns: both, pure functions of `draw`. Cost: little.
        """

    @abstractmethod
    def evaluate(self, hparams: Arrays, title: str) -> Evaluation:
        """Hold the tuned hyperparameters against what they compete with, on data that tuning never saw.

        Args: hparams: of the best validation; title: of the figures. Returns: an Evaluation. Cost: a few inner runs.
        """

    def project(self, hparams: Arrays) -> Arrays:
        """The nearest hyperparameters that are allowed; by default all are. Cost: O(size)."""
        return hparams

    def metrics(self, hparams: Arrays) -> Record:
        """Numbers worth recording that the hyperparameters themselves hold. Cost: O(size)."""
        return {}

    def judge(self, hparams: Arrays, w: PyTree) -> Record:
        """Numbers worth recording beside the loss: what the weights (arrays) of a run achieve on validation data. Cost: a forward run."""
        return {}


class SingleRun(ABC):
    """A problem with its data whose hyperparameters move during one training run. It has no outer loop, and keeps no state to go on from.

    Attributes:
        description: of the data.
    """

    description: str

    @abstractmethod
    def run(self, training: Training, mode: Mode, report: Report) -> Online:
        """The run.

        Args: training: an iteration is one update of the hyperparameters; mode: of `hypergrad.online`; report: called with each record of
            metrics.jsonl, as `runs.loop.train` writes them.
        Returns: an Online. Cost: that of `hypergrad.online`.
        """

    @abstractmethod
    def evaluate(self, done: Online, title: str) -> Evaluation:
        """Hold the run against what it competes with. Args: done: the run; title: of the figures. Cost: a few runs."""


@dataclass(frozen=True)
class Problem(Section, ABC):
    """A tuning problem. Its options are its dataclass fields, made with `runs.configuration.option`.

    Class attributes:
        title: in words, for tables and figures.
        source: the paper.
        score: the metric that the curve shows beside the loss; both `judge` and `metrics` may give it.
        modes: the passes that give its hypergradient; a problem whose inner run approaches no solution has no "implicit".
        settings: defaults of the options of other sections that are not the usual ones; quick: options of its short form.
        figures: its PNG files, and what they show.
        dtype: of its arrays.
        single_run: whether `open` gives a SingleRun.
    """

    title: ClassVar[str]
    source: ClassVar[str] = ""
    score: ClassVar[str] = "accuracy"
    modes: ClassVar[tuple[str, ...]] = ("reverse", "forward", "implicit")
    settings: ClassVar[Mapping[str, Any]] = {}
    quick: ClassVar[Mapping[str, Any]] = {}
    figures: ClassVar[Mapping[str, str]] = {}
    dtype: ClassVar[DTypeLike] = np.float32
    single_run: ClassVar[bool] = False

    @abstractmethod
    def open(self, seed: int, dtype: DTypeLike | None = None) -> Task | SingleRun:
        """The task.

        Args: seed: of everything random; dtype: float32 or float64, None for the problem's own.
        Returns: a Task or a SingleRun, the same bits for the same arguments.
        Raises: DataError if its data are missing, damaged or too few.
        Cost: that of reading or drawing the data.
        """
