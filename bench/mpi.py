"""A meta-batch shared by MPI processes: measured at 1, 2 and 4 of them on this machine, and modelled for 8 to 1,024.

    python bench/mpi.py [--method NAME] [--turns N] [--quick] [--out DIR]

Each process has one thread. A step is an outer iteration of `hypergrad train` on images of Omniglot's size. Its time has three parts: the
process's own episodes, the wait for the slowest process, and the exchange of gradients. A slow network and slow processes are simulated by
sleeping, so that the model's formulas are held against times that were measured. Where other jobs run, the seconds of the processor that a
process takes say more than those of the clock. The model takes from the measurements an episode's seconds of the processor, and their
spread; the networks' numbers are usual ones.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import HERE, environment, write_lines

from hypergrad.data import ImageClasses, MetaDataset
from hypergrad.fewshot.config import make_config
from hypergrad.fewshot.problem import FewShot
from hypergrad.parallel import Ranks, world
from hypergrad.runs.loop import start, step

EPISODES, FILTERS, STEPS = 4, 64, 12
SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
DELAYS = (0.1, 0.25)  # simulated slow processes: the share of steps that are slow, and by how many seconds
SPARE = 400  # steps that the model draws


@dataclass(frozen=True)
class Network:
    """What connects the processes. Args: latency_s: of a message; bytes_per_s: that a process sends and receives at once."""

    latency_s: float
    bytes_per_s: float


NETWORKS = {
    "InfiniBand, 100 Gbit/s": Network(2e-6, 11e9),
    "Ethernet, 10 Gbit/s": Network(30e-6, 1.1e9),
    "Ethernet, 1 Gbit/s": Network(60e-6, 0.117e9),
}
SLOW = "Ethernet, 1 Gbit/s"  # the one that is simulated


def sent_bytes(ranks: int, tasks: int, n_bytes: int) -> float:
    """What a process sends for one sum: its tasks' pieces to their owners, then the piece that it has added up to all."""
    return (tasks + 1) * n_bytes * (ranks - 1) / ranks


def exchange_s(ranks: int, tasks: int, n_bytes: int, network: Network) -> float:
    """Seconds of one sum: `sent_bytes`, ranks - 1 messages of pieces, and log2(ranks) rounds each of the last step and of two meetings."""
    if ranks == 1:
        return 0.0
    messages = ranks - 1 + 3 * math.ceil(math.log2(ranks))
    return messages * network.latency_s + sent_bytes(ranks, tasks, n_bytes) / network.bytes_per_s


def slowest_s(ranks: int, mean: float, spread: float, delays: tuple[float, float] = (0.0, 0.0)) -> float:
    """Seconds until the slowest of all has its gradients.

    Args: mean, spread: of one process's seconds, taken as normal; delays: the share of steps with a further delay, and its seconds.
    Returns: the mean over `SPARE` drawn steps. Source of the drawing: a fixed seed.
    """
    rng = np.random.default_rng(0)
    times = mean + spread * rng.standard_normal((SPARE, ranks)) + delays[1] * (rng.random((SPARE, ranks)) < delays[0])
    return float(np.maximum(times, 0.0).max(axis=1).mean())


def modelled(episode_s: float, spread: float, n_bytes: int) -> list[dict[str, Any]]:
    """Weak scaling: 1 or 4 episodes for each process, and as many processes as in `SIZES`.

    Args: episode_s: seconds of an episode; spread: of a step's seconds, as a share; n_bytes: of a gradient.
    Returns: one line for each size, number of episodes and network. With `overlap`, all but the last episode's exchange would hide behind
        the next episode's work; what `Ranks.sum` does is without it.
    """
    lines = []
    for tasks in (1, 4):
        work = tasks * episode_s
        for ranks in SIZES:
            slowest, delayed = (slowest_s(ranks, work, spread * work, delays) for delays in ((0.0, 0.0), DELAYS))
            for name, network in NETWORKS.items():
                exchange = exchange_s(ranks, tasks, n_bytes, network)
                hidden = min(exchange * (tasks - 1) / (tasks + 1), work * (tasks - 1) / tasks)
                times = {"step_s": slowest + exchange, "overlap_s": slowest + exchange - hidden, "delayed_s": delayed + exchange}
                lines.append(
                    {
                        **{"kind": "model", "ranks": ranks, "episodes_each": tasks, "network": name},
                        **{"sent_bytes": round(sent_bytes(ranks, tasks, n_bytes)), "exchange_s": exchange, "slowest_s": slowest},
                        **times,
                        **{f"{key[:-2]}_efficiency": work / value for key, value in times.items()},
                    }
                )
    return lines


