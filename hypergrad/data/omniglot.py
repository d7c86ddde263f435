"""Omniglot (Lake et al. 2015): 1623 handwritten characters of 50 alphabets, 20 drawings each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, DataError
from .cache import SplitPlan
from .decode import (
    EXTENSIONS,
    ImageFile,
    Look,
    decode_classes,
    digest_of,
    fingerprint,
    list_folders,
    list_images,
    open_zip,
    read_text,
    square,
)

TREES = ("images_background", "images_evaluation")
WHERE = (
    "get images_background.zip and images_evaluation.zip of github.com/brendenlake/omniglot (folder python), and "
    "put the folders images_background and images_evaluation, or omniglot_images_background.zip and "
    "omniglot_images_evaluation.zip unopened, into the root"
)
WHERE_LISTS = (
    "get train.txt, val.txt, trainval.txt and test.txt of the Vinyals split "
    "(github.com/jakesnell/prototypical-networks, data/omniglot/splits/vinyals) and put them into the root, its "
    "folder splits/vinyals, or split_lists.zip; or choose split='alphabets', which needs no list"
)
_LINE = re.compile(r"([^/]+)/(character\d+)(?:/rot(000|090|180|270))?")
_VALIDATION_ALPHABETS = 5
_TURNS = {"000": 0, "090": 1, "180": 2, "270": 3}


class Omniglot:
    """Omniglot as a source for the cache; 28x28 grey, inverted so that ink is 255.

    Args:
        root: folder with `images_background/` and `images_evaluation/`, or with the two zip files.
        image_size: height and width, default 28.
        split: "vinyals": the lists of Vinyals et al. (1028 / 172 / 423 characters); "alphabets": test is all
            of images_evaluation, validation the last 5 alphabets of images_background, train its other 25.
        train_on: "train", or "trainval": train holds the validation characters too (1200), as published final
            figures have it; validation then measures characters that were trained on.
        rotations: every character becomes four classes by rotations of 90 degrees.
    Raises: ArgumentError on an unknown option; DataError saying what to get and where to put it, if files are missing.
    Cost: lists the files; about 10 s to decode, once.
    Source: Vinyals et al. 2016, arXiv:1606.04080.
    """

    name = "omniglot"

    def __init__(
        self, root: Path, image_size: int | None = None, split: str = "vinyals", train_on: str = "train", rotations: bool = True
    ) -> None:
        if split not in ("vinyals", "alphabets"):
            raise ArgumentError(
                f"omniglot: split is '{split}', expected vinyals or alphabets because there are two ways to split it; choose one of them"
            )
        if train_on not in ("train", "trainval"):
            raise ArgumentError(
                f"omniglot: train_on is '{train_on}', expected train or trainval because validation characters are "
                "either kept out of training or not; choose one of them"
            )
        self.split, self.train_on, self.rotations = split, train_on, rotations
        self.size = square(image_size, 28)
        self.root = root
        self._characters, stamps = _find_characters(root)
        self._splits = self._vinyals() if split == "vinyals" else self._alphabets()
        self._stamps = stamps

    @property
    def options(self) -> Mapping[str, Any]:
        return {"image_size": self.size[0], "split": self.split, "train_on": self.train_on, "rotations": self.rotations}

    @property
    def key(self) -> Mapping[str, Any]:
        return {**self.options, "format": 1, "files": self._stamps, "classes": digest_of(self._splits)}

    @property
    def notes(self) -> tuple[str, ...]:
        if self.train_on == "trainval":
            return (("train holds the validation characters too, so validation accuracy is not that of new characters"),)
        return ()

    def plan(self) -> Mapping[str, SplitPlan]:
        look = Look(self.size, 1, invert=True)
        plans = {}
        for split, names in self._splits.items():
            # the four rotations of a character follow each other, so each drawing is decoded once
            characters: dict[str, list[int]] = {}
            for name in names:
                character, _, turn = name.partition("/rot")
                characters.setdefault(character, []).append(_TURNS[turn or "000"])
            files = [self._characters[character] for character in characters]
            ordered = [(character, turn) for character, turns in characters.items() for turn in turns]
            plans[split] = SplitPlan(
                tuple(f"{c}/rot{90 * t:03d}" if self.rotations else c for c, t in ordered),
                tuple(len(self._characters[c]) for c, _ in ordered),
                (*self.size, 1),
                _Turned(files, list(characters.values()), look),
            )
        return plans

    def _vinyals(self) -> dict[str, list[str]]:
        train = "trainval" if self.train_on == "trainval" else "train"
        splits: dict[str, list[str]] = {}
        for split, stem in (("train", train), ("validation", "val"), ("test", "test")):
            place, lines = _read_list(self.root, f"{stem}.txt")
            splits[split] = []
            for line in lines:
                match = _LINE.fullmatch(line)
                if match is None:
                    raise DataError(
                        f"omniglot: {place} has the line '{line}', expected Alphabet/characterNN/rotNNN because that "
                        f"is the form of the Vinyals lists; {WHERE_LISTS}"
                    )
                character = f"{match[1]}/{match[2]}"
                if character not in self._characters:
                    raise DataError(
                        f"omniglot: {place} names '{character}', expected a character of the images under "
                        f"{self.root} because every listed class is used; {WHERE}"
                    )
                if not self.rotations:
                    splits[split] += [character] if match[3] in (None, "000") else []
                elif match[3] is None:
                    splits[split] += [f"{character}/rot{turn}" for turn in _TURNS]
                else:
                    splits[split].append(line)
        return splits

    def _alphabets(self) -> dict[str, list[str]]:
        background = [c for c, files in self._characters.items() if _tree(files) == TREES[0]]
        evaluation = [c for c, files in self._characters.items() if _tree(files) == TREES[1]]
        alphabets = sorted({c.split("/")[0] for c in background})
        if len(alphabets) <= _VALIDATION_ALPHABETS:
            raise DataError(
                f"omniglot: images_background under {self.root} has {len(alphabets)} alphabets, expected more than "
                f"{_VALIDATION_ALPHABETS} because that many are kept for validation; {WHERE}"
            )
        held = set(alphabets[-_VALIDATION_ALPHABETS:])
        chosen = {
            "train": [c for c in background if self.train_on == "trainval" or c.split("/")[0] not in held],
            "validation": [c for c in background if c.split("/")[0] in held],
            "test": evaluation,
        }
        if not self.rotations:
            return chosen
        return {split: [f"{c}/rot{turn}" for c in names for turn in _TURNS] for split, names in chosen.items()}


class _Turned:
    """Decodes each character once and gives the rotations asked for."""

    def __init__(self, files: list[list[ImageFile]], turns: list[list[int]], look: Look) -> None:
        self.files, self.turns, self.look = files, turns, look

    def __call__(self) -> Iterator[NDArray[np.uint8]]:
        for block, turns in zip(decode_classes(self.files, self.look), self.turns, strict=True):
            for turn in turns:
                yield np.rot90(block, turn, axes=(1, 2))


def _tree(files: list[ImageFile]) -> str:
    if not files:
        return ""
    first = files[0]
    return first.member.split("/")[0] if first.member else first.path.parent.parent.parent.name


def _find_characters(root: Path) -> tuple[dict[str, list[ImageFile]], str]:
    """Alphabet/characterNN -> drawings, from the folders or the zip files; and all files' fingerprint."""
    characters: dict[str, list[ImageFile]] = {}
    paths: list[Path] = []
    for tree in TREES:
        archives = [p for p in (root / f"omniglot_{tree}.zip", root / f"{tree}.zip") if p.is_file()]
        if (root / tree).is_dir():
            found = {
                f"{alphabet.name}/{character.name}": list_images(character)
                for alphabet in list_folders(root / tree)
                for character in list_folders(alphabet)
            }
            paths += [file.path for files in found.values() for file in files]
        elif archives:
            found = _zip_characters(archives[0], tree)
            paths.append(archives[0])
        else:
            raise DataError(
                f"omniglot: {root} has neither {tree}/ nor omniglot_{tree}.zip, expected one of them because nothing is downloaded; {WHERE}"
            )
        if not found:
            raise DataError(
                f"omniglot: {tree} under {root} has no Alphabet/characterNN folders, expected the official tree "
                f"because classes are named by it; {WHERE}"
            )
        for name, files in found.items():
            if not files:
                raise DataError(
                    f"omniglot: class '{name}' under {root} has 0 images, expected 20 because an episode draws "
                    f"images of every class; {WHERE}"
                )
        characters |= found
    return characters, fingerprint(paths)


