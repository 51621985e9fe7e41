"""Side by side, in one run: what a page costs from scrape to Kafka, what a target costs in memory, what is lost."""

import argparse
import json
import os
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

from confluent_kafka import Consumer

from benchmarks.cpu import Machine, Stopwatch, resident_bytes
from benchmarks.peers.contenders import ALL, Contender, Work
from benchmarks.processes import free_ports, running, wait_for
from benchmarks.stand import Stand, messages_in

_GPUS: Final = 8
_DRAIN_SECONDS: Final = 5.0


class Result(NamedTuple):
    """One contender at one size: CPU microseconds for each page, its own and the broker's; bytes; shares of 1.

    `lost` are the pages that were fetched since the start and had not come to Kafka some seconds later.
    """

    title: str
    cpu_us_per_page: float
    broker_us_per_page: float
    resident_bytes: int
    lost: float
    machine_busy: float


def measure(
    stand: Stand, contender: Callable[[Work], Contender], nodes: int, interval: float, warm_up: float, rounds: int
) -> Result:
    """Let a contender work for a few rounds."""
    with ExitStack() as stack:
        port = stack.enter_context(stand.exporters(nodes, _GPUS))
        environment = stack.enter_context(stand.fresh())
        topic = environment["KAFKA_TOPIC"]
        (free,) = free_ports(1)
        work = Work(nodes, interval, port, free, stand.kafka.bootstrap, topic, stand.home)
        chosen = contender(work)
        watched = Consumer({"bootstrap.servers": stand.kafka.bootstrap, "group.id": "watch"})
        stack.callback(watched.close)

        def delivered() -> float:
            return chosen.pages(messages_in(watched, topic))

        process = stack.enter_context(running(chosen.command, chosen.environment, stand.logs / "contender.log")).pid
        wait_for(lambda: delivered() >= nodes, f"a page of every node from {chosen.title}", stand.logs)
        time.sleep(warm_up)
        watch, machine, before = Stopwatch({"own": process} | stand.servers), Machine.now(), delivered()
        time.sleep(interval * rounds)
        used, pages = watch.read(), delivered() - before
        busy, _ = Machine.now().since(machine)
        # What is under way counts neither way: what was fetched until now has as long to arrive.
        fetched = _served(port)
        time.sleep(_DRAIN_SECONDS)
        arrived = delivered()
        return Result(
            chosen.title,
            used["own"] / pages * 1e6,
            used["broker"] / pages * 1e6,
            resident_bytes(process),
            max(0.0, 1 - arrived / fetched),
            busy,
        )


def _served(port: int) -> int:
    """How many pages the exporters have served."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/served/", timeout=5) as answer:
        return int(answer.read())


def main() -> None:
    """Measure each contender at two sizes; what a target costs in memory is the slope between them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--nodes", type=int, nargs=2, default=[100, 500])
    parser.add_argument("--interval", type=float, default=5.0)
    parser.add_argument("--warm-up", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    few, many = given.nodes
    print(f"{many} nodes x {_GPUS} GPUs, 200 samples a page, every {given.interval:g} s; CPU us a page:")
    print(f"{'':34}{'own':>9}{'x ours':>8}{'broker':>9}{'lost':>8}{'MiB':>8}{'KiB/target':>12}{'machine busy':>14}")
    figures: dict[str, float] = {}
    ours: float | None = None
    with Stand() as stand:
        for contender in ALL:
            small, large = (
                measure(stand, contender, nodes, given.interval, given.warm_up, given.rounds) for nodes in (few, many)
            )
            ours = ours or large.cpu_us_per_page
            slope = (large.resident_bytes - small.resident_bytes) / (many - few)
            print(
                f"{large.title:34}{large.cpu_us_per_page:9,.0f}{large.cpu_us_per_page / ours:8.1f}"
                f"{large.broker_us_per_page:9,.0f}{large.lost:8.1%}{large.resident_bytes / 2**20:8.0f}"
                f"{slope / 1024:12.1f}{large.machine_busy:14.0%}",
                flush=True,
            )
            figures |= {
                f"{contender.__name__}_cpu_us_per_page": large.cpu_us_per_page,
                f"{contender.__name__}_broker_us_per_page": large.broker_us_per_page,
                f"{contender.__name__}_bytes_per_target": slope,
                f"{contender.__name__}_lost": large.lost,
            }
    if target := os.environ.get("BENCH_JSON"):
        Path(target).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
