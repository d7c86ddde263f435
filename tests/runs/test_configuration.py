"""Configurations from dataclasses alone: options, ranges, JSON, the command line."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from hypergrad.errors import ArgumentError, RunError
from hypergrad.runs.command import with_options
from hypergrad.runs.configuration import Section, changed, from_json, option, options_of, section, to_json


@dataclass(frozen=True)
class Cat(Section):
    lives: int = option(9, "How many lives.", low=1)
    fur: str = option("grey", "Its colour.")


@dataclass(frozen=True)
class Dog(Section):
    lives: int = option(1, "How many lives.", low=1)
    tricks: tuple[int, ...] = option((1, 2), "Numbers of its tricks.", low=0)


KINDS = {"cat": Cat, "dog": Dog}


@dataclass(frozen=True)
class House(Section):
    rooms: int = option(3, "How many rooms.", low=1, on_resume=True)
    heat: float | None = option(None, "Degrees.", above=-273.15)
    roof: Literal["flat", "steep"] = option("steep", "Its form.")
    lit: bool = option(True, "Whether the light is on.")


@dataclass(frozen=True)
class Farm(Section):
    seed: int = option(0, "Of the corn.", low=0)
    house: House = section(House)
    animal: Any = section(Cat, kinds=KINDS)


def test_options_are_found_in_sections_and_kinds():
    found = [(o.path, o.kind, o.flag) for o in options_of(Farm)]
    assert found[0] == (("seed",), None, "--seed") and (("house", "rooms"), None, "--rooms") in found
    assert (("animal", "lives"), "cat", "--lives") in found and (("animal", "lives"), "dog", "--lives") in found


def test_changes_reach_their_section_and_choose_a_kind():
    farm = changed(Farm(), {"rooms": 5, "animal": "dog", "lives": 2, "heat": 1})
    assert farm == Farm(house=House(rooms=5, heat=1), animal=Dog(lives=2))
    assert changed(farm, {"animal": "dog"}) == farm  # the same kind keeps its options
    with pytest.raises(ArgumentError, match="unknown options fur, expected some of .*tricks"):
        changed(farm, {"fur": "red"})
    with pytest.raises(ArgumentError, match="animal is 'cow', expected one of cat, dog"):
        changed(farm, {"animal": "cow"})


@pytest.mark.parametrize(
    "values, message",
    [
        ({"rooms": 0}, "rooms is 0, expected at least 1"),
        ({"rooms": True}, "rooms is True, expected int"),
        ({"heat": -300.0}, "heat is -300.0, expected a finite number > -273.15"),
        ({"heat": float("inf")}, "finite"),
        ({"roof": "round"}, "roof is 'round', expected one of flat, steep"),
        ({"lit": 1}, "lit is 1, expected bool"),
        ({"animal": "dog", "tricks": (1, -1)}, "tricks is .* expected at least 0"),
        ({"animal": "dog", "tricks": ()}, "tricks is \\(\\)"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(ArgumentError, match=message):
        changed(Farm(), values)


def test_json_round_trips_and_what_is_missing_has_its_default():
    farm = changed(Farm(), {"animal": "dog", "tricks": (3,), "rooms": 2})
    record = to_json(farm)
    assert record["animal"] == {"name": "dog", "lives": 1, "tricks": [3]} and from_json(Farm, record, "farm.json") == farm
    del record["house"]["rooms"], record["seed"]
    assert from_json(Farm, record, "farm.json") == changed(farm, {"rooms": 3})
    with pytest.raises(RunError, match="farm.json is not valid .*unknown options windows, .*update hypergrad"):
        from_json(Farm, {"house": {"windows": 4}}, "farm.json")
    with pytest.raises(RunError, match="farm.json is not valid .*rooms is 0"):
        from_json(Farm, {"house": {"rooms": 0}}, "farm.json")


@pytest.fixture
def farm_command():
    seen = {}

    def command(changes: dict[str, Any], loud: Annotated[bool, typer.Option("--loud", help="Noise.")] = False) -> None:
        """Runs a farm."""
        seen.update(changes=changes, loud=loud)

    app = typer.Typer()
    app.command()(with_options(command, list(options_of(Farm)), {"animal": KINDS}, {"rooms": "castle 90"}))
    return lambda *args: (CliRunner().invoke(app, list(args), terminal_width=200), seen)


def test_the_command_line_comes_from_the_dataclasses(farm_command):
    result, seen = farm_command("--seed", "4", "--animal", "dog", "--tricks", "5,6", "--no-lit", "--heat", "20", "--loud")
    assert result.exit_code == 0, result.output
    assert seen == {"changes": {"seed": 4, "animal": "dog", "tricks": (5, 6), "lit": False, "heat": 20.0}, "loud": True}
    result, seen = farm_command()
    assert seen == {"changes": {}, "loud": False}


def test_help_has_every_option_with_its_default(farm_command):
    text = " ".join(farm_command("--help")[0].output.split())
    for words in (
        "--seed",
        "How many rooms.",
        "default: 3; castle 90",
        "default: cat 9, dog 1",
        "One of flat, steep.",
        "--no-lit",
        "default: lit",
    ):
        assert words in text, words


def test_numbers_that_are_none_are_refused_by_name(farm_command):
    result, _ = farm_command("--tricks", "1,two")
    assert isinstance(result.exception, ArgumentError) and "tricks is '1,two', expected numbers" in str(result.exception)
