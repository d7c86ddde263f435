"""The outer loop: an iteration depends on the stored state alone, so that a run resumes bit for bit."""

import dataclasses
import time
import typing
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import optree

from ..backends import backend_of, to_host
from ..errors import ArgumentError, RunError
from ..optimizers import SGD, Adam, Optimizer
from ..parallel import ALONE, Ranks
from .configuration import Section, fits, option
from .directory import MODEL, STATE, RunDirectory
from .interrupts import interrupts_held

Record = dict[str, Any]
Arrays = dict[str, Any]
SNAPSHOT_S = 15.0  # at most this much work is lost by a kill
OPTIMIZERS: dict[str, type[Adam] | type[SGD]] = {"adam": Adam, "sgd": SGD}
# A State's arrays by their prefix in its file. That of the optimizer's state is "adam", whatever the optimizer, as in older files.
_GROUPS = {"hparams": "hparams", "best_hparams": "best", "optimizer": "adam"}


@dataclass(frozen=True)
class Training(Section):
    """How the hyperparameters are trained.

    Args: see the options' help.
    Raises: ArgumentError for a value out of its range.
    Source of the inverse-time schedule: the authors' public code of Franceschi et al. 2017, arXiv:1712.06283 (FAR-HO).
    """

    outer_optimizer: Literal["adam", "sgd"] = option("adam", "Optimizer of the hyperparameters.")
    outer_lr: float = option(3e-3, "Step size of the outer optimizer in the first iteration.", above=0)
    schedule: Literal["linear", "inverse-time", "constant"] = option(
        "linear", "How it falls: linear to 0, inverse-time: outer_lr / (1 + outer_decay * i), or constant."
    )
    outer_decay: float = option(1e-5, "Of the inverse-time schedule.", low=0)
    iterations: int = option(800, "Outer iterations at most.", low=1, high=10**9, on_resume=True)
    eval_every: int = option(100, "Iterations between two validations.", low=1, high=10**9)
    patience: int = option(40, "Validations without progress before training stops.", low=1, high=10**9, on_resume=True)

    def step_size(self, iteration: int) -> float:
        """Of the outer optimizer in an iteration, 0 <= iteration < iterations. Cost: O(1)."""
        if self.schedule == "linear":
            return self.outer_lr * (1.0 - iteration / self.iterations)
        return self.outer_lr / (1.0 + (self.outer_decay * iteration if self.schedule == "inverse-time" else 0.0))

    def optimizer(self) -> Optimizer:
        """The outer optimizer, its step size following the schedule. Cost: O(1)."""
        return OPTIMIZERS[self.outer_optimizer](lr=self.step_size)


class Problem(Protocol):
    """What the loop trains.

    Attributes:
        description: of the data; a run goes on with the data it was started with.
        metadata: JSON values that stand beside the model's arrays.
    """

    @property
    def description(self) -> str:
        """Of the data."""

    @property
    def metadata(self) -> Record:
        """Of the model."""

    def init(self) -> Arrays:
        """The hyperparameters to start from: arrays by name, on the device that computes."""

    def gradient(self, hparams: Arrays, iteration: int) -> tuple[Any, Arrays, Mapping[str, Any]]:
        """Loss (an array without axes), hypergradient, and further numbers to record, a function of its arguments alone."""

    def metrics(self, hparams: Arrays) -> Record:
        """Numbers to record that the hyperparameters themselves hold, such as a learned step size."""

    def validate(self, hparams: Arrays) -> tuple[float, Record]:
        """A score, higher is better, and the numbers to record, a function of `hparams` alone."""


@runtime_checkable
class Constrained(Protocol):
    """What a problem offers, too, whose hyperparameters must lie in a set.

    Attributes: none of its own; the loop asks for the method by `isinstance`.
    """

    def project(self, hparams: Arrays) -> Arrays:
        """The nearest hyperparameters in the set, taken after every step of the outer optimizer."""


