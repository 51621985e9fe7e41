"""What a GPU record costs from page to row: the CPU of bridge, broker, worker and PostgreSQL, each from the system.

Pages are rendered ahead and served from memory, so the exporters' own cost stays out. Run alone by
`python -m benchmarks.end_to_end --nodes 100 --seconds 20`.
"""

import argparse
import json
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.cpu import Machine, Stopwatch, family_bytes
from benchmarks.processes import free_ports, running, wait_for
from benchmarks.stand import COMMAND, Stand

PARTS: Final = ("bridge", "broker", "worker", "postgres")


@dataclass(frozen=True, slots=True)
class Load:
    """A fleet, how often it is scraped, and how long it is measured: whole rounds, so that each node counts alike."""

    nodes: int
    gpus: int = 8
    interval_seconds: float = 1.0
    warm_up_seconds: float = 10.0
    seconds: float = 20.0

    @property
    def records(self) -> float:
        """The GPU records that the time measured should bring."""
        return self.nodes * self.gpus * self.seconds / self.interval_seconds


@dataclass(frozen=True, slots=True)
class Cost:
    """What one load cost. CPU is in microseconds for each GPU record, by process; memory in bytes at the end."""

    load: Load
    records: float
    cpu_us: Mapping[str, float]
    resident_bytes: Mapping[str, int]
    machine_busy: float
    machine_stolen: float

    @property
    def total_us(self) -> float:
        """CPU of all processes together, for each GPU record."""
        return sum(self.cpu_us.values())

    @property
    def kept_up(self) -> bool:
        """Whether the records of the time measured came in it."""
        return self.records >= 0.95 * self.load.records


def write_targets(file: Path, nodes: int, port: int) -> None:
    """A file_sd file that names every node of the exporters at `port`."""
    file.write_text(
        json.dumps(
            [
                {
                    "targets": [f"127.0.0.1:{port}"],
                    "labels": {
                        "__metrics_path__": f"/nodes/{node}/metrics",
                        "node_id": f"node-{node}",
                        "instance": f"node-{node}:9400",
                        "datacenter": "bench",
                    },
                }
                for node in range(nodes)
            ]
        ),
        encoding="utf-8",
    )


def stored_gpu_records(port: int) -> float:
    """How many GPU records the alert engine says it has stored, on its own /metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "alert_engine_records_stored_total" and sample.labels["kind"] == "gpu"
    )


def measure(stand: Stand, load: Load) -> Cost:
    """Run the whole path on the stand for a while."""
    with ExitStack() as stack:
        print(f"  {load.nodes} nodes x {load.gpus} GPUs every {load.interval_seconds:g} s ...", file=sys.stderr)
        page_port = stack.enter_context(stand.exporters(load.nodes, load.gpus))
        environment = stack.enter_context(stand.fresh())
        bridge_port, alerting_port = free_ports(2)
        targets = stand.home / "targets.json"
        write_targets(targets, load.nodes, page_port)
        environment |= {
            "BRIDGE_LISTEN": f"127.0.0.1:{bridge_port}",
            "BRIDGE_TARGETS_FILE": str(targets),
            "BRIDGE_INTERVAL_SECONDS": f"{load.interval_seconds:g}",
            "ALERTING_LISTEN": f"127.0.0.1:{alerting_port}",
        }
        worker = stack.enter_context(running([COMMAND, "alert-engine"], environment, stand.logs / "alerting.log")).pid
        bridge = stack.enter_context(running([COMMAND, "bridge"], environment, stand.logs / "bridge.log")).pid
        parts = {"bridge": bridge, "worker": worker} | stand.servers

        wait_for(lambda: stored_gpu_records(alerting_port) >= load.nodes * load.gpus, "the first records", stand.logs)
        time.sleep(load.warm_up_seconds)
        watch, machine = Stopwatch(parts), Machine.now()
        records = stored_gpu_records(alerting_port)
        time.sleep(load.seconds)
        records = stored_gpu_records(alerting_port) - records
        used = watch.read()
        busy, stolen = Machine.now().since(machine)
        cost = Cost(
            load=load,
            records=records,
            cpu_us={name: used[name] / records * 1e6 for name in PARTS},
            resident_bytes={name: family_bytes(parts[name]) for name in PARTS},
            machine_busy=busy,
            machine_stolen=stolen,
        )
        if not cost.kept_up:
            print(f"  the machine did not keep up: {records:.0f} of {load.records:.0f} records", file=sys.stderr)
        return cost


def table(costs: Sequence[Cost]) -> list[str]:
    """Costs side by side, as lines."""
    lines = [
        f"  {'nodes':>6} {'every':>6} {'records/s':>10} "
        + "".join(f"{name:>10}" for name in PARTS)
        + f"{'together':>10} {'machine busy':>14}   (CPU us a GPU record)"
    ]
    lines += [
        f"  {cost.load.nodes:>6,} {cost.load.interval_seconds:>4g} s {cost.records / cost.load.seconds:>10,.0f} "
        + "".join(f"{cost.cpu_us[name]:>10.1f}" for name in PARTS)
        + f"{cost.total_us:>10.1f} {cost.machine_busy:>13.0%}"
        + ("" if cost.kept_up else "   did not keep up")
        for cost in costs
    ]
    lines.append(f"  {'nodes':>6} " + " " * 18 + "".join(f"{name:>10}" for name in PARTS) + f"{'':>24}    (MiB in RAM)")
    lines += [
        f"  {cost.load.nodes:>6,} "
        + " " * 18
        + "".join(f"{cost.resident_bytes[name] / 2**20:>10.1f}" for name in PARTS)
        for cost in costs
    ]
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[100])
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--interval", type=float, default=1.0)
    parser.add_argument("--warm-up", type=float, default=10)
    parser.add_argument("--seconds", type=float, default=20)
    given = parser.parse_args()
    with Stand() as here:
        measured = [
            measure(here, Load(nodes, given.gpus, given.interval, given.warm_up, given.seconds))
            for nodes in given.nodes
        ]
    print("\n".join(table(measured)))
