"""Registers, spills, shared and constant memory of every CUDA kernel, and its machine code, against a checked-in table.

    python bench/cuda_resources.py                 # sm_75 80 86 90 100 120 and PTX: about two minutes on one core
    python bench/cuda_resources.py --arch 90       # one of them: 20 seconds
    python bench/cuda_resources.py --update        # writes bench/results/cuda_resources.json
    pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm     # optional: machine code is then checked, too

Needs nvcc and a C++ compiler, no GPU. A kernel that spills more than the table says, takes more than 8 more registers or
more shared memory, whose inner loop holds a smaller share of multiply-adds, that touches local memory, or that is on one
side only is an error, told by name. So is a spill for which the table's "why" has no reason. Exit status: 0 no
regressions, 1 regressions, 2 nothing could be measured.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import sass
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "bench" / "results" / "cuda_resources.json"
ARCHITECTURES = ("75", "80", "86", "90", "100", "120")
FLAGS = ("-std=c++17", "-O3", "-DNDEBUG")  # those of the build
REGISTER_SLACK = 8  # registers are allocated by eights
SHARE_SLACK = 0.03  # of the inner loop's instructions
# What an inner loop must be made of, whatever the table says: (start of the kernel's name, least share, unit of the multiply-adds, whether
# the kernel must load 16 bytes at a time: not where images have three channels or neighbouring lanes load neighbouring channels).
# A product of tensor cores takes as long as 4 to 8 other instructions. sm_75 has none in tf32: there those kernels are never launched.
INNER_LOOPS = (
    ("conv3x3<float, true", 0.8, "FFMA", True),  # small tiles: fewer products for each load
    ("conv3x3<float", 0.85, "FFMA", True),
    ("conv3x3<double", 0.75, "DFMA", True),
    ("wgrad3x3<float", 0.6, "FFMA", True),
    ("wgrad3x3<double", 0.55, "DFMA", True),
    ("winograd3x3<", 0.8, "FFMA", True),
    ("winograd_wgrad3x3<", 0.8, "FFMA", False),
    ("patch_products<float, 3>", 0.8, "FFMA", False),
    ("mma3x3<", 0.3, "HMMA", True),
    ("mma_wgrad3x3<", 0.3, "HMMA", True),
)
WITHOUT_TF32 = ("sm_75",)
NEVER_MORE = {
    "spill_stores": "bytes of spill stores",
    "spill_loads": "bytes of spill loads",
    "stack": "bytes of stack",
    "shared": "bytes of static shared memory",
    "constant": "bytes of constant memory",
    "local": "accesses to local memory",
}
Figures = dict[str, Any]
Kernels = dict[str, Figures]


def parse_ptxas(text: str) -> Kernels:
    """The figures of every kernel in the output of `nvcc -Xptxas -v`, by mangled name.

    `constant` is None where ptxas does not tell it, which depends on the architecture.
    """
    found: Kernels = {}
    name = ""
    for line in text.splitlines():
        if entry := re.search(r"Compiling entry function '(\S+)' for 'sm_", line):
            name = entry[1]
            found[name] = {}
        elif properties := re.search(r"Function properties for (\S+)", line):
            name = properties[1]
        elif name not in found:
            continue  # a device function: what it takes is counted in the kernels that call it
        elif frame := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            found[name].update(zip(("stack", "spill_stores", "spill_loads"), map(int, frame.groups()), strict=True))
        elif used := re.search(r"Used (\d+) registers", line):
            constants = re.findall(r"(\d+) bytes cmem\[\d+\]", line)
            found[name].update(
                registers=int(used[1]),
                constant=sum(map(int, constants)) if constants else None,
                shared=sum(map(int, re.findall(r"(\d+)(?:\+\d+)? bytes smem", line))),
            )
    if incomplete := [name for name, figures in found.items() if not {"stack", "registers"} <= figures.keys()]:
        raise ValueError(f"parse_ptxas: no figures for {', '.join(incomplete)}, expected them because ptxas was asked with -v")
    return found


def readable(mangled: Iterable[str]) -> dict[str, str]:
    """`conv3x3<float, Images<float>, Store<float>>` for a mangled name: no namespaces, no arguments."""
    names = list(mangled)
    if not names:
        return {}
    plain = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True).stdout.splitlines()
    return {name: _short(text) for name, text in zip(names, plain, strict=True)}


def _short(text: str) -> str:
    text = re.sub(r"\(anonymous namespace\)::|\b(?:hg|cuda|hypergrad|\w*_GLOBAL__N_\w*)::", "", text).removeprefix("void ")
    text = re.sub(r"\((?:int|unsigned|unsigned int|long|bool|Precision)\)", "", text).replace("> >", ">>")
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            return text[:i]
    return text


def measure(source: Path, arch: str, cuobjdump: str | None) -> Kernels:
    """The figures of every kernel of one source, by readable name; SystemExit with nvcc's message if it does not compile."""
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernels.fatbin"
        command = [
            "nvcc",
            *FLAGS,
            f"-gencode=arch=compute_{arch},code=[sm_{arch},compute_{arch}]",
            "-Xptxas",
            "-v",
            "-fatbin",
            str(source),
            "-o",
            str(binary),
        ]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise SystemExit(f"{source.name} does not compile for sm_{arch}:\n{result.stderr}")
        found = parse_ptxas(result.stderr)
        code = sass.read(sass.disassemble(cuobjdump, binary)) if cuobjdump and found else {}
    for name, figures in found.items():
        if name in code:
            c = code[name]
            figures.update(unit=c.unit, share=round(c.share, 2), wide_loads=c.wide_loads, local=c.local)
    names = readable(found)
    return {f"{source.stem}: {names[name]}": figures for name, figures in found.items()}


