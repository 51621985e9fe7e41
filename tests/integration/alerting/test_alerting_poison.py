"""What cannot be taken in costs itself: it goes to the dead-letter topic, all else goes on."""

import logging
from datetime import UTC, datetime, timedelta

import msgspec
import psycopg
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from alerting.engine import Engine
from alerting.store import EngineFailed
from gpu_telemetry.kafka import admin_client
from gpu_telemetry.records import encode


@pytest.fixture
def dead_letters(stream):
    """`dead_letters(n)`: the first n dead letters of the test's topic, in order."""
    consumer = Consumer({"bootstrap.servers": stream.kafka.bootstrap_servers, "group.id": "unused"})
    consumer.assign([TopicPartition(stream.kafka.dlq_topic, 0, 0)])

    def read(count):
        letters = []
        deadline = datetime.now(UTC) + timedelta(seconds=20)
        while len(letters) < count and datetime.now(UTC) < deadline:
            letters += [message for message in consumer.consume(count - len(letters), 0.2) if message.error() is None]
        return letters

    yield read
    consumer.close()


def altered(record, **changes):
    """A record's message with some of its keys changed to what a record cannot hold."""
    return msgspec.json.encode(msgspec.json.decode(encode(record)) | changes)


def test_each_kind_of_poison_is_dead_lettered_by_name_and_the_rest_of_the_batch_is_stored(
    stream, make_fleet, start, wait_for, dead_letters
):
    fleet = make_fleet(nodes=1, gpus=4)
    good, *others, closing = fleet.turn("node-1")
    later = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
    poison = [
        (b"no json", "node-1", "malformed"),
        (b'{"kind":"gpu"}', "node-1", "invalid"),
        (None, "node-1", "empty"),
        (altered(others[0], schema_version=99), "node-1", "schema_version"),
        (altered(others[0], memory_used_mib=2**31), "node-1", "invalid"),
        (altered(others[0], pcie_replay_count=2**63), "node-1", "invalid"),
        (altered(others[0], hostname="a\0b"), "node-1", "nul"),
        (altered(others[0], fields={"DCGM_FI_X": [{"labels": {"a": "\0"}, "value": 1}]}), "node-1", "nul"),
        (altered(others[0], gpu_uuid="\U0001f525" * 200), "node-1", "too_long"),
        (altered(others[0], collected_at=later), "node-1", "clock_skew"),
        (encode(others[0]), "node-2", "key"),
        (encode(others[0]), None, "key"),
    ]
    stream.send(good)
    for value, key, _ in poison:
        stream.send_raw(value, key)
    stream.send(*others, closing)
    stream.flush()
    start()
    wait_for(lambda: stream.taken_in() == len(poison) + 5, 30)
    assert stream.count("gpu_metrics") == 4
    assert stream.count("scrapes") == 1
    letters = dead_letters(len(poison))
    told = {}
    for letter in letters:
        headers = {name: value.decode() for name, value in letter.headers()}
        assert headers["topic"] == stream.kafka.topic
        assert headers["error"]
        assert int(headers["timestamp"]) > 0
        told[int(headers["partition"]), int(headers["offset"])] = (letter.value(), letter.key(), headers["reason"])
    assert len(told) == len(poison)
    as_sent = [(value, None if key is None else key.encode(), reason) for value, key, reason in poison]
    assert sorted(told.values(), key=repr) == sorted(as_sent, key=repr)
    drops = dict(stream.query("SELECT reason, sum(gpu_records)::int FROM stream_drops GROUP BY reason"))
    assert drops == {"schema_version": 1, "invalid": 2, "nul": 2, "too_long": 1, "clock_skew": 1, "key": 2}


def test_a_record_that_only_the_database_refuses_is_found_and_set_apart(
    stream, make_fleet, start, wait_for, dead_letters
):
    stream.execute("ALTER TABLE gpu_metrics ADD CONSTRAINT unlucky CHECK (temperature_celsius <> 13)")
    fleet = make_fleet(nodes=3, gpus=8)
    for turn in range(6):
        stream.send(*fleet.round({("node-1", 2): 13 if turn in {1, 4} else 97}))
    stream.flush()
    start()
    wait_for(lambda: stream.taken_in() == 6 * 3 * 9, 30)
    assert stream.count("gpu_metrics") == 6 * 3 * 8 - 2
    reasons = [dict(letter.headers())["reason"] for letter in dead_letters(2)]
    assert reasons == [b"refused_by_database"] * 2
    # A dead letter was never folded: the alert that a cool 13 °C would have ended goes on.
    assert stream.query("SELECT status, severity FROM alerts") == [("active", "critical")]
    # Two rows of the ledger where an hour ends in between.
    assert stream.query("SELECT reason, sum(gpu_records)::int FROM stream_drops GROUP BY 1") == [
        ("refused_by_database", 2)
    ]


