"""T steps of an optimiser as one op: its jvp is the forward pass, its vjp the reverse pass over checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..backends import Array, Backend
from ..bilevel import Batches, Stats
from ..errors import DifferentiationError
from ..ops.block import PatchStatistics
from ..optimizers import Optimizer
from ..rules import applied, settings
from ..tape import Node, Tensor, levels_of, paused, record, to_tensors, zeros_like
from ..transforms import tree_tensors
from ..trees import PyTree, tree_flatten, tree_leaves, tree_map, tree_structure, tree_unflatten
from . import schedule
from .step import Dynamics, State, load, n_bytes, store

_FIRST_ORDER = ("unroll: its derivative is being differentiated again, expected first order because the passes already use the engine's "
                "second order; write the steps as a Python loop inside the function")


class _Unroll:
    """The op of one call. Its inputs are the leaves of w_0, hparams and the optimiser's differentiable fields."""

    name = "unroll"

    def __init__(self, dynamics: Dynamics, arguments: dict[str, PyTree], policy: int | str, stats: Stats) -> None:
        self.dynamics, self.policy, self.stats = dynamics, policy, stats
        self.spec = tree_structure(arguments)
        self.n_steps = len(dynamics.batches)
        self.stored: dict[int, State] | None = None
        self.settings = settings()  # a step that is run again, or transposed, must have the bits of the first run
        self.patches = PatchStatistics()  # of the batches' images, from the first run to the end of the pullback

    def run(self, inputs: list[Tensor], *, keep: bool) -> State:
        """s_T; with `keep`, the states of the policy's first run are stored on the way."""
        self.patches = PatchStatistics()
        with paused(), self.patches.shared(), applied(self.settings):
            a = tree_unflatten(self.spec, [t.detach() for t in inputs])
            state = (a["w"], self.dynamics.optimizer.with_hyperparameters(a["fields"]).init(a["w"]))
            wanted = schedule.first_run(self.n_steps, self.policy) if keep else set()
            self.stored = {} if keep else None
            for t in range(self.n_steps):
                if t in wanted:
                    self._store(t, state)
                state = self.dynamics.step(state, a["hparams"], a["fields"], t)
        return state

    def _store(self, t: int, state: State) -> None:
        assert self.stored is not None
        self.stored[t] = store(state)
        self.stats.hold(t, n_bytes(self.stored[t]))

    def forward(self, backend: Backend, values: list[Array], attrs: dict[str, Any]) -> tuple[tuple[Array, ...], Any]:
        """The value alone, from arrays."""
        state = self.run([Tensor(v) for v in values], keep=False)
        return tuple(t.value for t in tree_leaves(state[0])), None

    def push(self, node: Node, inputs: list[Tensor], dots: list[Tensor | None]) -> Sequence[Tensor | None]:
        """The forward pass."""
        state = self.run([Tensor(x.value, d) for x, d in zip(inputs, dots, strict=True)], keep=False)
        return [t.dot for t in tree_leaves(state[0])]

    def pull(self, node: Node, bars: list[Tensor | None], want: list[bool]) -> Sequence[Tensor | None]:
        """The reverse pass: visits the states from T-1 to 0 as the schedule says."""
        if levels_of([*node.inputs, *bars]) or any(t.dot is not None for t in [*node.inputs, *bars] if t is not None):
            raise DifferentiationError(_FIRST_ORDER)
        values = [Tensor(t.value) for t in node.inputs]
        if self.stored is None:  # the pullback is called again: the states were dropped as it used them
            self.run(values, keep=True)
            self.stats.steps_rerun += self.n_steps
        assert self.stored is not None
        stored = self.stored
        with paused(), self.patches.shared(), applied(self.settings):
            a = tree_unflatten(self.spec, values)
            w_bar = [zeros_like(Tensor(v)) if b is None else b.detach() for (v, _), b in zip(node.outputs, bars, strict=True)]
            w_spec = tree_structure(a["w"])
            v_zero = self.dynamics.optimizer.with_hyperparameters(a["fields"]).init(a["w"])
            bar: State = (tree_unflatten(w_spec, w_bar), tree_map(zeros_like, v_zero))
            total = {"hparams": tree_map(zeros_like, a["hparams"]), "fields": tree_map(zeros_like, a["fields"])}
            state = bar
            for action, t in schedule.backward(self.n_steps, self.policy):
                if action == "load":
                    state = load(stored[t])
                elif action == "step":
                    state = self.dynamics.step(state, a["hparams"], a["fields"], t)
                    self.stats.steps_rerun += 1
                elif action == "store":
                    self._store(t, state)
                elif action == "free":
                    del stored[t]
                    self.stats.release(t)
                else:
                    bar, h_bar, f_bar = self.dynamics.step_transposed(state, a["hparams"], a["fields"], t, bar)
                    total = tree_map(lambda x, y: x + y, total, {"hparams": h_bar, "fields": f_bar})
        self.stored, self.patches = None, PatchStatistics()
        return [t if wanted else None for t, wanted in zip(tree_leaves({"w": bar[0], **total}), want, strict=True)]


