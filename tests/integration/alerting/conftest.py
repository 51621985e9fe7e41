"""A database and a topic of a test's own, records to put there, and alert engines to read them."""

import logging
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from confluent_kafka import Producer
from pydantic import SecretStr

from alerting.service import Service
from alerting.settings import AlertingSettings
from gpu_telemetry import database
from gpu_telemetry.clock import from_milliseconds, to_milliseconds
from gpu_telemetry.kafka import ensure_topics
from gpu_telemetry.records import GpuRecord, ScrapeRecord, encode
from gpu_telemetry.settings import DatabaseSettings, KafkaSettings

# What a rerun must reproduce: business keys, event times and values; ids and wall-clock columns aside.
HISTORY = {
    "alerts": "SELECT rule, node_id, gpu_index, gpu_uuid, mig_instance, severity, message, threshold_value,"
    " actual_value, status, triggered_at, raised_at, resolved_at, resolved_reason FROM alerts ORDER BY 1, 2, 4, 5, 11",
    "events": "SELECT node_id, rule, gpu_uuid, mig_instance, transition, severity, message, actual_value, reason,"
    " started_at, at, details::text, row_number() OVER (PARTITION BY node_id ORDER BY id) AS place"
    " FROM alert_events ORDER BY node_id, place",
    "decisions": "SELECT key, action_type, transition, event_time FROM alert_actions ORDER BY key",
    "nodes": "SELECT node_id, hostname, datacenter, instance, status, first_seen, last_seen, last_heard, interval_ms,"
    " removed_at FROM nodes ORDER BY node_id",
    # When it was described last depends on restarts, after which it is described once more.
    "gpus": "SELECT gpu_uuid, model, driver_version, pci_bus_id, memory_total_mib, first_seen FROM gpus"
    " ORDER BY gpu_uuid",
    "placements": "SELECT node_id, gpu_index, gpu_uuid, mig_instance, mig_profile, since FROM placements"
    " ORDER BY node_id, gpu_index, gpu_uuid, mig_instance",
    "metrics": "SELECT p.gpu_uuid, p.mig_instance, m.node_id, m.gpu_index, m.temperature_celsius, m.power_watts,"
    " m.xid_code, m.workloads::text, m.fields::text, m.collected_at FROM gpu_metrics m"
    " JOIN placements p USING (placement_id) ORDER BY 1, 2, 10",
    "scrapes": "SELECT * FROM scrapes ORDER BY node_id, boot_id, seq",
    "drops": "SELECT * FROM stream_drops ORDER BY 1, 2, 3",
}


LEDGER = (
    "announced, unannounced, estimated, stored, dropped, missing, dropped_by_reason, missing_scrapes,"
    " unaccounted_seconds"
)


class Stream:
    """A topic and a database of one test, and the two ends of the pipe between them."""

    def __init__(self, kafka, database_settings):
        self.kafka = kafka
        self.database = database_settings
        self.producer = Producer(
            {"bootstrap.servers": kafka.bootstrap_servers, "partitioner": "murmur2_random", "linger.ms": 2},
            logger=logging.getLogger("test"),
        )

    def send(self, *records):
        """Publish records, each under its node's key, and wait until the broker has them."""
        for record in records:
            self.send_raw(encode(record), record.node_id)

    def send_raw(self, value, key):
        self.producer.produce(self.kafka.topic, value, None if key is None else key.encode())
        self.producer.poll(0)

    def flush(self):
        assert self.producer.flush(30) == 0

    def query(self, statement, *parameters):
        with psycopg.connect(self.database.url.get_secret_value(), options="-c timezone=UTC") as connection:
            return connection.execute(statement, parameters).fetchall()

    def execute(self, statement, *parameters):
        with psycopg.connect(self.database.url.get_secret_value(), autocommit=True) as connection:
            connection.execute(statement, parameters)

    def count(self, table, where="true"):
        return self.query(f"SELECT count(*) FROM {table} WHERE {where}")[0][0]

    def history(self):
        return {name: self.query(statement) for name, statement in HISTORY.items()}

    def ledger(self):
        """Each line of the ledger as a dict, by node and hour; all of them balance."""
        names = LEDGER.split(", ")
        lines = {}
        for node_id, hour, *values in self.query(f"SELECT node_id, hour, {LEDGER} FROM ledger ORDER BY 1, 2"):
            line = lines[node_id, hour] = dict(zip(names, values, strict=True))
            assert line["announced"] + line["unannounced"] + line["estimated"] == (
                line["stored"] + line["dropped"] + line["missing"]
            ), line
        return lines

    def taken_in(self):
        """The sum of the offsets that are taken in."""
        return self.query("SELECT coalesce(sum(next_offset), 0)::bigint FROM consumer_offsets")[0][0]


