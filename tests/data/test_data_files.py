"""Image files: decoding, and the readers of Omniglot and MiniImagenet on small trees."""

import io
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hypergrad.data import SilentReporter, decode, open_dataset
from hypergrad.errors import ArgumentError, DataError


def opened(name, root, cache, **options):
    return open_dataset(name, root, cache=cache, reporter=SilentReporter(), **options)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def zip_tree(root, archive, members):
    with zipfile.ZipFile(archive, "w") as file:
        for member in members:
            for path in sorted((root / member).rglob("*.*")):
                file.write(path, path.relative_to(root).as_posix())


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
    turned = opened("omniglot", omniglot, tmp_path, split="alphabets")
    assert turned.test.n_classes == 16


def test_omniglot_says_what_is_missing(omniglot, tmp_path):
    with pytest.raises(DataError, match="neither images_background/ nor .*brendenlake/omniglot.*into the root"):
        opened("omniglot", tmp_path, tmp_path / "cache")
    root = tmp_path / "root"
    shutil.copytree(omniglot, root)
    shutil.rmtree(root / "splits")
    with pytest.raises(DataError, match=r"no split list train.txt.*splits/vinyals.*or choose split='alphabets'"):
        opened("omniglot", root, tmp_path / "cache")
    assert opened("omniglot", root, tmp_path / "cache", split="alphabets").train.n_classes == 16
    lists = root / "splits" / "vinyals"
    shutil.copytree(omniglot / "splits", root / "splits")
    (lists / "val.txt").write_text("Alpha0/character99/rot000\n")
    with pytest.raises(DataError, match="val.txt names 'Alpha0/character99'"):
        opened("omniglot", root, tmp_path / "cache")
    (lists / "val.txt").write_text("Alpha0/character01/rot045\n")
    with pytest.raises(DataError, match="val.txt has the line 'Alpha0/character01/rot045'"):
        opened("omniglot", root, tmp_path / "cache")
    (lists / "val.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="val.txt has unreadable contents"):
        opened("omniglot", root, tmp_path / "cache")
    (lists / "val.txt").write_text("")
    with pytest.raises(DataError, match="split 'validation' has 0 classes"):
        opened("omniglot", root, tmp_path / "cache")


def test_omniglot_lists_without_rotations(omniglot, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(omniglot, root)
    (root / "val.txt").write_text("Alpha4/character01\n")  # the root comes before splits/vinyals
    data = opened("omniglot", root, tmp_path / "cache")
    turns = ("000", "090", "180", "270")
    assert data.validation.class_names == tuple(f"Alpha4/character01/rot{t}" for t in turns)


def test_omniglot_with_an_empty_class_or_a_damaged_file(omniglot, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(omniglot, root)
    folder = root / "images_background" / "Alpha3" / "character02"
    victim = sorted(folder.iterdir())[1]
    victim.write_bytes(victim.read_bytes()[:60])
    with pytest.raises(DataError, match=f"image: .*{victim.name} has damaged or unknown contents"):
        opened("omniglot", root, tmp_path / "cache")
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(DataError, match="class 'Alpha3/character02' .* has 0 images"):
        opened("omniglot", root, tmp_path / "cache")
    (root / "omniglot_images_background.zip").write_bytes(b"no zip file")
    shutil.rmtree(root / "images_background")
    with pytest.raises(DataError, match="zip: .*omniglot_images_background.zip has unreadable contents"):
        opened("omniglot", root, tmp_path / "cache")


def test_a_changed_file_is_read_again(omniglot, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(omniglot, root)
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


def test_miniimagenet_says_what_is_missing(mini, tmp_path):
    roots, _ = mini
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(DataError, match="none of the four known forms.*put one of these into root: images/"):
        opened("miniimagenet", root, tmp_path / "cache")
    shutil.copy(roots["pickle"] / "mini-imagenet-cache-train.pkl", root)
    with pytest.raises(DataError, match="no mini-imagenet-cache-val.pkl and no mini-imagenet-cache-test.pkl"):
        opened("miniimagenet", root, tmp_path / "cache")
    shutil.copytree(roots["csv"] / "images", root / "images")
    with pytest.raises(DataError, match="has no train.csv, expected it beside images/"):
        opened("miniimagenet", root, tmp_path / "cache")
    for stem in WNIDS:
        shutil.copy(roots["csv"] / f"{stem}.csv", root)
    (root / "images" / "n0500000002.jpg").unlink()
    with pytest.raises(DataError, match="test.csv names n0500000002.jpg"):
        opened("miniimagenet", root, tmp_path / "cache")
    (root / "test.csv").write_text("file,class\n")
    with pytest.raises(DataError, match="columns .*'file', 'class'.*expected filename and label"):
        opened("miniimagenet", root, tmp_path / "cache")
    shutil.rmtree(root / "images")
    with pytest.raises(DataError, match="neither images/ nor zip files"):
        opened("miniimagenet", root, tmp_path / "cache")
    with pytest.raises(ArgumentError, match="form is 'hdf5'"):
        opened("miniimagenet", root, tmp_path / "cache", form="hdf5")
    with pytest.raises(DataError, match="has the form 'classes', expected 'splits'"):
        opened("miniimagenet", roots["classes"], tmp_path / "cache", form="splits")


def test_miniimagenet_with_a_damaged_zip_member(mini, tmp_path):
    roots, _ = mini
    root = tmp_path / "root"
    shutil.copytree(roots["zip"], root)
    archive = root / "miniimagenet-all.zip"
    with zipfile.ZipFile(archive) as file:
        info = file.getinfo("images/n0200000001.jpg")
    contents = bytearray(archive.read_bytes())
    contents[info.header_offset + 200] ^= 255
    archive.write_bytes(bytes(contents))
    with pytest.raises(DataError, match="miniimagenet-all.zip:images/n0200000001.jpg has no readable bytes"):
        opened("miniimagenet", root, tmp_path / "cache")


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ([1, 2], "no image_data and class_dict"),
        ({"image_data": [1], "class_dict": {}}, "image_data of .* is list"),
        ({"image_data": np.zeros((2, 84, 84, 3), np.float32), "class_dict": {}}, r"float32 \(2, 84, 84, 3\)"),
        ({"image_data": np.zeros((2, 84, 84, 3), np.uint8), "class_dict": [0]}, "class_dict of .* is a list"),
        ({"image_data": np.zeros((2, 84, 84, 3), np.uint8), "class_dict": {"a": []}}, "class 'a' of .* 0 images"),
        ({"image_data": np.zeros((2, 84, 84, 3), np.uint8), "class_dict": {"a": [2]}}, "outside 0 to 1"),
        ({"image_data": np.zeros((2, 84, 84, 3), np.uint8), "class_dict": {"a": [-1]}}, "outside 0 to 1"),
        ({"image_data": np.zeros((2, 84, 84, 3), np.uint8), "class_dict": {"a": [[0], [1, 0]]}}, "outside 0 to"),
    ],
)
def test_miniimagenet_pickles_of_another_form(mini, tmp_path, contents, words):
    roots, _ = mini
    root = tmp_path / "root"
    shutil.copytree(roots["pickle"], root)
    (root / "mini-imagenet-cache-test.pkl").write_bytes(pickle.dumps(contents))
    with pytest.raises(DataError, match=words):
        opened("miniimagenet", root, tmp_path / "cache")


class _Call:
    def __reduce__(self):
        return eval, ("1 + 1",)


def test_miniimagenet_pickle_with_a_forbidden_global(mini, tmp_path):
    roots, _ = mini
    root = tmp_path / "root"
    shutil.copytree(roots["pickle"], root)
    (root / "mini-imagenet-cache-val.pkl").write_bytes(pickle.dumps({"image_data": _Call()}))
    with pytest.raises(DataError, match="val.pkl asks for builtins.eval.*nothing of it was executed"):
        opened("miniimagenet", root, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("**/*.npy"))


# ---------------------------------------------------------------------------------------------- decoding


def test_threads_give_the_same_images(tmp_path):
    rng = np.random.default_rng(3)
    classes = []
    for c in range(12):
        for j in range(3):
            save(tmp_path / f"c{c}" / f"{j}.png", rng.integers(0, 256, (90, 70, 3), dtype=np.uint8))
        classes.append(decode.list_images(tmp_path / f"c{c}"))
    look = decode.Look((40, 40), 3)
    one, four = (list(decode.decode_classes(classes, look, threads=n)) for n in (1, 4))
    assert len(four) == 12 and all((a == b).all() for a, b in zip(one, four, strict=True))
    assert classes[0][0].n_bytes >= 1 << 14  # so threads are the default here
    assert all((a == b).all() for a, b in zip(one, decode.decode_classes(classes, look), strict=True))
    Path(str(classes[7][1])).write_bytes(b"damaged")
    for threads in (1, 4):
        with pytest.raises(DataError, match="c7.*1.png has damaged"):
            list(decode.decode_classes(classes, look, threads=threads))


@pytest.mark.parametrize(
    ("image", "channels", "expected"),
    [
        (Image.new("1", (4, 4), 1), 1, [255]),
        (Image.new("L", (4, 4), 77), 3, [77, 77, 77]),
        (Image.new("RGB", (4, 4), (10, 20, 30)), 3, [10, 20, 30]),
        (Image.new("RGBA", (4, 4), (10, 20, 30, 0)), 3, [255, 255, 255]),
        (Image.new("RGBA", (4, 4), (10, 20, 30, 255)), 3, [10, 20, 30]),
        (Image.new("LA", (4, 4), (9, 0)), 1, [255]),
        (Image.fromarray(np.full((4, 4), 0x4DFF, np.uint16)), 1, [0x4D]),
        (Image.new("I", (4, 4), 0xFFFF), 1, [255]),
        (Image.new("CMYK", (4, 4), (0, 0, 0, 255)), 1, [0]),
    ],
)
def test_modes_of_images(image, channels, expected):
    pixels = decode.to_array(image, decode.Look((4, 4), channels))
    assert pixels.dtype == np.uint8 and pixels.shape == (4, 4, channels)
    assert (pixels == np.array(expected)).all()
    inverted = decode.to_array(image, decode.Look((4, 4), channels, invert=True))
    assert (inverted == 255 - pixels).all()


@given(form=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]), mode=st.sampled_from(["L", "RGB"]), data=st.data())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it can mend; here only errors count
def test_damaged_images_give_one_clear_error(tmp_path, form, mode, data):
    rng = np.random.default_rng(0)
    stored = io.BytesIO()
    shape = (9, 7) if mode == "L" else (9, 7, 3)
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(stored, form)
    contents = bytearray(stored.getvalue())
    if data.draw(st.booleans()):
        del contents[data.draw(st.integers(0, len(contents) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            contents[data.draw(st.integers(0, min(len(contents) - 1, 200)))] = data.draw(st.integers(0, 255))
    path = tmp_path / f"image.{form.lower()}"
    path.write_bytes(bytes(contents))
    with decode.Reader() as reader:
        try:
            pixels = reader.decode(decode.ImageFile(path, "", len(contents)), decode.Look((8, 8), 3))
        except DataError as error:
            assert path.name in str(error)
        else:
            assert pixels.shape == (8, 8, 3)


# ------------------------------------------------------------------------------------------ one entry point


def test_open_dataset_says_what_it_needs(tmp_path):
    with pytest.raises(ArgumentError, match="name is 'cifar', expected glyphs, omniglot, miniimagenet, folder"):
        opened("cifar", tmp_path, tmp_path)
    for name, words in (("omniglot", "brendenlake"), ("miniimagenet", "Ravi"), ("folder", "one folder a class")):
        with pytest.raises(DataError, match=f"'{name}' has no root.*nothing is downloaded.*{words}.*--root"):
            opened(name, None, tmp_path)
        with pytest.raises(DataError, match=f"absent is no folder.*{words}"):
            opened(name, tmp_path / "absent", tmp_path)
    with pytest.raises(ArgumentError, match="root is .* rendered from fonts"):
        opened("glyphs", tmp_path, tmp_path)
    with pytest.raises(ArgumentError, match="'omniglot' has no option form, expected image_size, split"):
        opened("omniglot", tmp_path, tmp_path, form="csv")
    with pytest.raises(ArgumentError, match="split is 'lake'"):
        opened("omniglot", tmp_path, tmp_path, split="lake")
    with pytest.raises(ArgumentError, match="train_on is 'test'"):
        opened("omniglot", tmp_path, tmp_path, train_on="test")


def test_options_that_are_none_take_their_default(omniglot, tmp_path):
    data = opened("omniglot", omniglot, tmp_path, form=None, image_size=None, rotations=None)
    assert data.options["rotations"] is True and data.image_shape == (28, 28, 1)


def test_nothing_is_downloaded():
    """No module of the package's data part imports anything that talks to a network."""
    folder = Path(decode.__file__).parent
    for path in folder.glob("*.py"):
        words = path.read_text("utf-8")
        for module in ("urllib", "requests", "socket", "http.client", "httpx", "ftplib"):
            assert f"import {module}" not in words and f"from {module}" not in words
