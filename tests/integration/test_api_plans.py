"""How PostgreSQL carries out the API's queries: what a question reads does not grow with the history behind it."""

from datetime import UTC, datetime

import psycopg
import pytest
from pydantic import SecretStr

from api import queries
from gpu_telemetry.database import upgrade
from gpu_telemetry.settings import DatabaseSettings

GPUS, NODES, DAYS = 320, 40, 4
LATEST = {"node": None, "datacenter": None, "after_gpu": None, "after_mig": None, "limit": 1001}
NODE_METRICS = {"node": "node-7", "after_time": None, "after_placement": None, "limit": 11}


@pytest.fixture
def history(postgres_url):
    """A connection to a database with four days of rows and two days made ahead.

    As in life, the statistics know the older days, and not the newest nor what lies ahead.
    """
    upgrade(DatabaseSettings(url=SecretStr(postgres_url)))
    with psycopg.connect(
        postgres_url, autocommit=True, options="-c timezone=UTC", prepare_threshold=None
    ) as connection:
        connection.execute(
            f"""
            SELECT ensure_partition(parent, day::date)
            FROM unnest(ARRAY['gpu_metrics', 'scrapes']) parent,
                 generate_series('2026-01-28'::date, '2026-02-02', '1 day') day;
            INSERT INTO nodes (node_id, datacenter, status, first_seen, last_heard, interval_ms)
            SELECT 'node-' || n, 'dc-' || n % 2, 'healthy', '2026-01-28', '2026-01-31 23:59', 30000
            FROM generate_series(0, {NODES - 1}) n;
            INSERT INTO gpus (gpu_uuid, first_seen)
            SELECT 'GPU-' || md5(n::text), '2026-01-28' FROM generate_series(0, {GPUS - 1}) n;
            INSERT INTO placements (node_id, gpu_index, gpu_uuid, since)
            SELECT 'node-' || n / 8, n % 8, 'GPU-' || md5(n::text), '2026-01-28'
            FROM generate_series(0, {GPUS - 1}) n;
            """.encode()
        )
        for day in range(DAYS):
            if day == DAYS - 1:
                connection.execute("ANALYZE")
            connection.execute(
                "INSERT INTO gpu_metrics (placement_id, node_id, gpu_index, temperature_celsius, collected_at)"
                " SELECT placement_id, node_id, gpu_index, 50, at FROM placements,"
                " generate_series(%(day)s::timestamptz, %(day)s::timestamptz + interval '23 hours 59 minutes',"
                " interval '36 minutes') at",
                {"day": f"2026-01-{28 + day}"},
            )
            connection.execute(
                "INSERT INTO scrapes (node_id, bridge_id, boot_id, seq, collected_at, up, gpu_records, gpu_uuids,"
                " interval_ms) SELECT node_id, 'bridge', 'boot', 1 + extract(epoch FROM at - '2026-01-28') / 2160, at,"
                " true, 8, '{}', 2160000 FROM nodes,"
                " generate_series(%(day)s::timestamptz, %(day)s::timestamptz + interval '23 hours 59 minutes',"
                " interval '36 minutes') at",
                {"day": f"2026-01-{28 + day}"},
            )
        yield connection


def rows_read(connection, query, parameters, table="gpu_metrics"):
    """How many rows of a partitioned table were looked at, those that a filter threw away included."""
    explained = connection.execute(b"EXPLAIN (ANALYZE, FORMAT JSON) " + query, parameters).fetchone()[0]

    def scans(node):
        if str(node.get("Relation Name", "")).startswith(table):
            yield node
        for part in node.get("Plans", []):
            yield from scans(part)

    return sum(
        (scan["Actual Rows"] + scan.get("Rows Removed by Filter", 0)) * scan["Actual Loops"]
        for scan in scans(explained[0]["Plan"])
    )


def test_the_latest_metrics_read_one_row_for_every_gpu(history):
    assert rows_read(history, queries.LATEST_METRICS, LATEST) == GPUS


