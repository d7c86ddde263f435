"""Presets, ranges, and the config file of another version."""

import dataclasses

import pytest

from hypergrad.errors import ArgumentError, RunError
from hypergrad.fewshot.config import DATA, Config, make_config, quick, read_config, save_config
from hypergrad.fewshot.methods import METHODS
from hypergrad.runs.configuration import options_of

# What the last version with format 2 wrote, some values changed.
FLAT = {
    **{"format": 2, "data": "omniglot", "root": "/x", "image_size": None, "preset": "paper", "n_way": 20, "k_shot": 5, "n_query": 15},
    **{"filters": 64, "blocks": 4, "n_steps": 5, "step_size": 0.1, "log_step_size": False, "centred": False, "normalized": False},
    **{"statistics": "joint", "last_gamma": 0.3, "last_beta": -0.3, "meta_batch": 4, "outer_lr": 0.001, "schedule": "inverse-time"},
    **{"outer_decay": 1e-05, "iterations": 60, "eval_every": 20, "eval_episodes": 20, "patience": 40, "test_episodes": 40},
    **{"sweep": [1, 2, 10], "seed": 7, "device": "cpu", "graphs": True},
}


def option_values(config):
    """All options by name."""
    sections = (config.method, config, config.dataset, config.episodes, config.network, config.training, config.evaluation)
    return {name: value for section in sections for name, value in vars(section).items() if not dataclasses.is_dataclass(value)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("data", DATA)
def test_every_preset_round_trips(data, method):
    for preset in METHODS[method].presets():
        config = make_config(data, preset, method, root=None if data == "glyphs" else "/somewhere", outer_lr=0.125)
        assert read_config(save_config(config), "config.json") == config and type(config.method) is METHODS[method]
        assert quick(config).training.iterations <= 30


def test_paper_preset_is_the_published_protocol():
    values = option_values(make_config("miniimagenet", "paper", root="/somewhere"))
    expected = {
        **{"filters": 32, "blocks": 4, "n_query": 15, "n_steps": 5, "step_size": 0.1, "log_step_size": False, "centred": False},
        **{"normalized": False, "statistics": "separate", "meta_batch": 4, "outer_lr": 1e-3, "schedule": "inverse-time"},
        **{"outer_decay": 1e-5, "patience": 40, "test_episodes": 600, "iterations": 100_000},
    }
    assert {name: values[name] for name in expected} == expected


def test_outer_step_size_follows_the_schedule():
    linear = make_config(outer_lr=0.5, iterations=100).training
    assert [linear.step_size(i) for i in (0, 50, 99)] == pytest.approx([0.5, 0.25, 0.005])
    paper = make_config("miniimagenet", "paper", root="/somewhere").training
    assert [paper.step_size(i) for i in (0, 100_000)] == pytest.approx([1e-3, 5e-4])
    assert make_config(outer_lr=0.5, schedule="constant").training.step_size(700) == 0.5


def test_explicit_changes_win_over_settings_and_none_does_not():
    config = make_config("omniglot", "paper", root="/x", iterations=7, n_way=None)
    assert config.training.iterations == 7 and config.episodes.n_way == 5


def test_names_of_options_are_unique_within_a_method():
    for method in METHODS:
        names = [o.name for o in options_of(Config) if o.kind in (None, method)]
        assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"n_way": 1}, "n_way is 1, expected at least 2"),
        ({"k_shot": 0}, "k_shot is 0"),
        ({"outer_lr": float("nan")}, "outer_lr is nan"),
        ({"step_size": -1.0}, "step_size is -1.0"),
        ({"statistics": "running"}, "expected one of separate, joint"),
        ({"schedule": "cosine"}, "expected one of linear, inverse-time"),
        ({"data": "cifar"}, "expected one of glyphs, omniglot"),
        ({"preset": "best"}, "expected one of default, paper"),
        ({"preset": "paper", "method": "maml"}, "preset is 'paper', expected one of default, those of maml"),
        ({"method": "magic"}, "method is 'magic', expected one of .*hyper-representation, .*protonet"),
        ({"method": "protonet", "n_steps": 3}, "unknown options n_steps, expected some of .*temperature"),
        ({"method": "matching-net", "temperature": 0.0}, "temperature is 0.0, expected a finite number > 0"),
        ({"method": "matching-net", "context_steps": -1}, "context_steps is -1, expected at least 0"),
        ({"method": "multitask", "train_episodes": 0}, "train_episodes is 0, expected at least 1"),
        ({"method": "multiclass", "representation": "pixels"}, "representation is 'pixels', expected one of conv, linear, softmax"),
        ({"method": "nearest-neighbour", "distance": "manhattan"}, "expected one of euclidean, cosine"),
        ({"method": "fine-tuning", "representation": "conv"}, "unknown options representation"),
        ({"method": "combination", "mixture": "both"}, "expected one of depth, width"),
        ({"method": "combination", "adapted_share": 1.5}, "adapted_share is 1.5, expected a share of at most 1"),
        ({"gradient": "joint"}, "expected one of exact, approximate"),
        ({"outer_images": "all"}, "expected one of query, support"),
        ({"train_k_shot": 0}, "train_k_shot is 0, expected at least 1"),
        ({"method": "meta-learner-lstm", "forget": 1.0}, "forget is 1.0, expected a number below 1"),
        ({"method": "imaml", "proximal": 0.0}, "proximal is 0.0, expected a finite number > 0"),
        ({"method": "reptile", "minibatches": 0}, "minibatches is 0, expected at least 1"),
        ({"method": "maml-plus-plus", "all_losses": -0.1}, "all_losses is -0.1, expected at least 0"),
        ({"method": "maml-plus-plus", "earlier": 1.0}, "unknown options earlier"),
        ({"method": "meta-sgd", "step_size": 0.0}, "step_size is 0.0, expected a finite number > 0"),
        ({"sweep": ()}, "sweep is \\(\\)"),
        ({"sweep": (1, -2)}, "expected at least 0"),
        ({"filters": 3.5}, "filters is 3.5, expected int"),
        ({"n_ways": 5}, "unknown options n_ways"),
    ],
)
def test_values_out_of_range_are_refused(changes, message):
    with pytest.raises(ArgumentError, match=message):
        make_config(**changes)


