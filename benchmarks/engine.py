"""What the alert engine costs: CPU time a record of a fleet in which nothing happens, closing records included."""

import random
import time
from datetime import UTC, datetime, timedelta

from alerting.engine import Engine
from alerting.rules import load_rules
from gpu_telemetry.records import SCHEMA_VERSION, GpuRecord, ScrapeRecord

_NODES = 50
_GPUS = 8
_TURNS = 50


def run() -> dict[str, float]:
    """Microseconds of CPU for each GPU record, and for each closing record."""
    engine = Engine(load_rules())
    states = [engine.new_node(f"node-{node}") for node in range(_NODES)]
    uuids = [[f"GPU-{node}-{gpu}" for gpu in range(_GPUS)] for node in range(_NODES)]
    chance = random.Random(1)
    gpu_seconds = turn_seconds = 0.0
    transitions = 0
    for seq in range(1, _TURNS + 1):
        at = datetime(2026, 1, 31, tzinfo=UTC) + timedelta(seconds=30 * seq)
        gpus = [
            (state, _gpu(chance, node, index, uuids[node][index], seq, at))
            for node, state in enumerate(states)
            for index in range(_GPUS)
        ]
        turns = [(state, _turn(node, uuids[node], seq, at)) for node, state in enumerate(states)]
        started = time.process_time()
        for state, record in gpus:
            transitions += len(engine.fold(state, record))
        between = time.process_time()
        for state, turn in turns:
            transitions += len(engine.fold(state, turn))
        ended = time.process_time()
        if seq > 1:  # the first turn makes the GPUs known
            gpu_seconds += between - started
            turn_seconds += ended - between
    if transitions:
        raise RuntimeError(f"a healthy fleet gave {transitions} transitions")
    turns_measured = _TURNS - 1
    return {
        "engine_us_per_record": gpu_seconds / (turns_measured * _NODES * _GPUS) * 1e6,
        "engine_us_per_closing_record": turn_seconds / (turns_measured * _NODES) * 1e6,
    }


def _gpu(chance: random.Random, node: int, index: int, uuid: str, seq: int, at: datetime) -> GpuRecord:
    return GpuRecord(
        schema_version=SCHEMA_VERSION,
        node_id=f"node-{node}",
        bridge_id="bridge-1",
        boot_id="boot-1",
        seq=seq,
        collected_at=at,
        gpu_index=index,
        gpu_uuid=uuid,
        model="NVIDIA H100 80GB HBM3",
        temperature_celsius=chance.uniform(40, 80),
        power_watts=chance.uniform(70, 660),
        energy_joules=seq * 9000 + chance.uniform(0, 100),
        memory_used_percent=chance.uniform(10, 90),
        xid_code=0,
        row_remap_failure=0,
        ecc_double_bit_volatile=0,
        fields={"DCGM_FI_DEV_VGPU_LICENSE_STATUS": 0.0},
    )


def _turn(node: int, uuids: list[str], seq: int, at: datetime) -> ScrapeRecord:
    return ScrapeRecord(
        schema_version=SCHEMA_VERSION,
        node_id=f"node-{node}",
        bridge_id="bridge-1",
        boot_id="boot-1",
        seq=seq,
        collected_at=at,
        up=True,
        gpu_records=_GPUS,
        gpu_uuids=list(uuids),
        interval_ms=30_000,
        changed_at=at,
    )


if __name__ == "__main__":
    for name, value in run().items():
        print(f"{name}: {value:.2f}")
