"""Labelled images: MNIST's files whole and damaged, scikit-learn's digits, letters; parts without a common image."""

import gzip
import importlib.util

import numpy as np
import pytest

from hypergrad.data import labelled, open_labelled, read_idx, read_mnist
from hypergrad.errors import ArgumentError, DataError

RNG = np.random.default_rng(0)


def content(values, magic=None):
    values = np.asarray(values, np.uint8)
    head = np.array([0x0800 + values.ndim if magic is None else magic, *values.shape], ">i4")
    return head.tobytes() + values.tobytes()


def write(path, data):
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def mnist_folder(root, prefix="", ending=".gz", train=30, test=12):
    """Files like MNIST's: images of 4x3 random pixels. Returns the arrays by part."""
    parts = {}
    for part, begin, n in (("train", "train", train), ("test", "t10k", test)):
        images, labels = RNG.integers(0, 256, (n, 4, 3), np.uint8), RNG.integers(0, 10, n)
        write(root / f"{prefix}{begin}-images-idx3-ubyte{ending}", content(images))
        write(root / f"{prefix}{begin}-labels-idx1-ubyte{ending}", content(labels))
        parts[part] = images, labels
    return parts


@pytest.mark.parametrize("prefix", ["", "mnist_"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_mnist_files_are_read_gzipped_or_not_with_a_prefix_or_not(tmp_path, prefix, ending):
    parts = mnist_folder(tmp_path, prefix, ending)
    for part, (images, labels) in parts.items():
        found, y = read_mnist(tmp_path, part)
        assert np.array_equal(found, images) and np.array_equal(y, labels) and y.dtype == np.int64


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "magic number 0, expected 2051"),
        (content(np.zeros((2, 4, 3)), magic=2049), "magic number 2049, expected 2051"),
        (content(np.zeros((2, 4, 3)))[:-1], "has 39 bytes, expected 40 because its head says 2x4x3"),
        (content(np.zeros((2, 4, 3))) + b"x", "has 41 bytes, expected 40"),
        (content(np.zeros((2, 4, 3)))[:10], "has 10 bytes, expected 16"),
        (np.array([2051, 2**31 - 1, 2**31 - 1, 2**31 - 1], ">i4").tobytes(), "has 16 bytes, expected"),
    ],
)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_damaged_idx_file_is_refused(tmp_path, data, message, ending):
    path = tmp_path / f"images{ending}"
    write(path, data)
    with pytest.raises(DataError, match=message) as error:
        read_idx(path, 3)
    assert str(path) in str(error.value)


