"""The benchmark of memory and time runs, writes what it promises, and measures what the passes count."""

import gzip
import json

import common
import memory_time
import numpy as np

TINY = dict(steps=(2, 5), hparams=(3, 6), steps_fixed=4, hparams_fixed=4, hidden=4, batch=10, repeats=2)


def test_a_run_writes_lines_a_plot_and_a_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(memory_time, "QUICK", memory_time.Setting(**TINY))
    memory_time.main(["--quick", "--out", str(tmp_path)])
    head, *lines = [json.loads(line) for line in (tmp_path / "memory_time-cpu.jsonl").read_text().splitlines()]
    assert {"device", "commit", "date", "versions", "cores", "weights"} <= set(head)
    assert {"hypergrad", "numpy", "python"} <= set(head["versions"])
    assert head["weights"] == 784 * 4 + 4 + 4 * 10 + 10
    rows = [line for line in lines if line["kind"] == "row"]
    assert len(rows) == 4 * len(memory_time.MODES)
    for row in rows:
        stats = row["stats"]
        assert row["seconds"] > 0 and len(row["all_seconds"]) == 2 and row["difference"] < 1e-3
        assert stats["steps_run"] == row["n_steps"] and row["peak_bytes"] >= stats["state_bytes"] > 0
        assert stats["states_held"] == {"forward": 1 + row["n_hparams"], "all": row["n_steps"]}.get(row["mode"], stats["states_held"])
        assert (row["mode"] in ("forward", "all")) <= (stats["steps_rerun"] == 0)
        if row["mode"] != "forward":
            assert row["difference"] == 0.0  # bit for bit
    assert len([line for line in lines if line["kind"] == "verdict"]) == 16
    assert (tmp_path / "memory_time-cpu.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "over T at N = 4" in printed and "over N at T = 4" in printed and "forward is faster than reverse all" in printed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["memory_time-cpu.jsonl", "memory_time-cpu.png"]


def test_crossings_in_words():
    where = memory_time.less_where
    assert where("T", [1, 2, 4], [1.0, 1.0, 1.0], [2.0, 2.0, 2.0]) == "everywhere"
    assert where("T", [1, 2, 4], [3.0, 3.0, 3.0], [2.0, 2.0, 2.0]) == "nowhere"
    assert where("T", [1, 4, 16], [8.0, 8.0, 8.0], [2.0, 4.0, 16.0]) == "above T ≈ 8.0"
    assert where("N", [1, 4, 16], [2.0, 4.0, 16.0], [8.0, 8.0, 8.0]) == "below N ≈ 8.0"
    assert "here and there" in where("N", [1, 2, 4], [1.0, 3.0, 1.0], [2.0, 2.0, 2.0])


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
