"""The readers of Omniglot and MiniImagenet on small trees, in every form, and the one door to all data sets."""

import io
import pickle
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image
from trees import opened, save, zip_tree

from hypergrad.data import OPTIONS, SilentReporter, open_dataset
from hypergrad.errors import ArgumentError, DataError


@pytest.fixture
def copied(tmp_path):
    """Copies a tree, for a test to damage."""

    def copy(tree):
        return shutil.copytree(tree, tmp_path / "root")

    return copy


# ---------------------------------------------------------------------------------------------- Omniglot


def drawing(number, j):
    """White paper with one dark mark whose place tells the character and the drawing apart."""
    paper = np.full((28, 28), 255, np.uint8)
    paper[number % 28, j % 28] = 0
    return paper


ALPHABETS = {"images_background": [f"Alpha{i}" for i in range(7)], "images_evaluation": ["Omega1", "Omega2"]}


@pytest.fixture(scope="module")
def omniglot(tmp_path_factory):
    """The official tree in small: 9 alphabets of 2 characters with 3 drawings, and Vinyals lists."""
    root = tmp_path_factory.mktemp("omniglot")
    characters = []
    for tree, alphabets in ALPHABETS.items():
        for alphabet in alphabets:
            for c in (1, 2):
                for j in range(3):
                    path = root / tree / alphabet / f"character{c:02d}" / f"{len(characters):04d}_{j + 1:02d}.png"
                    save(path, drawing(len(characters), j))
                characters.append(f"{alphabet}/character{c:02d}")
    # as in the true lists, train mixes both trees
    parts = {"train": characters[:8] + characters[16:], "val": characters[8:10], "test": characters[10:16]}
    parts["trainval"] = parts["train"] + parts["val"]
    (root / "splits" / "vinyals").mkdir(parents=True)
    for stem, names in parts.items():
        lines = [f"{name}/rot{turn}" for name in names for turn in ("000", "090", "180", "270")]
        (root / "splits" / "vinyals" / f"{stem}.txt").write_text("\n".join(lines) + "\n")
    return root


def test_omniglot_splits_rotations_and_ink(omniglot, tmp_path):
    data = opened("omniglot", omniglot, tmp_path)
    assert (data.train.n_classes, data.validation.n_classes, data.test.n_classes) == (40, 8, 24)
    assert data.image_shape == (28, 28, 1)
    names = data.test.class_names
    assert names[:5] == tuple(f"Alpha5/character01/rot{t}" for t in ("000", "090", "180", "270")) + ("Alpha5/character02/rot000",)
    for number, name in ((10, "Alpha5/character01"), (13, "Alpha6/character02")):
        for turn in range(4):
            block = data.test.class_images(names.index(f"{name}/rot{90 * turn:03d}"))
            for j in range(3):
                assert (block[j, :, :, 0] == np.rot90(255 - drawing(number, j), turn)).all()


def test_omniglot_from_zip_files_is_the_same(omniglot, tmp_path):
    root = tmp_path / "zips"
    root.mkdir()
    for tree in ALPHABETS:
        zip_tree(omniglot, root / f"omniglot_{tree}.zip", [tree])
    lists = root / "split_lists.zip"
    with zipfile.ZipFile(lists, "w") as file:
        for path in (omniglot / "splits" / "vinyals").iterdir():
            file.write(path, f"omniglot_splits/vinyals/{path.name}")
    before = sorted(root.rglob("*"))
    zipped = opened("omniglot", root, tmp_path / "cache")
    plain = opened("omniglot", omniglot, tmp_path / "cache")
    for split in ("train", "validation", "test"):
        assert (zipped.split(split).images == plain.split(split).images).all()
        assert zipped.split(split).class_names == plain.split(split).class_names
    assert sorted(root.rglob("*")) == before  # nothing is unpacked beside the files


