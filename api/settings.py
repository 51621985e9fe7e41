"""The API's own settings: where it listens, how many requests it answers at once, how long a query may take."""

from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from gpu_telemetry.settings import ListenAddress, Settings


class ApiSettings(Settings):
    """How the REST API and its pages are served. Times are in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="API_")

    listen: ListenAddress = Field("127.0.0.1:8080", description="Where the REST API and the pages are served.")
    workers: int = Field(2, ge=1, le=256, description="Processes that answer requests.")
    threads: int = Field(
        8, ge=1, le=256, description="Requests that one process works on at the same time; others wait for their turn."
    )
    pool_min_size: int = Field(1, ge=0, le=256, description="Database connections that each process keeps open.")
    pool_max_size: int = Field(8, ge=1, le=256, description="Database connections that each process may open.")
    pool_timeout_seconds: float = Field(
        3.0,
        gt=0,
        le=60,
        description="How long a request waits for its turn, and then for a database connection, before it is answered "
        "503.",
    )
    statement_timeout_seconds: float = Field(
        10.0,
        ge=0.1,
        le=600,
        description="How long one query may take before it is cancelled and answered 503; all queries of a request "
        "together may take a second more.",
    )
    body_limit_bytes: int = Field(
        16 * 1024, ge=1024, le=2**31 - 1, description="The longest request body that is read; a longer one gets 413."
    )
    graceful_timeout_seconds: int = Field(
        10, ge=1, le=3600, description="How long requests under way may go on when the API is told to stop."
    )

    @model_validator(mode="after")
    def _pool_sizes_fit(self) -> Self:
        if self.pool_min_size > self.pool_max_size:
            raise ValueError("API_POOL_MIN_SIZE may not be larger than API_POOL_MAX_SIZE")
        return self
