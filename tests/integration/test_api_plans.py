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


def plan_nodes(connection, query, parameters):
    """Every node of the plan of a query that was carried out."""
    explained = connection.execute(b"EXPLAIN (ANALYZE, FORMAT JSON) " + query, parameters).fetchone()[0]
    pending = [explained[0]["Plan"]]
    while pending:
        node = pending.pop()
        pending += node.get("Plans", [])
        yield node


def scans(connection, query, parameters, table):
    """The scans of a table, or of a partitioned table's parts, that were carried out at least once."""
    for node in plan_nodes(connection, query, parameters):
        if str(node.get("Relation Name", "")).startswith(table) and node["Actual Loops"] > 0:
            yield node


def rows_read(connection, query, parameters, table="gpu_metrics"):
    """How many rows of a table were looked at, those that a filter threw away included."""
    return sum(
        (scan["Actual Rows"] + scan.get("Rows Removed by Filter", 0)) * scan["Actual Loops"]
        for scan in scans(connection, query, parameters, table)
    )


def days_read(connection, query, parameters, table="gpu_metrics"):
    """The days, as in 20260131, whose parts were looked into; the empty ones that lie ahead left out."""
    days = {scan["Relation Name"].rpartition("_")[2] for scan in scans(connection, query, parameters, table)}
    return sorted(days - {"20260201", "20260202"})


def rows_sorted(connection, query, parameters):
    """The most rows that any one sort of the plan was given."""
    return max(
        part["Actual Rows"]
        for node in plan_nodes(connection, query, parameters)
        if node["Node Type"] in {"Sort", "Incremental Sort"}
        for part in node["Plans"]
    )


def test_the_latest_metrics_read_one_row_for_every_gpu(history):
    assert rows_read(history, queries.LATEST_METRICS, LATEST) == GPUS


@pytest.mark.parametrize("filters", [{}, {"node": "node-7"}])
def test_the_latest_metrics_are_one_search_of_the_newest_days_index_for_every_gpu(history, filters):
    given = len(queries.fetch(history, queries.LATEST_METRICS, LATEST | filters))
    found = list(scans(history, queries.LATEST_METRICS, LATEST | filters, "gpu_metrics_20260131"))
    assert [scan["Index Name"] for scan in found] == ["gpu_metrics_20260131_placement_id_collected_at_key"]
    assert sum(scan["Index Searches"] for scan in found) == given
    assert days_read(history, queries.LATEST_METRICS, LATEST | filters) == ["20260131"]


