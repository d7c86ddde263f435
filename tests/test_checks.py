"""The checkers catch planted faults: each fails on an op that is wrong in the way it is there for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import rounding
from cases import CASES
from cases.conv import block_margin, block_reference
from checks import Array, Case, Guarded, assert_same, check_float32, check_float64, check_layouts, check_outputs_written, guarded_outputs

import hypergrad as hg
from hypergrad.backends import backend_of
from hypergrad.backends.host import HostBackend
from hypergrad.errors import DifferentiationError
from hypergrad.ops import block
from hypergrad.rules import REGISTRY, Fused, Op, bilinear, elementwise
from hypergrad.tape import Tensor, primal, untaped

RUNGS = ("value", "jvp", "vjp", "vjp_jvp")


pytestmark = pytest.mark.usefixtures("planted")


def exp_case(op: Callable[..., Tensor], shape: tuple[int, ...] = (3, 4)) -> Case:
    return Case("planted", lambda x: op(x), np.exp, (shape,))


def value(b: Any, x: Array) -> Array:
    return np.exp(x)


def test_a_right_op_passes_every_check() -> None:
    case = exp_case(elementwise("planted", value, lambda out, x: out))
    check_float64(case)
    check_float32(case)
    check_layouts(case, np.float32)


def last_is_off(b: Any, x: Array) -> Array:
    y = np.exp(x)
    y[-1] *= 1 + 1e-10
    return y


def own(vjp: Callable[..., Any] = lambda bar, out: bar * out, jvp: Callable[..., Any] = lambda dot, out: dot * out) -> Op:
    """exp with a rule of its own in each mode."""
    return Op("planted", value, vjp=(lambda bar, out, x: vjp(bar, out),), jvp=(lambda dot, out, x: jvp(dot, out),))


def without_a_second_derivative() -> Op:
    inner = elementwise("planted_inner", value, lambda out, x: Tensor(out.value))
    return elementwise("planted", value, lambda out, x: inner(x))


# The op, and what check_float64 says of it.
PLANTED: dict[str, tuple[Callable[[], Op], str]] = {
    "a value in one of 1025 elements": (lambda: elementwise("planted", last_is_off, lambda out, x: out), "value against NumPy"),
    "not a number": (
        lambda: elementwise("planted", lambda b, x: np.where(x == x.flat[0], np.nan, np.exp(x)), lambda out, x: out),
        "value against NumPy",
    ),
    "vjp": (lambda: own(vjp=lambda bar, out: bar * out * (1 + 1e-9)), "planted"),
    "vjp that is not linear": (lambda: own(vjp=lambda bar, out: bar * out + 1e-9 * bar * bar), "planted"),
    "jvp": (lambda: own(jvp=lambda dot, out: dot * out * (1 + 1e-9)), "planted"),
    "both alike": (lambda: elementwise("planted", value, lambda out, x: out * (1 + 1e-7)), "jvp along .*a finite difference gives"),
    "all directions but the first": (lambda: own(jvp=lambda dot, out: hg.concatenate([dot[:1]] * dot.shape[0]) * out), "dots.P=1"),
    "second order in every nesting": (  # a constant, to all routes alike
        lambda: elementwise("planted", value, lambda out, x: Tensor(out.value)),
        "Hessian product, forward over reverse.*a finite difference gives",
    ),
    "second order of the vjp": (lambda: own(vjp=lambda bar, out: bar * Tensor(out.value)), "planted: hvp"),
    "second order of the jvp": (lambda: own(jvp=lambda dot, out: dot * Tensor(out.value)), "planted: hvp"),
    # One keeps the tangent and loses the tape, the other keeps the tape and loses the tangent.
    "a lost tape": (lambda: own(vjp=lambda bar, out: bar * untaped(out)), "planted: hvp.reverse over reverse"),
    "a lost tangent": (lambda: own(vjp=lambda bar, out: bar * primal(out)), "planted: hvp.reverse over reverse"),
    "third order": (without_a_second_derivative, "third derivative"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_wrong_op(fault: str) -> None:
    make, message = PLANTED[fault]
    with pytest.raises(AssertionError, match=message):
        check_float64(exp_case(make(), (1025,) if "1025" in fault else (3, 4)))


def test_bilinear_op_with_transposes_swapped() -> None:
    op = bilinear(
        "planted", lambda b, x, y: x * y, (lambda bar, x, y: hg.multiply(bar, x), lambda bar, x, y: hg.multiply(bar, y)), core=(0, 0, 0)
    )
    with pytest.raises(AssertionError, match="planted"):
        check_float64(Case("planted", lambda x, y: op(x, y), np.multiply, ((3,), (3,)), exact=True))


def test_cotangent_of_a_broadcast_argument_not_summed() -> None:
    op = Op(
        "planted",
        lambda b, x, y: x + y,
        vjp=(lambda bar, out, x, y: bar, lambda bar, out, x, y: bar),
        jvp=(lambda dot, out, x, y: dot, lambda dot, out, x, y: dot),
    )
    with pytest.raises(AssertionError, match="has shapes .* expected those of the arguments"):
        check_float64(Case("planted", lambda x, y: op(x, y), np.add, ((3, 2), (1, 2)), exact=True))


# --- float32, layouts, repeats --------------------------------------------------------------------


def test_float32_with_one_imprecise_element_among_1025() -> None:
    def imprecise(b: Any, x: Array) -> Array:
        y = np.exp(x)
        if x.dtype == np.float32:
            y[np.argmax(y)] *= np.float32(1 + 2e-6)  # 17 units in the last place; averaged over the array, 0.02
        return y

    op = elementwise("planted", imprecise, lambda out, x: hg.exp(x))
    check_float64(exp_case(op, (1025,)))
    with pytest.raises(AssertionError, match="float32: largest element error"):
        check_float32(exp_case(op, (1025,)))


def test_float32_variance_that_cancels() -> None:
    def moments(b: Any, x: Array) -> Array:
        return np.asarray(np.mean(x * x) - np.mean(x) ** 2, x.dtype)

    op = Op(
        "planted",
        moments,
        vjp=(lambda bar, out, x: bar * (x - hg.mean(x)) * (2.0 / x.size),),
        jvp=(lambda dot, out, x: hg.sum(dot * (x - hg.mean(x)), axis=1) * (2.0 / x.size),),
    )
    case = Case("planted", lambda x: op(x), np.var, ((257,),), low=30.0, high=31.0)
    with pytest.raises(AssertionError, match="value.*float32: largest element error"):
        check_float32(case)


def case_named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def without_last_bits(y: Array, bits: int) -> None:
    """Sets the last bits of every float32 mantissa to zero, in place."""
    y.view(np.uint32)[...] &= np.uint32(0xFFFFFFFF << bits & 0xFFFFFFFF)


NORM, BLOCK = "batch_norm[((3, 3, 2, 2), (2,), (2,)), eps=1e-05]", "conv_bn_relu_pool[5x3]"


@pytest.mark.parametrize(
    ("kernel", "bits", "case"),
    [
        ("conv2d_fprop", 4, "conv2d[same]"),
        ("conv2d_dgrad", 4, "conv2d[same]"),
        ("conv2d_wgrad", 4, "conv2d[same]"),
        ("linear_cross_entropy_value", 4, "linear_cross_entropy[rows]"),
        ("linear_cross_entropy_jvp", 4, "linear_cross_entropy[one feature, 6 classes]"),
        ("linear_cross_entropy_vjp", 4, "linear_cross_entropy[rows]"),
        ("linear_cross_entropy_vjp_jvp", 5, "linear_cross_entropy[rows]"),
        ("linear_head_descent_value", 4, "linear_head_descent[rows]"),
        ("linear_head_descent_vjp", 4, "linear_head_descent[rows]"),
        *((f"batch_norm_{rung}", 4, NORM) for rung in RUNGS),
        *((f"conv_bn_relu_pool_{rung}", 4, BLOCK) for rung in RUNGS),
    ],
)
def test_float32_kernel_that_loses_its_last_bits(kernel: str, bits: int, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = HostBackend.run

    def loses(self: HostBackend, name: str, **arguments: Any) -> dict[str, Any]:
        outputs = original(self, name, **arguments)
        for y in outputs.values() if name == kernel else ():
            if y is not None and y.dtype == np.float32:
                without_last_bits(y, bits)
        return outputs

    monkeypatch.setattr(HostBackend, "run", loses)
    with pytest.raises(AssertionError, match="float32: largest element error"):
        check_float32(case_named(case))


@pytest.mark.parametrize(
    ("op", "case"),
    [
        ("matmul", "matmul[31, 33][33, 5]"),
        ("sum", "sum[[2, 3, 4], axis=None, keepdims=False]"),
        ("sum", "sum[[1025], axis=None, keepdims=False]"),
        ("multiply", "multiply[1025][]"),
        ("add", "add[1][257]"),
        ("exp", "exp[1025]"),
        ("logsumexp", "logsumexp[[257], axis=0, keepdims=False]"),
    ],
)
def test_float32_op_that_computes_in_half_precision(op: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = REGISTRY[op].value

    def half(b: Any, *arrays: Array, **attrs: Any) -> Array:
        if arrays[0].dtype != np.float32:
            return original(b, *arrays, **attrs)
        return np.asarray(original(b, *(a.astype(np.float16) for a in arrays), **attrs)).astype(np.float32)

    monkeypatch.setattr(REGISTRY[op], "value", half)
    with pytest.raises(AssertionError, match="float32: largest element error"):
        check_float32(case_named(case))


@pytest.mark.parametrize("op", ["multiply", "divide", "add"])
def test_float32_op_that_is_off_by_four_places_in_one_element(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = REGISTRY[op].value

    def imprecise(b: Any, x: Array, y: Array) -> Array:
        out = np.array(original(b, x, y))
        if out.dtype == np.float32:
            largest_one = out.reshape(-1)[np.abs(out).argmax() :][:1]
            largest_one *= np.float32(1 + 4 * 2.0**-23)
        return out

    monkeypatch.setattr(REGISTRY[op], "value", imprecise)
    with pytest.raises(AssertionError, match="value.*float32: largest element error"):
        check_float32(case_named(f"{op}[2, 3][2, 3]"))


def test_bound_of_an_exact_op_is_exact() -> None:
    case = case_named("reshape[[2, 3] to -1]")
    args = case.arguments(np.float64)
    bounds = rounding.allowed(lambda: {"y": [case.f(*args).value]}, {"y": [case.f(*args).value]})
    assert bounds == {"y": [0.0]}


def test_bound_of_a_sum_grows_with_its_terms_and_its_partial_sums() -> None:
    """n equal terms: each of n - 1 partial sums is off by u/sqrt(3) of a size that grows to n, the last one counted in full."""
    for n in (2, 33, 1025):
        x = np.ones((500, n))
        (bound,) = rounding.allowed(lambda x=x: {"y": [hg.sum(x, axis=1).value]}, {"y": [np.full(500, float(n))]})["y"]
        ideal = rounding.SIGMAS * rounding.U / 3**0.5 * n * (1 + (n - 1) * (1 / 3 + 1 / (6 * n))) ** 0.5
        assert ideal < bound < 2 * ideal, n  # the largest of 500 estimates from 8 samples each


def test_result_in_another_dtype() -> None:
    with pytest.raises(AssertionError, match="dtype float64"):
        check_float32(exp_case(elementwise("planted", lambda b, x: np.exp(x.astype(np.float64)), lambda out, x: hg.exp(x))))


def test_stride_taken_for_that_of_a_contiguous_array() -> None:
    op = elementwise("planted", lambda b, x: np.exp(x.ravel(order="K").reshape(x.shape)), lambda out, x: hg.exp(x))
    check_float64(exp_case(op))
    with pytest.raises(AssertionError, match="value of transposed arguments"):
        check_layouts(exp_case(op), np.float64)


def test_offset_of_a_view_lost() -> None:
    def from_start(b: Any, x: Array) -> Array:
        base = x.base if x.base is not None and x.base.ndim == 1 else x
        return np.exp(np.nan_to_num(np.ravel(base)[: x.size]).reshape(x.shape))

    op = elementwise("planted", from_start, lambda out, x: hg.exp(x))
    with pytest.raises(AssertionError, match="value of offset arguments"):
        check_layouts(exp_case(op), np.float64)


def test_runs_that_differ_in_the_last_bit() -> None:
    calls = []

    def unsteady(b: Any, x: Array) -> Array:
        calls.append(1)
        return np.nextafter(np.exp(x), np.inf) if len(calls) % 2 == 0 else np.exp(x)

    op = elementwise("planted", unsteady, lambda out, x: hg.exp(x))
    with pytest.raises(AssertionError, match="differs between two runs"):
        check_layouts(exp_case(op), np.float64)


def test_argument_written_to() -> None:
    def careless(b: Any, x: Array) -> Array:
        y = np.exp(x)
        writeable = x.flags.writeable
        x.flags.writeable = True  # as a kernel that has the pointer does
        x[-1:] = np.nextafter(x[-1:], np.inf)
        x.flags.writeable = writeable
        return np.float64(np.round(y, 3))  # equal in both runs all the same

    op = elementwise("planted", careless, lambda out, x: hg.exp(hg.Tensor(np.round(x.value, 3))))
    case = Case("planted", lambda x: op(x), np.exp, ((5,),))
    with pytest.raises((AssertionError, DifferentiationError), match="written to"):  # the pullback notices it, too
        check_layouts(case, np.float64)


# --- kernels --------------------------------------------------------------------------------------


def block_case(f: Callable[..., Tensor], e: int = 1) -> Case:
    """A block small enough for differences; the op under test takes arguments with the episode axis."""
    return Case(
        "planted",
        f,
        lambda *a: block_reference(*a, 0.1),
        ((e, 2, 3, 2, 5), (e, 3, 3, 5, 2), (e, 2), (e, 2)),
        margin=lambda *a: block_margin(*a, 0.1),
    )


def planted_block(rung: str | None) -> Fused:
    """The fused block with one element of one rung's result off by 1e-7 of the largest."""

    def off(f: Callable[..., Any]) -> Callable[..., Any]:
        def wrong(*args: Any) -> Any:
            result = f(*args)
            arrays = result[0] if isinstance(result, tuple) else result
            target = next(a for a in arrays if a is not None) if isinstance(arrays, list) else arrays
            target.flat[target.size - 1] += 1e-7 * np.abs(target).max()
            return result

        return wrong

    rungs = {name: getattr(block, f"_{name}") for name in RUNGS}
    if rung is not None:
        rungs[rung] = off(rungs[rung])
    return Fused("planted", 4, block._reference, **rungs)


