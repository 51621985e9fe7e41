"""The one table of what a GPU record measures; records, columns, API schema, docs and dashboards follow it.

Each row names a DCGM field, the name it has in a record and in the table `gpu_metrics`, its unit, how DCGM's number
becomes ours, the range a true value lies in, and whether the value belongs to the whole GPU or to a MIG instance.
Source of names and units: NVIDIA's dcgm_fields.h and dcgm-exporter's default-counters.csv.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class ValueType(StrEnum):
    """How a value is stored."""

    REAL = "real"
    INTEGER = "integer"


class Behaviour(StrEnum):
    """How a value moves, as Prometheus names it."""

    GAUGE = "gauge"
    COUNTER = "counter"


class Scope(StrEnum):
    """Whose value it is: the whole GPU's (repeated on each MIG instance's row) or one instance's."""

    GPU = "gpu"
    INSTANCE = "instance"


@dataclass(frozen=True, slots=True)
class Field:
    """One measured quantity.

    `dcgm` holds every DCGM name it goes by, the current one first; it is empty for a value that is derived.
    `multiply_by` turns DCGM's number into `unit`. `low` and `high` bound a plausible value, in `unit`, both inclusive.
    """

    name: str
    dcgm: tuple[str, ...]
    unit: str
    low: float
    high: float
    help: str
    type: ValueType = ValueType.REAL
    behaviour: Behaviour = Behaviour.GAUGE
    scope: Scope = Scope.GPU
    multiply_by: float = 1.0


# Integers stay below 2**53, so that every JSON reader keeps them exact.
LARGEST_EXACT_INTEGER: Final = 2**53


def _device(*names: str) -> tuple[str, ...]:
    return tuple(f"DCGM_FI_DEV_{name}" for name in names)


def _profiling(name: str) -> tuple[str, ...]:
    return (f"DCGM_FI_PROF_{name}",)


def _ratio(name: str, dcgm: str, text: str) -> Field:
    return Field(name, _profiling(dcgm), "ratio", 0, 1, text, scope=Scope.INSTANCE)


def _percent(name: str, dcgm: str, text: str) -> Field:
    return Field(name, _device(dcgm), "%", 0, 100, text, scope=Scope.INSTANCE)


def _mebibytes(name: str, dcgm: str, text: str) -> Field:
    # 16 TiB is far above any GPU's memory and far below every sentinel.
    return Field(name, _device(dcgm), "MiB", 0, 16 * 1024**2, text, ValueType.INTEGER, scope=Scope.INSTANCE)


def _count(name: str, dcgm: str, text: str, unit: str = "count") -> Field:
    return Field(
        name, _device(dcgm), unit, 0, LARGEST_EXACT_INTEGER, text, ValueType.INTEGER, Behaviour.COUNTER, Scope.GPU
    )


