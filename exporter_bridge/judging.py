"""Whether a value that DCGM printed is to be believed: sentinels, ranges, whole numbers."""

from dataclasses import dataclass
from functools import lru_cache
from math import isfinite, nextafter
from typing import Final

from gpu_telemetry.fields import (
    COUNTER_SENTINELS,
    FIELD_BY_DCGM_NAME,
    LARGEST_EXACT_INTEGER,
    SENTINELS,
    Behaviour,
    Field,
    ValueType,
)

SENTINEL: Final = "sentinel"
OUT_OF_RANGE: Final = "out_of_range"
NOT_FINITE: Final = "not_finite"
NOT_INTEGER: Final = "not_integer"
UNCONVERTIBLE: Final = "unconvertible"

# The names that dcgm-exporter 1.x gave, where unit and meaning are today's.
_NAMES_OF_1X: Final = {
    f"dcgm_{old}": f"DCGM_FI_DEV_{new}"
    for old, new in (
        ("gpu_temp", "GPU_TEMP"), ("memory_temp", "MEMORY_TEMP"), ("power_usage", "POWER_USAGE"),
        ("total_energy_consumption", "TOTAL_ENERGY_CONSUMPTION"), ("gpu_utilization", "GPU_UTIL"),
        ("mem_copy_utilization", "MEM_COPY_UTIL"), ("enc_utilization", "ENC_UTIL"), ("dec_utilization", "DEC_UTIL"),
        ("fb_used", "FB_USED"), ("fb_free", "FB_FREE"), ("sm_clock", "SM_CLOCK"), ("memory_clock", "MEM_CLOCK"),
        ("xid_errors", "XID_ERRORS"), ("pcie_replay_counter", "PCIE_REPLAY_COUNTER"),
        ("ecc_sbe_volatile_total", "ECC_SBE_VOL_TOTAL"), ("ecc_dbe_volatile_total", "ECC_DBE_VOL_TOTAL"),
        ("ecc_sbe_aggregate_total", "ECC_SBE_AGG_TOTAL"), ("ecc_dbe_aggregate_total", "ECC_DBE_AGG_TOTAL"),
        ("retired_pages_sbe", "RETIRED_SBE"), ("retired_pages_dbe", "RETIRED_DBE"),
        ("retired_pages_pending", "RETIRED_PENDING"),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measure:
    """What a value is judged by: its DCGM name, its row of the field table if it has one, and how it moves."""

    dcgm: str
    field: Field | None
    counter: bool

    @property
    def name(self) -> str:
        """Its name in a record: ours, else DCGM's."""
        return self.field.name if self.field else self.dcgm

    @property
    def integer(self) -> bool:
        """Whether it is a whole number in a record."""
        return self.field is not None and self.field.type is ValueType.INTEGER

    @property
    def divisor(self) -> float:
        """DCGM's number divided by this is ours: 1234 mJ / 1000 is 1.234 J, which 1234 x 0.001 is not."""
        return 1 / self.field.multiply_by if self.field else 1

    @property
    def surely_good_up_to(self) -> float:
        """From 0 to this, in DCGM's unit, a value is in range; sentinels apart if it lies above the least of them."""
        if self.field is None:
            return float("inf")
        if self.field.high >= LARGEST_EXACT_INTEGER and self.integer:
            return LARGEST_EXACT_INTEGER - 1.0  # a float cannot tell the largest from what rounds to it
        if self.divisor == 1:
            return self.field.high
        return nextafter(self.field.high * self.divisor, 0)

    def judge(self, token: str, value: float) -> tuple[float | None, str | None]:
        """The value in a record's unit and None, or None and the reason for which it is not believed."""
        if not isfinite(value):
            return None, NOT_FINITE
        if value in (COUNTER_SENTINELS if self.counter else SENTINELS):
            return None, SENTINEL
        field = self.field
        if field is None:
            return value, None
        number = value / self.divisor
        if self.integer:
            if not value.is_integer():
                return None, NOT_INTEGER
            number = int(token) if token.isdecimal() else int(value)
        if not field.low <= number <= field.high:
            return None, OUT_OF_RANGE
        return number, None


@lru_cache(maxsize=1024)  # more names than any fleet's pages have
def measure_of(name: str, family_type: str) -> Measure | None:
    """What a sample of this name measures; None when the name is not DCGM's."""
    dcgm = _NAMES_OF_1X.get(name, name)
    field = FIELD_BY_DCGM_NAME.get(dcgm)
    if field is None and not dcgm.startswith(("DCGM_", "dcgm_")):
        return None
    counter = family_type == "counter" if field is None else field.behaviour is Behaviour.COUNTER
    return Measure(dcgm, field, counter)
