"""The benchmark of memory and time runs, writes what it promises, and measures what the passes count."""

import gzip
import json

import common
import memory_time
import numpy as np
import pytest

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


def idx(path, magic, shape, values, opener=gzip.open):
    with opener(path, "wb") as file:
        file.write(np.array([magic, *shape], ">i4").tobytes() + np.asarray(values, np.uint8).tobytes())


@pytest.mark.parametrize(("ending", "opener"), [(".gz", gzip.open), ("", open)])
def test_mnist_files(tmp_path, ending, opener):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28))
    idx(tmp_path / f"train-images-idx3-ubyte{ending}", 2051, (5, 28, 28), images, opener)
    idx(tmp_path / f"train-labels-idx1-ubyte{ending}", 2049, (5,), [3, 1, 4, 1, 5], opener)
    x, y = common.mnist(tmp_path, 4)
    assert x.dtype == np.float32 and y.tolist() == [3, 1, 4, 1]
    np.testing.assert_allclose(x, images[:4].reshape(4, 784) / 255, rtol=1e-6)
    with pytest.raises(SystemExit, match="expected equal numbers, at least 6"):
        common.mnist(tmp_path, 6)


def test_mnist_errors_say_what_is_missing(tmp_path):
    with pytest.raises(SystemExit, match="no train-images-idx3-ubyte.gz"):
        common.mnist(tmp_path, 4)
    idx(tmp_path / "train-images-idx3-ubyte.gz", 7, (), [])
    with pytest.raises(SystemExit, match="no idx file of magic number 2051"):
        common.mnist(tmp_path, 4)


def test_synthetic_digits_are_like_mnist_and_repeat():
    x, y = common.synthetic_digits(200)
    assert x.shape == (200, 784) and x.dtype == np.float32 and 0 <= x.min() < x.max() <= 1
    assert np.bincount(y).tolist() == [20] * 10
    assert np.array_equal(x, common.synthetic_digits(200)[0])
