"""The problems in higher: differentiable optimisers that patch a module (Grefenstette et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import higher
import torch
import torch.nn.functional as F
from meta_problems import INNER_STEP, Arrays, Step, Variant
from run_problems import CLEANING_STEP, RunSizes
from runs_torch import Run, RunStep, Tensors, reverse
from torch import Tensor, nn
from torch_modules import Model, long_run, meta_step


def _adapter(n_steps: int) -> Callable[..., Tensor]:
    def adapt(module: nn.Module, support: Any, query: Any, lr: Tensor | None) -> Tensor:
        optimizer = torch.optim.SGD(module.parameters(), lr=INNER_STEP)
        override = None if lr is None else {"lr": [lr]}
        with higher.innerloop_ctx(module, optimizer, copy_initial_weights=lr is not None, override=override) as (moved, inner):
            for _ in range(n_steps):
                inner.step(support(moved))
            return query(moved)

    return adapt


def _run(run: Run) -> Callable[[Tensors], Tensor]:
    model, batches = Model(run), run.batches
    optimizer = torch.optim.SGD(model.parameters(), lr=CLEANING_STEP, momentum=0.9 if batches else 0.0, weight_decay=1e-3 if batches else 0)

    def loss(p: Tensors) -> Tensor:
        override = {"lr": [p["lr"]], "momentum": [p["momentum"]], "weight_decay": [p["decay"]]} if batches else None
        with higher.innerloop_ctx(model, optimizer, override=override) as (moved, inner):
            for x, y in batches:
                inner.step(F.cross_entropy(moved(x), y))
            for _ in range(0 if batches else run.sizes.steps):
                inner.step(run.weighted(moved(run.data["x"]), p["weights"]))
            return F.cross_entropy(moved(run.data["x_val"]), run.data["y_val"])

    return loss


def _variant() -> Variant:
    def make(problem: str, sizes: Any, dtype: str, data: Arrays, params: Arrays, device: str, tf32: bool) -> Step:
        if isinstance(sizes, RunSizes):
            run = long_run(problem, sizes, data, params, device)
            return RunStep(reverse(_run(run), run.params), device)
        return meta_step(problem, sizes, data, params, device, _adapter(sizes.steps))

    return make


VARIANTS: dict[str, Variant] = {"higher": _variant()}