@pytest.mark.parametrize(
    "damage, message",
    [
        ({"format": 99}, "format 99, expected 2 or 3; a newer version.*update hypergrad"),
        ({"format": None}, "format null.*restore"),
        ({"colour": "red"}, "unknown options colour, .*update hypergrad"),
        ({"training": {"momentum": 1}}, "unknown options momentum"),
        ({"training": 3}, "unknown options training"),
        ({"episodes": {"n_way": "five"}}, "n_way is 'five', expected int"),
        ({"method": {"name": "maml", "first_order": 1}}, "first_order is 1, expected bool"),
        ({"method": {"name": "magic"}}, "method is 'magic', expected one of .*hyper-representation.*install what provides it"),
        ({"method": {"name": "maml", "sweep": [1, "2"]}}, "sweep"),
        ({"episodes": {"n_way": 1}}, "n_way is 1"),
    ],
)
def test_config_files_of_newer_versions_or_hands_are_refused(damage, message):
    with pytest.raises(RunError, match=message):
        read_config({**save_config(make_config()), **damage}, "config.json")


def test_options_that_an_older_version_did_not_know_have_their_defaults():
    record = save_config(make_config(n_way=7))
    del record["network"]["filters"], record["training"], record["method"]["sweep"]
    assert read_config(record, "config.json") == make_config(n_way=7)
    with pytest.raises(RunError, match="format null"):
        read_config([1, 2], "config.json")


def test_a_file_of_format_2_is_read():
    config = read_config(FLAT, "config.json")
    values = option_values(config)
    expected = {name: tuple(v) if isinstance(v, list) else v for name, v in FLAT.items() if name != "format"}
    assert {name: values[name] for name in expected} == expected and config.method_name == "hyper-representation"
    with pytest.raises(RunError, match="unknown options colour"):
        read_config({**FLAT, "colour": "red"}, "config.json")


def test_folders_of_format_2_keep_the_size_that_their_images_had():
    """Without --image-size they were read at 84 x 84; today the images' own size is taken."""
    folder = {**FLAT, "data": "folder", "preset": "default"}
    assert read_config(folder, "config.json").dataset.image_size == 84
    assert read_config({**folder, "image_size": 28}, "config.json").dataset.image_size == 28
    assert read_config(FLAT, "config.json").dataset.image_size is None  # Omniglot


def test_json_whole_numbers_may_stand_for_floats():
    record = save_config(make_config())
    record["training"]["outer_decay"] = 0
    assert read_config(record, "config.json") == make_config(outer_decay=0.0)