def test_omniglot_options(omniglot, tmp_path):
    plain = opened("omniglot", omniglot, tmp_path, rotations=False)
    assert plain.test.class_names[0] == "Alpha5/character01" and plain.test.n_classes == 6
    both = opened("omniglot", omniglot, tmp_path, train_on="trainval", rotations=False)
    assert both.train.n_classes == 12 and "validation characters too" in both.notes[0]
    small = opened("omniglot", omniglot, tmp_path, image_size=14)
    assert small.image_shape == (14, 14, 1)
    free = opened("omniglot", omniglot, tmp_path, split="alphabets", rotations=False)
    assert {name.split("/")[0] for name in free.test.class_names} == {"Omega1", "Omega2"}
    assert {name.split("/")[0] for name in free.train.class_names} == {"Alpha0", "Alpha1"}
    assert free.validation.n_classes == 10
    assert opened("omniglot", omniglot, tmp_path, split="alphabets").test.n_classes == 16
    both = opened("omniglot", omniglot, tmp_path, split="alphabets", train_on="trainval")
    assert both.train.n_classes == 56 and both.validation.n_classes == 40


@pytest.mark.parametrize(
    ("path", "contents", "words"),
    [
        ("images_background", None, "neither images_background/ nor .*brendenlake/omniglot.*into the root"),
        ("images_background/Alpha0", None, "train.txt names 'Alpha0/character01', expected a character of the images under"),
        ("splits", None, r"split list: .* has no train.txt, expected one for .*splits/vinyals.*or choose split='alphabets'"),
        ("splits/vinyals/val.txt", b"Alpha0/character99/rot000\n", "val.txt names 'Alpha0/character99', expected a character"),
        ("splits/vinyals/val.txt", b"../character01/rot000\n", "val.txt names '../character01'"),
        ("splits/vinyals/val.txt", b"Alpha0/character01/rot045\n", "val.txt has the line 'Alpha0/character01/rot045', expected Alphabet/"),
        ("splits/vinyals/val.txt", b"\xff\xfe\x00", "split list: .*val.txt has unreadable contents"),
        ("splits/vinyals/val.txt", b"", "split 'validation' has 0 classes"),
    ],
)
def test_omniglot_says_what_is_missing(omniglot, copied, tmp_path, path, contents, words):
    root = copied(omniglot)
    if contents is not None:
        (root / path).write_bytes(contents)
    else:
        shutil.rmtree(root / path)
    with pytest.raises(DataError, match=words):
        opened("omniglot", root, tmp_path / "cache")
    if path.startswith("splits"):
        assert opened("omniglot", root, tmp_path / "cache", split="alphabets").train.n_classes == 16


def test_omniglot_without_alphabets_to_spare(omniglot, copied, tmp_path):
    root = copied(omniglot)
    for i in (0, 1):
        shutil.rmtree(root / "images_background" / f"Alpha{i}")
    with pytest.raises(DataError, match="split 'train' has 0 classes"):
        opened("omniglot", root, tmp_path / "cache", split="alphabets")
    shutil.rmtree(root / "images_background")
    (root / "images_background" / "Alpha1").mkdir(parents=True)
    with pytest.raises(DataError, match="no Alphabet/characterNN folders"):
        opened("omniglot", root, tmp_path / "cache", split="alphabets")


def test_omniglot_lists_without_rotations(omniglot, copied, tmp_path):
    root = copied(omniglot)
    (root / "val.txt").write_text("Alpha4/character01\n")  # the root comes before splits/vinyals
    data = opened("omniglot", root, tmp_path / "cache")
    assert data.validation.class_names == tuple(f"Alpha4/character01/rot{t}" for t in ("000", "090", "180", "270"))


def test_omniglot_with_an_empty_class_or_a_damaged_file(omniglot, copied, tmp_path):
    root = copied(omniglot)
    folder = root / "images_background" / "Alpha3" / "character02"
    victim = sorted(folder.iterdir())[1]
    victim.write_bytes(victim.read_bytes()[:60])
    with pytest.raises(DataError, match=f"image: .*{victim.name} has unreadable contents"):
        opened("omniglot", root, tmp_path / "cache")
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(DataError, match="class 'Alpha3/character02/rot000', .* of split 'train' has 0 images"):
        opened("omniglot", root, tmp_path / "cache")
    (root / "omniglot_images_background.zip").write_bytes(b"no zip file")
    shutil.rmtree(root / "images_background")
    with pytest.raises(DataError, match="zip file: .*omniglot_images_background.zip has unreadable contents"):
        opened("omniglot", root, tmp_path / "cache")


