"""Settings of the whole suite: which hypergrad is tested, helpers can be imported, hypothesis is deterministic and quick.

The checkout's own hypergrad/ has no compiled kernels unless they were built into it, yet `python -m pytest` finds it before the
installed package. It is tested where it has them, else the installed package is.
"""

import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell ignores it in its background jobs, and their children would, too
    signal.signal(signal.SIGINT, signal.default_int_handler)

TESTS = Path(__file__).parent
ROOT = TESTS.parent


def choose_package() -> None:
    """Puts the checkout on the path of this process and of those that tests start, or takes it off."""
    built = any((ROOT / "hypergrad" / f"_host{suffix}").exists() for suffix in EXTENSION_SUFFIXES)

    def chosen(paths: list[str]) -> list[str]:
        others = [p for p in paths if Path(p or ".").resolve() != ROOT]
        return [str(ROOT), *others] if built else others

    sys.path[:] = chosen(sys.path)
    given = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(chosen(given.split(os.pathsep) if given else []))


def missing() -> str | None:
    """What the tests need and cannot import, if anything."""
    for name in ("hypergrad", "hypergrad._host", "hypothesis"):
        try:
            found = importlib.util.find_spec(name)
        except ImportError:
            found = None
        if found is None:
            return name
    return None


choose_package()
MISSING = missing()
if MISSING is None:
    from hypothesis import settings

    settings.register_profile("default", deadline=None, derandomize=True, max_examples=40, database=None)
    settings.load_profile("default")


def pytest_configure() -> None:
    """Ends with one line where nothing can be tested."""
    if MISSING is not None:
        raise pytest.UsageError(f"{MISSING} is not installed, expected it because the tests import it: pip install '.[test]'")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that names its backends runs on each of them."""
    marker = metafunc.definition.get_closest_marker("backends")
    if marker is not None:
        metafunc.parametrize("backend", marker.args, indirect=True)


@pytest.fixture(autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The places.Place that the test runs on, in use; None for a test that names no backends."""
    name = getattr(request, "param", None)
    if name is None:
        yield None
        return
    places = importlib.import_module("places")
    reason = places.unavailable(name)
    if reason is not None:
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch, places.placed(name, patch) as place:
        yield place


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """What a test replaces in the host backend is put back: two threads that replace and restore one thing at once may not do so."""
    kind = importlib.import_module("hypergrad.backends.host").HostBackend
    before = dict(vars(kind))
    yield
    changed = {name: value for name, value in before.items() if vars(kind).get(name) is not value}
    for name, value in changed.items():
        setattr(kind, name, value)
    assert not changed, f"HostBackend: replaced by the test and not put back: {list(changed)}"


@pytest.fixture
def planted() -> Iterator[None]:
    """For ops that a test declares, wrong ones among them: the registry is as before at the end."""
    registry = importlib.import_module("hypergrad.rules").REGISTRY
    before = dict(registry)
    yield
    registry.clear()
    registry.update(before)


@pytest.fixture
def hasty_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """`hg.plan` times one short run of each way, for tests in which its seconds do not matter."""
    plan = importlib.import_module("hypergrad.plan")
    monkeypatch.setattr(plan, "_SHORT_S", 0.0)
    monkeypatch.setattr(plan, "_LONG_S", 1e-9)
