"""Kafka as this project uses it: client configuration, and the two topics."""

import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final, TypeVar

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from gpu_telemetry.settings import KafkaSettings

_log = logging.getLogger(__name__)

ClientOption = str | int | float | bool
Told = TypeVar("Told")

# librdkafka looks once a second which requests are over their time.
_REQUEST_ENDS_WITHIN_SECONDS: Final = 5.0


class TopicError(RuntimeError):
    """A topic is missing, or is not what the settings say; the text says what to run."""


def client_configuration(settings: KafkaSettings, **defaults: ClientOption) -> dict[str, ClientOption]:
    """A librdkafka configuration: `defaults` (underscores for dots), then the brokers, then what KAFKA_OPT_ sets.

    It can hold secrets: hand it to a client and nowhere else.
    """
    configuration: dict[str, ClientOption] = {name.replace("_", "."): value for name, value in defaults.items()}
    configuration["bootstrap.servers"] = settings.bootstrap_servers
    return configuration | settings.options()


def producer_configuration(settings: KafkaSettings, **defaults: ClientOption) -> dict[str, ClientOption]:
    """A configuration for whoever writes to the topics: nothing doubled, nothing half acknowledged, one partitioner.

    The partitioner is the Java clients', so that any producer puts a node's records into the same partition.
    """
    return client_configuration(settings, enable_idempotence=True, acks="all", partitioner="murmur2_random", **defaults)


def admin_client(settings: KafkaSettings) -> AdminClient:
    """A client for topics and their configuration."""
    return AdminClient(client_configuration(settings), logger=_log)


def answer(future: Future[Told], request_seconds: float) -> Told:
    """What the brokers answer to a request of the admin client that was given `request_seconds`.

    The client ends a request late, so whoever waits no longer than that would give up first, and with another error.

    Raises:
        KafkaException: they refuse, or do not answer in time.
    """
    try:
        return future.result(timeout=request_seconds + _REQUEST_ENDS_WITHIN_SECONDS)
    except TimeoutError:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from None  # noqa: SLF001 - its public name


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it should be; times in milliseconds, sizes in bytes a partition."""

    name: str
    partitions: int
    configuration: Mapping[str, str]


def topics(settings: KafkaSettings) -> tuple[Topic, Topic]:
    """The topic of the records and the one of the dead letters."""
    hour_ms = 3_600_000
    records = Topic(
        settings.topic,
        settings.partitions,
        {
            # The broker's own time of arrival: the worker's measure of what lies ahead of the clock.
            "message.timestamp.type": "LogAppendTime",
            "retention.ms": str(settings.retention_hours * hour_ms),
            "retention.bytes": str(settings.retention_bytes_per_partition),
            "cleanup.policy": "delete",
        },
    )
    dead_letters = Topic(
        settings.dlq_topic,
        1,
        {
            "retention.ms": str(settings.dlq_retention_hours * hour_ms),
            "cleanup.policy": "delete",
            # A dead letter is a message of the other topic and its headers.
            "max.message.bytes": str(2 * 1024**2),
        },
    )
    return records, dead_letters


def ensure_topics(settings: KafkaSettings, *, timeout_seconds: float = 30) -> list[str]:
    """Create the topics that are missing; give the names of those that were created.

    Existing topics keep their partitions and settings: growing partitions needs the drain that docs/ describe.

    Raises:
        KafkaException: the brokers cannot be reached, refuse, or do not answer in time.
    """
    client = admin_client(settings)
    wanted = [
        NewTopic(
            topic.name,
            num_partitions=topic.partitions,
            replication_factor=settings.replication_factor,
            config=dict(topic.configuration),
        )
        for topic in topics(settings)
    ]
    created = []
    for name, future in client.create_topics(wanted, request_timeout=timeout_seconds).items():
        try:
            answer(future, timeout_seconds)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
        else:
            created.append(name)
    return created


def verify_topics(settings: KafkaSettings, *, names: Iterable[str] | None = None, timeout_seconds: float = 10) -> int:
    """Check that the topics exist and that records carry the broker's time; give the records topic's partitions.

    Args:
        settings: Where Kafka is and how the topics are called.
        names: The topics to look for; both by default.
        timeout_seconds: How long the brokers may take to answer.

    Raises:
        TopicError: a topic is missing or the records topic does not stamp with LogAppendTime.
        KafkaException: the brokers cannot be reached, or do not answer in time.
    """
    client = admin_client(settings)
    known = client.list_topics(timeout=timeout_seconds).topics
    for name in names if names is not None else [topic.name for topic in topics(settings)]:
        if name not in known:
            raise TopicError(f"topic {name} does not exist: run `gpu-telemetry topics ensure`")
    resource = ConfigResource(ResourceType.TOPIC, settings.topic)
    answers = client.describe_configs([resource], request_timeout=timeout_seconds)
    stamped = answer(answers[resource], timeout_seconds)["message.timestamp.type"].value
    if stamped != "LogAppendTime":
        raise TopicError(
            f"topic {settings.topic} has message.timestamp.type={stamped}, expected LogAppendTime: "
            "set it, or delete the topic and run `gpu-telemetry topics ensure`"
        )
    return len(known[settings.topic].partitions)
