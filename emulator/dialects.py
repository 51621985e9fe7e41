"""How the exporter's releases differ on the page: which families and labels it has, and how they are spelled.

Named by the DCGM version that the exporter's tags begin with (by the exporter's own before it was one of DCGM's
releases); each says what changed with its first tag.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from emulator.families import THROTTLE_REASONS, XID_COUNT

# What exporter 1.x, a shell script over `dcgmi dmon`, called its families; it had no others.
_NAMES_OF_1X: Final = {
    "DCGM_FI_DEV_SM_CLOCK": "dcgm_sm_clock",
    "DCGM_FI_DEV_MEM_CLOCK": "dcgm_memory_clock",
    "DCGM_FI_DEV_MEMORY_TEMP": "dcgm_memory_temp",
    "DCGM_FI_DEV_GPU_TEMP": "dcgm_gpu_temp",
    "DCGM_FI_DEV_POWER_USAGE": "dcgm_power_usage",
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": "dcgm_total_energy_consumption",
    "DCGM_FI_DEV_PCIE_REPLAY_COUNTER": "dcgm_pcie_replay_counter",
    "DCGM_FI_DEV_GPU_UTIL": "dcgm_gpu_utilization",
    "DCGM_FI_DEV_MEM_COPY_UTIL": "dcgm_mem_copy_utilization",
    "DCGM_FI_DEV_ENC_UTIL": "dcgm_enc_utilization",
    "DCGM_FI_DEV_DEC_UTIL": "dcgm_dec_utilization",
    "DCGM_FI_DEV_XID_ERRORS": "dcgm_xid_errors",
    "DCGM_FI_DEV_FB_FREE": "dcgm_fb_free",
    "DCGM_FI_DEV_FB_USED": "dcgm_fb_used",
    "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL": "dcgm_ecc_sbe_volatile_total",
    "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": "dcgm_ecc_dbe_volatile_total",
    "DCGM_FI_DEV_ECC_SBE_AGG_TOTAL": "dcgm_ecc_sbe_aggregate_total",
    "DCGM_FI_DEV_ECC_DBE_AGG_TOTAL": "dcgm_ecc_dbe_aggregate_total",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One way to write a page; the defaults are those of the oldest that has today's names."""

    first_tag: str
    # The names of its families, which has no others; None: today's names, `lacks` aside.
    names: Mapping[str, str] | None = None
    lacks: frozenset[str] = frozenset()
    # Of a GPU a row says its index and its UUID alone, and its pod.
    bare: bool = False
    # `uuid`, `pod_name`, `pod_namespace`, `container_name`.
    old_spelling: bool = False
    # XID rows say the code and its meaning again as labels, so a new code is a new series.
    xid_meaning: bool = False
    pci_bus_id: bool = False
    pod_uid: bool = False
    # Whether a GPU without a pod has the pod labels, empty.
    empty_pod_labels: bool = True
    hostname_label: str = "Hostname"
    # What is no GPU may have rows: NVLinks, NVSwitches, CPUs.
    other_entities: bool = False
    # Rows of NVLinks name their GPU, and spell `hostname` in lower case; before, links were known by their NVSwitch.
    links_name_gpu: bool = False
    # Where pods share a GPU, one without a pod keeps its rows, and use is told for the GPU and then for each pod.
    use_by_pod: bool = False
    throttle_field: str = "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS"
    driver_version: str | None = "535.129.03"
    decimals: int = 6

    def name_of(self, family: str) -> str | None:
        """What it calls a family; None if it has no such family."""
        if family == THROTTLE_REASONS:
            return self.throttle_field if self.names is None else None
        if self.names is not None:
            return self.names.get(family)
        return None if family in self.lacks else family


_V1_7: Final = Dialect(
    first_tag="1.7.2",
    names=_NAMES_OF_1X,
    bare=True,
    old_spelling=True,
    empty_pod_labels=False,
    driver_version=None,
    decimals=3,
)
_V2_4: Final = Dialect(
    first_tag="2.4.7-2.6.11",
    lacks=frozenset(("DCGM_FI_DEV_FB_RESERVED", XID_COUNT.name)),
    driver_version=None,
)
_V3_3: Final = Dialect(first_tag="3.3.5-3.4.0", other_entities=True)
_V3_4: Final = replace(_V3_3, first_tag="3.3.6-3.4.2", xid_meaning=True)
_V3_5: Final = replace(_V3_4, first_tag="3.3.7-3.5.0", pci_bus_id=True)
_V4_4: Final = replace(
    _V3_5,
    first_tag="4.4.0-4.5.0",
    pod_uid=True,
    empty_pod_labels=False,
    throttle_field="DCGM_FI_DEV_CLOCKS_EVENT_REASONS",
    driver_version="580.95.05",
)
# Links name their GPU since 4.4.1-4.6.0.
_V4_5: Final = replace(_V4_4, first_tag="4.5.3-4.8.2", links_name_gpu=True, use_by_pod=True)
_V4_6: Final = replace(_V4_5, first_tag="after 4.5.3-4.8.2", hostname_label="hostname")

DIALECTS: Final[dict[str, Dialect]] = {
    "1.7": _V1_7,
    "2.4": _V2_4,
    "3.3": _V3_3,
    "3.4": _V3_4,
    "3.5": _V3_5,
    "4.4": _V4_4,
    "4.5": _V4_5,
    "4.6": _V4_6,
}

MIXED: Final = "mixed"
