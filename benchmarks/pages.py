"""Realistic pages for the benchmarks, rendered ahead by the emulated fleet."""

from datetime import UTC, datetime

from emulator.fleet import Fleet
from emulator.settings import EmulatorSettings
from gpu_telemetry.clock import ManualClock


def render_fleet(nodes: int, gpus: int, variants: int) -> list[list[bytes]]:
    """Per node, `variants` pages a second apart: other values and another order of blocks, hardly ever another pod."""
    clock = ManualClock(datetime(2026, 1, 31, tzinfo=UTC))
    fleet = Fleet(EmulatorSettings.load(nodes=nodes, gpus=gpus, seed=1), clock)
    pages: list[list[bytes]] = [[] for _ in range(nodes)]
    for _ in range(variants):
        for node, bodies in enumerate(pages):
            bodies.append(fleet.page(f"node-{node + 1}"))
        clock.advance(1.0)
    return pages
