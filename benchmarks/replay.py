"""How fast one alert engine takes in a topic that is full already: after an outage, or to back-test a rule.

Run alone by `python -m benchmarks.replay --records 500000`.
"""

import argparse
import sys
import time
from contextlib import ExitStack
from typing import Final

from confluent_kafka import Producer

from benchmarks.cpu import Stopwatch, resident_bytes
from benchmarks.end_to_end import stored_gpu_records
from benchmarks.pages import render_fleet
from benchmarks.processes import free_ports, running, wait_for
from benchmarks.stand import COMMAND, Stand
from exporter_bridge.exposition import Exposition
from exporter_bridge.records import RecordBuilder, Turn

_INTERVAL_MS: Final = 30_000
_GPUS: Final = 8
# Left out of the measurement at both ends: the engine's start, and the last batches, which are not full.
_EDGES: Final = 0.1


def fill(bootstrap: str, topic: str, nodes: int, turns: int) -> int:
    """Publish so many turns of every node, a quarter of an hour old and older; give the number of GPU records."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "compression.type": "lz4",
            "partitioner": "murmur2_random",
            "linger.ms": 20,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    exposition = Exposition()
    fleet = [(exposition.parser(), RecordBuilder(), pages) for pages in render_fleet(nodes, _GPUS, variants=2)]
    start_ms = int(time.time() * 1000) - (turns + 30) * _INTERVAL_MS
    for turn in range(1, turns + 1):
        for number, (parser, builder, pages) in enumerate(fleet):
            scrape = builder.build(
                parser.parse(pages[turn % len(pages)]),
                Turn(
                    node_id=f"node-{number}",
                    bridge_id="bridge-0",
                    boot_id="0198c5f0-7b1e-7cc3-98c4-dc0c0c07398f",
                    seq=turn,
                    collected_at_ms=start_ms + turn * _INTERVAL_MS + number * _INTERVAL_MS // nodes,
                    interval_ms=_INTERVAL_MS,
                    datacenter="bench",
                    instance=f"node-{number}:9400",
                    duration_ms=12.5,
                ),
            )
            key = scrape.node_id.encode()
            producer.produce_batch(topic, [{"key": key, "value": value} for value in scrape.messages])
        producer.flush()
    return nodes * _GPUS * turns


def measure(stand: Stand, records: int, nodes: int = 500) -> dict[str, float]:
    """Let an alert engine catch up; CPU microseconds for each GPU record, closing records included."""
    with ExitStack() as stack:
        environment = stack.enter_context(stand.fresh())
        print("  filling the topic ...", file=sys.stderr)
        total = fill(stand.kafka.bootstrap, environment["KAFKA_TOPIC"], nodes, max(10, records // (nodes * _GPUS)))
        (port,) = free_ports(1)
        environment |= {"ALERTING_LISTEN": f"127.0.0.1:{port}"}
        log = stand.logs / "alerting.log"
        worker = stack.enter_context(running([COMMAND, "alert-engine"], environment, log)).pid
        parts = {"worker": worker} | stand.servers
        wait_for(lambda: stored_gpu_records(port) >= total * _EDGES, "the first records", stand.logs)
        watch, started, before = Stopwatch(parts), time.monotonic(), stored_gpu_records(port)
        wait_for(lambda: stored_gpu_records(port) >= total * (1 - _EDGES), "the last records", stand.logs, 600)
        used, seconds = watch.read(), time.monotonic() - started
        done = stored_gpu_records(port) - before
        figures = {f"replay_{name}_cpu_us_per_record": spent / done * 1e6 for name, spent in used.items()}
        figures["replay_records_per_second"] = done / seconds
        figures["replay_worker_resident_mib"] = resident_bytes(worker) / 2**20
        return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=500_000)
    parser.add_argument("--nodes", type=int, default=500)
    given = parser.parse_args()
    with Stand() as here:
        for name, value in measure(here, given.records, given.nodes).items():
            print(f"{name:36} {value:12.2f}")
