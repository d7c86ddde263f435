"""What every benchmark shares: a line about the machine, result files, and synthetic digits."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import optree

import hypergrad as hg

HERE = Path(__file__).resolve().parent


def _device() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def _commit(checkout: Path) -> str:
    """The commit of a checkout, with "+" behind it if files differ from it; "unknown" outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=checkout, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def environment(checkout: Path = HERE) -> dict[str, Any]:
    """Device, versions and the commit of a checkout: the first line of a result file."""
    return {
        "kind": "environment",
        "device": _device(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": {k: os.environ[k] for k in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS") if k in os.environ},
        "platform": platform.platform(),
        "commit": _commit(checkout),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "hypergrad": hg.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "optree": optree.__version__,
            "matplotlib": matplotlib.__version__,
        },
    }


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """A file of JSON lines, written whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(path.suffix + ".part")
    part.write_text("".join(json.dumps(line) + "\n" for line in lines))
    part.replace(path)


def synthetic_digits(n: int, seed: int = 0) -> tuple[Any, Any]:
    """Images of MNIST's size and range, in ten classes of smooth random shapes.

    Args:
        n: number of images.
        seed: of everything random.
    Returns: (x, y): float32 (n, 784) in [0, 1], integers (n,).
    """
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((10, 7, 7)).repeat(4, axis=1).repeat(4, axis=2)
    y = np.arange(n) % 10
    x = coarse[y] + 0.7 * rng.standard_normal((n, 28, 28))
    return np.clip(0.25 * x + 0.3, 0.0, 1.0).reshape(n, 784).astype(np.float32), y
