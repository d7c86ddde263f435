"""Tables of what gpu.py and peers.py measured, and gpu.py's file of JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

Row = dict[str, Any]
MODEL = Path(__file__).resolve().parent / "results" / "cuda_model.json"


def number(value: float | None, scale: float, digits: str) -> str:
    """A scaled number, or a dash."""
    return "-" if value is None else f"{value * scale:{digits}}"


def show(records: list[Row], machine: Row, console: Console) -> None:
    """One table a part."""
    console.print(f"{machine['device']}, {machine.get('gpu', {}).get('driver_version', 'no driver')}, commit {machine['commit'][:12]}")
    for record in records:
        name, rows = record["part"], record["rows"]
        if record["status"] != "done":
            console.print(f"[red]{name}: {record['reason']}[/]", soft_wrap=True)
        if name == "kernels":
            console.print(kernels(rows))
        elif rows and "variant" in rows[0]:
            console.print(meta_steps(name, rows))
            for line in [*verdicts(rows), *beside_the_model(name, rows, machine)]:
                console.print(line, soft_wrap=True)
        else:
            for row in rows:
                said = ", ".join(f"{key} {plain(value)}" for key, value in row.items())
                console.print(f"{name}: {said}", soft_wrap=True, highlight=False, markup=False)


def plain(value: Any) -> str:
    """A value in a line of text."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def size(dims: dict[str, Any]) -> str:
    """The axes that differ between the sizes of one family."""
    return " ".join(f"{axis}{dims[axis]}" for axis in "ENHCMDKn" if axis in dims)


def kernels(rows: list[Row]) -> Table:
    """Every kernel's time and floor."""
    table = Table(title="kernels; floor: the longer of operations / FFMA rate and bytes / copy rate", title_justify="left")
    for heading in ("kernel", "precision", "size", "µs", "floor µs", "bound by", "of floor", "TFLOP/s", "of FFMA", "TB/s"):
        table.add_column(heading, justify="left" if heading in ("kernel", "precision") else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["kernel"],
            row["precision"],
            size(row["dims"]),
            number(row["seconds"], 1e6, ".1f"),
            number(row.get("floor"), 1e6, ".1f"),
            row.get("bound", "-"),
            number(row.get("of_floor"), 1, ".0%"),
            number(row["flop_per_second"], 1e-12, ".2f"),
            number(row.get("of_ffma"), 1, ".0%"),
            number(row["bytes_per_second"], 1e-12, ".2f"),
        )
    return table


def meta_steps(title: str, rows: list[Row]) -> Table:
    """Variants by their time; with the growth of resident memory where it was measured."""
    resident = any("resident_bytes" in row for row in rows)
    table = Table(title=f"{title}: one hypergradient, median of turns", title_justify="left")
    headings = ("variant", "ms", "of the first", "peak MB", *(["resident MB"] if resident else []), "gradient off", "first step s", "")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("variant", "") else "right", overflow="fold")
    timed = sorted((row for row in rows if row["status"] == "timed"), key=lambda row: float(row["seconds"]))
    for row in timed:
        table.add_row(
            row["variant"],
            number(row["seconds"], 1e3, ".3f"),
            number(row["seconds"] / timed[0]["seconds"], 1, ".2f"),
            number(row["peak_bytes"], 1e-6, ".1f"),
            *([number(row.get("resident_bytes"), 1e-6, ".1f")] if resident else []),
            number(row["difference"], 1, ".1e"),
            number(row["first_seconds"], 1, ".1f"),
            "",
        )
    for row in rows:
        if row["status"] != "timed":
            off = number(row.get("difference", row.get("float64_difference")), 1, ".1e")
            first = number(row.get("first_seconds"), 1, ".1f")
            said = escape(f"{row['status']}: {row['reason'][:160]}")
            table.add_row(row["variant"], *["-"] * (4 if resident else 3), off, first, said)
    return table


def verdicts(rows: list[Row]) -> list[str]:
    """hypergrad's fastest variant against the fastest peer, eager torch, and the peer that needs least memory."""
    timed = [row for row in rows if row["status"] == "timed"]
    ours, peers = ([row for row in timed if (row["module"] == "meta_hypergrad") == mine] for mine in (True, False))
    if not ours or not peers:
        return ["no comparison: hypergrad or every peer is missing"]
    best, rival = (min(group, key=lambda row: float(row["seconds"])) for group in (ours, peers))
    lines = [
        f"{best['variant']} takes {best['seconds'] * 1e3:.3g} ms and is {rival['seconds'] / best['seconds']:.2f} times as fast as the "
        f"fastest peer, {rival['variant']}"
    ]
    lines += [f"{row['seconds'] / best['seconds']:.2f} times as fast as eager torch" for row in peers if row["variant"] == "torch"]
    key, what = ("resident_bytes", "growth of resident memory") if best.get("resident_bytes") else ("peak_bytes", "peak memory")
    counted = [row for row in peers if row.get(key)]
    if counted and best.get(key):
        least = min(counted, key=lambda row: int(row[key]))
        share = best[key] / least[key]
        lines.append(f"{what} {best[key] / 1e6:.1f} MB, {share:.2f} of the least of the peers, {least['variant']}'s")
    return lines


def beside_the_model(name: str, rows: list[Row], machine: Row) -> list[str]:
    """The time that bench/cuda_model.py has predicted for this GPU beside the one measured."""
    predicted = predictions(machine.get("gpu", {}).get("name", "")).get(name.removesuffix("-float32"))
    measured = [row["seconds"] for row in rows if row["variant"] == "hypergrad captured" and row["status"] == "timed"]
    if predicted is None or not measured:
        return []
    of_model = predicted["seconds"]
    return [f"captured: {measured[0] * 1e3:.3g} ms measured, {of_model * 1e3:.3g} ms predicted for {predicted['nodes']} nodes of the graph"]


def predictions(gpu: str) -> dict[str, Any]:
    """The checked-in predictions by problem, for a GPU as its driver names it; none for one that has none."""
    table: dict[str, Any] = json.loads(MODEL.read_text()) if MODEL.exists() else {}
    return next((of_gpu for name, of_gpu in table.items() if name in gpu), {})


def write(folder: Path, parts: list[str], machine: Row) -> None:
    """gpu.jsonl: the machine, then a line for each row of every part in the folder."""
    lines: list[Row] = [machine]
    for name in parts:
        for path in sorted(folder.glob(f"{name}.json")) + sorted(folder.glob(f"{name}.????????.json")):
            record = json.loads(path.read_text())
            rows = record.pop("rows")
            lines += [record, *({"kind": "row", "part": name, **row} for row in rows)]
    (folder / "gpu.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
