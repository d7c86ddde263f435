"""A run directory from a stranger, or a damaged one: nothing outside of it is written, and what is wrong is said before training."""

import json
import os
import shutil
import time
import zlib

import attacks
import numpy as np
import pytest
import tiny
from safetensors.numpy import save

from hypergrad.errors import RunError
from hypergrad.fewshot.config import load_config, make_config, read_config
from hypergrad.fewshot.prediction import predict
from hypergrad.runs.configuration import to_json
from hypergrad.runs.directory import CONFIG, METRICS, MODEL, RESULT, STATE, RunDirectory, write_file
from hypergrad.runs.loop import Training, load_model, train

LONGER = Training(iterations=16, eval_every=4)


@pytest.fixture
def run_of(tmp_path):
    """A whole run of 12 iterations, and how to go on with it."""
    attacks.KINDS[STATE].make(tmp_path)
    return tmp_path / "run"


def resume(path):
    with RunDirectory(path) as run:
        return train(run, LONGER, attacks._Quadratic())


# ---------------------------------------------------------------------------------------------- links


@pytest.mark.parametrize("name", [CONFIG, METRICS, MODEL, STATE, RESULT, "lock", "tensorboard", ".result.json.tmp", "notes"])
@pytest.mark.parametrize("locked", [True, False])
def test_a_link_in_a_run_is_refused_and_its_target_is_as_before(run_of, tmp_path, name, locked):
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    (run_of / name).unlink(missing_ok=True)
    (run_of / name).symlink_to(target)
    with pytest.raises(RunError, match="is a link, expected plain files|has no config.json"):
        RunDirectory(run_of, locked=locked)
    assert target.read_bytes() == b"precious" and (run_of / name).is_symlink()


def test_a_link_that_appears_later_is_not_followed(run_of, tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    with RunDirectory(run_of) as run:
        for name in (METRICS, RESULT, STATE):
            (run_of / name).unlink()
            (run_of / name).symlink_to(target)
        with pytest.raises(RunError, match=METRICS):
            run.append_metrics({"iteration": 1})
        with pytest.raises(RunError, match=METRICS):
            run.truncate_metrics(0)
        with pytest.raises(RunError, match=RESULT):
            run.read_json(RESULT)
        with pytest.raises(RunError, match=STATE):
            run.read_tensors(STATE)
        run.write_json(RESULT, {"new": True})  # replaces the link
    assert target.read_bytes() == b"precious" and json.loads((run_of / RESULT).read_text()) == {"new": True}


def test_temporary_names_cannot_be_guessed(run_of, monkeypatch):
    seen, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda source, *a, **k: (seen.append(source), replace(source, *a, **k)))
    with RunDirectory(run_of) as run:
        for _ in range(3):
            run.write_json(RESULT, {})
    assert len(set(seen)) == 3 and all(len(name) > len(RESULT) + 20 for name in seen)


def test_a_second_name_of_the_metrics_is_refused(run_of, tmp_path):
    os.link(run_of / METRICS, tmp_path / "copy")
    before = (tmp_path / "copy").read_bytes()
    with pytest.raises(RunError, match="second name"):
        resume(run_of)
    assert (tmp_path / "copy").read_bytes() == before


@pytest.mark.parametrize("name", [METRICS, MODEL, STATE, RESULT, "lock"])
def test_a_pipe_is_refused_without_waiting_for_it(run_of, name):
    (run_of / name).unlink()
    os.mkfifo(run_of / name)
    with pytest.raises(RunError, match=f"{name} .*(pipe|plain file|cannot be written)"), RunDirectory(run_of) as run:
        {METRICS: run.read_metrics, RESULT: lambda: run.read_json(RESULT)}.get(name, lambda: run.read_tensors(name))()


def test_what_a_killed_process_was_writing_is_cleared_away(run_of):
    left, foreign = run_of / f".{STATE}.{'0' * 16}.tmp", run_of / ".x.tmp"
    for path in (left, foreign):
        path.write_bytes(b"half")
    RunDirectory(run_of, locked=False).close()
    assert left.exists()
    RunDirectory(run_of).close()
    assert not left.exists() and foreign.exists()


