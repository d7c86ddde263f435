"""The tuning problems: every file here that defines a `Problem`, and every one in the folders of HYPERGRAD_PROBLEMS.

A problem's name is its file's, with "-" for "_". HYPERGRAD_PROBLEMS lists folders as PATH does.
"""

import importlib
import os
import pkgutil

from ..problem import Problem

PROBLEMS: dict[str, type[Problem]] = {}

__path__ += [folder for folder in os.environ.get("HYPERGRAD_PROBLEMS", "").split(os.pathsep) if folder]
for _file in sorted(pkgutil.iter_modules(__path__), key=lambda file: file.name):
    _module = importlib.import_module(f"{__name__}.{_file.name}")
    for _found in vars(_module).values():
        if isinstance(_found, type) and issubclass(_found, Problem) and _found.__module__ == _module.__name__:
            PROBLEMS[_file.name.replace("_", "-")] = _found