@pytest.mark.parametrize(
    ("filters", "gpus"),
    [({"node": "node-7"}, 8), ({"datacenter": "dc-1"}, GPUS // 2), ({"after_gpu": "GPU-8"}, None), ({"limit": 11}, 11)],
)
def test_a_filter_a_cursor_or_a_limit_reads_no_more_than_it_gives(history, filters, gpus):
    given = len(queries.fetch(history, queries.LATEST_METRICS, LATEST | filters))
    assert gpus in {None, given}
    assert 0 < given < GPUS
    assert rows_read(history, queries.LATEST_METRICS, LATEST | filters) == given


def test_a_nodes_newest_metrics_read_no_more_than_the_limit_for_each_of_its_gpus(history):
    assert 0 < rows_read(history, queries.NODE_METRICS, NODE_METRICS) <= 8 * NODE_METRICS["limit"]


def test_a_page_deep_in_a_nodes_history_reads_no_more_than_the_first(history):
    deep = NODE_METRICS | {"after_time": "2026-01-29T12:00:00Z", "after_placement": 60}
    assert 0 < rows_read(history, queries.NODE_METRICS, deep) <= 8 * (NODE_METRICS["limit"] + 1)


LEDGER = {
    "node": None,
    "since": datetime(2026, 1, 30, 9, tzinfo=UTC),
    "until": None,
    "now": datetime(2026, 1, 30, 9, 59, tzinfo=UTC),
    "after_hour": None,
    "after_node": None,
    "limit": 101,
}


@pytest.mark.parametrize(("filters", "nodes"), [({}, NODES), ({"node": "node-7"}, 1), ({"limit": 11}, 11)])
def test_the_ledger_of_an_hour_reads_the_rows_of_that_hour_and_of_its_page_alone(history, filters, nodes):
    lines = queries.fetch(history, queries.LEDGER, LEDGER | filters)
    assert [(line["announced"], line["stored"], line["missing"]) for line in lines] == [(16, 16, 0)] * nodes
    assert rows_read(history, queries.LEDGER, LEDGER | filters) == 16 * nodes
    # An hour's two closing records of each node, and the one before them.
    assert rows_read(history, queries.LEDGER, LEDGER | filters, "scrapes") == 3 * nodes


def test_the_ledgers_totals_read_each_row_of_their_range_once(history):
    parameters = {name: LEDGER[name] for name in ("node", "since", "until", "now")}
    assert queries.fetch_one(history, queries.LEDGER_TOTALS, parameters)["stored"] == 16 * NODES
    assert rows_read(history, queries.LEDGER_TOTALS, parameters) == 16 * NODES


@pytest.mark.parametrize(("filters", "gpus"), [({}, GPUS), ({"node": "node-7"}, 8), ({"limit": 11}, 11)])
def test_the_list_of_gpus_reads_one_row_for_each_that_it_gives(history, filters, gpus):
    parameters = {"node": None, "model": None, "datacenter": None, "removed": False, "after_gpu": None, "limit": 1001}
    assert len(queries.fetch(history, queries.ALL_GPUS, parameters | filters)) == gpus
    assert rows_read(history, queries.ALL_GPUS, parameters | filters) == gpus


def test_the_errors_of_a_gpu_read_its_own_rows_of_the_last_day(history):
    gpu = history.execute("SELECT gpu_uuid FROM placements LIMIT 1").fetchone()[0]
    parameters = {"gpu": gpu, "since": None, "now": datetime(2026, 1, 31, tzinfo=UTC), "limit": 100}
    assert rows_read(history, queries.GPU_ERRORS, parameters) == 80


def test_the_fleet_at_a_glance_reads_one_row_for_every_gpu(history):
    assert rows_read(history, queries.FLEET_GPUS, {"now": datetime(2026, 1, 31, tzinfo=UTC)}) == GPUS
