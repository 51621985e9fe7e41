"""What each stage costs by itself, and what the same stage costs in the plain pipeline, on the same pages.

CPU time of this process (all its threads) and, where a server is part of it, of the server. Each is the best of some
rounds: what the stage costs where nothing else disturbs. Run alone by `python -m benchmarks.stages`.
"""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import psycopg
import urllib3
import uvloop
from confluent_kafka import Consumer, Producer
from prometheus_client.parser import text_string_to_metric_families

from alerting.inventory import described_gpu
from alerting.partition import Placement
from alerting.rows import GPU_METRICS, EncodedRows, gpu_row, wire_time
from benchmarks.cpu import cpu_seconds
from benchmarks.pages import render_fleet
from benchmarks.plain import CREATE, INSERT, records_of, row_of
from benchmarks.stand import Stand
from exporter_bridge.exposition import Exposition
from exporter_bridge.fetch import Answer, Fetcher
from exporter_bridge.producer import make_producer
from exporter_bridge.records import RecordBuilder, Scrape, Turn
from exporter_bridge.targets import Access
from gpu_telemetry.records import GpuRecord, decode
from gpu_telemetry.settings import KafkaSettings

GPUS: Final = 8
SAMPLES: Final = 200
_NODES: Final = 100
_VARIANTS: Final = 2
_ROUNDS: Final = 5
# Work on servers is repeated so often a round, as their CPU is counted coarsely.
_REPEATS: Final = 10
_PLAIN_PAGES: Final = 5
_MESSAGES_A_BATCH: Final = 900
_BODY_LIMIT_BYTES: Final = 16 * 1024**2
_SERVERS: Final = ("broker", "postgres")


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: CPU microseconds for each GPU record, ours and the plain pipeline's (None where it has no such)."""

    name: str
    us_per_record: float
    plain_us_per_record: float | None

    @property
    def us_per_page(self) -> float:
        """For a page of 8 GPUs."""
        return self.us_per_record * GPUS

    @property
    def us_per_sample(self) -> float:
        """For one of the 25 samples of a GPU."""
        return self.us_per_record * GPUS / SAMPLES

    @property
    def ratio(self) -> float | None:
        """How many times as much the plain pipeline spends."""
        return (
            self.plain_us_per_record / self.us_per_record if self.plain_us_per_record and self.us_per_record else None
        )


class _Clock:
    """CPU of this process and of the servers."""

    def __init__(self, stand: Stand) -> None:
        self._servers = stand.servers

    def best(self, work: Callable[[], object], units: int, rounds: int = _ROUNDS) -> dict[str, float]:
        """Microseconds a unit: `own` in the best round; `broker` and `postgres` over all, as the system counts theirs
        by the hundredth of a second.
        """  # noqa: D205 - one thought
        before = {name: cpu_seconds(pid) for name, pid in self._servers.items()}
        own = float("inf")
        for _ in range(rounds):
            started = time.process_time()
            work()
            own = min(own, time.process_time() - started)
        spent = {name: (cpu_seconds(pid) - before[name]) / rounds for name, pid in self._servers.items()}
        return {name: seconds / units * 1e6 for name, seconds in {"own": own, **spent}.items()}


def run(stand: Stand) -> list[Stage]:
    """Measure every stage, in the order in which a sample passes them."""
    clock = _Clock(stand)
    bodies = render_fleet(_NODES, GPUS, _VARIANTS)
    scrapes, stages = _reading(clock, bodies)
    with ExitStack() as stack:
        port = stack.enter_context(stand.exporters(_NODES, GPUS))
        environment = stack.enter_context(stand.fresh())
        kafka = KafkaSettings.load(
            bootstrap_servers=environment["KAFKA_BOOTSTRAP_SERVERS"], topic=environment["KAFKA_TOPIC"]
        )
        connection = stack.enter_context(psycopg.connect(environment["DATABASE_URL"], autocommit=True))
        return [
            _fetching(clock, port),
            *stages,
            *_producing(clock, kafka, scrapes, bodies),
            *_consuming(clock, kafka, scrapes),
            *_storing(clock, connection, scrapes, bodies),
        ]


