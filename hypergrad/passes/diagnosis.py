"""What is wrong with a run whose result cannot be meant: states that are not finite, hyperparameters that nothing reads."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from ..backends import backend_of, is_on_gpu
from ..errors import DifferentiationError
from ..state import set_aside
from ..tape import Tape, Tensor
from ..trees import PyTree, tree_flatten, tree_leaves, tree_named, tree_unflatten


def check_finite(mode: str, run: Any, rerun: Callable[[Callable[[int, PyTree, Any], None]], Any]) -> None:
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
    leaves, spec = tree_flatten(hparams)
    tape = Tape()

    def taped() -> tuple[list[Tensor], Tensor]:
        watched = [tape.watch(x) for x in leaves]
        return watched, short(tree_unflatten(spec, watched))

    def bars() -> list[Tensor | None]:
        watched, out = tape.run(taped)
        return tape.gradients([out], [Tensor(backend_of(out.value).xp.ones_like(out.value))], watched)

    idle = [name for (name, _), bar in zip(tree_named(hparams, "hparams"), set_aside(bars), strict=True) if bar is None]
    if idle:
        warnings.warn(
            f"{mode}: {', '.join(idle)} {'has' if len(idle) == 1 else 'have'} no influence on the outer objective: no loss, start or "
            "optimizer reads a value that gradients follow; use it there, leave it out, or look for stop_gradient and .value on its way",
            stacklevel=4,
        )
