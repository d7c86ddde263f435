"""Promises of memory and time: states held, steps run, and the peak of allocated bytes, for every mode."""

import resource
import sys

import numpy as np
import pinned
import pretended
import pytest
from places import needs_emulator

import hypergrad as hg
from hypergrad.errors import ArgumentError, DeviceError
from hypergrad.meter import Meter
from hypergrad.passes import schedule

ROOM = 20_000  # elements of a state: 160 kB, against which the Python objects of a step are small


def wide(n_steps, momentum=False, n_hparams=1):
    """A quadratic with large states and hyperparameters that are few; made so that T is all that changes."""
    start = np.linspace(-1.0, 1.0, ROOM)

    def inner(w, h, batch):
        return 0.25 * hg.sum(h["a"]) * hg.sum(w * w)

    problem = hg.Bilevel(inner, lambda w, h: hg.sum(w * w), lambda h: start, lambda h: hg.SGD(lr=0.01, momentum=0.5 if momentum else 0.0))
    return problem, {"a": np.full(n_hparams, 0.3)}, hg.full_batch(None, n_steps)


def measured(run, *args, **more):
    run(*args, **more)  # first calls allocate what stays: caches, interned objects
    with Meter(memory=True):
        return run(*args, **more).stats


@pytest.mark.parametrize("checkpoints", ["all", "sqrt", 1, 2, 5])
@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("n_steps", [0, 1, 2, 10, 37])
def test_reverse_counts_what_the_schedule_promises(checkpoints, momentum, n_steps):
    stats = hg.reverse(*wide(n_steps, momentum), checkpoints=checkpoints).stats
    states = {"all": n_steps, "sqrt": 2 * (schedule.isqrt(max(n_steps - 1, 0)) + 1)}.get(checkpoints, checkpoints)
    assert stats.mode == "reverse" and stats.steps_run == n_steps and stats.seconds > 0
    if checkpoints == "sqrt":
        assert stats.states_held <= states and stats.steps_rerun < max(n_steps, 1)
    else:
        assert stats.states_held == min(states, n_steps)
        assert stats.steps_rerun == (0 if checkpoints == "all" else schedule.Binomial(n_steps, checkpoints).reruns)
    assert stats.state_bytes == stats.states_held * ROOM * 8 * (1 + momentum)


@pytest.mark.parametrize("n_hparams", [1, 3])
def test_forward_holds_one_state_and_a_tangent_for_each_hyperparameter(n_hparams):
    for n_steps in (1, 4, 40):
        stats = hg.forward(*wide(n_steps, True, n_hparams)).stats
        assert (stats.mode, stats.steps_run, stats.steps_rerun) == ("forward", n_steps, 0)
        assert stats.states_held == 1 + n_hparams
        assert stats.state_bytes == (1 + n_hparams) * 2 * ROOM * 8


@pytest.mark.parametrize("checkpoints", ["all", "sqrt", 3])
def test_peak_bytes_of_reverse_follow_the_states_held(checkpoints):
    """Peak = states held + one step, the step's share being the same for every T of runs whose steps are replayed."""
    rest = []
    for n_steps in (9, 16, 25, 64):
        stats = measured(hg.reverse, *wide(n_steps, True), checkpoints=checkpoints)
        rest.append((stats.peak_bytes - stats.state_bytes) / (2 * ROOM * 8))
    assert max(rest[1:]) - min(rest[1:]) < 1.5, rest  # in states; "all" holds 48 more at the end than at the start
    assert 0 < min(rest) and max(rest) < 12, rest


def test_slopes_against_t():
    """ "all" grows by one state a step, "sqrt" as the root, an integer and forward mode not at all."""
    state = 2 * ROOM * 8

    def peak(n_steps, run=hg.reverse, **more):
        return measured(run, *wide(n_steps, True), **more).peak_bytes / state

    assert (peak(64) - peak(16)) / 48 == pytest.approx(1.0, abs=0.03)
    assert peak(64, checkpoints="sqrt") - peak(16, checkpoints="sqrt") == pytest.approx(15 - 7, abs=1.5)
    assert peak(64, checkpoints=3) == pytest.approx(peak(16, checkpoints=3), abs=0.5)
    assert peak(64, run=hg.forward) == pytest.approx(peak(16, run=hg.forward), abs=0.5)


def test_forward_peak_grows_with_the_hyperparameters():
    peaks = [measured(hg.forward, *wide(5, True, n)).peak_bytes / (2 * ROOM * 8) for n in (2, 10, 18)]
    low, high = (peaks[1] - peaks[0]) / 8, (peaks[2] - peaks[1]) / 8
    assert high == pytest.approx(low, rel=0.1)  # linear
    assert 1.0 <= low <= 6.0  # a tangent of the state, and those that one step needs


def test_states_in_a_file(tmp_path):
    """One state in memory whatever T, and nothing left in the directory."""
    r = hg.reverse(*wide(64, True))
    for directory in (tmp_path, "host"):
        f = measured(lambda *args, where=directory: hg.reverse(*args, checkpoints=where), *wide(64, True))
        assert f.offloaded_bytes == r.stats.state_bytes and (f.states_held, f.state_bytes) == (1, 2 * ROOM * 8)
        assert f.peak_bytes < 12 * f.state_bytes and f.steps_rerun == 0
    assert not list(tmp_path.iterdir())
    assert hg.reverse(*wide(64, True), checkpoints=tmp_path, last=3).stats.offloaded_bytes == 3 * 2 * ROOM * 8


