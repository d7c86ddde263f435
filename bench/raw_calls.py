"""Calls of the compiled host kernels with drawn arguments, right and wrong ones: each gives an error of hypergrad's own or a result.

    python bench/raw_calls.py [--calls N] [--seed N] [--out DIR]

Every array lies between canaries, also those that a kernel asks for. No canary and no input may change. The calls run in a process of
their own, so that a crash is counted. Under AddressSanitizer and UBSan (CMakeLists.txt says how to build with them) that process ends at
the first access outside of an array; run this with the same LD_PRELOAD.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from common import HERE, environment, write_lines

from hypergrad import _host
from hypergrad.backends.host import HOST
from hypergrad.errors import HypergradError

RIM, CANARY = 128, 0x5A
HANG_S = 1800  # no such process takes so long
MOST_ELEMENTS = 1 << 26  # of an output
BYTES, NUMBERS = ("code", "packed", "images"), ("index", "label", "counts", "begin", "end")  # arguments of uint8 and of int64
SIZES = [0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 5, 8, 9, 17]
WRONG_NUMBERS = [-1, 2**31, 2**62, 2**63, -(2**63), 0.5, float("nan"), float("inf"), 1e300, "1", None, [], True]
STRANGE = [float("nan"), float("inf"), -float("inf"), 1e30, -1e-42, 0.0, -0.0]


class Calls:
    """Drawn calls. Args: draw: where all that is random comes from."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.blocks: list[tuple[Any, Any, bytes | None]] = []  # memory, the array in it, and what it must hold afterwards

    def array(self, shape: tuple[int, ...], dtype: Any, written: bool = False) -> Any:
        """An array between canaries; of an output the content does not matter."""
        dtype = np.dtype(dtype)
        n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        memory = np.full(n_bytes + 2 * RIM + 64, CANARY, np.uint8)
        begin = RIM + -(memory.ctypes.data + RIM) % 64  # aligned as NumPy's own arrays are, or better
        a = memory[begin : begin + n_bytes].view(dtype).reshape(shape)
        rng = np.random.default_rng(self.draw.getrandbits(32))
        if dtype.kind == "f":
            a[...] = np.nan if written else rng.standard_normal(shape)
            if not written and a.size and self.draw.random() < 0.2:
                a.reshape(-1)[self.draw.randrange(a.size)] = self.draw.choice(STRANGE)
        else:
            high = 256 if dtype == np.uint8 else self.draw.choice([1, 1, 2, 3, 20, 2**62])
            a[...] = rng.integers(0 if dtype.itemsize == 1 or self.draw.random() < 0.8 else -high, high, shape)
        self.blocks.append((memory, a, None if written else a.tobytes()))
        return a

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """What the kernels get their outputs from."""
        if max((math.prod(shape), *shape)) > MOST_ELEMENTS:
            raise MemoryError
        return self.array(shape, dtype, written=True)

    def right(self, name: str) -> dict[str, Any]:
        """Arguments of a kernel that fit each other."""
        inputs, outputs, attributes = HOST.kernels()[name]
        given: dict[str, Any] = {key: self.attribute(key) for key in attributes}
        sizes = {axis: self.draw.choice(SIZES) for axis in "ABCDEHKMNPQRSTW"} | {str(i): i for i in range(10)}
        sizes |= {"P": self.draw.choice([0, 1, 1, 1, 2, 3])}  # directions, which one kernel takes one of
        sizes |= {"h": sizes["H"] // 2, "w": sizes["W"] // 2, "g": 9 * sizes["C"], "n": self.draw.choice([0, 1, 2, 3])}
        if name.startswith("max_pool"):
            sizes |= {"Q": sizes["H"] // given["size"], "R": sizes["W"] // given["size"]}
        if name.startswith("conv2d"):
            sizes |= {"R": self.draw.choice([1, 2, 3, 3]), "S": self.draw.choice([1, 2, 3, 3])}
            for axis, image, filters, pad in (("P", "H", "R", "pad_h"), ("Q", "W", "S", "pad_w")):
                sizes[axis] = max(0, (sizes[image] + 2 * given[pad] - sizes[filters]) // given["stride"] + 1)
        dtype = self.draw.choice([np.float32, np.float64])
        leaves = [tuple(self.draw.choice(SIZES) for _ in range(self.draw.choice([0, 1, 2]))) for _ in range(sizes["n"])]

        def made(key: str, axes: str, written: bool) -> Any:
            kind = np.uint8 if key in BYTES else np.int64 if key in NUMBERS else dtype
            if not axes.startswith("*"):
                return self.array(tuple(sizes[axis] for axis in axes), kind, written)
            own = tuple(sizes[axis] for axis in axes.strip("*~"))
            return [self.array(own + (leaf if axes.endswith("~") else ()), kind, written) for leaf in leaves]

        given |= {key: made(key, axes, False) for key, axes in inputs.items() if key not in given or self.draw.random() < 0.3}
        for key, axes in outputs.items():
            if name == "gather_images" or self.draw.random() < 0.5:  # which has no other array to take the element type from
                given[key] = self.draw.choice([True, False, None]) if self.draw.random() < 0.05 else made(key, axes, True)
        known = "".join(axes for key, axes in inputs.items() if given.get(key) is not None)
        for axis in sorted({axis for axes in outputs.values() for axis in axes if axis in "BHWQRST" and axis not in known}):
            if self.draw.random() < 0.9 and not name.startswith("max_pool_value"):
                given[axis] = sizes[axis]
        return given

    def attribute(self, key: str) -> Any:
        """A value that the attribute may have."""
        ranges = {"size": (1, 3), "stride": (1, 3), "pad_h": (0, 3), "pad_w": (0, 3), "precision": (0, 2), "t": (1, 9), "nesterov": (0, 1)}
        return self.draw.randint(*ranges[key]) if key in ranges else self.draw.choice([0.0, 0.1, 0.9, 1.0])

    def spoil(self, given: dict[str, Any]) -> None:
        """Make one argument wrong, or unusual."""
        key = self.draw.choice(sorted(given))
        value = given[key]
        if isinstance(value, list) and value:
            at = self.draw.randrange(len(value))
            value[at] = self.spoiled(value[at], given)
            if self.draw.random() < 0.2:
                value.pop()
        elif isinstance(value, np.ndarray):
            given[key] = self.spoiled(value, given)
        elif self.draw.random() < 0.2:
            given[self.draw.choice(["unknown", "H", "E", "x"])] = self.draw.choice([3, -1, "x", np.zeros(3)])
        else:
            given[key] = self.draw.choice(WRONG_NUMBERS)

    def spoiled(self, a: Any, given: dict[str, Any]) -> Any:
        """Another array, or none, in an array's place."""
        draw, strange = self.draw, [3, "x", [1.0], (), True, np.ma.masked_array([1.0]), a]
        if not isinstance(a, np.ndarray) or a.dtype.kind not in "fiu":
            return draw.choice(strange)
        shape = a.shape
        axis = draw.randrange(len(shape)) if shape else 0
        match draw.randrange(13):
            case 0:
                return None
            case 1 if shape:
                return self.array((*shape[:axis], max(0, shape[axis] + draw.choice([-1, 1])), *shape[axis + 1 :]), a.dtype)
            case 2 if shape:
                return self.array((*shape[:axis], *shape[axis + 1 :]), a.dtype)
            case 3:
                return self.array((*shape, 1)[-7:], a.dtype)
            case 4:
                return self.array(shape, draw.choice(["f4", "f8", "u1", "i8"]))
            case 5:
                return np.zeros(shape, draw.choice(["f2", ">f4", "i4", "?", "c16", "O", "U3", "M8[s]"]))
            case 6 if shape:  # with room between its elements
                wide = self.array((*shape[:axis], 2 * shape[axis], *shape[axis + 1 :]), a.dtype)
                return wide[(*[slice(None)] * axis, slice(None, None, 2))]
            case 7 if shape:
                return np.flip(a, axis)
            case 8 if shape and shape[axis] > 0:
                return np.broadcast_to(a.take([0], axis), shape)
            case 9:
                return self.array((a.nbytes + 1,), np.uint8)[1:].view(a.dtype).reshape(shape)
            case 10:  # an array of the same call, or a part of it: outputs then overlap
                others = [x for x in given.values() if isinstance(x, np.ndarray)]
                return draw.choice(others) if others else None
            case 11:
                found = a.view()
                found.flags.writeable = False
                return found
            case _:
                return draw.choice(strange)

    def changed(self) -> list[str]:
        """What no call may have changed: the canaries, and the arrays that are no outputs."""
        found = []
        for memory, a, content in self.blocks:
            begin = a.ctypes.data - memory.ctypes.data if a.size else RIM
            if (memory[:begin] != CANARY).any() or (memory[begin + a.nbytes :] != CANARY).any():
                found.append(f"a canary of an array {a.shape} {a.dtype}")
            if content is not None and a.tobytes() != content:
                found.append(f"an input {a.shape} {a.dtype}")
        return found


def fuzz(calls: int, seed: int, report: Any = None) -> tuple[Counter[str], list[str]]:
    """So many calls. Args: report: is told the number of each call before it. Returns: what they ended in; what is wrong."""
    counts, faults, names = Counter[str](), list[str](), sorted(HOST.kernels())
    for i in range(calls):
        if report is not None:
            report(i)
        made = Calls(random.Random(f"{seed} {i}"))
        name = made.draw.choice(names)
        given = made.right(name)
        for _ in range(made.draw.choice([0, 0, 1, 1, 2, 3])):
            made.spoil(given)
        outputs = HOST.kernels()[name][1]
        written = _arrays({key: value for key, value in given.items() if key in outputs})
        for j, (memory, a, content) in enumerate(made.blocks):
            if content is not None and any(np.may_share_memory(a, x) for x in written):
                made.blocks[j] = (memory, a, None)
        try:
            _host.run(name, given, made.empty)
            counts["result"] += 1
        except HypergradError:
            counts["clean error"] += 1
        except MemoryError:  # what NumPy says to an absurd size
            counts["no memory"] += 1
        except BaseException as error:  # nothing else is foreseen
            counts["other error"] += 1
            faults.append(f"call {i} of {name}: {type(error).__name__}: {error}"[:300])
        faults += [f"call {i} of {name} has changed {what}" for what in made.changed()]
    return counts, faults


def _arrays(given: dict[str, Any]) -> list[Any]:
    rows = [value if isinstance(value, (list, tuple)) else [value] for value in given.values()]
    return [x for row in rows for x in row if isinstance(x, np.ndarray)]


def main() -> None:
    """Call, count, and write bench/results/raw_calls.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        counts, faults = fuzz(options.calls, options.seed, lambda i: os.write(2, f"call {i}\n".encode()))
        print(json.dumps({**counts, "faults": faults}))
        return
    line = run(options.calls, options.seed)
    libraries = os.environ.get("LD_PRELOAD", "").split()
    line["sanitizers"] = [name for name in ("asan", "ubsan", "tsan") if any(f"lib{name}" in path for path in libraries)]
    print(line)
    write_lines(options.out / "raw_calls.jsonl", [environment(), line])
    sys.exit(bool(line["faults"]))


def run(calls: int, seed: int) -> dict[str, Any]:
    """`fuzz` in a process of its own. Returns: a line for the results; a crash and a hang are faults."""
    line: dict[str, Any] = {"kind": "raw calls", "calls": calls, "seed": seed, "crash": 0, "hang": 0}
    command = [sys.executable, __file__, "--child", "--calls", str(calls), "--seed", str(seed)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, env={**os.environ, "HYPERGRAD_NUM_THREADS": "2"})
    except subprocess.TimeoutExpired as late:
        return {**line, "hang": 1, "faults": [f"a hang in {(late.stderr or b'').splitlines()[-1:]}"]}
    if done.returncode:
        said = done.stderr.splitlines()
        last = [i for i, words in enumerate(said) if words.startswith("call ")][-1:]
        return {**line, "crash": 1, "faults": [f"status {done.returncode}", *said[last[0] if last else 0 :]]}
    return {**line, **json.loads(done.stdout.splitlines()[-1])}


if __name__ == "__main__":
    main()
