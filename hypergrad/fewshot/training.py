"""The meta-training loop: an iteration depends on the stored state alone, so a run resumes bit for bit."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optree

from ..backends import backend_of, place, to_host
from ..capture import capture
from ..data import Episodes, EpisodeSampler, MetaDataset
from ..errors import RunError
from ..optimizers import Adam
from ..transforms import value_and_grad
from .config import Config
from .hyper_representation import HParams, HyperRepresentation, evaluate
from .run import MODEL, STATE, RunDirectory

Record = dict[str, Any]
SNAPSHOT_S = 15.0  # at most this much work is lost by a kill


@dataclass(frozen=True)
class State:
    """Everything the next iteration depends on, and the best parameters so far.

    Args:
        iteration: iterations done.
        hparams: current hyperparameters, on the configuration's device like the other arrays.
        adam: the outer optimizer's state, None before the first step.
        data: description of the data set; a run goes on with the data it was started with.
        best_hparams, best_accuracy, best_iteration: of the best validation; accuracy -1 before the first.
        waited: validations since the best one.
        metrics_bytes: length of metrics.jsonl after these iterations.
        seconds: spent so far; for information only.
    """

    iteration: int
    hparams: HParams
    adam: Any
    data: str
    best_hparams: HParams
    best_accuracy: float = -1.0
    best_iteration: int = 0
    waited: int = 0
    metrics_bytes: int = 0
    seconds: float = 0.0


def start(config: Config, data: MetaDataset) -> State:
    """The state before the first iteration.

    Args: data: its image size decides the network's. Cost: one draw a parameter.
    """
    drawn = config.method().init(config.seed, data.image_shape, config.filters, config.blocks)
    hparams = {name: place(value, config.device) for name, value in drawn.items()}
    return State(0, hparams, None, data.describe(), hparams)


def save_state(run: RunDirectory, state: State) -> None:
    """Write `state` to the run, atomically.

    Raises: RunError; the previous state then stays. Cost: one file.
    """
    tensors = {f"hparams/{name}": value for name, value in state.hparams.items()}
    tensors |= {f"best/{name}": value for name, value in state.best_hparams.items()}
    if state.adam is not None:
        tensors |= {f"adam/{i:04d}": leaf for i, leaf in enumerate(optree.tree_leaves(state.adam))}
    tensors = {name: to_host(value) for name, value in tensors.items()}
    skipped = ("hparams", "best_hparams", "adam")
    numbers = {f.name: getattr(state, f.name) for f in dataclasses.fields(state) if f.name not in skipped}
    run.write_tensors(STATE, tensors, numbers)


def load_state(run: RunDirectory, fresh: State) -> State:
    """The state that `save_state` wrote.

    Args: fresh: the state before the first iteration, whose names, shapes, dtypes and device the arrays have.
    Returns: a State. Raises: RunError if the file is damaged or of another network. Cost: one file.
    """
    stored, numbers = run.read_tensors(STATE)
    xp = backend_of(*fresh.hparams.values()).xp
    tensors = {name: xp.asarray(value) for name, value in stored.items()}
    groups: dict[str, HParams] = {"hparams": {}, "best": {}, "adam": {}}
    for key, value in tensors.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = value
    for name, group in (("hparams", "hparams"), ("best_hparams", "best")):
        check_like(groups[group], getattr(fresh, name), f"{run.path / STATE}")
    adam = None
    if groups["adam"]:
        _, blank = Adam(lr=0.0).step(fresh.hparams, None, fresh.hparams, 0)  # for its structure only
        leaves, structure = optree.tree_flatten(blank)
        check_like(groups["adam"], {f"{i:04d}": leaf for i, leaf in enumerate(leaves)}, f"{run.path / STATE}")
        adam = optree.tree_unflatten(structure, [groups["adam"][key] for key in sorted(groups["adam"])])
    names = {field.name for field in dataclasses.fields(State)} - {"hparams", "best_hparams", "adam"}
    if set(numbers) != names:
        raise RunError(
            f"run: {run.path / STATE} holds {sorted(numbers)}, expected {sorted(names)} because another version of "
            "hypergrad wrote it; use that version, or start a new run"
        )
    if numbers["data"] != fresh.data:
        raise RunError(
            f"run: {run.path} was started with other data ({numbers['data']}), expected the same because the result "
            f"would depend on the interruption; got {fresh.data}: pass the --root that the run was started with"
        )
    return State(hparams=groups["hparams"], adam=adam, best_hparams=groups["best"], **numbers)


def check_like(found: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    """Raise RunError unless both dictionaries have the same names, shapes and dtypes.

    Cost: O(len(expected)).
    """
    if found.keys() != expected.keys() or any(
        found[name].shape != expected[name].shape or found[name].dtype != expected[name].dtype for name in expected
    ):
        raise RunError(
            f"run: {where} holds other arrays than this run's network, expected {len(expected)} arrays as "
            "config.json describes them; restore both files from one copy, or start a new run"
        )


MetaGradient = Callable[[HParams, Episodes], Any]


def meta_gradient(config: Config) -> MetaGradient:
    """(hparams, batch) -> ((loss, accuracies), gradient) of the meta-loss; on a GPU a graph, if `config.graphs`. Cost: O(1)."""
    method = config.method()
    gradient = value_and_grad(method.meta_loss, has_aux=True)
    return capture(gradient) if config.graphs else gradient


def step(config: Config, gradient: MetaGradient, state: State, episodes: Episodes) -> tuple[State, Record]:
    """One outer iteration: hypergradient of one meta-batch, one Adam step.

    Args: gradient: of `meta_gradient`.
    Returns: the new state and what to record. Raises: RunError if a number is not finite.
    Cost: one forward and one backward run of the network, T inner steps and their reverse pass.
    """
    (loss, accuracies), grad = gradient(state.hparams, episodes)
    i = state.iteration
    optimizer = Adam(lr=config.outer_step_size(i))
    hparams, adam = optimizer.step(state.hparams, state.adam, grad, i)
    xp = backend_of(loss).xp
    finite = xp.stack([xp.isfinite(value).all() for value in (loss, *hparams.values())]).all()  # one wait for the GPU
    if not finite:
        raise RunError(
            f"train: loss is {float(loss)} in iteration {i + 1} and the hyperparameters are no longer all finite, "
            "expected finite numbers because training diverged; lower --outer-lr or --step-size in a new run (the "
            "best model so far is kept)"
        )
    record = {
        "iteration": i + 1,
        "loss": float(loss),
        "accuracy": float(accuracies.mean()),
        "step_size": config.method().current_step_size(hparams),
    }
    return dataclasses.replace(state, iteration=i + 1, hparams=hparams, adam=adam), record


def validate(config: Config, method: HyperRepresentation, state: State, sampler: Any) -> tuple[State, Record]:
    """Evaluate on the fixed meta-validation episodes and remember the best parameters.

    Returns: the new state and what to record. Cost: `eval_episodes` forward runs of the network.
    """
    evaluation = evaluate(method, state.hparams, sampler, config.eval_episodes, [config.n_steps], graphs=config.graphs)
    accuracy = evaluation.mean(config.n_steps)
    better = accuracy > state.best_accuracy
    record = {
        "iteration": state.iteration,
        "validation_loss": evaluation.loss(config.n_steps),
        "validation_accuracy": accuracy,
        "validation_interval": evaluation.interval(config.n_steps),
        "best": better,
    }
    if better:
        best = {"best_hparams": state.hparams, "best_accuracy": accuracy, "best_iteration": state.iteration}
        return dataclasses.replace(state, waited=0, **best), record  # type: ignore[arg-type]
    return dataclasses.replace(state, waited=state.waited + 1), record


def finished(config: Config, state: State) -> str | None:
    """Why training is over, or None: "iterations" or "patience". Cost: O(1)."""
    if state.waited >= config.patience:
        return "patience"
    return "iterations" if state.iteration >= config.iterations else None


def train(
    run: RunDirectory, config: Config, data: MetaDataset, report: Callable[[Record], None] | None = None, snapshot_s: float = SNAPSHOT_S
) -> State:
    """Train, or go on where the run's state.safetensors stands.

    The result does not depend on when, or how often, the run was stopped: every iteration is a function of the
    stored state alone, and snapshots only copy it.

    Args:
        run: an open run directory.
        config: its configuration.
        data: the data set; its train and validation splits are used.
        report: called with every record that goes to metrics.jsonl.
        snapshot_s: seconds between two snapshots; there is also one after each validation.
    Returns: the final State; model.safetensors holds its best parameters.
    Raises: RunError if training diverges or a file cannot be written; KeyboardInterrupt after saving the state.
    Cost: per iteration see `step`; per validation see `validate`; memory of one meta-batch's tape.
    Source: Franceschi et al. 2017, arXiv:1712.06283, section 4.
    """
    method, gradient = config.method(), meta_gradient(config)
    train_sampler, validation_sampler = (sampler(config, split.on(config.device)) for split in (data.train, data.validation))
    state = start(config, data)
    if (run.path / STATE).exists():
        state = load_state(run, state)
    run.truncate_metrics(state.metrics_bytes)
    saved = begun = time.monotonic()
    spent = state.seconds
    try:
        while finished(config, state) is None:
            done, record = step(config, gradient, state, train_sampler.batch(state.iteration))
            records = [record]
            due = done.iteration % config.eval_every == 0 or done.iteration == config.iterations
            if due:
                done, record = validate(config, method, done, validation_sampler)
                records.append(record)
            seconds = spent + time.monotonic() - begun
            for record in records:
                record["seconds"] = round(seconds, 4)
                run.append_metrics(record)
            # one assignment: an interrupt finds the iteration done with its metrics, or not done
            state = dataclasses.replace(done, metrics_bytes=run.metrics_bytes(), seconds=seconds)
            if report is not None:
                for record in records:
                    report(record)
            if due or time.monotonic() - saved > snapshot_s:
                save_state(run, state)
                saved = time.monotonic()
            if due and state.waited == 0:
                save_model(run, state)
    except KeyboardInterrupt:
        save_state(run, state)
        raise
    save_state(run, state)
    save_model(run, state)
    return state


def save_model(run: RunDirectory, state: State) -> None:
    """Write the best parameters so far, atomically. Raises: RunError. Cost: one file."""
    metadata = {"iteration": state.best_iteration, "validation_accuracy": state.best_accuracy}
    run.write_tensors(MODEL, {name: to_host(value) for name, value in state.best_hparams.items()}, metadata)


def load_model(run: RunDirectory, config: Config, data: MetaDataset) -> tuple[HParams, Record]:
    """The best parameters of a run, in host memory, and the iteration and validation accuracy they have.

    Raises: RunError if the file is missing, damaged or of another network. Cost: one file.
    """
    hparams, metadata = run.read_tensors(MODEL)
    check_like(hparams, start(config, data).hparams, f"{run.path / MODEL}")
    return hparams, metadata


def sampler(config: Config, split: Any) -> EpisodeSampler:
    """The seeded sampler of a split's episodes with the configuration's sizes.

    Raises: DataError if they do not fit.
    """
    return EpisodeSampler(
        split, n_way=config.n_way, k_shot=config.k_shot, n_query=config.n_query, seed=config.seed, meta_batch=config.meta_batch
    )
