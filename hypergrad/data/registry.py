"""One door to every data set."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, DataError
from .cache import Source, cache_dir, load
from .folder import WHERE as WHERE_FOLDER
from .folder import Folder
from .glyphs import Glyphs
from .images import MetaDataset
from .miniimagenet import WHERE as WHERE_MINIIMAGENET
from .miniimagenet import MiniImagenet
from .omniglot import WHERE as WHERE_OMNIGLOT
from .omniglot import Omniglot
from .report import Reporter

OPTIONS: Mapping[str, tuple[str, ...]] = {
    "glyphs": ("drawings", "rotations", "seed"),
    "omniglot": ("image_size", "split", "train_on", "rotations"),
    "miniimagenet": ("image_size", "form", "seed"),
    "folder": ("image_size", "channels", "invert", "fractions", "seed"),
}
_WITH_ROOT: Mapping[str, tuple[Callable[..., Source], str]] = {
    "omniglot": (Omniglot, WHERE_OMNIGLOT),
    "miniimagenet": (MiniImagenet, WHERE_MINIIMAGENET),
    "folder": (Folder, WHERE_FOLDER),
}


def open_dataset(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    cache: str | os.PathLike[str] | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> MetaDataset:
    """Open a data set: decoded on the first call, mapped into memory from the cache on later ones.

    Nothing is ever downloaded. An option that is None takes its default.

    Args:
        name: "glyphs" (needs no file), "omniglot", "miniimagenet" or "folder".
        root: where the files lie; all but glyphs need it.
        cache: folder for decoded images; default see `cache_dir`.
        reporter: where progress is shown; by default a bar on standard error. Pass SilentReporter() for quiet.
        **options: glyphs: drawings=20, rotations=False, seed=0; omniglot: image_size=28, split="vinyals" or
            "alphabets", train_on="train" or "trainval", rotations=True; miniimagenet: image_size=84,
            form="auto", "csv", "splits", "pickle" or "classes", seed=0; folder: image_size=84, channels=None,
            1 or 3, invert=False, fractions=(0.64, 0.16, 0.20), seed=0.
    Returns: MetaDataset with splits train, validation and test; images are uint8, read-only memory maps.
    Raises: ArgumentError on an unknown name or option; DataError if files are missing (it says what to get
        and where to put it), an image is corrupt, a class is empty, a pickle asks for code, or the cache
        cannot be written.
    Cost: glyphs 3 s, Omniglot 10 s, MiniImagenet 15 s once, then some milliseconds and one stat a file.
    """
    if name not in OPTIONS:
        raise ArgumentError(
            f"open_dataset: name is '{name}', expected {', '.join(OPTIONS)} because those are known; choose one of "
            "them (any folder of class folders is 'folder')"
        )
    unknown = [option for option in options if option not in OPTIONS[name]]
    given = {option: value for option, value in options.items() if value is not None}
    if any(option in given for option in unknown):
        wrong = ", ".join(option for option in unknown if option in given)
        raise ArgumentError(
            f"open_dataset: '{name}' has no option {wrong}, expected {', '.join(OPTIONS[name])} because it has those; leave it out"
        )
    source: Source
    if name == "glyphs":
        if root is not None:
            raise ArgumentError(
                f"open_dataset: root is '{root}', expected none because glyphs is rendered from fonts; leave it out "
                "or choose another data set"
            )
        source = Glyphs(**given)
    else:
        opener, where = _WITH_ROOT[name]
        if root is None:
            raise DataError(
                f"open_dataset: '{name}' has no root, expected a folder because nothing is downloaded; {where}, then "
                "pass that folder (--root)"
            )
        path = Path(root).expanduser().resolve()
        if not path.is_dir():
            raise DataError(
                f"open_dataset: root {path} is no folder, expected the files of '{name}' there because nothing is downloaded; {where}"
            )
        source = opener(path, **given)
    return load(source, cache_dir(cache), reporter if reporter is not None else Reporter())
