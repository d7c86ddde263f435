"""`hypergrad reproduce`: every cell is a run; finished ones are read, interrupted ones go on; published figures beside their own data."""

import csv
import json

import pytest
import tiny

from hypergrad.data import SilentReporter
from hypergrad.errors import ArgumentError, RunError
from hypergrad.fewshot import reproduction
from hypergrad.fewshot.config import make_config
from hypergrad.fewshot.evaluation import STEPS_PNG
from hypergrad.fewshot.reproduction import TABLES, Cell, reproduce
from hypergrad.runs.directory import CONFIG, RESULT

SMALL = {"n_way": 3, "n_query": 2, "filters": 4, "blocks": 2, "meta_batch": 2, "eval_episodes": 4, "test_episodes": 4}
PUBLISHED = [Cell("ProtoNet", "1-shot", {"method": "protonet"}, (49.42, None)), Cell("MAML", "1-shot", {"method": "maml"}, (48.7, 1.75))]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """reproduce of a small table on small data; returns what it said."""
    monkeypatch.setitem(TABLES, "table1", PUBLISHED)

    def call(target="table1", budget="20", **changes):
        lines = []
        files = reproduce(target, tmp_path, budget, {**SMALL, **changes}, lambda config: tiny.tiny_data(), SilentReporter(), lines.append)
        return lines, [f.name for f in files]

    return call


@pytest.mark.parametrize("target", TABLES)
def test_every_cell_is_a_configuration_of_its_own(target):
    cells = TABLES[target]
    assert len({cell.name for cell in cells}) == len(cells)
    configs = [make_config(data="miniimagenet", **cell.options) for cell in cells]
    assert len({repr(config) for config in configs}) == len(cells)


def test_the_published_figures_are_those_of_the_paper():
    assert [len(TABLES[name]) for name in ("table1", "table2", "figure1", "figure2")] == [14, 13, 1, 1]
    figures = {(cell.row, cell.column): cell.published for cell in TABLES["table1"]}
    assert figures["MAML", "5-shot"] == (63.11, 0.92) and figures["Hyper-representation", "1-shot"] == (47.01, 1.35)
    assert {cell.row: cell.published for cell in TABLES["table2"]}["Classic-train 16x5"] == (40.46, None)


def test_a_table_is_written_and_read_again(run, tmp_path, monkeypatch):
    lines, files = run(data="glyphs")
    assert files == ["table1.md", "table1.csv"] and lines[0].startswith("1/2  ProtoNet, 1-shot: ") and "published" not in lines[0]
    rows = list(csv.DictReader((tmp_path / "table1.csv").read_text().splitlines()))
    result = json.loads((tmp_path / "protonet-1-shot" / RESULT).read_text())
    assert [row["row"] for row in rows] == ["ProtoNet", "MAML"] and rows[0]["iterations"] == "20" and rows[0]["published"] == ""
    assert float(rows[0]["accuracy"]) == pytest.approx(100 * result["test_accuracy"], abs=1e-3)
    table = (tmp_path / "table1.md").read_text()
    assert "20 to 20 iterations" in table and f"| ProtoNet | {100 * result['test_accuracy']:.2f} ± " in table
    monkeypatch.setattr(reproduction, "train_run", None)  # nothing is trained again
    assert run(data="glyphs")[0] == lines


def test_an_interrupted_table_goes_on(run, tmp_path):
    uninterrupted, _ = run(data="glyphs")
    whole = (tmp_path / "maml-1-shot" / "model.safetensors").read_bytes()
    (tmp_path / "maml-1-shot" / RESULT).unlink()  # as if it had stopped before its end
    assert run(data="glyphs")[0] == uninterrupted
    assert (tmp_path / "maml-1-shot" / "model.safetensors").read_bytes() == whole
    with pytest.raises(RunError, match="other settings.*choose another --out"):
        run(data="glyphs", seed=1)
    with pytest.raises(RunError, match="other settings"):
        run(data="glyphs", budget="30")


def test_a_budget_of_minutes_and_a_figure(run, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduction.time, "monotonic", iter(range(0, 100, 2)).__next__)  # a step takes 2 s
    monkeypatch.setattr(reproduction, "train_run", train_nothing)
    monkeypatch.setitem(TABLES, "figure1", [PUBLISHED[1]])
    _, files = run("figure1", budget="1min", data="glyphs")
    assert files == ["figure1.png"] and (tmp_path / "figure1.png").read_bytes() == b"png"
    assert json.loads((tmp_path / "maml-1-shot" / CONFIG).read_text())["training"]["iterations"] == 30
    run("figure1", budget="1min", data="glyphs")  # however many iterations a minute would give now


def train_nothing(run, config, data, reporter):
    run.write(STEPS_PNG, b"png")
    run.write_json(RESULT, {"test_accuracy": 0.5, "test_interval": 0.1, "n_steps": 1, "episodes": 4, "n_way": 3})


def test_published_figures_stand_beside_miniimagenet_alone(run, monkeypatch):
    monkeypatch.setattr(reproduction, "train_run", train_nothing)
    lines, _ = run(data="miniimagenet")
    assert "50.00 ± 10.00 % (published 49.42);" in lines[0] and "(published 48.70 ± 1.75);" in lines[1]


@pytest.mark.parametrize("budget", ["", "0", "-5", "2h", "1.5min", "much"])
def test_other_budgets_are_refused(run, budget):
    with pytest.raises(ArgumentError, match="--budget is"):
        run(budget=budget)


def test_other_targets_are_refused(run):
    with pytest.raises(ArgumentError, match="TARGET is 'table3', expected one of table1, table2, figure1, figure2"):
        run("table3")
