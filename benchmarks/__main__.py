"""`make bench`: what everything costs, in one run, as tables and, with BENCH_JSON=FILE, as JSON.

Figures are CPU microseconds from the operating system, by process. Absolute ones depend on the machine and on what else
it does. Those that bind are ratios to yardsticks of the same run: prometheus_client's parser on the same pages, and a
plain pipeline on the same servers (benchmarks/plain.py).
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil

from benchmarks import end_to_end, engine, parse, plain, replay, stages
from benchmarks.cpu import Machine
from benchmarks.end_to_end import Cost, Load
from benchmarks.stand import Stand

_GPUS: Final = 8
_SAMPLES_A_GPU: Final = 25
# As many records a second at each size, so that what differs is the fleet's size; two cores keep up with them.
_LOADS: Final = (
    Load(100, interval_seconds=0.1),
    Load(1000, interval_seconds=1.0),
    Load(5000, interval_seconds=5.0),
)
_QUICK_LOADS: Final = (
    Load(100, interval_seconds=0.1, warm_up_seconds=4, seconds=6),
    Load(1000, interval_seconds=1.0, warm_up_seconds=4, seconds=8),
)
# The size whose figures stand for the whole.
_TYPICAL_NODES: Final = 1000
_REPLAYED_RECORDS: Final = 200_000


def main() -> None:
    """Run everything, print the tables as they come, and write the figures at the end."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter and up to 1,000 nodes: about a minute")
    quick = parser.parse_args().quick
    started, machine = time.monotonic(), Machine.now()

    figures: dict[str, float] = {}
    _title("Reading a page")
    _show(figures, parse.run())
    _title("Rules")
    _show(figures, engine.run())
    with Stand() as stand:
        _title("Each stage alone")
        alone = stages.run(stand)
        print("\n".join(stages.table(alone)), flush=True)
        figures |= {f"stage_{_slug(stage.name)}_cpu_us_per_record": stage.us_per_record for stage in alone}
        figures["stages_cpu_us_per_record"] = sum(stage.us_per_record for stage in alone)

        _title("From page to row, all processes (pages rendered ahead; Apache Kafka, PostgreSQL)")
        costs = [end_to_end.measure(stand, load) for load in (_QUICK_LOADS if quick else _LOADS)]
        print("\n".join(end_to_end.table(costs)), flush=True)
        figures |= _of_costs(costs)

        if not quick:
            _title("A full topic, taken in by one alert engine")
            _show(figures, replay.measure(stand, _REPLAYED_RECORDS))

        _title("The plain pipeline on the same pages")
        yardstick = plain.measure(stand, seconds=5 if quick else 10)
        _show(figures, {f"plain_{name}_cpu_us_per_record": value for name, value in yardstick.cpu_us.items()})
        figures["plain_cpu_us_per_record"] = yardstick.total_us
        figures["plain_scrape_to_kafka_cpu_us_per_page"] = yardstick.scrape_us_per_page

    _title("What counts")
    _show(figures, _ratios(figures))
    busy, stolen = Machine.now().since(machine)
    _show(figures, {"machine_busy_percent": busy * 100, "machine_stolen_percent": stolen * 100})
    print(f"\n{time.monotonic() - started:.0f} s on {os.cpu_count()} cores, load {psutil.getloadavg()[1]:.1f}")
    if target := os.environ.get("BENCH_JSON"):
        Path(target).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        print(f"written to {target}", file=sys.stderr)


def _of_costs(costs: Sequence[Cost]) -> dict[str, float]:
    """Each load's figures, and how memory grows with the fleet between the smallest and the largest."""
    figures: dict[str, float] = {}
    for cost in costs:
        prefix = f"end_to_end_{cost.load.nodes}_nodes"
        figures |= {f"{prefix}_{name}_cpu_us_per_record": value for name, value in cost.cpu_us.items()}
        figures |= {f"{prefix}_{name}_resident_bytes": value for name, value in cost.resident_bytes.items()}
        figures[f"{prefix}_cpu_us_per_record"] = cost.total_us
        figures[f"{prefix}_kept_up"] = float(cost.kept_up)
    typical = next(cost for cost in costs if cost.load.nodes == _TYPICAL_NODES)
    smallest, largest = costs[0], costs[-1]
    nodes = largest.load.nodes - smallest.load.nodes
    growth = {
        name: (largest.resident_bytes[name] - smallest.resident_bytes[name]) / nodes for name in ("bridge", "worker")
    }
    return figures | {
        "end_to_end_cpu_us_per_record": typical.total_us,
        "scrape_to_kafka_cpu_us_per_page": typical.cpu_us["bridge"] * _GPUS,
        "bridge_bytes_per_node": growth["bridge"],
        "worker_bytes_per_gpu": growth["worker"] / _GPUS,
    }


def _ratios(figures: dict[str, float]) -> dict[str, float]:
    record = figures["end_to_end_cpu_us_per_record"]
    page = figures["scrape_to_kafka_cpu_us_per_page"]
    client_us = figures["prometheus_client_us_per_sample"] * _SAMPLES_A_GPU
    return {
        "end_to_end_cpu_us_per_record": record,
        "end_to_end_ratio_to_plain": figures["plain_cpu_us_per_record"] / record,
        "end_to_end_ratio_to_prometheus_client": client_us / record,
        "scrape_to_kafka_cpu_us_per_page": page,
        "scrape_to_kafka_ratio_to_plain": figures["plain_scrape_to_kafka_cpu_us_per_page"] / page,
        "scrape_to_kafka_ratio_to_prometheus_client": client_us * _GPUS / page,
        "parser_ratio_to_prometheus_client": figures["parser_ratio_to_prometheus_client"],
        "bridge_bytes_per_node": figures["bridge_bytes_per_node"],
        "worker_bytes_per_gpu": figures["worker_bytes_per_gpu"],
    }


def _slug(name: str) -> str:
    return "_".join("".join(letter if letter.isalnum() else " " for letter in name.lower()).split())


def _title(text: str) -> None:
    print(f"\n{text}", flush=True)


def _show(figures: dict[str, float], measured: dict[str, float]) -> None:
    for name, value in measured.items():
        figures[name] = value
        print(f"  {name:46} {value:14,.2f}", flush=True)


if __name__ == "__main__":
    main()
