"""The kernels of the optimisers' steps, called as the backend calls them, against a float64 reference."""

import kernels_reference as ref
import numpy as np
import pytest
import test_kernels as suite
from test_kernels import DTYPES, LEVELS

from hypergrad import _host
from hypergrad.errors import ArgumentError, DTypeError, ShapeError

pytestmark = pytest.mark.backends("host", "emulated", "gpu")

KINDS = {
    "sgd": (("w", "v", "g"), ("lr", "momentum", "weight_decay"), 0),
    "adam": (("w", "m", "s", "g"), ("lr", "beta1", "beta2", "eps"), 1),
    "adamw": (("w", "m", "s", "g"), ("lr", "beta1", "beta2", "eps", "weight_decay"), 0),
    "rmsprop": (("w", "s", "v", "g"), ("lr", "decay", "eps", "momentum"), 1),
    "adagrad": (("w", "s", "g"), ("lr", "eps"), 1),
}
EXTRA = {"sgd": "nesterov", "adam": "t", "adamw": "t"}
NUMBERS = {"lr": 0.3, "momentum": 0.7, "weight_decay": 0.1, "beta1": 0.6, "beta2": 0.8, "eps": 0.1, "decay": 0.6}
ODD = [(3, 2), (), (1,), (0,), (31,), (2, 0, 3), (33,), (1023,), (4, 1, 65), (2, 2, 1, 2, 2)]
MANY = [(i % 5,) for i in range(53)]
LEAVES = {"odd": ODD, "many": MANY, "one": [(257,)], "none": [], "large": [(5,), (17001,), (0,), (8192,), (8193,)]}
EVERY = pytest.mark.parametrize("kind", KINDS)


class Step:
    """One step's inputs, and its three rungs. `arrays` are the fields that are arrays, one number per leaf."""

    def __init__(self, kind, leaves, dtype, arrays=(), extra=1, directions=2, seed=0, velocity=True):
        rng = np.random.default_rng(seed)
        self.kind, self.dtype, self.n, self.p = kind, dtype, len(leaves), directions
        self.states, self.fields, self.first = KINDS[kind]
        self.next = self.states[:-1]
        self.extra = {EXTRA[kind]: extra} if kind in EXTRA else {}
        self.absent = () if velocity else ("v",)

        def draw(*shape):
            return np.asarray(rng.standard_normal(shape)).astype(dtype)

        self.x = {k: [None if k in self.absent else draw(*s) for s in leaves] for k in self.states}
        if "s" in self.x:
            self.x["s"] = [np.asarray(np.abs(a) + dtype(0.5)) for a in self.x["s"]]
        self.numbers = {**NUMBERS, **({} if velocity else {"momentum": 0.0})}
        self.field = {
            k: [np.asarray(self.numbers[k] + 0.02 * (i % 7), dtype) if k in arrays else None for i in range(self.n)] for k in self.fields
        }
        self.x_dot = {k: [None if k in self.absent else draw(directions, *s) for s in leaves] for k in self.states}
        self.field_dot = {k: [draw(directions) if k in arrays else None for _ in range(self.n)] for k in self.fields}
        self.bar = {k: [None if k in self.absent else draw(*s) for s in leaves] for k in self.next}
        self.want = {k: k not in self.absent for k in self.states} | {k: k in arrays and self.n > 0 for k in self.fields}

    def run(self, rung, names, **arguments):
        fields = {k: self.field[k] if any(a is not None for a in self.field[k]) else self.numbers[k] for k in self.fields}
        return suite.call(f"{self.kind}_step_{rung}", **{k: self.x[k] for k in names}, **fields, **arguments, **self.extra)

    def value(self):
        after = self.run("value", self.states, **{f"{k}_next": [a is not None for a in self.x[k]] for k in self.next})
        return {k: after[f"{k}_next"] for k in self.next}

    def jvp(self):
        dots = {f"{k}_dot": column for k, column in (self.x_dot | self.field_dot).items()}
        outs = {f"{k}_next_dot": [a is not None for a in self.x[k]] for k in self.next}
        after = self.run("jvp", self.states[self.first :], **dots, **outs, P=self.p)
        return {k: after[f"{k}_next_dot"] for k in self.next}

    def vjp(self):
        bars = {f"{k}_next_bar": column for k, column in self.bar.items()}
        out = self.run("vjp", self.states[self.first :], **bars, **{f"{k}_bar": want for k, want in self.want.items()})
        return {k: out[f"{k}_bar"] for k in self.want}

    def everything(self):
        rows = [*self.value().values(), *self.jvp().values()]
        return [a for row in [*rows, *self.vjp().values()] if row is not None for a in row if a is not None]

    def primals(self, i):
        """The reference and its arguments for leaf i, in float64."""
        f = getattr(ref, f"{self.kind}_step")
        x = [np.zeros_like(self.x["g"][i]) if self.x[k][i] is None else self.x[k][i] for k in self.states]
        fields = [self.numbers[k] if self.field[k][i] is None else self.field[k][i] for k in self.fields]
        return (lambda *a: f(*a, **self.extra)), [np.asarray(a, np.float64) for a in (*x, *fields)]

    def check(self):
        value, tangent, bars = self.value(), self.jvp(), self.vjp()
        for i in range(self.n):
            f, primals = self.primals(i)
            for k, expected in zip(self.next, f(*primals), strict=True):
                self.close(value[k][i], expected)
            for p in range(self.p):
                dots = [
                    None if d is None else d[p].astype(np.float64)
                    for d in (*(self.x_dot[k][i] for k in self.states), *(self.field_dot[k][i] for k in self.fields))
                ]
                for k, expected in zip(self.next, ref.tangent(f, primals, dots), strict=True):
                    self.close(None if tangent[k][i] is None else tangent[k][i][p], expected)
            y_bars = [np.zeros(()) if self.bar[k][i] is None else self.bar[k][i].astype(np.float64) for k in self.next]
            for k, expected in zip((*self.states, *self.fields), ref.elementwise_vjp(f, primals, y_bars), strict=True):
                if self.want[k]:
                    self.close(np.asarray(bars[k][i]), np.sum(expected) if k in self.fields else expected)

    def close(self, actual, expected):
        if actual is not None:
            suite.close(actual, expected, self.dtype, 30)