def kernels_of(architectures: Iterable[str], cuobjdump: str | None, console: Console) -> dict[str, Kernels]:
    """The figures of all kernels, by architecture and name."""
    jobs = [(source, arch) for arch in architectures for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu"))]
    out: dict[str, Kernels] = {f"sm_{arch}": {} for _, arch in jobs}
    with ThreadPoolExecutor(2) as pool, Progress(console=console, transient=True) as progress:
        task = progress.add_task("compiling", total=len(jobs))
        for (_, arch), kernels in zip(jobs, pool.map(lambda job: measure(job[0], job[1], cuobjdump), jobs), strict=True):
            out[f"sm_{arch}"].update(kernels)
            progress.advance(task)
    return {arch: dict(sorted(kernels.items())) for arch, kernels in out.items()}


def compare(measured: Mapping[str, Figures], known: Mapping[str, Figures], why: Mapping[str, str], arch: str) -> list[str]:
    """What is worse than the table or unexplained, a line per kernel and figure.

    Args:
        measured, known: figures by kernel, of one architecture.
        why: kernel (as in the table) -> reason for its spills.
        arch: the architecture.
    """
    worse = [f"{name}: new, not in the table; look at its figures and run with --update" for name in sorted(measured.keys() - known.keys())]
    worse += [
        f"{name}: in the table, but not compiled; run with --update if it is gone for good"
        for name in sorted(known.keys() - measured.keys())
    ]
    for name in sorted(measured.keys() & known.keys()):
        new, old = measured[name], known[name]
        if new["registers"] > old["registers"] + REGISTER_SLACK:
            worse.append(f"{name}: {new['registers']} registers, expected at most {old['registers']} + {REGISTER_SLACK}")
        for key, what in NEVER_MORE.items():
            if new.get(key) is not None and old.get(key) is not None and new[key] > old[key]:
                worse.append(f"{name}: {new[key]} {what}, expected at most {old[key]}")
        if "share" in new and "share" in old and new["share"] < old["share"] - SHARE_SLACK:
            worse.append(f"{name}: {new['share']:.0%} of the inner loop are multiply-adds, expected {old['share']:.0%} - {SHARE_SLACK:.0%}")
        if new.get("wide_loads") == 0 and old.get("wide_loads", 0) > 0:
            worse.append(f"{name}: no 16-byte global loads, expected some as before")
    return worse + unexplained(measured, why, arch)


def unexplained(measured: Mapping[str, Figures], why: Mapping[str, str], arch: str) -> list[str]:
    """Kernels that spill for no stated reason, and inner loops below what INNER_LOOPS asks for."""
    out = []
    for name, figures in measured.items():
        if figures["spill_stores"] + figures["spill_loads"] + figures.get("local", 0) > 0 and name not in why:
            out.append(f'{name}: spills, and the table\'s "why" gives no reason; remove the spill, or state why it does no harm')
        for _, least, unit, wide in [own for own in INNER_LOOPS if name.partition(": ")[2].startswith(own[0])][:1]:
            if "share" in figures and not (unit == "HMMA" and arch in WITHOUT_TF32):
                if not figures["unit"].startswith(unit):
                    out.append(f"{name}: the inner loop is made of {figures['unit'] or 'no multiply-adds'}, expected {unit}")
                if figures["share"] < least:
                    out.append(f"{name}: {figures['share']:.0%} of the inner loop are multiply-adds, expected at least {least:.0%}")
                if wide and figures["wide_loads"] == 0:
                    out.append(f"{name}: no 16-byte global loads, expected some because pixels hold whole quads of channels")
    return out


def show(arch: str, kernels: Mapping[str, Figures], console: Console) -> None:
    """One architecture's table."""
    table = Table(title=f"{arch}: registers, bytes, and what the machine code holds", title_justify="left")
    table.add_column("kernel", overflow="fold")
    for heading in ("regs", "stack", "spill st/ld", "shared", "const", "inner loop", "16 B loads", "local"):
        table.add_column(heading, justify="right", no_wrap=True)
    source = ""
    for name, f in kernels.items():
        stem, _, kernel = name.partition(": ")
        if stem != source:
            source = stem
            table.add_section()
            table.add_row(f"[bold]{stem}.cu[/]")
        spills = f["spill_stores"] + f["spill_loads"]
        code = [f"{f['share']:.0%} {f['unit']}" if f["unit"] else "-", str(f["wide_loads"]), str(f["local"])] if "share" in f else ["-"] * 3
        table.add_row(
            kernel,
            str(f["registers"]),
            str(f["stack"]),
            f"[red]{f['spill_stores']}/{f['spill_loads']}[/]" if spills else "0",
            str(f["shared"]),
            "-" if f["constant"] is None else str(f["constant"]),
            *code,
        )
    console.print(table)


def text_of(table: Mapping[str, Any]) -> str:
    """The table as JSON, a line for each kernel."""

    def lines(entries: Mapping[str, Any], indent: str) -> str:
        return ",\n".join(f"{indent}{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items())

    of_arch = ",\n".join(f"  {json.dumps(arch)}: {{\n{lines(kernels, '   ')}\n  }}" for arch, kernels in table["kernels"].items())
    return f'{{\n "nvcc": {json.dumps(table["nvcc"])},\n "why": {{\n{lines(table["why"], "  ")}\n }},\n "kernels": {{\n{of_arch}\n }}\n}}\n'


def nvcc_release() -> str:
    """Such as 13.0."""
    text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release ([\d.]+)", text)
    return found[1] if found else "unknown"


def main(arguments: list[str] | None = None) -> int:
    """Compile, print, compare or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES), help="architectures (default: all)")
    parser.add_argument("--update", action="store_true", help="write the table; figures of other architectures stay")
    parser.add_argument("--table", type=Path, default=TABLE, help="the table (default: bench/results/cuda_resources.json)")
    options = parser.parse_args(arguments)
    console = Console(width=150, stderr=False)
    if missing := [tool for tool in ("nvcc", "c++filt") if shutil.which(tool) is None]:
        console.print(
            f"cuda_resources: {' and '.join(missing)} not found, expected on the PATH because kernels are compiled; install the "
            "CUDA toolkit and binutils"
        )
        return 2
    cuobjdump = sass.find_cuobjdump()
    measured = kernels_of(options.arch, cuobjdump, console)
    for arch, kernels in measured.items():
        show(arch, kernels, console)
    if cuobjdump is None:
        console.print("[yellow]machine code not checked: cuobjdump not found; pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm[/]")
    release = nvcc_release()
    table: dict[str, Any] = json.loads(options.table.read_text()) if options.table.exists() else {"nvcc": release, "why": {}, "kernels": {}}
    if options.update:
        if cuobjdump is None:
            console.print("cuda_resources: table not written: without cuobjdump it would lose what the machine code holds")
            return 2
        kernels = {**table["kernels"], **measured}
        known = {name for of_arch in kernels.values() for name in of_arch}
        table = {"nvcc": release, "why": {name: why for name, why in table["why"].items() if name in known}, "kernels": kernels}
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(text_of(table))
        console.print(f"written: {options.table}")
        worse = [f"{arch}: {line}" for arch, found in measured.items() for line in unexplained(found, table["why"], arch)]
    elif table["nvcc"] != release:
        console.print(f"[yellow]not compared: the table is of nvcc {table['nvcc']}, this is {release}, whose code differs[/]")
        worse = []
    else:
        worse = [
            f"{arch}: {line}"
            for arch, found in measured.items()
            for line in compare(found, table["kernels"].get(arch, {}), table["why"], arch)
        ]
    for line in worse:
        console.print(f"[red]WORSE[/] {line}", soft_wrap=True, highlight=False)
    console.print(f"{len(worse)} regressions" if worse else "no regressions")
    return 1 if worse else 0


if __name__ == "__main__":
    raise SystemExit(main())
