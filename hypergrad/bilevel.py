"""The bilevel problem, the batches of its inner run, and what a pass returns.

    min over lambda of E(s_T, lambda),   s_0 = Phi_0(lambda),   s_t = Phi_t(s_{t-1}, lambda)

Source: Franceschi et al. 2017, arXiv:1703.01785; Franceschi et al. 2018, ICML.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from .errors import ArgumentError
from .meter import Meter
from .ops.arguments import integer
from .optimizers import Optimizer
from .tape import Tensor
from .trees import PyTree


class Batches(Protocol):
    """What `batches` must offer. It is pure: the same t always gives the same batch, as reverse mode reads batches again."""

    def __len__(self) -> int:
        """The number of inner steps T."""

    def __getitem__(self, t: int, /) -> Any:
        """The batch of step t, 0 <= t < T."""


def count_steps(where: str, batches: Any) -> int:
    """T, the number of batches.

    Raises: ArgumentError for objects that cannot give batch t a second time: iterators, loaders, sets, dictionaries.
    """
    kind = type(batches).__name__
    if isinstance(batches, (Mapping, str, bytes)) or not (hasattr(batches, "__len__") and hasattr(batches, "__getitem__")):
        raise ArgumentError(
            f"{where}: batches is a {kind}, expected something with len(batches) and batches[t] because a step that is run "
            "again asks for its batch again; collect it first with list(batches), or use hg.full_batch(data, n_steps)"
        )
    return len(batches)


def batch_of(where: str, batches: Batches, t: int) -> Any:
    """batches[t]. Raises: ArgumentError if there is none, although len(batches) says so."""
    try:
        return batches[t]
    except (IndexError, KeyError) as error:
        raise ArgumentError(
            f"{where}: batches has no batch {t} ({type(error).__name__}: {error}), expected one for each of its {len(batches)} steps; make "
            "len(batches) the number of batches that batches[t] can give"
        ) from error


@dataclass(frozen=True)
class Bilevel:
    """An inner problem, which an optimiser solves from a start, and an outer objective of the result.

    The objective is outer_loss(w_T, hparams), plus the sum of running_loss(w_t, hparams, t) over t = 1..T where there is one.

    Args:
        inner_loss: (w, hparams, batch) -> scalar Tensor; no closure over Tensors that a gradient follows.
        outer_loss: (w, hparams) -> scalar Tensor; (w, hparams, batch) where a pass is given `outer_batch`.
        init: hparams -> w_0, a pytree of arrays or Tensors; it may depend on hparams.
        optimizer: hparams -> an Optimizer, whose fields may be numbers or Tensors made from hparams.
        running_loss: (w, hparams, t) -> scalar Tensor, w being the weights after t steps; None for none.
    Example:
        >>> problem = hg.Bilevel(
        ...     lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum(w**2), lambda h: np.zeros(2), lambda h: hg.SGD(lr=0.25)
        ... )
        >>> hg.reverse(problem, np.array([1.0, 2.0]), hg.full_batch(None, 3)).grad
        array([1.53125, 3.0625 ])
    """

    inner_loss: Callable[[PyTree, PyTree, Any], Tensor]
    outer_loss: Callable[..., Tensor]
    init: Callable[[PyTree], PyTree]
    optimizer: Callable[[PyTree], Optimizer]
    running_loss: Callable[[PyTree, PyTree, int], Tensor] | None = None


class DrawnBatches(Sequence[Any]):
    """n_steps batches, each a function of its number: draw(t), 0 <= t < n_steps."""

    def __init__(self, n_steps: int, draw: Callable[[int], Any]) -> None:
        self.n_steps, self.draw = n_steps, draw

    def __len__(self) -> int:
        return self.n_steps

    def __getitem__(self, t: Any) -> Any:
        if not 0 <= t < self.n_steps:
            raise IndexError(t)
        return self.draw(t)


def full_batch(data: Any, n_steps: int) -> Sequence[Any]:
    """The same data for each of `n_steps` steps.

    Args:
        data: what inner_loss takes as its batch; not copied.
        n_steps: T, >= 0.
    Returns: a sequence of length n_steps.
    Raises: ArgumentError for a negative n_steps.
    Example:
        >>> batches = hg.full_batch({"x": 1.0}, 3)
        >>> len(batches), batches[2]
        (3, {'x': 1.0})
    """
    count = integer("full_batch", "n_steps", n_steps, "it is the number of steps")
    if count < 0:
        raise ArgumentError(f"full_batch: n_steps has {n_steps!r}, expected an integer >= 0; pass the number of steps")
    return DrawnBatches(count, lambda t: data)


@dataclass
class Stats:
    """What a pass did, counted and measured while it ran.

    Attributes:
        mode: the name of the function that ran, such as "reverse".
        steps_run: inner steps of the run itself (T).
        steps_rerun: inner steps run again from checkpoints.
        states_held: highest number of states held at once; in forward mode 1 + the number of directions.
        state_bytes: bytes of those states at that moment (weights and optimiser state, with their tangents).
        offloaded_bytes: highest number of bytes of states that lay outside of their device's memory.
        residue_bytes: bytes of the residues by which reversible mode undoes the steps.
        residue_bits: the same in bits for each weight and step.
        kept_bytes: highest number of bytes of results that steps had kept for their transposition.
        peak_bytes: peak of all bytes allocated by the pass, or None unless tracemalloc is tracing.
        peak_device_bytes: peak of the bytes taken from CuPy's memory pool, or None unless tracemalloc is tracing and the
            arrays are on a GPU.
        seconds: wall-clock time of the whole pass.
        program: what of the steps was recorded and replayed, or why nothing was.
    Example:
        >>> problem = hg.Bilevel(
        ...     lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum(w**2), lambda h: np.zeros(2), lambda h: hg.SGD(lr=0.25)
        ... )
        >>> stats = hg.reverse(problem, np.array([1.0, 2.0]), hg.full_batch(None, 9), checkpoints="sqrt").stats
        >>> stats.steps_run, stats.steps_rerun, stats.states_held
        (9, 4, 5)
    """

    mode: str
    steps_run: int = 0
    steps_rerun: int = 0
    states_held: int = 0
    state_bytes: int = 0
    offloaded_bytes: int = 0
    residue_bytes: int = 0
    residue_bits: float = 0.0
    kept_bytes: int = 0
    peak_bytes: int | None = None
    peak_device_bytes: int | None = None
    seconds: float = 0.0
    program: str = ""
    _held: dict[int, int] = field(default_factory=dict, repr=False)
    _held_bytes: int = field(default=0, repr=False)

    def measured(self, meter: Meter) -> None:
        """Copies the measurements of the meter around the whole pass."""
        self.seconds, self.peak_bytes, self.peak_device_bytes = meter.seconds, meter.peak_bytes, meter.peak_device_bytes

    def began(self, action: str, t: int) -> None:
        """Told as a run begins an action: "first" for step t of the first run, "outer" after it, those of its schedule, "end"."""

    def hold(self, t: int, n_bytes: int, count: int = 1) -> None:
        """Counts state t as held."""
        self._held_bytes += n_bytes - self._held.get(t, 0)  # after an error in a backward run, t still counts as held
        self._held[t] = n_bytes
        if len(self._held) * count > self.states_held:
            self.states_held, self.state_bytes = len(self._held) * count, self._held_bytes

    def release(self, t: int) -> None:
        """Counts state t as dropped."""
        self._held_bytes -= self._held.pop(t)

    def as_dict(self) -> dict[str, Any]:
        """The public fields, for a line of JSON."""
        return {k: v for k, v in asdict(self).items() if not k.startswith("_")}


@dataclass(frozen=True)
class HyperGradient:
    """What the passes return. The arrays belong to the caller: writable, and sharing memory with nothing.

    Attributes:
        value: the outer objective, a 0-d array.
        grad: its gradient, a pytree of arrays like hparams.
        params: w_T, a pytree of arrays; of `implicit` and `t1t2` the weights they were given.
        state: the optimiser's state after the last step, a pytree of arrays; of `implicit` and `t1t2` None.
        losses: the inner loss of each step, at the weights before it, shape (T,); of `implicit` and `t1t2` that of the weights, shape (1,).
        stats: what the pass did.
        report: of `implicit` and `t1t2`, how well the linear system is solved; None otherwise.
    Example:
        >>> problem = hg.Bilevel(
        ...     lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum(w**2), lambda h: np.zeros(2), lambda h: hg.SGD(lr=0.25)
        ... )
        >>> r = hg.reverse(problem, np.array([1.0, 2.0]), hg.full_batch(None, 3))
        >>> r.value, r.params, r.stats.steps_run
        (array(3.828125), array([0.875, 1.75 ]), 3)
    """

    value: Any
    grad: PyTree
    params: PyTree
    state: PyTree
    losses: Any
    stats: Stats
    report: Any = None
