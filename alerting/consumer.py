"""The consumer group's side of the worker: which partitions it owns, and their messages in order.

An assigned partition stands still until it is placed: led to the offset that the database holds. The broker's own
committed offsets are a hint for tools that show lag, and nothing here reads them.
"""

import logging
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any, Final, cast

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec

from alerting.partition import Gap, LogIdentity, OwnedPartition
from alerting.settings import AlertingSettings
from gpu_telemetry.kafka import admin_client, client_configuration
from gpu_telemetry.settings import KafkaSettings

_log = logging.getLogger(__name__)

_REQUEST_TIMEOUT_SECONDS: Final = 10.0
_HINT_INTERVAL_SECONDS: Final = 1.0
# What librdkafka may fetch ahead for each partition: a few batches, however far behind the worker is.
_FETCHED_AHEAD_KIB: Final = 16 * 1024
# A fetch waits for so much, up to so long: one for every few messages that arrive costs the broker more than storing
# them did, and a batch waits as long anyway.
_FETCH_BYTES: Final = 1024**2
_FETCH_WAIT_MS: Final = 100


class ConsumerFailed(RuntimeError):
    """The consumer cannot go on: the group has given its instance id to another, for example."""


class RecordStream:
    """The records topic as this worker reads it. All methods are called by the worker's one thread."""

    def __init__(self, kafka: KafkaSettings, settings: AlertingSettings) -> None:
        self._topic = kafka.topic
        self.partitions: dict[int, OwnedPartition] = {}
        self._admin: AdminClient = admin_client(kafka)
        self._hinted_at = float("-inf")
        self._held = False
        configuration = client_configuration(
            kafka,
            group_id=settings.group_id,
            enable_auto_commit=False,
            enable_auto_offset_store=False,
            auto_offset_reset="error",
            partition_assignment_strategy="cooperative-sticky",
            queued_max_messages_kbytes=_FETCHED_AHEAD_KIB,
            fetch_min_bytes=_FETCH_BYTES,
            fetch_wait_max_ms=_FETCH_WAIT_MS,
        )
        if settings.instance_id is not None:
            configuration["group.instance.id"] = settings.instance_id
        self._consumer = Consumer(
            configuration | {"error_cb": _client_error, "on_commit": _hint_answered, "client.id": settings.worker_id},
            logger=_log,
        )

    def subscribe(self) -> None:
        """Join the group; partitions come and go while `take` is called."""
        self._consumer.subscribe(
            [self._topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked
        )

    def close(self) -> None:
        """Leave the group (with static membership, keep the place in it)."""
        self._consumer.close()

    @property
    def placed(self) -> list[OwnedPartition]:
        """The partitions that are being read, in order."""
        return [part for _, part in sorted(self.partitions.items()) if part.position is not None]

    @property
    def unplaced(self) -> list[OwnedPartition]:
        """The partitions that wait to be led to their offset, in order."""
        return [part for _, part in sorted(self.partitions.items()) if part.position is None]

    def take(self, most: int, seconds: float) -> list[tuple[OwnedPartition, list[Message]]]:
        """The next messages of the placed partitions: at most so many, waiting at most so long.

        Raises:
            ConsumerFailed: the consumer cannot go on.
        """
        runs: dict[int, list[Message]] = {}
        number = -1
        run: list[Message] = []
        for message in self._consumer.consume(most, seconds):
            if message.error() is not None:
                self._message_error(message)
                continue
            if message.partition() != number:
                number = cast("int", message.partition())
                run = runs.setdefault(number, [])
            run.append(message)
        taken = []
        for number, run in runs.items():
            part = self.partitions.get(number)
            if part is not None and part.position is not None and (kept := self._contiguous(part, run)):
                taken.append((part, kept))
        return taken

    def _contiguous(self, part: OwnedPartition, run: list[Message]) -> list[Message]:
        """The messages that follow on the partition's position; a hole is read once more before it is believed."""
        assert part.position is not None
        expected = part.position.next_offset
        if run[0].offset() == expected and run[-1].offset() == expected + len(run) - 1:
            return run
        kept: list[Message] = []
        for message in run:
            offset = cast("int", message.offset())
            if offset < expected:
                continue  # taken in before: the rest of a fetch from before a seek
            if offset > expected and part.rewound_to != expected:
                _log.warning(
                    "%s [%d]: offset %d came after %d, reading again", self._topic, part.number, offset, expected
                )
                part.rewound_to = expected
                self.start(part, expected)
                break
            if offset > expected:
                _log.error("%s [%d]: missing: offsets %d to %d", self._topic, part.number, expected, offset)
                part.holes.append(Gap("missing", expected, offset))
            kept.append(message)
            expected = offset + 1
        return kept

    def hold(self) -> None:
        """Stop fetching, stay in the group: `take` goes on being called, and gives nothing."""
        self._held = True
        self._consumer.pause([TopicPartition(self._topic, number) for number in self.partitions])

    def release(self) -> None:
        """Fetch again, if it was stopped."""
        if not self._held:
            return
        self._held = False
        self._consumer.resume([TopicPartition(self._topic, part.number) for part in self.placed])

    def log_identity(self) -> LogIdentity:
        """The cluster's and the topic's ids.

        Raises:
            KafkaException: the brokers cannot be reached, or the topic is gone.
        """
        cluster = self._admin.list_topics(self._topic, timeout=_REQUEST_TIMEOUT_SECONDS)
        described = self._admin.describe_topics(
            TopicCollection([self._topic]), request_timeout=_REQUEST_TIMEOUT_SECONDS
        )
        topic = described[self._topic].result()  # the request has its time-out
        return LogIdentity(cluster.cluster_id or "", str(topic.topic_id))

    def bounds(self, part: OwnedPartition) -> tuple[int, int]:
        """The first offset that the log holds and the one after its last.

        Raises:
            KafkaException: the brokers cannot be reached.
        """
        partition = TopicPartition(self._topic, part.number)
        low, high = self._consumer.get_watermark_offsets(partition, timeout=_REQUEST_TIMEOUT_SECONDS)
        return low, high

    def start(self, part: OwnedPartition, offset: int) -> bool:
        """Lead the consumer to the offset and fetch from there; False when it is not ready for it yet."""
        place = TopicPartition(self._topic, part.number, offset)
        try:
            self._consumer.seek(place)
        except KafkaException:
            # Not fetching at all: just assigned, or stopped by an offset that was not there. Begin it anew.
            try:
                self._consumer.incremental_unassign([place])
                self._consumer.incremental_assign([place])
                self._consumer.pause([place])
            except KafkaException as error:
                _log.debug("%s [%d]: not ready to be read from %d: %s", self._topic, part.number, offset, error)
                return False
        if not self._held:
            self._consumer.resume([place])
        return True

    def restart(self, parts: Iterable[OwnedPartition]) -> None:
        """Forget where these partitions stood; they wait to be placed anew."""
        for part in parts:
            part.forget()
            self._consumer.pause([TopicPartition(self._topic, part.number)])

    def hint(self, now: float, *, force: bool = False) -> None:
        """Tell the group the positions, for tools that show lag; at most once a second, and without waiting."""
        if not force and now - self._hinted_at < _HINT_INTERVAL_SECONDS:
            return
        offsets = [
            TopicPartition(self._topic, part.number, part.position.next_offset)
            for part in self.placed
            if part.position is not None
        ]
        if not offsets:
            return
        self._hinted_at = now
        try:
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            _log.debug("offsets for lag tools were not taken: %s", error)

    def _assigned(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        for partition in assigned:
            partition.offset = OFFSET_BEGINNING  # stands still there until it is placed
            self.partitions[partition.partition] = OwnedPartition(partition.partition)
        consumer.incremental_assign(assigned)
        consumer.pause(assigned)
        if assigned:
            _log.info("Assigned partitions %s of %s", _numbers(assigned), self._topic)

    def _revoked(self, consumer: Consumer, revoked: list[TopicPartition]) -> None:
        for partition in revoked:
            dropped = self.partitions.pop(partition.partition, None)
            if dropped is not None:
                dropped.forget()
        consumer.incremental_unassign(revoked)
        if revoked:
            _log.info("Gave up partitions %s of %s", _numbers(revoked), self._topic)

    def _message_error(self, message: Message) -> None:
        error = message.error()
        assert error is not None
        # What ends a consumer comes as a message whose error does not call itself fatal.
        if error.fatal() or error.code() == KafkaError._FATAL:  # noqa: SLF001 - its public name
            raise ConsumerFailed(f"{self._topic}: {error.str()}")
        number = message.partition()
        if error.code() == KafkaError._AUTO_OFFSET_RESET and number in self.partitions:  # noqa: SLF001 - its public name
            _log.error("%s [%d]: offset %s is not in the log any more", self._topic, number, message.offset())
            self.restart([self.partitions[number]])
        else:
            _log.warning("%s [%s]: %s", self._topic, number, error.str())


def _numbers(partitions: Iterable[TopicPartition]) -> str:
    return ", ".join(str(number) for number in sorted(partition.partition for partition in partitions))


def _client_error(error: KafkaError) -> None:
    # Losing brokers is librdkafka's to mend; that it could not for a while shows in the log and in the lag.
    _log.warning("Kafka: %s", error.str())


def _hint_answered(error: KafkaError | None, _partitions: list[TopicPartition]) -> None:
    if error is not None:
        # Expected while the group rebalances; the database holds the offsets that count.
        _log.debug("offsets for lag tools were not taken: %s", error.str())


class LogEnds:
    """Where each partition's log ended at a moment that has passed: asked of the broker without waiting for it."""

    def __init__(self, kafka: KafkaSettings, *, every_seconds: float = 1.0) -> None:
        self._topic = kafka.topic
        self._admin = admin_client(kafka)
        self._every_seconds = every_seconds
        self._asked_at = float("-inf")
        self._futures: dict[TopicPartition, Future[Any]] = {}

    def poll(self, numbers: Iterable[int], now: float) -> tuple[float, dict[int, int]] | None:
        """The time of asking and the ends that the broker told, once it has; asks again when that is due.

        A broker that does not answer tells nothing, so nobody counts as caught up meanwhile.
        """
        answer = None
        if self._futures and all(future.done() for future in self._futures.values()):
            ends = {}
            for partition, future in self._futures.items():
                try:
                    ends[partition.partition] = future.result().offset
                except KafkaException as error:
                    _log.debug("%s [%d]: no log end: %s", self._topic, partition.partition, error)
            answer = (self._asked_at, ends)
            self._futures = {}
        if not self._futures and now - self._asked_at >= self._every_seconds:
            latest: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]
            wanted = {TopicPartition(self._topic, number): latest for number in numbers}
            if wanted:
                self._futures = self._admin.list_offsets(wanted, request_timeout=5.0)
                self._asked_at = now
        return answer
