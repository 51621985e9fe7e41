"""PostgreSQL as this project uses it: connections in UTC, a pool, and the schema's numbered migrations."""

import hashlib
import importlib.resources
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool

from gpu_telemetry.settings import DatabaseSettings

_MIGRATION_NAME: Final = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
# An arbitrary number that every migrating process locks on.
_MIGRATION_LOCK: Final = 7_405_199_320_118_046_721

_CREATE_LEDGER: Final = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    checksum   text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)"""


class SchemaError(RuntimeError):
    """The database's schema is not the one this program knows; the text says what to run."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered SQL file."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """A digest of the text, so that an edited migration is noticed."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def connection_options(settings: DatabaseSettings, application: str) -> dict[str, Any]:
    """The keyword arguments of every connection: UTC, a time-out to connect, keep-alives, and who is calling.

    They hold the password of DATABASE_PASSWORD_FILE where the URL has none: for libpq, never for a log.

    Raises:
        psycopg.ProgrammingError: the URL is none.
        psycopg.OperationalError: the password's file can no longer be read; as a database that is away, it may return.
    """
    options: dict[str, Any] = {
        "application_name": application,
        "connect_timeout": settings.connect_timeout_seconds,
        "options": "-c timezone=UTC",
        # A peer that is gone is noticed within about 25 s instead of the system's two hours.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 25_000,
    }
    try:
        password = settings.password()
    except ValueError as error:
        raise psycopg.OperationalError(f"DATABASE_PASSWORD_FILE: {error}") from None
    if password is not None and "password" not in conninfo_to_dict(settings.url.get_secret_value()):
        options["password"] = password
    return options


def connect(settings: DatabaseSettings, application: str, *, autocommit: bool = False) -> Connection[Any]:
    """Open one connection.

    Raises:
        psycopg.OperationalError: the database cannot be reached.
    """
    return psycopg.connect(
        settings.url.get_secret_value(), autocommit=autocommit, **connection_options(settings, application)
    )


def make_pool(settings: DatabaseSettings, application: str, *, min_size: int, max_size: int) -> ConnectionPool:
    """A pool that is not open yet and checks each connection before lending it."""
    return ConnectionPool(
        settings.url.get_secret_value(),
        kwargs=connection_options(settings, application),
        min_size=min_size,
        max_size=max_size,
        name=application,
        open=False,
        check=ConnectionPool.check_connection,
    )


def migrations() -> list[Migration]:
    """The migrations of this program, in order of version."""
    found = [
        Migration(int(match[1]), match[2], file.read_text(encoding="utf-8"))
        for file in importlib.resources.files("gpu_telemetry.migrations").iterdir()
        if (match := _MIGRATION_NAME.fullmatch(file.name))
    ]
    return sorted(found, key=lambda migration: migration.version)


def _pending(connection: Connection[Any]) -> Iterator[Migration]:
    """The migrations that the database lacks; a database that is ahead or differs is refused."""
    known = {migration.version: migration for migration in migrations()}
    applied = dict(connection.execute("SELECT version, checksum FROM schema_migrations").fetchall())
    for version, checksum in sorted(applied.items()):
        if version not in known:
            raise SchemaError(
                f"the database has schema version {version}, this program knows up to {max(known)}: "
                "run a newer version of this program"
            )
        if known[version].checksum != checksum:
            raise SchemaError(f"migration {version:04d}_{known[version].name} differs from the one that was applied")
    return (migration for version, migration in sorted(known.items()) if version not in applied)


def upgrade(settings: DatabaseSettings) -> list[Migration]:
    """Apply the migrations that are missing, all in one transaction under a lock; give those that were applied.

    Raises:
        SchemaError: the database has migrations that this program does not know, or other texts of them.
        psycopg.Error: the database cannot be reached or refuses.
    """
    with connect(settings, "gpu-telemetry db upgrade") as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_MIGRATION_LOCK])
        connection.execute(_CREATE_LEDGER)
        applied = []
        for migration in _pending(connection):
            connection.execute(migration.sql.encode())
            connection.execute(
                "INSERT INTO schema_migrations (version, name, checksum) VALUES (%s, %s, %s)",
                [migration.version, migration.name, migration.checksum],
            )
            applied.append(migration)
    return applied


def verify(connection: Connection[Any]) -> None:
    """Check that the database has exactly the schema that this program knows.

    Raises:
        SchemaError: it is empty, behind, ahead or different.
    """
    row = connection.execute("SELECT to_regclass('public.schema_migrations')").fetchone()
    if row is None or row[0] is None:
        raise SchemaError("the database has no schema: run `gpu-telemetry db upgrade`")
    missing = [f"{migration.version:04d}_{migration.name}" for migration in _pending(connection)]
    if missing:
        raise SchemaError(f"the database lacks {', '.join(missing)}: run `gpu-telemetry db upgrade`")


def initial_script() -> str:
    """The text of init.sql: all migrations and their entries, for a server that runs it on an empty database."""
    parts = ["-- Generated from gpu_telemetry/migrations by `gpu-telemetry db init-script`; do not edit.\n"]
    parts.append(_CREATE_LEDGER.strip() + ";\n")
    for migration in migrations():
        parts.append(f"-- {migration.version:04d}_{migration.name}\n{migration.sql}")
        parts.append(
            "INSERT INTO schema_migrations (version, name, checksum)\n"
            f"VALUES ({migration.version}, '{migration.name}', '{migration.checksum}');\n"
        )
    return "BEGIN;\n\n" + "\n".join(parts) + "\nCOMMIT;\n"