@EVERY
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("leaves", LEAVES)
@pytest.mark.parametrize("arrays", ["none", "all"])
def test_rungs(kind, leaves, dtype, arrays, backend):
    step = Step(kind, LEAVES[leaves], dtype, KINDS[kind][1] if arrays == "all" else ())
    step.check()
    backend.same_bits(step.everything)


@EVERY
@pytest.mark.backends("emulated", "gpu")
def test_leaves_so_large_that_a_thread_owns_several_quads(kind, backend):
    step = Step(kind, [(3,), (1_048_577,), (1025,)], np.float32, KINDS[kind][1], directions=1)
    step.check()
    if backend.name == "gpu":
        backend.same_bits(step.everything)


@EVERY
def test_each_field_on_its_own(kind):
    for field in KINDS[kind][1]:
        for extra in (0, 1):
            Step(kind, ODD, np.float64, (field,), extra).check()


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_late_steps_of_adam(kind):
    """The corrections are near one; powers of whole numbers are exact enough to tell t from t + 1 before."""
    for t in (2, 9, 31):
        Step(kind, ODD[:3], np.float64, ("beta1", "beta2"), t).check()
    late = Step(kind, ODD[:3], np.float64, ("beta1", "beta2"), 10**9)
    late.check()
    assert all(np.isfinite(a).all() for a in late.everything())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["sgd", "rmsprop"])
def test_no_velocity(kind, dtype):
    Step(kind, ODD, dtype, ("lr",), 0, velocity=False).check()


@EVERY
@pytest.mark.parametrize("mask", range(1, 8))
def test_absent_cotangents(kind, mask):
    """Of some states after the step: they count as zero."""
    s = Step(kind, ODD[:5], np.float64, KINDS[kind][1])
    for i, k in enumerate(s.next):
        if mask >> i & 1:
            s.bar[k] = [None] * s.n
    s.bar["w"][0] = None
    s.check()


@EVERY
def test_absent_tangents(kind):
    for seed in range(6):
        s = Step(kind, ODD[:6], np.float64, KINDS[kind][1])
        rng = np.random.default_rng(seed)
        for dots in (*s.x_dot.values(), *s.field_dot.values()):
            for i in range(s.n):
                if rng.random() < 0.5:
                    dots[i] = None
        s.check()


