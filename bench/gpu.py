"""Everything that needs a GPU, in one command: build, tests, sanitizers, ceilings, kernels, and meta-steps against the peers.

    python bench/gpu.py --out DIR                  # 15 to 30 minutes; prints tables, writes DIR/gpu.jsonl
    python bench/gpu.py --out DIR --only ceilings kernels
    python bench/gpu.py --out DIR --minutes 8 --archive FILE.tgz # no part begins after 8 minutes; goes on from FILE.tgz, written at the end
    python bench/gpu.py --out DIR --device cpu --sizes tiny      # the same without a GPU, as far as that goes

Each part writes DIR/PART.json when it is done. Run again, it skips the parts that are done for these sources and this
device, so that a short time on a GPU suffices; parts that failed run again. An archive holds all that another machine needs to
go on. PyTorch and JAX are compared where they are installed. Exit status 1 if a part failed or is left to do.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import gpu_report
from meta_problems import PROBLEMS, TINY, Sizes
from meta_times import Comparison, WorkerFailed
from meta_worker import MODULE, variants_of
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "bench"
NEEDED = ("numpy", "optree", "typer", "rich", "matplotlib", "PIL", "safetensors", "platformdirs", "pytest", "hypothesis")
PACKAGES = ("numpy", "cupy-cuda13x", "cupy-cuda12x", "torch", "triton", "jax", "jaxlib", "jax-cuda13-plugin", "nvidia-cudnn-cu13")
# Packages that a machine with PyTorch, JAX and CuPy often lacks, as wheels from a machine that has a network.
WHEELS = (
    "python3 -m pip download --no-deps --only-binary=:all: -d .whl {}  # where there is a network, with the same Python; "
    "then python3 -m pip install --no-index --no-deps --find-links .whl {}"
)
HOTTEST = ("conv3x3", "wgrad3x3", "patch_products", "gather_winners", "reduce_winners")  # kernels that ncu looks into
LONGEST = 480.0  # seconds of a part's commands
ROUNDS = 7  # blocks of every variant, in turns
Row = dict[str, Any]


class PartFailed(RuntimeError):
    """Why a part has no result; `rows` is what there is."""

    def __init__(self, message: str, rows: list[Row] | None = None) -> None:
        super().__init__(message)
        self.rows = rows or []


def sources() -> str:
    """A number for the files that results depend on."""
    digest = hashlib.sha256()
    files = [
        *ROOT.glob("csrc/**/*"),
        *ROOT.glob("hypergrad/**/*.py"),
        *ROOT.glob("bench/*.py"),
        *ROOT.glob("bench/*.cu"),
        *ROOT.glob("tests/**/*.py"),
        ROOT / "CMakeLists.txt",
        ROOT / "pyproject.toml",
    ]
    for path in sorted(path for path in files if path.is_file()):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def output(command: list[str], default: str) -> str:
    """What a command prints; `default` where it is not there or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return default