def _fetching(clock: _Clock, port: int) -> Stage:
    urls = [f"http://127.0.0.1:{port}/nodes/{node}/metrics" for node in range(_NODES)]
    pool = urllib3.PoolManager(maxsize=10)

    def plain() -> None:
        for url in urls:
            assert pool.request("GET", url).status == 200

    async def fetch_all() -> None:
        loop = asyncio.get_running_loop()
        fetcher = Fetcher(loop, body_limit_bytes=_BODY_LIMIT_BYTES, kept_connections=_NODES)
        for _ in range(_ROUNDS):  # the first opens the connections, as a bridge does once
            left = len(urls)
            done = loop.create_future()

            def answered(answer: Answer, done: "asyncio.Future[None]" = done) -> None:
                nonlocal left
                assert answer.reason is None, answer.detail
                left -= 1
                if left == 0:
                    done.set_result(None)

            for url in urls:
                fetcher.start(url, Access(), 10.0, answered)
            await done
        fetcher.close()

    ours = clock.best(lambda: uvloop.run(fetch_all()), _ROUNDS * _NODES * GPUS, rounds=3)["own"]
    return Stage("fetch a page", ours, clock.best(plain, _NODES * GPUS)["own"])


def _reading(clock: _Clock, bodies: Sequence[Sequence[bytes]]) -> tuple[list[Scrape], list[Stage]]:
    """Page to records, known layouts; gives the messages too."""
    exposition = Exposition()
    nodes = [(exposition.parser(), RecordBuilder()) for _ in bodies]
    pages = [[parser.parse(body) for body in own] for (parser, _), own in zip(nodes, bodies, strict=True)]

    def parse() -> None:
        for (parser, _), own in zip(nodes, bodies, strict=True):
            for body in own:
                parser.parse(body)

    turns = [[_turn(node, seq) for seq in range(1, _VARIANTS + 1)] for node in range(_NODES)]

    def build() -> list[Scrape]:
        return [
            builder.build(page, turn)
            for (_, builder), own, ends in zip(nodes, pages, turns, strict=True)
            for page, turn in zip(own, ends, strict=True)
        ]

    scrapes = build()
    units = _NODES * _VARIANTS * GPUS
    parsed, built = clock.best(parse, units)["own"], clock.best(build, units)["own"]
    plain_parsed, plain_built = _plain_reading(clock, [own[0].decode() for own in bodies[:_PLAIN_PAGES]])
    return scrapes, [
        Stage("parse it (known layout)", parsed, plain_parsed),
        Stage("build the records, closing one included", built, plain_built),
    ]


def _plain_reading(clock: _Clock, texts: Sequence[str]) -> tuple[float, float]:
    """prometheus_client's parser, and what making JSON of its samples costs beyond it."""

    def parse() -> None:
        for text in texts:
            for _ in text_string_to_metric_families(text):
                pass

    def records() -> None:
        for text in texts:
            for record in records_of("node-0", text):
                json.dumps(record).encode()

    parsed = clock.best(parse, len(texts) * GPUS)["own"]
    return parsed, max(0.0, clock.best(records, len(texts) * GPUS)["own"] - parsed)


def _turn(node: int, seq: int) -> Turn:
    return Turn(
        node_id=f"node-{node}",
        bridge_id="bridge-0",
        boot_id="0198c5f0-7b1e-7cc3-98c4-dc0c0c07398f",
        seq=seq,
        collected_at_ms=int(time.time() * 1000) - 60_000 + seq * 1000,
        interval_ms=1000,
        datacenter="bench",
        instance=f"node-{node}:9400",
        duration_ms=12.5,
    )


