"""Calls with one wrong argument each: what to call, the class of the error, and words of its message. See test_errors.py."""

from __future__ import annotations

from typing import Any

import numpy as np

import hypergrad as hg
from hypergrad.backends.host import HOST
from hypergrad.errors import ArgumentError, DeviceError, DTypeError, ShapeError
from hypergrad.tape import Tensor


def ones(*shape: int, dtype: Any = np.float64) -> Any:
    return np.ones(shape, dtype)


SINGLE = ones(2, 3, dtype=np.float32)
LABELS = np.array([0, 1])


class OnGPU:
    """What an array in a GPU's memory shows of itself."""

    shape = (3,)
    __cuda_array_interface__ = {"shape": (3,), "typestr": "<f8", "data": (1, False), "version": 3}


class OnGPUByDLPack:
    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("the export of a device array was asked for")

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)


BAD = {
    # elementwise
    "add shapes": (lambda: hg.add(ones(2), ones(3)), ShapeError, "add: arguments have shapes (2,), (3,)"),
    "operator": (lambda: Tensor(ones(2, 3)) * ones(2), ShapeError, "multiply: arguments have shapes (2, 3), (2,)"),
    "maximum shapes": (lambda: hg.maximum(ones(2), ones(3)), ShapeError, "maximum: "),
    "add dtypes": (lambda: hg.add(ones(2, 3), SINGLE), DTypeError, "add: arguments have dtypes float64 and float32"),
    "exp of integers": (lambda: hg.exp(LABELS), DTypeError, "exp: arguments have dtypes ['int64'], expected float32 or float64"),
    "log of float16": (
        lambda: hg.log(ones(2, dtype=np.float16)),
        DTypeError,
        "log: argument has dtype float16, expected float32 or float64",
    ),
    "exp of complex": (lambda: hg.exp(ones(2, dtype=complex)), DTypeError, "exp: argument has dtype complex128"),
    "exp of long double": (lambda: hg.exp(ones(2, dtype=np.longdouble)), DTypeError, "exp: argument has dtype"),
    "exp of text": (lambda: hg.exp("text"), ArgumentError, "as_array: x is a str"),
    "exp of an object": (lambda: hg.exp(object()), ArgumentError, "as_array: x is a object"),
    "ragged": (lambda: hg.exp([[1.0], [1.0, 2.0]]), ArgumentError, "as_array: x is a list that is no array"),
    "on a GPU": (lambda: hg.exp(OnGPU()), DeviceError, "as_array: argument is a"),
    "on a GPU by DLPack": (lambda: hg.exp(OnGPUByDLPack()), DeviceError, "as_array: argument is a"),
    "where shapes": (lambda: hg.where(LABELS > 0, ones(3), ones(3)), ShapeError, "where: arguments have shapes"),
    "where dtypes": (lambda: hg.where(LABELS > 0, ones(2), ones(2, dtype=np.float32)), DTypeError, "where: arguments have dtypes"),
    "power dtypes": (lambda: hg.power(ones(2), ones(2, dtype=np.float32)), DTypeError, "power: arguments have dtypes"),
    "dropout rate 1": (lambda: hg.dropout(ones(2), LABELS, rate=1.0), ArgumentError, "dropout: rate has 1.0, expected 0 <= rate < 1"),
    "dropout rate < 0": (lambda: hg.dropout(ones(2), LABELS, rate=-0.1), ArgumentError, "dropout: rate has -0.1"),
    "dropout mask": (lambda: hg.dropout(ones(2), ones(3) > 0, rate=0.5), ShapeError, "multiply: arguments have shapes (2,), (3,)"),
    # reductions
    "sum axis": (lambda: hg.sum(ones(2, 3), axis=2), ArgumentError, "sum: axis has 2, expected -2 to 1"),
    "sum axis twice": (lambda: hg.sum(ones(2, 3), axis=(0, -2)), ArgumentError, "sum: axis has (0, -2), expected each axis once"),
    "sum of a scalar's axis": (lambda: hg.sum(1.0, axis=0), ArgumentError, "sum: axis has 0"),
    "mean of nothing": (lambda: hg.mean(ones(0)), ShapeError, "mean: x has shape (0,), expected at least one element"),
    "mean over an empty axis": (lambda: hg.mean(ones(3, 0), axis=1), ShapeError, "mean: x has shape (3, 0)"),
    "max of nothing": (lambda: hg.max(ones(0, 3), axis=0), ShapeError, "max: x has shape (0, 3), expected at least one element"),
    "max axis": (lambda: hg.max(ones(3), axis=-2), ArgumentError, "max: axis has -2, expected -1 to 0"),
    "logsumexp of a scalar": (lambda: hg.logsumexp(1.0), ArgumentError, "logsumexp: axis has -1"),
    "logsumexp of nothing": (lambda: hg.logsumexp(ones(2, 0)), ShapeError, "logsumexp: "),
    "softmax axis": (lambda: hg.softmax(ones(3), axis=1), ArgumentError, "softmax: axis has 1, expected -1 to 0"),
    "head sizes": (
        lambda: hg.linear_cross_entropy(ones(2, 3), ones(4, 2), ones(2), LABELS),
        ShapeError,
        "linear_cross_entropy: x has shape (2, 3) and w (4, 2)",
    ),
    "head axes": (
        lambda: hg.linear_cross_entropy(ones(3), ones(3, 2), ones(2), LABELS),
        ShapeError,
        "linear_cross_entropy: x has shape (3,)",
    ),
    "head episodes": (
        lambda: hg.linear_cross_entropy(ones(2, 1, 3), ones(4, 3, 2), ones(2), LABELS),
        ShapeError,
        "linear_cross_entropy: w has shape (4, 3, 2), expected 2 episodes",
    ),
    "head bias": (
        lambda: hg.linear_cross_entropy(ones(2, 3), ones(3, 2), ones(1, 1, 2), LABELS),
        ShapeError,
        "linear_cross_entropy: bias has shape (1, 1, 2), expected (2,) or (1, 2)",
    ),
    "head labels": (
        lambda: hg.linear_cross_entropy(ones(2, 3), ones(3, 2), ones(2), np.array([0, 2])),
        ArgumentError,
        "linear_cross_entropy: labels has values 0 to 2, expected 0 to 1 because w has shape (3, 2)",
    ),
    "head labels' shape": (
        lambda: hg.linear_cross_entropy(ones(2, 3), ones(3, 2), ones(2), np.array([0])),
        ShapeError,
        "linear_cross_entropy: labels has shape (1,), expected (2,) because x has shape (2, 3)",
    ),
    "head labels' dtype": (
        lambda: hg.linear_cross_entropy(ones(2, 3), ones(3, 2), ones(2), ones(2)),
        DTypeError,
        "linear_cross_entropy: labels has dtype float64",
    ),
    "head's steps": (
        lambda: hg.linear_head_descent(ones(2, 3), ones(3, 2), ones(2), LABELS, 0.1, -1),
        ArgumentError,
        "linear_head_descent: n_steps has -1, expected >= 0",
    ),
    "head's step sizes": (
        lambda: hg.linear_head_descent(ones(2, 3), ones(3, 2), ones(2), LABELS, ones(2), 1),
        ShapeError,
        "linear_head_descent: lr has shape (2,), expected () or (1,)",
    ),
    "head without examples": (
        lambda: hg.linear_head_descent(ones(0, 3), ones(3, 2), ones(2), LABELS[:0], 0.1, 1),
        ShapeError,
        "linear_head_descent: x has shape (0, 3), expected at least one example",
    ),
    "labels out of range": (
        lambda: hg.softmax_cross_entropy(ones(2, 3), np.array([0, 3])),
        ArgumentError,
        "softmax_cross_entropy: labels has values 0 to 3, expected 0 to 2",
    ),
    "labels negative": (
        lambda: hg.softmax_cross_entropy(ones(2, 3), np.array([-1, 1])),
        ArgumentError,
        "softmax_cross_entropy: labels has values -1 to 1, expected 0 to 2",
    ),
    "labels float": (lambda: hg.softmax_cross_entropy(ones(2, 3), ones(2)), DTypeError, "softmax_cross_entropy: labels has dtype float64"),
    "labels bool": (lambda: hg.softmax_cross_entropy(ones(2, 3), LABELS > 0), DTypeError, "softmax_cross_entropy: labels has dtype bool"),
    "labels shape": (
        lambda: hg.softmax_cross_entropy(ones(2, 3), np.zeros((2, 1), int)),
        ShapeError,
        "softmax_cross_entropy: labels has shape (2, 1), expected (2,)",
    ),
    "logits without classes": (lambda: hg.softmax_cross_entropy(1.0, np.array(0)), ShapeError, "softmax_cross_entropy: "),
    # arrays
    "reshape size": (lambda: hg.reshape(ones(2, 3), (4, 2)), ShapeError, "reshape: arguments have shapes (2, 3)"),
    "reshape -1": (lambda: hg.reshape(ones(2, 3), (-1, 4)), ShapeError, "reshape: "),
    "reshape -1 twice": (lambda: hg.reshape(ones(2, 3), (-1, -1)), ShapeError, "reshape: "),
    "broadcast_to": (lambda: hg.broadcast_to(ones(2), (3,)), ShapeError, "broadcast_to: arguments have shapes (2,)"),
    "broadcast_to fewer axes": (lambda: hg.broadcast_to(ones(1, 2), (2,)), ShapeError, "broadcast_to: "),
    "transpose axes": (lambda: hg.transpose(ones(2, 3), (0, 0)), ArgumentError, "transpose: axes has (0, 0), expected a permutation"),
    "transpose axis": (lambda: hg.transpose(ones(2, 3), (0, 2)), ArgumentError, "transpose: axis has 2"),
    "transpose one axis": (lambda: hg.transpose(ones(2, 3), (0,)), ArgumentError, "transpose: axes has (0,)"),
    "index": (
        lambda: Tensor(ones(2, 3))[2],
        ArgumentError,
        "getitem: index has 2, expected one that fits shape (2, 3) because index 2 is out of bounds",
    ),
    "too many indices": (lambda: Tensor(ones(2))[0, 0], ArgumentError, "getitem: "),
    "index array": (lambda: Tensor(ones(2))[np.array([0, 2])], ArgumentError, "getitem: "),
    "index of floats": (lambda: Tensor(ones(2))[np.array([0.0])], ArgumentError, "getitem: "),
    "index is a Tensor": (lambda: Tensor(ones(2))[Tensor(ones(2))], ArgumentError, "getitem: index is a Tensor, expected integers"),
    "mask shape": (lambda: Tensor(ones(2))[ones(3) > 0], ArgumentError, "getitem: "),
    "take index": (
        lambda: hg.take(ones(2, 3), np.array([2])),
        ArgumentError,
        "take: index has an array of shape (1,), expected one that fits shape (2, 3) because index 2 is out",
    ),
    "take axis": (lambda: hg.take(ones(2, 3), 0, axis=2), ArgumentError, "take: axis has 2"),
    "concatenate nothing": (lambda: hg.concatenate([]), ArgumentError, "concatenate: tensors is empty, expected at least one array"),
    "concatenate shapes": (lambda: hg.concatenate([ones(2, 3), ones(2, 2)]), ShapeError, "concatenate: tensors have shapes"),
    "concatenate axes": (lambda: hg.concatenate([ones(2, 3), ones(2)]), ShapeError, "concatenate: tensors have shapes"),
    "concatenate axis": (lambda: hg.concatenate([ones(2)], axis=1), ArgumentError, "concatenate: axis has 1"),
    "concatenate scalars": (lambda: hg.concatenate([1.0, 2.0]), ArgumentError, "concatenate: axis has 0"),
    "concatenate dtypes": (lambda: hg.concatenate([ones(2, 3), SINGLE]), DTypeError, "concatenate: arguments have dtypes"),
    "stack nothing": (lambda: hg.stack([]), ArgumentError, "stack: tensors is empty, expected at least one array"),
    "stack shapes": (lambda: hg.stack([ones(2), ones(3)]), ShapeError, "stack: tensors have shapes [(2,), (3,)], expected one shape"),
    "stack axis": (lambda: hg.stack([ones(2), ones(2)], axis=2), ArgumentError, "stack: axis has 2, expected -2 to 1"),
    # products
    "matmul": (
        lambda: hg.matmul(ones(2, 3), ones(2, 3)),
        ShapeError,
        "matmul: arguments have shapes (2, 3) and (2, 3), expected (..., M, K)",
    ),
    "matmul of scalars": (lambda: hg.matmul(1.0, ones(2)), ShapeError, "matmul: arguments have shapes ()"),
    "matmul batch": (lambda: hg.matmul(ones(2, 2, 3), ones(3, 3, 2)), ShapeError, "matmul: arguments have shapes"),
    "linear": (lambda: hg.linear(ones(4, 3), ones(2, 3)), ShapeError, "matmul: arguments have shapes (4, 3) and (2, 3)"),
    "linear bias": (lambda: hg.linear(ones(4, 3), ones(3, 2), ones(3)), ShapeError, "add: arguments have shapes (4, 2), (3,)"),
    "einsum operands": (lambda: hg.einsum("ij,jk->ik", ones(2, 3)), ArgumentError, "einsum: subscripts has"),
    "einsum diagonal": (lambda: hg.einsum("ii->i", ones(2, 3)), ShapeError, "einsum: operand 'ii' has shape (2, 3)"),
    "einsum letter twice in the result": (lambda: hg.einsum("i->ii", ones(2)), ArgumentError, "einsum: subscripts has 'i->ii'"),
    "einsum new letter": (lambda: hg.einsum("ij->k", ones(2, 2)), ArgumentError, "einsum: subscripts has 'ij->k'"),
    "einsum dots": (lambda: hg.einsum("i->...i", ones(2)), ArgumentError, "einsum: subscripts has 'i->...i'"),
    "einsum two dots": (lambda: hg.einsum("..i->i", ones(2, 2)), ArgumentError, "einsum: subscripts has"),
    "einsum axes beside dots": (
        lambda: hg.einsum("...ij->i", ones(2)),
        ShapeError,
        "einsum: operand 0 has shape (2,), expected at least 2",
    ),
    "einsum sizes of dots": (lambda: hg.einsum("...,...", ones(2), ones(3)), ShapeError, "einsum: operand '.' has shape (3,)"),
    "einsum axes": (lambda: hg.einsum("ijk->k", ones(2, 2)), ShapeError, "einsum: operand 'ijk' has shape (2, 2)"),
    "einsum sizes": (
        lambda: hg.einsum("ij,jk->ik", ones(2, 3), ones(2, 3)),
        ShapeError,
        "einsum: operand 'jk' has shape (2, 3), expected [3, ",
    ),
    # images
    "conv2d channels": (lambda: hg.conv2d(ones(1, 4, 4, 3), ones(3, 3, 2, 5)), ShapeError, "conv2d: x has 3 channels, expected 2"),
    "conv2d axes": (lambda: hg.conv2d(ones(4, 4, 3), ones(3, 3, 3, 5)), ShapeError, "conv2d: x has shape (4, 4, 3)"),
    "conv2d filter axes": (lambda: hg.conv2d(ones(1, 4, 4, 3), ones(3, 3, 5)), ShapeError, "conv2d: x has shape"),
    "conv2d episodes": (
        lambda: hg.conv2d(ones(2, 1, 4, 4, 3), ones(3, 3, 3, 3, 5)),
        ShapeError,
        "conv2d: x has shape (2, 1, 4, 4, 3), expected 3 episodes",
    ),
    "conv2d too small": (
        lambda: hg.conv2d(ones(1, 2, 4, 1), ones(3, 3, 1, 1), padding="valid"),
        ShapeError,
        "conv2d: x has (2, 4) pixels, expected at least (3, 3)",
    ),
    "conv2d stride": (
        lambda: hg.conv2d(ones(1, 4, 4, 1), ones(3, 3, 1, 1), stride=0),
        ArgumentError,
        "conv2d: stride has 0, expected >= 1",
    ),
    "conv2d padding": (lambda: hg.conv2d(ones(1, 4, 4, 1), ones(3, 3, 1, 1), padding=-1), ArgumentError, "conv2d: padding has -1"),
    "conv2d padding word": (
        lambda: hg.conv2d(ones(1, 4, 4, 1), ones(3, 3, 1, 1), padding="full"),
        ArgumentError,
        "conv2d: padding has 'full'",
    ),
    "conv2d even same": (
        lambda: hg.conv2d(ones(1, 4, 4, 1), ones(2, 2, 1, 1)),
        ArgumentError,
        "conv2d: w has filters of (2, 2), expected odd sizes because padding 'same'",
    ),
    "conv2d dtypes": (lambda: hg.conv2d(ones(1, 4, 4, 1), ones(3, 3, 1, 1, dtype=np.float32)), DTypeError, "conv2d: arguments have dtypes"),
    "max_pool2d": (lambda: hg.max_pool2d(ones(1, 1, 4, 2)), ShapeError, "max_pool2d: x has shape (1, 1, 4, 2), expected (..., H, W, C)"),
    "max_pool2d axes": (lambda: hg.max_pool2d(ones(4, 4)), ShapeError, "max_pool2d: x has shape (4, 4)"),
    "avg_pool2d size": (lambda: hg.avg_pool2d(ones(1, 4, 4, 2), size=0), ShapeError, "avg_pool2d: "),
    "batch_norm gamma": (
        lambda: hg.batch_norm(ones(1, 2, 2, 3), ones(2), ones(3)),
        ShapeError,
        "batch_norm: gamma has shape (2,), expected (3,)",
    ),
    "batch_norm episodes": (
        lambda: hg.batch_norm(ones(2, 1, 2, 2, 3), ones(3, 3), ones(3)),
        ShapeError,
        "batch_norm: gamma has shape (3, 3)",
    ),
    "batch_norm axes": (lambda: hg.batch_norm(ones(3), ones(3), ones(3)), ShapeError, "batch_norm: x has shape (3,)"),
    "batch_norm of one": (
        lambda: hg.batch_norm(ones(1, 3), ones(3), ones(3), running=(ones(3), ones(3))),
        ShapeError,
        "batch_norm: x has shape (1, 3), expected at least two elements per channel",
    ),
    "batch_norm running": (
        lambda: hg.batch_norm(ones(2, 3), ones(3), ones(3), running=ones(3)),
        ArgumentError,
        "batch_norm: running has ndarray of shape (3,), expected (mean, var)",
    ),
    "batch_norm running mean": (
        lambda: hg.batch_norm(ones(2, 3), ones(3), ones(3), running=(ones(2), ones(3))),
        ShapeError,
        "batch_norm: running mean has shape (2,), expected (3,)",
    ),
    "batch_norm momentum": (
        lambda: hg.batch_norm(ones(2, 3), ones(3), ones(3), running=(ones(3), ones(3)), momentum=1.5),
        ArgumentError,
        "batch_norm: momentum has 1.5",
    ),
    "batch_norm without statistics": (
        lambda: hg.batch_norm(ones(2, 3), ones(3), ones(3), training=False),
        ArgumentError,
        "batch_norm: training has False, expected running statistics",
    ),
    "batch_norm of nothing": (
        lambda: hg.batch_norm(ones(0, 2, 2, 3), ones(3), ones(3)),
        ShapeError,
        "batch_norm: x has shape (0, 2, 2, 3)",
    ),
    "batch_norm eps": (
        lambda: hg.batch_norm(ones(1, 2, 2, 3), ones(3), ones(3), eps=0.0),
        ArgumentError,
        "batch_norm: eps has 0.0, expected > 0",
    ),
    "batch_norm eps is no number": (
        lambda: hg.batch_norm(ones(1, 2, 2, 3), ones(3), ones(3), eps=float("nan")),
        ArgumentError,
        "batch_norm: eps has nan",
    ),
}


