"""The three figures of a run as PNG bytes, drawn through matplotlib's objects: no window, no global state."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..errors import ArgumentError
from .hyper_representation import Evaluation
from .network import features

Array = NDArray[Any]
BLUE, GREEN, ORANGE, GREY = "#2166ac", "#2a9d5c", "#d9730d", "#6b6b6b"


def curve(metrics: Sequence[Mapping[str, Any]], baseline: float | None, test: tuple[float, float] | None = None) -> bytes:
    """Losses and accuracies against iterations.

    Args:
        metrics: the records of metrics.jsonl.
        baseline: accuracy of pixel nearest neighbour on the validation episodes, None to leave the line out.
        test: meta-test accuracy and half width of its interval, drawn at the best iteration.
    Returns: a PNG file. Cost: about half a second.
    """
    train = [record for record in metrics if "loss" in record]
    validation = [record for record in metrics if "validation_loss" in record]
    figure, (top, bottom) = _figure(7.0, 6.4, 2, 1, sharex=True)
    steps = np.array([record["iteration"] for record in train])
    for axes, name in ((top, "loss"), (bottom, "accuracy")):
        values = np.array([record[name] for record in train])
        axes.plot(steps, values, color=BLUE, alpha=0.18, linewidth=0.7)
        axes.plot(*_smooth(steps, values), color=BLUE, linewidth=1.4, label="meta-training (running mean)")
        at = [record["iteration"] for record in validation]
        axes.plot(
            at, [record[f"validation_{name}"] for record in validation], "o-", color=ORANGE, markersize=3,
            linewidth=1.4, label="meta-validation",
        )  # fmt: skip
        axes.set_ylabel(f"query {name}")
        axes.grid(alpha=0.25)
    if validation:
        middle = np.array([record["validation_accuracy"] for record in validation])
        half = np.array([record["validation_interval"] for record in validation])
        bottom.fill_between(at, middle - half, middle + half, color=ORANGE, alpha=0.2, linewidth=0)
        best = validation[int(np.argmax(middle))]
        bottom.axvline(best["iteration"], color=GREY, linewidth=0.8, linestyle=":")
        if test is not None:
            bottom.errorbar(
                [best["iteration"]], [test[0]], yerr=[test[1]], fmt="D", color=GREEN, capsize=3,
                label=f"meta-test {100 * test[0]:.1f} ± {100 * test[1]:.1f} %",
            )  # fmt: skip
    if baseline is not None:
        bottom.axhline(baseline, color=GREY, linestyle="--", linewidth=1.2, label=f"pixel nearest neighbour {100 * baseline:.1f} %")
    bottom.set_xlabel("outer iteration")
    top.set_yscale("log")
    top.legend(loc="upper right", fontsize=8)
    bottom.legend(loc="lower right", fontsize=8)
    return _png(figure)


def steps(validation: Evaluation, test: Evaluation, chosen: int) -> bytes:
    """Accuracy against the number T of inner steps, on meta-validation and meta-test (Figure 1 of the paper).

    Args: validation, test: of the same sweep; chosen: the T picked on meta-validation.
    Returns: a PNG file. Cost: about half a second. Source: Franceschi et al. 2017, arXiv:1712.06283, Figure 1.
    """
    figure, ((axes,),) = _figure(6.0, 4.0, 1, 1, squeeze=False)
    for evaluation, color, name in ((validation, ORANGE, "meta-validation"), (test, GREEN, "meta-test")):
        axes.errorbar(
            evaluation.steps,
            [evaluation.mean(t) for t in evaluation.steps],
            yerr=[evaluation.interval(t) for t in evaluation.steps],
            fmt="o-",
            color=color,
            capsize=3,
            markersize=4,
            label=f"{name} ({len(evaluation.accuracies)} episodes)",
        )
    axes.axvline(chosen, color=GREY, linewidth=0.8, linestyle=":", label=f"T = {chosen}, best on meta-validation")
    axes.set_xticks(validation.steps)
    axes.set_xlabel("inner steps T")
    axes.set_ylabel("query accuracy")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return _png(figure)


@dataclass(frozen=True)
class Pairs:
    """The nearest and the farthest pair of one data set: images (2, H, W, C), features (2, D), distance."""

    name: str
    nearest: tuple[Array, Array, float]
    farthest: tuple[Array, Array, float]


def find_pairs(hparams: Mapping[str, Any], images: Array, name: str) -> Pairs:
    """The two images that minimise ||h(x) - h(x')|| and the two that maximise it.

    Args: hparams: of the network; images: (N, H, W, C), N >= 2, one data set, normalized as one batch; name:
        for the title.
    Returns: Pairs. Raises: ArgumentError if there are fewer than two images. Cost: one forward run, N*N*D flop.
    """
    count = len(images)
    if count < 2:
        raise ArgumentError(f"find_pairs: got {count} images, expected at least 2 because a pair is wanted; pass more")
    h = features(hparams, images[None]).value[0].astype(np.float64)
    squares = np.sum(h * h, axis=1)
    distances = squares[:, None] + squares[None] - 2.0 * h @ h.T
    upper = np.triu_indices(count, 1)
    found = []
    for pick in (np.argmin, np.argmax):
        at = int(pick(distances[upper]))
        pair = [upper[0][at], upper[1][at]]
        found.append((images[pair], h[pair], float(np.linalg.norm(h[pair[0]] - h[pair[1]]))))
    return Pairs(name, found[0], found[1])


def pairs(rows: Sequence[Pairs], seed: int, components: int = 16) -> bytes:
    """The pairs of several data sets, one row each, with random components of h between the images.

    Args: rows: of `find_pairs`; seed: of the subset, the same for all rows; components: size of the subset.
    Returns: a PNG file. Cost: about a second. Source: Franceschi et al. 2017, arXiv:1712.06283, Figure 2.
    """
    size = rows[0].nearest[1].shape[1]
    drawn = np.random.default_rng([seed, size]).permutation(size)[:components]
    chosen = np.sort(drawn)
    figure, grid = _figure(11.0, 2.5 * len(rows), len(rows), 7, squeeze=False, width_ratios=[1, 1.2, 1, 0.25, 1, 1.2, 1])
    for row, axes in zip(rows, grid, strict=True):
        axes[3].axis("off")
        for start, label, (images, h, distance) in ((0, "nearest", row.nearest), (4, "farthest", row.farthest)):
            _image(axes[start], images[0], BLUE)
            _image(axes[start + 2], images[1], GREEN)
            middle = axes[start + 1]
            at = np.arange(len(chosen))
            middle.barh(at - 0.2, h[0, chosen], 0.4, color=BLUE)
            middle.barh(at + 0.2, h[1, chosen], 0.4, color=GREEN)
            middle.set_xlim(0.0, 1.05 * max(float(r[1][:, chosen].max()) for r in (row.nearest, row.farthest)) or 1.0)
            middle.set_yticks([])
            middle.tick_params(labelsize=7)
            middle.set_title(f"{row.name}, {label}\n‖h(x) − h(x′)‖ = {distance:.3g}", fontsize=8)
    figure.supxlabel(f"between the images: {len(chosen)} of {size} components of h, drawn at random", fontsize=8)
    return _png(figure)


def _image(axes: Axes, image: Array, color: str) -> None:
    shown = np.clip(image, 0.0, 1.0)
    if image.shape[-1] == 3:
        axes.imshow(shown)
    else:
        axes.imshow(shown[..., 0], cmap="gray_r", vmin=0.0, vmax=1.0)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=2.0)


def _smooth(at: Array, values: Array) -> tuple[Array, Array]:
    """Running mean over a fortieth of the points, at the middle of each window."""
    width = max(1, len(values) // 40)
    sums = np.cumsum(np.concatenate([[0.0], values]))
    count = len(values) - width + 1
    first = (width - 1) // 2
    return at[first : first + count], (sums[width:] - sums[:-width]) / width


def _figure(width: float, height: float, rows: int, columns: int, **options: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    if "width_ratios" in options:
        options["gridspec_kw"] = {"width_ratios": options.pop("width_ratios")}
    return figure, figure.subplots(rows, columns, **options)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
