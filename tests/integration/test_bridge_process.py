"""The bridge as a process, before a real Kafka: what arrives, what an outage costs, how it ends."""

import itertools
import json
import os
import re
import shutil
import subprocess
import time
from contextlib import suppress

import pytest
from confluent_kafka import Consumer, TopicPartition

from gpu_telemetry.kafka import ensure_topics
from gpu_telemetry.local.kafka import KafkaServer
from gpu_telemetry.records import GpuRecord, ScrapeRecord, decode
from gpu_telemetry.settings import KafkaSettings

pytestmark = pytest.mark.integration


@pytest.fixture
def topic(kafka_bootstrap, topic_names):
    """A topic of this test alone on the session's broker."""
    ensure(kafka_bootstrap, topic_names.topic)
    return topic_names.topic


def ensure(bootstrap, topic):
    ensure_topics(KafkaSettings(bootstrap_servers=bootstrap, topic=topic, dlq_topic=f"{topic}.dlq", partitions=3))


def read(bootstrap, topic):
    """All records that the topic holds now, decoded, each partition in order; a record's key is checked."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": f"read-{topic}", "enable.auto.commit": False})
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    ends = {p: consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=10)[1] for p in partitions}
    consumer.assign([TopicPartition(topic, p, 0) for p in partitions])
    records, deadline = [], time.monotonic() + 20
    while len(records) < sum(ends.values()):
        assert time.monotonic() < deadline
        for message in consumer.consume(500, timeout=0.2):
            assert message.error() is None
            record = decode(message.value())
            assert message.key().decode() == record.node_id
            records.append(record)
    consumer.close()
    return records


def closings(records, node):
    return [record for record in records if isinstance(record, ScrapeRecord) and record.node_id == node]


def assert_complete(records, node):
    """Every turn is there once, in order, with what it announced before it."""
    mine = [record for record in records if record.node_id == node]
    assert [turn.seq for turn in closings(records, node)] == list(range(1, len(closings(records, node)) + 1))
    announced = 0
    for record in mine:
        if isinstance(record, GpuRecord):
            announced += 1
        else:
            assert record.gpu_records == announced
            announced = 0
    assert announced == 0


def test_what_is_scraped_arrives_and_is_said_in_plain_words(bridge, kafka_bootstrap, topic, wait_for):
    one = bridge(kafka_bootstrap, topic).start("node-1", "node-2", "broken-1")
    wait_for(lambda: "Published" in one.said() and (one.metric("gpu_bridge_scrapes_total") or 0) >= 9, 30, one.said)
    status, took = one.end()
    assert (status, took < 10) == (0, True), one.said()
    records = read(kafka_bootstrap, topic)
    for node in ("node-1", "node-2", "broken-1"):
        assert_complete(records, node)
    gpu = next(record for record in records if isinstance(record, GpuRecord))
    assert gpu.gpu_uuid == f"GPU-{gpu.node_id}"
    assert (gpu.datacenter, gpu.hostname) == ("us-west-1", gpu.node_id)
    assert {turn.reason for turn in closings(records, "broken-1")} == {"http_500"}
    assert all(turn.up for turn in closings(records, "node-1"))
    assert "Starting collector, polling 3 nodes every 0.5s" in one.said()
    # How many are in a line depends on when Kafka acknowledges them.
    told = [int(count) for count in re.findall(r"Published (\d+) GPU records to Kafka", one.said())]
    assert 2 <= sum(told) <= sum(isinstance(record, GpuRecord) for record in records)
    assert one.said().count("broken-1: scrape failed: http_500 (HTTP status 500)") == 1
    assert "Could not deliver" not in one.said()


def test_sigterm_delivers_what_is_queued_before_it_ends(bridge, kafka_bootstrap, topic, exporters, wait_for):
    one = bridge(kafka_bootstrap, topic).start(*(f"node-{number}" for number in range(50)))
    wait_for(lambda: sum(exporters.scrapes.values()) >= 60, 30, one.said)
    status, took = one.end()
    assert (status, took < 10) == (0, True), one.said()
    records = read(kafka_bootstrap, topic)
    scraped = sum(exporters.scrapes.values())
    # Scrapes that were under way at the signal are given up; all that had ended are there.
    assert scraped - 50 <= sum(isinstance(record, ScrapeRecord) for record in records) <= scraped
    for number in range(50):
        assert_complete(records, f"node-{number}")


SLOW_LOOKUP = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <string.h>
#include <unistd.h>

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    __typeof__(getaddrinfo) *real = dlsym(RTLD_NEXT, "getaddrinfo");
    if (name && strcmp(name, "slow.invalid") == 0) {
        sleep(60);
        return EAI_AGAIN;
    }
    return real(name, service, hints, found);
}
"""


