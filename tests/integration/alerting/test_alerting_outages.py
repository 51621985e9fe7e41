"""The database, the log or the topic goes away, wholly or in part; nothing is lost, and every gap is on record."""

import logging
import os
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace

import psycopg
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import OffsetSpec

from alerting.consumer import ConsumerFailed
from gpu_telemetry.kafka import admin_client, ensure_topics
from gpu_telemetry.records import encode


@pytest.fixture
def database_away(stream, postgres_server):
    """`database_away.begin()` turns every connection of the test's database out, `database_away.end()` lets them in."""
    name = stream.query("SELECT current_database()")[0][0]

    def switch(*, is_away):
        with psycopg.connect(postgres_server.database_url("postgres"), autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {'false' if is_away else 'true'}")
            if is_away:
                connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])

    return SimpleNamespace(begin=partial(switch, is_away=True), end=partial(switch, is_away=False))


@pytest.fixture
def admin(stream):
    """A client for the test's topics."""
    return admin_client(stream.kafka)


def test_records_wait_while_the_database_is_away_and_none_is_lost(
    stream, make_fleet, start, wait_for, database_away, caplog
):
    caplog.set_level(logging.INFO, logger="alerting")
    fleet = make_fleet(nodes=3, gpus=4, start=datetime.now(UTC) - timedelta(minutes=10))
    for _ in range(5):
        stream.send(*fleet.round())
    stream.flush()
    start(batch_records=5, batch_milliseconds=10)
    wait_for(lambda: stream.taken_in() > 0, 30)
    database_away.begin()
    for _ in range(5):
        stream.send(*fleet.round())
    stream.flush()
    wait_for(lambda: caplog.text.count("trying again in") >= 3, 20)
    database_away.end()
    wait_for(lambda: stream.taken_in() == 10 * 3 * 5, 40)
    assert stream.count("gpu_metrics") == 10 * 3 * 4
    assert stream.count("scrapes") == 10 * 3
    assert caplog.text.count("Assigned partitions") == 1, "the group turned the worker out"


def test_a_worker_that_starts_while_the_database_is_away_begins_when_it_is_back(
    stream, make_fleet, start, wait_for, database_away, caplog
):
    stream.send(*make_fleet(nodes=1, gpus=1).round())
    stream.flush()
    database_away.begin()
    start()
    wait_for(lambda: "not there yet" in caplog.text, 20)
    database_away.end()
    wait_for(lambda: stream.taken_in() == 2, 30)


def test_offsets_that_retention_took_away_are_a_gap_on_record(stream, admin, make_fleet, start, wait_for, caplog):
    fleet = make_fleet(nodes=1, gpus=1, start=datetime.now(UTC) - timedelta(minutes=10))
    stream.send(*fleet.round())
    stream.flush()
    first = start()
    wait_for(lambda: stream.taken_in() == 2, 30)
    first.stop()
    for _ in range(4):
        stream.send(*fleet.round())
    stream.flush()
    [(partition,)] = stream.query("SELECT partition FROM consumer_offsets WHERE next_offset = 2")
    gone = TopicPartition(stream.kafka.topic, partition, 6)
    admin.delete_records([gone])[gone].result(20)
    start()
    wait_for(lambda: stream.taken_in() == 10, 30)
    assert stream.query("SELECT topic, partition, reason, from_offset, to_offset FROM stream_gaps") == [
        (stream.kafka.topic, partition, "expired", 2, 6)
    ]
    assert stream.count("scrapes") == 3
    assert any(record.levelno == logging.ERROR and "expired" in record.message for record in caplog.records)


def test_offsets_that_go_while_they_are_read_are_a_gap_on_record(
    stream, admin, make_fleet, start, wait_for, database_away
):
    fleet = make_fleet(nodes=1, gpus=1, start=datetime.now(UTC) - timedelta(minutes=10))
    stream.send(*fleet.round())
    stream.flush()
    start(batch_records=1)
    wait_for(lambda: stream.taken_in() == 2, 30)
    [(partition,)] = stream.query("SELECT partition FROM consumer_offsets WHERE next_offset = 2")
    # Held, the worker has nothing fetched ahead when its next records go.
    database_away.begin()
    stream.send(*fleet.round())
    stream.flush()
    for _ in range(4):
        stream.send(*fleet.round())
    stream.flush()
    gone = TopicPartition(stream.kafka.topic, partition, 10)
    admin.delete_records([gone])[gone].result(20)
    database_away.end()
    stream.send(*fleet.round())
    stream.flush()
    wait_for(lambda: stream.taken_in() == 14, 30)
    [(reason, to_offset)] = stream.query("SELECT reason, to_offset FROM stream_gaps")
    assert (reason, to_offset) == ("expired", 10)


