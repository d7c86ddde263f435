"""One door to every data set."""

import inspect
import os
from collections.abc import Mapping
from typing import Any

from ..errors import ArgumentError, DataError
from . import folder, glyphs, miniimagenet, omniglot
from .cache import cache_dir, load
from .files import check_root
from .images import MetaDataset, check_choice, check_number
from .report import Reporter

_READERS = {"glyphs": glyphs, "omniglot": omniglot, "miniimagenet": miniimagenet, "folder": folder}
_PARAMETERS = {name: tuple(inspect.signature(reader.source).parameters) for name, reader in _READERS.items()}
OPTIONS: Mapping[str, tuple[str, ...]] = {name: tuple(p for p in ps if p not in ("root", "n_way")) for name, ps in _PARAMETERS.items()}


def open_dataset(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    n_way: int = 5,
    cache: str | os.PathLike[str] | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> MetaDataset:
    """Open a data set: decoded on the first call, mapped into memory from the cache on later ones.

    Nothing is ever downloaded. An option that is None takes its default.

    Args:
        name: "glyphs" (needs no file), "omniglot", "miniimagenet" or "folder".
        root: where the files lie; all but glyphs need it.
        n_way: classes that every split must have; class folders that are not yet divided among splits are divided so that they do.
        cache: folder for decoded images; default see `cache_dir`.
        reporter: where progress and the data set's notes are shown; by default on standard error. Pass SilentReporter() for quiet.
        **options: glyphs: drawings=20, rotations=False, seed=0; omniglot: image_size=28, split="vinyals" or "alphabets",
            train_on="train" or "trainval", rotations=True; miniimagenet: image_size=84, seed=0; folder: image_size=None (that of the
            images), channels=None, 1 or 3, invert=False, fractions=(0.64, 0.16, 0.20), seed=0.
    Returns: MetaDataset with splits train, validation and test; images are uint8, read-only memory maps.
    Raises: ArgumentError on an unknown name or option; DataError if files are missing (it says what to get and where to put it), there
        are too few classes, an image is corrupt, a class is empty, a pickle asks for code, or the cache cannot be written.
    Cost: glyphs 3 s, Omniglot 10 s, MiniImagenet 20 s, other images 0.1 to 5 ms each, once; then some milliseconds and one stat a file.
    """
    check_choice("open_dataset: name", name, _READERS)
    check_number("open_dataset: n_way", n_way, 1)
    given = {option: value for option, value in options.items() if value is not None}
    for option in given:
        check_choice(f"open_dataset: option of '{name}'", option, OPTIONS[name])
    if "root" in _PARAMETERS[name]:
        given["root"] = check_root(name, root, _READERS[name].WHERE)
    elif root is not None:
        raise ArgumentError(f"open_dataset: root is '{root}', expected none because {name} is rendered from fonts; leave it out")
    if "n_way" in _PARAMETERS[name]:
        given["n_way"] = n_way
    try:
        opened = _READERS[name].source(**given)
    except OSError as error:
        raise DataError(f"open_dataset: root {root} has unreadable contents ({error}); check its permissions") from error
    reporter = reporter if reporter is not None else Reporter()
    data = load(opened, cache_dir(cache), reporter, n_way)
    for note in data.notes:
        reporter.message(f"{name}: {note}")
    return data
