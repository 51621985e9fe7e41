"""Whether the log that is read is still the same: a broker rebuilt, or a topic made anew, under a running worker.

Its offsets may lie within the old ones, so the consumer need not notice; only the ids tell.
"""

import logging
from concurrent.futures import Future
from typing import Any, Final

from confluent_kafka import KafkaException, TopicCollection

from alerting.partition import LogIdentity
from gpu_telemetry.kafka import admin_client
from gpu_telemetry.settings import KafkaSettings

_log = logging.getLogger(__name__)

_REQUEST_TIMEOUT_SECONDS: Final = 5.0


class LogWatch:
    """Asks the brokers for the cluster's and the topic's ids, now and then, without waiting for them."""

    def __init__(self, kafka: KafkaSettings, *, every_seconds: float = 2.0) -> None:
        self._topic = kafka.topic
        self._admin = admin_client(kafka)
        self._every_seconds = every_seconds
        self._asked_at = float("-inf")
        self._cluster: Future[Any] | None = None
        self._topics: Future[Any] | None = None

    def poll(self, now: float) -> LogIdentity | None:
        """The ids that the brokers told, once they have; asks again when that is due.

        Brokers that do not answer, or do not know the topic (yet, or any more), tell nothing.
        """
        identity = None
        if self._cluster is not None and self._topics is not None and self._cluster.done() and self._topics.done():
            try:
                cluster, topic = self._cluster.result(), self._topics.result()
                identity = LogIdentity(cluster.cluster_id or "", str(topic.topic_id))
            except KafkaException as error:
                _log.debug("%s: its ids are not known now: %s", self._topic, error)
            self._cluster = self._topics = None
        if self._cluster is None and now - self._asked_at >= self._every_seconds:
            self._asked_at = now
            wanted = TopicCollection([self._topic])
            self._cluster = self._admin.describe_cluster(request_timeout=_REQUEST_TIMEOUT_SECONDS)
            self._topics = self._admin.describe_topics(wanted, request_timeout=_REQUEST_TIMEOUT_SECONDS)[self._topic]
        return identity
