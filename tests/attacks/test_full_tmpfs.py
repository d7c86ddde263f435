"""A file system that is really full, for a run and for the cache. Run as a program with a small tmpfs, it does what the test asks for."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PIECE = 4096
PROGRAM = """
import sys
from pathlib import Path
import attacks
from hypergrad.data import SilentReporter, open_dataset
from hypergrad.errors import DataError, RunError
from hypergrad.runs.directory import METRICS, MODEL, RunDirectory
from hypergrad.runs.loop import Training, train

full, whole = Path(sys.argv[1]), Path(sys.argv[2])


def untimed(run):
    return [{name: value for name, value in record.items() if name != "seconds"} for record in run.read_metrics()]


def go(path, report=None):
    with RunDirectory(path) as run:
        train(run, Training(iterations=60, eval_every=5), attacks._Quadratic(), report, snapshot_s=0.0)
        return untimed(run), (path / MODEL).read_bytes()


for path in (full / "run", whole / "run"):
    RunDirectory.create(path, {"format": 3}).close()
expected = go(whole / "run")


def fill(record):
    \"\"\"Take all room that is left, at some iteration.\"\"\"
    if record["iteration"] == at:
        with open(full / "filler", "wb", buffering=0) as file:
            try:
                while file.write(bytes(PIECE)) == PIECE:
                    pass
            except OSError:
                pass


told = 0
for at in (3, 17, 31, 44):
    try:
        go(full / "run", fill)
    except RunError as error:
        assert "disk is full" in str(error) and "go on with `--resume`" in str(error), error
        told += 1
    (full / "filler").unlink()
assert told == 4 and go(full / "run") == expected, told
assert not [path.name for path in (full / "run").iterdir() if path.name.endswith(".tmp")]

attacks._make_mini(whole)
try:
    open_dataset("miniimagenet", whole, n_way=1, image_size=1024, cache=full / "cache", reporter=SilentReporter())
except DataError as error:
    assert "free space, or set HYPERGRAD_CACHE" in str(error), error
else:
    raise AssertionError("the cache took more than there is")
assert list((full / "cache").iterdir()) == []
print("done")
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare, to mount a file system of its own")
def test_a_full_file_system_costs_nothing_old(tmp_path):
    for name in ("full", "whole"):
        (tmp_path / name).mkdir()
    root = Path(__file__).parents[2]
    mount = [
        "unshare",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        'mount -t tmpfs -o size=96k none "$0" && exec "$@"',
        str(tmp_path / "full"),
    ]
    if subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a file system of their own")
    program = [sys.executable, "-c", f"PIECE = {PIECE}\n{PROGRAM}", str(tmp_path / "full"), str(tmp_path / "whole")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "bench")]), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([*mount, *program], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout == "done\n", done.stderr
