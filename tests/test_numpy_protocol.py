"""NumPy's functions on Tensors: NumPy's values, the true derivatives, and nothing ignored."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from checks import assert_same, differenced
from numpy_calls import CALLS, X, Y, numpys

import hypergrad as hg
from hypergrad.errors import ArgumentError, DTypeError, ShapeError
from hypergrad.ops import numpy_protocol as protocol
from hypergrad.tape import Tensor

ALL = [(name, i) for name, calls in CALLS.items() for i in range(len(calls))]


def test_every_served_function_is_tried() -> None:
    tried = {numpys(name) for name in CALLS}
    assert [f.__name__ for f in protocol._served if f not in tried] == []
    assert tried <= set(protocol._served)
    named = {getattr(np, name, None) for name in hg.ops.__all__}
    assert [f.__name__ for f in named if isinstance(f, (np.ufunc, type(np.sum))) and f not in {*protocol._served, *protocol._plain}] == []


@pytest.mark.parametrize(("name", "i"), ALL)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_values_are_numpys(name: str, i: int, dtype: type) -> None:
    f, x, y = CALLS[name][i], X.astype(dtype), Y.astype(dtype)
    wanted, got = f(x, y), f(Tensor(x), Tensor(y))
    assert type(got) is Tensor and got.dtype == wanted.dtype == dtype
    assert_same(got.value, wanted, name, 4 * np.finfo(x.dtype).eps)


@pytest.mark.parametrize(("name", "i"), ALL)
def test_derivatives_are_those_of_numpys_function(name: str, i: int) -> None:
    f, dots = CALLS[name][i], [np.cos(X), np.sin(3 * Y)]
    wanted = differenced(f, [X, Y], dots)
    assert_same(hg.jvp(f, (X, Y), tuple(dots))[1], wanted, "jvp", 1e-9)
    out, pullback = hg.vjp(f, X, Y)
    c = np.cos(np.arange(out.size, dtype=float)).reshape(out.shape)
    x_bar, y_bar = pullback(c)
    assert_same(np.sum(x_bar * dots[0]) + np.sum(y_bar * dots[1]), np.sum(c * wanted), "vjp", 1e-9)


def test_code_written_for_numpy_differentiates() -> None:
    def loss(w: Any, x: Any, y: Any) -> Any:
        h = np.tanh(x @ w["hidden"] + w["bias"])
        z = h @ w["out"]
        z = z - np.max(z, axis=1, keepdims=True)
        return np.mean(np.log(np.sum(np.exp(z), axis=1)) - np.sum(np.where(y, z, 0.0), axis=1))

    rng = np.random.default_rng(0)
    w = {"hidden": rng.standard_normal((4, 5)), "bias": rng.standard_normal(5), "out": rng.standard_normal((5, 3))}
    dot = {name: rng.standard_normal(a.shape) for name, a in w.items()}
    x, y = rng.standard_normal((6, 4)), np.eye(3, dtype=bool)[rng.integers(0, 3, 6)]
    value, gradient = hg.value_and_grad(loss)(w, x, y)
    assert_same(value, loss(w, x, y), "value", 1e-15)
    wanted = differenced(lambda w: loss(w, x, y), [w], [dot])
    assert_same(sum(np.sum(gradient[n] * dot[n]) for n in w), wanted, "gradient", 1e-9)
    assert_same(hg.jvp(lambda w: loss(w, x, y), (w,), (dot,))[1], wanted, "tangent", 1e-9)
    product = hg.hvp(lambda w: loss(w, x, y), (w,), (dot,))[2][0]
    for n in w:
        assert_same(product[n], differenced(lambda w, n=n: hg.grad(loss)(w, x, y)[n], [w], [dot]), f"Hessian product, {n}", 1e-8)


# --- plain results -----------------------------------------------------------------------------------------


def ufuncs() -> dict[str, np.ufunc]:
    return {name: f for name, f in vars(np).items() if isinstance(f, np.ufunc)}


PREDICATES = sorted(n for n, f in ufuncs().items() if f in protocol._plain or {"d->?", "dd->?"} & set(f.types))


@pytest.mark.parametrize("name", PREDICATES)
def test_predicates_give_plain_arrays(name: str) -> None:
    f = getattr(np, name)
    t, other = Tensor(X), [Tensor(Y), Y, 1.0]
    found: list[Any] = []

    def run(t: Tensor) -> Any:
        if f.nin == 1:
            found.append(f(t))
        else:
            found.extend(f(t, o) for o in other)
            found.extend(f(o, t) for o in other)
        return hg.sum(t)

    hg.grad(run)(X)
    wanted = [f(X)] if f.nin == 1 else [f(X, Y), f(X, Y), f(X, 1.0), f(Y, X), f(Y, X), f(1.0, X)]
    for a, b in zip(found, wanted, strict=True):
        assert type(a) is np.ndarray and a.dtype == b.dtype and np.array_equal(a, b)
    with pytest.raises(ArgumentError, match=f"^{f.__name__}: out "):
        f(*[X] * f.nin, out=t)


def test_comparisons_of_numpy_arrays_with_tensors() -> None:
    t = Tensor(X)
    for got, wanted in ((Y > t, Y > X), (Y == t, Y == X), (np.float64(1) < t, X > 1), (np.greater(t, 1), X > 1)):
        assert type(got) is np.ndarray and np.array_equal(got, wanted)


PLAIN_CALLS: dict[str, Callable[[Any], Any]] = {
    "allclose": lambda x: np.allclose(x, X + 1e-12, rtol=1e-6),
    "argpartition": lambda x: np.argpartition(x, 1, axis=1),
    "array_equal": lambda x: np.array_equal(x, X),
    "array_equiv": lambda x: np.array_equiv([X], [x]) if isinstance(x, np.ndarray) else np.array_equiv(X, x),
    "digitize": lambda x: np.digitize(x, [1.0, 2.0]),
    "empty_like": lambda x: np.empty_like(x).shape,
    "full_like": lambda x: np.full_like(fill_value=3.0, a=x, shape=(2,)),
    "isclose": lambda x: np.isclose(Y, x, atol=0.1),
    "isin": lambda x: np.isin([0.5, 7.0], x),
    "lexsort": lambda x: np.lexsort((x[0], x[1])),
    "may_share_memory": lambda x: np.may_share_memory(x, X),
    "result_type": lambda x: np.result_type(x, np.float32),
    "searchsorted": lambda x: np.searchsorted([1.0, 2.0], x),
    "shares_memory": lambda x: np.shares_memory(x, Y),
    "size": lambda x: np.size(x, 1),
    "zeros_like": lambda x: np.zeros_like(a=x, dtype=np.float32),
}


@pytest.mark.parametrize("name", protocol.PLAIN)
def test_what_no_derivative_flows_through_is_plain(name: str) -> None:
    f = PLAIN_CALLS.get(name, getattr(np, name))
    got, wanted = f(Tensor(X)), f(X)
    assert type(got) is type(wanted)
    assert all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True)) if type(wanted) is tuple else np.array_equal(got, wanted)


def test_where_with_one_argument_gives_places() -> None:
    for a, b in zip(np.where(Tensor(X - 1.25)), np.where(X - 1.25), strict=True):
        assert type(a) is np.ndarray and np.array_equal(a, b)


# --- nothing is ignored --------------------------------------------------------------------------------------

UFUNCS = sorted(f.__name__ for f in protocol._served if isinstance(f, np.ufunc))
FUNCTIONS = sorted({f.__name__ for f in protocol._served if not isinstance(f, np.ufunc)})
JOINTS = ("concatenate", "stack", "hstack", "vstack", "dstack", "column_stack")
GIVEN = {  # what a function requires beside its first argument
    "broadcast_to": ((2, 3),), "reshape": (6,), "take": ([0],), "where": (0.0, 1.0), "astype": (np.float64,), "cross": (X,), "dot": (X,),
    "linspace": (X,), "outer": (X,), "partition": (1,),
}  # fmt: skip
NOT_DEFAULT = {
    "out": np.zeros(1), "where": np.array(True), "dtype": np.float32, "casting": "unsafe", "order": "F", "subok": True, "initial": 0.0,
    "mode": "clip", "copy": "never", "newshape": (6,), "correction": 1, "mean": 0.0, "kind": "mergesort", "stable": True,
    "overwrite_input": True, "prepend": 0.0, "append": 0.0, "endpoint": False, "retstep": True, "device": "gpu", "axisa": 0, "axisb": 0,
    "axisc": 0, "axis": 1, "tol": 1.0, "upper": True, "UPLO": "U", "hermitian": True, "rcond": 0.1, "rtol": 0.1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("argument", "value"),
    [("where", np.array(True)), ("dtype", np.float64), ("casting", "unsafe"), ("order", "F"), ("subok", False), ("signature", "dd->d")],
)
@pytest.mark.parametrize("name", UFUNCS)
def test_arguments_of_ufuncs_are_refused_by_name(name: str, argument: str, value: Any) -> None:
    f = getattr(np, name)
    if name == "matmul" and argument == "where":
        argument, value = "axes", [(0, 1)] * 3  # a product has no `where`
    with pytest.raises(ArgumentError, match=f"^{name}: {argument} has "):
        f(*[Tensor(np.ones((2, 2)))] * f.nin, **{argument: value})


@pytest.mark.parametrize("name", UFUNCS)
def test_ufuncs_write_into_no_array(name: str) -> None:
    f, c = getattr(np, name), np.ones((2, 2))
    t = Tensor(np.ones((2, 2)))
    tries = [([t] * f.nin, {"out": c}), ([c] * f.nin, {"out": t})]
    if name not in ("maximum", "minimum"):  # NumPy itself warns of a third argument
        tries += [([t] * f.nin + [c], {}), ([c] * f.nin + [t], {})]
    for args, options in tries:
        with pytest.raises(ArgumentError, match=f"^{name}: out is an array to write into.*; write c = "):
            f(*args, **options)
    assert np.array_equal(c, np.ones((2, 2)))


@pytest.mark.parametrize("name", [n for n in UFUNCS if getattr(np, n).signature is None])
def test_methods_of_ufuncs_are_refused(name: str) -> None:
    f, t = getattr(np, name), Tensor(np.ones(3))
    tries = {"at": lambda: f.at(np.ones(3), [0], t) if f.nin == 2 else f.at(t, [0])}
    if f.nin == 2:
        tries |= {
            "reduce": lambda: f.reduce(t),
            "accumulate": lambda: f.accumulate(t),
            "reduceat": lambda: f.reduceat(t, [0]),
            "outer": lambda: f.outer(t, np.ones(2)),
        }
    for method, run in tries.items():
        with pytest.raises(DTypeError, match=f"^{name}.{method}: got a Tensor"):
            run()


def extras() -> list[tuple[str, str]]:
    found = []
    for name in CALLS:
        f = numpys(name)
        if not isinstance(f, np.ufunc):
            found += [
                (name, n) for n in protocol._reading(f, protocol._served[f]).defaults if n not in ("operands", "kwargs", "args", "arys")
            ]
    return sorted(set(found))


@pytest.mark.parametrize(("name", "argument"), extras())
def test_arguments_that_the_op_has_not_are_refused_by_name(name: str, argument: str) -> None:
    t, f = Tensor(X), numpys(name)
    first = ("ij->ji", t) if name == "einsum" else ([t, t],) if name in JOINTS else (t, *GIVEN.get(name, ()))
    with pytest.raises(ArgumentError, match=f"^(linalg.)?{f.__name__}: {argument} "):
        f(*first, **{argument: NOT_DEFAULT[argument]})


@pytest.mark.parametrize("argument", ["dtype", "order", "casting"])
def test_hidden_arguments_of_einsum_are_refused(argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"^einsum: {argument} has "):
        np.einsum("ij->ji", Tensor(X), **{argument: NOT_DEFAULT[argument]})


def test_shared_defaults_are_numpys() -> None:
    compared = 0
    for f, op in protocol._served.items():
        if isinstance(f, np.ufunc):
            continue
        ours = inspect.signature(op).parameters
        try:
            theirs = inspect.signature(f).parameters
        except ValueError:  # a C function of NumPy 1 states none
            continue
        for name, other in protocol._reading(f, op).names.items():
            mine = ours[other].default
            if mine is not inspect.Parameter.empty and name in theirs and theirs[name].default is not inspect.Parameter.empty:
                default = theirs[name].default
                assert mine in (False, None) if default is np._NoValue else default == mine, (f.__name__, name)
                compared += 1
    assert compared >= 50


def test_calls_that_numpy_serves_and_the_op_cannot_are_refused() -> None:
    t = Tensor(X)
    for run, kind, message in (
        (lambda: np.einsum(t, [0, 1], [1, 0]), ArgumentError, "einsum: the first argument is no string"),
        (lambda: np.einsum("...->...i", t), ArgumentError, "einsum: subscripts has"),
        (lambda: np.einsum("ij->ii", t), ArgumentError, "einsum: subscripts has"),
        (lambda: np.linalg.svd(t), ArgumentError, "svd: full_matrices has True, expected False"),
        (lambda: np.clip(t), ArgumentError, "clip: min and max are None"),
        (lambda: np.full_like(t, t), DTypeError, "copyto: got a Tensor.*use hg.where"),
        (lambda: np.take(t, t), DTypeError, "take: indices has dtype float64, expected integers"),
        (lambda: np.mean(Tensor(np.ones(0))), ShapeError, "mean: x has shape"),
        (lambda: np.max(t, axis=5), ArgumentError, "max: axis has 5"),
        (lambda: np.exp(Tensor(np.ones(2)), np.ones(2)), ArgumentError, "exp: out is an array"),
        (lambda: np.concatenate([t, t], 0, np.ones(4)), ArgumentError, "concatenate: out is an array"),
        (lambda: np.argmax(X, out=t), ArgumentError, "argmax: out is an array"),
        (lambda: np.any(X, None, t), ArgumentError, "any: out is an array"),
    ):
        with pytest.raises(kind, match=f"^{message}"):
            run()


# --- what no op stands for --------------------------------------------------------------------------------------


def dispatched() -> dict[str, Any]:
    """Every function that asks `__array_function__`, by its name below numpy."""
    kind = type(np.sum)
    found = {}
    for prefix, module in (("", np), ("linalg.", np.linalg), ("fft.", np.fft)):
        found |= {prefix + n: f for n, f in vars(module).items() if type(f) is kind and not n.startswith("_")}
    return found


@pytest.mark.parametrize("name", sorted(n for n, f in dispatched().items() if f not in protocol._served and f not in protocol._plain))
def test_other_functions_are_refused_with_a_remedy(name: str) -> None:
    func = dispatched()[name]
    with pytest.raises(DTypeError, match=r"got a Tensor, expected arrays because .*; (use|the nearest is|build it from) ") as caught:
        Tensor(X).__array_function__(func, (Tensor,), (Tensor(X),), {})
    assert str(caught.value).startswith(func.__module__.removeprefix("numpy").removeprefix(".") or func.__name__)


@pytest.mark.parametrize("name", sorted(n for n, f in ufuncs().items() if f not in protocol._served and n not in PREDICATES))
def test_other_ufuncs_are_refused_with_a_remedy(name: str) -> None:
    f = getattr(np, name)
    with pytest.raises(DTypeError, match=f"^{f.__name__}: got a Tensor, expected arrays because .*; (use|the nearest is|build it from) "):
        f(*[Tensor(X)] * f.nin)


def test_remedies_name_what_exists() -> None:
    for name, text in protocol.RELATIVES.items():
        for op in re.findall(r"\bhg\.(\w+)", text):
            assert op in hg.ops.__all__, (name, op)
        head, _, tail = name.partition(".")
        thing = getattr(np, head, None)
        assert thing is None or not tail or hasattr(thing, tail) or head == "linalg", name  # NumPy 1 has fewer
        assert thing is None or thing not in protocol._served or tail, f"{name} is served"
    with pytest.raises(DTypeError, match="the nearest is hg.power or hg.floor$"):
        np.float_power(Tensor(X), 2.0)
    with pytest.raises(DTypeError, match=r"^linalg.lstsq: .*use hg.lstsq\(x, y\), which gives the solution alone$"):
        np.linalg.lstsq(Tensor(X), Y, rcond=None)


REWRITTEN: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "add.reduce": (lambda x: np.add.reduce(x, 1), lambda x: hg.sum(x, 1)),
    "average": (lambda x: np.average(x, weights=Y), lambda x: hg.sum(Y * x) / hg.sum(Y)),
    "cov": (np.cov, lambda x: (lambda d: d @ d.T / 2.0)(x - hg.mean(x, axis=1, keepdims=True))),
    "maximum.reduce": (lambda x: np.maximum.reduce(x, 1), lambda x: hg.max(x, 1)),
    "multiply.outer": (lambda x: np.multiply.outer(x[0], Y[0]), lambda x: x[0][:, None] * Y[0][None, :]),
    "ptp": (lambda x: np.ptp(x, 1), lambda x: hg.max(x, 1) - hg.min(x, 1)),
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_remedies_are_right(name: str) -> None:
    numpys, ours = REWRITTEN[name]
    assert name in protocol.RELATIVES
    dot = np.cos(X)
    value, value_dot = hg.jvp(ours, (X,), (dot,))
    assert_same(value, numpys(X), name, 1e-14)
    assert_same(value_dot, differenced(numpys, [X], [dot]), name, 1e-8)
