"""The topics are created in one place and checked by those that use them."""

import socket
import struct
import threading
from contextlib import suppress

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import ConfigResource, ResourceType

from gpu_telemetry.kafka import TopicError, admin_client, ensure_topics, verify_topics
from gpu_telemetry.local.kafka import KafkaServer
from gpu_telemetry.settings import KafkaSettings


@pytest.fixture
def settings(kafka_bootstrap, request):
    name = f"topics-{abs(hash(request.node.name))}"
    return KafkaSettings.load(
        bootstrap_servers=kafka_bootstrap, topic=name, dlq_topic=f"{name}.dlq", partitions=3, retention_hours=2
    )


def test_missing_topics_are_created_once_and_as_the_settings_say(settings):
    assert sorted(ensure_topics(settings)) == [settings.topic, settings.dlq_topic]
    assert ensure_topics(settings) == []
    assert verify_topics(settings) == 3
    resource = ConfigResource(ResourceType.TOPIC, settings.topic)
    client = admin_client(settings)
    configuration = client.describe_configs([resource])[resource].result(timeout=10)
    assert configuration["message.timestamp.type"].value == "LogAppendTime"
    assert configuration["retention.ms"].value == "7200000"


def test_a_missing_topic_is_named_with_what_to_run(settings):
    with pytest.raises(TopicError, match=f"{settings.topic} does not exist: run `gpu-telemetry topics ensure`"):
        verify_topics(settings)


def test_a_topic_that_stamps_with_the_producers_time_is_refused(settings):
    ensure_topics(settings)
    wrong = settings.model_copy(update={"topic": settings.dlq_topic})
    with pytest.raises(TopicError, match=r"message\.timestamp\.type=CreateTime, expected LogAppendTime"):
        verify_topics(wrong)


DESCRIBE_CONFIGS = 32


class Deaf:
    """Stands before a broker on 127.0.0.1 and keeps back every request of one kind; the rest passes both ways."""

    def __init__(self, broker_port, kind):
        self._broker_port, self._kind = broker_port, kind
        self.kept_back = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self._listener.close()

    def _accept(self):
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                broker = socket.create_connection(("127.0.0.1", self._broker_port))
                threading.Thread(target=self._ask, args=(client, broker), daemon=True).start()
                threading.Thread(target=self._answer, args=(broker, client), daemon=True).start()

    def _ask(self, client, broker):
        with client, broker, client.makefile("rb") as requests, suppress(OSError):
            while length := requests.read(4):
                request = requests.read(*struct.unpack(">i", length))
                if struct.unpack(">h", request[:2]) == (self._kind,):
                    self.kept_back += 1
                else:
                    broker.sendall(length + request)

    def _answer(self, broker, client):
        with suppress(OSError):
            while answer := broker.recv(65536):
                client.sendall(answer)


def test_a_broker_that_leaves_a_request_unanswered_is_an_error_of_kafka(tmp_path, free_ports, kafka_server):
    assert kafka_server.pid  # the jars are there: another test's broker runs
    port, controller_port = free_ports(2)
    deaf = Deaf(port, DESCRIBE_CONFIGS)
    server = KafkaServer(
        tmp_path / "kafka", port, controller_port, log=tmp_path / "kafka.log", advertised_port=deaf.port
    )
    server.start()
    try:
        settings = KafkaSettings(bootstrap_servers=f"127.0.0.1:{deaf.port}", topic="deaf", dlq_topic="deaf.dlq")
        ensure_topics(settings)
        with pytest.raises(KafkaException):
            verify_topics(settings, timeout_seconds=1)
        assert deaf.kept_back
    finally:
        server.stop()
        deaf.close()
