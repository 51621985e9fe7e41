"""The bridge under load: a fleet at a short interval, part of it hanging or refusing, while all of it is fetched again.

`python -m benchmarks.load` runs a thousand nodes for three minutes from a cold start, prints its figures with the
seed, and exits with 1 when a bound is broken. The parts of `BOUNDS` say what is promised.
"""

import argparse
import json
import os
import pickle
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.cpu import cpu_seconds, resident_bytes
from benchmarks.pages import render_fleet
from benchmarks.processes import free_ports, running, wait_for
from gpu_telemetry.local.kafka import KafkaServer

# How often Prometheus fetches all shards, each at an offset of its own.
_FETCH_SECONDS: Final = 5.0
_SAMPLE_SECONDS: Final = 1.0
# A fleet that is new to the bridge: its pages are laid out, and the first turns may come late or be skipped.
_COLD_SECONDS: Final = 10.0
_WARM_SECONDS: Final = 60.0
_SMALL_SHARE: Final = 5  # memory is compared with a fleet this many times smaller
_KIB: Final = 1024

_COMMAND: Final = str(Path(sys.executable).with_name("gpu-telemetry"))

Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


@dataclass(frozen=True)
class Bound:
    """What a figure may be at most."""

    figure: str
    at_most: float
    meaning: str


BOUNDS: Final = (
    Bound("lateness_p99_ms", 50, "99 of 100 turns begin within 50 ms of their time, the cold start included"),
    Bound("skipped_turns_a_node_cold", 1, "no round is skipped but the first"),
    Bound("skipped_turns_warm", 0, "once the fleet is known no turn is skipped"),
    Bound("missing_turns_percent", 0.5, "every healthy node is scraped once an interval"),
    Bound("longest_hold_ms", 10, "no piece of work keeps the loop longer"),
    Bound("bytes_a_node", 25_000, "memory a node, by the slope between two sizes of fleet"),
    Bound("growth_percent", 3, "memory of the last third against the first third after a minute"),
    Bound("failed_fetches", 0, "every shard of /fleet/metrics is given"),
)


@dataclass
class Watch:
    """What is seen of a bridge while it works."""

    port: int
    pid: int
    started: float = field(default_factory=time.monotonic)
    resident: list[tuple[float, int]] = field(default_factory=list)
    fetches: int = 0
    fetched_bytes: int = 0
    failed_fetches: int = 0
    longest_fetch: float = 0.0

    def fetch_all_shards(self) -> None:
        """What Prometheus does: ask for the shards, then fetch each at its own time in the interval."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/sd", timeout=30) as answer:
                groups = json.load(answer)
        except OSError:
            self.failed_fetches += 1
            return
        threads = []
        for group in groups:
            threads.append(threading.Thread(target=self._fetch, args=(group,)))
            threads[-1].start()
            time.sleep(_FETCH_SECONDS / len(groups) / 2)
        for thread in threads:
            thread.join()

    def _fetch(self, group: dict[str, dict[str, str]]) -> None:
        shard = group["labels"]["__param_shard"]
        began = time.monotonic()
        try:
            url = f"http://127.0.0.1:{self.port}/fleet/metrics?shard={shard}"
            with urllib.request.urlopen(url, timeout=30) as answer:
                while piece := answer.read(256 * _KIB):
                    self.fetched_bytes += len(piece)
            self.fetches += 1
            self.longest_fetch = max(self.longest_fetch, time.monotonic() - began)
        except OSError:
            self.failed_fetches += 1

    def numbers(self) -> Samples:
        """The bridge's own metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if family.name.startswith("gpu_bridge_")
        }

    def sample(self, seconds: float) -> None:
        """Note the resident memory for a while, and fetch what Prometheus would."""
        until = time.monotonic() + seconds
        next_fetch = time.monotonic()
        while (now := time.monotonic()) < until:
            self.resident.append((now - self.started, resident_bytes(self.pid)))
            if now >= next_fetch:
                next_fetch = now + _FETCH_SECONDS
                threading.Thread(target=self.fetch_all_shards).start()
            time.sleep(_SAMPLE_SECONDS)

    def resident_between(self, start: float, end: float) -> float:
        """The median of the resident memory in a stretch of time, in bytes."""
        return median([size for at, size in self.resident if start <= at <= end] or [self.resident[-1][1]])


def _sum(samples: Samples, name: str, **labels: str) -> float:
    wanted = set(labels.items())
    return sum(value for (sample, has), value in samples.items() if sample == name and wanted <= set(has))


def _buckets(samples: Samples, name: str) -> list[tuple[float, float]]:
    return sorted(
        (float(dict(labels)["le"]), value) for (sample, labels), value in samples.items() if sample == f"{name}_bucket"
    )