def test_what_a_process_left_that_was_killed_in_create_is_cleared_away_a_day_later(tmp_path):
    """Only directories of that name, which are no links, and hold nothing else."""
    target, old = tmp_path / "target", time.time() - 2 * 86400
    kept = [tmp_path / name for name in (".new-abcdefg1", ".new-abcdefg2", ".new-abc", "new-abcdefg3")]
    gone = [tmp_path / ".new-abcdefg4", tmp_path / ".new-abcdefg5"]
    for path in (target, *kept, *gone):
        path.mkdir()
        (path / CONFIG).write_bytes(b"{")
    (gone[1] / f".{CONFIG}.{'0' * 16}.tmp").write_bytes(b"half")
    (kept[1] / "notes").write_bytes(b"precious")
    link = tmp_path / ".new-abcdefg6"
    link.symlink_to(target)
    for path in (target, *kept[1:], *gone):
        os.utime(path, (old, old))
    RunDirectory.create(tmp_path / "run", {}).close()
    assert not any(path.exists() for path in gone) and link.is_symlink()
    assert all((path / CONFIG).exists() for path in (target, *kept)) and (kept[1] / "notes").read_bytes() == b"precious"


def test_a_file_of_ones_own_choice(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_file(tmp_path / "link", b"one")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_bytes() == b"one"
    with pytest.raises(RunError, match="full cannot be written because the disk is full"):
        write_file(type(tmp_path)("/dev/full"), b"content")
    assert not os.path.isfile("/dev/full")


# ----------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("name", [MODEL, STATE])
def test_fifty_flipped_bits_are_noticed(run_of, tmp_path, name):
    """Anywhere behind the eight bytes of the header's length: in names, metadata, digest and arrays."""
    whole, rng = (run_of / name).read_bytes(), np.random.default_rng(0)
    with RunDirectory(run_of) as run:
        before = run.read_tensors(name)
        for place in rng.choice(np.arange(8, len(whole)), 50, replace=False):
            if whole[place : place + 1] == b" ":
                continue  # the header is filled up with blanks
            content = bytearray(whole)
            content[place] ^= 1 << rng.integers(8)
            (run_of / name).write_bytes(content)
            with pytest.raises(RunError, match=f"{name} is damaged"):
                run.read_tensors(name)
        (run_of / name).write_bytes(whole)
        assert run.read_tensors(name)[1] == before[1]


def test_a_file_without_a_digest_is_still_read(run_of):
    """As older versions wrote it."""
    with RunDirectory(run_of) as run:
        for name in (MODEL, STATE):
            tensors, numbers = run.read_tensors(name)
            numbers.pop("metrics_crc", None)
            run.write(name, save(tensors, metadata={"hypergrad": json.dumps(numbers)}))
        assert load_model(run)[1]["iteration"] == 12
    assert resume(run_of).iteration == 16


def _retyped(content):
    lines = content.splitlines(keepends=True)
    return b"".join([*lines[:-1], b"5".ljust(len(lines[-1]) - 1) + b"\n"])


@pytest.mark.parametrize("with_checksum", [True, False])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: b"", "0 bytes, expected the [0-9]+ bytes that the run's state counts"),
        (lambda content: content[:-1], "bytes, expected the [0-9]+ bytes"),
        (lambda content: content[: len(content) // 2], "bytes, expected the [0-9]+ bytes"),
        (_retyped, "(another checksum|another record)"),
        (lambda content: content.replace(b'"iteration": 3', b'"iteration":{}'), "(another checksum|another record)"),
        (lambda content: content.replace(b'"loss"', b'"loss,'), "(another checksum|no JSON)"),
        (lambda content: b"[" * (len(content) - 1) + b"\n", "(another checksum|nested deeper)"),
        (None, "0 bytes"),
    ],
)
def test_metrics_that_are_not_what_the_state_counts(run_of, monkeypatch, damage, words, with_checksum):
    if not with_checksum:
        with RunDirectory(run_of) as run:
            tensors, numbers = run.read_tensors(STATE)
            run.write_tensors(STATE, tensors, {**numbers, "metrics_crc": None})
    content = (run_of / METRICS).read_bytes()
    (run_of / METRICS).unlink() if damage is None else (run_of / METRICS).write_bytes(damage(content))
    monkeypatch.setattr(attacks._Quadratic, "gradient", lambda *_: pytest.fail("trained before it was said"))
    with pytest.raises(RunError, match=f"{METRICS} has .*{words}"):
        resume(run_of)


