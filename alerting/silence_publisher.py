"""Publishes that a node is silent: wall time as a record, keyed by the node, so that a replay needs no wall."""

import logging
from functools import partial
from typing import Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from alerting.silence import NodeWatch
from gpu_telemetry.clock import rfc3339
from gpu_telemetry.records import SilenceRecord, encode

_log = logging.getLogger(__name__)

# More are told in the next round: the producer's queue is for dead letters too.
MOST_A_ROUND: Final = 500


class SilencePublisher:
    """Sends silence records; one that Kafka did not take is said again later."""

    def __init__(self, producer: Producer, topic: str) -> None:
        self._producer = producer
        self._topic = topic

    def publish(self, record: SilenceRecord, watch: NodeWatch) -> None:
        """Tell a node's silence, and note in `watch` that it is told."""
        watch.told(record.node_id)
        try:
            self._producer.produce(
                self._topic,
                encode(record),
                record.node_id.encode(),
                on_delivery=partial(self._answered, watch, record.node_id),
            )
        except (BufferError, KafkaException) as error:
            watch.told(record.node_id, told=False)
            _log.warning("%s: its silence was not published: %s", record.node_id, error)
        else:
            _log.warning("%s is silent since %s", record.node_id, rfc3339(record.last_collected_at))

    def poll(self) -> None:
        """Take the broker's answers in."""
        self._producer.poll(0)

    @staticmethod
    def _answered(watch: NodeWatch, node_id: str, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            _log.warning("%s: its silence was not published: %s", node_id, error.str())
            watch.told(node_id, told=False)
