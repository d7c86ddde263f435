"""Every problem of hyperparameter optimisation: what `hypergrad tune PROBLEM` reaches, and how long it takes.

    python bench/tune.py [--mnist DIR] [--only NAME ...] [--quick] [--out DIR]

Each job is the command a user would type, in a process of its own; what it prints goes through, and what it wrote to
result.json becomes one JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import HERE, environment, write_lines
from rich.console import Console
from rich.table import Table

from hypergrad.hpo.problems import PROBLEMS

ON_MNIST = "hyper-cleaning-mnist"


def run(name: str, root: Path | None, folder: Path, *, quick: bool) -> dict[str, Any]:
    """One job: its result.json and the command."""
    problem = name.removesuffix("-mnist")
    directory, more = folder / name, ["--quick"] * quick + ([] if root is None else ["--root", str(root.resolve())])
    # not in the checkout, whose folder would stand in for the installed package
    command = [sys.executable, "-m", "hypergrad.cli", "tune", problem, *more, "--run-dir", str(directory)]
    subprocess.run(command, check=True, cwd=folder)
    result: dict[str, Any] = json.loads((directory / "result.json").read_text())
    shown = " ".join(["hypergrad", "tune", problem, *(["--quick"] * quick), *(["--root", "DIR"] if root else [])])
    return {"kind": "run", "job": name, "command": shown, **result}


def main(arguments: list[str] | None = None) -> None:
    """Run the jobs and write bench/results/tune-cpu.jsonl."""
    jobs = [*PROBLEMS, ON_MNIST]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, metavar="DIR", help="folder with MNIST's idx files; without it that job is skipped")
    parser.add_argument("--only", nargs="+", choices=jobs, default=jobs, help="jobs to run")
    parser.add_argument("--quick", action="store_true", help="the short forms: under a minute in all")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="where the JSON lines go")
    options = parser.parse_args(arguments)
    console, path = Console(), options.out / "tune-cpu.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    kept = {row["job"]: row for row in rows}
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.only:
            if name == ON_MNIST and options.mnist is None:
                console.print(f"{name}: skipped, no folder given")
                continue
            root = options.mnist if name == ON_MNIST else None
            kept[name] = {**run(name, root, Path(scratch), quick=options.quick), "environment": environment()}
            write_lines(path, kept.values())
    table = Table("job", "seconds", "peak MB", "command")
    for name, row in kept.items():
        table.add_row(name, f"{row['command_s']:.0f}", f"{row['peak_bytes'] / 1e6:.0f}", row["command"])
    console.print(table)


if __name__ == "__main__":
    main()
