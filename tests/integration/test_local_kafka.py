"""The local Apache Kafka: what it keeps, what it needs, how it ends."""

import time

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from gpu_telemetry.local.kafka import KafkaServer
from gpu_telemetry.local.kafka_jars import default_cache

pytestmark = pytest.mark.integration


@pytest.fixture
def server(tmp_path, free_ports):
    # A path that a properties file would misread.
    made = KafkaServer(tmp_path / "käfka, data", *free_ports(2), log=tmp_path / "kafka.log")
    yield made
    made.stop()


def newest_offset(bootstrap, topic):
    partition = TopicPartition(topic, 0)
    admin = AdminClient({"bootstrap.servers": bootstrap})
    return admin.list_offsets({partition: OffsetSpec.latest()})[partition].result(10).offset


def test_records_survive_a_restart_without_a_network(server, monkeypatch):
    server.start()
    admin = AdminClient({"bootstrap.servers": server.bootstrap})
    admin.create_topics([NewTopic("kept", 1, 1)])["kept"].result(30)
    producer = Producer({"bootstrap.servers": server.bootstrap, "acks": "all"})
    producer.produce("kept", b"{}")
    assert producer.flush(30) == 0
    server.stop()
    # Nothing is downloaded again: the cache is enough.
    monkeypatch.setattr("gpu_telemetry.local.kafka_jars._downloader", lambda _: pytest.fail("the jars were asked for"))
    assert default_cache().is_dir()
    server.start()
    assert newest_offset(server.bootstrap, "kept") == 1


def test_it_ends_in_order_and_its_own_log_tells_of_it(server):
    server.start()
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < 10
    log = server.log.read_text()
    assert "Kafka Server started" in log
    assert "shut down completed" in log


def test_topics_appear_only_when_they_are_created(server, wait_for):
    server.start()
    failures = []
    producer = Producer({"bootstrap.servers": server.bootstrap, "message.timeout.ms": 1500})
    producer.produce("unknown", b"{}", on_delivery=lambda error, _: failures.append(error))
    wait_for(lambda: producer.poll(0.1) is not None and failures, 20, "the delivery failed")
    assert "unknown" not in AdminClient({"bootstrap.servers": server.bootstrap}).list_topics(timeout=10).topics
