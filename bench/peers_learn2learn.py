"""The meta-steps in learn2learn: its MAML wraps a module (Arnold et al. 2020).

Only the file of MAML is imported. The package imports gym and torchvision as well, which MAML does not need.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from meta_problems import INNER_STEP, Arrays, Step, Variant
from torch import Tensor, nn
from torch_modules import meta_step


@cache
def _maml() -> Any:
    """The class MAML, from the folder of the package."""
    spec = importlib.util.find_spec("learn2learn")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("learn2learn is not installed")
    root = Path(spec.origin).parent
    for name, folder in (("learn2learn", root), ("learn2learn.algorithms", root / "algorithms")):
        module = ModuleType(name)
        module.__path__ = [str(folder)]
        sys.modules[name] = module
    return import_module("learn2learn.algorithms.maml").MAML


def _adapter(n_steps: int) -> Callable[..., Tensor]:
    made: list[Any] = []

    def adapt(module: nn.Module, support: Any, query: Any, lr: Tensor | None) -> Tensor:
        if not made:
            made.append(_maml()(module, lr=INNER_STEP if lr is None else lr))
        learner = made[0].clone()
        for _ in range(n_steps):
            learner.adapt(support(learner))
        return query(learner)

    return adapt


def _variant() -> Variant:
    def make(problem: str, sizes: Any, dtype: str, data: Arrays, params: Arrays, device: str, tf32: bool) -> Step:
        return meta_step(problem, sizes, data, params, device, _adapter(sizes.steps))

    return make


VARIANTS: dict[str, Variant] = {"learn2learn": _variant()}