@pytest.mark.parametrize(
    ("filters", "gpus"),
    [({"node": "node-7"}, 8), ({"datacenter": "dc-1"}, GPUS // 2), ({"after_gpu": "GPU-8"}, None), ({"limit": 11}, 11)],
)
def test_a_filter_a_cursor_or_a_limit_reads_no_more_than_it_gives(history, filters, gpus):
    given = len(queries.fetch(history, queries.LATEST_METRICS, LATEST | filters))
    assert gpus in {None, given}
    assert 0 < given < GPUS
    assert rows_read(history, queries.LATEST_METRICS, LATEST | filters) == given


# A page's rows, those of its last turn that are over, and as many entries of an index to find where the page ends.
PAGE = 2 * (NODE_METRICS["limit"] + 8) + 8


def test_a_nodes_newest_metrics_read_little_more_than_they_give(history):
    assert 0 < rows_read(history, queries.NODE_METRICS, NODE_METRICS) <= PAGE
    assert days_read(history, queries.NODE_METRICS, NODE_METRICS) == ["20260131"]


def test_a_page_deep_in_a_nodes_history_reads_no_more_than_the_first(history):
    deep = NODE_METRICS | {"after_time": "2026-01-29T12:00:00Z", "after_placement": 60}
    assert 0 < rows_read(history, queries.NODE_METRICS, deep) <= PAGE
    assert days_read(history, queries.NODE_METRICS, deep) == ["20260129"]


def test_a_long_page_of_a_node_sorts_its_own_rows_alone_and_reads_the_days_they_are_of(history):
    long = NODE_METRICS | {"limit": 401}  # 8 GPUs, 40 turns a day
    assert rows_read(history, queries.NODE_METRICS, long) <= 2 * (401 + 8) + 8
    assert rows_sorted(history, queries.NODE_METRICS, long) <= 401 + 8
    assert days_read(history, queries.NODE_METRICS, long) == ["20260130", "20260131"]


@pytest.fixture
def uneven(history):
    """The history in which node-7 lost a GPU on the second day, has one with MIG instances, and one since an hour."""
    history.execute(
        """
        DELETE FROM gpu_metrics WHERE placement_id = 58 AND collected_at > '2026-01-29 13:00';
        INSERT INTO gpus (gpu_uuid, first_seen) VALUES ('GPU-new', '2026-01-31 23:00');
        INSERT INTO placements (node_id, gpu_index, gpu_uuid, mig_instance, since) OVERRIDING SYSTEM VALUE
        SELECT 'node-7', index, gpu, mig, '2026-01-28'
        FROM (VALUES (1, 'GPU-new', NULL), (2, 'GPU-new', '1'), (2, 'GPU-new', '2')) new (index, gpu, mig);
        INSERT INTO gpu_metrics (placement_id, node_id, gpu_index, collected_at)
        SELECT p.placement_id, 'node-7', p.gpu_index, m.collected_at
        FROM placements p, gpu_metrics m
        WHERE p.gpu_uuid = 'GPU-new' AND m.placement_id = 57
          AND (p.mig_instance IS NOT NULL OR m.collected_at > '2026-01-31 23:00');
        DELETE FROM gpu_metrics
        WHERE placement_id = 60 AND extract(minute FROM collected_at) > 20 AND collected_at > '2026-01-30';
        """
    )
    return history


@pytest.mark.parametrize(
    "after",
    [
        {},
        {"after_time": "2026-01-31T22:48:00Z", "after_placement": 60},
        {"after_time": "2026-01-29T12:36:00Z", "after_placement": 58},
        {"after_time": "2026-01-28T00:00:00Z", "after_placement": 62},
    ],
)
def test_a_nodes_metrics_are_those_that_a_look_at_every_row_would_give(uneven, after):
    every = uneven.execute(
        """
        SELECT collected_at, placement_id
        FROM gpu_metrics
        WHERE node_id = %(node)s
          AND (%(after_time)s::timestamptz IS NULL
               OR collected_at < %(after_time)s
               OR (collected_at = %(after_time)s AND placement_id > %(after_placement)s))
        ORDER BY collected_at DESC, placement_id
        """,
        NODE_METRICS | after,
    ).fetchall()
    assert every
    for limit in (1, 2, 8, 11, 400, 5000):
        rows = queries.fetch(uneven, queries.NODE_METRICS, NODE_METRICS | after | {"limit": limit})
        assert [(row["collected_at"], row["placement_id"]) for row in rows] == every[:limit], f"limit {limit}"


LEDGER = {
    "node": None,
    "since": datetime(2026, 1, 30, 9, tzinfo=UTC),
    "until": datetime(2026, 1, 30, 10, tzinfo=UTC),
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
    assert days_read(history, queries.LEDGER, LEDGER | filters) == ["20260130"]
    assert days_read(history, queries.LEDGER, LEDGER | filters, "scrapes") == ["20260130"]


def test_the_ledgers_totals_read_each_row_of_their_range_once(history):
    parameters = {name: LEDGER[name] for name in ("node", "since", "until")}
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


def test_what_a_value_is_compared_with_is_one_search_of_an_index_for_each_field_that_is_not_zero(history):
    gpu = history.execute("SELECT gpu_uuid FROM placements WHERE placement_id = 1").fetchone()[0]
    history.execute("UPDATE gpu_metrics SET xid_code = 79, ecc_double_bit_volatile = 0 WHERE placement_id = 1")
    history.execute(
        "UPDATE gpu_metrics SET row_remap_failure = CASE WHEN collected_at < '2026-01-30' THEN 0 ELSE 1 END"
        " WHERE placement_id = 1"
    )
    since = datetime(2026, 1, 30, 12, tzinfo=UTC)
    parameters = {"gpu": gpu, "since": since, "now": datetime(2026, 1, 31, tzinfo=UTC), "limit": 100}
    assert queries.fetch(history, queries.GPU_ERRORS, parameters) == []
    before = [
        scan
        for scan in scans(history, queries.GPU_ERRORS, parameters, "gpu_metrics")
        if scan["Parent Relationship"] == "Member" and scan["Alias"].startswith("r")
    ]
    assert {scan["Index Name"] for scan in before} == {"gpu_metrics_20260130_placement_id_collected_at_key"}
    assert sum(scan["Index Searches"] for scan in before) == 2, "the XID and the remapping that failed"


def test_a_nodes_gpus_read_one_row_for_each_of_them(history):
    assert len(queries.fetch(history, queries.GPUS, {"node": "node-7"})) == 8
    assert rows_read(history, queries.GPUS, {"node": "node-7"}) == 8
    assert days_read(history, queries.GPUS, {"node": "node-7"}) == ["20260131"]


def test_the_fleet_at_a_glance_reads_one_row_for_every_gpu(history):
    assert rows_read(history, queries.FLEET_GPUS, {"now": datetime(2026, 1, 31, tzinfo=UTC)}) == GPUS


@pytest.fixture
def replaced(history):
    """The history in which ten GPUs, one of them of node-7, were replaced on the last day."""
    history.execute(
        """
        INSERT INTO gpus (gpu_uuid, first_seen) SELECT 'GPU-new-' || n, '2026-01-31' FROM generate_series(0, 9) n;
        INSERT INTO placements (node_id, gpu_index, gpu_uuid, since)
        SELECT 'node-' || n, 3, 'GPU-new-' || n, '2026-01-31' FROM generate_series(0, 9) n;
        UPDATE gpu_metrics m
        SET placement_id = new.placement_id
        FROM placements new
        WHERE new.gpu_uuid LIKE 'GPU-new-%' AND m.node_id = new.node_id AND m.gpu_index = 3
          AND m.collected_at >= '2026-01-31';
        """
    )
    return history


def test_for_each_gpu_that_was_replaced_a_few_rows_more_are_read(replaced):
    now = {"now": datetime(2026, 1, 31, tzinfo=UTC)}
    assert sum(row["total"] for row in queries.fetch(replaced, queries.FLEET_GPUS, now)) == GPUS
    # Those that were replaced have a newest row too; and twice a place's rows are compared with one another.
    assert round(rows_read(replaced, queries.FLEET_GPUS, now)) <= GPUS + 10 + 2 * 10
    assert len(queries.fetch(replaced, queries.GPUS, {"node": "node-7"})) == 8
    assert round(rows_read(replaced, queries.GPUS, {"node": "node-7"})) <= 8 + 1 + 2


ALERTS = {
    "status": "active",
    "severity": None,
    "type": None,
    "node": None,
    "since": None,
    "after_time": None,
    "after_id": None,
    "limit": 1001,
}
ACTIVE = 30


@pytest.fixture
def alerted(history):
    """The history with 6,000 alerts behind it, of which 30 are active, the oldest among them."""
    history.execute(
        f"""
        INSERT INTO alerts (rule, alert_type, node_id, gpu_index, gpu_uuid, severity, message, status, triggered_at,
                            resolved_at, resolved_reason)
        SELECT 'high_power', 'high_power', p.node_id, p.gpu_index, p.gpu_uuid, 'warning', 'hot',
               CASE WHEN n % 200 = 0 THEN 'active' ELSE 'resolved' END, at,
               CASE WHEN n % 200 > 0 THEN at + interval '1 minute' END, CASE WHEN n % 200 > 0 THEN 'cleared' END
        FROM generate_series(0, {200 * ACTIVE - 1}) n
        JOIN placements p ON p.placement_id = 1 + (n % 200 + n / 200 * 8) % {GPUS},
             LATERAL (SELECT '2026-01-28'::timestamptz + n * interval '57 seconds' AS at) t;
        ANALYZE alerts, nodes;
        """.encode()
    )
    return history


def test_the_active_alerts_are_found_without_a_look_at_the_resolved_ones(alerted):
    assert len(queries.fetch(alerted, queries.ALERTS, ALERTS)) == ACTIVE
    assert rows_read(alerted, queries.ALERTS, ALERTS, "alerts") == ACTIVE


def test_the_list_of_nodes_reads_each_node_once_the_active_alerts_and_no_measurement(alerted):
    parameters = {
        "now": datetime(2026, 2, 1, tzinfo=UTC),
        "removed": False,
        "datacenter": None,
        "status": None,
        "after_node": None,
        "limit": 1001,
    }
    nodes = queries.fetch(alerted, queries.NODES, parameters)
    assert (len(nodes), sum(node["active_alerts"] for node in nodes)) == (NODES, ACTIVE)
    assert rows_read(alerted, queries.NODES, parameters, "nodes") == NODES
    assert rows_read(alerted, queries.NODES, parameters, "alerts") == ACTIVE
    assert not list(scans(alerted, queries.NODES, parameters, "gpu_metrics"))
    assert not list(scans(alerted, queries.NODES, parameters, "scrapes"))
