"""Training runs that are struck at random moments: each must go on to the same bits, whatever struck it and however many go on.

    python bench/kills.py [--runs N] [--processes N] [--seed N] [--out DIR]
    python bench/kills.py --minutes N [--seed N] [--out DIR]

A run is a short `hypergrad train` on the built-in letters, in one process or under mpiexec. It is killed by SIGKILL at a random moment of
its start or after a random number of iterations, and half of the runs are struck once more, by SIGKILL or SIGINT. Under mpiexec one of the
processes is struck, or the launcher. Then it goes on, in another number of processes where several are asked for. All its files must be
those of a run that was left alone, but for the seconds and bytes in them. --runs counts those that a kill has ended.

With --minutes, runs are struck for so long, in one process each. They and their cache lie on a small tmpfs, in a mount namespace of this
program's own, and a file that takes all its room makes the disk full. Between them this program trains in its own process, which is struck
by interrupts and full disks, too, and notes its resident memory. After each run it looks for what was left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import random
import re
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
from common import HERE, environment, write_lines

from hypergrad.cli import FILES
from hypergrad.data.report import SilentReporter
from hypergrad.errors import DataError, RunError
from hypergrad.fewshot.config import load_config
from hypergrad.fewshot.jobs import open_data, open_run, train_run
from hypergrad.runs.directory import LOCK, METRICS, STATE, RunDirectory

CHANGES = {
    **{"n_way": 3, "n_query": 3, "filters": 4, "blocks": 2, "n_steps": 2, "meta_batch": 3, "iterations": 60, "eval_every": 10},
    **{"eval_episodes": 7, "test_episodes": 6, "per_episode": True},
}
OPTIONS = [f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}") for name, value in CHANGES.items()]
LINES = 66  # of metrics.jsonl: 60 iterations and 6 validations
SINGLE_THREADED = {"HYPERGRAD_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
JOB = "HYPERGRAD_KILLS_JOB"  # marks the processes of a job in their environment
HANG_S = 1800  # no job takes so long, also where other jobs run or stop it for a while
APART_S = (1e-6, 1e-3, 2e-2)  # between two interrupts
ENDS = {"SIGKILL": -9, "SIGTERM": -15, "SIGINT": 130, "SIGINT twice": 130, "full disk": 1}  # the exit status of one process
DISK_MIB = 48
STALE_S = 2 * 86400.0  # older than what a writer may still be working on
TIMES = re.compile(
    r"seconds|.*_s|peak_bytes|metrics_bytes|metrics_crc"
)  # numbers that differ between two runs, and what counts their digits
FULL = re.compile("disk is full|No space left|free space")
BLOCKS, STUDENT = 20, 2.101  # that the slope of the memory is fitted to, and the 97.5 % quantile of Student's t for 18 degrees of freedom


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


def outcome(run: Path) -> dict[str, Any]:
    """What a whole run has left, by file and without times: figures and the model by their bytes."""

    def timeless(record: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in record.items() if not TIMES.fullmatch(name)}

    found: dict[str, Any] = {}
    for path in sorted(run.iterdir()):
        if path.name == METRICS:
            found[path.name] = [timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.name == STATE:
            with RunDirectory(run) as opened:
                arrays, numbers = opened.read_tensors(STATE)
            found[path.name] = {name: (x.dtype.str, x.shape, x.tobytes()) for name, x in arrays.items()}, timeless(numbers)
        else:
            found[path.name] = timeless(json.loads(path.read_text())) if path.suffix == ".json" else path.read_bytes()
    return found


# ---------------------------------------------------------------------------------- processes of their own


def fill(disk: Path) -> None:
    """Take all room that is left."""
    with open(disk / "filler", "ab", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass


def struck(path: Path, processes: int, life_s: float, how: str, draw: random.Random, job: str) -> tuple[str, str]:
    """Start or resume a run and strike it.

    Args: how: the name of a signal, "SIGINT twice" or "full disk"; life_s: seconds of a run that is left alone.
    Returns: what has happened, and what is wrong with it.
    """
    resume = (path / "config.json").exists()
    begun = command(processes, *(["--resume", path] if resume else [*OPTIONS, "--run-dir", path]))
    process = subprocess.Popen(
        begun, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, JOB: job}, start_new_session=True
    )
    metrics, least = path / METRICS, draw.choice([0, draw.randint(1, LINES)])
    while processes == 1 and how.startswith("SIGINT") and process.poll() is None and not begins_numpy(process.pid):
        time.sleep(0.001)  # before that, Python ends in its own way
    if least == 0:
        time.sleep(draw.uniform(0.0, life_s / 2))
    while process.poll() is None and least and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= least):
        time.sleep(0.002)
    if how == "full disk":
        fill(path.parent)
    else:
        number = signal.Signals[how.removesuffix(" twice")]
        targets = members(job) if processes > 1 else [process.pid]
        target = draw.choice([*targets, process.pid]) if number == signal.SIGINT or not targets else draw.choice(targets)
        with contextlib.suppress(ProcessLookupError):
            os.kill(target, number)
            if how.endswith("twice"):
                time.sleep(draw.choice(APART_S))
                os.kill(target, number)
    try:
        _, errors = process.communicate(timeout=HANG_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return "hang", f"{how}: a hang"
    finally:
        (path.parent / "filler").unlink(missing_ok=True)
    if process.returncode == 0:
        return "ended before", ""
    wrong = "Traceback" in errors and (processes == 1 or "hypergrad/" in errors) or how == "full disk" and not FULL.search(errors)
    wrong = wrong or processes == 1 and process.returncode != ENDS[how]
    said = f"{how}: status {process.returncode}: {errors[-2000:]}" if wrong else ""
    return f"{how} {'in training' if metrics.exists() else 'before training'}", said


def begins_numpy(pid: int) -> bool:
    """Whether a process has come to the import of NumPy, which hypergrad begins with."""
    with contextlib.suppress(OSError):
        return b"numpy" in Path(f"/proc/{pid}/maps").read_bytes()
    return True  # it has ended


def finish(path: Path, processes: int) -> None:
    """Go on with a run, or begin it, and leave it alone."""
    more = ["--resume", path] if (path / "config.json").exists() else [*OPTIONS, "--run-dir", path]
    done = subprocess.run(command(processes, *more), capture_output=True, text=True, timeout=HANG_S)
    if done.returncode:
        raise SystemExit(f"kills: a run could not go on: {done.stderr}")


# ------------------------------------------------------------------------------------ this process's own


class Strikes:
    """Interrupts, or a full disk, at a random moment of what this process does.

    Args: disk: what "full disk" fills.
    """

    def __init__(self, disk: Path) -> None:
        self.disk, self.how, self.again_s, self.left = disk, "", 0.0, 0
        signal.signal(signal.SIGALRM, self._strike)

    def arm(self, how: str, seconds: float, again_s: float) -> None:
        """Strike after so many seconds, by "SIGINT twice" once more after `again_s`."""
        self.how, self.again_s, self.left = how, again_s, 2 if how.endswith("twice") else 1
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def disarm(self) -> None:
        """No strike after this."""
        self.left = 0
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _strike(self, *_: object) -> None:
        if not self.left:
            return
        self.left -= 1
        if self.left:
            signal.setitimer(signal.ITIMER_REAL, self.again_s)
        if self.how == "full disk":
            fill(self.disk)
        else:
            signal.raise_signal(signal.SIGINT)


def train_here(path: Path) -> None:
    """What the command does, in this process."""
    changes, new, old = ({}, None, path) if (path / "config.json").exists() else (CHANGES, path, None)
    with open_run(changes, new, old, False, SilentReporter()) as (run, config, data):
        train_run(run, config, data, SilentReporter(), quiet=True)


def struck_here(path: Path, how: str, life_s: float, draw: random.Random, strikes: Strikes) -> tuple[str, str]:
    """As `struck`, in this process."""
    try:
        try:
            strikes.arm(how, draw.uniform(1e-3, life_s), draw.choice(APART_S))
            train_here(path)
        finally:
            strikes.disarm()
        return "ended before", ""
    except KeyboardInterrupt:
        wrong = "" if how.startswith("SIGINT") else f"{how}: an interrupt"
    except (RunError, DataError) as error:
        wrong = "" if how == "full disk" and FULL.search(str(error)) else f"{how}: {error}"
    finally:
        (path.parent / "filler").unlink(missing_ok=True)
    return f"{how} {'in training' if (path / METRICS).exists() else 'before training'}", wrong


def resident_bytes() -> int:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def slope(hours: Any, values: Any) -> tuple[float, float]:
    """The least-squares slope of the means of `BLOCKS` blocks of rounds, and half its 95 % interval.

    Neighbouring rounds are not independent, so that an interval from all of them would be too narrow.
    """
    x, y = (np.array([part.mean() for part in np.array_split(np.asarray(v, float), BLOCKS)]) for v in (hours, values))
    off = x - x.mean()
    found = float(off @ y / (off @ off))
    residuals = y - y.mean() - found * off
    return found, STUDENT * float(np.sqrt(residuals @ residuals / (BLOCKS - 2) / (off @ off)))


def memory_line(seconds: list[float], resident: list[int], files: list[int]) -> dict[str, Any]:
    """What the memory of this process did over its rounds, the first of which warms up."""
    line: dict[str, Any] = {"kind": "memory", "rounds": len(resident), "seconds": seconds, "resident_bytes": resident, "open_files": files}
    if len(resident) > 2 * BLOCKS:
        hours, values = np.array(seconds[1:]) / 3600, np.array(resident[1:])
        quarter, half = len(values) // 4, len(values) // 2
        for name, part in (("", slice(None)), ("second_half_", slice(half, None))):
            line[f"{name}slope_bytes_an_hour"], line[f"{name}slope_interval"] = slope(hours[part], values[part])
        line |= {"first_quarter_bytes": float(values[:quarter].mean()), "last_quarter_bytes": float(values[-quarter:].mean())}
    return line


# ------------------------------------------------------------------------------------------------- both


def left_behind(disk: Path, config: Any, job: str) -> list[str]:
    """What lies beside a run and in it that does not belong there; and the processes of a job that still run.

    A killed writer's own pieces are made two days old first: the next writer clears away what is older than one.
    """
    run, cache = disk / "run", disk / "cache"
    pieces = [path for path in (*disk.glob(".new-*"), *cache.glob(".*.tmp"))]
    for path in pieces:
        os.utime(path, (time.time() - STALE_S,) * 2)
    if pieces:
        for path in cache.glob("*.images"):
            path.unlink()
        open_data(config, SilentReporter())
        RunDirectory.create(disk / "other", {}).close()
        shutil.rmtree(disk / "other")
    found = [str(path.relative_to(disk)) for path in run.iterdir() if path.name not in {*FILES, LOCK}]
    found += [path.name for path in disk.iterdir() if path.name not in ("run", "cache")]
    found += [f"cache/{path.name}" for path in cache.iterdir() if path.suffix != ".images"]
    found += ["another cache entry"] * (len(list(cache.glob("*.images"))) - 1)
    try:
        RunDirectory(run).close()
    except RunError as error:  # somebody still holds the lock
        found.append(str(error))
    return found + [f"process {number}" for number in members(job)]


def left_alone(disk: Path) -> tuple[float, float, dict[str, Any], Any]:
    """A run by the command and one in this process. Returns: their seconds, what they have left, and their configuration."""
    os.environ["HYPERGRAD_CACHE"] = str(disk / "cache")
    took, found = [], []
    path = disk / "run"
    for work in (lambda: finish(path, 1), lambda: finish(path, 1), lambda: train_here(path)):  # the first draws the images
        begun = time.monotonic()
        work()
        took.append(time.monotonic() - begun)
        found.append(outcome(path))
        with RunDirectory(path) as run:
            config = load_config(run)
        shutil.rmtree(path)
    if found[0] != found[2]:
        raise SystemExit("kills: a run in this process has other bits than one by the command")
    return took[1], took[2], found[0], config


def soak(minutes: float, disk: Path, draw: random.Random, out: Path) -> bool:
    """Strike runs in processes of their own and in this one in turns; write after each what came of it. Returns: whether all went well."""
    life_s, here_s, whole, config = left_alone(disk)
    strikes, first = Strikes(disk), environment()
    counts: dict[str, Counter[str]] = {"processes of their own": Counter(), "this process": Counter()}
    runs, faults, seconds, resident, files, cold = Counter[str](), list[str](), list[float](), list[int](), list[int](), 0
    begun = time.monotonic()
    while time.monotonic() - begun < 60 * minutes:
        for place, kinds in (
            ("processes of their own", ["SIGKILL", "SIGKILL", "SIGTERM", "SIGINT", "SIGINT twice", "full disk"]),
            ("this process", ["SIGINT", "SIGINT twice", "full disk"]),
        ):
            path, job = disk / "run", f"{disk}-{sum(runs.values())}"
            if draw.random() < 0.3:  # the images are drawn again, and struck then, too
                cold += 1
                shutil.rmtree(disk / "cache")
            for _ in range(draw.choice([1, 2, 3])):
                how = draw.choice(kinds)
                if place == "this process":
                    what, wrong = struck_here(path, how, here_s, draw, strikes)
                else:
                    what, wrong = struck(path, 1, life_s, how, draw, job)
                counts[place][what] += 1
                faults += [wrong] * bool(wrong)
            train_here(path) if place == "this process" else finish(path, 1)
            found = outcome(path)
            runs["same" if found == whole else "different"] += 1
            faults += [f"{name} differs" for name in whole.keys() | found.keys() if whole.get(name) != found.get(name)]
            faults += [f"left behind: {name}" for name in left_behind(disk, config, job)]
            shutil.rmtree(path)
        gc.collect()
        seconds.append(round(time.monotonic() - begun, 2))
        resident.append(resident_bytes())
        files.append(len(os.listdir("/proc/self/fd")))
        line = {
            **{
                "kind": "soak",
                "minutes": seconds[-1] / 60,
                "runs": sum(runs.values()),
                "same": runs["same"],
                "different": runs["different"],
            },
            **{"cold_caches": cold, "faults": faults, "disk": f"tmpfs of {DISK_MIB} MiB, filled by a file", "threads": 1},
        }
        struck_lines = [{"kind": "strikes", "where": place, **dict(sorted(found.items()))} for place, found in counts.items()]
        write_lines(out / "soak.jsonl", [first, line, *struck_lines, memory_line(seconds, resident, files)])
        print(f"{line['minutes']:6.1f} min, {line['runs']} runs, {len(faults)} faults, {resident[-1] / 2**20:.1f} MiB", flush=True)
    print(*struck_lines, {k: v for k, v in memory_line(seconds, resident, files).items() if not isinstance(v, list)}, *faults, sep="\n")
    return not faults


def kills(wanted: int, processes: int, draw: random.Random, out: Path) -> bool:
    """Strike runs until so many were ended by a kill. Returns: whether all went on to the same bits."""
    counts, faults, killed, same = Counter[str](), list[str](), 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["HYPERGRAD_CACHE"] = str(folder / "cache")
        finish(folder / "whole" / "run", 1)  # draws the images
        shutil.rmtree(folder / "whole")
        begun = time.monotonic()
        finish(folder / "whole" / "run", 1)
        life_s, whole, i = time.monotonic() - begun, outcome(folder / "whole" / "run"), 0
        while killed < wanted:
            path, i = folder / f"{i}" / "run", i + 1
            path.parent.mkdir()
            ends = []
            for blow in range(draw.choice([1, 2])):
                how = draw.choice(["SIGKILL", "SIGINT"]) if blow else "SIGKILL"
                what, wrong = struck(path, processes, life_s, how, draw, f"{scratch}-{i}-{blow}")
                ends.append(what)
                faults += [wrong] * bool(wrong)
            counts.update(ends)
            finish(path, draw.randint(1, processes + 1) if processes > 1 else 1)
            found = outcome(path)
            if any(end.startswith("SIGKILL") for end in ends):
                killed += 1
                same += found == whole
            faults += [f"run {i}: {name} differs" for name in whole.keys() | found.keys() if whole.get(name) != found.get(name)]
            shutil.rmtree(path.parent)
    line = {"kind": "kills", "processes": processes, "killed": killed, "same": same, "faults": faults}
    strikes = {"kind": "strikes", "where": "processes of their own", **dict(sorted(counts.items()))}
    write_lines(out / f"kills-{processes}.jsonl", [environment(), line, strikes])
    print(line, strikes, sep="\n")
    return not faults


def on_own_disk(disk: Path) -> None:
    """Start this program again, in a mount namespace of its own that has a small tmpfs there, and end as it does."""
    if shutil.which("unshare") is None:
        raise SystemExit("kills: unshare is missing, expected it to mount a tmpfs that only this program sees: install util-linux")
    mount = f'mount -t tmpfs -o size={DISK_MIB}m none "$0" && exec "$@"'
    again = [sys.executable, *sys.argv, "--disk", str(disk)]
    done = subprocess.run(["unshare", "--map-root-user", "--mount", "sh", "-c", mount, str(disk), *again], env=os.environ | SINGLE_THREADED)
    sys.exit(done.returncode)


def main() -> None:
    """Strike, resume, compare, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="runs that a kill ends")
    parser.add_argument("--processes", type=int, default=1, help="of a run")
    parser.add_argument("--minutes", type=float, default=0.0, help="strike for so long instead, by full disks, too")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="where the JSON lines go")
    parser.add_argument("--disk", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in its background jobs, and their children would, too
    draw = random.Random(options.seed)
    if options.disk is not None:
        sys.exit(not soak(options.minutes, options.disk, draw, options.out))
    if options.minutes:
        with tempfile.TemporaryDirectory() as scratch:
            on_own_disk(Path(scratch))
    os.environ.update(SINGLE_THREADED)
    sys.exit(not kills(options.runs, options.processes, draw, options.out))


if __name__ == "__main__":
    main()
