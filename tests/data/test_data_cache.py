"""The cache: decoded once, mapped afterwards, rebuilt when damaged, and nothing left behind on failure."""

import contextlib
import errno
import io
import os
import shutil
import threading
import time
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
from rich.console import Console

from hypergrad.data import Reporter, SilentReporter, cache, cache_dir
from hypergrad.errors import DataError, ShapeError

SIZES = (5, 7, 6)


@dataclass
class Toy:
    """Three splits of random classes; counts the classes that are decoded."""

    seed: int = 0
    shape: tuple = (8, 8, 3)
    counts: dict = field(default_factory=dict)  # split -> images of each class, where it is not SIZES
    drawn: tuple = SIZES
    decoded: int = 0

    @property
    def source(self):
        return cache.Source("toy", {"seed": self.seed}, {"seed": self.seed, "shape": self.shape}, self.shape, self.plan, ("a note",))

    def plan(self):
        def plan(counts):
            return [cache.Block((f"class{i}",), n, partial(self.images, i)) for i, n in enumerate(counts)]

        return {split: plan(self.counts.get(split, SIZES)) for split in ("train", "validation", "test")}

    def images(self, i):
        self.decoded += 1
        return np.random.default_rng([self.seed, i]).integers(0, 256, (self.drawn[i], *self.shape), dtype=np.uint8)


def load(toy, folder, reporter=None, **options):
    return cache.load(toy.source, folder, reporter or SilentReporter(), **options)


def entry_of(folder):
    (entry,) = folder.iterdir()
    return entry


def change(path, place):
    """Turn one bit of a byte, counted from the end where place is negative."""
    contents = bytearray(path.read_bytes())
    contents[place] ^= 1
    path.write_bytes(bytes(contents))


def test_decoded_once_and_mapped_afterwards(tmp_path):
    toy, reporter, ticks = Toy(), SilentReporter(), []
    reporter.progress = lambda *_: contextlib.nullcontext(ticks.append)
    expected = np.concatenate([toy.images(i) for i in range(3)])
    data = [load(toy, tmp_path / "deep" / "cache", reporter) for _ in range(2)]
    assert toy.decoded == 12 and sum(ticks) == 54 and reporter.messages == []
    for split in (data[i].split(name) for i in (0, 1) for name in ("train", "validation", "test")):
        assert isinstance(split.images, np.memmap) and not split.images.flags.writeable
        assert split.class_names == ("class0", "class1", "class2") and split.sizes.tolist() == [5, 7, 6]
        assert (split.images == expected).all()
    assert data[1].options == {"seed": 0} and data[1].notes == ("a note",)


def test_another_key_is_another_entry(tmp_path):
    one, two = (load(Toy(seed=seed), tmp_path) for seed in (1, 2))
    assert (one.train.images != two.train.images).any() and len(list(tmp_path.iterdir())) == 2


def test_classes_may_be_turned():
    plain = Toy().plan()["train"][0]
    turned = plain.turned([0, 3])
    assert turned.names == ("class0/rot000", "class0/rot270") and turned.n_each == 5
    assert (turned.decode() == np.concatenate([plain.decode(), np.rot90(plain.decode(), 3, (1, 2))])).all()


def test_classes_decoded_at_once_lie_one_after_the_other(tmp_path):
    toy = Toy()
    plan = {split: [block.turned(range(4)) for block in blocks] for split, blocks in toy.plan().items()}
    data = cache.load(toy.source._replace(plan=lambda: plan), tmp_path, SilentReporter())
    assert data.test.sizes.tolist() == [5] * 4 + [7] * 4 + [6] * 4 and data.test.class_names[5] == "class1/rot090"
    assert (data.test.class_images(5) == np.rot90(toy.images(1), axes=(1, 2))).all()


# An entry has 10,496 bytes of header and images, then its description.
@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: change(entry, 0),
        lambda entry: change(entry, 2000),
        lambda entry: change(entry, 10_400),
        lambda entry: change(entry, -20),
        lambda entry: change(entry, -8),
        lambda entry: change(entry, -5),
        lambda entry: change(entry, -1),
        lambda entry: os.truncate(entry, 5000),
        lambda entry: os.truncate(entry, entry.stat().st_size - 1),
        lambda entry: os.truncate(entry, 5),
        lambda entry: os.truncate(entry, 0),
    ],
)
def test_a_damaged_entry_is_rebuilt_visibly(tmp_path, damage):
    toy, reporter = Toy(), SilentReporter()
    before = np.array(load(toy, tmp_path).test.images)
    entry = entry_of(tmp_path)
    whole = entry.read_bytes()
    damage(entry)
    after = load(toy, tmp_path, reporter)
    assert len(reporter.messages) == 1 and "has unreadable contents" in reporter.messages[0]
    assert toy.decoded == 18 and (after.test.images == before).all()
    assert entry_of(tmp_path) == entry and entry.read_bytes() == whole
    load(toy, tmp_path, reporter)
    assert toy.decoded == 18


def test_large_files_are_checked_by_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_N_BLOCKS", 16)  # of 163
    toy, reporter = Toy(shape=(256, 256, 3)), SilentReporter()
    load(toy, tmp_path)
    with open(entry_of(tmp_path), "rb") as file:
        n_bytes = len(file.readline()) + 3 * 18 * 256 * 256 * 3
    for place in (300, 54 * 65536, n_bytes - 1):  # in the first block, one between (54 = 5 * 162 // 15) and the last
        change(entry_of(tmp_path), place)
        load(toy, tmp_path, reporter)
    assert len(reporter.messages) == 3


