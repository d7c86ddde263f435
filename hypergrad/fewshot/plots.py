"""The figures of few-shot learning as PNG bytes: accuracy against inner steps, and pairs of images."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..data.images import check_number
from ..runs.curves import BLUE, GREEN, GREY, ORANGE, Array, legend_below, new_figure, percent_axis, plain, png
from .network import features
from .problem import Evaluation


def steps(validation: Evaluation, test: Evaluation, chosen: int, title: str, chance: float) -> bytes:
    """Accuracy against the number T of inner steps, on meta-validation and meta-test (Figure 1 of the paper).

    Args: validation, test: of the same sweep; chosen: the T picked on meta-validation; title: what was run; chance: accuracy of guessing.
    Returns: a PNG file. Cost: about half a second. Source: Franceschi et al. 2017, arXiv:1712.06283, Figure 1.
    """
    figure, axes = new_figure(6.5, 4.6, 1, 1)
    offset = 0.04 * min(np.diff(validation.steps), default=1)  # so that the bars of the two do not cover each other
    for evaluation, color, name, shift in ((validation, ORANGE, "meta-validation", -offset), (test, GREEN, "meta-test", offset)):
        means, halves, counts = zip(*(astuple(evaluation.accuracy(t)) for t in evaluation.steps), strict=True)
        label = f"{name}, {counts[0]} episodes, 95 % intervals"
        at = np.array(evaluation.steps) + shift
        axes.errorbar(at, means, yerr=halves, fmt="o-", color=color, capsize=3, markersize=4, label=label)
    axes.axvline(chosen, color=GREY, linewidth=0.8, linestyle=":", label=f"T = {chosen}, best on meta-validation")
    axes.axhline(chance, color=GREY, linewidth=1.0, linestyle="--", label=f"chance: {100 * chance:.1f} %")
    axes.set(xticks=validation.steps, xlabel="inner steps T", ylabel="query accuracy")
    axes.set_title(title, fontsize=10)
    percent_axis(axes)
    axes.grid(alpha=0.25)
    legend_below(axes)
    return png(figure)


@dataclass(frozen=True)
class Pair:
    """Two images.

    Args: images: (2, H, W, C); features: (2, D); classes: their names; distance: of the features.
    """

    images: Array
    features: Array
    classes: tuple[str, str]
    distance: float


@dataclass(frozen=True)
class Pairs:
    """Two pairs of one episode. Args: name: the episode's; nearest, farthest: by the distance of the features."""

    name: str
    nearest: Pair
    farthest: Pair


def find_pairs(hparams: Mapping[str, Any], images: Array, classes: Sequence[str], name: str) -> Pairs:
    """The two images that minimise ||h(x) - h(x')|| and the two that maximise it.

    Args: hparams: of the network; images: (N, H, W, C), N >= 2, one episode, normalized as one batch; classes: their names, N; name:
        for the title.
    Returns: Pairs. Raises: ArgumentError if there are fewer than two images. Cost: one forward run, N*N*D flop.
    """
    count = len(images)
    check_number("find_pairs: number of images", count, 2)
    h = features(hparams, images[None]).value[0].astype(np.float64)
    squares = np.sum(h * h, axis=1)
    distances = squares[:, None] + squares[None] - 2.0 * h @ h.T
    upper = np.triu_indices(count, 1)

    def pair(pick: Any) -> Pair:
        at = int(pick(distances[upper]))
        i, j = (int(side[at]) for side in upper)
        return Pair(images[[i, j]], h[[i, j]], (classes[i], classes[j]), float(np.linalg.norm(h[i] - h[j])))

    return Pairs(name, pair(np.argmin), pair(np.argmax))


def pairs(rows: Sequence[Pairs], seed: int, title: str, components: int = 16) -> bytes:
    """The pairs of several episodes, one row each, with random components of h between the images.

    Args: rows: of `find_pairs`; seed: of the subset, the same for all rows; title: what was run; components: size of the subset.
    Returns: a PNG file. Cost: about a second. Source: Franceschi et al. 2017, arXiv:1712.06283, Figure 2.
    """
    size = rows[0].nearest.features.shape[1]
    chosen = np.sort(np.random.default_rng([seed, size]).permutation(size)[:components])
    ratios = {"width_ratios": [1, 1.2, 1, 0.25, 1, 1.2, 1]}
    figure, grid = new_figure(11.0, 2.7 * len(rows) + 0.4, len(rows), 7, squeeze=False, gridspec_kw=ratios)
    for row, axes in zip(rows, grid, strict=True):
        axes[3].axis("off")
        for start, label, pair in ((0, "nearest", row.nearest), (4, "farthest", row.farthest)):
            for side, place, color in ((0, start, BLUE), (1, start + 2, GREEN)):
                _image(axes[place], pair.images[side], pair.classes[side], color)
            middle, at = axes[start + 1], np.arange(len(chosen))
            middle.barh(at - 0.2, pair.features[0, chosen], 0.4, color=BLUE)
            middle.barh(at + 0.2, pair.features[1, chosen], 0.4, color=GREEN)
            middle.set_xlim(0.0, 1.05 * max(float(p.features[:, chosen].max()) for p in (row.nearest, row.farthest)) or 1.0)
            middle.set_yticks([])
            middle.tick_params(labelsize=7)
            middle.set_title(f"{row.name}, {label}\n‖h(x) − h(x′)‖ = {pair.distance:.3g}", fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.supxlabel(f"between the images: {len(chosen)} of {size} components of h, drawn at random", fontsize=8)
    return png(figure)


def _image(axes: Axes, image: Array, name: str, color: str) -> None:
    shown = np.clip(image, 0.0, 1.0)
    axes.imshow(shown if image.shape[-1] == 3 else shown[..., 0], cmap="gray_r", vmin=0.0, vmax=1.0)
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(plain(name if len(name) <= 24 else f"…{name[-23:]}"), fontsize=7)
    axes.spines[:].set(color=color, linewidth=2.0)
