"""The main job on every data set: accuracy, seconds per iteration and peak memory of `hypergrad train`.

    python bench/few_shot.py [--omniglot DIR] [--miniimagenet DIR] [--only NAME ...] [--beside DIR] [--out DIR]

Each job is the command a user would type, in a process of its own; what it prints goes through, and what it wrote to
result.json becomes one JSON line. A job whose folder was not given is skipped, and said to be. With --beside, another checkout
of this package, with its kernels built, runs each job after this one; its lines have its commit behind their names.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import HERE, environment, write_lines
from rich.console import Console
from rich.table import Table

from hypergrad.fewshot.config import FIRST_METHOD
from hypergrad.fewshot.methods import METHODS

JOBS: dict[str, list[str]] = {
    "glyphs": [],
    **{f"glyphs-{name}": ["--method", name] for name in METHODS if name != FIRST_METHOD},
    "glyphs-first-order-maml": ["--method", "maml", "--first-order"],
    "glyphs-anil": ["--method", "maml", "--moves", "head"],
    "glyphs-paper": ["--preset", "paper"],
    "glyphs-approximate": ["--preset", "paper", "--gradient", "approximate"],
    "omniglot": ["--data", "omniglot"],
    "omniglot-paper": ["--data", "omniglot", "--preset", "paper"],
    "omniglot-protonet": "--data omniglot --method protonet --filters 64 --iterations 4000".split(),
    "omniglot-protonet-5-shot": "--data omniglot --method protonet --filters 64 --iterations 3000 --k-shot 5".split(),
    "omniglot-protonet-20-way": "--data omniglot --method protonet --filters 64 --iterations 2500 --n-way 20 --n-query 5".split(),
    "omniglot-64": "--data omniglot --filters 64 --iterations 3000".split(),
    "omniglot-64-5-shot": "--data omniglot --filters 64 --iterations 4000 --k-shot 5".split(),
    "omniglot-64-20-way": "--data omniglot --filters 64 --iterations 3000 --n-way 20 --n-query 5 --step-size 20".split(),
    "omniglot-maml": "--data omniglot --method maml --filters 64 --iterations 6000".split(),
    "omniglot-maml-5-shot": "--data omniglot --method maml --filters 64 --iterations 3000 --k-shot 5".split(),
    "omniglot-maml-20-way": "--data omniglot --method maml --filters 64 --iterations 3000 --n-way 20 --n-query 5".split(),
    "miniimagenet-300": ["--data", "miniimagenet", "--iterations", "300", "--eval-every", "100"],
    # for --beside: short, and the same work in an earlier commit, whose defaults may differ
    "omniglot-beside": "--data omniglot --iterations 1500 --normalized --step-size 5".split(),
    "miniimagenet-beside": "--data miniimagenet --iterations 60 --eval-every 60 --eval-episodes 40 --test-episodes 40".split(),
}
SHOWN = ("test_accuracy", "test_interval", "baseline_accuracy", "n_steps", "iterations", "iteration_s", "command_s", "peak_bytes")


def run(name: str, root: Path | None, folder: Path, package: Path | None = None) -> dict[str, Any]:
    """One job: its result.json, the command, the best validation accuracy, and the seconds until it first was 95 %.

    Args:
        package: the checkout whose package runs, instead of the one that is installed.
    """
    command = ["train", *JOBS[name], *([] if root is None else ["--root", str(root.resolve())])]
    directory = folder / name
    # not in the checkout, whose folder would stand in for the installed package
    own = os.environ if package is None else os.environ | {"PYTHONPATH": str(package.resolve())}
    subprocess.run([sys.executable, "-m", "hypergrad.cli", *command, "--run-dir", str(directory)], check=True, cwd=folder, env=own)
    result: dict[str, Any] = json.loads((directory / "result.json").read_text())
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    judged = [line for line in lines if "validation_accuracy" in line]
    best = max(line["validation_accuracy"] for line in judged)
    reached = next((line["seconds"] for line in judged if line["validation_accuracy"] >= 0.95), None)
    shown = ["hypergrad", "train", *JOBS[name], *([] if root is None else ["--root", "DIR"])]
    return {"kind": "run", "job": name, "command": " ".join(shown), "best_validation_accuracy": best, "seconds_to_95": reached, **result}


def main() -> None:
    """Run the jobs and write bench/results/few_shot-cpu.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--omniglot", type=Path, help="folder of Omniglot")
    parser.add_argument("--miniimagenet", type=Path, help="folder of MiniImagenet")
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS), help="jobs to run")
    parser.add_argument("--beside", type=Path, metavar="DIR", help="another checkout, with its kernels built, to run each job with, too")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="where the JSON lines go")
    options = parser.parse_args()
    console, path = Console(), options.out / "few_shot-cpu.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    kept = {row["job"]: row for row in rows if row["kind"] == "run"}
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.only:
            root = {"glyphs": None, "omniglot": options.omniglot, "miniimagenet": options.miniimagenet}[name.partition("-")[0]]
            if root is None and not name.startswith("glyphs"):
                console.print(f"{name}: skipped, no folder given")
                continue
            for package in (None, options.beside)[: 1 if options.beside is None else 2]:
                own = environment() if package is None else environment(package)
                job = name if package is None else f"{name} at {own['commit'][:7]}"
                folder = Path(scratch, job)
                folder.mkdir()
                kept[job] = {**run(name, root, folder, package), "job": job, "environment": own}
                write_lines(path, kept.values())
    table = Table("job", *SHOWN)
    for name, row in kept.items():
        table.add_row(name, *(f"{row[key]:.4g}" for key in SHOWN))
    console.print(table)


if __name__ == "__main__":
    main()
