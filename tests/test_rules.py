"""Declaring an op: what registration refuses, what follows from a declaration, and the recipe in csrc/README.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import Array, Case, check_float32, check_float64, check_layouts, derivatives
from checks import Weights as DrawnWeights

import hypergrad as hg
from hypergrad.errors import ArgumentError
from hypergrad.rules import REGISTRY, Fused, Op, bilinear, elementwise, linear
from hypergrad.tape import Tensor

pytestmark = pytest.mark.usefixtures("planted")


def check(case: Case) -> None:
    check_float64(case)
    check_float32(case)
    check_layouts(case, np.float64)
    check_layouts(case, np.float32)


# --- registration ---------------------------------------------------------------------------------


def rule(bar: Tensor, out: Tensor, *inputs: Tensor) -> Tensor:
    return bar


@pytest.mark.parametrize(
    ("vjp", "jvp"),
    [((rule,), ()), ((), (rule,)), ((rule, rule), (rule,)), ((rule, None), (rule, rule)), ((None,), (rule,)), ((rule, None), (None, rule))],
)
def test_tables_that_differ_are_refused(vjp: Any, jvp: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^new: declared with \d vjp and \d jvp rules, expected one of each"):
        Op("new", lambda b, *xs: xs[0], vjp=vjp, jvp=jvp)
    assert "new" not in REGISTRY


@pytest.mark.parametrize(
    "declare",
    [
        lambda name: Op(name, lambda b, x: x, vjp=(rule,), jvp=(rule,)),
        lambda name: elementwise(name, lambda b, x: x, lambda out, x: 1.0),
        lambda name: linear(name, lambda b, x, lead: x, lambda bar, x, lead: bar),
        lambda name: bilinear(name, lambda b, x, y: x * y, (rule, rule), core=(0, 0, 0)),
        lambda name: Fused(name, 1, hg.exp, value=rule, jvp=rule, vjp=rule, vjp_jvp=rule),
    ],
)
def test_a_name_can_be_taken_once(declare: Any) -> None:
    op = declare("new")
    assert REGISTRY["new"] is op
    with pytest.raises(ArgumentError, match="^new: declared twice, expected unique names"):
        declare("new")
    with pytest.raises(ArgumentError, match="^exp: declared twice"):
        declare("exp")
    assert REGISTRY["new"] is op and REGISTRY["exp"] is hg.exp


@pytest.mark.parametrize("call", [lambda: hg.exp(), lambda: hg.exp(1.0, 2.0), lambda: hg.multiply(np.ones(2))])
def test_number_of_arguments(call: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^(exp|multiply): got \d arguments, expected \d"):
        call()


def test_every_declaration_has_a_vjp_and_a_jvp_for_every_argument() -> None:
    for name, op in REGISTRY.items():
        if isinstance(op, Op):
            assert len(op.vjp) == len(op.jvp) == op.arity, name
            assert all((v is None) == (j is None) for v, j in zip(op.vjp, op.jvp, strict=True)), name


# --- what follows from a declaration --------------------------------------------------------------


def test_a_linear_op_is_its_own_jvp_and_its_transpose_is_the_vjp() -> None:
    def running(b: Any, x: Array, *, lead: int) -> Array:
        return b.xp.cumsum(x, axis=lead)

    def backwards(b: Any, x: Array, *, lead: int) -> Array:
        cut = (slice(None),) * lead + (slice(None, None, -1),)
        return b.xp.cumsum(x[cut], axis=lead)[cut]

    cumsum = linear("sums so far", running, lambda bar, x, lead: reverse_cumsum(bar, lead=lead))
    reverse_cumsum = linear("reverse_cumsum", backwards, lambda bar, x, lead: cumsum(bar, lead=lead))
    for shape in ((5,), (0,), (4, 3)):
        check(Case("sums so far", lambda x: cumsum(x), lambda x: np.cumsum(x, axis=0), (shape,), exact=True))
        check(Case("reverse_cumsum", lambda x: reverse_cumsum(x), lambda x: np.cumsum(x[::-1], axis=0)[::-1], (shape,), exact=True))


@pytest.mark.parametrize("shapes", [((3,), (3,)), ((2, 3), (3,)), ((3,), (2, 3)), ((2, 1, 3), (4, 3)), ((1, 3), (5, 3))], ids=str)
def test_a_bilinear_op_needs_its_transposes_only(shapes: tuple[tuple[int, ...], ...]) -> None:
    """The cross product: its value broadcasts over the axes in front of the last."""
    cross = bilinear(
        "cross", lambda b, x, y: b.xp.cross(x, y), (lambda bar, x, y: cross(y, bar), lambda bar, x, y: cross(bar, x)), core=(1, 1, 1)
    )
    check(Case("cross", lambda x, y: cross(x, y), np.cross, shapes, exact=True))


def test_an_elementwise_op_with_a_constant_argument() -> None:
    steps = elementwise("steps", lambda b, x, n: x * b.xp.round(n), lambda out, x, n: Tensor(np.round(n.value)), None)
    n = np.array([[1.0], [2.0]])
    gradient = hg.grad(lambda x, n: hg.sum(steps(x, n)), argnums=(0, 1))(np.arange(3.0), n)
    assert np.array_equal(gradient[0], [3.0, 3.0, 3.0])
    assert np.array_equal(gradient[1], np.zeros((2, 1)))
    assert np.array_equal(hg.jvp(lambda n: steps(np.arange(3.0), n), (n,), (n,))[1], np.zeros((2, 3)))


def recipe() -> str:
    """The op that "How to add an op" in csrc/README.md declares."""
    readme = (Path(__file__).parents[1] / "csrc/README.md").read_text(encoding="utf-8")
    section = readme[readme.index("How to add an op") :]
    found = re.search(r"```python\n(.*?)```", section, flags=re.DOTALL)
    assert found, "the README's recipe shows no declaration"
    return found.group(1)


def test_the_readme_recipe_gives_every_order_dtype_and_shape() -> None:
    names: dict[str, Any] = {"elementwise": elementwise}
    exec(recipe(), names)  # noqa: S102  (the recipe is ours)
    (name,) = set(REGISTRY) & set(names)
    op = names[name]
    assert name == "cube", "the reference below is that of a cube"
    for shape in ((), (0,), (33,), (2, 3)):
        check(Case("recipe", lambda x: op(x), lambda x: x**3, (shape,)))
    check(Case("recipe with broadcasting", lambda x, y: op(x * y), lambda x, y: (x * y) ** 3, ((2, 1), (3,))))


def test_a_fused_op_without_a_kernel_of_its_own_is_its_reference() -> None:
    """Rungs may compute with anything; here NumPy stands for a kernel."""

    def value(b: Any, values: list[Array], attrs: dict[str, Any]) -> Any:
        y = np.tanh(values[0] * attrs["scale"])
        return y, {"y": y}

    def jvp(b: Any, values: list[Array], dots: list[Any], attrs: dict[str, Any], saved: dict[str, Array]) -> Array:
        return dots[0] * attrs["scale"] * (1 - saved["y"] ** 2)

    def vjp(b: Any, values: list[Array], bar: Array, want: list[bool], attrs: dict[str, Any], saved: dict[str, Array]) -> list[Array]:
        return [bar * attrs["scale"] * (1 - saved["y"] ** 2)]

    def vjp_jvp(
        b: Any,
        values: list[Array],
        dots: list[Any],
        bar: Array,
        bar_dot: Any,
        want: list[bool],
        attrs: dict[str, Any],
        saved: dict[str, Array],
    ) -> list[Array]:
        slope, s = 1 - saved["y"] ** 2, attrs["scale"]
        straight = 0 if bar_dot is None else bar_dot * s * slope
        return [straight - bar * s * 2 * saved["y"] * slope * s * dots[0]]

    op = Fused("scaled_tanh", 1, lambda x, scale: hg.tanh(x * scale), value=value, jvp=jvp, vjp=vjp, vjp_jvp=vjp_jvp)
    case = Case("scaled_tanh", lambda x: op(x, scale=0.5), lambda x: np.tanh(x * x.dtype.type(0.5)), ((4, 3),))
    check(case)
    args = case.arguments(np.float64)
    w = DrawnWeights.draw(args, (4, 3), np.float64)
    fused = derivatives(case.f, args, w)
    with hg.fusion(False):
        plain = derivatives(case.f, args, w)
    for key in plain:
        for a, b in zip(fused[key], plain[key], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-13)