class _FullDisk:
    """A file that takes so many bytes and then fails like a full disk."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        self.room -= len(bytes(data))
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)


@pytest.mark.parametrize("room", [0, 200, 3000, 10_500])
def test_a_full_disk_while_writing(tmp_path, monkeypatch, room):
    monkeypatch.setattr(cache, "open", lambda *a: _FullDisk(open(*a), room), raising=False)
    with pytest.raises(DataError, match="No space left.*free space, or set HYPERGRAD_CACHE"):
        load(Toy(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert load(Toy(), tmp_path).train.n_images == 18


def test_a_disk_that_will_be_full_is_noticed_before_decoding(tmp_path, monkeypatch):
    toy, usage = Toy(shape=(512, 512, 3)), shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=30 * 2**20))
    with pytest.raises(DataError, match="has 30 MiB free, expected 41 MiB .* HYPERGRAD_CACHE"):
        load(toy, tmp_path)
    assert toy.decoded == 0 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("toy", "error", "words", "decoded"),
    [
        (Toy(drawn=(5, 4, 6)), ShapeError, r"class 'class1' decoded to \(4, .* expected \(7, .*because the plan says so", True),
        (Toy(drawn=(5, 7)), IndexError, "out of range", True),
        (Toy(counts={"train": (5, 0, 6)}), DataError, "class 'class1' of split 'train' has 0 images.*add images or remove", False),
        (Toy(counts={"validation": ()}), DataError, "split 'validation' has 0 classes, expected at least 2 .*; add classes", False),
        (Toy(counts={"test": (5,)}), DataError, "split 'test' has 1 classes, expected at least 2", False),
    ],
)
def test_a_faulty_source_leaves_nothing(tmp_path, toy, error, words, decoded):
    with pytest.raises(error, match=words):
        load(toy, tmp_path, n_way=2)
    assert bool(toy.decoded) == decoded and list(tmp_path.iterdir()) == []


def test_an_interrupt_while_decoding_leaves_nothing(tmp_path):
    def tick(n):
        raise KeyboardInterrupt

    toy, reporter = Toy(), SilentReporter()
    reporter.progress = lambda *_: contextlib.nullcontext(tick)
    with pytest.raises(KeyboardInterrupt):
        load(toy, tmp_path, reporter)
    assert toy.decoded and list(tmp_path.iterdir()) == []


def test_too_few_classes_are_noticed_from_the_cache_too(tmp_path):
    load(Toy(), tmp_path)
    with pytest.raises(DataError, match=r"has 3 classes, expected at least 4 .*; add classes, or lower n_way \(--n-way\) to 3"):
        load(Toy(), tmp_path, n_way=4)


@pytest.mark.parametrize("in_the_way", ["file where the folder should be", "folder where the entry should be"])
def test_a_cache_that_cannot_be_written(tmp_path, in_the_way):
    if in_the_way.startswith("file"):
        folder = tmp_path / "file" / "cache"
        (tmp_path / "file").write_text("in the way")
    else:
        folder = tmp_path / "cache"
        load(Toy(), folder)
        entry = entry_of(folder)
        entry.unlink()
        entry.mkdir()
    with pytest.raises(DataError, match="permission to write.*set HYPERGRAD_CACHE"):
        load(Toy(), folder)
    assert not folder.exists() or list(folder.iterdir()) == [entry]


def test_four_writers_at_once(tmp_path):
    barrier = threading.Barrier(4)
    results = []

    def build():
        toy = Toy()
        plan = toy.plan
        toy.plan = lambda: (barrier.wait(), plan())[1]
        results.append(np.array(load(toy, tmp_path).train.images))

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all((r == results[0]).all() for r in results)
    assert entry_of(tmp_path).is_file()


def test_what_a_killed_process_left_is_removed_after_a_day(tmp_path):
    old, young, foreign = (tmp_path / f".{name}.tmp" for name in (f"toy-{'0' * 20}-a1_b2c3d", f"toy-{'1' * 20}-a1_b2c3d", "x"))
    for path in (old, young, foreign):
        path.write_bytes(b"half")
    folder = tmp_path / f".toy-{'2' * 20}-a1_b2c3d.tmp"
    folder.mkdir()
    for path in (old, foreign, folder):
        os.utime(path, (time.time() - 90000,) * 2)
    load(Toy(), tmp_path)
    assert not old.exists() and young.exists() and foreign.exists() and folder.exists()


def test_an_entry_under_another_name_is_not_taken_for_it(tmp_path):
    load(Toy(seed=1), tmp_path)
    one = entry_of(tmp_path)
    content = one.read_bytes()
    one.unlink()
    right = np.array(load(Toy(seed=2), tmp_path).test.images)
    entry_of(tmp_path).write_bytes(content)
    reporter = SilentReporter()
    assert (load(Toy(seed=2), tmp_path, reporter).test.images == right).all() and "other checksum" in reporter.messages[0]


def test_where_the_cache_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("HYPERGRAD_CACHE", str(tmp_path / "chosen"))
    assert cache_dir() == tmp_path / "chosen"
    assert cache_dir(tmp_path / "given") == tmp_path / "given"
    monkeypatch.delenv("HYPERGRAD_CACHE")
    assert cache_dir().name == "hypergrad" and cache_dir().is_absolute()


@pytest.mark.parametrize("terminal", [False, True])
def test_bars_are_drawn_on_terminals_alone(tmp_path, terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal)
    load(Toy(), tmp_path, Reporter(console))
    assert ("decoding toy" in console.file.getvalue()) == terminal == bool(console.file.getvalue())


def test_the_default_reporter_draws_on_standard_error(tmp_path, capsys):
    reporter = Reporter()
    reporter.message("cache: [x] is damaged")
    load(Toy(), tmp_path, reporter)
    captured = capsys.readouterr()
    assert "cache: [x] is damaged" in captured.err and captured.out == ""
