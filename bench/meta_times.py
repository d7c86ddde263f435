"""Times and memory of a hypergradient in hypergrad and its peers: every variant is checked against float64 first, then they take turns."""

from __future__ import annotations

import contextlib
import json
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from meta_problems import Sizes
from meta_worker import MODULE, RUNS
from run_problems import RunSizes

REFERENCE = "hypergrad host"
REFERENCE_OF_RUNS = "hypergrad host sqrt"  # the same to the last bit, and a long run fits into memory
# Largest relative differences from the host's gradient in float64: of any leaf in float64, which shows that the same is
# computed, and of the whole gradient in the timed precision. There rounding moves winners of the max-pool, each of which makes
# the gradient jump, in MAML at every inner step, so that right ones differ by several percent.
IN_FLOAT64, IN_FLOAT32, IN_TF32 = 1e-6, 0.25, 0.5
Row = dict[str, Any]


class WorkerFailed(RuntimeError):
    """The worker said so, ended, or took too long."""


class Process:
    """A meta_worker.py and the lines to and from it."""

    def __init__(self, variant: str, problem: str, device: str, log: Path, environment: dict[str, str]) -> None:
        self.log = log.open("w")
        worker = Path(__file__).resolve().with_name("meta_worker.py")
        self.process = subprocess.Popen(
            [sys.executable, str(worker), variant, problem, "--device", device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
            cwd=log.parent,
        )
        self.lines: queue.Queue[str] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")  # it has ended

    def ask(self, limit: float, do: str, **arguments: Any) -> Row:
        """The answer; WorkerFailed where there is none within `limit` seconds, or it is an error."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.lines.get(timeout=limit)
        except queue.Empty:
            raise WorkerFailed(f"{do}: no answer within {limit:.0f} s") from None
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerFailed(f"{do}: the process ended with status {self.process.wait()}; see {self.log.name}")
        answer: Row = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(answer["error"])
        return answer

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()
        self.reader.join()
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.log.close()


def differences(grads: dict[str, Any], reference: dict[str, Any]) -> tuple[float, float]:
    """Relative differences: the largest of any leaf, and that of all of them together. NaN where an element is not finite."""
    if grads.keys() != reference.keys() or any(grads[k].shape != reference[k].shape for k in grads):
        return float("nan"), float("nan")
    off = {k: float(np.linalg.norm(grads[k].astype(np.float64) - reference[k])) for k in grads}
    size = {k: float(np.linalg.norm(reference[k])) for k in grads}
    leaves = [off[k] / max(size[k], 1e-30) for k in grads]
    return float(np.max(leaves)), float(np.sqrt(sum(v * v for v in off.values()) / sum(v * v for v in size.values())))


class Comparison:
    """All variants of one problem at one precision."""

    def __init__(
        self,
        problem: str,
        sizes: Sizes | RunSizes,
        device: str,
        tf32: bool,
        folder: Path,
        environment: dict[str, str],
        limit: float,
        say: Callable[[str], None],
        *,
        exact: Sizes | RunSizes | None = None,
        own: Mapping[str, dict[str, str]] | None = None,
    ) -> None:
        """`exact`: smaller sizes for the comparison in float64, which takes twice the memory; `own`: more environment of a variant."""
        self.problem, self.sizes, self.device, self.tf32 = problem, sizes, device, tf32
        self.folder, self.environment, self.limit, self.say = folder, environment, limit, say
        self.exact, self.own = exact or sizes, own or {}
        self.folder.mkdir(parents=True, exist_ok=True)

    def _start(self, variant: str) -> Process:
        log = self.folder / f"{self.problem}-{variant.replace(' ', '-')}{'-tf32' if self.tf32 else ''}.log"
        return Process(variant, self.problem, self.device, log, {**self.environment, **self.own.get(variant, {})})

    def _result(self, process: Process, dtype: str, tf32: bool) -> tuple[Row, dict[str, Any]]:
        return self._result_at(self.exact if dtype == "float64" else self.sizes, process, dtype, tf32)

    def _result_at(self, sizes: Sizes | RunSizes, process: Process, dtype: str, tf32: bool) -> tuple[Row, dict[str, Any]]:
        answer = process.ask(self.limit, "prepare", sizes=asdict(sizes), dtype=dtype, tf32=tf32)
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/gradient.npz"
            answer |= process.ask(self.limit, "result", path=path)
            with np.load(path) as file:
                return answer, dict(file)

    def reference(self, sizes: Sizes | RunSizes) -> tuple[Row, dict[str, Any]]:
        """Loss and gradient in float64 by the host kernels."""
        process = self._start(REFERENCE_OF_RUNS if self.problem in RUNS else REFERENCE)
        try:
            return self._result_at(sizes, process, "float64", False)
        finally:
            process.close()

    def check(self, process: Process, reference: tuple[Row, dict[str, Any]], smaller: tuple[Row, dict[str, Any]] | None = None) -> Row:
        """Whether a variant computes the same; leaves it prepared for timing. `smaller` is the reference at the sizes `exact`."""
        row: Row = {}
        said, grads = self._result(process, "float64", False)
        loss, exact_grads = (smaller or reference)[0]["loss"], (smaller or reference)[1]
        row["float64_difference"] = differences(grads, exact_grads)[0]
        row["float64_loss_difference"] = abs(said["loss"] / loss - 1)
        if not (row["float64_difference"] <= IN_FLOAT64 and row["float64_loss_difference"] <= IN_FLOAT64):
            return {**row, "status": "wrong", "reason": f"float64 gradient differs by {row['float64_difference']:.1e}"}
        said, grads = self._result(process, "float32", self.tf32)
        exact = reference[0]["loss"]
        row |= {
            "first_seconds": said["first_seconds"],
            "loss": said["loss"],
            "loss_difference": abs(said["loss"] / exact - 1),
            "difference": differences(grads, reference[1])[1],
        }
        most = IN_TF32 if self.tf32 else IN_FLOAT32
        if not (row["difference"] <= most and row["loss_difference"] <= most):
            return {**row, "status": "wrong", "reason": f"gradient differs by {row['difference']:.1e} from float64's"}
        return {**row, "status": "right"}

    def measure(self, variants: list[str], rounds: int, block: float) -> list[Row]:
        """A row for each variant, with the medians of `rounds` blocks of `block` seconds."""
        reference = self.reference(self.sizes)
        smaller = reference if self.exact == self.sizes else self.reference(self.exact)
        processes: dict[str, Process] = {}
        rows: dict[str, Row] = {}
        try:
            for name in variants:
                self.say(f"{self.problem}: {name}")
                start = time.perf_counter()
                processes[name] = self._start(name)
                try:
                    first = self._first(processes[name]) if self.device == "cpu" else {}
                    rows[name] = {**self.check(processes[name], reference, smaller), **first}
                except WorkerFailed as error:
                    rows[name] = {"status": "unsupported" if str(error).startswith("Unsupported") else "failed", "reason": str(error)}
                rows[name]["preparation_seconds"] = time.perf_counter() - start
                if rows[name]["status"] != "right":
                    processes.pop(name).close()
            self._take_turns(processes, rows, rounds, block)
        finally:
            for process in processes.values():
                process.close()
        return [
            {"problem": self.problem, "precision": "tf32" if self.tf32 else "float32", "variant": name, "module": MODULE[name], **row}
            for name, row in rows.items()
        ]

    def _first(self, process: Process) -> Row:
        """Seconds and growth of resident memory in the first step, before the process has done anything else."""
        return process.ask(self.limit, "resident", sizes=asdict(self.sizes), dtype="float32", tf32=self.tf32)

    def _take_turns(self, processes: dict[str, Process], rows: dict[str, Row], rounds: int, block: float) -> None:
        seconds: dict[str, list[float]] = {name: [] for name in processes}
        for turn in range(rounds + 1):  # the first one warms up and finds how many steps make a block
            for name in list(processes)[:: 1 if turn % 2 else -1]:
                self.say(f"{self.problem}: round {turn} of {rounds}, {name}")
                try:
                    answer = processes[name].ask(self.limit, "time", seconds=block)
                    if turn > 0:
                        seconds[name].append(answer["seconds"])
                    if turn == rounds:
                        rows[name] |= {
                            "status": "timed",
                            "seconds": statistics.median(seconds[name]),
                            "all_seconds": seconds[name],
                            **processes[name].ask(self.limit, "peak"),
                        }
                except WorkerFailed as error:
                    rows[name] |= {"status": "failed", "reason": str(error)}
                    processes.pop(name).close()
