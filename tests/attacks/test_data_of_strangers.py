"""Data sets and images from a stranger: no program is started, no memory is filled, nothing that is wrong is taken for right."""

import csv
import io
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import attacks
import numpy as np
import pytest
from PIL import Image
from trees import grey, opened, save

from hypergrad.data import cache_dir, files, read_idx, read_images, read_pickle, read_support_folder
from hypergrad.errors import DataError


def _stored(image, form, **options):
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


# ------------------------------------------------------------------------------------------------ images


@pytest.mark.parametrize("form", ["EPS", "PDF", "ICO", "TGA", "PCX", "SGI", "DDS", "JPEG2000", "MSP"])
def test_only_the_listed_formats_are_tried(tmp_path, monkeypatch, form):
    """An EPS file starts Ghostscript where Pillow may read it."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
    program.chmod(0o755)
    for c in range(3):
        path = tmp_path / "root" / f"c{c}" / "0.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(_stored(Image.new("1" if form == "MSP" else "RGB", (9, 9)), form))
    for read in (lambda: read_images([path], (9, 9, 3)), lambda: opened("folder", tmp_path / "root", tmp_path / "cache")):
        with pytest.raises(DataError, match="0.png has unreadable contents .cannot identify image"):
            read()
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_upright(tmp_path, form, orientation):
    """In prediction, and where the size of a data set's images is found out."""
    upright = np.zeros((16, 24), np.uint8)
    upright[:8, :8] = 200  # the upper left
    lying = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T}
    lying |= {6: np.rot90(upright, 1), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1)}
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    content = _stored(Image.fromarray(np.ascontiguousarray(lying[orientation])), form, exif=exif, **options)
    for c in range(3):
        path = tmp_path / "root" / f"c{c}" / f"0.{form.lower()}"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    images, resized = read_images([path], (16, 24, 1))
    assert np.abs(images[0, :, :, 0].astype(int) - upright).max() < 20 and resized == []
    data = opened("folder", tmp_path / "root", tmp_path / "cache", channels=1)
    assert data.image_shape == (16, 24, 1) and (data.train.images[0] == images[0]).all()


@pytest.mark.parametrize(
    ("pixels", "form", "found"),
    [
        (np.array([[0, 0x0100], [0x4DFF, 0xFFFF]], np.uint16), "PNG", [0, 1, 0x4D, 255]),
        (np.array([[0, 0x0100], [0x4DFF, 0xFFFF]], np.uint16), "TIFF", [0, 1, 0x4D, 255]),
        (np.array([[0, 0x0100], [0x4DFF, 0xFFFF]], np.int32), "TIFF", [0, 1, 0x4D, 255]),
        (np.array([[0, 1], [2, 0x10000]], np.int32), "TIFF", "its pixels go from 0 to 65536, expected 0 to 65535"),
        (np.array([[-5, 1], [2, 3]], np.int32), "TIFF", "its pixels go from -5 to 3"),
        (np.array([[0.0, 0.25], [0.5, 1.0]], np.float32), "TIFF", "fractions from 0 to 1, expected 8 or 16 bits"),
        (np.array([[0.0, np.nan], [0.5, 1.0]], np.float32), "TIFF", "fractions from nan to nan"),
    ],
)
def test_deep_images_are_scaled_by_their_range_or_refused_with_it(tmp_path, pixels, form, found):
    big = np.repeat(np.repeat(pixels, 2, 0), 2, 1)
    (tmp_path / "0.png").write_bytes(_stored(Image.fromarray(big), form))
    if isinstance(found, str):
        with pytest.raises(DataError, match=found):
            read_images([tmp_path / "0.png"], (4, 4, 1))
    else:
        assert read_images([tmp_path / "0.png"], (4, 4, 1))[0][0, ::2, ::2, 0].reshape(-1).tolist() == found


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(path)])
def test_what_is_no_plain_file_is_refused_at_once(tmp_path, make):
    make(tmp_path / "0.png")
    with pytest.raises(DataError, match="0.png has unreadable contents .*(plain file|symbolic links)"):
        read_images([tmp_path / "0.png"], (4, 4, 1))
    make(tmp_path / "file.pkl")
    with pytest.raises(DataError, match="unreadable contents .*(plain file|symbolic links)"):
        read_pickle(tmp_path / "file.pkl")
    make(tmp_path / "images.gz")
    with pytest.raises(DataError, match="unreadable contents .*(plain file|symbolic links)"):
        read_idx(tmp_path / "images.gz", 3)


