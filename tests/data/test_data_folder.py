"""The reader of class folders on small trees: splits, sizes, and what it says of too few classes."""

import numpy as np
import pytest
from trees import grey, opened, save

from hypergrad.data import SilentReporter, open_dataset
from hypergrad.errors import ArgumentError, DataError

SPLITS = ("train", "validation", "test")


def class_folders(root, n, images=1, **options):
    for c in range(n):
        for j in range(images):
            save(root / f"c{c:02d}" / f"{j}.png", grey(c, **options))
    return root


def test_divided_by_itself(tmp_path):
    root = tmp_path / "root"
    for split, start in (("train", 0), ("valid", 100), ("test", 200)):
        for c in range(2):
            for j in range(3):
                save(root / split / f"class{c}" / f"{j}.png", grey(start + 10 * c + j))
    (root / "train" / ".hidden").mkdir()
    (root / "train" / "class0" / "notes.txt").write_text("no image")
    data = opened("folder", root, tmp_path / "cache", image_size=16, n_way=2)
    assert data.image_shape == (16, 16, 1) and data.notes == ()
    for split, start in (("train", 0), ("validation", 100), ("test", 200)):
        assert data.split(split).class_names == ("class0", "class1")
        assert data.split(split).images[:, 0, 0, 0].tolist() == [start + 10 * c + j for c in range(2) for j in range(3)]
        assert (data.split(split).images == data.split(split).images[:, :1, :1]).all()
    with pytest.raises(DataError, match=r"split 'train' has 2 classes, expected at least 3 .*lower n_way \(--n-way\) to 2"):
        opened("folder", root, tmp_path / "other", n_way=3)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("n", "n_way", "fractions", "sizes"),
    [
        (10, 1, (0.5, 0.2, 0.3), [5, 2, 3]),
        (10, 3, (0.5, 0.2, 0.3), [4, 3, 3]),
        (10, 2, (0.98, 0.01, 0.01), [6, 2, 2]),
        (10, 2, (0.01, 0.98, 0.01), [2, 6, 2]),
        (10, 2, (0.01, 0.01, 0.98), [2, 2, 6]),
        (15, None, None, [5, 5, 5]),
        (25, None, None, [15, 5, 5]),
        (50, None, None, [32, 8, 10]),
    ],
)
def test_divided_by_seed_so_that_n_way_fits(tmp_path, n, n_way, fractions, sizes):
    root = class_folders(tmp_path / "root", n)
    options = {"fractions": fractions} | ({} if n_way is None else {"n_way": n_way})
    datas = [open_dataset("folder", root, cache=tmp_path / "cache", reporter=SilentReporter(), **options, seed=s) for s in (None, 0, 1)]
    names = [[data.split(s).class_names for s in SPLITS] for data in datas]
    assert [len(part) for part in names[0]] == sizes
    assert sorted(sum(names[0], ())) == [f"c{c:02d}" for c in range(n)]
    assert names[0] == names[1] != names[2]
    assert datas[0].options["n_way"] == (n_way or 5)
    for c, name in enumerate(datas[0].test.class_names):
        assert (datas[0].test.class_images(c) == int(name[1:])).all()
    if (n, n_way, fractions) == (10, 1, (0.5, 0.2, 0.3)):  # pinned: the division is the same on every machine
        assert names[0][1:] == [("c00", "c02"), ("c01", "c08", "c09")]


@pytest.mark.parametrize(
    ("n", "n_way", "remedy"),
    [(14, 5, r"add 1 classes, or lower n_way \(--n-way\) to 4: put"), (5, 2, "add 1 classes: put one folder a class"), (0, 5, "add 15")],
)
def test_too_few_classes_are_counted_before_an_image_is_read(tmp_path, n, n_way, remedy):
    root = tmp_path / "root"
    root.mkdir()
    for c in range(n):
        (root / f"c{c}").mkdir()
        (root / f"c{c}" / "0.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=f"has {n} class folders, expected at least {3 * n_way} because .* n_way = {n_way} .*; {remedy}"):
        opened("folder", root, tmp_path / "cache", n_way=n_way)


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ([(20, 30)] * 6, (20, 30, 1)),
        ([(20, 30)] * 4 + [(28, 28)] * 2, (20, 30, 1)),
        ([(20, 30)] * 3 + [(28, 28)] * 3, (84, 84, 1)),
        ([(300, 20)] * 6, (84, 84, 1)),
        ([(3, 20)] * 6, (84, 84, 1)),
    ],
)
def test_the_size_is_that_of_the_images_and_is_told(tmp_path, sizes, shape):
    for c, size in enumerate(sizes):
        save(tmp_path / "root" / f"c{c}" / "0.png", grey(c, size))
    reporter = SilentReporter()
    data = open_dataset("folder", tmp_path / "root", cache=tmp_path / "cache", reporter=reporter, n_way=2)
    assert data.image_shape == shape and f"{shape[0]}x{shape[1]}x1" in data.describe()
    assert len(reporter.messages) == 1 and f"all are read at {shape[0]}x{shape[1]} (see image_size)" in reporter.messages[0]
    again = opened("folder", tmp_path / "root", tmp_path / "cache", n_way=2, image_size=data.options["image_size"])
    assert (again.train.images == data.train.images).all() and again.notes == ()


def test_colours_and_inversion(tmp_path):
    root = class_folders(tmp_path / "root", 3)
    assert (opened("folder", root, tmp_path / "cache", invert=True).train.images >= 235).all()
    assert opened("folder", root, tmp_path / "cache", channels=3).image_shape == (20, 30, 3)
    save(root / "c01" / "0.png", np.zeros((5, 5, 3), np.uint8))
    assert opened("folder", root, tmp_path / "cache").image_shape == (20, 30, 3)


@pytest.mark.parametrize(
    ("path", "contents", "words"),
    [
        ("train/a/0.png", b"", "no folder for validation and test, expected all of train, val and test or none; put one"),
        ("empty/notes.txt", b"", "class 'empty' of split '.*' has 0 images.*remove the class"),
        ("c00/0.png", b"not an image", "image: .*c00/0.png has unreadable contents .*restore or remove it"),
        ("c00/1.jpg", b"not an image", "image: .*c00/1.jpg has unreadable contents"),
    ],
)
def test_faulty_folders(tmp_path, path, contents, words):
    root = class_folders(tmp_path / "root", 5)
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(contents)
    with pytest.raises(DataError, match=words):
        opened("folder", root, tmp_path / "cache")
    assert not (tmp_path / "cache").exists() or list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channels": 2}, "channels is '2', expected None, 1, 3"),
        ({"image_size": 2}, "image_size is 2, expected one side"),
        ({"image_size": (28, 2000)}, "image_size is .28, 2000., expected one side"),
        ({"fractions": (0.5, 0.5, 0.5)}, "fractions is"),
        ({"fractions": (1.0, 0.0, 0.0)}, "fractions is"),
        ({"seed": -1}, "seed is -1"),
        ({"n_way": 0}, "n_way is 0, expected at least 1"),
    ],
)
def test_options_out_of_range(tmp_path, options, words):
    with pytest.raises(ArgumentError, match=words):
        opened("folder", class_folders(tmp_path / "root", 3), tmp_path / "cache", **options)