def test_a_changed_file_is_read_again(omniglot, copied, tmp_path):
    root = copied(omniglot)
    before = np.array(opened("omniglot", root, tmp_path / "cache").train.images)
    save(root / "images_background" / "Alpha0" / "character01" / "0000_01.png", drawing(20, 20))
    after = opened("omniglot", root, tmp_path / "cache").train.images
    assert (before[0] != after[0]).any() and (before[12:] == after[12:]).all()


# ------------------------------------------------------------------------------------------ MiniImagenet

WNIDS = {"train": ["n01", "n02", "n03"], "val": ["n04"], "test": ["n05", "n06"]}


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    """MiniImagenet in small and in every form: a dict from form to root, and the images by class."""
    base = tmp_path_factory.mktemp("mini")
    rng = np.random.default_rng(0)
    images = {w: rng.integers(0, 256, (4, 84, 84, 3), dtype=np.uint8) for stem in WNIDS for w in WNIDS[stem]}
    for stem, wnids in WNIDS.items():
        rows = ["filename,label"]
        for w in wnids:
            for j, image in enumerate(images[w]):
                # png pixels under a jpg name: without loss, and the reader goes by contents
                stored = io.BytesIO()
                Image.fromarray(image).save(stored, "PNG")
                places = (
                    base / "csv" / "images" / f"{w}{j:08d}.jpg",
                    base / "splits" / stem / w / f"{w}{j:08d}.jpg",
                    base / "classes" / w / f"{w}{j:08d}.jpg",
                )
                for path in places:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(stored.getvalue())
                rows.append(f"{w}{j:08d}.jpg,{w}")
        (base / "csv" / f"{stem}.csv").write_text("\n".join(rows) + "\n")
        (base / "pickle").mkdir(exist_ok=True)
        contents = {
            "image_data": np.concatenate([images[w] for w in wnids]),
            "class_dict": {w: list(range(4 * i, 4 * i + 4)) for i, w in enumerate(wnids)},
        }
        (base / "pickle" / f"mini-imagenet-cache-{stem}.pkl").write_bytes(pickle.dumps(contents, 2))
    (base / "zip").mkdir()
    zip_tree(base / "csv", base / "zip" / "miniimagenet-all.zip", ["images"])
    with zipfile.ZipFile(base / "zip" / "split_lists.zip", "w") as file:
        for stem in WNIDS:
            file.write(base / "csv" / f"{stem}.csv", f"miniimagenet_ravi/{stem}.csv")
    return {form: base / form for form in ("csv", "splits", "pickle", "zip", "classes")}, images


@pytest.mark.parametrize("form", ["csv", "splits", "pickle", "zip"])
def test_miniimagenet_in_every_form_is_the_same(mini, tmp_path, form):
    roots, images = mini
    data = opened("miniimagenet", roots[form], tmp_path)
    assert data.options["form"] == ("csv" if form == "zip" else form)
    assert str(roots[form]) in data.notes[0]
    for split, stem in (("train", "train"), ("validation", "val"), ("test", "test")):
        assert data.split(split).class_names == tuple(WNIDS[stem])
        for c, w in enumerate(WNIDS[stem]):
            assert (data.split(split).class_images(c) == images[w]).all()


def test_miniimagenet_from_one_folder_a_class(mini, tmp_path):
    roots, images = mini
    data = opened("miniimagenet", roots["classes"], tmp_path)
    names = [data.split(split).class_names for split in ("train", "validation", "test")]
    assert [len(n) for n in names] == [4, 1, 1] and sorted(sum(names, ())) == sorted(images)
    for split in ("train", "validation", "test"):
        for c, w in enumerate(data.split(split).class_names):
            assert (data.split(split).class_images(c) == images[w]).all()
    assert opened("miniimagenet", roots["classes"], tmp_path, seed=0).test.class_names == names[2]
    others = {opened("miniimagenet", roots["classes"], tmp_path, seed=s).test.class_names for s in range(1, 9)}
    assert len(others) > 1


@pytest.mark.parametrize("form", ["csv", "pickle"])
def test_miniimagenet_in_another_size(mini, tmp_path, form):
    roots, images = mini
    data = opened("miniimagenet", roots[form], tmp_path, image_size=32)
    assert data.image_shape == (32, 32, 3)
    expected = Image.fromarray(images["n04"][2]).resize((32, 32), Image.Resampling.LANCZOS)
    assert (data.validation.class_images(0)[2] == np.asarray(expected)).all()


