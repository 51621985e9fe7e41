"""kill -9 of the bridge: what Kafka acknowledged is stored once, and the time until it is back stands in the ledger."""

from collections import Counter, defaultdict
from itertools import pairwise

import pytest
from confluent_kafka import Consumer, TopicPartition

from gpu_telemetry.records import GpuRecord, ScrapeRecord, decode

NODES = [f"node-{number}" for number in range(8)]


@pytest.fixture
def published(stream, trust):
    """`published()`: every record that the topic holds, in the order of its partitions."""

    def read():
        consumer = Consumer(
            {"bootstrap.servers": stream.kafka.bootstrap_servers, "group.id": "unused", "enable.auto.commit": False}
        )
        consumer.assign([TopicPartition(stream.kafka.topic, number, 0) for number in range(stream.kafka.partitions)])
        records, end = [], trust.end(stream)
        try:
            while len(records) < end:
                messages = consumer.consume(end - len(records), 10)
                assert messages, f"{len(records)} of {end} records came"
                records += [decode(message.value()) for message in messages]
        finally:
            consumer.close()
        return records

    return read


def test_a_killed_bridge_loses_nothing_that_was_acknowledged_and_its_absence_is_told(
    soak, bridge, stream, trust, start, wait_for, pause, published
):
    acknowledged = 0
    engine = start()
    for chance in soak.rounds():
        for _ in range(3):
            one = bridge(stream.kafka.bootstrap_servers, stream.kafka.topic, BRIDGE_INTERVAL_SECONDS="0.2")
            one.start(*NODES)
            least = chance.randrange(1, 200)
            wait_for(lambda o=one, n=least: (o.metric("gpu_bridge_delivered_messages_total") or 0) >= n, 90, one.said)
            pause(chance.uniform(0, 0.2))
            acknowledged += one.metric("gpu_bridge_delivered_messages_total")
            one.process.kill()
            one.process.wait()
            soak.counts["kills"] += 1
    trust.await_all(stream)
    engine.stop()
    records = published()
    soak.counts["records"] = len(records)
    assert len(records) >= acknowledged
    gpus = Counter((r.gpu_uuid, r.collected_at) for r in records if isinstance(r, GpuRecord))
    turns = Counter((r.node_id, r.boot_id, r.seq) for r in records if isinstance(r, ScrapeRecord))
    assert set(gpus.values()) == {1}
    stored = stream.query("SELECT p.gpu_uuid, m.collected_at FROM gpu_metrics m JOIN placements p USING (placement_id)")
    assert Counter(stored) == gpus
    assert Counter(stream.query("SELECT node_id, boot_id, seq FROM scrapes")) == turns
    absent = defaultdict(float)
    for node in NODES:
        closings = sorted(
            (r.collected_at, r.boot_id) for r in records if isinstance(r, ScrapeRecord) and r.node_id == node
        )
        assert len({boot for _, boot in closings}) <= soak.counts["kills"]
        for (before, old), (after, new) in pairwise(closings):
            absent[node] += (after - before).total_seconds() if old != new else 0
    told, missing = defaultdict(float), 0
    for (node, _), line in stream.ledger().items():
        told[node] += line["unaccounted_seconds"]
        missing += line["missing"]
    assert told == pytest.approx(absent)
    assert all(absent.values())
    assert missing == 0, "what a killed bridge published of a turn that it never closed is stored, and not missed"
