"""The loop: resumed runs equal uninterrupted ones bit for bit, whatever stopped them."""

import contextlib
import dataclasses
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import kills
import numpy as np
import pytest
import tiny
from full_disk import full_disk

from hypergrad.errors import ArgumentError, DataError, RunError
from hypergrad.fewshot.config import save_config
from hypergrad.fewshot.problem import FewShot, sampler
from hypergrad.runs.directory import METRICS, MODEL, STATE, RunDirectory
from hypergrad.runs.loop import check_extension, finished, load_model, load_state, start

PROGRAM = [sys.executable, str(Path(tiny.__file__))]


def untimed(run_path):
    lines = (run_path / METRICS).read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


def open_run(path, **changes):
    config = tiny.tiny_config(**changes)
    return RunDirectory.create(path, save_config(config)), config


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    run, config = open_run(path)
    with run:
        state = tiny.tiny_train(run, config)
    return path, state


def lines_of(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize("seed", range(2))
def test_kill_9_then_resume_leaves_the_same_files(tmp_path, uninterrupted, seed):
    """At ten moments in all. What may differ are the seconds in them."""
    draw = random.Random(seed)
    path = tmp_path / "run"
    for target in sorted(draw.sample(range(1, 60), 5)):
        process = subprocess.Popen([*PROGRAM, str(path)])
        while lines_of(path / METRICS) < target and process.poll() is None:
            time.sleep(0.001)
        time.sleep(draw.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the program ended before it could be killed"
    subprocess.run([*PROGRAM, str(path)], check=True)
    whole, _ = uninterrupted
    assert kills.outcome(path) == kills.outcome(whole) and len(os.listdir(path)) == 5


def test_learning_happens_and_the_record_is_complete(uninterrupted):
    path, state = uninterrupted
    records = untimed(path)
    train = [record for record in records if "loss" in record]
    validations = [record for record in records if "validation_loss" in record]
    assert [record["iteration"] for record in train] == list(range(1, 61))
    assert [record["iteration"] for record in validations] == [7, 14, 21, 28, 35, 42, 49, 56, 60]
    assert np.mean([r["loss"] for r in train[-10:]]) < np.mean([r["loss"] for r in train[:10]]) - 0.05
    best = max(validations, key=lambda record: record["validation_accuracy"])
    assert (state.best_iteration, state.best_score) == (best["iteration"], best["validation_accuracy"])
    with RunDirectory(path) as run:
        hparams, metadata = load_model(run)
    score = {"iteration": best["iteration"], "validation_score": best["validation_accuracy"]}
    assert metadata == {**score, "image_shape": [8, 8, 1], "train_classes": 12}
    assert all(np.array_equal(hparams[name], value) for name, value in state.best_hparams.items())


def test_interrupt_saves_and_resume_goes_on(tmp_path, uninterrupted):
    whole, _ = uninterrupted
    path = tmp_path / "run"
    run, config = open_run(path)

    def interrupt(record):
        if record["iteration"] == 23:
            raise KeyboardInterrupt

    with run:
        with pytest.raises(KeyboardInterrupt):
            tiny.tiny_train(run, config, interrupt, snapshot_s=1e9)
        assert load_state(run, config.training, start(FewShot(config, tiny.tiny_data()))).iteration == 23
        seen = []
        tiny.tiny_train(run, config, lambda record: seen.append(record["iteration"]))
    assert seen[0] == 24
    assert (path / MODEL).read_bytes() == (whole / MODEL).read_bytes()
    assert untimed(path) == untimed(whole)


def test_a_finished_run_is_not_trained_again(tmp_path, uninterrupted):
    path = tmp_path / "run"
    shutil.copytree(uninterrupted[0], path)
    before = (path / MODEL).read_bytes()
    seen = []
    with RunDirectory(path) as run:
        state = tiny.tiny_train(run, tiny.tiny_config(), seen.append)
    assert seen == [] and state.iteration == 60 and (path / MODEL).read_bytes() == before


def test_early_stopping_counts_validations_without_progress(tmp_path):
    run, config = open_run(tmp_path / "run", outer_lr=1e-12, iterations=1000, eval_every=2, patience=3)
    with run:
        state = tiny.tiny_train(run, config)
    assert finished(config.training, state) == "patience"
    assert (state.best_iteration, state.iteration) == (2, 8)


def test_a_full_disk_stops_with_one_error_and_the_run_can_go_on(tmp_path, uninterrupted):
    whole, _ = uninterrupted
    path = tmp_path / "run"
    run, config = open_run(path)

    with run:
        with contextlib.ExitStack() as disk:

            def fill(record):
                if record["iteration"] == 20:
                    disk.enter_context(full_disk())

            with pytest.raises(RunError, match="disk is full"):
                tiny.tiny_train(run, config, fill, snapshot_s=1e9)
        assert load_state(run, config.training, start(FewShot(config, tiny.tiny_data()))).iteration == 14
        tiny.tiny_train(run, config)
    assert (path / MODEL).read_bytes() == (whole / MODEL).read_bytes()
    assert untimed(path) == untimed(whole)


def test_a_truncated_state_is_refused_and_the_model_stays_usable(tmp_path, uninterrupted):
    path = tmp_path / "run"
    shutil.copytree(uninterrupted[0], path)
    os.truncate(path / STATE, 500)
    with RunDirectory(path) as run:
        with pytest.raises(RunError, match="state.safetensors is damaged"):
            tiny.tiny_train(run, tiny.tiny_config())
        hparams, _ = load_model(run)
    assert hparams.keys() == uninterrupted[1].best_hparams.keys()


def test_a_state_of_another_network_or_other_data_is_refused(tmp_path, uninterrupted):
    path = tmp_path / "run"
    shutil.copytree(uninterrupted[0], path)
    with RunDirectory(path) as run:
        with pytest.raises(RunError, match="other arrays than this run's network"):
            tiny.tiny_train(run, tiny.tiny_config(filters=5))
        with pytest.raises(RunError, match="other arrays than this run's network"):
            load_model(run, FewShot(tiny.tiny_config(filters=5), tiny.tiny_data()).init())
        other = dataclasses.replace(tiny.tiny_data(), train=tiny.tiny_split("train", 13, 1))
        with pytest.raises(RunError, match="was started with other data"):
            tiny.tiny_train(run, tiny.tiny_config(), data=other)


def test_divergence_is_told_and_the_last_good_state_stays(tmp_path):
    run, config = open_run(tmp_path / "run", outer_lr=1e30, log_step_size=True)
    with run, np.errstate(all="ignore"):
        with pytest.raises(RunError, match="training diverged; lower --outer-lr"):
            tiny.tiny_train(run, config, snapshot_s=0.0)
        if (run.path / STATE).exists():
            state = load_state(run, config.training, start(FewShot(config, tiny.tiny_data())))
            assert all(np.isfinite(value).all() for value in state.hparams.values())
        assert all(math.isfinite(record["loss"]) for record in run.read_metrics() if "loss" in record)


def test_what_meta_training_draws_from():
    """Validation episodes are those of the configuration, whatever the shape of the training episodes."""
    data = tiny.tiny_data()
    problem = FewShot(tiny.tiny_config(outer_images="support", train_k_shot=3), data)
    assert problem.train.batch(0).support.shape[1] == 9 and problem.train.batch(0).query.shape[1] == 3
    assert problem.validation.batch(0).support.shape[1] == 3 and problem.validation.batch(0).query.shape[1] == 12
    cycle = FewShot(tiny.tiny_config("multitask", train_episodes=3), data).train
    assert [cycle.batch(i).numbers.tolist() for i in range(3)] == [[0, 1], [2, 0], [1, 2]]
    assert np.array_equal(cycle.batch(0).episodes.support[0], cycle.batch(1).episodes.support[1])
    images = FewShot(tiny.tiny_config("multiclass", held_out=0.25), data)
    assert images.validation.batch(0).labels.max() < 12 and len(images.validation.batch(0).labels) == 16
    with pytest.raises(ArgumentError, match="held_out is 1.5, expected a share"):
        FewShot(tiny.tiny_config("multiclass", held_out=1.5), data)
    with pytest.raises(DataError, match="batch_size is 16, expected at most 12 because .* held-out images in split 'train'"):
        FewShot(tiny.tiny_config("multiclass", held_out=0.1), data)
    with pytest.raises(ArgumentError, match="adapted_blocks is 3, expected at most 2"):
        FewShot(tiny.tiny_config("combination", adapted_blocks=3), data).init()


def test_too_many_ways_are_refused_by_the_sampler():
    with pytest.raises(DataError, match="classes, expected at least 13 "):
        sampler(tiny.tiny_config(n_way=13), tiny.tiny_data().train)


def test_a_finished_run_goes_on_with_more_iterations(tmp_path, uninterrupted):
    path = tmp_path / "run"
    shutil.copytree(uninterrupted[0], path)
    before = untimed(path)
    longer = tiny.tiny_config(iterations=70)
    with RunDirectory(path) as run:
        check_extension(run, tiny.tiny_config().training, longer.training)
        state = tiny.tiny_train(run, longer)
    after = untimed(path)
    assert state.iteration == 70 and after[: len(before)] == before
    assert [r["iteration"] for r in after[len(before) :] if "loss" in r] == list(range(61, 71))


def test_limits_that_would_stop_a_run_at_once_are_refused(tmp_path):
    run, config = open_run(tmp_path / "run", outer_lr=1e-12, iterations=1000, eval_every=2, patience=3)
    with run:
        tiny.tiny_train(run, config)
        training = config.training
        with pytest.raises(ArgumentError, match="iterations is 5, expected at least 1000"):
            check_extension(run, training, dataclasses.replace(training, iterations=5))
        with pytest.raises(ArgumentError, match="stopped after 3 validations without progress.*--patience 6"):
            check_extension(run, training, dataclasses.replace(training, iterations=2000))
        check_extension(run, training, dataclasses.replace(training, iterations=2000, patience=4))


def test_a_state_of_format_2_is_read(tmp_path, uninterrupted):
    """Up to format 2 the best score was called best_accuracy."""
    path = tmp_path / "run"
    shutil.copytree(uninterrupted[0], path)
    config = tiny.tiny_config()
    with RunDirectory(path) as run:
        tensors, numbers = run.read_tensors(STATE)
        numbers["best_accuracy"] = numbers.pop("best_score")
        run.write_tensors(STATE, tensors, numbers)
        assert load_state(run, config.training, start(FewShot(config, tiny.tiny_data()))).best_score == uninterrupted[1].best_score


@pytest.mark.parametrize(
    "method, options",
    [
        ("maml", {}),
        ("protonet", {}),
        ("maml-plus-plus", {}),
        ("reptile", {}),
        ("meta-learner-lstm", {}),
        ("matching-net", {}),
        ("multitask", {"train_episodes": 5, "train_k_shot": 2}),
        ("nearest-neighbour", {"representation": "linear"}),
        ("multiclass", {"held_out": 0.2}),
        ("fine-tuning", {}),
        ("combination", {"mixture": "width"}),
        ("hyper-representation", {"gradient": "approximate", "outer_images": "support", "train_k_shot": 3}),
    ],
)
def test_methods_learn_and_resume_bit_for_bit(tmp_path, method, options):
    models = []
    for stop in (None, 11):
        run, config = open_run(tmp_path / f"run{stop}", method=method, iterations=20, eval_every=10, n_way=3, **options)

        def interrupt(record, stop=stop):
            if record["iteration"] == stop:
                raise KeyboardInterrupt

        with run:
            if stop is not None:
                with pytest.raises(KeyboardInterrupt):
                    tiny.tiny_train(run, config, interrupt)
            tiny.tiny_train(run, config)
        models.append((run.path / MODEL).read_bytes())
    assert models[0] == models[1]
    losses = [record["loss"] for record in untimed(run.path) if "loss" in record]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
