"""What the problems on labelled images share: the options of the data, and pictures of single examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..data import LabelledImages, open_labelled
from ..data.labelled import SIZES
from ..runs.configuration import option
from ..runs.curves import new_figure, png
from .problem import Problem

_USUAL = ", ".join("{} {}".format(name, "/".join(map(str, sizes))) for name, sizes in SIZES.items())


@dataclass(frozen=True)
class ImageProblem(Problem):
    """A problem on labelled images. Args: see the options' help."""

    data: str | None = option(None, "Data set, by default mnist where --root is given, else glyphs.", choices=tuple(SIZES))
    root: str | None = option(None, "Folder with MNIST's idx files.", on_resume=True)
    n_train: int | None = option(None, f"Training examples; by default (training/validation/test) {_USUAL}.", low=1)
    n_validation: int | None = option(None, "Validation examples.", low=1)
    n_test: int | None = option(None, "Test examples.", low=1)

    def open_images(self, seed: int, dtype: DTypeLike | None) -> LabelledImages:
        """The data. Args, errors and cost as `Problem.open`."""
        return open_labelled(
            self.data,
            self.root,
            n_train=self.n_train,
            n_validation=self.n_validation,
            n_test=self.n_test,
            seed=seed,
            dtype=self.dtype if dtype is None else dtype,
        )


def gallery(images: NDArray[Any], names: Sequence[str], columns: int, title: str, limits: tuple[float, float] = (0.0, 1.0)) -> bytes:
    """Single images in a grid, each with its name.

    Args: images: (n, H, W); names: n; columns: of the grid; title: of the figure; limits: the values of white and black.
    Returns: a PNG file. Cost: about a second.
    """
    rows = -(-len(images) // columns)
    figure, grid = new_figure(0.95 * columns + 0.4, 1.2 * rows + 0.6, rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, name in zip(grid.flat, images, names, strict=False):
        axes.imshow(np.asarray(image), cmap="gray_r", vmin=limits[0], vmax=limits[1])
        axes.set_title(name, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return png(figure)
