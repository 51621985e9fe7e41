"""The `gpu-telemetry` command: one module a verb, each imported only when its verb is run.

A module of this package defines `command`, a click command; a dash in a verb is an underscore in its module's name.
"""

import importlib
import sys
from typing import Final

import click

from gpu_telemetry.settings import SettingsError

# The verb and its one line in the overview, so that the overview imports no service.
VERBS: Final[dict[str, str]] = {
    "up": "Run the whole stack on this machine.",
    "status": "Show what a running stack is doing.",
    "doctor": "Check each part and say what to do.",
    "bridge": "Run the exporter bridge: scrape, publish to Kafka, re-expose to Prometheus.",
    "alert-engine": "Run the alert engine: store records, evaluate rules, carry out actions.",
    "api": "Run the REST API and the web page.",
    "emulator": "Run an emulated fleet of dcgm-exporters.",
    "emulate": "Put a fault into the emulated fleet, or take it out.",
    "rules": "Check a file of alert rules.",
    "topics": "Create the Kafka topics.",
    "db": "Bring the database schema up to date.",
    "nodes": "Remove a node from the fleet by hand.",
    "grafana": "Put the dashboards into a Grafana, or say what it lacks.",
    "dlq": "Look at the dead letters, and put them back.",
}


class _Verbs(click.Group):
    """The verbs, each loaded when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"{__name__}.{cmd_name.replace('-', '_')}")
        command = module.command
        if not isinstance(command, click.Command):
            raise TypeError(f"{module.__name__}.command is no click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.command(cls=_Verbs)
@click.version_option(package_name="gpu-telemetry")
def group() -> None:
    """GPU fleet telemetry: from dcgm-exporter pages to stored metrics, alerts and actions."""


def main() -> None:
    """Run the command line; unusable settings end it with exit code 2 and one line for each."""
    try:
        group(prog_name="gpu-telemetry")
    except SettingsError as error:
        for line in str(error).splitlines():
            print(f"gpu-telemetry: {line}", file=sys.stderr)
        sys.exit(2)
