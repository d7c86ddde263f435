"""`hypergrad sweep FILE`: one command for every combination of settings and for several seeds, as one table.

    command = "train"            # or "tune", with `problem = "..."` among the settings
    seeds = [0, 1, 2]
    metrics = ["test_accuracy"]  # what the table in Markdown shows, by the names in result.json

    [settings]                   # options of every run, as on the command line
    iterations = 200

    [grid]                       # every combination of these values
    method = ["maml", "protonet"]
    outer_lr = [1e-3, 3e-3]

A cell is one run, in a directory of its own. What is finished is read, what was interrupted goes on, so the same command resumes a sweep.
Whoever holds the lock of a cell runs it. So several processes share a sweep, started by mpiexec or one after the other.
"""

import csv
import io
import itertools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .data.report import Reporter, SilentReporter
from .errors import ArgumentError, HypergradError, InUseError, RunError
from .fewshot import config as few_shot
from .fewshot.jobs import open_data, train_run
from .hpo import config as tuning
from .hpo.jobs import tune_run
from .parallel import Ranks
from .runs.directory import CONFIG, RESULT, RunDirectory, write_file

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ERROR = "error.json"  # of a cell: why it has failed
TABLE = "table"  # .csv: a row for each cell; .md: a row for each combination of settings
METRICS = {"train": "test_accuracy", "tune": "validation_score"}
KEYS = ("command", "seeds", "metrics", "settings", "grid")
LONGEST_NAME = 200


@dataclass(frozen=True)
class Cell:
    """One run of a sweep. Args: settings: those of the grid; seed: of the run; config: all that it depends on."""

    settings: Mapping[str, Any]
    seed: int
    config: few_shot.Config | tuning.Config

    @property
    def name(self) -> str:
        """Of its directory: the same for a grid with more values."""
        text = ",".join(f"{name}={_shown(value)}" for name, value in {**self.settings, "seed": self.seed}.items())
        return re.sub(r"[^A-Za-z0-9=,._+-]", "_", text)


@dataclass(frozen=True)
class Sweep:
    """What a sweep's file says. Args: command: "train" or "tune"; metrics: names in result.json; cells: the runs."""

    command: str
    metrics: tuple[str, ...]
    cells: tuple[Cell, ...]


def read_sweep(path: Path, shorten: bool = False) -> Sweep:
    """A sweep's file.

    Args: path: of a TOML file; shorten: whether every run is cut to some seconds. Returns: a Sweep.
    Raises: ArgumentError for a file that cannot be read, an unknown key, an option that the command has not, or a value out of its range.
    Cost: O(cells).
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArgumentError(f"sweep: {path} cannot be read ({error}), expected a TOML file; correct it") from error
    if unknown := content.keys() - set(KEYS):
        raise ArgumentError(f"sweep: {path} has {', '.join(sorted(unknown))}, expected some of {', '.join(KEYS)}; correct the names")
    command, seeds = content.get("command", "train"), content.get("seeds", [0])
    if command not in METRICS:
        raise ArgumentError(f"sweep: command is {command!r}, expected one of {', '.join(METRICS)}; write one of these")
    metrics = content.get("metrics", [METRICS[command]])
    settings, grid = (_options(content, key) for key in ("settings", "grid"))
    lists = {"seeds": seeds, "metrics": metrics, **grid}
    for name, values in lists.items():
        if not isinstance(values, list) or not values or len({_shown(value) for value in values}) < len(values):
            raise ArgumentError(f"sweep: {name} is {values!r}, expected a list of different values; write one in brackets")
    if shared := settings.keys() & grid.keys() | {"seed"} & (settings.keys() | grid.keys()):
        raise ArgumentError(f"sweep: {', '.join(sorted(shared))} is set twice, expected once, and seeds as `seeds`; leave one out")
    cells = []
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, map(_value, values), strict=True))
        for seed in seeds:
            cells.append(Cell(chosen, seed, _config(command, {**settings, **chosen, "seed": seed}, shorten)))
    names = [cell.name for cell in cells]
    if len(set(names)) < len(names) or max(map(len, names)) > LONGEST_NAME:
        raise ArgumentError(
            f"sweep: the values of {', '.join(grid)} give equal or too long names of directories, expected different ones of at most "
            f"{LONGEST_NAME} characters; shorten the values"
        )
    return Sweep(command, tuple(metrics), tuple(cells))


def run_sweep(sweep: Sweep, folder: Path, reporter: Reporter, say: Callable[[str], None], ranks: Ranks) -> tuple[list[Path], int]:
    """Run every cell that is not finished, and write the table.

    Args:
        sweep: of `read_sweep`.
        folder: holds a run directory for each cell, and the table; the processes share it.
        reporter: shows what opening the data has to say, once; say: is called with a line for each cell.
        ranks: the processes that share the cells.
    Returns: the files written (none but in process 0), and the number of cells that have no result, because they failed or another
        process runs them.
    Raises: RunError where a cell was made with other settings.
    Cost: that of the cells, each in one process.
    """
    if ranks.rank == 0:
        for cell in sweep.cells:
            _prepare(folder / cell.name, cell.config)
    ranks.broadcast(None)
    cells = sweep.cells
    for i in range(len(cells)):
        at = (ranks.share(len(cells)).start + i) % len(cells)  # each process begins at another cell, and takes what the others leave
        path, name = folder / cells[at].name, f"{at + 1}/{len(cells)}  {cells[at].name}"
        try:
            if not _is_done(path) and _run(path, cells[at].config, reporter):
                say(f"{name}: {_figures(sweep, [_result(path)])}")
                reporter = SilentReporter()  # the next cell's data have no more to say
        except InUseError:
            continue
        except HypergradError as error:
            say(f"{name}: failed: {error}")
    ranks.broadcast(None)
    written, found = list[Path](), list[dict[str, Any]]()
    if ranks.rank == 0:
        found = [_result(folder / cell.name) for cell in cells]
        written.append(write_file(folder / f"{TABLE}.csv", _csv(cells, found, folder).encode()))
        written.append(write_file(folder / f"{TABLE}.md", _markdown(sweep, found).encode()))
    return written, ranks.broadcast(sum(not result for result in found))


def _options(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A table of the file, its names those of the options."""
    table = content.get(key, {})
    if not isinstance(table, dict):
        raise ArgumentError(f"sweep: {key} is {table!r}, expected a table of options; write it as [{key}]")
    return {name.replace("-", "_"): value if key == "grid" else _value(value) for name, value in table.items()}


