"""The embedded letters: classes, scripts, drawings, and the same bytes each time."""

import unicodedata

import numpy as np
import pytest
from trees import opened

from hypergrad.data import glyphs, pixel_baseline
from hypergrad.errors import ArgumentError, DataError


@pytest.fixture(scope="module")
def letters():
    return glyphs.find_letters()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return opened("glyphs", None, tmp_path_factory.mktemp("cache"))


def test_enough_classes_of_20_drawings(data):
    assert data.train.n_classes > 450 and data.validation.n_classes > 40 and data.test.n_classes > 200
    assert data.image_shape == (28, 28, 1)
    for split in (data.train, data.validation, data.test):
        assert (split.sizes == 20).all() and len(set(split.class_names)) == split.n_classes
    names = data.train.class_names + data.validation.class_names + data.test.class_names
    assert len(set(names)) == len(names)


def test_no_script_of_test_is_seen_in_training(data):
    def scripts(split):
        return {unicodedata.name(name[-1]).split()[0] for name in split.class_names}

    assert scripts(data.train) == {"LATIN", "CYRILLIC", "GREEK"}  # Greek letters that look like Cyrillic ones
    assert scripts(data.validation) == {"GREEK"}
    assert scripts(data.test) == {"GEORGIAN", "ARMENIAN", "LAO"}


def test_letters_have_drawings_of_their_own(letters):
    masters = [master for letter in letters for master in letter.masters]
    assert len(set(masters)) == len(masters)
    assert min(len(letter.masters) for letter in letters) >= glyphs.MIN_FACES
    heads = {letter.name[-1] for letter in letters}
    assert "A" in heads and not {"Α", "А"} & heads  # Greek and Cyrillic A are Latin A
    assert {"т", "m", "ж", "u", "ა", "ქ", "Ա", "ກ"} <= heads  # alike in few faces only, or not at all
    assert not {"É", "ﬁ", "⠁", "∑"} & heads  # accents, ligatures, Braille, symbols


def test_drawings_are_whole_and_different(data):
    for split in (data.train, data.validation, data.test):
        images = split.images.reshape(split.n_images, -1)
        assert images.max(axis=1).min() > 80  # every drawing has ink, on an empty paper
        assert np.median(images, axis=1).max() == 0
        assert len(np.unique(images, axis=0)) > 0.999 * split.n_images
    border = np.concatenate([data.train.images[:, [0, -1]].ravel(), data.train.images[:, :, [0, -1]].ravel()])
    assert (border > 0).mean() < 0.02  # letters are not cut off


def test_the_same_bytes_each_time(letters, data):
    for letter in letters[::97]:
        drawn = glyphs.draw_letter(letter, 20, 0)
        split = data.split(letter.split)
        assert (split.class_images(split.class_names.index(letter.name)) == drawn).all()
        assert (glyphs.draw_letter(letter, 20, 1) != drawn).any()


def test_faces_are_used_in_turn(letters, monkeypatch):
    used = []
    monkeypatch.setattr(glyphs, "_draw", lambda master, random: used.append(master) or np.zeros((28, 28), np.uint8))
    letter = max(letters, key=lambda letter: len(letter.masters))
    n = len(letter.masters)
    glyphs.draw_letter(letter, 2 * n, 0)
    assert len(set(used[:n])) == n and used[n:] == used[:n]
    used.clear()
    glyphs.draw_letter(letter, 3, 0)
    assert set(used) <= set(letter.masters) and len(used) == 3


def test_pixels_alone_do_not_solve_it(data):
    assert 0.5 < pixel_baseline(data.test, 5, 1, n_episodes=100).mean < 0.75


def test_rotations_are_classes_of_train_alone(letters, tmp_path, monkeypatch):
    monkeypatch.setattr(glyphs, "find_letters", lambda: letters[::40])
    plain, turned = (opened("glyphs", None, tmp_path, rotations=r, drawings=5) for r in (False, True))
    assert turned.train.n_classes == 4 * plain.train.n_classes and turned.test.n_classes == plain.test.n_classes
    assert turned.train.class_names[1] == plain.train.class_names[0] + "/rot090"
    assert (turned.train.class_images(1) == np.rot90(plain.train.class_images(0), axes=(1, 2))).all()
    assert (turned.train.sizes == 5).all()


@pytest.mark.parametrize(("option", "value"), [("drawings", 1), ("drawings", 1001), ("seed", -1), ("seed", 2**64)])
def test_options_out_of_range(option, value):
    with pytest.raises(ArgumentError, match=f"glyphs: {option} is {value}, expected"):
        opened("glyphs", None, None, **{option: value})


def test_missing_fonts(tmp_path, monkeypatch):
    monkeypatch.setattr(glyphs.matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(DataError, match="has no fonts.*reinstall matplotlib"):
        opened("glyphs", None, tmp_path)
