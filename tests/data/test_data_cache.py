"""The cache: decoded once, mapped afterwards, rebuilt when damaged, and nothing left behind on failure."""

import errno
import json
import os
import shutil
import threading
import time

import numpy as np
import pytest

from hypergrad.data import Reporter, SilentReporter, cache, cache_dir
from hypergrad.errors import DataError, ShapeError


class Toy:
    """Three splits of random classes; counts how often it is decoded."""

    name = "toy"
    notes = ("a note",)

    def __init__(self, seed=0, shape=(8, 8, 3), counts=(5, 7, 6), empty=""):
        self.seed, self.shape, self.counts, self.empty = seed, shape, counts, empty
        self.decoded = 0

    @property
    def options(self):
        return {"seed": self.seed}

    @property
    def key(self):
        return {"seed": self.seed, "shape": list(self.shape)}

    def plan(self):
        def blocks():
            self.decoded += 1
            rng = np.random.default_rng(self.seed)
            for count in self.counts:
                yield rng.integers(0, 256, (count, *self.shape), dtype=np.uint8)

        names = tuple(f"class{i}" for i in range(len(self.counts)))
        return {
            split: cache.SplitPlan(() if self.empty == split else names, () if self.empty == split else self.counts, self.shape, blocks)
            for split in cache.SPLITS
        }


def everything(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_decoded_once_and_mapped_afterwards(tmp_path):
    source, reporter = Toy(), SilentReporter()
    first = cache.load(source, tmp_path / "deep" / "cache", reporter)
    second = cache.load(source, tmp_path / "deep" / "cache", reporter)
    assert source.decoded == 3 and reporter.finished == {"decoding toy": 54} and reporter.messages == []
    for data in (first, second):
        assert isinstance(data.train.images, np.memmap) and not data.train.images.flags.writeable
        assert data.train.class_names == ("class0", "class1", "class2")
        assert data.train.sizes.tolist() == [5, 7, 6]
        assert data.options == {"seed": 0} and data.notes == ("a note",)
    expected = np.concatenate(list(source.plan()["train"].blocks()))
    assert (second.train.images == expected).all() and (second.test.images == expected).all()


def test_another_key_is_another_entry(tmp_path):
    one = cache.load(Toy(seed=1), tmp_path, SilentReporter())
    two = cache.load(Toy(seed=2), tmp_path, SilentReporter())
    assert (one.train.images != two.train.images).any()
    assert len(list(tmp_path.iterdir())) == 2


def _truncate(entry):
    with open(entry / "train.npy", "r+b") as file:
        file.truncate(1000)


def _flip_a_bit(entry):
    with open(entry / "test.npy", "r+b") as file:
        file.seek(2000)
        byte = file.read(1)[0]
        file.seek(2000)
        file.write(bytes([byte ^ 1]))


def _break_the_header(entry):
    with open(entry / "train.npy", "r+b") as file:
        file.write(b"X")


def _cut_the_metadata(entry):
    text = (entry / "meta.json").read_text()
    (entry / "meta.json").write_text(text[: len(text) // 2])


def _change_the_counts(entry):
    meta = json.loads((entry / "meta.json").read_text())
    meta["splits"]["test"]["counts"][0] += 1
    (entry / "meta.json").write_text(json.dumps(meta))


def _remove_a_file(entry):
    (entry / "validation.npy").unlink()


def _put_a_file_in_its_place(entry):
    shutil.rmtree(entry)
    entry.write_text("not a folder")


@pytest.mark.parametrize("damage", [_truncate, _flip_a_bit, _break_the_header, _cut_the_metadata, _change_the_counts, _remove_a_file])
def test_a_damaged_entry_is_rebuilt_visibly(tmp_path, damage):
    source = Toy()
    before = np.array(cache.load(source, tmp_path, SilentReporter()).test.images)
    (entry,) = tmp_path.iterdir()
    damage(entry)
    reporter = SilentReporter()
    after = cache.load(source, tmp_path, reporter)
    assert len(reporter.messages) == 1 and "is damaged" in reporter.messages[0]
    assert source.decoded == 6 and (after.test.images == before).all()
    assert list(tmp_path.iterdir()) == [entry]
    cache.load(source, tmp_path, reporter)
    assert source.decoded == 6


def test_large_files_are_checked_by_sample(tmp_path):
    # 24 MiB a split: the middle block is sampled, and so are the first and the last
    source = Toy(shape=(512, 512, 3), counts=(16, 8, 8))
    cache.load(source, tmp_path, SilentReporter())
    (entry,) = tmp_path.iterdir()
    size = (entry / "train.npy").stat().st_size
    for place in (300, size - 1):
        with open(entry / "train.npy", "r+b") as file:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 255]))
        reporter = SilentReporter()
        cache.load(source, tmp_path, reporter)
        assert len(reporter.messages) == 1


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


