"""Where a Grafana is that is there already, and what its datasources are to be."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import SettingsConfigDict

from gpu_telemetry.settings import HttpUrl, Settings


def _without_slash(url: str) -> str:
    return url.rstrip("/")


class GrafanaSettings(Settings):
    """The names from `GRAFANA_PROMETHEUS_URL` on are those that grafana/provisioning is filled with, too."""

    model_config = SettingsConfigDict(env_prefix="GRAFANA_")

    url: Annotated[HttpUrl, AfterValidator(_without_slash)] = Field(
        "http://localhost:3000", description="The Grafana to push to or to check."
    )
    token: SecretStr | None = Field(
        None, description="A token of a service account there: Editor for dashboards, Admin for datasources too."
    )
    timeout_seconds: float = Field(10.0, gt=0, le=300, description="How long one answer of Grafana may take.")
    prometheus_url: Annotated[HttpUrl, AfterValidator(_without_slash)] = Field(
        "http://prometheus:9090", description="The Prometheus, as Grafana reaches it."
    )
    scrape_interval: str = Field(
        "30s", pattern=r"^[1-9][0-9]*(ms|s|m)$", description="How often Prometheus scrapes, for Grafana's rates."
    )
    database_address: str = Field("postgres:5432", description="HOST:PORT of PostgreSQL, as Grafana reaches it.")
    database_user: str = Field("grafana_reader", description="A login that is a member of telemetry_reader.")
    database_password: SecretStr | None = Field(None, description="Its password; left as it is there if not given.")
    database_sslmode: Literal["disable", "require", "verify-ca", "verify-full"] = Field(
        "disable", description="How Grafana reaches PostgreSQL."
    )
