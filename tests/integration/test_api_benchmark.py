"""The API's benchmark in small: it fills, asks, counts and leaves nothing."""

import pytest

from benchmarks import api

pytestmark = pytest.mark.integration


def test_the_benchmark_of_the_api_measures_the_routes_it_is_asked_for_and_removes_its_database(tmp_path, capsys):
    figures = api.run(rows=1600, nodes=10, requests=4, names=["node_metrics", "ledger"], home=tmp_path)
    for name in ("node_metrics", "ledger"):
        assert 0 < figures[f"api_p50_ms_{name}"] <= figures[f"api_p95_ms_{name}"] <= figures[f"api_p99_ms_{name}"]
        assert 0 < figures[f"api_alone_p95_ms_{name}"] <= figures[f"api_p99_ms_{name}"]
        assert figures[f"api_first_ms_{name}"] > 0
        assert figures[f"api_cpu_ms_{name}"] >= 0
        assert figures[f"api_postgres_cpu_ms_{name}"] >= 0
    assert "1,600 rows and 200 closing records of 10 nodes" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_benchmark_of_the_api_refuses_what_the_disk_does_not_hold(tmp_path):
    with pytest.raises(RuntimeError, match="GB free"):
        api.run(rows=10**15, home=tmp_path)
