"""The long runs in hypertorch: its recorded graph of all steps, and its reverse mode that makes every step again (Grazzi et al. 2020).

The package has the name hypergrad, too, so it has to stand before ours on the path of this process.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from meta_problems import Arrays, Step, Unsupported, Variant
from run_problems import CLEANING_STEP
from runs_torch import Compute, Run, RunStep, Tensors
from torch import Tensor
from torch_modules import long_run

import hypergrad

if hasattr(hypergrad, "unroll"):
    raise Unsupported("the package hypergrad that is found is not hypertorch's")
from hypergrad import diff_optimizers, hypergradients  # noqa: E402


def _maps(run: Run) -> list[Any]:
    """The update of every step: (weights, hyperparameters) -> weights."""
    if run.problem == "hyper-cleaning":
        step = diff_optimizers.GradientDescent(lambda w, h: run.weighted(run.logits(w, run.data["x"]), h[0]), CLEANING_STEP)
        return [step] * run.sizes.steps

    def momentum(x: Tensor, y: Tensor) -> Any:
        def loss(w: Any, h: Any) -> Tensor:
            return F.cross_entropy(run.logits(w, x), y) + 0.5 * h[2] * sum((a * a).sum() for a in w)

        return diff_optimizers.Momentum(loss, step_size=lambda h: h[0], momentum=lambda h: h[1])

    return [momentum(x, y) for x, y in run.batches]


def _hypergradient(run: Run, again: bool) -> Compute:
    """By the recorded graph, or with every step made `again`."""
    maps, hparams = _maps(run), [a.requires_grad_() for a in run.params.values()]
    found: list[Tensor] = []  # hypertorch gives no loss beside the gradient

    def outer(w: Any, _: Any) -> Tensor:
        found[:] = [run.validation(w)]
        return found[0]

    def compute() -> tuple[Tensor, Tensors]:
        w = maps[0].get_opt_params([a.requires_grad_() for a in run.start()])
        if again:
            history = [w]
            for step in maps:
                w = [a.detach().requires_grad_() for a in step(w, hparams, create_graph=False)]
                history.append(w)
            grads = hypergradients.reverse(history, hparams, maps, outer, set_grad=False)
        else:
            for step in maps:
                w = step(w, hparams, create_graph=True)
            grads = hypergradients.reverse_unroll(w, hparams, outer, set_grad=False)
        return found.pop().detach(), dict(zip(run.params, grads, strict=True))

    return compute


def _variant(*, again: bool) -> Variant:
    def make(problem: str, sizes: Any, dtype: str, data: Arrays, params: Arrays, device: str, tf32: bool) -> Step:
        return RunStep(_hypergradient(long_run(problem, sizes, data, params, device), again), device)

    return make


VARIANTS: dict[str, Variant] = {"hypertorch unroll": _variant(again=False), "hypertorch": _variant(again=True)}
