"""Several processes on one training run, by MPI: the same bits on any number of them, one line and a resumable run when one is lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import parallel_job
import pytest
import tiny
from parallel_job import bits, computed, problem, task
from PIL import Image
from places import needs_emulator
from typer.testing import CliRunner

import hypergrad as hg
from hypergrad import parallel, startup
from hypergrad.cli import app
from hypergrad.errors import ArgumentError, ExtensionError
from hypergrad.fewshot.methods import METHODS
from hypergrad.fewshot.problem import FewShot
from hypergrad.runs.watch import Watch

MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
mpi = pytest.mark.skipif(
    MPIEXEC is None or not parallel.importlib.util.find_spec("mpi4py"), reason="mpi4py or mpiexec is missing: pip install '.[mpi]'"
)
SMALL = "--n-way 3 --n-query 3 --filters 4 --n-steps 2 --meta-batch 3 --eval-every 10 --eval-episodes 7".split()

SHORT = "--test-episodes 6 --iterations 40 --blocks 2".split()


def launch(n, *args, **options):
    """Start n processes; the checkout's folder must not stand in for the installed package."""
    command, options = [MPIEXEC, "-n", str(n), sys.executable, *map(str, args)], {"cwd": tempfile.gettempdir(), **options}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options)


def finished(process, status=0):
    output, errors = process.communicate(timeout=120)
    assert process.returncode == status, (process.returncode, output, errors)
    return output, errors


# --- sums and shares ------------------------------------------------------------------------------


def test_a_sum_is_in_the_order_of_the_tasks():
    wanted = task(0)["a"]
    for i in range(1, 11):
        wanted = wanted + task(i)["a"]
    found = parallel.sum_tasks(task, 11, parallel.ALONE)
    assert np.array_equal(found["a"], wanted) and found["b"][0].dtype == np.float32 and found["b"][1] == 55
    with pytest.raises(ArgumentError, match="process 0 has 1 parts of 2 tasks, expected 2"):
        parallel.ALONE.sum([task(0)], 2)


def test_forward_in_blocks_has_the_bits_of_forward():
    """One process; `directions` may change the bits, and is the same here."""
    for directions in (1, 3, 256):
        r = parallel.forward(*problem(), hg.full_batch(None, 5), parallel.ALONE, directions=directions)
        whole = hg.forward(*problem(), hg.full_batch(None, 5), directions=directions)
        assert bits((r.grad, r.value, r.params)) == bits((whole.grad, whole.value, whole.params))
    with pytest.raises(ArgumentError, match="directions has 0, expected an integer >= 1"):
        parallel.forward(*problem(), hg.full_batch(None, 5), parallel.ALONE, directions=0)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_are_even_and_the_first_process_has_one(size):
    ranks = parallel.Ranks()
    ranks.size = size
    for n in (1, 3, 4, 17):
        shares = [ranks.share(n, r) for r in range(size)]
        assert [i for share in shares for i in share] == list(range(n)) and len(shares[0]) == max(map(len, shares)) > 0
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@mpi
@pytest.mark.parametrize("n", [2, 3])
def test_any_number_of_processes_gives_the_same_bits(n, tmp_path):
    """More, as many and fewer tasks than processes. Then the last process ends the job, and the others hear of it."""
    output, _ = finished(launch(n, parallel_job.__file__, cwd=tmp_path))
    assert json.loads(output) == computed(parallel.ALONE)


@mpi
@needs_emulator
@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("own", [True, False], ids=["own", "shared"])
def test_sums_go_from_gpu_to_gpu_where_each_process_has_one(n, own, tmp_path):
    """On pretended GPUs, the bytes carried by MPI. The bits are those of one process; two processes on one GPU go by way of the host."""
    output, _ = finished(launch(n, parallel_job.__file__, n if own else 1, cwd=tmp_path))
    alone = [bits(parallel.sum_tasks(task, count, parallel.ALONE)) for count in (1, 2, 11)]
    for sums in json.loads(output):
        assert [sum_bits for *_, sum_bits in sums] == alone
        for by, calls, crossed, _ in sums:
            # one exchange for each of the dtypes float64, float32 and int64
            assert (by, calls) == (("NCCL", ["group", "allGather"] * 3) if own else ("host memory", [])) and not (own and crossed)
        assert own or sums[2][2]


class Other:
    """A communicator of two processes, the second one of which is played: its parts are known."""

    def __init__(self, rows):
        self.rows, self.mine = rows, None

    Get_rank, Get_size = staticmethod(lambda: 0), staticmethod(lambda: 2)
    Test = staticmethod(lambda: True)

    def Iallreduce(self, mine, result, op):
        return self

    def Ialltoallv(self, sent, received):
        (pieces, lengths), (rows, counts) = sent, received
        half = rows.shape[1]
        assert counts == [half, half] and sum(lengths) == len(pieces) == self.rows.shape[1]
        rows[0], rows[1] = pieces[:half], self.rows[0, :half]
        self.rest = pieces[half:] + self.rows[0, half:]
        return self

    def Iallgatherv(self, mine, whole):
        whole[0][:] = np.concatenate([mine, self.rest])
        return self


