"""`gpu-telemetry nodes`: remove a node from the fleet by hand."""

import getpass
import socket
import sys
import uuid
from datetime import UTC, datetime
from typing import Final

import click
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from gpu_telemetry.clock import from_milliseconds, rfc3339, to_milliseconds
from gpu_telemetry.kafka import TopicError, producer_configuration, verify_topics
from gpu_telemetry.records import MAX_IDENTIFIER_LENGTH, SCHEMA_VERSION, ScrapeRecord, encode
from gpu_telemetry.settings import KafkaSettings

# A closing record must say its node's interval; a removed node has none, and this is the bridge's default.
_INTERVAL_MS: Final = 30_000


def removal_of(node_id: str) -> ScrapeRecord:
    """The record that says that a node left the configuration."""
    return ScrapeRecord(
        schema_version=SCHEMA_VERSION,
        node_id=node_id,
        bridge_id=f"cli-{getpass.getuser()}@{socket.gethostname()}"[:MAX_IDENTIFIER_LENGTH],
        boot_id=str(uuid.uuid4()),
        seq=1,
        collected_at=from_milliseconds(to_milliseconds(datetime.now(UTC))),
        up=False,
        reason="removed",
        gpu_records=0,
        interval_ms=_INTERVAL_MS,
        removed=True,
    )


@click.group()
def command() -> None:
    """Remove a node from the fleet by hand."""


@command.command()
@click.argument("node_id")
@click.option("--timeout", "timeout_seconds", default=30.0, show_default=True, help="Seconds the brokers may take.")
def remove(node_id: str, timeout_seconds: float) -> None:
    """Tell that the node NODE_ID left the fleet: its alerts end as decommissioned, its silence is no news.

    A bridge that goes on scraping it brings it back.
    """
    if not 0 < len(node_id) <= MAX_IDENTIFIER_LENGTH or "\0" in node_id:
        raise click.BadParameter(f"expected 1 to {MAX_IDENTIFIER_LENGTH} characters", param_hint="NODE_ID")
    kafka = KafkaSettings.load()
    record = removal_of(node_id)
    try:
        verify_topics(kafka, names=[kafka.topic], timeout_seconds=timeout_seconds)
        _publish(kafka, record, timeout_seconds)
    except TopicError as error:
        print(f"nodes remove: {error}", file=sys.stderr)
        sys.exit(1)
    except KafkaException as error:
        print(f"nodes remove: {kafka.bootstrap_servers}: {error.args[0].str()}", file=sys.stderr)
        sys.exit(1)
    print(f"{node_id}: removed at {rfc3339(record.collected_at)}")


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