def test_the_unchanged_block_passes() -> None:
    op = planted_block(None)
    check_float64(block_case(lambda *a: op(*a, eps=0.1, precision=0)))


@pytest.mark.parametrize("rung", RUNGS)
def test_fused_rung_with_one_wrong_element(rung: str) -> None:
    op = planted_block(rung)
    with pytest.raises(AssertionError, match="planted"):
        check_float64(block_case(lambda *a: op(*a, eps=0.1, precision=0)))


@pytest.mark.parametrize(
    "kernel", ["conv_bn_relu_pool_value", "conv_bn_relu_pool_jvp", "conv_bn_relu_pool_vjp", "conv_bn_relu_pool_vjp_jvp"]
)
def test_output_element_left_unwritten(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = HostBackend.run

    def leaves_one(self: HostBackend, name: str, **arguments: Any) -> dict[str, Any]:
        outputs = original(self, name, **arguments)
        if name == kernel:
            first = next(iter(outputs.values()))
            first.flat[first.size - 1] = np.nan  # as `empty` left it
        return outputs

    case = block_case(lambda *a: hg.conv_bn_relu_pool(*a, eps=0.1))
    check_outputs_written(case, np.float64)
    monkeypatch.setattr(HostBackend, "run", leaves_one)
    with pytest.raises(AssertionError, match="not written"):
        check_outputs_written(case, np.float64)


def test_element_written_beyond_an_output() -> None:
    with pytest.raises(AssertionError, match="outside an output"), guarded_outputs():
        out = backend_of().empty((2, 3), np.float32)
        out[...] = 0
        out.base[Guarded.rim + out.nbytes] = 0  # one past the end, where a kernel that rounds sizes up would write


def test_guard_that_guards_nothing() -> None:
    with pytest.raises(AssertionError, match="no array was asked for"), guarded_outputs():
        hg.exp(np.ones(3))


def test_equality_wants_equal_shapes() -> None:
    with pytest.raises(AssertionError, match="shape"):
        assert_same(np.zeros(3), np.zeros((1, 3)), "broadcast")
