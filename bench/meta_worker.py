"""One variant of the meta-steps in a process of its own, which does what it is told over its standard input.

    echo '{"do": "once"}' | python bench/meta_worker.py hypergrad maml --device cuda      # a small step, for sanitizers

gpu.py starts one for each variant and lets them take turns: every framework keeps its own memory pool, compiler caches
and settings, and what slows the machine for a while slows none of them alone. Each line in is a command, each line out
its answer, both JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from importlib import import_module
from typing import Any

import numpy as np
from meta_problems import PROBLEMS, TINY, Sizes, Step, Variant, make_data, make_params

# module -> the variants it defines; a module is imported by its own workers only
VARIANTS = {
    "meta_hypergrad": ("hypergrad host", "hypergrad", "hypergrad captured", "hypergrad captured 3xtf32"),
    "peers_torch": ("torch", "torch channels-last", "torch.func vmap", "torch.compile", "torch CUDA graph"),
    "peers_jax": ("jax jit vmap", "jax jit vmap reduce_window"),
}
MODULE = {name: module for module, names in VARIANTS.items() for name in names}
GPU_ONLY = ("hypergrad", "hypergrad captured", "hypergrad captured 3xtf32", "torch CUDA graph")


class Worker:
    """Holds one prepared step."""

    def __init__(self, variant: Variant, problem: str, device: str) -> None:
        self.variant, self.problem, self.device = variant, problem, device
        self.step: Step | None = None
        self.per_block = 1

    def prepare(self, sizes: dict[str, int], dtype: str, tf32: bool) -> dict[str, Any]:
        """Makes the step and runs it once; what it compiles is in these seconds."""
        start = time.perf_counter()
        of = Sizes(**sizes)
        self.step, self.per_block = None, 1  # an earlier step's arrays are freed first
        self.step = self.variant(self.problem, of, dtype, make_data(of, dtype), make_params(self.problem, of, dtype), self.device, tf32)
        self.step.run()
        self.step.wait()
        return {"first_seconds": time.perf_counter() - start}

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

    def once(self) -> dict[str, Any]:
        """A small step; on a GPU every array gets memory of its own, so that memcheck sees what lies outside of it."""
        if self.device == "cuda":
            import_module("cupy").cuda.set_allocator(None)
        self.prepare(asdict(TINY), "float32", False)
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
    parser.add_argument("problem", choices=PROBLEMS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
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
