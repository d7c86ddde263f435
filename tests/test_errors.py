"""Wrong arguments give one clear error: the right class, a message that names the op and the argument."""

from __future__ import annotations

import pytest
from bad_arguments import BAD, ones

import hypergrad as hg
from hypergrad import errors
from hypergrad.errors import ArgumentError, DeviceError, DTypeError, HypergradError, ShapeError


@pytest.mark.parametrize("name", BAD)
def test_wrong_arguments(name: str) -> None:
    call, kind, message = BAD[name]
    with pytest.raises(kind) as caught:
        call()
    assert message in str(caught.value)
    assert type(caught.value) is kind
    where, colon, rest = str(caught.value).partition(": ")
    assert colon and where and "\n" not in rest and any(verb in rest for verb in ("has ", "have ", "is ", "got ")) and "expected " in rest


@pytest.mark.parametrize("name", [n for n in BAD if n.startswith("block")])
def test_the_composed_block_refuses_the_same(name: str) -> None:
    call, kind, _ = BAD[name]
    with hg.fusion(False), pytest.raises(kind):
        call()


@pytest.mark.parametrize("name", BAD)
def test_wrong_arguments_under_differentiation_leave_the_engine_usable(name: str) -> None:
    call, kind, _ = BAD[name]
    with pytest.raises(kind):
        hg.grad(lambda x: hg.sum(call() * x))(ones(1))
    with pytest.raises(kind):
        hg.hvp(lambda x: hg.sum(call() * x), (ones(1),), (ones(1),))
    assert hg.grad(lambda x: hg.sum(x * x))(ones(1)) == 2


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (ShapeError, ValueError),
        (DTypeError, TypeError),
        (DeviceError, ValueError),
        (ArgumentError, ValueError),
        (errors.DifferentiationError, RuntimeError),
        (errors.ExtensionError, RuntimeError),
        (errors.DataError, ValueError),
        (errors.RunError, RuntimeError),
        (errors.InUseError, errors.RunError),
        (errors.EndedError, errors.RunError),
    ],
)
def test_errors_are_also_the_builtin_ones(kind: type, builtin: type) -> None:
    assert issubclass(kind, HypergradError) and issubclass(kind, builtin)
    assert issubclass(hg.HypergradError, Exception) and hg.errors is errors


def test_every_error_class_is_covered_above() -> None:
    kinds = {c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, HypergradError)} - {HypergradError}
    names = "ShapeError DTypeError DeviceError ArgumentError DifferentiationError ExtensionError DataError RunError InUseError EndedError"
    assert {k.__name__ for k in kinds} == set(names.split())


def test_a_missing_extension_raises_where_a_kernel_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hypergrad.backends.host.MISSING", "no such file")
    assert hg.exp(0.0).value == 1.0
    with pytest.raises(
        errors.ExtensionError, match="conv2d_fprop: the compiled extension .* is missing, expected .*no such file.*; install"
    ):
        hg.conv2d(ones(1, 4, 4, 3), ones(3, 3, 3, 2))