class Measured(Ranks):
    """Ranks that say where the time of a sum goes, and may be slow. Args: comm: of mpi4py; network: to simulate; delays: as `DELAYS`."""

    def __init__(self, comm: Any, network: Network | None, delays: tuple[float, float]) -> None:
        super().__init__(comm)
        self.wait = self.exchange = 0.0
        self.network, self.delays, self.rng = network, delays, np.random.default_rng(self.rank)

    def sum(self, parts: Any, n_tasks: int) -> Any:
        if self.rng.random() < self.delays[0]:
            time.sleep(self.delays[1])
        return super().sum(parts, n_tasks)

    def _sum_rows(self, rows: Any, n_tasks: int) -> Any:
        begun, waited = time.perf_counter(), self.wait
        total = super()._sum_rows(rows, n_tasks)
        if self.network is not None:
            time.sleep(exchange_s(self.size, len(rows), rows.shape[1] * rows.itemsize, self.network))
        self.exchange += time.perf_counter() - begun - (self.wait - waited)
        return total

    def _meet(self) -> None:
        begun = time.perf_counter()
        super()._meet()
        self.wait += time.perf_counter() - begun


def synthetic(size: int = 28) -> MetaDataset:
    """Random images of Omniglot's size, 20 for each of 30 classes."""

    def split(name: str, seed: int) -> ImageClasses:
        images = np.random.default_rng(seed).integers(0, 255, (600, size, size, 1)).astype(np.uint8)
        return ImageClasses(name, images, np.arange(31, dtype=np.int64) * 20, tuple(map(str, range(30))))

    return MetaDataset("synthetic", split("train", 1), split("validation", 2), split("test", 3))


def worker(options: argparse.Namespace) -> None:
    """Some steps in this process, with the others; process 0 prints one JSON line."""
    network = NETWORKS[SLOW] if options.slow_network else None
    ranks = Measured(world().comm, network, DELAYS if options.slow_processes else (0.0, 0.0))
    config = make_config(method=options.method, filters=options.filters, meta_batch=EPISODES, per_episode=True)
    problem = FewShot(config, synthetic(), ranks)
    state, times = start(problem), []
    for i in range(options.steps + 2):
        ranks.broadcast(None)
        ranks.wait = ranks.exchange = 0.0
        begun, cpu = time.perf_counter(), time.process_time()
        state, _ = step(config.training, problem, state)
        taken = time.perf_counter() - begun
        if i >= 2:  # the first ones warm up
            times.append((taken, taken - ranks.wait - ranks.exchange, ranks.wait, ranks.exchange, time.process_time() - cpu))
    work = np.array(ranks.gather([[t[-1] for t in times]]))  # (ranks, steps), of the processor
    if ranks.rank == 0:
        middle = np.median(np.array(times), axis=0)
        numbers = dict(zip(("step_s", "work_s", "wait_s", "exchange_s", "cpu_s"), map(float, middle), strict=True))
        mean_step = float(np.mean([t[0] for t in times]))
        n_bytes = sum(x.nbytes for x in state.hparams.values())
        print(
            json.dumps(
                {**numbers, "mean_step_s": mean_step, "spread": float((work.std(axis=1) / work.mean(axis=1)).mean()), "n_bytes": n_bytes}
            )
        )


