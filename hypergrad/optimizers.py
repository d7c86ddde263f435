"""Optimisers whose every field is a hyperparameter that can be differentiated.

An optimiser is a pure map of (weights, state, gradient, step number); it holds no state of its own. A field is a
number, an array, a Tensor, or a pytree like the weights (one entry per leaf, for instance a step size per direction).

A step is one kernel call for all leaves where every field is a number or has no axes, and each rule of its derivative is one
more; with other fields, such as elementwise step sizes, it is composed of ops.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from .errors import ArgumentError
from .ops.optimizer_step import adam_step, sgd_step
from .tape import paused, zeros_like
from .transforms import tree_tensors, tree_values
from .trees import PyTree, is_leaf, tree_flatten, tree_map, tree_unflatten


def _per_leaf(spec: Any, tree: PyTree) -> Any:
    """The leaves of a pytree of structure `spec` as a list; anything that is no pytree as it is."""
    own, own_spec = tree_flatten(tree)
    if is_leaf(own_spec):
        return tree
    if own_spec == spec:
        return own
    raise ArgumentError(f"optimizer: a field has the structure {own_spec}, expected a number, an array or {spec} because it serves "
                        "every leaf or has one entry per leaf; match the weights' structure")


def _leaves(spec: Any, n: int, tree: PyTree) -> list[Any]:
    """One entry for each of the n leaves."""
    own = _per_leaf(spec, tree)
    return own if isinstance(own, list) else [own] * n


@dataclass(frozen=True)
class Optimizer:
    """What the passes need: `init`, `update`, and whether the update is linear in the gradient."""

    linear_in_gradient: ClassVar[bool] = False

    def init(self, w: PyTree) -> PyTree:
        """The state before the first step (a pytree of Tensors without tangents)."""
        return ()

    def update(self, w: PyTree, state: PyTree, g: PyTree, t: int) -> tuple[PyTree, PyTree]:
        """One step, in ops.

        Args:
            w: weights, a pytree of Tensors.
            state: what `init` or the previous `update` returned.
            g: gradient, like w.
            t: number of steps done so far, 0 at the first.
        Returns: (w, state) after the step.
        """
        return w, state

    def hyperparameters(self) -> dict[str, Any]:
        """The fields by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def with_hyperparameters(self, values: dict[str, Any]) -> Optimizer:
        """The same optimiser with other values in its fields."""
        return replace(self, **values)

    def step(self, w: PyTree, state: PyTree | None, g: PyTree, t: int) -> tuple[PyTree, PyTree]:
        """One step on arrays, off the tape: what a training loop calls.

        Args:
            w, g: pytrees of arrays.
            state: None at the first step, then what the last call returned.
            t: number of steps done so far.
        Returns: (w, state), pytrees of arrays.
        """
        with paused():
            tensors = tree_tensors(w, "step")
            before = self.init(tensors) if state is None else tree_tensors(state, "step")
            after = self.update(tensors, before, tree_tensors(g, "step"), t)
        return tree_values(after[0]), tree_values(after[1])


@dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent with momentum: v <- momentum*v + g, w <- w - lr*v.

    Args:
        lr: step size.
        momentum: mu; the number 0 keeps no velocity, so that the state is w alone.
        nesterov: step along g + mu*v instead of v.
        weight_decay: adds weight_decay * w to g.
    Memory: w, and as much again with momentum.
    Source: Sutskever et al. 2013, ICML (momentum and Nesterov's form).
    """

    lr: Any
    momentum: Any = 0.0
    nesterov: bool = False
    weight_decay: Any = 0.0
    linear_in_gradient: ClassVar[bool] = True

    def _plain(self) -> bool:
        return isinstance(self.momentum, (int, float)) and self.momentum == 0

    def init(self, w: PyTree) -> PyTree:
        """Zero velocity, or nothing without momentum."""
        return () if self._plain() else tree_map(zeros_like, w)

    def update(self, w: PyTree, state: PyTree, g: PyTree, t: int) -> tuple[PyTree, PyTree]:
        """See `Optimizer.update`."""
        leaves, spec = tree_flatten(w)
        v = None if self._plain() else _leaves(spec, len(leaves), state)
        lr, momentum, decay = (_per_leaf(spec, f) for f in (self.lr, self.momentum, self.weight_decay))
        w_next, v_next = sgd_step(leaves, v, _leaves(spec, len(leaves), g), lr, momentum, decay, nesterov=self.nesterov)
        return tree_unflatten(spec, w_next), () if v_next is None else tree_unflatten(spec, v_next)


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam: m <- b1*m + (1-b1)*g, s <- b2*s + (1-b2)*g^2, w <- w - lr * m_hat / sqrt(s_hat + eps).

    eps stands inside the square root, so that the derivative exists where g = 0.

    Args:
        lr: step size.
        beta1, beta2: decay of the two moments, in [0, 1).
        eps: added to the second moment, > 0.
    Memory: three times w.
    Source: Kingma & Ba 2015, arXiv:1412.6980.
    """

    lr: Any
    beta1: Any = 0.9
    beta2: Any = 0.999
    eps: Any = 1e-8

    def init(self, w: PyTree) -> PyTree:
        """Zero moments."""
        return {"m": tree_map(zeros_like, w), "s": tree_map(zeros_like, w)}

    def update(self, w: PyTree, state: PyTree, g: PyTree, t: int) -> tuple[PyTree, PyTree]:
        """See `Optimizer.update`."""
        leaves, spec = tree_flatten(w)
        states = [_leaves(spec, len(leaves), x) for x in (state["m"], state["s"], g)]
        fields = [_per_leaf(spec, f) for f in (self.lr, self.beta1, self.beta2, self.eps)]
        w_next, m_next, s_next = (tree_unflatten(spec, x) for x in adam_step(leaves, *states, *fields, t=t))
        return w_next, {"m": m_next, "s": s_next}
