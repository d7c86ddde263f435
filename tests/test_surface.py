"""The names that users of autograd, JAX and PyTorch reach for: what is covered, accuracy, kinks, refusals, constants, initial weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy_surface
import pytest
from checks import assert_same

import hypergrad as hg
from hypergrad.errors import ArgumentError, HypergradError, ShapeError
from hypergrad.ops import constants, initialisers
from hypergrad.rules import REGISTRY
from hypergrad.tape import Tensor
from hypergrad.testing import check_gradients


def test_the_functions_of_autograd_are_covered_or_refused_with_a_remedy() -> None:
    rows = numpy_surface.rows()
    refused = {row.name: row.remedy for row in rows if row.ours is None}
    assert len(rows) == len({row.name for row in rows}) >= 120 and len(rows) - len(refused) >= 115
    assert set(refused) == {"angle", "gradient", "imag", "select", "linalg.eig"} and all(refused.values())
    with pytest.raises(TypeError):  # np.full asks nobody: hg.full is there
        np.full(2, Tensor(np.ones(2)))


def test_the_table_of_the_functions_of_autograd_is_up_to_date() -> None:
    assert numpy_surface.RESULTS.read_text() == numpy_surface.table(), "run python tests/numpy_surface.py"


def test_a_filled_array_has_the_derivative_of_its_number() -> None:
    assert hg.grad(lambda t: hg.sum(hg.full((2, 3), t) * np.arange(6.0).reshape(2, 3)))(np.array(2.0)) == 15.0
    assert np.array_equal(hg.grad(lambda t: hg.sum(hg.full_like(np.ones((2, 2)), t)))(np.ones(2)), [2.0, 2.0])


# --- accuracy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "reference", "points"),
    [
        (hg.erf, math.erf, np.linspace(-7, 7, 801)),
        (hg.erfc, math.erfc, np.linspace(-7, 26, 801)),
        (hg.gammaln, math.lgamma, np.r_[np.linspace(0.01, 40, 801), np.logspace(-300, 300, 61), np.linspace(-6.97, -0.03, 300)]),
    ],
)
def test_special_functions_are_right_to_1e_14(f: Any, reference: Callable[[float], float], points: np.ndarray) -> None:
    wanted = np.array([reference(float(x)) for x in points])
    size = np.abs(wanted) if f is not hg.gammaln else np.maximum(np.abs(wanted), 1.0)
    assert np.max(np.abs(f(points).value - wanted) / size) < 1e-14
    single = points[(points < 9) & (np.abs(points) > 1e-30)].astype(np.float32)
    wanted = np.array([reference(float(x)) for x in single])
    assert np.max(np.abs(f(single).value - wanted) / np.maximum(np.abs(wanted), 1e-30)) < 2e-7


def test_polygamma_at_points_with_closed_forms() -> None:
    euler, zeta3 = 0.5772156649015329, 1.2020569031595943
    for order, x, wanted in (
        (1, 1.0, -euler),
        (1, 0.5, -euler - 2 * math.log(2)),
        (1, -0.5, 2 - euler - 2 * math.log(2)),
        (2, 1.0, math.pi**2 / 6),
        (2, 0.5, math.pi**2 / 2),
        (2, -0.5, math.pi**2 / 2 + 4),
        (3, 1.0, -2 * zeta3),
        (4, 1.0, math.pi**4 / 15),
        (4, 0.5, math.pi**4),
    ):
        got = REGISTRY["polygamma"](np.array(x), order=order).item()
        assert abs(got - wanted) <= 1e-14 * abs(wanted) * 2
    points = hg.gammaln(np.array([0.0, -1.0, np.inf, -np.inf, np.nan])).value
    assert np.array_equal(points, [np.inf, np.inf, np.inf, np.inf, np.nan], equal_nan=True)
    assert np.isnan(hg.digamma(np.array([0.0, -2.0])).value).all()


def test_what_overflows_elsewhere_does_not_here() -> None:
    assert hg.hypot(1e300, 1e300).item() == math.hypot(1e300, 1e300) and hg.norm(np.full(4, 1e300)).item() == 2e300
    assert hg.norm(np.full(4, 1e-300), 3).item() == pytest.approx(4 ** (1 / 3) * 1e-300, rel=1e-14)
    assert np.array_equal(hg.grad(lambda x: hg.norm(x))(np.full(4, 1e-300)), np.full(4, 0.5))
    assert hg.var(np.array([1e9, 1e9 + 1, 1e9 + 2])).item() == pytest.approx(2 / 3, rel=1e-12)
    assert hg.logaddexp(1000.0, 1000.0).item() == 1000 + math.log(2) and hg.logaddexp(0.0, -40.0).item() == math.log1p(math.exp(-40))
    x, y = np.array([-np.inf, np.inf, 0.0]), np.array([-np.inf, np.inf, -np.inf])
    both = hg.vjp(hg.logaddexp, x, y)[1](np.ones(3))
    assert np.array_equal(both, [[0.5, 0.5, 1.0], [0.5, 0.5, 0.0]])
    assert hg.arctan2(1e-200, 1e-200).item() == math.pi / 4
    slopes = hg.grad(lambda x, y: hg.arctan2(x, y), argnums=(0, 1))(np.array(1e-200), np.array(1e-200))
    assert np.allclose(slopes, [5e199, -5e199], rtol=1e-14)
    assert hg.grad(hg.gelu)(np.array(-40.0)) == 0.0 and hg.cross_entropy(np.array([1000.0, -1000.0]), 1).item() == 2000.0


def test_products_with_zeros_have_their_derivatives() -> None:
    assert np.array_equal(hg.grad(hg.prod)(np.array([2.0, 0.0, 3.0])), [0.0, 6.0, 0.0])
    for x in (np.array([2.0, 0.0, 3.0, 0.5]), np.array([0.0, 2.0, 0.0])):
        check_gradients(hg.prod, x)
        check_gradients(hg.cumprod, x)
    assert hg.prod(np.ones((0, 2)), axis=0).value.tolist() == [1.0, 1.0] and hg.cumprod(np.ones(0)).shape == (0,)


# --- kinks, as the docstrings state them ------------------------------------------------------------------------------

TIED = {  # op, arguments, the derivative of its sum by the first argument
    "min": (hg.min, ([2.0, 1.0, 1.0],), [0.0, 1.0, 0.0]),
    "sort": (lambda x: hg.sort(x) * np.array([1.0, 2.0, 4.0]), ([1.0, 1.0, 0.0],), [2.0, 4.0, 1.0]),
    "topk": (lambda x: hg.topk(x, 1)[0], ([1.0, 2.0, 2.0],), [0.0, 1.0, 0.0]),
    "median": (hg.median, ([1.0, 3.0, 1.0, 5.0],), [0.0, 0.5, 0.5, 0.0]),
    "clip": (lambda x: hg.clip(x, 0.0, 1.0), ([-1.0, 0.0, 0.5, 1.0, 2.0],), [0.0, 1.0, 1.0, 1.0, 0.0]),
    "clip, bound": (lambda low, x: hg.clip(x, low, 1.0), ([0.0, 0.0, 0.0], [-1.0, 0.0, 0.5]), [1.0, 0.0, 0.0]),
    "fmax": (hg.fmax, ([1.0, np.nan, 2.0], [1.0, 1.0, np.nan]), [1.0, 0.0, 1.0]),
    "fmin": (hg.fmin, ([1.0, np.nan, 2.0], [1.0, 1.0, np.nan]), [1.0, 0.0, 1.0]),
    "hypot": (hg.hypot, ([0.0, 3.0], [0.0, 4.0]), [0.0, 0.6]),
    "norm": (hg.norm, ([0.0, 0.0],), [0.0, 0.0]),
    "std": (hg.std, ([2.0, 2.0],), [0.0, 0.0]),
    "sinc": (hg.sinc, ([0.0],), [0.0]),
    "leaky_relu": (lambda x: hg.leaky_relu(x, 0.25), ([-1.0, 0.0, 1.0],), [0.25, 0.25, 1.0]),
    "elu": (lambda x: hg.elu(x, 0.5), ([0.0, 1.0],), [0.5, 1.0]),
    "softsign": (hg.softsign, ([0.0],), [1.0]),
    "hinge_loss": (lambda x: hg.hinge_loss(x, np.ones(3)), ([0.0, 1.0, 2.0],), [-1.0, 0.0, 0.0]),
    "huber_loss": (lambda x: hg.huber_loss(x, np.zeros(3)), ([-1.0, 0.0, 1.0],), [-1.0, 0.0, 1.0]),
    "nan_to_num": (hg.nan_to_num, ([np.nan, np.inf, 1.0],), [0.0, 0.0, 1.0]),
    "set_at": (lambda y: hg.set_at(np.zeros(2), [0, 0], y) * 3.0, ([1.0, 2.0],), [0.0, 3.0]),
    "mod": (lambda x: hg.mod(x, 2.0), ([1.0, -1.0],), [1.0, 1.0]),
}


@pytest.mark.parametrize("name", TIED)
def test_derivatives_at_kinks_are_as_documented(name: str) -> None:
    f, arguments, wanted = TIED[name]
    args = [np.array(a) for a in arguments]
    loss = lambda *a: hg.sum(f(*a))  # noqa: E731
    assert np.array_equal(hg.grad(loss)(*args), wanted)
    columns = np.eye(args[0].size).reshape(-1, *args[0].shape)
    assert np.array_equal(hg.jvp(lambda x: loss(x, *args[1:]), (args[0],), (columns,))[1], np.ravel(wanted))


def test_a_norm_at_zero_is_finite_to_second_order() -> None:
    for f in (hg.norm, hg.std, lambda x: hg.hypot(x[0], x[1])):
        _, grads, products = hg.hvp(f, (np.zeros(2),), (np.ones(2),))
        assert not np.any(grads) and not np.any(products)


def test_nan_is_kept() -> None:
    x = np.array([3.0, np.nan, 1.0])
    assert np.isnan(hg.median(x).item()) and np.isnan(hg.min(x).item())
    assert np.array_equal(hg.sort(x).value, [1.0, 3.0, np.nan], equal_nan=True)
    assert hg.topk(x, 2)[1].tolist() == [1, 0]


# --- refusals ----------------------------------------------------------------------------------------------------------

ALMOST = np.array([[0.1, 0.2], [0.3, 0.6]])  # singular, though no pivot of its factors is 0
EYE, RANK1 = np.eye(2), np.ones((3, 2))
NAN = np.full((2, 2), np.nan)
REFUSED: dict[str, tuple[Callable[[], Any], type, str]] = {
    "solve": (lambda: hg.solve(ALMOST, np.ones(2)), ArgumentError, "solve: x has a singular matrix"),
    "solve of NaN": (lambda: hg.solve(NAN, np.ones(2)), ArgumentError, "solve: x has a singular matrix"),
    "solve, shapes": (lambda: hg.solve(EYE, np.ones(3)), ShapeError, "solve: y has shape"),
    "solve, no square": (lambda: hg.solve(RANK1, np.ones(3)), ShapeError, "solve: x has shape"),
    "inv": (lambda: hg.inv(ALMOST), ArgumentError, "inv: x has a singular matrix"),
    "inv of zeros": (lambda: hg.inv(np.zeros((2, 2))), ArgumentError, "inv: x has a singular matrix"),
    "det": (lambda: hg.grad(hg.det)(ALMOST), ArgumentError, "det: x has a singular matrix"),
    "slogdet": (lambda: hg.slogdet(np.ones((2, 2))), ArgumentError, "slogdet: x has a singular matrix"),
    "cholesky": (lambda: hg.cholesky(-EYE), ArgumentError, "cholesky: x has a matrix for which there is no result"),
    "cholesky, not symmetric": (lambda: hg.cholesky(ALMOST), ArgumentError, "cholesky: x has a matrix that is not symmetric"),
    "cholesky of NaN": (lambda: hg.cholesky(NAN), HypergradError, "cholesky: x has"),
    "eigvalsh": (lambda: hg.grad(lambda x: hg.sum(hg.eigvalsh(x)))(EYE), ArgumentError, "eigh: x has equal eigenvalues"),
    "eigh, forward": (lambda: hg.jvp(lambda x: hg.eigh(x)[0], (EYE,), (EYE,)), ArgumentError, "eigh: x has equal eigenvalues"),
    "eigh of NaN": (lambda: hg.eigh(NAN), HypergradError, "eigh: x has"),
    "eigvalsh, not symmetric": (lambda: hg.eigvalsh(ALMOST), ArgumentError, "eigvalsh: x has a matrix that is not"),
    "svdvals": (lambda: hg.grad(lambda x: hg.sum(hg.svdvals(x)))(EYE), ArgumentError, "svd: x has equal eigenvalues or singular values"),
    "svdvals, 0": (lambda: hg.grad(lambda x: hg.sum(hg.svdvals(x)))(RANK1), ArgumentError, "svd: x has a singular value of 0"),
    "svd": (lambda: hg.svd(RANK1), ArgumentError, "svd: full_matrices has True"),
    "qr": (lambda: hg.grad(lambda x: hg.sum(hg.qr(x)[0]))(RANK1), ArgumentError, "qr: x has a singular matrix"),
    "pinv": (lambda: hg.grad(lambda x: hg.sum(hg.pinv(x)))(RANK1), ArgumentError, "pinv: x has linearly dependent"),
    "lstsq, shapes": (lambda: hg.lstsq(RANK1, np.ones(2)), ShapeError, "lstsq: y has shape"),
    "norm 3 of a matrix": (lambda: hg.norm(EYE, 3), ArgumentError, "norm: ord has 3"),
    "norm 0": (lambda: hg.norm(np.ones(2), 0), ArgumentError, "norm: ord has 0"),
    "var of one": (lambda: hg.var(np.ones(1), ddof=1), ShapeError, "var: x has 1 elements"),
    "median of nothing": (lambda: hg.median(np.ones(0)), ShapeError, "median: x has shape"),
    "min of nothing": (lambda: hg.min(np.ones((2, 0)), axis=1), ShapeError, "min: x has shape"),
    "argmax of nothing": (lambda: hg.argmax(np.ones(0)), ArgumentError, "argmax: x has shape"),
    "topk": (lambda: hg.topk(np.ones(2), 3), ArgumentError, "topk: k has 3"),
    "partition": (lambda: hg.partition(np.ones(2), 2), ArgumentError, "partition: kth has 2"),
    "take_along_axis": (lambda: hg.take_along_axis(np.ones((1, 2)), np.array([[2]])), ArgumentError, "take_along_axis: index has"),
    "take_along_axis, axes": (lambda: hg.take_along_axis(np.ones((1, 2)), np.array([1])), ShapeError, "take_along_axis: indices has shape"),
    "set_at": (lambda: hg.set_at(np.ones(2), 2, 1.0), ArgumentError, "set_at: index has 2"),
    "set_at, shape": (lambda: hg.set_at(np.ones(2), 0, np.ones(2)), ShapeError, "set_at: y has shape"),
    "squeeze": (lambda: hg.squeeze(EYE, 0), ShapeError, "squeeze: x has shape"),
    "split": (lambda: hg.split(np.ones(3), 2), ArgumentError, "split: sections has 2, expected a divisor"),
    "vsplit": (lambda: hg.vsplit(np.ones(3), 3), ShapeError, "vsplit: x has shape"),
    "moveaxis": (lambda: hg.moveaxis(EYE, (0, 1), 0), ArgumentError, "moveaxis: source has 2 axes"),
    "roll": (lambda: hg.roll(np.ones((2, 2, 2)), (1, 2), (0, 1, 2)), ArgumentError, "roll: shift has 2 numbers"),
    "repeat": (lambda: hg.repeat(np.ones(3), [1, 2]), ArgumentError, "repeat: repeats has"),
    "tile": (lambda: hg.tile(np.ones(3), -1), ArgumentError, "tile: reps has -1"),
    "pad": (lambda: hg.pad(np.ones(3), -1), ArgumentError, "pad: pad_width has -1"),
    "pad of nothing": (lambda: hg.pad(np.ones(0), 1, "edge"), ArgumentError, "pad: mode has 'edge'"),
    "vstack": (lambda: hg.vstack([]), ArgumentError, "vstack: tensors is empty"),
    "diag": (lambda: hg.diag(np.ones((1, 1, 1))), ShapeError, "diag: x has shape"),
    "trace": (lambda: hg.trace(np.ones(2)), ShapeError, "trace: x has shape"),
    "tril": (lambda: hg.tril(np.ones(2)), ShapeError, "tril: x has shape"),
    "diagonal": (lambda: hg.diagonal(EYE, 0, 1, 1), ArgumentError, "diagonal: axis2 has 1"),
    "dot": (lambda: hg.dot(EYE, np.ones(3)), ShapeError, "dot: arguments have shapes"),
    "inner": (lambda: hg.inner(EYE, np.ones(3)), ShapeError, "inner: arguments have shapes"),
    "vdot": (lambda: hg.vdot(EYE, np.ones(3)), ShapeError, "vdot: arguments have shapes"),
    "cross": (lambda: hg.cross(EYE, EYE), ShapeError, "cross: arguments have shapes"),
    "tensordot": (lambda: hg.tensordot(EYE, RANK1, 1), ShapeError, "tensordot: arguments have shapes"),
    "tensordot, axes": (lambda: hg.tensordot(EYE, EYE, ([0], [0, 1])), ArgumentError, "tensordot: axes has"),
    "clip": (lambda: hg.clip(EYE), ArgumentError, "clip: min and max are None"),
    "mse_loss": (lambda: hg.mse_loss(np.ones((2, 1)), np.ones(2)), ShapeError, "mse_loss: y has shape"),
    "cross_entropy": (lambda: hg.cross_entropy(EYE, [0, 2]), ArgumentError, "cross_entropy: labels has values 0 to 2"),
    "cross_entropy, soft": (lambda: hg.cross_entropy(EYE, np.ones(2)), ShapeError, "cross_entropy: labels has shape"),
    "embedding": (lambda: hg.embedding(np.ones(2), 0), ShapeError, "embedding: table has shape"),
    "group_norm": (lambda: hg.group_norm(np.ones((2, 2, 3)), 2), ArgumentError, "group_norm: groups has 2"),
    "instance_norm": (lambda: hg.instance_norm(EYE), ShapeError, "instance_norm: x has shape"),
    "attention": (lambda: hg.scaled_dot_product_attention(EYE, RANK1, EYE), ShapeError, "scaled_dot_product_attention: q, k, v"),
    "lstm_cell": (lambda: hg.lstm_cell(EYE, EYE, EYE, EYE, EYE), ShapeError, "lstm_cell: x, h, w, u have shapes"),
    "lstm_cell, one product": (lambda: hg.lstm_cell(EYE, EYE, EYE, EYE), ShapeError, "lstm_cell: x, h, w have shapes"),
    "gru_cell": (lambda: hg.gru_cell(EYE, EYE, EYE, EYE), ShapeError, "gru_cell: x, h, w, u have shapes"),
    "conv2d, groups": (lambda: hg.conv2d(np.ones((1, 3, 3, 4)), np.ones((3, 3, 2, 3)), groups=2), ArgumentError, "conv2d: groups has 2"),
    "conv2d, channels": (lambda: hg.conv2d(np.ones((1, 3, 3, 4)), np.ones((3, 3, 4, 2)), groups=2), ShapeError, "conv2d: x has 4 channels"),
    "conv1d": (lambda: hg.conv1d(EYE, np.ones((3, 2, 2))), ShapeError, "conv1d: x has shape"),
    "conv1d, even": (lambda: hg.conv1d(np.ones((1, 4, 2)), np.ones((2, 2, 2))), ArgumentError, "conv1d: w has filters of (2,)"),
    "conv_transpose2d": (lambda: hg.conv_transpose2d(np.ones((1, 3, 3, 4)), np.ones((3, 3, 4, 2))), ShapeError, "conv_transpose2d: x has"),
    "conv_transpose2d, empty": (lambda: hg.conv_transpose2d(np.ones((1, 1, 1, 1)), np.ones((1, 1, 1, 1)), padding=1), ShapeError,
                                "conv_transpose2d: x has (1, 1) pixels"),
    "one_hot": (lambda: hg.one_hot([3], 3), ArgumentError, "one_hot: labels has values 3 to 3"),
    "eye": (lambda: hg.eye(-1), ArgumentError, "eye: n has -1"),
    "zeros": (lambda: hg.zeros(-1), ArgumentError, "zeros: shape has -1"),
    "arange": (lambda: hg.arange(0, 1, 0), ArgumentError, "arange: step has 0"),
    "full": (lambda: hg.full(2, np.ones(3)), ShapeError, "full: fill_value has shape"),
    "full, dtype": (lambda: hg.full(2, Tensor(np.ones(2)), np.float32), ArgumentError, "full: dtype has"),
    "linspace": (lambda: hg.linspace(0.0, 1.0, -1), ArgumentError, "linspace: num has -1"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_result_or_derivative_is_refused(name: str) -> None:
    call, kind, message = REFUSED[name]
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value).startswith(message) and "expected " in str(caught.value)


# --- constants and initial weights ------------------------------------------------------------------------------------

X = np.array([[0.5, -1.25, 0.0], [2.5, 3.0, -0.5]])
PLAIN: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "all": (lambda x: hg.all(x, 1), lambda x: np.all(x, 1)),
    "any": (lambda x: hg.any(x, keepdims=True), lambda x: np.any(x, keepdims=True)),
    "argmax": (lambda x: hg.argmax(x, 1, keepdims=True), lambda x: np.argmax(x, 1, keepdims=True)),
    "argmin": (hg.argmin, np.argmin),
    "argsort": (lambda x: hg.argsort(x, 0), lambda x: np.argsort(x, 0, kind="stable")),
    "ceil": (hg.ceil, np.ceil),
    "count_nonzero": (lambda x: hg.count_nonzero(x, 0), lambda x: np.count_nonzero(x, 0)),
    "floor": (hg.floor, np.floor),
    "full_like": (lambda x: hg.full_like(x, 3), lambda x: np.full_like(x, 3)),
    "one_hot": (lambda x: hg.one_hot(hg.argmax(x, 1), 3, x.dtype), lambda x: np.eye(3, dtype=x.dtype)[np.argmax(x, 1)]),
    "ones_like": (hg.ones_like, np.ones_like),
    "round": (lambda x: hg.round(x, 1), lambda x: np.round(x, 1)),
    "sign": (hg.sign, np.sign),
    "trunc": (hg.trunc, np.trunc),
    "zeros_like": (hg.zeros_like, np.zeros_like),
}
NEW = {
    "arange": (lambda: hg.arange(1, 5, 2), lambda: np.arange(1, 5, 2)),
    "eye": (lambda: hg.eye(2, 3, 1, np.float32), lambda: np.eye(2, 3, 1, np.float32)),
    "full": (lambda: hg.full((2, 2), [1.0, 2.0]), lambda: np.full((2, 2), [1.0, 2.0])),
    "ones": (lambda: hg.ones((2, 3), int), lambda: np.ones((2, 3), int)),
    "zeros": (lambda: hg.zeros(2), lambda: np.zeros(2)),
}


def test_every_constant_is_tried() -> None:
    assert {*PLAIN, *NEW} == set(constants.__all__)


@pytest.mark.backends("host", "pretended", "gpu")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", PLAIN)
def test_constants_are_plain_arrays_where_the_argument_is(name: str, dtype: type, backend: Any) -> None:
    f, numpys = PLAIN[name]
    x, wanted, seen = X.astype(dtype), numpys(X.astype(dtype)), []
    there = backend.put(x)
    hg.grad(lambda t: seen.append(f(t)) or hg.sum(t))(there)
    for got in (*seen, f(there)):
        assert type(got) is type(there) and got.dtype == wanted.dtype and got.shape == wanted.shape
        assert np.array_equal(got if isinstance(got, np.ndarray) else got.get(), wanted)


@pytest.mark.parametrize("name", NEW)
def test_new_arrays_are_numpys(name: str) -> None:
    got, wanted = (f() for f in NEW[name])
    assert type(got) is np.ndarray and got.dtype == wanted.dtype and np.array_equal(got, wanted) and got.flags.writeable


@pytest.mark.parametrize("name", sorted(set(initialisers.__all__) - {"orthogonal"}))
def test_initial_weights_have_their_variance(name: str) -> None:
    draw, shape = getattr(hg, name), (3, 3, 20, 40)
    w, n_in, n_out = draw(1, shape, np.float32), 9 * 20, 9 * 40
    variance = 2 / n_in if name.startswith("he") else 2 / (n_in + n_out)
    assert w.shape == shape and w.dtype == np.float32 and abs(np.var(w) / variance - 1) < 0.06 and abs(np.mean(w)) < 1e-2
    if name.endswith("uniform"):
        assert np.max(np.abs(w)) <= math.sqrt(3 * variance) * (1 + 1e-6)
    assert np.array_equal(w, draw(1, shape, np.float32)) and np.array_equal(w, draw(np.random.default_rng(1), shape, np.float32))


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (2, 2, 3)])
def test_orthogonal_weights_are(shape: tuple[int, ...]) -> None:
    w = hg.orthogonal(0, shape, gain=2.0)
    flat = w.reshape(-1, shape[-1])
    product = flat.T @ flat if flat.shape[0] >= flat.shape[1] else flat @ flat.T
    assert w.shape == shape and np.allclose(product, 4 * np.eye(len(product)), atol=1e-14)


# --- layers ---------------------------------------------------------------------------------------------------------------


def test_a_query_that_sees_no_key_gets_zeros_and_no_derivative() -> None:
    q, k, v = np.ones((2, 3)), np.ones((4, 3)), np.ones((4, 2))
    mask = np.array([[True] * 4, [False] * 4])
    f = lambda q: hg.sum(hg.scaled_dot_product_attention(q, k, v, mask) ** 2)  # noqa: E731
    value, slope = hg.value_and_grad(f)(q)
    assert value == 2.0 and not slope[1].any() and np.isfinite(slope).all()


def test_a_masked_class_adds_nothing_to_a_soft_cross_entropy() -> None:
    z, p = np.array([0.0, -np.inf, 1.0]), np.array([0.25, 0.0, 0.75])
    value, (z_bar, p_bar) = hg.value_and_grad(hg.cross_entropy, argnums=(0, 1))(z, p)
    short, (shorter, _) = hg.value_and_grad(hg.cross_entropy, argnums=(0, 1))(z[::2], p[::2])
    assert value == short and np.array_equal(z_bar[::2], shorter) and z_bar[1] == 0 and np.isfinite(p_bar).all()


def test_labels_are_smoothed_the_same_as_integers_and_as_probabilities() -> None:
    z, labels = np.random.default_rng(0).normal(size=(4, 3)), np.array([0, 2, 1, 1])
    assert_same(hg.cross_entropy(z, labels).value, hg.softmax_cross_entropy(z, labels).value, "labels")
    soft = hg.cross_entropy(z, hg.one_hot(labels, 3), label_smoothing=0.1).value
    assert_same(hg.cross_entropy(z, labels, label_smoothing=0.1).value, soft, "smoothed")


def test_a_generator_draws_the_mask_of_dropout() -> None:
    x = np.ones(1000)
    y = hg.dropout(x, np.random.default_rng(0), rate=0.25).value
    assert 0.2 < np.mean(y == 0) < 0.3 and np.array_equal(y, hg.dropout(x, np.random.default_rng(0), rate=0.25).value)
    slope = hg.grad(lambda r: hg.sum(hg.dropout(x, np.random.default_rng(0), rate=r)))(np.array(0.25))
    assert slope == pytest.approx(np.sum(y) / 0.75, rel=1e-12)  # the mask stays as it was drawn


def test_precision_comes_back_in_the_derivative() -> None:
    x = np.array([1.0, 2.0], np.float32)
    value, slope = hg.value_and_grad(lambda x: hg.sum(hg.astype(x, np.float64) ** 2))(x)
    assert value.dtype == np.float64 and slope.dtype == np.float32 and np.array_equal(slope, [2.0, 4.0])
    assert hg.jvp(lambda x: hg.astype(x, np.float64), (x,), (x,))[1].dtype == np.float64
    t = Tensor(x)
    assert hg.astype(t, "float32") is t


EMPTY: list[Callable[[Any], Any]] = [
    hg.cumsum, hg.cumprod, hg.prod, hg.sort, hg.ravel, hg.squeeze, hg.flip, hg.tril, hg.trace, hg.svdvals, hg.norm, hg.erf, hg.gammaln,
    hg.sinc, hg.leaky_relu, hg.diff, lambda x: hg.roll(x, 1), lambda x: hg.tile(x, 2), lambda x: hg.repeat(x, 2), lambda x: hg.pad(x, 1),
    lambda x: hg.topk(x, 0)[0], lambda x: hg.outer(x, x), lambda x: hg.kron(x, x), lambda x: hg.tensordot(x, x), lambda x: hg.qr(x).R,
    lambda x: hg.softmax(x, 0) + hg.log_softmax(x, 0) if x.shape[0] else hg.exp(x),
]  # fmt: skip
SQUARE = [hg.inv, hg.det, hg.cholesky, hg.eigvalsh, lambda x: hg.slogdet(x).logabsdet, lambda x: hg.solve(x, x), hg.pinv]


@pytest.mark.parametrize(
    ("f", "shape"),
    [(f, shape) for f in EMPTY for shape in ((0, 2), (3, 0))] + [(f, shape) for f in SQUARE for shape in ((0, 0), (0, 2, 2))],
)
def test_arrays_without_elements(f: Callable[[Any], Any], shape: tuple[int, ...]) -> None:
    _, grads, products = hg.hvp(lambda x: hg.sum(f(x)), (np.ones(shape),), (np.ones(shape),))
    assert grads[0].shape == products[0].shape == shape
