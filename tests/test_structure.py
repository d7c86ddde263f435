"""The house rules, one-way imports, short files, documented names, no swallowed errors."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hypergrad as hg
import hypergrad.data
import hypergrad.fewshot
import hypergrad.hpo
import hypergrad.runs
import hypergrad.sweep
import hypergrad.testing
from hypergrad.rules import Op, Registered

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hypergrad"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
NATIVE = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".cpp", ".h", ".cu", ".cuh", ".hpp"))

# A module may import from lower layers and from its own directory. Names in one layer stand side by side.
LAYERS = [
    ("errors", "startup"),
    ("guards", "meter", "methods", "profiling", "threads", "trees", "_host", "_cuda", "_emulated"),
    ("backends",),
    ("state", "launches", "arena", "together"),
    ("stretch",),
    ("calls",),
    ("tape",),
    ("rules", "transforms", "program", "sharing"),
    ("checkpointing", "batching", "replay"),
    ("capture",),
    ("ops",),
    ("clipping", "constraints", "jacobians"),
    ("optimizers",),
    ("learned",),
    ("bilevel",),
    ("passes",),
    ("testing", "plan", "parallel"),
    ("data",),
    ("runs",),
    ("fewshot", "hpo", "interop"),
    ("examples", "sweep"),
    ("cli",),
]
LEVEL = {name: i for i, layer in enumerate(LAYERS) for name in layer}


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def unit(path: Path) -> str:
    """The layer's name of a module: the first part below the package."""
    part = path.relative_to(PACKAGE).parts[0]
    return part.removesuffix(".py")