@dataclass(frozen=True)
class State:
    """Everything the next iteration depends on, and the best hyperparameters so far.

    Args:
        iteration: iterations done.
        hparams: current hyperparameters, on the problem's device like the other arrays.
        optimizer: the outer optimizer's state, None before the first step.
        data: description of the data set.
        best_hparams, best_score, best_iteration: of the best validation; score None before the first.
        waited: validations since the best one.
        metrics_bytes: length of metrics.jsonl after these iterations; metrics_crc: its CRC-32, None where an older version wrote the state.
        seconds: spent so far; for information only.
    """

    iteration: int
    hparams: Arrays
    optimizer: Any
    data: str
    best_hparams: Arrays
    best_score: float | None = None
    best_iteration: int = 0
    waited: int = 0
    metrics_bytes: int = 0
    seconds: float = 0.0
    metrics_crc: int | None = None


def start(problem: Problem) -> State:
    """The state before the first iteration. Cost: that of `problem.init`."""
    hparams = problem.init()
    return State(0, hparams, None, problem.description, hparams)


def save_state(run: RunDirectory, state: State) -> None:
    """Write `state` to the run, atomically, after the metrics that it counts.

    Raises: RunError; the previous state then stays. Cost: one file.
    """
    tensors = {f"hparams/{name}": value for name, value in state.hparams.items()}
    tensors |= {f"best/{name}": value for name, value in state.best_hparams.items()}
    if state.optimizer is not None:
        tensors |= {f"adam/{i:04d}": leaf for i, leaf in enumerate(optree.tree_leaves(state.optimizer))}
    numbers = {f.name: getattr(state, f.name) for f in dataclasses.fields(state) if f.name not in _GROUPS}
    run.sync_metrics()
    run.write_tensors(STATE, {name: to_host(value) for name, value in tensors.items()}, numbers)


def load_state(run: RunDirectory, training: Training, fresh: State) -> State:
    """The state that `save_state` wrote, by this version or an older one.

    Args: training: of the run; fresh: the state before the first iteration, whose names, shapes, dtypes and device the arrays have.
    Returns: a State. Raises: RunError if the file is damaged, of another network or of other data. Cost: one file.
    """
    stored, numbers = run.read_tensors(STATE)
    xp = backend_of(*fresh.hparams.values()).xp
    groups: dict[str, Arrays] = {name: {} for name in _GROUPS.values()}
    for key, value in stored.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = xp.asarray(value)
    where = f"{run.path / STATE}"
    check_like(groups["hparams"], fresh.hparams, where)
    check_like(groups["best"], fresh.hparams, where)
    optimizer = None
    if groups["adam"]:
        _, blank = training.optimizer().step(fresh.hparams, None, fresh.hparams, 0)  # for its structure only
        leaves, structure = optree.tree_flatten(blank)
        check_like(groups["adam"], {f"{i:04d}": leaf for i, leaf in enumerate(leaves)}, where)
        optimizer = optree.tree_unflatten(structure, [groups["adam"][key] for key in sorted(groups["adam"])])
    if "best_accuracy" in numbers:  # its name up to format 2
        numbers["best_score"] = numbers.pop("best_accuracy")
    numbers.setdefault("metrics_crc", None)  # older states have none
    hints = {name: hint for name, hint in typing.get_type_hints(State).items() if name not in _GROUPS}
    right = set(numbers) == set(hints) and all(fits(numbers[name], hint) for name, hint in hints.items())
    if not right or min(numbers["iteration"], numbers["waited"], numbers["metrics_bytes"]) < 0:
        raise RunError(
            f"run: {where} holds {sorted(numbers)}, expected {sorted(hints)} of their types because another version of hypergrad wrote it; "
            "use that version, or start a new run"
        )
    if numbers["data"] != fresh.data:
        raise RunError(
            f"run: {run.path} was started with other data ({numbers['data']}), expected the same because the result "
            f"would depend on the interruption; got {fresh.data}: pass the --root that the run was started with"
        )
    return State(hparams=groups["hparams"], optimizer=optimizer, best_hparams=groups["best"], **numbers)