def _zip_characters(path: Path, tree: str) -> dict[str, list[ImageFile]]:
    found: dict[str, list[ImageFile]] = {}
    with open_zip(path) as archive:
        for info in sorted(archive.infolist(), key=lambda info: info.filename):
            parts = info.filename.split("/")
            if len(parts) == 4 and parts[0] == tree and parts[3].lower().endswith(EXTENSIONS):
                found.setdefault(f"{parts[1]}/{parts[2]}", []).append(ImageFile(path, info.filename, info.file_size))
    return found


def _read_list(root: Path, name: str) -> tuple[str, list[str]]:
    """Where a split list was found, and its lines."""
    for folder in (root, root / "splits" / "vinyals", root / "omniglot_splits" / "vinyals", root / "vinyals"):
        path = folder / name
        if path.is_file():
            return str(path), read_text(path).split()
    archive_path = root / "split_lists.zip"
    if archive_path.is_file():
        with open_zip(archive_path) as archive:
            members = [m for m in archive.namelist() if m.endswith(f"vinyals/{name}")]
        if members:
            return f"{archive_path}:{members[0]}", read_text(archive_path, members[0]).split()
    raise DataError(f"omniglot: {root} has no split list {name}, expected one because split='vinyals' names every class; {WHERE_LISTS}")