def block(x: Any = (1, 4, 4, 3), w: Any = (3, 3, 3, 2), gamma: Any = (2,), beta: Any = (2,), **attrs: Any) -> Any:
    return hg.conv_bn_relu_pool(ones(*x), ones(*w), ones(*gamma), ones(*beta), **attrs)


BAD |= {
    "block 5x5 filters": (lambda: block(w=(5, 5, 3, 2)), ShapeError, "conv_bn_relu_pool: x has shape (1, 4, 4, 3) and w (5, 5, 3, 2)"),
    "block one row": (lambda: block(x=(1, 1, 4, 3)), ShapeError, "conv_bn_relu_pool: x has shape (1, 1, 4, 3)"),
    "block without images": (lambda: block(x=(0, 4, 4, 3)), ShapeError, "conv_bn_relu_pool: x has shape (0, 4, 4, 3)"),
    "block axes": (lambda: block(x=(4, 4, 3)), ShapeError, "conv_bn_relu_pool: x has shape (4, 4, 3)"),
    "block channels": (lambda: block(w=(3, 3, 2, 2)), ShapeError, "conv_bn_relu_pool: x has 3 channels and 1 episodes"),
    "block episodes": (
        lambda: block(x=(2, 1, 4, 4, 3), w=(3, 3, 3, 3, 2)),
        ShapeError,
        "conv_bn_relu_pool: x has 3 channels and 2 episodes",
    ),
    "block gamma": (lambda: block(gamma=(3,)), ShapeError, "conv_bn_relu_pool: gamma has shape (3,), expected (2,)"),
    "block beta": (lambda: block(beta=(3, 2)), ShapeError, "conv_bn_relu_pool: beta has shape (3, 2), expected (2,) or (1, 2)"),
    "block eps": (lambda: block(eps=-1e-5), ArgumentError, "conv_bn_relu_pool: eps has -1e-05, expected > 0"),
    "block dtypes": (
        lambda: hg.conv_bn_relu_pool(ones(1, 4, 4, 3, dtype=np.float32), ones(3, 3, 3, 2), ones(2), ones(2)),
        DTypeError,
        "conv_bn_relu_pool: arguments have dtypes float32 and float64",
    ),
    "kernel": (lambda: HOST.run("no_such_kernel"), ArgumentError, "no_such_kernel"),
}
