"""`gpu-telemetry dlq` over a real Kafka: dead letters are listed, shown, and put back as they came."""

import json
import logging
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner
from confluent_kafka import Consumer, Producer, TopicPartition

from gpu_telemetry.cli.dlq import command
from gpu_telemetry.dead_letters import Place
from gpu_telemetry.records import SCHEMA_VERSION, ScrapeRecord, encode


@pytest.fixture
def kafka(topics_in_environment):
    """The settings of both topics, created, also in the environment."""
    return topics_in_environment(partitions=3)


@pytest.fixture
def put(kafka):
    """`put(value, key, reason, **headers)`: a dead letter as the alert engine delivers it."""
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers}, logger=logging.getLogger("test"))
    count = 0

    def deliver(value, key=b"node-1", reason="invalid", error="expected something else", topic=kafka.topic, age=None):
        nonlocal count
        headers = [
            ("error", error.encode()),
            ("reason", reason.encode()),
            ("topic", topic.encode()),
            ("partition", b"2"),
            ("offset", str(100 + count).encode()),
            ("timestamp", b"1767225600000"),
        ]
        count += 1
        at = datetime.now(UTC) - (age or timedelta(0))
        producer.produce(kafka.dlq_topic, value, key, headers=headers, timestamp=int(at.timestamp() * 1000))
        assert producer.flush(20) == 0

    return deliver


def dlq(*arguments):
    result = CliRunner().invoke(command, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def good_record(node="node-1", seq=1, at=None):
    return encode(
        ScrapeRecord(
            schema_version=SCHEMA_VERSION,
            node_id=node,
            bridge_id="bridge",
            boot_id="boot",
            seq=seq,
            collected_at=at or datetime(2026, 1, 31, 12, tzinfo=UTC),
            up=True,
            gpu_records=0,
            interval_ms=30000,
        )
    )


def read_back(kafka, count):
    """What lies in the records topic, in the order of its partitions."""
    consumer = Consumer(
        {"bootstrap.servers": kafka.bootstrap_servers, "group.id": "test", "auto.offset.reset": "earliest"},
        logger=logging.getLogger("test"),
    )
    consumer.assign([TopicPartition(kafka.topic, number, 0) for number in range(3)])
    messages = []
    while len(messages) < count:
        took = consumer.consume(1, 10)  # as many as there are; of more it would wait for all
        assert took, f"{len(messages)} of {count} records came back"
        messages += took
    assert consumer.consume(1, 0.3) == [], "more came back than was said"
    consumer.close()
    return messages


def test_letters_are_listed_newest_first_with_why_and_where_from(kafka, put):
    put(b"{", reason="malformed", error="Input data was truncated")
    put(b"[]", key=None, reason="invalid")
    lines = dlq("list").output.splitlines()
    assert [line.split()[0] for line in lines] == ["0/1", "0/0"]
    assert f"malformed  {kafka.topic}[2]@100  node-1  1 B  Input data was truncated" in lines[1]
    assert " -  2 B  " in lines[0]


@pytest.mark.usefixtures("kafka")
def test_an_empty_topic_has_no_letters():
    result = dlq("list")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "no dead letters\n")


def test_letters_are_filtered_and_limited(put):
    put(b"a", reason="malformed", age=timedelta(hours=3))
    put(b"b", reason="invalid", age=timedelta(hours=2))
    put(b"c", reason="malformed", topic="elsewhere", age=timedelta(hours=1))

    def ids(*arguments):
        return [json.loads(line)["id"] for line in dlq("list", "--json", *arguments).output.splitlines()]

    assert ids() == ["0/2", "0/1", "0/0"]
    assert ids("--reason", "malformed") == ["0/2", "0/0"]
    assert ids("--topic", "elsewhere") == ["0/2"]
    assert ids("--since", "150m") == ["0/2", "0/1"]
    assert ids("--since", (datetime.now(UTC) - timedelta(minutes=90)).isoformat()) == ["0/2"]
    assert ids("--limit", "1") == ["0/2"]
    assert ids("--limit", "1", "--reason", "invalid") == ["0/1"]


def test_filters_look_back_beyond_the_newest_letters(kafka, put):
    put(b"old", reason="malformed")
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers}, logger=logging.getLogger("test"))
    for _ in range(1200):
        producer.produce(kafka.dlq_topic, b"x", headers=[("reason", b"invalid")])
    assert producer.flush(20) == 0
    assert dlq("list", "--reason", "malformed").output.startswith("0/0 ")


def test_a_letter_is_shown_with_its_headers_and_indented_json(put):
    put(b'{"kind":"gpu","node_id":"node-1"}', error="Object missing required field `seq`")
    output = dlq("show", "0/0").output
    assert "error: Object missing required field `seq`\nreason: invalid\n" in output
    assert output.endswith('\n{\n  "kind": "gpu",\n  "node_id": "node-1"\n}\n')
    assert dlq("show", "0").output == output


def test_what_is_no_json_is_shown_in_hex_and_in_part(put):
    put(b"\x1b[31m" + b"\xff" * 100)
    output = dlq("show", "0/0", "--bytes", "20").output
    assert "00000000  1b 5b 33 31 6d ff ff" in output
    assert "  .[31m..........." in output
    assert output.endswith("... 85 more; --bytes shows more\n")


def test_a_letter_without_a_value_is_shown_as_such(put):
    put(None, reason="empty")
    assert dlq("show", "0/0").output.endswith("value: none\n")


