"""The model of `bench/mpi.py`: its limits, and that it falls where it must."""

import mpi
import pytest


def test_one_process_exchanges_nothing_and_many_send_no_more_than_their_parts_and_the_sum():
    network = mpi.NETWORKS[mpi.SLOW]
    assert mpi.exchange_s(1, 4, 10**6, network) == 0.0
    assert mpi.sent_bytes(2, 1, 10**6) == 10**6 and mpi.sent_bytes(1024, 4, 10**6) == pytest.approx(5e6, rel=1e-3)
    assert mpi.exchange_s(2, 1, 10**6, network) == pytest.approx(4 * network.latency_s + 1e6 / network.bytes_per_s)


def test_the_slowest_of_many_takes_longer_only_where_times_differ():
    assert mpi.slowest_s(1024, 0.3, 0.0) == pytest.approx(0.3)
    assert 0.3 < mpi.slowest_s(2, 0.3, 0.01) < mpi.slowest_s(64, 0.3, 0.01) < mpi.slowest_s(1024, 0.3, 0.01) < 0.35
    assert mpi.slowest_s(1024, 0.3, 0.0, (0.1, 0.25)) == pytest.approx(0.55)


def test_the_table_of_the_model():
    lines = mpi.modelled(0.07, 0.02, 450_000)
    assert len(lines) == 2 * len(mpi.SIZES) * len(mpi.NETWORKS) and {line["ranks"] for line in lines} == {8 << i for i in range(8)}
    for line in lines:
        assert line["overlap_s"] <= line["step_s"] <= line["delayed_s"]
        assert 0 < line["delayed_efficiency"] <= line["step_efficiency"] <= line["overlap_efficiency"] <= 1
        assert line["overlap_s"] == line["step_s"] or line["episodes_each"] > 1
    found = {(line["ranks"], line["episodes_each"], line["network"]): line["step_efficiency"] for line in lines}
    for name in mpi.NETWORKS:
        series = [found[ranks, 1, name] for ranks in mpi.SIZES]
        assert series == sorted(series, reverse=True) and found[1024, 4, name] > found[1024, 1, name]
    assert "| 1024 | 4 | 2.25 |" in mpi.shown(lines)
