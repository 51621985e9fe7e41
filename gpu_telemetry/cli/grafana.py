"""`gpu-telemetry grafana push|check`: our dashboards in a Grafana that is there already."""

import sys
from collections.abc import Iterator
from typing import NoReturn

import click

from grafana.push import Finding, PushFailed, Target
from grafana.settings import GrafanaSettings


@click.group()
def command() -> None:
    """Put the folder, datasources and dashboards into a Grafana, or say what it lacks.

    GRAFANA_URL and GRAFANA_TOKEN name it; docs/configuration.md lists what its datasources are filled with.
    """


@command.command()
@click.option("--url", metavar="URL", help="The Grafana, instead of GRAFANA_URL.")
def push(url: str | None) -> None:
    """Create what is missing and update what differs."""
    target = _target(url)
    try:
        _tell(target.push())
    finally:
        target.close()


@command.command()
@click.option("--url", metavar="URL", help="The Grafana, instead of GRAFANA_URL.")
def check(url: str | None) -> None:
    """Say what is missing or differs; exit 1 if anything does. Changes nothing."""
    target = _target(url)
    try:
        findings = _tell(target.check())
    finally:
        target.close()
    sys.exit(any(finding.state != "same" for finding in findings))


def _target(url: str | None) -> Target:
    try:
        return Target(GrafanaSettings.load(url=url))
    except PushFailed as failure:
        _fail(failure)


def _tell(findings: Iterator[Finding]) -> list[Finding]:
    told = []
    try:
        for finding in findings:
            print(finding)
            told.append(finding)
    except PushFailed as failure:
        _fail(failure)
    return told


def _fail(failure: PushFailed) -> NoReturn:
    print(f"grafana: {failure}", file=sys.stderr)
    sys.exit(1)