def launched(ranks: int, options: argparse.Namespace, *more: str, alone: int = 1) -> list[dict[str, Any]]:
    """What `worker` prints, started by mpiexec on some processes; `alone` such jobs at once, that know nothing of each other."""
    mpiexec = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if mpiexec is None:
        raise SystemExit("mpi: mpiexec is missing, expected it beside python: pip install '.[mpi]'")
    command = [mpiexec, "-n", str(ranks), sys.executable, __file__, "--worker", "--method", options.method, *more]
    command += ["--steps", str(options.steps), "--filters", str(options.filters)]
    environment = {**os.environ, "HYPERGRAD_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    jobs = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(alone)]
    outputs = [job.communicate()[0] for job in jobs]
    if any(job.returncode for job in jobs):
        raise SystemExit(f"mpi: {' '.join(command)} ended with {[job.returncode for job in jobs]}")
    return [json.loads(output) for output in outputs]


def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The jobs in turns, so that what else the machine does strikes all alike: medians over the turns."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs: dict[tuple[int, str], tuple[list[str], int]] = {
        (1, ""): ([], 1),
        (1, f"{cores} unconnected jobs at once"): ([], cores),
        (2, ""): ([], 1),
        (4, ""): ([], 1),
        **{(n, "slow network"): (["--slow-network"], 1) for n in (2, 4)},
        **{(n, "slow processes"): (["--slow-processes"], 1) for n in (2, 4)},
    }
    found: dict[tuple[int, str], list[dict[str, Any]]] = {key: [] for key in jobs}
    for turn in range(options.turns):
        for (ranks, name), (more, alone) in jobs.items():
            found[ranks, name] += launched(ranks, options, *more, alone=alone)
            print(f"turn {turn + 1} of {options.turns}: {ranks} processes {name}", file=sys.stderr)
    middle = {key: {name: float(np.median([line[name] for line in lines])) for name in lines[0]} for key, lines in found.items()}
    one = middle[1, ""]
    lines = []
    for (ranks, name), numbers in middle.items():
        busy = max(1.0, ranks / cores)  # processes that share a core take turns
        share = -(-EPISODES // ranks)
        exchange = exchange_s(ranks, share, int(one["n_bytes"]), NETWORKS[SLOW]) if name == "slow network" else numbers["exchange_s"]
        delays = DELAYS if name == "slow processes" else (0.0, 0.0)
        work = one["work_s"] * share / EPISODES * busy
        predicted = slowest_s(ranks, work, one["spread"] * work, delays) + exchange
        key = "mean_step_s" if name == "slow processes" else "step_s"  # a median does not see what strikes a tenth of the steps
        ideal = one["step_s"] / min(ranks, cores)
        lines.append(
            {
                **{"kind": "measured", "ranks": ranks, "job": name, "method": options.method, "filters": options.filters},
                **{
                    "episodes": EPISODES,
                    **numbers,
                    "efficiency": ideal / numbers["step_s"],
                    "cpu_efficiency": one["cpu_s"] / ranks / numbers["cpu_s"],
                },
                **{"predicted_s": predicted, "measured_over_predicted": numbers[key] / predicted},
            }
        )
    return lines


def shown(lines: list[dict[str, Any]]) -> str:
    """The lines as two tables in Markdown."""
    text = ["| processes | job | ms a step | own work | wait | exchange | CPU | of ideal | of ideal, CPU | over the model |"]
    text.append(f"|{'---|' * 10}")
    for line in lines:
        if line["kind"] == "measured":
            parts = (f"{1e3 * line[name]:.1f}" for name in ("step_s", "work_s", "wait_s", "exchange_s", "cpu_s"))
            ratios = f"{100 * line['efficiency']:.0f} % | {100 * line['cpu_efficiency']:.0f} % | {line['measured_over_predicted']:.2f}"
            text.append(f"| {line['ranks']} | {line['job']} | {' | '.join(parts)} | {ratios} |")
    text += ["", f"| processes | episodes each | MB sent | {' | '.join(NETWORKS)} | with overlap, 1 Gbit/s | slow processes, 10 Gbit/s |"]
    text.append(f"|{'---|' * (5 + len(NETWORKS))}")
    table = {(x["episodes_each"], x["ranks"], x["network"]): x for x in lines if x["kind"] == "model"}
    for tasks, ranks in dict.fromkeys(key[:2] for key in table):
        row = [table[tasks, ranks, name] for name in NETWORKS]
        percents = [x["step_efficiency"] for x in row] + [row[2]["overlap_efficiency"], row[1]["delayed_efficiency"]]
        cells = " | ".join(f"{100 * p:.0f} %" for p in percents)
        text.append(f"| {ranks} | {tasks} | {row[0]['sent_bytes'] / 1e6:.2f} | {cells} |")
    return "\n".join(text)


def main() -> None:
    """Measure, model, print both tables and write bench/results/mpi-cpu.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="hyper-representation", help="few-shot method")
    parser.add_argument("--turns", type=int, default=5, help="launches of each job")
    parser.add_argument("--quick", action="store_true", help="one turn of a small network, and no file: to try it out")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="where the JSON lines go")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of a launch that are timed")
    parser.add_argument("--filters", type=int, default=FILTERS, help="filters of the network")
    parser.add_argument("--slow-network", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--slow-processes", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options)
        return
    if options.quick:
        options.turns, options.steps, options.filters = 1, 3, 4
    lines = measured(options)
    one = lines[0]
    lines += modelled(one["cpu_s"] / EPISODES, one["spread"], int(one["n_bytes"]))
    print(shown(lines))
    if not options.quick:
        write_lines(options.out / "mpi-cpu.jsonl", [environment(), *lines])


if __name__ == "__main__":
    main()
