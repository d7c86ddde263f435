"""Activation functions beside relu, sigmoid, softplus and tanh, which elementwise.py has."""

from __future__ import annotations

import math
from typing import Any

from ..tape import Tensor, to_tensors
from .arguments import switch
from .elementwise import abs, add, divide, minimum, multiply, negative, scale, sigmoid, softplus, tanh, where
from .powers import expm1
from .special import erfc

__all__ = ["elu", "gelu", "leaky_relu", "log_sigmoid", "selu", "silu", "softsign"]

SELU = 1.0507009873554805, 1.6732632423543772  # lambda and alpha of Klambauer et al. 2017, equation 14, to float64


def leaky_relu(x: Any, slope: Any = 0.01) -> Tensor:
    """x where x > 0, else slope * x; its derivative at 0 is the slope.

    Args:
        x: array, Tensor or number.
        slope: number, array or Tensor that broadcasts with x; it gets a derivative (PReLU, He et al. 2015, arXiv:1502.01852).
    Returns: Tensor of the broadcast shape.
    Raises: ShapeError if the shapes do not broadcast; DTypeError if mixed.
    Example:
        >>> hg.leaky_relu(np.array([-1.0, 1.0]), 0.1)
        Tensor(array([-0.1,  1. ]))
    """
    x, slope = to_tensors("leaky_relu", [x, slope])
    return where(x.value > 0, x, multiply(slope, x))


def elu(x: Any, alpha: Any = 1.0) -> Tensor:
    """x where x > 0, else alpha * (exp(x) - 1); its derivative at 0 is alpha.

    Args:
        x: array, Tensor or number.
        alpha: number, array or Tensor that broadcasts with x; it gets a derivative.
    Returns: Tensor of the broadcast shape.
    Raises: ShapeError if the shapes do not broadcast; DTypeError if mixed.
    Source: Clevert et al. 2016, arXiv:1511.07289.
    Example:
        >>> hg.elu(np.array([-1.0, 1.0]))
        Tensor(array([-0.63212056,  1.        ]))
    """
    x, alpha = to_tensors("elu", [x, alpha])
    return where(x.value > 0, x, multiply(alpha, expm1(minimum(x, 0.0))))


def selu(x: Any) -> Tensor:
    """The scaled `elu` that keeps mean 0 and variance 1.

    Args:
        x: array, Tensor or number.
    Returns: Tensor like x.
    Source: Klambauer et al. 2017, arXiv:1706.02515.
    Example:
        >>> hg.selu(np.array([-1.0, 1.0]))
        Tensor(array([-1.11133074,  1.05070099]))
    """
    return scale(elu(x, SELU[1]), by=SELU[0])


def gelu(x: Any, approximate: bool = False) -> Tensor:
    """x times the normal distribution function of x.

    Args:
        x: array, Tensor or number.
        approximate: True for 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), which is off by at most 5e-4.
    Returns: Tensor like x.
    Source: Hendrycks & Gimpel 2016, arXiv:1606.08415.
    Example:
        >>> hg.gelu(np.array([-1.0, 1.0]))
        Tensor(array([-0.15865525,  0.84134475]))
    """
    (x,) = to_tensors("gelu", [x])
    if switch("gelu", "approximate", approximate):
        inside = scale(add(x, scale(multiply(multiply(x, x), x), by=0.044715)), by=math.sqrt(2 / math.pi))
        return multiply(scale(x, by=0.5), 1.0 + tanh(inside))
    return multiply(scale(x, by=0.5), erfc(scale(x, by=-math.sqrt(0.5))))


def silu(x: Any) -> Tensor:
    """x * sigmoid(x), also called swish.

    Args:
        x: array, Tensor or number.
    Returns: Tensor like x.
    Source: Elfwing et al. 2018, arXiv:1702.03118.
    Example:
        >>> hg.silu(1.0)
        Tensor(array(0.73105858))
    """
    return multiply(x, sigmoid(x))


def softsign(x: Any) -> Tensor:
    """x / (1 + |x|).

    Args:
        x: array, Tensor or number.
    Returns: Tensor like x.
    Example:
        >>> hg.softsign(np.array([-1.0, 3.0]))
        Tensor(array([-0.5 ,  0.75]))
    """
    return divide(x, 1.0 + abs(x))


def log_sigmoid(x: Any) -> Tensor:
    """log(sigmoid(x)), safe from overflow.

    Args:
        x: array, Tensor or number.
    Returns: Tensor like x.
    Example:
        >>> hg.log_sigmoid(-1000.0)
        Tensor(array(-1000.))
    """
    return negative(softplus(negative(x)))