def _quantile(samples: Samples, name: str, share: float) -> float:
    """The bound of the bucket in which this share of the observations lies, so never too small."""
    buckets = _buckets(samples, name)
    return next(bound for bound, count in buckets if count >= share * buckets[-1][1])


@contextmanager
def _refusing(count: int) -> Iterator[list[int]]:
    """Ports that are held and where nobody listens."""
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        yield [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


class Load:
    """Kafka, exporters and, one after the other, bridges before them."""

    def __init__(self, home: Path, *, nodes: int, gpus: int, interval: float, failing: float, seed: int) -> None:
        self.home = home
        self.logs = home / "logs"
        self.logs.mkdir()
        self.interval = interval
        self._chance = random.Random(seed)
        self._gpus = gpus
        bad = self._chance.sample(range(nodes), 2 * round(nodes * failing))
        self.hanging, self.refusing = set(bad[::2]), set(bad[1::2])
        self.nodes = nodes
        self.healthy = nodes - len(bad)
        self._ports: list[int] = []
        self._kafka: KafkaServer | None = None

    def start(self, stack: ExitStack) -> None:
        """Start what the bridges stand between."""
        print(f"rendering the pages of {self.nodes} nodes with {self._gpus} GPUs each", file=sys.stderr)
        pages = self.home / "pages.pickle"
        pages.write_bytes(pickle.dumps(render_fleet(self.nodes, self._gpus, variants=2)))
        kafka_port, controller_port = free_ports(2)
        self._kafka = KafkaServer(self.home / "kafka", kafka_port, controller_port, log=self.logs / "kafka.log")
        stack.callback(self._kafka.stop)
        self._kafka.start()
        self._environment = {"KAFKA_BOOTSTRAP_SERVERS": self._kafka.bootstrap}
        subprocess.run([_COMMAND, "topics", "ensure"], env=os.environ | self._environment, check=True)
        told = self.logs / "pages.log"
        hang = ",".join(map(str, sorted(self.hanging)))
        command = [sys.executable, "-m", "benchmarks.page_server", "0", str(pages), "--hang", hang]
        stack.enter_context(running(command, {}, told))
        wait_for(lambda: told.read_text().endswith("]\n"), "the exporters", self.logs)
        self._ports = json.loads(told.read_text())
        refused = stack.enter_context(_refusing(len(self.refusing)))
        for node, port in zip(sorted(self.refusing), refused, strict=True):
            self._ports[node] = port

    @property
    def broker(self) -> int:
        """The process id of Kafka."""
        assert self._kafka is not None
        assert self._kafka.pid is not None
        return self._kafka.pid

    def targets(self, nodes: Iterable[int]) -> Path:
        """A file that lists these nodes."""
        groups = [
            {
                "targets": [f"127.0.0.1:{self._ports[node]}"],
                "labels": {
                    "__metrics_path__": f"/nodes/{node}/metrics",
                    "node_id": f"node-{node}",
                    "instance": f"node-{node}:9400",
                    "datacenter": "bench",
                },
            }
            for node in nodes
        ]
        file = self.home / f"targets-{len(groups)}.json"
        file.write_text(json.dumps(groups))
        return file

    @contextmanager
    def bridge(self, nodes: Iterable[int]) -> Iterator[Watch]:
        """A fresh bridge before these nodes, once it answers."""
        (port,) = free_ports(1)
        environment = self._environment | {
            "BRIDGE_LISTEN": f"127.0.0.1:{port}",
            "BRIDGE_TARGETS_FILE": str(self.targets(nodes)),
            "BRIDGE_INTERVAL_SECONDS": f"{self.interval:g}",
        }
        with running([_COMMAND, "bridge"], environment, self.logs / "bridge.log") as child:
            watch = Watch(port, child.pid)
            wait_for(lambda: bool(watch.numbers()), "the bridge", self.logs)
            watch.started = time.monotonic()
            yield watch


def measure(load: Load, seconds: float, slope_seconds: float) -> dict[str, float]:
    """Run a small fleet for its memory, then the whole one from a cold start; give the figures."""
    everyone = range(load.nodes)
    few = everyone[::_SMALL_SHARE]
    small_resident = 0.0
    if slope_seconds:
        print(f"{len(few)} nodes for {slope_seconds:g} s", file=sys.stderr)
        with load.bridge(few) as watch:
            watch.sample(slope_seconds)
            small_resident = watch.resident_between(slope_seconds / 2, slope_seconds)
    print(f"{load.nodes} nodes for {seconds:g} s", file=sys.stderr)
    with load.bridge(everyone) as watch:
        cold = min(_COLD_SECONDS * max(1.0, load.interval), seconds / 3)
        watch.sample(cold)
        used, broker = cpu_seconds(watch.pid), cpu_seconds(load.broker)
        began, before = time.monotonic(), watch.numbers()
        watch.sample(seconds - cold)
        after, ended = watch.numbers(), time.monotonic()
        used, broker = cpu_seconds(watch.pid) - used, cpu_seconds(load.broker) - broker
    figures = _work(load, before, after, used, ended - began)
    figures["broker_cpu_us_a_record"] = broker / used * figures["cpu_us_a_record"]
    figures |= _promptness(load, before, after)
    figures |= _memory(watch, seconds)
    figures["shards_fetched"] = watch.fetches
    figures["failed_fetches"] = watch.failed_fetches
    figures["fetched_mb"] = watch.fetched_bytes / 1e6
    figures["longest_fetch_seconds"] = watch.longest_fetch
    if slope_seconds:
        figures["small_fleet_resident_mb"] = small_resident / 1e6
        figures["bytes_a_node"] = (figures["resident_mb"] * 1e6 - small_resident) / (load.nodes - len(few))
    return figures


def _work(load: Load, before: Samples, after: Samples, cpu: float, seconds: float) -> dict[str, float]:
    """What was done while the fleet was known, and what it took."""
    records = _sum(after, "gpu_bridge_gpu_records_total") - _sum(before, "gpu_bridge_gpu_records_total")
    good = sum(
        sign * (_sum(samples, "gpu_bridge_scrapes_total") - _sum(samples, "gpu_bridge_scrape_failures_total"))
        for sign, samples in ((1, after), (-1, before))
    )
    expected = load.healthy * seconds / load.interval
    return {
        "good_scrapes_a_second": good / seconds,
        "missing_turns_percent": max(0.0, 100 * (1 - good / expected)),
        "cpu_us_a_record": cpu / records * 1e6,
        "cpu_percent": cpu / seconds * 100,
        "dropped_scrapes": _sum(after, "gpu_bridge_dropped_scrapes_total"),
    }


def _promptness(load: Load, before: Samples, after: Samples) -> dict[str, float]:
    """How late turns began and how long the loop was held, from the start on; which turns were skipped."""
    lateness, hold = "gpu_bridge_turn_lateness_seconds", "gpu_bridge_loop_hold_seconds"
    cold = _sum(before, "gpu_bridge_scrape_failures_total", reason="overrun")
    holds = dict(_buckets(after, hold))
    return {
        "lateness_p50_ms": 1000 * _quantile(after, lateness, 0.5),
        "lateness_p99_ms": 1000 * _quantile(after, lateness, 0.99),
        "lateness_p999_ms": 1000 * _quantile(after, lateness, 0.999),
        "skipped_turns_a_node_cold": cold / load.healthy,
        "skipped_turns_warm": _sum(after, "gpu_bridge_scrape_failures_total", reason="overrun") - cold,
        "hold_p99_ms": 1000 * _quantile(after, hold, 0.99),
        "holds_over_10_ms": holds[float("inf")] - holds[0.01],
        "longest_hold_ms": 1000 * _quantile(after, hold, 1.0),
    }


def _memory(watch: Watch, seconds: float) -> dict[str, float]:
    """The bridge's size at the end, and its growth since everything was warm."""
    warm = min(_WARM_SECONDS, seconds / 3)
    third = (seconds - warm) / 3
    last = watch.resident_between(seconds - third, seconds)
    return {
        "resident_mb": last / 1e6,
        "growth_percent": 100 * (last / watch.resident_between(warm, warm + third) - 1),
    }


def broken(figures: Mapping[str, float]) -> list[str]:
    """Each bound that does not hold, in words."""
    return [
        f"{bound.figure} is {figures[bound.figure]:,.2f}, at most {bound.at_most:,g} is promised: {bound.meaning}"
        for bound in BOUNDS
        if bound.figure in figures and figures[bound.figure] > bound.at_most
    ]


def run(
    nodes: int = 1000,
    gpus: int = 8,
    interval: float = 1.0,
    seconds: float = 180,
    failing: float = 0.05,
    seed: int = 1,
    slope_seconds: float = 60,
) -> dict[str, float]:
    """The figures of one run; `failing` is the share that hangs, and the share that refuses."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpu-telemetry-load-")))
        load = Load(home, nodes=nodes, gpus=gpus, interval=interval, failing=failing, seed=seed)
        load.start(stack)
        return measure(load, seconds, slope_seconds)


def main() -> None:
    """Run it as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--interval", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--failing", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--slope-seconds", type=float, default=60, help="for how long a fifth of the fleet runs before")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    figures = run(**{name.replace("-", "_"): value for name, value in vars(given).items()})
    for name, value in figures.items():
        print(f"{name:28} {value:14,.2f}")
    failures = broken(figures)
    print("\n".join(failures) or "every bound holds")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
