"""The schema that people query: made the same on both ways, and one with the field table."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr

from gpu_telemetry import database
from gpu_telemetry.fields import FIELDS, LARGEST_EXACT_INTEGER, ValueType
from gpu_telemetry.settings import DatabaseSettings

REPOSITORY = Path(__file__).parents[2]

DESCRIBE = """
SELECT 'column', table_schema || '.' || table_name, column_name, data_type, is_nullable, column_default
  FROM information_schema.columns WHERE table_schema IN ('public', 'parts')
UNION ALL
SELECT 'index', schemaname || '.' || tablename, indexname, indexdef, NULL, NULL
  FROM pg_indexes WHERE schemaname IN ('public', 'parts')
UNION ALL
SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid), NULL, NULL
  FROM pg_constraint WHERE connamespace = 'public'::regnamespace
UNION ALL
SELECT 'function', proname, pg_get_function_identity_arguments(oid), prosrc, NULL, NULL
  FROM pg_proc WHERE pronamespace = 'public'::regnamespace
UNION ALL
SELECT 'privilege', table_schema || '.' || table_name, grantee, privilege_type, NULL, NULL
  FROM information_schema.role_table_grants WHERE grantee = 'telemetry_reader'
UNION ALL
SELECT 'migration', version::text, name, checksum, NULL, NULL FROM schema_migrations
ORDER BY 1, 2, 3, 4
"""


@pytest.fixture
def settings(postgres_url):
    return DatabaseSettings.load(url=SecretStr(postgres_url))


def describe(settings):
    with database.connect(settings, "test") as connection:
        return connection.execute(DESCRIBE).fetchall()


def test_the_columns_of_gpu_metrics_are_the_field_table(settings):
    database.upgrade(settings)
    with database.connect(settings, "test") as connection:
        columns = connection.execute(
            "SELECT column_name, data_type FROM information_schema.columns"
            " WHERE table_schema = 'public' AND table_name = 'gpu_metrics' ORDER BY ordinal_position"
        ).fetchall()
    measured = [column for column in columns if column[0] in {field.name for field in FIELDS}]
    assert [name for name, _ in measured] == [field.name for field in FIELDS]
    for field, (_, data_type) in zip(FIELDS, measured, strict=True):
        if field.type is ValueType.REAL:
            assert data_type == "double precision", field.name
        else:
            largest = {"integer": 2**31 - 1, "bigint": LARGEST_EXACT_INTEGER}[data_type]
            assert field.high <= largest, field.name


def test_init_sql_is_the_generated_one():
    assert (REPOSITORY / "init.sql").read_text(encoding="utf-8") == database.initial_script()


def test_init_sql_and_upgrade_make_the_same_schema(settings):
    with psycopg.connect(settings.url.get_secret_value(), autocommit=True) as connection:
        connection.execute((REPOSITORY / "init.sql").read_bytes())
    by_script = describe(settings)
    with database.connect(settings, "test") as connection:
        database.verify(connection)
        connection.execute("DROP SCHEMA public CASCADE; DROP SCHEMA parts CASCADE; CREATE SCHEMA public")
    assert [migration.version for migration in database.upgrade(settings)] == [1, 2, 3, 4, 5]
    assert describe(settings) == by_script


def test_upgrades_at_the_same_time_apply_each_migration_once(settings):
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: database.upgrade(settings), range(4)))
    assert sorted(len(applied) for applied in results) == [0, 0, 0, len(database.migrations())]


def test_an_empty_database_is_refused_with_what_to_run(settings):
    with (
        database.connect(settings, "test") as connection,
        pytest.raises(database.SchemaError, match="db upgrade"),
    ):
        database.verify(connection)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("INSERT INTO schema_migrations VALUES (9999, 'future', '')", "schema version 9999"),
        ("UPDATE schema_migrations SET checksum = 'edited' WHERE version = 1", "0001_tables differs"),
        ("DELETE FROM schema_migrations WHERE version = 2", "lacks 0002_functions_and_roles"),
    ],
)
def test_a_schema_that_this_program_does_not_know_is_refused(settings, change, message):
    database.upgrade(settings)
    with database.connect(settings, "test") as connection:
        connection.execute(change)
        with pytest.raises(database.SchemaError, match=message):
            database.verify(connection)


def test_sessions_speak_utc(settings):
    with database.connect(settings, "test") as connection:
        assert connection.execute("SHOW timezone").fetchone() == ("UTC",)


def test_the_reader_reads_partitions_too_and_writes_nothing(settings):
    database.upgrade(settings)
    with database.connect(settings, "test", autocommit=True) as connection:
        connection.execute("SELECT ensure_partition('gpu_metrics', '2026-01-31')")
        connection.execute("SET ROLE telemetry_reader")
        for table in ("public.gpu_metrics", "parts.gpu_metrics_20260131", "public.alerts"):
            name = sql.Identifier(*table.split("."))
            assert connection.execute(sql.SQL("SELECT count(*) FROM {}").format(name)).fetchone() == (0,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DELETE FROM alerts")


def test_a_partition_is_made_once_and_holds_one_utc_day(settings):
    database.upgrade(settings)
    with database.connect(settings, "test") as connection:
        made = [connection.execute("SELECT ensure_partition('scrapes', '2026-01-31')").fetchone() for _ in range(2)]
        assert made == [(True,), (False,)]
        bounds = connection.execute(
            "SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname = 'scrapes_20260131'"
        ).fetchone()
    assert bounds == ("FOR VALUES FROM ('2026-01-31 00:00:00+00') TO ('2026-02-01 00:00:00+00')",)
