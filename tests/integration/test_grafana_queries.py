"""Every query of every dashboard is run as Grafana would run it, on a small fleet with faults and on 1,000 nodes.

Variables and macros are replaced as Grafana documents them (docs: "PostgreSQL query editor", "Variable syntax").
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import uuid
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psycopg
import pytest
import yaml
from psycopg.rows import dict_row
from pydantic import SecretStr

from emulator.fleet import Fleet
from emulator.settings import EmulatorSettings
from gpu_telemetry import database
from gpu_telemetry.clock import SystemClock
from gpu_telemetry.fields import FIELD_BY_DCGM_NAME
from gpu_telemetry.settings import DatabaseSettings

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).parents[2]
DASHBOARDS = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((REPOSITORY / "grafana" / "dashboards").glob("*.json"))
}
MOST_SERIES = 500
STEP_SECONDS = 5
# What the small fleet with faults has nothing of, so that the panels say it in words.
SAID_IN_WORDS = {
    "fleet: Longest idle while allocated in this range A",
    "inventory: GPUs by VBIOS A",
    "pipeline: Alerts about the pipeline itself A",
    *(f"workloads: Most idle GPU-hours {query}" for query in "ABCD"),
}


@dataclass(frozen=True)
class Asked:
    """A query of a dashboard: of a panel, a variable or an annotation."""

    dashboard: str
    where: str
    text: str
    language: str
    over_time: bool = False
    empty: str | None = None
    choices: dict = field(default_factory=dict, compare=False)

    def __str__(self):
        return f"{self.dashboard}: {self.where}"


def everything_asked():
    for name, dashboard in DASHBOARDS.items():
        for variable in dashboard["templating"]["list"]:
            text = variable["query"]
            language = "sql" if isinstance(text, str) else "label_values"
            yield Asked(name, f"${variable['name']}", text if language == "sql" else text["query"], language)
        for annotation in dashboard["annotations"].get("list", []):
            yield Asked(name, f"@{annotation['name']}", annotation["target"]["rawSql"], "sql", empty="no mark")
        for panel in dashboard["panels"]:
            words = panel.get("fieldConfig", {}).get("defaults", {}).get("noValue")
            for target in panel.get("targets", []):
                where = f"{panel['title']} {target['refId']}"
                if "rawSql" in target:
                    yield Asked(name, where, target["rawSql"], "sql", empty=words)
                else:
                    yield Asked(name, where, target["expr"], "promql", bool(target.get("range")), words)


ASKED = list(everything_asked())


def with_variables(text, choices):
    """The text with each `$name` and `${name:format}` replaced; `regex` and PromQL take the choice as it stands."""
    return re.sub(r"\$\{?([a-z]\w*)(?::\w+)?\}?", lambda found: choices[found[1]], text)


def as_promql(text, choices):
    for name, value in (("$__rate_interval", "10s"), ("$__range", "180s"), ("$__interval", f"{STEP_SECONDS}s")):
        text = text.replace(name, value)
    return with_variables(text, choices)


def as_sql(text, choices, since, until):
    """The SQL that Grafana's PostgreSQL datasource makes of it."""
    moment = "'{:%Y-%m-%dT%H:%M:%S}Z'".format
    text = re.sub(r"\$__timeFilter\(([^()]+)\)", rf"\1 BETWEEN {moment(since)} AND {moment(until)}", text)
    for name, value in (
        ("$__timeFrom()", moment(since)),
        ("$__timeTo()", moment(until)),
        ("$__unixEpochFrom()", str(int(since.timestamp()))),
        ("$__unixEpochTo()", str(int(until.timestamp()))),
        ("$__interval_ms", str(STEP_SECONDS * 1000)),
    ):
        text = text.replace(name, value)
    assert "$__" not in text
    return with_variables(text, choices)