def test_a_hole_in_the_log_is_read_again_and_then_told(stream, admin, make_fleet, start, wait_for, caplog):
    # A transaction's end takes an offset that no consumer is given: a hole, as far as a reader can tell.
    fleet = make_fleet(nodes=1, gpus=1, start=datetime.now(UTC) - timedelta(minutes=10))
    producer = Producer(
        {
            "bootstrap.servers": stream.kafka.bootstrap_servers,
            "partitioner": "murmur2_random",
            "transactional.id": stream.kafka.topic,
        },
        logger=logging.getLogger("test"),
    )
    producer.init_transactions(30)
    producer.begin_transaction()
    for record in fleet.round():
        producer.produce(stream.kafka.topic, encode(record), record.node_id.encode())
    producer.commit_transaction(30)
    # The broker writes the end after it has promised to.
    places = [TopicPartition(stream.kafka.topic, number) for number in range(stream.kafka.partitions)]

    def ends():
        answers = admin.list_offsets(dict.fromkeys(places, OffsetSpec.latest()))
        return sum(answer.result(20).offset for answer in answers.values())

    wait_for(lambda: ends() == 3, 20)
    stream.send(*fleet.round())
    stream.flush()
    start()
    wait_for(lambda: stream.count("scrapes") == 2, 30)
    assert stream.query("SELECT reason, from_offset, to_offset FROM stream_gaps") == [("missing", 2, 3)]
    assert "reading again" in caplog.text
    assert any(
        record.levelno == logging.ERROR and "missing: offsets 2 to 3" in record.message for record in caplog.records
    )


def test_a_topic_made_anew_is_read_from_its_start(stream, admin, make_fleet, start, wait_for):
    fleet = make_fleet(nodes=1, gpus=1, start=datetime.now(UTC) - timedelta(minutes=10))
    for _ in range(3):
        stream.send(*fleet.round())
    stream.flush()
    first = start()
    wait_for(lambda: stream.taken_in() == 6, 30)
    first.stop()
    admin.delete_topics([stream.kafka.topic])[stream.kafka.topic].result(20)
    wait_for(lambda: stream.kafka.topic in ensure_topics(stream.kafka), 20)
    for _ in range(4):
        stream.send(*fleet.round())
    stream.flush()
    start()
    wait_for(lambda: stream.count("scrapes") == 7, 30)
    assert stream.query("SELECT reason, from_offset, to_offset FROM stream_gaps ORDER BY from_offset DESC LIMIT 1") == [
        ("rebuilt", 6, 0)
    ]


def test_a_topic_made_anew_under_a_running_worker_is_read_from_its_start(stream, admin, make_fleet, start, wait_for):
    fleet = make_fleet(nodes=1, gpus=1, start=datetime.now(UTC) - timedelta(minutes=20))
    for _ in range(3):
        stream.send(*fleet.round())
    stream.flush()
    start()
    wait_for(lambda: stream.taken_in() == 6, 30)
    admin.delete_topics([stream.kafka.topic])[stream.kafka.topic].result(20)
    wait_for(lambda: stream.kafka.topic in ensure_topics(stream.kafka), 20)
    # More than the old topic had: the old offset lies within the new log, where nothing tells that it is another one.
    for _ in range(8):
        stream.send(*fleet.round())
    stream.flush()
    wait_for(lambda: stream.count("scrapes") == 11, 60, lambda: stream.query("SELECT * FROM stream_gaps"))
    assert set(stream.query("SELECT reason, to_offset FROM stream_gaps")) == {("rebuilt", 0)}


def test_an_engine_whose_place_in_the_group_was_given_to_another_ends(stream, make_fleet, start, wait_for):
    place = {"instance_id": "the-one", "group_id": f"of-one-place-{os.urandom(4).hex()}"}
    first = start(**place)
    stream.send(*make_fleet(nodes=1, gpus=1).round())
    wait_for(lambda: stream.taken_in() == 2, 30)
    start(**place)
    wait_for(lambda: first.error is not None, 60)
    with pytest.raises(ConsumerFailed, match="fenced"):
        first.stop()
    first.error = None
