"""The real PostgreSQL and the real Apache Kafka that the local stack and the tests stand on."""

import json
import subprocess

import psycopg
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from gpu_telemetry.local.kafka import console_consumer_command


def test_each_test_has_an_empty_postgresql_18_of_its_own(postgres_url):
    with psycopg.connect(postgres_url) as connection:
        version = connection.execute("SHOW server_version").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()[0]
    assert version.startswith("18.")
    assert tables == 0


def test_kafkas_own_console_consumer_reads_what_was_produced(kafka_bootstrap, topic_names):
    admin = AdminClient({"bootstrap.servers": kafka_bootstrap})
    admin.create_topics([NewTopic(topic_names.topic, 1, 1)])[topic_names.topic].result(30)
    producer = Producer({"bootstrap.servers": kafka_bootstrap, "acks": "all"})
    producer.produce(topic_names.topic, json.dumps({"kind": "gpu"}).encode(), key=b"node-1")
    assert producer.flush(30) == 0
    options = ("--from-beginning", "--max-messages", "1", "--timeout-ms", "30000")
    command = console_consumer_command(kafka_bootstrap, topic_names.topic, options=options)
    read = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(read.stdout.splitlines()[0]) == {"kind": "gpu"}