class Prometheus:
    """A real Prometheus with the repository's rules, evaluated as often as it scrapes."""

    def __init__(self, directory, port, jobs, interval):
        program = shutil.which("prometheus")
        if program is None:
            pytest.skip("prometheus is not installed (Debian's package prometheus)")
        rules = directory / "rules"
        rules.mkdir(parents=True)
        for path in (REPOSITORY / "prometheus" / "rules").glob("*.yml"):
            groups = yaml.safe_load(path.read_text())["groups"]
            for group in groups:
                group["interval"] = f"{interval}s"
            (rules / path.name).write_text(yaml.safe_dump({"groups": groups}))
        configuration = {
            "global": {"scrape_interval": f"{interval}s", "scrape_timeout": f"{interval}s"},
            "rule_files": [f"{rules}/*.yml"],
            "scrape_configs": jobs,
        }
        (directory / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=60)
        with (directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    program,
                    f"--config.file={directory / 'prometheus.yml'}",
                    f"--storage.tsdb.path={directory / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=log,
            )

    def ask(self, expression, *, over_time=False):
        """The series that the expression gives now, or gave over the last minute."""
        if over_time:
            now = time.time()
            parameters = {"query": expression, "start": now - 60, "end": now, "step": STEP_SECONDS}
            answer = self.client.post("/query_range", data=parameters)
        else:
            answer = self.client.post("/query", data={"query": expression})
        body = answer.json()
        assert body["status"] == "success", f"{body.get('error')}: {expression}"
        return body["data"]["result"]

    def has(self, expression):
        with suppress(httpx.HTTPError):
            return bool(self.ask(expression))
        return False

    def label_values(self, text):
        series, label = re.fullmatch(r"label_values\((.+), (\w+)\)", text).groups()
        answer = self.client.get(f"/label/{label}/values", params={"match[]": series}).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def names(self):
        return set(self.client.get("/label/__name__/values").json()["data"])

    def end(self):
        self.client.close()
        self.process.terminate()
        self.process.wait(20)


class Postgres:
    """A connection with the rights that Grafana's login has, and no more."""

    def __init__(self, url):
        self.connection = psycopg.connect(url, autocommit=True, options="-c timezone=UTC", row_factory=dict_row)
        self.connection.execute("SET ROLE telemetry_reader")
        self.connection.execute("SET default_transaction_read_only = on")

    def ask(self, text, choices, minutes=10):
        until = datetime.now(UTC) + timedelta(seconds=1)
        return self.connection.execute(as_sql(text, choices, until - timedelta(minutes=minutes), until)).fetchall()


@dataclass
class Fed:
    """What the queries are asked of, and the choices of variables to try, the likeliest to find something first."""

    prometheus: Prometheus
    postgres: Postgres
    choices: list[dict[str, str]]

    def answer(self, asked, choices):
        if asked.language == "sql":
            return self.postgres.ask(asked.text, choices)
        if asked.language == "label_values":
            return self.prometheus.label_values(with_variables(asked.text, choices))
        return self.prometheus.ask(as_promql(asked.text, choices), over_time=asked.over_time)


ALL = {"datacenter": ".*", "model": ".*", "gpu": ".*", "namespace": ".*"}


def on(node, uuid_of_gpu):
    return ALL | {"node": node, "uuid": uuid_of_gpu}


# ---- a small fleet with faults, through the whole pipeline ----------------------------------------------------------


@contextmanager
def _running_stack(directory, offset):
    environment = {
        "EMULATOR_NODES": "5",
        "EMULATOR_GPUS": "4",
        "EMULATOR_MIG_NODES": "1",
        "EMULATOR_MODELS": "h100,a100-80",
        "EMULATOR_OPTIONAL_FIELDS": "ecc,throttle_reasons,xid_count",
    }
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("EMULATOR_", "ALERTING_"))}
    arguments = ["up", "--data", directory, "--port-offset", offset, "--interval", 1, "--no-prometheus"]
    with (directory.parent / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gpu_telemetry.cli", *map(str, arguments)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=clean | environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def fed(tmp_path_factory, free_port_offset, free_ports, wait_for):
    """The local stack over five nodes, faults of every kind that shows, and a Prometheus of its own beside it."""
    home = tmp_path_factory.mktemp("grafana")
    offset = free_port_offset()
    with _running_stack(home / "stack", offset) as process:
        log = home / "up.log"

        def is_up():
            if process.poll() is not None:
                (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(log.read_text()[-2000:])
            return "logs: " in log.read_text()

        wait_for(is_up, 150, log.read_text)
        state = json.loads((home / "stack" / "state.json").read_text())
        own = {"bridge": 9500, "alert-engine": 9501, "api": 8080}
        jobs = [
            {"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{port + offset}"]}]}
            for name, port in own.items()
        ]
        fleet = {"targets": [f"127.0.0.1:{9500 + offset}"]}
        jobs.append(
            {"job_name": "gpu-fleet", "metrics_path": "/fleet/metrics", "honor_labels": True, "static_configs": [fleet]}
        )
        (port,) = free_ports(1)
        jobs.append({"job_name": "prometheus", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]})
        prometheus = Prometheus(home / "prometheus", port, jobs, interval=1)
        password = (home / "stack" / "postgres" / "password").read_text().strip()
        postgres = Postgres(state["database"].replace("telemetry@", f"telemetry:{password}@"))
        try:
            yield _with_faults(offset, postgres, prometheus, wait_for)
        finally:
            postgres.connection.close()
            prometheus.end()


