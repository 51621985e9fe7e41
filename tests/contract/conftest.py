"""The REST API over a real PostgreSQL that holds a small fleet: filled once a session, copied for tests that write."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from flask.testing import FlaskClient
from pydantic import SecretStr

from api.app import create_app
from api.resources import resources
from api.settings import ApiSettings
from gpu_telemetry import database
from gpu_telemetry.clock import ManualClock
from gpu_telemetry.settings import DatabaseSettings

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
_FLEET = Path(__file__).parent / "rest_fleet.sql"


def _settings(url: str) -> DatabaseSettings:
    return DatabaseSettings(url=SecretStr(url))


@pytest.fixture(scope="session")
def _rest_template(postgres_server) -> Iterator[str]:
    """The name of a database that holds the fleet; nobody is connected to it."""
    name = f"rest_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_server.database_url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    url = postgres_server.database_url(name)
    database.upgrade(_settings(url))
    with psycopg.connect(url) as connection:
        connection.execute(_FLEET.read_text(encoding="utf-8").encode())
    yield name
    with psycopg.connect(postgres_server.database_url("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@contextmanager
def _copy(server, template: str) -> Iterator[str]:
    """The URL of a new database with the fleet, dropped at the end."""
    name = f"rest_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server.database_url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield server.database_url(name)
    with psycopg.connect(server.database_url("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def _client(url: str) -> Iterator[FlaskClient]:
    app = create_app(ApiSettings(), database=_settings(url), clock=ManualClock(NOW))
    yield app.test_client()
    resources(app).database.close()


@pytest.fixture(scope="session")
def client(postgres_server, _rest_template) -> Iterator[FlaskClient]:
    """A client of an API over the fleet, for tests that only read."""
    with _copy(postgres_server, _rest_template) as url:
        yield from _client(url)


@pytest.fixture
def fleet_url(postgres_server, _rest_template) -> Iterator[str]:
    """The URL of a database with the fleet that this test alone uses."""
    with _copy(postgres_server, _rest_template) as url:
        yield url


@pytest.fixture
def writing_client(fleet_url) -> Iterator[FlaskClient]:
    """A client of an API over `fleet_url`."""
    yield from _client(fleet_url)
