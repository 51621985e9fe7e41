"""The promised calls of the REST API over a real database: their shapes, their order, their filters."""

import pytest

from gpu_telemetry.fields import FIELDS, ValueType


def get(client, path, status=200):
    response = client.get(path)
    assert response.status_code == status, response.text
    assert response.mimetype == ("application/json" if status == 200 else "application/problem+json")
    return response.json


def test_nodes_are_a_bare_array_of_the_promised_keys(client):
    nodes = get(client, "/api/v1/nodes")
    assert nodes[1] == {
        "node_id": "node-2",
        "hostname": "gpu-host-2",
        "status": "critical",
        "datacenter": "us-west-1",
        "last_seen": "2026-01-31T11:59:50.000Z",
        "active_alerts": 2,
    }


def test_a_node_unheard_for_three_intervals_is_unknown_and_one_heard_a_millisecond_later_is_not(client):
    status = {node["node_id"]: node["status"] for node in get(client, "/api/v1/nodes")}
    assert status == {
        "node-1": "healthy",
        "node-2": "critical",
        "node-3": "down",
        "node-4": "unknown",
        "node-5": "warning",
        "rack 7/ñode?&": "down",
    }


def test_a_node_that_was_never_up_was_never_seen(client):
    assert get(client, "/api/v1/nodes")[-1]["last_seen"] is None


def test_removed_nodes_are_left_out_unless_asked_for(client):
    assert "node-6" not in [node["node_id"] for node in get(client, "/api/v1/nodes")]
    assert [node["node_id"] for node in get(client, "/api/v1/nodes?removed=true")] == ["node-6"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("datacenter=us-east-1", ["node-3", "node-4", "node-5"]),
        ("status=unknown", ["node-4"]),
        ("status=healthy", ["node-1"]),
        ("status=down&datacenter=us-east-1", ["node-3"]),
        ("datacenter=nowhere", []),
    ],
)
def test_nodes_are_filtered(client, query, expected):
    assert [node["node_id"] for node in get(client, f"/api/v1/nodes?{query}")] == expected


def test_a_node_comes_with_what_stands_at_its_indexes(client):
    node = get(client, "/api/v1/nodes/node-1")
    gpus = node.pop("gpus")
    assert node == {
        "node_id": "node-1",
        "hostname": "gpu-host-1",
        "status": "healthy",
        "datacenter": "us-west-1",
        "last_seen": "2026-01-31T11:59:50.500Z",
        "active_alerts": 0,
        "instance": "10.0.0.1:9400",
        "first_seen": "2026-01-29T00:00:00.000Z",
        "last_heard": "2026-01-31T11:59:50.500Z",
        "interval_ms": 30000,
        "removed_at": None,
        "gpu_count": 2,
    }
    # GPU-0001 was replaced at index 1, so it is not here.
    assert [(gpu["gpu_index"], gpu["gpu_uuid"]) for gpu in gpus] == [(0, "GPU-0000"), (1, "GPU-0002")]
    assert gpus[0] == {
        "gpu_uuid": "GPU-0000",
        "gpu_index": 0,
        "mig_instance": None,
        "mig_profile": None,
        "model": "NVIDIA A100-SXM4-80GB",
        "driver_version": "550.54.15",
        "pci_bus_id": "00000000:07:00.0",
        "memory_total_mib": 81920,
        "since": "2026-01-29T00:00:00.000Z",
        "last_collected_at": "2026-01-31T06:00:00.125Z",
    }


def test_a_gpu_counts_once_however_many_mig_instances_it_has(client):
    node = get(client, "/api/v1/nodes/node-2")
    assert [(gpu["mig_instance"], gpu["mig_profile"]) for gpu in node["gpus"]] == [
        (None, None),
        ("1", "3g.40gb"),
        ("2", "4g.40gb"),
    ]
    assert node["gpu_count"] == 1


def test_a_gpu_without_stored_rows_still_stands_in_its_node(client):
    (gpu,) = get(client, "/api/v1/nodes/node-4")["gpus"]
    assert (gpu["gpu_uuid"], gpu["last_collected_at"]) == ("GPU-0004", None)


