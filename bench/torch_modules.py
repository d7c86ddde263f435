"""The meta-steps as modules of PyTorch, for libraries that differentiate through the training of a module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from meta_problems import EPS, Arrays, Sizes
from peers_torch import Episodes, Tensors, TorchStep, by_episodes, set_threads, to_torch
from run_problems import RunSizes
from runs_torch import NAMES, Run
from torch import Tensor, nn

Adapt = Callable[[nn.Module, Callable[[nn.Module], Tensor], Callable[[nn.Module], Tensor], Any], Tensor]


def network(sizes: Sizes, *, head: bool) -> nn.Sequential:
    """The four blocks, with a linear layer behind them where `head` says so."""
    layers: list[nn.Module] = []
    for i in range(sizes.blocks):
        layers += [
            nn.Conv2d(sizes.filters if i else sizes.channels, sizes.filters, 3, padding=1, bias=False),
            nn.BatchNorm2d(sizes.filters, eps=EPS, track_running_stats=False),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*layers, nn.Flatten(), *([nn.Linear(sizes.features, sizes.ways)] if head else []))


def put(module: nn.Module, values: list[Tensor]) -> None:
    """Gives a module its parameters, in their order and precision."""
    module.to(values[0].dtype)
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), values, strict=True):
            parameter.copy_(value)


class _Transposed(TorchStep):
    """A linear layer holds the head as (ways, D)."""

    def result(self, out: Any) -> tuple[float, Arrays]:
        grads = {name: g.T if name == "head" else g for name, g in out[1].items()}
        return super().result((out[0], grads))


def meta_step(problem: str, sizes: Sizes, data: Arrays, params: Arrays, device: str, adapt: Adapt) -> TorchStep:
    """A meta-step whose inner loop is `adapt`.

    Args:
        adapt: (module, support loss of a module, query loss of a module, step size) -> query loss after T steps. The step size is a
            tensor that is differentiated, or None for MAML's fixed one.
    """
    set_threads()
    episodes, leaves = to_torch(problem, sizes, data, params, device, channels_last=False)
    if problem == "maml":
        values = [a.T if name == "head" else a for name, a in leaves.items()]
        module: nn.Module = network(sizes, head=True)
        put(module, values)
        p = dict(zip(leaves, module.parameters(), strict=True))
        return _Transposed(by_episodes(_maml(module, episodes, adapt), sizes.episodes), p, sizes, cuda=device == "cuda", captured=False)
    lr = leaves.pop("lr").requires_grad_()
    body, head = network(sizes, head=False), nn.Linear(sizes.features, sizes.ways)
    put(body, list(leaves.values()))
    put(head, [torch.zeros_like(a, dtype=lr.dtype) for a in head.parameters()])
    p = {**dict(zip(leaves, body.parameters(), strict=True)), "lr": lr}
    loss = _representation(body, head, lr, episodes, adapt)
    return TorchStep(by_episodes(loss, sizes.episodes), p, sizes, cuda=device == "cuda", captured=False)


def _maml(module: nn.Module, episodes: Episodes, adapt: Adapt) -> Callable[[Tensors, int], Tensor]:
    def loss(p: Tensors, e: int) -> Tensor:
        def of(part: str) -> Callable[[nn.Module], Tensor]:
            return lambda moved: F.cross_entropy(moved(episodes.images[part][e]), episodes.data[f"{part}_labels"][e])

        return adapt(module, of("support"), of("query"), None)

    return loss


def _representation(body: nn.Module, head: nn.Module, lr: Tensor, episodes: Episodes, adapt: Adapt) -> Callable[[Tensors, int], Tensor]:
    def loss(p: Tensors, e: int) -> Tensor:
        def of(part: str) -> Callable[[nn.Module], Tensor]:
            features, labels = body(episodes.images[part][e]), episodes.data[f"{part}_labels"][e]
            return lambda moved: F.cross_entropy(moved(features), labels)

        return adapt(head, of("support"), of("query"), lr)

    return loss


class Model(nn.Module):
    """The classifier of a long run, with weights in the layout of the other variants."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.logits, names = run.logits, NAMES if run.problem == "three-scalars" else ("weight0",)
        for name, value in zip(names, run.start(), strict=True):
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(list(self.parameters()), x)


def long_run(problem: str, sizes: RunSizes, data: Arrays, params: Arrays, device: str) -> Run:
    """Its arrays and losses."""
    set_threads()
    return Run(problem, sizes, data, params, device)
