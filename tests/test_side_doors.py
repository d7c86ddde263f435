"""No side door loses a derivative: whatever takes the number out of a Tensor keeps the true derivative or raises.

A door is a function that ordinary Python or NumPy code might apply to a Tensor. It runs inside a gradient, inside a jvp, and in
the inner loss of an unroll, on the hyperparameter and on the weights. The truth is the finite difference of the same door on plain numbers.
"""

from __future__ import annotations

import array
import cmath
import collections
import contextlib
import copy
import ctypes
import datetime
import decimal
import fractions
import functools
import heapq
import itertools
import math
import operator
import pickle
import random
import statistics
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from checks import differenced

import hypergrad as hg
from hypergrad.errors import DTypeError
from hypergrad.tape import Tape, Tensor

Door = Callable[[Any], Any]
KEEPS: dict[str, Door] = {}  # the derivative is the true one
RAISES: dict[str, Door] = {}


def three(t: Any) -> Any:
    """A vector that depends on t."""
    return np.array([1.0, 2.0, 3.0]) * t


def written(write: Callable[[Any, Any], Any]) -> Door:
    """A door that writes t into a NumPy array by statements, and reads the array."""

    def door(t: Any) -> Any:
        c = np.ones((2, 2))
        write(c, t)
        return c.sum()

    return door


def statement(code: str, start: Any = (1.0, 1.0), names: dict[str, Any] | None = None) -> Door:
    """A door that runs a statement about a NumPy array c and t, and sums c up."""
    compiled = compile(code, code, "exec")

    def door(t: Any) -> Any:
        local = {"np": np, "c": np.array(start), "t": t, **(names or {})}
        exec(compiled, local)
        return local["c"].sum()

    return door


def objects(t: Any) -> Any:
    """An array of Python objects that depend on t."""
    o = np.empty(2, object)
    o[0], o[1] = t, 2.0 * t
    return o


def cast(t: Any) -> Any:
    view = memoryview(bytearray(8)).cast("d")
    view[0] = t
    return view[0]


def record(t: Any) -> Any:
    rows = np.zeros(1, [("a", float)])
    rows[0] = (t,)
    return rows["a"][0]


def field(t: Any) -> Any:
    rows = np.zeros(1, [("a", float)])
    rows["a"] = t
    return rows["a"][0]


# --- Python's own --------------------------------------------------------------------------------------

