"""`gpu-telemetry up`: run the whole stack on this machine."""

import sys
from pathlib import Path

import click
import psycopg
from pydantic import SecretStr

from gpu_telemetry.local.directory import DEFAULT, DirectoryHeld
from gpu_telemetry.local.ports import PortInUse
from gpu_telemetry.local.run import Run
from gpu_telemetry.local.stack import Options, without_password
from gpu_telemetry.settings import split_address

_DEMO_INTERVAL_SECONDS = 5.0
_INTERVAL_SECONDS = 30.0


def _addresses(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    for address in value.split(",") if value is not None else ():
        try:
            split_address(address)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
    return value


def _connection_string(_context: click.Context, _parameter: click.Parameter, value: str | None) -> SecretStr | None:
    if value is None:
        return None
    try:
        without_password(value)
    except psycopg.Error:
        # Its own text may hold the password.
        raise click.BadParameter("expected a libpq URL, as in postgresql://telemetry@host/gpu_telemetry") from None
    return SecretStr(value)


@click.command()
@click.option("--demo", is_flag=True, help="Tell a story: a GPU overheats, an alert rises, its workload migrates.")
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT,
    show_default=True,
    help="Where everything is kept.",
)
@click.option("--port-offset", type=int, default=0, metavar="N", help="Move every port by N.")
@click.option(
    "--targets",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Scrape these exporters (a Prometheus file_sd file) instead of the emulated fleet.",
)
@click.option("--kafka", metavar="HOST:PORT", callback=_addresses, help="Use this Kafka instead of a local one.")
@click.option(
    "--database",
    metavar="URL",
    callback=_connection_string,
    help="Use this PostgreSQL instead of a local one; password by PGPASSFILE.",
)
@click.option(
    "--interval", type=click.FloatRange(min=0.5), help="Seconds between two scrapes.  [default: 30; 5 in the demo]"
)
@click.option("--no-prometheus", is_flag=True, help="Leave Prometheus out.")
@click.option("--exit-after-story", is_flag=True, help="With --demo: end when the story is over, 0 if it was complete.")
def command(
    *,
    demo: bool,
    data: Path,
    port_offset: int,
    targets: Path | None,
    kafka: str | None,
    database: SecretStr | None,
    interval: float | None,
    no_prometheus: bool,
    exit_after_story: bool,
) -> None:
    """Run PostgreSQL, Apache Kafka, an emulated fleet and all services on this machine, until Ctrl-C."""
    if demo and targets:
        raise click.UsageError("--demo tells its story on the emulated fleet: it does not go with --targets")
    if exit_after_story and not demo:
        raise click.UsageError("--exit-after-story goes with --demo")
    options = Options(
        data=data,
        port_offset=port_offset,
        targets=targets,
        kafka=kafka,
        database=database,
        demo=demo,
        interval_seconds=interval or (_DEMO_INTERVAL_SECONDS if demo else _INTERVAL_SECONDS),
        prometheus=not no_prometheus,
    )
    try:
        status = Run(options, exit_after_story=exit_after_story).run()
    except (DirectoryHeld, PortInUse, ValueError) as error:
        print(f"gpu-telemetry up: {error}", file=sys.stderr)
        status = 1
    except OSError as error:
        print(f"gpu-telemetry up: {data} cannot be used: {error}", file=sys.stderr)
        status = 1
    sys.exit(status)