@pytest.mark.parametrize(
    ("form", "path", "contents", "words"),
    [
        ("csv", "images", None, "neither images/ nor zip files that hold it"),
        ("csv", "train.csv", None, "has no train.csv, expected it beside images/"),
        ("csv", "images/n0500000002.jpg", None, "test.csv names n0500000002.jpg, expected it in images/ or a zip file"),
        ("csv", "test.csv", b"filename,label\n../../secret.jpg,n05\n", "test.csv names ../../secret.jpg"),
        ("csv", "test.csv", b"file,class\n", "columns .*'file', 'class'.*expected filename and label"),
        ("csv", "test.csv", b"", "columns .., expected filename and label"),
        ("csv", "test.csv", b"label,filename\nn05\n", "split list: .*test.csv has unreadable contents .*index out of range"),
        ("csv", "test.csv", b"filename,label\n\xff,n05\n", "split list: .*test.csv has unreadable contents"),
        ("csv", "test.csv", b"filename,label\n", "split 'test' has 0 classes"),
        ("pickle", "mini-imagenet-cache-val.pkl", None, "has no mini-imagenet-cache-val.pkl, expected one cache file a split; put"),
        ("pickle", "mini-imagenet-cache-val.pkl", b"", "mini-imagenet-cache-val.pkl has unreadable contents"),
        ("splits", "val", None, "has no folder for validation, expected all"),
        ("zip", "miniimagenet-all.zip", None, "none of the four known forms.*put one of these into root: images/"),
        ("zip", "split_lists.zip", b"no zip file", "zip file: .*split_lists.zip has unreadable contents"),
    ],
)
def test_miniimagenet_says_what_is_missing(mini, copied, tmp_path, form, path, contents, words):
    root = copied(mini[0][form])
    if contents is not None:
        (root / path).write_bytes(contents)
    elif (root / path).is_dir():
        shutil.rmtree(root / path)
    else:
        (root / path).unlink()
    with pytest.raises(DataError, match=words):
        opened("miniimagenet", root, tmp_path / "cache")
    assert not list(tmp_path.glob("cache/*"))


def test_miniimagenet_in_class_folders(mini, tmp_path):
    with pytest.raises(DataError, match="has 6 class folders, expected at least 9"):
        opened("miniimagenet", mini[0]["classes"], tmp_path, n_way=3)
    assert opened("miniimagenet", mini[0]["classes"], tmp_path, n_way=2).validation.n_classes == 2


def test_miniimagenet_with_a_damaged_zip_member(mini, copied, tmp_path):
    root = copied(mini[0]["zip"])
    archive = root / "miniimagenet-all.zip"
    with zipfile.ZipFile(archive) as file:
        info = file.getinfo("images/n0200000001.jpg")
    contents = bytearray(archive.read_bytes())
    contents[info.header_offset + 200] ^= 255
    archive.write_bytes(bytes(contents))
    with pytest.raises(DataError, match="miniimagenet-all.zip:images/n0200000001.jpg has unreadable contents .Bad CRC-32"):
        opened("miniimagenet", root, tmp_path / "cache")


class _Call:
    def __reduce__(self):
        return eval, ("1 + 1",)


