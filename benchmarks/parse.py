"""What reading a page costs: our parser on known and on new pages, prometheus_client's on the same, and the records.

Every figure comes from one run on one machine: a page of 8 GPUs with 25 fields each, as an exporter in Kubernetes
prints it, with other values and another order of blocks at every scrape.
"""

import gc
import random
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from exporter_bridge.exposition import Exposition
from exporter_bridge.records import RecordBuilder, Turn

GPUS: Final = 8
_ROUNDS: Final = 7
_SCRAPES: Final = 40
_NODES_FOR_MEMORY: Final = 200

# Name, type, least and largest value; a range of floats is printed with six decimals, as DCGM's doubles are.
_FIELDS: Final[tuple[tuple[str, str, float, float], ...]] = (
    ("DCGM_FI_DEV_SM_CLOCK", "gauge", 1000, 1980),
    ("DCGM_FI_DEV_MEM_CLOCK", "gauge", 2619, 2619),
    ("DCGM_FI_DEV_MEMORY_TEMP", "gauge", 40, 90),
    ("DCGM_FI_DEV_GPU_TEMP", "gauge", 30, 85),
    ("DCGM_FI_DEV_POWER_USAGE", "gauge", 80.0, 700.0),
    ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "counter", 10**11, 10**12),
    ("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", "counter", 0, 3),
    ("DCGM_FI_DEV_GPU_UTIL", "gauge", 0, 100),
    ("DCGM_FI_DEV_MEM_COPY_UTIL", "gauge", 0, 100),
    ("DCGM_FI_DEV_ENC_UTIL", "gauge", 0, 0),
    ("DCGM_FI_DEV_DEC_UTIL", "gauge", 0, 0),
    ("DCGM_FI_DEV_XID_ERRORS", "gauge", 0, 0),
    ("DCGM_FI_DEV_FB_FREE", "gauge", 1000, 80000),
    ("DCGM_FI_DEV_FB_USED", "gauge", 0, 80000),
    ("DCGM_FI_DEV_FB_RESERVED", "gauge", 600, 700),
    ("DCGM_FI_DEV_VGPU_LICENSE_STATUS", "gauge", 0, 0),
    ("DCGM_FI_DEV_ROW_REMAP_FAILURE", "gauge", 0, 0),
    ("DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS", "counter", 0, 0),
    ("DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS", "counter", 0, 2),
    ("DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL", "counter", 10**9, 10**12),
    ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", "gauge", 0.0, 1.0),
    ("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "gauge", 0.0, 1.0),
    ("DCGM_FI_PROF_DRAM_ACTIVE", "gauge", 0.0, 1.0),
    ("DCGM_FI_PROF_PCIE_TX_BYTES", "gauge", 10**6, 10**10),
    ("DCGM_FI_PROF_PCIE_RX_BYTES", "gauge", 10**6, 10**10),
)
SAMPLES: Final = GPUS * len(_FIELDS)


def page(node: int, source: random.Random) -> bytes:
    """One scrape of a node's exporter; labels depend on the node alone."""
    blocks = []
    for name, kind, low, high in source.sample(_FIELDS, len(_FIELDS)):
        lines = [f"# HELP {name} {name.removeprefix('DCGM_FI_').replace('_', ' ').lower()}.", f"# TYPE {name} {kind}"]
        for gpu in range(GPUS):
            whole = isinstance(low, int)
            value = source.randint(int(low), int(high)) if whole else f"{source.uniform(low, high):.6f}"
            lines.append(f"{name}{{{_labels(node, gpu)}}} {value}")
        blocks.append("\n".join(lines) + "\n")
    return "".join(blocks).encode()


def _labels(node: int, gpu: int) -> str:
    return (
        f'gpu="{gpu}",UUID="GPU-{node:08x}-{gpu:04x}-4d3e-9a10-5e6f70819200",'
        f'pci_bus_id="00000000:{7 + 8 * gpu:02X}:00.0",device="nvidia{gpu}",'
        f'modelName="NVIDIA H100 80GB HBM3",Hostname="gpu-node-{node:05d}.cluster.example",'
        f'DCGM_FI_DRIVER_VERSION="550.90.07",container="trainer",namespace="ml-training",'
        f'pod="pretrain-{node:05d}-{gpu}"'
    )


