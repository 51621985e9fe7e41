"""`gpu-telemetry nodes`: remove a node from the fleet by hand."""

import getpass
import socket
import sys
import uuid
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, NoReturn

import click
import psycopg
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from gpu_telemetry import database
from gpu_telemetry.clock import SystemClock, from_milliseconds, rfc3339, to_milliseconds
from gpu_telemetry.kafka import TopicError, producer_configuration, verify_topics
from gpu_telemetry.local.directory import DEFAULT, DataDirectory
from gpu_telemetry.local.stack import database_of
from gpu_telemetry.records import MAX_IDENTIFIER_LENGTH, SCHEMA_VERSION, ScrapeRecord, encode
from gpu_telemetry.settings import DatabaseSettings, KafkaSettings

# The newest of a node's records, whether or not the closing record of its turn came.
_NODE = b"""
SELECT n.removed_at, n.interval_ms, greatest(n.last_heard, max(newest.collected_at))
  FROM nodes n
  LEFT JOIN placements p USING (node_id)
  LEFT JOIN LATERAL (
      SELECT collected_at FROM gpu_metrics WHERE placement_id = p.placement_id ORDER BY collected_at DESC LIMIT 1
  ) newest ON true
 WHERE n.node_id = %s
 GROUP BY n.node_id"""


class _Node(NamedTuple):
    """What the database knows of a node."""

    removed_at: datetime | None
    interval_ms: int
    newest: datetime


def removal_of(node_id: str, at: datetime, interval_ms: int) -> ScrapeRecord:
    """The record that says that a node left the configuration."""
    return ScrapeRecord(
        schema_version=SCHEMA_VERSION,
        node_id=node_id,
        bridge_id=f"cli-{getpass.getuser()}@{socket.gethostname()}"[:MAX_IDENTIFIER_LENGTH],
        boot_id=str(uuid.uuid4()),
        seq=1,
        collected_at=from_milliseconds(to_milliseconds(at)),
        up=False,
        reason="removed",
        gpu_records=0,
        interval_ms=interval_ms,
        removed=True,
    )


@click.group()
def command() -> None:
    """Remove a node from the fleet by hand."""


@command.command()
@click.argument("node_id")
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT,
    show_default=True,
    help="A local stack's data directory: while it runs it says where Kafka and the database are.",
)
@click.option("--timeout", "timeout_seconds", default=30.0, show_default=True, help="Seconds each server may take.")
def remove(node_id: str, data: Path, timeout_seconds: float) -> None:
    """Tell that the node NODE_ID left the fleet: its alerts end as decommissioned, its silence is no news.

    The alert engine carries it out. A bridge that goes on scraping the node brings it back. Kafka and the database are
    those of KAFKA_ and DATABASE_ variables, unless a local stack runs on --data.
    """
    directory = DataDirectory(data)
    stack = directory.read_state()
    kafka = KafkaSettings.load(bootstrap_servers=stack.kafka if stack else None)
    settings = DatabaseSettings.load(
        url=database_of(stack, directory) if stack else None, connect_timeout_seconds=max(1, round(timeout_seconds))
    )
    try:
        node = _node(settings, node_id)
        if node is None:
            _fail(f"there is no node {node_id!r} in the database")
        if node.removed_at is not None:
            print(f"{node_id}: was removed at {rfc3339(node.removed_at)}")
            return
        # The clock of who scraped the node may be ahead of ours, and what is older than its newest record counts not.
        record = removal_of(node_id, max(SystemClock().now(), node.newest), node.interval_ms)
        verify_topics(kafka, names=[kafka.topic], timeout_seconds=timeout_seconds)
        _publish(kafka, record, timeout_seconds)
    except psycopg.Error as error:
        _fail(f"the database: {' '.join(str(error).split())}")
    except TopicError as error:
        _fail(str(error))
    except KafkaException as error:
        _fail(f"{kafka.bootstrap_servers}: {error.args[0].str()}")
    print(f"{node_id}: asked for its removal as of {rfc3339(record.collected_at)}")


def _fail(why: str) -> NoReturn:
    print(f"nodes remove: {why}", file=sys.stderr)
    sys.exit(1)


def _node(settings: DatabaseSettings, node_id: str) -> _Node | None:
    with database.connect(settings, "gpu-telemetry nodes remove") as connection:
        row = connection.execute(_NODE, [node_id]).fetchone()
    return None if row is None else _Node(*row)


def _publish(kafka: KafkaSettings, record: ScrapeRecord, timeout_seconds: float) -> None:
    """Deliver the record where the bridge's records of the node go."""
    producer = Producer(producer_configuration(kafka) | {"message.timeout.ms": int(timeout_seconds * 1000)})
    failures: list[KafkaError] = []

    def answered(error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            failures.append(error)

    producer.produce(kafka.topic, encode(record), record.node_id.encode(), on_delivery=answered)
    if producer.flush(timeout_seconds + 5):
        raise KafkaException(KafkaError(KafkaError._MSG_TIMED_OUT))  # noqa: SLF001 - its public name
    if failures:
        raise KafkaException(failures[0])
