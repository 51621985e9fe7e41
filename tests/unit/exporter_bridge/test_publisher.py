"""Scrapes to Kafka, on librdkafka's own broker in this process: what arrives, what is dropped, that all is counted."""

import asyncio
import time
from datetime import UTC, datetime

import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from exporter_bridge.metrics import BridgeMetrics
from exporter_bridge.producer import make_producer
from exporter_bridge.publisher import Publisher
from exporter_bridge.records import RecordBuilder, Scrape, Turn
from gpu_telemetry.kafka import TopicError
from gpu_telemetry.records import DropCount, ScrapeRecord, encode
from gpu_telemetry.settings import KafkaSettings


@pytest.fixture(scope="module")
def mock_broker():
    """HOST:PORT of a broker in this process; topics appear by themselves."""
    cluster = Producer({"bootstrap.servers": "none", "test.mock.num.brokers": 1, "log_level": 0})
    broker = next(iter(cluster.list_topics(timeout=10).brokers.values()))
    yield f"{broker.host}:{broker.port}"
    del cluster


def scrape(node_id, number, *, gpus=2, padding=0):
    closing = encode(
        ScrapeRecord(
            schema_version=1,
            node_id=node_id,
            bridge_id="b",
            boot_id="x",
            seq=number,
            collected_at=datetime(2026, 1, 1, tzinfo=UTC),
            up=True,
            gpu_records=gpus,
            interval_ms=1,
        )
    )
    gpu = b'{"kind":"gpu","node_id":"%s","seq":%d,"padding":"%s"}' % (node_id.encode(), number, b"x" * padding)
    return Scrape(node_id, [gpu] * gpus + [closing], gpus, {}, {})


def removal(node_id):
    """What the scraper publishes of a node that left."""
    turn = Turn(
        node_id=node_id, bridge_id="b", boot_id="x", seq=9, collected_at_ms=1, interval_ms=1, up=False, removed=True
    )
    return RecordBuilder().failed(turn)


class Stage:
    """A publisher, its metrics, and what reached its topic."""

    def __init__(self, bootstrap, topic, *, verify=lambda _settings: None, queue_scrapes=1000, queue_bytes=10**7):
        self.kafka = KafkaSettings(bootstrap_servers=bootstrap, topic=topic)
        self.metrics = BridgeMetrics("b")
        self.publisher = Publisher(
            self.kafka, self.metrics, queue_scrapes=queue_scrapes, queue_bytes=queue_bytes, verify=verify
        )

    async def deliver(self, seconds=10.0):
        """Run until all is delivered or the time is over; what was left."""
        running = asyncio.create_task(self.publisher.run())
        left = await self.publisher.close(seconds)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return left

    def read(self, count):
        """This many messages of the topic: (key, value, partition), in order within a partition."""
        consumer = Consumer({"bootstrap.servers": self.kafka.bootstrap_servers, "group.id": "test", "log_level": 0})
        partitions = consumer.list_topics(self.kafka.topic, timeout=10).topics[self.kafka.topic].partitions
        consumer.assign([TopicPartition(self.kafka.topic, partition, 0) for partition in partitions])
        found, deadline = [], time.monotonic() + 10
        while len(found) < count and time.monotonic() < deadline:
            found += [(m.key(), m.value(), m.partition()) for m in consumer.consume(100, timeout=0.2) if not m.error()]
        consumer.close()
        return found


def test_messages_arrive_in_order_under_their_nodes_key_and_each_node_in_one_partition(on_loop, mock_broker):
    stage = Stage(mock_broker, "in-order")

    async def run():
        for number in range(1, 51):
            for node in ("node-1", "node-2", "node-3"):
                stage.publisher.publish(scrape(node, number))
        return await stage.deliver()

    assert on_loop(run()) == (0, 0)
    messages = stage.read(450)
    assert len(messages) == 450
    for node in (b"node-1", b"node-2", b"node-3"):
        mine = [(value, partition) for key, value, partition in messages if key == node]
        assert len({partition for _, partition in mine}) == 1
        assert [value for value, _ in mine] == [
            message for number in range(1, 51) for message in scrape(node.decode(), number).messages
        ]
    assert stage.publisher.published_gpu_records == 300
    assert "gpu_bridge_delivered_messages_total 450.0" in stage.metrics.page().decode()


def test_beyond_the_bound_whole_scrapes_go_oldest_first_and_are_counted_for_their_node(mock_broker):
    stage = Stage(mock_broker, "bounded", queue_scrapes=3)
    drops = {node: stage.publisher.admit(node) for node in ("node-1", "node-2")}
    for number in range(1, 4):
        stage.publisher.publish(scrape("node-1", number))
        stage.publisher.publish(scrape("node-2", number, gpus=5))
    waiting = [(w.scrape.node_id, w.scrape.messages) for w in stage.publisher._queue]
    assert [node for node, _ in waiting] == ["node-2", "node-1", "node-2"]
    assert [len(messages) for _, messages in waiting] == [6, 3, 6]
    assert drops == {
        "node-1": {"queue_full": DropCount(2, 4)},
        "node-2": {"queue_full": DropCount(1, 5)},
    }
    page = stage.metrics.page().decode()
    assert 'gpu_bridge_dropped_scrapes_total{reason="queue_full"} 3.0' in page
    assert 'gpu_bridge_dropped_gpu_records_total{reason="queue_full"} 9.0' in page