def test_a_removed_node_can_still_be_looked_at(client):
    node = get(client, "/api/v1/nodes/node-6")
    assert (node["status"], node["removed_at"]) == ("unknown", "2026-01-30T00:10:00.000Z")


def test_any_character_may_stand_in_a_nodes_id(client):
    assert get(client, "/api/v1/nodes/rack%207%2F%C3%B1ode%3F%26")["node_id"] == "rack 7/ñode?&"
    assert get(client, "/api/v1/nodes/rack%207%2F%C3%B1ode%3F%26/metrics") == []


def test_a_nodes_metrics_come_newest_first_and_as_many_as_asked(client):
    rows = get(client, "/api/v1/nodes/node-1/metrics?limit=5")
    assert [(row["collected_at"], row["gpu_uuid"]) for row in rows] == [
        ("2026-01-31T06:00:00.125Z", "GPU-0000"),
        ("2026-01-31T06:00:00.125Z", "GPU-0002"),
        ("2026-01-31T00:00:00.125Z", "GPU-0000"),
        ("2026-01-31T00:00:00.125Z", "GPU-0002"),
        ("2026-01-30T18:00:00.125Z", "GPU-0000"),
    ]


def test_a_metric_row_has_every_field_of_the_table_and_null_where_nothing_was_measured(client):
    (row,) = get(client, "/api/v1/nodes/node-1/metrics?limit=1")
    assert list(row) == [
        "node_id", "gpu_index", "gpu_uuid", "mig_instance", "mig_profile", "model", "collected_at",
        *(field.name for field in FIELDS),
        "workloads", "fields", "rejected",
    ]  # fmt: skip
    measured = {name: value for name, value in row.items() if value is not None}
    assert measured == {
        "node_id": "node-1",
        "gpu_index": 0,
        "gpu_uuid": "GPU-0000",
        "model": "NVIDIA A100-SXM4-80GB",
        "collected_at": "2026-01-31T06:00:00.125Z",
        "temperature_celsius": 96.3,
        "power_watts": 250 + 1 / 3,
        "gpu_utilization_percent": 100.0,
        "memory_used_mib": 4096,
        "memory_total_mib": 81920,
        "memory_used_percent": 5.0,
        "xid_code": 0,
        "workloads": [{"namespace": "ml", "pod": "train-0", "container": "main"}, {"job": "4711"}],
        "fields": {
            "DCGM_FI_DEV_FAN_SPEED": 40.0,
            "DCGM_EXP_XID_ERRORS_COUNT": [{"labels": {"xid": "31", "window_size_in_ms": "300000"}, "value": 2.0}],
        },
        "rejected": {"memory_temperature_celsius": {"value": "9223372036854775794", "reason": "sentinel"}},
    }


def test_real_numbers_are_written_as_real_numbers_and_whole_ones_as_whole(client):
    text = client.get("/api/v1/nodes/node-1/metrics?limit=1").text
    assert '"temperature_celsius":96.3,' in text
    assert '"gpu_utilization_percent":100.0,' in text
    assert '"memory_used_mib":4096,' in text


def test_a_row_without_workloads_fields_or_refusals_has_them_empty(client):
    row = get(client, "/api/v1/nodes/node-1/metrics?limit=2")[1]
    assert (row["workloads"], row["fields"], row["rejected"]) == ([], {}, {})


def test_the_latest_metrics_have_one_row_for_every_gpu_and_mig_instance(client):
    rows = get(client, "/api/v1/metrics/latest")
    assert [(row["gpu_uuid"], row["mig_instance"], row["node_id"], row["collected_at"]) for row in rows] == [
        ("GPU-0000", None, "node-1", "2026-01-31T06:00:00.125Z"),
        # It moved: its newest row counts, wherever that is.
        ("GPU-0001", None, "node-3", "2026-01-31T06:00:00.125Z"),
        ("GPU-0002", None, "node-1", "2026-01-31T06:00:00.125Z"),
        ("GPU-0003", "1", "node-2", "2026-01-31T06:00:00.125Z"),
        ("GPU-0003", "2", "node-2", "2026-01-31T06:00:00.125Z"),
        ("GPU-0003", None, "node-2", "2026-01-31T06:00:00.125Z"),
    ]


