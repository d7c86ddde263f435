"""Image files: decoding, one's own images for prediction, and what damaged, hostile and forbidden files cause."""

import io
import os
import struct
import tracemalloc
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from trees import grey, opened, save

from hypergrad.data import cache, decode, files, open_dataset, read_images, read_support_folder
from hypergrad.errors import ArgumentError, DataError


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_give_the_same_images(tmp_path, monkeypatch, threads):
    pools = []
    monkeypatch.setattr(cache, "ThreadPoolExecutor", lambda n: pools.append(n) or ThreadPoolExecutor(n))
    monkeypatch.setattr(cache, "_THREADS_FROM_BYTES", {1: 10**6, 4: 1}[threads])
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (12, 3, 40, 30, 3), dtype=np.uint8)
    for c, j in np.ndindex(12, 3):
        save(tmp_path / "root" / f"c{c:02d}" / f"{j}.png", images[c, j])
    data = opened("folder", tmp_path / "root", tmp_path / "cache")
    for split in (data.train, data.validation, data.test):
        for c, name in enumerate(split.class_names):
            assert (split.class_images(c) == images[int(name[1:])]).all()
    assert pools == [threads]
    (tmp_path / "root" / "c07" / "1.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match="c07.*1.png has unreadable contents"):
        opened("folder", tmp_path / "root", tmp_path / "cache")


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
    try:
        images, _ = read_images([path], (8, 8, 3))
    except DataError as error:
        assert path.name in str(error)
    else:
        assert images.shape == (1, 8, 8, 3)


# ---------------------------------------------------------------------------------- one's own images


def test_own_images_are_read_as_the_folder_data_set_reads_them(tmp_path):
    rng = np.random.default_rng(1)
    root = tmp_path / "root"
    for c in range(3):
        save(root / f"c{c}" / "0.png", rng.integers(0, 256, (40 + c, 50, 3), dtype=np.uint8))
    for invert in (False, True):
        data = open_dataset("folder", root, cache=tmp_path / "cache", n_way=1, image_size=(41, 50), invert=invert)
        paths = [str(root / split.class_names[0] / "0.png") for split in (data.train, data.validation, data.test)]
        images, resized = read_images(paths, data.image_shape, invert=invert)
        assert (images == np.concatenate([data.train.images, data.validation.images, data.test.images])).all()
        assert sorted(resized) == [root / "c0" / "0.png", root / "c2" / "0.png"]
    images, resized = read_images([], (28, 28, 1))
    assert images.shape == (0, 28, 28, 1) and images.dtype == np.uint8 and resized == []


def test_a_folder_of_examples(tmp_path):
    for name, values in (("b", (1, 2)), ("a", (3,)), (".hidden", (9,))):
        for j, value in enumerate(values):
            save(tmp_path / name / f"{j}.png", grey(value))
    save(tmp_path / "a" / "9.png", grey(4, (21, 30)))
    images, labels, names, resized = read_support_folder(tmp_path, (20, 30, 1))
    assert names == ("a", "b") and labels.tolist() == [0, 0, 1, 1] and labels.dtype == np.int64
    assert images[:, 0, 0, 0].tolist() == [3, 4, 1, 2] and images.shape == (4, 20, 30, 1)
    assert resized == [tmp_path / "a" / "9.png"]
    (tmp_path / "c").mkdir()
    with pytest.raises(DataError, match=r"a: 2 images, b: 2 images, c: 0 images.*two or more with images in each; add them"):
        read_support_folder(tmp_path, (20, 30, 1))
    with pytest.raises(DataError, match="class folders .none., expected two or more"):
        read_support_folder(tmp_path / "a", (20, 30, 1))


@pytest.mark.parametrize("image_size", [(28, 28), (28, 28, 2), (28, 3, 1), (28, 28, 1, 1)])
def test_sizes_that_cannot_be(image_size):
    with pytest.raises(ArgumentError, match="image_size is"):
        read_images([], image_size)


# ------------------------------------------------------------------------------------------ the guard


def _png_of_size(width, height):
    """A PNG file of a few bytes that claims to be so large."""

    def chunk(kind, contents):
        return struct.pack(">I", len(contents)) + kind + contents + struct.pack(">I", zlib.crc32(kind + contents))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def _stored(image_format="PNG"):
    stored = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)).save(stored, image_format)
    return stored.getvalue()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.write_bytes(b""), "unreadable contents"),
        (lambda path: path.write_bytes(_stored()[:-900]), "truncated"),
        (lambda path: path.write_bytes(_stored("JPEG")[:-900]), "truncated"),
        (lambda path: path.write_bytes(b"GIF89a"), "unreadable contents"),
        (lambda path: path.write_bytes(_png_of_size(60_000, 60_000)), "decompression bomb"),
        (lambda path: (path.touch(), os.truncate(path, files.MAX_BYTES + 1)), f"expected at most {files.MAX_BYTES}; replace or remove"),
    ],
)
def test_files_that_are_no_images(tmp_path, make, words):
    path = tmp_path / "image.png"
    make(path)
    with pytest.raises(DataError, match=f"image.png has .*{words}"):
        read_images([path], (28, 28, 1))


