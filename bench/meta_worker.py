"""One variant of a problem in a process of its own, which does what it is told over its standard input.

    echo '{"do": "once"}' | python bench/meta_worker.py hypergrad maml --device cuda      # a small step, for sanitizers

gpu.py and peers.py start one for each variant and let them take turns: every framework keeps its own memory pool, compiler
caches and settings, and what slows the machine for a while slows none of them alone. Each line in is a command, each line
out its answer, both JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import meta_problems
import numpy as np
import run_problems
from meta_problems import SANITIZED, TINY, Sizes, Step, Variant
from run_problems import TINY_RUN, RunSizes

META, RUNS = meta_problems.PROBLEMS, run_problems.PROBLEMS
# module -> the variants it defines; a module is imported by its own workers only
VARIANTS = {
    "meta_hypergrad": (
        "hypergrad host",
        "hypergrad host eager",
        "hypergrad host sqrt",
        "hypergrad host reversible",
        "hypergrad host forward",
        "hypergrad",
        "hypergrad captured",
        "hypergrad captured 3xtf32",
    ),
    "peers_torch": (
        "torch",
        "torch channels-last",
        "torch tuned allocator",
        "torch channels-last tuned allocator",
        "torch.func vmap",
        "torch.compile",
        "torch.func jacfwd",
        "torch CUDA graph",
    ),
    "peers_higher": ("higher",),
    "peers_torchopt": ("TorchOpt",),
    "peers_learn2learn": ("learn2learn",),
    "peers_hypertorch": ("hypertorch unroll", "hypertorch"),
    "peers_jax": ("jax jit vmap", "jax jit vmap reduce_window", "jax jit", "jax scan", "jax scan remat", "jax scan jacfwd"),
}
MODULE = {name: module for module, names in VARIANTS.items() for name in names}
GPU_ONLY = ("hypergrad", "hypergrad captured", "hypergrad captured 3xtf32", "torch CUDA graph")
ON_BOTH = ("torch", "torch channels-last", "torch.func vmap", "torch.compile", "jax jit vmap", "jax jit vmap reduce_window")
# The problems of a variant; others do meta-steps only.
PROBLEMS_OF = {
    **dict.fromkeys(("hypergrad host", "torch", "torch tuned allocator", "higher", "jax scan", "jax scan remat"), META + RUNS),
    **dict.fromkeys(("hypergrad host sqrt", "hypertorch unroll", "hypertorch"), RUNS),
    **dict.fromkeys(("hypergrad host reversible", "hypergrad host forward", "torch.func jacfwd", "jax scan jacfwd"), ("three-scalars",)),
    "TorchOpt": (*META, "hyper-cleaning"),
}


def variants_of(problem: str, device: str) -> list[str]:
    """The variants that are made for a problem and a device."""
    on_device = [name for name in MODULE if (name in GPU_ONLY or name in ON_BOTH if device == "cuda" else name not in GPU_ONLY)]
    return [name for name in on_device if problem in PROBLEMS_OF.get(name, META)]


def _memory(line: str) -> int:
    """Bytes of a line of this process's status: VmRSS, resident memory, or VmHWM, the most of it so far."""
    found = [text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith(f"{line}:")]
    return 1024 * int(found[0].split()[1])


