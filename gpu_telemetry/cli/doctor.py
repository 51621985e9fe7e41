"""`gpu-telemetry doctor`: check each part of a running system, and say what to do."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import msgspec

from gpu_telemetry.clock import SystemClock
from gpu_telemetry.doctor.finding import Finding
from gpu_telemetry.doctor.services import service_findings
from gpu_telemetry.doctor.stores import database_findings, disk_finding
from gpu_telemetry.doctor.stream import kafka_findings
from gpu_telemetry.local.directory import DEFAULT, DataDirectory
from gpu_telemetry.local.ports import HOST, Ports
from gpu_telemetry.local.stack import database_of
from gpu_telemetry.settings import DatabaseSettings, KafkaSettings

_MARK: Final = {"ok": "ok   ", "wrong": "WRONG", "unchecked": "?    "}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As a JSON array.")
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT,
    show_default=True,
    help="A local stack's data directory: while it runs it says where its parts are, instead of the environment.",
)
@click.option("--bridge", "bridge_url", help="Where the exporter bridge is.")
@click.option("--alert-engine", "alert_engine_url", help="Where the alert engine's metrics are.")
@click.option("--api", "api_url", help="Where the API is.")
@click.option(
    "--disk", "disks", multiple=True, type=click.Path(path_type=Path), help="A path whose disk must have room."
)
@click.option("--max-lag", "most_lag", default=100_000, show_default=True, help="Records that may wait in Kafka.")
@click.option("--timeout", "timeout_seconds", default=5.0, show_default=True, help="Seconds that each part may take.")
def command(
    *,
    as_json: bool,
    data: Path,
    bridge_url: str | None,
    alert_engine_url: str | None,
    api_url: str | None,
    disks: tuple[Path, ...],
    most_lag: int,
    timeout_seconds: float,
) -> None:
    """Check each part (reach, versions, schema, topics, lag, clock, ledger, disk), a line each; exit 1 if any is wrong.

    Kafka and the database are those of KAFKA_ and DATABASE_ variables, unless a local stack runs on --data.
    """
    directory = DataDirectory(data)
    stack = directory.read_state()
    kafka = KafkaSettings.load(bootstrap_servers=stack.kafka if stack else None)
    database = DatabaseSettings.load(
        url=database_of(stack, directory) if stack else None, connect_timeout_seconds=max(1, round(timeout_seconds))
    )
    known = stack.urls if stack else {}
    ports = Ports()
    urls = {
        "bridge": bridge_url or known.get("bridge metrics", f"http://{HOST}:{ports.bridge}").removesuffix("/metrics"),
        "alert engine": alert_engine_url
        or known.get("alert engine metrics", f"http://{HOST}:{ports.alert_engine}").removesuffix("/metrics"),
        "api": api_url or known.get("api", f"http://{HOST}:{ports.api}"),
    }
    paths = [*disks, directory.path] if stack else list(disks)

    clock = SystemClock()

    def look() -> Iterator[Finding]:
        yield from database_findings(database, clock)
        yield from kafka_findings(kafka, database, clock, most_lag=most_lag, timeout_seconds=timeout_seconds)
        yield from service_findings(urls, timeout_seconds=timeout_seconds)
        yield disk_finding(paths)

    findings = []
    for finding in look():
        findings.append(finding)
        if not as_json:
            advice = f" -> {finding.advice}" if finding.advice else ""
            print(_line(f"{_MARK[finding.state]} {finding.check}: {finding.said}{advice}"), flush=True)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(findings), indent=2).decode())
    sys.exit(0 if all(finding.state == "ok" for finding in findings) else 1)


def _line(text: str) -> str:
    """A text on one line, whatever a service or an identifier holds."""
    return "".join(char if char.isprintable() else " " for char in text)
