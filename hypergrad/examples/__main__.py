"""The command `python -m hypergrad.examples [NAME ...]`: lists the guides, or runs those that are named ("all" for every one)."""

import importlib
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parent
GUIDES: dict[str, ModuleType] = {}
for _found in pkgutil.iter_modules([str(FOLDER)]):
    if not _found.name.startswith("_"):
        GUIDES[_found.name] = importlib.import_module(f"hypergrad.examples.{_found.name}")


def title(guide: ModuleType) -> str:
    """The first line of its docstring."""
    return (guide.__doc__ or "").strip().splitlines()[0]


def run(names: Sequence[str]) -> int:
    """Lists the guides, or runs the named ones.

    Args:
        names: of guides; "all" for every one; none for the list.
    Returns: the exit status: 2 where a name is unknown, and then nothing is run.
    """
    if not names:
        print("python -m hypergrad.examples NAME ... runs a guide, and `all` every one. To read one: its file in\n" + str(FOLDER) + "\n")
        for name, guide in GUIDES.items():
            print(f"  {name:16} {title(guide)}")
        return 0
    chosen = list(GUIDES) if list(names) == ["all"] else list(names)
    unknown = [name for name in chosen if name not in GUIDES]
    if unknown:
        print(f"examples: there is no guide {', '.join(unknown)}, expected some of {', '.join(GUIDES)}; choose one", file=sys.stderr)
        return 2
    for name in chosen:
        print(f"== {name}: {title(GUIDES[name])}")
        GUIDES[name].main()
        print()
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
