"""What is not there is not shown as health: a dead part, a field that no exporter sends, a choice of nothing."""

import json
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
import yaml
from psycopg.rows import dict_row
from pydantic import SecretStr

from gpu_telemetry import database
from gpu_telemetry.settings import DatabaseSettings

pytestmark = pytest.mark.integration

DASHBOARDS = Path(__file__).parents[2] / "grafana" / "dashboards"
CHOSEN = {"datacenter": ".*", "model": ".*", "namespace": ".*", "gpu": ".*", "node": "node-1", "uuid": "GPU-1"}

GPUS = 'model:gpus:count{datacenter="d", modelName="H100"}'
WORKLOAD = '{datacenter="d", namespace="ml", pod="p"}'
GPU = 'node_id="node-1", datacenter="d", gpu="0", UUID="GPU-1", modelName="H100"'
UP = {f'up{{job="{job}", instance="i"}}': 1 for job in ("bridge", "gpu-fleet", "alert-engine", "api")}
NOT_OURS = {'up{job="of others", instance="i"}': 0, 'up{job="of others", instance="j"}': 0}


def asked(board, title, ref_id="A", kind=None):
    """The text of a panel's query, with the variables chosen."""
    panels = json.loads((DASHBOARDS / f"{board}.json").read_text(encoding="utf-8"))["panels"]
    (target,) = (
        target
        for panel in panels
        if panel["title"] == title and kind in (None, panel["type"])
        for target in panel.get("targets", [])
        if target["refId"] == ref_id
    )
    text = target.get("expr", target.get("rawSql"))
    for name in ("$__range", "$__rate_interval"):
        text = text.replace(name, "5m")
    return re.sub(r"\$\{?([a-z]\w*)(?::\w+)?\}?", lambda found: CHOSEN[found[1]], text)


