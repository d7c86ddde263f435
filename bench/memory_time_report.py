"""The part of bench/README.md that memory_time.py fills in, from the lines of its result file."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
BEGIN, END = "<!-- memory_time.py writes what follows -->", "<!-- memory_time.py wrote what is above -->"


def section(lines: Sequence[Row], labels: dict[str, str], file: str) -> str:
    """The text. Args: lines: of the result file; labels: of the modes; file: its place, for the reader."""
    head = lines[0]
    rows = [r for r in lines if r["kind"] == "row"]
    cells = _cells(rows)
    own = [[label, *(_cell(rows, m, c) for c in cells.values()), *_ratios(rows, m)] for m, label in labels.items()]
    peers = {r["mode"]: None for r in lines if r["kind"] == "peer"}
    others = [[m, *(_cell([r for r in lines if r["kind"] == "peer"], m, c) for c in cells.values()), "", ""] for m in peers]
    threads = ", ".join(f"{k}={v}" for k, v in head["threads"].items())
    return "\n".join(
        [
            f"{head['device']}, {head['cores']} cores, {threads or 'threads as the libraries choose'}, commit `{head['commit'][:12]}`, "
            f"{head['date'][:10]}",
            f"(`{file}`, medians of {head['repeats']}, {head['data']} images, {head['dtype']}, minibatches of {head['batch']}):",
            "",
            *_table(["", *cells, "seconds, measured / planned", "bytes, measured / planned"], [*own, *others]),
            "",
            "A cell has the seconds and the peak of memory. The last two columns have the median and the range over all cells of the file.",
            *_not_run(rows, labels),
            "",
            *_rfho(lines),
        ]
    )


def _cells(rows: list[Row]) -> dict[str, tuple[int, int, int]]:
    """Sizes (T, N, W) to show, by their names: the point that the sweeps share, and the largest of each."""
    sizes = {s: [(r["n_steps"], r["n_hparams"], r["n_weights"]) for r in rows if r["sweep"] == s] for s in ("T", "N", "W", "N and W")}
    middle = min(sizes["N"])[0], min(sizes["T"])[1], min(sizes["T"])[2]
    found = {f"T = {middle[0]:,}, N = {middle[1]:,}, W = {middle[2]:,}": middle}
    for sweep, names in (("T", "T"), ("N", "N"), ("W", "W"), ("N and W", "NW")):
        most = max(sizes[sweep], default=middle)
        if most != middle:
            found[", ".join(f"{k} = {x:,}" for k, x in zip("TNW", most, strict=True) if k in names)] = most
    return found


def _cell(rows: list[Row], mode: str, size: tuple[int, int, int]) -> str:
    at = [r for r in rows if r["mode"] == mode and (r["n_steps"], r["n_hparams"], r["n_weights"]) == size]
    if not at:
        return "-"
    if at[0]["seconds"] is None:
        return f"not run, planned {_seconds(at[0]['plan_s'])}"
    return f"{_seconds(statistics.median(r['seconds'] for r in at))}, {_megabytes(at[0]['peak_bytes'])}"


def _seconds(x: float) -> str:
    return f"{x:,.0f} s" if x >= 100 else f"{x:.3g} s"


def _megabytes(x: float) -> str:
    return f"{x / 1e6:,.0f} MB" if x >= 1e8 else f"{x / 1e6:.3g} MB"


def _ratios(rows: list[Row], mode: str) -> list[str]:
    mine = [r for r in rows if r["mode"] == mode and r["seconds"] is not None]
    both = [sorted(r[what] / r[plan] for r in mine) for what, plan in (("seconds", "plan_s"), ("peak_bytes", "plan_bytes"))]
    return [f"{statistics.median(x):.2f} ({x[0]:.2f} to {x[-1]:.2f})" if x else "-" for x in both]


def _not_run(rows: list[Row], labels: dict[str, str]) -> list[str]:
    left = [
        f"{labels[r['mode']]} at T = {r['n_steps']:,}, N = {r['n_hparams']:,}, W = {r['n_weights']:,} ({_seconds(r['plan_s'])})"
        for r in rows
        if r["seconds"] is None
    ]
    return ["", f"Left out, as the plan expects so long a run: {'; '.join(dict.fromkeys(left))}."] if left else []


def _rfho(lines: Sequence[Row]) -> list[str]:
    """RFHO's own check of forward against reverse, and the peers on it."""
    rows = []
    for r in lines:
        if r["kind"] == "rfho":
            theirs = r["theirs"]
            name = {"forward": "forward", "all": "reverse, all"}[r["mode"]]
            rows.append([name, f"{r['seconds']:.2f}", f"{r['state_mib']:.1f}", f"{theirs['seconds']:g}", f"{theirs['state_mib']:g}"])
        elif r["kind"] == "rfho peer":
            rows.append([r["mode"], f"{r['seconds']:.2f}", f"({r['peak_bytes'] / 2**20:,.0f} in all)", "", ""])
    n_weights = next(r["n_weights"] for r in lines if r["kind"] == "rfho")
    title = f"RFHO's own check of forward against reverse ({n_weights:,} weights, 8 hyperparameters, 100 steps):"
    return [title, "", *_table(["", "seconds", "states, MiB", "theirs, seconds", "theirs, MiB"], rows)]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def rewritten(page: str, text: str) -> str:
    """The page with the text between its two marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}"


def write(page: Path, text: str) -> None:
    """Writes the text into the page."""
    page.write_text(rewritten(page.read_text(), text))
