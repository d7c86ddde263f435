"""One step of the inner run, s_t = Phi_t(s_{t-1}, lambda), and its transpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..optimizers import Optimizer
from ..tape import Tape, Tensor, tangents, zeros_like
from ..transforms import tensor_value_and_grad, tree_tensors, tree_values
from ..trees import PyTree, tree_flatten, tree_leaves, tree_map, tree_unflatten

State = tuple[PyTree, PyTree]
"""(weights, optimiser state), pytrees of Tensors or, where it is stored, of arrays."""


@dataclass(frozen=True)
class Dynamics:
    """The map Phi: what a step needs beside the state and the hyperparameters."""

    inner_loss: Callable[[PyTree, PyTree, Any], Tensor]
    batches: Any
    optimizer: Optimizer

    def step(self, state: State, hparams: PyTree, fields: dict[str, Any], t: int) -> State:
        """The state after step t; tangents of any argument flow through."""
        w, v = state
        _, _, g = tensor_value_and_grad(lambda w: self.inner_loss(w, hparams, self.batches[t]), w, where="inner_loss")
        return self.optimizer.with_hyperparameters(fields).update(w, v, g, t)

    def step_transposed(self, state: State, hparams: PyTree, fields: dict[str, Any], t: int, bars: State) -> tuple[State, PyTree, PyTree]:
        """Cotangents of (state, hparams, fields) from those of the state after step t.

        With U(s, g, fields) the optimiser's update and L the inner loss, and beta = g_bar the cotangent of the gradient:

            w_bar = (dU/dw)^T bars + H_ww beta,    hparams_bar = H_lambda,w beta,    the rest (dU/d.)^T bars

        H_ww beta and H_lambda,w beta come out of one pass: the gradient of L in (w, lambda) while w carries the tangent
        beta. That pass also gives g, so an update that is linear in g asks for no gradient of its own.

        Equation: Franceschi et al. 2017, eq. 7 (alpha_{t-1} = alpha_t A_t and alpha_t B_t).
        """
        w, v = state
        if self.optimizer.linear_in_gradient:
            # w stands in for g: dU/dg depends on neither. Without fields, nothing else depends on g.
            update_bars = self._update_transposed(state, w, fields, t, bars, only_gradient=bool(fields))
            beta = update_bars["g"]
        else:
            _, _, g = tensor_value_and_grad(lambda w: self.inner_loss(w, hparams, self.batches[t]), w, where="inner_loss")
            update_bars = self._update_transposed(state, tree_map(Tensor.detach, g), fields, t, bars)
            beta = update_bars["g"]
        with tangents():
            moving = tree_map(lambda x, b: Tensor(x.value, Tensor(b.value[None])), w, beta)
            _, _, (g, hparams_g) = tensor_value_and_grad(
                lambda both: self.inner_loss(both[0], both[1], self.batches[t]), (moving, hparams), where="inner_loss")
            products = [h.dot for h in tree_leaves(g)]
            hparams_bar = tree_map(lambda h: zeros_like(h) if h.dot is None else Tensor(h.dot.value[0]), hparams_g)
        if self.optimizer.linear_in_gradient and fields:
            update_bars = self._update_transposed(state, tree_map(Tensor.primal, g), fields, t, bars)
        leaves, spec = tree_flatten(update_bars["w"])
        w_bar = tree_unflatten(spec, [b if d is None else b + Tensor(d.value[0]) for b, d in zip(leaves, products, strict=True)])
        return (w_bar, update_bars["v"]), hparams_bar, update_bars["fields"]

    def _update_transposed(self, state: State, g: PyTree, fields: dict[str, Any], t: int, bars: State, *,
                           only_gradient: bool = False) -> PyTree:
        """Cotangents of the update's arguments w, v, g and fields; of g alone if that is all that is wanted."""
        arguments = {"w": state[0], "v": state[1], "g": g, "fields": fields}
        constant = {} if not only_gradient else {k: arguments.pop(k) for k in ("w", "v", "fields")}
        leaves, spec = tree_flatten(arguments)
        with Tape() as tape:
            watched = [tape.watch(x) for x in leaves]
            a = {**tree_unflatten(spec, watched), **constant}
            after = self.optimizer.with_hyperparameters(a["fields"]).update(a["w"], a["v"], a["g"], t)
        got = tape.gradients(tree_leaves(after), tree_leaves(bars), watched)
        return tree_unflatten(spec, [zeros_like(x) if b is None else b for x, b in zip(leaves, got, strict=True)])


def store(state: State) -> State:
    """The state as arrays. Nothing is copied: ops never write into their inputs."""
    return (tree_values(state[0]), tree_values(state[1]))


def load(state: State) -> State:
    """A stored state as Tensors."""
    return (tree_tensors(state[0], "unroll"), tree_tensors(state[1], "unroll"))


def n_bytes(state: State) -> int:
    """Bytes of a state, tangents included."""
    total = 0
    for x in tree_leaves(state):
        value = x.value if isinstance(x, Tensor) else x
        total += value.nbytes + (x.dot.value.nbytes if isinstance(x, Tensor) and x.dot is not None else 0)
    return total