@pytest.fixture
def gives(tmp_path):
    """Whether an expression gives these values by labels, with series that have had these values for 10 minutes."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian's package prometheus)")

    def gives(expression, series, values):
        case = {
            "interval": "30s",
            "input_series": [{"series": name, "values": f"{value}x20"} for name, value in series.items()],
            "promql_expr_test": [
                {
                    "expr": expression,
                    "eval_time": "10m",
                    "exp_samples": [{"labels": labels, "value": value} for labels, value in values.items()],
                }
            ],
        }
        (tmp_path / "case.yml").write_text(yaml.safe_dump({"evaluation_interval": "30s", "tests": [case]}))
        ran = subprocess.run(
            [program, "test", "rules", tmp_path / "case.yml"], capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr

    return gives


def words(expression):
    """1 if the expression gives what is shown as words: one sample that is not a number, which nothing equals."""
    return f"({expression}) != bool ({expression})"


# ---- the parts of the pipeline ---------------------------------------------------------------------------------------


def test_all_parts_answer_whatever_else_prometheus_watches(gives):
    gives(asked("pipeline", "Parts that answer"), UP | NOT_OURS, {"{}": 100})


def test_a_part_that_prometheus_no_longer_finds_is_down_and_keeps_its_bar(gives):
    without_engines = {name: value for name, value in UP.items() if "alert-engine" not in name} | NOT_OURS

    gives(asked("pipeline", "Parts that answer"), without_engines, {"{}": 75})
    gives(
        asked("pipeline", "Parts"),
        without_engines,
        {'{job="alert-engine"}': 0, '{job="api"}': 1, '{job="bridge"}': 1, '{job="gpu-fleet"}': 1},
    )


def test_the_alerts_are_the_pipelines_own(gives):
    firing = 'alertstate="firing", instance="i", severity="critical"'

    gives(
        asked("pipeline", "Alerts about the pipeline itself"),
        {f'ALERTS{{alertname="BridgeDown", {firing}}}': 1, f'ALERTS{{alertname="Of others", {firing}}}': 1},
        {'{alertname="BridgeDown", instance="i", severity="critical"}': 1},
    )


def test_one_of_several_engines_down_is_part_of_a_part(gives):
    engines = UP | {f'up{{job="alert-engine", instance="{name}"}}': 0 for name in "jkl"}

    gives(asked("pipeline", "Parts that answer"), engines, {"{}": 81.25})


def test_without_an_engine_nobody_knows_what_is_lost(gives):
    expression = asked("pipeline", "Lost without a reason")

    gives(words(expression), UP, {"{}": 1})
    gives(expression, {'alert_engine_ledger_missing_gpu_records{instance="i"}': 0}, {"{}": 0})


COUNTERS = [
    ("Turns a second, by outcome", "B", "bridge", "failed"),
    ("Lines not understood and samples without a record, by reason", "A", "bridge", "lines refused"),
    ("Lines not understood and samples without a record, by reason", "B", "bridge", "not recorded"),
    ("Messages to Kafka a second", "B", "bridge", "refused"),
    ("Messages to Kafka a second", "C", "bridge", "records dropped"),
    ("Records that were not stored as new, a second", "D", "alert-engine", "dead letters"),
]


@pytest.mark.parametrize(("title", "ref_id", "part", "name"), COUNTERS)
def test_what_never_happened_is_0_only_while_its_part_answers(gives, title, ref_id, part, name):
    expression = asked("pipeline", title, ref_id)

    gives(expression, UP, {f'{{kind="{name}"}}': 0})
    gives(expression, UP | {f'up{{job="{part}", instance="i"}}': 0}, {})
    gives(expression, {}, {})


def test_what_fails_is_counted_by_reason_and_in_all(gives):
    counters = {
        'gpu_bridge_scrape_failures_total{instance="i", reason="timeout"}': "0+60",
        'gpu_bridge_scrape_failures_total{instance="i", reason="http_500"}': "0+30",
    }

    gives(
        asked("pipeline", "Turns a second, by outcome", "B"),
        UP | counters,
        {
            '{kind="failed"}': 3,
            '{kind="failed, timeout", reason="timeout"}': 2,
            '{kind="failed, http_500", reason="http_500"}': 1,
        },
    )


def test_that_no_value_is_rejected_is_told_only_while_the_bridge_answers(gives):
    expression = asked("pipeline", "Values not believed, by field and reason")

    gives(expression, UP, {'{field="none"}': 0})
    gives(expression, UP | {'up{job="bridge", instance="i"}': 0}, {})


def test_each_part_tells_its_own_errors_though_the_other_is_down(gives):
    expression = asked("pipeline", "Errors a second")
    database, again, api = (
        {f'{{kind="{name}"}}': 0} for name in ("database errors", "batches begun again", "API answers of 5xx")
    )

    gives(expression, UP, database | again | api)
    gives(expression, UP | {'up{job="alert-engine", instance="i"}': 0}, api)
    gives(expression, UP | {'up{job="api", instance="i"}': 0}, database | again)
    gives(
        expression,
        UP | {'alert_engine_database_errors_total{part="store", instance="i"}': "0+60"},
        again | api | {'{kind="database errors"}': 2, '{kind="database errors, store", part="store"}': 2},
    )


def test_what_is_read_is_shown_though_nothing_is_stored(gives):
    gives(
        asked("pipeline", "Samples and records a second"),
        {
            'gpu_bridge_samples_total{instance="i"}': "0+960",
            'gpu_bridge_gpu_records_total{instance="i"}': "0+30",
        },
        {'{kind="samples read"}': 32, '{kind="GPU records made"}': 1},
    )


# ---- what exporters do not tell --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("board", "title", "ref_id", "told"),
    [
        ("fleet", "Not healthy", "C", "model:gpus_throttled:count"),
        ("fleet", "From GPUs owned to work done", "C", "model:gpus_allocated:count"),
        ("fleet", "From GPUs owned to work done", "D", "model:gpus_active:count"),
        ("fleet", "From GPUs owned to work done", "E", "model:gpus_effective:sum"),
        ("fleet", "Power and energy", "A", "model:gpu_power_watts:sum"),
        ("fleet", "Power and energy", "B", "model:gpu_power_watts:sum"),
    ],
)
def test_of_gpus_what_is_not_told_is_no_0(gives, board, title, ref_id, told):
    expression = asked(board, title, ref_id)

    gives(words(expression), {GPUS: 8}, {"{}": 1})
    gives(expression, {GPUS: 8, told + '{datacenter="d", modelName="H100"}': 0}, {"{}": 0})


def test_what_gpus_do_is_shown_though_one_thing_is_not_told(gives):
    # Grafana 9.4 shows nothing of a panel of which one query finds nothing.
    labels = '{datacenter="d", modelName="H100"}'

    gives(
        asked("fleet", "GPUs by what they do"),
        {GPUS: 8, f"model:gpus_allocated:count{labels}": 3},
        {'{kind="reporting"}': 8, '{kind="allocated"}': 3},
    )


@pytest.mark.parametrize(
    ("title", "told"),
    [
        ("Of these idle", "workload:gpus_idle:count"),
        ("Idle share of them", "workload:gpus_idle:count"),
        ("Energy in this range", "workload:gpu_power_watts:sum"),
    ],
)
def test_of_workloads_what_is_not_told_is_no_0(gives, title, told):
    expression = asked("workloads", title)
    used = {GPUS: 8, f"workload:gpus:count{WORKLOAD}": 1}

    gives(words(expression), used, {"{}": 1})
    gives(expression, used | {told + WORKLOAD: 0}, {"{}": 0})
    gives(expression, {GPUS: 8}, {"{}": 0})
    gives(words(expression), {}, {"{}": 1})


@pytest.mark.parametrize("title", ["Workloads now", "GPUs they have", "GPU-hours in this range"])
def test_no_workload_is_0_only_where_gpus_report(gives, title):
    expression = asked("workloads", title)

    gives(expression, {GPUS: 8}, {"{}": 0})
    gives(words(expression), {}, {"{}": 1})


def test_the_idle_share_is_of_the_workloads_that_tell_it(gives):
    other = WORKLOAD.replace('"p"', '"q"')
    series = {f"workload:gpus:count{WORKLOAD}": 2, f"workload:gpus:count{other}": 6}

    gives(asked("workloads", "Idle share of them"), series | {f"workload:gpus_idle:count{WORKLOAD}": 1}, {"{}": 50})


@pytest.mark.parametrize("ref_id", "ABCD")
def test_a_workload_that_tells_little_has_a_row_and_no_row_says_that_there_is_none(gives, ref_id):
    expression = f"count by (pod) ({asked('workloads', 'Most GPU-hours', ref_id)})"

    gives(expression, {f"workload:gpus:count{WORKLOAD}": 1}, {'{pod="p"}': 1})
    gives(expression, {}, {'{pod="none in this range"}': 1})


# ---- a node ----------------------------------------------------------------------------------------------------------


def test_who_uses_a_gpu_is_told_by_older_exporters_too(gives):
    workload = {"pod_name": "p", "pod_namespace": "ml"}, {"pod": "p", "namespace": "ml"}
    for spelt in workload:
        labels = ", ".join([GPU, *(f'{name}="{value}"' for name, value in spelt.items())])
        gives(
            asked("node", "Its GPUs now"),
            {f"DCGM_FI_DEV_GPU_TEMP{{{labels}}}": 50},
            {'{UUID="GPU-1", gpu="0", modelName="H100", namespace="ml", pod="p"}': 50},
        )


@pytest.mark.parametrize("ref_id", "ABCDEF")
def test_a_gpu_that_tells_little_has_a_row_and_no_row_says_that_none_reports(gives, ref_id):
    expression = f"count by (gpu, pod) ({asked('node', 'Its GPUs now', ref_id)})"
    beyond_belief = {f"DCGM_FI_DEV_GPU_TEMP{{{GPU}, pod_name='p'}}".replace("'", '"'): 9e18}

    gives(expression, beyond_belief, {'{gpu="0", pod="p"}': 1})
    gives(expression, {}, {'{pod="No GPU of this node reports"}': 1})


# ---- what is asked of the database -----------------------------------------------------------------------------------


@pytest.fixture
def connection(postgres_url):
    database.upgrade(DatabaseSettings(url=SecretStr(postgres_url)))
    with psycopg.connect(postgres_url, autocommit=True, row_factory=dict_row) as connection:
        yield connection


def test_nodes_of_which_nothing_arrives_do_not_report_and_the_table_names_them(connection):
    now = datetime.now(UTC)
    connection.execute("SELECT ensure_partition('scrapes', %s)", [now.date()])
    for name, seen, heard, removed in (
        ("well", 0, 0, None),
        ("unanswered", 1, 0, None),
        ("unheard", 10, 10, None),
        ("removed", 10, 10, now),
    ):
        connection.execute(
            "INSERT INTO nodes (node_id, first_seen, last_seen, last_heard, interval_ms, removed_at)"
            " VALUES (%s, %s, %s, %s, 30000, %s)",
            [name, now, now - timedelta(minutes=seen), now - timedelta(minutes=heard), removed],
        )
    connection.execute(
        "INSERT INTO scrapes (node_id, bridge_id, boot_id, seq, collected_at, up, reason, gpu_records, gpu_uuids,"
        " interval_ms) VALUES ('unanswered', 'b', 'b', 1, %s, false, 'timeout', 0, '{}', 30000)",
        [now],
    )

    (count,) = connection.execute(asked("fleet", "Not healthy", "D")).fetchall()
    named = {row["Node"] for row in connection.execute(asked("fleet", "Nodes that do not report")).fetchall()}

    assert count == {"Nodes not reporting": 2}
    assert named == {"unanswered", "unheard"}


COUNTS_OF_ALERTS = [
    ("fleet", "Active alerts", "A"),
    ("fleet", "Active alerts", "B"),
    ("fleet", "Not healthy", "A"),
    ("fleet", "Not healthy", "B"),
    ("alerts", "Critical now", "A"),
    ("alerts", "Warnings now", "A"),
    ("node", "Active alerts", "A"),
    ("node", "Active alerts", "B"),
    ("gpu", "Now", "C"),
    ("gpu", "Now", "D"),
]
NODE_AND_GPU = """
INSERT INTO nodes (node_id, first_seen, last_heard, interval_ms)
VALUES ('node-1', now(), now(), 30000), ('node-2', now(), now() - interval '10 minutes', 30000);
INSERT INTO gpus (gpu_uuid, first_seen) VALUES ('GPU-1', now());
INSERT INTO placements (node_id, gpu_index, gpu_uuid, since) VALUES ('node-2', 0, 'GPU-1', now() - interval '1 hour'),
                                                                    ('node-1', 0, 'GPU-1', now());
