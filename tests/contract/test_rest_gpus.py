"""GPUs of the REST API over a real database: where each is, and what happened to it."""

import psycopg
import pytest

CALL = "/api/v1/gpus/GPU-0000?since=2026-01-29T00:00:00Z"


def get(client, path, status=200):
    response = client.get(path)
    assert response.status_code == status, response.text
    return response.json


def test_gpus_are_a_bare_array_by_uuid_each_where_it_was_last_seen(client):
    gpus = get(client, "/api/v1/gpus")
    assert [(gpu["gpu_uuid"], gpu["node_id"], gpu["gpu_index"]) for gpu in gpus] == [
        ("GPU-0000", "node-1", 0),
        ("GPU-0001", "node-3", 0),
        ("GPU-0002", "node-1", 1),
        ("GPU-0003", "node-2", 0),
        ("GPU-0004", "node-4", 0),
    ]
    assert gpus[3] == {
        "gpu_uuid": "GPU-0003",
        "model": "NVIDIA H100 80GB HBM3",
        "driver_version": "550.54.15",
        "pci_bus_id": None,
        "memory_total_mib": 81559,
        "first_seen": "2026-01-29T00:00:00.000Z",
        "node_id": "node-2",
        "gpu_index": 0,
        "datacenter": "us-west-1",
        "since": "2026-01-29T00:00:00.000Z",
        "last_collected_at": "2026-01-31T06:00:00.125Z",
        "active_alerts": 2,
    }


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("node=node-1", ["GPU-0000", "GPU-0002"]),
        ("datacenter=us-east-1", ["GPU-0001", "GPU-0004"]),
        ("model=NVIDIA%20H100%2080GB%20HBM3", ["GPU-0003"]),
        ("model=NVIDIA%20A100-SXM4-80GB&node=node-3", ["GPU-0001"]),
        ("removed=true", ["GPU-0005"]),
        ("node=nowhere", []),
    ],
)
def test_gpus_are_filtered(client, query, expected):
    assert [gpu["gpu_uuid"] for gpu in get(client, f"/api/v1/gpus?{query}")] == expected


def test_a_gpu_that_moved_comes_with_both_places(client):
    gpu = get(client, "/api/v1/gpus/GPU-0001")
    assert [(place["node_id"], place["gpu_index"], place["last_collected_at"]) for place in gpu["placements"]] == [
        ("node-1", 1, "2026-01-30T06:00:00.125Z"),
        ("node-3", 0, "2026-01-31T06:00:00.125Z"),
    ]


def test_a_gpu_comes_with_its_mig_instances_and_alerts_newest_first(client):
    gpu = get(client, "/api/v1/gpus/GPU-0003")
    assert [place["mig_profile"] for place in gpu["placements"]] == ["3g.40gb", "4g.40gb", None]
    assert [(alert["alert_type"], alert["status"]) for alert in gpu["alerts"]][:2] == [
        ("high_memory", "active"),
        ("high_temperature", "active"),
    ]
    assert [alert["id"] for alert in get(client, "/api/v1/gpus/GPU-0003?limit=1")["alerts"]] == [42]


def test_a_gpu_that_nobody_saw_is_not_found(client):
    assert get(client, "/api/v1/gpus/GPU-4711", 404)["detail"] == "there is no GPU 'GPU-4711'"


def errors(client, call=CALL):
    return [
        (error["at"][:16], error["field"], error["before"], error["value"]) for error in get(client, call)["errors"]
    ]


@pytest.fixture
def put(fleet_url):
    """`put(column, at, value)`: what the row of GPU-0000 at that time says."""

    def change(column, at, value):
        with psycopg.connect(fleet_url) as connection:
            done = connection.execute(
                f"UPDATE gpu_metrics SET {column} = %s WHERE node_id = 'node-1' AND gpu_index = 0"
                " AND collected_at = %s::timestamptz + interval '125 milliseconds'",
                [value, at],
            )
            assert done.rowcount == 1

    return change


def test_a_healthy_gpu_has_no_errors(client):
    assert errors(client) == []