@mpi
@pytest.mark.backends("pretended", "gpu")
def test_arrays_of_a_gpu_are_added_up_in_host_memory_and_go_back(backend):
    tree = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float32(0.5).reshape(())}
    ranks = parallel.Ranks(Other(np.array([[1, 2, 3, 4, 5, 6, 7]], np.float32)))
    found = ranks.sum([backend.put(tree)], 2)
    assert all(type(x) is type(backend.put(tree)["a"]) for x in found.values())
    assert backend.xp.asnumpy(found["a"]).tolist() == [[1, 3, 5], [7, 9, 11]] and float(found["b"]) == 7.5
    alone = parallel.ALONE.sum([backend.put(tree)] * 3, 3)
    assert backend.xp.asnumpy(alone["a"]).tolist() == [[0, 3, 6], [9, 12, 15]] and float(alone["b"]) == 1.5


def test_without_a_launcher_there_is_one_process(monkeypatch):
    for name in startup.LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    assert parallel.world() is parallel.ALONE and startup.launched_rank() is None
    monkeypatch.setenv("PMI_RANK", "3")
    assert startup.launched_rank() == 3
    monkeypatch.setattr(parallel.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExtensionError, match="mpi4py is not installed, .*pip install mpi4py mpich"):
        parallel.world()


