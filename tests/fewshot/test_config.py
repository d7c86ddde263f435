"""Presets, ranges, and the config file of another version."""

import dataclasses

import pytest

from hypergrad.errors import ArgumentError, RunError
from hypergrad.fewshot.config import DATA, PRESETS, Config, make_config, quick


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_round_trips(data, preset):
    config = make_config(data, preset, root=None if data == "glyphs" else "/somewhere")
    assert Config.from_json(config.to_json(), "config.json") == config
    assert quick(config).iterations <= 30


def test_paper_preset_is_the_published_protocol():
    config = make_config("miniimagenet", "paper", root="/somewhere")
    expected = {
        "filters": 32,
        "blocks": 4,
        "n_query": 15,
        "n_steps": 5,
        "step_size": 0.1,
        "log_step_size": False,
        "centred": False,
        "normalized": False,
        "statistics": "separate",
        "meta_batch": 4,
        "outer_lr": 1e-3,
        "schedule": "inverse-time",
        "outer_decay": 1e-5,
        "patience": 40,
        "test_episodes": 600,
    }
    assert {name: getattr(config, name) for name in expected} == expected


def test_outer_step_size_follows_the_schedule():
    linear = make_config(outer_lr=0.5, iterations=100)
    assert [linear.outer_step_size(i) for i in (0, 50, 99)] == pytest.approx([0.5, 0.25, 0.005])
    paper = make_config("miniimagenet", "paper", root="/somewhere")
    assert [paper.outer_step_size(i) for i in (0, 100_000)] == pytest.approx([1e-3, 5e-4])


def test_explicit_changes_win_over_tables_and_none_does_not():
    config = make_config("omniglot", "paper", root="/x", iterations=7, n_way=None)
    assert config.iterations == 7 and config.n_way == 5


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
        ({"sweep": ()}, "expected at least one number"),
        ({"root": "/x"}, "glyphs are rendered"),
        ({"n_ways": 5}, "unknown fields n_ways"),
    ],
)
def test_values_out_of_range_are_refused(changes, message):
    with pytest.raises(ArgumentError, match=message):
        make_config(**changes)


@pytest.mark.parametrize(
    "damage, message",
    [
        ({"format": 99}, "format 99, expected 2"),
        ({"colour": "red"}, r"unknown fields \(colour\)"),
        ({"n_way": "five"}, "n_way = 'five', expected another type"),
        ({"centred": 1}, "centred = 1"),
        ({"sweep": [1, "2"]}, "sweep"),
        ({"n_way": 1}, "n_way is 1"),
    ],
)
def test_config_files_of_other_versions_or_hands_are_refused(damage, message):
    with pytest.raises(RunError, match=message):
        Config.from_json({**make_config().to_json(), **damage}, "config.json")


def test_missing_field_and_no_object_are_refused():
    record = make_config().to_json()
    del record["filters"]
    with pytest.raises(RunError, match="missing or unknown fields \\(filters\\)"):
        Config.from_json(record, "config.json")
    with pytest.raises(RunError, match="format None"):
        Config.from_json([1, 2], "config.json")


def test_json_whole_numbers_may_stand_for_floats():
    record = {**make_config().to_json(), "outer_decay": 0}
    assert Config.from_json(record, "config.json") == dataclasses.replace(make_config(), outer_decay=0.0)
