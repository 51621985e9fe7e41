"""The dead-letter topic as people look at it: what lies there, why, and the way back to where it came from."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple, Self, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from gpu_telemetry.clock import from_milliseconds, rfc3339, to_milliseconds
from gpu_telemetry.kafka import TopicError, client_configuration, producer_configuration
from gpu_telemetry.records import SilenceRecord, UndecodableRecord, decode
from gpu_telemetry.settings import KafkaSettings

# Offsets looked at in one step backwards.
_STEP: Final = 500
# As the alert engine has it: records further ahead of the broker's clock are refused.
_CLOCK_SKEW_LIMIT: Final = timedelta(minutes=1)
_LARGEST_MESSAGE_BYTES: Final = 2 * 1024**2


class Place(NamedTuple):
    """Where a dead letter lies; written PARTITION/OFFSET."""

    partition: int
    offset: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """The place that a text names; a bare number is an offset of partition 0.

        Raises:
            ValueError: it names none.
        """
        partition, slash, offset = text.partition("/")
        if not slash:
            partition, offset = "0", partition
        if not (partition.isascii() and partition.isdecimal() and offset.isascii() and offset.isdecimal()):
            raise ValueError(f"expected PARTITION/OFFSET, as in 0/17, got {text!r}")
        return cls(int(partition), int(offset))

    def __str__(self) -> str:
        return f"{self.partition}/{self.offset}"


@dataclass(frozen=True, slots=True)
class StoredLetter:
    """A dead letter as it lies in the topic: the message as it came, and the headers that say what is wrong."""

    place: Place
    at: datetime
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, str]

    @property
    def reason(self) -> str:
        """Why it could not be taken in: a counter's label."""
        return self.headers.get("reason", "unknown")

    @property
    def topic(self) -> str | None:
        """The topic that it came from; None for a message that does not say."""
        return self.headers.get("topic") or None


class DeadLetterTopic:
    """Reads the dead-letter topic without a trace: no group, no committed offsets. Close it after use."""

    def __init__(self, kafka: KafkaSettings, *, timeout_seconds: float) -> None:
        self.name = kafka.dlq_topic
        self._timeout_seconds = timeout_seconds
        self._consumer = Consumer(
            client_configuration(
                kafka,
                group_id="gpu-telemetry-dlq",
                enable_auto_commit=False,
                enable_partition_eof=True,
                auto_offset_reset="earliest",
                socket_connection_setup_timeout_ms=max(1000, int(timeout_seconds * 1000)),
            )
            | {"error_cb": lambda _error: None, "log_level": 2}  # what matters of it is raised
        )

    def close(self) -> None:
        """Let the brokers go."""
        self._consumer.close()

    def bounds(self) -> dict[int, tuple[int, int]]:
        """By partition: the first offset that is kept and the one after the last.

        Raises:
            TopicError: there is no such topic.
            KafkaException: the brokers cannot be reached.
        """
        described = self._consumer.list_topics(self.name, timeout=self._timeout_seconds).topics[self.name]
        if described.error is not None:
            if described.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise TopicError(f"topic {self.name} does not exist: run `gpu-telemetry topics ensure`")
            raise KafkaException(described.error)
        return {
            number: self._consumer.get_watermark_offsets(
                TopicPartition(self.name, number), timeout=self._timeout_seconds
            )
            for number in sorted(described.partitions)
        }

    def get(self, place: Place) -> StoredLetter | None:
        """The letter at a place; None when there is none (any more).

        Raises:
            TopicError, KafkaException: as `bounds`.
        """
        low, high = self.bounds().get(place.partition, (0, 0))
        if not low <= place.offset < high:
            return None
        found = next(self._read(place.partition, place.offset, place.offset + 1), None)
        return found if found is not None and found.place == place else None

    def oldest_first(self) -> Iterator[StoredLetter]:
        """All letters that lie there now; those that come meanwhile are left out.

        Raises:
            TopicError, KafkaException: as `bounds`.
        """
        for number, (low, high) in self.bounds().items():
            yield from self._read(number, low, high)

    def newest_first(
        self, wanted: Callable[[StoredLetter], bool], limit: int, *, since: datetime | None = None
    ) -> list[StoredLetter]:
        """The newest letters that are wanted, newest first; `since` spares reading what is older.

        Raises:
            TopicError, KafkaException: as `bounds`.
        """
        found: list[StoredLetter] = []
        bounds = self.bounds()
        if since is not None:
            bounds = {number: (self._first_since(number, since, *ends), ends[1]) for number, ends in bounds.items()}
        for number, (low, high) in bounds.items():
            count, end = 0, high
            while end > low and count < limit:
                start = max(low, end - _STEP)
                step = [letter for letter in self._read(number, start, end) if wanted(letter)]
                found += step
                count += len(step)
                end = start
        return sorted(found, key=lambda letter: (letter.at, letter.place), reverse=True)[:limit]

    def _first_since(self, number: int, since: datetime, low: int, high: int) -> int:
        asked = TopicPartition(self.name, number, to_milliseconds(since))
        (found,) = self._consumer.offsets_for_times([asked], timeout=self._timeout_seconds)
        if found.error is not None:
            raise KafkaException(found.error)
        return high if found.offset < 0 else max(low, found.offset)  # negative: none is so young

    def _read(self, number: int, start: int, end: int) -> Iterator[StoredLetter]:
        if start >= end:
            return
        self._consumer.assign([TopicPartition(self.name, number, start)])
        deadline = time.monotonic() + self._timeout_seconds
        while True:
            messages = self._consumer.consume(_STEP, 0.2)
            if messages:
                deadline = time.monotonic() + self._timeout_seconds
            elif time.monotonic() > deadline:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))  # noqa: SLF001 - its public name
            for message in messages:
                error = message.error()
                if error is not None:
                    if error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - its public name
                        return
                    raise KafkaException(error)
                letter = _letter(message)
                if letter.place.offset >= end:
                    return
                yield letter
                if letter.place.offset == end - 1:
                    return


