"""Differentiable ops with NumPy's names, and those a convolutional network needs."""

from ..rules import REGISTRY as _REGISTRY
from . import conversions as _conversions  # noqa: F401  (puts float(), copy() and the like on Tensor)
from . import numpy_protocol as _numpy_protocol
from . import operators as _operators  # noqa: F401  (puts +, -, [] and the like on Tensor)
from . import optimizer_step as _optimizer_step  # noqa: F401  (declares the steps, which belong to the proven ops below)
from .arrays import broadcast_to, concatenate, reshape, stack, take, transpose
from .block import conv_bn_relu_pool
from .conv import conv2d
from .elementwise import (
    abs,
    add,
    divide,
    dropout,
    exp,
    log,
    log1p,
    maximum,
    minimum,
    multiply,
    negative,
    power,
    relu,
    sigmoid,
    softplus,
    sqrt,
    subtract,
    tanh,
    where,
)
from .head import linear_cross_entropy
from .linalg import einsum, linear, matmul
from .norm import batch_norm
from .pooling import avg_pool2d, max_pool2d
from .reductions import logsumexp, max, mean, softmax, softmax_cross_entropy, sum

__all__ = [
    "abs",
    "add",
    "avg_pool2d",
    "batch_norm",
    "broadcast_to",
    "concatenate",
    "conv2d",
    "conv_bn_relu_pool",
    "divide",
    "dropout",
    "einsum",
    "exp",
    "linear",
    "linear_cross_entropy",
    "log",
    "log1p",
    "logsumexp",
    "matmul",
    "max",
    "max_pool2d",
    "maximum",
    "mean",
    "minimum",
    "multiply",
    "negative",
    "power",
    "relu",
    "reshape",
    "sigmoid",
    "softmax",
    "softmax_cross_entropy",
    "softplus",
    "sqrt",
    "stack",
    "subtract",
    "sum",
    "take",
    "tanh",
    "transpose",
    "where",
]

for _op in _REGISTRY.values():  # all that are declared by now are the package's own, which its tests prove
    _op.proven = True
_numpy_protocol.serve({name: globals()[name] for name in __all__})
