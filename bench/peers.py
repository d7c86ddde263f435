"""hypergrad beside PyTorch, higher, TorchOpt, learn2learn, hypertorch and JAX on the CPU: time and memory of six kinds of hypergradient.

    python bench/peers.py                               # all that is installed, 7 rounds: hours
    python bench/peers.py --quick                       # tiny sizes and fewer variants, to see that it runs: under 2 minutes
    python bench/peers.py --only W1 W3-100 --variants "hypergrad host" torch

W1 is hyper-representation, W2 second-order MAML, on images as large as MiniImagenet's or, with an "o", Omniglot's. W3 is
hyper-cleaning, W4 three scalars of a network; see meta_problems.py and run_problems.py. Every variant has a process of its own
with the same arrays, threads and cores. Its gradient is compared with float64's before the variants take turns. "resident"
is the growth of the process in the first step after a tiny one; torch.compile compiles in it, which takes minutes, JAX
before it. "peak" is what a library counts.

A case that runs again replaces its lines in OUT/peers-cpu.jsonl; the others stay, each with the machine and versions it was
measured with. Libraries that are not installed are skipped. hypertorch has no distribution and learn2learn's builds on few
versions of Python: both run from a clone. Exit status 1 if hypergrad did not work.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import gpu_report
from common import HERE, environment, write_lines
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from meta_problems import TINY, Sizes
from meta_times import Comparison, WorkerFailed
from meta_worker import MODULE, VARIANTS, variants_of
from rich.console import Console
from run_problems import TINY_RUN, RunSizes

import hypergrad as hg

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A problem at a size, and in --quick at a tiny one; `exact` steps suffice to compare in float64, where all are too large."""

    problem: str
    sizes: Sizes | RunSizes
    quick: Sizes | RunSizes | None = None
    exact: int | None = None


SMALL = Sizes(side=28, channels=1, filters=64)  # Omniglot's
NETWORK = RunSizes(examples=2048)
CASES = {
    "W1": Case("hyper-representation", Sizes(), TINY),
    "W1o-5w1s": Case("hyper-representation", SMALL),
    "W1o-20w5s": Case("hyper-representation", replace(SMALL, ways=20, shots=5)),
    "W2": Case("maml", Sizes(), TINY),
    "W2o-4": Case("maml", SMALL),
    "W2o-32": Case("maml", replace(SMALL, episodes=32)),
    "W3-100": Case("hyper-cleaning", RunSizes(steps=100), TINY_RUN),
    "W3-1000": Case("hyper-cleaning", RunSizes(steps=1000), exact=100),
    "W4-200": Case("three-scalars", replace(NETWORK, steps=200), TINY_RUN),
    "W4-1000": Case("three-scalars", replace(NETWORK, steps=1000), exact=100),
}
QUICK = ("hypergrad host", "hypergrad host sqrt", "hypergrad host forward", "torch", "torch.func jacfwd")
QUICK += ("higher", "TorchOpt", "learn2learn", "hypertorch", "jax scan", "jax scan jacfwd")
# glibc keeps what is freed: no block is mapped by itself, and the top of the heap is never handed back.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**35), "MALLOC_TOP_PAD_": str(2**26)}
PACKAGES = {"peers_torch": "torch", "peers_jax": "jax", "peers_higher": "higher", "peers_torchopt": "torchopt"}
CLONES = {"peers_learn2learn": ("learn2learn", "learn2learn/algorithms"), "peers_hypertorch": ("hypertorch", "hypergrad")}
COLOURS = dict(zip(VARIANTS, ("black", "C3", "C1", "C4", "C5", "C2", "C0"), strict=True))
MARKERS = "os^DvPX*"