def _letter(message: Message) -> StoredLetter:
    headers = cast("list[tuple[str, bytes | None]]", message.headers() or [])
    return StoredLetter(
        Place(message.partition() or 0, message.offset() or 0),
        from_milliseconds(message.timestamp()[1]),
        message.key(),
        message.value(),
        {name: (value or b"").decode("utf-8", "replace") for name, value in headers},
    )


def objection(letter: StoredLetter, now: datetime) -> str | None:
    """Why the letter would come to nothing again if it were put back now; None if it may be taken in this time."""
    if letter.topic is None:
        return "it does not say which topic it came from"
    try:
        record = decode(letter.value)
    except UndecodableRecord as error:
        return f"{error.reason}: {error}"
    if letter.key != record.node_id.encode("utf-8", "surrogatepass"):
        return f"key: expected the key {record.node_id!r}, which is the record's node_id"
    if b"\\u0000" in (letter.value or b"") and letter.reason == "nul":
        return "nul: a text holds the character NUL"
    if not isinstance(record, SilenceRecord) and record.collected_at > now + _CLOCK_SKEW_LIMIT:
        return f"clock_skew: its time {rfc3339(record.collected_at)} still lies ahead"
    return None


class Replayer:
    """Puts dead letters back as they came: same key, same value, where the topic's records of that key go."""

    def __init__(self, kafka: KafkaSettings, *, timeout_seconds: float) -> None:
        self._dlq_topic = kafka.dlq_topic
        self._timeout_seconds = timeout_seconds
        self._known: set[str] = set()
        self._producer = Producer(
            producer_configuration(
                kafka,
                message_max_bytes=_LARGEST_MESSAGE_BYTES,
                message_timeout_ms=int(timeout_seconds * 1000),
            )
            | {"error_cb": lambda _error: None, "log_level": 2}  # what matters of it is raised
        )

    def put_back(self, letter: StoredLetter, now: datetime) -> str:
        """Put one letter back and wait until Kafka has it; give where it lies now, TOPIC [PARTITION] at OFFSET.

        Raises:
            TopicError: the topic that it came from does not exist, or it names none.
            KafkaException: the brokers cannot be reached, or refuse.
        """
        topic = self._existing(letter.topic)
        answers: list[tuple[KafkaError | None, Message]] = []
        self._producer.produce(
            topic,
            letter.value,
            letter.key,
            headers=[
                ("replayed_from", f"{self._dlq_topic}/{letter.place}".encode()),
                ("replayed_at", rfc3339(now).encode()),
                ("replayed_reason", letter.reason.encode()),
            ],
            on_delivery=lambda error, message: answers.append((error, message)),
        )
        self._producer.flush(self._timeout_seconds + 1)
        if not answers:
            raise KafkaException(KafkaError(KafkaError._MSG_TIMED_OUT))  # noqa: SLF001 - its public name
        error, message = answers[0]
        if error is not None:
            raise KafkaException(error)
        return f"{topic} [{message.partition()}] at {message.offset()}"

    def _existing(self, topic: str | None) -> str:
        if topic is None:
            raise TopicError("the dead letter does not say which topic it came from")
        if topic not in self._known:
            if topic not in self._producer.list_topics(timeout=self._timeout_seconds).topics:
                raise TopicError(f"topic {topic}, which the dead letter came from, does not exist")
            self._known.add(topic)
        return topic
