"""The GPU models that can be emulated: what they draw, how warm that makes them, and how MIG splits them.

Names are what the driver reports as `modelName`; power limits, clocks and memory sizes are from NVIDIA's data sheets
and from nvidia-smi. The thermal resistance is chosen so that a GPU under full load in a warm room stays below 82 °C.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class MigSlice:
    """One GPU instance of a split GPU: its profile, its `GPU_I_ID`, its sevenths of the GPU and its memory in MiB."""

    profile: str
    instance_id: int
    sevenths: int
    memory_mib: int


@dataclass(frozen=True, slots=True)
class GpuModel:
    """One model. `sustained_watts` is the most that a job makes it draw; the power limit `tdp_watts` lies above it."""

    name: str
    tdp_watts: float
    sustained_watts: float
    idle_watts: float
    memory_mib: int
    reserved_mib: int
    sm_clock_mhz: int
    idle_clock_mhz: int
    memory_clock_mhz: int
    kelvin_per_watt: float
    has_memory_sensor: bool
    nvlinks: int
    nvlink_mib_per_second: float
    mig: tuple[MigSlice, ...] = ()


MODELS: Final[dict[str, GpuModel]] = {
    "h100": GpuModel(
        name="NVIDIA H100 80GB HBM3",
        tdp_watts=700,
        sustained_watts=660,
        idle_watts=70,
        memory_mib=81559,
        reserved_mib=551,
        sm_clock_mhz=1980,
        idle_clock_mhz=345,
        memory_clock_mhz=2619,
        kelvin_per_watt=0.072,
        has_memory_sensor=True,
        nvlinks=18,
        nvlink_mib_per_second=180_000,
        mig=(
            MigSlice("3g.40gb", 2, 3, 40448),
            MigSlice("2g.20gb", 3, 2, 20096),
            MigSlice("2g.20gb", 5, 2, 20096),
        ),
    ),
    "a100-80": GpuModel(
        name="NVIDIA A100-SXM4-80GB",
        tdp_watts=400,
        sustained_watts=380,
        idle_watts=62,
        memory_mib=81920,
        reserved_mib=768,
        sm_clock_mhz=1410,
        idle_clock_mhz=210,
        memory_clock_mhz=1593,
        kelvin_per_watt=0.12,
        has_memory_sensor=True,
        nvlinks=12,
        nvlink_mib_per_second=120_000,
        mig=(
            MigSlice("3g.40gb", 2, 3, 40192),
            MigSlice("2g.20gb", 3, 2, 19968),
            MigSlice("2g.20gb", 5, 2, 19968),
        ),
    ),
    "a100-40": GpuModel(
        name="NVIDIA A100-SXM4-40GB",
        tdp_watts=400,
        sustained_watts=380,
        idle_watts=60,
        memory_mib=40960,
        reserved_mib=565,
        sm_clock_mhz=1410,
        idle_clock_mhz=210,
        memory_clock_mhz=1215,
        kelvin_per_watt=0.12,
        has_memory_sensor=True,
        nvlinks=12,
        nvlink_mib_per_second=120_000,
        mig=(
            MigSlice("3g.20gb", 2, 3, 19968),
            MigSlice("2g.10gb", 3, 2, 9856),
            MigSlice("2g.10gb", 5, 2, 9856),
        ),
    ),
    "l40s": GpuModel(
        name="NVIDIA L40S",
        tdp_watts=350,
        sustained_watts=312,
        idle_watts=38,
        memory_mib=46068,
        reserved_mib=605,
        sm_clock_mhz=2520,
        idle_clock_mhz=210,
        memory_clock_mhz=9001,
        kelvin_per_watt=0.15,
        has_memory_sensor=False,
        nvlinks=0,
        nvlink_mib_per_second=0,
    ),
    "t4": GpuModel(
        name="Tesla T4",
        tdp_watts=70,
        sustained_watts=67,
        idle_watts=10,
        memory_mib=15360,
        reserved_mib=267,
        sm_clock_mhz=1590,
        idle_clock_mhz=300,
        memory_clock_mhz=5001,
        kelvin_per_watt=0.7,
        has_memory_sensor=False,
        nvlinks=0,
        nvlink_mib_per_second=0,
    ),
}