class Worker:
    """Holds one prepared step."""

    def __init__(self, variant: Variant, problem: str, device: str) -> None:
        self.variant, self.problem, self.device = variant, problem, device
        self.step: Step | None = None
        self.first: tuple[dict[str, Any], Step] | None = None  # of `resident`, which need not be compiled again
        self.per_block = 1

    def prepare(self, sizes: dict[str, int], dtype: str, tf32: bool) -> dict[str, Any]:
        """Makes the step and runs it once; what it compiles is in these seconds."""
        start = time.perf_counter()
        key = {"sizes": sizes, "dtype": dtype, "tf32": tf32}
        self.step, self.per_block = None, 1  # an earlier step's arrays are freed first
        self.step = step = self.first[1] if self.first and self.first[0] == key else self._make(sizes, dtype, tf32)
        step.run()
        step.wait()
        return {"first_seconds": time.perf_counter() - start}

    def resident(self, sizes: dict[str, int], dtype: str, tf32: bool) -> dict[str, Any]:
        """How much the first step adds to the resident memory when its arrays are prepared; what it compiles counts.

        A tiny step goes before it, since libraries load some of their code late.
        """
        tiny = asdict(TINY_RUN if self.problem in RUNS else TINY)
        if sizes != tiny:
            self.prepare(tiny, dtype, tf32)
        self.step = None
        start = time.perf_counter()
        step = self._make(sizes, dtype, tf32)
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the most so far is what is resident now; preparing took more
        before = _memory("VmRSS")
        step.run()
        step.wait()
        answer = {"resident_bytes": _memory("VmHWM") - before, "first_seconds": time.perf_counter() - start}
        self.first = {"sizes": sizes, "dtype": dtype, "tf32": tf32}, step
        return answer

    def _make(self, sizes: dict[str, int], dtype: str, tf32: bool) -> Step:
        if self.problem in RUNS:
            run = RunSizes(**sizes)
            arrays = run_problems.make_data(self.problem, run, dtype), run_problems.make_params(self.problem, run, dtype)
            return self.variant(self.problem, run, dtype, *arrays, self.device, tf32)
        of = Sizes(**sizes)
        arrays = meta_problems.make_data(of, dtype), meta_problems.make_params(self.problem, of, dtype)
        return self.variant(self.problem, of, dtype, *arrays, self.device, tf32)

    def result(self, path: str) -> dict[str, Any]:
        """Writes the gradient to a file and tells the loss."""
        step = self._step()
        out = step.run()
        step.wait()
        loss, grads = step.result(out)
        np.savez(path, **grads)
        return {"loss": loss}

    def time(self, seconds: float) -> dict[str, Any]:
        """Seconds per step, of a block of steps that takes about `seconds`."""
        step = self._step()
        while True:
            step.wait()
            start = time.perf_counter()
            for _ in range(self.per_block):
                step.run()
            step.wait()
            taken = time.perf_counter() - start
            if taken >= seconds / 2:
                return {"seconds": taken / self.per_block, "steps": self.per_block}
            self.per_block = max(self.per_block + 1, int(self.per_block * min(10.0, seconds / max(taken, 1e-9))))

    def peak(self) -> dict[str, Any]:
        """The most bytes on the device."""
        return {"peak_bytes": self._step().peak_bytes()}

    def once(self, tf32: bool = False) -> dict[str, Any]:
        """A step of which kernels' loops run more than once, tensor cores included.

        On a GPU every array gets memory of its own, so that memcheck sees what lies outside of it.
        """
        if self.device == "cuda":
            import_module("cupy").cuda.set_allocator(None)
        self.prepare(asdict(TINY_RUN if self.problem in RUNS else SANITIZED), "float32", tf32)
        step = self._step()
        loss, grads = step.result(step.run())
        return {"loss": loss, "finite": bool(all(np.isfinite(g).all() for g in grads.values()))}

    def _step(self) -> Step:
        if self.step is None:
            raise RuntimeError("no step is prepared")
        return self.step


def main() -> None:
    """Answer until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=MODULE)
    parser.add_argument("problem", choices=META + RUNS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    if threads := os.environ.get("BENCH_THREADS"):  # XLA counts the cores that it may run on
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to the log
    worker: Worker | None = None
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if worker is None:
                variant: Variant = import_module(MODULE[options.variant]).VARIANTS[options.variant]
                worker = Worker(variant, options.problem, options.device)
            answer = getattr(worker, command.pop("do"))(**command)
        except Exception as error:  # a variant that does not work is a result, told to the other side
            answer = {"error": f"{type(error).__name__}: {error}"[:2000]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