def test_a_risen_counter_is_an_error_and_one_that_began_anew_is_none(writing_client, put):
    for hour, value in (("29T00", 2), ("29T06", 2), ("29T12", 5), ("29T18", 0), ("30T00", 1)):
        put("ecc_double_bit_volatile", f"2026-01-{hour}:00Z", value)
    assert errors(writing_client) == [
        ("2026-01-30T00:00", "ecc_double_bit_volatile", 0, 1),
        ("2026-01-29T12:00", "ecc_double_bit_volatile", 2, 5),
    ]


def test_another_xid_is_an_error_and_the_same_sticky_one_or_none_is_not(writing_client, put):
    for hour, value in (("29T06", 79), ("29T12", 79), ("29T18", 31), ("30T00", 0)):
        put("xid_code", f"2026-01-{hour}:00Z", value)
    assert errors(writing_client) == [
        ("2026-01-29T18:00", "xid_code", 79, 31),
        ("2026-01-29T06:00", "xid_code", 0, 79),
    ]


def test_a_value_that_was_absent_for_a_scrape_hides_no_rise(writing_client, put):
    for hour, value in (("29T06", 1), ("29T12", None), ("29T18", 2)):
        put("row_remap_uncorrectable_rows", f"2026-01-{hour}:00Z", value)
    assert errors(writing_client) == [("2026-01-29T18:00", "row_remap_uncorrectable_rows", 1, 2)]


def test_an_error_that_was_there_from_the_first_row_has_no_time(writing_client, put):
    put("row_remap_failure", "2026-01-29T00:00Z", 1)
    assert errors(writing_client) == []


def test_asked_for_since_the_very_time_of_an_error_it_is_found(writing_client, put):
    put("xid_code", "2026-01-29T06:00Z", 79)
    put("ecc_double_bit_volatile", "2026-01-29T00:00Z", 1)
    put("ecc_double_bit_volatile", "2026-01-29T06:00Z", 3)
    found = get(writing_client, "/api/v1/gpus/GPU-0000?since=2026-01-29T00:00:00Z")["errors"]
    assert [(error["field"], error["before"], error["value"]) for error in found] == [
        ("ecc_double_bit_volatile", 1, 3),
        ("xid_code", 0, 79),
    ]
    for since in (found[0]["at"], "2026-01-29T00:00:01Z"):
        assert get(writing_client, f"/api/v1/gpus/GPU-0000?since={since}")["errors"] == found
    assert errors(writing_client, "/api/v1/gpus/GPU-0000?since=2026-01-29T06:00:00.126Z") == []


def test_the_value_before_the_time_asked_for_is_the_last_one_that_was_measured(writing_client, put):
    for hour, value in (("29T00", 4), ("29T06", None), ("29T12", None), ("29T18", 4), ("30T00", 5)):
        put("retired_pages_single_bit", f"2026-01-{hour}:00Z", value)
    for since, expected in (
        ("2026-01-29T18:00:00Z", [("2026-01-30T00:00", "retired_pages_single_bit", 4, 5)]),
        ("2026-01-30T00:00:00Z", [("2026-01-30T00:00", "retired_pages_single_bit", 4, 5)]),
        ("2026-01-30T00:00:01Z", []),
    ):
        assert errors(writing_client, f"/api/v1/gpus/GPU-0000?since={since}") == expected


def test_errors_are_those_of_the_last_day_unless_asked_for_more(writing_client, put):
    put("row_remap_failure", "2026-01-29T00:00Z", 0)
    put("row_remap_failure", "2026-01-29T06:00Z", 1)
    assert errors(writing_client, "/api/v1/gpus/GPU-0000") == []
    assert len(errors(writing_client)) == 1


def test_an_error_that_stands_on_every_mig_instance_is_one(writing_client, fleet_url):
    with psycopg.connect(fleet_url) as connection:
        connection.execute(
            "UPDATE gpu_metrics SET xid_code = 48 WHERE node_id = 'node-2' AND collected_at > '2026-01-30T00:01:00Z'"
        )
    assert errors(writing_client, "/api/v1/gpus/GPU-0003?since=2026-01-29T00:00:00Z") == [
        ("2026-01-30T06:00", "xid_code", 0, 48)
    ]
