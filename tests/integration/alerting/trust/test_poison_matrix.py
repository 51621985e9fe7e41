"""Every kind of poison in the middle of a good batch: it costs itself, is found by name, and the ledger balances."""

import logging
import random
from collections import Counter
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from gpu_telemetry.kafka import admin_client
from gpu_telemetry.records import encode

MIB = 1024**2


@pytest.fixture
def send_large(stream):
    """`send_large(value, key)`: publish what is larger than Kafka's usual limit; the topic takes up to 16 MiB."""
    admin = admin_client(stream.kafka)
    limit = ConfigEntry("max.message.bytes", str(16 * MIB), incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, stream.kafka.topic, incremental_configs=[limit])
    admin.incremental_alter_configs([resource])[resource].result(30)
    producer = Producer(
        {
            "bootstrap.servers": stream.kafka.bootstrap_servers,
            "message.max.bytes": 16 * MIB,
            "partitioner": "murmur2_random",
        },
        logger=logging.getLogger("test"),
    )

    def send(value, key):
        producer.produce(stream.kafka.topic, value, key)
        assert producer.flush(60) == 0

    return send


def altered(record, **changes):
    """A record's message with some of its keys changed to what a record cannot hold."""
    return msgspec.json.encode(msgspec.json.decode(encode(record)) | changes)


def test_every_poison_costs_itself_and_is_found_by_name(stream, make_fleet, start, trust, send_large):
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=2)
    fleet = make_fleet(nodes=1, gpus=8, start=hour + timedelta(minutes=1))
    whole = fleet.round()
    wounded = fleet.round()
    last = fleet.round()
    key = "node-1"
    ahead = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
    long_ago = (datetime.now(UTC) - timedelta(days=400)).isoformat()
    labelled = [{"labels": {"a\0b": "c"}, "value": 1}]
    # What a record of the turn turned into on its way: each costs that record.
    instead = [
        (altered(wounded[0], workloads=[{"pod": "train\0-1"}]), "nul"),
        (altered(wounded[1], fields={"DCGM_FI_X": labelled}), "nul"),
        (altered(wounded[2], memory_used_mib=2**31), "invalid"),
        (altered(wounded[3], nvlink_bandwidth_total=-(2**63) - 1), "invalid"),
        (altered(wounded[4], gpu_index=-1), "invalid"),
        (altered(wounded[5], schema_version=2), "schema_version"),
        (altered(wounded[6], temperature_celsius="hot"), "invalid"),
    ]
    # What stands beside the turn: it was announced by nobody.
    beside = [
        (altered(wounded[7], collected_at=ahead), "clock_skew"),
        (altered(wounded[7], schema_version=0, collected_at=ahead), "schema_version"),
        (b"[]", "invalid"),
        (b"42", "invalid"),
        (b'"text"', "invalid"),
        (b"null", "invalid"),
        (b'{"kind":"gpu","node_id":["node-1"]}', "invalid"),
        (b'{"kind":"weather","schema_version":1,"node_id":"node-1"}', "invalid"),
        (b'{"kind":"gpu","unknown":' + b"[" * 100_000, "malformed"),
        (b'{"kind":"gpu","schema_version":1', "malformed"),
        (b"", "malformed"),
        (None, "empty"),
    ]
    garbage = random.Random(1).randbytes(10 * MIB)

    stream.send(*whole)
    for value, _ in instead:
        stream.send_raw(value, key)
    for value, _ in beside:
        stream.send_raw(value, key)
    stream.flush()
    send_large(garbage, key)
    for part in range(10):
        send_large(garbage[part * MIB : (part + 1) * MIB], key)
    send_large(b'{"kind":"gpu","model":"' + b"x" * (10 * MIB) + b'"}', key)
    stream.send_raw(altered(wounded[7], collected_at=long_ago), key)
    stream.send(*wounded[7:], *last)
    stream.flush()
    engine = start()
    trust.await_all(stream)
    engine.stop()

    assert stream.count("gpu_metrics") == 8 + 1 + 8
    assert stream.count("scrapes") == 3
    reasons = Counter(reason for _, _, reason in trust.dead_letters(stream))
    expected = Counter(reason for _, reason in [*instead, *beside]) + Counter(malformed=11, invalid=1)
    assert reasons == expected
    lines = stream.ledger()
    line = lines["node-1", hour]
    assert (line["announced"], line["stored"], line["missing"]) == (24, 17, 0)
    assert line["dropped_by_reason"] == {"nul": 2, "invalid": 4, "schema_version": 1}
    drops = dict(stream.query("SELECT reason, sum(gpu_records)::int FROM stream_drops GROUP BY reason"))
    assert drops == {"nul": 2, "invalid": 4, "schema_version": 2, "clock_skew": 1, "beyond_retention": 1}
    stream.execute("DELETE FROM gpu_metrics WHERE gpu_index = 5 AND collected_at = %s", last[0].collected_at)
    assert stream.ledger()["node-1", hour] == line | {"stored": 16, "missing": 1}
