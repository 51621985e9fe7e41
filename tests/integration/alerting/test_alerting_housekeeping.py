"""Partitions are made ahead and dropped by retention, by one housekeeper, and nothing half done stays."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta

import psycopg
import pytest
from pydantic import SecretStr

from alerting.housekeeping import Housekeeping
from alerting.metrics import Metrics
from alerting.settings import AlertingSettings
from gpu_telemetry import database
from gpu_telemetry.clock import ManualClock, SystemClock
from gpu_telemetry.settings import DatabaseSettings

TODAY = date(2026, 3, 31)
PENDING = "SELECT count(*) FROM pg_inherits WHERE inhdetachpending"


@pytest.fixture
def settings(postgres_url):
    settings = DatabaseSettings.load(url=SecretStr(postgres_url))
    database.upgrade(settings)
    return settings


@pytest.fixture
def connection(settings):
    with database.connect(settings, "test", autocommit=True) as connection:
        yield connection


@pytest.fixture
def keep(settings):
    """`keep(clock)`: what one run of the housekeeping does; whether it was its turn."""

    def run(clock):
        own = AlertingSettings.load(retention_days=30, partitions_ahead_days=2)
        with database.connect(settings, "housekeeping", autocommit=True) as connection:
            return Housekeeping(settings, own, Metrics(), clock).keep(connection)

    return run


@pytest.fixture
def clock():
    return ManualClock(datetime(2026, 3, 31, 23, 59, tzinfo=UTC))


def tables(connection):
    """The partitions, attached or not, by day."""
    rows = connection.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'parts'::regnamespace AND relkind = 'r'"
    )
    return {name for (name,) in rows}


def partitions(*days):
    return {f"{parent}_{day:%Y%m%d}" for parent in ("gpu_metrics", "scrapes") for day in days}


def test_today_and_two_days_ahead_stand_after_a_run(connection, keep, clock):
    assert keep(clock)
    assert tables(connection) == partitions(*(TODAY + timedelta(days=ahead) for ahead in range(3)))
    clock.advance(120)
    assert keep(clock)
    assert tables(connection) == partitions(*(TODAY + timedelta(days=ahead) for ahead in range(4)))


def test_what_lies_beyond_retention_goes_and_the_oldest_kept_day_stays(connection, keep, clock):
    days = [TODAY - timedelta(days=age) for age in (30, 31, 45)]
    for parent in ("gpu_metrics", "scrapes"):
        for day in days:
            connection.execute("SELECT ensure_partition(%s, %s)", (parent, day))
    assert keep(clock)
    ahead = [TODAY + timedelta(days=number) for number in range(3)]
    assert tables(connection) == partitions(days[0], *ahead)


@pytest.fixture
def half_detach(connection, settings, wait_for):
    """`half_detach(partition)`: begin to detach a partition of `scrapes`, and be cut short after the first step."""

    def run(partition):
        # A reader holds the table, so that the detaching waits after its first step.
        with (
            database.connect(settings, "reader") as reader,
            database.connect(settings, "cut short", autocommit=True) as cut_short,
            ThreadPoolExecutor(1) as pool,
        ):
            reader.execute("SELECT count(*) FROM scrapes")
            statement = f"ALTER TABLE scrapes DETACH PARTITION parts.{partition} CONCURRENTLY".encode()
            detaching = pool.submit(cut_short.execute, statement)
            wait_for(lambda: connection.execute(PENDING).fetchone() == (1,), 20, "the first step is done")
            cut_short.cancel()
            with pytest.raises(psycopg.errors.QueryCanceled):
                detaching.result(20)

    return run


def test_what_a_cut_short_run_left_behind_is_finished(connection, half_detach, keep, clock):
    half, loose = date(2026, 1, 1), date(2026, 1, 2)
    for day in (half, loose):
        connection.execute("SELECT ensure_partition('scrapes', %s)", (day,))
    connection.execute("ALTER TABLE scrapes DETACH PARTITION parts.scrapes_20260102")
    half_detach("scrapes_20260101")
    assert connection.execute(PENDING).fetchone() == (1,)
    assert keep(clock)
    assert connection.execute(PENDING).fetchone() == (0,)
    assert not tables(connection) & partitions(half, loose)


def test_what_is_half_detached_is_finished_before_others_are_begun(connection, half_detach, keep, clock):
    days = [date(2026, 1, day) for day in (1, 2, 3)]
    for day in days:
        connection.execute("SELECT ensure_partition('scrapes', %s)", (day,))
    half_detach("scrapes_20260103")
    assert keep(clock)
    assert not tables(connection) & partitions(*days)


def test_tables_that_are_no_daily_partition_are_left_alone(connection, keep, clock):
    connection.execute("CREATE TABLE parts.scrapes_old (a int); CREATE TABLE parts.scrapes_20261399 (a int)")
    assert keep(clock)
    assert {"scrapes_old", "scrapes_20261399"} <= tables(connection)


def test_a_second_housekeeper_leaves_it_to_the_first(connection, keep, clock):
    connection.execute("SELECT pg_advisory_lock(hashtextextended('gpu_telemetry.housekeeping', 0))")
    assert not keep(clock)
    assert tables(connection) == set()


ANNOUNCED = """
INSERT INTO nodes (node_id, status, first_seen, last_heard, interval_ms)
VALUES ('node-1', 'healthy', '2026-03-31 22:15Z', '2026-03-31 22:15Z', 30000);
INSERT INTO scrapes (node_id, boot_id, seq, collected_at, bridge_id, up, gpu_records, gpu_uuids, interval_ms)
VALUES ('node-1', 'boot', 1, '2026-03-31 22:15Z', 'bridge', true, 8, '{}', 30000);
"""


def test_a_worker_that_another_keeps_house_for_looks_at_the_ledger_all_the_same(settings, connection, clock):
    metrics = [Metrics(), Metrics()]
    first, second = (Housekeeping(settings, AlertingSettings.load(), each, clock) for each in metrics)

    def told():
        return [each.registry.get_sample_value("alert_engine_ledger_missing_gpu_records") for each in metrics]

    with database.connect(settings, "a", autocommit=True) as a, database.connect(settings, "b", autocommit=True) as b:
        assert first.keep(a)
        connection.execute(ANNOUNCED)
        assert (first.keep(a), second.keep(b), told()) == (True, False, [8, 8])
        clock.advance(3600)
        assert (first.keep(a), second.keep(b), told()) == (True, False, [0, 0])


def test_the_end_does_not_wait_for_a_reader_that_detaching_waits_for(settings, connection, wait_for):
    connection.execute("SELECT ensure_partition('gpu_metrics', current_date - 9)")
    keeper = Housekeeping(settings, AlertingSettings.load(retention_days=1), Metrics(), SystemClock())
    sessions = "SELECT wait_event_type FROM pg_stat_activity WHERE application_name = 'gpu-telemetry housekeeping'"
    with database.connect(settings, "reader") as reader:
        reader.execute("SELECT count(*) FROM gpu_metrics")  # and goes on reading
        keeper.start()
        wait_for(lambda: connection.execute(sessions).fetchone() == ("Lock",), 20)
        begun = time.monotonic()
        keeper.stop()
        assert time.monotonic() - begun < 3
        wait_for(lambda: connection.execute(sessions).fetchall() == [], 5)