def test_a_directory_without_room(tmp_path):
    with pytest.raises(ArgumentError, match="reverse: the states cannot be written in .*nowhere .*No such file.*checkpoints=pathlib.Path"):
        hg.reverse(*wide(3), checkpoints=tmp_path / "nowhere")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5 * ROOM * 8, before[1]))
    try:
        with pytest.raises(ArgumentError, match="File too large.*expected a directory with room"):
            hg.reverse(*wide(40), checkpoints=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir()) and hg.reverse(*wide(40), checkpoints=tmp_path).stats.offloaded_bytes == 40 * ROOM * 8


@pytest.mark.parametrize("shapes", [[(3,), (0,)], [(0,), (3,)], [(0,)], [(5,), ()]])
def test_leaves_of_no_elements_lie_in_a_file(shapes):
    p = hg.Bilevel(
        lambda w, h, b: sum(0.5 * hg.sum(h * x * x) for x in w),
        lambda w, h: sum((hg.sum(x * x) for x in w), 0 * h),
        lambda h: [np.ones(s) for s in shapes],
        lambda h: hg.SGD(lr=0.1, momentum=0.5),
    )
    stored, hosted = (hg.reverse(p, 0.5, hg.full_batch(None, 5), checkpoints=c) for c in ("all", "host"))
    assert hosted.grad == stored.grad and hosted.stats.offloaded_bytes == stored.stats.state_bytes


@needs_emulator
def test_arrays_of_a_pretended_gpu_do_not_go_to_a_file(monkeypatch, tmp_path):
    with pretended.gpu(monkeypatch):
        start = sys.modules["cupy"].asarray(np.ones(3))
        problem = hg.Bilevel(lambda w, h, b: h * hg.sum(w * w), lambda w, h: hg.sum(w), lambda h: start, lambda h: hg.SGD(lr=0.1))
        hparams = sys.modules["cupy"].asarray(np.array(0.5))
        with pytest.raises(DeviceError, match="reverse: states are on the GPU, expected host arrays"):
            hg.reverse(problem, hparams, hg.full_batch(None, 2), checkpoints=tmp_path)
        assert hg.reverse(problem, hparams, hg.full_batch(None, 2)).grad.shape == ()


@pytest.mark.parametrize("n_steps", [1, 2, 9])
@needs_emulator
def test_states_of_a_pretended_gpu_in_pinned_memory(monkeypatch, n_steps):
    """The same bits as on the device; copies go on beside the steps, and a state is read only when it has come back."""
    with pretended.gpu(monkeypatch):
        copies, xp = pinned.Copies(monkeypatch), sys.modules["cupy"]
        start = xp.asarray(np.linspace(0.5, 1.5, 7))
        problem = hg.Bilevel(
            lambda w, h, b: h * hg.sum(w**4), lambda w, h: hg.sum(w), lambda h: start, lambda h: hg.SGD(lr=0.1, momentum=0.5)
        )
        args = problem, xp.asarray(np.array(0.1)), hg.full_batch(None, n_steps)
        stored, hosted = hg.reverse(*args), hg.reverse(*args, checkpoints="host")
        assert (float(stored.value), float(stored.grad)) == (float(hosted.value), float(hosted.grad)) and np.isfinite(float(hosted.grad))
        assert hosted.stats.offloaded_bytes == stored.stats.state_bytes == copies.pinned_bytes == n_steps * 2 * 7 * 8
        assert hosted.stats.states_held == 1


def test_peak_is_measured_only_where_memory_is_traced():
    assert hg.reverse(*wide(2)).stats.peak_bytes is None
    assert measured(hg.reverse, *wide(2)).peak_bytes > 0


@pytest.mark.parametrize("run", [hg.reverse, hg.forward])
def test_peak_of_the_device(run, monkeypatch):
    """What the inner loss takes from CuPy's pool, where memory is traced."""
    plain, hparams, batches = wide(3)
    with pretended.gpu(monkeypatch) as machine:
        before = machine.pool.malloc(7 * 512)

        def inner(w, h, batch):
            machine.pool.malloc(3000).free()
            return plain.inner_loss(w, h, batch)

        problem = hg.Bilevel(inner, plain.outer_loss, plain.init, plain.optimizer)
        assert run(problem, hparams, batches).stats.peak_device_bytes is None
        stats = measured(run, problem, hparams, batches)
        assert stats.peak_device_bytes == 3072 and stats.peak_bytes > 0
        before.free()


def test_stats_make_one_line_of_json():
    line = hg.reverse(*wide(3)).stats.as_dict()
    peaks, residues = {"peak_bytes", "peak_device_bytes"}, {"residue_bytes", "residue_bits"}
    others = {"mode", "steps_run", "steps_rerun", "states_held", "state_bytes", "offloaded_bytes", "kept_bytes", "seconds", "program"}
    assert set(line) == others | peaks | residues


def test_100000_steps_with_sqrt():
    """The promise of the package: a long run in reverse, with no more than 700 states."""
    n_steps, lr, a = 100_000, 0.1, 1e-4
    problem = hg.Bilevel(lambda w, h, batch: h * w * w, lambda w, h: w * w, lambda h: np.float64(1.5), lambda h: hg.SGD(lr=lr))
    r = hg.reverse(problem, np.float64(a), hg.full_batch(None, n_steps), checkpoints="sqrt")
    w_last = 1.5 * (1 - 2 * lr * a) ** n_steps
    assert r.stats.steps_run == n_steps and r.stats.steps_rerun < n_steps
    assert r.stats.states_held <= 700
    assert r.stats.state_bytes == r.stats.states_held * 8
    assert r.value == pytest.approx(w_last**2, rel=1e-9)
    assert r.grad == pytest.approx(-4 * lr * n_steps * w_last**2 / (1 - 2 * lr * a), rel=1e-9)
