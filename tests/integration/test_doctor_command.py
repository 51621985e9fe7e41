"""`gpu-telemetry doctor` over real parts: each one well, and each one wrong with what to do about it."""

import json
import logging
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from threading import Thread

import psycopg
import pytest
from click.testing import CliRunner
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from gpu_telemetry.cli.doctor import command
from gpu_telemetry.clock import ManualClock
from gpu_telemetry.database import upgrade
from gpu_telemetry.doctor.services import service_findings
from gpu_telemetry.doctor.stores import database_findings, disk_finding
from gpu_telemetry.doctor.stream import kafka_findings
from gpu_telemetry.kafka import ensure_topics
from gpu_telemetry.local.directory import DataDirectory, PartState, Rates
from gpu_telemetry.local.stack import Options, Stack
from gpu_telemetry.settings import DatabaseSettings, KafkaSettings, SettingsError

# A fleet of two nodes that were heard a moment ago, whose last turns are all there.
WELL = """
SELECT ensure_partition(parent, (now() AT TIME ZONE 'UTC')::date + ahead)
  FROM unnest(ARRAY['gpu_metrics', 'scrapes']) parent, generate_series(-1, 1) ahead;
INSERT INTO nodes (node_id, status, first_seen, last_heard, interval_ms)
SELECT 'node-' || n, 'healthy', now() - interval '90 seconds', now(), 3600000 FROM generate_series(1, 2) n;
INSERT INTO gpus (gpu_uuid, first_seen) SELECT 'GPU-' || n, now() FROM generate_series(1, 2) n;
INSERT INTO placements (node_id, gpu_index, gpu_uuid, since)
SELECT 'node-' || n, 0, 'GPU-' || n, now() FROM generate_series(1, 2) n;
INSERT INTO gpu_metrics (placement_id, node_id, gpu_index, collected_at)
SELECT placement_id, node_id, 0, now() - turn * interval '30 seconds' FROM placements, generate_series(1, 3) turn;
INSERT INTO scrapes (node_id, bridge_id, boot_id, seq, collected_at, up, gpu_records, gpu_uuids, interval_ms)
SELECT node_id, 'bridge', 'boot', 4 - turn, now() - turn * interval '30 seconds', true, 1, '{}', 30000
  FROM nodes, generate_series(1, 3) turn;
"""


class SystemNow:
    """The machine's clock, shifted."""

    def __init__(self, shift=timedelta(0)):
        self.shift = shift

    def now(self):
        return datetime.now(UTC) + self.shift


@pytest.fixture
def database(postgres_url):
    settings = DatabaseSettings(url=SecretStr(postgres_url), connect_timeout_seconds=5)
    upgrade(settings)
    return settings


@pytest.fixture
def execute(database):
    """`execute(statement)`: change the database that is looked at."""

    def run(statement):
        with psycopg.connect(database.url.get_secret_value(), autocommit=True, options="-c timezone=UTC") as connection:
            connection.execute(statement)

    return run


@pytest.fixture
def well(execute):
    """A database in which all is well."""
    execute(WELL)


@pytest.fixture
def look(database):
    """`look(check)`: what is found of one check of the database."""

    def find(check, clock=None):
        findings = {finding.check: finding for finding in database_findings(database, clock or SystemNow())}
        return findings[check]

    return find


@pytest.fixture
def kafka(kafka_bootstrap, topic_names):
    return KafkaSettings(
        bootstrap_servers=kafka_bootstrap, topic=topic_names.topic, dlq_topic=topic_names.dlq_topic, partitions=2
    )


def kafka_states(kafka, database, clock=None, most_lag=10):
    findings = kafka_findings(kafka, database, clock or SystemNow(), most_lag=most_lag, timeout_seconds=10)
    return {finding.check: finding for finding in findings}


@pytest.mark.usefixtures("well")
def test_a_database_in_which_all_is_well(database):
    findings = list(database_findings(database, SystemNow()))
    assert [(finding.check, finding.state) for finding in findings] == [
        (check, "ok")
        for check in (
            "database", "schema", "clock", "partitions", "records", "ledger", "actions",
        )
    ], findings  # fmt: skip


def test_a_database_that_is_down_leaves_the_rest_unchecked():
    down = DatabaseSettings(url=SecretStr("postgresql://someone:secret@127.0.0.1:1/x"), connect_timeout_seconds=1)
    first, *rest = database_findings(down, SystemNow())
    assert (first.check, first.state) == ("database", "wrong")
    assert "DATABASE_URL" in first.advice
    assert "secret" not in first.said
    assert {finding.state for finding in rest} == {"unchecked"}


