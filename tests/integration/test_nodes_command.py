"""`gpu-telemetry nodes remove` over a real Kafka and a real database: what is published, and what is refused."""

import logging
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from click.testing import CliRunner
from confluent_kafka import Consumer, KafkaError, TopicPartition
from pydantic import SecretStr

from gpu_telemetry.cli.nodes import command
from gpu_telemetry.clock import rfc3339
from gpu_telemetry.database import upgrade
from gpu_telemetry.local.directory import DataDirectory, Rates
from gpu_telemetry.local.stack import Options, Stack
from gpu_telemetry.records import decode
from gpu_telemetry.settings import DatabaseSettings, SettingsError


@pytest.fixture
def kafka(topics_in_environment):
    """The settings of both topics, created, also in the environment."""
    return topics_in_environment(partitions=1)


@pytest.fixture
def execute(postgres_url, monkeypatch):
    """`execute(statement, *parameters)`: change the database that the environment names."""
    upgrade(DatabaseSettings(url=SecretStr(postgres_url)))
    monkeypatch.setenv("DATABASE_URL", postgres_url)

    def run(statement, *parameters):
        with psycopg.connect(postgres_url, autocommit=True, options="-c timezone=UTC") as connection:
            connection.execute(statement, parameters)

    return run


@pytest.fixture
def heard(execute):
    """`heard(node_id, at, removed_at)`: a node that was heard at a time, every 5 seconds."""

    def insert(node_id, at, removed_at=None):
        execute(
            "INSERT INTO nodes (node_id, first_seen, last_heard, interval_ms, removed_at)"
            " VALUES (%s, '2026-01-01', %s, 5000, %s)",
            node_id,
            at,
            removed_at,
        )

    return insert


@pytest.fixture
def published(kafka):
    """`published()`: the records in the topic."""

    def read():
        consumer = Consumer(
            {"bootstrap.servers": kafka.bootstrap_servers, "group.id": "test", "enable.partition.eof": True},
            logger=logging.getLogger("test"),
        )
        consumer.assign([TopicPartition(kafka.topic, 0, 0)])
        records = []
        while (message := consumer.poll(10)) is not None and message.error() is None:
            records.append(decode(message.value()))
        consumer.close()
        assert message is not None, "the topic's end was not reached"
        assert message.error().code() == KafkaError._PARTITION_EOF
        return records

    return read


@pytest.fixture
def remove(tmp_path):
    """`remove(node_id, *flags)`: what the command gives where no local stack runs."""
    return lambda node_id, *flags: CliRunner().invoke(command, ["remove", node_id, "--data", str(tmp_path), *flags])


def test_the_removal_of_a_node_is_asked_for(heard, remove, published):
    heard("node-1", datetime.now(UTC) - timedelta(hours=1))
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    result = remove("node-1")
    assert result.exit_code == 0, result.output
    (record,) = published()
    assert (record.node_id, record.removed, record.up, record.interval_ms) == ("node-1", True, False, 5000)
    assert before <= record.collected_at <= datetime.now(UTC) + timedelta(milliseconds=1)
    assert result.stdout == f"node-1: asked for its removal as of {rfc3339(record.collected_at)}\n"


def test_a_removal_is_not_older_than_what_was_last_heard_of_a_node_whose_clock_is_ahead(heard, remove, published):
    ahead = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=50)
    heard("node-1", ahead)
    assert remove("node-1").exit_code == 0
    assert [record.collected_at for record in published()] == [ahead]


def test_a_removal_is_not_older_than_a_gpu_record_of_a_turn_that_was_not_closed(heard, execute, remove, published):
    ahead = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=50)
    heard("node-1", ahead - timedelta(seconds=5))
    execute("SELECT ensure_partition('gpu_metrics', %s::date)", ahead)
    execute("INSERT INTO gpus (gpu_uuid, first_seen) VALUES ('GPU-1', now())")
    execute("INSERT INTO placements (node_id, gpu_index, gpu_uuid, since) VALUES ('node-1', 0, 'GPU-1', now())")
    execute(
        "INSERT INTO gpu_metrics (placement_id, node_id, gpu_index, collected_at)"
        " SELECT placement_id, node_id, 0, %s FROM placements",
        ahead,
    )
    assert remove("node-1").exit_code == 0
    assert [record.collected_at for record in published()] == [ahead]


def test_a_node_that_is_not_known_is_named_and_nothing_is_published(heard, remove, published):
    heard("node-1", datetime.now(UTC))
    result = remove("nod-1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "nodes remove: there is no node 'nod-1' in the database\n"
    assert published() == []


def test_a_node_that_was_removed_is_not_removed_again(heard, remove, published):
    heard("node-1", datetime(2026, 1, 31, 12, tzinfo=UTC), removed_at=datetime(2026, 1, 31, 12, tzinfo=UTC))
    result = remove("node-1")
    assert (result.exit_code, result.stdout) == (0, "node-1: was removed at 2026-01-31T12:00:00.000Z\n")
    assert published() == []


def test_where_the_database_is_away_nothing_is_published(remove, published, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://someone@127.0.0.1:1/x")
    result = remove("node-1")
    assert result.exit_code == 1
    assert result.stderr.startswith("nodes remove: the database: connection failed")
    assert published() == []


@pytest.mark.usefixtures("kafka")
def test_a_database_url_that_is_none_is_said_without_what_may_be_secret_in_it(remove, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:secret@h/d?no=such")
    result = remove("node-1")
    assert isinstance(result.exception, SettingsError)
    assert str(result.exception).startswith("DATABASE_URL: expected a libpq URL or connection string")
    assert "secret" not in str(result.exception)


def test_while_a_stack_runs_its_own_servers_are_meant(
    heard, remove, published, kafka, postgres_url, tmp_path, monkeypatch
):
    heard("node-1", datetime.now(UTC))
    monkeypatch.setenv("DATABASE_URL", "postgresql://someone@127.0.0.1:1/x")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    directory = DataDirectory(tmp_path)
    directory.hold()
    options = Options(data=tmp_path, kafka=kafka.bootstrap_servers, database=SecretStr(postgres_url))
    directory.write_state(Stack(options, directory).state("2026-01-31T12:00:00.000Z", [], Rates()))
    result = remove("node-1")
    directory.let_go()
    assert result.exit_code == 0, result.output
    assert [record.node_id for record in published()] == ["node-1"]
