"""The problems in TorchOpt: its optimiser MetaSGD moves a module within the graph (Ren et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
import torchopt
from meta_problems import INNER_STEP, Arrays, Step, Variant
from run_problems import CLEANING_STEP, RunSizes
from runs_torch import Run, RunStep, Tensors, reverse
from torch import Tensor, nn
from torch_modules import Model, long_run, meta_step


class _Optimizer:
    """MetaSGD of a module, which goes back to its start after every use."""

    def __init__(self, module: nn.Module, lr: Any) -> None:
        self.module, self.optimizer = module, torchopt.MetaSGD(module, lr=lr)
        self.start = torchopt.extract_state_dict(module, by="reference", detach_buffers=True)
        self.state = torchopt.extract_state_dict(self.optimizer, by="reference")

    def descend(self, loss: Callable[[nn.Module], Tensor], n_steps: int, after: Callable[[nn.Module], Tensor]) -> Tensor:
        """The loss `after` n steps."""
        for _ in range(n_steps):
            self.optimizer.step(loss(self.module))
        value = after(self.module)
        torchopt.recover_state_dict(self.module, self.start)
        torchopt.recover_state_dict(self.optimizer, self.state)
        return value


def _adapter(n_steps: int) -> Callable[..., Tensor]:
    made: list[_Optimizer] = []

    def adapt(module: nn.Module, support: Any, query: Any, lr: Tensor | None) -> Tensor:
        if not made:
            made.append(_Optimizer(module, INNER_STEP if lr is None else lr))
        return made[0].descend(support, n_steps, query)

    return adapt


def _run(run: Run) -> Callable[[Tensors], Tensor]:
    optimizer = _Optimizer(Model(run), CLEANING_STEP)
    x, x_val, y_val = (run.data[name] for name in ("x", "x_val", "y_val"))

    def loss(p: Tensors) -> Tensor:
        return optimizer.descend(
            lambda model: run.weighted(model(x), p["weights"]), run.sizes.steps, lambda model: F.cross_entropy(model(x_val), y_val)
        )

    return loss


def _variant() -> Variant:
    def make(problem: str, sizes: Any, dtype: str, data: Arrays, params: Arrays, device: str, tf32: bool) -> Step:
        if isinstance(sizes, RunSizes):
            run = long_run(problem, sizes, data, params, device)
            return RunStep(reverse(_run(run), run.params), device)
        return meta_step(problem, sizes, data, params, device, _adapter(sizes.steps))

    return make


VARIANTS: dict[str, Variant] = {"TorchOpt": _variant()}
