"""What the housekeeping tells Prometheus: how far the partitions reach, and what the last whole hour's ledger lacks."""

from datetime import UTC, datetime

import pytest
from pydantic import SecretStr

from alerting.housekeeping import Housekeeping
from alerting.metrics import Metrics
from alerting.settings import AlertingSettings
from gpu_telemetry import database
from gpu_telemetry.clock import ManualClock
from gpu_telemetry.settings import DatabaseSettings

# A node whose turn announced 8 GPU records, in a database that holds none of them.
ANNOUNCED = """
INSERT INTO nodes (node_id, status, first_seen, last_heard, interval_ms)
VALUES ('node-1', 'healthy', '2026-03-31 10:15Z', '2026-03-31 10:15Z', 30000);
INSERT INTO scrapes (node_id, boot_id, seq, collected_at, bridge_id, up, gpu_records, gpu_uuids, interval_ms)
VALUES ('node-1', 'boot', 1, '2026-03-31 10:15Z', 'bridge', true, 8, '{}', 30000);
"""


@pytest.fixture
def connection(postgres_url):
    settings = DatabaseSettings.load(url=SecretStr(postgres_url))
    database.upgrade(settings)
    with database.connect(settings, "housekeeping", autocommit=True) as connection:
        yield connection


@pytest.fixture
def tell(connection):
    """`tell(time)`: the two gauges after a run of the housekeeping at that time."""

    def run(time):
        metrics = Metrics()
        settings = AlertingSettings.load(partitions_ahead_days=2)
        keeper = Housekeeping(DatabaseSettings.load(), settings, metrics, ManualClock(time))
        assert keeper.keep(connection)
        return tuple(
            metrics.registry.get_sample_value(f"alert_engine_{name}")
            for name in ("partitions_until_timestamp_seconds", "ledger_missing_gpu_records")
        )

    return run


def test_it_tells_to_which_day_there_are_partitions(tell):
    until, _ = tell(datetime(2026, 3, 31, 23, 59, tzinfo=UTC))
    assert datetime.fromtimestamp(until, UTC) == datetime(2026, 4, 3, tzinfo=UTC)


def test_it_tells_how_many_records_of_the_last_whole_hour_are_missing(tell, connection):
    during, after, later = (datetime(2026, 3, 31, hour, 20, tzinfo=UTC) for hour in (10, 11, 12))
    assert tell(during)[1] == 0
    connection.execute(ANNOUNCED)
    assert tell(during)[1] == 0
    assert tell(after)[1] == 8
    assert tell(later)[1] == 0
