"""What a report of a fault needs to know of the machine: processor, libraries, compilers and environment variables; no paths."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np

FEATURES = "sse4_2 avx avx2 fma f16c avx512f avx512bw avx512dq avx512vl avx512_bf16 avx512_vnni amx_tile neon asimd sve".split()
LIBRARIES = ("cupy", "cupy-cuda12x", "cupy-cuda13x", "torch", "jax", "scikit-learn", "scipy", "threadpoolctl")
VARIABLES = (
    *("HYPERGRAD_SIMD", "HYPERGRAD_NUM_THREADS", "HYPERGRAD_CACHE", "HYPERGRAD_METHODS", "HYPERGRAD_PROBLEMS"),
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "CUDA_PATH", "CUDACXX", "CUPY_ACCELERATORS", "NUMPY_EXPERIMENTAL_ARRAY_FUNCTION"),
)
_PATH = re.compile(r"(?<![\w.])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\'\":;,()]+)+[/\\]?")


def without_paths(text: str) -> str:
    """The text with <path> in the place of every absolute path: it may tell who a person is.

    Args:
        text: any text.
    """
    return _PATH.sub("<path>", text)


def machine(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What is found of the processor, the memory, the C library, NumPy's BLAS, nvcc, optional libraries and environment variables.

    Args:
        environment: the variables; those that decide how hypergrad computes are named if they are set.
    Returns: text by name, without paths.
    Cost: nvcc is asked for its version, which takes a fraction of a second.
    """
    found = {"processor": _processor(), "memory": _memory(), "C library": " ".join(platform.libc_ver()).strip() or "unknown"}
    found["BLAS of NumPy"] = _blas()
    found["nvcc"] = _nvcc()
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    found |= {name: environment[name] for name in VARIABLES if name in environment}
    return {name: without_paths(text) for name, text in found.items()}


def _processor() -> str:
    """The processor's model, and which of the vector extensions it has."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    has = set(flags[1].split()) if flags else set()
    return f"{model[1] if model else platform.machine()}; {' '.join(name for name in FEATURES if name in has)}"


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"
    except (ValueError, OSError):
        return "unknown"


def _blas() -> str:
    found = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return f"{found.get('name', 'unknown')} {found.get('version', '')}".strip()


def _nvcc() -> str:
    program = shutil.which("nvcc")
    if program is None:
        return "not found"
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"found, but it does not run: {type(error).__name__}"
    version = re.search(r"\bV([\d.]+)", said)
    return version[1] if version else "found, of an unknown version"
