"""`gpu-telemetry db`: bring the database schema up to date."""

import sys

import click
import psycopg

from gpu_telemetry import database
from gpu_telemetry.settings import DatabaseSettings


@click.group()
def command() -> None:
    """Bring the database schema up to date."""


@command.command()
def upgrade() -> None:
    """Apply the migrations that DATABASE_URL's schema lacks; safe to run at any time, from several places at once."""
    try:
        applied = database.upgrade(DatabaseSettings.load())
    except (database.SchemaError, psycopg.Error) as error:
        print(f"db upgrade: {error}", file=sys.stderr)
        sys.exit(1)
    for migration in applied:
        print(f"{migration.version:04d}_{migration.name}: applied")
    if not applied:
        print("the schema is up to date")


@command.command()
def init_script() -> None:
    """Print the whole schema as one SQL script: the repository's init.sql."""
    print(database.initial_script(), end="")
