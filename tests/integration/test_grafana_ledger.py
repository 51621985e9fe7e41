"""The dashboard `Pipeline` says of every dropped record why it was dropped, whoever dropped it."""

import json
from datetime import UTC, timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import dict_row
from pydantic import SecretStr

from gpu_telemetry import database
from gpu_telemetry.settings import DatabaseSettings

pytestmark = pytest.mark.integration

PIPELINE = Path(__file__).parents[2] / "grafana" / "dashboards" / "pipeline.json"


@pytest.fixture
def connection(postgres_url):
    database.upgrade(DatabaseSettings(url=SecretStr(postgres_url)))
    # In one transaction, so that it is the same moment all the while.
    with psycopg.connect(postgres_url, row_factory=dict_row) as connection:
        yield connection


def moment(connection):
    return connection.execute("SELECT now()").fetchone()["now"].astimezone(UTC)


def lines_of_hours(connection):
    (text,) = (
        target["rawSql"]
        for panel in json.loads(PIPELINE.read_text(encoding="utf-8"))["panels"]
        if panel["title"] == "What became of every GPU record, by hour"
        for target in panel["targets"]
    )
    return connection.execute(text).fetchall()


def test_each_reason_for_drops_is_told_the_bridges_too(connection):
    last_hour = moment(connection).replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
    connection.execute("SELECT ensure_partition('scrapes', %s)", [last_hour.date()])
    for node, dropped in (("node-1", 4), ("node-2", 3)):
        connection.execute(
            "INSERT INTO nodes (node_id, first_seen, last_heard, interval_ms) VALUES (%s, %s, %s, 30000)",
            [node, last_hour, last_hour + timedelta(minutes=59)],
        )
        # Turns 2 to 1 + `dropped` never came; the one after them says why.
        drops = {"queue_full": {"scrapes": dropped, "gpu_records": dropped}}
        for seq, told in ((1, None), (2 + dropped, json.dumps(drops))):
            connection.execute(
                "INSERT INTO scrapes (node_id, bridge_id, boot_id, seq, collected_at, up, gpu_records, gpu_uuids,"
                " interval_ms, drops) VALUES (%s, 'b', 'b', %s, %s, true, 0, '{}', 30000, %s)",
                [node, seq, last_hour + timedelta(seconds=30 * seq), told],
            )
    # A dead letter, and one that came when its node, which is in no other line, had long been silent.
    connection.execute(
        "INSERT INTO stream_drops (node_id, hour, reason, gpu_records)"
        " VALUES ('node-1', %(hour)s, 'invalid', 2), ('node-3', %(hour)s, 'invalid', 6)",
        {"hour": last_hour},
    )

    *_, line = lines_of_hours(connection)

    assert line["Hour"] == f"{last_hour:%Y-%m-%d %H:%M} UTC"
    assert line["Dropped"] == 15
    assert line["Dropped, by reason"] == "invalid 8, queue_full 7"


def test_an_hour_without_drops_has_no_reason_and_no_hour_is_said_in_words(connection):
    (words,) = lines_of_hours(connection)
    assert words["Hour"] == "No hour is counted yet"

    now = moment(connection)
    connection.execute("SELECT ensure_partition('scrapes', %s)", [now.date()])
    connection.execute(
        "INSERT INTO nodes (node_id, first_seen, last_heard, interval_ms) VALUES ('node-1', %(now)s, %(now)s, 30000)",
        {"now": now},
    )
    (line,) = lines_of_hours(connection)
    assert (line["Dropped"], line["Dropped, by reason"]) == (0, None)