"""
FIRED = """
INSERT INTO alerts (node_id, gpu_index, gpu_uuid, alert_type, severity, message, status, triggered_at, rule, raised_at)
SELECT 'node-1', 0, 'GPU-1', kind, severity, 'm', 'active', now(), kind, now()
  FROM (VALUES ('gpu_lost', 'critical'), ('xid_error', 'critical'), ('high_power', 'warning')) AS fired (kind, severity)
"""


@pytest.mark.parametrize(("board", "title", "ref_id"), COUNTS_OF_ALERTS)
def test_that_no_alert_is_active_is_told_only_of_nodes_that_are_heard(connection, board, title, ref_id):
    def count():
        (row,) = connection.execute(asked(board, title, ref_id, "stat")).fetchall()
        (value,) = row.values()
        return value

    assert count() is None
    connection.execute(NODE_AND_GPU)
    assert count() == 0
    connection.execute("UPDATE nodes SET last_heard = now() - interval '2 minutes' WHERE node_id = 'node-1'")
    assert count() is None
    connection.execute(FIRED)
    assert count() > 0
    connection.execute("UPDATE nodes SET last_heard = now(), removed_at = now() WHERE node_id = 'node-1'")
    connection.execute("UPDATE alerts SET status = 'resolved', resolved_at = now()")
    assert count() is None


@pytest.mark.parametrize("board", ["fleet", "alerts"])
def test_a_table_without_alerts_says_that_none_can_begin_where_nothing_is_heard(connection, board):
    def says():
        (row,) = connection.execute(asked(board, "Active alerts", kind="table")).fetchall()
        assert {value for name, value in row.items() if name != "Message"} == {None}
        return row["Message"]

    assert "nothing is heard of them" in says()
    connection.execute(NODE_AND_GPU)
    assert says() == "No alert is active"
    connection.execute("UPDATE nodes SET last_heard = now() - interval '2 minutes'")
    assert "nothing is heard of them" in says()
