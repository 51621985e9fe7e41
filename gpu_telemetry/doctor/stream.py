"""The checks of Kafka: its reach, the topics, how far behind the alert engine is, and the dead letters."""

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

import psycopg
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from gpu_telemetry import database
from gpu_telemetry.clock import SystemClock
from gpu_telemetry.dead_letters import DeadLetterTopic
from gpu_telemetry.doctor.finding import Finding, ok, unchecked, wrong
from gpu_telemetry.kafka import TopicError, client_configuration, verify_topics
from gpu_telemetry.settings import DatabaseSettings, KafkaSettings

# An alert engine that is well commits several times a second while there is anything to take in.
_STUCK_AFTER: Final = timedelta(seconds=30)
_RECENT: Final = timedelta(hours=2)
_MOST_LETTERS: Final = 1000


def kafka_findings(
    kafka: KafkaSettings, settings: DatabaseSettings, *, most_lag: int, timeout_seconds: float
) -> Iterator[Finding]:
    """The findings about Kafka, one after another; `most_lag` is in records."""
    configuration: dict[str, Any] = dict(client_configuration(kafka))
    # What matters of the client's own errors is a finding.
    configuration |= {"error_cb": lambda _error: None, "log_level": 2}
    try:
        client = AdminClient(configuration)
        cluster = client.list_topics(timeout=timeout_seconds)
    except KafkaException as error:
        yield wrong(
            "kafka",
            f"{kafka.bootstrap_servers}: {error.args[0].str()}",
            "start Kafka, or set KAFKA_BOOTSTRAP_SERVERS to where it is",
        )
        yield unchecked("topics", "kafka")
        yield unchecked("lag", "kafka")
        yield unchecked("dead letters", "kafka")
        return
    count = len(cluster.brokers)
    yield ok("kafka", "1 broker answers" if count == 1 else f"{count} brokers answer")
    try:
        partitions = verify_topics(kafka, timeout_seconds=timeout_seconds)
    except TopicError as error:
        said, _, advice = str(error).partition(": ")
        yield wrong("topics", said, advice)
        yield unchecked("lag", "topics")
        yield unchecked("dead letters", "topics")
        return
    except KafkaException as error:
        yield wrong("topics", f"cannot be looked at: {error.args[0].str()}", "look at the rights of this user in Kafka")
        yield unchecked("lag", "topics")
        yield unchecked("dead letters", "topics")
        return
    yield ok("topics", f"{kafka.topic} with {partitions} partitions, and {kafka.dlq_topic}")
    try:
        yield _lag(client, kafka, settings, partitions, most_lag=most_lag, timeout_seconds=timeout_seconds)
    except psycopg.Error:
        yield unchecked("lag", "database and schema")
    except KafkaException as error:
        yield wrong("lag", f"cannot be told: {error.args[0].str()}", "look at Kafka's log")
    try:
        yield _dead_letters(kafka, timeout_seconds)
    except (TopicError, KafkaException) as error:
        yield wrong("dead letters", f"cannot be read: {error}", "look at the rights of this user in Kafka")


def _lag(
    client: AdminClient,
    kafka: KafkaSettings,
    settings: DatabaseSettings,
    partitions: int,
    *,
    most_lag: int,
    timeout_seconds: float,
) -> Finding:
    ends = _offsets(client, kafka.topic, partitions, OffsetSpec.latest(), timeout_seconds)  # type: ignore[no-untyped-call]
    starts = _offsets(client, kafka.topic, partitions, OffsetSpec.earliest(), timeout_seconds)  # type: ignore[no-untyped-call]
    with database.connect(settings, "gpu-telemetry doctor") as connection:
        places: dict[int, tuple[int, timedelta]] = {
            partition: (next_offset, age)
            for partition, next_offset, age in connection.execute(
                "SELECT partition, next_offset, clock_timestamp() - updated_at FROM consumer_offsets WHERE topic = %s",
                [kafka.topic],
            )
        }
    cut = sorted(number for number, (place, _) in places.items() if number in starts and place < starts[number])
    if cut:
        return wrong(
            "lag",
            f"partitions {_list(cut)} were cut before they could be read",
            "see `ledger`; let the topic keep more (KAFKA_RETENTION_HOURS and the size cap)",
        )
    ahead = sorted(number for number, (place, _) in places.items() if number in ends and place > ends[number])
    if ahead:
        return wrong(
            "lag",
            f"the database stands behind the end of partitions {_list(ahead)}: the topic is another one than it was",
            "see `alert engine`: it reads a topic that was made anew from its start",
        )
    lags = {
        number: end - places[number][0] if number in places else end - starts[number] for number, end in ends.items()
    }
    lag = sum(lags.values())
    stuck = sorted(
        number for number, count in lags.items() if count and (number not in places or places[number][1] > _STUCK_AFTER)
    )
    if stuck:
        return wrong(
            "lag",
            f"{lag} records wait, and nothing is taken in from partitions {_list(stuck)}",
            "see `alert engine`: does it run, and is it assigned these partitions?",
        )
    if lag > most_lag:
        return wrong(
            "lag", f"{lag} records wait, over {most_lag}", "wait if it is catching up; else run more alert engines"
        )
    return ok("lag", f"{lag} records wait")


def _dead_letters(kafka: KafkaSettings, timeout_seconds: float) -> Finding:
    topic = DeadLetterTopic(kafka, timeout_seconds=timeout_seconds)
    try:
        since = SystemClock().now() - _RECENT
        letters = topic.newest_first(lambda letter: letter.at >= since, _MOST_LETTERS, since=since)
    finally:
        topic.close()
    if letters:
        reasons = Counter(letter.reason for letter in letters).most_common()
        more = "at least " if len(letters) == _MOST_LETTERS else ""
        said = ", ".join(f"{count} {reason}" for reason, count in reasons)
        return wrong("dead letters", f"{more}{said} in the last 2 hours", "see `gpu-telemetry dlq list --since 2h`")
    return ok("dead letters", "none in the last 2 hours")


def _offsets(
    client: AdminClient, topic: str, partitions: int, spec: OffsetSpec, timeout_seconds: float
) -> dict[int, int]:
    wanted = {TopicPartition(topic, number): spec for number in range(partitions)}
    answers: dict[TopicPartition, Any] = client.list_offsets(wanted, request_timeout=timeout_seconds)
    return {partition.partition: answer.result(timeout_seconds).offset for partition, answer in answers.items()}


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