def test_metrics_of_another_type_of_file(run_of):
    (run_of / METRICS).unlink()
    (run_of / METRICS).mkdir()
    with pytest.raises(RunError, match=f"{METRICS} cannot be read .*directory"):
        resume(run_of)


def test_metrics_are_on_disk_before_the_state_that_counts_them(run_of, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda source, name, **k: (done.append(f"-> {name}"), replace(source, name, **k)))
    resume(run_of)
    at = done.index(f"-> {STATE}")
    assert str(run_of / METRICS) in done[:at] and done[at - 1].startswith(str(run_of / f".{STATE}.")) and done[at + 1] == str(run_of)
    assert zlib.crc32((run_of / METRICS).read_bytes()) == RunDirectory(run_of, locked=False).read_tensors(STATE)[1]["metrics_crc"]


@pytest.mark.parametrize("change", [{"iteration": "12"}, {"waited": -1}, {"best_score": [1]}, {"data": 5}, {"iteration": True}, {"new": 1}])
def test_a_state_of_other_types_is_refused(run_of, change):
    with RunDirectory(run_of) as run:
        tensors, numbers = run.read_tensors(STATE)
        run.write_tensors(STATE, tensors, {**numbers, **change})
    with pytest.raises(RunError, match="of their types because another version"):
        resume(run_of)


# ------------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize("text", ["[" * 100_000 + "]" * 100_000, '{"a":' * 500 + "1" + "}" * 500, "9" * 5000, "\ud800", ""])
def test_json_of_any_kind_is_one_error(run_of, text):
    (run_of / RESULT).write_bytes(text.encode("utf-8", "surrogatepass"))
    with RunDirectory(run_of) as run, pytest.raises(RunError, match="cannot be read .*restore the file"):
        run.read_json(RESULT)


@pytest.mark.parametrize("path", [("method", "name"), ("training", "iterations"), ("dataset", "data"), ("seed",), ("episodes", "n_way")])
@pytest.mark.parametrize("value", [[], {}, [[]], {"name": []}, "x", 1.5, 10**400, -1, True])
def test_a_configuration_of_other_types_is_one_error(path, value):
    record = {"format": 3, **to_json(make_config())}
    inner = record
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    if value == {} and path != ("method", "name"):
        read_config(record, "config.json")  # an option that is not there takes its default
    else:
        with pytest.raises(RunError, match="config.json is not valid"):
            read_config(record, "config.json")


@pytest.mark.parametrize("result", [[], {}, {"n_steps": "5"}, {"n_steps": 1.5}, {"n_steps": -1}, {"n_steps": 10**9}])
def test_predict_says_what_is_wrong_with_a_result(tmp_path, result):
    config = tiny.tiny_config(iterations=1, eval_every=1)
    with RunDirectory.create(tmp_path / "run", {"format": 3, **to_json(config)}) as run:
        tiny.tiny_train(run, config)
        run.write_json(RESULT, result)
        for name in ("a", "b", "c"):
            (tmp_path / "support" / name).mkdir(parents=True)
            (tmp_path / "support" / name / "0.png").write_bytes(attacks._png(50))
        with pytest.raises(RunError, match="result.json has (n_steps|no number for n_steps)"):
            predict(run, load_config(run), tmp_path / "support", [tmp_path / "support/a/0.png"])
        hparams, metadata = run.read_tensors(MODEL)
        for shape in ([8, 8], "808", {"a": 1}, [8, 8, -1], [8.0, 8, 1]):
            run.write_tensors(MODEL, hparams, {**metadata, "image_shape": shape})
            with pytest.raises((RunError, ValueError), match="image_size|images of size"):
                predict(run, load_config(run), tmp_path / "support", [])


# ---------------------------------------------------------------------------------------- odd directories


def test_paths_that_cannot_be(tmp_path, monkeypatch):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for path in ("x" * 5000, "/x" * 5000, "a\0b", tmp_path / "a", "~nobody-of-this-name/run"):
        with pytest.raises(RunError, match="run: .*has no config.json"):
            RunDirectory(path)
    for path in ("x" * 5000, "a\0b", tmp_path / "a" / "run"):
        with pytest.raises(RunError, match="cannot be written"):
            RunDirectory.create(path, {})
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    shutil.rmtree(gone)
    for path in (None, "run"):
        with pytest.raises(RunError, match="cannot be written .No such file"):
            RunDirectory.create(path, {})