@pytest.fixture
def make_stream(kafka_bootstrap, postgres_server, topic_names):
    """`make_stream()`: another empty database over the same topic (created at the first call).

    `postgres` is the server of the database, else the session's; `kafka` overrides settings of Kafka.
    """
    made = []

    def make(partitions=3, postgres=postgres_server, **kafka):
        given = {
            "bootstrap_servers": kafka_bootstrap,
            "topic": topic_names.topic,
            "dlq_topic": topic_names.dlq_topic,
            "partitions": partitions,
        }
        settings = KafkaSettings.load(**(given | kafka))
        ensure_topics(settings)
        name = f"alerting_{os.urandom(6).hex()}"
        with psycopg.connect(postgres.database_url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        made.append((postgres, name))
        database_settings = DatabaseSettings.load(url=SecretStr(postgres.database_url(name)))
        database.upgrade(database_settings)
        return Stream(settings, database_settings)

    yield make
    for postgres, name in made:
        with psycopg.connect(postgres.database_url("postgres"), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
def stream(make_stream):
    """An empty topic and an empty database."""
    return make_stream()


class Running:
    """An alert engine in a thread of the test."""

    def __init__(self, service):
        self.service = service
        self.error = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        try:
            self.service.run()
        except BaseException as error:  # noqa: BLE001 - told by the thread that asked for it
            self.error = error

    def stop(self):
        self.service.stop()
        self.thread.join(20)
        assert not self.thread.is_alive(), "the alert engine did not stop within 20 s"
        if self.error is not None:
            raise self.error


@pytest.fixture
def start(stream):
    """`start(**settings)`: an alert engine over the test's stream (or over `on=`), stopped at the end."""
    running = []

    def begin(on=None, **settings):
        where = stream if on is None else on
        given = {"listen": "127.0.0.1:0", "group_id": f"g-{os.urandom(6).hex()}", "batch_milliseconds": 50}
        engine = Running(Service(where.kafka, where.database, AlertingSettings.load(**(given | settings))))
        running.append(engine)
        return engine

    yield begin
    for engine in running:
        engine.stop()


@pytest.fixture
def engine_process(stream):
    """`engine_process(**variables)`: an alert engine as a process of its own, killed at the end."""
    processes = []

    def begin(on=None, **variables):
        where = stream if on is None else on
        environment = os.environ | {
            "KAFKA_BOOTSTRAP_SERVERS": where.kafka.bootstrap_servers,
            "KAFKA_TOPIC": where.kafka.topic,
            "KAFKA_DLQ_TOPIC": where.kafka.dlq_topic,
            "DATABASE_URL": where.database.url.get_secret_value(),
            "ALERTING_LISTEN": "127.0.0.1:0",
            "ALERTING_BATCH_MILLISECONDS": "20",
            **{name: str(value) for name, value in variables.items()},
        }
        process = subprocess.Popen(
            [sys.executable, "-c", "from gpu_telemetry.cli import main; main()", "alert-engine"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        process.lines = []
        thread = threading.Thread(target=lambda: process.lines.extend(process.stderr), daemon=True)
        thread.start()
        processes.append((process, thread))
        return process

    yield begin
    for process, thread in processes:
        process.kill()
        process.wait()
        thread.join()
        process.stderr.close()


class Fleet:
    """Writes what a bridge publishes about some nodes, turn by turn, in event time."""

    def __init__(self, nodes=2, gpus=4, start=None, interval=30.0):
        begin = datetime.now(UTC) - timedelta(minutes=2) if start is None else start
        self.at = from_milliseconds(to_milliseconds(begin))
        self.interval = timedelta(seconds=interval)
        self.nodes = [f"node-{number + 1}" for number in range(nodes)]
        self.gpus = gpus
        self.seq = dict.fromkeys(self.nodes, 0)
        self.energy = 0.0

    def uuid(self, node, index):
        return f"GPU-{node}-{index}"

    def turn(self, node, temperatures=None, *, at=None, up=True, without=(), **values):
        """The records of one turn: its GPUs, then its closing record. `temperatures` maps an index to °C."""
        self.seq[node] += 1
        self.energy += 100.0
        at = self.at if at is None else at
        shared = {
            "schema_version": 1,
            "node_id": node,
            "bridge_id": "bridge-1",
            "boot_id": "boot-1",
            "seq": self.seq[node],
            "collected_at": at,
            "hostname": f"{node}.example",
            "datacenter": "us-west-1",
        }
        gpus = [index for index in range(self.gpus) if up and index not in without]
        records = [
            GpuRecord(
                **shared,
                gpu_index=index,
                gpu_uuid=self.uuid(node, index),
                model="NVIDIA H100 80GB HBM3",
                driver_version="580.1",
                temperature_celsius=float((temperatures or {}).get(index, 60.0)),
                power_watts=300.0,
                energy_joules=self.energy,
                memory_used_mib=1000,
                memory_free_mib=79000,
                memory_total_mib=80000,
                memory_used_percent=1.25,
                xid_code=0,
                **values,
            )
            for index in gpus
        ]
        closing = ScrapeRecord(
            **shared,
            up=up,
            reason=None if up else "timeout",
            gpu_records=len(records),
            gpu_uuids=[self.uuid(node, index) for index in gpus],
            interval_ms=int(self.interval.total_seconds() * 1000),
            instance=f"{node}:9400",
            duration_ms=12.5,
            changed_at=at if up else None,
        )
        return [*records, closing]

    def round(self, temperatures=None, **values):
        """One turn of every node; `temperatures` maps (node, index) to °C. Time moves on by one interval."""
        records = []
        for node in self.nodes:
            own = {index: value for (where, index), value in (temperatures or {}).items() if where == node}
            records += self.turn(node, own, **values)
        self.at += self.interval
        return records


@pytest.fixture
def make_fleet():
    """`make_fleet(nodes=2, gpus=4, start=None, interval=30.0)`: see `Fleet`."""
    return Fleet


class Receiver:
    """A server on loopback that keeps what it was sent; `answers` decides, by path, what it says."""

    def __init__(self, json_server):
        self.requests = []
        self.answers = {}
        server = json_server(self._answer)
        self.url, self.close = server.url, server.close

    def _answer(self, _method, path, headers, body):
        self.requests.append((path, dict(headers), body))
        answer = self.answers.get(path.partition("?")[0], (200, {}))
        return answer(body) if callable(answer) else answer

    def bodies(self, path):
        return [body for where, _, body in self.requests if where == path]


@pytest.fixture
def loopback_receiver(json_server):
    """A `Receiver`, gone at the end of the test."""
    return Receiver(json_server)
