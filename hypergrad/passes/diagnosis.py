"""What is wrong with a run whose result cannot be meant: states that are not finite, hyperparameters that nothing reads."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from ..backends import is_on_gpu
from ..errors import DifferentiationError
from ..state import set_aside
from ..tape import Tensor
from ..transforms import dependence
from ..trees import PyTree, tree_leaves, tree_named


def check_run(mode: str, run: Any, rerun: Callable[[Callable[[int, PyTree, Any], None]], Any]) -> None:
    """Raises: DifferentiationError that names the leaf and the step, if the last state of a run is not finite. GPU arrays are not checked.

    Args:
        run: with its last weights `w` and `state`.
        rerun: takes a callback as `unroll` does, and runs the steps again.
    """
    named = tree_named(run.w, "w") + tree_named(run.state, "state")
    wrong = [name for name, x in named if not (is_on_gpu(x.value) or np.isfinite(x.value).all())]
    if not wrong:
        return
    found: list[tuple[str, int]] = []

    def look(t: int, w: PyTree, loss: Any) -> None:
        if not found:
            found.extend((name, t - 1) for name, x in tree_named(w, "w") if not np.isfinite(x).all())

    rerun(look)
    name, step = found[0] if found else (wrong[0], None)
    when = "after the last step" if step is None else f"after step {step}" if step >= 0 else "before the first step, from init"
    raise DifferentiationError(
        f"{mode}: {name} is not finite {when}, expected finite numbers because the run diverged; lower the inner step size, or clip the "
        "gradient with clip=hg.clip_by_norm(1.0)"
    )


def warn_without_influence(mode: str, hparams: PyTree, grad: PyTree, short: Callable[[PyTree], Tensor]) -> None:
    """One warning that names the hyperparameters which the objective does not depend on.

    Only a hyperparameter whose derivative is exactly zero can be such a one. Then a tape of `short`, the objective after two steps, tells.
    """
    if not any(x.size and not is_on_gpu(x.value) and not x.value.any() for x in tree_leaves(grad)):
        return
    depends = set_aside(dependence, short, hparams)
    idle = [name for (name, _), known in zip(tree_named(hparams, "hparams"), depends, strict=True) if not known]
    if idle:
        warnings.warn(
            f"{mode}: {', '.join(idle)} {'has' if len(idle) == 1 else 'have'} no influence on the outer objective: no loss, start or "
            "optimizer reads a value that gradients follow; use it there, leave it out, or look for stop_gradient and .value on its way",
            stacklevel=4,
        )
