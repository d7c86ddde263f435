"""What `help` shows of every public name has an example, and the example gives what it says."""

import doctest
import importlib
import pydoc
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import hypergrad as hg

MODULES = ["hypergrad", "hypergrad.testing", "hypergrad.interop.jax", "hypergrad.interop.sklearn", "hypergrad.interop.torch"]


def run(text: str, name: str) -> list[str]:
    """What the examples of a docstring print that they do not say; a line if there are none."""
    test = doctest.DocTestParser().get_doctest(text, {"hg": hg, "np": np, "__name__": "__main__"}, name, None, 0)
    said: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    return said if test.examples else [f"{name} has no example"]


def help_of(thing: Any) -> str:
    return pydoc.plain(pydoc.render_doc(thing))


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_an_example_that_is_right(module: str) -> None:
    if module.startswith("hypergrad.interop"):
        pytest.importorskip(module.rsplit(".", 1)[1])
    package: ModuleType = importlib.import_module(module)
    things = {f"{module}.{name}": getattr(package, name) for name in package.__all__}
    assert [name for name, thing in things.items() if ">>> " not in help_of(thing)] == []
    wrong = {name: said for name, thing in things.items() if (said := run(thing.__doc__, name))}
    assert not wrong, "\n".join(line for said in wrong.values() for line in said)


def test_a_wrong_example_and_a_missing_one_are_seen() -> None:
    assert run("It adds.\n\nExample:\n    >>> hg.add(1.0, 1.0).item()\n    2.0", "right") == []
    assert "Expected:\n    3.0\nGot:\n    2.0" in "".join(run(">>> hg.add(1.0, 1.0).item()\n3.0", "wrong"))
    assert run("It adds.", "none") == ["none has no example"]