@pytest.fixture
def dead_letters_end(stream):
    """`dead_letters_end()`: how many dead letters the test's topic was ever sent."""
    consumer = Consumer({"bootstrap.servers": stream.kafka.bootstrap_servers, "group.id": "unused"})
    yield lambda: consumer.get_watermark_offsets(TopicPartition(stream.kafka.dlq_topic, 0), timeout=10)[1]
    consumer.close()


@pytest.fixture
def failing_engine(monkeypatch):
    """`failing_engine(degrees)`: the engine has an error that a GPU of so many degrees brings out."""
    whole = Engine.fold

    def fold(engine, state, record):
        transitions = whole(engine, state, record)
        if getattr(record, "temperature_celsius", None) == failing["degrees"]:
            raise KeyError("an error of ours")
        return transitions

    failing = {}
    monkeypatch.setattr(Engine, "fold", fold)
    return lambda degrees: failing.update(degrees=degrees)


def test_a_record_that_the_engine_fails_on_costs_itself(
    stream, make_fleet, start, wait_for, dead_letters, failing_engine, caplog
):
    failing_engine(13)
    fleet = make_fleet(nodes=3, gpus=2)
    for turn in range(4):
        stream.send(*fleet.round({("node-1", 0): 13 if turn == 2 else 97}))
    stream.flush()
    start()
    wait_for(lambda: stream.taken_in() == 4 * 3 * 3, 30)
    assert stream.count("gpu_metrics") == 4 * 3 * 2 - 1
    [letter] = dead_letters(1)
    headers = dict(letter.headers())
    assert (headers["reason"], headers["error"]) == (b"engine_failed", b"KeyError: 'an error of ours'")
    assert stream.query("SELECT reason, gpu_records FROM stream_drops") == [("engine_failed", 1)]
    # What the failed attempt did to the node's state is undone: the alert still fires, once.
    assert stream.query("SELECT transition FROM alert_events ORDER BY id") == [("fired",)]
    assert "an error of ours" in caplog.text
    assert "test_alerting_poison.py" in caplog.text, "the traceback tells where"


def test_an_engine_that_fails_on_record_after_record_stops_and_loses_nothing(
    stream, make_fleet, start, wait_for, dead_letters_end, failing_engine
):
    failing_engine(50)
    stream.send(*make_fleet(nodes=1, gpus=8).round({("node-1", gpu): 50 for gpu in range(8)}))
    stream.flush()
    engine = start()
    wait_for(lambda: engine.error is not None, 30)
    assert (stream.taken_in(), dead_letters_end()) == (0, 0)
    with pytest.raises(EngineFailed, match="an error of ours"):
        engine.stop()
    engine.error = None


def test_records_beyond_retention_are_evaluated_and_counted_but_not_stored(stream, make_fleet, start, wait_for):
    fleet = make_fleet(nodes=1, gpus=2, start=datetime.now(UTC) - timedelta(days=40))
    stream.send(*fleet.round({("node-1", 0): 96}))
    stream.flush()
    start()
    wait_for(lambda: stream.taken_in() == 3, 30)
    assert stream.count("gpu_metrics") == 0
    assert stream.count("scrapes") == 0
    assert stream.query("SELECT severity, status FROM alerts") == [("critical", "active")]
    assert stream.query("SELECT reason, gpu_records, scrapes FROM stream_drops") == [("beyond_retention", 2, 1)]


def test_a_day_that_lacks_its_partition_gets_it_on_demand(stream, make_fleet, start, wait_for):
    fleet = make_fleet(nodes=1, gpus=2, start=datetime.now(UTC) - timedelta(days=9))
    stream.send(*fleet.round())
    stream.flush()
    start()
    wait_for(lambda: stream.count("gpu_metrics") == 2, 30)


def test_what_is_late_is_stored_and_changes_nothing(stream, make_fleet, start, wait_for):
    fleet = make_fleet(nodes=1, gpus=1)
    early = fleet.at
    fleet.at += timedelta(minutes=1)
    stream.send(*fleet.turn("node-1", {0: 60}))
    stream.send(*fleet.turn("node-1", {0: 99}, at=early))
    stream.flush()
    start()
    wait_for(lambda: stream.taken_in() == 4, 30)
    assert stream.count("gpu_metrics") == 2
    assert stream.count("alerts") == 0
    assert stream.query("SELECT last_heard FROM nodes") == [(fleet.at,)]