def turn(seq: int) -> Turn:
    """A good turn of the node that the records are built for."""
    return Turn(
        node_id="gpu-node-00001",
        bridge_id="bridge-0",
        boot_id="0198c5f0-7b1e-7cc3-98c4-dc0c0c07398f",
        seq=seq,
        collected_at_ms=1_700_000_000_000 + seq * 30_000,
        interval_ms=30_000,
        datacenter="us-west-1",
        instance="gpu-node-00001:9400",
        duration_ms=12.5,
    )


def _fastest_us(work: Callable[[], object], units: int) -> float:
    """Microseconds of CPU a unit in the best of several rounds: what the work costs where nothing else disturbs."""
    best = float("inf")
    for _ in range(_ROUNDS):
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return best / units * 1e6


def _bytes_per_node() -> float:
    """What a node costs in memory between scrapes: its layouts, its last page, the constant parts of its records."""
    source = random.Random(3)
    exposition = Exposition()
    kept: list[object] = []

    def add(node: int) -> None:
        parser, builder = exposition.parser(), RecordBuilder()
        for seq in (1, 2):
            read = parser.parse(page(node, source))
            builder.build(read, turn(seq))
        read.compact()
        kept.append((parser, builder, read))

    add(0)  # what the fleet shares is paid once
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for node in range(1, _NODES_FOR_MEMORY + 1):
            add(node)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return (after - before) / _NODES_FOR_MEMORY


def run() -> dict[str, float]:
    """Measure; microseconds of CPU, bytes, and how many times faster than prometheus_client a known page is read."""
    source = random.Random(1)
    scrapes = [page(1, source) for _ in range(_SCRAPES)]
    strangers = [page(node, source) for node in range(2, 2 + _SCRAPES)]
    text = scrapes[0].decode()

    parser, builder = Exposition().parser(), RecordBuilder()
    pages = [parser.parse(body) for body in scrapes]
    assert all(one.samples == SAMPLES and not one.refused for one in pages)
    assert len(list(text_string_to_metric_families(text))) == len(_FIELDS)

    def known() -> None:
        for body in scrapes:
            parser.parse(body)

    def cold() -> None:
        exposition = Exposition()
        for body in strangers:
            exposition.parser().parse(body)

    def client() -> None:
        for _ in text_string_to_metric_families(text):
            pass

    def records() -> None:
        for seq, one in enumerate(pages, start=1):
            builder.build(one, turn(seq))

    known_us = _fastest_us(known, SAMPLES * len(scrapes))
    client_us = _fastest_us(client, SAMPLES)
    # Once more: on a machine whose speed drifts, the ratio takes the two that were measured side by side.
    known_us = min(known_us, _fastest_us(known, SAMPLES * len(scrapes)))
    return {
        "parser_us_per_sample": known_us,
        "prometheus_client_us_per_sample": client_us,
        "parser_ratio_to_prometheus_client": client_us / known_us,
        "parser_cold_us_per_sample": _fastest_us(cold, SAMPLES * len(strangers)),
        "records_us_per_record": _fastest_us(records, GPUS * len(pages)),
        "bytes_per_node": _bytes_per_node(),
    }


def _report(figures: dict[str, float]) -> Sequence[str]:
    return (
        f"A page of {GPUS} GPUs with {len(_FIELDS)} fields, {SAMPLES} samples:",
        f"  known layout        {figures['parser_us_per_sample']:8.3f} us a sample",
        f"  new page            {figures['parser_cold_us_per_sample']:8.3f} us a sample",
        f"  prometheus_client   {figures['prometheus_client_us_per_sample']:8.3f} us a sample",
        f"  known layout is     {figures['parser_ratio_to_prometheus_client']:8.1f} times as fast as prometheus_client",
        f"  building records    {figures['records_us_per_record']:8.3f} us a GPU record, closing record included",
        f"  memory              {figures['bytes_per_node'] / 1000:8.1f} kB a node: layouts, last page, record parts",
    )


if __name__ == "__main__":
    print("\n".join(_report(run())))