def check_like(found: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    """Raise RunError unless both dictionaries have the same names, shapes and dtypes. Cost: O(len(expected))."""
    kinds = [{name: (value.shape, value.dtype) for name, value in arrays.items()} for arrays in (found, expected)]
    if kinds[0] != kinds[1]:
        raise RunError(
            f"run: {where} holds other arrays than this run's network, expected {len(expected)} arrays as config.json describes them; "
            "restore both files from one copy, or start a new run"
        )


def step(training: Training, problem: Problem, state: State) -> tuple[State, Record]:
    """One outer iteration: one hypergradient, one step of the outer optimizer, and the projection of a `Constrained` problem.

    Returns: the new state and what to record. Raises: RunError if a number is not finite. Cost: that of `problem.gradient`.
    """
    i = state.iteration
    loss, grad, metrics = problem.gradient(state.hparams, i)
    hparams, optimizer = training.optimizer().step(state.hparams, state.optimizer, grad, i)
    if isinstance(problem, Constrained):
        hparams = problem.project(hparams)
    xp = backend_of(loss).xp
    finite = xp.stack([xp.isfinite(value).all() for value in (loss, *hparams.values())]).all()  # one wait for the GPU
    if not finite:
        raise RunError(
            f"train: loss is {float(loss)} in iteration {i + 1} and the hyperparameters are no longer all finite, expected finite "
            "numbers because training diverged; lower --outer-lr or the inner step size in a new run (the best model so far is kept)"
        )
    record = {
        "iteration": i + 1,
        "loss": float(loss),
        **{name: float(value) for name, value in metrics.items()},
        **problem.metrics(hparams),
    }
    return dataclasses.replace(state, iteration=i + 1, hparams=hparams, optimizer=optimizer), record


def validate(problem: Problem, state: State) -> tuple[State, Record]:
    """Validate and remember the best hyperparameters.

    Returns: the new state and what to record. Cost: that of `problem.validate`.
    """
    score, numbers = problem.validate(state.hparams)
    better = state.best_score is None or score > state.best_score
    record = {"iteration": state.iteration, **numbers, "best": better}
    if better:
        best: Any = {"best_hparams": state.hparams, "best_score": score, "best_iteration": state.iteration}
        return dataclasses.replace(state, waited=0, **best), record
    return dataclasses.replace(state, waited=state.waited + 1), record


def finished(training: Training, state: State) -> str | None:
    """Why training is over, or None: "iterations" or "patience". Cost: O(1)."""
    if state.waited >= training.patience:
        return "patience"
    return "iterations" if state.iteration >= training.iterations else None


def check_extension(run: RunDirectory, before: Training, after: Training) -> None:
    """Raise ArgumentError where a run's new limits would stop it at once, or before where it stands. Cost: one file.

    A linear schedule falls to 0 at the new end. So the step size jumps up where the run goes on, and the result is not that of a run
    that had these limits from the start.
    """
    for name in ("iterations", "patience"):
        old, new = getattr(before, name), getattr(after, name)
        if new < old:
            raise ArgumentError(
                f"train: {name} is {new}, expected at least {old}, as the run has; pass a larger number, or start a new run"
            )
    if after.iterations > before.iterations and (run.path / STATE).exists():
        waited = run.read_tensors(STATE)[1].get("waited")
        if isinstance(waited, int) and waited >= after.patience:
            raise ArgumentError(
                f"train: the run stopped after {waited} validations without progress, expected a larger patience with more iterations; "
                f"pass --patience {2 * waited}, say"
            )


def train(
    run: RunDirectory | None,
    training: Training,
    problem: Problem,
    report: Callable[[Record], None] | None = None,
    snapshot_s: float = SNAPSHOT_S,
    ranks: Ranks = ALONE,
) -> State:
    """Train, or go on where the run's state.safetensors stands.

    The result does not depend on when, or how often, the run was stopped: every iteration is a function of the
    stored state alone, and snapshots only copy it.

    Args:
        run: an open run directory, in process 0; None in the others.
        training: how to train; of a finished run with more iterations than it has done, the run is extended.
        problem: what is trained.
        report: called with every record that goes to metrics.jsonl; with a validation after its state and its model are on disk.
        snapshot_s: seconds between two snapshots; there is also one after each validation.
        ranks: the processes that train together, where the problem shares its work among them. All take the same steps.
    Returns: the final State; model.safetensors holds its best hyperparameters.
    Raises: RunError if training diverges or a file cannot be written; KeyboardInterrupt after the iteration that an interrupt came in,
        with the state saved.
    Cost: one `problem.gradient` each iteration and one `problem.validate` each `eval_every`.
    """
    state = start(problem)
    if run is not None:
        if (run.path / STATE).exists():
            state = load_state(run, training, state)
        run.truncate_metrics(state.metrics_bytes, state.metrics_crc)
    state = ranks.broadcast(state)
    saved = begun = time.monotonic()
    spent, stopped = state.seconds, False
    with interrupts_held() as interrupted:
        try:
            while finished(training, state) is None and not stopped:
                done, record = step(training, problem, state)
                records = [record]
                due = done.iteration % training.eval_every == 0 or done.iteration == training.iterations
                if due:
                    check_alike(ranks, done)
                    done, record = validate(problem, done)
                    records.append(record)
                seconds = spent + time.monotonic() - begun
                for record in records:
                    record["seconds"] = round(seconds, 4)
                if run is not None:
                    for record in records:
                        run.append_metrics(record)
                    done = dataclasses.replace(done, metrics_bytes=run.metrics_bytes(), metrics_crc=run.metrics_crc())
                # one assignment: an interrupt finds the iteration done with its metrics, or not done
                state = dataclasses.replace(done, seconds=seconds)
                if run is not None and (due or time.monotonic() - saved > snapshot_s):
                    save_state(run, state)
                    saved = time.monotonic()
                    if due and state.waited == 0:
                        save_model(run, problem, state)
                if report is not None:
                    for record in records:
                        report(record)
                stopped = any(ranks.gather([interrupted()]))
        except KeyboardInterrupt:
            if run is not None:
                save_state(run, state)
            raise
        if run is not None:
            save_state(run, state)
            if not stopped:
                save_model(run, problem, state)
        ranks.broadcast(None)  # the other processes wait for the files
        if stopped:
            raise KeyboardInterrupt
    return state


def check_alike(ranks: Ranks, state: State) -> None:
    """Raise RunError unless all processes have the same hyperparameters. Cost: one read of them, and one small message."""
    if len(set(ranks.gather([zlib.crc32(b"".join(to_host(x).tobytes() for x in state.hparams.values()))]))) > 1:
        raise RunError(
            f"train: the processes differ in their hyperparameters after iteration {state.iteration}, expected the same bits because all "
            "take the same steps; run them on processors of one kind, or set HYPERGRAD_SIMD to what all of them have"
        )


def save_model(run: RunDirectory, problem: Problem, state: State) -> None:
    """Write the best hyperparameters so far, atomically. Raises: RunError. Cost: one file."""
    metadata = {"iteration": state.best_iteration, "validation_score": state.best_score, **problem.metadata}
    run.write_tensors(MODEL, {name: to_host(value) for name, value in state.best_hparams.items()}, metadata)


def load_model(run: RunDirectory, expected: Mapping[str, Any] | None = None) -> tuple[Arrays, Record]:
    """The best hyperparameters of a run, in host memory, and the metadata: iteration, validation score and the problem's own.

    Args: run: its directory; expected: arrays of the shapes and dtypes that they must have.
    Raises: RunError if the file is missing, damaged or of another network. Cost: one file.
    """
    hparams, metadata = run.read_tensors(MODEL)
    if not fits(metadata.get("iteration"), int):
        raise RunError(f"run: {run.path / MODEL} has no iteration in its metadata, expected a model that hypergrad wrote; restore the file")
    if expected is not None:
        check_like(hparams, expected, f"{run.path / MODEL}")
    return hparams, metadata
