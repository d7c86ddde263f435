"""The pass that a tuning run takes, as a section of its configuration; and the inner run without derivatives."""

from dataclasses import dataclass
from typing import Any, Literal

from ..bilevel import Batches, Bilevel, HyperGradient
from ..errors import ArgumentError
from ..passes.forward import forward
from ..passes.implicit import implicit
from ..passes.reverse import reverse
from ..passes.solvers import CG
from ..passes.unroll import unroll
from ..runs.configuration import Section, option
from ..transforms import tree_values
from ..trees import PyTree

POLICIES = ("all", "sqrt", "host", "reversible")


@dataclass(frozen=True)
class Hypergradient(Section):
    """How hypergradients are computed. Args: see the options' help. Raises: ArgumentError for an unknown policy."""

    mode: Literal["reverse", "forward", "implicit"] = option(
        "reverse", "How hypergradients are computed: back through the run, along with it, or at its end taken for a solution."
    )
    checkpoints: str = option("all", "States that reverse mode keeps: all, sqrt, host, reversible, or a number.")
    damping: float = option(1e-3, "Added to the Hessian's diagonal in implicit mode.", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.checkpoints not in POLICIES and not (self.checkpoints.isdecimal() and int(self.checkpoints) > 0):
            raise ArgumentError(
                f"config: checkpoints is {self.checkpoints!r}, expected {', '.join(POLICIES)} or a number of at least 1; pass one of these"
            )

    def of(self, problem: Bilevel, hparams: PyTree, batches: Batches, **options: Any) -> HyperGradient:
        """The hypergradient.

        Args: as `hypergrad.reverse`; options: of reverse mode, beside `checkpoints`.
        Returns: a HyperGradient.
        Raises: as the pass.
        Cost: that of the pass; see `hypergrad.reverse`, `hypergrad.forward` and `hypergrad.implicit`, the last after a run without
            derivatives.
        """
        if self.mode == "forward":
            return forward(problem, hparams, batches)
        if self.mode == "implicit":
            w, _ = trained(problem, hparams, batches)
            return implicit(problem, hparams, w, batches[len(batches) - 1], solver=CG(damping=self.damping), gradient_tolerance=1.0)
        policy = int(self.checkpoints) if self.checkpoints.isdecimal() else self.checkpoints
        return reverse(problem, hparams, batches, checkpoints=policy, **options)


def trained(problem: Bilevel, hparams: PyTree, batches: Batches) -> tuple[PyTree, float]:
    """The inner run without derivatives.

    Args: as `hypergrad.reverse`. Returns: w_T, a pytree of arrays, and the outer loss there. Cost: T steps.
    """
    optimizer = problem.optimizer(hparams)
    w = tree_values(unroll(problem.inner_loss, problem.init(hparams), hparams, batches, optimizer=optimizer, checkpoints=1))
    return w, float(problem.outer_loss(w, hparams).value)