def test_both_lists_of_metrics_give_the_same_row_for_the_same_scrape(client):
    newest = get(client, "/api/v1/nodes/node-1/metrics?limit=1")
    assert newest[0] in get(client, "/api/v1/metrics/latest")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("node=node-1", ["GPU-0000", "GPU-0002"]),
        ("node=node-3", ["GPU-0001"]),
        ("datacenter=us-east-1", ["GPU-0001"]),
        ("datacenter=us-west-1&node=node-2", ["GPU-0003", "GPU-0003", "GPU-0003"]),
        ("datacenter=us-east-1&node=node-2", []),
        ("node=node-6", []),
        ("node=nowhere", []),
    ],
)
def test_the_latest_metrics_are_filtered_by_where_the_gpu_is_now(client, query, expected):
    assert [row["gpu_uuid"] for row in get(client, f"/api/v1/metrics/latest?{query}")] == expected


def test_active_alerts_are_a_bare_array_of_the_promised_keys_newest_first(client):
    alerts = get(client, "/api/v1/alerts/active")
    assert [alert["id"] for alert in alerts] == [42, 41, 43]
    assert alerts[1] == {
        "id": 41,
        "node_id": "node-2",
        "gpu_index": 0,
        "alert_type": "high_temperature",
        "severity": "critical",
        "message": "GPU temperature is 96.3°C",
        "threshold_value": 90.0,
        "actual_value": 96.3,
        "status": "active",
        "triggered_at": "2026-01-31T11:58:00.000Z",
    }
    assert alerts[2]["gpu_index"] is None


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("", 43),
        ("status=active", 3),
        ("status=resolved", 40),
        ("severity=critical", 12),
        ("severity=info", 0),
        ("type=high_power", 20),
        ("node=node-2&status=resolved", 14),
        ("since=2026-01-30T00:09:00.000123Z", 7),
        ("since=2026-01-30T00:09:00.000124Z", 3),
        ("since=2026-01-30T02:09:00.000123%2B02:00", 7),
        ("since=2026-01-31T11:58:00Z&severity=warning", 1),
    ],
)
def test_alerts_are_filtered(client, query, count):
    assert len(get(client, f"/api/v1/alerts?{query}")) == count


def test_alerts_come_newest_first_and_by_falling_id_at_one_time(client):
    alerts = get(client, "/api/v1/alerts")
    assert alerts == sorted(alerts, key=lambda alert: (alert["triggered_at"], alert["id"]), reverse=True)


def test_an_alert_comes_with_its_transitions_and_actions(client):
    alert = get(client, "/api/v1/alerts/41")
    assert [(one["transition"], one["severity"], one["at"]) for one in alert["transitions"]] == [
        ("firing", "warning", "2026-01-31T11:58:00.000Z"),
        ("raised", "critical", "2026-01-31T11:58:30.000Z"),
    ]
    assert alert["transitions"][1]["details"] == {"step": 2}
    assert [(one["action_type"], one["status"], one["reason"]) for one in alert["actions"]] == [
        ("notify", "succeeded", None),
        ("migrate_workload", "skipped", "dry_run"),
    ]
    assert alert["actions"][0]["action_details"] == {"receiver": "log"}
    assert alert["raised_at"] == "2026-01-31T11:58:30.000Z"


def test_measured_columns_of_the_answer_have_the_types_of_the_field_table(client):
    number = {ValueType.INTEGER: int, ValueType.REAL: float}
    rows = get(client, "/api/v1/metrics/latest")
    for field in FIELDS:
        assert {type(row[field.name]) for row in rows} <= {number[field.type], type(None)}, field.name