def _with_faults(offset, postgres, prometheus, wait_for):
    def alerts():
        return {row["alert_type"] for row in postgres.ask("SELECT alert_type FROM alerts", {})}

    def placed():
        return postgres.ask("SELECT node_id, gpu_index, gpu_uuid FROM placements", {})

    wait_for(lambda: len({row["node_id"] for row in placed()}) == 5, 90, "five nodes are stored")
    for kind, node, index in (
        ("overheat", "node-1", 0),
        ("xid", "node-1", 1),
        ("memory_full", "node-2", 0),
        ("gpu_lost", "node-2", 1),
        ("sentinels", "node-3", 0),
        ("down", "node-4", None),
    ):
        body = {"kind": kind, "node": node} | ({} if index is None else {"gpu": index})
        httpx.post(f"http://127.0.0.1:{9400 + offset}/control/faults", json=body).raise_for_status()
    wanted = {"xid_error", "high_memory", "gpu_lost", "exporter_down", "high_temperature"}
    wait_for(lambda: wanted <= alerts(), 120, lambda: f"of {wanted} fired: {alerts()}")
    migrations = "SELECT FROM alert_actions WHERE action_type = 'migrate_workload' AND finished_at IS NOT NULL"
    wait_for(lambda: postgres.ask(migrations, {}), 120, "a migration was decided")
    wait_for(lambda: prometheus.has("gpu:throttled:bool") and prometheus.has("workload:gpus:count"), 90, "rules")
    uuids = {(row["node_id"], row["gpu_index"]): row["gpu_uuid"] for row in placed()}
    where = [("node-1", 1), ("node-1", 0), ("node-2", 0), ("node-5", 0)]
    return Fed(prometheus, postgres, [on(node, uuids[node, index]) for node, index in where])


def _is_words(asked, rows):
    """Whether the answer is the row that stands for none, in words."""
    if len(rows) != 1:
        return False
    if asked.language == "sql":
        row = rows[0]
        return len(row) > 2 and sum(value is not None for value in row.values()) == 1
    (row,) = rows
    return "vector(NaN)" in asked.text and not asked.over_time and row["value"][1] == "NaN"


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_a_query_gives_rows_or_its_panel_says_that_it_may_not(asked, fed):
    tried = (fed.answer(asked, choices) for choices in fed.choices)

    found = next((rows for rows in tried if rows), [])

    assert found or asked.empty, f"no rows, and no words for it: {asked.text}"


def test_queries_find_something_in_a_fleet_with_faults_but_for_what_it_has_nothing_of(fed):
    silent, words = set(), set()
    for asked in ASKED:
        answers = [rows for choices in fed.choices if (rows := fed.answer(asked, choices))]
        if not answers:
            silent.add(str(asked))
        elif asked.language != "label_values" and all(_is_words(asked, rows) for rows in answers):
            words.add(str(asked))

    assert silent == set()
    assert words == SAID_IN_WORDS


def test_every_metric_that_is_named_exists(fed):
    there = fed.prometheus.names()
    # Fields that are off by default, and counters that have not moved: the field table or the code has them.
    off = set(FIELD_BY_DCGM_NAME)
    for asked in ASKED:
        if asked.language == "sql":
            continue
        text = re.sub(r'"[^"]*"', '""', asked.text)
        text = re.sub(r"\b(by|on|ignoring|group_left|without) ?\([^()]*\)", "", text)
        for name in re.findall(r"\b([A-Za-z_][\w:]*)(?=[{\[]|\s|\)|$)", text):
            if re.match(r"(gpu_|alert_engine_|DCGM_|\w+:\w+|process_|up$|ALERTS)", name):
                assert name in there | off | NOT_MOVED, f"{asked}: {name}"