def _value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _shown(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _config(command: str, options: Mapping[str, Any], shorten: bool) -> few_shot.Config | tuning.Config:
    if command == "tune":
        return tuning.make_config(shorten=shorten, **options)
    config = few_shot.make_config(**options)
    return few_shot.quick(config) if shorten else config


def _prepare(path: Path, config: few_shot.Config | tuning.Config) -> None:
    """Make a cell's directory, or see that it was made with the same settings."""
    record = few_shot.save_config(config) if isinstance(config, few_shot.Config) else tuning.save_config(config)
    if not (path / CONFIG).is_file():
        with RunDirectory.create(path, record):
            return
    if RunDirectory(path, locked=False).read_json(CONFIG) != record:
        raise RunError(
            f"sweep: {path} was made with other settings, expected those of the file; choose another --out, or restore the file's settings"
        )
    (path / ERROR).unlink(missing_ok=True)  # what has failed is tried again


def _is_done(path: Path) -> bool:
    """Whether a cell has a result, or has failed since this sweep began."""
    return (path / RESULT).is_file() or (path / ERROR).is_file()


def _run(path: Path, config: few_shot.Config | tuning.Config, reporter: Reporter) -> bool:
    """Run a cell, or go on with it.

    Returns: False where another process has just done it. Raises: InUseError where another one does; what fails is also written down.
    """
    with RunDirectory(path) as run:
        if _is_done(path):
            return False
        try:
            if isinstance(config, few_shot.Config):
                train_run(run, config, open_data(config, reporter), reporter, quiet=True)
            else:
                tune_run(run, config, config.problem.open(config.seed), quiet=True)
        except HypergradError as error:
            run.write_json(ERROR, {"error": str(error)})
            raise
    return True


def _result(path: Path) -> dict[str, Any]:
    """The numbers of a cell's result, {} where there is none yet."""
    if not (path / RESULT).is_file():
        return {}
    found = RunDirectory(path, locked=False).read_json(RESULT)
    return {name: value for name, value in found.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}


def _figures(sweep: Sweep, results: Sequence[Mapping[str, Any]]) -> str:
    """The metrics of one or several cells that differ in their seeds."""
    return ", ".join(f"{metric} {_figure([r[metric] for r in results if metric in r])}" for metric in sweep.metrics)


def _figure(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    if not values:
        return "none"
    return f"{np.mean(values):.4g}" + (f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else "")


def _markdown(sweep: Sweep, found: Sequence[Mapping[str, Any]]) -> str:
    grid = list(sweep.cells[0].settings)
    rows: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for cell, result in zip(sweep.cells, found, strict=True):
        rows.setdefault(tuple(map(_shown, cell.settings.values())), []).append(result)
    seeds = max(len(results) for results in rows.values())
    lines = [
        f"`hypergrad {sweep.command}`, {len(sweep.cells)} runs: the mean over the finished seeds of {seeds}, ± their standard deviation.",
        "",
        f"| {' | '.join([*grid, 'seeds', *sweep.metrics])} |",
        f"|{'---|' * (len(grid) + 1 + len(sweep.metrics))}",
    ]
    for settings, results in rows.items():
        figures = [_figure([r[metric] for r in results if metric in r]) for metric in sweep.metrics]
        lines.append(f"| {' | '.join([*settings, str(sum(map(bool, results))), *figures])} |")
    return "\n".join(lines) + "\n"


def _csv(cells: Sequence[Cell], found: Sequence[Mapping[str, Any]], folder: Path) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    numbers = list(dict.fromkeys(name for result in found for name in result))
    rows.writerow([*cells[0].settings, "seed", *numbers, "error", "run"])
    for cell, result in zip(cells, found, strict=True):
        settings, path = map(_shown, cell.settings.values()), folder / cell.name
        error = RunDirectory(path, locked=False).read_json(ERROR)["error"] if (path / ERROR).is_file() else ""
        rows.writerow([*settings, cell.seed, *(result.get(name, "") for name in numbers), error, cell.name])
    return text.getvalue()
