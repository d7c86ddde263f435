"""Omniglot (Lake et al. 2015): 1623 handwritten characters of 50 alphabets, 20 drawings each."""

import hashlib
import re
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

from ..errors import DataError
from .cache import Plan, Source
from .decode import Look, plan_files, sides
from .files import Classes, check_once, digest, find_list, list_classes
from .images import SPLITS, check_choice

TREES = ("images_background", "images_evaluation")
WHERE = (
    "get images_background.zip and images_evaluation.zip of github.com/brendenlake/omniglot (folder python), and put the folders "
    "images_background and images_evaluation, or omniglot_images_background.zip and omniglot_images_evaluation.zip unopened, into the root"
)
WHERE_LISTS = (
    "get train.txt, val.txt, trainval.txt and test.txt of the Vinyals split (github.com/jakesnell/prototypical-networks, "
    "data/omniglot/splits/vinyals) and put them into the root, its folder splits/vinyals, or split_lists.zip; or choose "
    "split='alphabets', which needs no list"
)
_LINE = re.compile(r"([^/]+/character\d+)(?:/rot(000|090|180|270))?")
_VALIDATION_ALPHABETS = 5
Turns = dict[str, dict[str, list[int]]]  # split -> character -> quarter turns of it that are classes


def source(root: Path, image_size: int | None = None, split: str = "vinyals", train_on: str = "train", rotations: bool = True) -> Source:
    """Omniglot as a source for the cache; 28x28 grey, inverted so that ink is 255.

    Args:
        root: folder with `images_background/` and `images_evaluation/`, or with the two zip files.
        image_size: height and width, default 28.
        split: "vinyals": the lists of Vinyals et al. (1028 / 172 / 423 characters); "alphabets": test is all of images_evaluation,
            validation the last 5 alphabets of images_background, train its other 25.
        train_on: "train", or "trainval": train holds the validation characters too (1200), as published final figures have it;
            validation then measures characters that were trained on.
        rotations: every character becomes four classes by rotations of 90 degrees.
    Source: Vinyals et al. 2016, arXiv:1606.04080.
    """
    check_choice("omniglot: split", split, ("vinyals", "alphabets"))
    check_choice("omniglot: train_on", train_on, ("train", "trainval"))
    look = Look(sides(28 if image_size is None else image_size), 1, invert=True)
    trees = {tree: _characters(root, tree) for tree in TREES}
    check_once("omniglot: a character of", ((name, tree) for tree, own in trees.items() for name in own), f"remove one; {WHERE}")
    characters = {name: files for tree in trees.values() for name, files in tree.items()}
    turns = _vinyals(root, characters, train_on) if split == "vinyals" else _alphabets(trees, train_on)
    if not rotations:
        turns = {split: {name: [0] for name, own in chosen.items() if 0 in own} for split, chosen in turns.items()}
    options = {"image_size": look.size[0], "split": split, "train_on": train_on, "rotations": rotations}
    key = {**options, "files": digest(trees), "classes": hashlib.sha256(repr(turns).encode()).hexdigest()}
    shared = "train holds the validation characters too, so validation accuracy is not that of new characters"

    def plan() -> Plan:
        plain = plan_files({split: {name: characters[name] for name in own} for split, own in turns.items()}, look)
        return {s: [b.turned(turns[s][b.names[0]]) for b in blocks] for s, blocks in plain.items()} if rotations else plain

    return Source("omniglot", options, key, look.shape, plan, (shared,) if train_on == "trainval" else ())


def _characters(root: Path, tree: str) -> Classes:
    """Alphabet/characterNN -> drawings, from the folder or the zip file."""
    places = [place for place in (root / tree, root / f"omniglot_{tree}.zip", root / f"{tree}.zip") if place.exists()]
    if not places:
        raise DataError(
            f"omniglot: {root} has neither {tree}/ nor omniglot_{tree}.zip, expected one because nothing is downloaded; {WHERE}"
        )
    found = list_classes(places[0], 2, within=tree)
    if not found:
        raise DataError(f"omniglot: {places[0]} has no Alphabet/characterNN folders, expected the official tree; {WHERE}")
    return found


def _vinyals(root: Path, characters: Classes, train_on: str) -> Turns:
    turns: Turns = {}
    for split, stem in (("train", train_on), ("validation", "val"), ("test", "test")):
        folders = (".", "splits/vinyals", "omniglot_splits/vinyals", "vinyals")
        file, text = find_list(root, f"{stem}.txt", folders, "vinyals/", f"one for split='vinyals'; {WHERE_LISTS}")
        turns[split] = {}
        for line in text.split():
            match = _LINE.fullmatch(line)
            if match is None:
                raise DataError(f"omniglot: {file} has the line '{line}', expected Alphabet/characterNN/rotNNN; {WHERE_LISTS}")
            if match[1] not in characters:
                raise DataError(f"omniglot: {file} names '{match[1]}', expected a character of the images under {root}; {WHERE}")
            turns[split].setdefault(match[1], []).extend(range(4) if match[2] is None else [int(match[2]) // 90])
        check_once(f"omniglot: {file}", ((f"{n}/rot{90 * turn:03d}", "") for n, own in turns[split].items() for turn in own), WHERE_LISTS)
    for pair in combinations(turns, 2):
        if train_on == "train" or pair != ("train", "validation"):
            check_once("omniglot: a character of the split lists:", ((name, split) for split in pair for name in turns[split]), WHERE_LISTS)
    return turns


def _alphabets(trees: Mapping[str, Classes], train_on: str) -> Turns:
    background, evaluation = (trees[tree] for tree in TREES)
    alphabets = sorted({name.split("/")[0] for name in background})
    held = [name for name in background if name.split("/")[0] in alphabets[-_VALIDATION_ALPHABETS:]]
    train = [name for name in background if train_on == "trainval" or name not in held]
    return {split: {name: [0, 1, 2, 3] for name in names} for split, names in zip(SPLITS, (train, held, evaluation), strict=True)}