def test_nothing_of_a_letter_reaches_the_terminal_as_a_command(put):
    put('{"a":"\u009b2J"}'.encode(), key=b"\x1b[2J", error="\x1b]0;owned\x07\n0/9  forged")
    for output in (dlq("list").output, dlq("show", "0/0").output):
        assert all(char.isprintable() or char == "\n" for char in output)
    assert len(dlq("list").output.splitlines()) == 1


def test_a_place_without_a_letter_is_told_with_what_there_is(put):
    put(b"x")
    result = dlq("show", "0/7")
    assert result.exit_code == 1
    assert "there is no dead letter 0/7: of this partition" in result.stderr
    assert result.stderr.endswith("holds 0/0 to 0/0\n")


@pytest.mark.parametrize("text", ["", "x", "0/", "/1", "-1", "0/1/2", "0x1", "\u0661"])
def test_what_names_no_place_is_refused(text):
    with pytest.raises(ValueError, match="expected PARTITION/OFFSET"):
        Place.parse(text)


def test_a_letter_is_put_back_as_it_came_and_marked(kafka, put):
    value = good_record()
    put(value, reason="refused_by_database")
    result = dlq("replay", "0/0")
    assert result.exit_code == 0
    assert f"0/0: put back to {kafka.topic} [" in result.stdout
    (message,) = read_back(kafka, 1)
    assert (message.key(), message.value()) == (b"node-1", value)
    headers = dict(message.headers())
    assert headers["replayed_from"] == f"{kafka.dlq_topic}/0/0".encode()
    assert headers["replayed_reason"] == b"refused_by_database"


def test_all_are_put_back_oldest_first_and_those_that_would_fail_again_are_told_and_left(kafka, put):
    for seq in (1, 2):
        put(good_record(seq=seq), reason="refused_by_database")
    put(b"{", reason="malformed")
    put(good_record("node-2"), key=b"node-1", reason="key")
    put(good_record(at=datetime.now(UTC) + timedelta(hours=1)), reason="clock_skew")
    put(good_record(seq=3, at=datetime.now(UTC)), reason="clock_skew")
    result = dlq("replay", "--all")
    assert result.exit_code == 1
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["0/0", "0/1", "0/5"]
    assert "0/2: left, it would fail again: malformed" in result.stderr
    assert "0/3: left, it would fail again: key: expected the key 'node-2'" in result.stderr
    assert "0/4: left, it would fail again: clock_skew" in result.stderr
    assert result.stderr.endswith("3 put back, 3 left\n")
    assert [json.loads(message.value())["seq"] for message in read_back(kafka, 3)] == [1, 2, 3]


def test_those_of_one_reason_are_put_back(kafka, put):
    put(good_record(seq=1), reason="refused_by_database")
    put(good_record(seq=2), reason="clock_skew")
    assert dlq("replay", "--reason", "clock_skew").exit_code == 0
    assert [json.loads(message.value())["seq"] for message in read_back(kafka, 1)] == [2]


def test_a_dry_run_puts_nothing_back(kafka, put):
    put(good_record())
    result = dlq("replay", "--all", "--dry-run")
    assert result.stdout == f"0/0: would be put back to {kafka.topic}\n"
    put(good_record(seq=2))
    dlq("replay", "0/1")
    assert [json.loads(message.value())["seq"] for message in read_back(kafka, 1)] == [2]


def test_what_would_fail_again_is_put_back_by_force(kafka, put):
    put(b"{", key=None, reason="malformed")
    assert dlq("replay", "0/0", "--force").exit_code == 0
    (message,) = read_back(kafka, 1)
    assert (message.key(), message.value()) == (None, b"{")


def test_a_letter_from_a_topic_that_is_gone_is_told(put):
    put(good_record(), topic="gone")
    result = dlq("replay", "--all")
    assert result.exit_code == 1
    assert "topic gone, which the dead letter came from, does not exist" in result.stderr


@pytest.mark.parametrize("arguments", [[], ["--all", "--reason", "x"], ["0/0", "--all"]])
def test_it_must_be_said_what_is_to_be_put_back(arguments):
    result = dlq("replay", *arguments)
    assert result.exit_code == 2
    assert "expected IDs, --reason or --all: one of them" in result.stderr


@pytest.mark.parametrize("since", ["30000d", "999999d", "1960-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00"])
def test_since_before_there_was_kafka_is_since_ever(put, since):
    put(b"a")
    assert dlq("list", "--since", since).stdout.startswith("0/0  ")


def test_since_the_last_day_of_all_there_is_nothing(put):
    put(b"a")
    result = dlq("list", "--since", "9999-12-31T23:59:59-14:00")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "no dead letters\n")


@pytest.mark.parametrize("text", ["yesterday", "2026-01-31", "2026-01-31T12:00:00", "5y"])
def test_a_time_without_an_offset_or_unit_is_refused(text):
    result = dlq("list", "--since", text)
    assert result.exit_code == 2
    assert "expected an RFC 3339 time" in result.stderr


def test_a_missing_topic_is_told_with_what_to_run(kafka_bootstrap, monkeypatch):
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", kafka_bootstrap)
    monkeypatch.setenv("KAFKA_DLQ_TOPIC", "nowhere")
    result = dlq("list")
    assert result.exit_code == 1
    assert result.stderr == "dlq list: topic nowhere does not exist: run `gpu-telemetry topics ensure`\n"


def test_brokers_that_cannot_be_reached_are_told(monkeypatch):
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    result = dlq("list", "--timeout", "1")
    assert result.exit_code == 1
    assert result.stderr.startswith("dlq list: 127.0.0.1:1: ")