def test_a_full_queue_goes_over_the_removal_of_a_node_and_keeps_it_in_order(on_loop, mock_broker):
    stage = Stage(mock_broker, "removals", queue_scrapes=2)
    for number in range(1, 4):
        for message in (scrape("node-1", number), removal(f"gone-{number}"), scrape("node-2", number)):
            stage.publisher.publish(message)
    assert stage.publisher.queued_scrapes == 2 + 2
    assert stage.publisher.queued_bytes == sum(
        len(message) for n in (1, 2, 3) for message in removal(f"gone-{n}").messages
    ) + sum(map(len, scrape("node-2", 3).messages))
    on_loop(stage.deliver())
    messages = [(key, value) for key, value, _ in stage.read(6)]
    gone = [(f"gone-{n}".encode(), *removal(f"gone-{n}").messages) for n in (1, 2, 3)]
    assert sorted(message for message in messages if message in gone) == gone
    assert [value for key, value in messages if key == b"node-2"] == scrape("node-2", 3).messages
    assert 'dropped_scrapes_total{reason="queue_full"} 5.0' in stage.metrics.page().decode()


def test_a_node_that_left_during_an_outage_is_told_of_however_long_it_lasts(on_loop, loopback):
    async def run():
        async with (
            loopback.serving(loopback.Exporter()) as exporter,
            loopback.Bench(queue_scrapes=3, interval_seconds=30) as bench,
        ):
            bench.apply(a=exporter.url(), b=exporter.url())
            bench.apply(a=exporter.url())
            bench.scraper.remove(["b"])
            for _ in range(4):
                await bench.scraper.scrape_all_once()
            return [(turn.node_id, turn.removed) for turn in bench.turns()]

    assert on_loop(run()) == [("b", True), ("a", False), ("a", False), ("a", False)]


def test_a_removal_that_cannot_be_told_before_the_end_is_named(on_loop, loopback, free_ports, caplog):
    (port,) = free_ports(1)
    stage = Stage(f"127.0.0.1:{port}", "nowhere", queue_scrapes=1)

    async def run():
        running = asyncio.create_task(stage.publisher.run())
        stage.publisher.publish(removal("handed-over"))
        await loopback.until(lambda: stage.publisher.in_flight)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        for message in (removal("gone"), scrape("node-1", 1), removal("queued")):
            stage.publisher.publish(message)
        return await stage.publisher.close(0)

    assert on_loop(run()) == (3, 0)
    assert "`gpu-telemetry nodes remove`: handed-over, gone, queued" in caplog.text


def test_the_bound_in_bytes_holds_too_and_the_newest_scrape_always_stays(mock_broker):
    stage = Stage(mock_broker, "bytes", queue_bytes=5000)
    for number in range(1, 11):
        stage.publisher.publish(scrape("node-1", number, padding=500))
    assert 0 < stage.publisher.queued_bytes <= 5000
    stage.publisher.publish(scrape("node-1", 11, padding=10_000))
    assert stage.publisher.queued_scrapes == 1
    assert stage.publisher.queued_bytes > 5000


def test_drops_of_a_forgotten_node_are_counted_but_not_remembered(mock_broker):
    stage = Stage(mock_broker, "forgotten", queue_scrapes=1)
    stage.publisher.admit("node-1")
    stage.publisher.publish(scrape("node-1", 1))
    stage.publisher.forget("node-1")
    stage.publisher.publish(scrape("node-2", 1))
    assert stage.publisher._drops == {}
    assert 'dropped_scrapes_total{reason="queue_full"} 1.0' in stage.metrics.page().decode()


def test_a_message_that_kafka_does_not_take_is_counted_and_costs_no_other(on_loop, mock_broker, monkeypatch, caplog):
    monkeypatch.setenv("KAFKA_OPT_MESSAGE_MAX_BYTES", "1200")
    stage = Stage(mock_broker, "too-large")
    drops = stage.publisher.admit("node-1")

    async def run():
        stage.publisher.publish(scrape("node-1", 1))
        stage.publisher.publish(scrape("node-1", 2, padding=2000))
        stage.publisher.publish(scrape("node-1", 3))
        return await stage.deliver()

    assert on_loop(run()) == (0, 0)
    assert drops == {"delivery_failed": DropCount(0, 2)}
    assert len(stage.read(7)) == 7
    assert stage.publisher.published_gpu_records == 4
    page = stage.metrics.page().decode()
    assert 'gpu_bridge_failed_deliveries_total{error="MSG_SIZE_TOO_LARGE"} 2.0' in page
    assert "gpu_bridge_delivered_messages_total 7.0" in page
    assert caplog.text.count("Kafka did not take a record of node-1") == 1


