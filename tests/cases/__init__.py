"""Samples of every op, one file per family of ops; each file's CASES is picked up by itself."""

from importlib import import_module
from pkgutil import iter_modules

from checks import Case

CASES: list[Case] = [case for module in iter_modules(__path__) for case in import_module(f"cases.{module.name}").CASES]
