"""How a service reads its settings: from the environment, validated at start-up, the variable's name in each error.

A service declares its own settings as a subclass of `Settings` with a prefix of its own; those that several services
share (Kafka, the database, logs) stand here. A field's description is its documentation: docs/configuration.md is
tested against it. Secrets are `SecretStr`, which neither a repr nor a log shows.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

AnySettings = TypeVar("AnySettings", bound="Settings")


class SettingsError(ValueError):
    """Settings that cannot be used: one line for each, with the environment variable's name and what was expected."""


class Settings(BaseSettings):
    """Settings read from environment variables: the class's prefix and the field's name in capitals."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    @classmethod
    def variable(cls, field: str) -> str:
        """The environment variable that holds a field."""
        return f"{cls.model_config.get('env_prefix', '')}{field}".upper()

    @classmethod
    def load(cls, **overrides: Any) -> Self:  # noqa: ANN401 - the values of command-line flags, validated here
        """The settings of this process; an override that is None counts as not given.

        Raises:
            SettingsError: a value is missing or wrong.
        """
        try:
            return cls(**{name: value for name, value in overrides.items() if value is not None})
        except ValidationError as error:
            problems = error.errors(include_url=False, include_input=False)
            raise SettingsError("\n".join(map(cls._told, problems))) from None

    @classmethod
    def _told(cls, problem: ErrorDetails) -> str:
        name = cls.variable(str(problem["loc"][0])) if problem["loc"] else cls.__name__
        return f"{name}: {problem['msg'].removeprefix('Value error, ')}"


def _valid_address(text: str) -> str:
    split_address(text)
    return text


def split_address(text: str) -> tuple[str, int]:
    """The host and the port of `HOST:PORT`, where an IPv6 host stands in brackets.

    Raises:
        ValueError: the text has another form, or the port is no port.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 <= int(port) <= 65535:  # noqa: PLR2004 - the largest port
        raise ValueError(f"expected HOST:PORT, got {text!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


ListenAddress = Annotated[str, AfterValidator(_valid_address)]


def check_url(text: str) -> None:
    """Raise a ValueError that says what was expected unless it is the URL of something that speaks HTTP."""
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("expected an http:// or https:// URL")


def _valid_url(text: str) -> str:
    check_url(text)
    if urlsplit(text).username or urlsplit(text).password:
        raise ValueError("a URL shows in logs, so user and password may not stand in it")
    return text


# A URL that is no secret.
HttpUrl = Annotated[str, AfterValidator(_valid_url)]


class LogSettings(Settings):
    """How a process logs."""

    model_config = SettingsConfigDict(env_prefix="LOG_")

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="The least severe level shown.")
    format: Literal["text", "json"] = Field("text", description="Plain lines for people, or one JSON object a line.")


def _valid_connection(text: SecretStr) -> SecretStr:
    # Only who speaks to PostgreSQL has such a setting; to the others the library would be memory for nothing.
    from psycopg import ProgrammingError  # noqa: PLC0415
    from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415

    try:
        conninfo_to_dict(text.get_secret_value())
    except ProgrammingError:
        # libpq quotes what it does not understand, which can be the password.
        raise ValueError(
            "expected a libpq URL or connection string, with % for what is special in it; what is wrong is not "
            "told, since a password may stand in it"
        ) from None
    return text


def _valid_password_file(path: Path) -> Path:
    _first_line(path)
    return path


def _first_line(path: Path) -> str:
    """The first line of a file, which must not be empty.

    Raises:
        ValueError: the file cannot be read, or holds none.
    """
    try:
        with path.open(encoding="utf-8") as file:
            line = file.readline().rstrip("\r\n")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"expected {path} to hold a password in UTF-8") from None
    if not line:
        raise ValueError(f"expected {path} to hold a password on its first line")
    return line


class DatabaseSettings(Settings):
    """Where PostgreSQL is."""

    model_config = SettingsConfigDict(env_prefix="DATABASE_")

    url: Annotated[SecretStr, AfterValidator(_valid_connection)] = Field(
        SecretStr("postgresql://telemetry@localhost:5432/gpu_telemetry"),
        description="The database, as a libpq URL or connection string; a password may stand in it, in "
        "DATABASE_PASSWORD_FILE or in PGPASSFILE.",
    )
    # Beside libpq's own PGPASSFILE because libpq takes such a file only with mode 0600, and a secret that a container
    # gets as a file belongs to whoever made it on the host.
    password_file: Annotated[Path, AfterValidator(_valid_password_file)] | None = Field(
        None, description="A file whose first line is the password, for a URL that holds none."
    )
    connect_timeout_seconds: int = Field(10, ge=1, le=300, description="How long one attempt to connect may take.")

    def password(self) -> str | None:
        """What `password_file` holds now; None where there is no such setting.

        Raises:
            ValueError: the file can no longer be read.
        """
        return None if self.password_file is None else _first_line(self.password_file)


class KafkaSettings(Settings):
    """Where Kafka is, and its topics."""

    OPTION_PREFIX: ClassVar[str] = "KAFKA_OPT_"
    model_config = SettingsConfigDict(env_prefix="KAFKA_")

    bootstrap_servers: str = Field("localhost:9092", min_length=1, description="Brokers as HOST:PORT, comma-separated.")
    topic: str = Field("gpu-telemetry", pattern=r"^[a-zA-Z0-9._-]{1,249}$", description="The topic of the records.")
    dlq_topic: str = Field(
        "gpu-telemetry.dlq", pattern=r"^[a-zA-Z0-9._-]{1,249}$", description="The topic of the dead letters."
    )
    partitions: int = Field(12, ge=1, le=10000, description="Partitions of the topic when `topics ensure` creates it.")
    replication_factor: int = Field(1, ge=1, le=32767, description="Replicas of both topics when they are created.")
    retention_hours: int = Field(168, ge=1, description="How long the topic keeps records.")
    retention_bytes_per_partition: int = Field(
        8 * 1024**3, ge=-1, description="The size at which a partition drops its oldest records; -1 for no cap."
    )
    dlq_retention_hours: int = Field(720, ge=1, description="How long dead letters are kept.")

    def options(self, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Any librdkafka property, given as KAFKA_OPT_ and the property's name in capitals, dots as underscores.

        The values may be secrets (`sasl.password`): hand them to librdkafka and nowhere else.
        """
        return {
            name.removeprefix(self.OPTION_PREFIX).lower().replace("_", "."): value
            for name, value in environment.items()
            if name.startswith(self.OPTION_PREFIX)
        }