def test_a_truncated_or_broken_gzip_file_is_refused(tmp_path):
    whole = gzip.compress(content(RNG.integers(0, 256, (20, 4, 3))))
    for i, bad in enumerate((whole[:-5], whole[: len(whole) // 2], b"no gzip", whole[:20] + b"\xff" * 40 + whole[60:])):
        path = tmp_path / f"{i}.gz"
        path.write_bytes(bad)
        with pytest.raises(DataError, match=r"idx file: .*gz has unreadable contents .*; restore or remove it"):
            read_idx(path, 3)


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("hypergrad.data.idx.MAX_BYTES", 100)
    write(tmp_path / "bomb.gz", b"\0" * 10_000)
    with pytest.raises(DataError, match="more than 100 bytes"):
        read_idx(tmp_path / "bomb.gz", 1)


def test_missing_double_and_unfitting_files_are_told(tmp_path):
    with pytest.raises(DataError, match="is no folder.*put MNIST's four files there"):
        read_mnist(tmp_path / "none", "train")
    with pytest.raises(DataError, match="has no train-images-idx3-ubyte.gz.*nothing is downloaded"):
        read_mnist(tmp_path, "train")
    for prefix in ("a_", "b_"):
        write(tmp_path / f"{prefix}train-images-idx3-ubyte", content(np.zeros((2, 4, 3))))
    with pytest.raises(DataError, match="has a_train-images-idx3-ubyte, b_train-images-idx3-ubyte, expected one"):
        read_mnist(tmp_path, "train")
    (tmp_path / "b_train-images-idx3-ubyte").unlink()
    write(tmp_path / "train-labels-idx1-ubyte", content(np.zeros(3)))
    with pytest.raises(DataError, match="2 images and .* 3 labels, expected one label an image"):
        read_mnist(tmp_path, "train")


def test_mnist_is_the_default_with_a_root_and_keeps_its_test_files_apart(tmp_path):
    parts = mnist_folder(tmp_path)
    data = open_labelled(root=tmp_path, n_train=20, n_validation=10, n_test=12, seed=3)
    assert data.name == "mnist" and data.image_shape == (4, 3) and data.train.x.dtype == np.float32
    images, labels = parts["train"]
    both = data.train + data.validation
    rows = [int(np.flatnonzero((images.reshape(30, 12) / np.float32(255) == x).all(axis=1))[0]) for x in both.x]
    assert sorted(rows) == list(range(30)) and np.array_equal(labels[rows], both.y)
    assert sorted(map(tuple, data.test.x)) == sorted(map(tuple, parts["test"][0].reshape(12, 12) / np.float32(255)))
    again = open_labelled("mnist", tmp_path, n_train=20, n_validation=10, n_test=12, seed=3, dtype=np.float64)
    assert np.array_equal(again.train.x.astype(np.float32), data.train.x) and again.train.x.dtype == np.float64
    other = open_labelled("mnist", tmp_path, n_train=20, n_validation=10, n_test=12, seed=4)
    assert not np.array_equal(other.train.x, data.train.x)
    with pytest.raises(DataError, match="mnist has 30 images, expected at least 31 .* lower --n-train"):
        open_labelled("mnist", tmp_path, n_train=21, n_validation=10, n_test=12)
    with pytest.raises(DataError, match="mnist: test has 12 images, expected at least 10000"):
        open_labelled("mnist", tmp_path, n_train=20, n_validation=10)


def test_glyphs_are_ten_letters_in_equal_numbers():
    data = open_labelled(n_train=50, n_validation=30, n_test=43, seed=1)
    assert data.name == "glyphs" and data.image_shape == (28, 28) and data.n_classes == 10 and data.class_names[0] == "A"
    assert (np.bincount(data.train.y) == 5).all() and (np.bincount(data.validation.y) == 3).all() and len(data.test) == 43
    everything = np.concatenate([data.train.x, data.validation.x, data.test.x])
    assert len(np.unique(everything, axis=0)) == 123 and 0 <= everything.min() < everything.max() <= 1
    means = np.stack([data.train.x[data.train.y == c].mean(axis=0) for c in range(10)])
    nearest = ((data.test.x[:, None] - means) ** 2).sum(axis=-1).argmin(axis=-1)
    assert (nearest == data.test.y).mean() > 0.6  # the labels fit the images
    assert np.array_equal(open_labelled(n_train=50, n_validation=30, n_test=43, seed=1).test.x, data.test.x)
    assert "glyphs 28x28, 10 classes: 50 training, 30 validation, 43 test images" == data.describe()


@pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="needs scikit-learn")
@pytest.mark.filterwarnings("ignore")  # those of other packages
def test_the_digits_of_scikit_learn():
    data = open_labelled("digits")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [600, 600, 597]
    assert data.image_shape == (8, 8) and data.train.x.min() == 0 and data.train.x.max() == 1
    with pytest.raises(DataError, match="digits has 1797 images, expected at least 1798"):
        open_labelled("digits", n_train=601)


def test_without_scikit_learn_the_digits_say_what_to_install(monkeypatch):
    monkeypatch.setattr(labelled.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install .*\[sklearn\]"):
        open_labelled("digits")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cifar"}, "name is 'cifar', expected glyphs, digits, mnist"),
        ({"name": "glyphs", "root": "somewhere"}, "expected none because they need no file"),
        ({"n_train": 0}, "n_train is 0, expected at least 1"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_arguments_are_told(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        open_labelled(**arguments)


def test_mnist_without_a_root_is_told():
    with pytest.raises(DataError, match="'mnist' has no root, expected one .--root. with its files"):
        open_labelled("mnist")
