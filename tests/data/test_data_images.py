"""Images grouped by class, and the three splits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypergrad.data import ImageClasses, MetaDataset, to_float
from hypergrad.errors import ArgumentError, DataError, DTypeError, ShapeError


def make(name="train", sizes=(3, 4, 5), shape=(6, 5, 1)):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (sum(sizes), *shape), dtype=np.uint8)
    return ImageClasses.from_labels(name, images, np.repeat(np.arange(len(sizes)), sizes))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_grouping_keeps_every_image_and_its_class(labels, random):
    labels = labels + [0, 1, 2, 3, 4]
    random.shuffle(labels)
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    split = ImageClasses.from_labels("train", images, np.array(labels), list("abcde"))
    assert split.n_classes == 5 and split.n_images == len(labels)
    for c in range(5):
        own = [i for i, label in enumerate(labels) if label == c]
        assert split.class_images(c).ravel().tolist() == own
    assert split.labels.tolist() == sorted(labels)


def test_an_empty_class_is_named():
    images = np.zeros((4, 2, 2, 1), np.uint8)
    with pytest.raises(DataError, match="class 'b', 'd' of split 'test' has 0 images.*add images or remove"):
        ImageClasses.from_labels("test", images, np.array([0, 0, 2, 2]), ["a", "b", "c", "d"])


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [-1, 0, 1, 2]])
def test_labels_out_of_range(labels):
    images = np.zeros((4, 2, 2, 1), np.uint8)
    with pytest.raises(DataError, match="expected 0 to 2; correct"):
        ImageClasses.from_labels("train", images, np.array(labels), ["a", "b", "c"])


@pytest.mark.parametrize(
    ("images", "labels", "error", "words"),
    [
        (np.zeros((2, 2, 2, 1), np.float32), [0, 1], DTypeError, "float32, expected uint8"),
        (np.zeros((2, 2, 2), np.uint8), [0, 1], ShapeError, r"\(n, H, W, C\)"),
        (np.zeros((2, 2, 2, 1), np.uint8), [0, 1, 1], ShapeError, "one label an image"),
        (np.zeros((2, 2, 2, 1), np.uint8), [0.0, 1.0], DTypeError, "expected integers"),
        (np.zeros((0, 2, 2, 1), np.uint8), np.zeros(0, int), DataError, "0 classes"),
    ],
)
def test_wrong_arrays(images, labels, error, words):
    with pytest.raises(error, match=words):
        ImageClasses.from_labels("train", images, np.array(labels))


@pytest.mark.parametrize("offsets", [[0, 3, 2, 4], [1, 2, 3, 4], [0, 1, 2, 3]])
def test_offsets_must_cover_the_images(offsets):
    with pytest.raises(ShapeError, match="offsets"):
        ImageClasses("train", np.zeros((4, 2, 2, 1), np.uint8), np.array(offsets), ("a", "b", "c"))


def test_offsets_and_names_must_agree():
    with pytest.raises(ShapeError, match="2 class names"):
        ImageClasses("train", np.zeros((4, 2, 2, 1), np.uint8), np.array([0, 4]), ("a", "b"))


@pytest.mark.parametrize("index", [-1, 3])
def test_class_images_out_of_range(index):
    with pytest.raises(ArgumentError, match="expected 0 to 2"):
        make().class_images(index)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_to_float_is_the_rounded_quotient(dtype):
    pixels = np.arange(256, dtype=np.uint8)
    x = to_float(pixels, dtype)
    assert x.dtype == dtype
    assert x.tolist() == [dtype(dtype(i) / dtype(255)) for i in range(256)]


def test_to_float_refuses_other_types():
    with pytest.raises(DTypeError, match="expected uint8"):
        to_float(np.zeros(3, np.float32))
    with pytest.raises(DTypeError, match="expected float32 or float64"):
        to_float(np.zeros(3, np.uint8), np.float16)


def test_dataset_gives_its_splits():
    data = MetaDataset("toy", make("train"), make("validation"), make("test"))
    assert data.image_shape == (6, 5, 1)
    assert data.split("val") is data.validation and data.split("test") is data.test
    assert data.describe().startswith("toy 6x5x1: train 3 classes / 12 images")
    with pytest.raises(ArgumentError, match="expected train, validation, val, test"):
        data.split("dev")


def test_dataset_of_unequal_shapes():
    with pytest.raises(ShapeError, match="one network reads all splits"):
        MetaDataset("toy", make("train"), make("validation"), make("test", shape=(6, 6, 1)))
