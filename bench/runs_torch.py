"""The hypergradients through a long run in PyTorch: one recorded graph of all steps, or torch.func's forward mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from meta_problems import Arrays
from run_problems import CLEANING_STEP, RunSizes
from torch import Tensor

NAMES = ("weight0", "bias0", "weight1", "bias1")
Tensors = dict[str, Tensor]
Compute = Callable[[], tuple[Tensor, Tensors]]  # -> (loss, gradient)


class Run:
    """A problem's arrays as tensors, and its losses. Weights are a list: [W], or those of NAMES."""

    def __init__(self, problem: str, sizes: RunSizes, data: Arrays, params: Arrays, device: str) -> None:
        self.problem, self.sizes = problem, sizes
        self.data = {name: torch.tensor(a, device=device) for name, a in data.items()}
        self.params = {name: torch.tensor(a, device=device) for name, a in params.items()}
        x, y = self.data["x"], self.data["y"]
        self.batches = [(x[rows], y[rows]) for rows in self.data["rows"]] if "rows" in data else []

    def start(self) -> list[Tensor]:
        """The weights that the run begins with."""
        if self.problem == "three-scalars":
            return [self.data[name].clone() for name in NAMES]
        return [self.data["x"].new_zeros(self.sizes.features, self.sizes.classes)]

    def logits(self, w: Sequence[Tensor], x: Tensor) -> Tensor:
        """Scores of the classes, (N, C)."""
        return x @ w[0] if self.problem == "hyper-cleaning" else torch.addmm(w[3], F.relu(torch.addmm(w[1], x, w[0])), w[2])

    def weighted(self, logits: Tensor, weights: Tensor) -> Tensor:
        """The training loss of hyper-cleaning."""
        return (torch.sigmoid(weights) * F.cross_entropy(logits, self.data["y"], reduction="none")).mean()

    def validation(self, w: Sequence[Tensor]) -> Tensor:
        """The loss that the hyperparameters minimise."""
        return F.cross_entropy(self.logits(w, self.data["x_val"]), self.data["y_val"])


def cleaning(run: Run) -> Callable[[Tensors], Tensor]:
    """{weights} -> validation loss."""

    def loss(p: Tensors) -> Tensor:
        (w,) = run.start()
        w.requires_grad_()
        for _ in range(run.sizes.steps):
            (g,) = torch.autograd.grad(run.weighted(run.logits([w], run.data["x"]), p["weights"]), w, create_graph=True)
            w = w - CLEANING_STEP * g
        return run.validation([w])

    return loss


def scalars(run: Run, gradient: Callable[[list[Tensor], Tensor, Tensor], Sequence[Tensor]]) -> Callable[[Tensors], Tensor]:
    """{lr, momentum, decay} -> validation loss; `gradient` is that of a batch's loss by the weights."""

    def loss(p: Tensors) -> Tensor:
        w = run.start()
        v = [torch.zeros_like(a) for a in w]
        for x, y in run.batches:
            g = gradient(w, x, y)
            v = [p["momentum"] * b + (d + p["decay"] * a) for a, b, d in zip(w, v, g, strict=True)]
            w = [a - p["lr"] * b for a, b in zip(w, v, strict=True)]
        return run.validation(w)

    return loss


def reverse(loss: Callable[[Tensors], Tensor], params: Tensors) -> Compute:
    """The derivative of the recorded graph."""
    params = {name: a.requires_grad_() for name, a in params.items()}

    def compute() -> tuple[Tensor, Tensors]:
        value = loss(params)
        return value.detach(), dict(zip(params, torch.autograd.grad(value, list(params.values())), strict=True))

    return compute


def forward(loss: Callable[[Tensors], Tensor], params: Tensors) -> Compute:
    """All directions at once; the parameters are scalars."""
    names, values = list(params), torch.stack(list(params.values()))

    def of_vector(vector: Tensor) -> tuple[Tensor, Tensor]:
        value = loss({name: vector[i : i + 1] for i, name in enumerate(names)})  # jvp makes float64 of tensors without axes
        return value, value

    def compute() -> tuple[Tensor, Tensors]:
        slopes, value = torch.func.jacfwd(of_vector, has_aux=True)(values)
        return value, dict(zip(names, slopes.unbind(), strict=True))

    return compute


def derivative(run: Run, mode: str) -> Compute:
    """The hypergradient, `mode` "forward" or "reverse"."""

    def batch_loss(w: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(run.logits(w, x), y)

    def by_autograd(w: list[Tensor], x: Tensor, y: Tensor) -> Sequence[Tensor]:
        w = [a if a.requires_grad else a.requires_grad_() for a in w]
        return torch.autograd.grad(batch_loss(w, x, y), w, create_graph=True)

    if mode == "forward":
        return forward(scalars(run, torch.func.grad(batch_loss)), run.params)
    return reverse(cleaning(run) if run.problem == "hyper-cleaning" else scalars(run, by_autograd), run.params)


class RunStep:
    """A hypergradient as the other side of the comparison asks for it."""

    def __init__(self, compute: Compute, device: str) -> None:
        self.compute, self.cuda = compute, device == "cuda"

    def run(self) -> Any:
        return self.compute()

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def result(self, out: Any) -> tuple[float, Arrays]:
        return float(out[0]), {name: g.detach().cpu().numpy() for name, g in out[1].items()}

    def peak_bytes(self) -> int | None:
        return None