# Counters with labels have no series until the first event.
NOT_MOVED = {
    "alert_engine_batch_retries_total",
    "alert_engine_database_errors_total",
    "alert_engine_dead_letters_total",
    "gpu_bridge_dropped_gpu_records_total",
    "gpu_bridge_failed_deliveries_total",
    "gpu_bridge_not_recorded_samples_total",
    "gpu_bridge_refused_lines_total",
    "gpu:idle_allocated:bool",
}


def test_the_counters_that_have_not_moved_are_the_services_own():
    text = "".join((REPOSITORY / path).read_text() for path in ("exporter_bridge/metrics.py", "alerting/metrics.py"))
    rules = (REPOSITORY / "prometheus" / "rules" / "fleet.yml").read_text()
    for name in NOT_MOVED:
        plain = name.removesuffix("_total").removeprefix("alert_engine_")
        assert f'"{plain}' in text or f"record: {name}" in rules, name


# ---- who used a GPU --------------------------------------------------------------------------------------------------

# Records every 5 s, but for half a minute without; the newest is 2 minutes old. What changes is sometimes only in which
# order the page has the workloads, or a second container of one.
USED = """
SELECT ensure_partition('gpu_metrics', day::date)
  FROM generate_series(now() - interval '1 day', now() + interval '1 day', '1 day') day;
INSERT INTO nodes (node_id, status, first_seen, last_seen, last_heard, interval_ms)
VALUES ('node-1', 'down', now(), now(), now(), 5000);
INSERT INTO gpus (gpu_uuid, first_seen) VALUES ('GPU-1', now());
INSERT INTO placements (node_id, gpu_index, gpu_uuid, since) VALUES ('node-1', 3, 'GPU-1', now());
INSERT INTO gpu_metrics (placement_id, node_id, gpu_index, temperature_celsius, workloads, collected_at)
SELECT placement_id, node_id, gpu_index, 60, workloads::jsonb, %(began)s + age * interval '1 second'
  FROM placements,
       (VALUES (0, '[{"namespace": "a", "pod": "b"}]'), (10, NULL), (15, NULL), (45, NULL),
               (5, '[{"namespace": "a", "pod": "b", "container": "c"}, {"namespace": "a", "pod": "b"}]'),
               (50, '[{"job": "8"}, {"job": "7"}]'), (55, '[{"job": "7"}, {"job": "8"}]')) AS record (age, workloads);
"""


@pytest.mark.parametrize(("name", "place"), [("node: Who used it A", "GPU 3"), ("gpu: Workloads A", "node-1 GPU 3")])
def test_a_workload_begins_with_its_first_record_and_ends_with_its_gpus_last(name, place, postgres_server):
    (asked,) = (asked for asked in ASKED if str(asked) == name)
    began = (datetime.now(UTC) - timedelta(minutes=3)).replace(microsecond=0)
    with _database(postgres_server) as url:
        with psycopg.connect(url) as connection:
            for statement in USED.split(";")[:-1]:
                connection.execute(statement, {"began": began} if "%" in statement else None)
        postgres = Postgres(url)
        rows = postgres.ask(asked.text, on("node-1", "GPU-1"))
        postgres.connection.close()

    assert {row["metric"] for row in rows} == {place}
    assert [(round((row["time"] - began).total_seconds()), row["Value"]) for row in rows] == [
        (0, "a/b"),
        (10, "free"),
        (20, None),
        (45, "free"),
        (50, "7, 8"),
        (60, None),
    ]


# ---- how well a workload used its GPU --------------------------------------------------------------------------------


