"""A task as a problem of the outer loop."""

from typing import Any

from ..runs.loop import Arrays, Record
from .config import Config
from .hypergradient import trained
from .problem import Task


class Tuning:
    """The problem that `runs.loop.train` trains.

    Args: config: the run's configuration; task: of its problem.
    """

    def __init__(self, config: Config, task: Task) -> None:
        self.config, self.task = config, task

    @property
    def description(self) -> str:
        """Of the data."""
        return self.task.description

    @property
    def metadata(self) -> Record:
        """What was tuned."""
        return {"problem": self.config.problem_name}

    def init(self) -> Arrays:
        """Hyperparameters to start from. Cost: that of the task's."""
        return self.task.init()

    def project(self, hparams: Arrays) -> Arrays:
        """The nearest hyperparameters that are allowed. Cost: O(size)."""
        return self.task.project(hparams)

    def gradient(self, hparams: Arrays, iteration: int) -> tuple[Any, Arrays, Record]:
        """Outer loss, hypergradient, and what the trained weights achieve on the validation data. Cost: one pass."""
        problem, batches = self.task.inner(iteration + 1)
        r = self.config.hypergradient.of(problem, hparams, batches, **self.task.reverse_options)
        return r.value, r.grad, self.task.judge(hparams, r.params)

    def metrics(self, hparams: Arrays) -> Record:
        """The task's own. Cost: O(size)."""
        return self.task.metrics(hparams)

    def validate(self, hparams: Arrays) -> tuple[float, Record]:
        """Minus the outer loss of draw 0, and what the weights achieve. Cost: one inner run."""
        problem, batches = self.task.inner(0)
        w, loss = trained(problem, hparams, batches)
        numbers = {"loss": loss, **self.task.metrics(hparams), **self.task.judge(hparams, w)}
        return -loss, {f"validation_{name}": value for name, value in numbers.items()}
