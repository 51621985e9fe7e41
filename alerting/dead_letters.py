"""Messages that cannot be taken in, sent as they came to the dead-letter topic, with the error and their place.

They are delivered before the offsets behind them are committed: at least once, each with the same headers.
"""

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Final

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from gpu_telemetry.kafka import producer_configuration
from gpu_telemetry.records import Identifier, Moment
from gpu_telemetry.settings import KafkaSettings

_log = logging.getLogger(__name__)

_DELIVERY_DEADLINE_SECONDS: Final = 20.0
_LOGGED_ERROR_LENGTH: Final = 300
_LOGGED_AT_ONCE: Final = 5


# What is left of a message that the dead-letter topic does not take whole, headers aside.
_CUT_TO_BYTES: Final = (512 * 1024, 8 * 1024, 0)


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
    """What can be known of a message also where it is no valid record."""

    node_id: Identifier
    collected_at: Moment
    kind: str = "gpu"


_origin_decoder = msgspec.json.Decoder(Origin)


def origin_of(message: Message) -> Origin | None:
    """The node and the time of a dead letter, if they can be known: the ledger counts it there."""
    value = message.value()
    if not isinstance(value, bytes):
        return None
    try:
        origin = _origin_decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return origin if "\0" not in origin.node_id and is_in_calendar(origin.collected_at) else None


def is_in_calendar(moment: datetime) -> bool:
    """Whether a time lies in the years 1 to 9999 in UTC too, and not only at its own offset."""
    try:
        moment.astimezone(UTC)
    except OverflowError:
        return False
    return True


def make_producer(kafka: KafkaSettings, client_id: str) -> Producer:
    """The worker's producer, for dead letters and for silence: keys go where the bridge's producer sends them."""
    return Producer(
        producer_configuration(
            kafka,
            client_id=client_id,
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
        for letter in letters[:_LOGGED_AT_ONCE]:
            _tell(letter)
        if len(letters) > _LOGGED_AT_ONCE:
            _log.warning("and %d dead letters more", len(letters) - _LOGGED_AT_ONCE)
        too_large = self._deliver(letters, None)
        for most_bytes in _CUT_TO_BYTES:
            if too_large:
                _log.warning(
                    "%s: %d messages are too large for it, cut to %d bytes", self._topic, len(too_large), most_bytes
                )
                too_large = self._deliver(too_large, most_bytes)
        if too_large:
            raise NotDelivered(f"{self._topic}: it takes not even the headers of a dead letter")

    def _deliver(self, letters: Sequence[DeadLetter], most_bytes: int | None) -> list[DeadLetter]:
        """Deliver them, each cut to so many bytes; give those that are too large even so."""
        failures: list[KafkaError] = []
        too_large: list[DeadLetter] = []
        left = len(letters)

        def answered(letter: DeadLetter, error: KafkaError | None, _message: Message | None = None) -> None:
            nonlocal left
            left -= 1
            if error is None:
                return
            if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
                too_large.append(letter)
            else:
                failures.append(error)

        for letter in letters:
            value = letter.message.value()
            headers = letter.headers
            if most_bytes is not None and value is not None and len(value) > most_bytes:
                headers.append(("cut_from_bytes", str(len(value)).encode()))
                value = value[:most_bytes]
            try:
                self._send(value, letter.message.key(), headers, partial(answered, letter))
            except KafkaException as error:
                answered(letter, error.args[0])
        self._producer.flush(_DELIVERY_DEADLINE_SECONDS)
        if failures:
            raise NotDelivered(f"{self._topic}: {failures[0].str()}")
        if left:
            raise NotDelivered(f"{self._topic}: no answer within {_DELIVERY_DEADLINE_SECONDS:g} s")
        return too_large

    def _send(
        self,
        value: bytes | str | None,
        key: bytes | str | None,
        headers: list[tuple[str, str | bytes | None]],
        answered: Callable[[KafkaError | None, Message], None],
    ) -> None:
        try:
            self._producer.produce(self._topic, value, key, headers=headers, on_delivery=answered)
        except BufferError:
            # A whole queue of them: let it run empty first.
            self._producer.flush(_DELIVERY_DEADLINE_SECONDS)
            try:
                self._producer.produce(self._topic, value, key, headers=headers, on_delivery=answered)
            except BufferError as error:
                raise NotDelivered(f"{self._topic}: the queue is full") from error


def _tell(letter: DeadLetter) -> None:
    _log.warning(
        "Dead letter from %s [%s] offset %s: %s: %s",
        letter.message.topic(),
        letter.message.partition(),
        letter.message.offset(),
        letter.reason,
        letter.error[:_LOGGED_ERROR_LENGTH],
    )