class Libraries:
    """Which of them are there, and what their processes need."""

    def __init__(self, clones: dict[str, Path | None], threads: int) -> None:
        self.clones = {module: clones[name] for module, (name, _) in CLONES.items()}
        count = str(threads)
        names = ("HYPERGRAD_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BENCH_THREADS")
        self.threads = dict.fromkeys(names, count)
        self.path = os.pathsep.join(filter(None, (str(Path(hg.__file__).parents[1]), os.environ.get("PYTHONPATH", ""))))
        self.environment = {**os.environ, **self.threads, "PYTHONPATH": self.path, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
        self.missing = {module: reason for module in VARIANTS if (reason := self._missing(module))}

    def _missing(self, module: str) -> str | None:
        """Why a module's library is not there."""
        if module in PACKAGES:
            return None if importlib.util.find_spec(PACKAGES[module]) else f"{PACKAGES[module]} is not installed"
        if module not in CLONES:
            return None
        (name, folder), clone = CLONES[module], self.clones[module]
        if clone is not None and not (clone / folder).is_dir():
            raise SystemExit(f"peers: {clone} has no folder {folder}, expected a clone of {name}; pass another one by --{name}")
        if clone is None and (name == "hypertorch" or importlib.util.find_spec(name) is None):
            return f"{name} is not there; pass the folder of a clone by --{name}"
        return None

    def own(self, variant: str) -> dict[str, str]:
        """What is in the environment of this variant only."""
        clone = self.clones.get(MODULE[variant])
        path = {"PYTHONPATH": os.pathsep.join((str(clone), self.path))} if clone else {}
        return path | (ALLOCATOR if variant.endswith("tuned allocator") else {})

    def versions(self) -> dict[str, str]:
        """Of those that are installed."""
        found = {}
        for name in (*PACKAGES.values(), "jaxlib", "learn2learn"):
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        return found | {CLONES[module][0]: _head(clone) for module, clone in self.clones.items() if clone}


def _head(clone: Path) -> str:
    """The commit of a clone, where its HEAD says so in a file."""
    try:
        head = (clone / ".git/HEAD").read_text().strip()
        return (clone / ".git" / head.removeprefix("ref: ")).read_text().strip() if head.startswith("ref: ") else head
    except OSError:
        return "clone of an unknown commit"


def measure(
    name: str, sizes: Sizes | RunSizes, variants: list[str], libraries: Libraries, options: argparse.Namespace, console: Console
) -> list[Row]:
    """The rows of a case. Raises: WorkerFailed where the reference fails."""
    exact = replace(sizes, steps=CASES[name].exact) if CASES[name].exact and not options.quick else None
    with console.status(name) as status:
        compared = Comparison(
            CASES[name].problem,
            sizes,
            "cpu",
            False,
            options.out.resolve() / "peers-logs" / name,
            libraries.environment,
            options.limit,
            lambda text: status.update(f"{name}, {text}"),
            exact=exact,
            own={variant: libraries.own(variant) for variant in variants},
        )
        return compared.measure(variants, options.rounds, options.block)


def earlier(path: Path, done: Iterable[str]) -> list[Row]:
    """Lines of the other cases of a file."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in lines if line["case"] not in done]


def plot(lines: list[Row], path: Path) -> None:
    """Growth of resident memory against seconds, a panel for each case."""
    timed = [line for line in lines if line["kind"] == "row" and line["status"] == "timed"]
    cases = [name for name in CASES if any(row["case"] == name for row in timed)]
    if not cases:
        return
    columns = min(5, len(cases))
    n_rows = -(-len(cases) // columns)
    figure = Figure(figsize=(1.0 + 3.2 * columns, 1.8 + 3.0 * n_rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(n_rows, columns, squeeze=False).flat)
    handles: dict[str, Any] = {}
    for axis, case in zip(axes, cases, strict=False):
        for row in (row for row in timed if row["case"] == case):
            module, variant = row["module"], row["variant"]
            marker = MARKERS[VARIANTS[module].index(variant) % len(MARKERS)]
            (handles[variant],) = axis.loglog(
                row["seconds"], max(row["resident_bytes"], 1e5) * 1e-6, marker, color=COLOURS[module], markersize=7, linestyle="none"
            )
        axis.set_title(case, fontsize=10)
        axis.set(xlabel="seconds", ylabel="growth of resident memory, MB")
        axis.grid(True, which="both", alpha=0.25)
        for scale in (axis.xaxis, axis.yaxis):
            scale.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            scale.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            scale.set_minor_formatter(NullFormatter())
        axis.tick_params(labelsize=7)
    for axis in axes[len(cases) :]:
        axis.remove()
    figure.legend(
        [handles[k] for k in MODULE if k in handles], [k for k in MODULE if k in handles], loc="outside lower center", ncols=columns + 1
    )
    figure.suptitle("One hypergradient: time and memory")
    figure.savefig(path, dpi=130)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options; --quick changes the defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one case a problem, one variant a library and mode")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", help=f"cases to run: {', '.join(CASES)}")
    parser.add_argument("--variants", nargs="+", choices=MODULE, metavar="VARIANT", help=f"variants to run: {', '.join(MODULE)}")
    parser.add_argument("--rounds", type=int, help="timed blocks of every variant, in turns (default: 7; quick: 2)")
    parser.add_argument("--block", type=float, help="seconds of a timed block (default: 0.5; quick: 0.01)")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for a variant to compile and run once (default: 300)")
    parser.add_argument("--threads", type=int, default=2, help="threads of every variant, and cores that it may use (default: 2)")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for the results (default: bench/results)")
    parser.add_argument("--hypertorch", type=Path, metavar="DIR", help="a clone of github.com/prolearner/hypertorch")
    parser.add_argument("--learn2learn", type=Path, metavar="DIR", help="a clone of github.com/learnables/learn2learn")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (2 if options.quick else 7)
    options.block = options.block or (0.01 if options.quick else 0.5)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write peers-cpu.jsonl and .png, after each case."""
    options, console = parse(arguments), Console()
    console.width = max(console.width, 150)
    clones = {name: clone and clone.resolve() for name, clone in (("hypertorch", options.hypertorch), ("learn2learn", options.learn2learn))}
    libraries = Libraries(clones, options.threads)
    wanted = options.variants or (QUICK if options.quick else tuple(MODULE))
    for module, reason in libraries.missing.items():
        if any(name in wanted for name in VARIANTS[module]):
            console.print(f"skipped: {', '.join(VARIANTS[module])}: {reason}", soft_wrap=True)
    path = options.out / f"peers{'-quick' if options.quick else ''}-cpu.jsonl"
    settings = {"threads": libraries.threads, "dtype": "float32", "rounds": options.rounds, "block": options.block}
    worked = True
    for name, case in CASES.items():
        if name not in (options.only or CASES) or (options.quick and case.quick is None):
            continue
        sizes = (case.quick or case.sizes) if options.quick else case.sizes
        variants = [k for k in variants_of(case.problem, "cpu") if k in wanted and MODULE[k] not in libraries.missing]
        head = environment()
        head["versions"] |= libraries.versions()
        lines: list[Row] = [{**head, **settings, "kind": "case", "case": name, "problem": case.problem, "sizes": asdict(sizes)}]
        lines += [{"kind": "skipped", "case": name, "module": module, "reason": reason} for module, reason in libraries.missing.items()]
        try:
            rows = measure(name, sizes, variants, libraries, options, console)
        except WorkerFailed as error:
            console.print(f"[red]{name}: the reference failed:[/] {error}", soft_wrap=True)
            worked = False
            continue
        said = gpu_report.verdicts(rows)
        lines += [{"kind": "row", "case": name, **row} for row in rows]
        lines += [{"kind": "verdict", "case": name, "text": text} for text in said]
        console.print(gpu_report.meta_steps(name, rows))
        for text in said:
            console.print(text, soft_wrap=True)
        worked &= all(row["status"] == "timed" for row in rows if row["module"] == "meta_hypergrad")
        lines = sorted([*earlier(path, [name]), *lines], key=lambda line: list(CASES).index(line["case"]))
        write_lines(path, lines)
        plot(lines, path.with_suffix(".png"))
    console.print(f"written: {path} and {path.with_suffix('.png').name}", soft_wrap=True)
    return 0 if worked else 1


if __name__ == "__main__":
    raise SystemExit(main())