def _producing(
    clock: _Clock, kafka: KafkaSettings, scrapes: Sequence[Scrape], bodies: Sequence[Sequence[bytes]]
) -> list[Stage]:
    producer = make_producer(kafka, lambda error: print(f"  Kafka: {error.str()}"))
    simple = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    messages = [(scrape.node_id.encode(), value) for scrape in scrapes for value in scrape.messages] * _REPEATS
    simple_messages = [
        (f"node-{node}", json.dumps(record).encode())
        for node, own in enumerate(bodies[:_NODES])
        for record in records_of(f"node-{node}", own[0].decode())
    ]

    def produce() -> None:
        for at in range(0, len(messages), _MESSAGES_A_BATCH):
            batch = [{"key": key, "value": value} for key, value in messages[at : at + _MESSAGES_A_BATCH]]
            producer.produce_batch(kafka.topic, batch)
        producer.flush(30)

    def plain() -> None:
        for key, value in simple_messages:
            simple.produce(kafka.topic, value, key=key)
            simple.poll(0)
        simple.flush(30)

    produce()
    ours = clock.best(produce, len(messages) * GPUS // (GPUS + 1))
    theirs = clock.best(plain, len(simple_messages))
    return [
        Stage("produce", ours["own"], theirs["own"]),
        Stage("broker: append", ours["broker"], theirs["broker"]),
    ]


def _consuming(clock: _Clock, kafka: KafkaSettings, scrapes: Sequence[Scrape]) -> list[Stage]:
    count = sum(len(scrape.messages) for scrape in scrapes) * _REPEATS

    def consume(take: Callable[[Consumer], list[Any]]) -> Callable[[], None]:
        consumer = Consumer(
            {
                "bootstrap.servers": kafka.bootstrap_servers,
                "group.id": f"stages-{time.monotonic_ns()}",
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
            }
        )
        consumer.subscribe([kafka.topic])
        while not take(consumer):
            pass

        def work() -> None:
            left = count
            while left > 0:
                left -= len(take(consumer))

        return work

    def one(consumer: Consumer) -> list[Any]:
        message = consumer.poll(1.0)
        return [] if message is None else [message]

    units = count * GPUS // (GPUS + 1)
    ours = clock.best(consume(lambda consumer: consumer.consume(_MESSAGES_A_BATCH, 1.0)), units, rounds=3)
    theirs = clock.best(consume(one), units, rounds=3)
    values = [value for scrape in scrapes for value in scrape.messages]
    units //= _REPEATS

    def decode_all() -> None:
        for value in values:
            decode(value)

    def loads_all() -> None:
        for value in values:
            json.loads(value)

    return [
        Stage("consume", ours["own"], theirs["own"]),
        Stage("broker: hand out", ours["broker"], theirs["broker"]),
        Stage("decode", clock.best(decode_all, units)["own"], clock.best(loads_all, units)["own"]),
    ]


def _storing(
    clock: _Clock, connection: psycopg.Connection[Any], scrapes: Sequence[Scrape], bodies: Sequence[Sequence[bytes]]
) -> list[Stage]:
    records = [
        record for scrape in scrapes for value in scrape.messages if isinstance(record := decode(value), GpuRecord)
    ]
    placements = {
        record.gpu_uuid: Placement(number, described_gpu(record), record.collected_at)
        for number, record in enumerate(records)
    }
    for name in ("gpu_metrics", "scrapes"):
        connection.execute("SELECT ensure_partition(%s, current_date)", (name,))
        connection.execute("SELECT ensure_partition(%s, current_date - 1)", (name,))
    connection.execute(CREATE)
    shift_us = 0

    def store() -> None:
        nonlocal shift_us
        rows = EncodedRows(connection, GPU_METRICS)
        for _ in range(_REPEATS):
            shift_us += 10_000  # other times: no row may be there twice
            for record in records:
                rows.add(gpu_row(placements[record.gpu_uuid], record, wire_time(record.collected_at) - shift_us))
        with connection.transaction(), connection.cursor() as cursor:
            rows.store(cursor)

    plain_rows = [
        row_of(record) for node, own in enumerate(bodies[:20]) for record in records_of(f"node-{node}", own[0].decode())
    ]

    def insert() -> None:
        for row in plain_rows:
            connection.execute(INSERT, row)  # commits by itself

    ours, theirs = clock.best(store, len(records) * _REPEATS), clock.best(insert, len(plain_rows), rounds=3)
    return [
        Stage("make rows and COPY them", ours["own"], theirs["own"]),
        Stage("PostgreSQL: COPY, two indexes, WAL", ours["postgres"], theirs["postgres"]),
    ]


def table(stages: Sequence[Stage]) -> list[str]:
    """The stages as lines."""
    lines = [f"  {'CPU us':42}{'a page':>9}{'a sample':>10}{'a record':>10}{'plain':>10}{'ratio':>8}"]
    for stage in stages:
        plain = f"{stage.plain_us_per_record:10.1f}{stage.ratio:7.1f}x" if stage.ratio is not None else ""
        lines.append(
            f"  {stage.name:42}{stage.us_per_page:9.1f}{stage.us_per_sample:10.3f}{stage.us_per_record:10.2f}{plain}"
        )
    total = sum(stage.us_per_record for stage in stages)
    lines.append(f"  {'together':42}{total * GPUS:9.1f}{total * GPUS / SAMPLES:10.3f}{total:10.2f}")
    return lines


if __name__ == "__main__":
    with Stand() as here:
        print("\n".join(table(run(here))))