def test_poison_whose_node_or_time_no_column_can_hold_stops_nothing(stream, make_fleet, start, wait_for, dead_letters):
    fleet = make_fleet(nodes=1, gpus=1)
    record, closing = fleet.turn("node-1")
    before_all_time, after_all_time = "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"
    poison = [
        (altered(record, node_id="node\0-1"), "node\0-1", "nul"),
        (altered(record, node_id="node\0-1"), "node-1", "key"),
        (altered(record, collected_at=before_all_time), "node-1", "invalid"),
        (altered(closing, collected_at=before_all_time), "node-1", "invalid"),
        (altered(record, collected_at=after_all_time), "node-1", "invalid"),
        (altered(record, collected_at=after_all_time), "node-2", "key"),
        (altered(record, collected_at=after_all_time, memory_used_mib=2**31), "node-1", "invalid"),
        (altered(closing, changed_at=after_all_time), "node-1", "invalid"),
        (altered(closing, changed_at=before_all_time), "node-1", "invalid"),
    ]
    for value, key, _ in poison:
        stream.send_raw(value, key)
    stream.send(record, closing)
    stream.flush()
    first = start()
    wait_for(lambda: stream.taken_in() == len(poison) + 2, 30)
    reasons = [dict(letter.headers())["reason"].decode() for letter in dead_letters(len(poison))]
    assert sorted(reasons) == sorted(reason for _, _, reason in poison)
    first.stop()
    # What was stored can be read back: another worker goes on with the node.
    stream.send(*fleet.turn("node-1", at=fleet.at + fleet.interval))
    stream.flush()
    start()
    wait_for(lambda: stream.count("scrapes") == 2, 30)


def test_a_dead_letter_larger_than_its_topic_takes_is_cut_and_stops_nothing(
    stream, make_fleet, start, wait_for, dead_letters
):
    # As long as the records' topic takes, so that with its headers it is longer than a topic of the same limit does.
    whole = b"x" * (1024**2 - 200)
    producer = Producer(
        {"bootstrap.servers": stream.kafka.bootstrap_servers, "message.max.bytes": 2 * 1024**2},
        logger=logging.getLogger("test"),
    )
    producer.produce(stream.kafka.topic, whole, b"node-1")
    assert producer.flush(30) == 0
    first = start()
    wait_for(lambda: stream.taken_in() == 1, 40)
    [letter] = dead_letters(1)
    assert letter.value() == whole
    first.stop()
    limit = ConfigEntry("max.message.bytes", "20000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, stream.kafka.dlq_topic, incremental_configs=[limit])
    admin = admin_client(stream.kafka)
    admin.incremental_alter_configs([resource])[resource].result(20)
    stream.send_raw(b"y" * 40_000, "node-1")
    stream.send(*make_fleet(nodes=1, gpus=1).round())
    stream.flush()
    start()
    wait_for(lambda: stream.count("scrapes") == 1, 40)
    [letter] = dead_letters(1)
    headers = {name: value.decode() for name, value in letter.headers()}
    assert headers["reason"] == "malformed"
    assert headers["cut_from_bytes"] == "40000"
    assert letter.value() == b"y" * 8192


def test_a_worker_killed_between_a_dead_letters_delivery_and_its_commit_delivers_it_again_and_counts_it_once(
    stream, make_fleet, engine_process, wait_for, dead_letters
):
    fleet = make_fleet(nodes=1, gpus=1)
    record, closing = fleet.turn("node-1")
    first = engine_process(ALERTING_GROUP_ID="first")
    wait_for(lambda: stream.count("consumer_offsets") == 3, 60)
    with psycopg.connect(stream.database.url.get_secret_value()) as holder:
        holder.execute("SELECT * FROM consumer_offsets FOR UPDATE")
        stream.send_raw(altered(record, memory_used_mib=2**31), "node-1")
        stream.send(closing)
        stream.flush()
        [delivered] = dead_letters(1)
        first.kill()
        first.wait()
    assert stream.taken_in() == 0
    engine_process(ALERTING_GROUP_ID="second")
    wait_for(lambda: stream.taken_in() == 2, 60)
    [again] = dead_letters(1)
    assert again.headers() == delivered.headers()
    assert again.value() == delivered.value()
    assert stream.query("SELECT reason, gpu_records, scrapes FROM stream_drops") == [("invalid", 1, 0)]
