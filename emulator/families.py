"""The metric families of a page: names, types and help texts as in NVIDIA's default-counters.csv, and their values."""

from dataclasses import dataclass
from typing import Final

from emulator.gpu import Gpu, Slot

# Groups of families that are off by default in the exporter.
OPTIONAL_GROUPS: Final = ("ecc", "throttle_reasons", "xid_count")


@dataclass(frozen=True, slots=True)
class Family:
    """One family. `real` values print with six decimals, others as integers; `on_mig` says whether MIG rows have it."""

    name: str
    type: str
    help: str
    real: bool = False
    on_mig: bool = True
    group: str = ""


def _device(name: str, kind: str, text: str, *, real: bool = False, on_mig: bool = True, group: str = "") -> Family:
    return Family(f"DCGM_FI_DEV_{name}", kind, text, real, on_mig, group)


def _profiling(name: str, text: str, *, real: bool = True) -> Family:
    return Family(f"DCGM_FI_PROF_{name}", "gauge", text, real)


THROTTLE_REASONS: Final = "THROTTLE_REASONS"
XID_ERRORS: Final = "DCGM_FI_DEV_XID_ERRORS"
# What the exporter also tells for each pod, where pods share a GPU.
USED_BY_PODS: Final = frozenset(("DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_FB_USED"))
NVLINK_BANDWIDTH: Final = "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL"

# In the order of `values`.
FAMILIES: Final[tuple[Family, ...]] = (
    _device("SM_CLOCK", "gauge", "SM clock frequency (in MHz)."),
    _device("MEM_CLOCK", "gauge", "Memory clock frequency (in MHz)."),
    _device("MEMORY_TEMP", "gauge", "Memory temperature (in C)."),
    _device("GPU_TEMP", "gauge", "GPU temperature (in C)."),
    _device("POWER_USAGE", "gauge", "Power draw (in W).", real=True),
    _device("TOTAL_ENERGY_CONSUMPTION", "counter", "Total energy consumption since boot (in mJ)."),
    _device("PCIE_REPLAY_COUNTER", "counter", "Total number of PCIe retries."),
    # The driver has no utilisation for MIG instances.
    _device("GPU_UTIL", "gauge", "GPU utilization (in %).", on_mig=False),
    _device("MEM_COPY_UTIL", "gauge", "Memory utilization (in %).", on_mig=False),
    _device("ENC_UTIL", "gauge", "Encoder utilization (in %).", on_mig=False),
    _device("DEC_UTIL", "gauge", "Decoder utilization (in %).", on_mig=False),
    _device("XID_ERRORS", "gauge", "Value of the last XID error encountered."),
    _device("FB_FREE", "gauge", "Framebuffer memory free (in MiB)."),
    _device("FB_USED", "gauge", "Framebuffer memory used (in MiB)."),
    _device("FB_RESERVED", "gauge", "Framebuffer memory reserved (in MiB)."),
    _device("NVLINK_BANDWIDTH_TOTAL", "counter", "Total number of NVLink bandwidth counters for all lanes."),
    _device("VGPU_LICENSE_STATUS", "gauge", "vGPU License status"),
    _device("UNCORRECTABLE_REMAPPED_ROWS", "counter", "Number of remapped rows for uncorrectable errors"),
    _device("CORRECTABLE_REMAPPED_ROWS", "counter", "Number of remapped rows for correctable errors"),
    _device("ROW_REMAP_FAILURE", "gauge", "Whether remapping of rows has failed"),
    _profiling("GR_ENGINE_ACTIVE", "Ratio of time the graphics engine is active."),
    _profiling("PIPE_TENSOR_ACTIVE", "Ratio of cycles the tensor (HMMA) pipe is active."),
    _profiling("DRAM_ACTIVE", "Ratio of cycles the device memory interface is active sending or receiving data."),
    _profiling(
        "PCIE_TX_BYTES",
        "The rate of data transmitted over the PCIe bus - including both protocol headers and data payloads - in bytes "
        "per second.",
        real=False,
    ),
    _profiling(
        "PCIE_RX_BYTES",
        "The rate of data received over the PCIe bus - including both protocol headers and data payloads - in bytes "
        "per second.",
        real=False,
    ),
    _device("ECC_SBE_VOL_TOTAL", "counter", "Total number of single-bit volatile ECC errors.", group="ecc"),
    _device("ECC_DBE_VOL_TOTAL", "counter", "Total number of double-bit volatile ECC errors.", group="ecc"),
    _device("ECC_SBE_AGG_TOTAL", "counter", "Total number of single-bit persistent ECC errors.", group="ecc"),
    _device("ECC_DBE_AGG_TOTAL", "counter", "Total number of double-bit persistent ECC errors.", group="ecc"),
    # Its name is the dialect's.
    Family(THROTTLE_REASONS, "gauge", "Current clock throttle reasons (bitmask).", group="throttle_reasons"),
)

# Rows of its own kind: one for each code seen in the window.
XID_COUNT: Final = Family(
    "DCGM_EXP_XID_ERRORS_COUNT",
    "counter",
    "Count of XID Errors within user-specified time window (see xid-count-window-size param).",
    group="xid_count",
)


def values(
    gpu: Gpu, slot: Slot, now: float, memory_full_percent: float | None, *, licensed: bool = False
) -> tuple[float, ...]:
    """The value of every family, in the order of `FAMILIES`, of a GPU (or of one MIG instance of it) at a time.

    `licensed` says whether it has a vGPU licence.
    """
    model = gpu.model
    job = slot.job
    usable = slot.memory_mib - slot.reserved_mib
    temperature = gpu.temperature(now)
    if job is None:
        active = tensor = dram = 0.0
        used = 4
        sent = received = 12_000
    else:
        active = slot.utilisation
        tensor = active * job.tensor
        dram = active * job.dram
        used = int(usable * job.memory_ratio)
        sent = int(active * 1.1e9)
        received = int(active * 2.4e9)
    if memory_full_percent is not None:
        used = int(usable * memory_full_percent / 100)
    sm_clock = int(model.sm_clock_mhz * gpu.clock_ratio) // 15 * 15 if gpu.load else model.idle_clock_mhz
    return (
        sm_clock,
        model.memory_clock_mhz,
        round(temperature + 5 + 9 * gpu.dram_load) if model.has_memory_sensor else 0,
        round(temperature),
        gpu.power_watts,
        gpu.energy_millijoules(now),
        gpu.replays(now),
        round(100 * active),
        round(100 * dram),
        0,
        0,
        gpu.xid.code,
        usable - used,
        used,
        slot.reserved_mib,
        gpu.nvlink_mib(now),
        int(licensed),
        0,
        gpu.correctable_rows,
        0,
        active,
        tensor,
        dram,
        sent,
        received,
        gpu.sbe_volatile(now),
        0,
        gpu.sbe_aggregate(now),
        0,
        gpu.throttle_reasons,
    )
