"""The reader of class folders on small trees."""

import shutil

import numpy as np
import pytest
from test_data_files import opened, save

from hypergrad.errors import ArgumentError, DataError


def grey(value, size=(20, 30)):
    return np.full(size, value, np.uint8)


def test_folder_divided_by_itself(tmp_path):
    root = tmp_path / "root"
    for split, start in (("train", 0), ("valid", 100), ("test", 200)):
        for c in range(2):
            for j in range(3):
                save(root / split / f"class{c}" / f"{j}.png", grey(start + 10 * c + j))
    (root / "train" / ".hidden").mkdir()
    (root / "train" / "class0" / "notes.txt").write_text("no image")
    data = opened("folder", root, tmp_path / "cache", image_size=16)
    assert data.image_shape == (16, 16, 1)
    for split, start in (("train", 0), ("validation", 100), ("test", 200)):
        assert data.split(split).class_names == ("class0", "class1")
        values = data.split(split).images[:, 0, 0, 0].tolist()
        assert values == [start + 10 * c + j for c in range(2) for j in range(3)]
        assert (data.split(split).images == data.split(split).images[:, :1, :1]).all()


def test_folder_divided_by_seed(tmp_path):
    root = tmp_path / "root"
    for c in range(10):
        save(root / f"c{c}" / "0.png", grey(c))
    data = opened("folder", root, tmp_path / "cache", fractions=(0.5, 0.2, 0.3))
    names = [data.split(s).class_names for s in ("train", "validation", "test")]
    assert [len(n) for n in names] == [5, 2, 3] and len(set(sum(names, ()))) == 10
    assert data.image_shape == (84, 84, 1)
    # pinned: the division is the same on every machine
    assert names[1] == ("c0", "c2") and names[2] == ("c1", "c8", "c9")


def test_folder_colours_and_inversion(tmp_path):
    root = tmp_path / "root"
    for c in range(3):
        save(root / f"c{c}" / "0.png", grey(10 * c))
    assert (opened("folder", root, tmp_path / "cache", invert=True).train.images >= 235).all()
    assert opened("folder", root, tmp_path / "cache", channels=3).image_shape == (84, 84, 3)
    save(root / "c1" / "0.png", np.zeros((5, 5, 3), np.uint8))
    assert opened("folder", root, tmp_path / "cache").image_shape == (84, 84, 3)


def test_folder_errors(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(DataError, match="no class folders.*put one folder a class"):
        opened("folder", root, tmp_path / "cache")
    save(root / "a" / "0.png", grey(0))
    save(root / "b" / "0.png", grey(0))
    with pytest.raises(DataError, match="2 class folders, expected at least 3"):
        opened("folder", root, tmp_path / "cache")
    (root / "empty").mkdir()
    with pytest.raises(DataError, match="class 'empty' in .* has 0 images.*remove the folder"):
        opened("folder", root, tmp_path / "cache")
    (root / "empty" / "x.jpg").write_bytes(b"not an image")
    with pytest.raises(DataError, match="x.jpg has damaged or unknown contents"):
        opened("folder", root, tmp_path / "cache")
    save(root / "train" / "a" / "0.png", grey(0))
    with pytest.raises(DataError, match="has train but not validation and test"):
        opened("folder", root, tmp_path / "cache")
    for options, words in (
        ({"channels": 2}, "channels is 2"),
        ({"image_size": 2}, "image_size is 2"),
        ({"fractions": (0.5, 0.5, 0.5)}, "fractions is"),
        ({"seed": -1}, "seed is -1"),
    ):
        shutil.rmtree(root / "train", ignore_errors=True)
        with pytest.raises(ArgumentError, match=words):
            opened("folder", root, tmp_path / "cache", **options)