def unroll(inner_loss: Callable[[PyTree, PyTree, Any], Tensor], w_0: PyTree, hparams: PyTree, batches: Batches, *,
           optimizer: Optimizer, checkpoints: Any = "all", stats: Stats | None = None) -> PyTree:
    """The weights after T = len(batches) steps of `optimizer` on `inner_loss`, as one differentiable op.

    w_T may be differentiated in w_0, in hparams and in every field of the optimiser that is an array or Tensor: by reverse
    mode inside `grad`, by forward mode inside `jvp`. Code before and after it is ordinary taped code.

    Args:
        inner_loss: (w, hparams, batch) -> scalar Tensor. It must use no Tensor from outside that a gradient follows.
        w_0: start, a pytree of arrays or Tensors, float32 or float64.
        hparams: pytree of arrays or Tensors; () if there is none.
        batches: indexable and pure; batches[t] is the batch of step t.
        optimizer: an Optimizer, such as SGD(lr=..., momentum=...).
        checkpoints: "all", "sqrt" or the number of states to hold, >= 1; used by reverse mode alone.
        stats: a Stats to count into.
    Returns: w_T, a pytree of Tensors like w_0.
    Raises: ArgumentError for the checkpoint policy; DifferentiationError for a closure over a followed Tensor, and where
        the gradient of an unroll is differentiated again.
    Equation: s_t = Phi_t(s_{t-1}, lambda), t = 1..T (Franceschi et al. 2017, eq. 3).
    Memory: "all" T states, "sqrt" 2 ceil(sqrt(T)), c: c states; forward mode 1 + P states for P directions.
    Time: T steps, plus those run again ("sqrt" fewer than T; c as `schedule.reruns`); a step backward costs about three.
    """
    policy = schedule.parse(checkpoints, len(batches))
    stats = Stats("unroll") if stats is None else stats
    w_0 = tree_tensors(w_0, "unroll")
    fields = {k: f for k, f in optimizer.hyperparameters().items() if not isinstance(f, (bool, int, float))}
    like = next(iter(tree_leaves(w_0)), None)  # numbers inside a field's pytree follow the weights' dtype
    fields = tree_map(lambda x: to_tensors("unroll", [x, like] if type(x) in (int, float, bool) and like is not None else [x])[0], fields)
    arguments = {"w": w_0, "hparams": tree_tensors(hparams, "unroll"), "fields": fields}
    op = _Unroll(Dynamics(inner_loss, batches, optimizer), arguments, policy, stats)
    inputs = tree_leaves(arguments)
    levels = levels_of(inputs)
    if levels and any(t.dot is not None for t in inputs):
        raise DifferentiationError(_FIRST_ORDER)
    state = op.run(inputs, keep=bool(levels))
    stats.steps_run += op.n_steps
    directions = max((t.dot.shape[0] for t in tree_leaves(state) if t.dot is not None), default=0)
    if not levels:
        stats.hold(op.n_steps, n_bytes(state), 1 + directions)
        stats.release(op.n_steps)
    outs, spec = tree_flatten(state[0])
    node = Node(op, inputs, {}, None, levels)
    node.outputs = [(t.value, t.dot) for t in outs]
    record(node)
    return tree_unflatten(spec, node.results())
