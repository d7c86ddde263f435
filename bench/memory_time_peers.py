"""The problem of memory_time.py in JAX and PyTorch, in a process of its own.

    python bench/memory_time_peers.py KIND PROBLEM.npz OUT.npz REPEATS

KIND is one of KINDS. PROBLEM.npz has the data, the start, the hyperparameters and the rows of every minibatch. OUT.npz takes the
hypergradient. One JSON line is printed: the seconds of the first run, which compiles, those of the others, and the peak bytes.
JAX's peak is what its compiler says that the program needs beside its arguments. PyTorch's is the growth of the process.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

KINDS = {
    "jax grad": "jax",  # reverse mode through the scan of all steps
    "jax remat": "jax",  # the same, every step made again from its state
    "jax jacfwd": "jax",  # forward mode, one tangent a hyperparameter
    "torch": "torch",  # the recorded graph of all steps
}
Arrays = dict[str, Any]
Run = Callable[[], Arrays]


def _layers(a: Arrays) -> int:
    return sum(k.startswith("weights") for k in a)


def jax_run(kind: str, a: Arrays) -> tuple[Run, int]:
    """(a run of the compiled hypergradient, its peak bytes)."""
    jax, jnp = import_module("jax"), import_module("jax.numpy")
    n, n_train = _layers(a), int(a["n_train"])
    x, y = jnp.asarray(a["x"]), jnp.asarray(a["y"])
    start = [(jnp.asarray(a[f"weights{i}"]), jnp.asarray(a[f"bias{i}"])) for i in range(n)]
    hparams = {k: jnp.asarray(a[f"hparams_{k}"]) for k in ("lr", "momentum", "group") if f"hparams_{k}" in a}

    def losses(w: Any, x: Any, y: Any) -> Any:
        for weights, bias in w[:-1]:
            x = jnp.tanh(x @ weights + bias)
        z = x @ w[-1][0] + w[-1][1]
        return jax.nn.logsumexp(z, axis=1) - jnp.take_along_axis(z, y[:, None], axis=1)[:, 0]

    def objective(hparams: Any, x: Any, y: Any, rows: Any) -> Any:
        def inner_loss(w: Any, rows: Any) -> Any:
            found = losses(w, x[rows], y[rows])
            return (jax.nn.sigmoid(hparams["group"])[rows % hparams["group"].size] * found if "group" in hparams else found).mean()

        def step(state: Any, rows: Any) -> Any:
            w, v = state
            v = jax.tree.map(lambda v, g: hparams.get("momentum", 0.9) * v + g, v, jax.grad(inner_loss)(w, rows))
            return (jax.tree.map(lambda w, v: w - hparams["lr"] * v, w, v), v), None

        step = jax.checkpoint(step) if kind == "jax remat" else step
        (w, _), _ = jax.lax.scan(step, (start, jax.tree.map(jnp.zeros_like, start)), rows)
        return losses(w, x[n_train:], y[n_train:]).mean()

    transform = jax.jacfwd if kind == "jax jacfwd" else jax.grad
    arguments = (hparams, x, y, jnp.asarray(a["rows"], jnp.int32))
    compiled = jax.jit(transform(objective)).lower(*arguments).compile()
    sizes = compiled.memory_analysis()

    def run() -> Arrays:
        return {k: np.asarray(g) for k, g in jax.block_until_ready(compiled(*arguments)).items()}

    return run, int(sizes.temp_size_in_bytes + sizes.output_size_in_bytes)


def torch_run(a: Arrays) -> tuple[Run, int]:
    """(a run of the hypergradient, 0: its peak is measured from outside)."""
    torch = import_module("torch")
    n, n_train = _layers(a), int(a["n_train"])
    x, y, rows = torch.from_numpy(a["x"]), torch.from_numpy(a["y"]), torch.from_numpy(a["rows"])
    hparams = {k: torch.tensor(a[f"hparams_{k}"], requires_grad=True) for k in ("lr", "momentum", "group") if f"hparams_{k}" in a}

    def losses(w: Any, x: Any, y: Any) -> Any:
        for i in range(n - 1):
            x = torch.tanh(torch.addmm(w[2 * i + 1], x, w[2 * i]))
        return torch.nn.functional.cross_entropy(torch.addmm(w[-1], x, w[-2]), y, reduction="none")

    def run() -> Arrays:
        w = [torch.tensor(a[f"{k}{i}"], requires_grad=True) for i in range(n) for k in ("weights", "bias")]
        v = [torch.zeros_like(t) for t in w]
        for r in rows:
            found = losses(w, x[r], y[r])
            loss = (torch.sigmoid(hparams["group"])[r % hparams["group"].numel()] * found if "group" in hparams else found).mean()
            g = torch.autograd.grad(loss, w, create_graph=True)
            v = [hparams.get("momentum", 0.9) * v + g for v, g in zip(v, g, strict=True)]
            w = [w - hparams["lr"] * v for w, v in zip(w, v, strict=True)]
        value = losses(w, x[n_train:], y[n_train:]).mean()
        found = torch.autograd.grad(value, list(hparams.values()))
        return {k: g.numpy() for k, g in zip(hparams, found, strict=True)}

    return run, 0


def main(kind: str, problem: str, out: str, repeats: str) -> None:
    """Run one of KINDS."""
    with np.load(problem) as file:
        a = dict(file)
    start = time.perf_counter()
    run, peak = torch_run(a) if KINDS[kind] == "torch" else jax_run(kind, a)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    found = run()
    first = time.perf_counter() - start
    peak = peak or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident
    seconds = []
    for _ in range(int(repeats)):
        start = time.perf_counter()
        found = run()
        seconds.append(time.perf_counter() - start)
    np.savez(out, **found)
    print(json.dumps({"first_seconds": first, "all_seconds": seconds, "peak_bytes": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:])
