"""The Kafka client of the publisher: its configuration, and the look at the topic before it is used."""

import logging
from collections.abc import Callable
from typing import Any, Final

from confluent_kafka import KafkaError, Producer

from gpu_telemetry.kafka import producer_configuration, verify_topics
from gpu_telemetry.settings import KafkaSettings

_log = logging.getLogger(__name__)

# What the client holds at most; the rest waits in our queue, where whole scrapes can still be dropped.
IN_FLIGHT_MESSAGES: Final = 10_000
IN_FLIGHT_BYTES: Final = 64 * 1024**2


def make_producer(kafka: KafkaSettings, on_error: Callable[[KafkaError], None]) -> Producer:
    """A client that loses nothing in silence and reports failed deliveries alone.

    Raises:
        KafkaException: a property that KAFKA_OPT_ gives is unknown or wrong.
    """
    configuration: dict[str, Any] = producer_configuration(
        kafka,
        compression_type="lz4",
        # Our own bounded queue decides what goes; what the client holds it keeps until it is delivered.
        message_timeout_ms=0,
        # A request holds one partition's records, and a request is what a broker's work goes by.
        linger_ms=150,
        # `IN_FLIGHT_*` bound what it holds; its own bounds must never be met.
        queue_buffering_max_messages=10 * IN_FLIGHT_MESSAGES,
        queue_buffering_max_kbytes=2**31 // 1024 - 1,
        log_connection_close=False,
        client_id="gpu-telemetry-bridge",
    )
    # Ours in any case: losses are counted from them.
    configuration["delivery.report.only.error"] = True
    configuration["error_cb"] = on_error
    # `on_error` tells of connections, and we say it once; the client's own lines repeat it.
    configuration["log_level"] = 2
    return Producer(configuration, logger=_log)


def verify_records_topic(kafka: KafkaSettings) -> None:
    """Check that the topic of the records is there. It blocks.

    Raises:
        TopicError: it is missing, or does not stamp with LogAppendTime.
        KafkaException: the brokers cannot be reached.
    """
    verify_topics(kafka, names=[kafka.topic])