# ------------------------------------------------------------------------------------------------- bombs

_READ = """
import resource, sys
from pathlib import Path
import hypergrad.data as data
from hypergrad.errors import HypergradError
resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
for path in sys.argv[1:]:
    try:
        {call}
    except HypergradError as error:
        print(type(error).__name__, error)
    else:
        print("read")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def _check_within_a_gib(call, expected):
    """What a process of 1 GiB says of files. Args: call: reads `path`; expected: words by path."""
    code, here = _READ.format(limit=1 << 30, call=call), str(Path(__file__).parents[2])
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": here, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", code, *map(str, expected)], capture_output=True, text=True, env=environment, timeout=100)
    assert done.returncode == 0, done.stderr
    *said, peak = done.stdout.splitlines()
    for words, found in zip(expected.values(), said, strict=True):
        assert words in found
    assert int(peak) < 700  # MiB


def test_images_that_are_bombs(tmp_path):
    bombs = {
        _stored(Image.new("1", (13_000, 13_000)), "PNG"): "169000000 pixels, expected at most 33554432",
        _stored(Image.new("1", (6000, 6000)), "TIFF", compression="group4"): "36000000 pixels, expected at most 33554432",
        b"P5\n60000 60000\n255\n": "decompression bomb",
        _stored(Image.new("RGBA", (3000, 3000)), "PNG"): "read",
    }
    _check_within_a_gib("data.read_images([path], (28, 28, 3))", _written(tmp_path, bombs))


def test_pickles_that_are_bombs(tmp_path):
    bombs = {
        b"]r\xff\xff\xff\x0f.": "more memory than its contents need",
        b"]p268435455\n.": "more memory than its contents need",
        b"]p-1\n.": "more memory than its contents need",
        b"\x80\x04\x95" + (1 << 32).to_bytes(8, "little"): "more memory than its contents need",
        b"\x8e" + (1 << 32).to_bytes(8, "little"): "more memory than its contents need",
        b"\x8e" + b"\xff" * 8: "more memory than its contents need",
        b"\x8b" + b"\xff" * 4: "more memory than its contents need",
        b"\x8f" * ((1 << 20) + 1): "more than 1048576 steps",
        b"]": "cut off or no pickle",
        b"cnumpy\nndarray": "more memory than its contents need",
        b"": "unreadable contents",
    }
    _check_within_a_gib("data.read_pickle(Path(path))", _written(tmp_path, bombs))


def _written(folder, contents):
    """Files with these contents. Returns: their words by path."""
    found = {}
    for i, (content, words) in enumerate(contents.items()):
        (folder / str(i)).write_bytes(content)
        found[folder / str(i)] = words
    return found


def _zip_of_large_images(root):
    with zipfile.ZipFile(root / "images.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for i in range(3):
            with file.open(f"images/{i}.png", "w") as member:
                for _ in range(60):
                    member.write(bytes(1 << 20))
    for i, stem in enumerate(("train", "val", "test")):
        (root / f"{stem}.csv").write_text(f"filename,label\n{i}.png,n{i}\n")


def _zip_with_a_large_list(root):
    _zip_of_large_images(root)
    for stem in ("train", "val", "test"):
        (root / f"{stem}.csv").unlink()
    with zipfile.ZipFile(root / "split_lists.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("mini/train.csv", b"a\n" * (50 << 20))


def _zip_of_many_members(root):
    """A list of members that is larger than any data set's."""
    _zip_of_large_images(root)
    content = (root / "images.zip").read_bytes()
    end = content.rindex(b"PK\5\6")
    record = bytearray(content[end:])
    record[12:16] = (1 << 26).to_bytes(4, "little")
    (root / "images.zip").write_bytes(content[:end] + bytes(1 << 20) + record)


def test_zip_files_that_are_bombs(tmp_path):
    expected = {
        _zip_of_large_images: "cannot identify image file",
        _zip_with_a_large_list: "train.csv has 104857600 bytes, expected at most 8388608",
        _zip_of_many_members: "its list of members, has 67108864 bytes, expected at most 33554432",
    }
    for make in expected:
        (tmp_path / make.__name__).mkdir()
        make(tmp_path / make.__name__)
    call = "data.open_dataset('miniimagenet', path, n_way=1, cache=path + '-cache', reporter=data.SilentReporter())"
    _check_within_a_gib(call, {tmp_path / make.__name__: words for make, words in expected.items()})


# ------------------------------------------------------------------------------------------- zip and lists