def machine(device: str) -> Row:
    """Device, driver, compiler, packages and commit."""
    out: Row = {
        "kind": "environment",
        "device": platform.processor() or platform.machine(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "commit": output(["git", "-C", str(ROOT), "rev-parse", "HEAD"], "unknown")
        + ("+" if output(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"], "") else ""),
    }
    if device == "cuda":
        keys = ("name", "driver_version", "memory.total", "compute_cap", "clocks.max.sm", "clocks.max.mem")
        found = output(["nvidia-smi", f"--query-gpu={','.join(keys)}", "--format=csv,noheader", "--id=0"], "")
        if not found:
            raise SystemExit("gpu: nvidia-smi lists no GPU, expected one; check the driver, or pass --device cpu")
        out |= {"gpu": dict(zip(keys, (value.strip() for value in found.split(",")), strict=True))}
        out["device"] = out["gpu"]["name"]
        release = re.search(r"release ([\d.]+), V([\d.]+)", output(["nvcc", "--version"], ""))
        out["nvcc"] = release[2] if release else "not found"
    out["versions"] = {}
    for package in PACKAGES:
        try:
            out["versions"][package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return out


class Run:
    """One call: options, folder, and what every part needs."""

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self.options, self.console = options, console
        self.cuda = options.device == "cuda"
        self.folder: Path = options.out.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.stop = time.monotonic() + 60 * options.minutes
        if options.archive is not None and options.archive.exists():
            with tarfile.open(options.archive) as archive:
                archive.extractall(self.folder, filter="data")
        self.sizes = TINY if options.sizes == "tiny" else Sizes()
        self.machine, self.sources = machine(options.device), sources()
        site = str(self.folder / "site")  # what is tested and timed is this checkout, whatever else is installed
        path = os.pathsep.join([*([site] if self.cuda else []), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
        self.environment = {**os.environ, "PYTHONPATH": path, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONUNBUFFERED": "1"}

    def call(self, name: str, command: list[str], *, limit: float = LONGEST, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Runs a command outside the checkout, whose folder would stand in for the built package; its output is kept in NAME.log."""
        try:
            result = subprocess.run(
                command, input=stdin, capture_output=True, text=True, env=self.environment, cwd=self.folder, timeout=limit
            )
        except subprocess.TimeoutExpired:
            raise PartFailed(f"{command[0]} took more than {limit:.0f} s") from None
        except FileNotFoundError:
            raise PartFailed(f"{command[0]} is not on the PATH") from None
        (self.folder / f"{name}.log").write_text(f"$ {' '.join(command)}\n{result.stdout}\n{result.stderr}")
        return result

    def build(self) -> list[Row]:
        """Installs the checkout, for this GPU, into DIR/site."""
        if missing := [name for name in (*NEEDED, "cupy") if importlib.util.find_spec(name) is None]:
            names = " ".join({"PIL": "pillow", "cupy": "cupy-cuda13x"}.get(name, name) for name in missing)
            raise PartFailed(
                f"missing Python packages: {', '.join(missing)}; install them, or carry their wheels: {WHEELS.format(names, names)}"
            )
        arch = self.machine["gpu"]["compute_cap"].replace(".", "")
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--no-deps",
            "--upgrade",
            "--target",
            str(self.folder / "site"),
            str(ROOT),
            f"--config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES={arch}",
            "--config-settings=cmake.define.HYPERGRAD_CUDA=ON",
        ]
        if all(importlib.util.find_spec(name) for name in ("scikit_build_core", "pybind11")):
            command.append("--no-build-isolation")  # works without a network
        start = time.perf_counter()
        if self.call("build", command).returncode != 0:
            raise PartFailed(f"the build failed; see {self.folder / 'build.log'}")
        seconds = time.perf_counter() - start
        probe = "from hypergrad.backends.cuda import CUDA; import json; print(json.dumps([CUDA.device_count(), CUDA.build_info()]))"
        result = self.call("probe", [sys.executable, "-c", probe])
        if result.returncode != 0 or json.loads(result.stdout.splitlines()[-1])[0] < 1:
            raise PartFailed(f"the built package finds no GPU; see {self.folder / 'probe.log'}")
        return [{"seconds": seconds, "arch": arch, "build_info": json.loads(result.stdout.splitlines()[-1])[1]}]

    def gpu_tests(self) -> list[Row]:
        """The tests that run on a GPU, alone."""
        return self._tests("gpu-tests", "-k", "gpu and not pretended") if self.cuda else [{"skipped": "these tests need a GPU"}]

    def tests(self) -> list[Row]:
        """The whole test suite but for those tests."""
        return self._tests("tests", *(("-k", "not gpu") if self.cuda and not self.options.tests else ()))

    def _tests(self, name: str, *chosen: str) -> list[Row]:
        paths = [str(Path(path).resolve()) for path in self.options.tests] or [str(ROOT / "tests")]
        spread = ["-n", str(min(8, self.machine["cores"]))] if importlib.util.find_spec("xdist") and self.machine["cores"] > 2 else []
        command = [sys.executable, "-m", "pytest", "-q", "-rfEs", "-p", "no:cacheprovider", *spread, *chosen, *paths]
        start = time.perf_counter()
        result = self.call(name, command)
        counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|skipped|error|errors|deselected)", result.stdout[-300:])}
        row = {"seconds": time.perf_counter() - start, **counts}
        if result.returncode != 0 or not counts.get("passed"):
            raise PartFailed(f"tests are not green; see {self.folder / f'{name}.log'}", [row])
        return [row]

    def sanitizer(self, problem: str, tool: str) -> list[Row]:
        """compute-sanitizer over a small step of a problem, with multiply-adds and on tensor cores, whose loops all run more than once."""
        if not self.cuda:
            return [{"skipped": "compute-sanitizer needs a GPU"}]
        rows = []
        for tf32 in (False, True):
            checked = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
            command = [*checked, sys.executable, str(BENCH / "meta_worker.py"), "hypergrad", problem]
            start = time.perf_counter()
            result = self.call(f"{tool}-{problem}", command, limit=LONGEST / 2, stdin=json.dumps({"do": "once", "tf32": tf32}) + "\n")
            answers = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
            summary = " ".join(re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", result.stdout + result.stderr)) or "none printed"
            row = {"tool": tool, "problem": problem, "tf32": tf32, "status": result.returncode, "summary": summary}
            rows.append({**row, "answer": answers[-1] if answers else {}, "seconds": time.perf_counter() - start})
        if any(row["status"] != 0 or not row["answer"].get("finite") for row in rows):
            raise PartFailed(f"a sanitizer complains, or the step fails under it; see {self.folder}/{tool}-{problem}.log", rows)
        return rows

    def profile(self) -> list[Row]:
        """What ncu says of the hottest kernels, in full in profile-KERNEL.log; a machine may have no ncu, or no right to use it."""
        if not self.cuda or shutil.which("ncu") is None:
            return [{"skipped": "ncu is not on the PATH, or there is no GPU"}]
        rows = []
        for kernel in HOTTEST:
            command = ["ncu", "--set", "full", "--target-processes", "all", "-k", f"regex:{kernel}", "-c", "8"]
            worker = [sys.executable, str(BENCH / "meta_worker.py"), "hypergrad", PROBLEMS[-1]]
            sizes = json.dumps({"do": "prepare", "sizes": dataclasses.asdict(self.sizes), "dtype": "float32", "tf32": False})
            result = self.call(f"profile-{kernel}", [*command, *worker], limit=LONGEST / len(HOTTEST), stdin=sizes + "\n")
            found = re.findall(r"^\s*(Duration|Registers Per Thread|Achieved Occupancy)\s+\S+\s+([\d.,]+)", result.stdout, re.MULTILINE)
            rows.append({"kernel": kernel, "status": result.returncode, **{name: value for name, value in reversed(found)}})
        return rows

    def ceilings(self) -> list[Row]:
        """Copy, multiply-add and tf32 rates of this GPU."""
        if not self.cuda:
            return [{"skipped": "ceilings are a GPU's"}]
        program = self.folder / "ceilings"
        arch = self.machine["gpu"]["compute_cap"].replace(".", "")
        compile_it = ["nvcc", "-O3", "-std=c++17", f"-arch=sm_{arch}", str(BENCH / "ceilings.cu"), "-o", str(program)]
        if self.call("ceilings-build", compile_it).returncode != 0:
            raise PartFailed(f"ceilings.cu does not compile; see {self.folder / 'ceilings-build.log'}")
        result = self.call("ceilings-run", [str(program)], limit=120)
        if result.returncode != 0:
            raise PartFailed(f"ceilings failed: {result.stderr.strip()}")
        return [json.loads(result.stdout)]

    def kernels(self) -> list[Row]:
        """Every kernel's time and floor."""
        command = [sys.executable, str(BENCH / "kernel_times.py"), "--device", self.options.device, "--sizes", self.options.sizes]
        if self.cuda:
            measured = self.folder / "ceilings.json"
            part = json.loads(measured.read_text()) if measured.exists() else {}
            if part.get("status") != "done":
                raise PartFailed("there are no ceilings yet; run that part first")
            rates = self.folder / "rates.json"
            rates.write_text(json.dumps(part["rows"][0]))
            command += ["--ceilings", str(rates)]
        result = self.call("kernels", command, limit=600)
        rows = [json.loads(line) for line in result.stdout.splitlines()]
        if result.returncode != 0:
            raise PartFailed(f"not all kernels ran; see {self.folder / 'kernels.log'}", rows)
        return rows

    def meta(self, problem: str, precision: str) -> list[Row]:
        """hypergrad and its peers on one meta-step."""
        variants = variants_of(problem, self.options.device)
        if self.options.variants:
            variants = [name for name in variants if name in self.options.variants]
        with self.console.status(problem) as status:
            compared = Comparison(
                problem,
                self.sizes,
                self.options.device,
                precision == "tf32",
                self.folder / "workers",
                self.environment,
                self.options.limit,
                status.update,
            )
            try:
                rows = compared.measure(variants, ROUNDS, self.options.block)
            except WorkerFailed as error:
                raise PartFailed(f"the reference failed: {error}") from error
        if bad := [row["variant"] for row in rows if row["module"] == "meta_hypergrad" and row["status"] in ("failed", "wrong")]:
            raise PartFailed(f"{' and '.join(bad)} did not work", rows)
        return rows

    def training(self) -> list[Row]:
        """`hypergrad train` on glyphs: seconds of an iteration, and that it learns."""
        rows = []
        for graphs in ("graphs", "no-graphs") if self.cuda else ("graphs",):
            run = self.folder / f"run-{graphs}"
            shutil.rmtree(run, ignore_errors=True)
            command = [
                sys.executable,
                "-m",
                "hypergrad.cli",
                "train",
                "--device",
                "cuda" if self.cuda else "cpu",
                f"--{graphs}",
                "--run-dir",
                str(run),
                *(["--quick"] if self.options.sizes == "tiny" else []),
            ]
            if self.call(f"training-{graphs}", command, limit=600).returncode != 0:
                raise PartFailed(f"training failed; see {self.folder / f'training-{graphs}.log'}", rows)
            result = json.loads((run / "result.json").read_text())
            kept = ("iterations", "iteration_s", "training_s", "command_s", "test_accuracy", "test_interval", "baseline_accuracy")
            rows.append({"graphs": graphs == "graphs", **{name: result[name] for name in kept}})
        return rows

    def parts(self) -> dict[str, Callable[[], list[Row]]]:
        """All parts of this run, in order."""
        out: dict[str, Callable[[], list[Row]]] = {"build": self.build} if self.cuda else {}
        out |= {"ceilings": self.ceilings, "gpu-tests": self.gpu_tests, "kernels": self.kernels, "training": self.training}
        for precision in self.options.precision:
            for problem in PROBLEMS:
                out[f"{problem}-{precision}"] = functools.partial(self.meta, problem, precision)
        out["profile"] = self.profile
        for tool in ("memcheck", "racecheck"):
            for problem in PROBLEMS:
                out[f"{tool}-{problem}"] = functools.partial(self.sanitizer, problem, tool)
        return out | {"tests": self.tests}

    def path_of(self, name: str) -> Path:
        """A part's record; other variants of a meta-step have one of their own."""
        chosen = self.options.variants if name.startswith(PROBLEMS) else None
        own = "" if not chosen else "." + hashlib.sha256(" ".join(sorted(chosen)).encode()).hexdigest()[:8]
        return self.folder / f"{name}{own}.json"

    def pack(self, path: Path) -> None:
        """Writes records, logs and the built package into one archive, from which another machine goes on."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(path.name + ".part")
        with tarfile.open(unfinished, "w:gz") as archive:
            for own in sorted(self.folder.iterdir()):
                if own.suffix in (".json", ".jsonl", ".log") or own.name in ("site", "ceilings"):
                    archive.add(own, own.name)
        unfinished.replace(path)

    def do(self, name: str, part: Callable[[], list[Row]]) -> Row:
        """A part's record: read if it is done, else made and written."""
        path = self.path_of(name)
        chosen = self.options.tests if name == "tests" else self.options.variants if name.startswith(PROBLEMS) else None
        of = {"sources": self.sources, "device": self.machine["device"], "sizes": self.options.sizes, "chosen": chosen or None}
        if path.exists():
            record: Row = json.loads(path.read_text())
            if record["status"] == "done" and of.items() <= record.items():
                self.console.print(f"{name}: done before, on {record['date']}")
                return record
        if time.monotonic() > self.stop:
            self.console.print(f"{name}: left to do, time is up")
            return {"kind": "part", "part": name, **of, "status": "left", "reason": "time is up; run again", "rows": []}
        self.console.print(f"{name} ...")
        start = time.perf_counter()
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = {"kind": "part", "part": name, **of, "commit": self.machine["commit"], "date": now}
        try:
            record |= {"status": "done", "rows": part()}
        except PartFailed as error:
            record |= {"status": "failed", "reason": str(error), "rows": error.rows}
            self.console.print(f"[red]{name} failed:[/] {error}", soft_wrap=True)
        record["seconds"] = time.perf_counter() - start
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(record, indent=1) + "\n")
        unfinished.replace(path)
        return record


def main(arguments: list[str] | None = None) -> int:
    """Run the parts that are not done, print and write everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results and logs; parts done there are skipped")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--sizes", choices=("full", "tiny"), default="full", help="of kernels and meta-steps")
    parser.add_argument("--precision", nargs="+", choices=("float32", "tf32"), default=["float32"], help="of the meta-steps")
    parser.add_argument("--only", nargs="+", metavar="PART", help="parts to run (default: all)")
    parser.add_argument("--variants", nargs="+", choices=MODULE, help="variants of the meta-steps (default: all)")
    parser.add_argument("--tests", nargs="+", default=[], metavar="PATH", help="tests to run (default: the whole suite)")
    parser.add_argument("--limit", type=float, default=150.0, help="seconds for a variant to compile and run once (default: 150)")
    parser.add_argument("--block", type=float, default=0.3, help="seconds of a timed block (default: 0.3)")
    parser.add_argument("--minutes", type=float, default=1440.0, help="no part begins after so many minutes (default: a day)")
    parser.add_argument(
        "--archive", type=Path, metavar="FILE", help="an archive to go on from, where there is one, and to write at the end"
    )
    options = parser.parse_args(arguments)
    console = Console()
    console.width = max(console.width, 150)
    if options.device == "cuda" and shutil.which("nvcc") is None:
        raise SystemExit("gpu: nvcc is not on the PATH, expected it because kernels are built here; install the CUDA toolkit")
    run = Run(options, console)
    parts = run.parts()
    if unknown := set(options.only or ()) - parts.keys():
        raise SystemExit(f"gpu: unknown parts {', '.join(sorted(unknown))}, expected some of {', '.join(parts)}")
    records = [run.do(name, part) for name, part in parts.items() if not options.only or name in options.only]
    gpu_report.show(records, run.machine, console)
    gpu_report.write(run.folder, list(parts), run.machine)
    if options.archive is not None:
        run.pack(options.archive)
    console.print(f"written: {run.folder / 'gpu.jsonl'}", soft_wrap=True)
    return 1 if any(record["status"] != "done" for record in records) else 0


if __name__ == "__main__":
    raise SystemExit(main())
