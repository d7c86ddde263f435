"""The command's first and last moments: an interrupt at any of them is one line, and a process gets by on fewer threads."""

import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from hypergrad import startup, threads
from hypergrad.runs.interrupts import interrupts_held

TRIALS = int(os.environ.get("HYPERGRAD_INTERRUPTS", "6"))
COMMAND = [sys.executable, "-m", "hypergrad.cli"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc to see what is imported")
@pytest.mark.parametrize("second", [False, True], ids=["once", "twice"])
def test_an_interrupt_at_any_moment_of_a_short_command_is_one_line(tmp_path, second):
    """From the import of NumPy on, since Python itself ends in its own way. The command takes about a second, most of it for imports."""
    draw = random.Random(second)
    for _ in range(TRIALS):
        process = subprocess.Popen(
            [*COMMAND, "tune", "ridge", "--quick", "--run-dir", str(tmp_path / f"run{draw.random()}")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell ignores it in its background jobs
        )
        while process.poll() is None and b"numpy" not in Path(f"/proc/{process.pid}/maps").read_bytes():
            time.sleep(0.001)
        time.sleep(draw.uniform(0.0, 1.5))
        process.send_signal(signal.SIGINT)
        if second:
            time.sleep(draw.choice([0.0, 0.001, 0.02]))
            process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
        assert process.returncode in (0, startup.INTERRUPTED), errors
        said = [line for line in errors.splitlines() if line] + [line for line in output.splitlines() if "nterrupted" in line]
        assert [line.split(";")[0].rstrip(".") for line in said] == ["Interrupted"] * (process.returncode == startup.INTERRUPTED), errors


def test_an_interrupt_of_a_command_that_has_done_everything_changes_nothing(tmp_path):
    """While Python ends, which takes a tenth of a second."""
    draw = random.Random(0)
    for i in range(TRIALS):
        run = tmp_path / f"run{i}"
        process = subprocess.Popen(
            [*COMMAND, "tune", "ridge", "--quick", "--run-dir", str(run)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell ignores it in its background jobs
        )
        while process.poll() is None and not (run / "result.json").exists():
            time.sleep(0.001)
        time.sleep(draw.uniform(0.0, 0.1))
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
        assert process.returncode in (0, startup.INTERRUPTED), errors
        assert (output + errors).count("nterrupted") == (process.returncode == startup.INTERRUPTED)


def test_a_process_that_is_not_the_command_keeps_its_interrupts(tmp_path):
    code = "import signal, hypergrad; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_an_iteration_ends_before_its_interrupt():
    steps = []
    with pytest.raises(KeyboardInterrupt):
        with interrupts_held() as interrupted:
            while not interrupted():
                steps.append("begun")
                signal.raise_signal(signal.SIGINT)
                steps.append("done")
    assert steps == ["begun", "done"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        with interrupts_held():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)  # at once
            steps.append("not reached")
    assert steps[-1] == "done"


def test_a_handler_of_the_program_stays():
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        with interrupts_held() as interrupted:
            signal.raise_signal(signal.SIGINT)
        assert seen == [1] and not interrupted()
    finally:
        signal.signal(signal.SIGINT, before)


def test_threads_that_the_system_refuses_are_counted(monkeypatch):
    start, left = threading.Thread.start, [2]

    def refused(thread):
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    assert threads.startable_threads(3) == 3
    monkeypatch.setattr(threading.Thread, "start", refused)
    assert threads.startable_threads(3) == 2 and threading.active_count() >= 1
    threads.spare_threads()
    assert os.environ.pop("OPENBLAS_NUM_THREADS") == "1"


CONVOLUTION = """
import sys, resource, numpy as np
from hypergrad import _host
import hypergrad as hg
if len(sys.argv) > 1:  # no room for the stack of a thread
    resource.setrlimit(resource.RLIMIT_AS, (int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (64 << 20),) * 2)
x = np.random.default_rng(0).standard_normal((16, 20, 20, 4)).astype(np.float32)
print(hg.conv2d(x, x[:3, :3, :4, :].reshape(3, 3, 4, -1)[..., :8]).value.tobytes().hex()[:4000])
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc to measure the address space")
def test_kernels_get_by_on_the_threads_that_there_are(tmp_path):
    """4096 threads are asked for; an address space with room for a few of them gives the same bits, and no error."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    runs = [
        subprocess.run(
            [sys.executable, "-c", CONVOLUTION, *limited],
            env={**environment, "HYPERGRAD_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        for threads, limited in (("1", []), ("4096", ["limited"]))
    ]
    assert [run.stderr for run in runs] == ["", ""] and runs[0].stdout == runs[1].stdout and len(runs[0].stdout) > 1000
    assert np.isfinite(resource.getrlimit(resource.RLIMIT_STACK)[0])
