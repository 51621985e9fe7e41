"""The fleet at a glance, over a real database."""

import psycopg
import pytest


@pytest.fixture
def summary(writing_client, fleet_url):
    """`summary(statement)`: the answer after a statement."""

    def answer(statement=None):
        if statement is not None:
            with psycopg.connect(fleet_url) as connection:
                connection.execute(statement)
        response = writing_client.get("/api/v1/fleet/summary")
        assert response.status_code == 200, response.text
        return response.json

    return answer


def test_nodes_are_counted_by_the_status_that_the_list_shows(summary):
    assert summary()["nodes"] == {"total": 6, "healthy": 1, "warning": 1, "critical": 1, "down": 2, "unknown": 1}


def test_active_alerts_are_counted_by_severity(summary):
    assert summary()["alerts"] == {"total": 3, "info": 0, "warning": 1, "critical": 2}


def test_gpus_whose_rows_are_old_do_not_report(summary):
    assert summary()["gpus"] == {
        "total": 5,
        "reporting": 0,
        "allocated": 0,
        "active": 0,
        "power_watts": None,
        "temperature_max_celsius": None,
    }


FRESH = """
INSERT INTO gpu_metrics (placement_id, node_id, gpu_index, temperature_celsius, power_watts, gpu_utilization_percent,
                         graphics_engine_active_ratio, workloads, collected_at)
SELECT placement_id, node_id, gpu_index, 50 + placement_id, 100,
       CASE WHEN mig_instance IS NULL AND gpu_index = 0 THEN 90 END,
       CASE WHEN mig_instance = '1' THEN 0.5 END,
       CASE WHEN gpu_uuid = 'GPU-0000' THEN '[{"pod": "train-0"}]'::jsonb END, '2026-01-31 11:59:50'
FROM placements WHERE (node_id, gpu_index, gpu_uuid) IN (('node-1', 0, 'GPU-0000'), ('node-1', 1, 'GPU-0002'),
                                                          ('node-2', 0, 'GPU-0003'), ('node-6', 0, 'GPU-0005'))
"""


def test_what_reporting_gpus_do_is_summed_up_and_a_gpu_with_mig_instances_counts_once(summary):
    assert summary(FRESH)["gpus"] == {
        "total": 5,
        "reporting": 3,
        "allocated": 1,
        "active": 2,
        "power_watts": 300.0,
        "temperature_max_celsius": 56.0,
    }


def test_datacenters_and_models_add_up_to_the_whole(summary):
    whole = summary(FRESH)
    assert [one["datacenter"] for one in whole["by_datacenter"]] == ["us-east-1", "us-west-1", None]
    assert [one["model"] for one in whole["by_model"]] == ["NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3", None]
    for part in ("nodes", "alerts"):
        for key, total in whole[part].items():
            assert sum(one[part][key] for one in whole["by_datacenter"]) == total
    for split in ("by_datacenter", "by_model"):
        for key in ("total", "reporting", "allocated", "active", "power_watts"):
            assert sum(one["gpus"][key] or 0 for one in whole[split]) == whole["gpus"][key]


def test_a_gpu_counts_in_the_datacenter_where_it_stands_now(summary):
    by_name = {one["datacenter"]: one["gpus"]["total"] for one in summary()["by_datacenter"]}
    assert by_name == {"us-east-1": 2, "us-west-1": 3, None: 0}


def test_an_empty_fleet_has_nothing(summary):
    emptied = summary("TRUNCATE nodes, gpus, placements, gpu_metrics, alerts CASCADE")
    assert (emptied["nodes"]["total"], emptied["gpus"]["total"], emptied["alerts"]["total"]) == (0, 0, 0)
    assert (emptied["by_datacenter"], emptied["by_model"]) == ([], [])
