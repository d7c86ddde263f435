"""Multi-task learning with a learned interaction of the tasks.

    L_lambda(W) = mean loss + rho |W|^2 + sum_{j<k} A_jk |w_j - w_k|^2,    A_jk >= 0

The hyperparameters are A (symmetric: one number a pair of tasks), rho, and the step size and momentum of the run. Tasks are regressions
in clusters of related ones, drawn at random, or the classes of a set of images.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...bilevel import Batches, Bilevel, full_batch
from ...data import Examples, LabelledImages
from ...data.labelled import SIZES
from ...errors import ArgumentError
from ...ops import einsum, matmul, mean, softmax_cross_entropy, take, transpose
from ...ops import sum as sum_
from ...optimizers import SGD
from ...runs.configuration import option
from ...runs.curves import Reference, new_figure, png
from ...runs.loop import Arrays, Record
from ...tape import Tensor
from ...trees import PyTree
from ..hypergradient import trained
from ..images import ImageProblem
from ..problem import Evaluation, Task

Array = NDArray[Any]
INTERACTION_PNG = "interaction.png"
USUAL = {"train": 15, "validation": 30, "test": 200}  # examples of a synthetic task
BOUNDS = {"pairs": (0.0, np.inf), "rho": (0.0, np.inf), "lr": (1e-4, 1.0), "momentum": (0.0, 0.95)}


@dataclass(frozen=True)
class TaskInteraction(ImageProblem):
    """The problem and its options.

    Args: see the options' help.
    Source: Franceschi et al. 2017, arXiv:1703.01785, section 5.2.
    """

    title: ClassVar[str] = "learning task interactions"
    source: ClassVar[str] = "Franceschi et al. 2017, arXiv:1703.01785"
    score: ClassVar[str] = "error"
    modes: ClassVar[tuple[str, ...]] = ("reverse", "forward")
    settings: ClassVar[Mapping[str, Any]] = {"outer_lr": 0.003, "iterations": 150, "eval_every": 10}
    quick: ClassVar[Mapping[str, Any]] = {
        **{"clusters": 2, "tasks_each": 2, "features": 5, "n_train": 6, "n_validation": 8, "n_test": 20},
        **{"n_steps": 10, "grid": (0.0, 0.1), "iterations": 10, "eval_every": 2, "outer_lr": 0.01},
    }
    figures: ClassVar[Mapping[str, str]] = {INTERACTION_PNG: "the learned interaction A of the tasks"}

    data: str | None = option(None, "Tasks, by default mnist where --root is given, else synthetic.", choices=("synthetic", *SIZES))
    n_train: int | None = option(None, f"Training examples; {USUAL['train']} of a synthetic task, of images as many as elsewhere.", low=1)
    n_validation: int | None = option(None, f"Validation examples; {USUAL['validation']} of a synthetic task.", low=1)
    n_test: int | None = option(None, f"Test examples; {USUAL['test']} of a synthetic task.", low=1)
    clusters: int = option(3, "Clusters of related synthetic tasks.", low=1)
    tasks_each: int = option(4, "Synthetic tasks of a cluster.", low=1)
    features: int = option(30, "Features of a synthetic task.", low=1)
    noise: float = option(0.5, "Standard deviation of the synthetic targets' noise.", low=0)
    difference: float = option(0.3, "How far tasks of a cluster lie apart, as a share of the clusters' distance.", low=0)
    n_steps: int = option(100, "Inner steps T.", low=1)
    start: float = option(0.01, "Every A_jk, and rho, at the start.", low=0)
    inner_lr: float = option(0.2, "Step size at the start.", above=0)
    inner_momentum: float = option(0.5, "Momentum at the start.", low=0)
    grid: tuple[float, ...] = option((0.0, 0.003, 0.01, 0.03, 0.1, 0.3), "Values of rho, and of a uniform A, to compare with.", low=0)

    def open(self, seed: int, dtype: DTypeLike | None = None) -> Task:
        name = self.data if self.data is not None or self.root is not None else "synthetic"
        if name == "synthetic":
            if self.root is not None:
                raise ArgumentError(
                    f"config: root is {self.root!r} with synthetic tasks, expected none because they are drawn; leave it out"
                )
            return InteractionTask(self, Synthetic(self, seed, self.dtype if dtype is None else dtype))
        return InteractionTask(self, Classes(self.open_images(seed, dtype)))


class Tasks(ABC):
    """Linear tasks with a training, a validation and a test part.

    Attributes:
        names: of the tasks; cluster: the cluster of each, None where it is not known.
        features: of an example; dtype: of the arrays; description: of the data; measure: what `error` is, in words.
    """

    names: tuple[str, ...]
    cluster: Array | None = None
    features: int
    dtype: DTypeLike
    description: str
    measure: str

    @abstractmethod
    def loss(self, w: Any, part: str) -> Tensor:
        """The mean loss. Args: w: (K, D); part: "train", "validation" or "test". Cost: one forward run."""

    @abstractmethod
    def error(self, w: Array, part: str) -> float:
        """What a person reads: a share of 1. Args and cost as `loss`."""


class Synthetic(Tasks):
    """Regressions in clusters of related ones. Args: options: of the problem; seed: of the draw; dtype: of the arrays."""

    measure = "share of the variance not explained"

    def __init__(self, options: TaskInteraction, seed: int, dtype: DTypeLike) -> None:
        rng, count, d = np.random.default_rng(seed), options.clusters * options.tasks_each, options.features
        self.cluster = np.repeat(np.arange(options.clusters), options.tasks_each)
        self.names = tuple(f"{'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[c % 26]}{i % options.tasks_each + 1}" for i, c in enumerate(self.cluster))
        centres = rng.standard_normal((options.clusters, d)) / np.sqrt(d)
        truth = centres[self.cluster] + options.difference * rng.standard_normal((count, d)) / np.sqrt(d)
        self.features, self.dtype = d, dtype
        given = {"train": options.n_train, "validation": options.n_validation, "test": options.n_test}
        counts = {part: USUAL[part] if n is None else n for part, n in given.items()}
        self.parts: dict[str, tuple[Array, Array]] = {}
        for part, n in counts.items():
            x = rng.standard_normal((count, n, d))
            y = np.einsum("knd,kd->kn", x, truth) + options.noise * rng.standard_normal((count, n))
            self.parts[part] = x.astype(dtype), y.astype(dtype)
        sizes = ", ".join(f"{n} {part}" for part, n in counts.items())
        self.description = f"synthetic: {count} tasks in {options.clusters} clusters, {d} features: {sizes} examples a task"

    def loss(self, w: Any, part: str) -> Tensor:
        x, y = self.parts[part]
        value: Tensor = 0.5 * mean((einsum("knd,kd->kn", x, w) - y) ** 2)
        return value

    def error(self, w: Array, part: str) -> float:
        x, y = self.parts[part]
        return float(np.mean((np.einsum("knd,kd->kn", x, w) - y) ** 2) / np.mean(y**2))


class Classes(Tasks):
    """The classes of images as tasks: softmax regression without a bias. Args: images: the data."""

    measure = "share of wrong answers"

    def __init__(self, images: LabelledImages) -> None:
        self.parts: dict[str, Examples] = {"train": images.train, "validation": images.validation, "test": images.test}
        self.names, self.description = images.class_names, images.describe()
        self.features, self.dtype = images.train.x.shape[1], images.train.x.dtype

    def loss(self, w: Any, part: str) -> Tensor:
        data = self.parts[part]
        return mean(softmax_cross_entropy(matmul(data.x, transpose(w)), data.y))

    def error(self, w: Array, part: str) -> float:
        data = self.parts[part]
        return float(np.mean((data.x @ w.T).argmax(axis=-1) != data.y))


class InteractionTask(Task):
    """The task. Args: options: of the problem; tasks: the data."""

    def __init__(self, options: TaskInteraction, tasks: Tasks) -> None:
        self.options, self.tasks, self.description = options, tasks, tasks.description
        self.first, self.second = np.triu_indices(len(tasks.names), 1)

    def init(self) -> Arrays:
        """A uniform interaction: A as one number a pair j < k."""
        o = self.options
        numbers = {"pairs": np.full(len(self.first), o.start), "rho": o.start, "lr": o.inner_lr, "momentum": o.inner_momentum}
        return self.project({name: np.asarray(value, self.tasks.dtype) for name, value in numbers.items()})

    def project(self, hparams: Arrays) -> Arrays:
        return {name: np.clip(value, *BOUNDS[name]).astype(value.dtype) for name, value in hparams.items()}

    def inner(self, draw: int) -> tuple[Bilevel, Batches]:
        tasks, first, second = self.tasks, self.first, self.second
        zero = np.zeros((len(tasks.names), tasks.features), tasks.dtype)

        def inner_loss(w: PyTree, hparams: PyTree, batch: Any) -> Tensor:
            apart = take(w, first) - take(w, second)
            distances = sum_(apart * apart, axis=-1)
            loss: Tensor = tasks.loss(w, "train") + hparams["rho"] * sum_(w * w) + sum_(hparams["pairs"] * distances)
            return loss

        def outer_loss(w: PyTree, hparams: PyTree) -> Tensor:
            return tasks.loss(w, "validation")

        def optimizer(hparams: PyTree) -> SGD:
            return SGD(lr=hparams["lr"], momentum=hparams["momentum"])

        return Bilevel(inner_loss, outer_loss, lambda hparams: zero, optimizer), full_batch(None, self.options.n_steps)

    def metrics(self, hparams: Arrays) -> Record:
        """rho, step size, momentum, and the mean of A."""
        return {name: float(hparams[name]) for name in ("rho", "lr", "momentum")} | {"interaction": float(hparams["pairs"].mean())}

    def judge(self, hparams: Arrays, w: PyTree) -> Record:
        return {"error": self.tasks.error(w, "validation")}

    def matrix(self, hparams: Arrays) -> Array:
        """A, symmetric, (K, K). Cost: O(K*K)."""
        full = np.zeros((len(self.tasks.names), len(self.tasks.names)))
        full[self.first, self.second] = full[self.second, self.first] = hparams["pairs"]
        return full

    def evaluate(self, hparams: Arrays, title: str) -> Evaluation:
        tuned, _ = self._test(hparams)
        grid = sorted(set(self.options.grid))
        uniform = {(rho, a): self._test(self._uniform(hparams, rho, a)) for rho in grid for a in {0.0, *grid}}
        best = min(uniform, key=lambda at: uniform[at][1])
        single = min((at for at in uniform if at[1] == 0.0), key=lambda at: uniform[at][1])
        numbers: Record = {"tuned_error": tuned, "single_error": uniform[single][0], "uniform_error": uniform[best][0]}
        numbers |= {"single_rho": single[0], "uniform_rho": best[0], "uniform_interaction": best[1], **self.metrics(hparams)}
        lines = [
            ("test error", self.tasks.measure),
            ("  learned interaction", f"{tuned:.4f}"),
            (f"  each task alone, rho {single[0]:g} by the grid", f"{uniform[single][0]:.4f}"),
            (f"  uniform A {best[1]:g}, rho {best[0]:g} by the grid", f"{uniform[best][0]:.4f}"),
            ("rho, step size, momentum", ", ".join(f"{float(hparams[name]):.4f}" for name in ("rho", "lr", "momentum"))),
        ]
        if self.tasks.cluster is not None:
            same = self.tasks.cluster[self.first] == self.tasks.cluster[self.second]
            for name, rows in (("within", same), ("between", ~same)):
                if rows.any():
                    numbers[f"interaction_{name}"] = float(hparams["pairs"][rows].mean())
                    lines.append((f"mean interaction {name} clusters", f"{numbers[f'interaction_{name}']:.4f}"))
        numbers["interaction_matrix"] = self.matrix(hparams).tolist()
        references = [Reference("each task alone, test", uniform[single][0]), Reference("uniform, test", uniform[best][0])]
        references.append(Reference("learned, test", tuned))
        return Evaluation(numbers, lines, {INTERACTION_PNG: self._figure(hparams, title)}, references)

    def _uniform(self, hparams: Arrays, rho: float, interaction: float) -> Arrays:
        """The tuned step size and momentum with other regularisation."""
        pairs, kind = hparams["pairs"], hparams["pairs"].dtype
        return {**hparams, "pairs": np.full_like(pairs, interaction), "rho": np.asarray(rho, kind)}

    def _test(self, hparams: Arrays) -> tuple[float, float]:
        """The test error and the validation loss of the run with these hyperparameters."""
        w, loss = trained(self.inner(0)[0], hparams, self.inner(0)[1])
        return self.tasks.error(w, "test"), loss if np.isfinite(loss) else np.inf

    def _figure(self, hparams: Arrays, title: str) -> bytes:
        figure, axes = new_figure(6.0, 5.4, 1, 1)
        shown = axes.imshow(self.matrix(hparams), cmap="Blues", vmin=0.0)
        axes.set_xticks(range(len(self.tasks.names)), self.tasks.names, fontsize=8)
        axes.set_yticks(range(len(self.tasks.names)), self.tasks.names, fontsize=8)
        figure.colorbar(shown, label="A, the interaction of two tasks")
        axes.set_title(title, fontsize=8)
        return png(figure)