def imported_modules(path: Path, tree: ast.AST) -> list[tuple[str, ...]]:
    """Names below hypergrad of everything imported from the package, as ("ops", "arrays")."""
    package = ("hypergrad", *path.relative_to(PACKAGE).parts[:-1])
    found: list[tuple[str, ...]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            full = (*base, *(node.module.split(".") if node.module else ()))
            if full[:1] == ("hypergrad",):
                found.extend([full[1:]] if len(full) > 1 else [(alias.name,) for alias in node.names])
        elif isinstance(node, ast.Import):
            found.extend(tuple(alias.name.split(".")[1:]) for alias in node.names if alias.name.split(".")[0] == "hypergrad")
    return found


def upward_imports(path: Path, tree: ast.AST) -> list[str]:
    own = unit(path)
    if own in ("__init__", "__main__"):
        return []
    wrong = []
    for target in imported_modules(path, tree):
        name = target[0] if target else "hypergrad itself"
        if name not in LEVEL:
            if not (own in ("cli", "examples") and name in ("hypergrad itself", "__version__")):
                wrong.append(name)
        elif name != own and LEVEL[name] >= LEVEL[own]:
            wrong.append(name)
    return wrong


def test_every_module_has_a_layer() -> None:
    assert {unit(p) for p in SOURCES} - {"__init__", "__main__"} <= set(LEVEL)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    wrong = upward_imports(path, parsed(path))
    assert not wrong, f"{path.name} ({unit(path)}) imports {wrong}, which stand above or beside it"


def imports_us(call: ast.Call) -> bool:
    """Whether the call imports by name, and not an optional package of others."""
    if ast.unparse(call.func) not in ("__import__", "import_module", "importlib.import_module"):
        return False
    name = call.args[0] if call.args else None
    return not (isinstance(name, ast.Constant) and isinstance(name.value, str) and not name.value.startswith(("hypergrad", ".")))


def nested_imports(tree: ast.AST) -> list[int]:
    """Lines of imports inside functions."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            lines += [n.lineno for n in ast.walk(node) if isinstance(n, (ast.Import, ast.ImportFrom))]
            lines += [n.lineno for n in ast.walk(node) if isinstance(n, ast.Call) and imports_us(n)]
    return sorted(set(lines))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_import_inside_a_function(path: Path) -> None:
    assert nested_imports(parsed(path)) == []


def swallowed(tree: ast.AST) -> list[int]:
    """Lines of handlers that catch everything, or that do nothing with a broad class of errors."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            names = {ast.unparse(n) for n in (node.type.elts if isinstance(node.type, ast.Tuple) else [node.type] if node.type else [])}
            empty = all(
                isinstance(s, (ast.Pass, ast.Continue)) or isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) for s in node.body
            )
            reraises = any(isinstance(s, ast.Raise) for s in ast.walk(node))
            if (
                node.type is None
                or names & {"BaseException"}
                and not reraises
                or names & {"Exception"}
                and (empty or not (reraises or node.name))
            ):
                lines.append(node.lineno)
        elif isinstance(node, ast.With):
            for item in node.items:
                text = ast.unparse(item.context_expr)
                if re.fullmatch(r"(contextlib\.)?suppress\((Base)?Exception\)", text):
                    lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_error_is_swallowed(path: Path) -> None:
    assert swallowed(parsed(path)) == []


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("path", SOURCES + TESTS + NATIVE, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_short(path: Path) -> None:
    assert lines_of(path) <= 500


def test_the_tape_reads_in_one_sitting() -> None:
    assert lines_of(PACKAGE / "tape.py") < 400


def test_recordings_and_programs_read_in_one_sitting() -> None:
    assert lines_of(PACKAGE / "program.py") + lines_of(PACKAGE / "backends" / "tracing.py") < 700


def test_files_have_a_head_that_says_what_they_are_for() -> None:
    assert [p.name for p in SOURCES + TESTS if p.read_text(encoding="utf-8").strip() and not ast.get_docstring(parsed(p))] == []


# --- documentation --------------------------------------------------------------------------------


def modules_below(package: Any) -> list[Any]:
    """The modules of a package whose names are used one by one, as `hypergrad.runs.loop.train`."""
    return [importlib.import_module(m.name) for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]


BY_MODULE = [module for package in (hypergrad.runs, hypergrad.fewshot, hypergrad.hpo) for module in modules_below(package)]
BY_MODULE += [hg.parallel, hypergrad.sweep]


def public_names() -> dict[str, Any]:
    """Every public class, function and method."""
    found: dict[str, Any] = {}
    for module in (hg, hypergrad.data, hypergrad.testing, *BY_MODULE):
        names = getattr(module, "__all__", None) or [
            n for n, o in vars(module).items() if not n.startswith("_") and getattr(o, "__module__", "") == module.__name__
        ]
        for name in names:
            thing = getattr(module, name)
            if inspect.ismodule(thing):
                continue
            found[f"{module.__name__}.{name}"] = thing
            if inspect.isclass(thing):
                for attribute, member in vars(thing).items():
                    if not attribute.startswith("_") and (
                        inspect.isfunction(member) or isinstance(member, (property, classmethod, staticmethod))
                    ):
                        found[f"{module.__name__}.{name}.{attribute}"] = getattr(thing, attribute)
    return found


PUBLIC = public_names()
FULL = {
    name: thing
    for name, thing in PUBLIC.items()
    if name.count(".") == (2 if name.startswith(("hypergrad.data", "hypergrad.testing")) else 1)
}


def doc_of(thing: Any) -> str:
    """Its docstring, or that of the method it overrides; an op's own, not that of the class of ops."""
    own = vars(thing).get("__doc__") if isinstance(thing, (Registered, type)) else inspect.getdoc(thing)
    return inspect.cleandoc(own) if own else ""


def arguments_of(thing: Any) -> list[str]:
    target = thing.__init__ if inspect.isclass(thing) else thing
    if isinstance(thing, Op):
        return ["x", "y"][: thing.arity]
    return [p.name for p in inspect.signature(target).parameters.values() if p.name not in ("self", "cls")]


def returns_something(thing: Any) -> bool:
    return isinstance(thing, Op) or inspect.signature(thing).return_annotation not in (None, "None", inspect.Signature.empty)


def undocumented(name: str, thing: Any) -> list[str]:
    """What the docstring of a public name lacks."""
    text = doc_of(thing)
    if len(text) < 10:
        return ["docstring"]
    lacks = []
    refers = re.search(r"\b(as|see) `\w+`", text)  # "arguments, result and errors as `sum`"
    if (inspect.isfunction(thing) or isinstance(thing, Op)) and name in FULL and not refers:
        if arguments_of(thing) and not re.search(r"^Args(, Returns)?:", text, re.MULTILINE):
            lacks.append("Args:")
        if returns_something(thing) and not re.search(r"^(Args, )?Returns:|^Yields:", text, re.MULTILINE) and not is_context(thing):
            lacks.append("Returns:")
        missing = [a for a in arguments_of(thing) if not re.search(rf"\b{re.escape(a)}\b", text)]
        if missing:
            lacks.append(f"words on {', '.join(missing)}")
    if (
        inspect.isclass(thing)
        and not issubclass(thing, BaseException)
        and "Args:" not in text
        and "Attributes:" not in text
        and arguments_of(thing)
    ):
        lacks.append("Args: or Attributes:")
    return lacks


def is_context(thing: Any) -> bool:
    """Whether it is a context manager, which yields and returns nothing of interest."""
    return not isinstance(thing, Op) and "Iterator" in str(inspect.signature(thing).return_annotation)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name: str) -> None:
    assert undocumented(name, PUBLIC[name]) == []


