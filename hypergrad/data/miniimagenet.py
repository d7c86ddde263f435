"""MiniImagenet (Vinyals et al. 2016; split of Ravi & Larochelle 2017): 64 / 16 / 20 classes of 600 images."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ArgumentError, DataError
from .cache import SplitPlan
from .decode import ImageFile, Look, fingerprint, open_zip, read_text, scan, square, to_array
from .folder import Classes, find_classes, plan_files, stamps
from .unpickle import read_pickle

FORMS = ("csv", "splits", "pickle", "classes")
STEMS = {"train": "train", "validation": "val", "test": "test"}
WHERE = (
    "put one of these into root: images/ (or the zip files that hold it) with train.csv, val.csv and test.csv of "
    "Ravi & Larochelle (github.com/twitter-research/meta-learning-lstm, data/miniImagenet; or split_lists.zip); "
    "train/, val/ and test/ with one folder a class; mini-imagenet-cache-train.pkl, -val.pkl and -test.pkl; or one "
    "folder a class"
)


class MiniImagenet:
    """MiniImagenet as a source for the cache; 84x84 colour.

    Args:
        root: a folder in one of four forms. "csv": `images/` (or zip files `*.zip` that hold
            `images/<filename>`) and `train.csv`, `val.csv`, `test.csv` with the columns filename and label
            (in root, or in split_lists.zip); "splits": `train/`, `val/`, `test/` with class folders;
            "pickle": `mini-imagenet-cache-{train,val,test}.pkl`; "classes": class folders, divided by `seed`.
        image_size: height and width, default 84.
        form: one of the four, or "auto": the first that is there, in the order above (a note says which).
        seed: of the division in the form "classes", 64 : 16 : 20.
    Raises: ArgumentError on an unknown option; DataError saying what to get and where to put it.
    Cost: lists the files; about 20 s to decode 60,000 images, once, and 1.2 GiB in the cache; the form
        "pickle" also 1.3 GiB of memory while it is read.
    Source: Vinyals et al. 2016, arXiv:1606.04080; Ravi & Larochelle 2017.
    """

    name = "miniimagenet"

    def __init__(self, root: Path, image_size: int | None = None, form: str = "auto", seed: int = 0) -> None:
        if form not in ("auto", *FORMS):
            raise ArgumentError(
                f"miniimagenet: form is '{form}', expected auto, {', '.join(FORMS)} because those are known; choose one of them"
            )
        self.root, self.seed = root, seed
        self.size = square(image_size, 84)
        self.form = _find_form(root) if form == "auto" else form
        self._pickles: dict[str, Path] = {}
        self._splits: dict[str, Classes] = {}
        if self.form == "pickle":
            self._pickles = {split: root / f"mini-imagenet-cache-{stem}.pkl" for split, stem in STEMS.items()}
            missing = [path.name for path in self._pickles.values() if not path.is_file()]
            if missing:
                raise DataError(
                    f"miniimagenet: {root} has no {' and no '.join(missing)}, expected the three cache files because "
                    f"each holds one split; {WHERE}"
                )
        elif self.form == "csv":
            self._splits = _read_csv(root)
        else:
            self._splits, found = find_classes(root, (0.64, 0.16, 0.20), seed)
            if found != self.form:
                raise DataError(
                    f"miniimagenet: {root} has the form '{found}', expected '{self.form}' because that was asked for; leave form at auto"
                )

    @property
    def options(self) -> Mapping[str, Any]:
        division = {"seed": self.seed} if self.form == "classes" else {}
        return {"image_size": self.size[0], "form": self.form, **division}

    @property
    def key(self) -> Mapping[str, Any]:
        files = {"files": fingerprint(self._pickles.values())} if self._pickles else stamps(self._splits)
        return {**self.options, "format": 1, **files}

    @property
    def notes(self) -> tuple[str, ...]:
        return (f"read in the form '{self.form}' from {self.root}",)

    def plan(self) -> Mapping[str, SplitPlan]:
        look = Look(self.size, 3)
        if not self._pickles:
            return plan_files(self._splits, look)
        return {split: _plan_pickle(path, look) for split, path in self._pickles.items()}


def _find_form(root: Path) -> str:
    names = {entry.name for entry in scan(root)}
    pickles = {f"mini-imagenet-cache-{stem}.pkl" for stem in STEMS.values()}
    lists = {f"{stem}.csv" for stem in STEMS.values()}
    if "images" in names or lists <= names or ("split_lists.zip" in names and _image_zips(root)):
        return "csv"
    if {"train", "test"} <= names:
        return "splits"
    if pickles & names:
        return "pickle"
    if any(entry.is_dir() for entry in scan(root)):
        return "classes"
    raise DataError(f"miniimagenet: {root} has none of the four known forms, expected one because nothing is downloaded; {WHERE}")


def _read_csv(root: Path) -> dict[str, Classes]:
    images = _images(root)
    splits: dict[str, Classes] = {}
    for split, stem in STEMS.items():
        place, text = _read_list(root, f"{stem}.csv")
        rows = csv.DictReader(io.StringIO(text))
        if rows.fieldnames is None or not {"filename", "label"} <= set(rows.fieldnames):
            raise DataError(
                f"miniimagenet: {place} has the columns {rows.fieldnames}, expected filename and label because they "
                f"name the images of each class; {WHERE}"
            )
        classes: Classes = {}
        for row in rows:
            if row["filename"] not in images:
                raise DataError(
                    f"miniimagenet: {place} names {row['filename']}, expected it in {root / 'images'} or in a zip "
                    f"file of {root} because every listed image is used; {WHERE}"
                )
            classes.setdefault(row["label"], []).append(images[row["filename"]])
        splits[split] = classes
    return splits


def _images(root: Path) -> dict[str, ImageFile]:
    """File name -> image, from images/ or from zip files that hold it."""
    folder = root / "images"
    if folder.is_dir():
        return {e.name: ImageFile(Path(e.path), "", e.stat().st_size) for e in scan(folder) if e.is_file()}
    found: dict[str, ImageFile] = {}
    for path in _image_zips(root):
        with open_zip(path) as archive:
            for info in archive.infolist():
                folder_name, _, name = info.filename.rpartition("/")
                if folder_name == "images" and name:
                    found[name] = ImageFile(path, info.filename, info.file_size)
    if not found:
        raise DataError(
            f"miniimagenet: {root} has neither images/ nor zip files that hold it, expected one of them because the "
            f"csv files name images; {WHERE}"
        )
    return found


def _image_zips(root: Path) -> list[Path]:
    return [
        Path(e.path)
        for e in scan(root)
        if e.name.lower().startswith(("miniimagenet", "mini-imagenet", "mini_imagenet", "images")) and e.name.lower().endswith(".zip")
    ]


def _read_list(root: Path, name: str) -> tuple[str, str]:
    """Where a csv file was found, and its text."""
    path = root / name
    if path.is_file():
        return str(path), read_text(path)
    lists = root / "split_lists.zip"
    if lists.is_file():
        with open_zip(lists) as archive:
            members = [m for m in archive.namelist() if m.endswith(f"/{name}") and "mini" in m.lower()]
        if members:
            return f"{lists}:{members[0]}", read_text(lists, members[0])
    raise DataError(
        f"miniimagenet: {root} has no {name}, expected it beside images/ because it says which image is of which class; {WHERE}"
    )


def _plan_pickle(path: Path, look: Look) -> SplitPlan:
    images, classes = _read_cache(path)
    return SplitPlan(
        tuple(classes),
        tuple(len(rows) for rows in classes.values()),
        (*look.size, look.channels),
        partial(_pickle_blocks, images, list(classes.values()), look),
    )


def _pickle_blocks(images: NDArray[np.uint8], classes: list[NDArray[np.int64]], look: Look) -> Iterator[NDArray[np.uint8]]:
    for rows in classes:
        block = images[rows]
        if block.shape[1:3] == look.size:
            yield block
        else:
            yield np.stack([to_array(Image.fromarray(image), look) for image in block])


def _read_cache(path: Path) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.int64]]]:
    contents = read_pickle(path)
    why = "because that is the form of mini-imagenet-cache files; fetch it again or use folders of images"
    if not isinstance(contents, dict) or not {"image_data", "class_dict"} <= contents.keys():
        raise DataError(f"miniimagenet: {path} has no image_data and class_dict, expected a dict with both {why}")
    images, classes = contents["image_data"], contents["class_dict"]
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        form = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise DataError(f"miniimagenet: image_data of {path} is {form}, expected uint8 (N, H, W, 3) {why}")
    if not isinstance(classes, dict):
        raise DataError(
            f"miniimagenet: class_dict of {path} is a {type(classes).__name__}, expected a dict from class names to image numbers {why}"
        )
    rows = {}
    for name, numbers in sorted(classes.items(), key=lambda item: str(item[0])):
        try:
            row = np.asarray(numbers)
        except ValueError:
            row = np.zeros((1, 1))  # lists of unequal length: refused below
        if row.size == 0:
            raise DataError(
                f"miniimagenet: class '{name}' of {path} has 0 images, expected at least 1 because an episode draws "
                "images of every class; fetch the file again"
            )
        if row.ndim != 1 or row.dtype.kind not in "iu" or row.min() < 0 or row.max() >= len(images):
            raise DataError(
                f"miniimagenet: class '{name}' of {path} has image numbers outside 0 to {len(images) - 1} or of "
                f"another form, expected a list of rows of image_data {why}"
            )
        rows[str(name)] = row.astype(np.int64)
    return images, rows
