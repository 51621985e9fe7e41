"""`gpu-telemetry topics`: create the Kafka topics."""

import sys

import click
from confluent_kafka import KafkaException

from gpu_telemetry.kafka import ensure_topics
from gpu_telemetry.settings import KafkaSettings


@click.group()
def command() -> None:
    """Create the Kafka topics."""


@command.command()
@click.option("--timeout", "timeout_seconds", default=30.0, show_default=True, help="Seconds the brokers may take.")
def ensure(timeout_seconds: float) -> None:
    """Create the topics that are missing, as the KAFKA_ settings say; existing ones stay as they are."""
    settings = KafkaSettings.load()
    try:
        created = ensure_topics(settings, timeout_seconds=timeout_seconds)
    except KafkaException as error:
        print(f"topics ensure: {settings.bootstrap_servers}: {error.args[0].str()}", file=sys.stderr)
        sys.exit(1)
    for name in (settings.topic, settings.dlq_topic):
        print(f"{name}: {'created' if name in created else 'exists'}")