def test_type_checkers_are_told_of_every_file_of_ops() -> None:
    """They read the imports under TYPE_CHECKING; mypy, a part of CI, checks the guides in hypergrad/examples against them."""
    block = next(node for node in parsed(PACKAGE / "ops/__init__.py").body if isinstance(node, ast.If))
    told = {node.module for node in block.body if isinstance(node, ast.ImportFrom)}
    found = {name for _, name, _ in pkgutil.iter_modules(hg.ops.__path__)}
    assert told == {name for name in found if hasattr(importlib.import_module(f"hypergrad.ops.{name}"), "__all__")}


# --- the rules above are able to fail -------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tape.py", "from .rules import Op"),
        ("rules.py", "from .transforms import grad"),
        ("transforms.py", "from .rules import Op"),
        ("rules.py", "from .ops.arrays import reshape"),
        ("ops/conv.py", "from ..passes import forward"),
        ("ops/conv.py", "from ..optimizers import SGD"),
        ("errors.py", "from .meter import Meter"),
        ("backends/host.py", "from ..tape import Tensor"),
        ("passes/step.py", "from ..fewshot import config"),
        ("passes/step.py", "from ..testing import check_gradients"),
        ("data/cache.py", "from ..runs import loop"),
        ("data/cache.py", "from .. import cli"),
        ("tape.py", "import hypergrad"),
        ("tape.py", "from hypergrad import grad"),
        ("ops/conv.py", "import hypergrad.passes.reverse"),
        ("bilevel.py", "from hypergrad.passes.reverse import reverse"),
        ("fewshot/jobs.py", "from ..cli import app"),
        ("runs/loop.py", "from ..fewshot import config"),
        ("runs/loop.py", "from ..hpo import config"),
        ("fewshot/jobs.py", "from ..hpo import config"),
        ("hpo/jobs.py", "from ..fewshot import config"),
        ("data/labelled.py", "from ..hpo import config"),
        ("tape.py", "from . import ops"),
    ],
)
def test_an_upward_import_is_seen(module: str, source: str) -> None:
    assert upward_imports(PACKAGE / module, ast.parse(source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ops/conv.py", "from .arrays import reshape\nfrom ..rules import Op\nimport numpy"),
        ("cli.py", "from . import __version__\nfrom .fewshot import jobs"),
        ("runs/loop.py", "from ..data import cache\nfrom ..passes.unroll import unroll"),
        ("backends/__init__.py", "from .host import HOST\nfrom .. import _host"),
    ],
)
def test_a_downward_import_is_allowed(module: str, source: str) -> None:
    assert not upward_imports(PACKAGE / module, ast.parse(source))


@pytest.mark.parametrize(
    ("source", "check"),
    [
        ("def f():\n    import os", nested_imports),
        ("def f():\n    return __import__('hypergrad.ops')", nested_imports),
        ("def f(x):\n    return import_module(x)", nested_imports),
        ("class A:\n    def f(self):\n        from os import path", nested_imports),
        ("try:\n    f()\nexcept:\n    raise", swallowed),
        ("try:\n    f()\nexcept Exception:\n    pass", swallowed),
        ("try:\n    f()\nexcept Exception:\n    x = 1", swallowed),
        ("try:\n    f()\nexcept (ValueError, BaseException):\n    x = 1", swallowed),
        ("with suppress(Exception):\n    f()", swallowed),
    ],
)
def test_a_broken_rule_is_seen(source: str, check: Any) -> None:
    assert check(ast.parse(source))


def test_a_missing_docstring_is_seen() -> None:
    def bare(x: Any) -> Any:
        return x

    def partly(x: Any) -> Any:
        """Says something, but not what x is for nor what comes back.

        Args:
            y: something else.
        """
        return x

    assert undocumented("hypergrad.bare", bare) == ["docstring"]
    FULL["hypergrad.partly"] = partly
    try:
        assert undocumented("hypergrad.partly", partly) == ["Returns:"]  # x is mentioned in its first line
    finally:
        del FULL["hypergrad.partly"]


def test_importing_the_package_is_light() -> None:
    """The engine loads no plotting, no data reader and no command line."""
    heavy = ("matplotlib", "PIL", "typer", "rich", "torch", "jax", "safetensors")
    code = f"import sys, hypergrad; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
