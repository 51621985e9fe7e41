"""The ledger of the REST API over a real database."""

from datetime import UTC, datetime

import psycopg
import pytest
from psycopg.rows import dict_row
from pydantic import SecretStr

from api.app import create_app
from api.resources import resources
from api.settings import ApiSettings
from gpu_telemetry.clock import ManualClock, rfc3339
from gpu_telemetry.settings import DatabaseSettings

ALL = "since=2026-01-29T00:00:00Z"


def get(client, path):
    response = client.get(path)
    assert response.status_code == 200, response.text
    return response.json


def balances(line):
    return line["announced"] + line["unannounced"] + line["estimated"] == (
        line["stored"] + line["dropped"] + line["missing"]
    )


def lines(client, query):
    return [(line["hour"][:13], line["node_id"]) for line in get(client, f"/api/v1/ledger?{query}")]


def test_a_line_says_what_became_of_a_nodes_records_of_an_hour(client):
    by_hour = {line["hour"]: line for line in get(client, f"/api/v1/ledger?{ALL}&node=node-1")}
    assert by_hour["2026-01-30T12:00:00.000Z"] == {
        "node_id": "node-1",
        "hour": "2026-01-30T12:00:00.000Z",
        "announced": 2,
        "unannounced": 2,
        "estimated": 0,
        "stored": 2,
        "dropped": 2,
        "missing": 0,
        "dropped_by_reason": {"queue_full": 2},
        "scrapes": 1,
        "missing_scrapes": 1,
        "unaccounted_seconds": 0.0,
    }
    assert by_hour["2026-01-31T06:00:00.000Z"]["dropped_by_reason"] == {"invalid": 3}
    assert all(map(balances, by_hour.values()))


def test_the_ledger_shows_the_running_hour_and_the_last_full_one_newest_first(client):
    nodes = ["node-1", "node-2", "node-3", "node-4", "node-5", "rack 7/ñode?&"]
    assert lines(client, "") == [("2026-01-31T11", node) for node in nodes]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("node=node-1&since=2026-01-31T09:59:59Z", ["2026-01-31T11", "2026-01-31T10", "2026-01-31T09"]),
        ("node=node-1&since=2026-01-31T09:00:00Z&until=2026-01-31T10:00:00Z", ["2026-01-31T09"]),
        ("node=node-1&since=2026-01-31T09:00:00Z&until=2026-01-31T10:00:01Z", ["2026-01-31T10", "2026-01-31T09"]),
        ("node=node-1&since=2026-01-31T14:00:00%2B02:00&until=2027-01-01T00:00:00Z", []),
        ("node=nowhere&since=2026-01-29T00:00:00Z", []),
        ("node=node-6&since=2026-01-29T22:00:00Z", ["2026-01-30T00", "2026-01-29T23", "2026-01-29T22"]),
    ],
)
def test_the_ledger_is_filtered(client, query, expected):
    assert [hour for hour, _ in lines(client, query)] == expected


def test_a_row_deleted_behind_its_back_is_missing_in_its_line_and_in_the_sum(writing_client, fleet_url):
    call = "node=node-1&since=2026-01-31T06:00:00Z&until=2026-01-31T07:00:00Z"
    before = get(writing_client, f"/api/v1/ledger/totals?{call}")
    assert (before["announced"], before["stored"], before["missing"]) == (2, 2, 0)
    with psycopg.connect(fleet_url) as connection:
        connection.execute("DELETE FROM stream_drops")
        connection.execute(
            "DELETE FROM gpu_metrics WHERE node_id = 'node-1' AND gpu_index = 1 AND collected_at > '2026-01-31 05:00Z'"
        )
    (line,) = get(writing_client, f"/api/v1/ledger?{call}")
    after = get(writing_client, f"/api/v1/ledger/totals?{call}")
    assert (line["announced"], line["stored"], line["missing"]) == (2, 1, 1)
    assert (after["announced"], after["stored"], after["missing"]) == (2, 1, 1)


