"""The tables and figures of Franceschi et al. 2017 (arXiv:1712.06283), from runs of this package beside the published figures.

A cell is one run, in a directory of its own. What is finished is read, what was interrupted goes on, so the same command resumes a table.
"""

import csv
import io
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data import MetaDataset
from ..data.report import Reporter
from ..errors import ArgumentError, RunError
from ..runs.configuration import changed
from ..runs.directory import CONFIG, RESULT, RunDirectory, write_file
from .config import Config, load_config, make_config, quick, save_config
from .evaluation import PAIRS_PNG, STEPS_PNG
from .jobs import train_run
from .problem import FewShot

PAPER = {"iterations": 100_000, "eval_every": 1000, "patience": 40}  # by the authors' public code (FAR-HO)
VALIDATIONS = 10  # of a run with another budget
FIGURES = {"figure1": STEPS_PNG, "figure2": PAIRS_PNG}
PUBLISHED_DATA = "miniimagenet"  # what the published figures are of, 5-way


@dataclass(frozen=True)
class Cell:
    """One run of a table. Args: row, column: its place; options: of the run; published: accuracy and interval in %, None where unknown."""

    row: str
    column: str
    options: Mapping[str, Any]
    published: tuple[float, float | None] | None = None

    @property
    def name(self) -> str:
        """Of its directory."""
        return re.sub("[^a-z0-9]+", "-", f"{self.row} {self.column}".lower()).strip("-")


def _table1() -> list[Cell]:
    rows: dict[str, tuple[dict[str, Any], Any, Any]] = {
        "Fine-tuning": ({"method": "fine-tuning"}, (28.86, 0.54), (49.76, 0.79)),
        "Nearest-neighbor": ({"method": "nearest-neighbour", "filters": 64}, (41.08, 0.70), (51.04, 0.65)),
        "Matching nets": ({"method": "matching-net"}, (43.44, 0.77), (55.31, 0.73)),
        "Meta-learner LSTM": ({"method": "meta-learner-lstm"}, (43.56, 0.84), (60.60, 0.71)),
        "MAML": ({"method": "maml"}, (48.70, 1.75), (63.11, 0.92)),
        "Hyper-representation": ({"preset": "paper"}, (47.01, 1.35), (61.97, 0.76)),
        "Hyper-representation, default recipe": ({}, None, None),
    }
    return [
        Cell(row, f"{shots}-shot", {**options, "k_shot": shots}, published[i])
        for row, (options, *published) in rows.items()
        for i, shots in enumerate((1, 5))
    ]


def _table2() -> list[Cell]:
    transferred = {"method": "multiclass", "held_out": 0.1, "centred": False, "normalized": False}
    figures = {
        "NN": ({**transferred, "filters": 64}, {"conv": 39.97, "linear": 41.50, "softmax": 41.36}),
        "Multiclass": (transferred, {"conv": 36.57, "linear": 43.02, "softmax": 37.60}),
    }
    cells = [
        Cell(f"{row}-{representation}", "1-shot", {**options, "representation": representation}, (figure, None))
        for row, (options, found) in figures.items()
        for representation, figure in found.items()
    ]
    joined: dict[str, Any] = {"outer_images": "support", "preset": "paper"}
    learned: dict[str, tuple[dict[str, Any], float, float]] = {
        "Bilevel-train": (joined, 27.36, 29.63),
        "Approx-train": ({**joined, "gradient": "approximate"}, 24.74, 38.80),
        "Classic-train": ({"method": "multitask", "centred": False, "normalized": False}, 24.70, 40.46),
    }
    for row, (alike, one, sixteen) in learned.items():
        cells += [Cell(f"{row} 1x5", "1-shot", alike, (one, None))]
        cells += [Cell(f"{row} 16x5", "1-shot", {**alike, "train_k_shot": 16}, (sixteen, None))]
    return [*cells, Cell("Approx, with split", "1-shot", {"preset": "paper", "gradient": "approximate"}, (41.12, None))]


TABLES: dict[str, list[Cell]] = {"table1": _table1(), "table2": _table2()}
TABLES |= {figure: [c for c in TABLES["table1"] if c.row == "Hyper-representation" and c.column == "1-shot"] for figure in FIGURES}


