"""MiniImagenet (Vinyals et al. 2016; split of Ravi & Larochelle 2017): 64 / 16 / 20 classes of 600 images."""

import csv
from collections.abc import Mapping, Sequence
from functools import partial
from operator import index, itemgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError
from . import folder
from .cache import Block, Plan, Source
from .decode import Look, plan_files, sides, to_array
from .files import Classes, File, check_once, digest, find_list, list_classes, reading
from .unpickle import read_pickle

STEMS = {"train": "train", "validation": "val", "test": "test"}
WHERE = (
    "put one of these into root: images/ (or the zip files that hold it) with train.csv, val.csv and test.csv of Ravi & Larochelle "
    "(github.com/twitter-research/meta-learning-lstm, data/miniImagenet; or split_lists.zip); train/, val/ and test/ with one folder a "
    "class; mini-imagenet-cache-train.pkl, -val.pkl and -test.pkl; or one folder a class"
)
_ZIP_NAMES = ("miniimagenet", "mini-imagenet", "mini_imagenet", "images")


def source(root: Path, image_size: int | None = None, seed: int = 0, n_way: int = 5) -> Source:
    """MiniImagenet as a source for the cache; 84x84 colour.

    Args:
        root: a folder in one of four forms, of which the first that is there is read (a note says which). "csv": `images/` (or zip files
            `*.zip` that hold `images/<filename>`) and `train.csv`, `val.csv`, `test.csv` with the columns filename and label (in root, or
            in split_lists.zip); "splits": `train/`, `val/`, `test/` with class folders; "pickle":
            `mini-imagenet-cache-{train,val,test}.pkl`; "classes": class folders.
        image_size: height and width, default 84.
        seed: of the division in the form "classes", 64 : 16 : 20, at least n_way to each split.
        n_way: classes that each split must have.
    Memory: 1.2 GiB in the cache; the form "pickle" also takes 1.3 GiB while it is read.
    Source: Vinyals et al. 2016, arXiv:1606.04080; Ravi & Larochelle 2017.
    """
    look = Look(sides(84 if image_size is None else image_size), 3)
    names = {path.name for path in root.iterdir()}
    if "images" in names or {"train.csv", "val.csv", "test.csv"} <= names or ("split_lists.zip" in names and _image_zips(root)):
        splits, form = _read_csv(root), "csv"
    elif not {"train", "test"} <= names and any(f"mini-imagenet-cache-{stem}.pkl" in names for stem in STEMS.values()):
        splits, form = _find_pickles(root), "pickle"
    elif any(path.is_dir() and not path.name.startswith(".") for path in root.iterdir()):
        own = folder.source(root, look.size, look.channels, seed=seed, n_way=n_way)
        return own._replace(name="miniimagenet", notes=(f"read in the form '{own.options['form']}' from {root}",))
    else:
        raise DataError(f"miniimagenet: {root} has none of the four known forms, expected one because nothing is downloaded; {WHERE}")
    plan = partial(plan_files if form == "csv" else _plan_pickles, splits, look)
    options, key = {"image_size": look.size[0], "form": form}, {"look": look, "files": digest(splits)}
    return Source("miniimagenet", options, key, look.shape, plan, (f"read in the form '{form}' from {root}",))


def _image_zips(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.suffix.lower() == ".zip" and p.name.lower().startswith(_ZIP_NAMES))


def _read_csv(root: Path) -> dict[str, Classes]:
    places = [root / "images"] if (root / "images").is_dir() else _image_zips(root)
    files = [file for place in places for file in list_classes(place, 0, within="images").get("", [])]
    images = {(file.member or file.path).rpartition("/")[2]: file for file in files}
    if not images:
        raise DataError(f"miniimagenet: {root} has neither images/ nor zip files that hold it, expected what the csv files name; {WHERE}")
    splits: dict[str, Classes] = {}
    named, labels = list[tuple[str, str]](), list[tuple[str, str]]()  # files and classes, with the list of each
    for split, stem in STEMS.items():
        file, text = find_list(root, f"{stem}.csv", (".",), "mini", f"it beside images/, whose classes it gives; {WHERE}")
        splits[split] = {}
        with reading("split list", file):
            rows = filter(None, csv.reader(text.splitlines()))
            columns = next(rows, [])
            if not {"filename", "label"} <= set(columns):
                raise DataError(f"miniimagenet: {file} has the columns {columns}, expected filename and label; {WHERE}")
            for filename, label in map(itemgetter(columns.index("filename"), columns.index("label")), rows):
                if filename not in images:
                    raise DataError(f"miniimagenet: {file} names {filename}, expected it in images/ or a zip file of {root}; {WHERE}")
                splits[split].setdefault(label, []).append(images[filename])
                named.append((filename, f"{stem}.csv"))
        labels += [(label, f"{stem}.csv") for label in splits[split]]
    check_once("split list: an image:", named, f"restore the csv files; {WHERE}")
    check_once("split list: a class:", labels, f"restore the csv files; {WHERE}")
    return splits


def _find_pickles(root: Path) -> dict[str, Classes]:
    paths = {split: root / f"mini-imagenet-cache-{stem}.pkl" for split, stem in STEMS.items()}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise DataError(f"miniimagenet: {root} has no {' and no '.join(missing)}, expected one cache file a split; {WHERE}")
    return {split: {"": [File(str(p), "", p.stat().st_size, p.stat().st_mtime_ns)]} for split, p in paths.items()}


def _plan_pickles(splits: Mapping[str, Classes], look: Look) -> Plan:
    plan, labels = {}, list[tuple[str, str]]()
    for split, classes in splits.items():
        file, right = classes[""][0], False
        contents = read_pickle(Path(file.path))
        try:
            images, rows = contents["image_data"], {str(name): [*map(index, row)] for name, row in contents["class_dict"].items()}
            right = images.dtype == np.uint8 and images.shape[3:] == (3,) and set().union(*rows.values()) <= set(range(len(images)))
        except (LookupError, AttributeError, TypeError):
            pass  # of another form
        if not right:
            raise DataError(
                f"miniimagenet: {file} has another form, expected a dict of image_data, uint8 (N, H, W, 3), and class_dict, a dict from "
                "class names to lists of numbers 0 to N - 1; fetch it again or use folders of images"
            )
        check_once(f"miniimagenet: {file}, class_dict,", ((row, name) for name, own in rows.items() for row in own), "fetch it again")
        labels += [(name, split) for name in rows]
        plan[split] = [Block((name,), len(own), partial(_take, images, own, look)) for name, own in sorted(rows.items())]
    check_once("miniimagenet: the pickles", labels, "fetch them again")
    return plan


def _take(images: NDArray[np.uint8], rows: Sequence[int], look: Look) -> NDArray[np.uint8]:
    return np.stack([to_array(Image.fromarray(images[i]), look) for i in rows])
