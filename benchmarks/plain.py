"""The yardstick: the same pipeline as people write it first, on the same pages, into the same Kafka and PostgreSQL.

urllib3 fetches, prometheus_client parses, json writes one message for each GPU, produce() sends it; a consumer polls
one message at a time, reads it with json and stores it by one INSERT and one commit. No rule is evaluated, nothing is
counted, nothing is restored: what ours does beyond that is not in these figures.

The two halves run as processes of their own: `python -m benchmarks.plain scrape PORT NODES` and `... store`, told
where Kafka and the database are by the environment of the services.
"""

import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import psycopg
import urllib3
from confluent_kafka import Consumer, Producer
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.cpu import Stopwatch, family_bytes
from benchmarks.processes import running, wait_for
from benchmarks.stand import Stand, messages_in

_COLUMNS: Final = {
    "DCGM_FI_DEV_GPU_TEMP": "temperature_celsius",
    "DCGM_FI_DEV_MEMORY_TEMP": "memory_temperature_celsius",
    "DCGM_FI_DEV_POWER_USAGE": "power_watts",
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": "energy_millijoules",
    "DCGM_FI_DEV_GPU_UTIL": "gpu_utilization_percent",
    "DCGM_FI_DEV_MEM_COPY_UTIL": "memory_copy_utilization_percent",
    "DCGM_FI_DEV_FB_USED": "memory_used_mib",
    "DCGM_FI_DEV_FB_FREE": "memory_free_mib",
    "DCGM_FI_DEV_SM_CLOCK": "sm_clock_mhz",
    "DCGM_FI_DEV_MEM_CLOCK": "memory_clock_mhz",
    "DCGM_FI_DEV_XID_ERRORS": "xid_code",
}
CREATE: Final = f"""
CREATE TABLE IF NOT EXISTS plain_metrics (
    id bigserial PRIMARY KEY, node_id text, gpu_index integer, gpu_uuid text, model text, pod text,
    {", ".join(f"{column} double precision" for column in _COLUMNS.values())}, other jsonb, collected_at timestamptz
);
CREATE INDEX IF NOT EXISTS plain_metrics_node ON plain_metrics (node_id, collected_at);
"""
_NAMES: Final = ("node_id", "gpu_index", "gpu_uuid", "model", "pod", *_COLUMNS.values(), "other", "collected_at")
INSERT: Final = (
    f"INSERT INTO plain_metrics ({', '.join(_NAMES)}) VALUES ({', '.join(f'%({name})s' for name in _NAMES)})"
)


def records_of(node_id: str, text: str) -> list[dict[str, object]]:
    """One dictionary for each GPU on the page."""
    gpus: dict[str, dict[str, object]] = {}
    now = datetime.now(UTC).isoformat()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = sample.labels
            record = gpus.setdefault(
                labels["gpu"],
                {
                    "node_id": node_id,
                    "gpu_index": int(labels["gpu"]),
                    "gpu_uuid": labels["UUID"],
                    "model": labels["modelName"],
                    "pod": labels.get("pod"),
                    "collected_at": now,
                },
            )
            record[_COLUMNS.get(sample.name, sample.name)] = sample.value
    return list(gpus.values())


def row_of(record: dict[str, object]) -> dict[str, object]:
    """The parameters of INSERT."""
    row = {name: record.pop(name, None) for name in _NAMES}
    return row | {"other": json.dumps(record)}


def scrape(port: int, nodes: int) -> None:
    """Fetch every node again and again, as fast as it goes."""
    pool = urllib3.PoolManager(maxsize=10)
    producer = Producer({"bootstrap.servers": os.environ["KAFKA_BOOTSTRAP_SERVERS"]})
    topic = os.environ["KAFKA_TOPIC"]
    while True:
        for node in range(nodes):
            page = pool.request("GET", f"http://127.0.0.1:{port}/nodes/{node}/metrics")
            for record in records_of(f"node-{node}", page.data.decode()):
                producer.produce(topic, json.dumps(record).encode(), key=f"node-{node}")
                producer.poll(0)


def store() -> None:
    """Take one message after another and store it."""
    consumer = Consumer(
        {
            "bootstrap.servers": os.environ["KAFKA_BOOTSTRAP_SERVERS"],
            "group.id": "plain",
            "auto.offset.reset": "earliest",
        }
    )
    consumer.subscribe([os.environ["KAFKA_TOPIC"]])
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        while True:
            message = consumer.poll(1.0)
            if message is None or message.error():
                continue
            connection.execute(INSERT, row_of(json.loads(message.value() or b"{}")))
            connection.commit()


@dataclass(frozen=True, slots=True)
class PlainCost:
    """CPU microseconds for each GPU record, by process; `scrape_us_per_page` is the scraping process's for a page."""

    cpu_us: Mapping[str, float]
    scrape_us_per_page: float
    resident_bytes: Mapping[str, int]

    @property
    def total_us(self) -> float:
        """CPU of all processes together, for each GPU record."""
        return sum(self.cpu_us.values())


def measure(stand: Stand, nodes: int = 20, gpus: int = 8, warm_up_seconds: float = 2, seconds: float = 10) -> PlainCost:
    """Run it flat out on the stand; its two halves have their own pace, so each is counted by what it did itself."""
    with ExitStack() as stack:
        port = stack.enter_context(stand.exporters(nodes, gpus))
        environment = stack.enter_context(stand.fresh())
        connection = stack.enter_context(psycopg.connect(environment["DATABASE_URL"], autocommit=True))
        connection.execute(CREATE)
        module = [sys.executable, "-m", "benchmarks.plain"]
        log = stand.logs / "plain.log"
        scraping = stack.enter_context(running([*module, "scrape", str(port), str(nodes)], environment, log)).pid
        storing = stack.enter_context(running([*module, "store"], environment, log)).pid
        parts = {"scrape": scraping, "store": storing} | stand.servers
        watched = Consumer({"bootstrap.servers": environment["KAFKA_BOOTSTRAP_SERVERS"], "group.id": "watch"})
        stack.callback(watched.close)

        def produced() -> int:
            return messages_in(watched, environment["KAFKA_TOPIC"])

        def stored() -> int:
            row = connection.execute("SELECT count(*) FROM plain_metrics").fetchone()
            assert row is not None
            return int(row[0])

        wait_for(lambda: stored() > 0, "the first rows of the plain pipeline", stand.logs)
        time.sleep(warm_up_seconds)
        watch, produced_before, stored_before = Stopwatch(parts), produced(), stored()
        time.sleep(seconds)
        used, sent, rows = watch.read(), produced() - produced_before, stored() - stored_before
        return PlainCost(
            cpu_us={
                "scrape": used["scrape"] / sent * 1e6,
                "broker": used["broker"] / sent * 1e6,
                "store": used["store"] / rows * 1e6,
                "postgres": used["postgres"] / rows * 1e6,
            },
            scrape_us_per_page=used["scrape"] / sent * gpus * 1e6,
            resident_bytes={name: family_bytes(pid) for name, pid in parts.items()},
        )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["scrape", port, nodes]:
            scrape(int(port), int(nodes))
        case ["store"]:
            store()
        case []:
            with Stand() as here:
                print(measure(here))
        case _:
            sys.exit(__doc__)