KEEPS |= {
    "abs": abs,
    "+t": lambda t: +t * t,
    "-t": lambda t: -t * t,
    "t ** 2": lambda t: t**2,
    "t ** t": lambda t: t**t,
    "2 ** t": lambda t: 2.0**t,
    "pow": lambda t: pow(t, 3),
    "sum": lambda t: sum([t, t * t]),
    "sum of a Tensor": lambda t: sum(three(t)),
    "min": lambda t: min(t * t, 5.0),
    "max": lambda t: max(t * t, -5.0, key=lambda x: x),
    "sorted": lambda t: sorted([t, t * t, -t])[0],
    "unpacking": lambda t: [*three(t)][2] * t,
    "reversed": lambda t: next(iter(reversed(three(t)))) * t,
    "math.prod": lambda t: math.prod([t, t, 2.0]),
    "functools.reduce": lambda t: functools.reduce(operator.mul, [t, t, t]),
    "itertools.accumulate": lambda t: list(itertools.accumulate([t, t, t], operator.mul))[-1],
    "heapq.nsmallest": lambda t: heapq.nsmallest(1, [t * t, 7.0])[0],
    "statistics.median": lambda t: statistics.median([t * t, 9.0, -9.0]),
    "random.gauss": lambda t: random.Random(0).gauss(t * t, 1.0),
    "random.uniform": lambda t: random.Random(0).uniform(t, 2.0),
    "random.expovariate": lambda t: random.Random(0).expovariate(t),
    "%": lambda t: t % 10.0,
    "%, reflected": lambda t: 0.9 % t,
    "copy.copy": lambda t: copy.copy(t) * t,
    "copy.deepcopy": lambda t: copy.deepcopy(t) * t,
    "copy.deepcopy of a dict": lambda t: copy.deepcopy({"a": [t]})["a"][0] * t,
    "t += t": lambda t: operator.iadd(t, t) * t,
    "collections.deque": lambda t: sum(collections.deque([t, t * t])),
    "hg.dropout(rate=)": lambda t: hg.sum(hg.dropout(np.ones(3), np.array([1.0, 0.0, 1.0]), rate=t)),
}
RAISES |= {
    "float": lambda t: float(t) * t,
    "int": lambda t: int(10 * t),
    "bool": lambda t: t * t if bool(t) else 0.0,
    "if": lambda t: t * t if t else 0.0,
    "not": lambda t: 0.0 if not t else t * t,
    "and": lambda t: (t and 1.0) * t,
    "any": lambda t: t * any([t]),
    "filter": lambda t: sum(filter(None, [t, t])),
    "complex": lambda t: complex(t).real,
    "complex, imaginary part": lambda t: complex(0.0, t).imag,
    "round": lambda t: round(t, 1) * t,
    "//": lambda t: (t // 0.1) * t,
    "//, reflected": lambda t: (1.0 // t) * t,
    "divmod": lambda t: divmod(t, 10.0)[1],
    "divmod, reflected": lambda t: divmod(10.0, t)[1],
    "%f": lambda t: float("%.17g" % t),  # noqa: UP031
    "math.exp": math.exp,
    "math.sqrt": math.sqrt,
    "math.pow": lambda t: math.pow(t, 2.0),
    "math.fsum": lambda t: math.fsum([t, t]),
    "math.hypot": lambda t: math.hypot(t, 1.0),
    "math.dist": lambda t: math.dist([t], [3.0]),
    "math.ldexp": lambda t: math.ldexp(t, 1),
    "math.modf": lambda t: math.modf(t)[0],
    "math.floor": lambda t: math.floor(10 * t) * t,
    "math.ceil": lambda t: math.ceil(10 * t) * t,
    "math.trunc": lambda t: math.trunc(10 * t) * t,
    "math.copysign": lambda t: math.copysign(t, 1.0),
    "math.isclose": lambda t: t * math.isclose(t, t),
    "cmath.exp": lambda t: cmath.exp(t).real,
    "statistics.mean": lambda t: statistics.mean([t, t]),
    "statistics.fmean": lambda t: statistics.fmean([t, t]),
    "statistics.NormalDist": lambda t: statistics.NormalDist(t, 1.0).mean,
    "decimal.Decimal": lambda t: float(decimal.Decimal(t)),
    "fractions.Fraction": lambda t: float(fractions.Fraction(t)),
    "datetime.timedelta": lambda t: datetime.timedelta(days=t).total_seconds(),
    "random.lognormvariate": lambda t: random.Random(0).lognormvariate(t, 1.0),
    "struct.pack": lambda t: struct.unpack("d", struct.pack("d", t))[0],
    "array.array": lambda t: array.array("d", [t])[0],
    "array.append": lambda t: sum(array.array("d", three(t))),
    "ctypes.c_double": lambda t: ctypes.c_double(t).value,
    "ctypes array": lambda t: (ctypes.c_double * 1)(t)[0],
    "memoryview": lambda t: memoryview(np.float64(1.0) * t)[()],
    "memoryview item": cast,
    "pickle": lambda t: pickle.loads(pickle.dumps(t)),
    "deepcopy by pickle": lambda t: pickle.loads(pickle.dumps({"a": [t]}))["a"][0],
    "t[0] = x": lambda t: (lambda u: operator.setitem(u, 0, 2.0 * t) or u.sum())(three(t)),
    "hg.batch_norm(eps=)": lambda t: hg.sum(hg.batch_norm(np.arange(4.0).reshape(1, 2, 2, 1), np.ones(1), np.ones(1), eps=t) ** 3),
}

# --- NumPy's -------------------------------------------------------------------------------------------

KEEPS |= {
    "np.float64 * t": lambda t: np.float64(2.0) * t * t,
    "np.float64 ** t": lambda t: np.float64(2.0) ** t,
    "np.float64 - t": lambda t: np.float64(2.0) - t,
    "np.float64 / t": lambda t: np.float64(2.0) / t,
    "np.int64 * t": lambda t: np.int64(2) * t,
    "np.bool_ * t": lambda t: np.bool_(True) * t,
    "np.linspace": lambda t: np.linspace(t, 1.0, 3).sum(),
    "np.clip": lambda t: np.clip(t, -9.0, 9.0),
    "np.linalg.norm": lambda t: np.linalg.norm(three(t)),
    "np.dot": lambda t: np.dot(three(t), three(t)),
    "np.cumsum": lambda t: np.cumsum(three(t))[1],
    "np.prod": lambda t: np.prod(three(t)),
    "np.var": lambda t: np.var(three(t)),
    "np.round": lambda t: np.round(3.0 + 0.1 * t) * t,
    "np.exp": np.exp,
    "np.sum": lambda t: np.sum(three(t)),
    "np.mean": lambda t: np.mean(three(t), axis=0),
    "np.max": lambda t: np.max(three(t)),
    "np.where": lambda t: np.where(three(t) > 1.0, three(t), 0.0).sum(),
    "np.stack": lambda t: np.sum(np.stack([t, t * t])),
    "np.concatenate": lambda t: np.sum(np.concatenate([three(t), np.ones(2)])),
    "np.einsum": lambda t: np.einsum("i,i->", three(t), np.ones(3)),
    "np.full_like(t, 2)": lambda t: np.sum(np.full_like(three(t), 2.0) * t),
    "array @ t": lambda t: np.ones(3) @ three(t),
    "array ** t": lambda t: np.sum(np.array([2.0, 3.0]) ** t),
    "array of objects, sum": lambda t: objects(t).sum(),
    "array of objects, dot": lambda t: objects(t) @ objects(t),
    "array of objects, maximum": lambda t: np.max(objects(t)),
    "c = c + t": statement("c = c + t"),
    "c[mask] of a comparison": lambda t: np.sum(np.array([1.0, 2.0, 3.0])[three(t) > 0] * t),
    "c = np.append(c, t)": statement("c = np.append(c, t)"),
    "np.floor": lambda t: np.floor(3.2 + t) * t,
    "np.sort": lambda t: np.sort(three(t))[0],
    "t[argsort]": lambda t: three(t)[np.argsort(three(t))][0],
}
RAISES |= {
    name: statement(name)
    for name in (
        "c[0] = t", "c[:] = t", "c[...] = t", "c[[0, 1]] = t", "c[c > 0] = t", "c[0:1] = t", "c[0] = t * t", "c.flat[0] = t", "c.flat = t",
        "c.fill(t)", "c.put(0, t)", "c[0] += t", "c += t", "c -= t", "c *= t", "c /= t", "c **= t", "c[0:1] *= t", "c.real = t",
        "np.add(c, t, out=c)", "np.add(c, t, c)", "np.multiply(c, t, out=(c,))", "np.exp(t, out=c[:1])", "np.maximum(c, t, out=c)",
        "np.add.at(c, [0], t)", "np.subtract.at(c, 0, t)", "np.put(c, [0], t)", "np.copyto(c, t)", "np.place(c, c > 0, [t])",
        "np.putmask(c, c > 0, t)", "np.put_along_axis(c, np.array([0]), t, 0)", "np.clip(t, 0.0, 1.0, out=c[:1])",
        "np.sum(np.ones(2) * t, out=c[:1].reshape(()))", "c = np.add(c, t, where=[True, False], out=c)",
        "c = np.insert(c, 0, t)", "c = c.clip(t, 9.0)", "c = c.dot(t)", "c = np.r_[c, t]",
    )
}  # fmt: skip
RAISES |= {
    "np.fill_diagonal": written(lambda c, t: np.fill_diagonal(c, t)),
    "record": record,
    "field of a record": field,
    "np.array": lambda t: np.array(t) * 1.0,
    "np.array of a list": lambda t: np.array([t, t]).sum(),
    "np.array of objects": lambda t: np.array([t, t], dtype=object).astype(float).sum(),
    "np.asarray": lambda t: np.asarray(t).sum(),
    "np.asarray, float32": lambda t: np.asarray(t, dtype=np.float32).sum(),
    "np.float64": np.float64,
    "np.float32": np.float32,
    "np.full": lambda t: np.full(3, t).sum(),
    "np.full_like": lambda t: np.full_like(np.ones(3), t).sum(),
    "np.full_like of a Tensor": lambda t: np.sum(np.full_like(three(t), t)),
    "np.geomspace": lambda t: np.geomspace(t, 2.0, 3).sum(),
    "np.arange": lambda t: np.arange(t, 2.0)[0],
    "np.fromiter": lambda t: np.fromiter([t, t], float).sum(),
    "np.vectorize": lambda t: np.vectorize(lambda x: x * x)(t).sum(),
    "np.frompyfunc": lambda t: np.frompyfunc(lambda x: x * x, 1, 1)(t),
    "np.sum of a list": lambda t: np.sum([t, t]),
    "np.exp of a list": lambda t: np.exp([t, t]).sum(),
    "np.interp": lambda t: np.interp(t, [0.0, 1.0], [0.0, 3.0]),
    "np.polyval": lambda t: np.polyval([1.0, 2.0, 3.0], t),
    "np.block": lambda t: np.block([three(t), np.ones(1)]).sum(),
    "np.broadcast_arrays": lambda t: np.broadcast_arrays(t, np.ones(3))[0].sum(),
    "np.nditer": lambda t: sum(float(x) for x in np.nditer(t)),
    "np.select": lambda t: np.select([np.ones(2) > 0], [t * np.ones(2)]).sum(),
    "np.piecewise": lambda t: np.piecewise(np.ones(2), [np.ones(2) > 0], [t]).sum(),
    "np.apply_along_axis": lambda t: np.apply_along_axis(np.sum, 0, three(t)),
    "np.fft.fft": lambda t: np.fft.fft(three(t)).real[0],
    "np.ma.array": lambda t: (np.ma.array([1.0, 2.0], mask=[True, False]) * t).sum(),
    "np.add.reduce": lambda t: np.add.reduce(three(t)),
    "np.add.accumulate": lambda t: np.add.accumulate(three(t))[1],
    "np.multiply.outer": lambda t: np.multiply.outer(t, np.ones(2)).sum(),
    "np.modf": lambda t: np.modf(t)[0],
    "np.floor_divide": lambda t: np.floor_divide(t, 0.1) * t,
    "np.sum(where=)": lambda t: np.sum(three(t), where=[True, False, True]),
    "np.max(initial=)": lambda t: np.max(three(t), initial=9.0) * t,
    "np.mean(dtype=)": lambda t: np.mean(three(t), dtype=np.float32),
    "array of objects, astype": lambda t: objects(t).astype(float).sum(),
    "array of objects, floor": lambda t: np.floor(objects(t))[0] * t,
    "Generator.normal": lambda t: np.random.default_rng(0).normal(t),
    "RandomState.normal": lambda t: np.random.RandomState(0).normal(t),
    "np.save": lambda t: np.save("/dev/null", three(t)) or t,
}

AT, START, RATE, STEPS = np.array(0.7), np.array(0.5), 0.3, 3


def slope(f: Callable[[Any], Any], x: float, step: float | None = None) -> float:
    """The derivative of f on plain numbers."""

    def number(a: Any) -> float:
        y = f(np.float64(a))
        return float(y.value if isinstance(y, Tensor) else y)

    return float(differenced(number, [np.float64(x)], [np.float64(1.0)], step))


def loss_of(door: Door) -> Callable[[Any], Any]:
    return lambda t: t * t + door(t)


def of_hparams(door: Door) -> Callable[[Any], Any]:
    """The weights after descent on w^2 / 2 - w door(lam)."""
    return lambda lam: hg.unroll(lambda w, h, _: 0.5 * w * w - w * door(h), START, lam, [0] * STEPS, optimizer=hg.SGD(lr=RATE))


def of_weights(door: Door) -> Callable[[Any], Any]:
    """The weights after descent on w^2 / 2 - w lam + door(w) / 10."""
    return lambda lam: hg.unroll(lambda w, h, _: 0.5 * w * w - w * h + 0.1 * door(w), START, lam, [0] * STEPS, optimizer=hg.SGD(lr=RATE))


def descended(gradient: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    def run(lam: Any) -> Any:
        w = np.float64(START)
        for _ in range(STEPS):
            w = w - RATE * gradient(w, lam)
        return w

    return run


PLACES: dict[str, tuple[Callable[[Door], Any], Callable[[Door], float]]] = {
    "plain": (loss_of, lambda door: 2 * float(AT) + slope(door, float(AT))),
    "unroll, hparams": (of_hparams, lambda door: slope(door, float(AT)) * (1 - (1 - RATE) ** STEPS)),
    "unroll, weights": (of_weights, lambda door: slope(descended(lambda w, lam: w - lam + 0.1 * slope(door, w, 1e-2)), float(AT), 1e-2)),
}
MODES: dict[str, Callable[[Any], Any]] = {"reverse": lambda f: hg.grad(f)(AT), "forward": lambda f: hg.jvp(f, (AT,), (np.ones(()),))[1]}


def outcome(door: Door, place: str, mode: str) -> str:
    """ "keeps", "raises", or what was got in the place of the derivative."""
    build, truth = PLACES[place]
    try:
        got = MODES[mode](build(door))
    except (TypeError, ValueError, AttributeError, struct.error) as error:  # those of hypergrad are among them
        return "raises" if str(error) else "raises without a word"
    wanted = truth(door)
    return "keeps" if abs(float(got) - wanted) <= 1e-6 * max(1.0, abs(wanted)) else f"silently {float(got)}, the derivative is {wanted}"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", [*KEEPS, *RAISES])
def test_a_door_keeps_the_derivative_or_raises(name: str, place: str, mode: str) -> None:
    door = KEEPS.get(name) or RAISES[name]
    y = door(np.float64(AT))  # the door itself is in order
    assert np.isfinite(y.value if isinstance(y, Tensor) else y)
    assert outcome(door, place, mode) == ("keeps" if name in KEEPS else "raises")


def test_a_door_that_loses_the_derivative_is_seen() -> None:
    for place, mode in itertools.product(PLACES, MODES):
        assert outcome(lambda t: t.item() ** 2, place, mode).startswith("silently")


# --- where no derivative follows, a Tensor is a number -----------------------------------------------------


def test_conversions_of_constants_are_numpys() -> None:
    t, x = Tensor(np.array(2.5)), np.array(2.5)
    for f in (float, int, bool, complex, math.exp, math.floor, math.ceil, "{:.3f}".format, np.isfinite):
        assert f(t) == f(x) and type(f(t)) is type(f(x))
    for f in (round, math.trunc):  # as an array, which does not define them
        with pytest.raises(TypeError):
            f(t)
    assert not Tensor(np.zeros(())) and Tensor(np.ones((1, 1)))
    for f in (bool, float):
        with pytest.raises((ValueError, TypeError)) as ours:
            f(Tensor(np.ones(2)))
        with pytest.raises((ValueError, TypeError)) as numpys:
            f(np.ones(2))
        assert str(ours.value) == str(numpys.value)
    c = np.zeros(2)
    c[0] = t
    assert c[0] == 2.5 and pickle.loads(pickle.dumps(t)).value == 2.5


def test_a_float_is_no_index() -> None:
    t = Tensor(np.array(1.0))
    for f in (operator.index, range, [0, 1].__getitem__, np.arange(3.0).__getitem__, lambda t: [0][t:], bytes, np.zeros):
        with pytest.raises(TypeError):
            f(t)


@pytest.mark.parametrize("mode", MODES)
def test_text_and_items_leave_the_tape_on_purpose(mode: str) -> None:
    seen: list[Any] = []

    def f(t: Tensor) -> Tensor:
        seen.extend([t.item(), f"{t:.3f}", f"{three(t)}", str(t), repr(t), "{!r}".format(t)])  # noqa: UP032
        return t * t

    assert MODES[mode](f) == 1.4
    assert seen[:2] == [0.7, "0.700"] and all("0.7" in text for text in seen[2:])


def test_a_followed_tensor_is_an_ordinary_number_once_its_tape_is_closed() -> None:
    kept: list[Tensor] = []
    hg.grad(lambda t: kept.append(t * t) or t * t)(AT)
    hg.jvp(lambda t: kept.append(t * t) or t * t, (AT,), (np.ones(()),))
    assert [float(t) for t in kept] == [0.7 * 0.7] * 2
    tape = Tape()

    def watch() -> Tensor:
        t = tape.watch(Tensor(AT))
        with pytest.raises(DTypeError):
            float(t)
        return t

    assert float(tape.run(watch)) == 0.7


def test_protocols_by_which_other_libraries_take_arrays_are_absent() -> None:
    t = Tensor(np.ones(3))
    for name in ("__array_interface__", "__array_struct__", "__dlpack__", "__dlpack_device__", "__cuda_array_interface__", "__buffer__"):
        assert not hasattr(t, name)
    for f in (memoryview, np.frombuffer, np.from_dlpack, bytearray, bytes):
        with contextlib.ExitStack() as stack:
            stack.enter_context(pytest.raises((TypeError, AttributeError, ValueError)))
            f(t)


def test_membership_and_iteration_are_numpys() -> None:
    t = Tensor(np.arange(6.0).reshape(2, 3))
    assert 4.0 in t and 7.0 not in t and Tensor(np.array(5.0)) in t
    assert [x.shape for x in t] == [(3,), (3,)] and len(list(reversed(t))) == 2
    for f in (iter, len, list):
        with pytest.raises(TypeError, match="0-d|unsized"):
            f(Tensor(np.array(1.0)))


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (math.exp, r"^Tensor: float\(\) asked for its number, expected an op of hypergrad because the derivative would be lost; use hg"),
        (bool, r"^Tensor: bool\(\) asked for its number.*or \.item\(\) to leave the tape on purpose$"),
        (pickle.dumps, "^Tensor: pickle asked for its number"),
        (np.asarray, "^Tensor: NumPy asked for its array, expected an op of hypergrad"),
        (lambda t: divmod(t, 2.0), r"^Tensor: divmod\(\) got a Tensor, expected one of .* use hg.floor\(x / y\), a constant, and x % y$"),
        (lambda t: 2.0 // t, "^Tensor: // got a Tensor, expected one of .* a constant, for its derivative is zero$"),
        (lambda t: operator.setitem(t, ..., 1.0), r"^Tensor: t\[...\] = x writes into a Tensor, .*; use hg.where\(mask, x, t\)"),
        (statement("c += t"), r"^add: out is an array to write into, .*; write c = c \+ t$"),
        (statement("c @= t", np.eye(2)), "^matmul: out is an array to write into, .*; write c = c @ t$"),
        (statement("np.exp(t, out=c)"), r"^exp: out is an array to write into, .*; write c = np.exp\(...\)$"),
    ],
)  # fmt: skip
def test_messages_say_what_to_write(f: Door, message: str) -> None:
    with pytest.raises((DTypeError, ValueError), match=message):
        hg.grad(lambda t: f(t) and t)(AT)