@pytest.fixture
def clocks_ahead(fleet_url):
    """Dead letters of a clock that is three hours ahead, and a node whose newest record is of the next hour."""
    with psycopg.connect(fleet_url) as connection:
        connection.execute(
            """
            INSERT INTO stream_drops (node_id, hour, reason, gpu_records, scrapes)
            VALUES ('node-2', '2026-01-31 15:00Z', 'clock_skew', 960, 120);
            UPDATE nodes SET last_heard = '2026-01-31 13:00:01Z' WHERE node_id = 'node-5'
            """
        )


@pytest.mark.usefixtures("clocks_ahead")
def test_every_line_of_the_view_is_one_of_the_route_and_summed_up(writing_client, fleet_url):
    with psycopg.connect(fleet_url, options="-c timezone=UTC", row_factory=dict_row) as connection:
        lines = connection.execute("SELECT * FROM ledger ORDER BY hour DESC, node_id").fetchall()
    assert lines[0]["dropped_by_reason"] == {"clock_skew": 960}
    assert [line | {"hour": rfc3339(line["hour"])} for line in lines] == get(
        writing_client, "/api/v1/ledger?since=2020-01-01T00:00:00Z&limit=10000"
    )
    totals = get(writing_client, "/api/v1/ledger/totals?since=2020-01-01T00:00:00Z")
    for key in ("announced", "unannounced", "estimated", "stored", "dropped", "missing", "scrapes", "missing_scrapes"):
        assert totals[key] == sum(line[key] for line in lines), key


@pytest.mark.usefixtures("clocks_ahead")
def test_what_lies_ahead_stands_in_the_ledger_unless_its_end_is_told(writing_client):
    assert lines(writing_client, "node=node-2") == [("2026-01-31T15", "node-2"), ("2026-01-31T11", "node-2")]
    assert lines(writing_client, "node=node-2&until=2026-01-31T15:00:00Z") == [("2026-01-31T11", "node-2")]
    assert get(writing_client, "/api/v1/ledger/totals?node=node-2")["dropped"] == 960
    assert get(writing_client, "/api/v1/ledger/totals?node=node-2&until=2026-01-31T15:00:00Z")["dropped"] == 0


def test_a_walk_over_the_hour_loses_no_line(fleet_url):
    clock = ManualClock(datetime(2026, 1, 31, 11, 59, 59, tzinfo=UTC))
    app = create_app(ApiSettings(), database=DatabaseSettings(url=SecretStr(fleet_url)), clock=clock)
    try:
        client = app.test_client()
        whole = get(client, "/api/v1/ledger")
        page = client.get("/api/v1/ledger?limit=4")
        met = page.json
        while "Link" in page.headers:
            clock.advance(3600)
            page = client.get(page.headers["Link"].partition(">")[0].removeprefix("<"))
            met += page.json
    finally:
        resources(app).database.close()
    assert {line["hour"][:13] for line in whole} == {"2026-01-31T10", "2026-01-31T11"}
    assert met == whole


def test_totals_are_the_sum_of_the_lines(client):
    listed = get(client, f"/api/v1/ledger?{ALL}&limit=10000")
    totals = get(client, f"/api/v1/ledger/totals?{ALL}")
    for key in ("announced", "unannounced", "estimated", "stored", "dropped", "missing", "scrapes", "missing_scrapes"):
        assert totals[key] == sum(line[key] for line in listed), key
    assert totals["dropped_by_reason"] == {"queue_full": 2, "invalid": 3}
    assert totals["nodes"] == len({line["node_id"] for line in listed})
    assert (totals["first_hour"], totals["last_hour"]) == (listed[-1]["hour"], listed[0]["hour"])
    assert balances(totals)


def test_the_totals_of_a_range_without_records_are_nothing(client):
    totals = get(client, "/api/v1/ledger/totals?node=nowhere")
    assert (totals["nodes"], totals["first_hour"], totals["stored"], totals["missing"]) == (0, None, 0, 0)


def test_one_page_of_the_ledger_has_a_hundred_lines_unless_asked_for_more(client):
    assert len(get(client, f"/api/v1/ledger?{ALL}")) == 100