@pytest.mark.parametrize("room", [0, 200, 3000])
def test_a_full_disk_while_writing(tmp_path, monkeypatch, room):
    folder = tmp_path / "cache"
    monkeypatch.setattr(cache, "open", lambda *a: _FullDisk(open(*a), room), raising=False)
    with pytest.raises(DataError, match="no space left.*free space, or set HYPERGRAD_CACHE"):
        cache.load(Toy(), folder, SilentReporter())
    assert everything(folder) == []
    monkeypatch.undo()
    assert cache.load(Toy(), folder, SilentReporter()).train.n_images == 18


def test_a_disk_that_will_be_full_is_noticed_before_decoding(tmp_path, monkeypatch):
    source = Toy(shape=(512, 512, 3))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=30 * 2**20))
    with pytest.raises(DataError, match="has 30 MiB free, expected 40 MiB .* HYPERGRAD_CACHE"):
        cache.load(source, tmp_path, SilentReporter())
    assert source.decoded == 0 and everything(tmp_path) == []


def test_a_failure_while_decoding_leaves_nothing(tmp_path):
    source = Toy()
    plans = source.plan()

    def broken():
        yield np.zeros((5, 8, 8, 3), np.uint8)
        raise DataError("image: x.png has damaged contents")

    plans["test"] = cache.SplitPlan(plans["test"].class_names, (5, 7, 6), (8, 8, 3), broken)
    source.plan = lambda: plans
    with pytest.raises(DataError, match="x.png"):
        cache.load(source, tmp_path, SilentReporter())
    assert everything(tmp_path) == []


def test_a_source_that_breaks_its_plan_is_caught(tmp_path):
    source = Toy()
    plans = source.plan()
    plans["train"] = cache.SplitPlan(("a",), (5,), (8, 8, 3), lambda: iter([np.zeros((4, 8, 8, 3), np.uint8)]))
    source.plan = lambda: plans
    with pytest.raises(ShapeError, match="because the plan says so"):
        cache.load(source, tmp_path, SilentReporter())
    assert everything(tmp_path) == []


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="permission to write.*set HYPERGRAD_CACHE"):
        cache.load(Toy(), tmp_path / "file" / "cache", SilentReporter())


def test_a_file_in_the_place_of_an_entry(tmp_path):
    cache.load(Toy(), tmp_path, SilentReporter())
    (entry,) = tmp_path.iterdir()
    _put_a_file_in_its_place(entry)
    with pytest.raises(DataError, match="set HYPERGRAD_CACHE"):
        cache.load(Toy(), tmp_path, SilentReporter())
    assert list(tmp_path.iterdir()) == [entry]


def test_empty_classes_and_splits(tmp_path):
    with pytest.raises(DataError, match="class 'class1' of split 'train' has 0 images"):
        cache.load(Toy(counts=(5, 0, 6)), tmp_path, SilentReporter())
    with pytest.raises(DataError, match="split 'validation' has 0 classes"):
        cache.load(Toy(empty="validation"), tmp_path, SilentReporter())
    assert everything(tmp_path) == []


def test_two_writers_at_once(tmp_path):
    barrier = threading.Barrier(4)
    results, errors = [], []

    def build():
        source = Toy()
        plan = source.plan
        source.plan = lambda: (barrier.wait(), plan())[1]
        try:
            results.append(np.array(cache.load(source, tmp_path, SilentReporter()).train.images))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and len(results) == 4
    assert all((r == results[0]).all() for r in results)
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_process_left_is_removed_after_a_day(tmp_path):
    old, young = tmp_path / ".toy-1-x.tmp", tmp_path / ".toy-2-x.tmp"
    for folder in (old, young):
        folder.mkdir()
        (folder / "train.npy").write_bytes(b"half")
    os.utime(old, (time.time() - 90000,) * 2)
    cache.load(Toy(), tmp_path, SilentReporter())
    assert not old.exists() and young.exists()


def test_where_the_cache_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("HYPERGRAD_CACHE", str(tmp_path / "chosen"))
    assert cache_dir() == tmp_path / "chosen"
    assert cache_dir(tmp_path / "given") == tmp_path / "given"
    monkeypatch.delenv("HYPERGRAD_CACHE")
    assert cache_dir().name == "hypergrad" and cache_dir().is_absolute()


def test_the_default_reporter_draws_on_standard_error(tmp_path, capsys):
    reporter = Reporter()
    reporter.message("cache: [x] is damaged")
    cache.load(Toy(), tmp_path, reporter)
    captured = capsys.readouterr()
    assert "cache: [x] is damaged" in captured.err and captured.out == ""
