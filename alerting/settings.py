"""The alert engine's own settings: how it reads, what it keeps, what its actions may do, where it listens."""

import os
import socket
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from gpu_telemetry.records import MAX_IDENTIFIER_LENGTH
from gpu_telemetry.settings import HttpUrl, ListenAddress, Settings, check_url


def _valid_secret_url(secret: SecretStr) -> SecretStr:
    check_url(secret.get_secret_value())
    return secret


class AlertingSettings(Settings):
    """How records are taken in, how long they are kept, and what actions may do. Times are in the unit of the name."""

    model_config = SettingsConfigDict(env_prefix="ALERTING_")

    listen: ListenAddress = Field("127.0.0.1:9501", description="Where /metrics, /healthz and /readyz are served.")
    worker_id: str = Field(
        default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}",
        min_length=1,
        max_length=MAX_IDENTIFIER_LENGTH,
        description="This worker's name in claims, in silence records and in logs; host and process id if not given.",
    )
    rules_file: Path | None = Field(None, description="The rules, as YAML; the ones that ship if not given.")
    group_id: str = Field(
        "gpu-telemetry-alerting", min_length=1, description="The consumer group that the workers share."
    )
    instance_id: str | None = Field(
        None,
        min_length=1,
        description="A name that stays this worker's over restarts (static membership), so that a restart moves no "
        "partitions; unique in the group.",
    )
    batch_records: int = Field(20_000, ge=1, le=100_000, description="The most records in one transaction.")
    batch_milliseconds: int = Field(250, ge=1, le=60_000, description="The longest a batch waits to be full.")
    retention_days: int = Field(30, ge=1, le=3650, description="How many days of metrics and scrapes are kept.")
    partitions_ahead_days: int = Field(2, ge=1, le=30, description="How many days ahead partitions are made.")
    housekeeping_minutes: float = Field(
        60.0,
        gt=0,
        le=60,
        description="How often partitions are made and dropped, and the ledger's last whole hour is looked at.",
    )
    actions_dry_run: bool = Field(
        default=True,
        description="Whether a remediation is only written down (skipped: dry_run) instead of carried out.",
    )
    action_workers: int = Field(4, ge=1, le=64, description="How many actions are carried out at one time.")
    action_timeout_seconds: float = Field(10.0, gt=0, le=300, description="How long a receiver may take to answer.")
    webhook_url: Annotated[SecretStr, AfterValidator(_valid_secret_url)] | None = Field(
        None, description="Where notices go as Alertmanager's webhook payload, besides the log; none if not given."
    )
    grafana_url: HttpUrl | None = Field(
        None, description="The Grafana that gets an annotation when an alert fires and when it ends; none if not given."
    )
    grafana_token: SecretStr | None = Field(
        None, description="A token of a service account there that may write annotations; needed with the URL."
    )
    migration_url: HttpUrl | None = Field(
        None, description="Where a migration is asked for by POST, such as the emulator's /control/migrate."
    )
    external_url: HttpUrl = Field(
        "http://localhost:8080", description="The API's address as people reach it, for links in notices."
    )
    breaker_migrations: int = Field(
        3, ge=0, description="The most migrations in one window over all workers; further ones are skipped."
    )
    breaker_minutes: float = Field(10.0, gt=0, le=10_080, description="The length of that window.")

    @model_validator(mode="after")
    def _grafana_needs_a_token(self) -> Self:
        if self.grafana_url is not None and self.grafana_token is None:
            raise ValueError("ALERTING_GRAFANA_TOKEN is needed where ALERTING_GRAFANA_URL is set")
        return self

    @model_validator(mode="after")
    def _acting_needs_a_receiver(self) -> Self:
        if not self.actions_dry_run and self.migration_url is None:
            raise ValueError("ALERTING_MIGRATION_URL is needed where ALERTING_ACTIONS_DRY_RUN is false")
        return self
