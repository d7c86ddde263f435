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
DRIVER = [*KERNELS, ROOT / "csrc/check.cpp", ROOT / "csrc/table.cpp", ROOT / "tests/emulated/driver.cpp"]
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

    def run(self, name, inputs, outputs, **attrs):
        type(EMULATED).run(EMULATED, name, inputs, outputs, **attrs)  # `run` of the instance may be this recorder's
        self.calls.append((name, list(inputs), [None if o is None else o.copy() for o in outputs], attrs))

    def kernels(self):
        """Names of the kernels called."""
        return {name for name, *_ in self.calls}

    def write(self, path):
        """The calls in the driver's format: 64-bit integers, and each array's bytes from its first to its last element."""
        with path.open("wb") as file:
            numbers(file, len(self.calls))
            for name, inputs, outputs, attrs in self.calls:
                numbers(file, len(name))
                file.write(name.encode())
                numbers(file, len(inputs) + len(outputs))
                for a in inputs:
                    write_array(file, np.empty(0, np.float32) if a is None else a, True)
                for a in outputs:
                    write_array(file, np.empty(0, np.float32) if a is None else a, False)
                order = EMULATED.kernels()[name][2]
                file.write(np.array([attrs[key] for key in order], np.float64).tobytes())

    def read(self, path):
        """(name, attributes, expected, actual) of every output that the driver wrote."""
        data = path.read_bytes()
        for name, _, outputs, attrs in self.calls:
            for expected in outputs:
                if expected is None:
                    continue
                actual = np.frombuffer(data[: expected.nbytes], expected.dtype).reshape(expected.shape)
                data = data[expected.nbytes :]
                yield name, attrs, expected, actual
        assert not data


def numbers(file, *values):
    file.write(np.array(values, np.int64).tobytes())


def write_array(file, a, is_input):
    kind = [np.dtype(t) for t in ("f4", "f8", "u1", "i8")].index(a.dtype)
    assert all(s >= 0 for s in a.strides)
    size = 0 if a.size == 0 else a.itemsize + sum((n - 1) * s for n, s in zip(a.shape, a.strides, strict=True))
    numbers(file, kind, a.ndim, *a.shape, *a.strides, size)
    if is_input:
        flat = np.lib.stride_tricks.as_strided(a, (size // a.itemsize,), (a.itemsize,)) if size else a
        file.write(flat.tobytes())
