"""Builds the emulator's stand-alone programs with g++, two at a time, and records kernel calls for them."""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from hypergrad.backends.emulated import EMULATED

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("g++")
KERNELS = [p for p in sorted((ROOT / "csrc/cuda").glob("*.cu")) if p.name != "device.cu"]
DRIVER = [*KERNELS, *(ROOT / f"csrc/{name}.cpp" for name in ("check", "table")), ROOT / "tests/emulated/driver.cpp"]
FAULTS = [ROOT / "tests/emulated/faults.cu"]
# Of the emulator itself; never with -fsanitize=thread, which it steers by hand.
RUNTIME = [ROOT / "csrc/emulator/runtime.cpp", ROOT / "csrc/emulator/fiber.cpp"]
ADDRESS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
THREAD = ["-fsanitize=thread"]


def build(sources, flags, directory):
    """The program made of `sources` with `flags` and of the emulator."""
    directory.mkdir(exist_ok=True)
    common = [COMPILER, "-std=c++17", "-O1", "-g1", "-march=native", "-Wno-psabi", "-I", ROOT / "csrc"]
    jobs = [(s, [*common, *flags]) for s in sources]
    jobs += [(s, [*common, *([] if "thread" in "".join(flags) else flags)]) for s in RUNTIME]

    def compiled(job):
        source, command = job
        target = directory / f"{source.name}.o"
        subprocess.run([*command, "-x", "c++", "-c", source, "-o", target], check=True, capture_output=True, text=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, jobs))
    program = directory / "program"
    subprocess.run([COMPILER, *flags, *objects, "-o", program], check=True, capture_output=True, text=True)
    return program


class Recorder:
    """The emulated backend, keeping every call with copies of its outputs."""

    def __init__(self):
        self.calls = []

    def run(self, name, /, **arguments):
        outputs = type(EMULATED).run(EMULATED, name, **arguments)  # `run` of the instance may be this recorder's
        inputs, results, attributes = EMULATED.kernels()[name]
        lists = [x for x in (arguments | outputs).values() if isinstance(x, list)]
        length = len(lists[0]) if lists else 0

        def arrays(axes, given):
            rows = [given.get(k) if a.startswith("*") else [given.get(k)] for k, a in axes.items()]
            return [a for row in rows for a in (row if isinstance(row, list) else [None] * length)]

        numbers = [0.0 if isinstance(arguments[k], list) else arguments[k] for k in attributes]
        copies = [None if a is None else a.copy() for a in arrays(results, outputs)]
        self.calls.append((name, length, arrays(inputs, arguments), copies, dict(zip(attributes, numbers, strict=True))))
        return outputs

    def kernels(self):
        """Names of the kernels called."""
        return {name for name, *_ in self.calls}

    def write(self, path):
        """The calls in the driver's format: 64-bit integers, and each array's bytes from its first to its last element."""
        with path.open("wb") as file:
            numbers(file, len(self.calls))
            for name, length, inputs, outputs, attributes in self.calls:
                numbers(file, len(name))
                file.write(name.encode())
                numbers(file, length)
                for a in inputs:
                    write_array(file, a, True)
                for a in outputs:
                    write_array(file, a, False)
                file.write(np.array(list(attributes.values()), np.float64).tobytes())

    def read(self, path):
        """(name, attributes, expected, actual) of every output that the driver wrote."""
        data = path.read_bytes()
        for name, _, _, outputs, attributes in self.calls:
            for expected in outputs:
                if expected is None:
                    continue
                actual = np.frombuffer(data[: expected.nbytes], expected.dtype).reshape(expected.shape)
                data = data[expected.nbytes :]
                yield name, attributes, expected, actual
        assert not data


def numbers(file, *values):
    file.write(np.array(values, np.int64).tobytes())


def write_array(file, a, is_input):
    if a is None:
        return numbers(file, 0, -1, 0)
    kind = [np.dtype(t) for t in ("f4", "f8", "u1", "i8")].index(a.dtype)
    assert all(s >= 0 for s in a.strides)
    size = 0 if a.size == 0 else a.itemsize + sum((n - 1) * s for n, s in zip(a.shape, a.strides, strict=True))
    numbers(file, kind, a.ndim, *a.shape, *a.strides, size)
    if is_input:
        flat = np.lib.stride_tricks.as_strided(a, (size // a.itemsize,), (a.itemsize,)) if size else a
        file.write(flat.tobytes())
