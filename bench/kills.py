"""Training runs that are killed at random moments: each must go on to the same bits, whoever was killed and however many go on.

    python bench/kills.py [--runs N] [--processes N] [--seed N]

A run is a short `hypergrad train` on random images, in one process or under mpiexec. Once or twice it is killed by SIGKILL, or interrupted
by SIGINT, at a random moment of its start or after a random number of iterations. Under mpiexec one of its processes is struck, or the
launcher. Then it goes on, in another number of processes where several are asked for. Its model and records must be those of a run that was
left alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

OPTIONS = "--n-way 3 --n-query 3 --filters 4 --blocks 2 --n-steps 2 --meta-batch 3 --iterations 60 --eval-every 10".split()
SIZES = "--eval-episodes 7 --test-episodes 6".split()
LINES = 66  # of metrics.jsonl: 60 iterations and 6 validations
JOB = "HYPERGRAD_KILLS_JOB"  # marks the processes of a job in their environment


def images(root: Path) -> None:
    """Three splits of 4 classes of 6 images, 8 x 8."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for c in range(4):
            folder = root / split / f"class{c}"
            folder.mkdir(parents=True)
            prototype = rng.integers(0, 150, (8, 8))
            for i in range(6):
                Image.fromarray((prototype + rng.integers(0, 105, (8, 8))).astype(np.uint8)).save(folder / f"{i}.png")


def command(processes: int, *args: Any) -> list[str]:
    """A `hypergrad train` in so many processes; in one, without mpiexec."""
    launcher = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if processes > 1 and launcher is None:
        raise SystemExit("kills: mpiexec is missing, expected it beside python: pip install '.[mpi]'")
    started = [str(launcher), "-n", str(processes)] if processes > 1 else []
    return [*started, sys.executable, "-m", "hypergrad.cli", "train", *map(str, args)]


def members(job: str) -> list[int]:
    """Process ids of the training processes of a job."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            marked = f"{JOB}={job}".encode() in (folder / "environ").read_bytes().split(b"\0")
            if marked and b"hypergrad.cli" in (folder / "cmdline").read_bytes() and b"-n\0" not in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:  # it has ended
            continue
    return found


def outcome(run: Path) -> tuple[bytes, list[dict[str, Any]]]:
    """The model, and the records without their times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return (run / "model.safetensors").read_bytes(), [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def struck(args: list[Any], path: Path, processes: int, life_s: float, draw: random.Random, job: str) -> str:
    """Start or resume a run and strike it. Returns: what has happened."""
    resume = (path / "config.json").exists()
    begun = command(processes, *(["--resume", path] if resume else [*args, "--run-dir", path]))
    environment = {**os.environ, JOB: job}
    process = subprocess.Popen(begun, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    number = signal.SIGKILL if draw.random() < 0.7 else signal.SIGINT
    metrics, least = path / "metrics.jsonl", draw.choice([0, draw.randint(1, LINES)])
    if least == 0:
        time.sleep(draw.uniform(0.0, life_s / 2))
    while process.poll() is None and least and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= least):
        time.sleep(0.002)
    targets = members(job) if processes > 1 else [process.pid]
    target = draw.choice([*targets, process.pid]) if number == signal.SIGINT or not targets else draw.choice(targets)
    try:
        os.kill(target, number)
    except ProcessLookupError:
        pass
    _, errors = process.communicate(timeout=120)
    if process.returncode == 0:
        return "ended before"
    if "Traceback" in errors and (path / "config.json").exists():
        return f"traceback: {errors}"
    return f"{number.name} {'in training' if (path / 'metrics.jsonl').exists() else 'before training'}"


def main() -> None:
    """Kill, resume, compare, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="runs to strike")
    parser.add_argument("--processes", type=int, default=1, help="of a run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    draw, counts, different = random.Random(options.seed), Counter[str](), 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["HYPERGRAD_CACHE"] = str(folder / "cache")
        images(folder / "images")
        args = ["--data", "folder", "--root", folder / "images", *OPTIONS, *SIZES, *(["--per-episode"] if options.processes > 1 else [])]
        begun = time.monotonic()
        subprocess.run(command(1, *args, "--run-dir", folder / "whole"), check=True, capture_output=True)
        life_s, whole = time.monotonic() - begun, outcome(folder / "whole")
        for i in range(options.runs):
            path = folder / f"run{i}"
            for blow in range(draw.choice([1, 2])):
                counts[struck(args, path, options.processes, life_s, draw, f"{scratch}-{i}-{blow}")] += 1
            last = draw.randint(1, options.processes + 1) if options.processes > 1 else 1
            more = ["--resume", path] if (path / "config.json").exists() else [*args, "--run-dir", path]
            subprocess.run(command(last, *more), check=True, capture_output=True)
            different += outcome(path) != whole
            shutil.rmtree(path)
    print(f"{options.runs} runs of {options.processes} processes: {options.runs - different} ended with the same bits, {different} did not")
    for what, count in sorted(counts.items()):
        print(f"  {count:4d}  {what}")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
