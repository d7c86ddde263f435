"""The benchmark of the tuning problems runs the commands, writes a line for each, and keeps the lines of other jobs."""

import json

import tune


def test_jobs_write_lines(tmp_path, capsys):
    for name in ("ridge", "online"):
        tune.main(["--quick", "--only", name, tune.ON_MNIST, "--out", str(tmp_path)])
    rows = [json.loads(line) for line in (tmp_path / "tune-cpu.jsonl").read_text().splitlines()]
    assert [r["job"] for r in rows] == ["ridge", "online"]
    for row in rows:
        assert row["command"] == f"hypergrad tune {row['job']} --quick" and row["command_s"] > 0 and row["peak_bytes"] > 0
        assert {"device", "commit", "versions"} <= row["environment"].keys()
    assert "skipped, no folder given" in capsys.readouterr().out