def test_a_database_without_a_schema_is_told_what_to_run(postgres_url):
    settings = DatabaseSettings(url=SecretStr(postgres_url))
    findings = {finding.check: finding for finding in database_findings(settings, SystemNow())}
    assert findings["schema"].state == "wrong"
    assert findings["schema"].advice == "run `gpu-telemetry db upgrade`"
    assert findings["clock"].state == "ok"
    assert findings["ledger"].state == "unchecked"


@pytest.mark.usefixtures("well")
def test_a_schema_from_the_future_is_wrong(execute, look):
    execute("INSERT INTO schema_migrations VALUES (9999, 'future', '')")
    finding = look("schema")
    assert finding.state == "wrong"
    assert "schema version 9999" in finding.said


@pytest.mark.usefixtures("well")
@pytest.mark.parametrize(("shift", "direction"), [(60, "60.0 s ahead of"), (-60, "60.0 s behind")])
def test_a_clock_that_differs_from_the_databases_is_wrong(look, shift, direction):
    finding = look("clock", SystemNow(timedelta(seconds=shift)))
    assert finding.state == "wrong"
    assert direction in finding.said


def test_a_clock_that_stands_still_is_compared_too(database):
    clock = ManualClock(datetime(2020, 1, 1, tzinfo=UTC))
    findings = {finding.check: finding for finding in database_findings(database, clock)}
    assert findings["clock"].state == "wrong"


# Each statement, the check that sees it, and what it says.
AILMENTS = [
    ("DROP TABLE parts.scrapes_{tomorrow}", "partitions", "missing: scrapes_{tomorrow}"),
    ("TRUNCATE nodes CASCADE", "records", "no node was ever heard of"),
    ("UPDATE nodes SET interval_ms = 1000, last_heard = now() - interval '1 minute'", "records", "none of 2 nodes"),
    (
        "UPDATE nodes SET interval_ms = 1000, last_heard = now() - interval '1 minute' WHERE node_id = 'node-2'",
        "records",
        "1 of 2 nodes were not heard for 3 intervals: node-2",
    ),
    ("UPDATE nodes SET last_heard = now() + interval '1 minute' WHERE node_id = 'node-1'", "clock", "future: node-1"),
    ("DELETE FROM gpu_metrics WHERE node_id = 'node-2' AND collected_at < now() - interval '50 seconds'",
     "ledger", "2 of 6 GPU records are missing since the last full hour began, of node-2"),
    ("INSERT INTO stream_gaps (topic, partition, reason, from_offset, to_offset) VALUES ('t', 0, 'expired', 5, 17)",
     "ledger", "12 messages were gone before they could be read"),
    ("""WITH alert AS (
            INSERT INTO alerts (rule, alert_type, node_id, severity, message, status, triggered_at)
            VALUES ('r', 'r', 'node-1', 'info', 'm', 'active', now()) RETURNING id
        ) INSERT INTO alert_actions (alert_id, action_type, transition, key, event_time, next_attempt_at)
          SELECT id, 'notify', 'firing', 'k', now(), now() - interval '10 minutes' FROM alert""",
     "actions", "1 are due for over 5 minutes"),
    ("""WITH alert AS (
            INSERT INTO alerts (rule, alert_type, node_id, severity, message, status, triggered_at)
            VALUES ('r', 'r', 'node-1', 'info', 'm', 'active', now()) RETURNING id
        ) INSERT INTO alert_actions (alert_id, action_type, transition, key, event_time, status)
          SELECT id, 'migrate_workload', 'firing', 'k', now(), 'unknown' FROM alert""",
     "actions", "1 of the last day are of unknown outcome"),
]  # fmt: skip


@pytest.mark.usefixtures("well")
@pytest.mark.parametrize(("statement", "check", "said"), AILMENTS)
def test_what_is_wrong_is_seen_by_its_check_alone_and_comes_with_advice(execute, database, statement, check, said):
    tomorrow = f"{datetime.now(UTC) + timedelta(days=1):%Y%m%d}"
    execute(statement.replace("{tomorrow}", tomorrow))
    findings = list(database_findings(database, SystemNow()))
    assert [finding.check for finding in findings if finding.state != "ok"] == [check]
    (found,) = [finding for finding in findings if finding.check == check]
    assert said.replace("{tomorrow}", tomorrow) in found.said
    assert found.advice


