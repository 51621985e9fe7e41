"""Scrapes to Kafka: a bounded queue of whole scrapes before a small one of librdkafka, and every loss counted."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message

from exporter_bridge.blocking import in_daemon_thread
from exporter_bridge.metrics import BridgeMetrics
from exporter_bridge.producer import (
    IN_FLIGHT_BYTES,
    IN_FLIGHT_MESSAGES,
    make_producer,
    verify_records_topic,
)
from exporter_bridge.records import Scrape
from gpu_telemetry.kafka import TopicError
from gpu_telemetry.records import DropCount
from gpu_telemetry.settings import KafkaSettings

_log = logging.getLogger(__name__)

# How often waiting scrapes are handed over and delivery reports are served: what a record waits at most.
_TICK_SECONDS: Final = 0.05
_CLOSING_TICK_SECONDS: Final = 0.01
# One call to librdkafka: about a millisecond of the loop's time.
_BATCH_MESSAGES: Final = 500
# A look at the topic gives up after 10 s; that Kafka does not answer is said before.
_PATIENCE_SECONDS: Final = 2.0
_VERIFY_RETRY_SECONDS: Final = (1.0, 2.0, 5.0, 10.0, 30.0)
_CLOSING_RECORD: Final = b'"kind":"scrape"'
_KIND_WITHIN: Final = 64
_REMOVAL: Final = b'"removed":true'
# How the client reports what it held when it was replaced.
_PURGED: Final = frozenset((KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT))  # noqa: SLF001 - their public names
_NAMES_SHOWN: Final = 20
_NO_DROPS: Final[DropCount] = DropCount(0, 0)


class Undelivered(NamedTuple):
    """What was left when the publisher closed."""

    scrapes: int
    gpu_records: int


class _Waiting(NamedTuple):
    scrape: Scrape
    size: int


class _Batch(NamedTuple):
    """What one call handed to librdkafka."""

    messages: int
    size: int
    scrapes: int
    gpu_records: int
    removals: list[str]


class Publisher:
    """Takes scrapes at any time and never blocks; delivers each node's in order, or counts why not.

    While Kafka cannot be reached its queue fills to `queue_scrapes` or `queue_bytes`; then whole scrapes go, oldest
    first, closing record included, but no node's removal: nothing later would tell of it. Nothing is handed to the
    client before the topic was seen: a missing topic loses nothing but time.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        metrics: BridgeMetrics,
        *,
        queue_scrapes: int,
        queue_bytes: int,
        verify: Callable[[KafkaSettings], object] | None = None,
    ) -> None:
        self._kafka = kafka
        self._metrics = metrics
        self._queue_scrapes = queue_scrapes
        self._queue_bytes = queue_bytes
        self._verify = verify or verify_records_topic
        self._queue: deque[_Waiting] = deque()
        self._queued_bytes = 0
        # Removals that a full queue went over: older than what is in it, few, and beyond its bounds.
        self._removals: deque[_Waiting] = deque()
        self._drops: dict[str, dict[str, DropCount]] = {}
        self._producer = make_producer(self._kafka, self._client_error)
        self._handed: deque[_Batch] = deque()
        self._handed_messages = 0
        self._handed_bytes = 0
        self._failed_unaccounted = [0, 0]  # messages and GPU records among those handed over
        self._topic_seen = False
        self._topic_trouble = ""
        self._fatal = False
        self._unreachable = False
        self._last_error = ""
        self.published_gpu_records = 0

    # -- what the scraper uses ------------------------------------------------------------------------------------

    def admit(self, node_id: str) -> Mapping[str, DropCount]:
        """Count this node's drops from now on; the live counts by reason, for its closing records."""
        return self._drops.setdefault(node_id, {})

    def forget(self, node_id: str) -> None:
        """Stop counting for a node that left."""
        self._drops.pop(node_id, None)

    def publish(self, scrape: Scrape) -> None:
        """Queue a scrape; if the queue is full, drop the oldest."""
        size = sum(map(len, scrape.messages))
        self._queue.append(_Waiting(scrape, size))
        self._queued_bytes += size
        while len(self._queue) > self._queue_scrapes or (
            self._queued_bytes > self._queue_bytes and len(self._queue) > 1
        ):
            oldest = self._take()
            if oldest.scrape.removal:
                self._removals.append(oldest)
            else:
                self._drop(oldest, "queue_full")

    @property
    def queued_scrapes(self) -> int:
        """Scrapes that wait in our own queue."""
        return len(self._removals) + len(self._queue)

    @property
    def queued_bytes(self) -> int:
        """Bytes of the messages that wait in our own queue."""
        return sum(waiting.size for waiting in self._removals) + self._queued_bytes

    @property
    def in_flight(self) -> int:
        """Messages that librdkafka holds."""
        return self._handed_messages

    @property
    def topic_seen(self) -> bool:
        """Whether Kafka was reached and has the topic."""
        return self._topic_seen

    # -- its own life ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look for the topic, and deliver until cancelled; `close` then delivers the rest."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look_for_topic())
            tasks.create_task(self._tell_of_waiting())
            tasks.create_task(self._deliver())

    async def close(self, deadline_seconds: float) -> Undelivered:
        """Deliver what is queued, for `deadline_seconds` at most; give what could not be delivered."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + deadline_seconds
        while (self.queued_scrapes or self._handed_messages) and loop.time() < deadline:
            more = self._step()
            await asyncio.sleep(0 if more else _CLOSING_TICK_SECONDS)
        self._account()
        left = Undelivered(
            self.queued_scrapes + sum(batch.scrapes for batch in self._handed),
            sum(waiting.scrape.gpu_records for waiting in self._queue)
            + sum(batch.gpu_records for batch in self._handed),
        )
        self._tell_of_removals()
        if left.scrapes:
            self._metrics.dropped_scrapes.add(left.scrapes, "shutdown")
            self._metrics.dropped_gpu_records.add(left.gpu_records, "shutdown")
        self._queue.clear()
        self._removals.clear()
        # Without this the client would wait for the broker for ever.
        self._producer.purge()
        return left

    async def _look_for_topic(self) -> None:
        for attempt in range(2**31):
            try:
                await in_daemon_thread(lambda: self._verify(self._kafka))
            except TopicError as error:
                if str(error) != self._topic_trouble:
                    self._topic_trouble = str(error)
                    _log.error("%s; scraping goes on, records wait", error)
            except KafkaException as error:
                self._say_unreachable(error.args[0].str())
            else:
                break
            await asyncio.sleep(_VERIFY_RETRY_SECONDS[min(attempt, len(_VERIFY_RETRY_SECONDS) - 1)])
        if self._unreachable or self._topic_trouble:
            _log.info("Kafka has the topic %s, %d scrapes waited", self._kafka.topic, self.queued_scrapes)
        self._unreachable = False
        self._topic_seen = True

    async def _tell_of_waiting(self) -> None:
        await asyncio.sleep(_PATIENCE_SECONDS)
        if not (self._topic_seen or self._topic_trouble):
            self._say_unreachable(self._last_error or "no answer yet")

    async def _deliver(self) -> None:
        while True:
            more = self._step()
            self._metrics.loop_holds.mark()
            await asyncio.sleep(0 if more else _TICK_SECONDS)

    def _step(self) -> bool:
        """Serve reports and hand one batch over; whether more could go at once."""
        self._producer.poll(0)
        self._account()
        if self._fatal:
            self._renew()
        return self._topic_seen and self._hand_over()

    # -- handing over -----------------------------------------------------------------------------------------------

    def _hand_over(self) -> bool:
        messages: list[dict[str, Any]] = []
        removals: list[str] = []
        scrapes = gpu_records = size = 0
        while (
            (self._removals or self._queue)
            and len(messages) < _BATCH_MESSAGES
            and self._handed_messages + len(messages) < IN_FLIGHT_MESSAGES
            and self._handed_bytes + size < IN_FLIGHT_BYTES
        ):
            waiting = self._removals.popleft() if self._removals else self._take()
            if waiting.scrape.removal:
                removals.append(waiting.scrape.node_id)
            key = waiting.scrape.node_id.encode()
            messages += [{"value": value, "key": key} for value in waiting.scrape.messages]
            scrapes += 1
            gpu_records += waiting.scrape.gpu_records
            size += waiting.size
        if not messages:
            return False
        self._producer.produce_batch(self._kafka.topic, messages, on_delivery=self._report)
        self._handed.append(_Batch(len(messages), size, scrapes, gpu_records, removals))
        self._handed_messages += len(messages)
        self._handed_bytes += size
        for message in messages:
            # The only way in which the client tells of a message that it did not take.
            if "_error" in message:
                self._failed(message["_error"], message["key"], message["value"])
        return True

    def _account(self) -> None:
        """Take off what librdkafka no longer holds: acknowledged, or failed and reported."""
        gone = self._handed_messages - len(self._producer)
        while self._handed and self._handed[0].messages <= gone:
            batch = self._handed.popleft()
            gone -= batch.messages
            self._handed_messages -= batch.messages
            self._handed_bytes -= batch.size
            failed, failed_gpu_records = self._failed_unaccounted
            self._failed_unaccounted = [max(0, failed - batch.messages), max(0, failed_gpu_records - batch.gpu_records)]
            self.published_gpu_records += max(0, batch.gpu_records - failed_gpu_records)
            self._metrics.delivered_messages.inc(max(0, batch.messages - failed))
            if failed < batch.messages:
                self._last_error = ""
                if self._unreachable:
                    self._unreachable = False
                    _log.info("Kafka takes records again, %d scrapes wait", self.queued_scrapes)

    def _take(self) -> _Waiting:
        waiting = self._queue.popleft()
        self._queued_bytes -= waiting.size
        return waiting

    # -- losses -----------------------------------------------------------------------------------------------------

    def _drop(self, waiting: _Waiting, reason: str) -> None:
        scrape = waiting.scrape
        self._count_drop(scrape.node_id, reason, scrapes=1, gpu_records=scrape.gpu_records)

    def _count_drop(self, node_id: str, reason: str, *, scrapes: int, gpu_records: int) -> None:
        if scrapes:
            self._metrics.dropped_scrapes.add(scrapes, reason)
        if gpu_records:
            self._metrics.dropped_gpu_records.add(gpu_records, reason)
        drops = self._drops.get(node_id)
        if drops is not None:
            before = drops.get(reason, _NO_DROPS)
            drops[reason] = DropCount(before.scrapes + scrapes, before.gpu_records + gpu_records)

    def _report(self, error: KafkaError | None, message: Message) -> None:
        """A delivery report; only failures come here."""
        if error is not None:
            self._failed(error, message.key() or b"", message.value() or b"")

    def _failed(self, error: KafkaError, key: bytes, value: bytes) -> None:
        closing = _CLOSING_RECORD in value[:_KIND_WITHIN]
        self._failed_unaccounted[0] += 1
        self._failed_unaccounted[1] += not closing
        name = error.name()
        if (name,) not in self._metrics.failed_deliveries:
            _log.error(
                "Kafka did not take a record of %s: %s (said once; the metrics count)", key.decode(), error.str()
            )
        self._metrics.failed_deliveries.add(1, name)
        self._fatal = self._fatal or error.fatal() or error.code() == KafkaError._FATAL  # noqa: SLF001 - its public name
        if closing and error.code() in _PURGED and _REMOVAL in value:
            again = Scrape(key.decode(), [value], 0, {}, {}, removal=True)
            self._removals.append(_Waiting(again, len(value)))
            return
        self._count_drop(key.decode(), "delivery_failed", scrapes=int(closing), gpu_records=int(not closing))

    def _tell_of_removals(self) -> None:
        """Name the nodes whose removal is not told when this process ends: the next one does not know them."""
        nodes = [node for batch in self._handed for node in batch.removals]
        nodes += [waiting.scrape.node_id for waiting in (*self._removals, *self._queue) if waiting.scrape.removal]
        if nodes:
            more = len(nodes) - _NAMES_SHOWN
            names = ", ".join(nodes[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
            _log.error("Kafka was not told that these nodes left, do so by `gpu-telemetry nodes remove`: %s", names)

    # -- the client -------------------------------------------------------------------------------------------------

    def _client_error(self, error: KafkaError) -> None:
        """What the client says beside delivery reports; called from `poll`."""
        if error.fatal():
            _log.error("the Kafka client has to start again: %s", error.str())
            self._fatal = True
        elif error.code() != KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001 - its public name
            self._last_error = error.str()  # of one broker, or one address of it: the others may do
        elif self._topic_seen:
            self._say_unreachable(self._last_error or error.str())

    def _say_unreachable(self, cause: str) -> None:
        """Once an outage."""
        if not self._unreachable:
            self._unreachable = True
            _log.error("Kafka cannot be reached, scraping goes on, records wait: %s", cause)

    def _renew(self) -> None:
        """Start another client after an error that this one cannot get over; what it held is reported as failed."""
        self._producer.purge()
        self._producer.flush(1.0)
        self._account()
        self._handed.clear()
        self._handed_messages = self._handed_bytes = 0
        self._failed_unaccounted = [0, 0]
        self._fatal = False
        self._producer = make_producer(self._kafka, self._client_error)
