"""Coverage-guided fuzzing of the readers: every input gives an error of hypergrad's own or a result.

    python bench/fuzz.py images|pickle|lists [--seconds N]

It needs `pip install atheris` (libFuzzer for Python). The inputs to start from are those of `bench/attacks.py`. An input that ends in
another error is written to the working directory, and the exit status is not 0; `python bench/fuzz.py TARGET FILE` runs it again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["hypergrad.data", "hypergrad.guards", "PIL"]):
    import attacks

    from hypergrad.data import read_images, read_pickle
    from hypergrad.data.miniimagenet import source as read_lists
    from hypergrad.errors import HypergradError

LARGEST = 4096  # bytes of an input


def _images(folder: Path, content: bytes) -> None:
    (folder / "image").write_bytes(content)
    read_images([folder / "image"], (8, 8, 3))


def _pickle(folder: Path, content: bytes) -> None:
    (folder / "file.pkl").write_bytes(content)
    read_pickle(folder / "file.pkl")


def _lists(folder: Path, content: bytes) -> None:
    (folder / "train.csv").write_bytes(content)
    read_lists(folder)


PICTURES = ("png", "png, palette", "png, transparent", "jpeg", "bmp", "gif", "webp", "tiff", "tiff, lzw", "ppm", "pgm")
TARGETS: dict[str, tuple[Callable[[Path, bytes], None], tuple[str, ...]]] = {
    "images": (_images, PICTURES),
    "pickle": (_pickle, ("pickle, protocol 2", "pickle, protocol 4")),
    "lists": (_lists, ("csv split list",)),
}


def main() -> None:
    """Fuzz one target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("file", nargs="?", help="an input to run again")
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    read, kinds = TARGETS[options.target]
    warnings.simplefilter("ignore")  # Pillow's, of what it can mend
    scratch = Path(tempfile.mkdtemp())
    if child := os.fork():  # libFuzzer ends its process itself
        _, status = os.waitpid(child, 0)
        shutil.rmtree(scratch)
        sys.exit(os.waitstatus_to_exitcode(status))
    place, corpus = scratch / "place", scratch / "corpus"
    for folder in (place, corpus):
        folder.mkdir()
    for name in kinds:
        (scratch / name).mkdir()
        (corpus / name).write_bytes(attacks.KINDS[name].make(scratch / name).read_bytes())
    if options.target == "lists":
        attacks.KINDS["csv split list"].make(place)

    def one(content: bytes) -> None:
        with contextlib.suppress(HypergradError):
            read(place, content)

    given = [options.file] if options.file else [str(corpus), f"-max_total_time={options.seconds}", f"-max_len={LARGEST}"]
    atheris.Setup([sys.argv[0], *given, "-timeout=20", "-rss_limit_mb=2048"], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
