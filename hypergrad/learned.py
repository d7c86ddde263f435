"""An optimiser that is itself a network: the LSTM of Andrychowicz et al. 2016, whose weights are hyperparameters like any others, and its
form by Lv et al. 2017, which sees averages of the gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .backends import Array, backend_of
from .errors import ArgumentError, DTypeError, ShapeError
from .ops.arrays import concatenate, reshape
from .ops.elementwise import abs as abs_
from .ops.elementwise import log, sqrt, tanh, where
from .ops.layers import lstm_cell
from .ops.linalg import linear
from .optimizers import Optimizer
from .tape import Tensor
from .trees import PyTree, tree_flatten, tree_leaves, tree_unflatten

INPUTS = 2  # numbers that the network sees of a gradient
LAYERS = (1, 2)
TINY = 1e-8  # added to the root of the averaged squares


def lstm_params(seed: int, hidden: int = 20, dtype: DTypeLike = np.float32) -> dict[str, NDArray[Any]]:
    """Weights of an `LSTMOptimizer` before it has learned anything.

    Products are drawn from a normal distribution of variance 1 / inputs. Biases are 0, and 1 for the forget gates.

    Args:
        seed: of the draw, >= 0.
        hidden: units H of each of the two layers, >= 1.
        dtype: float32 or float64, that of the weights that it is to move.
    Returns: {"w1": (2 + H, 4H), "b1": (4H,), "w2": (2H, 4H), "b2": (4H,), "w_out": (H, 1), "b_out": (1,)}. The rows of w1 and w2 are
        a layer's input, then its own last output; the columns are its gates in the order of `lstm_cell`.
    Raises: ArgumentError for a number of units below 1.
    Cost: one draw a weight; 4H (3H + 4) + H + 1 weights, 5,141 of them for 20 units.
    Example:
        >>> params = hg.lstm_params(0, hidden=4)
        >>> sorted(params), params["w1"].dtype.name
        (['b1', 'b2', 'b_out', 'w1', 'w2', 'w_out'], 'float32')
    """
    if isinstance(hidden, bool) or not isinstance(hidden, (int, np.integer)) or hidden < 1:
        raise ArgumentError(f"lstm_params: hidden has {hidden!r}, expected an integer >= 1; pass for instance 20")
    rng = np.random.default_rng(seed)
    bias = np.zeros(4 * hidden)
    bias[hidden : 2 * hidden] = 1.0
    found: dict[str, NDArray[Any]] = {}
    for layer, inputs in zip(LAYERS, (INPUTS + hidden, 2 * hidden), strict=True):
        found[f"w{layer}"] = rng.standard_normal((inputs, 4 * hidden)) / math.sqrt(inputs)
        found[f"b{layer}"] = bias
    found |= {"w_out": rng.standard_normal((hidden, 1)) / math.sqrt(hidden), "b_out": np.zeros(1)}
    return {name: x.astype(dtype) for name, x in found.items()}


@dataclass(frozen=True)
class LSTMOptimizer(Optimizer):
    """A learned optimiser: w <- w + scale * m(g), where m is an LSTM of two layers that every coordinate of the weights runs by itself.

    All coordinates share the network and each has its own memory. So one network moves weights of any size, and many problems at
    once where the weights have an axis for them. The network does not see g but two numbers: (log|g| / p, sign g) where |g| >= e^-p, and
    (-1, e^p g) where it is smaller. Every derivative is finite where g = 0.

    With `decay` the two numbers are m / sqrt(v) and g / sqrt(v), where m and v are the running averages of g and g^2, each divided by
    1 - decay^(t+1) as in Adam. The network's output goes through tanh, so that no step is longer than `scale`. A step then does not
    depend on the scale of the loss, and Adam's own step is close at hand.

    Args:
        params: the network's weights, arrays or Tensors as `lstm_params` draws them, of the dtype of the weights that are moved. Learn
            them as hyperparameters: optimizer=lambda lam: LSTMOptimizer(lam).
        scale: factor of the network's output, a number, or an array or Tensor without axes.
        p: see above, a number > 0; not used with `decay`.
        decay: of the two averages, a number in [0, 1), such as 0.95; None for the gradient itself.
        clip: see `Optimizer`.
    Raises: ArgumentError, ShapeError or DTypeError, when a run begins, that names the entry of params that does not fit; ArgumentError
        for a decay out of its range.
    Memory: w, and 4H numbers for each of its elements (80 of them with 20 units); 2 more with `decay`.
    Cost: 8H (3H + 2) + 2H flop an element and step, in about 40 ops, however many leaves the weights have.
    Source: Andrychowicz et al. 2016, arXiv:1606.04474, section 2.1 and appendix A. They train it by `unroll(..., first_order=True)`: the
        gradients that it sees count as constants. `decay`: Lv et al. 2017, arXiv:1703.03633, section 4.1 (RNNprop).
    Example:
        >>> optimizer = hg.LSTMOptimizer(hg.lstm_params(0, hidden=4, dtype=np.float64))
        >>> w, state = optimizer.step(np.ones(2), None, np.array([1.0, -2.0]), 0)
        >>> w.shape
        (2,)
    """

    params: Any
    scale: Any = 0.1
    p: float = 10.0
    decay: float | None = None
    linear_in_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.decay is not None and not 0.0 <= self.decay < 1.0:
            raise ArgumentError(f"LSTMOptimizer: decay has {self.decay!r}, expected a number in [0, 1) or None; pass for instance 0.95")

    def init(self, w: PyTree) -> PyTree:
        """Outputs h and cells c of both layers, zero: {"h1", "c1", "h2", "c2"}, each (elements of w, H).

        With `decay` also the averages {"m", "v"}, each (elements of w, 1).
        """
        leaves = tree_leaves(w)
        hidden = self._units(leaves)
        xp = backend_of(*(x.value for x in leaves)).xp
        shapes = dict.fromkeys((f"{kind}{layer}" for layer in LAYERS for kind in "hc"), hidden)
        shapes |= {} if self.decay is None else {"m": 1, "v": 1}
        count = sum(x.size for x in leaves)
        return {name: Tensor(xp.zeros((count, width), leaves[0].dtype)) for name, width in shapes.items()}

    def update(self, w: PyTree, state: PyTree, g: PyTree, t: int) -> tuple[PyTree, PyTree]:
        """See `Optimizer.update`."""
        leaves, spec = tree_flatten(w)
        flat = concatenate([reshape(d, (d.size, 1)) for d in tree_leaves(g)])
        after: dict[str, Any] = {}
        if self.decay is None:
            x = preprocess(flat, self.p)
        else:
            after = {"m": _average(state["m"], flat, self.decay), "v": _average(state["v"], flat * flat, self.decay)}
            whole = 1.0 - self.decay ** (t + 1)  # the weight of the gradients in an average that began with zero
            x = concatenate([after["m"] / whole, flat], axis=1) / sqrt(after["v"] / whole + TINY**2)
        for layer in LAYERS:
            x, cell = lstm_cell(x, state[f"h{layer}"], state[f"c{layer}"], self.params[f"w{layer}"], bias=self.params[f"b{layer}"])
            after |= {f"h{layer}": x, f"c{layer}": cell}
        out = linear(x, self.params["w_out"], self.params["b_out"])
        step, at, moved = self.scale * (out if self.decay is None else tanh(out)), 0, []
        for leaf in leaves:
            moved.append(leaf + reshape(step[at : at + leaf.size], leaf.shape))
            at += leaf.size
        return tree_unflatten(spec, moved), after

    def _units(self, leaves: list[Any]) -> int:
        """H. Raises: an error that names what does not fit."""
        if not leaves:
            raise ArgumentError("LSTMOptimizer: w has no arrays, expected at least one because there is nothing to move; give it weights")
        expected = set(_shapes(1))
        if not isinstance(self.params, dict) or set(self.params) != expected:
            found = sorted(self.params) if isinstance(self.params, dict) else type(self.params).__name__
            raise ArgumentError(
                f"LSTMOptimizer: params has {found}, expected {sorted(expected)}; draw it with hg.lstm_params(seed), and pass lam, not "
                "lam['w1'], where it is all of lam"
            )
        dtype, rows = leaves[0].dtype, _array(self.params["w_out"]).shape[:1]
        hidden: int = max(1, *rows, 1)
        for name, shape in _shapes(hidden).items():
            x = _array(self.params[name])
            if tuple(x.shape) != shape:
                raise ShapeError(
                    f"LSTMOptimizer: params[{name!r}] has shape {tuple(x.shape)}, expected {shape} because w_out has {hidden} rows, one "
                    "for each unit; draw it with hg.lstm_params(seed, hidden)"
                )
            if x.dtype != dtype:
                raise DTypeError(
                    f"LSTMOptimizer: params[{name!r}] has dtype {x.dtype}, expected {dtype} because the weights have it; pass dtype= to "
                    "hg.lstm_params, or convert one with astype"
                )
        return hidden


def _shapes(hidden: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays of `lstm_params` for H = hidden units."""
    gates = 4 * hidden
    return {"w1": (INPUTS + hidden, gates), "b1": (gates,), "w2": (2 * hidden, gates), "b2": (gates,), "w_out": (hidden, 1), "b_out": (1,)}


def _array(x: Any) -> Array:
    return x.value if isinstance(x, Tensor) else x if hasattr(x, "dtype") else np.asarray(x)


def _average(before: Any, x: Any, decay: float) -> Any:
    return decay * before + (1.0 - decay) * x


def preprocess(x: Tensor, p: float) -> Tensor:
    """What a network sees of numbers of any size, (n, 1): two for each, (n, 2). The masks and signs are constants.

    They are (log|x| / p, sign x) where |x| >= e^-p, and (-1, e^p x) elsewhere. Source: Andrychowicz et al. 2016, appendix A.
    """
    xp = backend_of(x.value).xp
    large = xp.abs(x.value) >= math.exp(-p)
    size = where(large, log(where(large, abs_(x), 1.0)) / p, -1.0)  # the inner one keeps log from 0, and its slope finite
    return concatenate([size, where(large, Tensor(xp.sign(x.value)), math.exp(p) * x)], axis=1)
