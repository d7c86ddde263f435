"""The table of host kernels: a row for each, builds that take turns, and the ceilings of a C++ program."""

import json
import shutil

import kernels
import pytest

from hypergrad import _host
from hypergrad.backends.host import HOST


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_a_run_writes_a_row_for_each_kernel_and_a_plot(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(kernels, "ROUNDS", 1)
    threads = _host.threads()
    try:
        kernels.main(["--sizes", "tiny", "--threads", "1", "--other", _host.__file__, "--out", str(tmp_path)])
    finally:
        _host.set_threads(threads)
    head, ceilings, *rows = [json.loads(line) for line in (tmp_path / "kernels-cpu.jsonl").read_text().splitlines()]
    assert head["kernels"]["threads"] == 1 and ceilings["ffma_flop_per_second"] > 1e8 and ceilings["copy_bytes_per_second"] > 1e8
    assert {row["kernel"] for row in rows} == set(HOST.kernels())
    for row in rows:
        assert row["seconds"] > 0 and row["bytes"] > 0 and len(row["other_seconds"]) == 1 and row["ratio"] > 0
    assert (tmp_path / "kernels-cpu.png").stat().st_size > 10_000
    assert "conv_bn_relu_pool_vjp" in capsys.readouterr().out


def test_a_file_that_is_no_extension_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="expected an extension file"):
        kernels.Build(tmp_path / "nothing.txt")
