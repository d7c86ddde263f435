"""The true files, where HYPERGRAD_DATA_ROOT names a folder that holds them."""

import os
from pathlib import Path

import numpy as np
import pytest

from hypergrad.data import SilentReporter, open_dataset, pixel_baseline

ROOT = os.environ.get("HYPERGRAD_DATA_ROOT", "")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def opened(name, needs, cache, **options):
    if not ROOT or not any((Path(ROOT) / need).exists() for need in needs):
        pytest.skip(f"set HYPERGRAD_DATA_ROOT to a folder with the files of {name} to run this")
    return open_dataset(name, ROOT, cache=cache, reporter=SilentReporter(), **options)


def test_omniglot(cache):
    data = opened("omniglot", ("images_background", "omniglot_images_background.zip"), cache)
    assert [data.split(s).n_classes for s in ("train", "validation", "test")] == [4112, 688, 1692]
    assert all((data.split(s).sizes == 20).all() for s in ("train", "validation", "test"))
    assert data.image_shape == (28, 28, 1)
    assert 0.02 < np.mean(data.train.images) / 255 < 0.2  # ink is bright and scarce
    characters = {s: {n.rpartition("/")[0] for n in data.split(s).class_names} for s in ("train", "test", "val")}
    assert {s: len(c) for s, c in characters.items()} == {"train": 1028, "val": 172, "test": 423}
    assert len(set.union(*characters.values())) == 1623
    baseline = pixel_baseline(data.test, 5, 1)
    assert baseline.mean == pytest.approx(0.436, abs=0.03)


def test_miniimagenet(cache):
    data = opened("miniimagenet", ("images", "miniimagenet-test.zip", "train"), cache)
    assert [data.split(s).n_classes for s in ("train", "validation", "test")] == [64, 16, 20]
    assert all((data.split(s).sizes == 600).all() for s in ("train", "validation", "test"))
    assert data.image_shape == (84, 84, 3)
    names = [set(data.split(s).class_names) for s in ("train", "validation", "test")]
    assert len(set.union(*names)) == 100
    baseline = pixel_baseline(data.test, 5, 1, n_episodes=200)
    assert baseline.mean == pytest.approx(0.25, abs=0.03)