def test_kafka_that_is_down_leaves_topics_and_lag_unchecked(database):
    down = KafkaSettings(bootstrap_servers="127.0.0.1:1")
    findings = list(kafka_findings(down, database, SystemNow(), most_lag=10, timeout_seconds=1))
    assert [finding.state for finding in findings] == ["wrong", "unchecked", "unchecked", "unchecked"]
    assert "KAFKA_BOOTSTRAP_SERVERS" in findings[0].advice


def test_a_missing_topic_comes_with_what_to_run(kafka, database):
    findings = kafka_states(kafka, database)
    assert findings["topics"].said == f"topic {kafka.topic} does not exist"
    assert findings["topics"].advice == "run `gpu-telemetry topics ensure`"
    assert findings["lag"].state == "unchecked"


def test_a_topic_with_the_producers_time_is_wrong(kafka, database):
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    for future in admin.create_topics([NewTopic(kafka.topic, 1), NewTopic(kafka.dlq_topic, 1)]).values():
        future.result(20)
    assert "message.timestamp.type=CreateTime" in kafka_states(kafka, database)["topics"].said


@pytest.fixture
def publish(kafka):
    """`publish(records, partition)`: so many records come."""
    ensure_topics(kafka)
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers}, logger=logging.getLogger("test"))

    def produce(records=1, partition=0):
        for _ in range(records):
            producer.produce(kafka.topic, b"x", partition=partition)
        assert producer.flush(20) == 0

    return produce


@pytest.fixture
def take_in(kafka, execute):
    """`take_in(place, age)`: partition 0 was taken in up to this place, so many seconds ago."""

    def put(place, age=0):
        execute(
            "INSERT INTO consumer_offsets (topic, partition, cluster_id, topic_id, next_offset, updated_at)"
            f" VALUES ('{kafka.topic}', 0, 'c', 't', {place}, now() - interval '{age} seconds')"
            " ON CONFLICT (topic, partition) DO UPDATE"
            " SET next_offset = excluded.next_offset, updated_at = excluded.updated_at"
        )

    return put


@pytest.fixture
def filled(kafka, database, publish, take_in):
    """`filled(records, taken_in, age, seen_after)`: what is said of the lag, so many seconds after the records came."""

    def fill(records, taken_in, age=0, seen_after=0):
        publish(records)
        take_in(taken_in, age)
        return kafka_states(kafka, database, SystemNow(timedelta(seconds=seen_after)))["lag"]

    return fill


def test_records_that_are_all_taken_in_are_no_lag_however_long_ago(filled):
    finding = filled(records=5, taken_in=5, age=3600, seen_after=3600)
    assert (finding.state, finding.said) == ("ok", "0 records wait")


def test_a_little_lag_of_an_engine_at_work_is_well(filled):
    finding = filled(records=5, taken_in=2, seen_after=60)
    assert (finding.state, finding.said) == ("ok", "3 records wait")


def test_much_lag_is_wrong(filled):
    finding = filled(records=50, taken_in=2)
    assert (finding.state, finding.said) == ("wrong", "48 records wait, over 10")


def test_records_that_came_a_moment_ago_are_well_however_long_nothing_came_before(filled):
    finding = filled(records=5, taken_in=2, age=3600)
    assert (finding.state, finding.said) == ("ok", "3 records wait")


def test_lag_that_nobody_works_on_is_wrong(filled):
    finding = filled(records=5, taken_in=2, age=60, seen_after=60)
    assert (finding.state, finding.said) == (
        "wrong",
        "3 records wait, and nothing is taken in from partitions 0",
    )


def test_a_partition_that_nobody_ever_read_is_wrong_once_it_has_waited(kafka, database, publish, take_in):
    publish(1, partition=0)
    take_in(1)
    publish(1, partition=1)
    assert kafka_states(kafka, database)["lag"].said == "1 records wait"
    finding = kafka_states(kafka, database, SystemNow(timedelta(seconds=60)))["lag"]
    assert "nothing is taken in from partitions 1" in finding.said


def test_records_that_come_and_are_taken_in_during_the_look_are_no_lag_of_another_topic(
    kafka, database, publish, take_in, monkeypatch
):
    publish(1)
    take_in(1)

    def after_a_while(*_arguments, **_options):
        publish(4)
        take_in(5)
        return psycopg.connect(database.url.get_secret_value(), autocommit=True)

    monkeypatch.setattr("gpu_telemetry.database.connect", after_a_while)
    finding = kafka_states(kafka, database)["lag"]
    assert (finding.state, finding.said) == ("ok", "0 records wait")


