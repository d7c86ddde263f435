"""The kernels and operations of CuPy that captured meta-steps are made of, recorded on a pretended GPU.

    python bench/graph_nodes.py            # counts of both problems at full size, two seconds; needs the emulator, no GPU

Kernels are not run, so the size of the images does not matter.
"""

from __future__ import annotations

import sys
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import meta_hypergrad
import numpy as np
import pytest
from meta_problems import PROBLEMS, Sizes, make_data, make_params

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
import pretended
import pretended_memory

LIMIT = 1 << 40  # bytes that the pretended GPU hands out


def recorded(problem: str, sizes: Sizes, variant: str = "hypergrad captured") -> list[Any]:
    """The nodes of a meta-step's graph in float32, pretended.GraphNode each, and those of the copies around it."""
    data, params = make_data(sizes, "float32"), make_params(problem, sizes, "float32")
    with pytest.MonkeyPatch.context() as patch, pretended.gpu(patch) as machine, np.errstate(all="ignore"):
        patch.setattr(pretended_memory, "LIMIT", LIMIT)
        machine.computes, machine.pool.limit = False, LIMIT
        assert import_module("cupy")
        step = meta_hypergrad.VARIANTS[variant](problem, sizes, "float32", data, params, "cuda", False)
        step.run()
        nodes, machine.nodes = machine.nodes, []
        with machine.writing_down():
            step.run()
        return nodes + machine.nodes


def main() -> None:
    """Print the counts and the nodes of each problem."""
    for problem in PROBLEMS:
        nodes = recorded(problem, Sizes())
        kernels = [node for node in nodes if node.call]
        print(f"{problem}: {len(kernels)} kernels and {len(nodes) - len(kernels)} operations of CuPy, {len(nodes)} in all")
        found = Counter((node.call or "CuPy", node.name, node.blocks or next(iter(node.arrays.values()))[0]) for node in nodes)
        for (call, name, size), count in found.items():
            print(f"{count:5d}  {call:34} {name:24} {size}")


if __name__ == "__main__":
    main()
