"""The emulator and the sanitizers find planted faults: kernels that lack a barrier, overrun shared memory, and so on."""

import os
import re
import subprocess

import pytest
import toolchain

pytestmark = pytest.mark.skipif(toolchain.COMPILER is None, reason="needs g++ on the PATH")

FOUND = {
    "missing_barrier": "wrong",  # shared memory starts as NaN, and other orders of threads give other results
    "out_of_bounds": "shared memory piece 0 of 256 bytes was written out of bounds",
    "divergent_barrier": r"divergent barrier: thread 32 is at __syncthreads line \d+: thread 0 waits at",
    "ended_thread": "divergent barrier: thread 3 has ended: thread 0 waits at __syncthreads",
    "tail": "wrong",  # outputs start as NaN
    "mask": "lane 31 is not in its own mask",
    "missing_wait": "wrong",  # the copy arrives when it is waited for
    "fragment": "wrong",  # a lane of mma.sync holds another column
}


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return lambda flags: toolchain.build(toolchain.FAULTS, flags, tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def plain(programs):
    return programs([])


def run(program, name):
    quiet = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "report_signal_unsafe=0"}
    return subprocess.run([program, name], capture_output=True, text=True, timeout=300, env={**os.environ, **quiet})


def test_sound_kernels_pass(plain):
    result = run(plain, "sound")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", FOUND)
def test_fault_is_found(plain, name):
    result = run(plain, name)
    assert result.returncode == 1
    assert re.search(FOUND[name], result.stdout), result.stdout


@pytest.mark.sanitizer
def test_address_sanitizer_finds_the_overrun(programs):
    program = programs(toolchain.ADDRESS)
    sound = run(program, "sound")
    assert sound.returncode == 0, sound.stderr
    faulty = run(program, "out_of_bounds")
    assert faulty.returncode != 0 and "written out of bounds" in faulty.stdout + faulty.stderr


@pytest.mark.sanitizer
def test_thread_sanitizer_names_the_missing_barrier(programs):
    program = programs(toolchain.THREAD)
    sound = run(program, "sound")
    assert sound.returncode == 0, sound.stderr
    faulty = run(program, "missing_barrier")
    assert "data race" in faulty.stderr and "faults.cu" in faulty.stderr
