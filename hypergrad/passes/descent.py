"""The dynamics of `unroll`: an optimiser descends an inner loss. Its transposed step is one second-order pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..backends.recording import begin_again
from ..bilevel import batch_of
from ..launches import added
from ..optimizers import SGD, Optimizer, Schedule
from ..tape import Tape, Tensor, primal, untaped, with_tangents
from ..transforms import scalar, tensor_value_and_grad
from ..trees import PyTree, tree_flatten, tree_leaves, tree_map, tree_unflatten
from . import reversible
from .dynamics import Bars, OneBatch, Pulled, Residue, Reversible, Step, transposed_by_tape


@dataclass(frozen=True)
class Descent(Reversible):
    """Descent of an inner loss. Its state is (weights, the optimiser's state), its arguments are {"hparams", "fields"}.

    Attributes:
        inner_loss: (w, hparams, batch) -> scalar Tensor.
        batches: batches[t] is the batch of step t.
        optimizer: its differentiable fields are replaced by args["fields"].
        running_loss: (w, hparams, t) -> scalar Tensor, or None. Step t outputs its value for the weights before the step (0 at t = 0),
            because the transposed step has these weights at hand. The caller adds the term of the last weights.
        first_order: whether every derivative takes the gradient of the inner loss for a constant.
        first: the number of the run's first step, where it goes on from another run. Batches and the optimiser's step number follow it.
    """

    inner_loss: Callable[[PyTree, PyTree, Any], Tensor]
    batches: Any
    optimizer: Optimizer
    running_loss: Callable[[PyTree, PyTree, int], Tensor] | None = None
    first_order: bool = False
    first: int = 0
    name: str = "unroll"

    @property
    def function(self) -> Any:
        return self.inner_loss

    def unrecordable(self) -> str | None:
        return None if self.running_loss is None else "the running loss is a function of the step's number"

    def batch(self, t: int) -> tuple[Any, int]:
        return self._batch(t), self._number(t)

    def with_batch(self, batch: Any) -> Descent:
        return replace(self, batches=OneBatch(batch), first=0)

    def reads_after(self, args: PyTree) -> bool:
        optimizer = self._optimizer(args)
        return bool(tree_leaves(args["fields"])) and optimizer.is_linear() and optimizer.is_known()

    def init(self, start: PyTree, args: PyTree) -> PyTree:
        return start, self._optimizer(args).begin(start)

    def _optimizer(self, args: PyTree) -> Optimizer:
        return self.optimizer.with_hyperparameters({k: f.values if isinstance(f, Schedule) else f for k, f in args["fields"].items()})

    def _batch(self, t: int) -> Any:
        return batch_of(self.name, self.batches, self._number(t))

    def _number(self, t: int) -> int:
        """The number of step t in the whole run."""
        return self.first + t if self.first else t

    def _gradient(self, w: PyTree, hparams: PyTree, t: int) -> tuple[Tensor, PyTree, bool]:
        """The inner loss, its gradient in w, and whether both are made of proven ops."""
        tape = Tape()
        loss, _, g = tensor_value_and_grad(lambda w: self.inner_loss(w, hparams, self._batch(t)), w, where="inner_loss", tape=tape)
        return loss, tree_map(Tensor.detach, g) if self.first_order else g, tape.proven

    def _running(self, w: PyTree, hparams: PyTree, t: int) -> Tensor:
        assert self.running_loss is not None
        return scalar("running_loss", self.running_loss(w, hparams, t))

    def value(self, state: PyTree, args: PyTree, t: int) -> PyTree:
        return self.inner_loss(state[0], args["hparams"], self._batch(t))

    def step(self, state: PyTree, args: PyTree, t: int) -> Step:
        return self._step(state, args, t)[0]

    def step_with_residue(self, state: PyTree, args: PyTree, t: int) -> tuple[Step, Residue]:
        step, g = self._step(state, args, t)
        return step, reversible.residue(self._optimizer(args), state, step.state, g, t)

    def undo(self, state: PyTree, args: PyTree, t: int, residue: Residue) -> PyTree:
        return reversible.undo(self._optimizer(args), state, lambda w: self._gradient(w, args["hparams"], t)[1], residue)

    def _step(self, state: PyTree, args: PyTree, t: int) -> tuple[Step, PyTree]:
        """Step t, and its gradient."""
        w, v = state
        loss, g, proven = self._gradient(w, args["hparams"], t)
        optimizer = self._optimizer(args)
        after = optimizer.advance(w, v, g, self._number(t))
        output = None
        if self.running_loss is not None:
            output = self._running(w, args["hparams"], t) if t else 0.0 * loss.detach()
        return Step(after, output, loss, None if optimizer.is_known() else after, proven), g

    def step_transposed(
        self, state: PyTree, args: PyTree, t: int, after: PyTree, state_bar: Bars, output_bar: Bars, proven: bool
    ) -> Pulled:
        """Cotangents of a step, by one second-order pass.

        Let U(s, g, fields) be the optimiser's update, L the inner loss and beta = g_bar the cotangent of the gradient. Then

            w_bar = (dU/dw)^T bars + H_ww beta,    hparams_bar = H_lambda,w beta,    every other bar (dU/d.)^T bars.

        One pass gives H_ww beta and H_lambda,w beta: the gradient of L in (w, lambda) while w carries the tangent beta. It gives
        g as well, so an update that is linear in g needs no separate gradient. Momentum's state after the step is all that the cotangent
        of lr needs, so there g is not computed at all.

        The pass gives H beta, and the step needs H^T beta. The two are equal where H is symmetric. That holds where every op of L
        has rules that are proven to be the derivatives of its value; values cut by `stop_gradient` are constants to all of them.
        Every other step goes through a tape.

        Equation: Franceschi et al. 2017, eq. 7 (alpha_{t-1} = alpha_t A_t and alpha_t B_t).
        """
        if not proven:
            return transposed_by_tape(self, state, args, t, state_bar, output_bar)
        w, hparams, fields = state[0], args["hparams"], args["fields"]
        optimizer = self._optimizer(args)
        # The last transposition of the update needs g itself for the cotangents of fields and for the result of an update that is compared.
        linear, wants_g = optimizer.is_linear(), bool(tree_leaves(fields)) or not optimizer.is_known()
        direction = None if after is None else optimizer.direction(after[1])
        wants_g = wants_g and direction is None
        loss, g, products, hparams_bar = None, w, None, None  # a linear update has the same slope at any g, so w will do for g
        at_hand = begin_again()  # the first run has left the gradient, and the step itself
        if not linear or at_hand or self.first_order and wants_g:
            loss, g, _ = self._gradient(w, hparams, t)
            begin_again()
        if linear and wants_g and not self.first_order and not at_hand:
            beta = self._update_transposed(state, g, fields, t, state_bar, wanted=("g",))[0]["g"]
            loss, g, products, hparams_bar = with_tangents(self._second_order, w, hparams, t, beta, True)
            bars, compared = self._update_transposed(state, g, fields, t, state_bar)
        else:
            bars, compared = self._update_transposed(state, tree_map(Tensor.detach, g), fields, t, state_bar)
            if not self.first_order:
                loss, _, products, hparams_bar = with_tangents(self._second_order, w, hparams, t, bars["g"], False)
        if direction is not None and "lr" in fields:
            bars["fields"] = self._with_lr_bar(bars["fields"], direction, fields, t, state_bar)
        w_bar = bars["w"] if products is None else added(bars["w"], products)
        hparams_bar = [None] * len(tree_leaves(hparams)) if hparams_bar is None else hparams_bar
        if self.running_loss is not None and t and output_bar[0] is not None:
            _, _, both = tensor_value_and_grad(lambda both: self._running(both[0], both[1], t), (w, hparams), where="running_loss")
            terms = [x * output_bar[0] for x in tree_leaves(both)]
            w_bar, hparams_bar = added(w_bar, terms[: len(w_bar)]), added(hparams_bar, terms[len(w_bar) :])
        return Pulled([*w_bar, *bars["v"]], [*bars["fields"], *hparams_bar], loss, compared)

    def _update_transposed(
        self, state: PyTree, g: PyTree, fields: PyTree, t: int, state_bar: Bars, *, wanted: tuple[str, ...] = ("w", "v", "g", "fields")
    ) -> tuple[dict[str, Bars], PyTree]:
        """Cotangents of the wanted arguments of the update, and its result where it is compared."""
        arguments = {k: tree_flatten(x) for k, x in (("w", state[0]), ("v", state[1]), ("g", g), ("fields", fields))}
        tape = Tape()

        def taped() -> tuple[dict[str, list[Tensor]], PyTree]:
            leaves = {k: [tape.watch(x) for x in xs] if k in wanted else xs for k, (xs, _) in arguments.items()}
            a = {k: tree_unflatten(spec, leaves[k]) for k, (_, spec) in arguments.items()}
            return leaves, self._optimizer(a).advance(a["w"], a["v"], a["g"], self._number(t))

        leaves, after = tape.run(taped)
        compared = None if self.optimizer.is_known() else tree_map(untaped, after)
        outs = tree_leaves(after)
        bars = iter(tape.gradients(outs, state_bar[: len(outs)], [x for k in wanted for x in leaves[k]]))
        return {k: [next(bars) for _ in leaves[k]] for k in wanted}, compared

    def _with_lr_bar(self, bars: Bars, direction: PyTree, fields: PyTree, t: int, state_bar: Bars) -> Bars:
        """The fields' cotangents with those of lr for a step w - lr*direction. They are the same at any w: `direction` is read anyway."""
        plain = replace(self, optimizer=SGD(lr=fields["lr"]))
        lr_bars = plain._update_transposed((direction, ()), direction, {"lr": fields["lr"]}, t, state_bar, wanted=("fields",))[0]["fields"]
        start = sum(len(tree_leaves(fields[k])) for k in fields if k < "lr")  # leaves of a dictionary are in order of its keys
        return [*bars[:start], *lr_bars, *bars[start + len(lr_bars) :]]

    def _second_order(self, w: PyTree, hparams: PyTree, t: int, beta: Bars, wants_g: bool) -> tuple[Tensor, PyTree, Bars, Bars]:
        """The loss, its gradient where it is wanted, H_ww beta and H_lambda,w beta."""
        rows = [None if b is None else Tensor(b.value[None]) for b in beta]
        loss, g, *both = second_order(lambda w, hparams: self.inner_loss(w, hparams, self._batch(t)), w, hparams, rows, wants_g)
        products, mixed = ([None if x is None else Tensor(x.value[0, ...]) for x in bars] for bars in both)
        return loss, g, products, mixed


def second_order(
    inner_loss: Callable[[PyTree, PyTree], Tensor], w: PyTree, hparams: PyTree, beta: Bars, wants_g: bool = True
) -> tuple[Tensor, PyTree, Bars, Bars]:
    """The loss, its gradient in w, H_ww beta and H_lambda,w beta, in one pass: a gradient while w carries the tangents beta, (P, ...).

    Where the gradient itself is not wanted, None stands in its place, and kernels leave it out.

    It is run inside `with_tangents`. The products have the leading axis P, and are None where they are zero.
    """
    leaves, spec = tree_flatten(w)
    moving = tree_unflatten(spec, [x if b is None else Tensor(x.value, b) for x, b in zip(leaves, beta, strict=True)])
    loss, _, (g, mixed) = tensor_value_and_grad(lambda both: inner_loss(*both), (moving, hparams), where="inner_loss", values=wants_g)
    return primal(loss), tree_map(primal, g) if wants_g else None, [x.dot for x in tree_leaves(g)], [x.dot for x in tree_leaves(mixed)]
