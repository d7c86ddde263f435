"""What `hypergrad plan` does: the passes' costs for a built-in problem, as a table and as a figure."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import ArgumentError
from ..plan import Plan, in_bytes, plan
from ..runs.curves import BLUE, GREY, ORANGE, new_figure, png
from .config import Config, make_config
from .problem import SingleRun


def plan_problem(problem: str, changes: Mapping[str, Any], shorten: bool, memory_bytes: int | None) -> tuple[Config, Plan]:
    """The plan for the first outer iteration of a problem.

    Args:
        problem: a key of `PROBLEMS`; changes: options by name; shorten: whether to take its short form.
        memory_bytes: the most bytes that a pass may allocate, None for any number.
    Returns: the configuration and the plan. Raises: ArgumentError, DataError. Cost: that of `hypergrad.plan`, and of opening the data.
    """
    config = make_config(problem, shorten, **changes)
    task = config.problem.open(config.seed)
    if isinstance(task, SingleRun):
        raise ArgumentError(
            f"plan: {problem} is one training run, expected a problem with an outer loop because hg.online has no other passes to choose "
            "from; name another problem"
        )
    inner, batches = task.inner(1)
    return config, plan(inner, task.project(task.init()), batches, memory_bytes=memory_bytes)


def figure(found: Plan, title: str) -> bytes:
    """Peak bytes against seconds, a point for each pass. Args: found: the plan; title: what was planned. Returns: a PNG file."""
    drawn, axes = new_figure(7.0, 4.6, 1, 1)
    seconds = np.array([r.seconds for r in found.routes])
    peak = np.array([r.peak_bytes / 1e6 for r in found.routes])
    colors = [ORANGE if r is found.choice else BLUE for r in found.routes]
    axes.scatter(seconds, peak, color=colors, zorder=3)
    for route, x, y in zip(found.routes, seconds, peak, strict=True):
        chosen = " (chosen)" if route is found.choice else ""
        axes.annotate(f"{route.name}{chosen}", (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8)
    if found.memory_bytes is not None:
        axes.axhline(found.memory_bytes / 1e6, color=GREY, linestyle="--", linewidth=1.2)
        axes.annotate(
            f"budget {in_bytes(found.memory_bytes)}", (seconds.min(), found.memory_bytes / 1e6), fontsize=8, color=GREY, va="bottom"
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(0.25)
    axes.set_xlabel("predicted seconds of one hypergradient")
    axes.set_ylabel("predicted peak memory, MB")
    axes.grid(alpha=0.25)
    axes.set_title(f"{title}\nT = {found.n_steps} steps, N = {found.n_hparams} hyperparameters", fontsize=9)
    return png(drawn)
