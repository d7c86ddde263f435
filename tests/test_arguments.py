"""Arguments of ops that are no arrays: every type that means a number is taken, everything else gives one clear error."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import hypergrad as hg
import hypergrad.ops
from hypergrad.errors import HypergradError
from hypergrad.rules import Registered
from hypergrad.tape import Tensor

X = np.random.default_rng(0).uniform(0.5, 1.5, (1, 4, 4, 2))
ROW, W, K, LABELS = X.reshape(8, 4), np.ones((3, 3, 2, 3)), np.ones(2), np.arange(8) % 4

# Arguments that are arrays or Tensors: what stands there is for to_tensors and as_array to judge.
ARRAYS = {
    "x",
    "y",
    "w",
    "bias",
    "lr",
    "gamma",
    "beta",
    "logits",
    "mask",
    "exponent",
    "operands",
    "slope",
    "alpha",
    "start",
    "stop",
    "table",
    "q",
    "v",
}
ARRAYS |= {"h", "c", "u", "recurrent_bias", "running"}
ARRAYS_OF = {("scaled_dot_product_attention", "k"), ("clip", "min"), ("clip", "max")}
ARRAY_LISTS = {"list", "list of None", "list of floats", "Tensor"}  # of arrays, as above
FILLS = {"half", "nan", "inf", "bool", "list", "list of floats", "Tensor"}
# Those that are none: a call with the argument, a right value, and which of the values of WRONG are right here.
ATTRIBUTES: dict[tuple[str, str], tuple[Callable[[Any], Any], Any, set[str]]] = {
    ("sum", "axis"): (lambda v: hg.sum(X, axis=v), 1, {"None", "list"}),
    ("sum", "keepdims"): (lambda v: hg.sum(X, 0, keepdims=v), True, {"bool"}),
    ("mean", "axis"): (lambda v: hg.mean(X, axis=v), 1, {"None", "list"}),
    ("mean", "keepdims"): (lambda v: hg.mean(X, 0, keepdims=v), True, {"bool"}),
    ("max", "axis"): (lambda v: hg.max(X, axis=v), 1, {"None", "list"}),
    ("max", "keepdims"): (lambda v: hg.max(X, 0, keepdims=v), True, {"bool"}),
    ("logsumexp", "axis"): (lambda v: hg.logsumexp(X, axis=v), 1, set()),
    ("logsumexp", "keepdims"): (lambda v: hg.logsumexp(X, 0, keepdims=v), True, {"bool"}),
    ("softmax", "axis"): (lambda v: hg.softmax(X, axis=v), 1, set()),
    ("reshape", "shape"): (lambda v: hg.reshape(X[..., :1, :1, :1], v), 1, {"list"}),
    ("broadcast_to", "shape"): (lambda v: hg.broadcast_to(X[0, 0, 0, 0], v), 3, {"list"}),
    ("transpose", "axes"): (lambda v: hg.transpose(X[0, 0, 0], v), 0, {"None", "list"}),
    ("take", "indices"): (lambda v: hg.take(X, v, axis=1), 1, {"list"}),
    ("take", "axis"): (lambda v: hg.take(X, 0, axis=v), 1, set()),
    ("concatenate", "tensors"): (lambda v: hg.concatenate(v), [K, K], ARRAY_LISTS),
    ("concatenate", "axis"): (lambda v: hg.concatenate([X, X], axis=v), 1, set()),
    ("stack", "tensors"): (lambda v: hg.stack(v), [K, K], ARRAY_LISTS),
    ("stack", "axis"): (lambda v: hg.stack([X, X], axis=v), 1, set()),
    ("where", "condition"): (lambda v: hg.where(v, X, 0.0), True, {"bool", "list"}),
    ("dropout", "rate"): (lambda v: hg.dropout(K, K > 0, rate=v), 0.5, {"half"}),
    ("einsum", "subscripts"): (lambda v: hg.einsum(v, K, K), "i,i->", set()),
    ("conv2d", "stride"): (lambda v: hg.conv2d(X, W, stride=v), 1, set()),
    ("conv2d", "padding"): (lambda v: hg.conv2d(X, W, padding=v), 1, set()),
    ("conv2d", "dilation"): (lambda v: hg.conv2d(X, W, dilation=v), 1, set()),
    ("conv2d", "groups"): (lambda v: hg.conv2d(X, W, groups=v), 1, set()),
    ("conv1d", "stride"): (lambda v: hg.conv1d(X, W[0], stride=v), 1, set()),
    ("conv1d", "padding"): (lambda v: hg.conv1d(X, W[0], padding=v), 1, set()),
    ("conv1d", "dilation"): (lambda v: hg.conv1d(X, W[0], dilation=v), 1, set()),
    ("conv1d", "groups"): (lambda v: hg.conv1d(X, W[0], groups=v), 1, set()),
    ("conv_transpose2d", "stride"): (lambda v: hg.conv_transpose2d(X, W.swapaxes(2, 3), stride=v), 1, set()),
    ("conv_transpose2d", "padding"): (lambda v: hg.conv_transpose2d(X, W.swapaxes(2, 3), padding=v), 1, set()),
    ("max_pool2d", "size"): (lambda v: hg.max_pool2d(X, size=v), 1, set()),
    ("avg_pool2d", "size"): (lambda v: hg.avg_pool2d(X, size=v), 1, set()),
    ("batch_norm", "eps"): (lambda v: hg.batch_norm(X, K, K, eps=v), 1.0, {"half"}),
    ("batch_norm", "momentum"): (lambda v: hg.batch_norm(X, K, K, running=(K, K), momentum=v)[1][0], 0.5, {"half"}),
    ("batch_norm", "training"): (lambda v: hg.batch_norm(X, K, K, running=(K, K), training=v)[0], True, {"bool"}),
    ("conv_bn_relu_pool", "eps"): (
        lambda v: hg.conv_bn_relu_pool(X, np.ones((3, 3, X.shape[-1], 2)), np.ones(2), np.ones(2), eps=v),
        1.0,
        {"half"},
    ),
    ("softmax_cross_entropy", "labels"): (lambda v: hg.softmax_cross_entropy(ROW[0], v), 1, set()),
    ("linear_cross_entropy", "labels"): (lambda v: hg.linear_cross_entropy(ROW, np.ones((4, 4)), np.ones(4), v), LABELS, set()),
    ("linear_head_descent", "labels"): (lambda v: hg.linear_head_descent(ROW, np.ones((4, 4)), np.ones(4), v, 0.1, 1)[0], LABELS, set()),
    ("linear_head_descent", "n_steps"): (lambda v: hg.linear_head_descent(ROW, np.ones((4, 4)), np.ones(4), LABELS, 0.1, v)[0], 1, set()),
    ("cross_entropy", "labels"): (lambda v: hg.cross_entropy(ROW[0], v), 1, set()),
    ("cross_entropy", "label_smoothing"): (lambda v: hg.cross_entropy(ROW[0], 1, label_smoothing=v), 0.5, {"half"}),
    ("huber_loss", "delta"): (lambda v: hg.huber_loss(K, K, v), 0.5, {"half"}),
    ("gelu", "approximate"): (lambda v: hg.gelu(K, v), True, {"bool"}),
    ("layer_norm", "axis"): (lambda v: hg.layer_norm(X, axis=v), 1, {"None", "list"}),
    ("group_norm", "groups"): (lambda v: hg.group_norm(X, v), 2, set()),
    ("embedding", "indices"): (lambda v: hg.embedding(ROW, v), 1, {"list"}),
    ("astype", "dtype"): (lambda v: hg.astype(K, v), np.float32, set()),
    ("svd", "full_matrices"): (lambda v: hg.svd(X[0, :, :, 0], v).S, True, {"bool"}),
    ("norm", "ord"): (lambda v: hg.norm(K, v), 2, {"None", "half", "inf"}),
    ("tensordot", "axes"): (lambda v: hg.tensordot(ROW, ROW.T, v), 1, set()),
    ("cross", "axis"): (lambda v: hg.cross(np.ones((2, 3)), np.ones((2, 3)), axis=v), 1, set()),
    ("diff", "n"): (lambda v: hg.diff(X, v), 1, set()),
    ("linspace", "num"): (lambda v: hg.linspace(0.0, K, v), 3, set()),
    ("topk", "k"): (lambda v: hg.topk(X, v)[0], 1, set()),
    ("topk", "axis"): (lambda v: hg.topk(X, 1, v)[0], 1, set()),
    ("partition", "kth"): (lambda v: hg.partition(X, v), 1, set()),
    ("take_along_axis", "indices"): (lambda v: hg.take_along_axis(K, v), [1], {"list"}),
    ("take_along_axis", "axis"): (lambda v: hg.take_along_axis(K, [1], v), 0, {"None"}),
    ("add_at", "index"): (lambda v: hg.add_at(K, v, 1.0), 1, {"None", "bool", "list"}),
    ("set_at", "index"): (lambda v: hg.set_at(K, v, 1.0), 1, {"None", "bool", "list"}),
    ("expand_dims", "axis"): (lambda v: hg.expand_dims(X, v), 1, {"list"}),
    ("squeeze", "axis"): (lambda v: hg.squeeze(X, v), 0, {"None", "list"}),
    ("moveaxis", "source"): (lambda v: hg.moveaxis(X, v, 0), 1, {"list"}),
    ("moveaxis", "destination"): (lambda v: hg.moveaxis(X, 0, v), 1, {"list"}),
    ("swapaxes", "axis1"): (lambda v: hg.swapaxes(X, v, 0), 1, set()),
    ("swapaxes", "axis2"): (lambda v: hg.swapaxes(X, 0, v), 1, set()),
    ("rollaxis", "axis"): (lambda v: hg.rollaxis(X, v), 1, set()),
    ("rollaxis", "start"): (lambda v: hg.rollaxis(X, 2, v), 1, set()),
    ("split", "sections"): (lambda v: hg.split(X, v, 1)[0], 2, {"list"}),
    ("split", "axis"): (lambda v: hg.split(X, 2, v)[0], 1, set()),
    ("array_split", "sections"): (lambda v: hg.array_split(X, v, 1)[0], 3, {"list"}),
    ("array_split", "axis"): (lambda v: hg.array_split(X, 2, v)[0], 1, set()),
    ("hsplit", "sections"): (lambda v: hg.hsplit(X, v)[0], 2, {"list"}),
    ("vsplit", "sections"): (lambda v: hg.vsplit(X[0], v)[0], 2, {"list"}),
    ("dsplit", "sections"): (lambda v: hg.dsplit(X, v)[0], 2, {"list"}),
    ("append", "axis"): (lambda v: hg.append(X, X, v), 1, {"None"}),
    ("flip", "axis"): (lambda v: hg.flip(X, v), 1, {"None", "list"}),
    ("rot90", "k"): (lambda v: hg.rot90(X, v), 1, set()),
    ("rot90", "axes"): (lambda v: hg.rot90(X, 1, v), (0, 1), set()),
    ("roll", "shift"): (lambda v: hg.roll(X, v), 1, {"list"}),
    ("roll", "axis"): (lambda v: hg.roll(X, 1, v), 1, {"None", "list"}),
    ("tile", "reps"): (lambda v: hg.tile(K, v), 2, {"list"}),
    ("repeat", "repeats"): (lambda v: hg.repeat(K, v), 2, {"list"}),
    ("repeat", "axis"): (lambda v: hg.repeat(X, 2, v), 1, {"None"}),
    ("pad", "pad_width"): (lambda v: hg.pad(K, v), 1, {"list"}),
    ("pad", "mode"): (lambda v: hg.pad(K, 1, v), "edge", set()),
    ("pad", "constant_values"): (lambda v: hg.pad(K, 1, constant_values=v), 2.0, {"half", "inf"}),
    ("nan_to_num", "nan"): (lambda v: hg.nan_to_num(K, v), 2.0, {"half", "inf"}),
    ("nan_to_num", "posinf"): (lambda v: hg.nan_to_num(K, posinf=v), 2.0, {"None", "half", "inf"}),
    ("nan_to_num", "neginf"): (lambda v: hg.nan_to_num(K, neginf=v), 2.0, {"None", "half", "inf"}),
    ("round", "decimals"): (lambda v: hg.round(X, v), 1, set()),
    ("argsort", "axis"): (lambda v: hg.argsort(X, v), 1, {"None"}),
    ("eye", "n"): (lambda v: hg.eye(v), 2, set()),
    ("eye", "m"): (lambda v: hg.eye(2, v), 2, {"None"}),
    ("eye", "k"): (lambda v: hg.eye(2, k=v), 1, set()),
    ("arange", "start"): (lambda v: hg.arange(v, 5), 1, {"half"}),
    ("arange", "stop"): (lambda v: hg.arange(0, v), 3, {"half", "None"}),
    ("arange", "step"): (lambda v: hg.arange(0, 5, v), 2, {"half"}),
    ("full", "fill_value"): (lambda v: hg.full((3, 2), v), 2.0, FILLS),
    ("full_like", "fill_value"): (lambda v: hg.full_like(ROW[:, :2], v), 2.0, FILLS),
    ("full", "shape"): (lambda v: hg.full(v, 1.0), 2, {"list"}),
    ("one_hot", "labels"): (lambda v: hg.one_hot(v, 2), 1, {"list"}),
    ("one_hot", "classes"): (lambda v: hg.one_hot(1, v), 2, set()),
    ("orthogonal", "gain"): (lambda v: hg.orthogonal(0, (2, 2), v), 2.0, {"half"}),
    ("group_norm", "eps"): (lambda v: hg.group_norm(X, 2, eps=v), 1.0, {"half"}),
    ("partition", "axis"): (lambda v: hg.partition(X, 0, axis=v), 1, {"None"}),
}


def several(names: str, argument: str, call: Callable[[Any, Any], Any], right: Any, also: set[str]) -> None:
    """An argument that several ops have."""
    for name in names.split():
        ATTRIBUTES[name, argument] = (partial(call, getattr(hg, name)), right, also)


several("min prod std var median all any count_nonzero", "axis", lambda op, v: op(X, axis=v), 1, {"None", "list"})
several("min prod std var median norm all any count_nonzero", "keepdims", lambda op, v: op(X, axis=0, keepdims=v), True, {"bool"})
several("norm", "axis", lambda op, v: op(X, axis=v), 1, {"None", "list"})
several("argmax argmin cumsum cumprod sort", "axis", lambda op, v: op(X, axis=v), 1, {"None"})
several("argmax argmin", "keepdims", lambda op, v: op(X, axis=0, keepdims=v), True, {"bool"})
several("std var", "ddof", lambda op, v: op(X, ddof=v), 1.0, {"half"})
several("log_softmax diff", "axis", lambda op, v: op(X, axis=v), 1, set())
several("layer_norm instance_norm", "eps", lambda op, v: op(X, eps=v), 1.0, {"half"})
several("tril triu diag", "k", lambda op, v: op(ROW, v), 1, set())
several("diagonal trace", "offset", lambda op, v: op(ROW, v), 1, set())
several("diagonal trace", "axis1", lambda op, v: op(X, axis1=v, axis2=2), 1, set())
several("diagonal trace", "axis2", lambda op, v: op(X, axis1=2, axis2=v), 1, set())
several("hstack vstack dstack column_stack", "tensors", lambda op, v: op(v), [K, K], ARRAY_LISTS)
several("zeros ones eye", "dtype", lambda op, v: op(2, dtype=v), np.float32, set())
several("one_hot", "dtype", lambda op, v: op(1, 2, dtype=v), np.float32, set())
several("arange", "dtype", lambda op, v: op(2, dtype=v), np.float32, {"None"})
several("full", "dtype", lambda op, v: op(2, 1.0, dtype=v), np.float32, {"None"})
several("zeros ones eye arange", "device", lambda op, v: op(2, device=v), "cpu", set())
several("full", "device", lambda op, v: op(2, 1.0, device=v), "cpu", set())
several("zeros ones", "shape", lambda op, v: op(v), 2, {"list"})
WEIGHTS = "glorot_normal glorot_uniform he_normal he_uniform orthogonal"
several(WEIGHTS, "seed", lambda op, v: op(v, (2, 2)), np.random.default_rng(0), set())
several(WEIGHTS, "shape", lambda op, v: op(0, v), (2, 2), set())
several(WEIGHTS, "dtype", lambda op, v: op(0, (2, 2), dtype=v), np.float32, set())
WRONG = {
    "None": None,
    "str": "three",
    "nan": float("nan"),
    "inf": float("inf"),
    "half": 0.5,
    "bool": True,
    "list": [0],
    "list of None": [None],
    "list of floats": [0.5],
    "dict": {},
    "Tensor": Tensor(np.ones(2)),
    "complex": 1j,
}
# A whole number, in every type that means one.
WHOLE = {t.__name__: t for t in (np.int8, np.int64, np.uint8, np.uint64, np.intp)} | {"0-d array": np.array}


def parameters() -> set[tuple[str, str]]:
    """(op, argument) of every public op, but for those that are arrays."""
    found = set()
    for name in hypergrad.ops.__all__:
        op = getattr(hg, name)
        if not isinstance(op, Registered) and op.__name__ == name:  # an op itself takes arrays only; a second name is the same function
            found |= {(name, argument) for argument in inspect.signature(op).parameters if argument not in ARRAYS}
    return found - ARRAYS_OF | {("arange", "start"), ("arange", "stop"), ("rollaxis", "start")}


def numbers(x: Any) -> Any:
    """The array of a result."""
    return x.value if isinstance(x, Tensor) else x


def test_every_argument_of_every_public_op_is_tried_below() -> None:
    assert set(ATTRIBUTES) == parameters()


@pytest.mark.parametrize(("op", "argument"), ATTRIBUTES)
def test_right_values_are_taken(op: str, argument: str) -> None:
    call, right, _ = ATTRIBUTES[op, argument]
    assert call(right).size


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize(("op", "argument"), [k for k, v in ATTRIBUTES.items() if type(v[1]) is int])
def test_whole_numbers_of_every_type_mean_the_same(op: str, argument: str, kind: str) -> None:
    call, right, _ = ATTRIBUTES[op, argument]
    assert np.array_equal(numbers(call(WHOLE[kind](right))), numbers(call(right)))


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.array])
@pytest.mark.parametrize(("op", "argument"), [k for k, v in ATTRIBUTES.items() if type(v[1]) is float])
def test_numbers_of_every_type_mean_the_same(op: str, argument: str, kind: Any) -> None:
    call, right, _ = ATTRIBUTES[op, argument]
    assert np.array_equal(numbers(call(kind(right))), numbers(call(right)))


@pytest.mark.parametrize(("op", "argument", "wrong"), [(*k, wrong) for k, v in ATTRIBUTES.items() for wrong in WRONG if wrong not in v[2]])
def test_wrong_values_give_an_error_that_names_op_and_argument(op: str, argument: str, wrong: str) -> None:
    with pytest.raises(HypergradError) as caught:
        ATTRIBUTES[op, argument][0](WRONG[wrong])
    message = str(caught.value)
    assert message.startswith(f"{op}: {argument} ") and "expected " in message and "\n" not in message


def test_lists_of_numbers_of_numpy() -> None:
    assert hg.sum(X, axis=np.array([0, 1])).shape == hg.sum(X, axis=(np.int8(0), np.array(1))).shape == (4, 2)
    assert hg.reshape(X, np.array([2, -1])).shape == hg.reshape(X, (np.uint8(2), np.array(16))).shape == (2, 16)
    assert Tensor(X).reshape(np.int64(2), 16).shape == (2, 16)
    assert hg.transpose(X, np.array([3, 0, 1, 2])).shape == (2, 1, 4, 4)
    assert hg.broadcast_to(K, (np.int32(3), np.array(2))).shape == (3, 2)


@pytest.mark.parametrize("f", [hg.sum, hg.mean, hg.max])
@pytest.mark.parametrize("axis", [True, np.True_, np.array(True), 1.0, np.float64(1.0), np.array(1.0), (0, True), (0, 1.0)])
def test_axes_are_neither_bools_nor_floats(f: Callable[..., Any], axis: Any) -> None:
    with pytest.raises(hg.errors.ArgumentError, match=f"{f.__name__}: axis has .*, expected an integer because axes are numbered"):
        f(X, axis=axis)


def test_a_rate_that_is_learned_gets_its_derivative() -> None:
    rate = np.array(0.5)
    assert hg.grad(lambda r: hg.sum(hg.dropout(K, K > 0, rate=r)))(rate) == 8.0
    with pytest.raises(hg.errors.ArgumentError, match="dropout: rate has"):
        hg.grad(lambda r: hg.sum(hg.dropout(K, K > 0, rate=r)))(np.array(1.0))


def test_indices_of_take_choose_slices_and_are_no_mask() -> None:
    with pytest.raises(hg.errors.DTypeError, match="take: indices has dtype bool"):
        hg.take(K, np.array([True, False]))
