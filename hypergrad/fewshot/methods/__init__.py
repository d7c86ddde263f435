"""The few-shot methods: every file here that defines a `Method`, and every one in the folders of HYPERGRAD_METHODS.

A method's name is its file's, with "-" for "_". HYPERGRAD_METHODS lists folders as PATH does.
"""

import importlib
import os
import pkgutil

from ..method import Method

METHODS: dict[str, type[Method]] = {}

__path__ += [folder for folder in os.environ.get("HYPERGRAD_METHODS", "").split(os.pathsep) if folder]
for _file in sorted(pkgutil.iter_modules(__path__), key=lambda file: file.name):
    _module = importlib.import_module(f"{__name__}.{_file.name}")
    for _found in vars(_module).values():
        if isinstance(_found, type) and issubclass(_found, Method) and _found.__module__ == _module.__name__:
            METHODS[_file.name.replace("_", "-")] = _found
