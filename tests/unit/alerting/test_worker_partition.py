"""Where a partition is read from, and which partition a node's records are in."""

import logging

import pytest
from confluent_kafka import Producer

from alerting.partition import Gap, LogIdentity, Position, starting_point
from alerting.partitioner import partition_of

LOG = LogIdentity("cluster", "topic")


@pytest.mark.parametrize(
    ("stored", "low", "high", "expected"),
    [
        (None, 0, 10, (0, None)),
        (None, 4, 10, (4, None)),
        (Position(7, LOG), 4, 10, (7, None)),
        (Position(10, LOG), 4, 10, (10, None)),
        (Position(4, LOG), 4, 10, (4, None)),
        (Position(3, LOG), 4, 10, (4, Gap("expired", 3, 4))),
        (Position(11, LOG), 4, 10, (4, Gap("truncated", 10, 11))),
        (Position(7, LogIdentity("another", "topic")), 4, 10, (4, Gap("rebuilt", 7, 4))),
        (Position(7, LogIdentity("cluster", "another")), 0, 10, (0, Gap("rebuilt", 7, 0))),
    ],
)
def test_a_jump_is_always_a_gap(stored, low, high, expected):
    assert starting_point(stored, LOG, low, high) == expected


def test_a_nodes_partition_is_the_one_that_producers_choose():
    # librdkafka's own in-process cluster, with the partitioner that the bridge uses; its topics have 4 partitions.
    producer = Producer(
        {
            "bootstrap.servers": "",
            "test.mock.num.brokers": 1,
            "partitioner": "murmur2_random",
            "allow.auto.create.topics": True,
        },
        logger=logging.getLogger("mock"),
    )
    chosen = {}

    def delivered(error, message):
        assert error is None
        chosen[message.key().decode()] = message.partition()

    names = [f"node-{number}" for number in range(60)] + ["a", "ab", "abc", "abcd", "nœud-é", "x" * 200]
    for name in names:
        producer.produce("topic", b"", name.encode(), on_delivery=delivered)
    assert producer.flush(30) == 0
    assert chosen == {name: partition_of(name, 4) for name in names}
    assert len(set(chosen.values())) == 4
