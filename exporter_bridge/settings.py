"""The bridge's own settings: what it scrapes, how often, how much it may hold, where it listens."""

import re
import socket
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_settings import SettingsConfigDict

from gpu_telemetry.records import MAX_IDENTIFIER_LENGTH
from gpu_telemetry.settings import HttpUrl, ListenAddress, Settings

_SHARD = re.compile(r"(\d{1,5})/(\d{1,5})")


def split_shard(text: str) -> tuple[int, int]:
    """The index, from 0, and the count of `INDEX/COUNT`.

    Raises:
        ValueError: the text has another form, or the index does not lie below the count.
    """
    match = _SHARD.fullmatch(text)
    if match is None or not int(match[1]) < int(match[2]):
        raise ValueError(f"expected INDEX/COUNT with INDEX from 0 and below COUNT, as in 0/2, got {text!r}")
    return int(match[1]), int(match[2])


def _valid_shard(text: str) -> str:
    split_shard(text)
    return text


class BridgeSettings(Settings):
    """What the bridge scrapes, how, and what it may hold. Sizes are in bytes, times in seconds."""

    model_config = SettingsConfigDict(env_prefix="BRIDGE_")

    listen: ListenAddress = Field(
        "127.0.0.1:9500", description="Where /metrics, /fleet/metrics, /sd, /healthz and /readyz are served."
    )
    targets_file: Path | None = Field(
        None, description="The exporters to scrape, as a Prometheus file_sd file in YAML or JSON."
    )
    http_sd_url: HttpUrl | None = Field(
        None, description="A Prometheus HTTP service discovery that lists exporters to scrape."
    )
    refresh_seconds: float = Field(
        5.0, ge=0.1, le=3600, description="How often the file is looked at and the HTTP discovery is asked."
    )
    interval_seconds: float = Field(
        30.0, ge=0.1, le=86400, description="How often each exporter is scraped, at an offset of its own."
    )
    timeout_seconds: float | None = Field(
        None, gt=0, le=86400, description="How long one scrape may take; 10 seconds or one interval if not given."
    )
    body_limit_bytes: int = Field(
        16 * 1024**2, ge=1024, le=2**31 - 1, description="The longest page that is read; a longer one is refused."
    )
    max_in_flight: int = Field(
        0, ge=0, description="Scrapes under way at one time; 0 for as many as the limit on open files allows."
    )
    max_kept_connections: int = Field(
        4096, ge=0, description="Connections to exporters that are kept open between scrapes."
    )
    queue_scrapes: int = Field(
        100_000,
        ge=1,
        description="Scrapes that wait for Kafka; beyond it the oldest are dropped, and counted; "
        "removals of nodes stay.",
    )
    queue_bytes: int = Field(
        256 * 1024**2, ge=1024, description="Bytes of records that wait for Kafka; beyond it the oldest scrapes go."
    )
    flush_seconds: float = Field(
        10.0, ge=0, le=3600, description="How long a bridge that is told to stop goes on delivering to Kafka."
    )
    shard: Annotated[str, AfterValidator(_valid_shard)] = Field(
        "0/1", description="This bridge's part of the fleet, INDEX/COUNT: the nodes whose hash falls on INDEX."
    )
    nodes_per_sd_shard: int = Field(
        250, ge=1, description="Nodes in one of the shards of /fleet/metrics that /sd lists for Prometheus."
    )
    id: str = Field(
        default_factory=socket.gethostname,
        min_length=1,
        max_length=MAX_IDENTIFIER_LENGTH,
        description="The bridge's name in its records (`bridge_id`); the host's name if not given.",
    )

    @model_validator(mode="after")
    def _timeout_fits_interval(self) -> Self:
        if self.timeout_seconds is not None and self.timeout_seconds > self.interval_seconds:
            raise ValueError("BRIDGE_TIMEOUT_SECONDS may not be longer than BRIDGE_INTERVAL_SECONDS")
        return self

    @property
    def scrape_timeout_seconds(self) -> float:
        """The time-out of a target that has none of its own."""
        return self.timeout_seconds if self.timeout_seconds is not None else min(10.0, self.interval_seconds)