def test_a_workloads_mean_utilisation_leaves_out_the_time_in_which_its_gpu_told_none(tmp_path):
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian's package prometheus)")
    (asked,) = (asked for asked in ASKED if str(asked) == "workloads: Most GPU-hours B")
    labels = '{datacenter="d", namespace="n", pod="p"}'
    told, for_all_of_it = "80x2 _x3", "1x5"
    case = {
        "interval": "30s",
        "input_series": [
            {"series": f"workload:gpus:count{labels}", "values": for_all_of_it},
            {"series": f"workload:gpu_utilization_percent:sum{labels}", "values": told},
            {"series": f"workload:gpu_utilization_percent:avg{labels}", "values": told},
        ],
        "promql_expr_test": [
            {
                "expr": as_promql(asked.text, ALL),
                "eval_time": "150s",
                "exp_samples": [{"labels": labels, "value": 80}],
            }
        ],
    }
    (tmp_path / "case.yml").write_text(yaml.safe_dump({"evaluation_interval": "30s", "tests": [case]}))

    ran = subprocess.run([program, "test", "rules", tmp_path / "case.yml"], capture_output=True, text=True, check=False)

    assert ran.returncode == 0, ran.stdout + ran.stderr


# ---- a fleet of 1,000 nodes ------------------------------------------------------------------------------------------


def _used_families():
    """The DCGM families that dashboards and rules ask for; the rest of a page would only cost time here."""
    texts = [asked.text for asked in ASKED]
    texts += [path.read_text() for path in (REPOSITORY / "prometheus" / "rules").glob("*.yml")]
    names = set(re.findall(r"DCGM_\w+", " ".join(texts)))
    return (
        names
        | {"DCGM_FI_DEV_CLOCKS_EVENT_REASONS", "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS"}
        | {
            "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
            "DCGM_FI_PROF_DRAM_ACTIVE",
        }
    )