@EVERY
def test_unwanted_cotangents_change_nothing_else(kind):
    """Up to rounding, where no field is wanted: that is a kernel of its own."""
    s = Step(kind, LEAVES["large"], np.float32, KINDS[kind][1])
    whole = s.vjp()
    for k in (*s.states, *s.fields):
        for beside in (k, "lr"):
            s.want = {name: name in (k, beside) for name in s.want}
            for a, b in zip(whole[k], s.vjp()[k], strict=True):
                if beside == "lr":
                    np.testing.assert_array_equal(a, b)
                else:
                    suite.close(np.asarray(b), a, s.dtype)


@EVERY
def test_unaligned_leaves(kind):
    """Leaves that begin anywhere in a larger array give what copies give."""
    s = Step(kind, [(37,), (64,)], np.float32, KINDS[kind][1])
    expected = s.everything()
    for columns in (s.x, s.x_dot, s.bar):
        for k, column in columns.items():
            columns[k] = [np.concatenate([np.zeros(1 + i, a.dtype), a.ravel()])[1 + i :].reshape(a.shape) for i, a in enumerate(column)]
    for a, b in zip(expected, s.everything(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_nothing_decays_and_nothing_is_lost_without_decay():
    """A weight that is not finite stays out of the gradient where there is no weight decay."""
    s = Step("sgd", [(5,)], np.float64, extra=0)
    s.x["w"][0][2], s.numbers["weight_decay"] = np.inf, 0.0
    value = s.value()
    assert np.isinf(value["w"][0][2]) and np.isfinite(value["v"][0]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [k for k in KINDS if "eps" in KINDS[k][1]])
def test_zero_eps_of_a_last_vector(kind, dtype):
    """Lanes beyond the last element divide by zero; their sums must not show it."""
    s = Step(kind, [(19,), (3,)], dtype, [k for k in KINDS[kind][1] if k != "eps"])
    s.numbers["eps"] = 0.0
    s.check()


@EVERY
@pytest.mark.backends("host")
@pytest.mark.parametrize("level", LEVELS)
def test_bits_do_not_depend_on_threads_and_instruction_sets_pass(kind, level):
    chosen, threads = _host.build_info()["simd"], _host.threads()
    try:
        _host.set_simd(level)
        for dtype in DTYPES:
            Step(kind, ODD, dtype, KINDS[kind][1]).check()
        runs = []
        for n in (1, 2, 3, 2):
            _host.set_threads(n)
            runs.append(Step(kind, [(70001,), (3,), (0,), (20000,)], np.float32, KINDS[kind][1]).everything())
    finally:
        _host.set_simd(chosen)
        _host.set_threads(threads)
    for run in runs[1:]:
        for a, b in zip(runs[0], run, strict=True):
            np.testing.assert_array_equal(a, b)


# --- what a call with lists refuses -----------------------------------------------------------------


def good():
    leaves = [np.ones((2, 3)), np.ones(()), np.ones(4)]
    arrays = {k: [a.copy() for a in leaves] for k in ("w", "v", "g")}
    arrays |= {k: [np.asarray(0.5) for _ in leaves] for k in ("lr", "momentum", "weight_decay")}
    return arrays | {k: [np.empty(a.shape) for a in leaves] for k in ("w_next", "v_next")}


def run(arrays, nesterov=0):
    suite.HOST.run("sgd_step_value", **arrays, nesterov=nesterov)
    return arrays


def test_the_good_call_is_good():
    np.testing.assert_array_equal(run(good())["w_next"][0], np.full((2, 3), 0.0))


def replaced(name, i, value):
    arrays = good()
    arrays[name][i] = value
    return arrays


def shared():
    arrays = good()
    arrays["v_next"][2] = arrays["g"][2]
    return arrays


def nested():
    arrays = good()
    arrays["w_next"][0] = np.empty((3, 3))[1:]
    arrays["v_next"][2] = arrays["w_next"][0].base.ravel()[5:]
    return arrays


BAD = {
    "another shape": (
        lambda: replaced("g", 2, np.ones(5)),
        ShapeError,
        r"g\[2\] has shape \(5,\), expected the axes of w\[2\], which has shape \(4,\)",
    ),
    "transposed": (lambda: replaced("v", 0, np.ones((3, 2))), ShapeError, r"v\[0\] has shape \(3, 2\)"),
    "an empty array": (lambda: replaced("g", 2, np.ones(0)), ShapeError, r"g\[2\] has shape \(0,\)"),
    "an empty output": (lambda: replaced("w_next", 1, np.ones(0)), ShapeError, r"w_next\[1\] has shape \(0,\)"),
    "a field with axes": (lambda: replaced("lr", 1, np.ones(1)), ShapeError, r"lr\[1\] has shape \(1,\), expected 0 axes"),
    "another dtype": (lambda: replaced("momentum", 1, np.ones((), "f")), DTypeError, r"momentum\[1\] has dtype float32, expected float64"),
    "integers": (lambda: replaced("g", 0, np.ones((2, 3), int)), DTypeError, r"g\[0\] has dtype int64, expected float32 or float64"),
    "half precision": (lambda: replaced("g", 0, np.ones((2, 3), np.float16)), DTypeError, r"g\[0\] has dtype float16"),
    "a list": (lambda: replaced("g", 2, [1.0]), DTypeError, r"g\[2\] is a list"),
    "strided": (lambda: replaced("g", 2, np.ones(8)[::2]), ShapeError, r"g\[2\] has a stride of 16 bytes on axis 0"),
    "seven axes": (lambda: replaced("g", 2, np.ones((1,) * 7)), ShapeError, r"g\[2\] has 7 axes"),
    "an output that is an input": (shared, ArgumentError, r"output v_next\[2\] shares memory with g\[2\]"),
    "outputs that overlap": (nested, ArgumentError, r"output [wv]_next\[.\] shares memory with [wv]_next\[.\]"),
}


@pytest.mark.backends("host", "emulated")
@pytest.mark.parametrize("case", BAD)
def test_bad_lists_raise(case):
    make, error, text = BAD[case]
    with pytest.raises(error, match=f"sgd_step_value: {text}"):
        run(make())


@pytest.mark.backends("host", "emulated")
def test_lists_must_be_equally_long():
    a, numbers = np.ones(2), {"lr": 0.0, "momentum": 0.0, "weight_decay": 0.0, "nesterov": 0}
    with pytest.raises(ArgumentError, match="sgd_step_value: g has 2 arrays, expected 3 as w"):
        suite.HOST.run("sgd_step_value", w=[a] * 3, v=None, g=[a] * 2, v_next=None, **numbers)
    with pytest.raises(ArgumentError, match="sgd_step_value: w is a ndarray, expected a list of arrays"):
        suite.HOST.run("sgd_step_value", w=a, g=[a], **numbers)
    with pytest.raises(ArgumentError, match=r"sgd_step_value: w\[0\] is missing, expected an array"):
        suite.HOST.run("sgd_step_value", g=[a], v_next=None, **numbers)
    with pytest.raises(ArgumentError, match=r"sgd_step_value: w_next\[0\] is not wanted, expected an output"):
        suite.HOST.run("sgd_step_value", w=[a], g=[a], w_next=[None], v_next=None, **numbers)
    with pytest.raises(ShapeError, match=r"lr_bar has shape \(2,\), expected \(n\) = \(1\)"):
        suite.HOST.run("sgd_step_vjp", w=[a], g=[a], w_next_bar=[a], lr_bar=np.ones(2), v_bar=None, **numbers)


@pytest.mark.backends("host", "emulated")
def test_directions_and_attributes_must_fit():
    a, p = np.ones(2), np.ones((3, 2))
    attrs = {"lr": 0.0, "momentum": 0.0, "weight_decay": 0.0, "nesterov": 0}

    def jvp(w_dot, g_dot, **changes):
        return suite.HOST.run("sgd_step_jvp", w=[a], g=[a], w_dot=[w_dot], g_dot=[g_dot], v_next_dot=None, **{**attrs, **changes})

    assert jvp(p, p)["w_next_dot"][0].shape == (3, 2) and jvp(p, p)["v_next_dot"] == [None]
    with pytest.raises(ShapeError, match=r"g_dot\[0\] has shape \(2, 2\), expected \(P\) = \(3\)"):
        jvp(p, np.ones((2, 2)))
    with pytest.raises(ShapeError, match=r"g_dot\[0\] has shape \(3, 4\), expected the axes of w\[0\], .*, after the directions"):
        jvp(p, np.ones((3, 4)))
    with pytest.raises(ShapeError, match=r"w_dot\[0\] has shape \(\), expected at least 1 axes P"):
        jvp(np.ones(()), p)
    with pytest.raises(ArgumentError, match="nesterov is 2, expected an integer from 0 to 1"):
        jvp(p, p, nesterov=2)
