"""The benchmark of memory and time runs, writes what it promises, and measures what the passes count."""

import gzip
import json

import common
import memory_time
import memory_time_report
import numpy as np
import pinned
import pretended
import pytest
from places import needs_emulator

TINY = dict(
    steps=(2, 5),
    hparams=(1, 6),
    widths=(4, 6),
    steps_fixed=4,
    hparams_fixed=4,
    width_fixed=4,
    rfho=(4, 4),
    batch=10,
    repeats=2,
    most_s=40.0,
)


def test_a_run_writes_lines_a_plot_and_tables(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(memory_time, "QUICK", memory_time.Setting(**TINY))
    memory_time.main(["--quick", "--out", str(tmp_path)])
    head, *lines = [json.loads(line) for line in (tmp_path / "memory_time-cpu.jsonl").read_text().splitlines()]
    assert {"device", "commit", "date", "versions", "cores"} <= set(head)
    assert {"hypergrad", "numpy", "python"} <= set(head["versions"])
    rows = [line for line in lines if line["kind"] == "row"]
    assert {r["sweep"] for r in rows} == {"T", "N", "W", "N and W"}
    assert {r["mode"] for r in rows} >= {"forward", "all", "sqrt", "reversible", "host"}
    for row in rows:
        stats = row["stats"]
        assert row["seconds"] > 0 and len(row["all_seconds"]) == 2 and row["difference"] < 1e-3
        assert stats["steps_run"] == row["n_steps"] and row["peak_bytes"] >= stats["state_bytes"] > 0
        assert row["n_weights"] == memory_time.n_weights((6 if row["n_weights"] > 3500 else 4,))
        if row["mode"] != "forward":
            assert row["difference"] == 0.0  # bit for bit
    rfho = {line["mode"]: line for line in lines if line["kind"] == "rfho"}
    assert rfho["forward"]["state_mib"] * 100 == pytest.approx(rfho["all"]["state_mib"] * 9)
    assert rfho["forward"]["difference"] < 1e-4
    assert memory_time.n_weights((300, 300)) == 328_810
    verdicts = [line["text"] for line in lines if line["kind"] == "verdict"]
    of_plan = ["over the plan's" in text for text in verdicts]
    assert sum(of_plan) == 2 * len({r["mode"] for r in rows}) and not any(of_plan[-2:])  # two of RFHO's problem come last
    assert (tmp_path / "memory_time-cpu.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "over T" in printed and "over N" in printed and "over W" in printed and "measured bytes over the plan's" in printed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["memory_time-cpu.jsonl", "memory_time-cpu.png"]


def test_the_readme_has_the_figures_of_the_stored_run(tmp_path):
    """Written again they are the same, in the place between the marks."""
    page = common.HERE / "README.md"
    lines = [json.loads(line) for line in memory_time.STORED.read_text().splitlines()]
    text = memory_time_report.section(lines, memory_time.LABELS, "bench/results/memory_time-cpu.jsonl")
    assert memory_time_report.rewritten(page.read_text(), text) == page.read_text()
    row = next(line for line in lines if line["kind"] == "rfho" and line["mode"] == "all")
    row["seconds"] = 1234.5
    copy = tmp_path / "README.md"
    copy.write_text(page.read_text())
    memory_time_report.write(copy, memory_time_report.section(lines, memory_time.LABELS, "elsewhere"))
    changed = copy.read_text()
    assert "1234.50" in changed and "(`elsewhere`, " in changed and changed.splitlines()[0] == page.read_text().splitlines()[0]
    assert changed.partition(memory_time_report.END)[2] == page.read_text().partition(memory_time_report.END)[2]


def test_what_is_left_out_is_named():
    row = {"kind": "row", "mode": "all", "n_steps": 5, "n_hparams": 6, "n_weights": 7, "plan_s": 99.0, "plan_bytes": 8e6}
    done = {**row, "seconds": 2.0, "plan_s": 1.0, "peak_bytes": 4e6}
    rfho = {"kind": "rfho", "mode": "all", "n_weights": 7, "seconds": 1.0, "state_mib": 2.0, "theirs": {"seconds": 3.0, "state_mib": 4.0}}
    head = {"device": "a", "cores": 2, "threads": {}, "commit": "c" * 40, "date": "2020-01-01T00:00"}
    head |= {"repeats": 3, "data": "synthetic", "dtype": "float32", "batch": 1}
    rows = [{**done, "sweep": s} for s in ("T", "N", "W")]
    rows.append({**row, "sweep": "N and W", "n_hparams": 5000, "seconds": None, "peak_bytes": None})
    text = memory_time_report.section([head | {"kind": "environment"}, *rows, rfho], {"all": "reverse all"}, "file")
    assert "| reverse all | 2 s, 4 MB | not run, planned 99 s | 2.00 (2.00 to 2.00) | 0.50 (0.50 to 0.50) |" in text
    assert "Left out, as the plan expects so long a run: reverse all at T = 5, N = 5,000, W = 7 (99 s)." in text


def test_a_cell_that_would_take_too_long_is_planned_alone(monkeypatch):
    setting = memory_time.Setting(**{**TINY, "most_s": 0.0})
    problem = memory_time.make_problem(common.synthetic_digits(50), 10, 3, 4, (4,))
    rows = memory_time.measure_size("T", problem, {"n_steps": 3, "n_hparams": 4, "n_weights": 1}, setting)
    assert all(r["seconds"] is None and r["plan_s"] > 0 and "stats" not in r for r in rows)
    assert memory_time.table(rows, "T").row_count == len(rows) and memory_time.errors(rows) == []


@needs_emulator
def test_a_size_on_a_pretended_gpu(monkeypatch):
    with pretended.gpu(monkeypatch):
        pinned.Copies(monkeypatch)
        problem = memory_time.make_problem(memory_time.on_device(common.synthetic_digits(50), "cuda"), 10, 3, 4, (4,))
        rows = memory_time.measure_size("T", problem, {}, memory_time.Setting(**{**TINY, "repeats": 1}))
    assert {r["mode"] for r in rows} >= {"forward", "all", "sqrt", "host"}
    for row in rows:
        assert row["peak_bytes"] == row["stats"]["peak_device_bytes"] > 0 and row["difference"] < 1e-3


def test_mnist_files(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    for name, values in (("images-idx3", images), ("labels-idx1", np.array([3, 1, 4, 1, 5], np.uint8))):
        head = np.array([0x0800 + values.ndim, *values.shape], ">i4").tobytes()
        (tmp_path / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(head + values.tobytes()))
    x, y = memory_time.first_images(tmp_path, 4)
    assert x.dtype == np.float32 and y.tolist() == [3, 1, 4, 1]
    np.testing.assert_allclose(x, images[:4].reshape(4, 784) / 255, rtol=1e-6)


def test_synthetic_digits_are_like_mnist_and_repeat():
    x, y = common.synthetic_digits(200)
    assert x.shape == (200, 784) and x.dtype == np.float32 and 0 <= x.min() < x.max() <= 1
    assert np.bincount(y).tolist() == [20] * 10
    assert np.array_equal(x, common.synthetic_digits(200)[0])