@pytest.mark.parametrize("call", [lambda path: files.list_classes(path, 1), lambda path: read_images([path / "0.png"], (28, 28, 1))])
def test_what_the_system_refuses_names_the_place(tmp_path, monkeypatch, call):
    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    with pytest.raises(DataError, match="secret.* has unreadable contents .*Permission denied.*restore or remove it"):
        call(tmp_path / "secret")


def _patched(archive, offset, value):
    """Overwrite a 4-byte field of the zip file's directory entry."""
    contents = bytearray(archive.read_bytes())
    start = contents.index(b"PK\x01\x02") + offset
    contents[start : start + 4] = struct.pack("<I", value)
    archive.write_bytes(bytes(contents))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: _patched(path, 24, files.MAX_BYTES + 1), f"has {files.MAX_BYTES + 1} bytes, expected at most"),  # uncompressed size
        (lambda path: _patched(path, 24, 1000), "Bad CRC-32"),  # a bomb that hides its size
        (lambda path: _patched(path, 20, 100), "unreadable contents"),  # compressed size
        (lambda path: _patched(path, 16, 7), "Bad CRC-32"),
        (lambda path: _patched(path, 8, 8 << 16 | 1), "unreadable contents .*password"),  # encrypted
        (lambda path: _patched(path, 8, 1 << 16), "another compression, expected stored or deflated"),
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "zip file: .*unreadable contents"),
        (lambda path: path.write_bytes(b"no zip file"), "zip file: .*unreadable contents"),
        (lambda path: path.unlink(), "zip file: .*unreadable contents .*No such file"),
    ],
)
def test_damaged_zip_files(tmp_path, damage, words):
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("images/0.png", bytes(50_000_000))
    damage(archive)
    with pytest.raises(DataError, match=words):
        files.open_zip(archive)[0].read()


def test_a_bomb_is_not_decompressed(tmp_path):
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        archive = tmp_path / f"{method}.zip"
        with zipfile.ZipFile(archive, "w", method) as file:
            file.writestr("0.png", bytes(50_000_000))
        _patched(archive, 24, 1000)
        tracemalloc.start()
        with pytest.raises(DataError):
            files.open_zip(archive)[0].read()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2_000_000


def test_names_that_lead_out_of_a_zip_file_are_left_out(tmp_path):
    archive = tmp_path / "images.zip"
    inside = ["images/a/0.png", "images/a/notes.txt", "images/b/"]
    outside = [
        "../a/0.png",
        "/images/a/1.png",
        "images/../2.png",
        "images/a/../3.png",
        "images/../a/4.png",
        "images/.a/5.png",
        "images/6.png",
    ]
    with zipfile.ZipFile(archive, "w") as file:
        for name in inside + outside:
            file.writestr(name, b"")
    found = files.list_classes(archive, 1, within="images")
    assert {name: [file.member for file in own] for name, own in found.items()} == {"a": ["images/a/0.png"], "b": []}


def test_nothing_is_downloaded():
    """No module of the package's data part imports anything that talks to a network."""
    for path in Path(decode.__file__).parent.glob("*.py"):
        words = path.read_text("utf-8")
        for module in ("urllib", "requests", "socket", "http.client", "httpx", "ftplib"):
            assert f"import {module}" not in words and f"from {module}" not in words