@pytest.mark.parametrize("method", [1, 6, 9, 12, 14, 93, 95, 97, 99])
@pytest.mark.parametrize("encrypted", [False, True])
def test_odd_zip_files(tmp_path, method, encrypted):
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("images/0.png", bytes(1000))
    content = bytearray(archive.read_bytes())
    for begin, flags in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        at = content.index(begin) + flags
        content[at : at + 4] = int(encrypted).to_bytes(2, "little") + method.to_bytes(2, "little")
    archive.write_bytes(content)
    with pytest.raises(DataError, match="images/0.png has (another compression|unreadable contents)"):
        files.open_zip(archive)[0].read()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_in_a_zip_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        for content in (b"one", b"two"):
            file.writestr("images/0.png", content)
    with pytest.raises(DataError, match="images.zip has 'images/0.png' twice"):
        files.open_zip(tmp_path / "images.zip")


@pytest.mark.parametrize(
    ("stem", "rows", "words"),
    [
        ("train", ["0.png,n0", "0.png,n0", "1.png,n0"], r"an image: has '0.png' twice \(train.csv\)"),
        ("train", ["0.png,n0", "1.png,n0", "0.png,n9"], r"an image: has '0.png' twice \(train.csv\)"),
        ("test", ["0.png,n2", "7.png,n2", "8.png,n2"], r"an image: has '0.png' twice \(train.csv and test.csv\)"),
        ("test", ["6.png,n0", "7.png,n0", "8.png,n0"], r"a class: has 'n0' twice \(train.csv and test.csv\)"),
        ("val", ["0.png,n0", "1.png,n0", "2.png,n0"], r"an image: has '0.png' twice \(train.csv and val.csv\)"),
        ("val", ["3.png,n1\0", "x\0.png,n1"], "val.csv names x\0.png, expected it in images"),
        ("val", ["3.png," + "n" * (csv.field_size_limit() + 1)], "val.csv has unreadable contents .field larger than field limit"),
        ("val", ['3.png,"n1'], None),
    ],
)
def test_csv_lists_of_strangers(tmp_path, stem, rows, words):
    attacks._make_mini(tmp_path)
    (tmp_path / f"{stem}.csv").write_text("\n".join(["filename,label", *rows]))
    if words is None:
        assert opened("miniimagenet", tmp_path, tmp_path / "cache").validation.class_names == ("n1",)
    else:
        with pytest.raises(DataError, match=words):
            opened("miniimagenet", tmp_path, tmp_path / "cache")


@pytest.mark.parametrize(
    ("stem", "lines", "words"),
    [
        ("train", ["Alpha0/character01/rot000"] * 2, "train.txt has 'Alpha0/character01/rot000' twice"),
        ("train", ["Alpha0/character01/rot090", "Alpha0/character01"], "train.txt has 'Alpha0/character01/rot090' twice"),
        ("test", ["Alpha0/character01"], r"has 'Alpha0/character01' twice \(train and test\)"),
        ("val", ["Alpha0/character01/rot000"], r"has 'Alpha0/character01' twice \(train and validation\)"),
    ],
)
def test_character_lists_of_strangers(tmp_path, stem, lines, words):
    attacks._make_omniglot(tmp_path)
    (tmp_path / f"{stem}.txt").write_text("\n".join(lines))
    with pytest.raises(DataError, match=words):
        opened("omniglot", tmp_path, tmp_path / "cache", image_size=12)


def test_validation_characters_are_trained_on_by_name_only(tmp_path):
    """With train_on="trainval"; none of them may be a test character."""
    attacks._make_omniglot(tmp_path)
    (tmp_path / "trainval.txt").write_text((tmp_path / "train.txt").read_text() + (tmp_path / "val.txt").read_text())
    options = {"image_size": 12, "train_on": "trainval"}
    assert opened("omniglot", tmp_path, tmp_path / "cache", **options).train.n_classes == 16
    (tmp_path / "val.txt").write_text((tmp_path / "test.txt").read_text())
    with pytest.raises(DataError, match=r"has 'Alpha2/character01' twice \(validation and test\)"):
        opened("omniglot", tmp_path, tmp_path / "cache", **options)


def test_a_character_of_both_trees(tmp_path):
    attacks._make_omniglot(tmp_path)
    (tmp_path / "images_evaluation" / "Alpha0" / "character01").mkdir(parents=True)
    with pytest.raises(DataError, match=r"has 'Alpha0/character01' twice \(images_background and images_evaluation\)"):
        opened("omniglot", tmp_path, tmp_path / "cache", split="alphabets")