def reproduce(
    target: str,
    folder: Path,
    budget: str,
    changes: Mapping[str, Any],
    open_data: Callable[[Config], MetaDataset],
    reporter: Reporter,
    say: Callable[[str], None],
    shorten: bool = False,
) -> list[Path]:
    """Run every cell of a table or figure that is not finished, and write the result beside the published figures.

    Args:
        target: a key of `TABLES`.
        folder: holds a run directory per cell, and the result: TARGET.md and TARGET.csv, or TARGET.png.
        budget: of a cell: a number of iterations ("2000"), of minutes ("30min", turned into iterations by timing a few), or "paper".
        changes: options that every cell gets, such as data and root; reporter: shows progress; say: is called with a line per cell.
        shorten: whether every cell is cut to some seconds.
    Returns: the files written.
    Raises: ArgumentError for a target or budget that is none; RunError where a cell was made with other settings.
    Cost: that of the cells' training. Each reads the test classes once, after training.
    """
    if target not in TABLES:
        raise ArgumentError(f"reproduce: TARGET is {target!r}, expected one of {', '.join(TABLES)}; pass one of these")
    if not re.fullmatch(r"[1-9]\d*(min)?|paper", budget):
        raise ArgumentError(f"reproduce: --budget is {budget!r}, expected iterations (2000), minutes (30min) or paper; pass one of them")
    found: list[tuple[Cell, dict[str, Any]]] = []
    cells = TABLES[target]
    for i, cell in enumerate(cells, 1):
        config = make_config(**{**changes, **cell.options})
        result = _run(folder / cell.name, quick(config) if shorten else config, "" if shorten else budget, open_data, reporter)
        found.append((cell, result))
        say(f"{i}/{len(cells)}  {cell.row}, {cell.column}: {_figures(result)}{_beside(cell, result)}; test classes read once, at the end")
    if target in FIGURES:
        return [write_file(folder / f"{target}.png", (folder / cells[0].name / FIGURES[target]).read_bytes())]
    return [
        write_file(folder / f"{target}.md", _markdown(target, "a short form" if shorten else budget, found).encode()),
        write_file(folder / f"{target}.csv", _csv(found, folder).encode()),
    ]


def _run(path: Path, config: Config, budget: str, open_data: Callable[[Config], MetaDataset], reporter: Reporter) -> dict[str, Any]:
    """The cell's result: read, or computed by going on or from the start."""
    if not (path / CONFIG).is_file():
        data = open_data(config)
        path.parent.mkdir(parents=True, exist_ok=True)
        with RunDirectory.create(path, save_config(_within(config, budget, data))):
            pass
    with RunDirectory(path) as run:
        before = load_config(run)
        training = {name: getattr(before.training, name) for name in PAPER}  # a number of minutes may give others the next time
        training |= _iterations(budget) if budget and not budget.endswith("min") else {}
        if changed(config, {**training, "root": before.dataset.root}) != before:
            raise RunError(
                f"reproduce: {path} was made with other settings, expected those of this command; choose another --out, or repeat the "
                "command that began it"
            )
        if not (path / RESULT).is_file():
            train_run(run, before, open_data(changed(before, {"root": config.dataset.root})), reporter)
        result = run.read_result("test_accuracy", "test_interval", "n_steps", "episodes", "n_way")
        return {**result, "iterations": before.training.iterations, "data": before.dataset.data}


def _iterations(budget: str) -> dict[str, int]:
    if budget == "paper":
        return PAPER
    return {"iterations": int(budget), "eval_every": max(1, int(budget) // VALIDATIONS)}


def _within(config: Config, budget: str, data: MetaDataset) -> Config:
    """The configuration with as many iterations as the budget allows."""
    if budget.endswith("min"):
        problem, at = FewShot(config, data), []
        hparams = problem.init()
        for i in range(4):  # the first one warms up
            problem.gradient(hparams, i)
            at.append(time.monotonic())
        budget = str(max(VALIDATIONS, round(60 * int(budget.removesuffix("min")) * 3 / max(at[-1] - at[0], 1e-9))))
    return changed(config, _iterations(budget)) if budget else config


def _figures(result: Mapping[str, Any]) -> str:
    return f"{100 * result['test_accuracy']:.2f} ± {100 * result['test_interval']:.2f} %"


def _beside(cell: Cell, result: Mapping[str, Any]) -> str:
    """The published figures, where they are of the same data."""
    if cell.published is None or result["data"] != PUBLISHED_DATA:
        return ""
    mean, interval = cell.published
    return f" (published {mean:.2f}{'' if interval is None else f' ± {interval:.2f}'})"


def _markdown(target: str, budget: str, found: list[tuple[Cell, dict[str, Any]]]) -> str:
    columns = list(dict.fromkeys(cell.column for cell, _ in found))
    cells = {(cell.row, cell.column): f"{_figures(result)}{_beside(cell, result)}" for cell, result in found}
    first = found[0][1]
    lines = [
        f"Mean accuracy on {first['episodes']} meta-test episodes, {first['n_way']}-way, of {first['data']}, with its 95 % interval.",
        f"Budget of each cell: {budget}, that is {min(r['iterations'] for _, r in found)} to "
        f"{max(r['iterations'] for _, r in found)} iterations; validation classes chose T and the model.",
        "",
        f"| {target} | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    lines += [f"| {row} | {' | '.join(cells[row, c] for c in columns)} |" for row in dict.fromkeys(cell.row for cell, _ in found)]
    return "\n".join(lines) + "\n"


def _csv(found: list[tuple[Cell, dict[str, Any]]], folder: Path) -> str:
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow("row column accuracy interval published published_interval data iterations n_steps episodes run".split())
    for cell, r in found:
        published = (cell.published or (None, None)) if r["data"] == PUBLISHED_DATA else (None, None)
        percent = (round(100 * r["test_accuracy"], 3), round(100 * r["test_interval"], 3))
        rest = (r["data"], r["iterations"], r["n_steps"], r["episodes"], folder / cell.name)
        rows.writerow([cell.row, cell.column, *percent, *published, *rest])
    return text.getvalue()
