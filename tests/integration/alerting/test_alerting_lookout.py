"""Of whom a worker says that he is silent."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from pydantic import SecretStr

from alerting.engine import Engine
from alerting.lookout import Lookout
from alerting.metrics import Metrics
from alerting.partition import OwnedPartition
from alerting.rules import load_rules
from gpu_telemetry import database
from gpu_telemetry.clock import ManualClock
from gpu_telemetry.settings import DatabaseSettings

NOW = datetime(2026, 3, 31, 12, 0, tzinfo=UTC)


@pytest.fixture
def look(postgres_url):
    """`look(age)`: the silences told of a node that was heard so long ago, and never by this partition."""
    settings = DatabaseSettings.load(url=SecretStr(postgres_url))
    database.upgrade(settings)
    with database.connect(settings, "test", autocommit=True) as connection:
        connection.execute("SELECT ensure_partition('scrapes', %s)", [NOW.date()])

        def run(age):
            heard = NOW - age
            connection.execute(
                "INSERT INTO nodes (node_id, status, first_seen, last_heard, interval_ms)"
                " VALUES ('node-1', 'healthy', %s, %s, 30000)",
                (heard, heard),
            )
            connection.execute(
                "INSERT INTO scrapes (node_id, boot_id, seq, collected_at, bridge_id, up, gpu_records, gpu_uuids,"
                " interval_ms) VALUES ('node-1', 'boot', 1, %s, 'bridge', true, 0, '{}', 30000)",
                [heard],
            )
            told = []
            part = OwnedPartition(0)
            lookout = Lookout(
                session=SimpleNamespace(connection=connection),
                lag=SimpleNamespace(measure=lambda: None),
                silences=SimpleNamespace(publish=lambda record, _watch: told.append(record), poll=lambda: None),
                engine=Engine(load_rules()),
                worker_id="worker",
                metrics=Metrics(),
                clock=ManualClock(NOW),
            )
            part.watch.expect("node-1", 30_000)
            for second in range(100):
                part.watch.caught_up(float(second))
            lookout.look([part], 100.0)
            return told

        yield run


def test_a_node_that_was_not_heard_for_three_intervals_is_told_with_its_last_time(look):
    age = timedelta(seconds=90)
    assert [record.last_collected_at for record in look(age)] == [NOW - age]


def test_a_node_that_another_partition_hears_is_not_told(look):
    assert look(timedelta(seconds=89)) == []
