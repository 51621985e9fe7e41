"""Messages that cannot be taken in, sent as they came to the dead-letter topic, with the error and their place.

They are delivered before the offsets behind them are committed: at least once, each with the same headers.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from gpu_telemetry.kafka import client_configuration
from gpu_telemetry.records import AnyRecord, GpuRecord, Identifier, Moment, ScrapeRecord
from gpu_telemetry.settings import KafkaSettings

_log = logging.getLogger(__name__)

_DELIVERY_DEADLINE_SECONDS: Final = 20.0
_LOGGED_ERROR_LENGTH: Final = 300
_LOGGED_AT_ONCE: Final = 5


class NotDelivered(RuntimeError):
    """Kafka did not take a message in time; to be tried again."""


class DeadLetter(msgspec.Struct, frozen=True):
    """One message that cannot be taken in. `reason` is a counter's label, `error` says what was expected and where."""

    message: Message
    reason: str
    error: str

    @property
    def headers(self) -> list[tuple[str, str | bytes | None]]:
        """Where it came from and what is wrong with it."""
        return [
            ("error", self.error.encode("utf-8", "replace")),
            ("reason", self.reason.encode()),
            ("topic", (self.message.topic() or "").encode()),
            ("partition", str(self.message.partition()).encode()),
            ("offset", str(self.message.offset()).encode()),
            ("timestamp", str(self.message.timestamp()[1]).encode()),
        ]


class Origin(msgspec.Struct):
    """What can still be known of a message that is no valid record."""

    node_id: Identifier
    collected_at: Moment
    kind: str = "gpu"


_origin_decoder = msgspec.json.Decoder(Origin)


def origin_of(message: Message, record: AnyRecord | None) -> Origin | None:
    """The node and the time of a dead letter, if they can be known: the ledger counts it there."""
    if isinstance(record, GpuRecord | ScrapeRecord):
        return Origin(record.node_id, record.collected_at, "gpu" if isinstance(record, GpuRecord) else "scrape")
    value = message.value()
    if not isinstance(value, bytes):
        return None
    try:
        origin = _origin_decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return origin if "\0" not in origin.node_id else None


def make_producer(kafka: KafkaSettings, client_id: str) -> Producer:
    """The worker's producer, for dead letters and for silence: keys go where the bridge's producer sends them."""
    return Producer(
        client_configuration(
            kafka,
            client_id=client_id,
            enable_idempotence=True,
            acks="all",
            partitioner="murmur2_random",
            linger_ms=5,
            message_timeout_ms=int(_DELIVERY_DEADLINE_SECONDS * 1000),
            # A dead letter is the message and its headers.
            message_max_bytes=2 * 1024**2,
        ),
        logger=_log,
    )


class DeadLetterPublisher:
    """Sends dead letters and waits until Kafka has them."""

    def __init__(self, producer: Producer, topic: str) -> None:
        self._producer = producer
        self._topic = topic

    def deliver(self, letters: Sequence[DeadLetter]) -> None:
        """Deliver all of them.

        Raises:
            NotDelivered: Kafka did not take one of them; some may have been delivered.
        """
        failures: list[KafkaError] = []
        left = len(letters)

        def answered(error: KafkaError | None, _message: Message) -> None:
            nonlocal left
            left -= 1
            if error is not None:
                failures.append(error)

        for number, letter in enumerate(letters):
            self._send(letter, answered)
            if number < _LOGGED_AT_ONCE:
                _tell(letter)
        if len(letters) > _LOGGED_AT_ONCE:
            _log.warning("and %d dead letters more", len(letters) - _LOGGED_AT_ONCE)
        self._producer.flush(_DELIVERY_DEADLINE_SECONDS)
        if failures:
            raise NotDelivered(f"{self._topic}: {failures[0].str()}")
        if left:
            raise NotDelivered(f"{self._topic}: no answer within {_DELIVERY_DEADLINE_SECONDS:g} s")

    def _send(self, letter: DeadLetter, answered: Callable[[KafkaError | None, Message], None]) -> None:
        value, key = letter.message.value(), letter.message.key()
        try:
            self._producer.produce(self._topic, value, key, headers=letter.headers, on_delivery=answered)
        except BufferError:
            # A whole queue of them: let it run empty first.
            self._producer.flush(_DELIVERY_DEADLINE_SECONDS)
            try:
                self._producer.produce(self._topic, value, key, headers=letter.headers, on_delivery=answered)
            except BufferError as error:
                raise NotDelivered(f"{self._topic}: the queue is full") from error
        except KafkaException as error:
            raise NotDelivered(f"{self._topic}: {error.args[0].str()}") from error


def _tell(letter: DeadLetter) -> None:
    _log.warning(
        "Dead letter from %s [%s] offset %s: %s: %s",
        letter.message.topic(),
        letter.message.partition(),
        letter.message.offset(),
        letter.reason,
        letter.error[:_LOGGED_ERROR_LENGTH],
    )
