"""A batch: what becomes of it where partitions give way, and what does not depend on where it begins."""

import confluent_kafka
import msgspec
import pytest

from alerting.batch import decode_batch
from alerting.partition import LogIdentity, OwnedPartition, Position
from gpu_telemetry.clock import from_milliseconds, rfc3339
from gpu_telemetry.records import SCHEMA_VERSION

APPENDED_MS = 1_769_860_800_000


def message(partition, offset, node_id, *, ahead_ms=0, appended_ms=APPENDED_MS, **changes):
    """A closing record's message; what `changes` breaks is a dead letter."""
    record = {
        "kind": "scrape",
        "schema_version": SCHEMA_VERSION,
        "node_id": node_id,
        "bridge_id": "bridge-1",
        "boot_id": "boot-1",
        "seq": offset + 1,
        "collected_at": rfc3339(from_milliseconds(appended_ms + ahead_ms)),
        "up": True,
        "gpu_records": 0,
        "interval_ms": 30_000,
    }
    return confluent_kafka.Message(
        topic="t",
        partition=partition,
        offset=offset,
        key=node_id.encode(),
        value=msgspec.json.encode(record | changes),
        timestamp=(confluent_kafka.TIMESTAMP_LOG_APPEND_TIME, appended_ms),
    )


@pytest.fixture
def partitions():
    owned = {number: OwnedPartition(number) for number in range(2)}
    for part in owned.values():
        part.position = Position(0, LogIdentity("cluster", "topic"))
    return owned


def test_what_was_refused_of_a_partition_that_gave_way_is_left_to_its_next_reader(partitions):
    batch = decode_batch(
        [(part, [message(part.number, 0, f"node-{part.number}", up=1)]) for part in partitions.values()]
    )
    assert [letter.message.partition() for letter in batch.dead] == [0, 1]
    del partitions[0]
    batch.keep(partitions)
    assert [letter.message.partition() for letter in batch.dead] == [1]
    assert [drop.origin.node_id for drop in batch.drops] == ["node-1"]


def test_what_was_delivered_before_a_partition_gave_way_is_not_delivered_again(partitions):
    batch = decode_batch(
        [(part, [message(part.number, 0, f"node-{part.number}", up=1)]) for part in partitions.values()]
    )
    batch.delivered = 2
    del partitions[1]
    batch.keep(partitions)
    assert batch.dead[batch.delivered :] == []
    assert [drop.origin.node_id for drop in batch.drops] == ["node-0"]


def test_what_is_ahead_of_its_own_append_time_is_refused_wherever_the_batch_begins(partitions):
    # The broker's clock steps back between the two, as where another broker becomes the leader.
    early = message(0, 0, "node-0")
    ahead = message(0, 1, "node-0", appended_ms=APPENDED_MS - 10_000, ahead_ms=65_000)
    for messages in ([early, ahead], [ahead]):
        batch = decode_batch([(partitions[0], messages)])
        assert [letter.reason for letter in batch.dead] == ["clock_skew"]


def test_a_minute_ahead_is_legal(partitions):
    batch = decode_batch([(partitions[0], [message(0, 0, "node-0", ahead_ms=60_000)])])
    assert batch.dead == []


def test_records_are_those_that_were_not_refused_each_time_they_are_asked_for(partitions):
    messages = [message(0, offset, f"node-{offset}", up=1 if offset == 1 else True) for offset in range(4)]
    batch = decode_batch([(partitions[0], messages)])
    (part,) = batch.slices
    assert part.node_ids == part.heard == {"node-0", "node-2", "node-3"}
    batch.refuse(part, 2, "refused_by_database", "a constraint")
    for _ in range(2):
        assert [(index, record.node_id) for index, record in part.records()] == [(0, "node-0"), (3, "node-3")]
    assert [record.node_id for _, record in part.first(3).records()] == ["node-0"]
    assert [(letter.message.offset(), letter.reason) for letter in batch.dead] == [
        (1, "invalid"),
        (2, "refused_by_database"),
    ]