@pytest.fixture
def slow_lookup(tmp_path):
    """A library to preload, under which the name slow.invalid is looked up for a minute."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    source, library = tmp_path / "slow.c", tmp_path / "slow.so"
    source.write_text(SLOW_LOOKUP)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return str(library)


def test_a_name_whose_lookup_hangs_holds_up_neither_the_delivery_nor_the_end(
    bridge, kafka_bootstrap, topic, wait_for, slow_lookup
):
    one = bridge(kafka_bootstrap, topic, LD_PRELOAD=slow_lookup)
    one.start("node-1")
    groups = json.loads(one.targets.read_text())
    one.write([*groups, {"targets": ["slow.invalid:9400"]}])
    wait_for(lambda: "slow.invalid: scrape failed: timeout (Resolving timed out" in one.said(), 30, one.said)
    status, took = one.end()
    assert (status, took < 10) == (0, True), one.said()
    assert_complete(read(kafka_bootstrap, topic), "node-1")
    assert "Could not deliver" not in one.said()


@pytest.mark.parametrize("from_the_start", [True, False])
def test_a_targets_file_that_hangs_does_not_outlive_sigterm(bridge, free_ports, wait_for, from_the_start):
    (nobody,) = free_ports(1)
    one = bridge(f"127.0.0.1:{nobody}", "none", BRIDGE_FLUSH_SECONDS="0")
    if not from_the_start:
        one.start("node-1")
        wait_for(lambda: one.metric("gpu_bridge_scrapes_total"), 30, one.said)
    # Whoever reads a pipe waits for what somebody writes into it.
    pipe = one.targets.with_suffix(".pipe")
    os.mkfifo(pipe)
    pipe.replace(one.targets)
    if from_the_start:
        one.run()
    writers = []

    def is_read():
        with suppress(OSError):  # nobody reads yet
            writers.append(os.open(one.targets, os.O_WRONLY | os.O_NONBLOCK))
        return writers

    wait_for(is_read, 30, one.said)
    status, took = one.end()
    os.close(*writers)
    assert (status, took < 5) == (0, True), one.said()


def test_an_outage_of_kafka_costs_time_and_no_record(bridge, tmp_path, free_ports, wait_for, kafka_server):
    assert kafka_server.pid  # the jars are there: another test's broker runs
    server = KafkaServer(tmp_path / "kafka", *free_ports(2), log=tmp_path / "kafka.log")
    server.start()
    try:
        ensure(server.bootstrap, "outage")
        one = bridge(server.bootstrap, "outage").start("node-1", "node-2", "node-3")
        wait_for(lambda: (one.metric("gpu_bridge_delivered_messages_total") or 0) > 10, 30, one.said)
        server.stop()
        scraped = one.metric("gpu_bridge_scrapes_total")
        wait_for(lambda: one.metric("gpu_bridge_scrapes_total") >= scraped + 15, 30, one.said)
        server.start()
        delivered = one.metric("gpu_bridge_delivered_messages_total")
        wait_for(lambda: one.metric("gpu_bridge_delivered_messages_total") >= delivered + 60, 60, one.said)
        status, _ = one.end()
        assert status == 0, one.said()
        records = read(server.bootstrap, "outage")
        for node in ("node-1", "node-2", "node-3"):
            assert_complete(records, node)
            turns = closings(records, node)
            assert not any(turn.drops for turn in turns)
            gaps = [(b.collected_at - a.collected_at).total_seconds() for a, b in itertools.pairwise(turns)]
            assert max(gaps) < 4, "scraping went on"
        assert one.said().count("Kafka cannot be reached, scraping goes on, records wait") == 1
        assert one.said().count("Kafka takes records again") == 1
    finally:
        server.stop()


def test_a_full_queue_drops_whole_scrapes_and_the_next_closing_record_tells(
    bridge, tmp_path, free_ports, wait_for, kafka_server
):
    assert kafka_server.pid
    server = KafkaServer(tmp_path / "kafka", *free_ports(2), log=tmp_path / "kafka.log")
    one = bridge(server.bootstrap, "late", BRIDGE_QUEUE_SCRAPES="5").start("node-1")
    wait_for(lambda: (one.metric("gpu_bridge_scrapes_total") or 0) >= 12, 60, one.said)
    # Said in good time: how long the client waits for an answer is longer.
    assert "Kafka cannot be reached, scraping goes on, records wait" in one.said()
    assert "Connection refused" in one.said()
    server.start()
    try:
        ensure(server.bootstrap, "late")
        wait_for(lambda: (one.metric("gpu_bridge_delivered_messages_total") or 0) >= 20, 60, one.said)
        status, _ = one.end()
        assert status == 0, one.said()
        turns = closings(read(server.bootstrap, "late"), "node-1")
    finally:
        server.stop()
    dropped = turns[0].seq - 1
    assert dropped >= 7
    assert [turn.seq for turn in turns] == list(range(dropped + 1, dropped + 1 + len(turns)))
    told = turns[-1].drops["queue_full"]
    assert (told.scrapes, told.gpu_records) == (dropped, dropped)
    assert re.search(r"Kafka has the topic late, \d+ scrapes waited", one.said())


def test_what_cannot_be_delivered_at_the_end_is_said(bridge, free_ports, wait_for):
    (nobody,) = free_ports(1)
    one = bridge(f"127.0.0.1:{nobody}", "nowhere", BRIDGE_FLUSH_SECONDS="1").start("node-1")
    wait_for(lambda: (one.metric("gpu_bridge_queue_scrapes") or 0) >= 3, 30, one.said)
    status, took = one.end()
    assert (status, took < 6) == (0, True), one.said()
    assert "GPU records of" in one.said().split("Could not deliver")[1]


def test_once_scrapes_every_node_publishes_and_ends(bridge, kafka_bootstrap, topic):
    one = bridge(kafka_bootstrap, topic, "--once", "--log-format", "json").start("node-1", "broken-1")
    assert one.process.wait(30) == 0, one.said()
    assert len(read(kafka_bootstrap, topic)) == 3
    messages = [json.loads(line)["message"] for line in one.said().splitlines()]
    assert "Published 1 GPU records to Kafka" in messages
    assert "Scraped 1 of 2 nodes" in messages


def test_once_fails_when_nothing_could_be_scraped(bridge, kafka_bootstrap, topic):
    one = bridge(kafka_bootstrap, topic, "--once").start("broken-1")
    assert one.process.wait(30) == 1, one.said()


def test_check_config_prints_the_targets_or_what_is_wrong_with_them(bridge, free_ports):
    (nobody,) = free_ports(1)
    one = bridge(f"127.0.0.1:{nobody}", "none", "--check-config").start("node-1", "node-2")
    assert one.process.wait(30) == 0
    assert "node-1\tus-west-1\thttp://127.0.0.1:" in one.said()
    one.start("node-1", "node-1")
    assert one.process.wait(30) == 2
    assert "node_id 'node-1' is claimed by two targets" in one.said()


def test_a_missing_topic_is_said_and_waited_for(bridge, kafka_bootstrap, topic_names, wait_for):
    one = bridge(kafka_bootstrap, topic_names.topic).start("node-1")
    wait_for(lambda: f"topic {topic_names.topic} does not exist: run `gpu-telemetry topics ensure`" in one.said(), 30)
    ensure(kafka_bootstrap, topic_names.topic)
    wait_for(lambda: (one.metric("gpu_bridge_delivered_messages_total") or 0) >= 4, 40, one.said)
    assert one.end()[0] == 0
    assert_complete(read(kafka_bootstrap, topic_names.topic), "node-1")