IMAGES, ENDLESS = np.zeros((2, 84, 84, 3), np.uint8), []
ENDLESS.append(ENDLESS)


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ([1, 2], "another form"),
        (5, "another form"),
        ({"image_data": IMAGES}, "another form"),
        ({"image_data": [1], "class_dict": {}}, "another form, expected a dict of image_data, uint8 .*fetch it again"),
        ({"image_data": IMAGES.astype(np.float32), "class_dict": {}}, "another form"),
        ({"image_data": IMAGES[..., :1], "class_dict": {"a": [0]}}, "another form"),
        ({"image_data": IMAGES[0], "class_dict": {"a": [0]}}, "another form"),
        ({"image_data": IMAGES, "class_dict": [0]}, "another form"),
        ({"image_data": IMAGES, "class_dict": {"a": []}}, "class 'a' of split 'test' has 0 images"),
        ({"image_data": IMAGES, "class_dict": {"a": [2]}}, "numbers 0 to N - 1"),
        ({"image_data": IMAGES, "class_dict": {"a": [-1]}}, "numbers 0 to N - 1"),
        ({"image_data": IMAGES, "class_dict": {"a": [0.5]}}, "numbers 0 to N - 1"),
        ({"image_data": IMAGES, "class_dict": {"a": 1}}, "numbers 0 to N - 1"),
        ({"image_data": IMAGES, "class_dict": {"a": [[0], [1, 0]]}}, "another form"),
        ({"image_data": IMAGES, "class_dict": {"a": [[0], [1]]}}, "another form"),
        ({"image_data": IMAGES, "class_dict": ENDLESS}, "unreadable contents .*recursion"),
        ({"image_data": _Call()}, "asks for builtins.eval.*nothing of it was executed"),
    ],
)
def test_miniimagenet_pickles_of_another_form(mini, copied, tmp_path, contents, words):
    root = copied(mini[0]["pickle"])
    (root / "mini-imagenet-cache-test.pkl").write_bytes(pickle.dumps(contents))
    with pytest.raises(DataError, match=words):
        opened("miniimagenet", root, tmp_path / "cache")
    assert not list(tmp_path.glob("cache/*"))


# ------------------------------------------------------------------------------------------ one entry point


@pytest.mark.parametrize(("name", "words"), [("omniglot", "brendenlake"), ("miniimagenet", "Ravi"), ("folder", "one folder a class")])
def test_open_dataset_says_which_files_it_needs(tmp_path, name, words):
    with pytest.raises(DataError, match=f"'{name}' has no root.*--root.*nothing is downloaded; .*{words}"):
        opened(name, None, tmp_path)
    with pytest.raises(DataError, match=f"absent is no folder.*{words}"):
        opened(name, tmp_path / "absent", tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cifar", {}, "name is 'cifar', expected glyphs, omniglot, miniimagenet, folder"),
        ("glyphs", {}, "root is .* rendered from fonts"),
        ("omniglot", {"drawings": 2}, "option of 'omniglot' is 'drawings', expected image_size, split, train_on, rotations"),
        ("omniglot", {"split": "lake"}, "split is 'lake', expected vinyals, alphabets"),
        ("omniglot", {"train_on": "test"}, "train_on is 'test'"),
        ("miniimagenet", {"n_way": 0}, "n_way is 0, expected at least 1"),
        ("miniimagenet", {"image_size": 3}, "image_size is 3"),
    ],
)
def test_arguments_that_cannot_be(tmp_path, name, options, words):
    with pytest.raises(ArgumentError, match=words):
        opened(name, tmp_path, tmp_path, **options)


def test_options_that_are_none_take_their_default(omniglot, tmp_path):
    data = opened("omniglot", omniglot, tmp_path, split=None, image_size=None, rotations=None)
    assert data.options["rotations"] is True and data.image_shape == (28, 28, 1)


def test_every_data_set_is_opened_for_5_way_episodes_by_default(omniglot, mini, tmp_path):
    assert opened("omniglot", omniglot, tmp_path, n_way=8).validation.n_classes == 8
    with pytest.raises(DataError, match="split 'validation' has 8 classes, expected at least 9 .*lower n_way"):
        opened("omniglot", omniglot, tmp_path, n_way=9)
    with pytest.raises(DataError, match="split 'train' has 3 classes, expected at least 5"):
        open_dataset("miniimagenet", mini[0]["csv"], cache=tmp_path)


def test_notes_are_shown_and_options_listed(mini, tmp_path):
    reporter = SilentReporter()
    open_dataset("miniimagenet", mini[0]["csv"], n_way=1, cache=tmp_path, reporter=reporter)
    assert reporter.messages == [f"miniimagenet: read in the form 'csv' from {mini[0]['csv']}"]
    assert OPTIONS["miniimagenet"] == ("image_size", "seed")


def test_a_root_that_cannot_be_listed(mini, tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(tmp_path), "iterdir", refuse)
    with pytest.raises(DataError, match="csv has unreadable contents .*check its permissions"):
        opened("miniimagenet", mini[0]["csv"], tmp_path)