def test_a_pickle_with_an_image_of_two_classes(tmp_path):
    for stem, wnids in (("train", "ab"), ("val", "c"), ("test", "d")):
        rows = {w: [2 * i, 2 * i + 1] for i, w in enumerate(wnids)}
        contents = {"image_data": np.zeros((4, 8, 8, 3), np.uint8), "class_dict": rows}
        (tmp_path / f"mini-imagenet-cache-{stem}.pkl").write_bytes(pickle.dumps(contents))
    assert opened("miniimagenet", tmp_path, tmp_path / "cache", image_size=8).train.n_classes == 2
    for stem, rows, words in (
        ("train", {"a": [0, 1], "b": [1, 2]}, r"class_dict, has '1' twice \(a and b\)"),
        ("train", {"a": [0, 0], "b": [2]}, r"class_dict, has '0' twice \(a\)"),
        ("test", {"a": [0, 1]}, r"the pickles has 'a' twice \(train and test\)"),
    ):
        path = tmp_path / f"mini-imagenet-cache-{stem}.pkl"
        before = path.read_bytes()
        path.write_bytes(pickle.dumps({"image_data": np.zeros((4, 8, 8, 3), np.uint8), "class_dict": rows}))
        with pytest.raises(DataError, match=words):
            opened("miniimagenet", tmp_path, tmp_path / "cache", image_size=8)
        path.write_bytes(before)


def test_folders_that_are_links_to_each_other(tmp_path):
    for split in ("train", "val"):
        for c in range(2):
            save(tmp_path / split / f"{split}{c}" / "0.png", grey(c))
    (tmp_path / "test").symlink_to(tmp_path / "train")
    with pytest.raises(DataError, match=r"train' twice \(train and test\)"):
        opened("folder", tmp_path, tmp_path / "cache")
    (tmp_path / "test").unlink()
    save(tmp_path / "test" / "a" / "0.png", grey(5))
    (tmp_path / "test" / "b").symlink_to(tmp_path / "test" / "a")
    with pytest.raises(DataError, match="test/a' twice"):
        opened("folder", tmp_path, tmp_path / "cache")
    (tmp_path / "test" / "b").unlink()
    (tmp_path / "valid").mkdir()
    with pytest.raises(DataError, match="has val and valid, expected one folder for this split"):
        opened("folder", tmp_path, tmp_path / "cache")
    (tmp_path / "valid").rmdir()
    (tmp_path / "test" / "loop").symlink_to(tmp_path / "test" / "loop")
    with pytest.raises(DataError, match="folder: .* has unreadable contents .*symbolic links"):
        opened("folder", tmp_path, tmp_path / "cache")


# ------------------------------------------------------------------------------------------------- places


def test_roots_and_folders_that_cannot_be(tmp_path, monkeypatch):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for place in ("x" * 5000, "/x" * 5000, "a\0b", tmp_path / "a", "~nobody-of-this-name/data"):
        for name in ("folder", "omniglot", "miniimagenet"):
            with pytest.raises(DataError, match=f"{name}: root .*(cannot be looked up|is no folder)"):
                opened(name, place, tmp_path / "cache")
        with pytest.raises(DataError, match="folder|class folders"):
            read_support_folder(place, (8, 8, 1))
        with pytest.raises(DataError, match="unreadable contents"):
            read_images([place], (8, 8, 1))
    (tmp_path / "root").mkdir()
    attacks._make_mini(tmp_path / "root")
    for place in ("x" * 5000, "a\0b", tmp_path / "a" / "cache"):
        with pytest.raises(DataError, match="cache: writing under .* failed"):
            opened("miniimagenet", tmp_path / "root", place)
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(DataError, match="folder: root data (cannot be looked up|is no folder)"):
        opened("folder", "data", tmp_path / "cache")
    with pytest.raises(DataError, match="cache: writing under cache failed .No such file"):
        opened("miniimagenet", tmp_path / "root", "cache")


def test_a_pipe_in_the_cache_is_replaced(tmp_path):
    attacks.KINDS["cache entry"].make(tmp_path)
    (entry,) = (tmp_path / "cache").iterdir()
    whole = entry.read_bytes()
    entry.unlink()
    os.mkfifo(entry)
    attacks._read_cache(tmp_path)
    assert entry.read_bytes() == whole and cache_dir(tmp_path / "cache") == tmp_path / "cache"