def test_records_that_are_taken_in_and_deleted_during_the_look_were_not_cut_unread(
    kafka, database, publish, take_in, monkeypatch
):
    publish(5)
    take_in(2)
    offsets = AdminClient.list_offsets

    def after_a_while(client, *arguments, **options):
        take_in(5)
        for future in client.delete_records([TopicPartition(kafka.topic, 0, 5)]).values():
            future.result(20)
        return offsets(client, *arguments, **options)

    monkeypatch.setattr(AdminClient, "list_offsets", after_a_while)
    finding = kafka_states(kafka, database)["lag"]
    assert (finding.state, finding.said) == ("ok", "0 records wait")


def test_records_that_were_deleted_unread_are_wrong(kafka, database, publish, take_in):
    publish(5)
    take_in(2)
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    for future in admin.delete_records([TopicPartition(kafka.topic, 0, 5)]).values():
        future.result(20)
    finding = kafka_states(kafka, database)["lag"]
    assert (finding.state, finding.said) == ("wrong", "partitions 0 were cut before they could be read")


def test_a_topic_made_anew_behind_the_databases_back_is_wrong(filled):
    finding = filled(records=1, taken_in=99)
    assert finding.state == "wrong"
    assert "is another one than it was" in finding.said


def test_dead_letters_of_the_last_hours_are_wrong_and_older_ones_are_past(kafka, database):
    ensure_topics(kafka)
    assert kafka_states(kafka, database)["dead letters"].state == "ok"
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers}, logger=logging.getLogger("test"))
    for age, reason in ((86400, b"old"), (60, b"malformed"), (30, b"nul"), (0, b"malformed")):
        at = round((datetime.now(UTC).timestamp() - age) * 1000)
        producer.produce(kafka.dlq_topic, b"x", headers=[("reason", reason)], timestamp=at)
        assert producer.flush(20) == 0
    finding = kafka_states(kafka, database)["dead letters"]
    assert (finding.state, finding.said) == ("wrong", "2 malformed, 1 nul in the last 2 hours")


@pytest.fixture
def service():
    """`service(pages)`: the URL of a server that answers with these (status, body) by path."""
    servers = []

    def serve(pages):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                status, body = pages[self.path]
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = Thread(target=server.serve_forever)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


def bridge_page(of_version=None, targets=4, reload=1):
    return (
        f'gpu_bridge_build_info{{bridge_id="b",version="{of_version or version("gpu-telemetry")}"}} 1.0\n'
        f"gpu_bridge_targets {targets}.0\ngpu_bridge_config_reload_success {reload}.0\n"
    )


def one(urls):
    (finding,) = service_findings(urls, timeout_seconds=5)
    return finding


@pytest.mark.parametrize(
    ("page", "state", "said"),
    [
        (bridge_page(), "ok", "scrapes 4 nodes"),
        (bridge_page("0.0.1"), "wrong", "is of version 0.0.1, this command of"),
        (bridge_page(targets=0), "wrong", "has nothing to scrape"),
        (bridge_page(reload=0), "wrong", "its list of targets cannot be read"),
    ],
)
def test_what_a_bridge_says_of_itself_is_read(service, page, state, said):
    finding = one({"bridge": service({"/readyz": (200, "{}"), "/metrics": (200, page)})})
    assert finding.state == state
    assert said in finding.said


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"status": "unready", "problems": ["waits for Kafka"]}', "waits for Kafka"),
        ('{"status": "unready", "reasons": ["no targets", "no topic"]}', "no targets; no topic"),
        ('{"title": "Service Unavailable", "detail": "the database has no schema"}', "the database has no schema"),
        ("not JSON", "HTTP 503"),
    ],
)
def test_a_service_that_is_not_ready_says_why(service, body, said):
    finding = one({"alert engine": service({"/readyz": (503, body)})})
    assert finding.state == "wrong"
    assert said in finding.said


