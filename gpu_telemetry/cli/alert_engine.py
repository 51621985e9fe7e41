"""`gpu-telemetry alert-engine`: run the alert engine."""

import sys
from pathlib import Path

import click
import psycopg

from alerting.consumer import ConsumerFailed
from alerting.rules import RulesError
from alerting.service import run
from alerting.settings import AlertingSettings
from gpu_telemetry import logs
from gpu_telemetry.database import SchemaError
from gpu_telemetry.kafka import TopicError
from gpu_telemetry.settings import DatabaseSettings, KafkaSettings, LogSettings


@click.command()
@click.option("--listen", help="Where /metrics, /healthz and /readyz are served, HOST:PORT.")
@click.option("--rules", "rules_file", type=click.Path(path_type=Path), help="The rules, as YAML.")
def command(listen: str | None, rules_file: Path | None) -> None:
    """Run the alert engine: store records, evaluate rules, carry out actions. ALERTING_ variables set the rest."""
    logs.configure(LogSettings.load())
    settings = AlertingSettings.load(listen=listen, rules_file=rules_file)
    try:
        run(KafkaSettings.load(), DatabaseSettings.load(), settings)
    except (RulesError, SchemaError, TopicError, ConsumerFailed, OSError, psycopg.Error) as error:
        print(f"alert-engine: {error}", file=sys.stderr)
        sys.exit(1)