FIELDS: Final[tuple[Field, ...]] = (
    Field("temperature_celsius", _device("GPU_TEMP"), "°C", -50, 200, "GPU core temperature"),
    Field("memory_temperature_celsius", _device("MEMORY_TEMP"), "°C", -50, 200, "Memory temperature"),
    Field("power_watts", _device("POWER_USAGE"), "W", 0, 5000, "Power draw of the board"),
    Field(
        "energy_joules",
        _device("TOTAL_ENERGY_CONSUMPTION"),
        "J",
        0,
        1e13,
        "Energy since the driver was loaded",
        behaviour=Behaviour.COUNTER,
        multiply_by=0.001,  # DCGM counts millijoules
    ),
    _percent("gpu_utilization_percent", "GPU_UTIL", "Share of time with a kernel running"),
    _percent("memory_copy_utilization_percent", "MEM_COPY_UTIL", "Share of time memory was read or written"),
    _percent("encoder_utilization_percent", "ENC_UTIL", "Video encoder utilisation"),
    _percent("decoder_utilization_percent", "DEC_UTIL", "Video decoder utilisation"),
    _mebibytes("memory_used_mib", "FB_USED", "Framebuffer memory in use"),
    _mebibytes("memory_free_mib", "FB_FREE", "Framebuffer memory free"),
    _mebibytes("memory_reserved_mib", "FB_RESERVED", "Framebuffer memory reserved by the driver"),
    _mebibytes("memory_total_mib", "FB_TOTAL", "Framebuffer memory: as reported, else used + free + reserved"),
    Field(
        "memory_used_percent",
        (),
        "%",
        0,
        100,
        "100 x used / (used + free)",
        scope=Scope.INSTANCE,
    ),
    Field("sm_clock_mhz", _device("SM_CLOCK"), "MHz", 0, 10000, "SM clock", ValueType.INTEGER),
    Field("memory_clock_mhz", _device("MEM_CLOCK"), "MHz", 0, 50000, "Memory clock", ValueType.INTEGER),
    Field(
        "clock_throttle_reasons",
        _device("CLOCKS_EVENT_REASONS", "CLOCK_THROTTLE_REASONS"),
        "bitmask",
        0,
        2**32 - 2,
        "Why clocks are held down, as NVML's bits",
        ValueType.INTEGER,
    ),
    Field("xid_code", _device("XID_ERRORS"), "code", 0, 10000, "Last XID error; sticky", ValueType.INTEGER),
    _count("ecc_single_bit_volatile", "ECC_SBE_VOL_TOTAL", "Corrected ECC errors since the driver was loaded"),
    _count("ecc_double_bit_volatile", "ECC_DBE_VOL_TOTAL", "Uncorrected ECC errors since the driver was loaded"),
    _count("ecc_single_bit_aggregate", "ECC_SBE_AGG_TOTAL", "Corrected ECC errors over the GPU's life"),
    _count("ecc_double_bit_aggregate", "ECC_DBE_AGG_TOTAL", "Uncorrected ECC errors over the GPU's life"),
    Field("row_remap_failure", _device("ROW_REMAP_FAILURE"), "0 or 1", 0, 1, "Row remapping failed", ValueType.INTEGER),
    Field("row_remap_pending", _device("ROW_REMAP_PENDING"), "0 or 1", 0, 1, "A reset is due", ValueType.INTEGER),
    _count("row_remap_uncorrectable_rows", "UNCORRECTABLE_REMAPPED_ROWS", "Rows remapped for hard errors", "rows"),
    _count("row_remap_correctable_rows", "CORRECTABLE_REMAPPED_ROWS", "Rows remapped for corrected errors", "rows"),
    _count("retired_pages_single_bit", "RETIRED_SBE", "Pages retired for corrected errors", "pages"),
    _count("retired_pages_double_bit", "RETIRED_DBE", "Pages retired for uncorrected errors", "pages"),
    _count("retired_pages_pending", "RETIRED_PENDING", "Pages whose retirement waits for a reset", "pages"),
    _count("pcie_replay_count", "PCIE_REPLAY_COUNTER", "PCIe packets sent again"),
    _count("nvlink_bandwidth_total", "NVLINK_BANDWIDTH_TOTAL", "NVLink traffic of all lanes, as DCGM counts it"),
    _count("nvlink_crc_flit_errors", "NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL", "NVLink flow-control CRC errors"),
    _count("nvlink_crc_data_errors", "NVLINK_CRC_DATA_ERROR_COUNT_TOTAL", "NVLink data CRC errors"),
    _count("nvlink_replay_errors", "NVLINK_REPLAY_ERROR_COUNT_TOTAL", "NVLink replays"),
    _count("nvlink_recovery_errors", "NVLINK_RECOVERY_ERROR_COUNT_TOTAL", "NVLink recoveries"),
    _ratio("graphics_engine_active_ratio", "GR_ENGINE_ACTIVE", "Share of time a compute or graphics engine was busy"),
    _ratio("sm_active_ratio", "SM_ACTIVE", "Share of time an SM had a warp"),
    _ratio("sm_occupancy_ratio", "SM_OCCUPANCY", "Resident warps against the most an SM can hold"),
    _ratio("tensor_active_ratio", "PIPE_TENSOR_ACTIVE", "Share of cycles the tensor pipes were busy"),
    _ratio("dram_active_ratio", "DRAM_ACTIVE", "Share of cycles memory was busy"),
    Field(
        "pcie_tx_bytes_per_second", _profiling("PCIE_TX_BYTES"), "B/s", 0, 1e13, "PCIe bytes sent", scope=Scope.INSTANCE
    ),
    Field(
        "pcie_rx_bytes_per_second",
        _profiling("PCIE_RX_BYTES"),
        "B/s",
        0,
        1e13,
        "PCIe bytes received",
        scope=Scope.INSTANCE,
    ),
)

FIELD_BY_NAME: Final[dict[str, Field]] = {field.name: field for field in FIELDS}
FIELD_BY_DCGM_NAME: Final[dict[str, Field]] = {dcgm: field for field in FIELDS for dcgm in field.dcgm}

# What DCGM prints for "no value" (dcgm_structs.h, DCGM_INT32_BLANK, DCGM_INT64_BLANK, DCGM_FP64_BLANK and the three
# that follow each: not found, not supported, not permissioned). All are exact as Python floats but the int64 ones,
# which a float reader rounds to 2**63.
_INT32_BLANKS: Final = frozenset(float(n) for n in range(2147483632, 2147483636))
_INT64_BLANKS: Final = frozenset(float(n) for n in range(9223372036854775792, 9223372036854775796))
_DOUBLE_BLANKS: Final = frozenset(float(n) for n in range(140737488355328, 140737488355332))
_UNSIGNED_32_BIT_BLANK: Final = frozenset((4294967295.0,))

SENTINELS: Final[frozenset[float]] = _INT32_BLANKS | _INT64_BLANKS | _DOUBLE_BLANKS | _UNSIGNED_32_BIT_BLANK
# A 64-bit counter passes through the 32-bit sentinels honestly, so on a counter only the wide ones mean "no value".
COUNTER_SENTINELS: Final[frozenset[float]] = _INT64_BLANKS | _DOUBLE_BLANKS
