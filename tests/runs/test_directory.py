"""Run directories: nothing half written, one clear error per refusal of the disk, old files stay good."""

import errno
import json
import os

import numpy as np
import pytest
from full_disk import full_disk

from hypergrad.errors import RunError
from hypergrad.runs.directory import CONFIG, METRICS, STATE, RunDirectory


@pytest.fixture
def run(tmp_path):
    with RunDirectory.create(tmp_path / "run", {"format": 1}) as made:
        yield made


def names(run):
    return sorted(path.name for path in run.path.iterdir())


def test_create_makes_numbered_directories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for expected in ("glyphs-001", "glyphs-002"):
        with RunDirectory.create(None, {"a": 1}, "glyphs") as run:
            assert str(run.path) == f"runs/{expected}" and run.read_json(CONFIG) == {"a": 1}
    assert sorted(os.listdir("runs")) == ["glyphs-001", "glyphs-002"]


def test_create_never_overwrites(run, tmp_path):
    with pytest.raises(RunError, match="exists already.*--resume"):
        RunDirectory.create(run.path, {})
    (tmp_path / "file").write_text("precious")
    with pytest.raises(RunError, match="exists already"):
        RunDirectory.create(tmp_path / "file", {})
    assert (tmp_path / "file").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["file", "run"]


def test_create_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        RunDirectory.create(tmp_path / "file" / "run", {})


def test_a_run_in_use_is_refused_until_it_is_closed(run):
    with pytest.raises(RunError, match="in use by another process"):
        RunDirectory(run.path)
    with RunDirectory(run.path, locked=False) as reader:
        assert reader.read_json(CONFIG) == {"format": 1}
    run.close()
    RunDirectory(run.path).close()


def test_a_directory_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="has no config.json"):
        RunDirectory(tmp_path)
    assert os.listdir(tmp_path) == []


def test_unwritable_directory_is_refused(run, monkeypatch):
    def refuse(source, target, **folders):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(RunError, match="Permission denied.*check its permissions"):
        run.write("x", b"new")
    assert names(run) == [CONFIG, "lock"]


def test_tensors_round_trip_whatever_their_layout(run):
    tensors = {"scalar": np.float32(3.5).reshape(()), "transposed": np.arange(6.0).reshape(2, 3).T, "empty": np.zeros((0, 3), np.float32)}
    run.write_tensors(STATE, tensors, {"iteration": 3, "accuracy": 0.1 + 0.2})
    found, metadata = run.read_tensors(STATE)
    assert metadata == {"iteration": 3, "accuracy": 0.1 + 0.2}
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype and np.array_equal(found[name], value)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_tensors_are_refused(run, kept):
    path = run.write_tensors(STATE, {"a": np.ones((40, 40))}, {})
    content = path.read_bytes()
    path.write_bytes(content[:kept])
    with pytest.raises(RunError, match="is damaged"):
        run.read_tensors(STATE)


def test_foreign_and_missing_tensors_are_refused(run):
    with pytest.raises(RunError, match="does not exist"):
        run.read_tensors(STATE)
    from_elsewhere = b"\x02\x00\x00\x00\x00\x00\x00\x00{}"
    run.write(STATE, from_elsewhere)
    with pytest.raises(RunError, match="is damaged"):
        run.read_tensors(STATE)


def test_a_full_disk_leaves_the_previous_state(run):
    run.write_tensors(STATE, {"a": np.ones(3)}, {"iteration": 1})
    with full_disk(), pytest.raises(RunError, match="disk is full.*--resume"):
        run.write_tensors(STATE, {"a": np.zeros(3)}, {"iteration": 2})
    found, metadata = run.read_tensors(STATE)
    assert metadata == {"iteration": 1} and found["a"].tolist() == [1.0, 1.0, 1.0]
    assert names(run) == [CONFIG, "lock", STATE]
    run.write_tensors(STATE, {"a": np.zeros(3)}, {"iteration": 2})  # space has been made: it goes on
    assert run.read_tensors(STATE)[1] == {"iteration": 2}


def test_a_full_disk_is_told_for_metrics_too(run):
    with full_disk(10), pytest.raises(RunError, match="metrics.jsonl cannot be written because the disk is full"):
        run.append_metrics({"iteration": 1})


def test_a_refused_fsync_counts_as_not_written(run, monkeypatch):
    run.write_json("result.json", {"old": True})

    def refuse(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(RunError, match="disk is full"):
            run.write_json("result.json", {"old": False})
    assert run.read_json("result.json") == {"old": True} and names(run) == [CONFIG, "lock", "result.json"]


def test_metrics_are_truncated_to_whole_lines_that_count(run):
    for i in range(3):
        run.append_metrics({"iteration": i})
    length = run.metrics_bytes()
    run.append_metrics({"iteration": 3})
    with open(run.path / METRICS, "ab") as file:
        file.write(b'{"itera')
    assert [record["iteration"] for record in run.read_metrics()] == [0, 1, 2, 3]
    run.truncate_metrics(length)
    run.append_metrics({"iteration": 9})
    assert [record["iteration"] for record in run.read_metrics()] == [0, 1, 2, 9]


def test_damaged_json_is_refused(run):
    (run.path / "result.json").write_text('{"a": ')
    with pytest.raises(RunError, match="result.json cannot be read .*, expected JSON that hypergrad wrote"):
        run.read_json("result.json")
    (run.path / METRICS).write_text("nonsense\n")
    with pytest.raises(RunError, match="a line that is no JSON"):
        run.read_metrics()
    assert json.loads((run.path / CONFIG).read_text()) == {"format": 1}
