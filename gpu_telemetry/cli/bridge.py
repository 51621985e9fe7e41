"""`gpu-telemetry bridge`: scrape exporters, publish to Kafka, re-expose to Prometheus."""

import sys
from pathlib import Path

import click

from gpu_telemetry import logs
from gpu_telemetry.settings import KafkaSettings, LogSettings, SettingsError


@click.command()
@click.option("--targets", "targets_file", type=click.Path(path_type=Path), help="BRIDGE_TARGETS_FILE")
@click.option("--http-sd", "http_sd_url", help="BRIDGE_HTTP_SD_URL")
@click.option("--listen", help="BRIDGE_LISTEN")
@click.option("--interval", "interval_seconds", type=float, help="BRIDGE_INTERVAL_SECONDS")
@click.option("--kafka", "bootstrap_servers", help="KAFKA_BOOTSTRAP_SERVERS")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="LOG_FORMAT")
@click.option("--once", is_flag=True, help="Scrape every node once, publish, and end: 0 if any could be scraped.")
@click.option("--check-config", is_flag=True, help="Print what would be scraped, and end: 0 if the targets are good.")
def command(
    *,
    targets_file: Path | None,
    http_sd_url: str | None,
    listen: str | None,
    interval_seconds: float | None,
    bootstrap_servers: str | None,
    log_format: str | None,
    once: bool,
    check_config: bool,
) -> None:
    """Scrape exporters, publish to Kafka, re-expose to Prometheus. A flag wins over its environment variable."""
    import uvloop  # noqa: PLC0415 - the overview of the verbs needs no event loop

    from exporter_bridge import service  # noqa: PLC0415 - as in every verb, a service is imported when it is run
    from exporter_bridge.settings import BridgeSettings  # noqa: PLC0415

    logs.configure(LogSettings.load(format=log_format))
    settings = BridgeSettings.load(
        targets_file=targets_file, http_sd_url=http_sd_url, listen=listen, interval_seconds=interval_seconds
    )
    kafka = KafkaSettings.load(bootstrap_servers=bootstrap_servers)
    if check_config:
        reading = uvloop.run(service.read_configuration(settings))
        if not reading.valid:
            raise SettingsError("\n".join(reading.errors))
        for node_id, target in sorted(reading.targets.items()):
            print(f"{node_id}\t{target.datacenter or '-'}\t{target.url}")
        print(f"{len(reading.targets)} nodes, every {settings.interval_seconds:g} s", file=sys.stderr)
    elif once:
        sys.exit(0 if uvloop.run(service.scrape_once(settings, kafka)) else 1)
    else:
        uvloop.run(service.serve(settings, kafka))