def _page_of_a_large_fleet(nodes):
    """What the bridge re-exposes of so many nodes: each line of each page with its node's labels."""
    fleet = Fleet(
        EmulatorSettings.load(
            nodes=nodes, gpus=8, models="h100,a100-80", mig_nodes=nodes // 10, optional_fields="ecc,throttle_reasons"
        ),
        SystemClock(),
    )
    used = _used_families()
    pieces = []
    for number, node in enumerate(fleet.nodes):
        datacenter = ("us-west-1", "us-east-1", "eu-west-1")[number // 2 % 3]
        labels = f'node_id="{node}",instance="{node}:9400",datacenter="{datacenter}"'
        for line in fleet.page(node).decode().splitlines():
            name, brace, rest = line.partition("{")
            if brace and name in used:
                pieces.append(f"{name}{{{labels},{rest}\n")
        pieces.append(f"gpu_exporter_up{{{labels}}} {int(number % 50 != 0)}\n")
    return "".join(pieces).encode()


@pytest.fixture(scope="module")
def large_fleet(tmp_path_factory, postgres_server, free_ports, wait_for):
    """A Prometheus that scraped 1,000 nodes, and a database that knows them."""
    page = _page_of_a_large_fleet(1000)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(page)

        def log_message(self, *_):
            pass

    with ExitStack() as undo:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        undo.callback(server.server_close)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        undo.callback(thread.join)
        undo.callback(server.shutdown)
        job = {
            "job_name": "gpu-fleet",
            "honor_labels": True,
            "static_configs": [{"targets": [f"127.0.0.1:{server.server_port}"]}],
        }
        (port,) = free_ports(1)
        prometheus = Prometheus(tmp_path_factory.mktemp("large"), port, [job], interval=5)
        undo.callback(prometheus.end)
        url = undo.enter_context(_database(postgres_server))
        with psycopg.connect(url) as connection:
            connection.execute(LARGE_FLEET)
        # The first evaluation may have come before the first scrape.
        enough = "count(gpu:workload:share) > 5000 and count(workload:gpus:count) > 1000"
        wait_for(lambda: prometheus.has(enough), 120, "the rules were evaluated over the whole fleet")
        postgres = Postgres(url)
        undo.callback(postgres.connection.close)
        one, whole = {"node": "node-500", "uuid": "GPU-500-1"}, {"node": ".*", "uuid": ""}
        yield Fed(prometheus, postgres, [ALL | one, ALL | whole])


@contextmanager
def _database(server):
    """The URL of a database with our schema, dropped at the end."""
    name = f"grafana_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server.database_url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    database.upgrade(DatabaseSettings(url=SecretStr(server.database_url(name))))
    yield server.database_url(name)
    with psycopg.connect(server.database_url("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


# Nodes and GPUs with an hour of records every quarter of an hour, and as many alerts and actions as a bad day brings.
# In the end each node loses its first GPU, and the others move to the index before theirs.
LARGE_FLEET = """
SELECT ensure_partition(parent, day::date)
  FROM unnest(ARRAY['gpu_metrics', 'scrapes']) parent,
       generate_series(now() - interval '1 day', now() + interval '1 day', '1 day') day;
INSERT INTO nodes (node_id, hostname, datacenter, status, first_seen, last_seen, last_heard, interval_ms)
SELECT 'node-' || n, 'host-' || n, 'dc-' || n % 3, (ARRAY['healthy', 'critical', 'down'])[1 + n % 3],
       now() - interval '1 hour', now(), now(), 30000
  FROM generate_series(1, 1000) n;
INSERT INTO gpus (gpu_uuid, model, driver_version, memory_total_mib, first_seen)
SELECT 'GPU-' || n || '-' || g, 'model ' || n % 4, '550.' || n % 5, 81920, now() - interval '1 hour'
  FROM generate_series(1, 1000) n, generate_series(0, 7) g;
INSERT INTO placements (node_id, gpu_index, gpu_uuid, since)
SELECT 'node-' || n, g, 'GPU-' || n || '-' || g, now() - interval '1 hour'
  FROM generate_series(1, 1000) n, generate_series(0, 7) g;
INSERT INTO gpu_metrics (placement_id, node_id, gpu_index, temperature_celsius, ecc_single_bit_aggregate, xid_code,
                         workloads, collected_at)
SELECT placement_id, node_id, gpu_index, 60, 3, 79, '[{"namespace": "a", "pod": "b"}]', at
  FROM placements, generate_series(now() - interval '1 hour', now(), '15 minutes') at;
INSERT INTO scrapes (node_id, bridge_id, boot_id, seq, collected_at, up, reason, gpu_records, gpu_uuids, interval_ms)
SELECT node_id, 'b', 'b', row_number() OVER (PARTITION BY node_id ORDER BY at), at, status <> 'down', 'timeout', 8,
       '{}', 900000
  FROM nodes, generate_series(now() - interval '1 hour', now(), '15 minutes') at;
INSERT INTO alerts (rule, alert_type, node_id, gpu_index, gpu_uuid, severity, message, status, triggered_at)
SELECT 'r', 'xid_error', node_id, gpu_index, gpu_uuid, 'critical', 'm', 'active', now() - interval '5 minutes'
  FROM placements;
INSERT INTO alert_events (alert_id, rule, alert_type, node_id, gpu_index, gpu_uuid, transition, severity, message,
                          started_at, at)
SELECT id, rule, alert_type, node_id, gpu_index, gpu_uuid, 'fired', severity, message, triggered_at, triggered_at
  FROM alerts, generate_series(1, 2);
INSERT INTO alert_actions (alert_id, action_type, transition, key, status, event_time)
SELECT id, 'migrate_workload', 'fired', id::text, 'skipped', triggered_at FROM alerts;
INSERT INTO placements (node_id, gpu_index, gpu_uuid, since)
SELECT node_id, gpu_index - 1, gpu_uuid, now() FROM placements WHERE gpu_index > 0;
INSERT INTO gpu_metrics (placement_id, node_id, gpu_index, temperature_celsius, xid_code, collected_at)
SELECT placement_id, node_id, gpu_index, 60, 79, now() + interval '1 second' FROM placements WHERE since = now();
ANALYZE;
"""


@pytest.mark.parametrize("asked", [asked for asked in ASKED if asked.language != "label_values"], ids=str)
def test_no_query_returns_over_500_series_at_1000_nodes(asked, large_fleet):
    # A dashboard of one node or one GPU has no choice of all of them.
    one = asked.dashboard in {"node", "gpu"}
    choices = large_fleet.choices[0 if one else 1]
    began = time.monotonic()
    rows = large_fleet.answer(asked, choices)
    took = time.monotonic() - began
    if asked.language == "sql" and not asked.where.startswith("$"):
        # Points of a series over time are counted by their series.
        series = {row.get("metric") for row in rows} if rows and "time" in rows[0] else rows
        assert len(series) <= MOST_SERIES
    elif asked.language == "promql":
        assert len(rows) <= MOST_SERIES
    # People wait for it; the machine of the tests is small and busy.
    assert took < 15