def test_nothing_is_handed_over_before_the_topic_is_there(on_loop, mock_broker, caplog, monkeypatch):
    monkeypatch.setattr("exporter_bridge.publisher._VERIFY_RETRY_SECONDS", (0.05,))
    attempts = 0

    def verify(_settings):
        nonlocal attempts
        attempts += 1
        if attempts < 4:
            raise TopicError("topic late does not exist: run `gpu-telemetry topics ensure`")

    stage = Stage(mock_broker, "late", verify=verify)

    async def run():
        running = asyncio.create_task(stage.publisher.run())
        stage.publisher.publish(scrape("node-1", 1))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + 10
        while not stage.publisher.topic_seen:
            assert stage.publisher.queued_scrapes == 1
            assert loop.time() < deadline
            await asyncio.sleep(0.01)
        left = await stage.publisher.close(10)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return left

    assert on_loop(run()) == (0, 0)
    assert len(stage.read(3)) == 3
    assert caplog.text.count("topic late does not exist: run `gpu-telemetry topics ensure`") == 1


def test_a_broker_that_is_away_is_no_outage_and_all_of_them_are_one(on_loop, mock_broker, caplog, monkeypatch):
    clients = []

    def keep(kafka, on_error):
        clients.append(on_error)
        return make_producer(kafka, on_error)

    monkeypatch.setattr("exporter_bridge.publisher.make_producer", keep)
    caplog.set_level("INFO")
    stage = Stage(mock_broker, "outage")
    one, every = KafkaError(KafkaError._TRANSPORT, "b-2: refused"), KafkaError(KafkaError._ALL_BROKERS_DOWN, "2/2 down")

    async def deliver(number):
        stage.publisher.publish(scrape("node-1", number, gpus=1))
        deadline = asyncio.get_running_loop().time() + 10
        while stage.publisher.published_gpu_records < number:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.01)

    async def run():
        running = asyncio.create_task(stage.publisher.run())
        await deliver(1)
        [client] = clients
        client(one)
        assert "Kafka" not in caplog.text
        for error in (every, one, every):
            client(error)
        await deliver(2)
        client(every)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    on_loop(run())
    assert [record.getMessage() for record in caplog.records] == [
        "Kafka cannot be reached, scraping goes on, records wait: b-2: refused",
        "Kafka takes records again, 0 scrapes wait",
        "Kafka cannot be reached, scraping goes on, records wait: 2/2 down",
    ]


def test_closing_without_kafka_keeps_to_its_deadline_and_says_what_is_left(on_loop, free_ports):
    (port,) = free_ports(1)
    stage = Stage(f"127.0.0.1:{port}", "nowhere")

    async def run():
        running = asyncio.create_task(stage.publisher.run())
        for number in range(1, 6):
            stage.publisher.publish(scrape("node-1", number))
        await asyncio.sleep(0.1)
        stage.publisher.publish(scrape("node-1", 6))
        began = time.monotonic()
        left = await stage.publisher.close(0.5)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return left, time.monotonic() - began

    left, took = on_loop(run())
    assert left == (6, 12)
    assert 0.4 < took < 3
    page = stage.metrics.page().decode()
    assert 'gpu_bridge_dropped_scrapes_total{reason="shutdown"} 6.0' in page
    assert 'gpu_bridge_dropped_gpu_records_total{reason="shutdown"} 12.0' in page


def test_a_client_that_cannot_go_on_is_replaced_and_what_it_held_is_counted_or_told_again(
    on_loop, mock_broker, free_ports
):
    (port,) = free_ports(1)
    stage = Stage(f"127.0.0.1:{port}", "renewed")
    drops = stage.publisher.admit("node-1")

    async def run():
        stage.publisher.publish(scrape("node-1", 1))
        stage.publisher.publish(removal("node-2"))
        running = asyncio.create_task(stage.publisher.run())
        loop = asyncio.get_running_loop()
        deadline = loop.time() + 10
        while not stage.publisher.in_flight:
            assert loop.time() < deadline
            await asyncio.sleep(0.01)
        stage.publisher._kafka = KafkaSettings(bootstrap_servers=mock_broker, topic="renewed")
        stage.kafka = stage.publisher._kafka
        stage.publisher._fatal = True
        while stage.publisher.in_flight:
            assert loop.time() < deadline
            await asyncio.sleep(0.01)
        stage.publisher.publish(scrape("node-1", 2))
        left = await stage.publisher.close(10)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return left

    assert on_loop(run()) == (0, 0)
    assert drops == {"delivery_failed": DropCount(1, 2)}
    messages = stage.read(4)
    assert [value for key, value, _ in messages if key == b"node-1"] == scrape("node-1", 2).messages
    assert [value for key, value, _ in messages if key == b"node-2"] == removal("node-2").messages
    assert stage.publisher.published_gpu_records == 2
