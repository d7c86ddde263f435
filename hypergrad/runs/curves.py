"""The curve of a run, and what all figures share: drawn through matplotlib's objects, no window, no global state."""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter
from numpy.typing import NDArray

from ..errors import RunError
from ..guards import printable
from ..profiling import Profile
from .view import PERCENT, is_validation

Array = NDArray[Any]
CURVE_PNG = "curve.png"
BLUE, GREEN, ORANGE, GREY = "#2166ac", "#2a9d5c", "#d9730d", "#6b6b6b"
STYLES = ("--", ":", "-.")


class Reference(NamedTuple):
    """A horizontal line that the score is held against. Args: name: "chance", say; value: the score."""

    name: str
    value: float


def curve(
    metrics: Sequence[Mapping[str, Any]],
    title: str,
    references: Sequence[Reference] = (),
    test: tuple[float, float] | None = None,
    score: str = "accuracy",
    names: tuple[str, str] = ("training", "validation"),
) -> bytes:
    """Loss and score against outer iterations, of training and validation.

    Args:
        metrics: the records of metrics.jsonl.
        title: what was run.
        references: lines on the axes of the score.
        test: score on the test data and half width of its 95% interval, drawn beside the best iteration.
        score: name of the metric beside the loss.
        names: what the two lines are called, that of the iterations and that of the validations.
    Returns: a PNG file. Cost: about half a second.
    """
    train = [record for record in metrics if not is_validation(record)]
    validation = [record for record in metrics if is_validation(record)]
    for records, needed in ((train, {"loss", score}), (validation, {"validation_loss", f"validation_{score}"})):
        if missing := {name for record in records for name in needed - record.keys()}:
            raise RunError(f"curve: a record has no {' and no '.join(sorted(missing))}, expected one in each; restore metrics.jsonl")
    figure, (top, bottom) = new_figure(7.5, 7.0, 2, 1, sharex=True)
    steps = np.array([record["iteration"] for record in train])
    at = np.array([record["iteration"] for record in validation])
    for axes, name in ((top, "loss"), (bottom, score)):
        values = np.array([record[name] for record in train])
        axes.plot(steps, values, color=BLUE, alpha=0.18, linewidth=0.7)
        axes.plot(*_smooth(steps, values), color=BLUE, linewidth=1.4, label=f"{names[0]} (running mean)")
        axes.plot(at, [r[f"validation_{name}"] for r in validation], "o-", color=ORANGE, markersize=3, linewidth=1.4, label=names[1])
        axes.set_ylabel(name)
        axes.grid(alpha=0.25)
    if validation and all("validation_interval" in record for record in validation):
        middle = np.array([record[f"validation_{score}"] for record in validation])
        half = np.array([record["validation_interval"] for record in validation])
        bottom.fill_between(at, middle - half, middle + half, color=ORANGE, alpha=0.2, linewidth=0, label="its 95 % interval")
    for line, style in zip(references, STYLES, strict=False):
        bottom.axhline(line.value, color=GREY, linestyle=style, linewidth=1.2, label=f"{line.name}: {_value(score, line.value)}")
    best = [record["iteration"] for record in validation if record["best"]]
    if best and test is not None:
        text = f"test at iteration {best[-1]}: {_value(score, test[0])} ± {_value(score, test[1])} (95 %)"
        bottom.errorbar(best[-1:], test[:1], yerr=test[1:], fmt="D", color=GREEN, capsize=3, zorder=3, label=text)
    bottom.set_xlabel("outer iteration")
    if score in PERCENT:
        percent_axis(bottom)
    top.set_yscale("log")
    plain_ticks(top)
    top.set_title(title, fontsize=10)
    legend_below(bottom)
    return png(figure)


def seconds_of_instructions(found: Profile, title: str) -> bytes:
    """The instructions that took most of the time, a bar for each. Args: title: what was profiled. Returns: a PNG file."""
    rows = found.rows[:20][::-1]
    figure, axes = new_figure(8.0, 1.2 + 0.26 * max(len(rows), 1), 1, 1)
    axes.barh(range(len(rows)), [1e3 * row.seconds for row in rows], color=BLUE)
    axes.set_yticks(range(len(rows)), [f"{row.name} {row.shape}" for row in rows])
    for i, row in enumerate(rows):
        axes.annotate(f" {row.calls} calls", (1e3 * row.seconds, i), fontsize=7, va="center", color=GREY)
    axes.set_xlabel("milliseconds in all")
    axes.margins(x=0.15)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_title(title, fontsize=10)
    return png(figure)


def _value(score: str, value: float) -> str:
    return f"{100 * value:.1f} %" if score in PERCENT else f"{value:.4g}"


def plain(text: str) -> str:
    """Text of others, such as the name of a folder, for a figure: no dollar begins a formula, and no control code is left. Cost: O(n)."""
    return printable(text, lines=True).replace("$", r"\$")


def percent_axis(axes: Any) -> None:
    """A vertical axis of shares, read in percent. Cost: O(1)."""
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))


def plain_ticks(axes: Any) -> None:
    """A logarithmic vertical axis with plain numbers, 0.5 and not 5·10^-1, and more of them where it spans little. Cost: O(1)."""
    low, high = axes.get_ylim()
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(plain if high < 20 * low else NullFormatter())


def legend_below(axes: Any, columns: int = 2) -> None:
    """A legend under the axes, where it covers nothing. Cost: O(1)."""
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def _smooth(at: Array, values: Array) -> tuple[Array, Array]:
    """Running mean over a fortieth of the points, at the middle of each window."""
    width = max(1, len(values) // 40)
    sums = np.cumsum(np.concatenate([[0.0], values]))
    count = len(values) - width + 1
    first = (width - 1) // 2
    return at[first : first + count], (sums[width:] - sums[:-width]) / width


def new_figure(width: float, height: float, rows: int, columns: int, **options: Any) -> tuple[Figure, Any]:
    """A figure with its axes. Args: width, height: in inches; options: of matplotlib's `subplots`. Cost: some milliseconds."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **options)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file. Cost: some tenths of a second."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # names in a script that the font lacks: boxes say as much
        figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