@pytest.mark.parametrize("method", [name for name, kind in METHODS.items() if kind.by_episode])
def test_gradients_of_single_episodes_add_up_to_that_of_the_batch(method):
    """Up to rounding, also where iMAML's solver stops far from the solutions of its systems."""
    both = []
    for per_episode in (False, True):
        problem = FewShot(tiny.tiny_config(method, meta_batch=3, per_episode=per_episode), tiny.tiny_data())
        both.append(problem.gradient(problem.init(), 1))
    (loss, grad, metrics), (loss_2, grad_2, metrics_2) = both
    assert float(loss_2) == pytest.approx(float(loss), rel=1e-5) and metrics_2["accuracy"] == pytest.approx(metrics["accuracy"])
    assert grad.keys() == grad_2.keys() and all(g.dtype == np.float32 and g.shape == grad[name].shape for name, g in grad_2.items())
    size = max(float(np.abs(g).max()) for g in grad.values())
    off = max(float(np.abs(g - grad_2[name]).max()) for name, g in grad.items())
    assert off <= size * 2e-4, off / size


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Three splits of 4 classes of 6 noisy images, 8 x 8; the arguments of a short training run on them."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for c in range(4):
            folder = root / split / f"class{c}"
            folder.mkdir(parents=True)
            prototype = rng.integers(0, 150, (8, 8))
            for i in range(6):
                Image.fromarray((prototype + rng.integers(0, 105, (8, 8))).astype(np.uint8)).save(folder / f"{i}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield ["-m", "hypergrad.cli", "train", "--data", "folder", "--root", root, *SMALL, *SHORT]


@pytest.fixture(scope="module")
def alone(train, tmp_path_factory):
    """The run of one process."""
    path = tmp_path_factory.mktemp("alone") / "run"
    result = CliRunner().invoke(app, [str(arg) for arg in [*train[2:], "--per-episode", "--run-dir", path]])
    assert result.exit_code == 0, result.output
    return path


def same(path, other):
    """Whether two runs are alike but for their times."""
    records = [[json.loads(line) for line in (p / "metrics.jsonl").read_text().splitlines()] for p in (path, other)]
    for record in (*records[0], *records[1]):
        del record["seconds"]
    results = [json.loads((p / "result.json").read_text()) for p in (path, other)]
    timeless = [{k: v for k, v in r.items() if not k.endswith("_s") and k != "peak_bytes"} for r in results]
    models = [(p / "model.safetensors").read_bytes() for p in (path, other)]
    return models[0] == models[1] and records[0] == records[1] and timeless[0] == timeless[1]


@mpi
def test_two_processes_train_as_one(train, alone, tmp_path):
    output, errors = finished(launch(2, *train, "--run-dir", tmp_path / "run", cwd=tmp_path))
    assert same(tmp_path / "run", alone)
    assert "2 processes" in output and output.count("iteration     40") == 1
    assert errors.count("\n") == errors.count("folder: images of 12 of 12 classes") == 1  # what one process says of the data
    assert json.loads((tmp_path / "run" / "config.json").read_text())["per_episode"]


@mpi
@needs_emulator
def test_two_processes_train_on_a_gpu_each_as_one_does(train, tmp_path):
    """On pretended GPUs: the gradients go by NCCL."""
    args = [
        *train[2:],
        "--iterations",
        4,
        "--eval-every",
        2,
        "--eval-episodes",
        3,
        "--test-episodes",
        3,
        "--device",
        "cuda",
        "--per-episode",
    ]
    for n in (1, 2):
        output, _ = finished(launch(n, parallel_job.__file__, *args, "--run-dir", tmp_path / f"run{n}", cwd=tmp_path))
        assert ("2 processes, gradients by NCCL" in output) == (n == 2)
    assert same(tmp_path / "run1", tmp_path / "run2")


def ranks_below(launcher):
    """The process ids of the command's processes, by their rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            values = dict(v.split(b"=", 1) for v in (folder / "environ").read_bytes().split(b"\0") if b"=" in v)
        except OSError:  # it has ended, or is another's
            continue
        if values.get(b"HYPERGRAD_TEST_JOB") == str(launcher).encode() and b"PMI_RANK" in values:
            found.setdefault(int(values[b"PMI_RANK"]), int(folder.name))
    return found


@mpi
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to find the processes")
@pytest.mark.parametrize("stop, to", [(signal.SIGKILL, 1), (signal.SIGINT, None)])
def test_a_stopped_job_goes_on_with_any_number_of_processes(train, alone, tmp_path, stop, to):
    """A lost process, and Ctrl-C at the launcher: one line each, and the run goes on to the same end."""
    path, name = tmp_path / "run", str(tmp_path)
    job = launch(2, *train, "--run-dir", path, env={**os.environ, "HYPERGRAD_TEST_JOB": name})
    while (not (path / "metrics.jsonl").exists() or (path / "metrics.jsonl").read_bytes().count(b"\n") < 9) and job.poll() is None:
        time.sleep(0.002)
    os.kill(job.pid if to is None else ranks_below(name)[to], stop)
    output, errors = job.communicate(timeout=60)
    assert "Traceback" not in errors, errors
    assert job.returncode == (9 if stop == signal.SIGKILL else 130), errors
    assert (output + errors).count(f"Go on with:  hypergrad train --resume {path}") == 1, (output, errors)
    assert ("a process was lost" in errors) == (stop == signal.SIGKILL)
    resume = [*train[:3], "--resume", path]
    finished(
        launch(3, *resume) if to == 1 else subprocess.Popen([sys.executable, *resume], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    )
    assert same(path, alone)


@mpi
def test_an_error_in_any_process_is_one_line(train, alone, tmp_path):
    cases = {
        "process 1: error: cache: writing under /proc/none": [*train, "--run-dir", tmp_path / "run"],
        "error: mpiexec: 2 processes run this command, expected one": ["-m", "hypergrad.cli", "tune", "ridge"],
    }
    for line, args in cases.items():
        second = {"HYPERGRAD_CACHE": "/proc/none"} if line.startswith("process 1") else {}
        wrapped = ["-c", CHOOSING, json.dumps(second), *args]
        output, errors = finished(launch(2, *wrapped, cwd=tmp_path), 1)
        assert [text.startswith(line) for text in errors.splitlines() if text and "image_size" not in text] == [True], errors


CHOOSING = """
import json, os, runpy, sys
if os.environ["PMI_RANK"] == "1":
    os.environ.update(json.loads(sys.argv[1]))
sys.argv = sys.argv[3:]  # after "-m"
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def test_runs_that_processes_cannot_share_are_refused(train, tmp_path, monkeypatch):
    ranks = parallel.Ranks()
    ranks.size = 2
    monkeypatch.setattr(ranks, "end", lambda status: True)
    monkeypatch.setattr(ranks, "divide_cores", lambda: None)
    monkeypatch.setattr("hypergrad.cli.world", lambda: ranks)
    for more, message in (
        (["--no-per-episode"], "takes the gradient of a meta-batch in one pass, expected that of each episode because 2 processes share"),
        (["--per-episode", "--method", "multiclass"], "per_episode is set for multiclass, expected a method that trains on episodes"),
    ):
        result = CliRunner().invoke(app, [str(arg) for arg in [*train[2:], *more, "--run-dir", tmp_path / "run"]])
        assert result.exit_code == 1 and message in result.output, result.output
        assert not (tmp_path / "run").exists()


def test_the_watch_speaks_only_of_a_killed_process():
    code = f"import os, signal, sys; from {Watch.__module__} import Watch; w = Watch('lost: go on'); "
    for end, said in (("w.close()", ""), ("os.kill(os.getpid(), signal.SIGKILL)", "lost: go on\n")):
        done = subprocess.run([sys.executable, "-c", code + end], capture_output=True, text=True)
        assert done.stderr == said