def test_a_service_that_does_not_answer_is_wrong(free_ports):
    (port,) = free_ports(1)
    finding = one({"api": f"http://127.0.0.1:{port}"})
    assert finding.state == "wrong"
    assert "start `gpu-telemetry api`" in finding.advice


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_service_of_this_machine_is_asked_past_any_proxy(service, host, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert one({"alert engine": service({"/readyz": (200, "{}")}).replace("127.0.0.1", host)}).state == "ok"


def test_a_disk_with_room_is_well_and_a_path_that_is_not_there_is_wrong(tmp_path):
    assert disk_finding([tmp_path]).state == "ok"
    assert disk_finding([tmp_path / "nowhere"]).state == "wrong"
    assert disk_finding([]).state == "ok"


def test_a_full_disk_is_wrong(tmp_path, monkeypatch):
    usage = type("Usage", (), {"total": 100 * 1024**3, "free": 2 * 1024**3})
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage)
    assert disk_finding([tmp_path]).said.startswith("only 2.0 GiB of 100 free")


@pytest.fixture
def environment(kafka, database, monkeypatch, tmp_path, service):
    """Everything in the environment as it should be; gives the arguments of a doctor that finds all well."""
    ensure_topics(kafka)
    monkeypatch.setenv("DATABASE_URL", database.url.get_secret_value())
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    monkeypatch.setenv("KAFKA_TOPIC", kafka.topic)
    monkeypatch.setenv("KAFKA_DLQ_TOPIC", kafka.dlq_topic)
    url = service(
        {
            "/readyz": (200, "{}"),
            "/metrics": (200, bridge_page()),
            "/openapi.json": (200, json.dumps({"info": {"version": version("gpu-telemetry")}})),
        }
    )
    return ["--data", str(tmp_path / "none"), "--bridge", url, "--alert-engine", url, "--api", url]


@pytest.mark.usefixtures("well")
def test_the_command_ends_with_0_where_all_is_well(environment):
    result = CliRunner().invoke(command, environment)
    assert result.exit_code == 0, result.output
    assert [line.split(":")[0] for line in result.output.splitlines()] == [
        f"ok    {check}"
        for check in (
            "database", "schema", "clock", "partitions", "records", "ledger", "actions", "kafka", "topics", "lag",
            "dead letters", "bridge", "alert engine", "api", "disk",
        )
    ]  # fmt: skip


@pytest.mark.usefixtures("well")
def test_while_a_stack_runs_the_command_looks_where_that_says(environment, kafka, database, tmp_path, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/elsewhere")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    options = Options(data=tmp_path, kafka=kafka.bootstrap_servers, database=database.url)
    directory = DataDirectory(tmp_path)
    directory.hold()
    directory.write_state(Stack(options, directory).state("2026-01-31T12:00:00.000Z", [], Rates()))
    result = CliRunner().invoke(command, [*environment, "--data", str(tmp_path)])
    directory.let_go()
    assert result.exit_code == 0, result.output
    assert f"at {conninfo_to_dict(database.url.get_secret_value())['host']}:" in result.output
    assert f"free under {tmp_path}" in result.output


def test_a_password_of_a_stacks_own_database_that_cannot_be_read_is_told(environment, kafka, tmp_path):
    directory = DataDirectory(tmp_path)
    directory.hold()
    stack = Stack(Options(data=tmp_path, kafka=kafka.bootstrap_servers), directory)
    own = PartState(name="PostgreSQL", state="up", pid=1, restarts=0, log="")
    directory.write_state(stack.state("2026-01-31T12:00:00.000Z", [own], Rates()))
    result = CliRunner().invoke(command, [*environment, "--data", str(tmp_path)])
    directory.let_go()
    assert isinstance(result.exception, SettingsError)
    assert str(result.exception) == (
        f"{tmp_path}/postgres/password, the password of the stack's database: No such file or directory"
    )


@pytest.mark.usefixtures("well")
def test_the_command_ends_with_1_and_one_line_of_advice_where_anything_is_wrong(environment, execute):
    execute("DELETE FROM schema_migrations WHERE version = 1")
    result = CliRunner().invoke(command, environment)
    assert result.exit_code == 1
    (line,) = [line for line in result.output.splitlines() if line.startswith("WRONG")]
    assert line.startswith("WRONG schema: the database lacks 0001_tables")
    assert line.endswith(" -> run `gpu-telemetry db upgrade`")


def test_the_command_gives_json(environment):
    findings = json.loads(CliRunner().invoke(command, [*environment, "--json"]).output)
    assert {"check", "state", "said", "advice"} == set(findings[0])
    assert next(finding for finding in findings if finding["check"] == "records")["state"] == "wrong"
