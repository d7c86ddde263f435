"""Arguments of ops that are no arrays: every type that means a number is taken, everything else gives one clear error."""

from __future__ import annotations

import inspect
from collections.abc import Callable
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
ARRAYS = {"x", "y", "w", "bias", "gamma", "beta", "logits", "mask", "exponent", "operands"}
ARRAY_LISTS = {"list", "list of None", "list of floats", "Tensor"}  # of arrays, as above
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
    ("max_pool2d", "size"): (lambda v: hg.max_pool2d(X, size=v), 1, set()),
    ("avg_pool2d", "size"): (lambda v: hg.avg_pool2d(X, size=v), 1, set()),
    ("batch_norm", "eps"): (lambda v: hg.batch_norm(X, K, K, eps=v), 1.0, {"half"}),
    ("conv_bn_relu_pool", "eps"): (
        lambda v: hg.conv_bn_relu_pool(X, np.ones((3, 3, X.shape[-1], 2)), np.ones(2), np.ones(2), eps=v),
        1.0,
        {"half"},
    ),
    ("softmax_cross_entropy", "labels"): (lambda v: hg.softmax_cross_entropy(ROW[0], v), 1, set()),
    ("linear_cross_entropy", "labels"): (lambda v: hg.linear_cross_entropy(ROW, np.ones((4, 4)), np.ones(4), v), LABELS, set()),
}
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
        if not isinstance(op, Registered):  # an op itself takes arrays only
            found |= {(name, argument) for argument in inspect.signature(op).parameters if argument not in ARRAYS}
    return found


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
    assert np.array_equal(call(WHOLE[kind](right)).value, call(right).value)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.array])
@pytest.mark.parametrize(("op", "argument"), [k for k, v in ATTRIBUTES.items() if type(v[1]) is float])
def test_numbers_of_every_type_mean_the_same(op: str, argument: str, kind: Any) -> None:
    call, right, _ = ATTRIBUTES[op, argument]
    assert np.array_equal(call(kind(right)).value, call(right).value)


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
