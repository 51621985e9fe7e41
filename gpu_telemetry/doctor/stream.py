"""The checks of Kafka: its reach, the topics, how far behind the alert engine is, and the dead letters."""

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Final, NamedTuple

import psycopg
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from psycopg import Connection

from gpu_telemetry import database
from gpu_telemetry.clock import Clock, to_milliseconds
from gpu_telemetry.dead_letters import DeadLetterTopic
from gpu_telemetry.doctor.finding import Finding, ok, unchecked, wrong
from gpu_telemetry.kafka import TopicError, answer, client_configuration, verify_topics
from gpu_telemetry.settings import DatabaseSettings, KafkaSettings

# An alert engine that is well takes a record in within a second or two.
_STUCK_AFTER: Final = timedelta(seconds=30)
_RECENT: Final = timedelta(hours=2)
_MOST_LETTERS: Final = 1000


def kafka_findings(
    kafka: KafkaSettings, settings: DatabaseSettings, clock: Clock, *, most_lag: int, timeout_seconds: float
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
        with database.connect(settings, "gpu-telemetry doctor", autocommit=True) as connection:
            stream = _Stream(client, kafka.topic, partitions, timeout_seconds, connection, clock)
            yield _lag(stream.look, most_lag)
    except psycopg.Error:
        yield unchecked("lag", "database and schema")
    except KafkaException as error:
        yield wrong("lag", f"cannot be told: {error.args[0].str()}", "look at Kafka's log")
    try:
        yield _dead_letters(kafka, clock, timeout_seconds)
    except (TopicError, KafkaException) as error:
        yield wrong("dead letters", f"cannot be read: {error}", "look at the rights of this user in Kafka")


class _Partition(NamedTuple):
    """A partition at one look; offsets.

    `place` is where it is read on (None: nothing of it was ever taken in), `waits_from` its first record that came
    within the last `_STUCK_AFTER`, and `is_idle` says that nothing was taken in for as long.
    """

    start: int
    waits_from: int
    end: int
    place: int | None
    is_idle: bool

    @property
    def lag(self) -> int:
        """How many records wait."""
        return self.end - (self.start if self.place is None else self.place)

    @property
    def is_cut(self) -> bool:
        """Whether records were deleted that were not taken in."""
        return self.place is not None and self.place < self.start

    @property
    def is_another(self) -> bool:
        """Whether more was taken in than it ever held."""
        return self.place is not None and self.place > self.end

    @property
    def is_stuck(self) -> bool:
        """Whether a record has waited too long, and nothing before it is being taken in."""
        return self.is_idle and (self.start if self.place is None else self.place) < self.waits_from


class _Stream(NamedTuple):
    """The topic in Kafka, and the places in the database up to which it was taken in."""

    client: AdminClient
    topic: str
    partitions: int
    timeout_seconds: float
    connection: Connection[Any]
    clock: Clock

    def look(self) -> dict[int, _Partition]:
        """The partitions now.

        The places are read first: what is taken in meanwhile lies before an end that is read later. And the ends
        before what is recent: where nothing is, all that lies before such an end has waited.
        """
        waits_since = to_milliseconds(self.clock.now() - _STUCK_AFTER)
        places = {
            partition: (place, is_idle)
            for partition, place, is_idle in self.connection.execute(
                "SELECT partition, next_offset, clock_timestamp() - updated_at > %s FROM consumer_offsets"
                " WHERE topic = %s",
                [_STUCK_AFTER, self.topic],
            )
        }
        starts = self._offsets(OffsetSpec.earliest())  # type: ignore[no-untyped-call]
        ends = self._offsets(OffsetSpec.latest())  # type: ignore[no-untyped-call]
        recent = self._offsets(OffsetSpec.for_timestamp(waits_since))
        return {
            number: _Partition(
                start=starts[number],
                waits_from=end if recent[number] < 0 else recent[number],  # negative: none is so young
                end=end,
                place=places[number][0] if number in places else None,
                is_idle=number not in places or places[number][1],
            )
            for number, end in ends.items()
        }

    def _offsets(self, spec: OffsetSpec) -> dict[int, int]:
        wanted = {TopicPartition(self.topic, number): spec for number in range(self.partitions)}
        told: dict[TopicPartition, Any] = self.client.list_offsets(wanted, request_timeout=self.timeout_seconds)
        return {partition.partition: answer(future, self.timeout_seconds).offset for partition, future in told.items()}


def _lag(look: Callable[[], dict[int, _Partition]], most_lag: int) -> Finding:
    """How far behind the alert engine is."""
    partitions = look()
    if any(one.is_cut or one.is_another or one.is_stuck for one in partitions.values()):
        # Both sides move while they are read: what is wrong is wrong at a second look too.
        partitions = look()
    cut = [number for number, one in partitions.items() if one.is_cut]
    if cut:
        return wrong(
            "lag",
            f"partitions {_list(cut)} were cut before they could be read",
            "see `ledger`; let the topic keep more (KAFKA_RETENTION_HOURS and the size cap)",
        )
    another = [number for number, one in partitions.items() if one.is_another]
    if another:
        return wrong(
            "lag",
            f"the database stands behind the end of partitions {_list(another)}: the topic is another one than it was",
            "see `alert engine`: it reads a topic that was made anew from its start",
        )
    lag = sum(one.lag for one in partitions.values())
    stuck = [number for number, one in partitions.items() if one.is_stuck]
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


def _dead_letters(kafka: KafkaSettings, clock: Clock, timeout_seconds: float) -> Finding:
    topic = DeadLetterTopic(kafka, timeout_seconds=timeout_seconds)
    try:
        since = clock.now() - _RECENT
        letters = topic.newest_first(lambda letter: letter.at >= since, _MOST_LETTERS, since=since)
    finally:
        topic.close()
    if letters:
        reasons = Counter(letter.reason for letter in letters).most_common()
        more = "at least " if len(letters) == _MOST_LETTERS else ""
        said = ", ".join(f"{count} {reason}" for reason, count in reasons)
        return wrong("dead letters", f"{more}{said} in the last 2 hours", "see `gpu-telemetry dlq list --since 2h`")
    return ok("dead letters", "none in the last 2 hours")


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))
