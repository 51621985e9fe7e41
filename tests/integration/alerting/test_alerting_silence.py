"""A node of which nothing comes is news, found by the worker that owns it, and told as a record."""

import gc
from datetime import UTC, datetime, timedelta

import pytest
from confluent_kafka import Consumer, TopicPartition

from alerting.partition import OwnedNode
from gpu_telemetry.records import SilenceRecord, decode

INTERVAL_SECONDS = 0.5


@pytest.fixture
def silences(stream):
    """`silences()`: the silence records of the topic, as they stand now."""
    consumer = Consumer({"bootstrap.servers": stream.kafka.bootstrap_servers, "group.id": "unused"})

    def read():
        found = []
        for number in range(stream.kafka.partitions):
            partition = TopicPartition(stream.kafka.topic, number, 0)
            _, high = consumer.get_watermark_offsets(partition)
            consumer.assign([partition])
            seen = 0
            while seen < high:
                messages = consumer.consume(high - seen, 1)
                seen += len(messages)
                found += [
                    (message.key().decode(), decode(message.value()))
                    for message in messages
                    if b'"kind":"silence"' in message.value()
                ]
        return found

    yield read
    consumer.close()


def test_a_node_that_falls_silent_is_told_once_and_heard_again(stream, make_fleet, start, wait_for, silences):
    fleet = make_fleet(nodes=2, gpus=1, start=datetime.now(UTC) - timedelta(seconds=1), interval=INTERVAL_SECONDS)
    stream.send(*fleet.turn("node-1"), *fleet.turn("node-2"))
    last = fleet.at
    stream.flush()
    start()
    wait_for(lambda: stream.count("alerts", "rule = 'node_silent' AND status = 'active'") == 2, 30)
    fired = stream.query("SELECT node_id, triggered_at FROM alerts ORDER BY 1")
    due = last + 3 * fleet.interval
    assert fired == [("node-1", due), ("node-2", due)]
    told = silences()
    assert sorted(key for key, _ in told) == ["node-1", "node-2"]
    for _, record in told:
        assert isinstance(record, SilenceRecord)
        assert record.last_collected_at == last
    fleet.at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=3)
    stream.send(*fleet.turn("node-1"))
    stream.flush()
    wait_for(lambda: stream.count("alerts", "status = 'resolved'") == 1, 20)
    assert stream.query("SELECT node_id, resolved_at FROM alerts WHERE status = 'resolved'") == [("node-1", fleet.at)]


def test_a_node_that_was_silent_before_the_worker_started_is_noticed(stream, make_fleet, start, wait_for):
    fleet = make_fleet(nodes=1, gpus=1, interval=INTERVAL_SECONDS)
    stream.send(*fleet.turn("node-1"))
    stream.flush()
    first = start()
    wait_for(lambda: stream.taken_in() == 2, 30)
    first.stop()
    stream.execute("DELETE FROM alert_events; DELETE FROM alert_actions; DELETE FROM alerts")
    start()
    wait_for(lambda: stream.count("alerts", "rule = 'node_silent'") == 1, 30)


def test_a_removed_node_is_not_watched(stream, make_fleet, start, wait_for, silences):
    fleet = make_fleet(nodes=2, gpus=1, interval=INTERVAL_SECONDS)
    stream.send(*fleet.turn("node-1", {0: 97}), *fleet.turn("node-2"))
    fleet.at += fleet.interval
    *_, closing = fleet.turn("node-1", up=False)
    closing.removed = True
    stream.send(closing)
    stream.flush()
    start()
    wait_for(lambda: stream.count("alerts", "rule = 'node_silent'") == 1, 30)
    assert stream.query("SELECT node_id FROM alerts WHERE rule = 'node_silent'") == [("node-2",)]
    assert [key for key, _ in silences()] == ["node-2"]
    assert stream.query("SELECT removed_at FROM nodes WHERE node_id = 'node-1'") == [(closing.collected_at,)]
    assert stream.query("SELECT resolved_reason FROM alerts WHERE node_id = 'node-1'") == [("decommissioned",)]


def in_memory():
    """The nodes that an engine of this process knows now."""
    return {thing.state.node_id for thing in gc.get_objects() if isinstance(thing, OwnedNode)}


def test_a_removed_node_costs_no_memory_and_may_come_back(stream, make_fleet, start, wait_for):
    fleet = make_fleet(nodes=3, gpus=1, start=datetime.now(UTC) - timedelta(minutes=10))
    stream.send(*fleet.round({("node-1", 0): 97}))
    for node in ("node-1", "node-2"):
        *_, closing = fleet.turn(node, up=False)
        closing.removed = True
        stream.send(closing)
    stream.flush()
    start()
    wait_for(lambda: stream.taken_in() == 8, 30)
    wait_for(lambda: in_memory() == {"node-3"}, 10, in_memory)
    fleet.at += fleet.interval
    stream.send(*fleet.turn("node-1", {0: 97}))
    stream.flush()
    wait_for(lambda: stream.taken_in() == 10, 30)
    assert stream.query("SELECT status, resolved_reason FROM alerts ORDER BY triggered_at") == [
        ("resolved", "decommissioned"),
        ("active", None),
    ]
    assert stream.query("SELECT removed_at FROM nodes WHERE node_id = 'node-1'") == [(None,)]
