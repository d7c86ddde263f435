"""What the machine code of CUDA kernels shows: the instructions of the hottest loop, wide loads, local memory.

Read by cuobjdump, from the CUDA toolkit or from PyPI (`pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm`).
"""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

_FUNCTION = re.compile(r"^\s*Function : (\S+)")
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")
_MATH = re.compile(r"^(FFMA2?|DFMA|[HDQ]G?MMA)(\.|$)")
_TENSOR = re.compile(r"^[HDQ]G?MMA(\.|$)")


@dataclass(frozen=True)
class Code:
    """Figures of one kernel's machine code.

    loop_math: multiply-adds (FFMA, DFMA, HMMA, ...) of the innermost loop that has most of them, those of tensor cores
        going before all others; 0 without a loop.
    loop_size: all instructions of that loop but NOP.
    unit: the instruction that most of the loop_math are, "" without any.
    wide_loads: loads of 16 bytes from global memory.
    local: loads from and stores to local memory, that is spills and arrays indexed at run time.
    """

    loop_math: int
    loop_size: int
    unit: str
    wide_loads: int
    local: int

    @property
    def share(self) -> float:
        """Multiply-adds among the loop's instructions, 0 to 1."""
        return self.loop_math / self.loop_size if self.loop_size else 0.0


def find_cuobjdump() -> str | None:
    """Path of cuobjdump: from the PATH, the toolkit of CUDA_HOME, or the wheels' folder; None where there is none."""
    folders = [Path(p) / "nvidia" for p in {*sys.path, sysconfig.get_path("purelib"), *site.getsitepackages()} if p]
    wheels = sorted(path for folder in folders for path in folder.glob("*/bin/cuobjdump"))
    homes = [Path(os.environ[name]) / "bin" / "cuobjdump" for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    usual = [*homes, *wheels, Path("/usr/local/cuda/bin/cuobjdump")]
    return shutil.which("cuobjdump") or next((str(path) for path in usual if os.access(path, os.X_OK)), None)


def disassemble(tool: str, binary: Path) -> str:
    """The text of `cuobjdump --dump-sass` of a cubin, fatbin or object."""
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(tool).parent), os.environ.get("PATH", "")])}  # for nvdisasm
    return subprocess.run([tool, "--dump-sass", str(binary)], capture_output=True, text=True, check=True, env=environment).stdout


def read(text: str) -> dict[str, Code]:
    """The figures of every function in a disassembly, by its mangled name."""
    bodies: dict[str, list[tuple[int, str, str]]] = {}
    body: list[tuple[int, str, str]] = []
    for line in text.splitlines():
        if start := _FUNCTION.match(line):
            body = bodies.setdefault(start[1], [])
        elif found := _INSTRUCTION.match(line):
            body.append((int(found[1], 16), found[2], found[3]))
    return {name: _figures(instructions) for name, instructions in bodies.items()}


def _figures(instructions: list[tuple[int, str, str]]) -> Code:
    math, size, unit, most = 0, 0, "", (0, 0)
    for first, last in _innermost(instructions):
        inside = [name for at, name, _ in instructions if first <= at <= last and name != "NOP"]  # padding on some GPUs
        found = [m[1] for name in inside if (m := _MATH.match(name))]
        rank = (sum(1 for name in inside if _TENSOR.match(name)), len(found))  # the work is where the tensor cores are
        if rank > most:
            most, math, size, unit = rank, len(found), len(inside), max(set(found), key=found.count)
    names = [name for _, name, _ in instructions]
    return Code(
        math,
        size,
        unit,
        sum(1 for n in names if n.startswith(("LDG.", "LD.E")) and ".128" in n),
        sum(1 for n in names if n.startswith(("LDL", "STL"))),
    )


def _innermost(instructions: list[tuple[int, str, str]]) -> list[tuple[int, int]]:
    """First and last address of every loop that holds no other: loops are branches back."""
    loops = set()
    for at, name, operands in instructions:
        if name.startswith("BRA") and (target := re.search(r"0x([0-9a-f]+)\s*$", operands.strip())) and int(target[1], 16) < at:
            loops.add((int(target[1], 16), at))
    return [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
